"""Does the physics engine change what is learned? The same runs on C MuJoCo (native) and on fused physics.

    python -m experiments.engines [--out DIR] [--envs ENV ...]

FMRL at its presets, engine against engine, seed by seed: returns of all 200 clients before adaptation and after one,
two and three steps. The table has each engine's mean over seeds, the quartiles of its seeds' means, and the difference
of the two, paired over seeds, whose tasks both share: a 95 % t-interval and the two-sided p-value. A comparison that
was stopped goes on where OUT/engines.json ends, whose figures must be of the same configurations.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.stats

from experiments.common import Members, Scale, finals, footer, main, over_seeds, run
from experiments.reuse import training
from fedjax_rl import config
from fedjax_rl.config import presets

ENGINES = ("native", "fused")
Scores = dict[str, dict[str, dict[str, list[float]]]]  # environment -> engine -> seed -> means
RUNS = {
    "half_cheetah/direction": ("laptop", 12),
    "half_cheetah/velocity": ("efficient", 6),
    "ant/direction": ("efficient", 6),
}


def runs(scale: Scale, env: str) -> tuple[str, int]:
    """The preset in an environment, and how many seeds."""
    return RUNS[env] if scale.name != "tiny" else ("tiny", 2)


def members(scale: Scale, env: str, engine: str) -> Members:
    """An engine's runs in an environment, one for each seed."""
    preset, seeds = runs(scale, env)
    values = {"env": env, "backend": engine, "new_clients": 0}
    layers = (presets.preset(preset, "fmrl", env), values)
    return {f"{env}/{engine}/seed{seed}": config.build("fmrl", *layers, {"seed": seed}) for seed in range(seeds)}


def digest(c: config.Config) -> str:
    """sha256 of what decides a run's figures, but its seed: the values that are not their defaults."""
    c = replace(training(c), adapt_steps=c.adapt_steps, final_clients=c.final_clients, seed=0)
    values = {key: value for key, value in vars(c).items() if value != getattr(type(c)(), key)}
    return hashlib.sha256(json.dumps([c.algorithm, values], sort_keys=True).encode()).hexdigest()


def configurations(scale: Scale, scores: Scores) -> dict[str, dict[str, str]]:
    """The digests that figures are to have, by environment and engine."""
    first = lambda env, engine: next(iter(members(scale, env, engine).values()))
    return {env: {engine: digest(first(env, engine)) for engine in of} for env, of in scores.items()}


def read(scale: Scale, file: Path) -> Scores:
    """The figures that a file has.

    Raises:
      ConfigError: they are of other configurations.
    """
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    scores = found.get("means", {})
    if found.get("configurations") != configurations(scale, scores):
        raise config.ConfigError(f"{file} has figures of other configurations than today's; choose another --out")
    return scores


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """Run what is missing, seed by seed, writing the table after each. What engines.json has is not run again."""
    scores = read(scale, out / "engines.json")
    everyone = {env: [members(scale, env, engine) for engine in ENGINES] for env in envs}
    every = {name: c for by_engine in everyone.values() for some in by_engine for name, c in some.items()}
    for env, by_engine in everyone.items():
        for pair in zip(*[some.items() for some in by_engine], strict=True):
            for engine, (name, c) in zip(ENGINES, pair, strict=True):
                seeds = scores.setdefault(env, {}).setdefault(engine, {})
                if str(c.seed) not in seeds:
                    run(scale, {name: c}, out)
                    seeds |= {str(c.seed): means(row) for row in finals(out, {name: c}).values()}
            write(scale, out, scores, every)
    print((out / "engines.md").read_text())


def write(scale: Scale, out: Path, scores: Scores, every: Members) -> None:
    """engines.json: every seed's means by environment and engine, a row for each step, and the digests of their
    configurations. engines.md: the tables."""
    done = {name: c for name, c in every.items() if str(c.seed) in scores.get(c.env, {}).get(c.backend, {})}
    lines = ["# engines", "", footer(scale, done, out), ""]
    for env, by_engine in scores.items():
        if all(by_engine.values()):
            lines += [f"## {env}, preset {runs(scale, env)[0]}", "", *table(by_engine), ""]
    found = {"configurations": configurations(scale, scores), "means": scores}
    (out / "engines.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "engines.md").write_text("\n".join(lines))


def means(row: dict) -> list[float]:
    """The clients' mean before adaptation and after each step, of a run's last evaluation."""
    return np.mean(row["eval/returns"], axis=0).tolist()


def table(by_engine: dict[str, dict[str, list[float]]]) -> list[str]:
    """One environment: a row for each step of adaptation."""
    values = {engine: np.array([seeds[seed] for seed in sorted(seeds, key=int)]) for engine, seeds in by_engine.items()}
    lines = [", ".join(f"{len(seeds)} seeds on {engine}" for engine, seeds in by_engine.items()), ""]
    lines += ["| steps | " + " | ".join(f"{engine} | its quartiles" for engine in ENGINES) + " | fused - native | p |"]
    lines.append("|---" * 7 + "|")
    for j in range(values[ENGINES[0]].shape[1]):
        columns = [v[:, j] for v in values.values()]
        cells = [
            cell
            for column in columns
            for cell in (
                over_seeds(column.tolist()),
                " / ".join(f"{q:.1f}" for q in np.quantile(column, [0.25, 0.5, 0.75])),
            )
        ]
        test = scipy.stats.ttest_rel(*reversed(columns))
        low, high = test.confidence_interval(0.95)
        difference = f"{np.mean(columns[1] - columns[0]):.1f} [{low:.1f}, {high:.1f}]"
        lines.append(f"| {j} | " + " | ".join(cells) + f" | {difference} | {test.pvalue:.2f} |")
    return lines


if __name__ == "__main__":
    main(__doc__, "engines", experiment, envs=tuple(RUNS), has_paper=False)
