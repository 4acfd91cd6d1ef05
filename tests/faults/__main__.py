"""`python tests/faults`: every fault with its full count; the table goes into docs/reliability.md."""

import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from faults import suite  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: made by python tests/faults -->", "<!-- end -->"


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
        }
        for name, fault in faults.items():
            rows.append((name, *fault()))
            print(rows[-1], flush=True)
        outcome, slowest = suite.invalid(home)
        rows.append((f"invalid configurations (slowest answer {slowest:.2f} s)", *outcome))
    lines = ["| fault | tried | survived | passed unnoticed |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    table = "\n".join(lines)
    print(f"{table}\n{(time.perf_counter() - began) / 60:.1f} minutes")
    if PAGE.exists():
        text = PAGE.read_text()
        PAGE.write_text(text.split(BEGIN)[0] + f"{BEGIN}\n{table}\n{END}" + text.split(END)[1])


if __name__ == "__main__":
    main()
