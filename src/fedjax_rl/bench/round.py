"""P3 and P8: a round and its parts, beside what its physics and its gradients alone would cost.

round:     one compiled FMRL round, as `fedjax-rl train` runs it.
sampling:  its two rollouts with the policies of all clients, the second with the adapted ones, and their advantages.
adapt:     the adaptation between them; local: the local steps.
server:    what is left of a round whose clients only send zeros: selection, gathering, mean, server step.
physics:   the round's actions, from its initial states, replayed through C MuJoCo's own batch on all cores (native).
gradients: adapt and local steps on the round's batches, at the fastest chunking tried.
Each repeat runs all of them in turn; ratios are medians of the repeats' ratios. On fused physics, native's round and
rollouts (sampling without advantages) take turns with them: `round_over_native` and `rollouts_over_native`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rl import config, trees
from fedjax_rl.algorithms.parts import chunked, local_change
from fedjax_rl.bench.physics import COMPARED, model_of
from fedjax_rl.bench.rows import Row, interleaved, median, row, spread
from fedjax_rl.config import presets
from fedjax_rl.config.algorithms import FmrlConfig
from fedjax_rl.envs import resolve_backend
from fedjax_rl.envs.mujoco_env import ACTION_SCALE
from fedjax_rl.envs.physics import native
from fedjax_rl.federation import simulate
from fedjax_rl.federation.aggregators import mean
from fedjax_rl.host.cores import cores
from fedjax_rl.meta import adapt, meta_gradient
from fedjax_rl.rl.surrogates import Batch
from fedjax_rl.runs import assemble
from fedjax_rl.types import Upload


def round(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """A row for each cohort: seconds of the round and its parts at the paper's episodes and local steps."""
    return [one(env, backend, size, repeats) for size in sizes or (40,)]


def one(env: str, backend: str, size: int, repeats: int) -> Row:
    """The row of one cohort."""
    run, state = make(env, backend, size)
    copy = jax.jit(lambda s: jax.tree.map(jnp.copy, s))
    sampled = make_sampling(run, state)
    batches = jax.block_until_ready(sampled())
    chunks = sorted({1, min(4, size), size} if jax.default_backend() == "cpu" else {size})
    parts = {k: make_gradients(run, state.server.shared, batches, k) for k in chunks}
    idle = make_idle(run)
    fns = {
        "round": lambda: simulate.run_rounds(run.simulation, copy(state), 1),
        "sampling": sampled,
        "server": lambda: simulate.run_rounds(idle, copy(state), 1),
        **{f"adapt {k}": fn[0] for k, fn in parts.items()},
        **{f"local {k}": fn[1] for k, fn in parts.items()},
    }
    engine = resolve_backend(backend)
    if engine == "native":
        fns["physics"] = make_replay(env, batches)
    others = COMPARED.get(engine, ())
    for name in others:
        theirs, start = make(env, name, size)
        fns["rollouts"] = make_sampling(run, state, keep=without_advantages)
        fns[f"{name} rollouts"] = make_sampling(theirs, start, keep=without_advantages)
        fns[f"{name} round"] = lambda run=theirs, start=start: simulate.run_rounds(run.simulation, copy(start), 1)
    seconds = {name: np.array(found) for name, found in interleaved(fns, repeats).items()}
    best = min(chunks, key=lambda k: median(seconds[f"local {k}"] + seconds[f"adapt {k}"]))
    gradients = seconds[f"local {best}"] + seconds[f"adapt {best}"]
    found = {name: median(seconds[name]) for name in ("round", "sampling", "server")}
    found |= {"adapt": median(seconds[f"adapt {best}"]), "local": median(seconds[f"local {best}"])}
    figures = {"clients": size, "env": env, "backend": engine, "seconds": found, "client_batch": best}
    if engine == "native":
        ratio = seconds["round"] / (seconds["physics"] + gradients)
        share = seconds["physics"] / seconds["sampling"]
        found["physics"] = median(seconds["physics"])
        figures |= {"p8": median(ratio), "p8_range": spread(ratio)}
        figures |= {"sampling_against_physics": median(share), "sampling_range": spread(share)}
    for name in others:
        for part in ("round", "rollouts"):
            ratio = seconds[f"{name} {part}"] / seconds[part]
            found |= {x: median(seconds[x]) for x in (part, f"{name} {part}")}
            figures |= {f"{part}_over_{name}": median(ratio), f"{part}_over_{name}_range": spread(ratio)}
    speed = run.env_steps_per_round / found["round"]
    return row("P3", **figures, env_steps_per_s=speed, round_range=spread(seconds["round"]))


