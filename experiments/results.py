"""The committed results: each study's table and figures made again from its runs, and its runs put into one archive.

    python -m experiments.results [STUDY ...] [--write]
    python -m experiments.results STUDY --pack RUNS

A study is a directory of docs/results: study.toml (the commands that make its outputs, what its lines are, versions),
the outputs, summary.csv (a row a run), curves.csv (some 200 rounds of each run, with all evaluations) and runs.tar.xz
(the runs' own records, which `--reuse` reads as it reads a directory). Without an option every output is made again in
another place and compared with the committed one, byte for byte; --write replaces those that differ. --pack makes all
but the outputs from a directory of runs.
"""

import argparse
import csv
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np

from experiments.common import slug
from experiments.reuse import FILES, runs, unpacked
from fedjax_rl import statistics
from fedjax_rl.config import Config
from fedjax_rl.config.sources import literal
from fedjax_rl.runs import records, rundir

ROOT = Path(__file__).parents[1]
HOME = ROOT / "docs" / "results"
DRAWN_BY = ("matplotlib", "pillow")  # which decide a figure's bytes
ARCHIVE, ABOUT = "runs.tar.xz", "study.toml"
MARK = "# what follows is written by --pack\n"
MOST = 200  # rows of a run in curves.csv, beside those of its evaluations and the last
CURVES = ("train/return/adapt_0", "train/return/adapt_1", "eval/return/adapt_0", "eval/return/adapt_1")


def studies() -> list[str]:
    """The names of all studies."""
    return sorted(path.parent.name for path in HOME.glob(f"*/{ABOUT}"))


def make(study: str, out: Path) -> list[str]:
    """Make a study's outputs again in `out`; the names of those that differ from the committed ones."""
    about = tomllib.loads((HOME / study / ABOUT).read_text())
    places = {name: str(unpacked(HOME / name / ARCHIVE)) for name in about["runs"]}
    for command in about["make"]:
        words = [word.format(out=out, here=HOME / study, **places) for word in shlex.split(command)]
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, capture_output=True)
    same = lambda name: (out / name).read_bytes() == (HOME / study / name).read_bytes()
    return [name for name in about["outputs"] if not (HOME / study / name).exists() or not same(name)]


def pack(study: str, source: Path) -> None:
    """Write a study's archive, its two tables for programs, and the second half of its study.toml."""
    home = HOME / study
    found = {"/".join(map(slug, path.relative_to(source).parts)): path for path in runs(source)}
    configs = {name: rundir.open_run(path) for name, path in found.items()}
    content = archived(found)
    (home / ARCHIVE).write_bytes(content)
    write_rows(home / "summary.csv", [summary(path, name, configs[name]) for name, path in found.items()])
    write_rows(home / "curves.csv", [row for name, path in found.items() for row in curve(path, name)])
    seen = json.loads((next(iter(found.values())) / rundir.ENV).read_text()) | {
        name: version(name) for name in DRAWN_BY
    }
    versions = [
        f'{key} = "{seen[key]}"' for key in ("python", "jax", "mujoco", "mujoco-mjx", "optax", *DRAWN_BY) if key in seen
    ]
    lines = [
        f'"{name}" = {{{", ".join(f"{key} = {literal(value)}" for key, value in values.items())}}}'
        for name, values in distinct(configs).items()
    ]
    proof = f'sha256 = "{hashlib.sha256(content).hexdigest()}"  # of {ARCHIVE}'
    written = (home / ABOUT).read_text().partition(MARK)[0]
    parts = ["", proof, "", "[versions]", *versions, "", "[lines]", *lines, ""]
    (home / ABOUT).write_text(written + MARK + "\n".join(parts[1:]))


