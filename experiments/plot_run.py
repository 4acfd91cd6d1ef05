"""One run as a picture: returns by round, and what adaptation makes of every client.

    python -m experiments.plot_run RUN [RUN ...] --out FIGURE.png

Left: the selected clients of each round before and after one adaptation step (thin), and their 10-round means. Right:
the last evaluation, mean over all clients with its 95 % CI and every client as a dot, on episodes sampled afresh.
Several runs (seeds) share the axes.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

BEFORE, AFTER = "#7a7a7a", "#0b6e4f"


def lines(path: Path) -> list[dict]:
    """The JSON rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw_rounds(axes, runs: list[Path]) -> None:
    """Returns of each round's own clients."""
    for run in runs:
        rows = lines(run / "metrics.jsonl")
        for name, color, label in (("adapt_0", BEFORE, "before"), ("adapt_1", AFTER, "after one step")):
            values = np.array([row.get(f"train/return/{name}", np.nan) for row in rows])
            axes.plot(np.arange(1, len(values) + 1), values, color=color, alpha=0.25, lw=0.7)
            if len(values) >= 10:
                smooth = np.convolve(values, np.ones(10) / 10, mode="valid")
                first = label if run == runs[0] else None
                axes.plot(np.arange(len(smooth)) + 5.5, smooth, color=color, lw=1.8, label=first)
    axes.set_xlabel("round")
    axes.set_ylabel("return of an episode")
    axes.set_title("each round's own clients", fontsize=10)
    axes.legend(frameon=False, loc="upper left")


def draw_adaptation(axes, runs: list[Path]) -> None:
    """The last evaluation of every run, side by side within each number of steps."""
    rng = np.random.default_rng(0)  # the dots' jitter
    for i, run in enumerate(runs):
        final = [row for row in lines(run / "eval.jsonl") if row["final"]][-1]
        returns = np.array(final["eval/returns"])
        for j, column in enumerate(returns.T):
            x = j + 0.22 * (i - (len(runs) - 1) / 2)
            color = BEFORE if j == 0 else AFTER
            axes.scatter(x + rng.uniform(-0.06, 0.06, len(column)), column, s=3, color=color, alpha=0.3, lw=0)
            ci95 = final[f"eval/return/adapt_{j}"]["ci95"]
            axes.errorbar(x, column.mean(), yerr=ci95, color="black", capsize=3, lw=1.2, marker="_", ms=9)
    axes.set_xticks(range(returns.shape[1]))
    axes.set_xlabel("adaptation steps")
    axes.set_title(f"all {len(returns)} clients after the last round", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, width_ratios=(3, 2))
    draw_rounds(left, args.runs)
    draw_adaptation(right, args.runs)
    for axes in (left, right):
        axes.axhline(0, color="black", lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(args.title, fontsize=11)
    figure.tight_layout()
    figure.savefig(args.out, dpi=130)


if __name__ == "__main__":
    main()
