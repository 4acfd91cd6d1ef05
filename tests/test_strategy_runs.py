"""Runs of clients that share how they learn, with dropouts: resumed, reported, of unlike networks swept; the study."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from experiments import capability, common
from fedjax_rl import config
from fedjax_rl.cli import main
from fedjax_rl.config.presets import preset
from fedjax_rl.runs import records, rundir, runner
from fedjax_rl.runs.progress import Reporter
from test_train import assert_same_run, go, resume
from test_trusted_runs import end_after_three

pytestmark = pytest.mark.usefixtures("shared_programs")
SMALL = config.build(
    "fedstrategy",
    preset("tiny", "fedstrategy", "navigation"),
    {"env": "navigation", "hidden": (3,), "num_clients": 4, "clients_per_round": 2, "new_clients": 0},
    {"episodes": 2, "client_episodes": (1, 2), "dropout": 0.3, "rounds": 6, "save_every": 3},
    {"adapt_steps": 0},
)
UNLIKE = replace(SMALL, kinds="2x3:tanh, 2x2-2:relu", selection="by_kind")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert go(SMALL, directory) == 0
    return directory


def test_six_rounds_are_three_and_three_resumed(whole, tmp_path):
    half = tmp_path / "half"
    end_after_three(SMALL, half)
    assert resume(half) == 0
    assert_same_run(half, whole)


def test_a_run_is_reported(whole, capsys):
    assert main(["report", str(whole)]) == 0
    assert "fedstrategy" in capsys.readouterr().out
    last = records.sound(whole / rundir.METRICS)[-1]
    assert last["env_steps"] == 6 * 2 * 2 * 2 * 100 and np.isfinite(last["train/return/adapt_0"])


@pytest.mark.nightly  # the sweeps of tests/test_value_runs.py and tests/test_sweep.py guard the engine
def test_members_of_one_program_are_what_solo_runs_are(tmp_path):
    members = [replace(UNLIKE, seed=3), replace(UNLIKE, seed=4, server_lr=0.1, inner_lr=0.1)]
    runner.run_members({tmp_path / str(i): c for i, c in enumerate(members)}, Reporter(quiet=True))
    for i, c in enumerate(members):
        assert go(c, tmp_path / f"solo{i}") == 0
        swept, solo = (
            [row["train/return/adapt_0"] for row in records.sound(tmp_path / name / rundir.METRICS)]
            for name in (str(i), f"solo{i}")
        )
        np.testing.assert_allclose(swept, solo, rtol=1e-3)  # two programs, whose steps amplify rounding


def test_gains_of_the_map_have_students_interval_over_paired_seeds():
    """Of client 1 alone: 0, 3 and 6 more than the other arm, seed by seed."""
    theirs = np.array([[0.0, 1.0], [0.0, 50.0], [0.0, -7.0]])
    ours = theirs + np.array([[9.0, 0.0], [9.0, 3.0], [9.0, 6.0]])
    found = capability.gains({"map": ours, "alone": theirs}, np.array([False, True]))
    standard = stats.t(2, loc=3, scale=3 / np.sqrt(3))
    assert found == {"alone": pytest.approx((3.0, *standard.interval(0.95)))}


@pytest.mark.nightly
def test_the_study_compares_ways_of_sharing_and_hands_them_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(capability, "RATES", (0.01, 0.1))
    capability.experiment(common.SCALES["tiny"], tmp_path, (), ("navigation",))
    found = json.loads((tmp_path / "navigation.json").read_text())
    assert [*found["runs"]][2:] == ["own map", "one strategy", "map"]
    assert np.shape(found["runs"]["map"]) == (2, 4)  # seeds, clients
    assert set(found["transfer"]) == set(found["runs"]) - {"own map"}
    assert not np.allclose(found["transfer"]["map"], found["transfer"]["first strategy"])
    assert (tmp_path / "navigation.png").stat().st_size > 10_000
