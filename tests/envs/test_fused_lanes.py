"""The emitter and the vector operations: small programs against NumPy and JAX, lane by lane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _fused import Program, same_bits
from test_fused_refusals import PLAIN

from fedjax_rl.envs.physics.fused import compiler, program, robot
from fedjax_rl.envs.physics.fused.scalar import (
    Scalar,
    absolute,
    cos,
    if_any,
    maximum,
    minimum,
    raw,
    repeat,
    sin,
    sqrt,
    where,
)


def compiled(function) -> Program:
    """A program of `function`, (x, y, z) -> three scalars, of columns x, y, z."""

    def advance(state, inputs, derived):
        del inputs, derived
        return [raw(x) for x in function(*[Scalar(x) for [x] in state])]

    columns = [1] * compiler.STATES
    return Program(compiler.whole_text(program.kernel(lambda inputs: [], advance, columns), columns))


def columns(rng, n: int, scale: float = 3.0) -> list[np.ndarray]:
    return [np.float32(scale * rng.normal(size=(n, 1))) for _ in range(3)]


def test_sine_and_cosine_to_float32s_last_digits():
    """|error| <= 1.2e-7 (float32's epsilon) up to 100 rad, 2e-7 up to 10,000."""
    run, rng = compiled(lambda x, y, z: [sin(x), cos(y), z]), np.random.default_rng(0)
    for scale, bound in ((1.0, 1.2e-7), (100.0, 1.2e-7), (1e4, 2e-7)):
        x, y, z = columns(rng, 4001, scale / 4)
        s, c, _ = run([x, y, z], 1)
        assert np.abs(s - np.sin(np.float64(x))).max() <= bound
        assert np.abs(c - np.cos(np.float64(y))).max() <= bound
    s, c, _ = run([np.float32([[0.0], [np.nan]]), np.zeros((2, 1)), np.zeros((2, 1))], 1)
    assert s[0, 0] == 0 and np.isnan(s[1, 0]) and (c == 1).all()


def test_every_operation_has_numpys_bits():
    def function(x, y, z):
        return [where(x < y, x / y, sqrt(absolute(z))), minimum(x, y) - maximum(y, z), where(x >= 0.0, -x, 0.1 * z)]

    x, y, z = columns(np.random.default_rng(1), 997)
    tenth = np.float32(0.1)
    expected = [
        np.where(x < y, x / y, np.sqrt(np.abs(z))),
        np.minimum(x, y) - np.maximum(y, z),
        np.where(x >= 0, -x, tenth * z),
    ]
    assert same_bits(compiled(function)([x, y, z], 1), expected)


def test_a_product_with_one_reader_that_is_a_sum_is_fused_and_no_other():
    """Exact in float64: a fused product and sum round once, x y twice read is rounded for itself."""

    def function(x, y, z):
        twice = x * y
        return [x * y + z, z - x * y, twice + twice * z]

    x, y, z = columns(np.random.default_rng(2), 997)
    exact = np.float64(x) * y
    rounded = np.float32(exact)
    expected = [np.float32(exact + z), np.float32(z - exact), np.float32(np.float64(rounded) * z + rounded)]
    assert same_bits(compiled(function)([x, y, z], 1), expected)


def test_a_branch_and_a_loop_are_each_lanes_own():
    """A lane keeps its values where its mask is not set, and stops by itself: Collatz-like halving to below 1."""

    def function(x, y, z):
        [y] = if_any(x > 0.0, lambda old: [old[0] + x], [y])
        count, left = repeat(lambda s: s[1] >= 1.0, lambda s: [s[0] + 1.0, s[1] * 0.5], [Scalar(0.0), absolute(z)])
        return [count, y, left]

    x, y, z = columns(np.random.default_rng(3), 997)
    count = np.float32(np.maximum(np.floor(np.log2(np.abs(z))) + 1, 0))
    expected = [count, np.where(x > 0, y + x, y), np.abs(z) / np.float32(2) ** count]
    assert same_bits(compiled(function)([x, y, z], 1), expected)


def test_what_has_no_text_is_named():
    with pytest.raises(ValueError, match="exp"):
        compiled(lambda x, y, z: [Scalar(jnp.exp(x.value)), y, z])


def test_a_text_does_not_depend_on_who_asks_for_it():
    """`replay` computes without jit, and somebody may have float64 on."""
    made = robot.read(PLAIN)
    text = program.text_of(made, True)
    with jax.disable_jit():
        assert program.text_of(made, True) == text
    with jax.enable_x64(True):
        assert program.text_of(made, True) == text


def test_a_scalar_folds_known_zeros_and_ones_and_nothing_else():
    traced = jax.make_jaxpr(lambda x: raw(Scalar(x) * 1.0 + 0.0 * Scalar(x) - Scalar(x) * -1.0))(jnp.float32(2.0))
    assert [e.primitive.name for e in traced.eqns] == ["neg", "sub"]
    assert (Scalar(2.0) * 3.0 + 1.0).value == 7.0 and (1.0 / Scalar(4.0)).value == 0.25
