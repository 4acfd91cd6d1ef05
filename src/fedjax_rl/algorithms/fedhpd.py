"""FedHPD: clients of unlike networks learn from what their policies say about states that all of them know."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import meta
from fedjax_rl.algorithms.parts import chunked, measured
from fedjax_rl.types import Algorithm, Array, Client, Key, Params, Problem, Server, Tree, Upload

DISTILL, OPTIMIZERS = ("consensus", "placebo", "none"), ("own", "shared")


def fedhpd(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    public_states: Array | None = None,
    distill: str = "consensus",
    distill_optimizer: str = "own",
    loops: int = 5,
    parts: int = 2,
    lr_decay: float = 0.95,
    lr_decay_every: int = 100,
    client_batch: int | None = None,
) -> Algorithm:
    """`local_steps` times: D ~ own model, one Adam step on L(.; D). Then the clients distil from each other.

    The S public states stand in `parts` equal parts, which are taken `loops` times in turn. Each time every client
    says what its policy does there, the server takes the mean p, and every client takes one Adam step on the mean
    divergence: KL(p || pi_i) for discrete actions, KL(pi_i || p) for Gaussians. No parameters are sent. The rate of
    either step is client_opt's times lr_decay^floor(batches sampled so far / lr_decay_every).

    Source: Kong et al., "Heterogeneous Federated Reinforcement Learning via Policy Distillation", AAMAS 2025, arXiv
    2502.00870; published is distill_optimizer "shared".

    Args:
      problem: of the clients; it needs `say` and `divergence` where they distil.
      client_opt: plain gradient steps of the client's rate; it is given Adam's directions.
      local_steps: the batches between two distillations (the paper's d, of one episode each).
      inner_lr: rate of the plain step of adaptation that evaluation tries.
      public_states: [S, O], S a multiple of `parts`; for "consensus" only.
      distill: "consensus"; "none" (no federation at all); or "placebo": the same steps with a gradient of zero, and
        nothing is sent. Under a shared optimiser these still move by what its momentum holds.
      distill_optimizer: "own" (an Adam of its own, kept from round to round), or "shared" with the local steps.
      loops: how often each part is taken.
      parts: into how many parts the public states are divided.
      lr_decay, lr_decay_every: as above.
      client_batch: clients whose gradients are computed at a time (None: all).
    """
    if distill not in DISTILL or distill_optimizer not in OPTIMIZERS:
        raise ValueError(f"distill {distill!r} by {distill_optimizer!r}: one of {DISTILL}, by one of {OPTIMIZERS}")
    move, steps = adam_steps(client_opt, lr_decay, lr_decay_every), loops * parts
    gradient = chunked(jax.grad(problem.loss), client_batch)
    slot = "adam" if distill_optimizer == "shared" else "distill_adam"  # of the state of the distillation's optimiser

    def client_update(shared, client, task, key):
        def learn(client, number):
            batch, stats = problem.sample(client["params"], task, jax.random.fold_in(key, number))
            client = move(client, gradient(client["params"], batch), "adam")
            return {**client, "batches": client["batches"] + 1}, stats

        client, stats = jax.lax.scan(learn, client, jnp.arange(local_steps))
        if distill == "placebo":
            nothing = jax.tree.map(jnp.zeros_like, client["params"])
            client, _ = jax.lax.scan(lambda client, _: (move(client, nothing, slot), ()), client, length=steps)
        metrics = measured(stats._replace(returned=stats.returned.mean()))
        return Upload(jnp.zeros((0,)), jnp.ones(())), client, metrics

    def init_client(shared, key, id):
        params = problem.own(problem.init(key), id)
        adams = {name: optax.scale_by_adam().init(params) for name in {"adam", slot}}
        return {"params": params, "batches": jnp.zeros(()), **adams}

    adapt = chunked(lambda params, batch: meta.adapt(problem.loss, params, batch, inner_lr), client_batch)
    alone = Algorithm(
        init=lambda key: Server((), ()),
        init_client=init_client,
        client_update=client_update,
        server_update=lambda server, aggregate, key: server,
        personal_params=lambda shared, client: client["params"],
        adapt=lambda shared, client, params, batch: adapt(params, batch),
    )
    if distill != "consensus":
        return alone
    if public_states is None:
        raise ValueError("public_states: none given; clients distil on them")
    states = jnp.asarray(public_states).reshape(parts, -1, public_states.shape[-1])
    return _with_consensus(alone, problem, states, steps, lambda client, push: move(client, push, slot), client_batch)


def adam_steps(client_opt: optax.GradientTransformation, lr_decay: Any, lr_decay_every: int) -> Callable:
    """(client, gradient, slot) -> the client after a step of the Adam whose state is in that slot."""
    adam = optax.scale_by_adam()

    def move(client: Client, gradient: Params, slot: str) -> Client:
        params = client["params"]
        direction, state = adam.update(gradient, client[slot])
        # half a batch more: a quotient that is whole may be rounded to just below
        shrunk = lr_decay ** jnp.floor((client["batches"] + 0.5) / lr_decay_every)
        updates, _ = client_opt.update(jax.tree.map(lambda d: shrunk * d, direction), client_opt.init(params), params)
        return {**client, "params": optax.apply_updates(params, updates), slot: state}

    return move


def silence(problem: Problem, obs: Array, key: Key) -> Tree:
    """Zeros in place of what clients say of observations [S, O], before they have said anything."""
    assert problem.say is not None
    params = jax.eval_shape(lambda: problem.own(problem.init(key), jnp.zeros((), jnp.int32)))
    said = jax.eval_shape(problem.say, params, obs)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), said)


def _with_consensus(
    alone: Algorithm,
    problem: Problem,
    states: Array,
    steps: int,
    move: Callable[[Client, Params], Client],
    client_batch: int | None,
) -> Algorithm:
    """Clients that learn as in `alone`, then take `steps` steps towards the mean of what all say.

    states: [parts, S / parts, O]. move: (client, gradient) -> client, a step of the distillation's optimiser.
    """
    if problem.say is None or problem.divergence is None:
        raise ValueError("the problem has no `say` and `divergence`, which distillation needs")
    say, gradient = problem.say, chunked(jax.grad(problem.divergence), client_batch)

    def said(client, number):
        return Upload(say(client["params"], states[number % len(states)]), jnp.ones(()))

    def client_update(shared, client, task, key):
        _, client, metrics = alone.client_update(shared, client, task, key)
        return said(client, 0), client, metrics

    def distil(shared, client, task, key, number):
        push = gradient(client["params"], shared, states[(number - 1) % len(states)])
        client = move(client, push)
        return said(client, number), client

    return alone._replace(
        init=lambda key: Server(silence(problem, states[0], key), ()),
        client_update=client_update,
        server_update=lambda server, aggregate, key: Server(aggregate.message, ()),
        exchanges=(steps, distil),
    )
