"""Clients with unlike networks in one program: parameters in one flat row, computed kind by kind.

A client's parameters are {"kind": (), "row": [P]}: the number of its kind, a float so that it passes wherever
parameters do, and its own parameters one after the other, filled up with zeros to the longest of all kinds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_rl.rl.policies import Policy
from fedjax_rl.trees import chunked
from fedjax_rl.types import Array, Key, Params, Problem, Tree


def by_kind(fns: Sequence[Callable], block: Sequence[int], at_once: int | None = None) -> Callable:
    """(kind (), *args) -> fns[kind](*args) for ONE client; all results have one shape, and are floats.

    A `vmap` over M = len(block) clients or more computes each kind by itself, its rows picked by numbers that are known
    when the program is made. So client i of the batch must be of kind block[i mod M]; if it is not, its result is NaN.
    Fewer clients may be of any kinds, but a batch of them computes every kind for each.

    Args:
      fns: one function for each kind.
      block: the kinds of M clients.
      at_once: how many clients of a kind are computed at a time (None: all).
    """

    def of_kind(kind: Array, *args: Tree) -> Tree:
        # traced hyperparameters that a function closes over become arguments: a sweep maps over them
        converted = [jax.closure_convert(fn, *args) for fn in fns]
        plain = [lambda args, hoisted, fn=fn, k=k: fn(*args, *hoisted[k]) for k, (fn, _) in enumerate(converted)]
        return _mapped(plain, block, at_once)(kind, args, [hoisted for _, hoisted in converted])

    return of_kind


def _mapped(fns: list[Callable], block: Sequence[int], at_once: int | None) -> Callable:
    @jax.custom_batching.custom_vmap
    def call(kind: Array, *args: Tree) -> Tree:
        return jax.lax.switch(kind.astype(jnp.int32), fns, *args)

    @call.def_vmap
    def rule(size: int, batched: Any, kind: Array, *args: Tree) -> tuple[Tree, Tree]:
        leaves, treedef = jax.tree.flatten(args)
        is_row = jax.tree.leaves(batched[1:])
        rows = [x for x, row in zip(leaves, is_row, strict=True) if row]

        def one(fn: Callable) -> Callable:
            def of(own: list[Array]) -> Tree:
                mine = iter(own)
                merged = [next(mine) if row else x for x, row in zip(leaves, is_row, strict=True)]
                return fn(*jax.tree.unflatten(treedef, merged))

            return of

        kinds = jnp.broadcast_to(kind, (size,))
        branches = [one(fn) for fn in fns]
        if size < len(block):
            out = jax.vmap(lambda k, own: jax.lax.switch(k.astype(jnp.int32), branches, own))(kinds, rows)
        else:
            # the members of a sweep go through all kinds one member at a time, as clients do
            whole = functools.partial(_segments, branches, np.resize(block, size), at_once)
            out = chunked(whole, at_once)(kinds, rows)
        return out, jax.tree.map(lambda _: True, out)

    return call


def _segments(fns: list[Callable], expected: np.ndarray, at_once: int | None, kinds: Array, rows: list[Array]) -> Tree:
    parts = [jax.vmap(chunked(fns[k], at_once))([_picked(x, at) for x in rows]) for k, at in _places(expected)]
    return _together(parts, kinds, expected)


def _places(expected: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The kinds that there are among clients of the expected kinds, and where each is."""
    return [(int(k), np.flatnonzero(expected == k)) for k in np.unique(expected)]


def _together(parts: list[Tree], kinds: Array, expected: np.ndarray) -> Tree:
    """What was computed kind by kind, in the order of the clients; NaN for one that is not of the expected kind."""
    back = np.argsort(np.concatenate([at for _, at in _places(expected)]), kind="stable")
    right = kinds == expected

    def whole(*of_kinds: Array) -> Array:
        together = _picked(jnp.concatenate(of_kinds), back)
        return jnp.where(right.reshape(-1, *[1] * (together.ndim - 1)), together, jnp.nan)

    return jax.tree.map(whole, *parts)


def _picked(x: Array, at: np.ndarray) -> Array:
    """x[at]; a slice where they are neighbours."""
    first, last = int(at[0]), int(at[-1]) + 1
    return x[first:last] if np.array_equal(at, np.arange(first, last)) else x[at]


class Rows:
    """Parameters of K kinds as rows of P numbers, P those of the longest.

    Args:
      inits: key -> parameters, one for each kind.
    """

    def __init__(self, inits: Sequence[Callable[[Key], Params]]):
        self._inits = inits
        # of any key: only shapes are asked for
        key = jax.eval_shape(jax.random.wrap_key_data, jax.ShapeDtypeStruct((2,), jnp.uint32))
        shapes = [jax.eval_shape(init, key) for init in inits]
        self._flat = [ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)) for shape in shapes]
        self.size = max(flat.size for flat, _ in self._flat)

    def tree(self, kind: int, row: Array) -> Params:
        """The parameters in a row [P] of that kind."""
        flat, unravel = self._flat[kind]
        return unravel(row[: flat.size])

    def row(self, params: Params) -> Array:
        """The parameters of any kind as a row [P], filled up with zeros."""
        # one concatenation: from a padded row XLA's CPU compiler makes a loop that masks every number of every leaf
        leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(params)]
        return jnp.concatenate([*leaves, jnp.zeros(self.size - sum(leaf.size for leaf in leaves), leaves[0].dtype)])

    def init(self, key: Key) -> Params:
        """The first parameters of every kind: {"kind": [K], "row": [K, P]}."""
        rows = jnp.stack([self.row(init(key)) for init in self._inits])
        return {"kind": jnp.arange(len(rows), dtype=rows.dtype), "row": rows}


