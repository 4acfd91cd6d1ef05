"""An MJCF with something that the generator does not carry is refused by that thing's name; a plain one is not."""

import mujoco
import numpy as np
import pytest

from fedjax_rl.envs.physics import Model
from fedjax_rl.envs.physics.fused import constants, engine, robot, step
from fedjax_rl.envs.physics.fused.scalar import Scalar

PLAIN = """
<mujoco>
  <option timestep="0.01"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1" pos="0 0 0.25"/>
    <body name="torso" pos="0.1 0 1" euler="0 20 0">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="z" type="slide" axis="0 0 1" damping="0.5"/>
      <joint name="y" type="hinge" axis="0 1 0" range="-40 40" limited="true"/>
      <geom name="ball" type="sphere" size="0.2" pos="0.1 0 0.02"/>
      <body name="welded" pos="0 0 -0.3">
        <geom name="rod" type="capsule" fromto="0 0 0 0.3 0 -0.2" size="0.05"/>
        <body name="leg" pos="0.2 0 -0.2">
          <joint name="knee" axis="0 1 0" ref="10" springref="-5" stiffness="2"/>
          <joint name="ankle" axis="0 1 0" armature="0.1"/>
          <geom name="shin" type="capsule" fromto="0 0 0 0 0 -0.3" size="0.04"/>
        </body>
      </body>
    </body>
  </worldbody>
  <contact>
    <pair name="pair" geom1="floor" geom2="ball"/>
    <pair geom1="floor" geom2="rod" margin="0.02"/>
    <pair geom1="floor" geom2="shin" friction="0.5 0.5 0.01 0 0"/>
  </contact>
  <actuator><motor name="drive" joint="knee" gear="3"/></actuator>
</mujoco>
"""

CHANGES = {
    "actuator biastype": ('<motor name="drive" joint="knee" gear="3"/>', '<position joint="knee"/>'),
    "actuator gain": ('<motor name="drive" joint="knee" gear="3"/>', '<general joint="knee" gainprm="2"/>'),
    "motor forcerange": ('gear="3"', 'forcerange="-1 1" forcelimited="true"'),
    "actuatorfrcrange": ('name="knee"', 'name="knee" actuatorfrcrange="-1 1" actuatorfrclimited="true"'),
    "equality": ("<actuator>", '<equality><joint joint1="knee" joint2="ankle"/></equality><actuator>'),
    "tendons": ("<actuator>", '<tendon><fixed><joint joint="knee" coef="1"/></fixed></tendon><actuator>'),
    "gravcomp": ('name="leg"', 'name="leg" gravcomp="1"'),
    "frictionloss": ('name="knee"', 'name="knee" frictionloss="1"'),
    "joint pos": ('name="knee"', 'name="knee" pos="0.1 0 0"'),
    "mocap": ("<worldbody>", '<worldbody><body mocap="true"><geom size="0.1"/></body>'),
    "integrator": ('timestep="0.01"', 'integrator="RK4"'),
    "density": ('timestep="0.01"', 'density="1"'),
    "viscosity": ('timestep="0.01"', 'viscosity="1"'),
    "impratio": ('timestep="0.01"', 'impratio="2"'),
    "noslip_iterations": ('timestep="0.01"', 'noslip_iterations="2"'),
    r"flag \(disable\)": ("<default>", '<option><flag gravity="disable"/></option><default>'),
    r"flag \(enable\)": ("<default>", '<option><flag energy="enable"/></option><default>'),
    "more than one body tree": ("<worldbody>", '<worldbody><body><joint/><geom size="0.1"/></body>'),
    "ball joints": ('name="ankle" axis="0 1 0"', 'name="ankle" type="ball"'),
    "slide joints": ('name="ankle" axis', 'name="ankle" type="slide" axis'),
    "contype and conaffinity": ('contype="0" conaffinity="0"', 'contype="1" conaffinity="1"'),
    "condim": ('name="pair"', 'name="pair" condim="1"'),
    "friction that differs by direction": ('name="pair"', 'name="pair" friction="1 0.5 0.1 0.1 0.1"'),
    "pair gap": ('name="pair"', 'name="pair" gap="0.01"'),
    "solreffriction": ('name="pair"', 'name="pair" solreffriction="0.02 1"'),
    "level floor": ('type="plane"', 'type="plane" euler="0 10 0"'),
    "anything but a sphere or capsule": ('type="sphere" size="0.2"', 'type="box" size="0.2 0.2 0.2"'),
    "pyramidal": ('name="ankle" axis="0 1 0"', 'name="ankle" axis="1 0 0"'),
    "surfacevel": ('pos="0 0 0.25"', 'surfacevel="1 0 0 0 0 0"'),
    "a polynomial actuator damping": ('gear="3"', 'damping="0 2"'),
    "range narrower than twice its margin": ('range="-40 40"', 'margin="0.8" range="-40 40"'),
    "capsule aslant": ('fromto="0 0 0 0.3 0 -0.2"', 'fromto="0 0 0 0.3 0.1 -0.2"'),
    "solref that is not positive": ('name="pair"', 'name="pair" solref="0.02 0"'),
    "solref that is not": ('name="pair"', 'name="pair" solref="-100 -1"'),
    "solref that": ('name="pair"', 'name="pair" solref="0.5 -1"'),
    "solimp with a power": ('name="pair"', 'name="pair" solimp="0.9 0.95 0.001 0.5 3"'),
}


