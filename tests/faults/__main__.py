"""`python tests/faults`: every family of faults with its full count; `python tests/faults damage ...`: some of them.

Each family that was run replaces its own rows of the table in docs/reliability.md. `python tests/faults soak` makes
long runs of the robots' presets, or of those that it is given (`soak paper`), for the table of their own there.
"""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from faults import damage, ends, paths, processes, streams, suite  # noqa: E402
from faults.outcome import REFUSED, SURVIVED, Case, tally  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "reliability.md"
HEAD = ("fault", "tried", "survived", "refused", "data lost", "tracebacks", "silent", "minutes")
FAMILIES = {
    "runs": suite.cases,
    "damage": damage.cases,
    "paths": paths.cases,
    "ends": ends.cases,
    "streams": streams.cases,
    "processes": processes.cases,
}


def main(families: Sequence[str]) -> None:
    """Run the families one after the other, saying every case that is neither survived nor refused."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        suite.use_cache(home)
        for family in families:
            start, found = time.perf_counter(), []
            for case in FAMILIES[family](home / family):
                found.append(case)
                if case.end not in (SURVIVED, REFUSED):
                    print(case, flush=True)
            lines = rows(family, found, (time.perf_counter() - start) / 60)
            print(lines[-1], flush=True)
            publish("python tests/faults", table(family, lines))


def table(family: str, lines: Sequence[str]) -> list[str]:
    """The page's table with the rows of one family in place of its old ones, and the sums of all."""
    kept: dict[str, list[str]] = {name: [] for name in FAMILIES}
    rows: list[str] = []
    for row in published("python tests/faults"):
        rows.append(row)
        if row.startswith("| **"):
            kept[row.split("**")[1]] = rows
            rows = []
        elif row.startswith(("|---", "| fault ")) or not row.startswith("|"):
            rows = []
    kept = {name: lines if name == family else kept[name] for name in FAMILIES}
    sums = [[float(cell) for cell in some[-1].split("|")[2:-1]] for some in kept.values() if some]
    *counts, minutes = map(sum, zip(*sums, strict=True))
    where = f"On {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}:"
    head = [where, "", line(HEAD), "|---" * len(HEAD) + "|"]
    return [*head, *[row for some in kept.values() for row in some], line(["all", *map(int, counts), f"{minutes:.1f}"])]


def rows(family: str, found: Sequence[Case], minutes: float) -> list[str]:
    """The table's rows: one of each fault, in the order of their first cases, and the family's sum with its minutes."""
    faults = dict.fromkeys(case.fault for case in found)
    parts = [line([fault, *tally([case for case in found if case.fault == fault]), ""]) for fault in faults]
    return [*parts, line([f"**{family}**", *tally(found), f"{minutes:.1f}"])]


def line(cells: Sequence[object]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def soak(presets: Sequence[str]) -> None:
    """Five hundred rounds of each preset; its row of the table replaces the old one."""
    head = (
        "preset",
        "rounds",
        "with a NaN",
        "memory after a tenth [MiB]",
        "at the end",
        "growth",
        "compilations",
        "bits",
    )
    kept = {row.split("|")[1].split()[0]: row for row in published("python tests/faults soak")[2:]}
    with tempfile.TemporaryDirectory() as directory:
        for name in presets:
            s = suite.soak(Path(directory), name)
            growth, bits = f"{100 * (s.late / s.early - 1):+.1f} %", "the same" if s.equal else "OTHERS"
            kept[name] = line([name, s.rounds, s.bad, f"{s.early:.0f}", f"{s.late:.0f}", growth, s.compiled, bits])
            print(kept[name], flush=True)
            rows = [kept[known] for known in suite.SOAKED if known in kept]
            publish("python tests/faults soak", [line(head), "|---" * len(head) + "|", *rows])


def published(command: str) -> list[str]:
    """The lines between the page's markers."""
    return PAGE.read_text().split(f"<!-- table: made by {command} -->\n")[1].split("<!-- end -->")[0].splitlines()


def publish(command: str, lines: list[str]) -> None:
    """Put the table into the page, between its markers."""
    begin, end, table = f"<!-- table: made by {command} -->", "<!-- end -->", "\n".join(lines)
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}")


if __name__ == "__main__":
    long = sys.argv[1:2] == ["soak"]
    names, known = (sys.argv[2:], tuple(suite.SOAKED)) if long else (sys.argv[1:], tuple(FAMILIES))
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(known if long else ('soak', *known))}")
    (soak if long else main)(names or known)
