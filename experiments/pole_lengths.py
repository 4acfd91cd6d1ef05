"""Poles of unlike lengths: FedAvg, FMRL and no federation on CartPole, and what each reaches at which length.

python -m experiments.pole_lengths --scale laptop [--out DIR]

Half the pole's length is U[0.1, 0.9) m from client to client, as of Jin et al., "Federated Reinforcement Learning with
Environment Heterogeneity", AISTATS 2022, whose clients learn values. Ours follow policy gradients. All methods take as
many samples a round: FMRL, which samples twice, selects half of the clients.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.common import Members, Scale, finish, footer, main, over, over_seeds, pyplot, run, tuned_rate
from fedjax_rl.runs import assemble, records, rundir

ENV = "gymnax/CartPole-v1?length=0.1:0.9"
# The server's rate is tuned; who learns alone has only a local one. Nothing is clipped there, for nothing is sent.
GRIDS = {
    "fedavg": ("server_lr", (0.003, 0.01, 0.03)),
    "fmrl": ("server_lr", (0.003, 0.01, 0.03)),
    "independent": ("local_lr", (0.1, 0.3, 1.0)),
}
CLIENTS, ROUNDS, EVERY = 20, {"tiny": 2, "laptop": 40, "paper": 40}, 10
EDGES = (0.1, 0.3, 0.5, 0.7, 0.9)  # [m]


def setting(name: str) -> dict:
    """What all runs of a method have in common."""
    cohort = {"num_clients": CLIENTS, "clients_per_round": CLIENTS // 2 if name == "fmrl" else CLIENTS, "episodes": 10}
    return cohort if name == "independent" else {**cohort, "max_change_norm": 0.0}


def lengths(members: Members) -> np.ndarray:
    """Half the length of every client's pole [seeds, N], in m."""
    return np.array([np.ravel(assemble.initial_state(assemble.make_run(c)).tasks) for c in members.values()])


def returns(out: Path, members: Members, round: int) -> np.ndarray:
    """Every client's return at that round: [seeds, N, 2], before adaptation and after one step."""
    found = []
    for name in members:
        rows = [r for r in records.read(out / name / rundir.EVAL).rows if r["round"] == round]
        found.append(rows[-1]["eval/returns"])
    return np.array(found)


def between(values: np.ndarray, poles: np.ndarray, low: float, high: float) -> list[float]:
    """Means over the clients whose poles are of that length, one for each seed that has any."""
    inside = (poles >= low) & (poles < high)
    return [float(row[chosen].mean()) for row, chosen in zip(values, inside, strict=True) if chosen.any()]


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """Each at the best of three rates; a table and a figure of the return by length, early and at the end."""
    scale = scale._replace(rounds={"gymnax": ROUNDS[scale.name]})
    last = ROUNDS[scale.name]
    evaluated = {"eval_every": min(EVERY, last), "eval_clients": CLIENTS, "adapt_steps": 1}
    lines: dict[str, Members] = {}
    for name, (key, rates) in GRIDS.items():
        best = tuned_rate(scale, out, ENV, name, name, rates, key, **setting(name))
        lines[name] = over(scale, ENV, name, name, **{key: best}, **evaluated, **setting(name))
    everyone = {n: c for some in lines.values() for n, c in some.items()}
    run(scale, everyone, out)
    poles = lengths(lines["fedavg"])  # of a seed, whatever the method
    found = {name: {r: returns(out, some, r) for r in (min(EVERY, last), last)} for name, some in lines.items()}
    note = footer(scale, everyone, out)
    (out / "pole_lengths.md").write_text("\n".join(table(found, lines, poles, note)) + "\n")
    scores = {name: {r: x.mean(axis=1).tolist() for r, x in of.items()} for name, of in found.items()}
    (out / "pole_lengths.json").write_text(json.dumps(scores, indent=1) + "\n")
    draw(found, poles, out / "pole_lengths.png", note)
    print((out / "pole_lengths.md").read_text())


def columns(found: Mapping[str, Mapping[int, np.ndarray]], round: int) -> dict[str, np.ndarray]:
    """What is compared, by label: [seeds, N]. Who learns alone, and FedAvg, are not made to be adapted."""
    plain = {name: found[name][round][:, :, 0] for name in ("independent", "fedavg", "fmrl")}
    return {**plain, "fmrl, one step": found["fmrl"][round][:, :, 1]}


def table(
    found: Mapping[str, Mapping[int, np.ndarray]], lines: Mapping[str, Members], poles: np.ndarray, note: str
) -> list[str]:
    """The lines of the page: a row for each method and round, a column for each range of lengths."""
    chosen = {
        name: f"{GRIDS[name][0]} {getattr(next(iter(some.values())), GRIDS[name][0]):g}" for name, some in lines.items()
    }
    head = ["", "round", *(f"{a} to {b} m" for a, b in itertools.pairwise(EDGES)), "all"]
    text = ["# pole_lengths", "", note, "", "Rates: " + ", ".join(f"{k}: {v}" for k, v in chosen.items()) + ".", ""]
    text += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for round in found["fedavg"]:
        for label, values in columns(found, round).items():
            cells = [over_seeds(between(values, poles, a, b)) for a, b in itertools.pairwise(EDGES)]
            text.append("| " + " | ".join([label, str(round), *cells, over_seeds(values.mean(axis=1).tolist())]) + " |")
    return [
        *text,
        "",
        "Returns of an episode, at most 500; half the pole's length in m; ±: 95 % t-interval over seeds.",
    ]


def draw(found: Mapping[str, Mapping[int, np.ndarray]], poles: np.ndarray, path: Path, note: str) -> None:
    """Every client's return over its length, and their means in ranges of length; a panel for each round."""
    rounds = list(found["fedavg"])
    figure, axes = pyplot().subplots(1, len(rounds), figsize=(9, 3.8), sharey=True, squeeze=False)
    for ax, round in zip(axes[0], rounds, strict=True):
        for i, (label, values) in enumerate(columns(found, round).items()):
            middle = [(a + b) / 2 for a, b in itertools.pairwise(EDGES)]
            means = [np.mean(between(values, poles, a, b)) for a, b in itertools.pairwise(EDGES)]
            ax.plot(middle, means, color=f"C{i}", label=label, lw=1.5)
            ax.plot(poles.ravel(), values.ravel(), ".", color=f"C{i}", ms=3, alpha=0.5)
        ax.set(title=f"after {round} rounds", xlabel="half the pole's length [m]")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("return of an episode")
    axes[0][-1].legend(frameon=False, fontsize=8)
    finish(figure, path, note, "points: clients of all seeds; lines: means in ranges of length")


if __name__ == "__main__":
    main(__doc__, "pole_lengths", experiment, envs=(ENV,))
