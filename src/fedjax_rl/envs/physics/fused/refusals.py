"""What the generator cannot carry, refused by the name that the MJCF has for it, when the environment is made."""

import mujoco
import numpy as np

from fedjax_rl.envs.physics.features import features, refuse_state

_J, _G = mujoco.mjtJoint, mujoco.mjtGeom

_OPTIONS_MUST_BE = {
    "integrator": (mujoco.mjtIntegrator.mjINT_EULER, "option integrator other than Euler"),
    "density": (0, "option density (fluid forces)"),
    "viscosity": (0, "option viscosity (fluid forces)"),
    "impratio": (1, "option impratio other than 1"),
    "noslip_iterations": (0, "option noslip_iterations"),
    "disableflags": (0, "option flag (disable)"),
    "enableflags": (0, "option flag (enable)"),
    "disableactuator": (0, "option actuatorgroupdisable"),
}


def why_not(xml: str) -> str:
    """What of an MJCF the generated step would not have, in one line; "" where it has all."""
    try:
        refuse(mujoco.MjModel.from_xml_string(xml))
    except ValueError as why:
        return str(why)
    return ""


def refuse(m: mujoco.MjModel) -> None:
    """Raise ValueError naming the first feature of the model that the generated step would not have."""
    refuse_state(m)
    for found in _refusals(m):
        raise ValueError(f"fused physics does not carry {found}; choose the backend native")


def _refusals(m: mujoco.MjModel):
    yield from features(m)
    for field, (value, feature) in _OPTIONS_MUST_BE.items():
        if getattr(m.opt, field, value) != value:
            yield feature
    yield from _tree_refusals(m)
    yield from _contact_refusals(m)
    for u in range(m.nu):
        on_joint = m.actuator_trntype[u] == mujoco.mjtTrn.mjTRN_JOINT
        if not on_joint or _J(m.jnt_type[m.actuator_trnid[u, 0]]) not in (_J.mjJNT_HINGE, _J.mjJNT_SLIDE):
            yield "actuator on anything but a hinge or slide joint"
        if m.actuator_gaintype[u] != mujoco.mjtGain.mjGAIN_FIXED or m.actuator_gainprm[u, 0] != 1:
            yield "actuator gain other than a motor's"
    rows = [(m.jnt_solref[j], m.jnt_solimp[j]) for j in np.flatnonzero(m.jnt_limited)]
    for solref, solimp in rows + list(zip(m.pair_solref, m.pair_solimp, strict=True)):
        if solref[0] <= 0 or solref[1] <= 0:
            yield "solref that is not positive (stiffness and damping given directly)"
        if solimp[4] != 2:
            yield "solimp with a power other than 2"


def _tree_refusals(m: mujoco.MjModel):
    if np.sum(m.body_parentid[1:] == 0) != 1:
        yield "more than one body tree in the worldbody"
    if np.any(np.ptp(m.jnt_range, axis=1)[m.jnt_limited] < 2 * m.jnt_margin[m.jnt_limited]):
        yield "a joint's range narrower than twice its margin, where both ends push at once"
    for j in range(m.njnt):
        body, kind = m.jnt_bodyid[j], m.jnt_type[j]
        before = m.jnt_type[m.body_jntadr[body] : j]
        if kind == _J.mjJNT_BALL:
            yield "ball joints"
        if kind == _J.mjJNT_SLIDE and (m.body_parentid[body] != 0 or np.any(before != _J.mjJNT_SLIDE)):
            yield "slide joints other than the root's first ones"
        if kind == _J.mjJNT_FREE and m.jnt_stiffness[j]:
            yield "stiffness of a free joint"


def _contact_refusals(m: mujoco.MjModel):
    collide = (m.geom_contype[:, None] & m.geom_conaffinity[None]) != 0
    if np.any(collide & ~np.eye(m.ngeom, dtype=bool)):
        yield "contype and conaffinity (contacts must be listed as pairs)"
    if np.any(m.pair_dim != 3):
        yield "pair condim other than 3"
    if np.any(m.pair_friction[:, 0] != m.pair_friction[:, 1]):
        yield "pair friction that differs by direction"
    for floor, geom in zip(m.pair_geom1, m.pair_geom2, strict=True):
        level = np.allclose(m.geom_quat[floor][1:3], 0) and m.geom_bodyid[floor] == 0
        if m.geom_type[floor] != _G.mjGEOM_PLANE or not level:
            yield "a pair whose first geom is not a level floor (plane) of the worldbody"
        elif m.body_weldid[m.geom_bodyid[geom]] and m.body_invweight0[m.geom_bodyid[geom], 0] < 1e-15:
            yield "a pair with a body whose centre of mass nothing moves"
        elif _G(m.geom_type[geom]) not in (_G.mjGEOM_SPHERE, _G.mjGEOM_CAPSULE):
            yield "a pair of the floor with anything but a sphere or capsule"
    if m.npair and m.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL and not _planar(m):
        yield 'cone="pyramidal" for a robot that leaves the plane of x and z, or has a capsule aslant to it'


def _planar(m: mujoco.MjModel) -> bool:
    """Whether every joint moves in the plane of x and z: hinges about y, slides across it, at qpos0 and so always.

    And every capsule that may touch the floor lies in the plane or across it: its axis is a tangent of the contact.
    """
    data = mujoco.MjData(m)
    mujoco.mj_kinematics(m, data)
    off = {_J.mjJNT_HINGE: (0, 2), _J.mjJNT_SLIDE: (1,)}
    kinds = [_J(kind) for kind in m.jnt_type]
    capsules = m.pair_geom2[m.geom_type[m.pair_geom2] == _G.mjGEOM_CAPSULE]
    across = np.abs(data.geom_xmat[capsules, 5])  # of the axis, which is the frame's third
    if not np.all(np.isclose(across, 0, atol=1e-9) | np.isclose(across, 1, atol=1e-9)):
        return False
    return all(k in off and np.allclose(data.xaxis[j, list(off[k])], 0, atol=1e-9) for j, k in enumerate(kinds))
