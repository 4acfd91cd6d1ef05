"""Faults found by use (docs/reliability.md): nothing is wrong, and nothing lost, without one line that says so."""

import errno
import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_rl import cli, config, statistics
from fedjax_rl.api import training
from fedjax_rl.config.sources import to_toml
from fedjax_rl.host import exits, files, numerics, output, signals
from fedjax_rl.reports import finished
from fedjax_rl.runs import digest, locking, loop, mending, records, rundir, runner

SMALL = "--env probe/delayed --preset tiny --hidden 4 --episodes 3 --new-clients 0 --eval-every 0 --quiet".split()


def call(capsys, *argv):
    code = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *argv, code=2):
    """The one line with which a command refuses; nothing goes to stdout."""
    found, out, err = call(capsys, *argv)
    assert (found, out) == (code, "")
    assert err.startswith("fedjax-rl: ") and err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Five rounds, every one saved."""
    path = tmp_path_factory.mktemp("use") / "run"
    assert cli.main(["train", *SMALL, "--rounds", "5", "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def rounds_of(path):
    return [row["round"] for row in records.sound(path / "metrics.jsonl")]


def untimed(path):
    return [
        {k: v for k, v in row.items() if not k.startswith(("sys/", "time"))}
        for row in records.sound(path / "metrics.jsonl")
    ]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# Line 2: one damaged line deletes the rest


def lines_with(path, place, line):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[place] = line
    path.write_bytes(b"".join(lines))


BAD_LINES = {
    "not JSON": b"X\n",
    "bad UTF-8": b'{"round": 2, "\xff": 1}\n',
    "a number": b"3\n",
    "null": b"null\n",
    "empty": b"{}\n",
    "a round that is a word": b'{"round": "2", "sys/round_s": 1.0, "sys/env_steps_per_s": 1.0}\n',
    "deep": b"[" * 100_000 + b"\n",
    "no times": b'{"round": 2, "train/x": 1.0}\n',
    "a digit changed": None,
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_damaged_line_costs_itself_alone(kind, run, whole, capsys):
    bad = BAD_LINES[kind]
    if bad is None:
        line = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[1]
        place = line.index(b"adapt_0") + len(b'adapt_0": -')
        bad = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
    lines_with(run / "metrics.jsonl", 1, bad)
    before = (run / "metrics.jsonl").read_bytes()
    code, _out, err = call(capsys, "report", run.parent)
    assert code == 2 and f"{run} is left out: metrics.jsonl line 2: " in err
    code, _, err = call(capsys, "resume", run, "--rounds", "7", "--quiet")
    assert code == 0
    assert "metrics.jsonl line 2: " in err and "lacks rounds 2:" in err
    assert rounds_of(run) == [1, 3, 4, 5, 6, 7]
    assert [row for row in untimed(run) if row["round"] < 6] == [row for row in untimed(whole) if row["round"] != 2]
    assert before in [path.read_bytes() for path in (run / "rejected").iterdir()]


def test_records_that_are_younger_than_a_step_are_made_again(run, whole, capsys):
    """A torn last line is a crash's: of its rounds those that a kept step precedes are trained again, to equal bits."""
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    code, _, err = call(capsys, "resume", run, "--rounds", "6", "--quiet")
    assert code == 0 and "no sound record of round 4: going back to step 3" in err
    assert rounds_of(run) == [1, 2, 3, 4, 5, 6]
    assert untimed(run)[:5] == untimed(whole)
    assert digest.steps(run / "ckpt") == [6, 5, 4]


def test_a_run_with_a_damaged_record_is_left_out_by_name_and_ends_no_report(run, capsys):
    shutil.copytree(run, run.with_name("good"))
    lines_with(run / "eval.jsonl", 0, b'{"round": 5, "final": true, "eval/returns": [[1.0, 2.0], [1.0]]}\n')
    code, out, err = call(capsys, "report", run.parent)
    assert code == 0 and "| fmrl" in out
    assert err.count("\n") == 1 and f"{run} is left out: eval.jsonl line 1: eval/returns is missing or not a" in err


def test_lines_that_changed_places_lose_nothing(run, whole, capsys):
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([lines[0], lines[2], lines[1], *lines[3:], lines[4]]))
    code, _, err = call(capsys, "resume", run, "--rounds", "6", "--quiet")
    assert code == 0 and "line 3: round 2 after round 3" in err
    assert rounds_of(run) == [1, 3, 4, 5, 6] and "lacks rounds 2" in err


