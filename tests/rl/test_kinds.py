"""Clients of unlike networks in one program: row by row what each is alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_rl import config
from fedjax_rl.config import ConfigError, kinds
from fedjax_rl.envs import make_env
from fedjax_rl.federation.selection import by_kind as select
from fedjax_rl.rl import make_problem, mlp
from fedjax_rl.rl.kinds import Rows, by_kind, mixed_policy, mixed_problem

ENV = make_env("navigation")
HIDDEN = ((8,), (16, 8), (4, 4, 4))
POLICIES = [mlp(ENV.spec, hidden=hidden) for hidden in HIDDEN]
BLOCK = (0, 0, 1, 2)  # kinds of the clients of a cohort


def clients(count: int, dtype=jnp.float32):
    """Parameters of that many clients of the kinds of BLOCK, each drawn by itself."""
    rows = Rows([policy.init for policy in POLICIES])
    every = [rows.init(jax.random.key(i)) for i in range(count)]
    mine = [jax.tree.map(lambda x, k=BLOCK[i % 4]: x[k].astype(dtype), params) for i, params in enumerate(every)]
    return jax.tree.map(lambda *x: jnp.stack(x), *mine), rows


def alone(rows, params, i):
    return rows.tree(BLOCK[i % 4], jax.tree.map(lambda x: x[i], params)["row"])


@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_kinds_equal_their_clients_one_by_one(at_once):
    """Values and gradients of three kinds, two members times eight clients, in float64."""
    with jax.enable_x64(True):
        obs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 5, 2)))
        params, rows = clients(8, jnp.float64)
        values = [
            lambda row, x, k=k: jnp.sum(POLICIES[k].apply(rows.tree(k, row), x)[0] ** 2) for k in range(len(POLICIES))
        ]
        call = by_kind([jax.value_and_grad(value) for value in values], BLOCK, at_once)
        each = jax.vmap(jax.vmap(call), in_axes=(None, None, 0))
        found, gradient = jax.jit(each)(params["kind"], params["row"], obs)
        for member in range(2):
            for i in range(8):
                want = jax.value_and_grad(values[BLOCK[i % 4]])(params["row"][i], obs[member, i])
                np.testing.assert_allclose(found[member, i], want[0], rtol=1e-12)
                np.testing.assert_allclose(gradient[member, i], want[1], rtol=1e-12, atol=1e-13)


def test_there_is_no_branch_in_the_program_and_any_other_batch_is_right_too():
    params, _ = clients(8)
    fns = [lambda row, k=k: (k + 1.0) * row for k in range(3)]
    call = jax.vmap(by_kind(fns, BLOCK))
    assert "stablehlo.case" not in jax.jit(call).lower(params["kind"], params["row"]).as_text()
    some = jnp.array([3, 0, 2])  # fewer than a cohort: any kinds in any order
    want = (params["kind"][some, None] + 1) * params["row"][some]
    np.testing.assert_array_equal(call(params["kind"][some], params["row"][some]), want)
    one = by_kind(fns, BLOCK)(params["kind"][3], params["row"][3])
    np.testing.assert_array_equal(one, 3 * params["row"][3])


def test_a_client_at_the_place_of_another_kind_is_nan_and_no_wrong_number():
    params, _ = clients(4)
    order = jnp.array([0, 2, 1, 3])
    call = jax.vmap(by_kind([lambda row, k=k: (k + 1.0) * row for k in range(3)], BLOCK))
    found = call(params["kind"][order], params["row"][order])
    assert np.isnan(found[1:3]).all() and np.isfinite(found[jnp.array([0, 3])]).all()


def test_a_mixed_problem_samples_and_learns_like_its_kinds():
    make = lambda policy: make_problem(ENV, policy, episodes=3, discount=0.9)
    problem = mixed_problem(make(mixed_policy(POLICIES, BLOCK)), list(map(make, POLICIES)), BLOCK, None)
    params, rows = clients(4)
    tasks, keys = ENV.sample_tasks(jax.random.key(1), 4), jax.random.split(jax.random.key(2), 4)
    sample = jax.jit(jax.vmap(problem.sample))
    loops = [line for line in sample.lower(params, tasks, keys).as_text().splitlines() if "stablehlo.while" in line]
    assert loops and not [line for line in loops if f"x{rows.size}x" in line]  # rows are cut up before the steps
    batch, stats = sample(params, tasks, keys)
    some = jnp.array([3, 0])  # fewer than a cohort: any kinds in any order
    few, shown = jax.jit(jax.vmap(problem.sample))(*jax.tree.map(lambda x: x[some], (params, tasks, keys)))
    np.testing.assert_allclose(few.obs, batch.obs[some], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shown.returned, stats.returned[some], rtol=1e-4)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), (params, tasks, keys))  # and two cohorts
    np.testing.assert_allclose(jax.jit(jax.vmap(problem.sample))(*twice)[0].obs[4:], batch.obs, rtol=1e-4, atol=1e-4)
    order = jnp.array([0, 2, 1, 3])
    shown = jax.jit(jax.vmap(problem.sample))({**params, "kind": params["kind"][order]}, tasks, keys)[1]
    np.testing.assert_array_equal(shown.nonfinite_envs, [0, 3, 3, 0])  # a NaN ends its episodes
    learn = jax.jit(jax.vmap(jax.value_and_grad(problem.loss)))
    padded = [line for line in learn.lower(params, batch).as_text().splitlines() if "stablehlo.pad" in line]
    assert not [line for line in padded if f"x{rows.size}x" in line]  # padding to a row takes more than half of a round
    value, gradient = learn(params, batch)
    states = jax.random.normal(jax.random.key(3), (6, 2))
    said = jax.jit(jax.vmap(problem.say, in_axes=(0, None)))(params, states)
    away, push = jax.jit(jax.vmap(jax.value_and_grad(problem.divergence)))(
        params, jax.tree.map(lambda x: x[::-1], said), states[None].repeat(4, 0)
    )
    for i in range(4):
        own, mine = make(POLICIES[BLOCK[i]]), alone(rows, params, i)
        one, shown = jax.jit(own.sample)(mine, tasks[i], keys[i])
        np.testing.assert_allclose(one.obs, batch.obs[i], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(stats.returned[i], shown.returned, rtol=1e-4)
        want = jax.jit(jax.value_and_grad(own.loss))(mine, jax.tree.map(lambda x: x[i], batch))
        np.testing.assert_allclose(value[i], want[0], rtol=1e-3, atol=1e-5)
        flat = jax.flatten_util.ravel_pytree(want[1])[0]
        np.testing.assert_allclose(gradient["row"][i][: flat.size], flat, rtol=1e-2, atol=1e-4)
        assert not np.any(gradient["row"][i][flat.size :]) and gradient["kind"][i] == 0
        consensus = jax.tree.map(lambda x: x[3 - i], said)
        want = jax.jit(jax.value_and_grad(own.divergence))(mine, consensus, states)
        np.testing.assert_allclose(away[i], want[0], rtol=1e-4, atol=1e-6)
        flat = jax.flatten_util.ravel_pytree(want[1])[0]
        np.testing.assert_allclose(push["row"][i][: flat.size], flat, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "opt", [optax.sgd(0.1), optax.adam(0.01), optax.adamw(0.01, mask={"kind": False, "row": True}), optax.rmsprop(0.01)]
)
def test_what_fills_a_row_up_stays_zero(opt):
    make = lambda policy: make_problem(ENV, policy, episodes=2)
    problem = mixed_problem(make(mixed_policy(POLICIES, BLOCK)), list(map(make, POLICIES)), BLOCK, None)
    params, rows = clients(4)
    tasks = ENV.sample_tasks(jax.random.key(1), 4)

    def step(carry, key):
        params, state = carry
        batch, _ = jax.vmap(problem.sample)(params, tasks, jax.random.split(key, 4))
        updates, state = opt.update(jax.vmap(jax.grad(problem.loss))(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), ()

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0][0])
    after = run((params, opt.init(params)), jax.random.split(jax.random.key(2), 50))
    sizes = [jax.flatten_util.ravel_pytree(policy.init(jax.random.key(0)))[0].size for policy in POLICIES]
    assert rows.size == max(sizes)
    for i in range(4):
        assert not np.any(after["row"][i, sizes[BLOCK[i]] :])
        assert np.mean(after["row"][i, : sizes[BLOCK[i]]] != params["row"][i, : sizes[BLOCK[i]]]) > 0.9


def test_a_cohort_is_a_block_of_kinds_and_every_client_is_selected_as_often():
    found = np.stack([select(jax.random.key(0), i, 12, 4)[0] for i in range(600)])
    np.testing.assert_array_equal(found % 4, np.tile(np.arange(4), (600, 1)))
    counts = np.bincount(found.ravel(), minlength=12)
    assert np.all(np.abs(counts - 200) < 4 * np.sqrt(600 * (1 / 3) * (2 / 3)))


def test_kinds_are_parsed_and_stand_in_blocks():
    found = kinds.parse("4x8-16:relu:1e-3, 2x32:tanh")
    assert found == (kinds.Kind(4, (8, 16), "relu", 1e-3), kinds.Kind(2, (32,), "tanh", None))
    assert kinds.block(found, 6, 6) == (0, 0, 0, 0, 1, 1)
    assert kinds.block(found, 6, 3) == (0, 0, 1)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"kinds": "2x8:gelu"}, "kinds: '2x8:gelu' is none; a kind is COUNTxWIDTH-WIDTH:tanh or relu"),
        ({"kinds": "2x8:tanh,"}, "kinds: '' is none"),
        ({"kinds": "2x5000:tanh"}, "widths to 4096"),
        ({"kinds": "2x8:tanh:0"}, "rates above 0"),
        ({"kinds": "2x8:tanh:1e"}, "is none"),
        ({"kinds": "2x8:tanh,3x4:relu"}, "counts add up to 5, but num_clients = 4"),
        ({"kinds": "1x8:tanh,3x4:relu", "clients_per_round": 2}, "clients_per_round = 2: must divide num_clients = 4"),
        ({"kinds": "2x8:tanh,2x4:relu", "clients_per_round": 2}, "selection = 'uniform': with kinds"),
        ({"kinds": "2x8:tanh,2x4:relu", "critic": "federated"}, "critic = 'federated': not with kinds"),
    ],
)
def test_kinds_that_cannot_be_are_refused_in_one_line(given, message):
    with pytest.raises(ConfigError, match=message) as error:
        config.build("independent", {"num_clients": 4, "clients_per_round": 4, **given})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("algorithm", [name for name in config.CONFIGS if not config.CONFIGS[name].keeps_models])
def test_algorithms_that_send_models_refuse_kinds(algorithm):
    with pytest.raises(ConfigError, match=f"kinds: not for {algorithm}, which sends models"):
        config.build(algorithm, {"num_clients": 4, "clients_per_round": 4, "kinds": "4x8:tanh"})
