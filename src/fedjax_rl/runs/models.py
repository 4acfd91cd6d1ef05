"""From a configuration to what its clients are: their policies, their problem, their optimiser."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.config import Config, ConfigError, kinds
from fedjax_rl.config.values import DqnAvgConfig
from fedjax_rl.envs import Env, EnvSpec
from fedjax_rl.federation import placement
from fedjax_rl.host import registry
from fedjax_rl.rl.critics import mlp_critic
from fedjax_rl.rl.distributions import CATEGORICAL, GREEDY
from fedjax_rl.rl.kinds import mixed_policy, mixed_problem
from fedjax_rl.rl.policies import Policy
from fedjax_rl.rl.problem import make_problem
from fedjax_rl.rl.values import make_value_problem, refuse_environment
from fedjax_rl.runs import contracts
from fedjax_rl.types import Problem, Tree, ValueProblem


def make_policy(config: Config, spec: EnvSpec) -> Policy:
    """The configured policy, or that of clients of unlike kinds.

    Raises:
      ConfigError: it is none for the environment's actions, or another `init` or `std` is set than it knows of.
    """
    if config.kinds:
        return mixed_policy(*_kinds(config, spec))
    if config.learns_values:
        try:
            refuse_environment(spec)
        except ValueError as error:
            raise ConfigError(f"env = {config.env!r}: {error}") from error
    policy = _one_policy(config, spec, config.hidden, config.activation)
    if not config.learns_values:
        return policy
    if policy.distribution is not CATEGORICAL:
        raise ConfigError(f"policy = {config.policy!r}: {config.algorithm} needs a value for each of discrete actions")
    return policy._replace(distribution=GREEDY)


def _one_policy(config: Config, spec: EnvSpec, hidden: tuple[int, ...], activation: str) -> Policy:
    """The policy whose factory is given those of `hidden`, `activation`, `init` and `std` that it takes."""
    factory = registry.find("policy", config.policy)
    taken = inspect.signature(factory).parameters
    for key, default in (("init", "xavier"), ("std", "free")):
        if key not in taken and getattr(config, key) != default:
            raise ConfigError(
                f"{key} = {getattr(config, key)!r}: policy {config.policy} has no such option; leave it out"
            )
    given = {"hidden": hidden, "activation": activation, "init": config.init, "std": config.std}
    try:
        chosen = {key: value for key, value in given.items() if key in taken}
        return contracts.made("policy", config.policy, Policy, factory, spec, **chosen)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def clients_problem(config: Config, of: Mapping[str, Any], env: Env) -> Problem | ValueProblem:
    """The problem of a configuration's clients, whose numbers are `of`.

    Raises:
      ConfigError: as for `make_policy`; or clients of unlike kinds are to share several devices; or values cannot be
        learned in the environment, or with so large a replay.
    """
    if config.learns_values:
        return _value_problem(config, of, env)
    make = functools.partial(
        make_problem,
        env,
        episodes=config.episodes,
        discount=of["discount"],
        gae_lambda=of["gae_lambda"],
        clip=of["clip"],
        surrogate=config.surrogate,
        critic=mlp_critic(env.spec, hidden=config.hidden) if config.critic in ("federated", "local") else None,
        baseline=config.critic != "none",
        value_coef=of["value_coef"],
        entropy_coef=of["entropy_coef"],
        scale=config.advantages,
        reduction=config.reduction,
        tunable=config.learns_strategy,
    )
    policy = make_policy(config, env.spec)
    if not config.kinds:
        return make(policy)
    if placement.make_mesh() is not None:
        raise ConfigError("kinds: on one device only; set JAX_PLATFORMS=cpu, or leave kinds out")
    unlike, block = _kinds(config, env.spec)
    return mixed_problem(make(policy), [make(one) for one in unlike], block, at_once(config))


def _value_problem(config: Config, of: Mapping[str, Any], env: Env) -> ValueProblem:
    """The problem of clients that learn values."""
    policy, error = make_policy(config, env.spec), getattr(config, "error", "mse")
    problem = make_value_problem(env, policy, episodes=config.episodes, discount=of["discount"], error=error)
    if isinstance(config, DqnAvgConfig):
        row, most = trees.num_bytes(problem.blank[1]), config.max_client_mb * 1e6
        if row * config.capacity > most:
            raise ConfigError(
                f"capacity = {config.capacity}: a client's replay takes {row * config.capacity / 1e6:.1f} MB, at most "
                f"max_client_mb = {config.max_client_mb:g} are allowed; lower it to {int(most) // row}, or raise that"
            )
    if problem.backup is None and config.algorithm == "q_avg":
        raise ConfigError(f"env = {config.env!r}: q_avg needs a process whose probabilities are known; take dqn_avg")
    return problem


def remarks(config: Config, clients: Callable[[], Tree]) -> list[str]:
    """What a person should know of what clients keep, a line each; `clients` gives its shapes."""
    keep = getattr(config, "keep", "none")
    if keep == "none":
        return []
    size = trees.num_bytes(clients()) / 1e6
    return [f"keep = {keep!r}: clients keep {size:.1f} MB in all, in every checkpoint too"]


def _kinds(config: Config, spec: EnvSpec) -> tuple[list[Policy], tuple[int, ...]]:
    """The policy of each kind, and the kinds of the first clients_per_round clients."""
    found = kinds.parse(config.kinds)
    block = kinds.block(found, config.num_clients, config.clients_per_round)
    return [_one_policy(config, spec, kind.hidden, kind.activation) for kind in found], block


def at_once(config: Config) -> int | None:
    """How many clients learn at a time; None for all."""
    return config.client_batch or (1 if jax.default_backend() == "cpu" else None)


def make_client_opt(config: Config, of: Mapping[str, Any]) -> optax.GradientTransformation:
    """Plain gradient steps, of the rate of the client's kind where kinds have rates."""
    found = kinds.parse(config.kinds)
    if all(kind.rate is None for kind in found):
        return optax.sgd(of["local_lr"])
    rates = jnp.stack([jnp.asarray(of["local_lr"] if kind.rate is None else kind.rate) for kind in found])

    def update(gradient: Tree, state: tuple, params: Tree) -> tuple[Tree, tuple]:
        rate = rates[params["kind"].astype(jnp.int32)]
        return jax.tree.map(lambda g: -rate * g, gradient), state

    return optax.GradientTransformation(lambda params: (), update)
