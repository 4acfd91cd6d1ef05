"""From configurations to the objects that run them."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_rl.algorithms.parts import keep_on_client, with_stragglers
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.config.trust import is_private
from fedjax_rl.envs import Env, make_env, platform
from fedjax_rl.federation import placement
from fedjax_rl.federation.asynchronous import make_async_simulation
from fedjax_rl.federation.selection import SELECTIONS
from fedjax_rl.federation.server_optimizers import SERVER_OPTIMIZERS
from fedjax_rl.federation.simulate import Simulation, State, make_simulation
from fedjax_rl.federation.staleness import Discount
from fedjax_rl.host import registry
from fedjax_rl.host.numerics import root_key
from fedjax_rl.rl.critics import NAME as CRITIC
from fedjax_rl.runs import contracts, public_states, trusting
from fedjax_rl.runs.models import at_once, clients_problem, make_client_opt
from fedjax_rl.runs.timing import pace_of, schedule_of, with_lanes
from fedjax_rl.trees import all_finite, select, take
from fedjax_rl.types import Algorithm, Array, Metrics


class Assembled(NamedTuple):
    """A configuration and what it describes."""

    config: Config
    env: Env
    problem: Any  # a Problem, or a ValueProblem
    algorithm: Algorithm
    simulation: Simulation

    @property
    def env_steps_per_client(self) -> int:
        """Environment steps of one client's work."""
        return self.config.env_steps(self.env.spec.horizon)

    @property
    def env_steps_per_round(self) -> int:
        """Environment steps of one round: selected clients (or arrivals, at most) times those of one."""
        return self.config.clients_per_round * self.env_steps_per_client

    def env_steps(self, number: int, arrivals: int | None) -> int:
        """Environment steps so far: of so many rounds, or arrivals, where each client has its own time."""
        return number * self.env_steps_per_round if arrivals is None else arrivals * self.env_steps_per_client


def make_run(config: Config, values: Mapping[str, Array | float] | None = None, env: Env | None = None) -> Assembled:
    """The environment, policy, problem, algorithm and simulation of a configuration.

    Args:
      config: every value.
      values: numbers that take the place of the configuration's; they may be traced, and nothing tests them here.
      env: the configuration's environment, if it is at hand.
    """
    if env is None:
        try:
            env = make_env(config.env, backend=config.backend, observation=config.observation)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        platform()  # refused in one line, where the environment has not asked for a device
    of = {item.name: getattr(config, item.name) for item in fields(config)} | dict(values or {})
    config = with_lanes(config)
    problem, world = clients_problem(config, of, env), trusting.world_of(config, of, env)
    algorithm = _make_algorithm(config, of, env, problem if world is env else clients_problem(config, of, world))
    return Assembled(config, env, problem, algorithm, _make_simulation(config, of, env, algorithm))


def _make_simulation(config: Config, of: Mapping[str, Any], env: Env, algorithm: Algorithm) -> Simulation:
    """The federation of a configuration, on its schedule."""
    if algorithm.exchanges is not None and is_private(config):
        raise ConfigError(
            f"dp_clip: not for {config.algorithm}: the accountant counts one message a round, and its clients send "
            f"{1 + algorithm.exchanges[0]}; set dp_clip = 0"
        )
    pace = pace_of(of)
    aggregator = trusting.aggregator_of(config, of)
    common: dict[str, Any] = {
        "num_clients": config.num_clients,
        "sample_tasks": env.sample_tasks,
        "aggregator": aggregator,
        "wires": trusting.wires_of(config, of),
        "attack": trusting.attack_of(config, of, aggregator),
        "dropout": of["dropout"],
    }
    if config.schedule == "async":
        discount = Discount(config.staleness, of["staleness_power"], of["hinge_after"], config.fair)
        schedule = schedule_of(config)
        return make_async_simulation(algorithm, schedule=schedule, pace=pace, discount=discount, **common)
    return make_simulation(
        algorithm,
        clients_per_round=config.clients_per_round,
        select=SELECTIONS[config.selection],
        pace=pace if config.has_clock else None,
        wait_for=config.wait_for % config.clients_per_round,
        **common,
    )


def _make_algorithm(config: Config, of: Mapping[str, Any], env: Env, problem: Any) -> Algorithm:
    """The configured algorithm; what its configuration class adds are its factory's arguments of the same names."""
    engine = {item.name for item in fields(Config)} | {"server", "server_lr", "server_half_life", "max_change_norm"}
    own = {key: value for key, value in of.items() if key not in engine}
    if "server" in of:
        rate = server_rate(of["server_lr"], of["server_half_life"])
        own["server_opt"] = SERVER_OPTIMIZERS[of["server"]](rate)

    factory = registry.find("algorithm", config.algorithm)
    given = {
        "local_steps": config.local_steps,
        **{key: of[key] for key in ("inner_lr", "episodes", "entropy_coef", "gae_lambda", "clip")},
        "client_batch": None if config.kinds else at_once(config),  # kinds are computed one after the other
        **own,
    }
    if "public_states" in given:
        given["public_states"] = public_states.of(config, env.spec)
    taken = inspect.signature(factory).parameters

    def make(client_opt):
        everything = {"client_opt": client_opt, **given}
        chosen = {key: value for key, value in everything.items() if key in taken}
        return contracts.made("algorithm", config.algorithm, Algorithm, factory, problem, **chosen)

    client_opt, share = make_client_opt(config, of), of["stragglers"]
    is_cut = not (isinstance(share, float) and share == 0.0)
    algorithm = with_stragglers(make, client_opt, config.local_steps, share) if is_cut else make(client_opt)
    return keep_on_client(algorithm, (CRITIC,)) if config.critic == "local" else algorithm


