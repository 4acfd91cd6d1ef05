"""What the benchmarks share: timing, and the facts that make a figure worth quoting."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_rl.host.cores import cores, vectors
from fedjax_rl.runs import provenance

Row = dict[str, Any]


def timed(fn: Callable, *args: Any) -> tuple[float, Any]:
    """(seconds, result), the result ready; a result that is not finite is an error."""
    began = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    seconds = time.perf_counter() - began
    for leaf in jax.tree.leaves(result):
        if isinstance(leaf, jax.Array | np.ndarray) and jax.numpy.issubdtype(leaf.dtype, np.floating):
            if not np.isfinite(np.asarray(leaf)).all():
                raise FloatingPointError(f"{getattr(fn, '__name__', fn)} returned numbers that are not finite")
    return seconds, result


def interleaved(fns: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every function, `repeats` times in turn, so that a slow moment of the machine meets all of them.

    The first call of each, which compiles, is left out.
    """
    for fn in fns.values():
        timed(fn)
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for _ in range(repeats):
        for name, fn in fns.items():
            seconds[name].append(timed(fn)[0])
    return seconds


def median(values: Sequence[float] | np.ndarray) -> float:
    """The middle of the repeats."""
    return float(np.median(values))


def spread(values: Sequence[float] | np.ndarray) -> list[float]:
    """[smallest, largest]."""
    return [float(min(values)), float(max(values))]


def row(benchmark: str, **figures: Any) -> Row:
    """A row of results: the figures, the versions, the device."""
    device = jax.devices()[0]
    facts = {
        "versions": {name: found for name, found in provenance.versions().items() if found},
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": cores(),
        "vectors": vectors(),
        "git": provenance.git_revision(),
    }
    return {"benchmark": benchmark, **figures, **facts}
