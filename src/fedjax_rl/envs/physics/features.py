"""What an MJCF can ask for that not every engine carries, by the names that it has there. Without jax."""

from collections.abc import Collection, Iterator

import mujoco
import numpy as np

# A field of mjModel that is zero (or empty) where there is none -> what the MJCF calls what is there otherwise.
FEATURES = {
    "na": "actuator activations (dyntype)",
    "nhistory": "delays (of an actuator or a sensor)",
    "nplastic": "plastic joint springs",
    "neq": "equality constraints",
    "ntendon": "tendons",
    "nflex": "flex",
    "nplugin": "plugins",
    "nmocap": "mocap bodies",
    "body_gravcomp": "gravcomp",
    "dof_frictionloss": "joint frictionloss",
    "dof_dampingpoly": "a polynomial joint damping",
    "jnt_pos": "joint pos (an anchor away from the body's origin)",
    "jnt_stiffnesspoly": "a polynomial joint stiffness",
    "jnt_actfrclimited": "joint actuatorfrcrange",
    "geom_surfacevel": "geom surfacevel",
    "pair_gap": "pair gap",
    "pair_adhesion": "pair adhesion",
    "pair_solreffriction": "pair solreffriction",
    "actuator_forcelimited": "motor forcerange",
    "actuator_armature": "actuator armature",
    "actuator_damping": "actuator damping",
    "actuator_dampingpoly": "a polynomial actuator damping",
    "actuator_biastype": "actuator biastype (a motor has none)",
}
# State beyond positions and speeds. What an environment carries from step to step has no place for it, on any engine.
STATE = ("na", "nhistory", "nplastic")


def features(m: mujoco.MjModel, fields: Collection[str] = tuple(FEATURES)) -> Iterator[str]:
    """The names of the features, of those that the fields stand for, which a model has."""
    return (FEATURES[field] for field in fields if np.any(getattr(m, field, 0)))


def refuse_state(m: mujoco.MjModel) -> None:
    """See that positions and speeds are all that a simulation is, but its warm start.

    Raises:
      ValueError: there is more, such as activations; it would be lost at every step, or be another episode's.
    """
    more = mujoco.mj_stateSize(m, mujoco.mjtState.mjSTATE_FULLPHYSICS) - (1 + m.nq + m.nv)  # 1: the time
    if more:
        what = ", ".join(features(m, STATE)) or "such as a plugin's"
        raise ValueError(f"no engine carries state beyond positions and speeds; the robot has {more} numbers: {what}")
