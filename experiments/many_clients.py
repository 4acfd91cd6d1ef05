"""More clients than the paper's: federations of 200, 1,000 and 10,000, a fifth of the smallest selected, or all of it.

python -m experiments.many_clients --scale laptop [--out DIR] [--envs ENV ...]

All lines take as many rounds. They are evaluated on their first 200 clients and on 100 new ones, which all lines share.
"""

from pathlib import Path

from experiments.common import EVALUATED, Members, Scale, configure, main, over, study

FEDERATIONS = (1, 5, 50)  # times the scale's
ROUNDS = {"tiny": 2, "laptop": 60, "paper": 500}


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """A line for each federation and cohort."""

    def lines(env: str) -> dict[str, Members]:
        middle, found = configure(scale, "fmrl", env), {}
        clients = middle.num_clients
        evaluated = {"eval_clients": clients, "final_clients": clients, "new_clients": clients // 2, "adapt_steps": 1}
        for cohort in (clients // 5, clients):
            for times in FEDERATIONS:
                size = {"num_clients": times * clients, "clients_per_round": cohort, "rounds": ROUNDS[scale.name]}
                label = f"{times * clients:,} clients, {cohort} a round"
                found[label] = over(scale, env, label, order="first", **size, **evaluated)
        return found

    study(scale, out, envs, lines, "many_clients", panels=(EVALUATED,))


if __name__ == "__main__":
    main(__doc__, "many_clients", experiment, default_envs=("half_cheetah/velocity",))
