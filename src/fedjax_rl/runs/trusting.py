"""From a configuration to what becomes of its messages: wires, attack, aggregator."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.config import Config, ConfigError, trust
from fedjax_rl.envs import Env
from fedjax_rl.envs.corrupt import corrupted
from fedjax_rl.federation import attacks, compress, secure
from fedjax_rl.federation.exchange import Wires
from fedjax_rl.federation.private import local_noise, private
from fedjax_rl.federation.simulate import State
from fedjax_rl.host import registry
from fedjax_rl.runs import contracts, privacy
from fedjax_rl.types import Aggregator, Array, Attack, Message

MOST_MEMORY = 4 * 2**30  # bytes of what all clients keep of their messages


def wires_of(config: Config, of: Mapping[str, Any]) -> Wires:
    """What becomes of messages on their way, up and down."""
    parts, up_bytes = [], None
    if getattr(config, "client_momentum", 0.0):
        parts.append(optax.ema(of["client_momentum"]))
    if (clip := _clip(of.get("max_change_norm", 0.0))) is not None:
        parts.append(clip)
    if trust.is_private(config) and not trust.is_central(config):
        parts.append(local_noise(of["dp_clip"], of["dp_noise"]))
    if getattr(config, "compress", "none") != "none":
        shorter = compress.compressor(
            of["compress"],
            ratio=of["compress_ratio"],
            bits=of["compress_bits"],
            rank=of["compress_rank"],
            feedback=of["feedback"],
        )
        parts.append(shorter.transform)
        up_bytes = shorter.num_bytes
    if config.secagg_bits:
        up_bytes = functools.partial(_secure_bytes, config)
    wires = Wires(parts[0] if len(parts) == 1 else optax.chain(*parts)) if parts else Wires()
    wires = wires if up_bytes is None else wires._replace(up_bytes=up_bytes)
    bits = getattr(config, "downlink_bits", 0)
    if not bits:
        return wires
    return wires._replace(
        downlink=lambda shared, key: compress.quantise_model(shared, key, bits),
        down_bytes=lambda shared: compress.model_bytes(shared, bits),
    )


def _clip(norm: Array | float) -> optax.GradientTransformation | None:
    """Clipping to a norm; 0 stands for no clip, also where a sweep has it beside other norms."""
    if isinstance(norm, float):
        return optax.clip_by_global_norm(norm) if norm else None
    return optax.clip_by_global_norm(jnp.where(norm == 0, jnp.inf, norm))


def _secure_bytes(config: Config, message: Message) -> float:
    size = sum(x.size for x in jax.tree.leaves(message))
    return secure.secure_bytes(size, config.secagg_bits, trust.at_most_together(config))


def aggregator_of(config: Config, of: Mapping[str, Any]) -> Aggregator:
    """How messages become one: the configured rule, a private or a secure sum."""
    sums = secure.FixedPoint(config.secagg_bits, of["secagg_range"]) if config.secagg_bits else None
    if trust.is_central(config):
        return private(
            clip=of["dp_clip"],
            noise=of["dp_noise"] * privacy.noise_factor(config),
            clients_per_round=config.clients_per_round,
            coefficients=privacy.coefficients_of(config),
            quantile=of["dp_quantile"] if getattr(config, "dp_quantile", 0.0) else None,
            sums=sums,
        )
    if sums is not None:
        return secure.secure_mean(sums, at_least=config.secagg_min or -(-2 * trust.together(config) // 3))
    factory = registry.find("aggregator", config.aggregator)
    taken = inspect.signature(factory).parameters
    options = ("byzantine", "clip_radius", "filter_sigma", "episodes")
    given = {key: of[key] for key in options if key in taken}
    return contracts.made("aggregator", config.aggregator, Aggregator, factory, **given)


def attack_of(config: Config, of: Mapping[str, Any], aggregator: Aggregator) -> Attack | None:
    """What malicious clients do; None where there are none."""
    if config.attack == "none":
        return None
    if config.attack in trust.WORLD_ATTACKS:
        return Attack(of["attack_share"], lambda messages, honest, malicious, key: messages, in_world=True)
    return Attack(of["attack_share"], attacks.forge(config.attack, of["attack_strength"], aggregator))


def world_of(config: Config, of: Mapping[str, Any], env: Env) -> Env:
    """The environment as clients train in it: the one that lies to the malicious, where that is the attack."""
    return corrupted(env, config.attack, of["attack_strength"]) if config.attack in trust.WORLD_ATTACKS else env


def static(config: Config) -> tuple:
    """What two configurations must have in common, besides names and integers, to share a program."""
    named = ("client_momentum", "dp_clip", "dp_quantile")  # whether there is one decides what is kept
    is_short = getattr(config, "compress", "none") != "none"
    ratio = getattr(config, "compress_ratio", 0.0) if is_short else 0.0  # it decides shapes
    return (*[getattr(config, name, 0.0) > 0 for name in named], ratio)


def refuse_memory(config: Config, abstract_state: Callable[[], State]) -> None:
    """A ConfigError where what clients keep of their messages takes too much memory; shapes are enough."""
    if getattr(config, "compress", "none") == "none" and not getattr(config, "client_momentum", 0.0):
        return
    size = trees.num_bytes(abstract_state().uplink)
    if size > MOST_MEMORY:
        raise ConfigError(
            f"num_clients = {config.num_clients}: what they keep of their messages takes {size / 2**30:.1f} GiB, at "
            f"most {MOST_MEMORY / 2**30:.0f} are allowed; set feedback = 'none', or lower num_clients"
        )