def mixed_policy(policies: Sequence[Policy], block: Sequence[int]) -> Policy:
    """The policy of clients of unlike kinds, whose parameters are {"kind", "row"}.

    Its `init` gives the first parameters of all kinds, [K] each. It is for acting: what it computes has no gradient.

    Args:
      policies: one for each kind, all of one distribution.
      block: as for `by_kind`.
    """
    rows = Rows([policy.init for policy in policies])
    of_row = by_kind([_on_rows(rows, k, policy.apply) for k, policy in enumerate(policies)], block)
    of_cohort = _of_cohort([policy.apply for policy in policies], block)

    def apply(params: Params, obs: Array) -> Tree:
        chex.assert_rank(obs, 2)
        if "nets" in params:
            return of_cohort(params["kind"], params["nets"], obs)
        return of_row(params["kind"], params["row"], obs)

    def cohort(act: Callable) -> Callable:
        call = jax.custom_batching.custom_vmap(act)

        @call.def_vmap
        def rule(size: int, batched: Any, params: Params, *args: Tree) -> tuple[Tree, Tree]:
            axes = [jax.tree.map(lambda is_row: 0 if is_row else None, one) for one in batched]
            if size >= len(block) and all(batched[0].values()):
                # here, and not in every step: XLA's CPU compiler takes nothing out of a loop
                places = _places(np.resize(block, size))
                nets = [jax.vmap(functools.partial(rows.tree, k))(_picked(params["row"], at)) for k, at in places]
                params, axes[0] = {"kind": params["kind"], "nets": nets}, {"kind": 0, "nets": None}
            out = jax.vmap(act, in_axes=tuple(axes))(params, *args)
            return out, jax.tree.map(lambda _: True, out)

        return call

    return Policy(rows.init, apply, policies[0].distribution, cohort)


def _of_cohort(fns: Sequence[Callable], block: Sequence[int]) -> Callable:
    """(kind, the parameters of all M clients, kind by kind, x) -> fns[kind](its own, x), mapped over the clients."""

    @jax.custom_batching.custom_vmap
    def call(kind: Array, nets: list[Params], x: Array) -> Tree:
        # one client alone does not know which of them is its own
        del kind
        first = fns[_places(np.asarray(block))[0][0]](jax.tree.map(lambda leaf: leaf[0], nets[0]), x)
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), first)

    @call.def_vmap
    def rule(size: int, batched: Any, kinds: Array, nets: list[Params], x: Array) -> tuple[Tree, Tree]:
        if not batched[2]:  # the same first observation for everyone
            x = jnp.broadcast_to(x, (size, *x.shape))
        expected = np.resize(block, size)
        parts = [jax.vmap(fns[k])(own, _picked(x, at)) for own, (k, at) in zip(nets, _places(expected), strict=True)]
        out = _together(parts, kinds, expected)
        return out, jax.tree.map(lambda _: True, out)

    return call


def mixed_problem(mixed: Problem, problems: Sequence[Problem], block: Sequence[int], at_once: int | None) -> Problem:
    """The problem of clients of unlike kinds; its losses have first derivatives in the row, and no second ones.

    Args:
      mixed: the problem of the mixed policy, which samples.
      problems: one for each kind, which have the losses.
      block, at_once: as for `by_kind`.
    """

    rows = Rows([problem.init for problem in problems])

    def scalar(fns: Sequence[Any], data_count: int) -> Callable:
        def differentiated(k: int, fn: Callable) -> Callable:
            def on_row(row: Array, *data: Tree) -> tuple[Array, Array]:
                # with respect to the tree: with respect to the row every leaf's gradient would be padded
                found, gradient = jax.value_and_grad(fn)(rows.tree(k, row), *data)
                return found, rows.row(gradient)

            return on_row

        value = by_kind([_on_rows(rows, k, fn) for k, fn in enumerate(fns)], block, at_once)
        value_and_gradient = by_kind([differentiated(k, fn) for k, fn in enumerate(fns)], block, at_once)

        @jax.custom_vjp
        def of(params: Params, *data: Tree) -> Array:
            return value(params["kind"], params["row"], *data)

        def forward(params: Params, *data: Tree) -> tuple[Array, Array]:
            return value_and_gradient(params["kind"], params["row"], *data)

        def backward(gradient: Array, along: Array) -> tuple:
            return {"kind": jnp.zeros((), along.dtype), "row": along * gradient}, *[None] * data_count

        of.defvjp(forward, backward)
        return of

    def lift(make: Callable[[Problem], Callable]) -> Callable:
        def of_kind(k: int, fn: Callable) -> Callable:
            def on_row(row: Array, *data: Tree) -> tuple[Array, Tree]:
                params, rest = fn(rows.tree(k, row), *data)
                return rows.row(params), rest

            return on_row

        each = by_kind([of_kind(k, make(problem)) for k, problem in enumerate(problems)], block, at_once)

        def lifted(params: Params, *data: Tree) -> tuple[Params, Tree]:
            row, rest = each(params["kind"], params["row"], *data)
            return {**params, "row": row}, rest

        return lifted

    return mixed._replace(
        lift=lift,
        own=lambda params, id: jax.tree.map(lambda x: x[jnp.asarray(block)[id % len(block)]], params),
        loss=scalar([problem.loss for problem in problems], 1),
        divergence=scalar([problem.divergence for problem in problems], 2),
        distance=scalar([problem.distance for problem in problems], 2),
    )


def _on_rows(rows: Rows, kind: int, fn: Callable) -> Callable:
    return lambda row, *args: fn(rows.tree(kind, row), *args)
