"""Gymnasium's environments: their own numbers in our rollouts, what is flattened and clipped, what is refused."""

import copy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.envs import host, make_env
from fedjax_rl.envs.gym import MOST_ENTRIES
from fedjax_rl.rl.policies import mlp
from fedjax_rl.rl.rollout import make_rollout

gymnasium = pytest.importorskip("gymnasium")


class Planted(gymnasium.Env):
    """Shows a number of its generator, its action and how much it has seen before; ends after 5 steps.

    Args:
      shown, taken: its spaces; observations are samples of the first.
      leak: "object" (the object remembers earlier episodes), "class" (so does the class), or "".
      wind: anything; it is paid.
      cut: is an episode truncated, in place of terminated?
      draws: can it be drawn? A picture has the steps that are left in all its points.
    """

    steps_of_all = 0

    def __init__(self, shown=None, taken=None, leak="", wind=0.0, cut=False, draws=True, render_mode=None):
        self.metadata = {"render_modes": ["rgb_array"] * draws, "render_fps": 25}
        self.render_mode = render_mode
        self.observation_space = copy.deepcopy(shown) or gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = taken or gymnasium.spaces.Discrete(3, start=-1)
        self.cut = cut
        self.own, self.leak, self.wind, self.seen = shown is not None, leak, wind, 0

    def look(self):
        leaked = {"object": self.seen, "class": Planted.steps_of_all, "": 0}[self.leak]
        if self.own:
            return self.observation_space.sample()
        return np.array([self.np_random.random(), leaked], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = 5
        return self.look(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left, self.seen, Planted.steps_of_all = self.left - 1, self.seen + 1, Planted.steps_of_all + 1
        paid = float(np.sum(action)) + self.wind
        over = self.left == 0
        return self.look(), paid, over and not self.cut, over and self.cut, {}

    def render(self):
        assert self.render_mode == "rgb_array"
        return np.full((2, 4, 3), self.left, np.uint8)


def plant(name, limit=50, **given):
    """A name for a planted environment."""
    gymnasium.register(name, lambda **more: Planted(**given, **more), max_episode_steps=limit, order_enforce=False)
    return f"gym/{name}"


@pytest.fixture(autouse=True)
def forget():
    """What tests plant is gone after each."""
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def rolled(name, episodes=3, seed=1):
    """(environment, task, keys of the resets, a trajectory in it)."""
    env = make_env(name)
    policy = mlp(env.spec, hidden=(8,))
    task, key = env.sample_tasks(jax.random.key(5), 2)[1], jax.random.key(seed)
    out = jax.jit(make_rollout(env, policy, episodes))(policy.init(jax.random.key(0)), task, key)
    return env, task, jax.random.split(jax.random.split(key)[0], episodes), jax.tree.map(np.asarray, out)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "LunarLander-v3"])
def test_an_episode_is_gymnasiums_of_the_same_seed_and_actions(name):
    """Bit by bit, in an environment made and stepped here by hand."""
    if "Lunar" in name:
        pytest.importorskip("Box2D")
    env, _, keys, out = rolled(f"gym/{name}")
    theirs = gymnasium.make(name)
    for e, key in enumerate(keys):
        theirs = gymnasium.make(name)
        obs, _ = theirs.reset(seed=int(jax.random.bits(key, dtype=jnp.uint32) & host.SEED_BITS))
        for t in range(out.mask[e].sum()):
            np.testing.assert_array_equal(out.obs[e, t], np.float32(obs))
            action = out.action[e, t]
            given = int(action[0]) if env.spec.num_actions else np.clip(action, -2, 2)
            obs, reward, terminated, truncated, _ = theirs.step(given)
            assert out.reward[e, t] == np.float32(reward)
        assert (terminated or truncated) and not out.frozen.any()
    assert len(np.unique(out.obs[:, 0, 0])) == 3
    if not env.spec.num_actions:
        assert np.abs(out.action).max() > 2


