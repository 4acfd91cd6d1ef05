"""LAPG: policy gradients in which a client is silent while it has nothing new to say."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import chunked, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Server, Upload

_PAST = 10  # D, updates that a client looks back on


def _square(tree):
    return sum(jnp.sum(x * x) for x in jax.tree.leaves(tree))


def lapg(
    problem: Problem,
    *,
    server_opt: optax.GradientTransformation,
    inner_lr: float,
    patience: float = 0.1,
    noise_factor: float = 2.0,
    client_batch: int | None = None,
) -> Algorithm:
    """A client sends how its gradient differs from the last one that it sent, where that is more than noise.

    With g = (g_A + g_B) / 2 of two batches, delta = g - last, and nabla_k the mean of what was last sent, it sends iff

        |delta|^2 >= patience / D sum_(d=1)^D |nabla_(k-d)|^2 + noise_factor / 4 |g_A - g_B|^2,  D = 10,

    and in its first round. The server adds the deltas to nabla and moves by `server_opt` on it, heard or not.

    Source: Chen, Zhang, Giannakis and Basar, "Communication-Efficient Policy Gradient Methods for Distributed
    Reinforcement Learning", IEEE TCNS 2022, section III; the first term as in Chen et al., "LAG: Lazily Aggregated
    Gradient", NeurIPS 2018, Eq. 15a, in means. The second is the printed variance by an estimate, with a factor to
    choose.

    Args:
      problem: init, sample and loss L = -J.
      server_opt: the server's optimizer; the paper's is plain gradient descent.
      inner_lr: rate of the adaptation.
      patience: xi; 0 and a noise_factor of 0 for everybody always.
      noise_factor: how much of the difference that noise alone makes is held back.
      client_batch: clients a chunk of the gradients; None: all.
    """
    gradient = chunked(jax.grad(problem.loss), client_batch)

    def init(key):
        params = problem.init(key)
        nabla = jax.tree.map(jnp.zeros_like, params)
        past = jnp.zeros(_PAST, jnp.result_type(*jax.tree.leaves(params)))
        private = {"nabla": nabla, "past": past, "optimizer": server_opt.init(params)}
        return Server({"params": params, "least": past.mean()}, private)

    def init_client(shared, key, id):
        del key, id
        return {"last": jax.tree.map(jnp.zeros_like, shared["params"]), "began": jnp.zeros(())}

    def client_update(shared, client, task, key):
        keys, params = jax.random.split(key), shared["params"]
        one, before = problem.sample(params, task, keys[0])
        two, again = problem.sample(params, task, keys[1])
        first, second = gradient(params, one), gradient(params, two)
        new = jax.tree.map(lambda a, b: 0.5 * (a + b), first, second)
        delta = trees.sub(new, client["last"])
        noise = 0.25 * _square(trees.sub(first, second))
        sends = (_square(delta) >= shared["least"] + noise_factor * noise) | (client["began"] == 0)
        weight = sends.astype(jnp.zeros(()).dtype)
        return Upload(delta, weight), {"last": new, "began": jnp.ones(())}, measured(before, also=again)

    def step(server, nabla):
        updates, optimizer = server_opt.update(nabla, server.private["optimizer"], server.shared["params"])
        params = optax.apply_updates(server.shared["params"], updates)
        past = jnp.roll(server.private["past"], 1).at[0].set(_square(nabla))
        private = {"nabla": nabla, "past": past, "optimizer": optimizer}
        return Server({"params": params, "least": patience * past.mean()}, private)

    def server_update(server, aggregate, key):
        del key
        return step(server, trees.axpy(aggregate.participation, aggregate.message, server.private["nabla"]))

    model = one_model(problem, client_update, server_opt, inner_lr, client_batch)
    return model._replace(
        init=init,
        init_client=init_client,
        server_update=server_update,
        personal_params=lambda shared, client: shared["params"],
        idle=lambda server: step(server, server.private["nabla"]),
    )
