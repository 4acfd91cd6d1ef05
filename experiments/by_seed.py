"""A table of finished runs: what the clients of each seed have after one step, and the mean over seeds.

    python -m experiments.by_seed RUNS --out FILE

RUNS: a directory of runs, or a study's archive. A row is a line, whose runs differ in their seed alone; a run that did
not come to its end has "-".
"""

import argparse
from pathlib import Path

from experiments.results import line_of
from experiments.reuse import runs, unpacked
from fedjax_rl import statistics
from fedjax_rl.runs import records, rundir


def table(root: Path) -> list[str]:
    """The lines of the page."""
    found: dict[str, dict[int, float | None]] = {}
    for path in runs(root):
        last = [row["eval/return/adapt_1"]["mean"] for row in records.read(path / rundir.EVAL).rows if row["final"]]
        seeds = found.setdefault(line_of(str(path.relative_to(root))), {})
        seeds[rundir.open_run(path).seed] = last[-1] if last else None
    lines = ["| after one step | seeds | returns | mean |", "|---" * 4 + "|"]
    for name, seeds in found.items():
        known = [value for value in seeds.values() if value is not None]
        mean = f"{statistics.mean_ci95(known)[0]:.1f}" if len(known) == len(seeds) else "-"
        returns = ", ".join("-" if value is None else f"{value:.1f}" for value in seeds.values())
        lines.append(f"| {name} | {', '.join(map(str, seeds))} | {returns} | {mean} |")
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    root = args.runs if args.runs.is_dir() else unpacked(args.runs)
    args.out.write_text("\n".join([f"# {args.out.stem}", "", *table(root), ""]))


if __name__ == "__main__":
    main()
