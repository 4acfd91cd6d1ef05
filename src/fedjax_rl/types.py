"""The nouns of fedjax_rl: what a problem, an algorithm and an aggregator are.

An algorithm says what ONE client does and how the server absorbs ONE combined message. Everything else (the client
axis, who is selected, the clock, devices, checkpoints) is the engine's, which never knows which algorithm it runs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array  # a typed key, as made by jax.random.key
Tree = Any  # a pytree of arrays
Params = Tree
Shared = Tree
Client = Tree
Task = Tree
Batch = Tree
Message = Tree
Metrics = dict[str, jax.Array]
HEALTH = "health/"  # begins the names of metrics that are counts
NONFINITE_ENVS, STRAGGLERS = "health/nonfinite_envs", "health/stragglers"


class Stats(NamedTuple):
    """What a batch of episodes showed.

    Attributes:
      returned: (), the mean over the episodes of the undiscounted return.
      nonfinite_envs: () int32, how many of the episodes ceased to be finite.
    """

    returned: Array
    nonfinite_envs: Array


class Walk(NamedTuple):
    """An episode after another, lived through a step at a time by a server.

    Attributes:
      start: key -> where the walk is.
      step: (where it is, the mean of what the policies say of its observation, leaves [1, ...], key) -> where it is
        then. The action is drawn from that mean. Where an episode is over the next one begins.
      see: where it is -> the observation [O].
    """

    start: Callable[[Key], Tree]
    step: Callable[[Tree, Tree, Key], Tree]
    see: Callable[[Tree], Array]


class Tuning(NamedTuple):
    """What of a loss a learned strategy may decide, () each: the entropy's weight, the advantages' lambda, the clip."""

    entropy_coef: Array | float
    gae_lambda: Array | float
    clip: Array | float


class Tuned(NamedTuple):
    """A loss whose numbers are arguments, so that it can be differentiated in them.

    Attributes:
      limit: (batch, count) -> the batch of its first `count` episodes, the others masked, with the values against which
        advantages are taken. `count` may be a float.
      loss: (parameters, what `limit` gave, tuning) -> (), the problem's loss with these numbers in place of its own.
    """

    limit: Callable[[Batch, Array | float], Batch]
    loss: Callable[[Params, Batch, Tuning], Array]


class Problem(NamedTuple):
    """All that an algorithm may know of reinforcement learning.

    Attributes:
      init: key -> parameters.
      sample: (parameters, task, key) -> (batch, stats). It acts in the task for E episodes of T steps. The batch
        carries the log-probabilities of the actions and the advantages.
      loss: (parameters, batch) -> (), the negative surrogate -J on a fixed batch. It can be differentiated twice.
      own: (what `init` gave, a client's number) -> the parameters that this client starts from. They are the same,
        except where clients are of unlike kinds: then `init` gives those of all kinds.
      say: (parameters, obs [S, O]) -> what the policy says of S observations, for distillation; leaves [S, ...].
      divergence: (parameters, consensus, obs [S, O]) -> (), how far the policy is from what others said of them, mean.
      distance: the same, by the squared difference of what it says and they said, summed and averaged over the S.
      walk: through the clients' environment, for a server that acts.
      kl: (parameters, at, batch) -> () in nats, KL(pi_at || pi_parameters), mean over the batch's valid steps. Its
        Hessian in the parameters, taken where they are `at`, is the Fisher matrix.
      ratio: (parameters, batch) -> (), pi_parameters(a | s) / pi_sampled(a | s), mean over the batch's valid steps.
      server_sample: (parameters, key, count) -> a batch of `count` episodes that the server lives through, each in a
        task of its own, drawn as the clients' are.
      tuned: the loss with numbers that a strategy decides.
      lift: (make: problem -> f) -> f for clients of whatever kind, f: (parameters, *data) -> (parameters, floats). What
        f computes inside has derivatives of any order. None: all clients are of one kind, and `make(problem)` is it.
    """

    init: Callable[[Key], Params]
    sample: Callable[[Params, Task, Key], tuple[Batch, Stats]]
    loss: Callable[[Params, Batch], Array]
    own: Callable[[Params, Array | int], Params] = lambda params, id: params
    say: Callable[[Params, Array], Tree] | None = None
    divergence: Callable[[Params, Tree, Array], Array] | None = None
    distance: Callable[[Params, Tree, Array], Array] | None = None
    walk: Walk | None = None
    kl: Callable[[Params, Params, Batch], Array] | None = None
    ratio: Callable[[Params, Batch], Array] | None = None
    server_sample: Callable[[Params, Key, int], Batch] | None = None
    tuned: Tuned | None = None
    lift: Callable[[Callable[["Problem"], Callable]], Callable] | None = None


class Transition(NamedTuple):
    """One step of an environment with discrete actions, from which values are learned.

    Attributes:
      obs: [O] before the step.
      action: [1] int32.
      reward: ().
      ended: () bool, is nothing to come after it? A time limit ends an episode too, but not this: values go on there.
      next_obs: [O] after the step, before any new episode begins.
    """

    obs: Array
    action: Array
    reward: Array
    ended: Array
    next_obs: Array


class ValueProblem(NamedTuple):
    """All that an algorithm which learns values may know of reinforcement learning.

    Attributes:
      init: key -> parameters.
      start: (task, key) -> where a running environment is, arrays of numbers.
      act: (parameters, where it is, epsilon, task, key) -> (where it is then, transition): one epsilon-greedy step.
        Where an episode is over the next one begins.
      loss: (parameters, target parameters, transitions [B], valid [B] bool) -> (), the mean error of the valid ones.
      sample: (parameters, task, key) -> ((transitions [B], valid [B]), stats) of E greedy episodes.
      seen: where it is -> (stats of the episodes since `start`, or since this was last asked; where it is, asked).
      blank: (where it is, transition), all zeros: the shapes of what `start` and `act` give.
      backup: (parameters, task) -> the parameters after the Bellman optimality operator of the task, where its model is
        known.
    """

    init: Callable[[Key], Params]
    start: Callable[[Task, Key], Tree]
    act: Callable[[Params, Tree, Array, Task, Key], tuple[Tree, Transition]]
    loss: Callable[[Params, Params, Transition, Array], Array]
    sample: Callable[[Params, Task, Key], tuple[tuple[Transition, Array], Stats]]
    seen: Callable[[Tree], tuple[Stats, Tree]]
    blank: tuple[Tree, Transition]
    backup: Callable[[Params, Task], Params] | None = None


class Server(NamedTuple):
    """The server's state. The privacy boundary is a field: only `shared` is ever sent to clients.

    Attributes:
      shared: what clients are sent, such as the model.
      private: what stays at the server, such as the state of its optimizer.
    """

    shared: Shared
    private: Tree


class Upload(NamedTuple):
    """What one client sends.

    Attributes:
      message: a pytree of the same form for all clients, such as the change of the model.
      weight: (), the message's weight in the mean. With weight 0 nothing was sent, and the message is ignored.
    """

    message: Message
    weight: Array


class Aggregate(NamedTuple):
    """What the server gets of a round.

    Attributes:
      message: the messages of the clients that were heard, combined into one; there is no client axis.
      participation: (), the number of these clients divided by N; as if all had been heard, where `Aggregator.at_least`
        is 0.
      staleness: (), the mean over these clients of the updates that the server made while they worked; 0 where all wait
        for each other.
    """

    message: Message
    participation: Array
    staleness: Array | float = 0.0


class Algorithm(NamedTuple):
    """Pure functions, each written for ONE client; the engine maps them over the client axis.

    `parts.one_model` makes the usual ones.

    Attributes:
      init: key -> server.
      init_client: (shared, key, the client's number) -> what a client keeps between its rounds; () when nothing.
      client_update: (shared, client, task, key) -> (upload, client, metrics), a client's work in a round. Metrics are
        () each. The engine takes their mean over the honest clients that took part with finite work, heard or silent. A
        name that begins with "health/" is a count: the engine takes its sum over all selected clients.
      server_update: (server, aggregate, key) -> server.
      personal_params: (shared, client) -> the parameters that the client acts with.
      adapt: (shared, client, parameters, batch) -> parameters after one step of adaptation. Evaluation takes it.
      exchanges: (how many more exchanges a round has, what a client does in each of them), or None. After the first,
        each is again upload, aggregation and `server_update`, by the same cohort. The function is like `client_update`
        with one more argument, the exchange's number from 1, and without metrics.
      idle: server -> server, instead of `server_update` where nobody is heard. By default it stays as it is.
    """

    init: Callable[[Key], Server]
    init_client: Callable[[Shared, Key, Array], Client]
    client_update: Callable[[Shared, Client, Task, Key], tuple[Upload, Client, Metrics]]
    server_update: Callable[[Server, Aggregate, Key], Server]
    personal_params: Callable[[Shared, Client], Params]
    adapt: Callable[[Shared, Client, Params, Batch], Params]
    exchanges: tuple[int, Callable[[Shared, Client, Task, Key, Array], tuple[Upload, Client]]] | None = None
    idle: Callable[[Server], Server] = lambda server: server


class Aggregator(NamedTuple):
    """How M weighted messages become one.

    Attributes:
      init: message -> what the aggregator keeps between rounds; () when it keeps nothing.
      update: (messages [M, ...], weights [M], state, key) -> (message, state). A weight of 0 is a client that was not
        heard; its message is all zeros.
      at_least: how many clients must be heard for a message to exist at all; where fewer are, the server does not
        move. 0: it exists also when nobody was heard, so that a server that sees only it cannot tell.
      show: state -> what a round's metrics show of it, () each; of several exchanges, after the first.
    """

    init: Callable[[Message], Tree]
    update: Callable[[Message, Array, Tree, Key], tuple[Message, Tree]]
    at_least: int = 1
    show: Callable[[Tree], Metrics] = lambda state: {}


class Attack(NamedTuple):
    """What some of the clients do to harm the others.

    Attributes:
      share: () of the N clients that are malicious, 0 to 1. They are the same for the whole run.
      forge: (messages [M, ...], honest [M], malicious [M], key) -> messages [M, ...], those of the malicious replaced.
        `honest` are the others that were heard; all see their messages. A message that was not heard is all zeros.
      in_world: is a task {"task", "malicious": ()} where clients train, for an environment that lies to the malicious?
    """

    share: Array | float
    forge: Callable[[Message, Array, Array, Key], Message]
    in_world: bool = False
