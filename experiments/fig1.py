"""Fig. 1: learning curves before adaptation and after one step, five methods.

    python -m experiments.fig1 --scale laptop [--out DIR] [--envs ENV ...] [--methods METHOD ...]

The runs are those of Table 1 (`--out` may be its directory, whose runs are then used). The curves are evaluations every
few rounds on fresh episodes, of the same clients for all methods. The paper draws each round's own clients, which only
FMRL samples again after adaptation.
"""

from pathlib import Path

from experiments import table1
from experiments.common import METHODS, Scale, curves, main

PANELS = (("eval/return/adapt_0", "before adaptation"), ("eval/return/adapt_1", "after one step"))


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = METHODS) -> None:
    """Five lines in each environment."""

    def lines(env: str):
        return {m: table1.cell(scale, env, m, table1.chosen(scale, env, m, out)) for m in methods}

    curves(scale, out, envs, lines, PANELS, "fig1")


if __name__ == "__main__":
    main(__doc__, "table1", experiment, methods=METHODS)
