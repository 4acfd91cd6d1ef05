"""C MuJoCo on all cores that the process may use, one host callback per environment step.

`mujoco.batch` steps any number of simulations on C threads, bit-identical to a loop of `mj_step` at any thread count.
One callback carries the whole cohort: under `vmap` of `vmap` (clients, episodes) the leading axes arrive
together (`vmap_method="broadcast_all"`) and are flattened into one batch. Inside the callback there is only NumPy:
calling JAX there can deadlock.

Factors make a batch whose model fields are per simulation. They are the same at every step of an episode, so what was
written last is compared, and the fields are written anew only when it differs (800 half-cheetahs on two cores: 8 us to
compare, 2.5 ms to write with mj_setConst, 11 ms for a step, which fields of one's own do not slow measurably).

The carry is the float64 row (qpos, qvel, qacc_warmstart) bit-cast to uint32, so nothing is lost without x64. A
diverged simulation is neither reset nor raised (errors raised in callbacks under `lax.scan` can be swallowed): it
shows as non-finite qpos and qvel.
"""

import ctypes
import threading
from collections import OrderedDict

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco.batch import Batch, SimulationError

from fedjax_rl.envs.callback import host_call
from fedjax_rl.envs.physics import Factors, Model, Physics, PhysicsState, scaled
from fedjax_rl.envs.physics.features import refuse_state
from fedjax_rl.host.cores import cores

_CACHED_BATCHES = 8
_SPARSE_FROM = 14  # degrees of freedom
_STEP_LOCK = threading.Lock()


def _stop_profile() -> None:
    """Take MuJoCo's clock away, process-wide: mjData.timer stays at zero and a step takes a fifth less time.

    MuJoCo's Python package installs a clock (mjcb_time) that every step reads 32 times, and
    `set_mjcb_time(None)` installs it again. Where the variable cannot be reached, steps are only slower.
    """
    try:
        from mujoco import _callbacks

        ctypes.c_void_p.in_dll(ctypes.CDLL(_callbacks.__file__), "mjcb_time").value = None
    except (ImportError, OSError, ValueError):
        pass


def compile_model(xml: str) -> mujoco.MjModel:
    """The model with MuJoCo's default (converged) solver and no automatic reset of a diverged simulation.

    A single robot is one island of constraints: looking for more gives the same bits and takes 5 % of the time. MuJoCo
    itself takes sparse Jacobians from 60 degrees of freedom; ant's 14 are faster with them, half-cheetah's 9 are not.
    """
    model = mujoco.MjModel.from_xml_string(xml)
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET | mujoco.mjtDisableBit.mjDSBL_ISLAND
    if model.nv >= _SPARSE_FROM:
        model.opt.jacobian = mujoco.mjtJacobian.mjJAC_SPARSE
    return model


class _Stepper:
    """One model's batches by size, those with factors apart. A batch uses every core, so calls take turns.

    Rows are [qpos nq, qvel nv, qacc_warmstart nv] in float64, seen from JAX as twice as many uint32.
    """

    def __init__(self, model: mujoco.MjModel, frame_skip: int):
        refuse_state(model)
        if model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
            raise ValueError("C MuJoCo in batches does not put bodies to sleep; leave out the flag sleep")
        self.model, self.frame_skip = model, frame_skip
        self.width = model.nq + 2 * model.nv
        self.batches: OrderedDict[tuple[int, bool], Batch] = OrderedDict()
        self.written: dict[int, Factors] = {}

    def batch(self, size: int, factors: Factors | None) -> Batch:
        """The batch of `size` simulations; the least recently used one makes way for a new one."""
        key = (size, factors is not None)
        if key not in self.batches:
            self.batches[key] = Batch(self.model, nsim=size, nthread=cores())
            if len(self.batches) > _CACHED_BATCHES:
                (dropped, had_factors), _ = self.batches.popitem(last=False)
                if had_factors:
                    self.written.pop(dropped, None)
        self.batches.move_to_end(key)
        if factors is not None:
            self.write(self.batches[key], factors)
        return self.batches[key]

    def write(self, batch: Batch, factors: Factors) -> None:
        """Give every simulation of a batch its own model, unless it has it already; leaves of factors are [B, ...]."""
        last = self.written.get(batch.nsim)
        if last is not None and all(map(np.array_equal, last, factors)):
            return
        for name, factor in factors._asdict().items():
            batch.expand(name)[:] = scaled(getattr(self.model, name)[None], factor)
        batch.set_const()
        self.written[batch.nsim] = Factors._make(map(np.copy, factors))  # the arguments' memory is lent for one call

    def show(self, rows: np.ndarray, lead: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows [B, width] -> (qpos, qvel, engine) with the leading axes restored."""
        nq, nv = self.model.nq, self.model.nv
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged float64 overflows to inf, as it should show
            shown = rows[:, : nq + nv].astype(np.float32)
        qpos, qvel = shown[:, :nq], shown[:, nq:]
        engine = rows.view(np.uint32)
        return qpos.reshape(*lead, nq), qvel.reshape(*lead, nv), engine.reshape(*lead, 2 * self.width)

    def step(self, engine, ctrl, factors: Factors | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Host side of one environment step: engine [..., 2 width] uint32, ctrl [..., nu] float32, factors [..., n]."""
        engine, ctrl = np.asarray(engine), np.asarray(ctrl)
        lead = engine.shape[:-1]
        rows_in = np.ascontiguousarray(engine).view(np.float64).reshape(-1, self.width)
        if factors is not None:
            factors = Factors._make([np.reshape(x, (-1, *x.shape[len(lead) :])) for x in map(np.asarray, factors)])
        with _STEP_LOCK:
            batch = self.batch(len(rows_in), factors)
            rows = batch.state[:, 1 : 1 + self.width]  # column 0 is the time, which nothing reads
            rows[:] = rows_in
            batch.ctrl[:] = ctrl.reshape(len(rows_in), self.model.nu)
            try:
                batch.step(nstep=self.frame_skip)
            except SimulationError as error:
                rows[error.ids] = np.nan
            return self.show(np.ascontiguousarray(rows), lead)

    def init(self, qpos: np.ndarray, qvel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Host side of a reset: qpos [..., nq] and qvel [..., nv] in float32, the warm start at zero."""
        qpos, qvel = np.asarray(qpos), np.asarray(qvel)
        rows = np.zeros((*qpos.shape[:-1], self.width))
        rows[..., : self.model.nq] = qpos
        rows[..., self.model.nq : self.model.nq + self.model.nv] = qvel
        return self.show(rows.reshape(-1, self.width), qpos.shape[:-1])


def make_native(model: Model) -> Physics:
    """`model` on C MuJoCo, after `resolve_backend`. Switches MuJoCo's profile off for the process."""
    _stop_profile()
    compiled = compile_model(model.xml)
    stepper = _Stepper(compiled, model.frame_skip)
    shapes = (
        jax.ShapeDtypeStruct((compiled.nq,), jnp.float32),
        jax.ShapeDtypeStruct((compiled.nv,), jnp.float32),
        jax.ShapeDtypeStruct((2 * stepper.width,), jnp.uint32),
    )

    host_init, host_step = host_call(stepper.init, shapes), host_call(stepper.step, shapes)

    def init(qpos, qvel):
        return PhysicsState(*host_init(qpos.astype(jnp.float32), qvel.astype(jnp.float32)))

    def step(state, ctrl, factors=None):
        # None is a tree without leaves: no argument
        return PhysicsState(*host_step(state.engine, ctrl.astype(jnp.float32), factors))

    return Physics(init, step)
