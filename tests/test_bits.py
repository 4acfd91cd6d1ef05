"""Today's bits: three rounds of every algorithm, from fixed seeds, give the very state they gave before.

`python tests/test_bits.py` writes what this machine gives into fixtures/bits.json: for a change that is meant to change
numbers, which the CHANGELOG then names. XLA's code differs from one version of JAX and one processor to another, and
rounding with it, so hashes belong to a machine. On a machine without hashes the norms alone are compared.
"""

import json
import platform
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


# the algorithms' bits are those on navigation, and C MuJoCo's own are compared in envs/test_native.py
@pytest.mark.parametrize(
    ("algorithm", "env", "backend"), [*CASES, *(pytest.param(*case, marks=pytest.mark.nightly) for case in ON_NATIVE)]
)
def test_three_rounds_give_the_state_they_gave(algorithm, env, backend):
    known, case = json.loads(FILE.read_text()), name_of(algorithm, env, backend)
    state = three_rounds(algorithm, env, backend)
    found = norms(state)
    assert found.keys() == known["norms"][case].keys()
    for name, norm in known["norms"][case].items():
        np.testing.assert_allclose(found[name], norm, rtol=1e-3, err_msg=name)  # contacts amplify rounding
    hashes = known["hashes"].get(machine(), {})
    if case in hashes:
        assert state_hash(state) == hashes[case]


def write() -> None:
    known = json.loads(FILE.read_text()) if FILE.exists() else {"hashes": {}}
    states = {name_of(*case): three_rounds(*case) for case in [*CASES, *ON_NATIVE]}
    known["hashes"][machine()] = {case: state_hash(state) for case, state in states.items()}
    known["norms"] = {case: norms(state) for case, state in states.items()}
    FILE.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    write()
