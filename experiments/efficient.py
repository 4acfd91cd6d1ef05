"""The preset `efficient` on ten seeds: a twentieth of the paper's samples on half-cheetah, a fifth on ant.

python -m experiments.efficient --scale laptop [--out DIR] [--envs ENV ...]

The seeds are none of those that the preset was tuned on. Between rounds the same clients are evaluated each time.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.common import (
    ENVS,
    EVALUATED,
    Members,
    Scale,
    curve,
    curves,
    env_steps,
    finals,
    footer,
    main,
    over_all,
)
from experiments.table1 import PUBLISHED
from fedjax_rl import config
from fedjax_rl.config import presets

SEEDS = tuple(range(10))
CLIENTS = 40  # evaluated between rounds, six times


def members(scale: Scale, env: str) -> Members:
    """An environment's runs, one for each seed."""
    tiny = scale.name == "tiny"
    values = {"env": env, "new_clients": 0, "adapt_steps": 2}
    made = config.build("fmrl", presets.preset("tiny" if tiny else "efficient", "fmrl", env), values)
    between = {} if tiny else {"eval_every": made.rounds * 4 // 25, "eval_clients": CLIENTS}
    seeds = scale.seeds if tiny else SEEDS
    return {f"{env}/seed{seed}": replace(made, seed=seed, **between) for seed in seeds}


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """Run what is missing; draw OUT/efficient.png and write OUT/efficient.md and OUT/efficient.json."""
    everyone = {env: members(scale, env) for env in envs}
    curves(scale, out, envs, lambda env: {"efficient": everyone[env]}, (EVALUATED,), "efficient", by_steps=True)
    text = ["# efficient", ""]
    text += ["| | million steps | before | 1 step | 2 steps | the paper, 1 step | reached after |", "|---" * 7 + "|"]
    scores = {}
    for env, some in everyone.items():
        rows = [np.mean(row["eval/returns"], axis=0).tolist() for row in finals(out, some).values()]
        scores[env] = rows
        c = next(iter(some.values()))
        cells = [over_all([row[j] for row in rows], some) for j in range(c.adapt_steps + 1)]
        mean, half = PUBLISHED[env]["fmrl"][1]
        size = env_steps(c) / 1e6
        row = [env, f"{size:g}", *cells, f"{mean} ± {half}", reached(out, some, mean, size / c.rounds)]
        text.append(f"| {' | '.join(row)} |")
    text += ["", footer(scale, {name: c for some in everyone.values() for name, c in some.items()}, out), ""]
    (out / "efficient.md").write_text("\n".join(text))
    (out / "efficient.json").write_text(json.dumps(scores, indent=1) + "\n")
    print("\n".join(text))


def reached(out: Path, some: Members, value: float, unit: float) -> str:
    """From how many million steps on the seeds' mean after one step is at least `value`, in every evaluation."""
    by_seed = [curve(out, name, EVALUATED[0]) for name in some]
    rounds = sorted(set.intersection(*map(set, by_seed)))
    below = [n for n in rounds if np.mean([seed[n] for seed in by_seed]) < value]
    after = [n for n in rounds if not below or n > below[-1]]
    return f"{unit * after[0]:.2g}" if after else "not reached"


if __name__ == "__main__":
    main(__doc__, "efficient", experiment, envs=ENVS, has_paper=False)
