"""What accelerators compile: rounds, evaluations and a sweep's group lower for CUDA and TPUs from a machine without."""

import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_rl import config
from fedjax_rl.config import presets
from fedjax_rl.federation.evaluate import make_steps
from fedjax_rl.host import registry
from fedjax_rl.host.numerics import pinned
from fedjax_rl.runs import assemble

PLATFORMS = ("cuda", "tpu")
PUBLIC_STATES = Path(__file__).parent / "fixtures" / "public-states.npy"
FOREIGN = re.compile(r"callback|xf64|tensor<f64|fedjax_rl_fused")


def group(env, algorithm, **values):
    """Two members with rates of their own; clients in one batch, as on accelerators."""
    layers = (presets.preset("tiny", algorithm, env), {"env": env, "backend": "mjx", "client_batch": 4, **values})
    rates = ({"seed": s, "local_lr": rate} for s, rate in enumerate((0.001, 0.002)))
    return assemble.make_group([config.build(algorithm, *layers, own) for own in rates])


def lowered(fn, *args):
    """The text for both platforms."""
    return str(jax.export.export(jax.jit(fn), platforms=PLATFORMS)(*args).mlir_module())


def states_of(some):
    one = assemble.abstract_state(some.run)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(some.configs), *x.shape), x.dtype), one)


def round_text(some):
    args = (states_of(some), np.ones(len(some.configs), bool), some.values)
    return lowered(functools.partial(assemble.round_of, some), *args)


# made of parts that the other algorithms have too
ALIKE = "fedprox reptile per_fedavg meta_sgd pfedme fedrep independent fedasync afedpg lapg npg".split()
ALL = [pytest.param(n, marks=pytest.mark.nightly if n in ALIKE else ()) for n in registry.OWN["algorithm"]]


@pytest.mark.parametrize("name", ALL)
def test_a_group_of_every_algorithm_lowers_with_products_of_float32(name):
    with pinned():
        states = {"public_states": str(PUBLIC_STATES)} if name == "fedhpd" else {}
        env = "finite/random" if config.CONFIGS[name].learns_values else "navigation"
        text = round_text(group(env, name, **states))
    assert not FOREIGN.search(text)
    products = re.findall("stablehlo.dot_general .*", text)  # rounded alike, or the ratio of two policies is not 1
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("env", ["half_cheetah/dynamics", "ant/dynamics"])
@pytest.mark.nightly
def test_a_robots_round_and_evaluation_lower(env):
    with pinned():
        some = group(env, "fmrl")
        assert not FOREIGN.search(round_text(some))
        state = assemble.abstract_state(some.run)
        start, column = make_steps(lambda values: (some.run.problem, some.run.algorithm))
        clients, tasks = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype), (state.clients, state.tasks)
        )
        models = jax.eval_shape(functools.partial(start, None), state.server.shared, clients, tasks)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
        text = lowered(functools.partial(column, None), state.server.shared, clients, models, tasks, keys)
        assert not FOREIGN.search(text)


def test_what_is_looked_for_would_be_found():
    """Native physics calls back, fused physics is a program of this host's, and float64 is float64."""
    with pinned():
        for backend in ("native", "fused"):
            env = assemble.make_env("half_cheetah/direction", backend=backend)
            state = jax.eval_shape(lambda key, env=env: env.reset(key, 1.0), jax.random.key(0))
            text = jax.jit(env.step).lower(state, jax.ShapeDtypeStruct((6,), np.float32), 1.0).as_text()
            assert FOREIGN.search(text)
    with jax.enable_x64(True):
        assert FOREIGN.search(jax.jit(lambda x: x + 1).lower(np.ones(2)).as_text())