def test_a_range_is_a_keyword_that_differs_from_client_to_client():
    name = plant("Windy-v0")
    env = make_env(f"{name}?wind=-3:-1")
    _, task, _, out = rolled(f"{name}?wind=-3:-1")
    assert -3 <= task[0] < -1 and env.describe(task) == f"wind {float(task[0]):.3g}"
    np.testing.assert_allclose(out.reward[out.mask], out.action[out.mask][:, 0] - 1 + task[0], rtol=1e-6)
    tasks = env.sample_tasks(jax.random.key(0), 3)
    np.testing.assert_array_equal(tasks, env.sample_tasks(jax.random.key(0), 9)[:3])

    def paid(task, key):
        return env.step(env.reset(key, task), jnp.array([1], jnp.int32), task).reward

    rewards = jax.jit(jax.vmap(paid))(tasks, jax.random.split(jax.random.key(1), 3))
    np.testing.assert_allclose(rewards, tasks[:, 0], rtol=1e-6)  # action 1 of three from -1 is 0


def test_lunar_landers_have_their_own_gravity():
    pytest.importorskip("Box2D")
    env = make_env("gym/LunarLander-v3?gravity=-12:-8")
    task = env.sample_tasks(jax.random.key(0), 2)[1]
    key = jax.random.key(0)
    state = jax.jit(env.reset)(key, task)
    theirs = gymnasium.make("LunarLander-v3", gravity=float(task[0]))
    obs, _ = theirs.reset(seed=int(jax.random.bits(key, dtype=jnp.uint32) & host.SEED_BITS))
    np.testing.assert_array_equal(state.obs, obs)
    other = gymnasium.make("LunarLander-v3").reset(seed=int(jax.random.bits(key, dtype=jnp.uint32) & host.SEED_BITS))
    assert (other[0] != obs).any()


SPACES = {
    "Discrete": lambda s: s.Discrete(3),
    "MultiBinary": lambda s: s.MultiBinary(4),
    "MultiDiscrete": lambda s: s.MultiDiscrete([2, 3]),
    "Dict": lambda s: s.Dict({"a": s.Box(0, 1, (2, 2)), "b": s.Tuple([s.Discrete(2), s.Discrete(3)])}),
}


@pytest.mark.parametrize("space", SPACES)
def test_observations_are_flattened_as_gymnasium_does(space):
    shown = SPACES[space](gymnasium.spaces)
    env, _, keys, out = rolled(plant(f"Shows{space}-v0", shown=shown))
    assert env.spec.observation_size == gymnasium.spaces.flatdim(shown)
    for e, key in enumerate(keys):
        shown.seed(int(jax.random.bits(key, dtype=jnp.uint32) & host.SEED_BITS))
        for t in range(5):
            np.testing.assert_array_equal(out.obs[e, t], gymnasium.spaces.flatten(shown, shown.sample()))


def test_actions_are_clipped_to_the_bounds_that_there_are():
    low, high = np.array([[-0.1], [-np.inf]], np.float32), np.array([[0.1], [np.inf]], np.float32)
    _, _, _, out = rolled(plant("Acts-v0", taken=gymnasium.spaces.Box(low, high)))
    first, second = np.moveaxis(out.action[out.mask], 1, 0)
    np.testing.assert_allclose(out.reward[out.mask], np.clip(first, -0.1, 0.1) + second, rtol=1e-5, atol=1e-6)
    assert np.abs(first).max() > 0.5 and np.abs(second).max() > 0.5


def test_mujoco_leaves_no_log_where_the_user_stands(tmp_path):
    """Gymnasium's robots have attributes that MuJoCo calls deprecated, each time that it reads one."""
    code = "from fedjax_rl.host import episodes; episodes.make('HalfCheetah-v5', None, (), ())"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not [*tmp_path.iterdir()]


def test_the_horizon_is_the_names_or_the_environments():
    assert make_env("gym/CartPole-v1").spec.horizon == 500
    env, _, _, out = rolled("gym/Pendulum-v1?horizon=7")
    assert env.spec.horizon == 7 and out.mask.shape == (3, 7) and out.mask.all()
    with pytest.raises(ValueError, match=r"^gym/Endless-v0 has no time limit.*write gym/Endless-v0\?horizon=STEPS"):
        make_env(plant("Endless-v0", limit=None))
    assert make_env("gym/Endless-v0?horizon=9").spec.horizon == 9


def test_an_episode_that_is_truncated_is_over():
    *_, out = rolled(plant("Cut-v0", cut=True))
    np.testing.assert_array_equal(out.mask, np.tile(np.arange(50) < 5, (3, 1)))


