"""What the experiments share: scales, members, the command line, and the line that says what a result is worth.

An experiment is a set of named configurations and a drawing of their results. Its directory holds a run directory for
each member; members that are finished are reused, members that were interrupted go on, so that the command can be
repeated until all is done. There is no mathematics here.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rl import config, statistics
from fedjax_rl.config import presets
from fedjax_rl.host import exits, output
from fedjax_rl.host.cores import cores
from fedjax_rl.runs import records, rundir

ENVS = ("half_cheetah/direction", "half_cheetah/velocity", "ant/direction", "ant/velocity")
METHODS = ("fmrl", "pfedme", "fedavg", "fedrep", "ditto")
TUNING_SEEDS = (100, 101)
HORIZON = {"half_cheetah": 200, "ant": 100, "navigation": 100, "gymnax/CartPole-v1": 500, "gymnax": 500, "gym": 1000}
# Panels of figures: metric, title. A round's own clients after one step: only of methods that sample there.
SELECTED = ("train/return/adapt_1", "selected clients after one step")
EVALUATED = ("eval/return/adapt_1", "evaluated clients, after one step")
SMOOTH = 10  # rounds that a point of a training curve is the mean of
BANDS = "bands (three seeds or more) and bars: 95 % t-interval over seeds"
LEAN = {"adapt_steps": 1, "eval_every": 0}  # all that a study's curves and table need of evaluations
Members = dict[str, config.Config]


class Scale(NamedTuple):
    """How much an experiment spends.

    preset: of the configuration. seeds: of the results. rounds: by robot. matched: are cohorts such that all methods
    take as many samples a round as FMRL? extra: further values. reuse: directories with runs that are finished already.
    jobs: programs at a time.
    """

    name: str
    preset: str
    seeds: tuple[int, ...]
    rounds: Mapping[str, int]
    matched: bool
    extra: Mapping[str, Any]
    reuse: tuple[Path, ...] = ()
    jobs: int = 1


SCALES = {
    "tiny": Scale("tiny", "tiny", (0, 1), {"half_cheetah": 2, "ant": 2}, True, {"new_clients": 0, "adapt_steps": 1}),
    "laptop": Scale(
        "laptop",
        "laptop",
        (0, 1, 2),
        {"half_cheetah": 80, "ant": 50},
        True,
        {"new_clients": 0, "eval_every": 20, "eval_clients": 20, "save_every": 20},
    ),
    "paper": Scale(
        "paper",
        "paper",
        (0, 1, 2, 3, 4),
        {"half_cheetah": 500, "ant": 500},
        False,
        {"new_clients": 0, "eval_every": 100, "save_every": 20},
    ),
}


def configure(scale: Scale, algorithm: str, env: str, **values: Any) -> config.Config:
    """A method in an environment at a scale."""
    rounds = {"env": env, "rounds": scale.rounds[env.split("/")[0]]}
    made = config.build(algorithm, presets.preset(scale.preset, algorithm, env), rounds, scale.extra)
    if scale.matched:
        values.setdefault("clients_per_round", max(1, made.clients_per_round * 2 // made.batches))
    return replace(made, **values)


def env_steps(c: config.Config) -> int:
    """Environment steps of a whole run."""
    horizon = HORIZON.get(c.env) or HORIZON[c.env.split("/")[0]]
    return c.rounds * c.clients_per_round * c.env_steps(horizon)


def run(scale: Scale, members: Members, out: Path) -> None:
    """Bring all members to their end, those that can share a program together."""
    from experiments import jobs
    from experiments.reuse import on_one_engine, reuse
    from fedjax_rl.host import signals
    from fedjax_rl.runs import runner
    from fedjax_rl.runs.progress import Reporter

    reporter = Reporter(quiet=False)
    try:
        if taken := reuse(members, out, scale.reuse):
            reporter.say(f"taken from finished runs: {', '.join(taken)}")
        paths = {out / name: c for name, c in on_one_engine(members, out).items()}
        side_by_side = scale.jobs > 1
        lost = jobs.run_members(paths, scale.jobs, reporter) if side_by_side else runner.run_members(paths, reporter)
    except (signals.Interrupted, signals.Stopped) as signal:
        reporter.warn(f"ended by {signal}; what is saved is intact, and the same command goes on from there")
        sys.exit(signal.code)
    if lost:
        raise exits.NoCheckpoint(f"{lost[0]} has lost its checkpoints: move it away and start again", lost[0])


def finals(out: Path, members: Members) -> dict[str, dict[str, Any]]:
    """The last evaluation of every finished member, by name."""
    found = {}
    for name, c in members.items():
        rows = [r for r in records.read(out / name / rundir.EVAL).rows if r["final"] and r["round"] == c.rounds]
        if rows:
            found[name] = rows[-1]
    return found


def measured(run: Path, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What was measured on a run's checkpoints. It is written beside the records: an archive has no checkpoints."""
    path = run / "measured.json"
    if not path.exists():
        path.write_text(json.dumps({key: np.asarray(value).tolist() for key, value in measure().items()}) + "\n")
    return json.loads(path.read_text())


