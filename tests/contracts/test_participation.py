"""Clients that drop out of a round, and clients that are late, on the quadratic federation."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from contracts.quadratic import LOCAL_LR, federation, make, sample_tasks
from contracts.test_contract import KINDS, assert_same
from fedjax_rl import trees
from fedjax_rl.algorithms.parts import with_stragglers
from fedjax_rl.config import CONFIGS
from fedjax_rl.host import registry

pytestmark = pytest.mark.usefixtures("x64")
LATE = [name for name in registry.OWN["algorithm"] if not CONFIGS[name].refuses_stragglers]
STEPS = 4


def test_the_server_moves_by_exactly_the_survivors_mean_and_nothing_recompiles():
    """Whose mean it was is found among all subsets of the cohort, by the clients' own messages."""
    algorithm = make("fedavg")
    state = federation(algorithm).init(jax.random.key(0))
    alone = jax.vmap(algorithm.client_update, in_axes=(None, None, 0, None))
    changes = np.asarray(alone(state.server.shared, (), state.tasks, state.key)[0].message["x"])
    round_ = jax.jit(lambda p, state: federation(algorithm, dropout=p).round(state))
    sizes = set()
    for p in (0.0, 0.3, 0.6, 0.9, 1.0):
        for number in range(4):
            before = state._replace(round=jnp.asarray(number, jnp.int32))
            after, metrics = round_(p, before)
            moved = np.asarray(after.server.shared["x"] - state.server.shared["x"])
            left = 6 - int(metrics["health/dropped_clients"])
            sizes.add(left)
            means = [changes[list(some)].mean(axis=0) if some else np.zeros(3) for some in combinations(range(6), left)]
            assert sum(np.allclose(moved, mean, rtol=1e-12, atol=1e-14) for mean in means) == 1
            assert metrics["health/nonfinite_clients"] == 0
            assert left == 6 if p == 0 else left == 0 if p == 1 else True
    assert len(sizes) > 4
    assert round_._cache_size() == 1


def test_clients_drop_out_as_often_as_asked_and_lose_nothing_of_their_own():
    simulation = federation(make("independent"), n=200, m=200, dropout=0.9)
    state = simulation.init(jax.random.key(0))
    after, metrics = jax.jit(simulation.round)(state)
    kept = np.all(np.asarray(after.clients["x"]) == np.asarray(state.clients["x"]), axis=1)
    assert kept.sum() == metrics["health/dropped_clients"]
    assert metrics["comm/up_bytes"] == metrics["comm/down_bytes"] == 0
    assert abs(kept.mean() - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 200)


def late(name, share, **settings):
    def make_with(client_opt):
        return make(name, client_opt=client_opt, **{"local_steps": STEPS, **settings})

    if share is None:
        return make_with(optax.sgd(LOCAL_LR))
    return with_stragglers(make_with, optax.sgd(LOCAL_LR), STEPS, share)


@pytest.mark.parametrize("name", LATE)
def test_a_straggler_sends_what_it_would_with_fewer_local_steps(name):
    task = trees.take(sample_tasks(jax.random.key(2), 1), 0)
    always = late(name, 1.0)
    server = always.init(jax.random.key(0))
    client = always.init_client(server.shared, jax.random.key(1), 0)
    one = jax.jit(always.client_update)
    seen = set()
    for number in range(8):
        upload, own, metrics = one(server.shared, client, task, jax.random.key(number))
        steps = round(float(upload.weight) * STEPS)
        seen.add(steps)
        assert float(upload.weight) == steps / STEPS
        head = {"head_steps": steps} if name == "fedrep" else {}
        want = late(name, None, local_steps=steps, **head).client_update(server.shared, client, task, jax.random.key(0))
        assert_same(upload.message, want[0].message, 1e-12)
        assert metrics["health/stragglers"] == 1
        if name not in ("ditto", "pfedme"):  # their personal models move by themselves
            assert_same(own, want[1], 1e-12)
    assert seen == {1, 2, 3}


# what stragglers send is asked of every algorithm above; how they are mapped is the same for all
@pytest.mark.parametrize("name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.nightly) for n in LATE])
def test_nobody_late_is_the_algorithm_itself_also_in_chunks(name):
    more = {"head_steps": 2 * STEPS} if name == "fedrep" else {}
    plain, none, all_late = late(name, None, **more), late(name, 0.0, **more), late(name, 1.0)
    state = federation(plain).init(jax.random.key(0))
    assert_same(federation(plain).round(state)[0], federation(none).round(state)[0], 1e-12)
    chunks = jax.jit(federation(late(name, 1.0, client_batch=1)).round)
    assert_same(federation(all_late).round(state)[0], chunks(state)[0], 1e-12)


def test_the_number_of_steps_is_uniform_and_stragglers_are_as_many_as_asked():
    algorithm = late("fedavg", 0.4)
    state = federation(algorithm, n=1000, m=1000).init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(5), 1000)
    update = jax.jit(jax.vmap(algorithm.client_update, in_axes=(None, None, 0, 0)))
    upload, _, metrics = update(state.server.shared, (), state.tasks, keys)
    counts = np.bincount(np.round(np.asarray(upload.weight) * STEPS).astype(int), minlength=STEPS + 1)[1:]
    assert counts[:3].sum() == metrics["health/stragglers"].sum()
    assert stats.chisquare(counts, 1000 * np.array([0.4 / 3, 0.4 / 3, 0.4 / 3, 0.6])).pvalue > 1e-3


def test_the_suspect_is_the_first_client_that_is_not_finite_or_whose_environments_were_not():
    algorithm = make("fedavg")
    plain = federation(algorithm, n=9, m=3)
    state = plain.init(jax.random.key(1))
    ids = np.asarray(plain.cohort(state)[0])
    assert ids[1] > 2  # no place in the cohort

    def suspect(bad, how):
        marks = state.tasks["a"][np.asarray(bad, int)]

        def update(shared, client, task, key):
            upload, client, metrics = algorithm.client_update(shared, client, task, key)
            is_bad = jnp.isin(task["a"], marks)
            if how == "message":
                upload = upload._replace(message=jax.tree.map(lambda x: jnp.where(is_bad, jnp.inf, x), upload.message))
            else:
                metrics = metrics | {"health/nonfinite_envs": 2.0 * is_bad}
            return upload, client, metrics

        metrics = federation(algorithm._replace(client_update=update), n=9, m=3).round(state)[1]
        assert metrics["health/nonfinite_envs"] == (2 * len(bad) if how == "environments" else 0)
        return int(metrics["health/suspect"])

    for how in ("message", "environments"):
        assert suspect([], how) == -1
        assert suspect(ids[1:2], how) == ids[1]
        assert suspect(ids[1:], how) == ids[1]
