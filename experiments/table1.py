"""Table 1: five methods in four environments, before adaptation and after 1, 2 and 3 steps, on all clients.

    python -m experiments.table1 --scale laptop [--out DIR] [--envs ENV ...] [--methods METHOD ...]

Below the paper's scale every method first chooses its server rate from the same grid, over all rounds on two seeds that
are not reported, and all methods take the same number of environment steps. At the paper's scale rates and cohorts are
the published ones, and `--methods` knows two variants of FMRL more: fmrl-clip, whose changes are clipped, and
fmrl-exact, with the exact gradient. Writes table1.md and table1.json into the directory of the runs.
"""

import json
from pathlib import Path
from typing import Any

from experiments.common import (
    METHODS,
    Members,
    Scale,
    env_steps,
    finals,
    footer,
    main,
    over,
    over_all,
    run,
    tuned_rate,
)
from fedjax_rl.config import ConfigError
from fedjax_rl.statistics import mean_ci95

Seeds = dict[int, list[float] | None]  # seed -> means before adaptation and after each step; None: it diverged
RATES = (0.0005, 0.0015, 0.005)
# What the paper did not run. Below its scale FMRL has the clip and the exact gradient in any case.
VARIANTS: dict[str, dict[str, Any]] = {"fmrl-clip": {"max_change_norm": 0.002}, "fmrl-exact": {"order": "second"}}
# Liu, Xu, Wu, Jiang 2024, Table 1: mean and 95 % interval over five seeds, before adaptation and after 1, 2, 3 steps.
PUBLISHED = {
    "half_cheetah/direction": {
        "fmrl": ((-14.59, 5.44), (457.02, 30.82), (480.96, 23.73), (484.26, 29.51)),
        "pfedme": ((-6.33, 5.06), (-5.07, 2.88), (-2.15, 1.04), (-0.85, 2.63)),
        "fedavg": ((-2.49, 1.43), (0.10, 1.33), (2.76, 1.98), (5.68, 3.58)),
        "fedrep": ((5.53, 7.76), (24.06, 25.88), (38.60, 33.21), (51.67, 34.17)),
        "ditto": ((161.13, 4.14), (163.94, 4.02), (166.72, 3.82), (169.52, 3.90)),
    },
    "half_cheetah/velocity": {
        "fmrl": ((-112.86, 4.87), (-94.35, 10.37), (-82.43, 13.35), (-74.53, 14.81)),
        "pfedme": ((-113.47, 2.40), (-107.12, 3.59), (-101.10, 4.74), (-95.91, 5.67)),
        "fedavg": ((-113.46, 1.84), (-109.73, 2.21), (-106.15, 2.43), (-102.59, 2.37)),
        "fedrep": ((-117.62, 5.49), (-112.74, 5.56), (-107.96, 6.16), (-103.76, 6.29)),
        "ditto": ((-195.29, 24.19), (-195.26, 24.22), (-195.14, 24.33), (-195.05, 24.22)),
    },
    "ant/direction": {
        "fmrl": ((2.08, 2.53), (123.17, 9.65), (127.50, 10.22), (126.82, 11.32)),
        "pfedme": ((4.84, 0.19), (5.30, 0.30), (5.64, 0.41), (6.32, 0.78)),
        "fedavg": ((4.65, 0.21), (5.05, 0.25), (5.26, 0.44), (5.57, 0.82)),
        "fedrep": ((5.53, 0.36), (7.54, 0.88), (8.41, 0.69), (8.91, 0.55)),
        "ditto": ((43.42, 0.60), (43.93, 0.89), (44.43, 0.56), (44.79, 0.66)),
    },
    "ant/velocity": {
        "fmrl": ((19.48, 3.51), (44.30, 5.42), (44.85, 5.56), (45.18, 5.50)),
        "pfedme": ((20.56, 2.28), (24.64, 3.48), (27.20, 4.11), (28.59, 5.50)),
        "fedavg": ((19.42, 2.08), (23.91, 2.88), (27.14, 4.56), (29.63, 5.72)),
        "fedrep": ((12.34, 3.97), (14.51, 3.80), (16.63, 3.96), (18.29, 3.65)),
        "ditto": ((-28.86, 16.62), (-28.72, 16.48), (-28.30, 16.57), (-28.08, 16.29)),
    },
}


def chosen(scale: Scale, env: str, method: str, out: Path) -> dict[str, float]:
    """What a method's rates are: the published ones at the paper's scale, else the best of the grid."""
    if scale.name == "paper":
        return {"local_lr": 0.01} if method == "ditto" else {}
    if method in VARIANTS:
        raise ConfigError(f"{method} is for --scale paper; at the {scale.name} scale fmrl is it already")
    return {"server_lr": tuned_rate(scale, out, env, method, method, RATES)}


