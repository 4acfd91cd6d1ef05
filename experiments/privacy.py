"""What privacy costs in return, and how many clients it needs (FMRL on navigation).

    python -m experiments.privacy [--scale laptop] [--out DIR]

Epsilon of 1, 2, 4, 8 and no noise, delta 1e-6, for 200 clients with Poisson sampling and white noise, and in cycles
with banded noise; then the noise that 1,000, 10,000 and 100,000 clients would need, of whom 200 are simulated. Each
with a server of SGD and one of Adam. The clip is the same everywhere.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import BANDS, Members, Scale, finals, finish, footer, main, over_all, pyplot, run, slug
from fedjax_rl import config, statistics
from fedjax_rl.config import presets
from fedjax_rl.runs import privacy

EPSILONS = (1.0, 2.0, 4.0, 8.0)
WAYS: dict[str, dict[str, Any]] = {
    "200, poisson": {"selection": "poisson"},
    "200, cyclic, banded": {"selection": "cyclic", "dp_noise_kind": "banded"},
    **{f"{n:,}, poisson": {"selection": "poisson", "dp_population": n} for n in (1_000, 10_000, 100_000)},
}
SERVERS = {"sgd": {"server": "sgd", "server_lr": 100.0}, "adam": {"server": "adam", "server_lr": 0.003}}
COMMON: dict[str, Any] = {
    "env": "navigation",
    "clients_per_round": 40,
    "episodes": 10,
    "rounds": 25,
    "save_every": 1000,
}
COMMON |= {"max_change_norm": 0.0, "adapt_steps": 1, "new_clients": 0, "dp_clip": 0.001}
COMMON |= {"dp_delta": 1e-6}  # one for all: it must stay below 1 / 100,000
PARTS = ("sgd", "adam")


def lines(scale: Scale, server: str) -> dict[str, dict[float, Members]]:
    """The runs of each way by epsilon; 0 stands for no noise worth the name, with the same clip."""
    short = {"rounds": 2, "num_clients": 20, "clients_per_round": 4, "episodes": 2, "hidden": (8,)}
    common = {**COMMON, **SERVERS[server], **(short if scale.name == "tiny" else {})}
    seeds = range(2 if scale.name == "tiny" else 3)
    preset = presets.preset("laptop", "fmrl", common["env"])
    found: dict[str, dict[float, Members]] = {}
    for label, way in WAYS.items():
        for epsilon in (*EPSILONS, 0.0):
            if not epsilon and "dp_population" in way:
                continue
            asked = {"dp_epsilon": epsilon} if epsilon else {"dp_noise": 1e-3}
            made = config.build("fmrl", preset, common, way, asked)
            if epsilon:
                made = privacy.with_noise(made, None)
            some = {f"{server}/{slug(label)}/epsilon{epsilon:g}/seed{s}": replace(made, seed=s) for s in seeds}
            found.setdefault(label, {})[epsilon] = some
    return found


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = PARTS) -> None:
    """A table for each server, and one figure."""
    del envs
    every = {server: lines(scale, server) for server in methods}
    members = {n: c for of in every.values() for row in of.values() for some in row.values() for n, c in some.items()}
    run(scale, members, out)
    note = footer(scale, members, out)
    text, scores = ["# privacy", "", note, ""], {}
    for server, of in every.items():
        text += [f"## {server}", "", "| clients | " + " | ".join(f"epsilon {e:g}" for e in EPSILONS) + " | no noise |"]
        text.append("|---" * (len(EPSILONS) + 2) + "|")
        for label, row in of.items():
            after = {
                epsilon: [float(np.mean(r["eval/returns"], axis=0)[1]) for r in finals(out, some).values()]
                for epsilon, some in row.items()
            }
            noises = {epsilon: next(iter(some.values())).dp_noise for epsilon, some in row.items()}
            cells = {e: f"{over_all(after[e], some)} (z = {noises[e]:.3g})" for e, some in row.items()}
            text.append(f"| {label} | " + " | ".join(cells.get(e, "") for e in (*EPSILONS, 0.0)) + " |")
            scores.setdefault(server, {})[label] = {"after": after, "noise": noises}
        text.append("")
    (out / "privacy.md").write_text("\n".join(text))
    (out / "privacy.json").write_text(json.dumps(scores, indent=1) + "\n")
    draw(scores, out / "privacy.png", note)
    print("\n".join(text))


def draw(scores: dict[str, Any], path: Path, note: str) -> None:
    """The return against epsilon, a panel for each server."""
    figure, axes = pyplot().subplots(1, len(scores), figsize=(1 + 4.6 * len(scores), 4), squeeze=False, sharey=True)
    for ax, (server, of) in zip(axes[0], scores.items(), strict=True):
        for label, found in of.items():
            stats = np.array([statistics.mean_ci95(found["after"][e]) for e in EPSILONS], float)
            ax.errorbar(EPSILONS, stats[:, 0], yerr=stats[:, 1], label=label, marker="o", ms=3, lw=1.4, capsize=2)
        free = of[next(iter(of))]["after"][0.0]
        ax.axhline(np.mean(free), color="black", lw=0.8, ls="--", label="no noise")
        ax.set(title=f"server: {server}", xlabel=f"epsilon (delta {COMMON['dp_delta']:g})", xscale="log")
        ax.set_xticks(EPSILONS, [f"{e:g}" for e in EPSILONS])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("return of clients after one step")
    axes[0][-1].legend(
        frameon=False, fontsize=7, title="clients", title_fontsize=7, loc="upper left", bbox_to_anchor=(1, 1)
    )
    finish(figure, path, note, BANDS)


if __name__ == "__main__":
    main(__doc__, "privacy", experiment, methods=PARTS, envs=(), has_paper=False)
