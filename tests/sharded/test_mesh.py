"""A federation on a mesh of forced CPU devices is the federation on one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from contracts.quadratic import federation, make
from contracts.test_contract import KINDS, assert_same
from fedjax_rl import config
from fedjax_rl.config import presets
from fedjax_rl.federation import attacks, compress, placement, robust, selection
from fedjax_rl.federation.clock import Schedule
from fedjax_rl.federation.exchange import Wires
from fedjax_rl.federation.times import Pace
from fedjax_rl.host import registry
from fedjax_rl.runs import arrays, assemble
from fedjax_rl.types import Attack
from test_asynchronous import asynchronous

COLLECTIVE = re.compile(r"= .*? (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(")


def mesh_of(rows, columns):
    devices = jax.devices()[: rows * columns]
    axes = (placement.MEMBERS, placement.CLIENTS)
    return jax.make_mesh((rows, columns), axes, axis_types=(AxisType.Auto,) * 2, devices=devices)


def group(env, algorithm="fmrl", seeds=(0,), **values):
    layers = (presets.preset("tiny", algorithm, env), {"env": env, "clients_per_round": 3, **values})
    return assemble.make_group([config.build(algorithm, *layers, {"seed": s}) for s in seeds])


def one_round(some, mesh):
    """(state before, compiled round) of a group on a mesh, None for one device."""
    on_mesh = some._replace(mesh=mesh)
    states, alive = assemble.initial_states(on_mesh), np.ones(len(some.configs), bool)
    step = placement.jit(lambda *args: assemble.round_of(some, *args), mesh, by_member=True)
    return states, step.lower(states, alive, some.values).compile(), (alive, some.values)


def test_the_mesh_takes_every_device_and_members_fill_its_rows():
    assert jax.device_count() == 8
    assert placement.make_mesh().devices.shape == (1, 8)
    assert placement.make_mesh(12).devices.shape == (4, 2)


CASES = [
    pytest.param(name, 8, marks=() if name in KINDS else pytest.mark.nightly) for name in registry.OWN["algorithm"]
]


@pytest.mark.parametrize(("name", "devices"), [*CASES, pytest.param("fmrl", 4, marks=pytest.mark.nightly)])
@pytest.mark.usefixtures("x64")
def test_sharded_equals_unsharded(name, devices):
    """M = 5 of N = 6 fills neither 4 nor 8 devices evenly."""
    simulation, mesh = federation(make(name), n=6, m=5), mesh_of(1, devices)
    key = jax.random.key(3)
    plain, sharded = simulation.init(key), placement.jit(simulation.init, mesh)(key)
    assert_same(plain, sharded, 1e-15)
    round, round_on_mesh = jax.jit(simulation.round), placement.jit(simulation.round, mesh)
    for _ in range(2):
        (plain, metrics), (sharded, metrics_of_mesh) = round(plain), round_on_mesh(sharded)
    assert_same(plain, sharded, 1e-12)
    assert_same(metrics, metrics_of_mesh, 1e-12)


@pytest.mark.usefixtures("x64")
def test_what_is_not_sent_and_who_lies_are_those_of_one_device():
    """Poisson's 11 places on four devices, memories of what was not sent, forged messages, a rule."""
    wires = Wires(compress.compressor("top_k", ratio=0.4, bits=8, rank=1).transform)
    attack = Attack(0.3, attacks.forge("noise", 2.0, robust.median()))
    options = {"select": selection.poisson, "wires": wires, "attack": attack, "aggregator": robust.median()}
    simulation, mesh = federation(make("fmrl"), n=20, m=5, dropout=0.2, **options), mesh_of(1, 4)
    key = jax.random.key(3)
    plain, sharded = simulation.init(key), placement.jit(simulation.init, mesh)(key)
    round, round_on_mesh = jax.jit(simulation.round), placement.jit(simulation.round, mesh)
    for _ in range(3):
        (plain, metrics), (sharded, metrics_of_mesh) = round(plain), round_on_mesh(sharded)
    assert metrics["health/attacked"] > 0 and metrics["who/selected"].shape == (11,)
    assert_same(plain, sharded, 1e-12)
    assert_same(metrics, metrics_of_mesh, 1e-12)


