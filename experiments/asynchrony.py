"""A federation on a clock: what asynchrony buys in virtual time, what laziness buys in messages, and at whose expense.

    python -m experiments.asynchrony [--scale laptop] [--out DIR] [--methods speedup schedules nigt lazy ...]

Seven parts, each with a table and a figure OUT/PART.md and .png:
speedup: AFedPG with 1 to 8 clients that are equally fast, in the same time. schedules: AFedPG and its rivals, where
clients are unlike fast. nigt: Rennala, synchronous NIGT and AFedPG where links cost time; and Malenia, where the slow
one has another task. lazy: LAPG's messages against its return. fmrl: FMRL in buffers. fair: who is served when slow
devices have the other task. stale: FMRL where old messages count for less, and AFedPG with its meta-gradient.
Rates are tuned on two seeds that are not reported, each method's over the same grid, by the return over all of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import BANDS, TUNING_SEEDS, Members, Scale, finish, main, over_seeds, pyplot, run, slug
from fedjax_rl import config, statistics
from fedjax_rl.config import presets
from fedjax_rl.reports.finished import AXES, FinishedRun, positions, spent
from fedjax_rl.runs import records, rundir

RUN, DIRECTION, NAVIGATION = "half_cheetah/run", "half_cheetah/direction", "navigation"
PARTS = ("speedup", "schedules", "nigt", "lazy", "fmrl", "fair", "stale")
SEEDS = {"tiny": 2, "laptop": 5, "paper": 10}
LENGTHS = (2**-7, 2**-6, 2**-5, 2**-4)  # of a step, for the methods that normalise
RATES = {"fedpg": (0.03, 0.1, 0.3, 1.0), "a3c": (0.003, 0.01, 0.03, 0.1)}
BINS = 50  # of a curve along its axis
# The setting of AFedPG's own experiments, as far as it is known: one task, lambda .95; the rest is the preset laptop's.
POLICY_GRADIENT: dict[str, Any] = {"env": RUN, "backend": "fused", "episodes": 10, "rounds": 100_000}
POLICY_GRADIENT |= {"adapt_steps": 0, "new_clients": 0, "save_every": 1000}


class Part(NamedTuple):
    """A figure: panels of lines, each line the runs of its seeds.

    axis: of AXES. metric: of training. wanted: a return; where it is first reached is in the table, or None. by_id: are
    clients of even and of odd numbers in the table by themselves?
    """

    panels: Mapping[str, Mapping[str, Members]]
    axis: str = "virtual_time"
    metric: str = "train/return/adapt_0"
    wanted: float | None = None
    by_id: bool = False


class Plan(NamedTuple):
    """How much is spent: seeds, and the factor of all times and rounds."""

    scale: Scale
    out: Path
    short: bool

    def time(self, units: float) -> float:
        """Virtual time of a run."""
        return 3.0 if self.short else units

    def rounds(self, number: int) -> int:
        """Rounds of a run."""
        return 3 if self.short else number

    def line(self, label: str, algorithm: str, preset: str = "laptop", seeds: int = 0, **values: Any) -> Members:
        """A line's runs in LABEL/seedS."""
        count = min(seeds or SEEDS[self.scale.name], SEEDS[self.scale.name])
        return self.members(label, algorithm, preset, range(count), values)

    def members(self, label: str, algorithm: str, preset: str, seeds: Any, values: Mapping[str, Any]) -> Members:
        """Runs of some seeds."""
        small = {"episodes": 2, "hidden": (8,)} if self.short else {}
        made = presets.preset(preset, algorithm, values["env"])
        return {
            f"{slug(label)}/seed{seed}": config.build(algorithm, made, values, small, {"seed": seed}) for seed in seeds
        }

    def tuned(self, label: str, algorithm: str, key: str, grid: tuple, preset: str = "laptop", **values: Any) -> float:
        """The value of the grid with the highest mean return over the whole run, on two seeds that are not reported."""
        cells = {
            value: self.members(
                f"tuning/{label}/{key}={value:.4g}", algorithm, preset, TUNING_SEEDS, {**values, key: value}
            )
            for value in (grid[:1] if self.short else grid)
        }
        run(self.scale, {name: c for some in cells.values() for name, c in some.items()}, self.out)
        area = lambda some: np.mean([curve(read(self.out, n, c), "virtual_time")[1].mean() for n, c in some.items()])
        return max(cells, key=lambda value: area(cells[value]))


