"""A state as named arrays on the host, and back."""

import hashlib
from typing import Any

import jax
import numpy as np

from fedjax_rl.host.numerics import PRNG


def flatten(state: Any) -> dict[str, np.ndarray]:
    """The state's arrays on the host by path ("server.shared..."); typed keys as their raw words."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {_name(path): np.asarray(jax.device_get(_raw(leaf))) for path, leaf in leaves}


def unflatten(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """The inverse of `flatten` for a state shaped as `like`; leaves without elements are made anew."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(treedef, [_leaf(arrays, _name(path), leaf) for path, leaf in paths])


def state_hash(state: Any) -> str:
    """sha256 over every leaf's path, type, shape and bytes: equal exactly when two states are equal bit for bit."""
    digest = hashlib.sha256()
    for key, value in sorted(flatten(state).items()):
        digest.update(f"{key} {value.dtype} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def flatten_shapes(like: Any) -> dict[str, np.ndarray]:
    """`flatten` of a state of which only shapes are known; the values are zeros."""
    leaves = jax.tree_util.tree_flatten_with_path(like)[0]
    raw = {_name(path): jax.eval_shape(_raw, leaf) for path, leaf in leaves}
    return {key: np.zeros(leaf.shape, leaf.dtype) for key, leaf in raw.items()}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "state"


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _leaf(arrays: dict[str, np.ndarray], key: str, like: Any) -> Any:
    raw = jax.eval_shape(_raw, like)
    # a copy: the state is donated to the next round, and must not share memory with what orbax read
    value = jax.numpy.array(arrays[key] if key in arrays else np.zeros(raw.shape, raw.dtype))
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(value, impl=PRNG)
    return value
