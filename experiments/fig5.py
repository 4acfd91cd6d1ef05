"""Fig. 5: Fed-Adam against Fed-SGD with local rates 0.001 and 0.01 and server rates 1, 3 and 5.

python -m experiments.fig5 --scale laptop [--out DIR] [--envs ENV ...]
"""

from pathlib import Path

from experiments.common import Scale, line, main, study

FED_SGD = [(beta, eta) for beta in (0.001, 0.01) for eta in (1.0, 3.0, 5.0)]


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """Fed-Adam with the scale's rates, and six lines of Fed-SGD, which changes without a clip as in the paper."""

    def lines(env: str):
        found = {"Fed-Adam": line(scale, env, "adam")}
        for beta, eta in FED_SGD:
            values = {"server": "sgd", "local_lr": beta, "server_lr": eta, "max_change_norm": 0.0}
            found[f"Fed-SGD, beta {beta:g}, eta {eta:g}"] = line(scale, env, f"sgd,{beta:g},{eta:g}", **values)
        return found

    study(scale, out, envs, lines, "fig5")


if __name__ == "__main__":
    main(__doc__, "fig5", experiment)
