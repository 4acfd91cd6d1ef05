"""One exchange of a round: what clients send, what the server makes of it, and who leaves no trace."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.federation import attacks, placement
from fedjax_rl.federation.metrics import mean_where
from fedjax_rl.types import Aggregate, Aggregator, Algorithm, Array, Attack, Key, Message, Metrics, Server, Tree, Upload

_AGAIN = 1 << 21  # apart from the keys that algorithms make of theirs in the first exchange
_SEND = 1 << 22  # and this, of the client's and the exchange's key, is for what it does to its message


class Wires(NamedTuple):
    """What becomes of a message on its way, and how long it is.

    Attributes:
      uplink: what every client applies to its message before sending. Each has a state of its own. Its `update` is
        given `key`, of the client and the exchange. None: nothing.
      up_bytes: message -> bytes of it as it is sent; shapes are enough.
      downlink: (shared, key of the update) -> what clients are sent in place of `shared`. None: the same.
      down_bytes: shared -> bytes of it as it is sent.
    """

    uplink: optax.GradientTransformation | None = None
    up_bytes: Callable[[Message], float] = trees.num_bytes
    downlink: Callable[[Tree, Key], Tree] | None = None
    down_bytes: Callable[[Tree], float] = trees.num_bytes


PLAIN = Wires()


class Absorbed(NamedTuple):
    """What an exchange left behind; of several, see `Exchange.again`.

    Attributes:
      server: the server.
      aggregator: the aggregator's state.
      own: the clients' states to keep [M, ...].
      heard: [M] bool.
      finite: [M] bool.
      enough: () bool, were enough heard for an aggregate?
      shown: what the aggregator shows, and how far an attack moved its result; () each.
    """

    server: Server
    aggregator: Tree
    own: tuple[Tree, Tree]
    heard: Array
    finite: Array
    enough: Array
    shown: Metrics


class Keys(NamedTuple):
    """The keys of an exchange: of the aggregator, of the server, of who attacks."""

    aggregate: Key
    server: Key
    attack: Key


class Factors(NamedTuple):
    """What the server makes of messages before their sum, [M] each; None for nothing.

    Attributes:
      message: what a message is multiplied by.
      shares: among how many messages the weight of a client is divided.
    """

    message: Array | None = None
    shares: Array | None = None


NO_FACTORS = Factors()


class Exchange(NamedTuple):
    """What the exchanges of a federation have in common."""

    algorithm: Algorithm
    aggregator: Aggregator
    wires: Wires
    num_clients: int
    attack: Attack | None = None

    @property
    def uplink(self) -> optax.GradientTransformationExtraArgs:
        """What a client applies to its message, which takes a key."""
        return optax.with_extra_args_support(self.wires.uplink or optax.identity())

    @property
    def times(self) -> int:
        """Exchanges of a round that count as such; what the last of several sends is not used."""
        return self.algorithm.exchanges[0] if self.algorithm.exchanges else 1

    def sizes(self, message: Tree, shared: Tree) -> tuple[float, float]:
        """Bytes that a client sends in an exchange, and is sent."""
        return float(self.wires.up_bytes(message)), float(self.wires.down_bytes(shared))

    def sent_down(self, shared: Tree, key: Key) -> Tree:
        """What clients are sent of what the server shares."""
        return shared if self.wires.downlink is None else self.wires.downlink(shared, key)

    def malicious(self, key: Key, ids: Array) -> Array | None:
        """[M] bool, who of the clients `ids` [M] does harm; None where nobody does."""
        if self.attack is None:
            return None
        return attacks.is_malicious(key, self.num_clients, self.attack.share)[ids]

    def worlds(self, tasks: Tree, malicious: Array | None) -> Tree:
        """The tasks as clients train on them: with who is lied to, where that is the attack."""
        in_world = self.attack is not None and self.attack.in_world
        return {"task": tasks, "malicious": malicious} if in_world else tasks

    def work(
        self, shared: Tree, own: tuple[Tree, Tree], task: Tree, key: Key
    ) -> tuple[Upload, tuple[Tree, Tree], Metrics]:
        """What one client does in the first exchange: (what it sends, its new states, its metrics)."""
        upload, client, metrics = self.algorithm.client_update(shared, own[0], task, key)
        return *self.sent(upload, client, own[1], key), metrics

    def sent(self, upload: Upload, client: Tree, sending: Tree, key: Key) -> tuple[Upload, tuple[Tree, Tree]]:
        """What one client sends of an upload; (its state, its uplink's state)."""
        # where the norm overflows, a clip would make zeros of the message, and these would be heard: its weight is made
        # infinite instead (a NaN would look like the first one to `replay`)
        weight = jnp.where(jnp.isfinite(optax.tree.norm(upload.message)), upload.weight, jnp.inf)
        message, sending = self.uplink.update(upload.message, sending, key=jax.random.fold_in(key, _SEND))
        return Upload(message, weight), (client, sending)

    def absorb(
        self,
        results: tuple[Upload, tuple[Tree, Tree]],
        old: tuple[Tree, Tree],
        present: Array,
        server: Server,
        state: Tree,
        keys: Keys,
        malicious: Array | None = None,
        ages: Array | None = None,
        factors: Factors = NO_FACTORS,
    ) -> Absorbed:
        """What the server makes of an exchange.

        Args:
          results: what M clients sent, and their new states.
          old: their states before.
          present: [M] bool, who takes part.
          server: the server.
          state: the aggregator's.
          keys: of the exchange.
          malicious: [M] bool, who does harm. Who forges messages always arrives, with weight 1.
          ages: [M] of the messages, in updates of the server; None for 0.
          factors: of the messages, those that are forged among them.
        """
        (messages, weights), new = results
        finite = jax.vmap(trees.all_finite)((messages, weights, new[0]))
        heard = (weights > 0) & finite & present
        own = trees.select(heard, new, old)
        weights = jnp.where(heard, weights, 0.0)
        messages = trees.select(heard, messages, jax.tree.map(jnp.zeros_like, messages))
        honest = heard
        if malicious is not None:
            honest = heard & ~malicious
        if self.attack is not None and malicious is not None and not self.attack.in_world:
            messages = self.attack.forge(messages, honest, malicious, keys.attack)
            finite &= ~malicious | jax.vmap(trees.all_finite)(messages)
            heard = honest | (malicious & finite)
            weights = jnp.where(heard, jnp.where(malicious, 1.0, weights), 0.0)
            messages = trees.select(heard, messages, jax.tree.map(jnp.zeros_like, messages))
        messages, weights = _counted(messages, weights, factors)
        combined, aggregated = self.aggregator.update(messages, weights, state, keys.aggregate)
        least = self.aggregator.at_least
        # where it shall not be seen who was heard, it is as if all had been
        participation = (heard.sum() if least else jnp.asarray(heard.size)) / self.num_clients
        aggregate = Aggregate(combined, participation)
        if ages is not None:
            aggregate = aggregate._replace(staleness=mean_where(heard, ages))
        updated = self.algorithm.server_update(server, aggregate, keys.server)
        enough = heard.any() if least == 1 else heard.sum() >= least
        server, state = trees.select(enough, (updated, aggregated), (self.algorithm.idle(server), state))
        shown = self.aggregator.show(state)
        if self.attack is not None:
            shown = shown | {"robust/distance": _distance(combined, messages, jnp.where(honest, weights, 0.0))}
        return Absorbed(server, state, own, heard, finite, enough, shown)

    def again(
        self, done: Absorbed, tasks: Tree, client_keys: Key, keys: Keys, malicious: Array | None = None
    ) -> Absorbed:
        """The algorithm's exchanges after the first, by those who were heard in it; none where it had no aggregate.

        `heard`, `enough` and `shown` stay those of the first; `finite` is of all.
        """
        if self.algorithm.exchanges is None:
            return done
        count, update = self.algorithm.exchanges

        def one(carry: tuple, number: Array) -> tuple[tuple, Array]:
            server, state, own = carry

            def work(shared: Tree, own: tuple[Tree, Tree], task: Tree, key: Key) -> tuple[Upload, tuple[Tree, Tree]]:
                key = jax.random.fold_in(key, _AGAIN + number)
                upload, client = update(shared, own[0], task, key, number)
                return self.sent(upload, client, own[1], key)

            now = Keys(*[jax.random.fold_in(key, _AGAIN + number) for key in keys])
            sent = self.sent_down(server.shared, jax.random.fold_in(now.server, _SEND))
            results = placement.map_clients(work, num_broadcast=1)(sent, own, tasks, client_keys)
            then = self.absorb(results, own, done.heard & done.enough, server, state, now, malicious)
            return (then.server, then.aggregator, then.own), then.finite

        numbers = jnp.arange(1, count + 1)
        (server, state, own), finite = jax.lax.scan(one, (done.server, done.aggregator, done.own), numbers)
        still = done.finite & (finite.all(axis=0) | ~done.enough)
        return done._replace(server=server, aggregator=state, own=own, finite=still)


def _counted(messages: Message, weights: Array, factors: Factors) -> tuple[Message, Array]:
    """Messages [M, ...] and weights [M] as they count."""
    if (by := factors.message) is not None:
        messages = jax.tree.map(lambda m: m * by.astype(m.dtype).reshape(-1, *(1,) * (m.ndim - 1)), messages)
    return messages, weights if factors.shares is None else weights / factors.shares


def _distance(combined: Message, messages: Message, weights: Array) -> Array:
    """How far the combined message is from the weighted mean of the messages [M, ...] of the honest."""
    shares = weights / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)
    true = jax.tree.map(lambda m: jnp.tensordot(shares.astype(m.dtype), m, axes=1), messages)
    return optax.tree.norm(trees.sub(combined, true))