def speedup(plan: Plan) -> Part:
    """E1: the same time for 1, 2, 4 and 8 clients; the step's length as tuned for one, and shortened for more."""
    common = {**POLICY_GRADIENT, "max_time": plan.time(300)}
    best = plan.tuned("one-client", "afedpg", "step_length", LENGTHS, num_clients=1, **common)
    panels: dict[str, dict[str, Members]] = {}
    for power, title in ((0.0, "eta"), (0.5, "eta / sqrt(N)"), (1.0, "eta / N")):
        panels[f"AFedPG, steps of {title}"] = {
            f"N = {n}": plan.line(
                f"speedup/{power:g}/N{n}", "afedpg", num_clients=n, step_length=best * n**-power, **common
            )
            for n in (1, 2, 4, 8)
        }
    return Part(panels, wanted=400.0)


def rivals(plan: Plan, where: str, **values: Any) -> dict[str, Members]:
    """Six methods with 8 clients, each at its best rate."""
    common = {**POLICY_GRADIENT, "num_clients": 8, **values}
    ways: dict[str, tuple[str, str, dict[str, Any]]] = {
        "AFedPG": ("afedpg", "laptop", {}),
        "AFedPG, no look-ahead": ("afedpg", "laptop", {"lookahead": False}),
        "Rennala NIGT": ("nigt", "laptop", {"buffer": 8}),
        "synchronous NIGT": ("nigt", "laptop", {"buffer": 8, "restart": "update"}),
        "FedPG": ("fedavg", "fedpg", {"clients_per_round": 8}),
        "A3C": ("fedavg", "a3c", {}),
    }
    found = {}
    for label, (algorithm, preset, own) in ways.items():
        key, grid = ("server_lr", RATES[preset]) if preset in RATES else ("step_length", LENGTHS)
        name = f"{where}/{label}"
        best = plan.tuned(name, algorithm, key, grid, preset, **common, **own)
        found[label] = plan.line(name, algorithm, preset, **common, **own, **{key: best})
    return found


def schedules(plan: Plan) -> Part:
    """E2: asynchronous against synchronous, in time."""
    return Part(
        {
            "times linear, 1 to 4": rivals(plan, "linear", speed="linear", max_time=plan.time(300)),
            "one of eight takes 4": rivals(plan, "one-slow", speed="one_slow", max_time=plan.time(150)),
        },
        wanted=400.0,
    )


