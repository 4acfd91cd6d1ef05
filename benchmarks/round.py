"""P8: what a round costs beyond its physics and its gradients, on native physics.

    python -m benchmarks.round [--clients 40] [--repeats 5] [--order first] [--out FILE.json]

round:     one compiled FMRL round, as `fedjax-rl train` runs it.
physics:   that round's actions, from that round's initial states, replayed through C MuJoCo's own batch on all cores.
gradients: that round's learning steps (adaptation and T local steps) on its batches, at the fastest chunking tried.
Each repeat runs all three in turn, so that a slow moment of the machine meets all of them; the ratio is the median of
the repeats' ratios. The first call of each (compilation) is left out.
"""

import argparse
import dataclasses
import json
import platform
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rl import build, config, presets, simulate, trees
from fedjax_rl.algorithms._local import chunked, local_change
from fedjax_rl.envs.mujoco_env import ACTION_SCALE, load_asset
from fedjax_rl.envs.physics import native
from fedjax_rl.meta import adapt, meta_gradient

FRAME_SKIP = 5  # physics steps of half-cheetah in an environment step


def timed(fn, *args):
    """(seconds, result), the result ready."""
    began = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    return time.perf_counter() - began, result


def record(run: build.Run, state: simulate.State):
    """The cohort's two batches of the state's next round, drawn with that round's own keys."""
    key = simulate.stream(state.key, simulate.UPDATE, state.round)
    select = simulate.stream(state.key, simulate.SELECT, state.round)
    ids = simulate.selection.uniform(select, run.config.num_clients, run.config.clients_per_round)

    def client(task, client_key):
        inner_key, outer_key = jax.random.split(client_key)
        inner, _ = run.problem.sample(state.server.shared, task, inner_key)
        outer, _ = run.problem.sample(
            run.algorithm.adapt(state.server.shared, (), state.server.shared, inner), task, outer_key
        )
        return inner, outer

    return jax.jit(jax.vmap(client))(trees.take(state.tasks, ids), simulate.per_client(key, ids))


def make_replay(batches):
    """A function that replays the batches' actions from their initial states through `mujoco.batch`, nothing else."""
    model = native.compile_model(load_asset("half_cheetah.xml"))
    observations = np.concatenate([np.asarray(b.obs)[:, :, 0].reshape(-1, b.obs.shape[-1]) for b in batches])
    # the `maml` observation is (qpos[1:], qvel, torso position), so that it holds the whole state
    nq, nv = model.nq, model.nv
    qpos = np.concatenate([observations[:, nq - 1 + nv : nq + nv], observations[:, : nq - 1]], axis=1)
    qvel = observations[:, nq - 1 : nq - 1 + nv]
    actions = [np.asarray(b.action).reshape(-1, *b.action.shape[2:]) for b in batches]
    controls = [np.ascontiguousarray(np.clip(a / ACTION_SCALE, -1, 1).swapaxes(0, 1)) for a in actions]
    size = len(actions[0])
    batch = native.Batch(model, nsim=size, nthread=native.os.cpu_count() or 1)

    def replay():
        for i, control in enumerate(controls):
            batch.state[:] = 0.0
            batch.qpos[:], batch.qvel[:] = qpos[i * size : (i + 1) * size], qvel[i * size : (i + 1) * size]
            for now in control:
                batch.ctrl[:] = now
                batch.step(nstep=FRAME_SKIP)
        return batch.qpos

    return replay


def make_gradients(run: build.Run, shared, batches, chunk: int):
    """A function that takes the round's learning steps, `chunk` clients at a time."""
    c = run.config
    inner_step = chunked(lambda p, b: adapt(run.problem.loss, p, b, c.inner_lr), chunk)
    gradient = meta_gradient(run.problem.loss, c.inner_lr, c.order)
    change = local_change(gradient, optax.sgd(c.local_lr), c.local_steps, chunk)
    both = jax.jit(jax.vmap(lambda i, o: (inner_step(shared, i), change(shared, i, o))))
    return lambda: both(*batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--order", choices=("first", "second"), default="first")
    parser.add_argument("--chunks", default="1,4", help="clients a chunk of the learning steps, comma-separated")
    parser.add_argument("--out", help="write the row to this JSON file")
    args = parser.parse_args()
    chosen = {"clients_per_round": args.clients, "order": args.order, "backend": "native"}
    run = build.make_run(config.build("fmrl", presets.preset("paper", "fmrl"), chosen))
    state = build.initial_state(run)
    batches = record(run, state)
    copy = jax.jit(lambda s: jax.tree.map(jnp.copy, s))
    replay = make_replay(batches)
    candidates = {k: make_gradients(run, state.server.shared, batches, k) for k in map(int, args.chunks.split(","))}
    one_round = lambda: simulate.run_rounds(run.simulation, copy(state), 1)
    for fn in (one_round, replay, *candidates.values()):
        timed(fn)
    rows = []
    for _ in range(args.repeats):
        seconds = [timed(fn)[0] for fn in (one_round, replay)]
        rows.append([*seconds, min(timed(fn)[0] for fn in candidates.values())])
        print("round {:.3f} s   physics {:.3f} s   gradients {:.3f} s".format(*rows[-1]), flush=True)
    rows = np.array(rows)
    ratios = rows[:, 0] / (rows[:, 1] + rows[:, 2])
    report(run, rows, ratios, args.out)


def report(run: build.Run, rows: np.ndarray, ratios: np.ndarray, out: str | None) -> None:
    """Print the medians; write the row with versions and machine."""
    medians = np.median(rows, axis=0)
    print(
        f"median: round {medians[0]:.3f} s = {np.median(ratios):.3f} x (physics {medians[1]:.3f} s + "
        f"gradients {medians[2]:.3f} s); range of the ratio {ratios.min():.3f} to {ratios.max():.3f}"
    )
    packages = ("jax", "jaxlib", "mujoco", "numpy")
    row = {
        "benchmark": "P8",
        "round_s": rows[:, 0].tolist(),
        "physics_s": rows[:, 1].tolist(),
        "gradients_s": rows[:, 2].tolist(),
        "ratio_median": float(np.median(ratios)),
        "env_steps_per_round": run.env_steps_per_round,
        "config": dataclasses.asdict(run.config),
        "versions": {p: version(p) for p in packages} | {"python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
        "cores": native.os.cpu_count(),
    }
    if out:
        with open(out, "w") as file:
            json.dump(row, file, indent=1)


if __name__ == "__main__":
    main()
