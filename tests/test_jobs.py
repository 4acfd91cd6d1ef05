"""Programs side by side: the runs that one after the other would be; a signal saves them all; an error is named."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import pytest

from experiments import common, jobs
from faults import suite
from fedjax_rl.config import build
from fedjax_rl.host import cores, exits, signals
from fedjax_rl.runs import checkpoint, records, rundir, runner
from fedjax_rl.runs.progress import Reporter

SMALL = {"env": "probe/delayed", "hidden": (4,), "num_clients": 4, "clients_per_round": 2, "episodes": 2}
SMALL |= {"adapt_steps": 1, "new_clients": 0, "save_every": 1}
BOTH = """
import sys
from pathlib import Path
sys.path[:] = {path!r}
from test_jobs import jobs, members, Reporter
jobs.run_members(members(Path({out!r}), 100_000), 2, Reporter(quiet=False))
"""


def members(out, rounds):
    """Two programs: of two seeds, and of one."""
    one, other = (build(name, {**SMALL, "rounds": rounds}) for name in ("fmrl", "fedavg"))
    return {out / "a0": one, out / "a1": replace(one, seed=1), out / "b": other}


def test_they_are_the_runs_that_one_after_the_other_are(tmp_path):
    alone, together = (members(tmp_path / name, 3) for name in ("alone", "together"))
    assert runner.run_members(alone, Reporter(quiet=True)) == []
    assert jobs.run_members(together, 2, Reporter(quiet=True)) == []
    for one, other in zip(alone, together, strict=True):
        assert suite.last_hash(one) == suite.last_hash(other)
        if jobs.CAN_PIN and cores.cores() == 2:
            assert [json.loads((run / rundir.ENV).read_text())["cores"] for run in (one, other)] == [2, 1]
    before = [(run / rundir.METRICS).stat().st_mtime_ns for run in together]
    assert jobs.run_members(together, 2, Reporter(quiet=True)) == []
    assert before == [(run / rundir.METRICS).stat().st_mtime_ns for run in together]


def test_a_signal_saves_all_of_them(tmp_path):
    script = BOTH.format(path=sys.path, out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    runs = members(tmp_path, 1)
    while any(len(records.read(run / rundir.METRICS).rows) < 3 for run in runs if process.poll() is None):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert "Interrupted: SIGTERM" in said and f"{tmp_path / 'b'}: compiled one round" in said, said
    for run in runs:
        done = records.read(run / rundir.METRICS).rows[-1]["round"]
        assert 3 <= done == max(checkpoint.steps(run / rundir.CHECKPOINTS)) < 100_000


def test_a_second_signal_leaves_no_process_behind(tmp_path, monkeypatch):
    """However soon it comes after the first: nobody writes when the command has ended."""
    begun, begin = [], jobs.begin
    monkeypatch.setattr(jobs, "begin", lambda *args: begun.append(begin(*args)) or begun[-1])
    monkeypatch.setattr(jobs.time, "sleep", lambda _: [signal.raise_signal(signal.SIGTERM) for _ in range(2)])
    with pytest.raises(signals.Stopped):
        jobs.run_members(members(tmp_path, 100_000), 2, Reporter(quiet=True))
    assert len(begun) == 2 and all(process.poll() is not None for process in begun)


def test_a_process_that_was_killed_is_named_with_its_signal(tmp_path, monkeypatch):
    begin = jobs.begin
    monkeypatch.setattr(jobs, "begin", lambda *args: [process := begin(*args), process.kill()][0])
    with pytest.raises(exits.Refusal, match=r"was killed by SIGKILL; .* with fewer --jobs") as error:
        jobs.run_members(members(tmp_path, 1), 2, Reporter(quiet=True))
    assert error.value.code == 128 + signal.SIGKILL


@pytest.mark.skipif(not jobs.CAN_PIN, reason="no affinity")
def test_fewer_programs_than_jobs_have_all_cores(tmp_path, monkeypatch):
    shares = []
    done = lambda share, some: shares.append(sorted(share)) or subprocess.Popen(["true"])
    monkeypatch.setattr(jobs, "begin", done)
    monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda _: {2, 3, 5})
    jobs.run_members({tmp_path / "b": members(tmp_path, 1)[tmp_path / "b"]}, 2, Reporter(quiet=True))
    jobs.run_members(members(tmp_path, 1), 3, Reporter(quiet=True))
    assert shares[0] == [2, 3, 5] and sorted(shares[1:]) == [[2, 5], [3]]


def test_an_error_of_one_ends_the_others_and_is_named(tmp_path):
    (tmp_path / "b").write_text("in the way")
    with pytest.raises(exits.Refusal, match=f"{tmp_path / 'b'} ended with code 2") as error:
        jobs.run_members(members(tmp_path, 100_000), 2, Reporter(quiet=True))
    assert error.value.code == 2


@pytest.mark.parametrize("asked", [0, 1000])
def test_more_programs_than_cores_are_refused(asked, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table1", "--jobs", str(asked)])
    with pytest.raises(SystemExit) as error:
        common.main("An experiment.", "table1", pytest.fail)
    assert error.value.code == 2
    assert f"--jobs {asked}: 1 to {cores.cores()}, the cores" in capsys.readouterr().err


def test_an_accelerator_is_one_programs_own(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(exits.ConfigError, match="--jobs 2: programs share the cores of a CPU"):
        jobs.run_members(members(tmp_path, 1), 2, Reporter(quiet=True))
