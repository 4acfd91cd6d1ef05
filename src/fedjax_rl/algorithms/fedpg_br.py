"""FedPG-BR: gradients that the server filters, and variance-reduced steps on episodes of its own."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import chunked, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Server, Upload


def fedpg_br(
    problem: Problem,
    *,
    server_opt: optax.GradientTransformation,
    inner_lr: float,
    inner_batch: int = 4,
    inner_steps: float = 5.0,
    ratio_tolerance: float = 0.005,
    client_batch: int | None = None,
) -> Algorithm:
    """Clients send gradients at theta_0; the server makes N steps of their mean mu, with a correction by itself.

    N is geometric on 1, 2, ... with mean `inner_steps`. In each step the server samples `inner_batch` episodes D at
    its theta_n and moves by `server_opt` on

        v_n = grad L(theta_n; D) - grad L(theta_0; D) + mu.

    D is of theta_n. What makes its gradient at theta_0 one of theta_0's is the importance weight pi_0 / pi_n, which L
    itself has: with the surrogate "ratio" (and a clip that does not bind) each step has its own, which is what the
    authors' code does; with "dice" it is the product up to the step; with "log" there is none. v_n is biased: an
    advantage looks at later rewards, which theta_n's policy earns, and no weight reaches that far ("ratio" does not
    know how theta_n came to the state either). Terms of entropy and of a critic have no weight at all.
    Steps end early, before the one that sees a mean ratio pi_0 / pi_n outside 1 +- `ratio_tolerance`. v_0 is mu
    and is taken without episodes. Which gradients mu is made of is the aggregator's: the paper's filter is `fedpg_br`.

    Source: Fan, Ma, Dai, Jing, Tan and Low, "Fault-Tolerant Federated Reinforcement Learning with Theoretical
    Guarantee", NeurIPS 2021, Algorithm 1, whose steps are N ~ Geom with mean (B + b) / b for B episodes of a client and
    b of the server. Departures: B is the same in every round, where the authors' code draws it; where the filter leaves
    nobody mu is 0, where their server goes on with gradients of its own.

    Args:
      problem: init, sample, loss L = -J, ratio and server_sample.
      server_opt: the server's optimizer, whose state goes on from round to round; the authors' code has Adam.
      inner_lr: rate of the adaptation.
      inner_batch: b, episodes of a step of the server.
      inner_steps: mean of N, 1 or more; 1 for one step of mu.
      ratio_tolerance: as above.
      client_batch: clients a chunk of the gradients; None: all.
    """
    if problem.ratio is None or problem.server_sample is None:
        raise ValueError("the problem has no `ratio` and `server_sample`, which a server that samples needs")
    ratio, sample, gradient = problem.ratio, problem.server_sample, jax.grad(problem.loss)
    of_client = chunked(gradient, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared, task, key)
        return Upload(of_client(shared, batch), jnp.ones(())), client, measured(before)

    def server_update(server, aggregate, key):
        key_count, key_steps = jax.random.split(key)
        count = jax.random.geometric(key_count, 1.0 / inner_steps)
        start, mu = server.shared, aggregate.message

        def moved(params, private, direction):
            updates, private = server_opt.update(direction, private, params)
            return optax.apply_updates(params, updates), private

        def step(carry):
            n, _, params, private = carry
            batch = sample(params, jax.random.fold_in(key_steps, n), inner_batch)
            is_near = jnp.abs(ratio(start, batch) - 1.0) <= ratio_tolerance
            correction = trees.sub(gradient(params, batch), gradient(start, batch))
            new = moved(params, private, trees.axpy(1.0, correction, mu))
            return n + 1, is_near, *trees.select(is_near, new, (params, private))

        first = (jnp.ones_like(count), jnp.array(True), *moved(start, server.private, mu))
        _, _, params, private = jax.lax.while_loop(lambda carry: (carry[0] < count) & carry[1], step, first)
        return Server(params, private)

    model = one_model(problem, client_update, server_opt, inner_lr, client_batch)
    return model._replace(server_update=server_update)
