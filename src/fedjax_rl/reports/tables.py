"""`fedjax-rl report`: finished runs as a table for people (md), for programs (csv, JSON) or for a paper (latex)."""

import csv
import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fedjax_rl import statistics
from fedjax_rl.host import output
from fedjax_rl.reports.finished import SPENT, Setting, gather
from fedjax_rl.runs import privacy

CLIENTS = {"eval": "all", "eval_malicious": "malicious", "eval_new": "new"}
NOTE = (
    "±: 95 % t-interval of the mean over seeds; [ ]: 95 % bootstrap over whole seeds, too "
    "narrow where they are few; "
    "IQM, worst 10 % of clients and P (over the seeds in common): after 1 step"
)


def report(
    runs: Sequence[Path], format: str = "md", figure: Path | None = None, x: str = "env_steps", kept: str = ""
) -> None:
    """Print the tables of all groups as md, csv, latex or json, and draw them if a figure is asked for.

    `kept` says where the result is if it cannot be printed.
    """
    groups = gather(runs, output.inform)
    if figure:
        from fedjax_rl.reports import plot

        plot.draw(groups, figure, x)
        output.inform(f"{figure}: learning curves along {x}, and final returns")
    rows = {name: [record(group, groups[0], name) for group in groups] for name in _in_common(groups)}
    env = groups[0].runs[0].config.env
    if format == "json":
        paths = {group.label: [str(run.path) for run in group.runs] for group in groups}
        text = output.as_json({"env": env, "runs": paths, "rows": [row for part in rows.values() for row in part]})
    elif format == "csv":
        text = as_csv([row for part in rows.values() for row in part]).rstrip()
    else:
        write = {"md": as_markdown, "latex": as_latex}[format]
        text = "\n\n".join(write(f"{_about(env, part)}, {CLIENTS[name]} clients", part) for name, part in rows.items())
        text = "\n\n".join([text, *_claims(groups)])
    output.result(text, kept)


def _claims(groups: Sequence[Setting]) -> list[str]:
    """What may be claimed of the groups that are private, a line each."""
    configs = {group.label: group.runs[0].config for group in groups}
    claims = {label: privacy.claim(config, config.rounds) for label, config in configs.items()}
    return [f"{label}: {text}" for label, text in claims.items() if text]


def rows(runs: Sequence[Path], warn: Callable[[str], None]) -> list[dict[str, Any]]:
    """The rows of all groups as numbers, see `record`; `warn` gets a line for each run that is left out."""
    groups = gather(runs, warn)
    return [record(group, groups[0], name) for name in _in_common(groups) for group in groups]


def _in_common(groups: Sequence[Setting]) -> list[str]:
    """The kinds of clients that every run was evaluated on."""
    return [name for name in CLIENTS if all(name in run.returns for group in groups for run in group.runs)]


def record(group: Setting, first: Setting, name: str) -> dict[str, Any]:
    """One row as numbers: {"group", "backend", "clients", "seeds", "diverged", "num_clients", "env_steps", "adapt_0",
    ...}.

    `diverged`: so many more seeds, which are in no other number.
    `iqm`, `worst_10` and `p_first_better` are of the returns after one step. What cannot be said (intervals of one
    seed, the first group's chance against itself or without a seed in common, a step not taken) is missing or None.
    """
    scores = group.scores(name)  # [S, N, k+1]
    seeds, count, columns = scores.shape
    row: dict[str, Any] = {"group": group.label, "backend": group.runs[0].config.backend, "clients": CLIENTS[name]}
    row |= {
        "seeds": seeds,
        "diverged": len(group.diverged),
        "num_clients": count,
        "env_steps": group.env_steps(),
        **group.clock(),
    }
    for j in range(columns):
        row |= _over_seeds(f"adapt_{j}", scores[:, :, j].mean(axis=1))
    if columns > 1:
        after = scores[:, :, 1]
        row |= _bootstrapped("iqm", statistics.iqm, after)
        row |= _over_seeds("worst_10", statistics.worst_tenth(after))
        other = first.scores(name)
        common = sorted(set(first.seeds) & set(group.seeds))  # a seed's clients have the same tasks in both
        if first is not group and common and other.shape[1] == count and other.shape[2] > 1:
            ours, theirs = ([g.seeds.index(seed) for seed in common] for g in (first, group))
            row |= _bootstrapped("p_first_better", statistics.improvement, other[ours, :, 1] - after[theirs])
    return row


