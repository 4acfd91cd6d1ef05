"""What liars do to a federation that meta-learns, and which rule withstands them (FMRL).

    python -m experiments.attacks [--scale laptop] [--out DIR] [--methods sgd adam half_cheetah]

sgd, adam: nine rules against seven attacks on navigation, with a server of SGD or of Adam; a quarter of the clients is
malicious. half_cheetah: three rules against two attacks on the preset laptop. The tables are returns of honest clients
after one step, of new clients before and after it, what an attack costs these before and after it, and how far the
aggregate is from the mean of the honest messages.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import Members, Scale, curve, finals, finish, footer, main, over_seeds, pyplot, run, slug
from fedjax_rl import config
from fedjax_rl.config import presets

RULES = (
    "mean", "median", "trimmed", "geomed", "multi_krum", "centered_clip", "norm_clip", "nnm+trimmed", "nnm+geomed",
)  # fmt: skip
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {"attack": "none"},
    "sign flip": {"attack": "sign_flip"},
    "boost 10": {"attack": "boost"},
    "alie 1.5": {"attack": "alie", "attack_strength": 1.5},
    "ipm 6": {"attack": "ipm", "attack_strength": 6.0},
    "min-max": {"attack": "min_max"},
    "adaptive alie": {"attack": "adaptive_alie"},
    "reward flip": {"attack": "reward_flip"},
}
SERVERS = {"sgd": {"server": "sgd", "server_lr": 100.0}, "adam": {"server": "adam", "server_lr": 0.003}}
# A cohort of 20 holds 5 liars in the mean, more than 8 in 4 of 100 rounds.
NAVIGATION: dict[str, Any] = {"env": "navigation", "clients_per_round": 20, "selection": "uniform", "episodes": 10}
NAVIGATION |= {"rounds": 25, "max_change_norm": 0.0, "attack_share": 0.25, "byzantine": 0.4}
NAVIGATION |= {"adapt_steps": 1, "new_clients": 50, "save_every": 1000}
CHEETAH: dict[str, Any] = {"env": "half_cheetah/direction", "clients_per_round": 16, "episodes": 10, "rounds": 80}
CHEETAH |= {"attack_share": 0.25, "byzantine": 0.4, "adapt_steps": 1, "new_clients": 50, "save_every": 20}
PARTS = ("sgd", "adam", "half_cheetah")
Cells = dict[str, dict[str, Members]]
Found = Mapping[str, Mapping[str, Mapping[str, list[float | None]]]]  # rule -> attack -> column -> seeds


def cells(scale: Scale, part: str) -> Cells:
    """The runs of each rule under each attack."""
    short = {"rounds": 2, "num_clients": 20, "episodes": 2, "hidden": (8,)} if scale.name == "tiny" else {}
    seeds = range(2 if short else 3)
    if part in SERVERS:
        common, rules, attacks = {**NAVIGATION, **SERVERS[part]}, RULES, ATTACKS
    else:
        common, rules = CHEETAH, ("mean", "geomed", "nnm+trimmed")
        attacks = {name: ATTACKS[name] for name in ("none", "ipm 6", "reward flip")}
    common = {**common, **short}
    preset = presets.preset("laptop", "fmrl", common["env"])
    made: Cells = {}
    for rule in rules:
        for name, attack in attacks.items():
            values = {**common, **attack, "aggregator": rule}
            path = f"{part}/{slug(rule)}/{slug(name)}"
            some = {f"{path}/seed{s}": config.build("fmrl", preset, values, {"seed": s}) for s in seeds}
            made.setdefault(rule, {})[name] = some
    return made


def figures(out: Path, some: Members) -> dict[str, list[float | None]]:
    """Returns of honest and of new clients after one step, and the aggregate's distance, one for each seed.

    None is for a seed that diverged: what is at a place belongs to the same seed in every row.
    """
    rows = finals(out, some)
    found: dict[str, list[float | None]] = {c: [None] * len(some) for c in ("honest", "new", "before", "distance")}
    for i, name in enumerate(some):
        if name in rows:
            old, new = (np.mean(rows[name][f"{kind}/returns"], axis=0) for kind in ("eval", "eval_new"))
            distances = list(curve(out, name, "robust/distance").values())
            found["honest"][i], found["new"][i], found["before"][i] = float(old[1]), float(new[1]), float(new[0])
            found["distance"][i] = float(np.mean(distances)) if distances else 0.0
    return found


def cell(values: Sequence[float | None], digits: str = "") -> str:
    """Of a value for each seed: mean and t-interval, or the mean alone with these digits; "diverged" where one did."""
    known = np.array(values, float)  # None is NaN
    if np.isnan(known).any():
        return "diverged"
    return format(known.mean(), digits) if digits else over_seeds(known.tolist())


def table(found: Found, column: str, digits: str = "") -> list[str]:
    """Rules by attacks."""
    attacks = list(next(iter(found.values())))
    lines = ["| | " + " | ".join(attacks) + " |", "|---" * (len(attacks) + 1) + "|"]
    for rule, by_attack in found.items():
        texts = [cell(of[column], digits) for of in by_attack.values()]
        lines.append(f"| {rule} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def costs(found: Found) -> list[str]:
    """What each attack takes from new clients, before and after a step: does the step absorb it, or amplify it?

    A cost is the return without liars less that with them, by the same seed; then the mean over all rules but `mean`.
    """
    values = lambda row, attack, column: np.array(row[attack][column], float)  # [seeds]
    cost = lambda row, attack, column: values(row, "none", column) - values(row, attack, column)
    rules = [row for rule, row in found.items() if rule != "mean"]
    lines = ["| | before | after one step | of which the step adds |", "|---" * 4 + "|"]
    for attack in next(iter(found.values())):
        if attack != "none":
            before, after = (np.mean([cost(row, attack, c) for row in rules], axis=0) for c in ("before", "new"))
            texts = [cell(of) for of in (before, after, after - before)]
            lines.append(f"| {attack} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def draw(found: Found, path: Path, note: str) -> None:
    """Rules by attacks: the returns after one step of honest clients, and of new ones."""
    figure, axes = pyplot().subplots(1, 2, figsize=(12, 4.4))
    rules, attacks = list(found), list(next(iter(found.values())))
    for ax, (column, title) in zip(axes, {"honest": "honest clients", "new": "new clients"}.items(), strict=True):
        means = np.array([[np.mean(np.array(found[r][a][column], float)) for a in attacks] for r in rules])
        clean = np.nanmax(means[:, attacks.index("none")])
        low = max(np.nanmin(means), clean - 2 * abs(clean) - 60)  # one rule without a bottom would hide the others
        ax.imshow(np.clip(means, low, None), cmap="viridis", aspect="auto")
        for i, j in np.ndindex(means.shape):
            dark = means[i, j] < low + 0.6 * (np.nanmax(means) - low)
            said = "diverged" if np.isnan(means[i, j]) else f"{means[i, j]:.0f}"
            ax.text(j, i, said, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        ax.set_xticks(range(len(attacks)), attacks, rotation=35, ha="right", fontsize=8)
        ax.set_yticks(range(len(rules)), rules, fontsize=8)
        ax.set_title(f"{title}, after one step", fontsize=9)
    finish(figure, path, note, "means over seeds")


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = PARTS) -> None:
    """Each part: its runs, its tables and figure."""
    del envs
    for part in methods:
        every = cells(scale, part)
        members = {n: c for row in every.values() for some in row.values() for n, c in some.items()}
        run(scale, members, out)
        found = {rule: {a: figures(out, some) for a, some in row.items()} for rule, row in every.items()}
        note = footer(scale, members, out)
        text = [f"# attacks: {part}", "", note, "", "Honest clients, after one step:", "", *table(found, "honest")]
        text += ["New clients, before adaptation:", "", *table(found, "before")]
        text += ["New clients, after one step:", "", *table(found, "new")]
        text += ["What an attack costs new clients, mean over the rules but `mean`:", "", *costs(found)]
        text += ["The aggregate's distance from the mean of the honest messages:", "", *table(found, "distance", ".2g")]
        (out / f"{part}.md").write_text("\n".join(text))
        (out / f"{part}.json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found, out / f"{part}.png", note)
        print("\n".join(text))


if __name__ == "__main__":
    main(__doc__, "attacks", experiment, methods=PARTS, envs=(), has_paper=False)
