"""What an MJCF may ask for beyond our robots: an engine steps it as C MuJoCo does, or refuses it by its name."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from fedjax_rl.envs.physics import Model, make_physics

PLAIN = """
<mujoco>
  <worldbody>
    <body>
      <joint name="knee" axis="0 1 0"/>
      <geom size="0.1" pos="0.3 0 0" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator><motor joint="knee" gear="60"/></actuator>
</mujoco>
"""
MOTOR, JOINT = '<motor joint="knee" gear="60"/>', 'name="knee"'
STATE = {
    "activations": (MOTOR, '<general joint="knee" gear="60" dyntype="filter" dynprm="0.02"/>'),
    "delays": (MOTOR, '<motor joint="knee" gear="60" delay="0.01" nsample="8"/>'),
    "plastic joint springs": (JOINT, f'{JOINT} stiffness="5" springyield="0.02"'),
}
FORCES = {
    "a polynomial joint damping": (JOINT, f'{JOINT} damping="0.1 2 3"'),
    "a polynomial joint stiffness": (JOINT, f'{JOINT} stiffness="1 20 30"'),
    "actuator armature": (MOTOR, '<motor joint="knee" gear="60" armature="2"/>'),
    "actuator damping": (MOTOR, '<motor joint="knee" gear="60" damping="2"/>'),
    "a polynomial actuator damping": (MOTOR, '<motor joint="knee" gear="60" damping="2 1"/>'),
    "geom surfacevel": ("<body>", '<geom type="plane" size="1 1 1" surfacevel="1 0 0 0 0 0"/><body>'),
}


def changed(old: str, new: str) -> str:
    assert PLAIN.count(old) == 1
    return PLAIN.replace(old, new)


@pytest.mark.parametrize("backend", ["native", "mjx", "fused"])
@pytest.mark.parametrize("feature", STATE)
def test_state_that_no_environment_carries_is_refused_by_every_engine(feature, backend):
    with pytest.raises(ValueError, match=f"no engine carries state beyond .*{feature}"):
        make_physics(Model(changed(*STATE[feature]), 1), backend)


@pytest.mark.parametrize("feature", FORCES)
def test_forces_that_mjx_passes_over_are_refused_and_native_has_them(feature):
    xml = changed(*FORCES[feature])
    with pytest.raises(ValueError, match=f"MJX does not carry {feature}; choose the backend native"):
        make_physics(Model(xml, 1), "mjx")
    model, physics = mujoco.MjModel.from_xml_string(xml), make_physics(Model(xml, 1), "native")
    step = jax.jit(physics.step)
    for _ in range(2):  # the second episode in the place of the first
        data = mujoco.MjData(model)
        state = physics.init(jnp.asarray(data.qpos), jnp.asarray(data.qvel))
        for _ in range(20):
            data.ctrl[:] = 1
            mujoco.mj_step(model, data)
            state = step(state, jnp.ones(model.nu))
        np.testing.assert_allclose(state.qpos, data.qpos, rtol=1e-6)


def test_bodies_that_sleep_are_refused_when_the_engine_is_made():
    with pytest.raises(ValueError, match="sleep"):
        make_physics(Model(changed("<worldbody>", '<option><flag sleep="enable"/></option><worldbody>'), 1), "native")


@pytest.mark.parametrize("backend", ["native", "mjx", "fused"])
def test_a_warning_of_mujocos_leaves_no_log_where_the_user_stands(backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mujoco.set_mju_user_warning(None)  # MuJoCo's own handler
    make_physics(Model(changed("<worldbody>", '<compiler settotalmass="14"/><worldbody>'), 1), backend)
    assert not [*tmp_path.iterdir()]
