"""What of compression, attacks, robust rules and secure sums does not fit together, told before any work.

Imports neither jax nor mujoco, so that a mistake is answered at once.
"""

import math
from typing import Any

from fedjax_rl.host.exits import ConfigError

COMPRESSORS = ("none", "top_k", "random_k", "quantise", "sign", "low_rank", "top_k+quantise")
MESSAGE_ATTACKS = (
    "sign_flip boost zero noise nan alie ipm min_max min_sum mimic adaptive_alie adaptive_ipm"
).split()  # fmt: skip
READING = MESSAGE_ATTACKS[MESSAGE_ATTACKS.index("alie") :]  # what a liar sends follows from what the honest send
WORLD_ATTACKS = ("reward_flip", "reward_noise", "action_random", "action_zero", "obs_noise")
# The clients that a rule needs to withstand f malicious ones.
NEEDS = {
    "krum": lambda f: 2 * f + 3,
    "multi_krum": lambda f: 2 * f + 3,
    "bulyan": lambda f: 4 * f + 3,
    "bucket+geomed": lambda f: 4 * f + 1,  # of half as many means, f hold a malicious one
    **dict.fromkeys(
        ("median", "trimmed", "geomed", "meamed", "nnm+trimmed", "nnm+median", "nnm+geomed", "fedpg_br"),
        lambda f: 2 * f + 1,
    ),
}
ROBUST = (*NEEDS, "centered_clip", "norm_clip")
# The option of an algorithm, and its values with which no client sends anything.
SILENT = {
    "independent": ("algorithm", ("independent",)),
    "fedhpd": ("distill", ("placebo", "none")),
    "fedstrategy": ("sharing", ("none", "fixed")),
    "dqn_avg": ("aggregate", ("none",)),
}
# Rules that decide on each coordinate by itself, and compressors that leave most coordinates out.
BY_COORDINATE = ("median", "trimmed", "meamed", "bulyan")
SPARSE = ("top_k", "random_k", "top_k+quantise")
# Rules to which all clients that were heard are alike: they do not look at weights.
BY_COUNT: tuple[str, ...] = ("median", "trimmed", "krum", "multi_krum", "bulyan", "meamed", "fedpg_br")
BY_COUNT += tuple(rule for rule in NEEDS if rule.startswith("nnm+"))


def is_private(config: Any) -> bool:
    """Is there differential privacy, of the server or of each client?"""
    return getattr(config, "dp_clip", 0.0) > 0


def is_central(config: Any) -> bool:
    """Does the server add the noise?"""
    return is_private(config) and config.dp_where == "central"


def together(config: Any) -> int:
    """How many messages the server combines, in the mean: of a round, or of a buffer."""
    if config.schedule == "sync":
        return config.wait_for or config.clients_per_round
    return config.buffer or config.clients_per_round or 1


def at_most_together(config: Any) -> int:
    """How many clients take part in a sum at most, heard or not."""
    if config.schedule == "async":
        return together(config)
    n, m = config.num_clients, config.clients_per_round
    if config.selection != "poisson":
        return m
    # as `accountant.capacity`, which this room does not see; a test holds them together
    return min(n, math.ceil(m + 3 * math.sqrt(m * (1 - m / n))))


def refuse(config: Any) -> None:
    """A ConfigError for what does not fit together."""
    _refuse_selection(config)
    _refuse_silent(config)
    _refuse_rule(config)
    _refuse_compression(config)
    _refuse_secure_sum(config)


def _refuse_selection(config: Any) -> None:
    n, m, selection = config.num_clients, config.clients_per_round, config.selection
    if selection not in ("poisson", "cyclic"):
        return
    if config.schedule == "async":
        raise ConfigError(f"selection = {selection!r}: only with schedule = 'sync'; there clients arrive by the clock")
    if selection == "cyclic" and n % m:
        fits = max(size for size in range(1, m + 1) if n % size == 0)
        raise ConfigError(f"selection = 'cyclic': clients_per_round = {m} must divide num_clients = {n}; {fits} does")
    if selection == "poisson" and config.wait_for:
        raise ConfigError(f"wait_for = {config.wait_for}: not with selection = 'poisson': how many come is drawn")


def _refuse_silent(config: Any) -> None:
    """A ConfigError for what is done to messages where nobody sends any. A rule, which does nothing then, may stay."""
    option, values = SILENT.get(config.algorithm, ("algorithm", ()))
    if getattr(config, option) not in values:
        return
    why = f"{option} = {getattr(config, option)!r} sends no messages"
    if config.attack in MESSAGE_ATTACKS:
        raise ConfigError(f"attack = {config.attack!r}: {why}; try reward_flip")
    off = {"compress": "none", "client_momentum": 0.0, "dp_clip": 0.0, "secagg_bits": 0, "downlink_bits": 0}
    for name, nothing in off.items():
        if (value := getattr(config, name, nothing)) != nothing:
            raise ConfigError(f"{name} = {value!r}: {why}; leave it out")