def test_what_is_carried_steps_like_mujoco():
    """Among it a floor of some height, welded bodies, two hinges a body, springs, a reference angle and a margin."""
    made, model = robot.read(PLAIN), mujoco.MjModel.from_xml_string(PLAIN)
    model.opt.iterations, model.opt.ls_iterations, model.opt.tolerance = 300, 200, 1e-15
    data, rng, rows = mujoco.MjData(model), np.random.default_rng(0), 0
    data.qpos[1] = -0.1
    for _ in range(150):
        data.ctrl[:] = rng.normal(size=1)
        state = [[Scalar(float(x)) for x in row] for row in (data.qpos, data.qvel, data.qacc_warmstart, data.ctrl)]
        q, v, _ = step.step(made, *state, constants.plain(made))
        mujoco.mj_step(model, data)
        np.testing.assert_allclose([x.value for x in q], data.qpos, atol=1e-7)
        np.testing.assert_allclose([x.value for x in v], data.qvel, atol=1e-6)
        rows += data.nefc
    assert rows > 100


@pytest.mark.parametrize("said", CHANGES)
def test_what_is_not_carried_is_named_when_the_environment_is_made(said):
    old, new = CHANGES[said]
    assert PLAIN.count(old) == 1
    xml = PLAIN.replace(old, new)
    mujoco.MjModel.from_xml_string(xml)
    with pytest.raises(ValueError, match=f"fused physics does not carry .*{said}"):
        engine.make_fused(Model(xml, frame_skip=1))


CART = """
<mujoco>
  <option timestep="0.01" cone="elliptic"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1"/>
    <body pos="0 0 0.09">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="z" type="slide" axis="0 0 1"/>
      <geom name="ball" type="sphere" size="0.1"/>
    </body>
  </worldbody>
  <contact><pair name="pair" geom1="floor" geom2="ball"/></contact>
  <actuator><motor joint="x"/></actuator>
</mujoco>
"""
SLIDE = '<joint name="z" type="slide" axis="0 0 1"/>'
NEEDLE = '<inertial pos="0 0 0" mass="8e-5" diaginertia="1e-9 1e-9 1e-10"/>'
PAIR, BALL = 'name="pair"', 'type="sphere" size="0.1"'
FLAT = {"elliptic": "pyramidal"}
# What MuJoCo makes of values at the edge of what it allows, and of robots unlike ours.
EDGES = {
    "a point that cannot move along z": {SLIDE: ""},
    "the same in a pyramid": {SLIDE: "", **FLAT},
    "no friction": {PAIR: f'{PAIR} friction="0 0 0 0 0"'},
    "no friction in a pyramid": {PAIR: f'{PAIR} friction="0 0 0 0 0"', **FLAT},
    "solimp of no width": {PAIR: f'{PAIR} solimp="0.5 0.95 0"'},
    "solimp of a width below 0": {PAIR: f'{PAIR} solimp="0.5 0.95 -1"'},
    "solimp with its middle below": {PAIR: f'{PAIR} solimp="0.1 0.95 0.1 0 2"'},
    "solimp with its middle above": {PAIR: f'{PAIR} solimp="0.1 0.95 0.1 1.5 2"'},
    "a capsule across the plane": {BALL: 'type="capsule" size="0.1 0.2" euler="90 0 0"', **FLAT},
    "a static foot": {
        '<body pos="0 0 0.09">': '<body><geom name="foot" size="0.1"/><body pos="0 0 0.2">',
        'type="slide" axis="1 0 0"': 'axis="0 1 0"',
        SLIDE: "",
        BALL: f'{BALL} pos="0.1 0 -0.11"',
        "</body>": "</body></body>",
        "<contact>": '<contact><pair geom1="floor" geom2="foot"/>',
    },
    "a needle of 80 mg": {
        'type="slide" axis="1 0 0"': 'axis="0 0 1"',
        SLIDE: NEEDLE + f'<body euler="0 45 0"><joint axis="0 1 0"/>{NEEDLE}</body>',
        'joint="x"': 'joint="x" gear="1e-7"',
        f'<pair {PAIR} geom1="floor" geom2="ball"/>': "",
    },
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges_of_what_is_carried_step_like_mujoco(edge):
    xml = CART
    for old, new in EDGES[edge].items():
        assert xml.count(old) == 1
        xml = xml.replace(old, new)
    made, model = robot.read(xml), mujoco.MjModel.from_xml_string(xml)
    model.opt.iterations, model.opt.ls_iterations, model.opt.tolerance = 300, 200, 1e-15
    data = mujoco.MjData(model)
    data.qvel[:], data.ctrl[:] = (5.0, -0.3)[: model.nv], 1.0
    for _ in range(3):
        state = [[Scalar(float(x)) for x in row] for row in (data.qpos, data.qvel, data.qacc_warmstart, data.ctrl)]
        q, v, _ = step.step(made, *state, constants.plain(made))
        mujoco.mj_step(model, data)
        np.testing.assert_allclose([x.value for x in v], data.qvel, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose([x.value for x in q], data.qpos, rtol=1e-6, atol=1e-8)


def test_a_pair_with_a_body_that_cannot_be_pushed_is_refused():
    xml = CART.replace('type="slide" axis="1 0 0"', 'axis="0 1 0"').replace(SLIDE, "")
    with pytest.raises(ValueError, match="a pair with a body whose centre of mass nothing moves"):
        robot.read(xml)
