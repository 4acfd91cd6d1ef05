"""QAvg: tabular Q-iteration on each client's own known process, averaged by the server."""

import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload, ValueProblem


def q_avg(
    problem: ValueProblem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    client_batch: int | None = None,
) -> Algorithm:
    """One table Q for all: `local_steps` times Q <- Q + rate (T_i Q - Q), upload the change.

    T_i is the Bellman optimality operator of client i's process. With one local step, and rates of 1, a round is
    Q-iteration on the process of the clients' mean probabilities and rewards, because T_i is linear in these.

    Source: Jin, Peng, Yang, Wang, Zhang, "Federated Reinforcement Learning with Environment Heterogeneity", AISTATS
    2022 (QAvg), with exact backups.

    Args:
      problem: it needs `backup`; its parameters are {"table": [S, A]}.
      client_opt: plain steps of the client's rate along T_i Q - Q.
      server_opt: the server's optimizer; SGD of rate 1 takes the mean table.
      local_steps: backups of a client in a round.
      inner_lr: rate of the adaptation that evaluation tries, a gradient step on greedy episodes.
      client_batch: clients a chunk of the backups; None: all.

    Raises:
      ValueError: the problem has no `backup`.
    """
    if problem.backup is None:
        raise ValueError("q_avg: needs an environment whose probabilities are known, such as finite/random")
    backup = problem.backup
    change = local_change(lambda q, task: trees.sub(q, backup(q, task)), client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        _, before = problem.sample(shared, task, key)
        return Upload(change(shared, task), jnp.ones(())), client, measured(before)

    return one_model(plain_problem(problem), client_update, server_opt, inner_lr, client_batch)


def plain_problem(problem: ValueProblem) -> Problem:
    """The problem whose batches are greedy episodes, and whose loss takes the parameters as their own target."""
    return Problem(problem.init, problem.sample, lambda params, batch: problem.loss(params, params, *batch))
