"""P13: what compression, robust rules, private and secure sums, and attacks add to a round."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_rl.bench.rows import Row, interleaved, median, row, spread
from fedjax_rl.bench.run import configs, rounds
from fedjax_rl.config import Config
from fedjax_rl.host.numerics import root_key
from fedjax_rl.runs import assemble, trusting
from fedjax_rl.types import Message

CASES: dict[str, dict[str, Any]] = {
    "mean": {},
    "top_k 1 %": {"compress": "top_k"},
    "random_k 1 %": {"compress": "random_k"},
    "8 bits": {"compress": "quantise"},
    "sign": {"compress": "sign"},
    "rank 2": {"compress": "low_rank"},
    "geomed": {"aggregator": "geomed"},
    "nnm+trimmed": {"aggregator": "nnm+trimmed"},
    "median": {"aggregator": "median"},
    "private": {"dp_clip": 1.0, "dp_noise": 1.0, "selection": "uniform"},
    "secure": {"secagg_bits": 20, "secagg_range": 1.0},
    "min-max against the mean": {"attack": "min_max"},
}


def trust(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """A row for each way, and for each number of selected clients: its time alone, and its share of a laptop round."""
    rows = []
    for m in sizes or (40,):
        [plain] = configs(env, backend, "laptop", [0], clients_per_round=m)
        _, seconds, _ = rounds([plain], repeats)
        made = {
            what: configs(env, backend, "laptop", [0], clients_per_round=m, **case)[0] for what, case in CASES.items()
        }
        found = interleaved({what: part(of) for what, of in made.items()}, max(repeats, 5))
        size = sum(x.size for x in jax.tree.leaves(messages(plain))) // m
        common = {"env": env, "backend": plain.backend, "clients_per_round": m, "parameters": size}
        for what, taken in found.items():
            share = median(taken) / median(seconds)
            times = {"part_s": median(taken), "part_range": spread(taken), "round_s": median(seconds)}
            rows.append(row("P13", what=what, **common, **times, share_of_round=share))
    return rows


def messages(config: Config) -> Message:
    """Messages [M, ...] of the configuration's form, drawn at random."""
    run = assemble.make_run(config)
    shared = jax.eval_shape(run.algorithm.init, root_key(0)).shared
    leaves, form = jax.tree.flatten(shared)
    keys = jax.random.split(root_key(1), len(leaves))
    drawn = [jax.random.normal(key, (config.clients_per_round, *x.shape)) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(form, drawn)


def part(config: Config) -> Callable[[], Any]:
    """() -> what becomes of M messages on their way and at the server, alone."""
    sent, of = messages(config), vars(config)
    aggregator = trusting.aggregator_of(config, of)
    wires, attack = trusting.wires_of(config, of), trusting.attack_of(config, of, aggregator)
    one = jax.tree.map(lambda x: x[0], sent)
    count = config.clients_per_round
    malicious = jnp.arange(count) < count // 4

    @jax.jit
    def combined(sent: Message, key: jax.Array) -> Any:
        if wires.uplink is not None:
            uplink = optax.with_extra_args_support(wires.uplink)
            start = uplink.init(one)
            update = lambda m, k: uplink.update(m, start, key=k)[0]
            sent = jax.vmap(update)(sent, jax.random.split(key, count))
        if attack is not None:
            sent = attack.forge(sent, ~malicious, malicious, key)
        return aggregator.update(sent, jnp.ones(count), aggregator.init(one), key)

    return lambda: jax.block_until_ready(combined(sent, root_key(2)))
