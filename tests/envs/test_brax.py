"""Every name of Brax's registry: run, or refused with its reason; actions at the environment's bounds.

`python tests/envs/test_brax.py` makes the table of docs/environments.md, by tracing reset and step of every name.
"""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.cli import main
from fedjax_rl.envs import make_env

warnings.filterwarnings("ignore", "Brax System")
pytestmark = pytest.mark.filterwarnings("ignore:Brax System")
DOCS = Path(__file__).parents[2] / "docs" / "environments.md"
TABLE = re.compile(r"(<!-- table: made by python tests/envs/test_brax.py -->\n).*?(<!-- end -->)", re.DOTALL)
QUICK = ("fast", "inverted_pendulum", "reacher")  # the others take up to a minute each to compile
REFUSED = "swimmer"
NAMES = (*QUICK, "ant", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "inverted_double_pendulum", "pusher")
ALL = [*QUICK, *[pytest.param(name, marks=pytest.mark.nightly) for name in (*NAMES[3:], "walker2d")]]


@pytest.fixture(autouse=True)
def compiled_quickly():
    """Brax's programs take a minute each to compile; what is asked of them here needs no speed."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def physics(state):
    """What a state holds of the simulation; not the reward and what was measured beside it."""
    return [np.asarray(x) for x in jax.tree.leaves((state.physics.pipeline_state, state.obs))]


def test_the_names_are_those_of_the_registry():
    from brax import envs

    assert {*NAMES, "walker2d", REFUSED} == set(envs._envs)


def test_a_name_may_ask_for_another_horizon():
    assert make_env("brax/fast?horizon=7").spec.horizon == 7 and make_env("brax/fast").spec.horizon == 1000


@pytest.mark.parametrize("name", ALL)
def test_actions_beyond_the_bounds_are_those_at_the_bounds(name):
    """State and reward, both ways; and the bound is the environment's own: it moves otherwise under nine tenths."""
    env = make_env(f"brax/{name}")
    start = jax.jit(env.reset)(jax.random.key(0), 0.0)
    step = jax.jit(lambda factor, sign: env.step(start, sign * factor * jnp.ones(env.spec.action_size), 0.0))
    for sign in (1.0, -1.0):
        inside, bound, beyond = (step(factor, sign) for factor in (0.9, 1.0, 3.0))
        jax.tree.map(np.testing.assert_array_equal, beyond, bound)
        assert np.isfinite(np.concatenate([np.ravel(x) for x in (bound.obs, bound.reward)])).all()
        if name != "fast":  # which only asks for the sign
            assert any((a != b).any() for a, b in zip(physics(inside), physics(bound), strict=True))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["reacher"])
def test_the_bound_is_where_the_environment_itself_stops(name):
    """Brax alone: under 3 it moves as under 1, and is charged as for 3, which is what clipping mends."""
    from brax import envs

    env = envs.get_environment(name)
    with jax.numpy_rank_promotion("allow"):
        start = jax.jit(env.reset)(jax.random.key(0))
        step = jax.jit(lambda factor: env.step(start, factor * jnp.ones(env.action_size)))
        bound, beyond = step(1.0), step(3.0)
    jax.tree.map(np.testing.assert_array_equal, beyond.pipeline_state, bound.pipeline_state)
    assert float(bound.reward - beyond.reward) == pytest.approx(env.action_size * (3**2 - 1), rel=1e-3)


@pytest.mark.parametrize(("backend", "why"), [("auto", "TypeError: .*a_min"), ("mjx", "Unsupported backend: mjx")])
def test_what_does_not_run_is_refused_with_the_reason(backend, why):
    with pytest.raises(ValueError, match=rf"^brax/{REFUSED} does not run on the backend {backend} with brax .*{why}"):
        make_env(f"brax/{REFUSED}", backend=backend)


@pytest.mark.parametrize("command", [["train", "fedavg"], ["sweep", "fedavg", "--seeds", "0:2"]])
def test_a_run_of_it_is_refused_in_one_line_before_anything_is_written(command, tmp_path, capsys):
    assert main([*command, "--env", f"brax/{REFUSED}", "--preset", "tiny", "--out", str(tmp_path / "run")]) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("fedjax-rl: brax/")]
    assert "choose another environment" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "$x^2$", "\\input{x}", "ä", "a/b", "", "a b"])
def test_a_name_that_is_none_is_refused_by_the_configuration(name, capsys):
    assert main(["train", "fedavg", "--env", f"brax/{name}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "only letters, digits, _, - and . may follow brax/" in line and "\x1b" not in line


def shown(name: str, backend: str) -> tuple[str, str]:
    """(observation and action sizes, whether the environment can be made)."""
    try:
        spec = make_env(f"brax/{name}", backend=backend).spec
    except ValueError as error:
        return "-", f"refused: {re.search(r'[(](.*)[)];', str(error))[1]}"
    return f"{spec.observation_size}, {spec.action_size}", "runs"


def rows() -> str:
    """The table's rows."""
    lines = []
    for name in sorted((*NAMES, "walker2d", REFUSED)):
        (sizes, auto), (other, mjx) = (shown(name, backend) for backend in ("auto", "mjx"))
        lines.append(f"| `brax/{name}` | {sizes if sizes != '-' else other} | {auto} | {mjx} |\n")
        print(lines[-1], end="", flush=True)
    return "".join(lines)


@pytest.mark.nightly
def test_the_table_is_what_runs():
    done = subprocess.run([sys.executable, __file__, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    head = "| name | observation, action | auto (Brax's own engine) | mjx |\n|---|---|---|---|\n"
    text = DOCS.read_text()
    made = TABLE.sub(lambda found: found[1] + head + rows() + found[2], text)
    if "--check" not in sys.argv:
        DOCS.write_text(made)
    sys.exit(made != text and "--check" in sys.argv)
