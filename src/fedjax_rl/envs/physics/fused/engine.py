"""The fused engine: one XLA operation an environment step, without Python in it and without a compiler at import.

The carry is qacc_warmstart [nv]. A diverged simulation shows as non-finite qpos and qvel and leaves the others alone.
"""

import ctypes
import functools
import hashlib
from importlib import metadata, resources
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from fedjax_rl.envs.physics import Factors, Model, Physics, PhysicsState, platform
from fedjax_rl.envs.physics.fused import cache, compiler, program
from fedjax_rl.envs.physics.fused.robot import read


class Source(NamedTuple):
    """An MJCF and a hash of the model that it makes now: the files that it names may change."""

    xml: str
    model: str


def source(xml: str) -> Source:
    """What a program is made of."""
    m = mujoco.MjModel.from_xml_string(xml)
    saved = np.zeros(mujoco.mj_sizeModel(m), np.uint8)
    mujoco.mj_saveModel(m, None, saved)
    return Source(xml, hashlib.sha256(saved.tobytes()).hexdigest())


@functools.cache
def text_of(robot: Source, has_factors: bool) -> str:
    """`program.text_of` from the cache, where a hash of all that it depends on stands for a trace of seconds."""
    folder = resources.files("fedjax_rl.envs.physics.fused")
    files = [item for item in sorted(folder.iterdir(), key=str) if item.name.endswith((".py", ".h"))]
    sources = [item.read_text(encoding="utf-8") for item in files]
    versions = [metadata.version(name) for name in ("jax", "mujoco", "numpy")]
    name = compiler.digest(*robot, str(has_factors), *sources, *versions)
    make = lambda path: path.write_text(program.text_of(read(robot.xml), has_factors), encoding="utf-8")
    return cache.kept(f"{name}.cc", make).read_text(encoding="utf-8")


@functools.cache
def loaded(text: str) -> ctypes.CDLL:
    """The loaded program of a text, compiled if need be; it stays for the process."""
    used = compiler.find() if platform() == "cpu" else compiler.find_cuda()
    return ctypes.CDLL(str(used.build(text)))


@functools.cache
def target(robot: Source, has_factors: bool) -> str:
    """The name by which XLA calls a robot's program: its text's hash, so that JAX's cache of programs serves again."""
    text = text_of(robot, has_factors)
    name = f"fedjax_rl_fused_{compiler.digest(text)}"
    where = "cpu" if platform() == "cpu" else "CUDA"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(loaded(text).step), platform=where)
    return name


def make_fused(model: Model) -> Physics:
    """`model` as generated code, made when it is first stepped: one program without factors, another with them.

    Raises:
      ValueError: the MJCF has something that the generator does not carry; the message names it.
    """
    m = read(model.xml).m
    robot = source(model.xml)
    shapes = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in (m.nq, m.nv, m.nv)]
    sizes = Factors(m.nbody, m.nbody, m.npair, m.nu)

    def init(qpos, qvel):
        return PhysicsState(qpos.astype(jnp.float32), qvel.astype(jnp.float32), jnp.zeros(m.nv, jnp.float32))

    def step(state, ctrl, factors=None):
        own = [] if factors is None else [jnp.broadcast_to(f, (n,)) for f, n in zip(factors, sizes, strict=True)]
        call = jax.ffi.ffi_call(target(robot, factors is not None), shapes, vmap_method="broadcast_all")
        inputs = [jnp.asarray(x, jnp.float32) for x in (*state, ctrl, *own)]
        return PhysicsState(*call(*inputs, substeps=np.int32(model.frame_skip)))

    return Physics(init, step)
