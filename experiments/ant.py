"""What it takes for a small federation to learn on ant: one change at a time.

python -m experiments.ant --scale laptop [--out DIR] [--envs ENV ...]

On the two seeds that other results are not reported for. Base: the laptop preset's values for ant.
"""

from pathlib import Path

from experiments.common import TUNING_SEEDS, Members, Scale, configure, line, main, study

ENVS = ("ant/direction", "ant/velocity")
BASE = {
    "inner_lr": 0.5,
    "gae_lambda": 0.9,
    "order": "second",
    "selection": "stratified",
    "max_change_norm": 0.002,
}
# Floats share one program; the last five are programs of their own.
CHANGES = {
    "base": {},
    "inner rate .1": {"inner_lr": 0.1},
    "inner rate 1": {"inner_lr": 1.0},
    "server rate .005": {"server_lr": 0.005},
    "discount .95": {"discount": 0.95},
    "lambda 1": {"gae_lambda": 1.0},
    "no clip": {"max_change_norm": 0.0},
    "first order": {"order": "first"},
    "uniform cohorts": {"selection": "uniform"},
    "exact, log": {"surrogate": "log"},
    "exact, dice": {"surrogate": "dice"},
}


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """A line for each change, and one with twice the cohort for half the rounds."""
    scale = scale._replace(seeds=TUNING_SEEDS)

    def lines(env: str) -> dict[str, Members]:
        found = {label: line(scale, env, label, **{**BASE, **change}) for label, change in CHANGES.items()}
        one = configure(scale, "fmrl", env)
        twice = {"clients_per_round": 2 * one.clients_per_round, "rounds": max(1, one.rounds // 2)}
        return found | {"twice the cohort": line(scale, env, "twice the cohort", **BASE, **twice)}

    study(scale, out, envs, lines, "ant", by_steps=True)


if __name__ == "__main__":
    main(__doc__, "ant", experiment, envs=ENVS)
