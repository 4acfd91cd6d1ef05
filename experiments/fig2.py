"""Fig. 2: the server rate eta (the local rate stays at 0.001).

python -m experiments.fig2 --scale laptop [--out DIR] [--envs ENV ...]
"""

from pathlib import Path

from experiments.common import Scale, line, main, study

RATES = (0.0003, 0.0005, 0.001, 0.003)


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """A line for each rate; seeds and rates are members of one program."""

    def lines(env: str):
        return {f"eta {rate:g}": line(scale, env, f"server_lr={rate:g}", server_lr=rate) for rate in RATES}

    study(scale, out, envs, lines, "fig2")


if __name__ == "__main__":
    main(__doc__, "fig2", experiment)
