"""Learning values: replay, steps, targets and losses against NumPy, and tables against Q-iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from fedjax_rl.algorithms import replay
from fedjax_rl.algorithms.dqn_avg import dqn_avg
from fedjax_rl.envs import Env, EnvSpec, EnvState, make_env
from fedjax_rl.federation.aggregators import mean
from fedjax_rl.federation.simulate import make_simulation, run_rounds
from fedjax_rl.rl.policies import table
from fedjax_rl.rl.values import make_value_problem
from fedjax_rl.types import Stats, Transition, ValueProblem


def row(number, size=2):
    x = jnp.full(size, float(number))
    return Transition(x, jnp.full(1, number, jnp.int32), jnp.float32(number), jnp.asarray(number % 2 == 0), -x)


def test_a_ring_holds_what_a_list_of_the_last_ones_does():
    ring, seen = replay.empty(3, row(0)), []
    push = jax.jit(replay.push)
    for number in range(1, 8):
        ring = push(ring, row(number))
        seen = [*seen, number][-3:]
        assert int(replay.held(ring)) == len(seen) and int(ring.pushed) == number
        drawn = replay.sample(ring, jax.random.key(number), 500)
        counts = [int((np.asarray(drawn.reward) == x).sum()) for x in seen]
        assert sum(counts) == 500 and (len(seen) == 1 or stats.chisquare(counts).pvalue > 1e-3)
        np.testing.assert_array_equal(drawn.next_obs, -np.asarray(drawn.obs))
        np.testing.assert_array_equal(drawn.ended, np.asarray(drawn.action[:, 0]) % 2 == 0)
    assert np.asarray(ring.rows.reward).tolist() == [7, 5, 6]


# A problem whose transitions show with what they were made: obs = (the model, epsilon). The loss pulls x to target + 1.
def shows(params, at, epsilon, task, key):
    obs = jnp.stack([params["logits"], jnp.asarray(epsilon)])
    return at + 1.0, Transition(obs, jnp.zeros(1, jnp.int32), jnp.zeros(()), jnp.zeros((), bool), obs)


SHOWS = ValueProblem(
    init=lambda key: {"body": jnp.zeros(()), "logits": jnp.zeros(())},
    start=lambda task, key: jnp.zeros(()),
    act=shows,
    loss=lambda params, target, rows, valid: (
        0.5 * (params["logits"] - target["logits"] - 1) ** 2 + 0.5 * (params["body"] - 2) ** 2
    ),
    sample=lambda params, task, key: ((), Stats(jnp.zeros(()), jnp.zeros((), jnp.int32))),
    seen=lambda at: (Stats(at, jnp.zeros((), jnp.int32)), at),
    blank=(np.zeros((), np.float32), Transition(np.zeros(2, np.float32), np.zeros(1, np.int32), *(
        np.zeros((), np.float32), np.zeros((), bool), np.zeros(2, np.float32)))),
)  # fmt: skip
COMMON = {"client_opt": optax.sgd(0.5), "server_opt": optax.sgd(1.0), "inner_lr": 0.1, "local_optimizer": "sgd"}
COMMON |= {"capacity": 40, "keep": "replay", "learn_after": 1, "batch": 2}


def after(rounds, problem=SHOWS, clients=2, **options):
    """The state after some rounds, and what a client saw."""
    algorithm = dqn_avg(problem, **{**COMMON, **options})
    sizes = {"num_clients": clients, "clients_per_round": clients}
    tasks = lambda key, n: jnp.zeros(n)
    simulation = make_simulation(algorithm, sample_tasks=tasks, aggregator=mean(), **sizes)
    state, metrics = run_rounds(simulation, simulation.init(jax.random.key(0)), rounds)
    shown = state.clients.get("client", state.clients).get("replay")
    return state, None if shown is None else np.asarray(shown.rows.obs[0, : int(shown.pushed[0])]), metrics


def test_epsilon_falls_with_the_learning_steps_of_all_rounds_to_its_floor():
    """Two environment steps a learning step; nothing is learned before four transitions are there."""
    options = {"learn_every": 2, "learn_after": 4, "epsilon_start": 0.9, "epsilon_decay": 0.5, "epsilon_floor": 0.2}
    state, shown, _ = after(2, local_steps=3, **options)
    np.testing.assert_allclose(shown[:, 1], np.repeat([0.9, 0.9, 0.45, 0.225, 0.2, 0.2], 2), rtol=1e-6)
    assert state.clients["steps"].tolist() == [5, 5]  # 0, 1, 1 in the first round


def test_the_target_is_copied_with_the_learning_step_that_is_due():
    """In NumPy; at the beginning of a round the target is the model that was sent."""
    state, shown, metrics = after(2, local_steps=7, sync=3)
    model, target, seen = 0.0, 0.0, []
    for _ in range(2):
        target = model
        for number in range(7):
            seen.append(model)
            model -= 0.5 * (model - target - 1)
            if (number + 1) % 3 == 0:
                target = model
    np.testing.assert_allclose(shown[:, 0], seen, rtol=1e-6)
    np.testing.assert_allclose(state.server.shared["logits"], model, rtol=1e-6)
    assert metrics["train/return/adapt_0"].tolist() == [7, 7]


def test_gradients_are_of_the_model_that_was_sent_and_its_target_the_servers():
    """The sum of the steps at one model; the server's target follows after every second round."""
    state, shown, _ = after(5, local_steps=3, sync=2, aggregate="gradients")
    model, target, seen = 0.0, 0.0, []
    for number in range(5):
        seen += [model] * 3
        model -= 3 * 0.5 * (model - target - 1)
        target = model if number % 2 == 1 else target
    np.testing.assert_allclose(shown[:, 0], seen, rtol=1e-6)
    np.testing.assert_allclose(
        [state.server.shared["params"]["logits"], state.server.shared["target"]["logits"]], [model, target], rtol=1e-6
    )


