"""Runs in other libraries' environments: what a run promises also holds where episodes live outside of the program."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fedjax_rl as fr
from fedjax_rl.cli import main
from fedjax_rl.runs import records

pytest.importorskip("gymnasium")
SMALL = {"num_clients": 4, "clients_per_round": 2, "episodes": 2, "hidden": (4,), "new_clients": 0, "quiet": True}
POLES = "gym/CartPole-v1?horizon=30"


class Stopping:
    """Ends a run after its second round."""

    def after_round(self, directory, record):
        return record["round"] == 2


def untimed(path):
    return [{k: v for k, v in r.items() if not k.startswith(("sys/", "time"))} for r in records.sound(path)]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """Ditto has two batches side by side."""
    given = {**SMALL, "rounds": 4, "save_every": 1, "adapt_steps": 1, "local_steps": 1}
    whole = fr.train("ditto", POLES, out=tmp_path / "whole", **given)
    parts = fr.train("ditto", POLES, out=tmp_path / "parts", callbacks=[Stopping()], **given)
    assert parts.history["round"].tolist() == [1, 2]
    parts = parts.resume(quiet=True)
    np.testing.assert_array_equal(parts.returns["eval"], whole.returns["eval"])
    assert untimed(tmp_path / "parts" / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")
    assert len(set(whole.history["train/return/adapt_0"])) > 1


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("gym/CartPole-v1", "gymnasium"),
        ("gym/LunarLander-v3?gravity=-12:-8&horizon=300", "Box2D"),
        ("gym/BipedalWalker-v3?horizon=100", "Box2D"),
        ("gymnax/Acrobot-v1?link_length_1=0.5:1.5", "gymnax"),
        ("envpool/LunarLander-v2?horizon=300", "envpool"),
    ],
)
def test_a_killed_run_resumed_is_the_uninterrupted_one(name, needs, tmp_path):
    pytest.importorskip(needs)
    small = "--rounds 6 --num-clients 4 --clients-per-round 2 --episodes 4 --new-clients 0 --save-every 1 --quiet"
    argv = [sys.executable, "-m", "fedjax_rl", "train", "fmrl", "--env", name, *small.split(), "--out"]
    assert subprocess.run([*argv, tmp_path / "whole"]).returncode == 0
    killed = subprocess.Popen([*argv, tmp_path / "killed"])
    while not (tmp_path / "killed" / "ckpt" / "2").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(untimed(tmp_path / "killed" / "metrics.jsonl")) < 6
    assert main(["resume", str(tmp_path / "killed"), "--quiet"]) == 0
    for record in ("metrics.jsonl", "eval.jsonl"):
        assert untimed(tmp_path / "killed" / record) == untimed(tmp_path / "whole" / record)
