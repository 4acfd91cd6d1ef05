"""Clients that learn values on poles of unlike lengths: averaged networks, averaged gradients, own heads, and alone.

    python -m experiments.values [--scale laptop] [--out DIR] [--methods DQNAvg alone gradients head]

The setting is that of Jin et al., "Federated Reinforcement Learning with Environment Heterogeneity", AISTATS 2022: five
clients, half a pole's length U[0.1, 0.9) m, episodes of at most 200 steps, double DQN with their numbers. DQNAvg
averages the networks after every 2400 steps, about 12 episodes of 200; replays and Adam begin anew each time. `alone`
goes on without a server and without a break. `gradients` sends the sum of the gradients after every 24 steps, to an
Adam at the server, and so a hundred times as many messages. `head` is DQNAvg with an output layer of each client's own.
All arms of a seed have the same poles and as many steps.

Every client's own model is measured on its own pole, 32 times in a run and at its end, and then on poles that nobody
trained on.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import (
    BANDS,
    Members,
    Scale,
    curve,
    finish,
    footer,
    main,
    measured,
    over_seeds,
    pyplot,
    run,
    slug,
)
from fedjax_rl import config, statistics
from fedjax_rl.federation import simulate
from fedjax_rl.host.numerics import pinned
from fedjax_rl.runs import assemble, checkpoint, rundir

ENV = "gymnax/CartPole-v1?length=0.1:0.9&horizon=200"
MERGE, OFTEN = 2400, 24  # environment steps of a client between two messages
GRADIENTS = {"aggregate": "gradients", "local_optimizer": "sgd", "learn_after": 24, "keep": "all", "sync": 1}
ARMS: dict[str, dict[str, Any]] = {
    "DQNAvg": {"local_steps": MERGE},
    "alone": {"local_steps": MERGE, "aggregate": "none", "keep": "all"},
    "gradients": {"local_steps": OFTEN, "server": "adam", "server_lr": 0.001, **GRADIENTS},
    "head": {"local_steps": MERGE, "personal": "head"},
}
MERGES, SEEDS = {"tiny": 2, "laptop": 64, "paper": 64}, {"tiny": 2, "laptop": 5, "paper": 20}
CLIENTS, UNSEEN, EPISODES, LOOKS = 5, 20, 10, 32
PLACES = {
    "all": "its own pole, mean of the run",
    "own": "its own pole, at the end",
    "unseen": "poles unseen, at the end",
}
Returns = dict[str, np.ndarray]  # by place: [seeds, ...], of which the means are shown


def members(scale: Scale, label: str) -> Members:
    """An arm's runs, one for each seed."""
    values = dict(ARMS[label])
    if scale.name == "tiny":
        values |= {"local_steps": 48 if values["local_steps"] == MERGE else OFTEN, "hidden": (8,)}
    steps = (48 if scale.name == "tiny" else MERGE) * MERGES[scale.name]
    common = {"env": ENV, "num_clients": CLIENTS, "clients_per_round": CLIENTS, "episodes": EPISODES, "new_clients": 0}
    rounds = steps // values["local_steps"]
    common |= {"rounds": rounds, "save_every": max(1, rounds // 8), "eval_every": max(1, rounds // LOOKS)}
    made = config.build("dqn_avg", common, values)
    return {f"{slug(label)}/seed{seed}": replace(made, seed=seed) for seed in range(SEEDS[scale.name])}


@pinned()
def returns(out: Path, some: Members) -> Returns:
    """Mean returns of greedy episodes of every client's own model, by place."""
    first = assemble.make_run(next(iter(some.values())))
    sample, like = first.problem.sample, assemble.abstract_state(first)
    on_each = jax.vmap(lambda model, task, key: sample(model, task, key)[1].returned)

    @jax.jit
    def of(state: simulate.State) -> dict[str, jax.Array]:
        models = jax.vmap(first.algorithm.personal_params, (None, 0))(state.server.shared, state.clients)
        new = first.env.sample_tasks(simulate.stream(state.key, simulate.NEW_TASKS), UNSEEN)
        # every model on every pole
        pairs = jax.tree.map(lambda x: jnp.repeat(x, UNSEEN, axis=0), models)
        tasks = jax.tree.map(lambda x: jnp.tile(x, (CLIENTS, *[1] * (x.ndim - 1))), new)
        split = lambda stream, count: jax.random.split(simulate.stream(state.key, stream), count)
        return {
            "own": on_each(models, state.tasks, split(simulate.EVALUATE, CLIENTS)),
            "unseen": on_each(pairs, tasks, split(simulate.EVALUATE_NEW, CLIENTS * UNSEEN)),
        }

    measure = lambda name: of(checkpoint.restore(out / name / rundir.CHECKPOINTS, like, print).state)
    found = [measured(out / name, partial(measure, name)) for name in some]
    looks = [[np.mean([*curve(out, name, "eval/return/adapt_0").values()])] for name in some]
    return {"all": np.array(looks), **{place: np.array([each[place] for each in found]) for place in ("own", "unseen")}}


def gain(ours: np.ndarray, theirs: np.ndarray) -> str:
    """'mean (low to high)' of the paired differences, a seed a pair: their 95 % t-interval."""
    mean, half = statistics.mean_ci95((ours - theirs).mean(axis=1).tolist())
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def table(found: Mapping[str, Returns], note: str) -> list[str]:
    """The lines of the page."""
    head = ["", *PLACES.values(), *(f"over alone: {name}" for name in PLACES.values())]
    lines = ["# values", "", note, "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, by_place in found.items():
        row = [label, *(over_seeds(by_place[place].mean(axis=1).tolist()) for place in PLACES)]
        paired = label != "alone" and "alone" in found
        row += [gain(by_place[place], found["alone"][place]) if paired else "-" for place in PLACES]
        lines.append("| " + " | ".join(row) + " |")
    return [
        *lines,
        "",
        "Returns of a greedy episode, at most 200. ±: 95 % t-interval over seeds; in brackets: that of the "
        "paired differences.",
    ]


def draw(found: Mapping[str, Returns], path: Path, note: str) -> None:
    """Means over seeds with their intervals, each seed as a point; a panel for each place."""
    figure, axes = pyplot().subplots(1, len(PLACES), figsize=(12, 3.6), sharey=True)
    for ax, (place, title) in zip(axes, PLACES.items(), strict=True):
        for i, by_place in enumerate(found.values()):
            seeds = by_place[place].mean(axis=1)
            mean, half = statistics.mean_ci95(seeds.tolist())
            ax.bar(i, mean, yerr=half, color=f"C{i}", alpha=0.6, capsize=3)
            ax.plot([i] * len(seeds), seeds, "k.", ms=4)
        ax.set_title(title)
        ax.set_xticks(range(len(found)), list(found))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("return of a greedy episode")
    axes[0].set_ylim(bottom=0)  # of all panels, and last: intervals may end above 200
    finish(figure, path, note, f"points: seeds; {BANDS}")


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = tuple(ARMS)) -> None:
    """Every arm is one program of all seeds; then the table and the figure."""
    del envs
    every = {label: members(scale, label) for label in methods}
    run(scale, {name: c for some in every.values() for name, c in some.items()}, out)
    found = {label: returns(out, some) for label, some in every.items()}
    note = footer(scale, {name: c for some in every.values() for name, c in some.items()}, out)
    text = "\n".join(table(found, note)) + "\n"
    (out / "values.md").write_text(text)
    scores = {label: {place: x.mean(axis=1).tolist() for place, x in of.items()} for label, of in found.items()}
    (out / "values.json").write_text(json.dumps(scores, indent=1) + "\n")
    draw(found, out / "values.png", note)
    print(text)


if __name__ == "__main__":
    main(__doc__, "values", experiment, envs=(), methods=tuple(ARMS))
