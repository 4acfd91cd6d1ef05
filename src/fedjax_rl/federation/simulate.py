"""The engine: one round of a federation as one pure function of one pytree."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl import trees
from fedjax_rl.federation import placement, selection
from fedjax_rl.federation.clock import zero_time
from fedjax_rl.federation.exchange import PLAIN, Exchange, Keys, Wires
from fedjax_rl.federation.metrics import Work, of_round
from fedjax_rl.federation.times import Pace, durations
from fedjax_rl.types import (
    Aggregator,
    Algorithm,
    Array,
    Attack,
    Key,
    Metrics,
    Server,
    Tree,
    Upload,
)

# One root key; what a number is for is its stream. Never renumber: a run's draws depend on it.
INIT, TASKS, INIT_CLIENTS, SELECT, UPDATE, AGGREGATE, SERVER, NEW_TASKS, NEW_CLIENTS, EVALUATE = range(10)
FILM, DROPOUT, EVALUATE_NEW, SPEED, DELAY, MALICIOUS, ATTACK, DOWNLINK, TIES = range(10, 19)


class State(NamedTuple):
    """Everything that a federation needs to go on.

    Attributes:
      server: the server's state; `server.shared` is what clients are sent.
      clients: what each client keeps, leaves [N, ...].
      tasks: each client's task, leaves [N, ...].
      uplink: the state of what each client applies to its messages, leaves [N, ...].
      aggregator: what the aggregator keeps.
      round: () int32, rounds done.
      key: the root key, from which all draws follow; it stays the same.
      clock: the time so far, and of an asynchronous federation who is at work; () where no time is kept.
      snapshots: what those at work were sent, leaves [C, ...]; () where all wait for each other.
    """

    server: Server
    clients: Tree
    tasks: Tree
    uplink: Tree
    aggregator: Tree
    round: Array
    key: Key
    clock: Tree = ()
    snapshots: Tree = ()


class Simulation(NamedTuple):
    """A federation, as `make_simulation` makes it.

    Attributes:
      init: key -> State, before the first round.
      round: State -> (State, metrics), one round; metrics are numbers by name.
      cohort: State -> (ids [M], what each was sent [M], client and uplink states [M], tasks [M], keys [M]): who works
        in the coming round, and with what. An id of -1 is nobody's.
      work: (shared, (client, uplink state), task, key) -> (upload, (client, uplink state), metrics): what one client
        then does.
    """

    init: Callable[[Key], State]
    round: Callable[[State], tuple[State, Metrics]]
    cohort: Callable[[State], tuple[Array, Tree, Tree, Tree, Key]]
    work: Callable[[Tree, Tree, Tree, Key], tuple[Upload, Tree, Metrics]]


def stream(key: Key, name: int, round: Array | int = 0) -> Key:
    """The key of one purpose in one round."""
    return jax.random.fold_in(jax.random.fold_in(key, name), round)


def per_client(key: Key, ids: Array) -> Key:
    """One key [M] for each client id [M]: by identity, never by position in a cohort or on a device."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


