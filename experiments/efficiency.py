"""Returns for samples: cohorts of 4 to 40 clients at two server rates, and beside them one change at a time of lambda,
of the order and of the episodes a batch, all with the same environment steps.

python -m experiments.efficiency --scale laptop [--out DIR] [--envs ENV ...]

On the two seeds that the results are not reported for, so that presets can be chosen by it.
"""

from pathlib import Path

from experiments.common import TUNING_SEEDS, Members, Scale, configure, line, main, study

SHARES = (0.5, 1, 2, 5)  # of the scale's cohort: at the laptop scale 4, 8, 16 and 40 clients
RATES = (0.0015, 0.003)
LAMBDAS = (0.9, 0.95, 1.0)
EPISODES = (0.5, 2)  # of the scale's batch: at the laptop scale 10 and 40 episodes


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """A line for each cohort and rate, and for each change; with fewer samples a round there are more rounds."""
    scale = scale._replace(seeds=TUNING_SEEDS)

    def lines(env: str) -> dict[str, Members]:
        middle, found = configure(scale, "fmrl", env), {}
        samples = middle.rounds * middle.clients_per_round * middle.episodes

        def add(label: str, cohort: int = middle.clients_per_round, episodes: int = middle.episodes, **values) -> None:
            size = {"clients_per_round": cohort, "episodes": episodes, "rounds": max(1, samples // (cohort * episodes))}
            found[label] = line(scale, env, label, **{"server_lr": RATES[0], **size, **values})

        for share in SHARES:
            cohort = min(int(share * middle.clients_per_round), middle.num_clients)
            for rate in RATES:
                add(f"{cohort} clients, rate {rate:g}", cohort, server_lr=rate)
        for value in LAMBDAS:
            if value != middle.gae_lambda:
                add(f"lambda {value:g}", gae_lambda=value)
        other = "first" if middle.order == "second" else "second"
        add(f"{other} order", order=other)
        for share in EPISODES:
            episodes = int(share * middle.episodes)
            add(f"{episodes} episodes a batch", episodes=episodes)
        return found

    study(scale, out, envs, lines, "efficiency", by_steps=True)


if __name__ == "__main__":
    main(__doc__, "efficiency", experiment)
