"""NIGT: normalised policy gradients with implicit gradient transport, under Rennala's, Malenia's or any schedule."""

import optax

from fedjax_rl.algorithms.afedpg import afedpg
from fedjax_rl.types import Algorithm, Problem


def nigt(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    local_steps: int = 1,
    inner_lr: float = 0.1,
    momentum: float = 0.1,
    step_length: float = 2**-5,
    client_batch: int | None = None,
) -> Algorithm:
    """`afedpg` with constant rates: d = (1 - eta) d + eta g, a step of length step_length along d, and the look-ahead.

    What makes it one method or another is the schedule. Rennala: an update of any M gradients, whereupon all begin
    anew. Malenia: an update when the harmonic mean of the clients' gradients is M / N, each client weighing the same.
    Synchronous: one gradient of each client.

    Source: Cutkosky and Mehta, "Momentum Improves Normalized SGD", ICML 2020, Algorithm 2; as federated policy
    gradients in "Asynchronous Policy Gradient Aggregation for Efficient Distributed Reinforcement Learning", ICLR 2026.
    Departure: advantages are the configuration's, where the paper has returns without a baseline. Arguments as for
    `afedpg`; `momentum` is eta.
    """
    return afedpg(
        problem,
        client_opt=client_opt,
        local_steps=local_steps,
        inner_lr=inner_lr,
        momentum=momentum,
        step_length=step_length,
        client_batch=client_batch,
    )
