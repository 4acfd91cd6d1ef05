"""FedPG-BR on CartPole: return against trajectories per agent beside the published curve, with and without liars.

    python -m experiments.fedpg_br [--scale laptop] [--out DIR] [--methods clean liars]

clean: ten agents with the filter and with the mean, and one alone. liars: three of the ten flip the sign of their
gradients and make them 2.5 times as long, or see flipped rewards, or act at random; each with the filter and with the
mean. The setting is that of Fan et al., "Fault-Tolerant Federated Reinforcement Learning with Theoretical Guarantee",
NeurIPS 2021, as the preset fedpg-br-cartpole has it.

The return is that of greedy episodes of the server's model after every fifth round, in the true world, as in the
published curves. Trajectories are counted as by the authors' code: those of all agents and of the server, B K + b N in
a round of N steps, divided by K + 1; alone the agent is its own server, B + b N. N is the number of steps that were
taken. Episodes of a look are not counted.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import Members, Scale, finish, footer, main, measured, over_seeds, pyplot, run, slug
from fedjax_rl import config, statistics
from fedjax_rl.config import presets
from fedjax_rl.federation import simulate
from fedjax_rl.host.numerics import pinned
from fedjax_rl.rl.distributions import GREEDY
from fedjax_rl.rl.rollout import make_rollout
from fedjax_rl.runs import assemble, checkpoint, models, rundir

ENV = "gymnax/CartPole-v1"
FILTER, MEAN = {"aggregator": "fedpg_br"}, {"aggregator": "mean"}
ALONE = {**MEAN, "num_clients": 1, "clients_per_round": 1}
LIES: dict[str, dict[str, Any]] = {
    "sign flip": {"attack": "sign_flip", "attack_strength": 2.5},
    "reward flip": {"attack": "reward_flip"},
    "random actions": {"attack": "action_random"},
}
# by part: panel -> label -> what it changes of the preset
LINES: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "clean": {"nobody lies": {"ten, filter": FILTER, "ten, mean": MEAN, "alone": ALONE}},
    "liars": {
        name: {"filter": {**FILTER, **lie, "attack_share": 0.3}, "mean": {**MEAN, **lie, "attack_share": 0.3}}
        for name, lie in LIES.items()
    },
}
PARTS = tuple(LINES)
SEEDS = {
    "clean": {"tiny": 2, "laptop": 8, "paper": 10},
    "liars": {"tiny": 2, "laptop": 5, "paper": 10},
}
ROUNDS = {"tiny": 2, "laptop": 120, "paper": 300}  # laptop: some 2,000 trajectories of each of ten agents, 4,200 alone
EVERY = {"tiny": 1, "laptop": 5, "paper": 10}  # rounds between two looks
EPISODES = 32  # of a look; published: 10
# Read off Fig. 1 of Fan et al., to some 5 %: trajectories per agent, and the lowest and highest return there.
PUBLISHED = {"ten, filter": (900, 500, 500), "alone": (2500, 450, 480)}
AT = 900  # trajectories, of the other lines of the table


class Looks(NamedTuple):
    """What a line showed: trajectories per agent and greedy returns, [seeds, looks] each."""

    trajectories: np.ndarray
    returns: np.ndarray

    def at(self, trajectories: float) -> list[float]:
        """The return of each seed at so many trajectories, between two looks by a straight line."""
        return [float(np.interp(trajectories, *seed)) for seed in zip(*self, strict=True)]


def lines(scale: Scale, part: str) -> dict[str, dict[str, Members]]:
    """The runs of each line, by panel and label."""
    tiny = {"episodes": 2, "inner_batch": 2, "hidden": (8,)} if scale.name == "tiny" else {}
    common = {"rounds": ROUNDS[scale.name], "save_every": EVERY[scale.name], "keep_every": EVERY[scale.name], **tiny}
    preset = presets.preset("fedpg-br-cartpole", "fedpg_br")
    seeds = range(SEEDS[part][scale.name])

    def some(panel: str, label: str, values: Mapping[str, Any]) -> Members:
        path = f"{part}/{slug(panel)}/{slug(label)}"
        return {f"{path}/seed{s}": config.build("fedpg_br", preset, common, values, {"seed": s}) for s in seeds}

    return {
        panel: {label: some(panel, label, values) for label, values in by_label.items()}
        for panel, by_label in LINES[part].items()
    }


def trajectories(c: config.Config, rounds: int, steps: int) -> float:
    """Per agent, of so many rounds in which the server took so many steps in all; the module says what is counted."""
    spent = rounds * c.clients_per_round * c.episodes + steps * c.inner_batch
    return spent / (c.clients_per_round + 1 if c.clients_per_round > 1 else 1)


@pinned()
def looks(out: Path, some: Members) -> Looks:
    """Every run's model at every look."""
    c = next(iter(some.values()))
    made = assemble.make_run(c)
    like = assemble.abstract_state(made)
    greedy = models.make_policy(c, made.env.spec)._replace(distribution=GREEDY)
    rollout = make_rollout(made.env, greedy, EPISODES)

    @jax.jit
    def returned(state: simulate.State) -> jax.Array:
        key = simulate.stream(state.key, simulate.EVALUATE, state.round)
        task = jax.tree.map(lambda x: x[0], made.env.sample_tasks(key, 1))
        return rollout(state.server.shared, task, key).reward.sum(axis=1).mean()

    def measure(name: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"trajectories": [], "returns": []}
        for number in range(c.save_every, c.rounds + 1, c.save_every):
            state = checkpoint.restore(out / name / rundir.CHECKPOINTS, like, print, step=number).state
            steps = int(state.server.private[0].count)  # of Adam, which counts those that were taken
            found["trajectories"].append(trajectories(c, number, steps))
            found["returns"].append(float(returned(state)))
        return found

    rows = [measured(out / name, partial(measure, name)) for name in some]
    return Looks(*(np.array([row[key] for row in rows]) for key in Looks._fields))


