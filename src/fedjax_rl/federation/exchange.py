"""One exchange of a round: what clients send, what the server makes of it, and who leaves no trace."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.federation import placement
from fedjax_rl.federation.metrics import mean_where
from fedjax_rl.types import Aggregate, Aggregator, Algorithm, Array, Key, Metrics, Server, Tree, Upload

_AGAIN = 1 << 21  # apart from the keys that algorithms make of theirs in the first exchange


class Exchange(NamedTuple):
    """What the exchanges of a federation have in common."""

    algorithm: Algorithm
    aggregator: Aggregator
    uplink: optax.GradientTransformation
    num_clients: int

    def work(
        self, shared: Tree, own: tuple[Tree, Tree], task: Tree, key: Key
    ) -> tuple[Upload, tuple[Tree, Tree], Metrics]:
        """What one client does in the first exchange: (what it sends, its new states, its metrics)."""
        upload, client, metrics = self.algorithm.client_update(shared, own[0], task, key)
        return *self.sent(upload, client, own[1]), metrics

    def sent(self, upload: Upload, client: Tree, sending: Tree) -> tuple[Upload, tuple[Tree, Tree]]:
        """What one client sends of an upload; (its state, its uplink's state)."""
        # where the norm overflows, a clip would make zeros of the message, and these would be heard: its weight is made
        # infinite instead (a NaN would look like the first one to `replay`)
        weight = jnp.where(jnp.isfinite(optax.tree.norm(upload.message)), upload.weight, jnp.inf)
        message, sending = self.uplink.update(upload.message, sending)
        return Upload(message, weight), (client, sending)

    def absorb(
        self,
        results: tuple[Upload, tuple[Tree, Tree]],
        old: tuple[Tree, Tree],
        present: Array,
        server: Server,
        state: Tree,
        keys: tuple[Key, Key],
        ages: Array | None = None,
    ) -> tuple[Server, Tree, tuple[Tree, Tree], Array, Array]:
        """What the server makes of an exchange.

        Args:
          results: what M clients sent, and their new states.
          old: their states before.
          present: [M] bool, who takes part.
          server: the server.
          state: the aggregator's.
          keys: of the aggregator and of the server.
          ages: [M] of the messages, in updates of the server; None for 0.

        Returns:
          (server, aggregator's state, the clients' states to keep, heard [M], finite [M]).
        """
        (messages, weights), new = results
        finite = jax.vmap(trees.all_finite)((messages, weights, new[0]))
        heard = (weights > 0) & finite & present
        weights = jnp.where(heard, weights, 0.0)
        messages = trees.select(heard, messages, jax.tree.map(jnp.zeros_like, messages))
        combined, aggregated = self.aggregator.update(messages, weights, state, keys[0])
        aggregate = Aggregate(combined, heard.sum() / self.num_clients)
        if ages is not None:
            aggregate = aggregate._replace(staleness=mean_where(heard, ages))
        updated = self.algorithm.server_update(server, aggregate, keys[1])
        server, state = trees.select(heard.any(), (updated, aggregated), (self.algorithm.idle(server), state))
        return server, state, trees.select(heard, new, old), heard, finite

    def again(
        self,
        server: Server,
        state: Tree,
        own: tuple[Tree, Tree],
        tasks: Tree,
        client_keys: Key,
        heard: Array,
        keys: tuple[Key, Key],
    ) -> tuple[Server, Tree, tuple[Tree, Tree], Array]:
        """The algorithm's exchanges after the first, by those who were heard in it.

        Returns:
          (server, aggregator's state, the clients' states, who was finite in all of them [M]).
        """
        if self.algorithm.exchanges is None:
            return server, state, own, jnp.ones_like(heard)
        count, update = self.algorithm.exchanges

        def one(carry: tuple, number: Array) -> tuple[tuple, Array]:
            server, state, own = carry

            def work(shared: Tree, own: tuple[Tree, Tree], task: Tree, key: Key) -> tuple[Upload, tuple[Tree, Tree]]:
                upload, client = update(shared, own[0], task, jax.random.fold_in(key, _AGAIN + number), number)
                return self.sent(upload, client, own[1])

            results = placement.map_clients(work, num_broadcast=1)(server.shared, own, tasks, client_keys)
            now = (jax.random.fold_in(keys[0], _AGAIN + number), jax.random.fold_in(keys[1], _AGAIN + number))
            server, state, own, _, finite = self.absorb(results, own, heard, server, state, now)
            return (server, state, own), finite

        (server, state, own), finite = jax.lax.scan(one, (server, state, own), jnp.arange(1, count + 1))
        return server, state, own, finite.all(axis=0)
