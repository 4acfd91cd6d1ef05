"""`python tests/faults`: every fault with its full count; `python tests/faults soak`: long runs of every preset.

Their tables go into docs/reliability.md.
"""

import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from faults import suite  # noqa: E402
from fedjax_rl.presets import PRESETS  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "reliability.md"


def main() -> None:
    began, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        suite.use_cache(home)
        faults = {
            "SIGKILL at a random moment, then resume": lambda: suite.kills(home, 50),
            "SIGINT, SIGTERM, then resume": lambda: suite.signals(home),
            "the newest checkpoint damaged (a file deleted, cut, emptied, a bit flipped)": lambda: suite.corruptions(
                home, 20
            ),
            "the same seed in another process": lambda: suite.repeated(home),
            "no room for the next checkpoint": lambda: suite.full_disk(home),
            "trained on one physics engine, evaluated on the other": lambda: suite.engines(home),
        }
        for name, fault in faults.items():
            rows.append((name, *fault()))
            print(rows[-1], flush=True)
        outcome, slowest = suite.invalid(home)
        rows.append((f"invalid configurations (slowest answer {slowest:.2f} s)", *outcome))
    lines = ["| fault | tried | survived | passed unnoticed |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    publish("python tests/faults", lines)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes")


def soak() -> None:
    lines = ["| preset | rounds | with a NaN | memory after a tenth [MiB] | at the end | growth | compilations |"]
    lines += ["|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as directory:
        for name in PRESETS:
            s = suite.soak(Path(directory), name)
            growth = f"{100 * (s.late / s.early - 1):+.1f} %"
            lines.append(f"| {name} | {s.rounds} | {s.bad} | {s.early:.0f} | {s.late:.0f} | {growth} | {s.compiled} |")
            print(lines[-1], flush=True)
    publish("python tests/faults soak", lines)


def publish(command: str, lines: list[str]) -> None:
    """Print the table and put it into the page, between its markers."""
    begin, end, table = f"<!-- table: made by {command} -->", "<!-- end -->", "\n".join(lines)
    print(table)
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}")


if __name__ == "__main__":
    soak() if sys.argv[1:] == ["soak"] else main()
