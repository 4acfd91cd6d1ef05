"""A server's walk, against its environment stepped by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.envs import make_env
from fedjax_rl.rl import walk as walks
from fedjax_rl.rl.distributions import CATEGORICAL, GAUSSIAN
from fedjax_rl.rl.walk import make_walk


def by_hand(env, distribution, consensus, key, steps):
    """The observations of `steps` steps, an episode's state kept from step to step."""
    draw = jax.random.split
    state, task, t, seen = None, None, 0, []

    def begin(key):
        task = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.fold_in(key, walks._APART), 1))
        return jax.jit(env.reset)(key, task), task

    state, task = begin(key)
    size = env.spec.num_actions or env.spec.action_size
    for i in range(steps):
        key_action, key_next = draw(jax.random.fold_in(key, 100 + i))
        noise = distribution.noise(key_action, (1, size), jnp.float32)
        action = distribution.act(distribution.head_of(consensus), noise)[0]
        state, t = jax.jit(env.step)(state, action, task), t + 1
        if state.done or t == env.spec.horizon:
            state, task = begin(key_next)
            t = 0
        seen.append((t, np.asarray(state.obs)))
    return seen


CASES = [
    ("gymnax/CartPole-v1?horizon=30", CATEGORICAL, jnp.array([[0.6, 0.4]]), 80),
    ("navigation", GAUSSIAN, (jnp.array([[0.5, -0.2]]), jnp.array([[0.1, 0.3]])), 210),
]


@pytest.mark.parametrize("name, distribution, consensus, steps", CASES)
def test_a_walk_is_its_environment_one_episode_after_another(name, distribution, consensus, steps):
    env, key = make_env(name), jax.random.key(3)
    walk = make_walk(env, distribution)
    step, at = jax.jit(walk.step), walk.start(key)
    seen = []
    for i in range(steps):
        at = step(at, consensus, jax.random.fold_in(key, 100 + i))
        seen.append((int(at.t), np.asarray(walk.see(at))))
    want = by_hand(env, distribution, consensus, key, steps)
    assert [t for t, _ in seen] == [t for t, _ in want]
    assert [t for t, _ in seen].count(0) >= 2  # some episodes are over
    np.testing.assert_allclose([obs for _, obs in seen], [obs for _, obs in want], rtol=1e-5, atol=1e-6)


def test_a_task_is_drawn_from_no_key_of_its_episode():
    """An environment splits its episode's key: what it draws from a part of it must not be the task's draw too."""
    env, seen = make_env("navigation"), {}

    def reset(key, task):
        seen["episode"] = [key, *jax.random.split(key, 100)]
        return env.reset(key, task)

    def sample_tasks(key, n):
        seen["task"] = key
        return env.sample_tasks(key, n)

    make_walk(env._replace(reset=reset, sample_tasks=sample_tasks), GAUSSIAN).start(jax.random.key(0))
    words = lambda key: tuple(np.asarray(jax.random.key_data(key)))
    assert words(seen["task"]) not in {words(key) for key in seen["episode"]}


def test_members_walk_side_by_side_and_stop_where_an_observation_is_not_finite():
    env = make_env("navigation")
    broken = env._replace(step=lambda state, action, task: env.step(state, action, task)._replace(obs=state.obs / 0))
    at = jax.vmap(make_walk(broken, GAUSSIAN).start)(jax.random.split(jax.random.key(0), 3))
    said = (jnp.zeros((3, 1, env.spec.action_size)), jnp.ones((3, 1, env.spec.action_size)))
    after = jax.vmap(make_walk(broken, GAUSSIAN).step)(at, said, jax.random.split(jax.random.key(1), 3))
    assert np.isfinite(after.obs).all() and (after.t == 0).all()


@pytest.mark.parametrize(
    "distribution, head",
    [(CATEGORICAL, jnp.array([[0.3, -1.0, 2.0]])), (GAUSSIAN, (jnp.array([[0.3]]), jnp.array([[-1.0]])))],
)
def test_a_consensus_is_said_by_its_head(distribution, head):
    consensus = distribution.say(head)
    again = distribution.say(distribution.head_of(consensus))
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(consensus), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_consensus_that_liars_moved_still_acts():
    """An action of a probability below 0 is never taken, and a deviation of -s is one of s."""
    head = CATEGORICAL.head_of(jnp.array([[-0.2, 0.3, 0.9]]))
    noise = CATEGORICAL.noise(jax.random.key(0), (4000, 3))
    taken = np.bincount(CATEGORICAL.act(jnp.broadcast_to(head, (4000, 3)), noise)[:, 0], minlength=3)
    assert taken[0] == 0 and abs(taken[1] - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75)
    noise = GAUSSIAN.noise(jax.random.key(1), (1, 2))
    found = GAUSSIAN.act(GAUSSIAN.head_of((jnp.ones((1, 2)), jnp.array([[-0.5, 0.5]]))), noise)
    np.testing.assert_allclose(found, 1 + 0.5 * noise, rtol=1e-6)
