"""P10: environment steps a second through each adapter, beside Gymnasium's own vector environments.

Everyone resets B episodes and takes T random actions in each. Ours are rollouts with a policy that looks at nothing; a
step counts while its episode is not over. Gymnasium begins a new episode where one ends, so all of its steps count. T
is so small that few episodes end before it.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl.bench.rows import Row, interleaved, median, row, spread
from fedjax_rl.config import ConfigError
from fedjax_rl.envs import make_env
from fedjax_rl.host.numerics import root_key
from fedjax_rl.rl.distributions import CATEGORICAL
from fedjax_rl.rl.policies import Policy
from fedjax_rl.rl.rollout import make_rollout

STEPS = {"CartPole-v1": 20, "LunarLander-v3": 60}
ADAPTERS = {"CartPole-v1": ("gymnax", "gym", "envpool"), "LunarLander-v3": ("gym", "envpool")}
# CartPole alone has a vector environment of its own, in NumPy, with one random stream for all episodes
MODES = {"CartPole-v1": {"sync": "sync", "own": "vector_entry_point"}, "LunarLander-v3": {"sync": "sync"}}
NEEDS = {"gymnax": "gymnax", "gym": "gymnasium", "envpool": "envpool"}


def envs(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """A row for each environment and number of episodes; adapters whose library is not installed are left out."""
    del backend
    if env != "half_cheetah/direction":
        raise ConfigError(f"--env {env}: bench envs measures {' and '.join(STEPS)}; leave it out")
    if not find_spec("gymnasium"):
        raise ConfigError("bench envs needs gymnasium: pip install 'fedjax-rl[gym]'")
    rows = []
    for name, steps in STEPS.items():
        for size in sizes or (10, 200, 800):
            fns = {adapter: ours(adapter, name, size) for adapter in ADAPTERS[name] if find_spec(NEEDS[adapter])}
            taken = {adapter: int(fn().sum()) for adapter, fn in fns.items()}
            fns |= {f"gymnasium_{short}": theirs(name, size, mode) for short, mode in MODES[name].items()}
            rates: Row = {}
            for key, seconds in interleaved(fns, repeats).items():
                count = taken.get(key, size * steps)
                rates[f"{key}_steps_per_s"] = count / median(seconds)
                rates[f"{key}_range"] = [count / s for s in reversed(spread(seconds))]
            rows.append(row("P10", env=name, episodes=size, steps=steps, **rates))
    return rows


def ours(adapter: str, name: str, size: int) -> Callable[[], Any]:
    """() -> which steps were taken [size, T], in rollouts of `size` episodes."""
    env = make_env(f"{adapter}/{name}?horizon={STEPS[name]}")
    random = Policy(lambda key: (), lambda params, obs: jnp.zeros((len(obs), env.spec.num_actions)), CATEGORICAL)
    run = jax.jit(make_rollout(env, random, size))
    return lambda: run((), jnp.zeros(()), root_key(0)).mask


def theirs(name: str, size: int, mode: str) -> Callable[[], Any]:
    """() -> the last observations [size, O] of Gymnasium's vector environment."""
    import gymnasium

    made: Any = gymnasium.make_vec(name, num_envs=size, vectorization_mode=mode)
    draws = np.random.default_rng(0)
    actions = draws.integers(made.single_action_space.n, size=(STEPS[name], size))

    def run():
        made.reset(seed=0)
        return [made.step(action)[0] for action in actions][-1]

    return run
