"""P5: the same federation on 1, 2, 4, ... devices. On forced CPU devices: equality and counts, not speed."""

import re

import jax
import numpy as np

from fedjax_rl.bench.rows import Row, median, row, timed
from fedjax_rl.bench.run import configs
from fedjax_rl.config import ConfigError
from fedjax_rl.federation import placement
from fedjax_rl.runs import arrays, assemble

COLLECTIVE = re.compile(r"= .*? (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(")
PER_DEVICE = 8  # clients a device in weak scaling


def scaling(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """Rows for strong (40 clients in all) and weak scaling (8 a device) over the first 1, 2, 4, ... devices.

    On a CPU, start it with JAX_NUM_CPU_DEVICES=8 in the environment; episodes are few there.
    """
    counts = sizes or [2**i for i in range(10) if 2**i <= jax.device_count()]
    if max(counts) > jax.device_count():
        raise ConfigError(f"--sizes: at most the {jax.device_count()} devices here (JAX_NUM_CPU_DEVICES=8 makes 8)")
    rows = []
    for kind in ("strong", "weak"):
        for devices in counts:
            rows.append(one(env, backend, kind, devices, repeats))
    return rows


def one(env: str, backend: str, kind: str, devices: int, repeats: int) -> Row:
    """One round on so many devices beside the same round on one."""
    on_cpu = jax.default_backend() == "cpu"
    clients = 40 if kind == "strong" else PER_DEVICE * devices
    [made] = configs(
        env, backend, "paper", [0], num_clients=320, clients_per_round=clients, episodes=2 if on_cpu else 20
    )
    results = {}
    for name, mesh in (("one", None), ("many", mesh_of(devices))):
        group = assemble.make_group([made])._replace(mesh=mesh)
        states, alive = assemble.initial_states(group), np.ones(1, bool)
        draws = arrays.state_hash(states)
        step = placement.jit(lambda *args, group=group: assemble.round_of(group, *args), mesh, by_member=True)
        text = step.lower(states, alive, group.values).compile().as_text() or ""
        after, _, metrics = step(states, alive, group.values)
        seconds = [timed(step, after, alive, group.values)[0] for _ in range(repeats)]
        compiled = step._cache_size()  # type: ignore[attr-defined]  # JAX has no public count
        results[name] = (draws, arrays.flatten(after.server.shared), metrics, text, median(seconds), compiled)
    apart = [
        np.linalg.norm(value - results["many"][1][key]) / np.linalg.norm(value)
        for key, value in results["one"][1].items()
        if np.linalg.norm(value) > 0
    ]
    first = [float(results[name][2]["train/return/adapt_0"][0]) for name in results]
    figures = {
        "draws_equal": results["one"][0] == results["many"][0],
        "return_before_adaptation": first,
        "parameters_apart": float(max(apart)),
        "collectives": len(COLLECTIVE.findall(results["many"][3])),
        "compilations": results["many"][5],
    }
    if not on_cpu:
        figures |= {"round_s_one": results["one"][4], "round_s": results["many"][4]}
    return row("P5", kind=kind, env=env, on_devices=devices, clients_per_round=clients, **figures)


def mesh_of(devices: int):
    """The first so many devices as one row of clients; None for one."""
    if devices == 1:
        return None
    axes, types = (placement.MEMBERS, placement.CLIENTS), (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((1, devices), axes, axis_types=types, devices=jax.devices()[:devices])
