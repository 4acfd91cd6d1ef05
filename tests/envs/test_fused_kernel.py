"""The compiled programs: numbers against C MuJoCo, and bits that depend on a simulation's own inputs alone."""

import ctypes
import hashlib
import os
import shutil

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from _fused import (
    ROBOTS,
    Program,
    converged_after,
    dyadic_states,
    plain,
    same_bits,
    under_constraints,
)
from _reference import FRAME_SKIP, load, relative_error

from fedjax_rl.envs import ant, dynamics, half_cheetah
from fedjax_rl.envs.mujoco_env import load_asset
from fedjax_rl.envs.physics import Factors
from fedjax_rl.envs.physics.fused import compiler, constants, engine, robot, step
from fedjax_rl.envs.physics.fused.scalar import Scalar, raw

MODELS = {"half_cheetah": half_cheetah.half_cheetah_model, "ant": ant.ant_model}
NIGHTLY_ANT = ["half_cheetah", pytest.param("ant", marks=pytest.mark.nightly)]  # its program with factors takes long
# Five times the largest errors of |v - v_C| / max(|v_C|, 1) that were measured: a step, an environment step, a step
# with factors of one's own.
BOUND = {
    "half_cheetah": {"step": 5 * 1.3e-5, "environment step": 5 * 2.2e-4, "factors": 5 * 1.6e-5},
    "ant": {"step": 5 * 2.0e-6, "environment step": 5 * 3.2e-6, "factors": 5 * 8.0e-7},
}
# SHA-256 of all bits after 100 physics steps of 64 simulations, for every compiler, width and processor with FMA. Other
# numbers in the MJCFs, or in what MuJoCo's compiler makes of them, change it; nothing else may.
GOLDEN = {
    "half_cheetah": "5e30832a541f6bae7406b45f2a88567f58f061100ef7e6d94c071456fb8754bb",
    "ant": "6f7fba0f9c28bfa13b137ba30dc5d463bf3d8907a86cd7566c1daafc9a52a249",
}


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ROBOTS)
def test_a_step_and_an_environment_step_against_converged_c(name, count):
    """From states along rollouts, all of them under constraints."""
    rows = under_constraints(name, count)
    model, _ = load(name, converged=True)
    for kind, steps in (("step", 1), ("environment step", FRAME_SKIP[name])):
        error = relative_error(plain(name)(rows, steps)[1], converged_after(model, rows, steps))
        assert error.max() <= BOUND[name][kind]
        assert np.median(error) <= 1e-6


def draw_factors(model, rng) -> list[np.ndarray]:
    """Factors of the dynamics family's ranges: [nbody], [nbody], [npair], [nu]."""
    mass = np.concatenate([[1.0], dynamics.LIMB ** rng.uniform(-1, 1, model.nbody - 1)])
    friction = np.full(model.npair, dynamics.GROUND ** rng.uniform(-1, 1))
    return [np.float32(x) for x in (mass, mass, friction, dynamics.LIMB ** rng.uniform(-1, 1, model.nu))]


@pytest.mark.parametrize("name", NIGHTLY_ANT)
def test_64_robots_of_their_own_against_c_after_mj_setConst(name):
    rows, rng = under_constraints(name, 512), np.random.default_rng(1)
    drawn, after = [], []
    for k in range(64):
        model, data = load(name, converged=True)
        factors = draw_factors(model, rng)
        model.body_mass[:] *= factors[0]
        model.body_inertia[:] *= factors[1][:, None]
        model.pair_friction[:] *= factors[2][:, None]
        model.actuator_gear[:] *= factors[3][:, None]
        mujoco.mj_setConst(model, data)
        after.append(converged_after(model, [x[8 * k : 8 * k + 8] for x in rows], 1))
        drawn += [factors] * 8
    own = Program(engine.text_of(engine.source(load_asset(f"{name}.xml")), True))
    reference = np.concatenate(after)
    error = relative_error(own([*rows, *map(np.stack, zip(*drawn, strict=True))], 1)[1], reference)
    assert error.max() <= BOUND[name]["factors"]
    assert np.percentile(relative_error(plain(name)(rows, 1)[1], reference), 90) > 1e-3  # without them


@pytest.mark.parametrize("name", ROBOTS)
def test_100_steps_have_the_golden_bits(name):
    bits = b"".join(x.tobytes() for x in plain(name)(dyadic_states(name, 64), 100))
    assert hashlib.sha256(bits).hexdigest() == GOLDEN[name]


@pytest.mark.parametrize("name", ROBOTS)
def test_a_control_that_is_not_a_number_shows(name):
    """It is no full drive backwards, which a minimum and a maximum might make of it."""
    rows = [x.copy() for x in dyadic_states(name, 16)]
    rows[3][5, 0] = np.nan
    finite = np.isfinite(plain(name)(rows, 1)[1]).all(1)
    assert not finite[5] and finite[np.arange(16) != 5].all()


@pytest.mark.parametrize("name", ROBOTS)
def test_order_neighbours_and_number_do_not_matter(name):
    """Permuted, cut out, alone, and through XLA with its threads in batches of 1, 15, 16, 17 and 497."""
    rows, run, skip = dyadic_states(name, 500), plain(name), FRAME_SKIP[name]
    base = run(rows, skip)
    assert all(np.isfinite(x).all() for x in base)
    order = np.random.default_rng(0).permutation(500)
    assert same_bits(run([x[order] for x in rows], skip), [x[order] for x in base])
    physics = engine.make_fused(MODELS[name]())

    @jax.jit
    @jax.vmap
    def through_xla(q, v, ctrl):
        return physics.step(physics.init(q, v), ctrl)

    for n in (1, 15, 16, 17, 497):
        cut = slice(3, 3 + n)
        after = through_xla(rows[0][cut], rows[1][cut], rows[3][cut])
        assert same_bits(map(np.asarray, after), [x[cut] for x in base])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("name", ROBOTS)
