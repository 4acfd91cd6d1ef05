"""Groups of runs as a picture. The only file that imports matplotlib."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rl import statistics
from fedjax_rl.config import ConfigError
from fedjax_rl.reports.finished import AXES, Setting

# Okabe and Ito's colours, which the colour-blind can tell apart; more groups than these begin again.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WINDOW = 10  # rounds in a moving mean: a round's few clients are noisy
LINES = {"train/return/adapt_0": ("before adaptation", 0.8, 0.08), "train/return/adapt_1": ("after 1 step", 1.8, 0.18)}


def draw(groups: Sequence[Setting], file: Path, axis: str = "env_steps") -> None:
    """Left: returns of each round's own clients along an axis of AXES. Right: the last evaluation.

    Means over seeds, 95 % t-intervals.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigError("--figure needs matplotlib; install it with: pip install 'fedjax-rl[plot]'") from None
    figure = Figure(figsize=(10, 4.2 + 0.22 * len(groups)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for i, group in enumerate(groups):
        color = COLORS[i % len(COLORS)]
        _curves(left, group, color, axis)
        _final(right, group, color, 0.6 * ((i + 0.5) / len(groups) - 0.5))
    _decorate(left, right, groups, axis)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=8)
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise ConfigError(f"cannot write the figure {file}: {error.strerror}") from None


def _curves(axes: Any, group: Setting, color: str, axis: str) -> None:
    for name, (_, width, shade) in LINES.items():
        curve = group.curve(name, axis)
        if curve is None:
            continue
        x, values = (_smooth(part) for part in curve)
        mean, half = _over_seeds(values)
        axes.plot(x, mean, color=color, lw=width)
        if half is not None:
            axes.fill_between(x, mean - half, mean + half, color=color, alpha=shade, lw=0)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving means over the last axis, of steps and returns alike; a run of a few rounds is left as it is."""
    if values.shape[-1] < 2 * WINDOW:
        return values
    return np.lib.stride_tricks.sliding_window_view(values, WINDOW, axis=-1).mean(axis=-1)


def _final(axes: Any, group: Setting, color: str, shift: float) -> None:
    seeds = group.scores("eval").mean(axis=1)  # [S, k+1]
    mean, half = _over_seeds(seeds)
    x = np.arange(len(mean)) + shift
    label = textwrap.fill(f"{group.label} ({len(seeds)}\u00a0seed{'s' if len(seeds) > 1 else ''})", 140)
    axes.errorbar(x, mean, yerr=half, color=color, fmt="o", ms=5, capsize=3, lw=1.4, label=label)
    if half is not None:
        axes.plot(x + 0.05, seeds.T, ".", color=color, ms=4, alpha=0.5)  # beside the mean: every seed


def _over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and half-width [R] over the seeds of values [S, R]; one seed has no interval."""
    summary = statistics.summarise(values.tolist())
    return np.array(summary["mean"]), np.array(summary["ci95"]) if len(values) > 1 else None


def _decorate(left: Any, right: Any, groups: Sequence[Setting], axis: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    left.set(xlabel=AXES[axis], ylabel="return of an episode")
    is_smooth = any(len(run.rounds) >= 2 * WINDOW for group in groups for run in group.runs)
    means = f", {WINDOW}-round means" if is_smooth else ""
    left.set_title(f"{groups[0].runs[0].config.env}: each round's own clients{means}", fontsize=10)
    left.xaxis.set_major_formatter(EngFormatter())
    lines = [Line2D([], [], color="0.3", lw=width, label=label) for label, width, _ in LINES.values()]
    left.legend(handles=lines, loc="best", frameon=False, fontsize=8)
    right.set_xticks(range(max(group.scores("eval").shape[2] for group in groups)))
    right.set_xlabel("adaptation steps\n(bars: 95 % t-intervals, small dots: seeds)")
    right.set_title("all clients after the last round", fontsize=10)
    for axes in (left, right):
        axes.axhline(0, color="black", lw=0.5, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
