"""Clients of unlike capability share how they learn: a map from what a client can do to its learning strategy."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import chunked, measured, one_model
from fedjax_rl.types import Algorithm, Array, Params, Problem, Server, Tree, Tuning, Upload

SHARING, STEPS = ("map", "strategy", "none", "fixed"), ("normalised", "plain")
FIRST, INNER, OUTPUT, LOG_STD, ENTROPY, LAMBDA, CLIP, SIZE = range(8)  # of a strategy z [SIZE]: rates, then the rest
FEATURES = 4  # F, of a capability


def fedstrategy(
    problem: Problem,
    *,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    episodes: int = 20,
    entropy_coef: float = 0.01,
    gae_lambda: float = 0.95,
    clip: float = 0.2,
    sharing: str = "map",
    step: str = "normalised",
    client_episodes: tuple[int, ...] = (),
    client_steps: tuple[int, ...] = (),
    client_batch: int | None = None,
) -> Algorithm:
    """Every client trains a model of its own with the strategy z = S x; only the gradient of the map S is sent.

      x = (1, log2(E) / 6, log2(K) / 6, log2(P) / 20)
      D ~ theta;  K times:  leaf <- leaf - exp(z[role]) g / (rms(g) + 1e-8),  g = grad L(leaf; D, z);  D' ~ theta_K
      G = d L(theta_K; D', z0) / dS;  sent is G / max(1, |G|);  server: S <- server_opt(S, mean)

    A client can sample E episodes, take K steps, and its model has P parameters. z [7] holds the logarithms of a rate
    for each role of a leaf (first layer, inner layers, output layers, log_std), of the entropy's weight and of the
    clip, and the logit of the advantages' lambda. z0 has no entropy and lambda 1. G is exact through all K steps on the
    fixed batches, but for rms(g), the root mean square of a leaf's gradient, which is held constant. It makes a rate
    mean the same in a network of any width. A new client starts from fresh parameters and the map. Neither its model
    nor x is sent, but G = (dL/dz) x' shows x to who sees it.

    Source: the averaged meta-gradient of a strategy is ours, after Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn
    Quickly for Few-Shot Learning", arXiv:1707.09835, 2017, and Xu, van Hasselt, Silver, "Meta-Gradient Reinforcement
    Learning", NeurIPS 2018.

    Args:
      problem: of the clients; it needs `tuned`, and `lift` where they are of unlike kinds.
      server_opt: moves the map.
      local_steps: the largest K.
      inner_lr: the rate of all roles with which the map starts.
      episodes: the largest E. All clients sample as many, and use their own E.
      entropy_coef, gae_lambda, clip: with which the map starts; above 0, and lambda below 1.
      sharing: "map"; "strategy" (one z for all: x = 1); "none" (every client learns a map of its own); or "fixed" (the
        map stays what it is).
      step: "normalised", as in the formula; or "plain", without the division.
      client_episodes: client i has E = client_episodes[i mod a], a of them. None: `episodes` for all.
      client_steps: and K = client_steps[floor(i / max(a, 1)) mod b], b of them. None: `local_steps` for all.
      client_batch: clients whose steps are computed at a time (None: all).

    Returns:
      The algorithm.

    Raises:
      ValueError: an option is none of these; or a client is to have more episodes or steps than the largest.
    """
    if sharing not in SHARING or step not in STEPS:
        raise ValueError(f"sharing {sharing!r} by {step!r} steps: one of {SHARING}, by one of {STEPS}")
    many, often = client_episodes or (episodes,), client_steps or (local_steps,)
    if max(many) > episodes or max(often) > local_steps:
        raise ValueError(f"client_episodes {many}, client_steps {often}: at most {episodes} and {local_steps}")
    lift = problem.lift or (lambda make: make(problem))
    train, adapt_once = (
        chunked(lift(functools.partial(_trained, step=step, most=most)), client_batch) for most in (local_steps, 1)
    )
    meta = functools.partial(_meta_gradient, step=step, most=local_steps, evaluated=Tuning(0.0, 1.0, clip))
    meta_gradient = chunked(lift(meta), client_batch)

    def first(key):
        logit = jax.scipy.special.logit(gae_lambda)
        column = jnp.stack([*[jnp.log(inner_lr)] * 4, jnp.log(entropy_coef), logit, jnp.log(clip)])
        return jnp.zeros((SIZE, 1 if sharing == "strategy" else FEATURES)).at[:, 0].set(column)

    def client_update(shared, client, task, key):
        inner_key, outer_key = jax.random.split(key)
        strategy, params, can = client.get("map", shared), client["params"], client["can"]
        batch, before = problem.sample(params, task, inner_key)
        after, _ = train(params, strategy, can, batch)
        client = {**client, "params": after}
        if sharing == "fixed":
            return Upload(jnp.zeros((0,)), jnp.ones(())), client, measured(before)
        fresh, stats = problem.sample(after, task, outer_key)
        _, gradient = meta_gradient(params, strategy, can, batch, fresh)
        gradient = gradient / jnp.maximum(1.0, jnp.linalg.norm(gradient))
        if sharing != "none":
            return Upload(-gradient, jnp.ones(())), client, measured(before, also=stats)
        updates, state = server_opt.update(gradient, client["opt"], strategy)
        client |= {"map": optax.apply_updates(strategy, updates), "opt": state}
        return Upload(jnp.zeros((0,)), jnp.ones(())), client, measured(before, also=stats)

    def init_client(shared, key, id):
        can = {"episodes": _of(many, id), "steps": _of(often, id // len(many))}
        client = {"params": problem.own(problem.init(key), id), "can": can}
        return {**client, "map": shared, "opt": server_opt.init(shared)} if sharing == "none" else client

    def adapt(shared, client, params, batch):
        one = {**client["can"], "steps": jnp.ones_like(client["can"]["steps"])}
        return adapt_once(params, client.get("map", shared), one, batch)[0]

    model = one_model(problem._replace(init=first), client_update, server_opt, inner_lr, client_batch)
    changes: dict[str, Any] = {"adapt": adapt, "personal_params": lambda shared, client: client["params"]}
    if sharing in ("none", "fixed"):
        changes |= {"init": lambda key: Server(first(key), ()), "server_update": lambda server, aggregate, key: server}
    return model._replace(init_client=init_client, **changes)


def _steps(problem: Problem, step: str, most: int) -> Callable[..., Params]:
    """(parameters, z, batch, K) -> parameters after the first K of `most` steps."""
    gradient = jax.grad(_tuned(problem).loss)

    def steps(params: Params, z: Array, batch: Tree, count: Array | float) -> Params:
        tuning = Tuning(jnp.exp(z[ENTROPY]), jax.nn.sigmoid(z[LAMBDA]), jnp.exp(z[CLIP]))

        def one(params: Params, number: Array) -> tuple[Params, None]:
            push = gradient(params, batch, tuning)
            if step == "normalised":
                push = jax.tree.map(lambda g: g / jax.lax.stop_gradient(jnp.sqrt(jnp.mean(g**2)) + 1e-8), push)
            moved = jax.tree.map(lambda role, p, g: p - jnp.exp(z[role]) * g, roles(params), params, push)
            return trees.select(number < count, moved, params), None

        return jax.lax.scan(one, params, jnp.arange(most))[0]

    return steps


def _trained(problem: Problem, step: str, most: int) -> Callable[..., tuple[Params, Tree]]:
    """(parameters, S, what the client can, batch) -> (parameters after its steps, ())."""
    steps = _steps(problem, step, most)

    def trained(params: Params, strategy: Array, can: dict[str, Array], batch: Tree) -> tuple[Params, Tree]:
        x = capability(params, can)[: strategy.shape[1]]
        return steps(params, _learned(strategy, x), _tuned(problem).limit(batch, can["episodes"]), can["steps"]), ()

    return trained


def _meta_gradient(problem: Problem, step: str, most: int, evaluated: Tuning) -> Callable[..., tuple[Params, Array]]:
    """(parameters, S, what the client can, batch, fresh batch) -> (parameters, G [SIZE, F])."""
    steps, tuned = _steps(problem, step, most), _tuned(problem)

    def meta_gradient(params: Params, strategy: Array, can: dict[str, Array], batch: Tree, fresh: Tree):
        x = capability(params, can)[: strategy.shape[1]]
        inner, outer = (tuned.limit(data, can["episodes"]) for data in (batch, fresh))
        after = lambda z: tuned.loss(steps(params, z, inner, can["steps"]), outer, evaluated)
        slope = jax.grad(after)(_learned(strategy, x))
        return params, slope[:, None] * x[None]

    return meta_gradient


def capability(params: Params, can: dict[str, Array]) -> Array:
    """x [F] of a client with these parameters that can sample `episodes` episodes and take `steps` steps."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    one = jnp.ones_like(can["steps"])
    return jnp.stack([one, jnp.log2(can["episodes"]) / 6, jnp.log2(can["steps"]) / 6, one * (math.log2(size) / 20)])


def roles(params: Params) -> Tree:
    """The role of every leaf, from its path: FIRST, INNER, LOG_STD, or OUTPUT for what is none of these."""

    def role(path: Any, leaf: Array) -> int:
        names = {str(getattr(entry, "key", "")) for entry in path}
        if "log_std" in names:
            return LOG_STD
        if not any(name.startswith("hidden_") for name in names):
            return OUTPUT
        return FIRST if "hidden_0" in names else INNER

    return jax.tree_util.tree_map_with_path(role, params)


def _learned(strategy: Array, x: Array) -> Array:
    """z = S x, in float32 on every device."""
    return jnp.matmul(strategy, x, precision=jax.lax.Precision.HIGHEST)


def _of(values: tuple[int, ...], i: Array) -> Array:
    return jnp.asarray(values, jnp.zeros(()).dtype)[i % len(values)]


def _tuned(problem: Problem) -> Any:
    if problem.tuned is None:
        raise ValueError("the problem has no `tuned`, whose loss a strategy decides; make it with tunable=True")
    return problem.tuned