def test_evaluations_that_are_lost_are_said(tmp_path, capsys):
    path = tmp_path / "run"
    assert call(capsys, "train", *SMALL, "--rounds", "4", "--eval-every", "1", "--out", path)[0] == 0
    lines_with(path / "eval.jsonl", 1, b"")
    code, _, err = call(capsys, "resume", path, "--rounds", "5", "--quiet")
    assert code == 0 and "eval.jsonl lacks rounds 2: their records are lost" in err
    assert [row["round"] for row in records.sound(path / "eval.jsonl")] == [1, 3, 4, 5]


@pytest.mark.parametrize("rounds", [(), ("--rounds", "6")])
def test_a_damaged_line_of_participants_is_named_by_every_command(rounds, run, capsys):
    path, fault = run / "participants.jsonl", "participants.jsonl line 2: is not what was written, by its crc32"
    line = path.read_bytes().splitlines(keepends=True)[1]
    lines_with(path, 1, line.replace(b"[", b"[9", 1))
    assert fault in call(capsys, "show", run)[1]
    assert f"{run} is left out: {fault}" in refused(capsys, "report", run)
    code, _, err = call(capsys, "resume", run, *rounds, "--quiet")
    assert code == 0 and fault in err and "participants.jsonl lacks rounds 2: their records are lost" in err
    assert [row["round"] for row in records.sound(path)] == [1, *range(3, 7 if rounds else 6)]
    assert call(capsys, "resume", run, "--quiet")[2] == ""


def test_participants_that_are_all_lost_are_said_where_metrics_say_that_there_were_some(run, capsys):
    (run / "participants.jsonl").unlink()
    code, _, err = call(capsys, "resume", run, "--rounds", "6", "--quiet")
    assert code == 0 and "participants.jsonl lacks rounds 1 to 5: their records are lost" in err


@pytest.mark.parametrize(
    ("then", "now", "lost"),
    [
        ({"eval_every": 1, "max_time": 2.0, "speed": "linear"}, {}, "1"),  # ended by its time in round 2
        ({"eval_every": 1, "rounds": 2}, {"rounds": 4}, "1"),  # stopped in its last evaluation, and prolonged
        ({"eval_every": 0}, {"eval_every": 1}, ""),
        ({"eval_every": 1}, {"eval_every": 0}, "1 to 2"),
    ],
)
def test_evaluations_that_never_were_are_not_said_to_be_lost(then, now, lost, tmp_path, capsys):
    begun = config.build("fmrl", {"env": "probe/delayed", "rounds": 4, **then})
    rundir.create(tmp_path, begun)
    for number in (1, 2):
        times = {"sys/round_s": 1.0, "sys/env_steps_per_s": 1.0, "clock/time": float(number)}
        rundir.append(tmp_path / "metrics.jsonl", {"round": number, **times})
    digest.write(tmp_path / "ckpt", {"step": 2, "score": None, "files": {}, "config": to_toml(begun)})
    said = []
    mending.go_back(tmp_path, replace(begun, **now), 2, said.append)
    wanted = f"{tmp_path / 'eval.jsonl'} lacks rounds {lost}: their records are lost, the run is not"
    assert said == ([wanted] if lost else [])


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl"])
def test_records_that_cannot_be_read_cost_no_other_record(name, run, capsys):
    """The step of the last round is gone, whose record would be dropped, and made again."""
    (run / "ckpt/5.digest.json").unlink()
    (run / name).rename(run / "kept")
    (run / name).mkdir()
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert f"{run / name}: Is a directory" in refused(capsys, "resume", run, "--rounds", "7", "--quiet", code=1)
    assert {path: path.read_bytes() for path in before} == before


def test_a_quiet_evaluation_makes_no_remark(run, capsys):
    (run / "ckpt/5.digest.json").unlink()
    numerics._say.cache_clear()
    with jax.debug_infs(True):
        quiet = call(capsys, "eval", run, "--quiet")
        code, loud, err = call(capsys, "eval", run)
    assert code == 0 and "5 rejected: it has no digest" in err and "ignored, since no result" in err
    assert quiet == (0, loud, "") and "round 4" in loud


