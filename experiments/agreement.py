"""How much of a client's change is signal: do its changes from independent episodes point the same way?

python -m experiments.agreement RUN [--step N]

RUN: a run of FMRL with checkpoints. --step: one of its saved rounds, 0 for the initial parameters; without it the
newest. For the first CLIENTS clients and each line of experiments.curvature, REPLICAS changes from the same parameters,
every one from episodes of its own, before any clip: the mean cosine of two changes of a client (1: no noise, 0: noise
alone) and their norm.
"""

import argparse
import functools
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.curvature import LINES
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.federation.simulate import State
from fedjax_rl.host.numerics import pinned, root_key
from fedjax_rl.runs import assemble, checkpoint, rundir

CLIENTS = 8
REPLICAS = 8


def restored(config: Config, run: Path, step: int | None) -> State:
    """The state after round `step` (None: the newest that is saved), before the first round for 0."""
    made = assemble.make_run(config)
    if step == 0:
        return assemble.initial_state(made)
    say = functools.partial(print, file=sys.stderr)
    return checkpoint.restore(run / rundir.CHECKPOINTS, assemble.abstract_state(made), say, step).state


def changes(config: Config, state: State) -> np.ndarray:
    """Changes [n, REPLICAS, parameters] of the first n = min(CLIENTS, N) clients, each from episodes of its own."""
    algorithm = assemble.make_run(config).algorithm
    clients, tasks = jax.tree.map(lambda x: x[:CLIENTS], (state.clients, state.tasks))

    def change(client, task, key):
        upload, _, _ = algorithm.client_update(state.server.shared, client, task, key)
        return ravel_pytree(upload.message)[0]

    keys = jax.random.split(root_key(config.seed + 1), (min(CLIENTS, config.num_clients), REPLICAS))
    return np.asarray(jax.jit(jax.vmap(jax.vmap(change, in_axes=(None, None, 0))))(clients, tasks, keys))


def agreement(vectors: np.ndarray) -> dict[str, float]:
    """Of vectors [n, R, d]: the mean cosine of two of the R, and the median and largest norm."""
    norms = np.linalg.norm(vectors, axis=-1)
    unit = vectors / norms[..., None]
    pairs = np.triu_indices(vectors.shape[1], 1)
    cosines = (unit @ unit.swapaxes(1, 2))[:, *pairs]
    return {"cosine": float(cosines.mean()), "median_norm": float(np.median(norms)), "max_norm": float(norms.max())}


@pinned()
def main() -> None:
    """The command line: a table on the terminal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--step", type=int, help="a saved round, 0 for the initial parameters (default: the newest)")
    args = parser.parse_args()
    try:
        config = rundir.open_run(args.run)
        if config.algorithm != "fmrl":
            parser.error(f"{args.run} is a run of {config.algorithm}: choose one of fmrl")
        state = restored(config, args.run, args.step)
    except (ConfigError, checkpoint.NoCheckpoint) as error:
        parser.error(str(error))
    vectors = {label: changes(replace(config, **values), state) for label, values in LINES.items()}
    clients, replicas, _ = next(iter(vectors.values())).shape
    print(f"{config.env}, seed {config.seed}, after round {state.round}: {clients} clients, {replicas} changes each\n")
    print("| | cosine of two changes | norm, median | largest |\n|---|---|---|---|")
    for label, of_line in vectors.items():
        row = agreement(of_line)
        print(f"| {label} | {row['cosine']:.3f} | {row['median_norm']:.4f} | {row['max_norm']:.4f} |")


if __name__ == "__main__":
    main()
