"""P7: how long a program takes to compile, and to come back from the cache."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedjax_rl.bench.rows import Row, row
from fedjax_rl.envs import resolve_backend


def compile(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """A row: fresh processes that train one round, the first with an empty cache, the others with its programs."""
    del sizes
    backend = resolve_backend(backend)
    with tempfile.TemporaryDirectory() as home:
        found = [fresh_process(env, backend, Path(home), i) for i in range(repeats + 1)]
    names = ("round_program_s", "whole_command_s")
    cold, cached = dict(zip(names, found[0], strict=True)), [dict(zip(names, one, strict=True)) for one in found[1:]]
    return [row("P7", env=env, backend=backend, cold=cold, cached=cached)]


def fresh_process(env: str, backend: str, home: Path, number: int) -> tuple[float, float]:
    """(seconds of the round's compilation, seconds of the command)."""
    out, began = home / f"run{number}", time.perf_counter()
    environ = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(home / "jax"), "XDG_CACHE_HOME": str(home)}
    small = ["--preset", "tiny", "--rounds", "1", "--new-clients", "0", "--adapt-steps", "0"]
    command = [sys.executable, "-m", "fedjax_rl", "train", *small, "--env", env, "--backend", backend, "--quiet"]
    subprocess.run([*command, "--out", str(out)], env=environ, check=True, capture_output=True)
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    return first["sys/compile_s"], time.perf_counter() - began