def test_without_federation_every_client_goes_on_with_its_own_model():
    state, shown, _ = after(2, local_steps=4, sync=4, aggregate="none")
    model, target, seen = 0.0, 0.0, []
    for number in range(8):
        seen.append(model)
        model -= 0.5 * (model - target - 1)
        target = model if number == 3 else target
    np.testing.assert_allclose(shown[:, 0], seen, rtol=1e-6)
    np.testing.assert_allclose(state.clients["params"]["logits"], model, rtol=1e-6)
    assert float(state.server.shared["logits"]) == 0


def test_a_personal_head_is_never_sent_and_has_a_rate_of_its_own():
    state, _, _ = after(1, local_steps=3, personal="head", head_lr=0.25, sync=100)
    assert set(jax.tree.leaves_with_path(state.server.shared)[0][0][0].key for _ in [0]) == {"body"}
    np.testing.assert_allclose(state.server.shared["body"], 2 * (1 - 0.5**3), rtol=1e-6)
    np.testing.assert_allclose(state.clients["kept"]["logits"], 1 - 0.75**3, rtol=1e-6)


def test_a_personal_head_stands_still_with_its_late_client():
    def stopping(count):
        def update(updates, state, params=None):
            return jax.tree.map(lambda u: jnp.where(state < count, -0.5 * u, 0.0), updates), state + 1

        return optax.GradientTransformation(lambda params: jnp.zeros(()), update)

    options = {"local_steps": 6, "personal": "head", "head_lr": 0.25, "sync": 100}
    state, _, _ = after(1, client_opt=stopping(2), **options)
    np.testing.assert_allclose(state.clients["kept"]["logits"], 1 - 0.75**2, rtol=1e-6)
    assert state.clients["client"]["steps"].tolist() == [2, 2]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_is_not_heard(bad):
    problem = SHOWS._replace(loss=lambda params, *_: bad * params["body"])
    state, _, metrics = after(1, problem, local_steps=2)
    assert metrics["comm/uploads"].tolist() == [0] and metrics["health/nonfinite_clients"].tolist() == [2]
    assert float(state.server.shared["body"]) == 0


def test_adam_is_optaxs_and_is_kept_where_asked():
    """Without keep = all its state begins anew in every round."""
    for keep in ("replay", "all"):
        _, shown, _ = after(2, local_steps=4, sync=100, keep=keep, local_optimizer="adam", clients=1)
        opt, model, seen = optax.adam(0.5), jnp.zeros(()), []
        state = opt.init(model)
        for number in range(8):
            if number == 4:
                target = model
                state = state if keep == "all" else opt.init(model)
            target = model if number == 0 else target
            seen.append(float(model))
            update, state = opt.update(model - target - 1, state)
            model = model + update
        np.testing.assert_allclose(shown[:, 0], seen, rtol=1e-5)


def corridor(horizon, ends=99, breaks=99):
    """Two actions; the reward of step t is t + 1 for action 1, else 0. It ends, or ceases to be finite, with a step."""

    def show(t, reward):
        return EnvState(t, jnp.stack([jnp.ones(()), t / 4.0]), jnp.where(t == breaks, jnp.nan, reward), t == ends)

    reset = lambda key, task: show(jnp.zeros((), jnp.int32), jnp.zeros(()))
    step = lambda state, action, task: show(state.physics + 1, (state.physics + 1.0) * action[0])
    return Env(reset, step, lambda key, n: jnp.zeros(n), EnvSpec("corridor", 2, 1, horizon, 2, num_actions=2))


ONE = {"table": jnp.array([[0.0, 1.0], [0.0, 0.0]])}  # which always prefers action 1


