"""Several devices and several processes, each in interpreters of their own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def start(*args, devices, **options):
    environ = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, "-m", *args], env=environ, text=True, **options)


@pytest.mark.parametrize("which", ["not nightly", pytest.param("nightly", marks=pytest.mark.nightly)])
def test_the_sharded_tests_pass_on_eight_devices(which):
    words = ("pytest", "-x", "-n", "0", "-m", which, str(HERE / "sharded"))
    done = start(*words, devices=8, cwd=HERE.parent, stdout=subprocess.PIPE)
    text, _ = done.communicate()
    assert done.returncode == 0, text
    assert " passed" in text and "skipped" not in text


def together(*args, processes=2, devices=2):
    """One command in several processes; the first one's standard output."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = ["--coordinator", f"localhost:{port}", "--num-processes", str(processes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ran = [
        start("fedjax_rl", *args, *where, "--process-id", str(i), devices=devices, **pipes) for i in range(processes)
    ]
    texts = [process.communicate(timeout=900) for process in ran]
    assert [process.returncode for process in ran] == [0] * processes, texts
    assert not texts[1][0].strip().replace("[Gloo]", "") or "return" not in texts[1][0]
    return texts[0][0]


def alone(*args):
    ran = start("fedjax_rl", *args, devices=1, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    text, errors = ran.communicate(timeout=900)
    assert ran.returncode == 0, errors
    return text


def lines(run, name="metrics.jsonl"):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def command():
    small = "--preset tiny --env navigation --clients-per-round 3 --server sgd --server-lr 1 --hidden 4".split()
    return ["train", *small, "--local-steps", "1", "--new-clients", "3", "--adapt-steps", "1", "--json"]


def test_two_processes_are_one_federation(command, tmp_path):
    """Training, saving and evaluating in 2 processes of 2 devices; resuming in one, and in two what one began."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone(*command, "--out", str(one))
    together(*command, "--out", str(two))
    check(one, two)
    alone("resume", str(two), "--rounds", "3", "--quiet")
    together("resume", str(one), "--rounds", "3", "--quiet")
    check(one, two)
    assert [line["round"] for line in lines(one)] == [1, 2, 3]


def check(one, two):
    for a, b in zip(lines(one), lines(two), strict=True):
        for name in ("train/return/adapt_0", "train/return/adapt_1", "comm/up_bytes"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3)
    for a, b in zip(lines(one, "eval.jsonl"), lines(two, "eval.jsonl"), strict=True):
        assert a["final"] == b["final"]
        np.testing.assert_allclose(a["eval/returns"], b["eval/returns"], rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--num-processes", "2"], "--num-processes and --process-id: need --coordinator HOST:PORT"),
        (["--coordinator", "here"], "--coordinator here: must be HOST:PORT of the first process, or auto"),
        (["--coordinator", "here:1"], "--num-processes None --process-id None: both are needed"),
        (["--coordinator", "here:1", "--num-processes", "2", "--process-id", "2"], "--process-id 2: both are needed"),
        (["--coordinator", "here:1", "--num-processes", "2", "--process-id", "1"], "--coordinator needs --out"),
    ],
)
def test_options_of_processes_are_checked_before_anything_starts(options, said, capsys):
    from fedjax_rl.cli import main

    assert main(["train", "--preset", "tiny", *options]) == 2
    assert said in capsys.readouterr().err