def _refuse_rule(config: Any) -> None:
    rule, n = config.aggregator, together(config)
    if rule != "mean" and config.refuses_loss:
        raise ConfigError(
            f"aggregator = {rule!r}: not for {config.algorithm}: {config.refuses_loss}, and what a rule leaves out is "
            "missing there; set aggregator = 'mean'"
        )
    if rule == "centered_clip" and config.algorithm in ("fedhpd", "dpa_fedrl"):
        raise ConfigError(
            f"aggregator = {rule!r}: not for {config.algorithm}: it clips towards the last mean, and that was of other "
            "states; take geomed or norm_clip"
        )
    if rule in BY_COUNT and config.harmonic:
        raise ConfigError(
            f"aggregator = {rule!r}: not with harmonic, which weighs messages, and to this rule all weigh the same; "
            "take geomed, centered_clip or norm_clip, or set harmonic = 0"
        )
    f = malicious(config.byzantine, n)
    if rule in NEEDS and f and n < NEEDS[rule](f):
        name = "buffer" if config.schedule == "async" else "wait_for" if config.wait_for else "clients_per_round"
        raise ConfigError(
            f"byzantine = {config.byzantine}: {rule} needs {name} >= {NEEDS[rule](f)} for {f} attackers, not {n}; "
            f"lower byzantine or raise {name}"
        )


def malicious(share: float, count: int) -> int:
    """floor(share * count), where share is a decimal: 0.3 of 40 are 12."""
    return math.floor(share * count + 1e-6)


def _refuse_compression(config: Any) -> None:
    if getattr(config, "downlink_bits", 0) == 1:
        raise ConfigError("downlink_bits = 1: must be 0 (off) or 2 to 16; choose 2")
    compress = getattr(config, "compress", "none")
    if compress == "none" and getattr(config, "feedback", "auto") != "auto":
        raise ConfigError(f"feedback = {config.feedback!r}: nothing is compressed; choose a compress, or leave it")
    if compress in SPARSE and config.aggregator in BY_COORDINATE and config.feedback != "ef21":
        raise ConfigError(
            f"compress = {compress!r}: not with aggregator = {config.aggregator!r}: of most coordinates most clients "
            "send 0, and this rule takes 0 for them all; choose quantise, feedback = 'ef21', or geomed"
        )


def _refuse_secure_sum(config: Any) -> None:
    bits, most, heard = config.secagg_bits, at_most_together(config), config.wait_for or at_most_together(config)
    if not bits:
        for name in ("secagg_range", "secagg_min"):
            if getattr(config, name):
                raise ConfigError(
                    f"{name} = {getattr(config, name)}: only with secagg_bits; set that (20), or leave it"
                )
        return
    if config.refuses_loss:
        raise ConfigError(
            f"secagg_bits: not for {config.algorithm}: {config.refuses_loss}, and a sum that is not opened is lost"
        )
    if bits < 4:
        raise ConfigError(f"secagg_bits = {bits}: must be 0 (off) or 4 to 24; 20 is usual")
    if not config.secagg_range:
        raise ConfigError("secagg_range = 0: a secure sum needs the largest size of an entry; try max_change_norm")
    if config.aggregator != "mean":
        raise ConfigError(
            f"secagg_bits: only the sum is seen, and aggregator = {config.aggregator!r} looks at messages"
        )
    if config.nan_dump:
        raise ConfigError("secagg_bits: only the sum is seen, and nan_dump looks at single clients; set it to 0")
    if getattr(config, "compress", "none") != "none":
        raise ConfigError(
            f"secagg_bits: sums of fixed-point numbers need every coordinate, and compress = {config.compress!r} sends "
            "others; set compress = 'none' (secagg_bits itself says how many bits are sent)"
        )
    if getattr(config, "dp_quantile", 0.0):
        raise ConfigError("secagg_bits: only the sum is seen, and dp_quantile looks at norms; set it to 0")
    if most * (2 ** (bits - 1) - 1) >= 2**31:
        legal = (2**31 - 1) // (2 ** (bits - 1) - 1)
        fits = max(b for b in range(4, 25) if most * (2 ** (b - 1) - 1) < 2**31) if most < 2**28 else 0
        raise ConfigError(f"secagg_bits = {bits}: {most} clients overflow 32 bits, at most {legal} fit; {fits} bits do")
    if config.secagg_min and is_central(config):
        raise ConfigError(
            f"secagg_min = {config.secagg_min}: not with dp_clip: that a sum was not opened would show who was there"
        )
    if config.harmonic and not config.secagg_min:
        raise ConfigError(
            f"secagg_bits: with harmonic a buffer of {config.buffer} is seldom two thirds full, and of fewer no sum is "
            "opened; set secagg_min"
        )
    if config.secagg_min > heard:
        raise ConfigError(f"secagg_min = {config.secagg_min}: must be at most the {heard} clients of a sum")
    if together(config) == 1 or config.secagg_min == 1:
        what = "secagg_min" if config.secagg_min == 1 else "secagg_bits"
        raise ConfigError(
            f"{what} = {getattr(config, what)}: a sum of one message is that message, and hides nothing; sums need two "
            "clients or more (clients_per_round, wait_for, buffer, secagg_min)"
        )
