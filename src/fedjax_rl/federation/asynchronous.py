"""The engine for clients that start and arrive at times of their own, on a virtual clock."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl import trees
from fedjax_rl.federation import clock as clocks
from fedjax_rl.federation import placement
from fedjax_rl.federation.clock import Clock, Schedule
from fedjax_rl.federation.exchange import PLAIN, Exchange, Factors, Keys, Wires
from fedjax_rl.federation.metrics import Work, of_round, sent_once
from fedjax_rl.federation.plan import Lanes, plan, shown_of
from fedjax_rl.federation.simulate import (
    AGGREGATE,
    ATTACK,
    DELAY,
    DOWNLINK,
    DROPOUT,
    MALICIOUS,
    SELECT,
    SERVER,
    SPEED,
    TIES,
    UPDATE,
    Simulation,
    State,
    first_state,
    one_of,
    stream,
)
from fedjax_rl.federation.staleness import CONSTANT, Discount
from fedjax_rl.federation.times import EQUAL, LONGEST, TICKS, Duration, Pace, durations
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.host.numerics import root_key
from fedjax_rl.types import HEALTH, Aggregator, Algorithm, Array, Attack, Key, Metrics, Server, Tree


def make_async_simulation(
    algorithm: Algorithm,
    *,
    num_clients: int,
    schedule: Schedule,
    sample_tasks: Callable[[Key, int], Tree],
    aggregator: Aggregator,
    pace: Pace = EQUAL,
    discount: Discount = CONSTANT,
    wires: Wires = PLAIN,
    attack: Attack | None = None,
    dropout: Array | float = 0.0,
) -> Simulation:
    """Make a federation of N clients, each of whom begins and arrives at times of its own.

    round: plan the next arrivals that depend on none of each other -> client_update on all of them side by side, each
    on what it was sent when it began -> uplink on each message -> for every K of them in order: attack, aggregate, and
    server_update. The numbers are those of one arrival after another.

    A message that is dropped or not finite counts as an arrival, and has weight 0. So the clock never depends on what
    was learned.

    Source: the buffers of Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
    Algorithm 1, with any client and server update; other schedules as in `Schedule`.

    Args:
      algorithm: what a client and the server do. Under any restart but "update" its clients keep nothing.
      num_clients: N.
      schedule: who starts when, and when the server updates.
      sample_tasks: (key, N) -> tasks [N, ...].
      aggregator: how K messages become one.
      pace: how fast clients and links are. Under "abort" a client sends once an update: jobs then take no time on
        links, and the update takes that of the slowest.
      discount: what messages are multiplied by.
      wires: what becomes of messages on their way.
      attack: what malicious clients do; None where there are none.
      dropout: probability that a message is lost, drawn for each client and job by itself.

    Returns:
      The federation. Nothing has been computed yet.

    Raises:
      ConfigError: clients keep something, and the restart is not "update".
    """
    exchange = Exchange(algorithm, aggregator, wires, num_clients, attack)
    if schedule.restart != "update":
        shared = jax.eval_shape(algorithm.init, root_key(0)).shared
        _refuse_memory("clients", jax.eval_shape(algorithm.init_client, shared, root_key(0), 0))
    federation = _Federation(exchange, schedule, sample_tasks, pace, discount, dropout)
    return Simulation(federation.init, federation.round, federation.cohort, exchange.work)


class _Federation(NamedTuple):
    """What the parts of a round have in common; as for `make_async_simulation`."""

    exchange: Exchange
    schedule: Schedule
    sample_tasks: Callable[[Key, int], Tree]
    pace: Pace
    discount: Discount
    dropout: Array | float

    def init(self, key: Key) -> State:
        """The state before the first round: all slots are at work."""
        state, message = first_state(self.exchange, self.sample_tasks, key)
        if self.schedule.restart != "update":
            _refuse_memory("uplinks", state.uplink)
        slots = self.schedule.in_flight
        sent = jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, *x.shape)), state.server.shared)
        duration, _ = self.times(key, state.server, message)
        return state._replace(clock=clocks.start(self.schedule, duration), snapshots=sent)

    def times(self, key: Key, server: Server, message: Tree) -> tuple[Duration, Array]:
        """(How long a job takes, how many ticks an update does)."""
        speeds = self.pace.speeds(stream(key, SPEED), self.exchange.num_clients)
        up, down = self.exchange.sizes(message, server.shared)
        on_links = sum(self.pace.links(speeds, down, up))
        aborts = self.schedule.restart == "abort"
        duration = durations(stream(key, DELAY), speeds, self.pace.noise, 0.0 if aborts else on_links)
        return duration, jnp.round(TICKS * jnp.minimum(jnp.max(on_links), LONGEST)).astype(jnp.int32) * aborts

    def message(self, state: State) -> Tree:
        """What a client sends, in shapes; () where no time depends on its size, so that nothing is traced twice."""
        if isinstance(self.pace.up, float) and self.pace.up == 0.0:
            return ()
        worlds = self.exchange.worlds(state.tasks, self.malicious(state, jnp.arange(self.exchange.num_clients)))
        one = jax.tree.map(lambda x: x[0], (state.clients, worlds))
        update = self.exchange.algorithm.client_update
        return jax.eval_shape(update, state.server.shared, *one, state.key)[0].message

    def planned(self, state: State) -> tuple[Clock, Lanes]:
        """The clock after the round, and its lanes. Those without an arrival repeat the first one."""
        duration, pause = self.times(state.key, state.server, self.message(state))

        def drawn(name: int, number: Array) -> Array:
            return jax.random.uniform(stream(state.key, name, number), (self.exchange.num_clients,))

        scores, lots = (functools.partial(drawn, name) for name in (SELECT, TIES))
        clock, lanes = plan(self.schedule, duration, scores, lots, state.clock, pause)
        first = jnp.where(lanes.valid, jnp.arange(lanes.valid.size), 0)
        slot, client, job, fresh = trees.take((lanes.slot, lanes.client, lanes.job, lanes.fresh), first)
        return clock, lanes._replace(slot=slot, client=client, job=job, fresh=fresh)

    def malicious(self, state: State, clients: Array) -> Array | None:
        """[L] bool, who of so many clients [L] does harm; None where nobody does."""
        return self.exchange.malicious(stream(state.key, MALICIOUS), clients)

    def laid(self, state: State, lanes: Lanes) -> tuple[Tree, Tree, Tree, Key]:
        """What the client of each lane works with [L]: what it was sent, its states, its task, its key."""
        now = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes.slot.size, *x.shape)), state.server.shared)
        sent = trees.select(lanes.fresh, now, trees.take(state.snapshots, lanes.slot))
        versions = jax.vmap(functools.partial(stream, state.key, DOWNLINK))(lanes.version)
        own, tasks = trees.take(((state.clients, state.uplink), state.tasks), lanes.client)
        worlds = self.exchange.worlds(tasks, self.malicious(state, lanes.client))
        return jax.vmap(self.exchange.sent_down)(sent, versions), own, worlds, per_job(state.key, UPDATE, lanes)

    def cohort(self, state: State) -> tuple[Array, Tree, Tree, Tree, Key]:
        """Who works in the coming round, and with what."""
        _, lanes = self.planned(state)
        return jnp.where(lanes.valid, lanes.client, -1), *self.laid(state, lanes)

    def round(self, state: State) -> tuple[State, Metrics]:
        """One round: lanes side by side, updates in order."""
        clock, lanes = self.planned(state)
        rows = self.laid(state, lanes)
        upload, new, client_metrics = placement.map_clients(self.exchange.work)(*rows)
        ages = state.clock.updates + jnp.cumsum(lanes.due) - lanes.due - lanes.version
        present = jax.vmap(jax.random.uniform)(per_job(state.key, DROPOUT, lanes)) >= self.dropout
        malicious = self.malicious(state, lanes.client)
        factors = self.factors(state, lanes, ages)
        server, aggregated, sent, (kept, heard, finite), shown = self.updated(
            state, lanes, (upload, new), rows[1], present, malicious, ages, factors
        )
        begun = (clock.job != state.clock.job) | (clock.client != state.clock.client)
        versions = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state.server.shared, sent)
        newest = trees.take(versions, jnp.maximum(clock.version - state.clock.updates, 0))
        arrived = jnp.where(lanes.valid, lanes.client, self.exchange.num_clients)  # the others are written nowhere
        clients, uplink = jax.tree.map(
            lambda x, row: x.at[arrived].set(row, mode="drop"), (state.clients, state.uplink), kept
        )
        work = Work(lanes.client, heard, finite, present, lanes.valid, malicious)
        sizes = self.exchange.sizes(one_of(upload.message), state.server.shared)
        metrics = of_round(work, client_metrics, *sizes) | shown
        if self.schedule.restart == "abort":
            metrics |= sent_once(work, self.exchange.num_clients, self.schedule.in_flight, *sizes)
        return state._replace(
            server=server,
            clients=clients,
            uplink=uplink,
            aggregator=aggregated,
            round=state.round + 1,
            clock=clock,
            snapshots=trees.select(begun, newest, state.snapshots),
        ), metrics | shown_of(self.schedule, clock, lanes, ages)

    def factors(self, state: State, lanes: Lanes, ages: Array) -> Factors:
        """What messages are multiplied by; under "harmonic" a client's messages weigh as much as one."""
        arrivals = state.clock.arrivals + 1 + jnp.arange(ages.size)
        of_message = self.discount.factors(ages.astype(float), lanes.job + 1.0, arrivals / self.exchange.num_clients)
        if self.schedule.due != "harmonic":
            return Factors(of_message)
        arrived = jnp.zeros(self.exchange.num_clients, int).at[lanes.client].add(lanes.valid)
        return Factors(of_message, jnp.maximum(arrived[lanes.client], 1))

    def updated(
        self,
        state: State,
        lanes: Lanes,
        results: tuple,
        old: Tree,
        present: Array,
        malicious: Array | None,
        ages: Array,
        factors: Factors,
    ) -> tuple[Server, Tree, Tree, tuple, Metrics]:
        """The updates of a round, one for every K lanes.

        Returns:
          (server, aggregator's state, what was sent after each update [F], (states to keep, heard, finite) [L], what
          the updates show: counts summed, the rest averaged).
        """

        def update(carry: tuple[Server, Tree, Array], group: tuple) -> tuple[tuple, tuple]:
            server, aggregated, number = carry
            results, old, lanes, present, malicious, ages, factors = group
            keys = Keys(*[stream(state.key, name, number) for name in (AGGREGATE, SERVER, ATTACK)])
            harmful = None if malicious is None else malicious & lanes.valid
            arrived = present & lanes.valid
            done = self.exchange.absorb(results, old, arrived, server, aggregated, keys, harmful, ages, factors)
            due = lanes.due.any()
            server, aggregated = trees.select(due, (done.server, done.aggregator), (server, aggregated))
            rows = (done.own, done.heard, done.finite)
            return (server, aggregated, number + due), (server.shared, rows, done.shown, due)

        shape = (self.schedule.updates, self.schedule.buffer)
        groups = jax.tree.map(
            lambda x: x.reshape(*shape, *x.shape[1:]), (results, old, lanes, present, malicious, ages, factors)
        )
        first = (state.server, state.aggregator, state.clock.updates)
        (server, aggregated, _), (sent, done, shown, due) = jax.lax.scan(update, first, groups)
        each = {name: jnp.where(due, value, 0).sum() for name, value in shown.items()}
        shown = {name: v if name.startswith(HEALTH) else v / due.sum() for name, v in each.items()}
        return server, aggregated, sent, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), done), shown


def _refuse_memory(who: str, kept: Tree) -> None:
    """A ConfigError where something is kept that a client's next job would need before this one is computed."""
    if jax.tree.leaves(kept):
        raise ConfigError(
            f"restart: {who} here keep something between jobs, and a client could arrive twice in a buffer; "
            "take restart = 'update'"
        )


def per_job(key: Key, name: int, lanes: Lanes) -> Key:
    """One key [L] for each job: of its purpose, its number and its client."""
    return jax.vmap(lambda job, client: jax.random.fold_in(stream(key, name, job), client))(lanes.job, lanes.client)
