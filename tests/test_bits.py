"""Today's bits: three rounds of every algorithm, from fixed seeds, give the very state they gave before.

`python tests/test_bits.py` writes what this machine gives into fixtures/bits.json: for a change that is meant to change
numbers, which the CHANGELOG then names. XLA's code differs from one version of JAX and one processor to another, and
rounding with it, so hashes belong to a machine. On a machine without hashes the norms alone are compared.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_rl.config import CONFIGS
from fedjax_rl.config import build as build_config
from fedjax_rl.config.presets import preset
from fedjax_rl.envs import resolve_backend
from fedjax_rl.runs import assemble, loop
from fedjax_rl.runs.arrays import flatten, state_hash

FILE = Path(__file__).parent / "fixtures" / "bits.json"
CASES = [(name, "finite/random" if CONFIGS[name].learns_values else "navigation", "auto") for name in CONFIGS]
CASES += [("fmrl", "half_cheetah/direction", "fused")]
ON_NATIVE = [(name, "half_cheetah/direction", "native") for name in ("fmrl", "ditto")]
ROUNDS = 3
# How far norms may be apart on two machines: contacts amplify rounding, and quotients of small gradients more so.
CLOSE, ROUGHLY = 1e-3, {"npg_admm on navigation": 0.02, "fedstrategy on navigation": 0.5}


def three_rounds(algorithm: str, env: str, backend: str):
    """The state after three rounds of the preset `tiny`, by the program that a run uses."""
    resolve_backend("native")
    values = {"env": env, "backend": backend, "seed": 3}
    if algorithm in ("fedhpd", "dpa_fedrl"):
        values |= {"kinds": "4x8-8:tanh, 4x16:relu:0.01", "selection": "by_kind"}
    if algorithm == "fedhpd":
        values |= {"public_states": str(FILE.with_name("public-states.npy"))}
    group = assemble.make_group([build_config(algorithm, preset("tiny", algorithm, env), values)])
    step, state = loop.compile_round(group).step, assemble.initial_states(group)
    alive = np.ones(1, bool)
    for _ in range(ROUNDS):
        state, alive, _ = step(state, alive, group.values)
    return state


def norms(state) -> dict[str, float]:
    """The Euclidean norm of every array of numbers that are not whole."""
    arrays = {name: value for name, value in flatten(state).items() if value.dtype.kind == "f"}
    return {name: float(np.linalg.norm(value.astype(float))) for name, value in arrays.items()}


def machine() -> str:
    """What XLA's code depends on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    vectors = [name for name in ("avx2", "avx512f", "avx512_bf16") if name in about.get("flags", "").split()]
    model = " ".join([about.get("model name", platform.machine()), *vectors])
    return f"jax {jax.__version__}, {jax.devices()[0].platform}, {model}"


def name_of(algorithm: str, env: str, backend: str) -> str:
    """A case's name in bits.json."""
    return f"{algorithm} on {env}" + (" on fused physics" if backend == "fused" else "")


def found(cases) -> dict[str, dict]:
    """Norms and hash of each case, from a process of its own: with XLA as a user's run has it."""
    command = [sys.executable, __file__, "--print", *(name_of(*case) for case in cases)]
    done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# the algorithms' bits are those on navigation, and C MuJoCo's own are compared in envs/test_native.py
@pytest.mark.parametrize("cases", [CASES, pytest.param(ON_NATIVE, marks=pytest.mark.nightly)], ids=["all", "native"])
def test_three_rounds_give_the_state_they_gave(cases):
    known = json.loads(FILE.read_text())
    states = found(cases)
    hashes = known["hashes"].get(machine(), {})
    wrong = []
    for case, (norms_now, hash_now) in states.items():
        assert norms_now.keys() == known["norms"][case].keys(), case
        for name, norm in known["norms"][case].items():
            if not np.isclose(norms_now[name], norm, rtol=ROUGHLY.get(case, CLOSE), atol=0):
                wrong.append(f"{case}: {name} is {norms_now[name]}, not {norm}")
        if hash_now != hashes.get(case, hash_now):
            wrong.append(f"{case}: other bits")
    assert len(states) == len(cases) and not wrong, "\n".join(wrong)


def measured(names: list[str]) -> dict[str, tuple[dict[str, float], str]]:
    """Norms and hash of the cases of these names, or of all."""
    every = {name_of(*case): case for case in [*CASES, *ON_NATIVE]}
    states = {name: three_rounds(*every[name]) for name in names or every}
    return {name: (norms(state), state_hash(state)) for name, state in states.items()}


def write() -> None:
    """This machine's bits into bits.json."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {"hashes": {}}
    now = measured([])
    known["hashes"][machine()] = {case: bits for case, (_, bits) in now.items()}
    known["norms"] = {case: sizes for case, (sizes, _) in now.items()}
    FILE.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--print"]:
        print(json.dumps(measured(sys.argv[2:])))
    else:
        write()
