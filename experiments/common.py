"""What the experiments share: scales, members, the command line, and the line that says what a result is worth.

An experiment is a set of named configurations and a drawing of their results. Its directory holds a run directory for
each member; members that are finished are reused, members that were interrupted go on, so that the command can be
repeated until all is done. There is no mathematics here.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rl import config, metrics, presets, rundir

ENVS = ("half_cheetah/direction", "half_cheetah/velocity", "ant/direction", "ant/velocity")
METHODS = ("fmrl", "pfedme", "fedavg", "fedrep", "ditto")
HORIZON = {"half_cheetah": 200, "ant": 100}
Members = dict[str, config.Config]


class Scale(NamedTuple):
    """How much an experiment spends.

    preset: of the configuration. seeds: of the results. rounds: by robot. matched: are cohorts such that all methods
    take as many samples a round as FMRL? extra: further values.
    """

    name: str
    preset: str
    seeds: tuple[int, ...]
    rounds: Mapping[str, int]
    matched: bool
    extra: Mapping[str, Any]


SCALES = {
    "tiny": Scale("tiny", "tiny", (0, 1), {"half_cheetah": 2, "ant": 2}, True, {"new_clients": 0, "adapt_steps": 1}),
    "laptop": Scale(
        "laptop",
        "laptop",
        (0, 1, 2),
        {"half_cheetah": 100, "ant": 60},
        True,
        {"new_clients": 0, "eval_every": 20, "eval_clients": 20, "save_every": 20},
    ),
    "paper": Scale(
        "paper",
        "paper",
        (0, 1, 2, 3, 4),
        {"half_cheetah": 500, "ant": 500},
        False,
        {"new_clients": 0, "eval_every": 100, "save_every": 20},
    ),
}


def configure(scale: Scale, algorithm: str, env: str, **values: Any) -> config.Config:
    """A method in an environment at a scale."""
    rounds = {"env": env, "rounds": scale.rounds[env.split("/")[0]]}
    made = config.build(algorithm, presets.preset(scale.preset, algorithm, env), rounds, scale.extra)
    if scale.matched:
        values.setdefault("clients_per_round", max(1, made.clients_per_round * 2 // made.batches))
    return replace(made, **values)


def env_steps(c: config.Config) -> int:
    """Environment steps of a whole run."""
    return c.rounds * c.clients_per_round * c.batches * c.episodes * HORIZON[c.env.split("/")[0]]


def run(members: Members, out: Path) -> None:
    """Bring all members to their end, those that can share a program together."""
    from fedjax_rl import runner, train
    from fedjax_rl.progress import Reporter

    reporter = Reporter(quiet=False)
    try:
        runner.run_members({out / name: c for name, c in members.items()}, reporter)
    except train.Interrupted as signal:
        reporter.warn(f"interrupted ({signal}) and saved; the same command goes on from here")
        sys.exit(signal.code)


def finals(out: Path, members: Members) -> dict[str, dict[str, Any]]:
    """The last evaluation of every finished member, by name."""
    found = {}
    for name, c in members.items():
        records = [r for r in rundir.read_lines(out / name / rundir.EVAL) if r["final"] and r["round"] == c.rounds]
        if records:
            found[name] = records[-1]
    return found


def curve(out: Path, name: str, key: str) -> tuple[list[int], list[float]]:
    """(rounds, values) of a member's metric."""
    rows = [r for r in rundir.read_lines(out / name / rundir.METRICS) if r.get(key) is not None]
    return [r["round"] for r in rows], [r[key] for r in rows]


def over_seeds(values: list[float]) -> str:
    """'mean ± t-interval over seeds', or the mean alone of a single one."""
    mean, half = metrics.mean_ci95(values)
    return f"{mean:.1f} ± {half:.1f}" if len(values) > 1 else f"{mean:.1f}"


def footer(scale: Scale, members: Members, out: Path) -> str:
    """Scale, budget and versions: what every output says."""
    budgets = sorted({env_steps(c) for c in members.values()})
    text = " to ".join(f"{b:,}" for b in dict.fromkeys((budgets[0], budgets[-1])))
    path = next((out / name / rundir.ENV for name in members if (out / name / rundir.ENV).exists()), None)
    seen = json.loads(path.read_text()) if path else {}
    names = ("python", "jax", "mujoco", "mujoco-mjx")
    versions = ", ".join(f"{name} {seen[name]}" for name in names if seen.get(name))
    seeds = sorted({c.seed for c in members.values()})
    return f"scale {scale.name}: seeds {', '.join(map(str, seeds))}; {text} environment steps a run; {versions}"


def main(doc: str, name: str, experiment: Callable[[Scale, Path, tuple[str, ...]], None]) -> None:
    """The command line of an experiment."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(SCALES), default="laptop")
    parser.add_argument(
        "--out", type=Path, help=f"directory of the runs and the result (default: results/{name}-SCALE)"
    )
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=ENVS, help="only these environments")
    args = parser.parse_args()
    experiment(SCALES[args.scale], args.out or Path("results") / f"{name}-{args.scale}", tuple(args.envs))
