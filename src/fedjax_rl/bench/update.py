"""P2: what a client's learning costs, exact against first order, in time and in FLOPs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from fedjax_rl import config
from fedjax_rl.bench.round import make_gradients, make_sampling
from fedjax_rl.bench.rows import Row, interleaved, median, row, spread
from fedjax_rl.config import presets
from fedjax_rl.config.algorithms import FmrlConfig
from fedjax_rl.meta import meta_gradient
from fedjax_rl.runs import assemble

ORDERS = ("first", "second")


def update(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """A row for each cohort: client updates a second (adaptation and local steps) by order, and the orders' ratios."""
    return [one(env, backend, size, repeats) for size in sizes or (40,)]


def one(env: str, backend: str, size: int, repeats: int) -> Row:
    """The row of one cohort."""
    values = {"env": env, "backend": backend, "clients_per_round": size}
    runs = {
        order: assemble.make_run(config.build("fmrl", presets.preset("paper", "fmrl", env), values, {"order": order}))
        for order in ORDERS
    }
    state = assemble.initial_state(runs["first"])
    batches = jax.block_until_ready(make_sampling(runs["first"], state)())
    chunk = 1 if jax.default_backend() == "cpu" else size
    parts = {order: make_gradients(run, state.server.shared, batches, chunk) for order, run in runs.items()}
    seconds = interleaved({order: partial(_both, *part) for order, part in parts.items()}, repeats)
    ratio = [second / first for first, second in zip(seconds["first"], seconds["second"], strict=True)]
    flops = {order: gradient_flops(run, state.server.shared, batches) for order, run in runs.items()}
    return row(
        "P2",
        env=env,
        clients=size,
        client_batch=chunk,
        client_updates_per_s={order: size / median(seconds[order]) for order in ORDERS},
        exact_to_first_time=median(ratio),
        exact_to_first_range=spread(ratio),
        gradient_flops=flops,
        exact_to_first_flops=flops["second"] / flops["first"],
    )


def _both(adaptations: Callable[[], Any], changes: Callable[[], Any]) -> tuple[Any, Any]:
    return adaptations(), changes()


def gradient_flops(run: assemble.Assembled, shared, batches) -> float:
    """Floating-point operations of one meta-gradient of one client, as the compiler counts them."""
    assert isinstance(run.config, FmrlConfig)
    gradient = meta_gradient(run.problem.loss, run.config.inner_lr, run.config.order)
    inner, outer = jax.tree.map(lambda x: x[0], batches)
    counted: Any = jax.jit(gradient).lower(shared, inner, outer).compile().cost_analysis()
    return counted["flops"]
