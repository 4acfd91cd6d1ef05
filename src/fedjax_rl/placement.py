"""Where clients run: the only file that will name devices and meshes. On one device a cohort is one `vmap`."""

from collections.abc import Callable

import jax


def map_clients(fn: Callable, *, num_broadcast: int = 0) -> Callable:
    """`fn` mapped over the leading axis of every argument but the first `num_broadcast`, which all clients share."""

    def mapped(*args):
        return jax.vmap(fn, in_axes=(None,) * num_broadcast + (0,) * (len(args) - num_broadcast))(*args)

    return mapped
