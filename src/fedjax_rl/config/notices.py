"""What a person should know of a legal configuration: what does nothing, and what goes together badly.

Imports neither jax nor mujoco.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from fedjax_rl.config import trust

# Rules that are told how many lie.
COUNTING = tuple(rule for rule in trust.NEEDS if rule not in ("median", "geomed", "bucket+geomed"))


def notices(config: Any) -> list[str]:
    """What a person should know of a legal combination, a line each."""
    lines = [f"{name} = {getattr(config, name)}: does nothing {unless}" for name, unless in _idle(config)]
    rule, n = config.aggregator, trust.together(config)
    if rule in COUNTING and config.byzantine and not trust.malicious(config.byzantine, n):
        lines.append(
            f"aggregator = {rule!r}: byzantine = {config.byzantine} of {n} messages is not one, so that no liar is "
            "expected; raise byzantine, or the number of messages"
        )
    if config.aggregator in trust.BY_COUNT and config.stragglers:
        lines.append(f"aggregator = {config.aggregator!r}: weights are ignored; who straggles counts like the others")
    if config.secagg_bits and config.selection == "poisson" and not trust.is_private(config) and not config.secagg_min:
        lines.append(
            "selection = 'poisson': rounds of fewer than two thirds of clients_per_round are void, because a secure "
            "sum of few is not opened; secagg_min sets how few"
        )
    if trust.is_private(config) and config.server in ("adam", "reddi", "as_printed", "yogi", "rmsprop"):
        lines.append(
            f"server = {config.server!r}: it divides by the size of its input, and so by the noise; sgd and avgm do not"
        )
    if trust.is_private(config) and config.dropout:
        lines.append(
            f"dropout = {config.dropout}: the private sum is divided by clients_per_round, whoever came, so steps are "
            "that much smaller; a larger server_lr makes up for it"
        )
    return lines


def _idle(config: Any) -> Iterator[tuple[str, str]]:
    """(An option that is not at its default, without what it does nothing)."""
    rule, compress = config.aggregator, getattr(config, "compress", "none")
    is_guest = rule not in ("mean", *trust.ROBUST)  # which is given what it asks for
    ages = config.staleness if config.schedule == "async" else "constant"
    with_rule, with_compress = f"with aggregator = {rule!r}", f"with compress = {compress!r}"
    old = f"with staleness = {config.staleness!r} and schedule = {config.schedule!r}"
    needs = {
        "attack_share": ("without an attack", config.attack != "none"),
        "attack_strength": ("without an attack", config.attack != "none"),
        "byzantine": (with_rule, rule not in ("mean", "centered_clip", "norm_clip")),
        "clip_radius": (with_rule, is_guest or rule == "centered_clip"),
        "filter_sigma": (with_rule, is_guest or rule == "fedpg_br"),
        "compress_ratio": (with_compress, compress in trust.SPARSE),
        "compress_bits": (with_compress, compress.endswith("quantise")),
        "compress_rank": (with_compress, compress == "low_rank"),
        "clip": (f"with surrogate = {config.surrogate!r}", config.surrogate == "ratio" or config.learns_strategy),
        "speed_ratio": (f"with speed = {config.speed!r}", config.speed not in ("equal", "sqrt")),
        "staleness_power": (old, ages != "constant"),
        "hinge_after": (old, ages == "hinge"),
        "value_coef": (f"with critic = {config.critic!r}", config.critic in ("federated", "local")),
        "dp_delta": ("without dp_clip", trust.is_private(config)),
    }
    defaults = {item.name: item.default for item in fields(config)}
    for name, (unless, is_used) in needs.items():
        if name in defaults and not is_used and getattr(config, name) != defaults[name]:
            yield name, unless