def server_rate(rate: Array | float, half_life: Array | float) -> optax.ScalarOrSchedule:
    """rate * 2^(-n / half_life) after n steps of the server's optimizer; `rate` for a half-life of 0.

    A synchronous round is one step, but for `fedpg_br`, which makes several; an asynchronous one has a step an update.
    """
    if isinstance(half_life, float) and half_life == 0.0:
        return rate
    return lambda count: rate * 0.5 ** (count / half_life)


class Group(NamedTuple):
    """G runs that differ only in seed and floats: the members of one program, stacked on a leading axis [G].

    configs: of the members. values: the floats that differ, [G] each. run: the first member, for what all share. mesh:
    the devices, None for one.
    """

    configs: tuple[Config, ...]
    values: dict[str, np.ndarray]
    run: Assembled
    mesh: Mesh | None

    def member(self, values: Mapping[str, Array | float]) -> Assembled:
        """One member's objects, from its values."""
        return make_run(self.run.config, values, self.run.env)

    def values_of(self, i: int) -> dict[str, np.ndarray]:
        """Member i's values."""
        return {key: value[i] for key, value in self.values.items()}


def static_fields(config: Config) -> tuple:
    """What two configurations must have in common to share a program: all but the seed and the floats.

    A rate that falls and one that stays are two programs: only the first keeps a count. So are runs with a clock, and
    others of which `trusting.static` tells. A bound on what is kept is looked at once for each program.
    """
    named = [(item.name, getattr(config, item.name)) for item in fields(config) if item.name != "seed"]
    falls = getattr(config, "server_half_life", 0.0) > 0
    shared = [pair for pair in named if not isinstance(pair[1], float)]
    bound = getattr(config, "max_client_mb", 0.0)
    return (config.algorithm, falls, config.has_clock, bound, *trusting.static(config), *shared)


def make_group(configs: Sequence[Config], env: Env | None = None) -> Group:
    """The group of configurations that have `static_fields` in common; `env` as for `make_run`.

    Raises:
      ConfigError: it cannot be made; or a guest's algorithm, aggregator or policy fails in a round or an adaptation,
        which is seen by tracing one.
    """
    with contracts.named(configs[0]):
        group = _group(configs, env)
        if contracts.guests(configs[0]):
            _trace(group)
    return group


def _group(configs: Sequence[Config], env: Env | None) -> Group:
    first = make_run(configs[0], None, env)
    trusting.refuse_memory(configs[0], lambda: abstract_state(first))
    floats = [item.name for item in fields(configs[0]) if isinstance(getattr(configs[0], item.name), float)]
    columns = {name: [getattr(c, name) for c in configs] for name in floats}
    values = {name: np.array(column, np.float32) for name, column in columns.items() if len(set(column)) > 1}
    return Group(tuple(configs), values, first, placement.make_mesh(len(configs)))


def _trace(group: Group) -> None:
    """A round and an adaptation by shapes alone."""
    states = jax.eval_shape(lambda: initial_states(group))
    alive = jax.ShapeDtypeStruct((len(group.configs),), bool)
    jax.eval_shape(lambda *args: round_of(group, *args), states, alive, group.values)

    def adapted(state: State) -> Any:
        client, task = take((state.clients, state.tasks), 0)
        params = group.run.algorithm.personal_params(state.server.shared, client)
        batch, _ = group.run.problem.sample(params, task, state.key)
        return group.run.algorithm.adapt(state.server.shared, client, params, batch)

    jax.eval_shape(adapted, abstract_state(group.run))


def initial_state(run: Assembled) -> State:
    """The state before the first round; all of it follows from the seed."""
    return jax.jit(run.simulation.init)(root_key(run.config.seed))


def initial_states(group: Group) -> State:
    """Every member's state [G] before the first round."""

    def init(seed, values):
        return group.member(values).simulation.init(root_key(seed))

    seeds = np.array([c.seed for c in group.configs], np.uint32)
    return placement.jit(jax.vmap(init), group.mesh, by_member=True)(seeds, group.values)


def abstract_state(run: Assembled) -> State:
    """Shapes and types of the state, without computing it."""
    return jax.eval_shape(run.simulation.init, root_key(run.config.seed))


def round_of(group: Group, states: State, alive: Array, values: dict[str, Array]) -> tuple[State, Array, Metrics]:
    """One round of every member: states [G], alive [G] bool -> the same, and metrics [G].

    A member whose server ceases to be finite is not alive from then on: it keeps its last finite state.
    """

    def one(state, still, of):
        new, metrics = group.member(of).simulation.round(state)
        ok = still & all_finite(new.server)
        # the key stays what it is; JAX's check for keys used twice would take a choice between it and itself for a use
        none: Any = ()
        kept = select(ok, new._replace(key=none), state._replace(key=none))
        return kept._replace(key=state.key), ok, metrics

    return jax.vmap(one)(states, alive, values)