def make_simulation(
    algorithm: Algorithm,
    *,
    num_clients: int,
    clients_per_round: int,
    sample_tasks: Callable[[Key, int], Tree],
    aggregator: Aggregator,
    select: Callable[[Key, Array, int, int], tuple[Array, Array]] = selection.uniform,
    wires: Wires = PLAIN,
    attack: Attack | None = None,
    dropout: Array | float = 0.0,
    pace: Pace | None = None,
    wait_for: int = 0,
) -> Simulation:
    """Make a federation of N clients, M of whom work in a round.

    round: select M ids -> gather their states and tasks -> downlink on what is shared -> client_update on each ->
    uplink on each change -> attack on what arrived -> aggregate -> server_update -> (again from the downlink on, for
    every further exchange of the algorithm) -> scatter the states back. Only the selected compute.

    Some clients leave no trace: those of weight 0, and those whose message (or its norm) or new state is not finite.
    Such a message is replaced before any sum, and the client keeps its old state. It is silent in the round's further
    exchanges. When nobody is left the server stays as it was.

    Source: the rounds of McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017, Algorithm 1, with any client and server update.

    Args:
      algorithm: what a client and the server do.
      num_clients: N.
      clients_per_round: M <= N.
      sample_tasks: (key, N) -> tasks [N, ...].
      aggregator: how M messages become one.
      select: (key, round, N, M) -> (ids [C], chosen [C]); clients that are not chosen fill places up, and do nothing.
      wires: what becomes of messages on their way.
      attack: what malicious clients do; None where there are none.
      dropout: probability that a selected client drops out of the round, drawn for each client and round by itself.
      pace: how fast the clients are; a round then lasts as long as its slowest. None: no time is kept.
      wait_for: m <= M, with a pace: only the m fastest count, and the round ends with them. 0: all.

    Returns:
      The federation. Nothing has been computed yet.

    >>> import jax, jax.numpy as jnp, optax
    >>> from fedjax_rl.algorithms.fedavg import fedavg
    >>> from fedjax_rl.federation.aggregators import mean
    >>> loss = lambda x, task: jnp.sum((x - task) ** 2)
    >>> sample = lambda x, task, key: (task, Stats(-loss(x, task), jnp.int32(0)))
    >>> rates = {"client_opt": optax.sgd(0.1), "server_opt": optax.sgd(1.0), "local_steps": 5, "inner_lr": 0.1}
    >>> algorithm = fedavg(Problem(lambda key: jnp.zeros(2), sample, loss), **rates)
    >>> sizes = {"num_clients": 4, "clients_per_round": 2}
    >>> ones = lambda key, n: jnp.ones((n, 2))
    >>> simulation = make_simulation(algorithm, sample_tasks=ones, aggregator=mean(), **sizes)
    >>> state, metrics = run_rounds(simulation, simulation.init(jax.random.key(0)), 20)
    >>> state.server.shared.round(3).tolist(), metrics["train/return/adapt_0"].shape
    ([1.0, 1.0], (20,))
    """
    exchange = Exchange(algorithm, aggregator, wires, num_clients, attack)
    if pace is not None:
        pace = pace._replace(link=pace.link * exchange.times)  # for each message of a round

    def init(key: Key) -> State:
        state, _ = first_state(exchange, sample_tasks, key)
        return state if pace is None else state._replace(clock=zero_time())

    def cohort(state: State) -> tuple[Array, Tree, Tree, Tree, Key]:
        ids, chosen, _, shared, *rows = selected(state)
        shared = jax.tree.map(lambda x: jnp.broadcast_to(x, (ids.size, *x.shape)), shared)
        return jnp.where(chosen, ids, -1), shared, *rows

    def selected(state: State) -> tuple[Array, Array, Array | None, Tree, Tree, Tree, Key]:
        ids, chosen = select(jax.random.fold_in(state.key, SELECT), state.round, num_clients, clients_per_round)
        own, tasks = trees.take(((state.clients, state.uplink), state.tasks), ids)
        malicious = exchange.malicious(stream(state.key, MALICIOUS), ids)
        shared = exchange.sent_down(state.server.shared, stream(state.key, DOWNLINK, state.round))
        keys = per_client(stream(state.key, UPDATE, state.round), ids)
        return ids, chosen, malicious, shared, own, exchange.worlds(tasks, malicious), keys

    def round(state: State) -> tuple[State, Metrics]:
        key = functools.partial(stream, state.key, round=state.round)
        ids, chosen, malicious, shared, old, tasks, keys = selected(state)
        upload, new, client_metrics = placement.map_clients(exchange.work, num_broadcast=1)(shared, old, tasks, keys)
        sizes = [size * exchange.times for size in exchange.sizes(one_of(upload.message), shared)]
        present = jax.vmap(jax.random.uniform)(per_client(key(DROPOUT), ids)) >= dropout
        clock, times = state.clock, {}
        if pace is not None:
            in_time, lasted = lasting(pace, state, ids, chosen, upload.weight, sizes, wait_for)
            present, clock = present & in_time, clock.later(lasted)
            times = {"clock/time": clock.as_units()}
        padding = {} if ids.size == clients_per_round else {"health/padding": (~chosen).sum()}
        harmful = None if malicious is None else malicious & chosen
        keys_now = Keys(key(AGGREGATE), key(SERVER), key(ATTACK))
        arrived = present & chosen
        done = exchange.absorb((upload, new), old, arrived, state.server, state.aggregator, keys_now, harmful)
        done = exchange.again(done, tasks, keys, keys_now, harmful)
        work = Work(ids, done.heard, done.finite, present, chosen, malicious)
        metrics = of_round(work, client_metrics, *sizes)
        return state._replace(
            server=done.server,
            clients=trees.put(state.clients, ids, done.own[0]),
            uplink=trees.put(state.uplink, ids, done.own[1]),
            aggregator=done.aggregator,
            round=state.round + 1,
            clock=clock,
        ), metrics | done.shown | padding | times

    return Simulation(init, round, cohort, exchange.work)


