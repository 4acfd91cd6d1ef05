"""A process that runs one command after the other: imports and compiled programs are paid for once.

It is asked by lines of JSON on its stdin and answers on its stdout; the commands' own streams are files. It has no more
rights to files than their owner, also when root starts it.
"""

import ctypes
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.outcome import Answer

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3
HUNG_S = 300.0
ENV = os.environ.get("FAULTS_ENV", "navigation")  # of the small runs: a robot's name tries its physics engine too
STATE = "the newest state of"  # what a worker is asked besides commands


class Worker:
    """The worker as its parent sees it; one that hangs or dies is replaced by a new one."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def ask(self, argv: Sequence[str], cwd: Path, timeout_s: float = HUNG_S) -> Answer:
        """Run `fedjax-rl ARGV` in a directory."""
        if self.process is None or self.process.poll() is not None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen([sys.executable, __file__], **pipes)
        self.process.stdin.write(json.dumps([list(argv), str(cwd)]).encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if ready else b""
        if not line:  # it hangs, or it died
            self.process.kill()
            self.process.communicate()
            return Answer(self.process.returncode if ready else None, "", "")
        return Answer(*json.loads(line))

    def state(self, run: Path) -> str:
        """The newest good step of a run and its state's hash, or why there is none."""
        return self.ask([STATE, str(run)], run).out

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


def each(do: Callable[[Worker, Any], Any], cases: Sequence[Any], first: Worker) -> Iterator[Any]:
    """`do(worker, case)` of every case, by two workers if they are many; the results in the cases' order.

    `first` has made what the cases need and is one of them, since a new one takes longer than a dozen cases.
    """
    own, left, all_of_them = threading.local(), [first], []

    def one(case: Any) -> Any:
        if not hasattr(own, "worker"):
            own.worker = left.pop() if left else Worker()
            all_of_them.append(own.worker)
        return do(own.worker, case)

    with ThreadPoolExecutor(2 if len(cases) > 50 else 1) as pool:
        try:
            yield from pool.map(one, cases)
        finally:
            pool.shutdown(cancel_futures=True)
            for worker in all_of_them:
                worker.close()


def give_up_rights() -> None:
    """Root's right to pass over permissions, which a person does not have; called before any thread is started."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capget(header, sets) == 0
        kept = ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH | 1 << CAP_FOWNER) & 0xFFFFFFFF
        sets[0], sets[1], sets[2] = (sets[i] & kept for i in range(3))
        assert libc.capset(header, sets) == 0
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "unreadable")
        path.touch(0)
        try:
            path.read_bytes()
        except PermissionError:
            return
    raise AssertionError("an unreadable file can be read here, so that no case of one would show anything")


def remember(module: Any, name: str) -> None:
    """A function of a group that compiles, called once for all groups of equal configurations."""
    original, known = getattr(module, name), {}

    @functools.wraps(original)
    def call(group, *args, **kwargs):
        given = [value for value in (*args, *kwargs.items()) if "function" not in repr(value)]
        key = repr((group.configs, given))
        if key not in known:
            known[key] = original(group, *args, **kwargs)
        return known[key]

    setattr(module, name, call)


def show_state(run: Path) -> int:
    """Print the newest good step and the hash of its state."""
    from fedjax_rl.runs import assemble, checkpoint, rundir
    from fedjax_rl.runs.arrays import state_hash

    like = assemble.abstract_state(assemble.make_run(rundir.open_run(run)))
    restored = checkpoint.restore(run / rundir.CHECKPOINTS, like, print)
    print(restored.step, state_hash(restored.state))
    return 0


def main() -> None:
    """Answer until nobody asks."""
    give_up_rights()
    asked, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    from fedjax_rl import cli
    from fedjax_rl.host import output
    from fedjax_rl.runs import loop, scoring

    output.prepare()
    remember(loop, "compile_round")
    remember(scoring, "make_evaluations")
    for line in asked:
        argv, cwd = json.loads(line)
        for number in (1, 2):
            os.ftruncate(number, 0)
            os.lseek(number, 0, os.SEEK_SET)
        os.chdir(cwd)
        try:
            code = show_state(Path(argv[1])) if argv[0] == STATE else cli.main(argv)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        said = [os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace") for number in (1, 2)]
        answers.write(json.dumps([code, *said]) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
