"""The queue of long runs: what is finished is skipped, what was stopped goes on, what failed is named."""

import fcntl
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from experiments import queue
from faults import suite
from fedjax_rl.cli.parse import SweepOptions, parse_train
from fedjax_rl.config import ConfigError
from fedjax_rl.runs import records, rundir, runner, sweep


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
    command = f"fedjax-rl sweep fmrl --seeds 0,1 {option.format(shlex.quote(str(out)))}"
    program = [sys.executable, "-m", "fedjax_rl"]
    assert queue.words(command) == [*program, *shlex.split(command)[1:]]
    plain = parse_train(["fmrl"])[0]
    rundir.create_sweep(out, {out / f"seed={seed}": replace(plain, seed=seed, backend="native") for seed in (0, 1)}, 0)
    assert queue.words(command) == [*program, "resume", str(out)]
    assert queue.words(f"python -m x --out {out}")[:3] == [sys.executable, "-m", "x"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train fmrl --rounds 30", ""),
        ("train fmrl --rounds 30 --save-every 7", ""),  # which decides no number
        ("train fmrl --rounds 30 --server-lr 0.02", "was trained with server_lr = 0.01, not 0.02"),
        ("train fmrl --rounds 30 --seed 1", "was trained with seed = 0, not 1"),
        ("train fedavg --rounds 30", "was trained with algorithm = 'fmrl', not 'fedavg'"),
        ("train fmrl --rounds 31", "has rounds = 30, not 31"),
        ("sweep fmrl --rounds 30", "holds other runs than the line's"),
        ("train fmrl --rouns 30", "unknown option --rouns"),
    ],
)
def test_what_was_begun_with_other_values_is_not_resumed(line, said, tmp_path):
    out = tmp_path / "run"
    lr = "" if "--server-lr" in line else " --server-lr 0.01"
    out.mkdir()
    begun = parse_train(["fmrl", "--rounds", "30", "--server-lr", "0.01"])[0]
    rundir.write_config(out, replace(begun, backend="native"))  # auto, by its name
    command = f"fedjax-rl {line}{lr} --out {out}"
    if not said:
        assert queue.words(command)[3:] == ["resume", str(out)]
        return
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        queue.words(command)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "fmrl --env half_cheetah/direction",  # its engine
        "afedpg --env navigation --num-clients 4 --speed uniform",  # its lanes
        "fmrl --env navigation --preset fedbuff --clients-per-round 0",
        "fmrl --env navigation --schedule async --clients-per-round 0 --buffer 0",
        "fmrl --env navigation --selection poisson --dp-clip 0.001 --dp-epsilon 2",  # its noise
    ],
)
def test_what_a_beginning_decides_is_no_difference(line, tmp_path):
    config = parse_train(line.split())[0]
    begun = runner.with_engine(tmp_path / "none", config)
    assert begun != config and queue.filled_in(config, begun) == begun


def test_sweeps_of_other_points_or_halvings_are_not_resumed(tmp_path):
    command, out = "sweep fmrl --seeds 0,1 --grid server_lr=0.01,0.02 --halvings 1", f" --out {tmp_path}"
    config, options = parse_train(command.split()[1:], "sweep", SweepOptions)
    members = sweep.members(config, sweep.parse_grid(options.grid, config), [0, 1], tmp_path, 1)
    rundir.create_sweep(tmp_path, members, 1)
    assert queue.words(f"fedjax-rl {command}{out}")[3:] == ["resume", str(tmp_path)]
    for old, new in {"0.01,": "0.03,", "halvings 1": "halvings 0", "seeds 0,1": "seeds 0"}.items():
        with pytest.raises(ConfigError, match="holds other runs than the line's, or another number of halvings"):
            queue.words(f"fedjax-rl {command.replace(old, new)}{out}")
    with pytest.raises(ConfigError, match="holds other runs"):
        queue.words(f"fedjax-rl train fmrl{out}")
    with pytest.raises(ConfigError, match="was trained with env"):
        queue.words(f"fedjax-rl {command} --env navigation{out}")


def test_a_line_that_is_refused_does_not_end_the_queue(file, tmp_path):
    (tmp_path / "run").mkdir()
    rundir.write_config(tmp_path / "run", parse_train(["fmrl", "--env", "navigation"])[0])
    file.write_text(f"fedjax-rl train fmrl --env navigation --seed 5 --out {tmp_path / 'run'}\ntrue\n")
    code, said = finish(file)
    assert code == 1 and "was trained with seed = 0, not 5; choose another --out" in said
    codes = [json.loads(line)["code"] for line in file.with_name("runs.txt.done").read_text().splitlines()]
    assert codes == [2, 0]


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
