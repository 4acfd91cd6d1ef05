"""Robots that differ: FMRL, FedAvg and no federation where every client has masses, friction and gears of its own.

python -m experiments.dynamics --scale laptop [--out DIR] [--envs ENV ...]
"""

from pathlib import Path

from experiments.common import EVALUATED, Members, Scale, main, over, study, tuned_rate
from experiments.table1 import RATES

ENVS = ("half_cheetah/dynamics", "ant/dynamics")
# The server's rate; who learns alone has only a local one. Nothing is clipped there, for nothing is sent.
GRIDS = {
    "fmrl": ("server_lr", RATES),
    "fedavg": ("server_lr", RATES),
    "independent": ("local_lr", (0.001, 0.01, 0.1)),
}


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """Each at the best of three rates, with the samples of FMRL; the worst tenth of the clients beside the mean."""

    def lines(env: str) -> dict[str, Members]:
        best = {n: {key: tuned_rate(scale, out, env, n, n, rates, key)} for n, (key, rates) in GRIDS.items()}
        return {name: over(scale, env, name, name, adapt_steps=1, **value) for name, value in best.items()}

    study(scale, out, envs, lines, "dynamics", panels=(EVALUATED,))


if __name__ == "__main__":
    main(__doc__, "dynamics", experiment, envs=ENVS)
