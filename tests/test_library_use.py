"""The package as a library, and under other settings of JAX: every way of starting a run gives the same bits.

Settings that are read with every trace are tried in this process, what acts at import, a fork and an affinity in
processes of their own.
"""

import ast
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.config import build, presets
from fedjax_rl.host import cores, numerics
from fedjax_rl.rl.critics import mlp_critic
from fedjax_rl.rl.policies import gaussian_mlp
from fedjax_rl.runs import provenance, runner
from fedjax_rl.runs.arrays import state_hash, unflatten
from fedjax_rl.runs.assemble import initial_states, make_group, round_of
from fedjax_rl.runs.progress import Reporter

SMALL = {
    "env": "probe/delayed",
    "hidden": (4,),
    "num_clients": 4,
    "clients_per_round": 2,
    "episodes": 2,
    "local_steps": 2,
    "rounds": 2,
    "adapt_steps": 1,
    "new_clients": 1,
    "critic": "federated",
}
# Of JAX's implementations those that compile in seconds; threefry4x32 takes minutes and many GB.
SETTINGS = [
    ("default_prng_impl", "rbg"),
    ("default_prng_impl", "unsafe_rbg"),
    ("threefry_partitionable", False),
    ("random_seed_offset", 5),
    ("enable_x64", True),
    ("debug_nans", True),
    ("debug_infs", True),
    ("disable_jit", True),
    ("transfer_guard", "disallow"),
    ("default_matmul_precision", "bfloat16"),
    ("numpy_rank_promotion", "raise"),
    ("numpy_dtype_promotion", "strict"),
]
# one by one in every test run what changes draws; the others there all at once
ALONE = ("rbg", "threefry_partitionable", "random_seed_offset", "enable_x64")
ONE_BY_ONE = [
    pytest.param(name, value, id=f"{name}={value}", marks=() if {name, value} & {*ALONE} else pytest.mark.nightly)
    for name, value in SETTINGS
]


def train(directory: Path) -> str:
    """The hash of the state in which a small run ends, and of its last evaluation."""
    [result] = runner.run_group([build("fmrl", SMALL)], [directory], Reporter(quiet=True))
    return f"{state_hash(result.state)} {json.loads((directory / 'eval.jsonl').read_text())['eval/returns']}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run") / "run")


@contextmanager
def setting(name, value):
    before = getattr(jax.config, f"jax_{name}")
    jax.config.update(f"jax_{name}", value)
    try:
        yield
    finally:
        jax.config.update(f"jax_{name}", before)


def test_a_second_run_in_one_process_has_the_same_bits(undisturbed, tmp_path):
    assert train(tmp_path / "run") == undisturbed


def test_a_thread_that_is_not_the_main_one_has_the_same_bits(undisturbed, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train(tmp_path / "run")))
    thread.start()
    thread.join()
    assert found == [undisturbed]


@pytest.mark.parametrize(("name", "value"), ONE_BY_ONE)
def test_a_setting_of_jax_leaves_keys_and_program_as_they_are(name, value):
    """The initial state's bits, and the very text of a round's program: what follows from it needs no run."""
    want = opened()
    with setting(name, value):
        assert opened() == want


@pytest.mark.parametrize(("name", "value"), [("threefry_partitionable", False), ("enable_x64", True)])
def test_a_setting_of_jax_leaves_the_lanes_of_a_run_as_they_are(name, value, tmp_path):
    """They follow from a draw, and decide how many clients a round has."""
    given = {"env": "navigation", "num_clients": 12, "speed": "lognormal"}
    config = build("fedavg", presets.preset("a3c", "fedavg"), given)
    want = runner.with_engine(tmp_path, config)
    with setting(name, value):
        assert runner.with_engine(tmp_path, config) == want


@numerics.pinned()
def opened() -> tuple[str, str]:
    group = make_group([build("fmrl", SMALL)])
    states = initial_states(group)
    program = jax.jit(lambda *args: round_of(group, *args)).lower(states, np.ones(1, bool), group.values)
    return state_hash(states), program.as_text()


def test_a_key_is_what_jax_makes_of_the_seed_by_default():
    for seed in (0, 1, 2**31 - 1, np.uint32(7)):
        want = jax.random.key(seed, impl="threefry2x32")
        assert jax.random.key_impl(numerics.root_key(seed)) == jax.random.key_impl(want)
        np.testing.assert_array_equal(jax.random.key_data(numerics.root_key(seed)), jax.random.key_data(want))


def test_a_key_restored_is_of_the_implementation_it_was_saved_with():
    with setting("default_prng_impl", "rbg"):
        like = jax.eval_shape(lambda: numerics.root_key(3))
        key = unflatten({"state": np.array([0, 3], np.uint32)}, like)
    assert key.dtype == numerics.root_key(3).dtype


def test_no_other_function_makes_keys():
    """Keys come from `numerics.root_key` alone, in the package, the experiments and the benchmarks."""
    top = Path(__file__).parents[1]
    found = [
        f"{path.relative_to(top)}:{node.lineno}"
        for part in ("src", "experiments", "benchmarks")
        for path in sorted((top / part).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and re.search(r"random\.(key|PRNGKey)$", ast.unparse(node))
    ]
    assert found == []


@pytest.mark.parametrize("what", ["policy", "critic"])
def test_products_are_of_the_highest_precision(what):
    """As the program says it: on accelerators the default rounds a rollout and a loss differently."""
    spec = make_group([build("fmrl", SMALL)]).run.env.spec
    made = gaussian_mlp(spec, hidden=(4,)) if what == "policy" else mlp_critic(spec, hidden=(4,))
    params, more = made.init(numerics.root_key(0)), () if what == "policy" else (jnp.zeros(3),)
    obs = jnp.zeros((3, spec.observation_size))
    gradient = jax.grad(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(made.apply(p, obs, *more))))
    text = jax.jit(gradient).lower(params).as_text()
    products = re.findall(r"dot_general.*", text)
    assert len(products) >= 4 and all("[HIGHEST, HIGHEST]" in line for line in products)