def table(found: Mapping[str, Mapping[str, Looks]], note: str, part: str) -> list[str]:
    """The lines of the page."""
    head = ["", "", "trajectories per agent", "return", "published", "trajectories at the end", "return"]
    rows = [f"# fedpg_br: {part}", "", note, "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for panel, by_label in found.items():
        for label, seen in by_label.items():
            at, *between = PUBLISHED.get(label, (AT,))
            ends = seen.trajectories[:, -1]
            there = over_seeds(seen.at(at)) if at <= ends.min() else "-"
            published = " to ".join(f"{value}" for value in dict.fromkeys(between)) or "-"
            row = [panel, label, str(at), there, published, f"{ends.mean():.0f}"]
            rows.append("| " + " | ".join([*row, over_seeds(seen.returns[:, -1].tolist())]) + " |")
    return [
        *rows,
        "",
        f"Return of {EPISODES} greedy episodes of at most 500 steps; ±: 95 % t-interval over seeds. Published: read "
        "off Fig. 1 of Fan et al. 2021, to some 5 %.",
        "",
    ]


def draw(found: Mapping[str, Mapping[str, Looks]], path: Path, note: str) -> None:
    """Returns against trajectories: a panel for each lie; what was published as marks."""
    size = (1.5 + 4.2 * len(found), 4)
    figure, axes = pyplot().subplots(1, len(found), figsize=size, squeeze=False, sharey=True)
    for ax, (panel, by_label) in zip(axes[0], found.items(), strict=True):
        for i, (label, seen) in enumerate(by_label.items()):
            x = seen.trajectories.mean(axis=0)  # seeds differ a little: the server's steps are drawn
            stats = np.array([statistics.mean_ci95(column) for column in seen.returns.T.tolist()], float)
            ax.plot(x, stats[:, 0], f"C{i}", label=label, lw=1.5)
            ax.plot(seen.trajectories.T, seen.returns.T, f"C{i}", lw=0.4, alpha=0.4)
            if len(seen.returns) > 2:
                ax.fill_between(x, *(stats[:, :1] + stats[:, 1:] * [-1, 1]).T, color=f"C{i}", alpha=0.15)
            if label in PUBLISHED:
                at, low, high = PUBLISHED[label]
                middle, half = (low + high) / 2, (high - low) / 2
                name = f"{label}: read off Fig. 1 of Fan et al. 2021"
                ax.errorbar(at, middle, half, fmt="*", ms=11, mec="black", color=f"C{i}", capsize=3, label=name)
        ax.set(title=panel, xlabel="trajectories per agent")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("return of a greedy episode")
    axes[0][-1].legend(frameon=False, fontsize=7)
    finish(figure, path, note)


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = PARTS) -> None:
    """Each part: its runs, its table and figure. Every line is one program of all its seeds."""
    del envs
    for part in methods:
        every = lines(scale, part)
        members = {n: c for by_label in every.values() for some in by_label.values() for n, c in some.items()}
        run(scale, members, out)
        found = {panel: {label: looks(out, some) for label, some in of.items()} for panel, of in every.items()}
        note = footer(scale, members, out)
        text = "\n".join(table(found, note, part))
        (out / f"{part}.md").write_text(text)
        scores = {
            panel: {label: {key: x.tolist() for key, x in seen._asdict().items()} for label, seen in of.items()}
            for panel, of in found.items()
        }
        (out / f"{part}.json").write_text(json.dumps(scores, indent=1) + "\n")
        draw(found, out / f"{part}.png", note)
        print(text)


if __name__ == "__main__":
    main(__doc__, "fedpg_br", experiment, methods=PARTS, envs=())