# Line 3: config.toml believed


@pytest.mark.parametrize("command", ["resume", "eval", "report", "render"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("inner_lr = 0.1", "inner_lr = 0.9"), "was trained with inner_lr = 0.1, not 0.9"),
        (('activation = "tanh"', 'activation = "relu"'), "was trained with activation = 'tanh', not 'relu'"),
        (None, "is damaged: it names no algorithm"),
        (("server_lr", "# "), "is damaged: it lacks server_lr"),
    ],
)
def test_every_command_that_opens_a_run_checks_its_configuration(command, change, message, run, capsys):
    path = run / "config.toml"
    path.write_text("") if change is None else edit(path, *change)
    more = {"resume": ["--rounds", "7"], "render": ["--out", run.parent / "a.html"]}.get(command, [])
    assert message in refused(capsys, command, run, *more)


@pytest.mark.parametrize(
    ("old", "new"), [('"stratified"', '"stratifmed"'), ('"fmrl"', '"fmrk"'), ("rounds = 5", "rounds = 5.0")]
)
def test_the_file_of_an_illegal_value_is_named(old, new, run, capsys):
    edit(run / "config.toml", old, new)
    shutil.rmtree(run / "ckpt")  # which would name the value that was changed
    assert f"fedjax-rl: {run / 'config.toml'}: " in refused(capsys, "resume", run, "--rounds", "7")
    rundir.create_sweep(run.parent, {run: config.build("fmrl", {"env": "navigation"})}, 0)
    plan = json.loads((run.parent / "sweep.json").read_text())
    plan["members"]["run"] = (run / "config.toml").read_text()
    del plan["sha256"]
    (run.parent / "sweep.json").write_text(json.dumps(plan))
    assert f"fedjax-rl: {run.parent / 'sweep.json'}: run: " in refused(capsys, "resume", run.parent)


def test_a_changed_configuration_is_seen_without_a_checkpoint(run, capsys):
    shutil.rmtree(run / "ckpt")
    edit(run / "config.toml", "inner_lr = 0.1", "inner_lr = 0.9")
    assert "config.toml was changed" in refused(capsys, "report", run)


def test_what_decides_no_number_may_be_edited(run, capsys):
    edit(run / "config.toml", "save_every = 1", "save_every = 2")
    assert call(capsys, "eval", run, "--json")[0] == 0


def test_a_digest_is_of_the_step_in_its_name(run, capsys):
    shutil.copy(run / "ckpt/4.digest.json", run / "ckpt/5.digest.json")
    _code, out, err = call(capsys, "eval", run, "--json")
    assert json.loads(out)["step"] == 4
    assert "5.digest.json is damaged, or not of step 5; using step 4" in err


def test_a_step_without_its_digest_is_passed_over_aloud(run, capsys):
    (run / "ckpt/5.digest.json").unlink()
    _code, out, err = call(capsys, "eval", run, "--json")
    assert json.loads(out)["step"] == 4
    assert "5 rejected: it has no digest" in err and "using step 4 instead" in err


