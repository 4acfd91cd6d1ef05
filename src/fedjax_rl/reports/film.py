"""`fedjax-rl render` and `Run.render`: clients before and after adaptation.

Actions are sampled, as in training and evaluation, so that the return that a panel shows is a draw of the return that
`eval` estimates. All panels share the initial state and the noise: between before and after, all that differs is the
adaptation; between clients, the task too. The episodes on which a client adapts are those of its evaluation.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl import trees
from fedjax_rl.envs import Env, EnvState
from fedjax_rl.federation import simulate
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.host.files import write_new
from fedjax_rl.reports import film_gif, film_html
from fedjax_rl.rl.policies import Policy
from fedjax_rl.rl.rollout import Trajectory, make_rollout
from fedjax_rl.runs import scoring
from fedjax_rl.runs.assemble import Assembled
from fedjax_rl.runs.models import make_policy
from fedjax_rl.types import Array, Key, Params, Task


class Panel(NamedTuple):
    """One episode to show: the client and its task, which model acts and its return, and qpos [T, nq]."""

    client: str
    model: str
    qpos: np.ndarray


class Drawn(NamedTuple):
    """One episode to show, as pictures [H, W, 3] uint8 with what was paid until then."""

    client: str
    model: str
    pictures: Iterator[tuple[np.ndarray, float]]


def render(run: Assembled, state: simulate.State, out: Path, clients: tuple[int, ...], steps: int) -> list[str]:
    """Film the clients, a row each, before and after so many adaptation steps, into `out`: a line of returns each."""
    if run.env.mjcf:
        write = film_gif.make_writer(run.env.mjcf) if out.suffix == ".gif" else film_html.make_writer(run.env.mjcf)
    elif run.env.pictures is None:
        raise ConfigError(
            f"{run.config.env} has no picture; render films what MuJoCo steps, such as half_cheetah/*, or gym/* draws"
        )
    elif out.suffix != ".gif":
        raise ConfigError(f"out = {out}: a film of {run.config.env} is one of pictures, and its name must end in .gif")
    else:
        write = partial(film_gif.of_pictures, step_ms=run.env.pictures.step_ms)
    rows = panels(run, state, clients, steps)
    write_new(out, write(rows))
    return [f"{row[0].client}: {'; '.join(panel.model for panel in row)}" for row in rows]


def panels(run: Assembled, state: simulate.State, clients: tuple[int, ...], steps: int) -> list[list[Any]]:
    """[before, after] for each client, all in one batch: of `Panel`, or of `Drawn` where the host draws."""
    ids = jnp.array(clients)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), *scoring.adapted(run, state, ids, steps))
    twice = jnp.concatenate([ids, ids])
    key = simulate.stream(state.key, simulate.FILM, state.round)
    policy = make_policy(run.config, run.env.spec)
    pictures = None if run.env.mjcf else run.env.pictures
    film = make_take(run.env, policy) if pictures else make_film(run.env, policy)
    one = lambda row: film(row[0], row[1], key)
    # clients of unlike kinds stand in no block here: one by one
    each: Any = partial(jax.lax.map, one) if run.config.kinds else jax.vmap(one)
    tasks = trees.take(state.tasks, twice)
    *shown, returns = (np.asarray(x) for x in jax.jit(each)((both, tasks)))

    def panel(name: str, model: str, j: int) -> Panel | Drawn:
        if not pictures:
            return Panel(name, model, shown[0][j])
        (high, low), actions, taken = (x[j] for x in shown)
        return Drawn(name, model, pictures.show(np.asarray(tasks)[j], int(high) << 16 | int(low), actions[:taken]))

    rows = []
    for i, client in enumerate(clients):
        name = f"client {client}, {run.env.describe(trees.take(state.tasks, client))}"
        models = ["before", f"after {steps} step{'s' if steps > 1 else ''}"]
        at = [i, len(clients) + i]
        rows.append([panel(name, f"{m}: return {returns[j]:.1f}", j) for m, j in zip(models, at, strict=True)])
    return rows


def make_film(env: Env, policy: Policy) -> Callable[[Params, Task, Key], tuple[Array, Array]]:
    """(parameters, task, key) -> (qpos [T, nq] before each action, return ()) of one episode.

    An episode that is over stays where it ended.
    """
    record = _recorder(env, policy, lambda state: state.physics.qpos)

    def film(params, task, key):
        qpos, trajectory = record(params, task, key)
        return qpos, trajectory.reward.sum()

    return film


def make_take(env: Env, policy: Policy) -> Callable[[Params, Task, Key], tuple[Array, Array, Array, Array]]:
    """(parameters, task, key) -> (upper and lower 16 bits of the seed [2], actions [T, A], steps (), return ()) of one
    episode of the host."""
    halves = lambda seed: jnp.stack([seed >> 16, seed & 0xFFFF]).astype(jnp.float32)  # which holds 24 bits
    record = _recorder(env, policy, lambda state: halves(state.physics.seed))

    def take(params, task, key):
        seed, trajectory = record(params, task, key)
        return seed[0], trajectory.action[0], trajectory.mask.sum(), trajectory.reward.sum()

    return take


def _recorder(
    env: Env, policy: Policy, of: Callable[[EnvState], Array]
) -> Callable[[Params, Task, Key], tuple[Array, Trajectory]]:
    """(parameters, task, key) -> (of(state) [T, n] before each action, the trajectory) of one episode.

    It is the rollout of training, of which only the observation is known: so what is recorded rides along in the
    observation, and the policy is shown the part that is its own.
    """
    size = env.spec.observation_size
    loaded = lambda state: state._replace(obs=jnp.concatenate([state.obs, of(state)]))
    blind = policy._replace(apply=lambda params, obs: policy.apply(params, obs[:, :size]), cohort=None)

    def record(params, task, key):
        recorded = jax.eval_shape(lambda: of(env.reset(key, task))).shape[0]
        recording = env._replace(
            reset=lambda key, task: loaded(env.reset(key, task)),
            step=lambda state, action, task: loaded(env.step(state, action, task)),
            spec=env.spec._replace(observation_size=size + recorded),
        )
        trajectory = make_rollout(recording, blind, episodes=1)(params, task, key)
        return trajectory.obs[0, :, size:], trajectory

    return record
