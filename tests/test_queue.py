"""The queue of long runs: what is finished is skipped, what was stopped goes on, what failed is named."""

import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time

import pytest

from experiments import queue
from faults import suite
from fedjax_rl.config import build
from fedjax_rl.runs import records, rundir


@pytest.fixture
def file(tmp_path):
    return tmp_path / "runs.txt"


def start(file):
    command = [sys.executable, "-m", "experiments.queue", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(file):
    process = start(file)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def test_each_command_once_and_what_failed_again(file, tmp_path):
    note = 'python -c "import sys; print(file=open(sys.argv[1], chr(97)))"'
    file.write_text(
        f"{note} {tmp_path}/a  # the first\n\n{note} {tmp_path}/b\n{note} {tmp_path}/a\nfalse\nno-such-command\n"
    )
    for attempt in (1, 2):
        code, said = finish(file)
        assert code == 1
        assert said.endswith("failed with exit code 1: false\nfailed with exit code 2: no-such-command\n"), said
        assert "no-such-command: No such file or directory" in said and "2 of 4 done; about 0 min left" in said
        assert [(tmp_path / name).read_text() for name in "ab"] == ["\n", "\n"]
        codes = [json.loads(line)["code"] for line in file.with_name("runs.txt.done").read_text().splitlines()]
        assert codes == [0, 0] + attempt * [1, 2]


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bits(file, tmp_path):
    out = tmp_path / "run"
    train = suite.new_run(out, 12)
    file.write_text(f"fedjax-rl {' '.join(train)}\n")
    process = start(file)
    while not (out / rundir.METRICS).exists() or len(records.read(out / rundir.METRICS).rows) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM and "stopped by SIGTERM; the same command goes on" in said
    assert 3 <= len(records.read(out / rundir.METRICS).rows) < 12
    assert finish(file)[0] == 0
    assert suite.last_hash(out) == suite.last_hash(suite.undisturbed(tmp_path, 12))
    before = (out / rundir.METRICS).stat().st_mtime_ns
    code, said = finish(file)
    assert (code, said) == (0, "1 of 1 done\n") and (out / rundir.METRICS).stat().st_mtime_ns == before


@pytest.mark.parametrize("option", ["--out {}", "--out={}"])
def test_what_was_begun_is_resumed(option, tmp_path):
    out = tmp_path / "a run"
    command = f"fedjax-rl sweep fmrl {option.format(shlex.quote(str(out)))}"
    program = [sys.executable, "-m", "fedjax_rl"]
    assert queue.words(command) == [*program, *shlex.split(command)[1:]]
    rundir.create_sweep(out, {out / "a": build("fmrl")}, 0)
    assert queue.words(command) == [*program, "resume", str(out)]
    assert queue.words(f"python -m x --out {out}")[:3] == [sys.executable, "-m", "x"]


def test_what_is_left_is_the_mean_of_what_is_done():
    took = queue.seconds(
        [{"command": c, "code": k, "seconds": s} for c, k, s in [("a", 143, 30), ("a", 0, 60), ("b", 1, 9)]]
    )
    assert took == {"a": 90}
    assert queue.state(["a", "b", "c"], took) == "1 of 3 done; about 3 min left"
    assert queue.state(["a", *map(str, range(100))], took) == "1 of 101 done; about 2.5 h left"
    assert queue.state(["a"], took) == "1 of 1 done"
    assert queue.state(["b"], took) == "0 of 1 done"


def test_bad_input_is_one_line(file, tmp_path):
    assert "cannot read" in finish(file)[1]
    file.write_text("python 'unbalanced\n")
    assert "No closing quotation" in finish(file)[1]
    file.write_text("false\n")
    with open(file) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, said = finish(file)
        assert code == 2 and "is at work on it" in said
    file.with_name("runs.txt.done").write_text("{}\n")
    code, said = finish(file)
    assert code == 2 and said.splitlines()[-1].endswith("is damaged; without it all commands are started again")
