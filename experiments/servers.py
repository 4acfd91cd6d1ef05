"""Which server: FMRL under six server optimisers, each at the best of three rates of its own.

python -m experiments.servers --scale laptop [--out DIR] [--envs ENV ...]
"""

from pathlib import Path

from experiments.common import Scale, line, main, study, tuned_rate

# A pseudo-gradient's entries are near 1e-5: a rate of 1 of Fed-SGD moves as far as 1e-5 of Adam, and `as_printed` as
# Fed-SGD of 1e4 times its rate; `reddi` starts 31.6 times faster than Adam.
RATES = {
    "adam": (0.0005, 0.0015, 0.005),
    "reddi": (0.00015, 0.0005, 0.0015),
    "as_printed": (0.0003, 0.001, 0.003),
    "yogi": (0.0005, 0.0015, 0.005),
    "avgm": (0.3, 1.0, 3.0),
    "sgd": (3.0, 10.0, 30.0),
}


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """Rates are chosen as in Table 1, on two seeds that are not reported."""

    def lines(env: str):
        best = {name: tuned_rate(scale, out, env, name, "fmrl", rates, server=name) for name, rates in RATES.items()}
        return {name: line(scale, env, name, server=name, server_lr=rate) for name, rate in best.items()}

    study(scale, out, envs, lines, "servers")


if __name__ == "__main__":
    main(__doc__, "servers", experiment)