def test_a_lane_that_diverges_shows_and_leaves_its_neighbours_alone(name, bad):
    rows, run = dyadic_states(name, 64), plain(name)
    base, spoilt = run(rows, 20), [x.copy() for x in rows]
    spoilt[1][5::16, 3], spoilt[0][6::16, 8] = bad, bad
    after = run(spoilt, 20)
    good = np.ones(64, bool)
    good[5::16] = good[6::16] = False
    assert same_bits([x[good] for x in after], [x[good] for x in base])
    finite = np.isfinite(after[0]).all(1) & np.isfinite(after[1]).all(1)
    assert not finite[~good].any()


def others() -> list[compiler.Compiler]:
    """Every compiler of this machine at every width that its processor has, but the one and the width in use."""
    programs, found = set(), []
    for command in compiler.candidates():
        path = os.path.realpath(shutil.which(command[0]) or "")
        if not os.path.isfile(path) or (path, command[1:]) in programs:
            continue
        programs.add((path, command[1:]))
        widths = [width for width, needed in compiler._NEEDS.items() if needed <= compiler.cpu_flags()]
        found += [compiler.Compiler(command, " ".join(command), width) for width in widths]
    used = compiler.find()
    return [x for x in found if (x.command, x.width) != (used.command, used.width)]


@pytest.mark.parametrize("name", NIGHTLY_ANT)
def test_all_compilers_and_widths_give_the_same_bits(name):
    rows, text = dyadic_states(name, 64), engine.text_of(engine.source(load_asset(f"{name}.xml")), False)
    base = plain(name)(rows, 100)
    if not others():
        pytest.skip("one compiler, one width")
    for other in others():
        assert same_bits(Program(text, other)(rows, 100), base), other


@pytest.mark.parametrize("name", NIGHTLY_ANT)
def test_a_thread_with_a_simulation_to_itself_gives_the_same_bits(name):
    """The text as nvcc reads it, W = 1, compiled for this processor."""
    rows, text = dyadic_states(name, 64), engine.text_of(engine.source(load_asset(f"{name}.xml")), False)
    assert same_bits(Program(text, compiler.find()._replace(width=1))(rows, 100), plain(name)(rows, 100))


@pytest.mark.parametrize("has_factors", [False, True])
@pytest.mark.parametrize("name", NIGHTLY_ANT)
def test_nvcc_compiles_the_text(name, has_factors):
    try:
        nvcc = compiler.find_cuda("sm_90")
    except compiler.Unavailable as why:
        pytest.skip(str(why))
    library = ctypes.CDLL(str(nvcc.build(engine.text_of(engine.source(load_asset(f"{name}.xml")), has_factors))))
    assert library.step


@pytest.mark.parametrize("count", [2, pytest.param(16, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ROBOTS)
def test_the_program_is_the_step_that_jax_computes_operation_by_operation(name, count):
    """The emitter: velocities after one step under jax.disable_jit, without a fused product, to 3e-5."""
    rows, made = under_constraints(name, count), robot.read(load_asset(f"{name}.xml"))
    after, own = plain(name)(rows, 1), constants.plain(made)
    with jax.disable_jit():
        for i in range(count):
            state = [[Scalar(jnp.float32(x)) for x in row[i]] for row in rows]
            _, v, _ = step.step(made, *state, own)
            error = relative_error(after[1][i : i + 1], np.float64([[raw(x) for x in v]]))
            assert error[0] <= 3e-5


def test_clients_with_robots_of_their_own_under_nested_vmap():
    """[clients, episodes] in one call have the bits of each alone."""
    physics = engine.make_fused(half_cheetah.half_cheetah_model())
    model, _ = load("half_cheetah")
    rng = np.random.default_rng(4)
    factors = [draw_factors(model, rng) for _ in range(3)]
    factors = Factors(*[jnp.stack(x) for x in zip(*factors, strict=True)])
    factors = factors._replace(pair_friction=factors.pair_friction[:, 0])  # one number for all pairs
    qpos, qvel, _, ctrl = [x.reshape(3, 5, -1) for x in dyadic_states("half_cheetah", 15)]

    def both(q, v, u, f):
        return physics.step(physics.step(physics.init(q, v), u, f), u, f)

    together = jax.jit(jax.vmap(jax.vmap(both, (0, 0, 0, None))))(qpos, qvel, ctrl, factors)
    one = jax.jit(both)
    for client, episode in np.ndindex(3, 5):
        own = jax.tree.map(lambda x: x[client], factors)
        alone = one(qpos[client, episode], qvel[client, episode], ctrl[client, episode], own)
        assert same_bits(map(np.asarray, alone), [np.asarray(x[client, episode]) for x in together])
    apart = np.abs(
        np.asarray(together.qvel)
        - np.asarray(jax.vmap(jax.vmap(lambda q, v, u: both(q, v, u, None)))(qpos, qvel, ctrl).qvel)
    )
    assert apart.max() > 0.1