def archived(found: dict[str, Path]) -> bytes:
    """The records of runs, by name, as a compressed archive that depends on their content alone."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz", preset=9) as archive:
        for name, path in found.items():
            for file in (path / part for part in (rundir.CONFIG, *FILES) if (path / part).exists()):
                member = tarfile.TarInfo(f"{name}/{file.name}")
                member.size = file.stat().st_size
                archive.addfile(member, io.BytesIO(file.read_bytes()))
    return out.getvalue()


def line_of(name: str) -> str:
    """A run's name without its seed.

    >>> line_of("ant/server_lr=0.1,seed=3"), line_of("ant/fmrl/seed3")
    ('ant/server_lr=0.1', 'ant/fmrl')
    """
    return re.sub(r"[/_,-]?seed=?\d+$", "", name)


def distinct(configs: dict[str, Config]) -> dict[str, dict]:
    """What each line (a run without its seed) is: the values in which the study's runs differ."""
    rows = {line_of(name): {"algorithm": c.algorithm, **vars(c)} for name, c in configs.items()}
    keys = dict.fromkeys(key for row in rows.values() for key in row if key != "seed")
    differing = [key for key in keys if len({str(row.get(key)) for row in rows.values()}) > 1]
    return {name: {key: row[key] for key in differing if key in row} for name, row in rows.items()}


def summary(path: Path, name: str, config: Config) -> dict:
    """A run's row: what it was, and the mean over clients of its last evaluation."""
    row = {"run": name, "env": config.env, "algorithm": config.algorithm, "backend": config.backend}
    row |= {"seed": config.seed, "rounds": config.rounds}
    final = next((r for r in reversed(records.read(path / rundir.EVAL).rows) if r["final"]), None)
    if final is not None:
        returns = np.asarray(final["eval/returns"])  # [N, k+1]
        row |= {f"adapt_{j}": float(mean) for j, mean in enumerate(returns.mean(axis=0))}
        row |= {"worst_10": float(statistics.worst_tenth(returns.T)[1])} if returns.shape[1] > 1 else {}
        new = np.asarray(final.get("eval_new/returns", np.zeros((0, 0))))
        row |= {f"new_adapt_{j}": float(mean) for j, mean in enumerate(new.mean(axis=0) if new.size else ())}
    return row


def curve(path: Path, name: str) -> list[dict]:
    """A run's rows by round: returns of the round's own clients, in MOST rounds at most and the last, and of every
    evaluation."""
    by_round: dict[int, dict] = {}
    for file in (rundir.METRICS, rundir.EVAL):
        for record in records.read(path / file).rows:
            row = by_round.setdefault(record["round"], {"run": name, "round": record["round"]})
            for key in CURVES:
                value = record.get(key)
                if value is not None:
                    row[key] = f"{value['mean'] if isinstance(value, dict) else value:.6g}"
    numbers = sorted(by_round)
    evaluated = {record["round"] for record in records.read(path / rundir.EVAL).rows}
    kept = {*numbers[:: max(1, -(-len(numbers) // MOST))], *numbers[-1:], *evaluated}
    return [by_round[number] for number in sorted(kept)]


def write_rows(path: Path, rows: list[dict]) -> None:
    """Rows as CSV; what a row lacks is empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """The command line; exit code 1 where an output differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(studies())}; default: all")
    parser.add_argument("--write", action="store_true", help="replace outputs that differ")
    parser.add_argument("--pack", type=Path, metavar="RUNS", help="a directory of runs, for the study's archive")
    args = parser.parse_args()
    if unknown := set(args.studies) - set(studies()):
        parser.error(f"{sorted(unknown)[0]}: no such study in {HOME}")
    if args.pack:
        if len(args.studies) != 1:
            parser.error("--pack RUNS: name the one study that the runs belong to")
        pack(args.studies[0], args.pack)
        return
    differing = 0
    for study in args.studies or studies():
        with tempfile.TemporaryDirectory() as out:
            wrong = make(study, Path(out))
            for name in wrong if args.write else ():
                (HOME / study / name).parent.mkdir(exist_ok=True)
                (HOME / study / name).write_bytes((Path(out) / name).read_bytes())
        differing += len(wrong)
        what = "written" if args.write else "not as committed"
        print(f"{study}: {what}: {', '.join(wrong)}" if wrong else f"{study}: as committed")
    sys.exit(1 if differing and not args.write else 0)


if __name__ == "__main__":
    main()
