"""Do long rollouts of a trained policy look the same on two physics engines?

    python -m experiments.rollouts RUN [--steps T] [--each E] [--seed S]

RUN: a run of FMRL on a robot, with checkpoints. Its first CLIENTS clients adapt by one step. Then each of their
policies acts in E rollouts of T steps on C MuJoCo (native) and on fused physics, from the same states, with the same
noise. A rollout is chaotic, so that single ones part within a second; their statistics must not. The table has the mean
over rollouts on each engine, with its standard error, and the mean of the pairs' differences in standard errors of its
own (pairs have much in common until they part, so that the engines' errors would hide a part of a difference).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from experiments.agreement import restored
from fedjax_rl import trees
from fedjax_rl.bench.physics import model_of
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.envs import make_env
from fedjax_rl.host.numerics import pinned, root_key
from fedjax_rl.rl.policies import gaussian_mlp
from fedjax_rl.runs import assemble, rundir
from fedjax_rl.runs.checkpoint import NoCheckpoint
from fedjax_rl.types import Array, Params, Task

CLIENTS = 100
ENGINES = ("native", "fused")


def adapted(config: Config, run: Path) -> tuple[Params, Task]:
    """Of the first clients: parameters after one step of adaptation from the newest checkpoint, and tasks."""
    made, state = assemble.make_run(config), restored(config, run, None)
    tasks = trees.take(state.tasks, jnp.arange(min(CLIENTS, config.num_clients)))
    shared, algorithm = state.server.shared, made.algorithm

    def adapt(task, key):
        return algorithm.adapt(shared, (), shared, made.problem.sample(shared, task, key)[0])

    keys = jax.random.split(root_key(config.seed), min(CLIENTS, config.num_clients))
    return jax.jit(jax.vmap(adapt))(tasks, keys), tasks


def rollouts(
    config: Config, engine: str, models: Params, tasks: Task, each: int, steps: int, seed: int
) -> dict[str, np.ndarray]:
    """What each rollout of an engine was like, [clients, each]; none ends before its last step."""
    env = make_env(config.env, backend=engine, observation=config.observation)
    policy = gaussian_mlp(env.spec, hidden=config.hidden, activation=config.activation)
    planar = config.env.startswith("half_cheetah")

    def of_client(params: Params, task: Task, key: Array) -> tuple[Array, ...]:
        starts = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, each), task)

        def step(state, t):
            head = policy.apply(params, state.obs)
            noise = jax.random.normal(jax.random.fold_in(key, t), head[0].shape)
            state = jax.vmap(env.step, in_axes=(0, 0, None))(state, policy.distribution.act(head, noise), task)
            qpos, qvel = state.physics.qpos, state.physics.qvel
            w, x, y, z = (qpos[:, 3], qpos[:, 4], qpos[:, 5], qpos[:, 6])
            up = jnp.cos(qpos[:, 2]) if planar else w**2 - x**2 - y**2 + z**2  # of the torso's own upward axis
            height = qpos[:, 1] if planar else qpos[:, 2]
            seen = (height, jnp.linalg.norm(qvel[:, : 1 if planar else 2], axis=1), up < 0, jnp.sum(qvel**2, axis=1))
            return state, seen

        end, seen = jax.lax.scan(step, starts, jnp.arange(steps))
        return end.physics.qpos, end.physics.qvel, *[jnp.mean(x, axis=0) for x in seen]

    keys = jax.random.split(root_key(seed), jax.tree.leaves(models)[0].shape[0])
    found = jax.jit(jax.vmap(of_client))(models, tasks, keys)
    qpos, qvel, *means = [np.asarray(x, np.float64) for x in found]
    names = ("height, m", "speed, m/s", "share of the time upside down", "sum of qvel^2")
    return dict(zip(names, means, strict=True)) | {"contacts at the end": contacts(config.env, qpos, qvel)}


def contacts(env: str, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    """The number of contacts that C MuJoCo finds in each of the states [clients, each, nq], [clients, each, nv]."""
    model = mujoco.MjModel.from_xml_string(model_of(env).xml)
    data, found = mujoco.MjData(model), np.zeros(qpos.shape[:2])
    for place in np.ndindex(found.shape):
        data.qpos[:], data.qvel[:] = qpos[place], qvel[place]
        mujoco.mj_forward(model, data)
        found[place] = data.ncon
    return found


def table(by_engine: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """A row for each statistic: its mean ± standard error on the engines, and how far they are apart."""
    lines = [f"| | {' | '.join(by_engine)} | apart, standard errors |", "|---" * (len(by_engine) + 2) + "|"]
    for name in next(iter(by_engine.values())):
        ours = [found[name] for found in by_engine.values()]
        cells = [f"{mean:.5g} ± {error:.2g}" for mean, error in map(mean_and_error, ours)]
        apart, error = mean_and_error(ours[1] - ours[0])
        lines.append(f"| {name} | {' | '.join(cells)} | {apart / max(error, np.finfo(float).tiny):+.2f} |")
    return lines


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean over rollouts [clients, each] and its standard error; clients are the same on every engine."""
    return float(values.mean()), float(np.sqrt(values.var(axis=1, ddof=1).mean() / values.size))


@pinned()
def main() -> None:
    """The command line: a table on the terminal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--steps", type=int, default=200, help="environment steps of a rollout (default: 200)")
    parser.add_argument("--each", type=int, default=100, help="rollouts of each client's policy (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="of their starts and noise (default: 1)")
    args = parser.parse_args()
    try:
        config = rundir.open_run(args.run)
        if config.algorithm != "fmrl":
            parser.error(f"{args.run} is a run of {config.algorithm}: choose one of fmrl")
        models, tasks = adapted(config, args.run)
    except (ConfigError, NoCheckpoint) as error:
        parser.error(str(error))
    found = {engine: rollouts(config, engine, models, tasks, args.each, args.steps, args.seed) for engine in ENGINES}
    count = next(iter(found[ENGINES[0]].values())).size
    print(f"{config.env}: {count:,} rollouts of {args.steps} steps on each engine\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
