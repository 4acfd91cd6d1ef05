"""Scalars that are numbers or traced, with arithmetic in which known 0 and 1 vanish: a planar robot gets planar code.

The generator computes with these alone. Given traced values it is a JAX program of scalars, which `emit` writes as C++;
given numbers it is plain float64 arithmetic, which is how the tests hold every block to mjData.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax import lax


class Scalar:
    """A number (a Python float: known when the program is generated) or a traced float32."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        if isinstance(value, Scalar):
            value = value.value
        self.value: Any = float(value) if isinstance(value, int | float | np.floating) else value

    @property
    def known(self) -> bool:
        return isinstance(self.value, float)

    def is_known(self, number: float) -> bool:
        return self.known and self.value == number

    def __add__(self, other):
        other = Scalar(other)
        if self.is_known(0):
            return other
        return self if other.is_known(0) else _combine(lax.add, float.__add__, self, other)

    def __neg__(self):
        return Scalar(-self.value) if self.known else Scalar(lax.neg(self.value))

    def __sub__(self, other):
        other = Scalar(other)
        if other.is_known(0):
            return self
        return -other if self.is_known(0) else _combine(lax.sub, float.__sub__, self, other)

    def __mul__(self, other):
        other = Scalar(other)
        for a, b in ((self, other), (other, self)):
            if a.is_known(0):
                return Scalar(0.0)
            if a.is_known(1):
                return b
            if a.is_known(-1):
                return -b
        return _combine(lax.mul, float.__mul__, self, other)

    def __truediv__(self, other):
        other = Scalar(other)
        if self.is_known(0):
            return self
        return self * (1 / other.value) if other.known else _combine(lax.div, float.__truediv__, self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other):
        return Scalar(other) - self

    def __rtruediv__(self, other):
        return Scalar(other) / self

    def __lt__(self, other):
        return _combine(lax.lt, float.__lt__, self, Scalar(other), wrap=False)

    def __gt__(self, other):
        return _combine(lax.gt, float.__gt__, self, Scalar(other), wrap=False)

    def __ge__(self, other):
        return _combine(lax.ge, float.__ge__, self, Scalar(other), wrap=False)

    def __le__(self, other):
        return _combine(lax.le, float.__le__, self, Scalar(other), wrap=False)


def raw(x: Scalar | float):
    """What JAX's own operations take: the traced value, or the number in float32."""
    x = Scalar(x)
    return np.float32(x.value) if x.known else x.value


def _combine(traced: Callable, plain: Callable, a: Scalar, b: Scalar, wrap: bool = True):
    found = plain(a.value, b.value) if a.known and b.known else traced(raw(a), raw(b))
    return Scalar(found) if wrap else found


def _function(traced: Callable, plain: Callable[[float], float]) -> Callable[[Scalar], Scalar]:
    return lambda x: Scalar(plain(x.value) if x.known else traced(x.value))


sin = _function(lax.sin, math.sin)
cos = _function(lax.cos, math.cos)
sqrt = _function(lax.sqrt, math.sqrt)
absolute = _function(lax.abs, abs)


def minimum(a: Scalar | float, b: Scalar | float) -> Scalar:
    return _combine(lax.min, min, Scalar(a), Scalar(b))


def maximum(a: Scalar | float, b: Scalar | float) -> Scalar:
    return _combine(lax.max, max, Scalar(a), Scalar(b))


def clip(x: Scalar, low: float, high: float) -> Scalar:
    """x between the bounds; not a number where x is none, because the second operand is what comes out then."""
    return minimum(high, maximum(low, x))


def total(terms: Iterable[Scalar]) -> Scalar:
    return sum(terms, Scalar(0.0))


def where(mask, a: Scalar | float, b: Scalar | float) -> Scalar:
    """a where the mask is set, else b."""
    if isinstance(mask, bool):
        return Scalar(a if mask else b)
    return Scalar(lax.select(mask, *(lax.convert_element_type(raw(x), np.float32) for x in (a, b))))


def if_any(mask, change: Callable[[list[Scalar]], list[Scalar]], values: list[Scalar]) -> list[Scalar]:
    """`change(values)` where the mask is set, else the values: skipped where no lane of a vector has it set.

    The emitter keeps the other lanes' values by select, so a mask must imply that the change does nothing where it is
    not set: then a simulation's numbers do not depend on its neighbours'.
    """
    if isinstance(mask, bool):
        return change(values) if mask else values
    branch = lambda *xs: [raw(y) for y in change([Scalar(x) for x in xs])]
    return [Scalar(x) for x in lax.cond(mask, branch, lambda *xs: list(xs), *map(raw, values))]


def repeat(going: Callable[[Any], Any], body: Callable[[Any], Any], state: Any) -> Any:
    """`while going(state): state = body(state)` for a tree of scalars; a lane that is done keeps its state."""
    structure: Any  # jaxlib declares nothing of it
    leaves, structure = jax.tree.flatten(state)
    if all(x.known for x in leaves) and isinstance(going(state), bool):
        while going(state):
            state = body(state)
        return state
    wrap = lambda values: structure.unflatten([Scalar(x) for x in values])
    values = lambda tree: [raw(x) for x in structure.flatten_up_to(tree)]
    return wrap(lax.while_loop(lambda s: going(wrap(s)), lambda s: values(body(wrap(s))), values(state)))
