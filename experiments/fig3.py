"""Fig. 3: the local rate beta (the server rate stays at the scale's; at the paper's, at the best of its Fig. 2).

python -m experiments.fig3 --scale laptop [--out DIR] [--envs ENV ...]
"""

from pathlib import Path

from experiments.common import Scale, best_server_rate, line, main, study

RATES = (0.0005, 0.001, 0.005, 0.01)


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """A line for each rate; seeds and rates are members of one program."""

    def lines(env: str):
        server = best_server_rate(scale, env)
        return {f"beta {rate:g}": line(scale, env, f"local_lr={rate:g}", local_lr=rate, **server) for rate in RATES}

    study(scale, out, envs, lines, "fig3")


if __name__ == "__main__":
    main(__doc__, "fig3", experiment)