def cell(scale: Scale, env: str, method: str, rates: dict[str, float]) -> Members:
    """A method's runs in an environment, one for each seed."""
    algorithm = "fmrl" if method in VARIANTS else method
    return over(scale, env, method, algorithm, **rates, **VARIANTS.get(method, {}))


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = METHODS) -> None:
    """Run what is missing, writing the table after every cell; with `--jobs`, once at the end."""
    pairs = [(env, method) for env in envs for method in methods]
    cells = (cell(scale, env, method, chosen(scale, env, method, out)) for env, method in pairs)
    if scale.jobs > 1:  # together, since a cell is one program, or shares one (fmrl and fmrl-clip differ in a number)
        cells = [{name: c for some in cells for name, c in some.items()}]
    members: Members = {}
    for some in cells:
        run(scale, some, out)
        members |= some
        write(scale, out, members)
    print((out / "table1.md").read_text())


def write(scale: Scale, out: Path, members: Members) -> None:
    """table1.json: means by environment, method, seed and column; null: it diverged. table1.md: the same, and the
    orderings."""
    records = finals(out, members)
    scores: dict[str, dict[str, Seeds]] = {}
    for name, c in members.items():
        env, method, _ = name.rsplit("/", 2)
        columns = [f"eval/return/adapt_{j}" for j in range(c.adapt_steps + 1)]
        row = [records[name][column]["mean"] for column in columns] if name in records else None
        scores.setdefault(env, {}).setdefault(method, {})[c.seed] = row
    lines = ["# Table 1", "", footer(scale, members, out), ""]
    for env, by_method in scores.items():
        lines += [*table(env, by_method, members), "", *orderings(env, by_method), ""]
    (out / "table1.json").write_text(json.dumps(scores, indent=1) + "\n")
    (out / "table1.md").write_text("\n".join(lines))


def table(env: str, by_method: dict[str, Seeds], members: Members) -> list[str]:
    """One environment: rows are methods, columns adaptation steps, the published values below each row."""
    steps = next(c for name, c in members.items() if name.startswith(f"{env}/")).adapt_steps + 1
    lines = [f"## {env}", "", "| method | server rate | env steps | " + " | ".join(map(str, range(steps))) + " |"]
    lines.append("|---" * (steps + 3) + "|")
    for method, seeds in by_method.items():
        c = next(c for name, c in members.items() if name.startswith(f"{env}/{method}/"))
        cells = [over_all([row[j] for row in seeds.values() if row], seeds) for j in range(steps)]
        lines.append(f"| {method} | {c.server_lr:g} | {env_steps(c):,} | " + " | ".join(cells) + " |")
        if method not in VARIANTS:
            published = [f"{m} ± {h}" for m, h in PUBLISHED[env][method][:steps]]
            lines.append("| _published_ | | | " + " | ".join(published) + " |")
    return lines


def orderings(env: str, by_method: dict[str, Seeds]) -> list[str]:
    """The paper's claim that FMRL leads after one step, against each other method: held, not held, or undecided.

    Variants of FMRL, of which the paper claims nothing, have their difference alone. Where a run diverged, the seeds
    that are left are named.
    """
    if "fmrl" not in by_method:
        return []
    ours = by_method["fmrl"]
    lines = []
    for method, seeds in by_method.items():
        if method == "fmrl":
            continue
        said = "against" if method in VARIANTS else "above"
        claim = f"- FMRL {said} {method} after one step: "
        pairs = {seed: (ours[seed], row) for seed, row in seeds.items() if row and ours.get(seed)}
        left = "" if len(pairs) == len(seeds) else f", of seeds {', '.join(map(str, pairs))} alone: a run diverged"
        if not pairs:
            lines.append(f"{claim}undecided: a run diverged on every seed")
            continue
        low, difference, high = paired([(mine[1], row[1]) for mine, row in pairs.values()])
        verdict = "held" if low > 0 else "not held (reversed)" if high < 0 else "undecided"
        claim += f"{verdict}; " if said == "above" else ""
        lines.append(f"{claim}difference {difference:.1f} [{low:.1f}, {high:.1f}]{left}")
    return lines


def paired(seeds: list[tuple[float, float]]) -> tuple[float, float, float]:
    """The mean difference over seeds, which share their tasks, with its 95 % t-interval: (low, mean, high)."""
    mean, half = mean_ci95([ours - theirs for ours, theirs in seeds])
    return (mean - half, mean, mean + half) if half is not None else (float("-inf"), mean, float("inf"))


if __name__ == "__main__":
    main(__doc__, "table1", experiment, methods=(*METHODS, *VARIANTS), default_methods=METHODS)
