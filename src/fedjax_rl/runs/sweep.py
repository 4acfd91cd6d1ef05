"""A sweep: the members that a grid and a range of seeds make, and successive halving among them. Imports no jax."""

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fedjax_rl.config import EXECUTION, Config, ConfigError, nearest
from fedjax_rl.config.sources import parsed

Members = dict[Path, Config]
MOST_MEMBERS, MOST_HALVINGS = 10_000, 20
LONGEST_NAME = 255  # bytes of one name on common file systems


def parse_seeds(text: str) -> list[int]:
    """'0:5' -> 0, 1, 2, 3, 4; '3,7' -> 3, 7."""
    try:
        if ":" in text:
            low, high = (int(part) for part in text.split(":"))
            seeds: Sequence[int] = range(low, high)[: 10**18]  # more cannot be counted, and are refused as these are
        else:
            seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    _refuse_many(f"--seeds {text!r}", len(seeds))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text!r}: must be a range like 0:5 or a list like 0,3,7, of one or more seeds")
    return list(seeds)


def sweepable(config: Config) -> list[str]:
    """The options that a grid may have: one value each, deciding the result; environments are not compared."""
    names = [item.name for item in fields(config) if not isinstance(item.default, tuple)]
    return [name for name in names if name not in EXECUTION | {"seed", "env"}]


def parse_grid(entries: Sequence[str], config: Config) -> dict[str, list[Any]]:
    """['server_lr=3e-4,1e-3', 'order=first,second'] -> the values of each key, typed as the configuration's."""
    kinds = {item.name: type(item.default) for item in fields(config) if not isinstance(item.default, tuple)}
    legal = sweepable(config)
    grid: dict[str, list[Any]] = {}
    for entry in entries:
        key, _, text = entry.partition("=")
        key = key.replace("-", "_")
        if key in EXECUTION | {"env"}:
            why = "a sweep compares runs of one environment" if key == "env" else "it changes no result to compare"
            raise ConfigError(f"--grid {entry!r}: {key} cannot be swept: {why}; start a sweep for each value")
        if key not in legal:
            raise ConfigError(f"--grid {entry!r}: unknown key {key!r}{nearest(key, legal)}; seeds are given by --seeds")
        try:
            values = [parsed(part, kinds[key]) for part in text.split(",") if part]
        except ValueError:
            raise ConfigError(f"--grid {entry!r}: each value must be {kinds[key].__name__}") from None
        if not values or len(set(values)) < len(values) or key in grid:
            raise ConfigError(f"--grid {entry!r}: give each key once, with one or more different values: {key}=A,B")
        grid[key] = values
    return grid


def members(
    config: Config, grid: Mapping[str, Sequence[Any]], seeds: Sequence[int], out: Path, halvings: int = 0
) -> Members:
    """Every point of the grid with every seed, in a directory named after it; every value is checked here."""
    if type(halvings) is not int or not 0 <= halvings <= MOST_HALVINGS:
        raise ConfigError(f"--halvings {halvings}: must be an integer, 0 to {MOST_HALVINGS}")
    found: Members = {}
    _refuse_many("--grid and --seeds", len(seeds) * math.prod(map(len, grid.values())))
    for point in itertools.product(*grid.values()):
        chosen = dict(zip(grid, point, strict=True))
        for seed in seeds:
            parts = [f"{key}={value}".replace("/", "_") for key, value in {**chosen, "seed": seed}.items()]
            path = out / ",".join(parts)
            if len(os.fsencode(path.name)) > LONGEST_NAME:
                raise ConfigError(
                    f"--grid: the directory {path.name[:40]}... would have too long a name; sweep fewer keys"
                )
            if path in found:
                raise ConfigError(f"--grid: two of its points would be in one directory, {path.name}")
            found[path] = replace(config, **chosen, seed=seed)
    return found


def _refuse_many(what: str, count: int) -> None:
    if count > MOST_MEMBERS:
        raise ConfigError(f"{what}: {count:,} runs; a sweep takes at most {MOST_MEMBERS:,}")


def halve(
    members: Members,
    halvings: int,
    run: Callable[[Members], Any],
    score: Callable[[Path, int], float],
) -> Members:
    """Successive halving: after 1/2^h, ..., 1/2 of the rounds only the better half of the grid's points goes on.

    A point's value is the mean score of its seeds; ties go to the earlier point. What does not go on keeps its shorter
    run. With h = 0 all run all rounds.

    Source: Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016.

    Args:
      members: all runs by directory.
      halvings: h, how often half is dropped.
      run: brings runs to their last round and evaluation; what is there already stays.
      score: (directory, round) -> what the run reached by that round, larger is better.

    Returns:
      The members that ran all rounds.
    """
    left = dict(members)
    for number in range(halvings, 0, -1):
        run({path: replace(c, rounds=max(1, c.rounds >> number), new_clients=0) for path, c in left.items()})
        points: dict[Config, list[float]] = {}
        for path, config in left.items():
            points.setdefault(replace(config, seed=0), []).append(score(path, max(1, config.rounds >> number)))
        best = sorted(points, key=lambda point: -sum(points[point]) / len(points[point]))
        left = {path: c for path, c in left.items() if replace(c, seed=0) in best[: -(-len(points) // 2)]}
    run(left)
    return left
