"""From a configuration to the objects that run it."""

from dataclasses import fields, replace
from typing import NamedTuple

import jax
import optax

from fedjax_rl.aggregators import mean
from fedjax_rl.algorithms import ALGORITHMS
from fedjax_rl.clients import SELECTIONS
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.envs import Env, make_env
from fedjax_rl.optimizers import SERVER_OPTIMIZERS
from fedjax_rl.rl.policies import gaussian_mlp
from fedjax_rl.rl.problem import make_problem
from fedjax_rl.simulate import Simulation, State, make_simulation
from fedjax_rl.types import Algorithm, Problem


class Run(NamedTuple):
    """A configuration and what it describes."""

    config: Config
    env: Env
    problem: Problem
    algorithm: Algorithm
    simulation: Simulation

    @property
    def env_steps_per_round(self) -> int:
        """Environment steps of one round: selected clients x batches x episodes x horizon."""
        c = self.config
        return c.clients_per_round * c.batches * c.episodes * self.env.spec.horizon


def make_run(config: Config) -> Run:
    """The environment, policy, problem, algorithm and simulation of a configuration."""
    try:
        env = make_env(config.env, backend=config.backend, observation=config.observation)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    problem = make_problem(
        env,
        gaussian_mlp(env.spec, hidden=config.hidden, activation=config.activation),
        episodes=config.episodes,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        clip=config.clip,
        surrogate=config.surrogate,
    )
    algorithm = make_algorithm(config, problem)
    clip = optax.clip_by_global_norm(config.max_change_norm) if config.max_change_norm else None
    simulation = make_simulation(
        algorithm,
        num_clients=config.num_clients,
        clients_per_round=config.clients_per_round,
        sample_tasks=env.sample_tasks,
        aggregator=mean(),
        select=SELECTIONS[config.selection],
        uplink=clip,
    )
    return Run(config, env, problem, algorithm, simulation)


def make_algorithm(config: Config, problem: Problem) -> Algorithm:
    """The configured algorithm; what its configuration class adds are its factory's arguments of the same names."""
    shared = {item.name for item in fields(Config)}
    own = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in shared}
    return ALGORITHMS[config.algorithm](
        problem,
        client_opt=optax.sgd(config.local_lr),
        server_opt=SERVER_OPTIMIZERS[config.server](config.server_lr),
        local_steps=config.local_steps,
        inner_lr=config.inner_lr,
        client_batch=config.client_batch or (1 if jax.default_backend() == "cpu" else None),
        **own,
    )


def adaptations(run: Run, rates: tuple[float, ...], steps: int) -> tuple:
    """The adapt of each of `steps` steps; step j has rate rates[j], the last rate serves the steps that follow."""
    by_rate = {r: make_algorithm(replace(run.config, inner_lr=r), run.problem).adapt for r in rates}
    return tuple(by_rate[rates[min(j, len(rates) - 1)]] for j in range(steps))


def initial_state(run: Run) -> State:
    """The state before the first round; all of it follows from the seed."""
    return jax.jit(run.simulation.init)(jax.random.key(run.config.seed))


def abstract_state(run: Run) -> State:
    """Shapes and types of the state, without computing it."""
    return jax.eval_shape(run.simulation.init, jax.random.key(run.config.seed))
