"""`fedjax-rl render` and `Run.render`: clients before and after adaptation.

Actions are sampled, as in training and evaluation, so that the return that a panel shows is a draw of the return that
`eval` estimates. All panels share the initial state and the noise: between before and after, all that differs is the
adaptation; between clients, the task too. The episodes on which a client adapts are those of its evaluation.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl import trees
from fedjax_rl.envs import Env
from fedjax_rl.federation import simulate
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.host.files import write_new
from fedjax_rl.host.numerics import root_key
from fedjax_rl.rl.policies import Policy
from fedjax_rl.rl.rollout import make_rollout
from fedjax_rl.runs import scoring
from fedjax_rl.runs.assemble import Assembled
from fedjax_rl.runs.models import make_policy
from fedjax_rl.types import Array, Key, Params, Task


class Panel(NamedTuple):
    """One episode to show: the client and its task, which model acts and its return, and qpos [T, nq]."""

    client: str
    model: str
    qpos: np.ndarray


def render(run: Assembled, state: simulate.State, out: Path, clients: tuple[int, ...], steps: int) -> list[str]:
    """Film the clients, a row each, before and after so many adaptation steps, into `out`: a line of returns each."""
    if not run.env.mjcf:
        raise ConfigError(f"{run.config.env} has no picture; render shows what MuJoCo steps, such as half_cheetah/*")
    if out.suffix == ".gif":
        from fedjax_rl.reports.film_gif import make_writer
    else:
        from fedjax_rl.reports.film_html import make_writer
    rows = panels(run, state, clients, steps)
    content = make_writer(run.env.mjcf)(rows)
    write_new(out, content)
    return [f"{row[0].client}: {'; '.join(panel.model for panel in row)}" for row in rows]


def panels(run: Assembled, state: simulate.State, clients: tuple[int, ...], steps: int) -> list[list[Panel]]:
    """[before, after] for each client, all in one batch."""
    ids = jnp.array(clients)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), *scoring.adapted(run, state, ids, steps))
    twice = jnp.concatenate([ids, ids])
    key = simulate.stream(state.key, simulate.FILM, state.round)
    policy = make_policy(run.config, run.env.spec)
    film = make_film(run.env, policy)
    one = lambda row: film(row[0], row[1], key)
    # clients of unlike kinds stand in no block here: one by one
    each: Any = partial(jax.lax.map, one) if run.config.kinds else jax.vmap(one)
    qpos, returns = (np.asarray(x) for x in jax.jit(each)((both, trees.take(state.tasks, twice))))
    rows = []
    for i, client in enumerate(clients):
        name = f"client {client}, {run.env.describe(trees.take(state.tasks, client))}"
        models = ["before", f"after {steps} step{'s' if steps > 1 else ''}"]
        at = [i, len(clients) + i]
        rows.append([Panel(name, f"{m}: return {returns[j]:.1f}", qpos[j]) for m, j in zip(models, at, strict=True)])
    return rows


def make_film(env: Env, policy: Policy) -> Callable[[Params, Task, Key], tuple[Array, Array]]:
    """(parameters, task, key) -> (qpos [T, nq] before each action, return ()) of one episode.

    It is the rollout of training, of which only the observation is known: so qpos rides along in the observation, and
    the policy is shown the part that is its own. An episode that is over stays where it ended.
    """
    size = env.spec.observation_size
    nq = jax.eval_shape(env.reset, root_key(0), None).physics.qpos.shape[0]
    loaded = lambda state: state._replace(obs=jnp.concatenate([state.obs, state.physics.qpos]))
    recording = env._replace(
        reset=lambda key, task: loaded(env.reset(key, task)),
        step=lambda state, action, task: loaded(env.step(state, action, task)),
        spec=env.spec._replace(observation_size=size + nq),
    )
    blind = policy._replace(apply=lambda params, obs: policy.apply(params, obs[:, :size]))
    rollout = make_rollout(recording, blind, episodes=1)

    def film(params, task, key):
        trajectory = rollout(params, task, key)
        return trajectory.obs[0, :, size:], trajectory.reward.sum()

    return film
