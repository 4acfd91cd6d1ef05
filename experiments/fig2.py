"""Fig. 2: the server rate eta (the local rate stays at 0.001).

python -m experiments.fig2 --scale laptop [--out DIR] [--envs ENV ...]
"""

from pathlib import Path

from experiments.common import Scale, curves, main, over

RATES = (0.0003, 0.0005, 0.001, 0.003)


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """A line for each rate; seeds and rates are members of one program."""

    def lines(env: str):
        return {
            f"eta {rate:g}": over(scale, env, f"server_lr={rate:g}", server_lr=rate, adapt_steps=1) for rate in RATES
        }

    curves(scale, out, envs, lines, (("train/return/adapt_1", "after one step"),), "fig2")


if __name__ == "__main__":
    main(__doc__, "fig2", experiment)
