"""DPA-FedRL: clients of unlike networks follow a server that acts in an environment by the mean of their policies."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.fedhpd import adam_steps, fedhpd, silence
from fedjax_rl.algorithms.parts import chunked
from fedjax_rl.types import Aggregate, Algorithm, Key, Problem, Server, Upload, Walk

VARIANTS = ("corrected", "published")


def dpa_fedrl(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    variant: str = "corrected",
    lr_decay: float = 0.95,
    lr_decay_every: int = 100,
    client_batch: int | None = None,
) -> Algorithm:
    """The server is in a state s of an environment of its own. A round has four parts:

    1. a client that knows of an earlier answer takes one Adam step on sum_a (pi_i(a | s') - p(a))^2;
    2. it takes `local_steps` Adam steps on L(.; D), each on a batch D of its own;
    3. it says pi_i(. | s);
    4. the server takes the mean p, acts by it once, and sends p with its next state.

    The mean p belongs to the state in which the clients were asked, and "corrected" compares there: s' is the s of p.
    "published" compares with the policy in the next state, and a distillation step counts for the schedule of the rate
    like a batch. Nothing else differs. Continuous policies say means and deviations.

    Source: the baseline of Kong et al., "Heterogeneous Federated Reinforcement Learning via Policy Distillation", AAMAS
    2025, arXiv 2502.00870, as their experiments have it.

    Args:
      problem: of the clients; it needs `say`, `distance` and `walk`.
      client_opt: plain gradient steps of the client's rate; it is given Adam's directions.
      local_steps: the batches between two answers (published: 1, of one episode).
      inner_lr: rate of the plain step of adaptation that evaluation tries.
      variant: "corrected" or "published".
      lr_decay: factor of the rate after every `lr_decay_every` batches of a client.
      lr_decay_every: as above.
      client_batch: clients whose gradients are computed at a time (None: all).
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: one of {', '.join(VARIANTS)}")
    if problem.say is None or problem.distance is None or problem.walk is None:
        raise ValueError("the problem has no `say`, `distance` and `walk`, which a server that acts needs")
    say, walk, published = problem.say, problem.walk, variant == "published"
    alone = fedhpd(
        problem,
        client_opt=client_opt,
        local_steps=local_steps,
        inner_lr=inner_lr,
        distill="none",
        distill_optimizer="shared",
        lr_decay=lr_decay,
        lr_decay_every=lr_decay_every,
        client_batch=client_batch,
    )
    move = adam_steps(client_opt, lr_decay, lr_decay_every)
    gradient = chunked(jax.grad(problem.distance), client_batch)

    def client_update(shared, client, task, key):
        push = gradient(client["params"], shared["mean"], shared["compared"])
        moved = move(client, push, "adam")
        moved = {**moved, "batches": moved["batches"] + published}
        client = trees.select(shared["known"] > 0, moved, client)
        _, client, metrics = alone.client_update((), client, task, key)
        return Upload(say(client["params"], shared["asked"]), jnp.ones(())), client, metrics

    init, server_update = _acting(problem, walk, published)
    return alone._replace(init=init, client_update=client_update, server_update=server_update)


def _acting(problem: Problem, walk: Walk, published: bool) -> tuple[Callable, Callable]:
    """A server that acts by the mean of what it is told: its `init` and `server_update`. Observations are [1, O]."""

    def init(key: Key) -> Server:
        at = walk.start(key)
        asked = jnp.copy(walk.see(at))[None]  # no buffer is twice in a state, which a round may be given for good
        shared = {"asked": asked, "compared": jnp.zeros_like(asked), "mean": silence(problem, asked, key)}
        return Server({**shared, "known": jnp.zeros(())}, at)

    def server_update(server: Server, aggregate: Aggregate, key: Key) -> Server:
        at = walk.step(server.private, aggregate.message, key)
        asked = walk.see(at)[None]
        compared = asked if published else server.shared["asked"]
        return Server({"asked": asked, "compared": compared, "mean": aggregate.message, "known": jnp.ones(())}, at)

    return init, server_update
