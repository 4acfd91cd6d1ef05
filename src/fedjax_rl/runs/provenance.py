"""Where a run took place: versions, device, git revision, command line. Imports no jax until it is asked."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedjax_rl.host import exits
from fedjax_rl.host.cores import cores, vectors
from fedjax_rl.host.files import read_text

PACKAGES = ("fedjax-rl", "jax", "jaxlib", "mujoco", "mujoco-mjx", "flax", "optax", "orbax-checkpoint", "brax", "numpy")
# what decides how a run's numbers are rounded; XLA divides the sums of large products among the cores
ROUNDING = ("jax", "jaxlib", "mujoco", "device", "device_count")
ROUNDING_ON_CPU = ("cores", "vectors")


def describe(seed: int) -> dict[str, Any]:
    """Where a run took place: versions, device, git revision, command line, seed."""
    from fedjax_rl.host.numerics import PRNG

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions(),
        **machine(),
        "prng": PRNG,
        "environ": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("JAX_", "XLA_"))},
        "git": git_revision(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
    }


def machine() -> dict[str, Any]:
    """What computes: device, cores, vectors."""
    import jax

    device = jax.devices()[0].device_kind
    return {"device": device, "device_count": jax.device_count(), "cores": cores(), "vectors": vectors()}


def moved(envs: Iterable[Path]) -> dict[str, Path]:
    """What decides rounding and is not here as where runs began, as "cores 2, here 1", with an env.json that says so.

    What a file does not say, or what cannot be read, is passed over.
    """
    now = versions() | machine()
    found: dict[str, Path] = {}
    for env in envs:
        try:
            then = json.loads(read_text(env))
            names = ROUNDING + (ROUNDING_ON_CPU if now["device"] == then.get("device", "cpu") == "cpu" else ())
        except (exits.Refusal, OSError, ValueError, AttributeError):
            continue
        changed = [name for name in names if then.get(name, now[name]) != now[name]]
        if changed:
            found.setdefault(", ".join(f"{name} {then[name]}, here {now[name]}" for name in changed), env)
    return found


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that decide a run's numbers."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_revision() -> str | None:
    """The commit of the clone that this package is in; None elsewhere."""
    here = Path(__file__).parent
    if not any((parent / ".git").exists() for parent in here.parents):
        return None
    try:
        done = subprocess.run(
            ["git", "-C", here, "rev-parse", "--verify", "-q", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