@pytest.mark.parametrize(
    ("env", "lives", "last"),
    [(corridor(3), 3, False), (corridor(5, ends=2), 2, True), (corridor(2, ends=2), 2, True)],
    ids=["truncated", "ended", "both"],
)
def test_an_episode_begins_anew_and_only_a_true_end_has_no_value(env, lives, last):
    """Seven steps, enumerated; next_obs is what the last step showed, not the next episode's beginning."""
    problem = make_value_problem(env, table(env.spec), episodes=2)
    at, act = problem.start(0.0, jax.random.key(0)), jax.jit(problem.act)
    rows = []
    for i in range(7):
        at, shown = act(ONE, at, 0.0, 0.0, jax.random.key(i))
        rows.append(shown)
    for i, shown in enumerate(rows):
        t = i % lives
        np.testing.assert_allclose(shown.obs, [1, t / 4])
        np.testing.assert_allclose(shown.next_obs, [1, (t + 1) / 4])
        assert shown.reward == t + 1 and shown.action == 1
        assert bool(shown.ended) == (last and t == lives - 1)
    full, rest = divmod(7, lives)
    found, asked = problem.seen(at)
    assert found.returned == lives * (lives + 1) / 2 and int(at.episodes) == full
    assert problem.seen(asked)[0].returned == rest * (rest + 1) / 2  # none was over since: the running one's so far
    (batch, valid), seen = problem.sample(ONE, 0.0, jax.random.key(0))
    taken = np.asarray(valid).nonzero()[0]
    assert len(taken) == 2 * lives and seen.returned == lives * (lives + 1) / 2
    for i, k in enumerate(taken):
        jax.tree.map(lambda x, want, k=k: np.testing.assert_allclose(x[k], want), batch, rows[i % lives])


def test_what_ceases_to_be_finite_is_an_end_and_is_never_stored():
    env = corridor(9, breaks=3)
    problem = make_value_problem(env, table(env.spec), episodes=1)
    at, rows = problem.start(0.0, jax.random.key(0)), []
    for i in range(4):
        at, shown = problem.act(ONE, at, 0.0, 0.0, jax.random.key(i))
        rows.append(shown)
    assert [float(r.reward) for r in rows] == [1, 2, 0, 1] and [bool(r.ended) for r in rows] == [0, 0, 1, 0]
    np.testing.assert_allclose(rows[2].next_obs, rows[2].obs)
    assert int(problem.seen(at)[0].nonfinite_envs) == 1 and problem.seen(at)[0].returned == 3
    (batch, valid), seen = problem.sample(ONE, 0.0, jax.random.key(0))
    assert int(seen.nonfinite_envs) == 1 and seen.returned == 3 and int(valid.sum()) == 3
    assert np.asarray(batch.ended)[np.asarray(valid)].tolist() == [False, False, True]


def test_epsilon_is_the_probability_of_a_uniform_action():
    env = make_env("finite/random")
    problem = make_value_problem(env, table(env.spec), episodes=1)
    task = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(0), 1))
    prefers = {"table": jnp.zeros((8, 3)).at[:, 1].set(1.0)}
    at = problem.start(task, jax.random.key(1))
    act = jax.jit(jax.vmap(lambda epsilon, key: problem.act(prefers, at, epsilon, task, key)[1].action[0], (None, 0)))
    for epsilon in (0.0, 0.3, 1.0):
        counts = np.bincount(act(epsilon, jax.random.split(jax.random.key(2), 3000)), minlength=3)
        want = 3000 * (epsilon / 3 + (1 - epsilon) * np.array([0, 1, 0]))
        assert counts[1] == 3000 if epsilon == 0 else stats.chisquare(counts, want).pvalue > 1e-3


@pytest.mark.parametrize("error", ["mse", "huber"])
def test_the_loss_and_its_gradient_are_those_of_double_q_learning(error):
    """Tables, in NumPy: y from the target's value of the model's best action; no gradient goes through y."""
    env, rng = make_env("finite/random"), np.random.default_rng(0)
    problem = make_value_problem(env, table(env.spec), episodes=1, discount=0.8, error=error)
    q, target = rng.normal(size=(2, 8, 3)) * 2
    s, a, after_it = rng.integers(8, size=20), rng.integers(3, size=20), rng.integers(8, size=20)
    reward, ended, valid = rng.normal(size=20), rng.random(20) < 0.3, rng.random(20) < 0.8
    eye = np.eye(8)
    rows = Transition(eye[s], a[:, None].astype(np.int32), reward, ended, eye[after_it])
    rows = jax.tree.map(lambda x: jnp.asarray(x, x.dtype if x.dtype != float else jnp.float32), rows)
    model = {"table": jnp.float32(q)}
    # as in the adaptation of an evaluation, the model may be its own target
    for other, loss in (
        (target, lambda params: problem.loss(params, {"table": jnp.float32(target)}, rows, jnp.asarray(valid))),
        (q, lambda params: problem.loss(params, params, rows, jnp.asarray(valid))),
    ):
        apart = q[s, a] - (reward + 0.8 * ~ended * other[after_it, q[after_it].argmax(axis=1)])
        each = apart**2 if error == "mse" else np.where(np.abs(apart) < 1, 0.5 * apart**2, np.abs(apart) - 0.5)
        slope = 2 * apart if error == "mse" else np.clip(apart, -1, 1)
        want = np.zeros((8, 3))
        np.add.at(want, (s[valid], a[valid]), slope[valid] / valid.sum())
        value, found = jax.value_and_grad(loss)(model)
        np.testing.assert_allclose(value, each[valid].mean(), rtol=1e-5)
        np.testing.assert_allclose(found["table"], want, rtol=1e-4, atol=1e-6)
