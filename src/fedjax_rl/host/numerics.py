"""What JAX's settings for the whole process must not decide: how keys are made, and how programs are traced.

Settings come from the environment (JAX_ENABLE_X64=1) or from other code of the process. A run's promises are its own:
keys name their implementation, products of matrices their precision, and `pinned` sets the rest around whatever trains,
evaluates or measures. Where several threads use JAX it holds in the one that enters it.
"""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import jax
import jax.numpy as jnp

from fedjax_rl.host.output import inform

PRNG = "threefry2x32"  # rbg's streams collide under fold_in, and its draws depend on who else is in the batch
PINNED = {
    "threefry_partitionable": True,  # whether draws are those of JAX since 0.5
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    # guards make numbers that are not finite and choose others; to look for one there is `fedjax-rl replay`
    "debug_nans": False,
    "debug_infs": False,
    "disable_jit": False,
    "transfer_guard": "allow",  # decides no number, but would end a run
}


def root_key(seed: int | jax.Array) -> jax.Array:
    """The key of a seed (0 to 2^32 - 1): jax.random.key(seed) as JAX makes it by default.

    From its two words, since the function of JAX adds the offset that JAX_RANDOM_SEED_OFFSET asks for.
    """
    low = jnp.asarray(seed, jnp.uint32)
    return jax.random.wrap_key_data(jnp.stack([jnp.zeros_like(low), low]), impl=PRNG)


@contextmanager
def pinned(quiet: bool = False) -> Iterator[None]:
    """JAX's settings as the promises want them, in this thread; says once what it overrules. Also a decorator."""
    found = {name: getattr(jax.config, f"jax_{name}") for name in PINNED}
    if not quiet:
        _say(tuple(f"JAX_{name.upper()}={value}" for name, value in found.items() if value not in (None, PINNED[name])))
    with ExitStack() as stack:
        for name, value in PINNED.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


@functools.cache
def _say(ignored: tuple[str, ...]) -> None:
    if ignored:
        inform(f"fedjax-rl: ignored, since no result may depend on it: {', '.join(ignored)}")
