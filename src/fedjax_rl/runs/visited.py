"""States that an agent visits, thinned out evenly: what clients can distil on that do not show their own."""

import io
import re
from pathlib import Path

import jax
import numpy as np
from scipy.cluster.vq import ClusterError, kmeans2

from fedjax_rl.config import Config, ConfigError
from fedjax_rl.federation.simulate import FILM, run_rounds, stream
from fedjax_rl.host.files import write_bytes
from fedjax_rl.rl.rollout import make_rollout
from fedjax_rl.runs.assemble import initial_state, make_run
from fedjax_rl.runs.models import make_policy
from fedjax_rl.runs.public_states import digest


def visited(config: Config, snapshots: int, rollouts: int) -> np.ndarray:
    """The states [n, O] that one agent visits, which learns as the first client of a configuration.

    From the middle of its training to the end it is looked at `snapshots` times, each time in `rollouts` episodes in
    which it takes its likeliest action.
    """
    run = make_run(config)
    policy = make_policy(config, run.env.spec)
    says = policy.distribution
    greedy = policy._replace(distribution=says._replace(act=lambda head, noise: says.mode(head)))
    watch = jax.jit(make_rollout(run.env, greedy, rollouts))
    state, seen = initial_state(run), []
    gap = config.rounds // (2 * (snapshots - 1))
    for number in range(2 * (snapshots - 1) + 1):
        if number:
            state, _ = run_rounds(run.simulation, state, gap)
        if number >= snapshots - 1:
            client, task = jax.tree.map(lambda x: x[0], (state.clients, state.tasks))
            params = run.algorithm.personal_params(state.server.shared, client)
            shown = watch(params, task, stream(state.key, FILM, state.round))
            seen.append(np.asarray(shown.obs)[np.asarray(shown.mask)])
    return np.concatenate(seen)


def spread(states: np.ndarray, count: int, components: int, clusters: int, seed: int) -> np.ndarray:
    """`count` of the states [n, O], equally many from each cluster, cluster after cluster: [count, O].

    The clusters are those of k-means (k-means++ starts) in the first principal components of the standardised states.
    A cluster that has too few gives some more than once.

    Raises:
      ConfigError: a cluster stays empty.

    Source: Kong et al., "Heterogeneous Federated Reinforcement Learning via Policy Distillation", AAMAS 2025.
    """
    rng = np.random.default_rng(seed)
    deviation = states.std(axis=0)
    x = (states - states.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    x = x @ np.linalg.svd(x, full_matrices=False)[2][:components].T
    try:
        with np.errstate(invalid="ignore"):  # of distances that are all zero
            _, label = kmeans2(x, clusters, minit="++", seed=rng, iter=100, missing="raise")
    except ClusterError:
        raise ConfigError(
            f"--clusters {clusters}: the {len(states)} visited states are too few, or too alike, for so many; lower "
            "--clusters"
        ) from None
    chosen = []
    for k in range(clusters):
        members = np.flatnonzero(label == k)
        chosen.append(rng.choice(members, count // clusters, replace=len(members) < count // clusters))
    return states[np.concatenate(chosen)].astype(np.float32)


def write(directory: Path, config: Config, states: np.ndarray) -> Path:
    """A file of the states, whose name says the environment and their digest."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', config.env)}-{digest(states)}.npy"
    content = io.BytesIO()
    np.save(content, states)
    write_bytes(path, content.getvalue())
    return path
