"""The study of clients that learn values, at the tiny scale."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import common, values

TINY = common.SCALES["tiny"]


def test_arms_take_as_many_steps_and_differ_in_what_is_sent():
    """48 steps of the tiny scale twice, by 5 clients."""
    every = {label: values.members(TINY, label) for label in values.ARMS}
    assert {common.env_steps(c) for some in every.values() for c in some.values()} == {5 * 96}
    assert [len(some) for some in every.values()] == [2] * 4
    full = {label: next(iter(values.members(common.SCALES["laptop"], label).values())) for label in values.ARMS}
    assert {c.rounds * c.local_steps for c in full.values()} == {64 * 2400}
    assert [full[label].aggregate for label in values.ARMS] == ["parameters", "none", "gradients", "parameters"]


def test_gains_are_of_pairs_of_seeds():
    theirs = np.array([[1.0, 3.0], [5.0, 7.0]])
    assert values.gain(theirs + 2.0, theirs) == "+2.0 (+2.0 to +2.0)"
    # differences 0 and 4: standard error 2, and Student's t of one degree of freedom is 12.706
    assert values.gain(theirs + np.array([[0.0], [4.0]]), theirs) == "+2.0 (-23.4 to +27.4)"


def test_no_interval_is_cut_off_by_the_figure(tmp_path, monkeypatch):
    """Returns end at 200, intervals do not; the widest is in the last panel."""
    drawn = []
    monkeypatch.setattr(values, "finish", lambda figure, *_: drawn.append(figure))
    same, wide = np.full((3, 1), 150.0), np.array([[100.0], [200.0], [200.0]])
    values.draw({"alone": {"all": same, "own": same, "unseen": wide}}, tmp_path, "")
    high = wide.mean() + stats.t.ppf(0.975, 2) * wide.std(ddof=1) / np.sqrt(3)
    assert all(ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > high > 290 for ax in drawn[0].axes)


@pytest.mark.nightly
def test_own_and_averaged_models_are_set_side_by_side(tmp_path, capsys):
    values.experiment(TINY, tmp_path, (), ("DQNAvg", "alone"))
    found = json.loads((tmp_path / "values.json").read_text())
    assert set(found) == {"DQNAvg", "alone"} and all(len(x) == 2 for of in found.values() for x in of.values())
    assert (tmp_path / "values.png").stat().st_size > 10_000
    assert "| DQNAvg |" in (tmp_path / "values.md").read_text()
    assert 5 < np.mean(found["DQNAvg"]["own"]) < 200