def make(env: str, backend: str, size: int) -> tuple[assemble.Assembled, simulate.State]:
    """FMRL at the paper's size with a cohort of `size`, and its first state."""
    values = {"env": env, "backend": backend, "clients_per_round": size, "observation": "maml"}
    run = assemble.make_run(config.build("fmrl", presets.preset("paper", "fmrl", env), values))
    return run, assemble.initial_state(run)


def make_sampling(run: assemble.Assembled, state: simulate.State, keep=lambda batch: batch):
    """() -> what `keep` takes of the cohort's two batches of the state's next round, drawn with that round's own keys.

    The policies of the second are adapted here, once: adapting is a part of its own. What is not kept is not computed.
    """
    key = simulate.stream(state.key, simulate.UPDATE, state.round)
    select = jax.random.fold_in(state.key, simulate.SELECT)
    ids, _ = simulate.selection.uniform(select, state.round, run.config.num_clients, run.config.clients_per_round)
    shared = state.server.shared

    tasks = trees.take(state.tasks, ids)
    keys = jax.vmap(jax.random.split, out_axes=1)(simulate.per_client(key, ids))
    first = jax.jit(jax.vmap(lambda task, k: run.problem.sample(shared, task, k)[0]))
    adapt_all = jax.jit(jax.vmap(lambda batch: run.algorithm.adapt(shared, (), shared, batch)))
    adapted = adapt_all(first(tasks, keys[0]))
    inner = jax.jit(jax.vmap(lambda task, k: keep(run.problem.sample(shared, task, k)[0])))
    outer = jax.jit(jax.vmap(lambda own, task, k: keep(run.problem.sample(own, task, k)[0])))
    return lambda: (inner(tasks, keys[0]), outer(adapted, tasks, keys[1]))


def without_advantages(batch: Batch) -> Batch:
    """A batch as Brax or a Gymnasium loop would leave it."""
    return batch._replace(advantage=())  # type: ignore[arg-type]  # so that nothing computes them


def make_idle(run: assemble.Assembled) -> simulate.Simulation:
    """The same federation with clients that send zeros at once."""

    def nothing(shared, client, task, key):
        del task, key
        return Upload(jax.tree.map(jnp.zeros_like, shared), jnp.ones(())), client, {}

    c = run.config
    return simulate.make_simulation(
        run.algorithm._replace(client_update=nothing),
        num_clients=c.num_clients,
        clients_per_round=c.clients_per_round,
        sample_tasks=run.env.sample_tasks,
        aggregator=mean(),
    )


def make_replay(env: str, batches):
    """() -> the batches' actions replayed from their initial states through `mujoco.batch`, nothing else."""
    description = model_of(env)
    model = native.compile_model(description.xml)
    first = np.concatenate([np.asarray(b.obs)[:, :, 0].reshape(-1, b.obs.shape[-1]) for b in batches])
    nq, nv = model.nq, model.nv
    # the `maml` observation holds the whole state: qpos, qvel, ...; half-cheetah's without qpos[0], which comes later
    if env.startswith("half_cheetah"):
        first = np.concatenate([first[:, nq - 1 + nv : nq + nv], first], axis=1)
    qpos, qvel = first[:, :nq], first[:, nq : nq + nv]
    actions = [np.asarray(b.action).reshape(-1, *b.action.shape[2:]) for b in batches]
    scale = np.float32(1 / ACTION_SCALE)  # XLA turns the division into this product: then the replay is exact
    controls = [np.ascontiguousarray(np.clip(a * scale, -1, 1).swapaxes(0, 1)) for a in actions]
    size = len(actions[0])
    batch = native.Batch(model, nsim=size, nthread=cores())

    def replay():
        for i, control in enumerate(controls):
            batch.state[:] = 0.0
            batch.qpos[:], batch.qvel[:] = qpos[i * size : (i + 1) * size], qvel[i * size : (i + 1) * size]
            for now in control:
                batch.ctrl[:] = now
                batch.step(nstep=description.frame_skip)
        return batch.qpos

    return replay


def make_gradients(run: assemble.Assembled, shared, batches, chunk: int):
    """(() -> the adaptations, () -> the changes by the local steps), `chunk` clients at a time."""
    c = run.config
    assert isinstance(c, FmrlConfig)
    inner_step = chunked(lambda p, b: adapt(run.problem.loss, p, b, c.inner_lr), chunk)
    gradient = meta_gradient(run.problem.loss, c.inner_lr, c.order)
    change = local_change(gradient, optax.sgd(c.local_lr), c.local_steps, chunk)
    adapted = jax.jit(jax.vmap(lambda inner: inner_step(shared, inner)))
    changed = jax.jit(jax.vmap(lambda inner, outer: change(shared, inner, outer)))
    return (lambda: adapted(batches[0])), (lambda: changed(*batches))