def curve(out: Path, name: str, key: str) -> dict[int, float]:
    """A member's metric by round: of its evaluations (eval/...) or of its rounds (all others)."""
    file = rundir.EVAL if key.startswith("eval") else rundir.METRICS
    rows = [r for r in records.read(out / name / file).rows if r.get(key) is not None]
    return {r["round"]: r[key]["mean"] if isinstance(r[key], dict) else r[key] for r in rows}


def curves(
    scale: Scale,
    out: Path,
    envs: tuple[str, ...],
    lines: Callable[[str], dict[str, Members]],
    panels: tuple[tuple[str, str], ...],
    name: str,
    *,
    by_steps: bool = False,
) -> None:
    """Run what is missing and draw OUT/NAME.png: a column for each environment, a row for each (metric, title).

    lines: environment -> the members of each line (its seeds) by label. by_steps: over environment steps, for lines
    whose rounds differ in size.
    """
    cells = {env: lines(env) for env in envs}
    everyone = {n: c for by_label in cells.values() for some in by_label.values() for n, c in some.items()}
    run(scale, everyone, out)
    plt = pyplot()
    size = (4.2 * len(envs) + 2, 3.1 * len(panels) + 0.6)
    figure, axes = plt.subplots(len(panels), len(envs), figsize=size, squeeze=False, sharex="col")
    for j, env in enumerate(envs):
        for i, (key, title) in enumerate(panels):
            fewest = min(c.rounds for some in cells[env].values() for c in some.values())
            means = f", {min(SMOOTH, fewest)}-round means" if key.startswith("train/") else ""
            if len(cells[env]) > 10:
                axes[i][j].set_prop_cycle(color=plt.get_cmap("tab20").colors)
            draw(axes[i][j], out, cells[env], key, by_steps)
            axes[i][j].set_title(f"{env}\n{title}{means}", fontsize=9)
        axes[-1][j].set_xlabel("environment steps [million]" if by_steps else "round")
    axes[0][0].set_ylabel("return of an episode")
    handles, labels = axes[0][0].get_legend_handles_labels()
    axes[0][-1].legend(handles, labels, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    finish(figure, out / f"{name}.png", footer(scale, everyone, out))


def draw(axes: Any, out: Path, lines: Mapping[str, Members], key: str, by_steps: bool = False) -> None:
    """Each seed, and their mean, with its 95 % band from three seeds on, where all seeds have a value.

    Training curves are means of SMOOTH rounds, drawn at the last of them.
    """
    for label, some in lines.items():
        seeds = [curve(out, name, key) for name in some]
        rounds = sorted(set.intersection(*map(set, seeds)))
        values = np.array([[seed[r] for r in rounds] for seed in seeds], float)
        width = min(SMOOTH, len(rounds)) if key.startswith("train/") else 1
        if not rounds:
            continue
        smooth = np.stack([np.convolve(row, np.ones(width) / width, mode="valid") for row in values])
        stats = np.array([statistics.mean_ci95(column) for column in smooth.T], float)  # one seed has no interval: NaN
        c = next(iter(some.values()))
        unit = env_steps(c) / c.rounds / 1e6 if by_steps else 1
        x = unit * np.array(rounds[width - 1 :])
        [line] = axes.plot(x, stats[:, 0], label=label, lw=1.5, marker="o" if len(x) < 12 else None, ms=3)
        axes.plot(x, smooth.T, color=line.get_color(), lw=0.5, alpha=0.6)
        if len(seeds) > 2:  # an interval over two is 12.7 standard errors wide and would hide the lines
            low, high = stats[:, 0] - stats[:, 1], stats[:, 0] + stats[:, 1]
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
    axes.axhline(0, color="black", lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def pyplot() -> Any:
    """Matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def finish(figure: Any, path: Path, note: str, marks: str = f"thin: each seed; {BANDS}") -> None:
    """Write the figure with the line that says what it is worth, and what its marks are."""
    width, height = figure.get_size_inches()
    text = textwrap.fill(f"{note}; {marks}", int(19 * width))
    figure.text(0.01, 0.005, text, fontsize=6, color="#555555", va="bottom")
    figure.tight_layout(rect=(0, 0.12 * (text.count("\n") + 1) / height, 1, 1))
    figure.savefig(path, dpi=130)
    print(path)


def over(scale: Scale, env: str, label: str, algorithm: str = "fmrl", **values: Any) -> Members:
    """A line's members, one for each seed, in ENV/LABEL/seedS; the label as a slug."""
    return {f"{env}/{slug(label)}/seed{s}": configure(scale, algorithm, env, seed=s, **values) for s in scale.seeds}


def slug(label: str) -> str:
    """A label as a path: what is not a letter, a digit or one of . = _ becomes "-"."""
    return re.sub(r"[^A-Za-z0-9.=_]+", "-", label)


def line(scale: Scale, env: str, label: str, algorithm: str = "fmrl", **values: Any) -> Members:
    """A line of a study: `over`, evaluated after the last round alone, before adaptation and after one step."""
    return over(scale, env, label, algorithm, **{**LEAN, **values})


def tuned_rate(
    scale: Scale,
    out: Path,
    env: str,
    label: str,
    algorithm: str,
    rates: tuple[float, ...],
    key: str = "server_lr",
    **values: Any,
) -> float:
    """The rate (the server's, or another of that key) with the best mean after one step over two seeds not reported.

    Over all rounds: on the first two fifths of them the largest server rate wins, which later destroys what it learned.
    """
    cells: dict[float, Members] = {}
    for rate in rates:
        names = {f"{env}/{slug(label)}/tuning/{key}={rate}/seed{seed}": seed for seed in TUNING_SEEDS}
        cells[rate] = {
            name: configure(scale, algorithm, env, seed=seed, **{key: rate}, **LEAN, **values)
            for name, seed in names.items()
        }
    run(scale, {name: c for members in cells.values() for name, c in members.items()}, out)
    return max(cells, key=lambda rate: _after_one_step(out, cells[rate]))


def _after_one_step(out: Path, members: Members) -> float:
    """Mean over the members; -inf when one of them diverged."""
    found = [record["eval/return/adapt_1"]["mean"] for record in finals(out, members).values()]
    return statistics.mean_ci95(found)[0] if len(found) == len(members) else float("-inf")


def study(
    scale: Scale,
    out: Path,
    envs: tuple[str, ...],
    lines: Callable[[str], dict[str, Members]],
    name: str,
    *,
    panels: tuple[tuple[str, str], ...] = (SELECTED,),
    by_steps: bool = False,
) -> None:
    """Run what is missing; draw the learning curves and write OUT/NAME.md and OUT/NAME.json.

    lines, panels: as for `curves`. The table: means over all clients before adaptation and after one step, over the
    worst tenth of the clients after one step, and over new clients where there are any; t-intervals over seeds.
    """
    cells = {env: lines(env) for env in envs}
    curves(scale, out, envs, cells.__getitem__, panels, name, by_steps=by_steps)
    everyone = {n: c for by_label in cells.values() for some in by_label.values() for n, c in some.items()}
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    text = [f"# {name}", "", footer(scale, everyone, out), ""]
    for env, by_label in cells.items():
        has_new = any(c.new_clients for some in by_label.values() for c in some.values())
        head = ["before", "1 step", "worst tenth, 1 step", *(["new clients, 1 step"] if has_new else [])]
        text += [f"## {env}", "", f"| | server rate | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
        for label, some in by_label.items():
            columns = _columns(out, some)
            scores.setdefault(env, {})[label] = columns
            rates = sorted({c.server_lr for c in some.values() if hasattr(c, "server_lr")})
            figures = [over_all(column, some) for column in columns.values()]
            row = (f"| {label}", ", ".join(f"{rate:g}" for rate in rates) or "-", *figures)
            text.append(" | ".join(row) + " |")
        text.append("")
    (out / f"{name}.md").write_text("\n".join(text))
    (out / f"{name}.json").write_text(json.dumps(scores, indent=1) + "\n")
    print("\n".join(text))


def _columns(out: Path, members: Members) -> dict[str, list[float]]:
    """The members' figures, one for each seed that was finished."""
    rows = list(finals(out, members).values())
    returns = [np.asarray(row["eval/returns"]) for row in rows]
    new = [np.asarray(row["eval_new/returns"]) for row in rows if "eval_new/returns" in row]
    columns = {
        "before": [float(r[:, 0].mean()) for r in returns],
        "after": [float(r[:, 1].mean()) for r in returns],
        "worst": [float(statistics.worst_tenth(r.T)[1]) for r in returns],
    }
    return columns | ({"new": [float(r[:, 1].mean()) for r in new]} if new else {})


def best_server_rate(scale: Scale, env: str) -> dict[str, float]:
    """At the paper's scale the rate that did best in its Fig. 2, for its Figs. 3 and 4; below it the scale's own."""
    if scale.name != "paper":
        return {}
    return {"server_lr": 0.0003 if env == "half_cheetah/direction" else 0.001}


def over_seeds(values: list[float]) -> str:
    """'mean ± t-interval over seeds', or the mean alone of a single one."""
    mean, half = statistics.mean_ci95(values)
    return f"{mean:.1f} ± {half:.1f}" if len(values) > 1 else f"{mean:.1f}"


def over_all(values: list[float], members: Sized) -> str:
    """`over_seeds` of a value for each member; "diverged" where one has none."""
    return over_seeds(values) if len(values) == len(members) else "diverged"


def footer(scale: Scale, members: Members, out: Path) -> str:
    """Scale, budget and versions: what every output says."""
    budgets = sorted({env_steps(c) for c in members.values()})
    text = " to ".join(f"{b:,}" for b in dict.fromkeys((budgets[0], budgets[-1])))
    path = next((out / name / rundir.ENV for name in members if (out / name / rundir.ENV).exists()), None)
    seen = json.loads(path.read_text()) if path else {}
    names = ("python", "jax", "mujoco", "mujoco-mjx")
    versions = ", ".join(f"{name} {seen[name]}" for name in names if seen.get(name))
    seeds = sorted({c.seed for c in members.values()})
    made = [out / name for name in members if (out / name / rundir.CONFIG).exists()]
    engines = sorted({rundir.open_run(path).backend for path in made} - {"auto"})
    if engines not in ([], ["native"]):  # what was made before there was another one does not say it
        versions += f"; physics: {', '.join(engines)}"
    return f"scale {scale.name}: seeds {', '.join(map(str, seeds))}; {text} environment steps a run; {versions}"


def main(
    doc: str,
    name: str,
    experiment: Callable[..., None],
    *,
    methods: tuple[str, ...] = (),
    default_methods: tuple[str, ...] = (),
    envs: tuple[str, ...] = ENVS,
    default_envs: tuple[str, ...] = (),
    has_paper: bool = True,
    has_runs: bool = True,
) -> None:
    """The command line of an experiment: (scale, out, environments), and the methods where it compares some.

    envs: what may be chosen from; one or none is no choice, and there is no option. default_envs, default_methods: what
    is taken when none is named; () for all. has_paper: is the paper's scale another one than the laptop's? has_runs:
    does it train, so that there are runs to take from others and to compute side by side?
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=[*SCALES][: 2 + has_paper], default="laptop")
    parser.add_argument(
        "--out", type=Path, help=f"directory of the runs and the result (default: results/{name}-SCALE)"
    )
    parser.set_defaults(envs=default_envs or envs)
    if len(envs) > 1:
        parser.add_argument("--envs", nargs="+", choices=envs, help="only these environments")
    if methods:
        default = default_methods or methods
        parser.add_argument("--methods", nargs="+", choices=methods, default=default, help="only these methods")
    parser.set_defaults(reuse=(), jobs=1)
    if has_runs:
        parser.add_argument(
            "--reuse",
            nargs="+",
            type=Path,
            metavar="DIR",
            help="other experiments' directories, or runs.tar.xz of docs/results: take their runs",
        )
        parser.add_argument("--jobs", type=int, help="programs at a time, each on its share of the cores (default: 1)")
    args = parser.parse_args()
    if not 1 <= args.jobs <= cores():
        parser.error(f"--jobs {args.jobs}: 1 to {cores()}, the cores that this process may use")
    out = args.out or Path("results") / f"{name}-{args.scale}"
    if unknown := [path for path in args.reuse if not path.exists()]:
        parser.error(f"--reuse {unknown[0]}: no such directory or archive")
    scale = SCALES[args.scale]._replace(reuse=tuple(args.reuse), jobs=args.jobs)
    try:
        experiment(scale, out, tuple(args.envs), *([tuple(args.methods)] if methods else []))
    except exits.Refusal as error:
        output.inform(f"{parser.prog}: {error}")
        sys.exit(error.code)