def nigt(plan: Plan) -> Part:
    """E3: where links cost time; and where the slow one of two clients has the opposite task."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "AFedPG": ("afedpg", {}),
        "Rennala NIGT, M = 20": ("nigt", {"buffer": 20}),
        "synchronous NIGT": ("nigt", {"buffer": 10, "restart": "update"}),
    }
    times = {
        "equally fast": {"max_time": plan.time(150)},
        "times sqrt(i)": {"speed": "sqrt", "max_time": plan.time(300)},
        "and links sqrt(i)": {"speed": "sqrt", "link_time": 1.0, "max_time": plan.time(600)},
        "links 8.8 sqrt(i)": {"speed": "sqrt", "link_time": 8.8, "max_time": plan.time(3000)},
    }
    panels: dict[str, dict[str, Members]] = {}
    for title, values in times.items():
        common = {**POLICY_GRADIENT, "num_clients": 10, **values}
        panels[title] = {
            label: plan.line(f"nigt/{title}/{label}", algorithm, seeds=3, step_length=2**-5, **common, **own)
            for label, (algorithm, own) in ways.items()
        }
    two: dict[str, Any] = {**POLICY_GRADIENT, "env": DIRECTION, "num_clients": 2, "speed": "alternate"}
    two |= {"speed_ratio": 10.0, "max_time": plan.time(600)}
    panels["two clients, the slow one (10) backwards"] = {
        "Rennala NIGT, M = 20": plan.line("nigt/two/rennala", "nigt", seeds=3, buffer=20, **two),
        "Malenia NIGT, M = 20": plan.line("nigt/two/malenia", "nigt", seeds=3, buffer=100, harmonic=20, **two),
    }
    return Part(panels, wanted=400.0, by_id=True)


def lazy(plan: Plan) -> Part:
    """E4: what is saved by not sending, and what it costs."""
    panels: dict[str, dict[str, Members]] = {}
    for env, rate, grid in (
        (NAVIGATION, 0.3, [(0.0, 0.0), *[(xi, c) for xi in (0.1, 1.0) for c in (0.0, 2.0, 3.0, 6.0)]]),
        (RUN, 0.3, [(0.0, 0.0), (0.1, 0.0), (0.1, 2.0), (0.1, 3.0)]),
    ):
        common = {"env": env, "num_clients": 10, "clients_per_round": 10, "episodes": 10, "rounds": plan.rounds(300)}
        common |= {"adapt_steps": 0, "new_clients": 0, "save_every": 1000, "gae_lambda": 0.95, "server_lr": rate}
        common |= {"backend": "fused"} if env == RUN else {}
        panels[env] = {
            f"xi {xi:g}, c {c:g}": plan.line(
                f"lazy/{env}/xi{xi:g}-c{c:g}",
                "lapg",
                seeds=3 if env == RUN else 5,
                patience=xi,
                noise_factor=c,
                **common,
            )
            for xi, c in grid
        }
    return Part(panels, "uploads", wanted=None)


BUFFERED = {"schedule": "async", "buffer": 8, "clients_per_round": 8}


def of_fmrl(plan: Plan, rounds: int) -> dict[str, Any]:
    """The preset laptop on a clock: 200 clients whose times are 1 to 4."""
    common: dict[str, Any] = {"env": DIRECTION, "backend": "fused", "speed": "uniform", "adapt_steps": 1}
    return {**common, "new_clients": 0, "save_every": 20, "rounds": plan.rounds(rounds)}


def buffered(plan: Plan, in_flight: int, staleness: str = "constant") -> Members:
    """FMRL in buffers of 8."""
    values = {**of_fmrl(plan, 240), **BUFFERED, "in_flight": in_flight, "staleness": staleness}
    return plan.line(f"fmrl/C{in_flight}-{staleness}", "fmrl", seeds=3, **values)


def fmrl(plan: Plan) -> Part:
    """E5: FMRL with 8 messages an update, which wait for each other or not."""
    lines = {"synchronous": plan.line("fmrl/synchronous", "fmrl", seeds=3, **of_fmrl(plan, 160))}
    lines |= {f"C = {c}": buffered(plan, c) for c in (16, 40)}
    return Part({"FMRL on the clock": lines}, metric="train/return/adapt_1", wanted=300.0)


def stale(plan: Plan) -> Part:
    """E5, further: are old messages to count for less? And AFedPG with FMRL's meta-gradient."""
    lines = {f"C = {c}, {s}": buffered(plan, c, s) for c in (16, 40) for s in ("constant", "polynomial")}
    values = {**of_fmrl(plan, 240), **BUFFERED, "in_flight": 40, "meta": "second", "step_length": 2**-6}
    lines["meta-AFedPG, C = 40"] = plan.line("fmrl/meta-afedpg", "afedpg", seeds=3, **values)
    return Part({"old messages": lines}, metric="train/return/adapt_1", wanted=300.0)


def fair(plan: Plan) -> Part:
    """E5b: 40 clients, all at work; those who run backwards take four times as long."""
    common: dict[str, Any] = {"env": DIRECTION, "backend": "fused", "num_clients": 40, "speed": "alternate"}
    common |= {"adapt_steps": 1, "new_clients": 0, "save_every": 20, "rounds": plan.rounds(160)}
    lines = {
        "synchronous": plan.line("fair/synchronous", "fmrl", seeds=3, **common),
        "buffered": plan.line("fair/buffered", "fmrl", seeds=3, **common, **BUFFERED),
        "buffered, fair": plan.line("fair/fair", "fmrl", seeds=3, fair=True, **common, **BUFFERED),
    }
    return Part({"forwards 1, backwards 4": lines}, "rounds", "train/return/adapt_1", wanted=300.0, by_id=True)


def read(out: Path, name: str, c: config.Config) -> FinishedRun:
    """A run's rounds."""
    return FinishedRun(out / name, c, {}, records.read(out / name / rundir.METRICS).rows)


def curve(of: FinishedRun, axis: str, metric: str = "train/return/adapt_0") -> tuple[np.ndarray, np.ndarray]:
    """(Middles of BINS equal parts of a run's axis, the mean of a metric in each; an empty part takes the last)."""
    x = positions(of, axis).astype(float)
    values = np.array([row.get(metric) if row.get(metric) is not None else np.nan for row in of.rounds], float)
    edges = np.linspace(0, x[-1], BINS + 1)
    where = np.clip(np.digitize(x, edges) - 1, 0, BINS - 1)
    means = [float("nan")] * BINS
    for i in range(BINS):
        inside = values[(where == i) & np.isfinite(values)]
        means[i] = inside.mean() if len(inside) else (means[i - 1] if i else values[0])
    return (edges[1:] + edges[:-1]) / 2, np.array(means)


def reached(of: FinishedRun, part: Part) -> float:
    """The middle of the first part of the axis whose mean return is what is wanted; NaN for never."""
    x, y = curve(of, part.axis, part.metric)
    above = np.flatnonzero(y >= part.wanted)
    return float(x[above[0]]) if len(above) else float("nan")