def test_what_is_ignored_is_said_once(capsys):
    numerics._say.cache_clear()
    with setting("debug_nans", True), setting("enable_x64", True):
        for _ in range(2):
            with numerics.pinned():
                assert jnp.arange(2.0).dtype == jnp.float32 and not jax.config.jax_debug_nans
    line = "fedjax-rl: ignored, since no result may depend on it: JAX_ENABLE_X64=True, JAX_DEBUG_NANS=True\n"
    assert capsys.readouterr().err == line


def elsewhere(body: str, tmp_path, *command: str, **environ: str) -> str:
    """What a process of its own prints last; `train()` is at its hand."""
    code = f"import os, sys\nfrom pathlib import Path\nhere = Path({str(tmp_path / 'run')!r})\n{body}"
    environ = {**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, **environ}
    environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run([*command, sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


TRAIN = "from test_library_use import train\nprint(train(here), flush=True)"


def test_every_setting_at_once_has_the_same_bits(undisturbed, tmp_path):
    """As people set them, in the environment of the process, before anything is imported."""
    environ = {f"JAX_{name.upper()}": str(value) for name, value in SETTINGS}
    assert elsewhere(TRAIN, tmp_path, **environ) == undisturbed
    assert json.loads((tmp_path / "run" / "env.json").read_text())["prng"] == "threefry2x32"


def test_after_a_fork_of_a_process_that_never_used_jax(undisturbed, tmp_path):
    body = "import fedjax_rl.runs.runner\nif os.fork():\n    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    assert elsewhere(body + TRAIN, tmp_path) == undisturbed


def test_on_one_core_of_those_there_are(undisturbed, tmp_path):
    """The affinity decides how many threads are asked for and which cores are reported. No product here is divided."""
    core = str(min(os.sched_getaffinity(0)))
    assert elsewhere(TRAIN, tmp_path, "taskset", "-c", core) == undisturbed
    assert json.loads((tmp_path / "run" / "env.json").read_text())["cores"] == 1


@pytest.mark.parametrize("said", [{"cores": 64}, {"jax": "0.0.1", "vectors": "of three"}, {}, None, "no JSON"])
def test_a_run_that_goes_on_where_numbers_are_rounded_otherwise_says_so(said, tmp_path, capsys):
    config, out = build("fedavg", SMALL, {"critic": "linear"}), tmp_path / "run"
    runner.run_members({out: config}, Reporter(quiet=True))
    env = json.loads((out / "env.json").read_text())
    then = {name: env[name] for name in ("cores", "jax", "vectors")}
    (out / "env.json").write_text(said if isinstance(said, str) else json.dumps(said and {**env, **said}))
    runner.run_members({out: replace(config, rounds=3)}, Reporter(quiet=True))
    changed = [f"{name} {value}, here {then[name]}" for name, value in said.items()] if isinstance(said, dict) else []
    line = f"{out} goes on with numbers rounded otherwise: it began with {', '.join(changed)}\n"
    assert capsys.readouterr().err == (line if changed else "")


def test_the_cores_beside_a_gpu_round_nothing(tmp_path, monkeypatch):
    there = {"device": "NVIDIA H200", "device_count": 1, "cores": 16, "jax": "0.10"}
    (tmp_path / "env.json").write_text(json.dumps(there))
    monkeypatch.setattr(provenance, "versions", lambda: dict.fromkeys(provenance.ROUNDING) | {"jax": "0.10"})
    monkeypatch.setattr(provenance, "machine", lambda: there | {"cores": 8})
    assert provenance.moved([tmp_path / "env.json"]) == {}


def test_native_physics_asks_for_the_threads_that_the_affinity_allows(monkeypatch):
    from fedjax_rl.envs.half_cheetah import half_cheetah_model
    from fedjax_rl.envs.physics import native

    asked = []
    monkeypatch.setattr(native, "Batch", lambda model, nsim, nthread: asked.append(nthread))
    stepper = native._Stepper(native.compile_model(half_cheetah_model().xml), 1)
    all_of_them = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_of_them)})
        stepper.batch(1, None)
    finally:
        os.sched_setaffinity(0, all_of_them)
    stepper.batch(2, None)
    assert asked == [1, len(all_of_them)] == [1, cores.cores()]


@pytest.mark.parametrize(
    ("platforms", "command"), [("cuda", ["train"]), ("cuda", ["doctor"]), ("cudaa", ["train", "--env", "navigation"])]
)
def test_a_platform_that_is_not_here_is_refused_in_one_line(platforms, command, tmp_path):
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("it is here")
    environ = {**os.environ, "JAX_PLATFORMS": platforms}
    run = [sys.executable, "-m", "fedjax_rl", *command]
    done = subprocess.run(run, env=environ, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    [line] = [x for x in done.stderr.splitlines() if "JAX_PLATFORMS" in x]
    assert f"fedjax-rl: JAX_PLATFORMS={platforms}: " in line and "set JAX_PLATFORMS=cpu" in line
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
