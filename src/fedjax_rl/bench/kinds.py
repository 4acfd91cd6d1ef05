"""P11: clients of unlike networks in one program, beside clients of one network, and beside a loop over agents.

The agents are those of the preset fedhpd-cartpole: REINFORCE on one batch of `episodes` a round.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl import trees
from fedjax_rl.bench.rows import Row, interleaved, median, row, spread
from fedjax_rl.config import ConfigError, build, presets
from fedjax_rl.config import kinds as parsing
from fedjax_rl.runs import assemble, loop

CLIENTS, EPISODES, SEEDS = 200, (1, 5, 20), 5
PRESET = "fedhpd-cartpole"


def kinds(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """A row for each number of episodes, of 200 clients; one of ten agents and five seeds."""
    del backend
    if env != "half_cheetah/direction":
        raise ConfigError(f"--env {env}: bench kinds measures gymnax/CartPole-v1; leave it out")
    rows = []
    for episodes in sizes or EPISODES:
        ten, one = unlike(CLIENTS)
        many: dict[str, Any] = {"num_clients": CLIENTS, "clients_per_round": CLIENTS, "episodes": episodes}
        fns = {"ten_kinds": rounds(kinds=ten, **many), "one_kind": rounds(hidden=one, activation="relu", **many)}
        seconds = interleaved(fns, repeats)
        figures: Row = {f"{key}_s": median(taken) for key, taken in seconds.items()}
        ranges = {f"{key}_range": spread(taken) for key, taken in seconds.items()}
        speed = figures["one_kind_s"] / figures["ten_kinds_s"]
        rows.append(row("P11", clients=CLIENTS, episodes=episodes, speed_of_one_kind=speed, **figures, **ranges))
    fns = {"one_program": rounds(SEEDS), "a_loop_over_agents": by_agent(SEEDS)}
    seconds = interleaved(fns, repeats)
    figures = {f"{key}_s": median(taken) for key, taken in seconds.items()}
    figures["loop_over_program"] = figures["a_loop_over_agents_s"] / figures["one_program_s"]
    rows.append(row("P11", clients=10, episodes=1, seeds=SEEDS, **figures))
    return rows


def agents() -> list[parsing.Kind]:
    """The preset's ten."""
    return list(parsing.parse(presets.PRESETS[PRESET]["kinds"]))


def unlike(clients: int) -> tuple[str, tuple[int, int]]:
    """The preset's ten kinds with equal shares of the clients; and two widths with as many parameters in all."""
    found = agents()
    share = clients // len(found)
    text = ", ".join(f"{share}x{'-'.join(map(str, k.hidden))}:{k.activation}:{k.rate}" for k in found)

    def size(hidden: tuple[int, ...]) -> int:
        widths = (4, *hidden, 2)  # CartPole's observation and actions
        return sum((i + 1) * j for i, j in pairwise(widths))

    mean = sum(size(kind.hidden) for kind in found) / len(found)
    pairs = [(a, b) for a in range(4, 128) for b in (a - 1, a)]
    return text, min(pairs, key=lambda pair: abs(size(pair) - mean))


def rounds(seeds: int = 1, *, at_once: bool = True, **values: Any) -> Callable[[], Any]:
    """() -> the metrics of the next round of `independent`, of all seeds in one program, or one after the other."""
    without = {"kinds": ""} if "hidden" in values else {}
    made = build("independent", presets.preset(PRESET, "independent"), {"local_steps": 1}, without, values)
    every = assemble.make_group([replace(made, seed=seed) for seed in range(seeds)])
    group = every if at_once else assemble.make_group([made])
    step, states = loop.compile_round(group).step, [assemble.initial_states(every)]
    if not at_once:
        states = [trees.take(states[0], jnp.array([seed])) for seed in range(seeds)]
    alive = np.ones(len(group.configs), bool)

    def call() -> Any:
        shown = []
        for i, state in enumerate(states):
            states[i], _, metrics = step(state, alive, group.values)
            shown.append(jax.block_until_ready(metrics))
        return shown

    return call


def by_agent(seeds: int) -> Callable[[], Any]:
    """() -> the metrics of one round of every agent and seed; each agent is a program, called seed by seed."""
    alone: dict[str, Any] = {"num_clients": 1, "clients_per_round": 1, "at_once": False}
    each = [
        rounds(seeds, **alone, hidden=kind.hidden, activation=kind.activation, local_lr=kind.rate) for kind in agents()
    ]
    return lambda: [one() for one in each]
