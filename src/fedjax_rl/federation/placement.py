"""Where clients and members run: the only file that names devices, meshes and processes.

A program for a mesh is one `shard_map` around the whole round. Every device holds the same state and does the server's
work itself; only `map_clients` divides: each device takes its share of the clients, and one all-gather brings their
results together in the clients' order. So sharded and unsharded runs add up the same numbers in the same order, and
nothing inside a rollout ever waits for another device.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_rl.host import agreement, lifeline
from fedjax_rl.host.exits import ConfigError, ProcessLost
from fedjax_rl.types import Array, Tree

CLIENTS, MEMBERS = "clients", "members"


def make_mesh(members: int = 1) -> Mesh | None:
    """All devices of all processes: as many rows as `members` can fill evenly, clients along them. None for one."""
    count = jax.device_count()
    rows = math.gcd(members, count)
    if count == 1:
        return None
    return jax.make_mesh((rows, count // rows), (MEMBERS, CLIENTS), axis_types=(AxisType.Auto,) * 2)


def jit(fn: Callable, mesh: Mesh | None, *, by_member: bool = False, **options: Any) -> jax.stages.Wrapped:
    """`jax.jit` of `fn` on the mesh; arguments and results are whole on every device.

    With `by_member`, the leading axis of all arguments and results is that of the members, whom the mesh's rows share.
    Without a mesh this is `jax.jit`.
    """
    if mesh is None:
        return jax.jit(fn, **options)
    spec = P(MEMBERS) if by_member else P()

    @functools.wraps(fn)
    def on_mesh(*args):
        return jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*args)

    whole = NamedSharding(mesh, P())
    return jax.jit(on_mesh, in_shardings=whole, out_shardings=whole, **options)


def map_clients(fn: Callable, *, num_broadcast: int = 0) -> Callable:
    """`fn` mapped over the leading axis of every argument but the first `num_broadcast`, which all clients share.

    Outside `jit` on a mesh this is one `vmap`. There, every device maps its share of the rows, whose number is filled
    up with repetitions of the last one; they are cut off before anybody sees them.
    """

    def mapped(*args):
        shared, rows = args[:num_broadcast], args[num_broadcast:]
        each = jax.vmap(fn, in_axes=(None,) * num_broadcast + (0,) * len(rows))
        devices = dict(jax.sharding.get_abstract_mesh().shape).get(CLIENTS, 1)
        if devices == 1:
            return each(*args)
        count = jax.tree.leaves(rows)[0].shape[0]
        share = -(-count // devices)
        mine = jnp.minimum(jax.lax.axis_index(CLIENTS) * share + jnp.arange(share), count - 1)
        results = each(*shared, *jax.tree.map(lambda x: x[mine], rows))
        return jax.tree.map(lambda x: x[:count], _gather(results))

    return mapped


def whole(tree: Tree, mesh: Mesh | None) -> Tree:
    """Arrays of this process, the same in all, held by every device of the mesh."""
    if mesh is None:
        return tree
    raw = jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree)
    return jit(lambda rows: jax.tree.map(_typed_as, rows, tree), mesh)(raw)


def ask_cluster(timeout: int) -> tuple[str, int, int, Any]:
    """What Slurm, Open MPI, GKE or a TPU pod says of this process's place.

    Returns:
      HOST:PORT of process 0, how many processes there are, which one this is, and its devices (None for all).

    Raises:
      ConfigError: the cluster does not tell.
    """
    from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize() asks as well

    asked = os.environ.get("JAX_COORDINATOR_ADDRESS")
    found = ClusterEnv.auto_detect_unset_distributed_params(asked, None, None, None, None, timeout)
    address, count, number, devices = found
    if address is None or count is None or number is None:
        needed = "--coordinator HOST:PORT, --num-processes and --process-id"
        raise ConfigError(f"--coordinator auto: this is no cluster that JAX knows; give {needed}")
    return address, count, number, devices


def start_processes() -> None:
    """Start JAX in processes that have met, before any device is touched.

    Who is gone is the lifeline's affair; JAX, which would end the others with a C++ stack, is told to wait for ever.

    Raises:
      ProcessLost: JAX cannot start.
    """
    line = lifeline.joined()
    assert line is not None, "the processes meet before JAX starts in them"
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, which is ours
    for_ever = 7 * 24 * 3600  # s
    service = f"127.0.0.1:{line.service}"
    try:
        jax.distributed.initialize(
            service,
            line.count,
            line.number,
            line.devices,
            coordinator_bind_address=service,
            heartbeat_timeout_seconds=for_ever,
            shutdown_timeout_seconds=for_ever,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ProcessLost(f"JAX cannot start in process {line.number} of {line.count}: {reason[0]}") from None


def same_devices() -> None:
    """Compare the kind of the processes' devices, which decides the last digits.

    Raises:
      ConfigError: in all of them, when one has another.
    """
    agreement.same({"device": jax.local_devices()[0].device_kind})


def settings() -> dict[str, Any]:
    """What of JAX's settings may decide numbers or how processes talk, and is not pinned (numerics.py)."""
    names = ("jax_platforms", "jax_default_matmul_precision", "jax_cpu_collectives_implementation")
    flags = os.environ.get("XLA_FLAGS", "").split()
    local = ("--xla_dump", "--xla_force_host_platform_device_count")  # each process may have its own
    return {
        **{name: getattr(jax.config, name) for name in names},
        "XLA_FLAGS": " ".join(flag for flag in flags if not flag.startswith(local)),
    }


def is_first() -> bool:
    """Is this the process that writes files and talks to people?"""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """The largest of all processes' values; waits for all of them."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def agree_to_end(signal_number: int) -> int:
    """`agree`, on the signal that ends all processes; 0 for none."""
    number = agree(signal_number)
    if number:
        lifeline.all_end()
    return number


def _gather(rows: Tree) -> Tree:
    """Every device's rows [m, ...], one after the other on all devices: one collective for each type of number."""
    leaves, treedef = jax.tree.flatten(rows)
    raw = [jax.random.key_data(x) if _is_key(x) else x for x in leaves]
    sizes = [math.prod(x.shape[1:]) for x in raw]
    for dtype in {x.dtype: None for x in raw}:
        places = [i for i, x in enumerate(raw) if x.dtype == dtype]
        columns = jnp.concatenate([raw[i].reshape(len(raw[i]), sizes[i]) for i in places], axis=1)
        whole = jax.lax.all_gather(columns, CLIENTS, tiled=True)
        parts = jnp.split(whole, np.cumsum([sizes[i] for i in places])[:-1], axis=1)
        for i, part in zip(places, parts, strict=True):
            raw[i] = part.reshape(len(whole), *raw[i].shape[1:])
    return jax.tree.unflatten(treedef, [_typed_as(x, like) for x, like in zip(raw, leaves, strict=True)])


def _is_key(x: Array) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _typed_as(x: Array, like: Array) -> Array:
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if _is_key(like) else x
