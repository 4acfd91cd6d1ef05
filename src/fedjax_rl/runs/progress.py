"""What a person sees while a run goes on, on stderr; data never goes there."""

import time
from collections.abc import Sequence
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedjax_rl.host import output

LOG_EVERY_S = 10.0  # without a terminal, one line per so many seconds


class Reporter:
    """A live bar on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Progress | None = None
        self.last = 0.0

    def say(self, line: str) -> None:
        """One line, unless quiet."""
        if not self.quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """One line that nobody may miss."""
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            output.inform(line)

    def start(self, done: int, total: int, max_time: float = 0.0) -> None:
        """Begin `total` rounds of which `done` are behind; a virtual time may end them before."""
        self.total, self.max_time = total, max_time
        if self.quiet or not output.stderr.isatty():
            return
        columns = [TextColumn("round"), MofNCompleteColumn(), BarColumn(bar_width=24), TimeElapsedColumn()]
        columns += [TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}")]
        # without redirection: rich would put itself in the place of sys.stderr, to which our stream writes
        console = Console(file=cast("IO[str]", output.stderr))
        self.bar = Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False)
        self.task = self.bar.add_task("", total=total, completed=done, text="")
        self.bar.start()

    def round(self, records: Sequence[dict[str, Any]]) -> None:
        """Show a round's records, one for each member: speeds add up, returns are averaged."""
        record, text = records[0], " ".join(_parts(records))
        if self.bar is not None:
            self.bar.update(self.task, completed=record["round"], text=text)
        elif time.monotonic() - self.last > LOG_EVERY_S or record["round"] == self.total:
            self.last = time.monotonic()
            rounds = self.total - record["round"]
            if self.max_time and record["clock/time"]:  # 0: nobody has worked yet
                rate = record["round"] / record["clock/time"]
                rounds = min(rounds, max(self.max_time - record["clock/time"], 0.0) * rate)
            left = rounds * record["sys/round_s"] / 60
            self.say(f"round {record['round']}/{self.total} {text} ({left:.1f} min left)")

    def stop(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _parts(records: Sequence[dict[str, Any]]) -> list[str]:
    speed = sum(record["sys/env_steps_per_s"] for record in records)
    parts = [f"{records[0]['sys/round_s']:.2f} s/round", f"{speed:,.0f} steps/s"]
    parts += [f"time {records[0]['clock/time']:.1f}"] if "clock/time" in records[0] else []
    names = [key for key in sorted(records[0]) if key.startswith("train/return/")]
    returns = [sum(record[key] for record in records) / len(records) for key in names]
    return [*parts, "return " + " -> ".join(f"{value:.1f}" for value in returns)] if returns else parts
