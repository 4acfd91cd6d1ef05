"""What this process may use of its machine."""

import functools
import os
from pathlib import Path

VECTORS = ("avx512f", "avx2")  # widest first: how many numbers XLA adds side by side decides how sums are rounded


def cores() -> int:
    """Cores that the process may run on: what `taskset`, Slurm and containers leave it, not what the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity
        return os.cpu_count() or 1


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def vectors() -> str | None:
    """The widest vectors of the processor that are known here; None: others."""
    return next((name for name in VECTORS if name in cpu_flags()), None)
