"""Programs side by side: each in a process of its own, on its share of the cores.

A program of small products leaves cores idle. On two cores, two programs with a core each take 17 to 28 % less time
than one after the other on both. XLA divides the sums of large products among a program's cores: with another number
of them a run agrees to rounding.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedjax_rl.config import Config
from fedjax_rl.config.sources import loads, to_toml
from fedjax_rl.host import exits, output, signals
from fedjax_rl.runs.progress import Reporter

POLL_S = 0.1
CAN_PIN = hasattr(os, "sched_setaffinity")  # Linux; elsewhere the programs share all cores


class Named(Reporter):
    """Plain lines that begin with the runs' common directory: several programs write to one terminal."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(quiet=False)
        self.name = os.path.commonpath(paths)

    def warn(self, line: str) -> None:
        output.inform(f"{self.name}: {line}")

    def start(self, done: int, total: int, max_time: float = 0.0) -> None:
        self.total, self.max_time = total, max_time


def run_members(members: Mapping[Path, Config], jobs: int, reporter: Reporter) -> list[Path]:
    """As `runner.run_members`, with up to `jobs` programs at a time; fewer programs share all cores.

    Raises:
      ConfigError: one program has this machine's accelerator for itself.
      Interrupted: a signal came; it was passed on, and what was begun is saved.
      Refusal: a process ended by one, or by an error; those beside it have ended too, saved.
    """
    import jax

    from fedjax_rl.runs import loop, runner

    if jax.default_backend() != "cpu":
        raise exits.ConfigError(f"--jobs {jobs}: programs share the cores of a CPU, not a GPU or TPU; leave it out")
    left = runner.unsettled(members, reporter)
    waiting = [{path: left[path] for path in paths} for paths in runner.together(left)]
    own = sorted(os.sched_getaffinity(0)) if CAN_PIN else []
    shares = min(jobs, len(runner.together(members)))  # of all that are asked for: one that goes on has as many cores
    free = [own[i::shares] or own for i in range(shares)]
    working: dict[subprocess.Popen, tuple[list[int], list[Path]]] = {}
    lost: list[Path] = []
    failed: exits.Refusal | None = None
    told = False
    with signals.heeded() as caught:
        try:
            while working or waiting:
                if (caught or failed) and not told:
                    told, waiting = True, []
                    terminate(working)
                while waiting and free:
                    share, some = free.pop(), waiting.pop(0)
                    working[begin(share, some)] = (share, list(some))
                for process in [process for process in working if process.poll() is not None]:
                    share, paths = working.pop(process)
                    free.append(share)
                    if process.returncode == exits.NO_CHECKPOINT:
                        lost += [path for path in paths if not runner.is_settled(path, left[path])]
                    elif process.returncode and not caught and failed is None:
                        failed = failure(process.returncode, os.path.commonpath(paths))
                time.sleep(POLL_S)
        except BaseException:  # a second signal, or a fault here: they stop at once, and nobody writes after us
            for process in working:
                process.kill()
            for process in working:
                process.wait()
            raise
        loop.stop_if(caught[0] if caught else 0)
    if failed is not None:
        raise failed
    return lost


def begin(share: Sequence[int], members: Mapping[Path, Config]) -> subprocess.Popen:
    """A process that brings the members to their end on those cores."""
    words = [sys.executable, "-m", "experiments.jobs", ",".join(map(str, share))]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # it has ended already: its code says why
        json.dump({str(path): to_toml(config) for path, config in members.items()}, pipe)
    return process


def failure(code: int, name: str) -> exits.Refusal:
    """What is said of a process that ended with that code; below 0: by that signal."""
    line = f"{name} ended with code {code}: its own lines say why"
    if code < 0:
        line = (
            f"{name} was killed by {signal.Signals(-code).name}; what is saved is intact; start the same command again"
        )
        line += ", with fewer --jobs if memory ran out" if code == -signal.SIGKILL else ""
        code = exits.SIGNAL - code
    error = exits.Refusal(line)
    error.code = code
    return error


def terminate(processes: Mapping[subprocess.Popen, object]) -> None:
    """Ask them to save and to end."""
    for process in processes:
        process.terminate()


def work() -> int:
    """What the process does; its exit code."""
    if CAN_PIN:  # before JAX counts them
        os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
    members = {Path(path): loads(text) for path, text in json.load(sys.stdin).items()}
    reporter = Named(list(members))
    from fedjax_rl.runs import runner

    try:
        lost = runner.run_members(members, reporter)
    except signals.Stopped as stopped:
        return stopped.code
    except exits.Refusal as error:
        reporter.warn(str(error))
        return error.code
    return exits.NO_CHECKPOINT if lost else exits.DONE


if __name__ == "__main__":
    sys.exit(work())