def _over_seeds(name: str, values: Any) -> dict[str, float | None]:
    mean, half = statistics.mean_ci95(values.tolist())
    return {name: mean, f"{name}_ci95": half if len(values) > 1 else None}


def _bootstrapped(name: str, statistic: Any, scores: Any) -> dict[str, float | None]:
    low, high = statistics.bootstrap_ci95(statistic, scores) if len(scores) > 1 else (None, None)
    return {name: statistic(scores), f"{name}_low": low, f"{name}_high": high}


def _about(env: str, rows: Sequence[dict[str, Any]]) -> str:
    """The environment, and the engine that all groups have in common; where they differ, their labels say it."""
    engines = {row["backend"] for row in rows} - {"auto"}
    return f"{env} on {engines.pop()} physics" if len(engines) == 1 else env


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """A line a group and kind of clients, at full precision; empty where there is no number."""
    steps = [f"adapt_{j}" for j in range(_columns(rows))]
    header = ["group", "backend", "clients", "seeds", "diverged", "num_clients", "env_steps", *_clocked(rows)]
    header += [part for name in (*steps, "worst_10") for part in (name, f"{name}_ci95")]
    header += [part for name in ("iqm", "p_first_better") for part in (name, f"{name}_low", f"{name}_high")]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """A table whose columns are aligned in a terminal too."""
    table = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in table]
    return "\n".join([f"**{title}**", "", *lines, "", _note(rows)])


def as_latex(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """A booktabs tabular, which needs the package booktabs and nothing else."""
    table = _cells(rows)
    header, *body = [" & ".join(map(_latex, line)) + r" \\" for line in table]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}"
    lines = [begin, r"\toprule", header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([f"% {title}", *lines, f"% {_note(rows)}"])


def as_html(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a notebook."""
    cells = lambda tag, row: "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption><tr>{cells('th', columns)}</tr>{body}</table>"


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Header and rows as text; "-" where there is no number."""
    steps = [f"{j} step{'s' if j > 1 else ''}" if j else "before" for j in range(_columns(rows))]
    clocked = _clocked(rows)
    times = [name.replace("_", " ") for name in clocked]
    table = [["run", "seeds", "clients", "env steps", *times, *steps, "IQM", "worst 10 %", "P(first row better)"]]
    for row in rows:
        size = f"{row['env_steps']:,}" if row["env_steps"] else "-"
        seeds = f"{row['seeds']}, {row['diverged']} diverged" if row["diverged"] else str(row["seeds"])
        cells = [row["group"], seeds, str(row["num_clients"]), size]
        cells += [f"{row[name]:.1f}" if name in row else "-" for name in clocked]
        cells += [_interval(row, name, 1) for name in (*[f"adapt_{j}" for j in range(len(steps))], "iqm", "worst_10")]
        table.append([*cells, _interval(row, "p_first_better", 2)])
    return table if len(rows) > 1 else [line[:-1] for line in table]


def _clocked(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The columns of the clock, where a row has one."""
    return SPENT if any(SPENT[0] in row for row in rows) else ()


def _interval(row: dict[str, Any], name: str, digits: int) -> str:
    if row.get(name) is None:
        return "-"
    text = f"{row[name]:.{digits}f}"
    if row.get(f"{name}_ci95") is not None:
        return f"{text} ± {row[f'{name}_ci95']:.{digits}f}"
    if row.get(f"{name}_low") is not None:
        return f"{text} [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"
    return text


def _columns(rows: Sequence[dict[str, Any]]) -> int:
    """The largest number of adaptation columns 0..k of any row."""
    return sum(any(f"adapt_{j}" in row for row in rows) for j in range(max(map(len, rows))))


def _note(rows: Sequence[dict[str, Any]]) -> str:
    one = "; 1 seed: no interval" if any(row["seeds"] == 1 for row in rows) else ""
    return NOTE + one + ("; seeds that diverged are in no number" if any(row["diverged"] for row in rows) else "")


def _latex(cell: str) -> str:
    """A cell with LaTeX's special characters escaped, and signs as mathematics sets them."""
    special: dict[str, str | int | None] = {mark: "\\" + mark for mark in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    text = cell.translate(str.maketrans(special))
    return re.sub(r"-(?=\d)", "$-$", text)
