"""What to learn: an initialisation (FMRL), also its rates (Meta-SGD), or where several steps lead (Reptile).

python -m experiments.strategies --scale laptop [--out DIR] [--envs ENV ...]
"""

from pathlib import Path

from experiments.common import EVALUATED, Scale, main, over, study, tuned_rate
from experiments.table1 import RATES

STRATEGIES = ("fmrl", "meta_sgd", "reptile")


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """Each at the best of Table 1's server rates, with the samples of FMRL."""

    def lines(env: str):
        best = {name: tuned_rate(scale, out, env, name, name, RATES) for name in STRATEGIES}
        return {name: over(scale, env, name, name, server_lr=rate, adapt_steps=1) for name, rate in best.items()}

    study(scale, out, envs, lines, "strategies", panels=(EVALUATED,))


if __name__ == "__main__":
    main(__doc__, "strategies", experiment)