@pytest.mark.usefixtures("x64")
def test_the_lanes_of_a_schedule_are_shared_among_devices():
    """Six lanes on four devices, each lane with what its client was sent."""
    schedule = Schedule(12, 8, 2, 3, next="idle")
    simulation, mesh = asynchronous(make("fmrl"), schedule, Pace("linear", noise="shifted")), mesh_of(1, 4)
    key = jax.random.key(3)
    plain, sharded = simulation.init(key), placement.jit(simulation.init, mesh)(key)
    round, round_on_mesh = jax.jit(simulation.round), placement.jit(simulation.round, mesh)
    for _ in range(3):
        (plain, metrics), (sharded, metrics_of_mesh) = round(plain), round_on_mesh(sharded)
    assert_same(plain, sharded, 1e-12)
    assert_same(metrics, metrics_of_mesh, 1e-12)


@pytest.mark.parametrize("count", [1, 7, 8, 9])
def test_rows_come_back_in_order_whatever_their_types(count):
    def fn(scale, x, key, number, nothing):
        del nothing
        noise = jax.random.normal(key, (3,))
        sums = jnp.stack([x.sum(), noise.sum()])
        return {
            "f": scale * x + noise,
            "s": sums,
            "key": key,
            "int": number,
            "bool": x > 0,
            "empty": jnp.zeros((0,), jnp.int8),
        }

    keys = jax.random.split(jax.random.key(0), count)
    x = np.arange(3.0 * count, dtype=np.float32).reshape(count, 3) - count
    args = (np.float32(2.0), x, keys, np.arange(count), np.zeros((count, 0), np.float32))
    mapped = placement.map_clients(fn, num_broadcast=1)
    assert_same(jax.jit(mapped)(*args), placement.jit(mapped, mesh_of(1, 8))(*args), 1e-6)


def test_the_one_collective_of_a_round_is_the_gathering_of_messages():
    """Not one inside a rollout or a local step, and the server's mean needs none."""
    _, program, _ = one_round(group("navigation", "fedavg"), mesh_of(1, 4))
    text = program.as_text()
    assert COLLECTIVE.findall(text) == ["all-gather"]
    assert COLLECTIVE.findall(text[text.index("ENTRY") :]) == ["all-gather"]  # outside every loop


@pytest.mark.nightly
def test_an_mjx_rollout_has_no_collective():
    some = group("half_cheetah/direction", backend="mjx", episodes=1)
    state = jax.eval_shape(some.run.simulation.init, jax.random.key(0))

    def returns(params, tasks, keys):
        sample = lambda params, task, key: some.run.problem.sample(params, task, key)[1].returned
        return placement.map_clients(sample, num_broadcast=1)(params, tasks, keys)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
    program = placement.jit(returns, mesh_of(1, 4)).lower(state.server.shared, state.tasks, keys).compile()
    assert COLLECTIVE.findall(program.as_text()) == ["all-gather"]  # the returns' own, after the last step


@pytest.mark.parametrize("backend", ["native", "fused"])
def test_physics_of_the_host_serves_several_devices_and_members(backend):
    """Two members on two rows of two devices: four calls at a time; the draws are those of one device."""
    little = {"episodes": 1, "hidden": (4,), "local_steps": 1, "order": "first"}
    some = group("half_cheetah/direction", seeds=(0, 5), backend=backend, **little)
    plain, program, rest = one_round(some, None)
    sharded, program_of_mesh, _ = one_round(some, mesh_of(2, 2))
    assert arrays.state_hash(plain) == arrays.state_hash(sharded)
    (after, _, metrics), (after_mesh, _, metrics_of_mesh) = program(plain, *rest), program_of_mesh(sharded, *rest)
    # before adaptation nothing but physics and noise: equal up to the order of sums over a matrix product's columns
    for name in ("train/return/adapt_0", "train/return/adapt_1"):
        np.testing.assert_allclose(metrics[name], metrics_of_mesh[name], rtol=2e-3)
    flat, flat_of_mesh = arrays.flatten(after.server.shared), arrays.flatten(after_mesh.server.shared)
    for name, value in flat.items():
        assert np.linalg.norm(value - flat_of_mesh[name]) <= 1e-2 * np.linalg.norm(value), name