def score(out: Path, some: Members, part: Part) -> dict[str, Any]:
    """A line's figures, one for each seed: what its clock shows, its last returns, and its clients' at the end."""
    found: dict[str, list] = {}
    for name, c in some.items():
        one = read(out, name, c)
        rows = [row for row in records.read(out / name / rundir.EVAL).rows if row["final"]]
        clock = spent(one.rounds)
        figures: dict[str, Any] = dict(clock) if clock else {"uploads": positions(one, "uploads")[-1]}
        figures["last tenth"] = float(curve(one, part.axis, part.metric)[1][-BINS // 10 :].mean())
        returns = np.array(rows[-1]["eval/returns"])[:, -1]
        figures["evaluated"] = float(returns.mean())
        if part.by_id:
            figures |= {"even numbers": float(returns[::2].mean()), "odd numbers": float(returns[1::2].mean())}
        figures |= {"reached": reached(one, part)} if part.wanted is not None else {}
        for key, value in figures.items():
            found.setdefault(key, []).append(float(value))
    return found


def table(scores: Mapping[str, Mapping[str, Mapping[str, Any]]], rates: Mapping[str, Mapping[str, str]], part: Part):
    """The lines of a page."""
    text = []
    for title, lines in scores.items():
        keys = list(dict.fromkeys(key for of in lines.values() for key in of))
        axis = AXES[part.axis].split(" [")[0]
        heads = [f"{axis} when it first reaches {part.wanted:g}" if k == "reached" else k for k in keys]
        text += [f"## {title}", "", "| | rate | " + " | ".join(heads).replace("_", " ") + " |"]
        text.append("|---" * (len(keys) + 2) + "|")
        for label, of in lines.items():
            cells = [_cell(of.get(key, [])) for key in keys]
            text.append(f"| {label} | {rates[title][label]} | " + " | ".join(cells) + " |")
        text.append("")
    return text


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    missing = sum(value != value for value in values)
    if missing:
        return f"never in {missing} of {len(values)}"
    return over_seeds(values)


def draw(out: Path, part: Part, path: Path, note: str) -> None:
    """A panel for each group of lines; means over seeds with t-intervals."""
    count = len(part.panels)
    figure, axes = pyplot().subplots(1, count, figsize=(4.3 * count + 0.6, 3.9), squeeze=False, sharey=False)
    for ax, (title, lines) in zip(axes[0], part.panels.items(), strict=True):
        for label, some in lines.items():
            found = [curve(read(out, name, c), part.axis, part.metric) for name, c in some.items()]
            common = np.linspace(0, min(x[-1] for x, _ in found), BINS)
            values = np.array([np.interp(common, x, y) for x, y in found])
            stats = np.array([statistics.mean_ci95(column) for column in values.T.tolist()], float)
            [line] = ax.plot(common, stats[:, 0], label=label, lw=1.5)
            if len(found) > 2:
                low, high = stats[:, 0] - stats[:, 1], stats[:, 0] + stats[:, 1]
                ax.fill_between(common, low, high, color=line.get_color(), alpha=0.15)
        ax.set(title=title, xlabel=AXES[part.axis])
        ax.title.set_fontsize(9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=7)
    axes[0][0].set_ylabel("return of an episode, clients at work")
    finish(figure, path, note, BANDS)


def rate_of(some: Members) -> str:
    """The rate of a line."""
    c: Any = next(iter(some.values()))
    return f"{c.step_length:.4g}" if hasattr(c, "step_length") else f"{c.server_lr:g}"


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = PARTS) -> None:
    """Each part: its rates, its runs, its table and figure."""
    del envs
    plan = Plan(scale, out, scale.name == "tiny")
    for name in methods:
        part: Part = globals()[name](plan)
        every = {n: c for lines in part.panels.values() for some in lines.values() for n, c in some.items()}
        run(scale, every, out)
        scores = {t: {label: score(out, some, part) for label, some in of.items()} for t, of in part.panels.items()}
        rates = {t: {label: rate_of(some) for label, some in of.items()} for t, of in part.panels.items()}
        counts = sorted({len(some) for of in part.panels.values() for some in of.values()})
        note = f"scale {scale.name}: {' or '.join(map(str, counts))} seeds a line"
        text = [f"# {name}", "", f"{note}; ±: 95 % t-interval over seeds.", "", *table(scores, rates, part)]
        (out / f"{name}.md").write_text("\n".join(text))
        draw(out, part, out / f"{name}.png", note)
        print("\n".join(text))


if __name__ == "__main__":
    main(__doc__, "asynchrony", experiment, methods=PARTS, envs=())