def test_a_digest_of_the_first_schema_with_a_word_for_a_score_is_rejected(run):
    record = {"schema": 1, "step": 5, "score": "high", "files": {}}
    (run / "ckpt/5.digest.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"5\.digest\.json is damaged"):
        digest.read(run / "ckpt", 5)


# Lines 4, 13 and 23: sweeps


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "s"
    assert cli.main(["sweep", *SMALL, "--rounds", "3", "--seeds", "0:2", "--out", str(out)]) == 0
    return out


def test_a_member_that_lost_its_checkpoints_is_named_and_ends_no_other(swept, tmp_path, capsys):
    out = tmp_path / "s"
    shutil.copytree(swept, out)
    for path in (out / "seed=0/ckpt").glob("*.digest.json"):
        path.unlink()
    for name in ("seed=0", "seed=1"):
        (out / name / "eval.jsonl").unlink()
    before = (out / "seed=0/metrics.jsonl").read_bytes()
    code, table, err = call(capsys, "resume", out, "--quiet")
    assert code == exits.NO_CHECKPOINT
    assert f"{out / 'seed=0'} holds no checkpoint" in err and "the other runs go on" in err
    assert (out / "seed=0/metrics.jsonl").read_bytes() == before  # not trained again
    assert len(records.sound(out / "seed=1/eval.jsonl")) == 1 and "| fmrl" in table


def test_a_member_without_its_configuration_is_named_by_report_and_goes_on(swept, tmp_path, capsys):
    out = tmp_path / "s"
    shutil.copytree(swept, out)
    (out / "seed=0/config.toml").unlink()
    code, _, err = call(capsys, "report", out)
    assert code == 0 and f"{out / 'seed=0'} is left out: {out / 'seed=0'} is not a run directory" in err
    for name in ("seed=0", "seed=1"):
        (out / name / "eval.jsonl").unlink()
    assert call(capsys, "resume", out, "--quiet")[0] == 0
    assert (out / "seed=0/config.toml").read_bytes() == (swept / "seed=0/config.toml").read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--grid env=navigation,probe/target", "env cannot be swept: a sweep compares runs of one environment"),
        ("--grid client_batch=1,2", "client_batch cannot be swept: it changes no result"),
        ("--grid save_every=1,2", "save_every cannot be swept"),
        ("--grid final_clients=1,2", "final_clients cannot be swept"),
        ("--seeds 0:100000000000", "100,000,000,000 runs; a sweep takes at most 10,000"),
        ("--seeds 0:99999999999999999999999", "runs; a sweep takes at most 10,000"),
        (f"--seeds -{'9' * 4300}:{'9' * 4300}", "runs; a sweep takes at most 10,000"),
        ("--seeds 5000000000", "seed = 5000000000: must be an integer, 0 to 2.14748e+09"),
        ("--seeds -1", "seed = -1: must be an integer"),
        ("--seeds 0:9000 --grid inner_lr=.1,.2", "18,000 runs"),
    ],
)
def test_a_sweep_that_cannot_be_reported_is_refused_before_it_is_begun(line, message, tmp_path, capsys):
    assert message in refused(capsys, "sweep", *SMALL, *line.split(), "--out", tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_of_an_environment_that_cannot_be_made_leaves_nothing(tmp_path, capsys):
    argv = ["--preset", "tiny", "--quiet", "--env", "brax/nobody", "--out", tmp_path / "s"]
    assert "brax/nobody" in refused(capsys, "sweep", *argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "plan",
    [
        {"halvings": 0, "members": {"../x": "T"}},
        {"halvings": 0, "members": {"/abs": "T"}},
        {"halvings": 0, "members": {"..": "T"}},
        {"halvings": 0, "members": {}},
        {"halvings": 10**9, "members": {"a": "T"}},
        {"halvings": "0", "members": {"a": "T"}},
        {"halvings": 0, "members": {"a": 3}},
        {"halvings": 0, "members": ["a"]},
        [],
        3,
    ],
)
def test_a_hostile_plan_is_one_line(plan, tmp_path, capsys):
    text = json.dumps(plan).replace('"T"', json.dumps("schema = 1\n"))
    (tmp_path / "sweep.json").write_text(text)
    assert "sweep.json is damaged; its runs can be resumed one by one" in refused(capsys, "resume", tmp_path)


def test_a_changed_plan_is_noticed(swept, tmp_path, capsys):
    shutil.copytree(swept, tmp_path / "s")
    edit(tmp_path / "s/sweep.json", "inner_lr = 0.1", "inner_lr = 0.2")
    assert "sweep.json is damaged" in refused(capsys, "resume", tmp_path / "s")


# Line 7: nobody is heard; line 8: one client


def test_a_run_in_which_nobody_is_heard_is_no_success(tmp_path, capsys):
    argv = ["train", "fedavg", *SMALL, "--rounds", "3", "--critic", "federated", "--value-coef", "1000"]
    argv += ["--local-lr", "100", "--local-steps", "50"]  # the value function's error grows beyond all numbers
    code, _out, err = call(capsys, *argv, "--out", tmp_path / "run")
    assert code == exits.UNHEARD
    assert err.count("nobody was heard in round 1") == 1 and "nobody was heard in round 2" not in err
    assert "learned nothing in its last 3 rounds" in err
    assert call(capsys, "resume", tmp_path / "run")[0] == exits.UNHEARD
    code, _, err = call(capsys, "train", *SMALL, "--dropout", "1", "--out", tmp_path / "out")
    assert code == exits.UNHEARD and "(0 of 4 clients were not finite)" in err


@pytest.mark.parametrize("option", ["max-change-norm", "local-lr", "server-lr", "inner-lr"])
def test_a_number_that_float32_takes_for_zero_is_refused(option, capsys):
    assert "is 0 to the arithmetic" in refused(capsys, "train", f"--{option}", "1e-40")


def test_one_client_has_no_interval(tmp_path, capsys):
    argv = ["train", *SMALL, "--num-clients", "1", "--clients-per-round", "1", "--out", tmp_path / "run"]
    code, out, _ = call(capsys, *argv)
    assert code == 0 and "± -" in out and "± 0.0" not in out
    assert records.sound(tmp_path / "run/eval.jsonl")[-1]["eval/return/adapt_1"]["ci95"] is None


# Lines 9 and 11: streams


def command(*argv, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("env", {})}
    return subprocess.Popen([sys.executable, "-m", "fedjax_rl", *map(str, argv)], env=environment, **options)


def test_a_reader_of_stderr_who_goes_away_ends_no_run(whole, tmp_path):
    """As in `2>&1 | head`: both streams are one pipe, which nobody reads."""
    read, write = os.pipe()
    argv = ["train", *SMALL[:-1], "--rounds", "5", "--out", tmp_path / "run"]
    process = command(*argv, stdout=write, stderr=write)
    os.close(write)
    os.close(read)
    assert process.wait() == exits.CANNOT_WRITE  # the result could not be printed; nobody could be told
    assert untimed(tmp_path / "run") == untimed(whole)
    assert len(records.sound(tmp_path / "run/eval.jsonl")) == 1


def test_a_terminal_of_twenty_columns_shows_a_bar_and_trains(whole, tmp_path):
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    argv = ["train", *SMALL[:-1], "--rounds", "5", "--out", tmp_path / "run"]
    process = command(*argv, stdout=subprocess.DEVNULL, stderr=end, env={"TERM": "xterm"})
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # what Linux says when the other end is closed
        pass
    assert process.wait() == 0 and b"round" in shown
    assert untimed(tmp_path / "run") == untimed(whole)


def test_a_sweep_whose_report_nobody_reads_says_where_it_is(swept):
    read, write = os.pipe()
    process = command("resume", swept, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    os.close(read)
    err = process.communicate()[1]
    assert process.returncode == exits.CANNOT_WRITE
    assert f"the result cannot be printed: Broken pipe; the runs are in {swept}" in err


def test_closed_streams_do_no_harm(whole, tmp_path):
    argv = [sys.executable, "-m", "fedjax_rl", "train", *SMALL, "--rounds", "5", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", 'exec "$@" 2>&- <&-', "bash", *argv], env=environment, stdout=subprocess.PIPE)
    assert done.returncode == 0 and b"all clients" in done.stdout
    assert untimed(tmp_path / "run") == untimed(whole)


def test_a_result_that_cannot_be_printed_is_one_line(run):
    with open("/dev/full", "w") as full:
        process = command("eval", run, stdout=full, stderr=subprocess.PIPE, text=True)
        err = process.communicate()[1]
    assert process.returncode == exits.CANNOT_WRITE
    assert err == "fedjax-rl: the result cannot be printed: No space left on device\n"


def test_an_ascii_terminal_shows_the_result(run):
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    process = command("eval", run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ascii_only)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "+-" in out and out.isascii()


def test_what_is_said_cannot_raise_and_is_one_line(monkeypatch, capsys):
    output.inform("a\nb\x1b[31m \udcff ± ok")
    assert capsys.readouterr().err == "a\\nb\\x1b[31m \\udcff ± ok\n"
    for broken in (None, open("/dev/full", "w"), open("/dev/null")):
        monkeypatch.setattr(sys, "stderr", broken)
        output.inform("nobody hears this")


def test_what_a_killed_start_leaves_is_in_nobodys_way(tmp_path, whole, capsys):
    path = tmp_path / "run"
    probe = path / "ckpt/probe/0.orbax-checkpoint-tmp"
    probe.mkdir(parents=True)
    (probe / "half").touch()
    (path / "notes").mkdir()
    assert call(capsys, "train", *SMALL, "--rounds", "5", "--out", path)[0] == 0
    assert untimed(path) == untimed(whole) and not probe.parent.exists()
    (path / "notes/mine").symlink_to("nowhere")
    shutil.rmtree(path / "ckpt")
    for mine in path.iterdir():
        mine.unlink() if mine.is_file() else None
    assert "exists and is not empty" in refused(capsys, "train", *SMALL, "--out", path)


@pytest.mark.parametrize(("kept", "code"), [((1, 1), 0), ((2, 1), 4), ((2, 2), 4), ((3, 3), 4)])
def test_a_run_killed_in_its_first_save_has_lost_nothing(kept, code, tmp_path, capsys):
    """So many lines of metrics.jsonl and eval.jsonl are there, and no step: the state of round 1 was not saved."""
    path = tmp_path / "run"
    options = [*SMALL, "--rounds", "2", "--eval-every", "1", "--save-every", "10", "--out", path]
    assert call(capsys, "train", *options)[0] == 0
    before = untimed(path)
    shutil.rmtree(path / "ckpt")
    for name, count in zip(("metrics.jsonl", "eval.jsonl"), kept, strict=True):
        lines = (path / name).read_bytes().splitlines(keepends=True)
        (path / name).write_bytes(b"".join(lines[:count]))
    assert call(capsys, "resume", path, "--quiet")[0] == code
    assert code or untimed(path) == before


# Line 10: ends


def test_the_signals_of_people_and_batch_systems_end_a_run_that_is_saved(whole, tmp_path, monkeypatch, capsys):
    append = rundir.append
    for number in (signal.SIGHUP, signal.SIGUSR1):

        def signalled(path, record, number=number, **options):
            append(path, record, **options)
            if record["round"] == 2 and path.name == "metrics.jsonl":
                os.kill(os.getpid(), number)

        monkeypatch.setattr(rundir, "append", signalled)
        path = tmp_path / str(number)
        code, _, err = call(capsys, "train", *SMALL, "--rounds", "5", "--out", path)
        assert code == 128 + number
        assert "the round is ended and saved first" in err and f"continue with: fedjax-rl resume {path}" in err
        assert digest.steps(path / "ckpt")[0] == 2
        monkeypatch.undo()
        assert call(capsys, "resume", path, "--quiet")[0] == 0
        assert untimed(path) == untimed(whole)


def test_a_signal_before_the_first_round_is_heeded(tmp_path, monkeypatch, capsys):
    compile_round = loop.compile_round

    def interrupted(group):
        os.kill(os.getpid(), signal.SIGTERM)
        return compile_round(group)

    monkeypatch.setattr(loop, "compile_round", interrupted)
    code, _, err = call(capsys, "train", *SMALL, "--out", tmp_path / "run")
    assert code == 143 and "continue with" in err
    assert digest.steps(tmp_path / "run/ckpt") == [0]
    monkeypatch.undo()
    assert call(capsys, "resume", tmp_path / "run")[0] == 0


def test_a_signal_is_heeded_within_the_last_evaluation(tmp_path, monkeypatch, capsys):
    """Before its next step, not after its last."""
    from fedjax_rl.runs import scoring

    seen = []
    make = scoring.make_evaluate

    def interrupting(objects, mesh, pause, at_once):
        def counted():
            seen.append(1)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            pause()

        return make(objects, mesh, counted, at_once)

    monkeypatch.setattr(scoring, "make_evaluate", interrupting)
    code, _, err = call(capsys, "train", *SMALL, "--adapt-steps", "50", "--out", tmp_path / "run")
    assert code == 130 and len(seen) == 2 and "continue with" in err
    monkeypatch.undo()
    assert call(capsys, "resume", tmp_path / "run")[0] == 0
    assert [row["final"] for row in records.sound(tmp_path / "run/eval.jsonl")] == [True]


def test_a_signal_between_the_groups_of_a_sweep_begins_no_other(tmp_path, monkeypatch, capsys):
    ran, run_group = [], runner.run_group

    def interrupted(configs, directories, *others):
        ran.append(directories)
        found = run_group(configs, directories, *others)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(runner, "run_group", interrupted)
    argv = ["sweep", *SMALL, "--grid", "order=first,second", "--seeds", "0:1", "--out", tmp_path / "s"]
    assert call(capsys, *argv)[0] == 143 and len(ran) == 1


def test_a_second_signal_stops_at_once_and_says_what_is_saved(tmp_path, monkeypatch, capsys):
    append = rundir.append

    def twice(path, record, **options):
        append(path, record, **options)
        if record["round"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(rundir, "append", twice)
    code, _, err = call(capsys, "train", *SMALL, "--rounds", "5", "--save-every", "1", "--out", tmp_path / "run")
    assert code == 143
    assert "stopped at once (SIGTERM); what was saved before is intact; continue with" in err
    assert digest.steps(tmp_path / "run/ckpt") == [1]


def test_a_signal_that_was_ignored_stays_ignored():
    """nohup, and jobs in the background of a shell."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.heeded() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and caught == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_training_in_a_thread_trains(whole, tmp_path):
    codes = []
    argv = ["train", *SMALL, "--rounds", "5", "--out", str(tmp_path / "run")]
    thread = threading.Thread(target=lambda: codes.append(cli.main(argv)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert untimed(tmp_path / "run") == untimed(whole)


# Line 12: paths


def test_a_step_that_does_not_read_back_does_not_count(tmp_path, monkeypatch, capsys):
    """The storage library writes something else than what it was given, from round 2 on."""
    from fedjax_rl.runs import checkpoint

    manager = checkpoint._manager

    def forgetful(directory, **options):
        made = manager(directory, **options)
        restore = made.restore
        monkeypatch.setattr(
            made, "restore", lambda *a, **k: {key: x * 0 for key, x in restore(*a, **k).items()}, raising=False
        )
        return made

    monkeypatch.setattr(checkpoint, "_manager", forgetful)
    assert "checkpoints cannot be kept there" in refused(capsys, "train", *SMALL, "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_odd_names_train_and_read_back_or_are_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("q'\"$*?%", "new\nline", "a[b]", "a\\b", "a|b", os.fsdecode(b"\xff")):
        code, _, err = call(capsys, "train", *SMALL, "--rounds", "1", f"--out={name}")
        assert "Traceback" not in err
        if code:
            assert code == 2 and err.count("\n") == 1 and os.listdir(tmp_path) == []
        else:
            assert call(capsys, "eval", f"./{name}", "--json")[0] == 0
            shutil.rmtree(f"./{name}")


# Lines 15 to 18, 20, 22: said wrongly


def test_the_operating_systems_refusals_are_said_in_its_words():
    assert files.explain(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device; make room"
    for number in (errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.EISDIR):
        said = files.explain(OSError(number, os.strerror(number), "x"))
        assert said.startswith(f"x: {os.strerror(number)}; ") and "make room" not in said


LONG = "x" * 300


@pytest.mark.parametrize(
    "line",
    [
        f"resume {LONG}",
        f"eval {LONG}",
        f"render {LONG} --out a.html",
        f"report {LONG}",
        f"replay {LONG}",
        f"train --out {LONG}",
        f"train --config {LONG}",
        f"sweep --out {LONG}",
        f"render . --out {LONG}.html",
        f"bench update --out {LONG}",
        "replay .",
        "train --config .",
        "resume config.toml",
    ],
)
def test_paths_that_cannot_be_are_one_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text("")
    code, out, err = call(capsys, *line.split(), *(SMALL if line.startswith(("train", "sweep")) else ()))
    assert code in (1, 2) and out == "" and err.startswith("fedjax-rl: ") and err.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(number, tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locking.writer(tmp_path):
        pass
    assert "cannot be locked" in capsys.readouterr().err


def test_without_a_home_there_is_no_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does for a uid without a passwd entry
    assert call(capsys, "train", *SMALL, "--rounds", "1", "--out", "run")[0] == 0
    assert os.listdir(tmp_path) == ["run"] and "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_resume_of_a_finished_run_does_nothing_and_says_so(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, out, err = call(capsys, "resume", run)
    assert (code, out) == (0, "") and "is finished (5 rounds), so nothing was done" in err
    assert call(capsys, "resume", run, "--quiet") == (0, "", "")
    code, out, err = call(capsys, "resume", run, "--json", "--quiet")
    found, last = json.loads(out), json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    steps = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["env_steps"]
    assert (code, err, found["run"], found["round"], found["env_steps"]) == (0, "", str(run), 5, steps)
    np.testing.assert_allclose(found["eval"]["mean"], np.mean(last["eval/returns"], axis=0), rtol=1e-12)
    assert set(found) == {"run", "round", "env_steps", "minutes"} | {key[:-8] for key in last if "/returns" in key}
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("style", ["mark", "windows", "latin"])
def test_texts_are_read_as_people_write_them(style, tmp_path, capsys):
    path, text = tmp_path / "c.toml", "# über\nserver_lr = 0.25\n"
    path.write_bytes(
        {
            "mark": text.encode("utf-8-sig"),
            "windows": text.replace("\n", "\r\n").encode(),
            "latin": text.encode("latin-1"),
        }[style]
    )
    if style == "latin":
        assert "c.toml is not UTF-8 text: byte 2 is 0xfc" in refused(capsys, "train", "--config", path)
    else:
        assert "server_lr = 0.25" in call(capsys, "train", "--config", path, "--print-config")[1]


def test_the_last_evaluation_has_a_bound(tmp_path, capsys):
    argv = ["train", *SMALL, "--eval-every", "1", "--final-clients", "3", "--out", tmp_path / "run"]
    assert call(capsys, *argv)[0] == 0
    rows = records.sound(tmp_path / "run/eval.jsonl")
    assert [len(row["eval/returns"]) for row in rows] == [8, 3]
    scores = [np.mean([line[1] for line in row["eval/returns"][:3]]) for row in rows]  # over the same clients
    assert [digest.read(tmp_path / "run/ckpt", step)["score"] for step in (1, 2)] == pytest.approx(scores)
    found = json.loads(call(capsys, "eval", tmp_path / "run", "--eval-clients", "3", "--json")[1])
    assert found["returns"] == rows[-1]["eval/returns"]
    assert "this run has 8 clients" in refused(capsys, "eval", tmp_path / "run", "--eval-clients", "9")


def test_the_quantile_of_a_million_clients_is_no_loop():
    """The old one added up a million terms a hundred times; a test of it would not have ended in a minute."""
    assert statistics.t_quantile(0.975, 10**9) == pytest.approx(1.959963985, rel=1e-6)


# Line 24: hostile files


def test_hostile_toml_is_one_line(tmp_path, capsys):
    deep, long = "is nested too deeply", "at most 16,384 are read"
    bombs = {"x = " + "[" * 10_000: deep, "x = " + "9" * 10_000: "is not TOML", "a" + ".a" * 50_000 + " = 1": long}
    for text, message in bombs.items():
        (tmp_path / "c.toml").write_text(text)
        assert message in refused(capsys, "train", "--config", tmp_path / "c.toml")


def test_exit_codes_are_those_of_the_table_in_the_docs():
    page = (Path(__file__).parents[1] / "docs/reliability.md").read_text()
    table = page.split("<!-- exit codes -->")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert {row[0]: row[1] for row in rows} == {
        **{str(code): meaning for code, meaning in exits.MEANING.items()},
        "128 + n": "ended by signal n; a training saved first, unless a second signal came",
    }


def test_a_group_of_damaged_runs_has_no_report(run):
    (run / "config.toml").write_text("")
    with pytest.raises(config.ConfigError, match="no run has a final evaluation to report"):
        finished.gather([run], print)


def test_clients_whose_models_cease_to_be_finite_are_not_the_best(tmp_path, capsys):
    """0 is the best return on navigation. Their numbers are null everywhere, and no command stumbles over them."""
    wild = {"reduction": "sum", "advantages": "plain", "inner_lr": 50.0, "adapt_steps": 4, "hidden": (4,)}
    few = {"num_clients": 4, "clients_per_round": 2, "episodes": 4, "new_clients": 0, "rounds": 2, "eval_every": 1}
    run = training.train("fedavg", "navigation", preset="tiny", out=tmp_path / "run", quiet=True, **wild, **few)
    assert np.isnan(run.returns["eval"][:, -1]).all() and np.isfinite(run.returns["eval"][:, 0]).all()
    capsys.readouterr()
    for command in ("ls", "show", "resume", "eval"):
        assert cli.main([command, str(run.path), "--json"]) == 0
        assert "NaN" not in capsys.readouterr().out
    assert cli.main(["report", str(run.path)]) == 2 and "lower --inner-lr" in capsys.readouterr().err