def test_what_an_object_remembers_reaches_no_episode(capsys):
    """Each has an object of its own."""
    name = plant("Remembers-v0", leak="object")
    *_, first = rolled(name)
    *_, second = rolled(name)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(first.obs[:, :5, 1], np.tile(np.arange(5), (3, 1)))
    assert capsys.readouterr().err == ""


def test_what_is_no_function_of_seed_and_actions_is_said_once(capsys):
    name = plant("Leaks-v0", leak="class")
    for _ in range(2):
        make_env(name)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: the same seed and actions give different episodes") and "resumed" in line


@pytest.mark.nightly
def test_walkers_repeat_their_episodes():
    """BipedalWalker's objects remember: used ones gave other episodes in 4 of 8 seeds."""
    pytest.importorskip("Box2D")
    *_, first = rolled("gym/BipedalWalker-v3?horizon=200", episodes=12)
    *_, second = rolled("gym/BipedalWalker-v3?horizon=200", episodes=12)
    jax.tree.map(np.testing.assert_array_equal, first, second)


REFUSED = {
    "CartPole-v9": "unknown environment 'gym/CartPole-v9'; the nearest name is 'gym/CartPole-v1'",
    "CartPol-v1": "unknown environment 'gym/CartPol-v1'; the nearest name is 'gym/CartPole-v1'",
    "LunarLander-v2": r"cannot be made \(DeprecatedEnv: .*use `LunarLander-v3`",
    "ALE/Pong-v5": r"cannot be made \(NamespaceNotFound: .*ALE",
    "nobody_here:Some-v0": r"cannot be made \(ModuleNotFoundError: No module named 'nobody_here'",
    "CartPole-v1?colour=1:2": r"cannot be made \(TypeError: .*colour",
}


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("name", REFUSED)
def test_what_gymnasium_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        make_env(f"gym/{name}")


def test_spaces_that_no_policy_knows_are_refused_by_name():
    box, text = gymnasium.spaces.Box(0, 1, (MOST_ENTRIES + 1,)), gymnasium.spaces.Text(3)
    pair = gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2), text])
    for i, (space, words) in enumerate([(box, r"Box\("), (text, r"Text\("), (pair, r"Tuple\(")]):
        with pytest.raises(ValueError, match=rf"^gym/No{i}-v0 shows {words}.*at most {MOST_ENTRIES} numbers"):
            make_env(plant(f"No{i}-v0", shown=space))
    with pytest.raises(ValueError, match=r"^gym/Many-v0 takes actions of MultiBinary\(2\); we can train with Box or"):
        make_env(plant("Many-v0", taken=gymnasium.spaces.MultiBinary(2)))


def test_an_environment_that_fails_or_lies_is_refused(monkeypatch):
    monkeypatch.setattr(Planted, "step", lambda self, action: 1 / 0)
    with pytest.raises(
        ValueError, match=r"^gym/Fails-v0 fails \(ZeroDivisionError: division by zero\); choose another$"
    ):
        make_env(plant("Fails-v0"))
    monkeypatch.undo()
    monkeypatch.setattr(Planted, "look", lambda self: np.zeros(3))
    with pytest.raises(ValueError, match=r"^gym/Lies-v0 shows 3 numbers where its space has 2$"):
        make_env(plant("Lies-v0"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match=r"^gym/Some-v7 needs Gymnasium .*pip install 'fedjax-rl\[gym\]'$"):
        make_env("gym/Some-v7")


def test_a_module_of_ones_own_registers_its_names(tmp_path, monkeypatch):
    """Where the command is given, as a guest's environment is found."""
    source = "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
    (tmp_path / "mine.py").write_text(source + "gymnasium.register('Mine-v0', CartPoleEnv, max_episode_steps=9)\n")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.chdir(tmp_path)
    assert make_env("gym/mine:Mine-v0").spec[1:4] == (4, 1, 9)


def test_pictures_are_of_the_episode_with_that_seed_and_those_actions():
    env = make_env(plant("Drawn-v0", wind=0.5))
    assert env.pictures.step_ms == 40
    shown = list(env.pictures.show(np.zeros(()), 7, np.array([[0], [2], [1]], np.int32)))
    assert [picture.max() for picture, _ in shown] == [5, 4, 3, 2] and shown[0][0].shape == (2, 4, 3)
    assert [paid for _, paid in shown] == [0.0, -0.5, 1.0, 1.5]  # actions from -1 on
    assert make_env(plant("Blind-v0", draws=False)).pictures is None
