"""The comparison with FedHPD's published table: its arithmetic, runs at the tiny scale, its figures (nightly)."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from experiments import fedhpd, reuse
from experiments.common import SCALES


def test_the_table_compares_in_joint_standard_errors_and_pairs_the_gains():
    rng = np.random.default_rng(0)
    alone = 300.0 + rng.normal(size=(5, 1)) + np.zeros((5, 200))
    gain = np.array([10.0, 20.0, 30.0, 40.0, 50.0])[:, None]
    returns = {"NoFed": alone, "placebo d=5": alone + gain / 4, "d=5 shared": alone + gain, "d=80 own": alone - gain}
    lines = fedhpd.table(returns, fedhpd.PUBLISHED[fedhpd.CARTPOLE], "a note")
    assert lines[2] == "a note"
    row = next(line for line in lines if line.startswith("| d=5 shared")).split(" | ")
    last = (alone + gain)[:, 0]
    error = np.sqrt(last.var(ddof=1) / 5 + 20.3**2 / 5)
    assert row[1] == f"{last.mean():.1f} ± {last.std(ddof=1):.1f}"
    assert row[2] == f"455.5 ± 20.3 ({(last.mean() - 455.5) / error:+.1f} s.e.)"
    assert row[-1] == "+30.0 ± 19.6 |"  # 2.776 sqrt(250 / 5)
    assert next(line for line in lines if line.startswith("| d=80 own")).split(" | ")[1:3] == ["-", "-"]
    assert lines[-2].endswith("in the AUC: 25% (25% to 25%).")  # every pair has the same share


def test_a_share_has_an_interval_over_its_seeds():
    part, whole = np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 4.0, 4.0, 4.0])
    assert fedhpd.share(part, whole) == "62% (11% to 114%)"  # 2.5 +- 3.182 sqrt(5 / 3 / 4), over 4
    part, whole = np.array([30.0, -12.0, 61.0, 44.0, 5.0]), np.array([80.0, 95.0, 101.0, 62.0, 70.0])
    _, low, high = (float(number.strip("(%)")) / 100 for number in fedhpd.share(part, whole).replace("to", "").split())
    for edge in (low, high):  # a t-test is about to reject it
        assert ttest_1samp(part - edge * whole, 0).pvalue == pytest.approx(0.05, abs=0.002)
    assert low < part.mean() / whole.mean() < high
    assert fedhpd.share(part, whole - 80).endswith("(no bounded interval)")


@pytest.mark.nightly  # kinds and distilling have their own tests; this is the study's own reading of such runs
def test_returns_of_rounds_stand_for_their_episodes(tmp_path):
    tiny = SCALES["tiny"]
    values = {**fedhpd.arms(80, "", ("NoFed",))["NoFed"], "kinds": "1x4:relu:0.001,9x3:tanh:0.001"}
    some = fedhpd.members(tiny, fedhpd.CARTPOLE, values, "NoFed")
    some = {name: replace(c, rounds=3, local_steps=2) for name, c in some.items()}
    fedhpd.run(tiny, some, tmp_path)
    found = fedhpd.episodes(tmp_path, some)
    assert found.shape == (2, 6)
    np.testing.assert_array_equal(found[:, ::2], found[:, 1::2])
    assert (found > 5).all() and not np.array_equal(found[0], found[1])
    one, other = (replace(next(iter(some.values())), public_states=path) for path in ("a/x-1.npy", "b/x-1.npy"))
    assert reuse.training(one) == reuse.training(other)  # the file's name says its content
    assert reuse.training(one) != reuse.training(replace(one, public_states="a/x-2.npy"))


@pytest.mark.nightly
def test_alone_and_distilling_agents_reach_the_published_areas(tmp_path):
    fedhpd.experiment(SCALES["laptop"], tmp_path, (fedhpd.CARTPOLE,), ("NoFed", "d=5"))
    scores = fedhpd.json.loads((tmp_path / "fedhpd.json").read_text())
    alone, distilling = (np.array(scores[label]["auc"]) for label in ("NoFed", "d=5 shared"))
    assert abs(alone.mean() - 256.9) < 25
    assert (distilling - alone).mean() > 50