def first_state(exchange: Exchange, sample_tasks: Callable[[Key, int], Tree], key: Key) -> tuple[State, Tree]:
    """(The state before anything has happened, without a clock; what a client's message looks like)."""
    ids = jnp.arange(exchange.num_clients)
    algorithm = exchange.algorithm
    server = algorithm.init(stream(key, INIT))
    tasks = sample_tasks(stream(key, TASKS), exchange.num_clients)
    init_client = placement.map_clients(algorithm.init_client, num_broadcast=1)
    clients = init_client(server.shared, per_client(stream(key, INIT_CLIENTS), ids), ids)
    worlds = exchange.worlds(tasks, exchange.malicious(stream(key, MALICIOUS), ids))
    one = jax.tree.map(lambda x: x[0], (clients, worlds))
    upload, _, _ = jax.eval_shape(algorithm.client_update, server.shared, *one, key)
    message = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), upload.message)

    def each(x: Array) -> Array:  # a key is each client's own: else all would draw the same noise
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return per_client(x, ids) if is_key else jnp.broadcast_to(x, (len(ids), *x.shape))

    sent = jax.tree.map(each, exchange.uplink.init(message))
    kept = exchange.aggregator.init(message)
    state = State(server, clients, tasks, sent, kept, jnp.zeros((), jnp.int32), key)
    return jax.tree.map(jnp.copy, state), message  # `run_rounds` takes a state's memory: the key's is its owner's


def lasting(
    pace: Pace, state: State, ids: Array, chosen: Array, weights: Array, sizes: Sequence[float], wait_for: int
) -> tuple[Array, Array]:
    """(Who of a cohort [M] is in time, ticks that the round lasts).

    A round lasts as long as its slowest; who sends nothing has no way up. With `wait_for` m, only the m fastest are in
    time, as if all of them sent, and the round ends with the m-th. Who of several at one time is in time is drawn.
    """
    num_clients = len(jax.tree.leaves(state.tasks)[0])
    speeds = pace.speeds(stream(state.key, SPEED), num_clients)
    down, up = pace.links(speeds, sizes[1], sizes[0])
    key, job = stream(state.key, DELAY), jnp.broadcast_to(state.round, ids.shape)
    both = durations(key, speeds, pace.noise, down + up)(ids, job)
    if wait_for:
        lots = jax.vmap(jax.random.uniform)(per_client(stream(state.key, TIES, state.round), ids))
        order = jnp.lexsort((lots, both))
        return jnp.zeros(ids.shape, bool).at[order[:wait_for]].set(True), both[order[wait_for - 1]]
    one_way = durations(key, speeds, pace.noise, down)(ids, job)
    return jnp.ones(ids.shape, bool), jnp.where(chosen, jnp.where(weights > 0, both, one_way), 0).max()


def one_of(rows: Tree) -> Tree:
    """Shapes of one of the rows [M, ...]."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)


def run_rounds(simulation: Simulation, state: State, num_rounds: int) -> tuple[State, Metrics]:
    """Run rounds of a federation as one compiled program. `make_simulation` has an example.

    Args:
      simulation: the federation.
      state: its state. It is donated: its memory is used again, and the state cannot be.
      num_rounds: how many rounds; another number is another program.

    Returns:
      (state, metrics): the new state, and numbers by name, leaves [num_rounds, ...].
    """
    return _run_rounds(simulation, state, num_rounds)


@functools.partial(jax.jit, static_argnums=(0, 2), donate_argnums=1)
def _run_rounds(simulation: Simulation, state: State, num_rounds: int) -> tuple[State, Metrics]:
    return jax.lax.scan(lambda s, _: simulation.round(s), state, length=num_rounds)
