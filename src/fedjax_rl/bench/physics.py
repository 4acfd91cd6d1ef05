"""P1: physics steps a second and their accuracy, by number of environments."""

from functools import partial

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from fedjax_rl.bench.rows import Row, interleaved, median, row, spread
from fedjax_rl.config import ConfigError
from fedjax_rl.envs import ant, half_cheetah, make_env, resolve_backend
from fedjax_rl.envs.physics import Model, make_physics
from fedjax_rl.host.numerics import root_key

MODELS = {"half_cheetah": half_cheetah.half_cheetah_model, "ant": ant.ant_model}
STEPS = 20  # environment steps of one timed call
COMPARED = {"fused": ("native",)}  # what an engine takes turns with
STATES = 256  # states of the accuracy column


def model_of(env: str) -> Model:
    """The robot of an environment."""
    if env.split("/")[0] not in MODELS:
        raise ConfigError(f"--env {env}: must be one of {', '.join(f'{name}/...' for name in MODELS)}")
    return MODELS[env.split("/")[0]]()


def physics(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """A row for each number of environments: `STEPS` environment steps of random control, policies left out.

    Fused physics takes turns with native, and `over_native` is the median of the pairs' ratios.
    """
    backend, model = resolve_backend(backend), model_of(env)
    error = one_step_error(env, backend)
    rows = []
    for size in sizes or (64, 800, 4000):
        made = {name: make_run(env, name, size) for name in (backend, *COMPARED.get(backend, ()))}
        timed = interleaved({name: partial(run, start) for name, (start, run) in made.items()}, repeats)
        seconds = timed.pop(backend)
        steps = size * STEPS * model.frame_skip
        figures = {"env": env, "backend": backend, "environments": size}
        rates = {
            "physics_steps_per_s": steps / median(seconds),
            "range": [steps / s for s in reversed(spread(seconds))],
            "env_steps_per_s": size * STEPS / median(seconds),
            "ms_per_physics_step": 1e3 * median(seconds) / (STEPS * model.frame_skip),
        }
        for name, theirs in timed.items():
            ratios = [b / a for a, b in zip(seconds, theirs, strict=True)]
            rates |= {f"{name}_physics_steps_per_s": steps / median(theirs)}
            rates |= {f"over_{name}": median(ratios), f"over_{name}_range": spread(ratios)}
        rows.append(row("P1", **figures, **rates, one_step_error_p99=error))
    return rows


def make_run(env: str, backend: str, size: int):
    """(states [size], states -> states `STEPS` environment steps later)."""
    made = make_env(env, backend=backend)
    tasks = made.sample_tasks(root_key(0), size)
    keys = jax.random.split(root_key(1), size)
    actions = 3 * jax.random.normal(root_key(2), (STEPS, size, made.spec.action_size))

    @jax.jit
    def run(states):
        step = jax.vmap(made.step)
        return jax.lax.scan(lambda s, a: (step(s, a, tasks), None), states, actions)[0]

    return jax.block_until_ready(jax.jit(jax.vmap(made.reset))(keys, tasks)), run


def one_step_error(env: str, backend: str) -> float:
    """99th percentile of |v - v_C| / max(|v_C|, 1) after one environment step, C MuJoCo iterated until it converges.

    From states along native rollouts of random control, with the solver's warm start given to both.
    """
    start, run = make_run(env, "native", STATES)
    states = run(start)
    model = model_of(env)
    made = mujoco.MjModel.from_xml_string(model.xml)
    made.opt.iterations, made.opt.ls_iterations, made.opt.tolerance = 200, 200, 0.0
    qpos, qvel = np.asarray(states.physics.qpos), np.asarray(states.physics.qvel)
    warm = np.asarray(states.physics.engine).view(np.float64)[:, made.nq + made.nv :]
    ctrl = np.asarray(jnp.clip(0.3 * jax.random.normal(root_key(3), (STATES, made.nu)), -1, 1))
    data, after = mujoco.MjData(made), np.zeros(qvel.shape)
    for i in range(STATES):
        mujoco.mj_resetData(made, data)
        data.qpos[:], data.qvel[:], data.ctrl[:], data.qacc_warmstart[:] = qpos[i], qvel[i], ctrl[i], warm[i]
        mujoco.mj_step(made, data, model.frame_skip)
        after[i] = data.qvel
    engine = make_physics(model, backend)

    def step(q, v, w, u):
        state = engine.init(q, v)
        return engine.step(state if backend == "native" else state._replace(engine=w), u)

    got = np.asarray(jax.jit(jax.vmap(step))(qpos, qvel, warm.astype(np.float32), ctrl).qvel)
    error = np.linalg.norm(got - after, axis=1) / np.maximum(np.linalg.norm(after, axis=1), 1)
    return float(np.percentile(error, 99))
