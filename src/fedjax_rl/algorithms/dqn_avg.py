"""DQNAvg: deep Q-learning on each client, whose networks the server averages."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms import replay
from fedjax_rl.algorithms.parts import keep_on_client, measured, one_model
from fedjax_rl.algorithms.q_avg import plain_problem
from fedjax_rl.algorithms.q_learning import Learned, q_learning
from fedjax_rl.types import Aggregate, Algorithm, Array, Key, Params, Server, Tree, Upload, ValueProblem

LOCAL = {"adam": optax.scale_by_adam(), "sgd": optax.identity()}
HEAD = ("logits",)  # the output layer's name
KEPT: dict[str, tuple[str, ...]] = {"none": (), "replay": ("replay",), "all": ("replay", "running", "moments")}


def dqn_avg(
    problem: ValueProblem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    learn_every: int = 1,
    learn_after: int = 32,
    batch: int = 16,
    capacity: int = 1000,
    sync: int = 10,
    epsilon_start: float = 1.0,
    epsilon_decay: float = 0.99,
    epsilon_floor: float = 0.05,
    keep: str = "none",
    aggregate: str = "parameters",
    local_optimizer: str = "adam",
    personal: str = "none",
    head_lr: float = 0.001,
    client_batch: int | None = None,
) -> Algorithm:
    """`local_steps` times: `learn_every` epsilon-greedy steps into the replay, then a step on a batch of it; upload.

    epsilon = max(epsilon_floor, epsilon_start epsilon_decay^n) after n learning steps of this client, in all rounds.

    Source: Jin, Peng, Yang, Wang, Zhang, "Federated Reinforcement Learning with Environment Heterogeneity", AISTATS
    2022 (DQNAvg); published are the defaults, but for the floor of epsilon. The personal head is that of `fedrep`,
    learned together with the body at a rate of its own.

    Args:
      problem: the problem.
      client_opt: plain steps of the client's rate; it is given the directions of `local_optimizer`.
      server_opt: the server's optimizer; SGD of rate 1 takes the mean.
      local_steps: learning steps of a client in a round.
      inner_lr: rate of the adaptation that evaluation tries, a gradient step on greedy episodes.
      learn_every: environment steps before each learning step.
      learn_after: transitions that the replay must hold before anything is learned.
      batch: B, transitions of a learning step.
      capacity: C, transitions that the replay can hold.
      sync: local steps after which the model becomes the target; for "gradients" the server's updates.
      epsilon_start, epsilon_decay, epsilon_floor: as above.
      keep: what a client keeps from round to round: "none"; "replay"; or "all", also the state of its optimizer and its
        running episode.
      aggregate: "parameters" (the model's change is sent); "gradients" (the model and its target stand still in the
        round, and the sum of the steps is sent); or "none" (no federation: every client has a model of its own).
      local_optimizer: "adam" or "sgd"; where it is not kept, it begins anew in every round.
      personal: "head" (each client's output layer is its own), or "none".
      head_lr: rate of a personal head.
      client_batch: clients a chunk of the learning steps; None: all.
    """
    is_still, alone, direction, kept = aggregate == "gradients", aggregate == "none", LOCAL[local_optimizer], KEPT[keep]
    opt = _head_apart(client_opt, head_lr) if personal == "head" else client_opt
    work = q_learning(
        problem,
        direction=direction,
        opt=opt,
        epsilon=lambda steps: jnp.maximum(epsilon_floor, epsilon_start * epsilon_decay**steps),
        local_steps=local_steps,
        learn_every=learn_every,
        learn_after=learn_after,
        batch=batch,
        sync=sync,
        is_still=is_still,
        client_batch=client_batch,
    )

    def client_update(shared, client, task, key):
        start = client["params"] if alone else shared["params"] if is_still else shared
        target = shared["target"] if is_still else start
        key_start, key_work = jax.random.split(key)
        fresh = {**blank(start), "running": problem.start(task, key_start)}
        has = fresh | {name: client[name] for name in kept}
        if "running" in kept:  # a new client's was never begun
            has["running"] = trees.select(client["replay"].pushed > 0, client["running"], fresh["running"])
        begun = Learned(start, target, has["moments"], opt.init(start), client["steps"])
        learned, running, memory = work((begun, has["running"], has["replay"]), task, key_work)
        stats, running = problem.seen(running)
        after = {"replay": memory, "running": running, "moments": learned.moments, "params": learned.params}
        message = jnp.zeros((0,)) if alone else trees.sub(learned.params, start)
        own = {name: learned.steps if name == "steps" else after[name] for name in client}
        return Upload(message, jnp.ones(())), own, measured(stats)

    def blank(params: Params) -> dict[str, Tree]:
        running, transition = problem.blank
        memory = replay.empty(capacity, transition)
        return {"replay": memory, "running": running, "moments": direction.init(params), "params": params}

    def init_client(shared, key, id):
        has = blank(shared["params"] if is_still else shared)
        return {"steps": jnp.zeros(()), **{name: has[name] for name in (*kept, *(("params",) if alone else ()))}}

    made = one_model(plain_problem(problem), client_update, server_opt, inner_lr, client_batch)
    made = made._replace(init_client=init_client)
    if alone:
        return made._replace(
            init=lambda key: Server(problem.init(key), ()),
            server_update=lambda server, aggregate, key: server,
            personal_params=lambda shared, client: client["params"],
        )
    if is_still:
        return _with_target(made, sync)
    return keep_on_client(made, HEAD) if personal == "head" else made


def _head_apart(opt: optax.GradientTransformation, rate: Array | float) -> optax.GradientTransformation:
    """`opt`, but plain steps of another rate on the head, which stands still where `opt` does (who is late)."""

    def update(direction: Tree, state: Tree, params: Params | None = None) -> tuple[Tree, Tree]:
        updates, state = opt.update(direction, state, params)
        head = trees.where_path(lambda names: bool(names & set(HEAD)), direction)
        moves = optax.tree.norm(updates) != 0
        return trees.merge(jax.tree.map(lambda d: jnp.where(moves, -rate * d, 0.0), head), updates), state

    return optax.GradientTransformation(opt.init, update)


def _with_target(model: Algorithm, sync: int) -> Algorithm:
    """The algorithm whose server also sends the target, which is its model as it was after the last `sync` updates."""

    def init(key: Key) -> Server:
        params, private = model.init(key)
        target = jax.tree.map(jnp.copy, params)  # a buffer of its own: a state may be donated
        return Server({"params": params, "target": target}, {"opt": private, "updates": jnp.zeros((), jnp.int32)})

    def server_update(server: Server, aggregate: Aggregate, key: Key) -> Server:
        params, opt = model.server_update(Server(server.shared["params"], server.private["opt"]), aggregate, key)
        updates = server.private["updates"] + 1
        target = trees.select(updates % sync == 0, params, server.shared["target"])
        return Server({"params": params, "target": target}, {"opt": opt, "updates": updates})

    return model._replace(
        init=init, server_update=server_update, personal_params=lambda shared, client: shared["params"]
    )
