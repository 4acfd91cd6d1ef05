"""EnvPool's environments: their own numbers in our rollouts, whoever shares the pool; what is refused."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _cohorts import assert_half_has_the_episodes_of_the_whole

import fedjax_rl as fr
from fedjax_rl.envs import host, make_env
from fedjax_rl.rl.policies import mlp
from fedjax_rl.rl.rollout import make_rollout

pytest.importorskip("gymnasium")
library = pytest.importorskip("envpool", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered")


def rolled(name, episodes):
    """(environment, seeds, a trajectory in it)."""
    env, key = make_env(name), jax.random.key(1)
    policy = mlp(env.spec, hidden=(8,))
    out = jax.jit(make_rollout(env, policy, episodes))(policy.init(jax.random.key(0)), 0.0, key)
    bits = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(
        jax.random.split(jax.random.split(key)[0], episodes)
    )
    return env, (np.asarray(bits) & host.SEED_BITS).tolist(), jax.tree.map(np.asarray, out)


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "Pendulum-v1", "LunarLander-v3?horizon=60", "FrozenLake-v1", "HalfCheetah-v4?horizon=60"]
)
def test_an_episode_is_envpools_of_the_same_seed_and_actions_alone(name):
    """Bit by bit, in a pool of one, which is made and stepped here by hand."""
    env, seeds, out = rolled(f"envpool/{name}", 5)
    limit = {"max_episode_steps": 60} if "horizon" in name else {}
    for e, seed in enumerate(seeds):
        alone = library.make(name.partition("?")[0], env_type="gymnasium", num_envs=1, seed=seed, **limit)
        obs, _ = alone.reset()
        for t in range(out.mask[e].sum()):
            shown = np.eye(16)[obs[0]] if name == "FrozenLake-v1" else obs[0]
            np.testing.assert_array_equal(out.obs[e, t], np.float32(shown))
            action = out.action[e, t]
            box = alone.action_space  # beyond which the half-cheetah would be charged more
            given = action.astype(np.int32) if env.spec.num_actions else np.clip(action, box.low, box.high)[None]
            obs, reward, terminated, truncated, _ = alone.step(given)
            assert out.reward[e, t] == np.float32(reward[0])
        assert terminated[0] or truncated[0]
    assert env.spec.horizon == (60 if "horizon" in name else alone.spec.config.max_episode_steps)
    assert len(set(seeds)) == 5 and (name == "FrozenLake-v1" or len(np.unique(out.obs[:, 0, 0])) == 5)


def test_cartpole_is_gymnasiums_from_the_same_state():
    import gymnasium

    _, _, out = rolled("envpool/CartPole-v1", 3)
    theirs = gymnasium.make("CartPole-v1").unwrapped
    for e in range(3):
        for t in range(out.mask[e].sum() - 1):
            theirs.reset()
            theirs.state = out.obs[e, t].astype(float)
            obs, reward, *_ = theirs.step(int(out.action[e, t, 0]))
            np.testing.assert_allclose(out.obs[e, t + 1], obs, atol=1e-5)
            assert out.reward[e, t] == reward == 1


def test_a_cohort_of_half_the_size_has_the_same_episodes():
    assert_half_has_the_episodes_of_the_whole(make_env("envpool/LunarLander-v3"), 0.0, jnp.full(1, 2, jnp.int32))


def test_what_envpool_does_not_have_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"^unknown environment 'envpool/CartPol-v1'; .* is 'envpool/CartPole-v1'$"):
        make_env("envpool/CartPol-v1")
    with pytest.raises(ValueError, match=r"^envpool/Pong-v5 shows Box\(.*at most 4096 numbers$"):
        make_env("envpool/Pong-v5")
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ValueError, match=r"^envpool/CartPole-v1 needs EnvPool .*pip install 'fedjax-rl\[envpool\]'$"):
        make_env("envpool/CartPole-v1")


@pytest.mark.nightly
def test_a_run_is_the_same_twice(tmp_path):
    small = {"num_clients": 4, "clients_per_round": 2, "episodes": 2, "hidden": (4,), "new_clients": 0, "quiet": True}
    one, two = (fr.train("fedavg", "envpool/CartPole-v1", rounds=3, out=tmp_path / x, **small) for x in "ab")
    np.testing.assert_array_equal(one.returns["eval"], two.returns["eval"])
    np.testing.assert_array_equal(one.history["train/return/adapt_0"], two.history["train/return/adapt_0"])
