"""Fig. 6: adaptation of clients that were never trained on, a step of the inner rate (0.1), then four of half of it.

    python -m experiments.fig6 --scale laptop [--out DIR] [--envs ENV ...] [--methods METHOD ...]

The runs are those of Table 1 (`--out` may be its directory, whose runs are then used). Each is evaluated at its last
checkpoint on 100 new clients (at the tiny scale 4), which all methods share; a run whose checkpoint is gone but which
was evaluated before keeps that evaluation.
"""

import json
from pathlib import Path

import numpy as np

from experiments import table1
from experiments.common import METHODS, Members, Scale, finish, footer, main, pyplot, run
from fedjax_rl import statistics

STEPS, FILE = 5, "fig6.json"


def score(path: Path, count: int) -> list[float]:
    """Mean returns of `count` new clients after 0..5 steps, evaluated once and kept in the run's directory."""
    if not (path / FILE).exists():
        from fedjax_rl.runs import assemble, checkpoint, rundir, scoring

        group = assemble.make_run(rundir.open_run(path))
        state = checkpoint.restore(path / rundir.CHECKPOINTS, assemble.abstract_state(group), print).state
        rates = (group.config.inner_lr, group.config.inner_lr / 2)
        returns = scoring.new_clients(scoring.make_evaluation(group, rates, STEPS), state, count)
        (path / FILE).write_text(json.dumps({"rates": rates, "returns": returns}) + "\n")
    return np.mean(json.loads((path / FILE).read_text())["returns"], axis=0).tolist()


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = METHODS) -> None:
    """Run what is missing of Table 1, evaluate, draw OUT/fig6.png and write OUT/fig6.json."""
    scores: dict[str, dict[str, list[list[float]]]] = {}
    everyone: Members = {}
    plt = pyplot()
    figure, axes = plt.subplots(1, len(envs), figsize=(4.2 * len(envs), 3.6), squeeze=False)
    for env, panel in zip(envs, axes[0], strict=True):
        for method in methods:
            cell = table1.cell(scale, env, method, table1.chosen(scale, env, method, out))
            run(scale, cell, out)
            everyone |= cell
            rows = [score(out / name, 4 if scale.name == "tiny" else 100) for name in cell]
            scores.setdefault(env, {})[method] = rows
            columns = np.array([statistics.mean_ci95(column) for column in zip(*rows, strict=True)], float)
            [line, *_] = panel.errorbar(
                range(STEPS + 1), columns[:, 0], columns[:, 1], label=method, capsize=2, lw=1.5, marker="o", ms=3
            )
            panel.plot(range(STEPS + 1), np.transpose(rows), color=line.get_color(), lw=0.5, alpha=0.6)
        panel.set_title(env, fontsize=9)
        panel.set_xlabel("adaptation steps")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("return of an episode, new clients")
    axes[0][0].legend(frameon=False, fontsize=8)
    (out / FILE).write_text(json.dumps(scores, indent=1) + "\n")
    finish(figure, out / "fig6.png", footer(scale, everyone, out))


if __name__ == "__main__":
    main(__doc__, "table1", experiment, methods=METHODS)
