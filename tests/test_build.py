"""From a configuration to the objects: what the options do to a round."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_rl import config, trees
from fedjax_rl.config.options import ChangeConfig
from fedjax_rl.federation import server_optimizers as optimizers
from fedjax_rl.federation.evaluate import column_keys
from fedjax_rl.runs import assemble, scoring

PUBLIC_STATES = Path(__file__).parent / "fixtures" / "public-states.npy"
SMALL = {"env": "probe/target", "num_clients": 4, "clients_per_round": 2, "episodes": 2, "hidden": (4,)}


def test_max_change_norm_bounds_the_servers_step():
    """With a server that adds the mean change, no round moves the model by more than the clip, and the clip binds."""
    moved = {}
    for clip in (0.0, 1e-5):
        extra = {"server": "sgd", "server_lr": 1.0, "local_lr": 1.0, "max_change_norm": clip}
        run = assemble.make_run(config.build("fedavg", SMALL, extra))
        state = assemble.initial_state(run)
        after, _ = jax.jit(run.simulation.round)(state)
        moved[clip] = float(optax.global_norm(trees.sub(after.server.shared, state.server.shared)))
    assert moved[1e-5] <= 1e-5 * 1.01 < moved[0.0]


def test_dropout_and_stragglers_reach_the_round():
    run = assemble.make_run(config.build("fedavg", SMALL, {"dropout": 1.0, "stragglers": 1.0}))
    _, metrics = jax.jit(run.simulation.round)(assemble.initial_state(run))
    assert (metrics["health/dropped_clients"], metrics["health/stragglers"]) == (2, 2)


@pytest.mark.parametrize("name", optimizers.SERVER_OPTIMIZERS)
def test_the_servers_rate_halves(name):
    """Every server's steps are those of a constant rate times 2^(-round/3)."""
    params, gradients = {"x": jnp.zeros(3)}, jax.random.normal(jax.random.key(0), (7, 3))
    steps = {}
    for half_life in (0.0, 3.0):
        optimizer = optimizers.SERVER_OPTIMIZERS[name](assemble.server_rate(0.01, half_life))
        state, steps[half_life] = optimizer.init(params), []
        for gradient in gradients:
            update, state = optimizer.update({"x": gradient}, state, params)
            steps[half_life].append(update["x"])
    want = np.asarray(steps[0.0]) * 0.5 ** (np.arange(7) / 3)[:, None]
    np.testing.assert_allclose(steps[3.0], want, rtol=1e-5)


def test_a_rate_that_falls_and_one_that_stays_are_two_programs():
    falls, faster, stays = (config.build("fmrl", SMALL, {"server_half_life": h}) for h in (5.0, 9.0, 0.0))
    assert assemble.static_fields(falls) == assemble.static_fields(faster) != assemble.static_fields(stays)
    group = assemble.make_group([falls, faster])
    like = jax.tree.structure(assemble.abstract_state(group.run))
    assert jax.tree.structure(jax.eval_shape(lambda: assemble.initial_states(group))) == like


def test_environment_steps_are_counted():
    """FMRL samples two batches: 2 clients x 2 batches x 2 episodes x the horizon; FedAvg one."""
    runs = {name: assemble.make_run(config.build(name, SMALL)) for name in ("fmrl", "fedavg")}
    horizon = runs["fmrl"].env.spec.horizon
    assert runs["fmrl"].env_steps_per_round == 8 * horizon
    assert runs["fedavg"].env_steps_per_round == 4 * horizon


@pytest.mark.parametrize("name", config.CONFIGS)
def test_no_key_is_used_twice(name):
    """JAX's own check, over a whole round of two members.

    The check takes the vmap of any scan over split keys for a second use (jax 0.10), so that of the algorithms that
    sample in such a scan one client's work is checked instead.
    """
    takes = issubclass(config.CONFIGS[name], ChangeConfig) and not config.CONFIGS[name].refuses_critic
    extra = {"critic": "local"} if takes else {}
    extra |= {} if config.CONFIGS[name].refuses_stragglers else {"stragglers": 0.3}
    extra |= {"public_states": str(PUBLIC_STATES)} if name == "fedhpd" else {}
    extra |= {"local_steps": 2} if name in ("afedpg", "nigt", "npg") else {}
    extra |= {"buffer": 2} if name == "nigt" else {}
    extra |= {"env": "finite/random"} if config.CONFIGS[name].learns_values else {}
    extra |= {"local_steps": 2, "learn_after": 1, "keep": "all"} if name == "dqn_avg" else {}
    extra |= {"critic": "linear", "client_episodes": (1, 2)} if name == "fedstrategy" else {}
    extra |= {"stragglers": 0.0} if name == "q_avg" else {}  # one step cannot be fewer
    extra |= {"clients_per_round": 4} if name == "npg_admm" else {"dropout": 0.2}
    group = assemble.make_group([config.build(name, SMALL, extra, {"seed": seed}) for seed in (0, 1)])
    states, alive = jax.eval_shape(lambda: assemble.initial_states(group)), jax.ShapeDtypeStruct((2,), bool)
    with jax.debug_key_reuse(True):
        jax.jit(jax.vmap(group.run.simulation.init)).lower(states.key)
        if name in ("per_fedavg", "reptile"):
            _, *rows = jax.eval_shape(group.run.simulation.cohort, assemble.abstract_state(group.run))
            row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
            jax.jit(group.run.simulation.work).lower(*row)
        else:
            jax.jit(lambda *args: assemble.round_of(group, *args)).lower(states, alive, group.values)


def test_new_clients_share_no_key_with_any_column_of_the_old_ones():
    run = assemble.make_run(config.build("fmrl", SMALL))
    state = assemble.initial_state(run)
    heard = []
    evaluation = scoring.make_evaluation(run)._replace(score=lambda clients, tasks, state, key: heard.append(key))
    scoring.old_clients(evaluation, state, 3)
    scoring.new_clients(evaluation, state, 3)
    keys = [
        tuple(np.asarray(jax.random.key_data(k)))
        for base in heard
        for j in range(12)
        for k in (base, jax.random.fold_in(base, j), *column_keys(base, j, jnp.arange(12)))
    ]
    assert len(set(keys)) == 2 * (1 + 12 + 12 * 12)
