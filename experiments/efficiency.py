"""Returns for samples: cohorts of 4 to 40 clients, two server rates and three lambdas of the advantages, all with the
same environment steps.

python -m experiments.efficiency --scale laptop [--out DIR] [--envs ENV ...]

On the two seeds that the results are not reported for, so that presets can be chosen by it.
"""

from pathlib import Path

from experiments.common import TUNING_SEEDS, Members, Scale, configure, line, main, study

SHARES = (0.5, 1, 2, 5)  # of the scale's cohort: at the laptop scale 4, 8, 16 and 40 clients
RATES = (0.0015, 0.003)
LAMBDAS = (0.9, 0.95, 1.0)


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """A line for each cohort and rate (a smaller cohort has as many more rounds), and for each further lambda."""
    scale = scale._replace(seeds=TUNING_SEEDS)

    def lines(env: str) -> dict[str, Members]:
        middle, found = configure(scale, "fmrl", env), {}
        for share in SHARES:
            size = min(int(share * middle.clients_per_round), middle.num_clients)
            values = {"clients_per_round": size, "rounds": max(1, middle.rounds * middle.clients_per_round // size)}
            for rate in RATES:
                label = f"{size} clients, rate {rate:g}"
                found[label] = line(scale, env, label, server_lr=rate, **values)
        for value in LAMBDAS:
            if value != middle.gae_lambda:
                found[f"lambda {value:g}"] = line(scale, env, f"lambda {value:g}", gae_lambda=value)
        return found

    study(scale, out, envs, lines, "efficiency", by_steps=True)


if __name__ == "__main__":
    main(__doc__, "efficiency", experiment)
