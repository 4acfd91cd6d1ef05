"""Fig. 4: participation, half, once and one and a half times the scale's cohort (at the paper's: 0.1, 0.2, 0.3).

python -m experiments.fig4 --scale laptop [--out DIR] [--envs ENV ...]

Above: each round's own clients. Below: evaluations between rounds (at the paper's scale of all clients).
"""

from pathlib import Path

from experiments.common import EVALUATED, SELECTED, Scale, best_server_rate, configure, main, over, study


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """A line for each cohort; a cohort's size is a program of its own."""

    def lines(env: str):
        middle = configure(scale, "fmrl", env)
        sizes = [middle.clients_per_round * k // 2 for k in (1, 2, 3)]
        shares = {size: f"participation {size / middle.num_clients:g}" for size in sizes}
        values = best_server_rate(scale, env) | {"adapt_steps": 1}
        return {shares[m]: over(scale, env, f"clients_per_round={m}", clients_per_round=m, **values) for m in sizes}

    study(scale, out, envs, lines, "fig4", panels=(SELECTED, EVALUATED))


if __name__ == "__main__":
    main(__doc__, "fig4", experiment)
