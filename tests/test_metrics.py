"""Statistics against SciPy, and the table."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fedjax_rl import statistics


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 9, 10, 30, 99, 199, 1000])
@pytest.mark.parametrize("p", [0.025, 0.5, 0.9, 0.975, 0.999])
def test_t_quantile_solves_its_distribution_function(p, dof):
    t = statistics.t_quantile(p, dof)
    x = np.linspace(0.0, t, 20_001)
    density = np.exp(math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)) / math.sqrt(dof * math.pi)
    density = density * (1 + x * x / dof) ** (-(dof + 1) / 2)
    assert 0.5 + np.trapezoid(density, x) == pytest.approx(p, abs=1e-5)


def test_t_quantile_of_few_and_of_a_million():
    """One degree of freedom: tan(pi (p - 1/2)); two: (2p - 1) / sqrt(2 p (1 - p)); very many: the normal's."""
    assert statistics.t_quantile(0.975, 1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-12)
    assert statistics.t_quantile(0.975, 2) == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025), rel=1e-12)
    assert statistics.t_quantile(0.975, 10**6) == pytest.approx(1.959963985, rel=1e-5)


def test_interval_of_five_seeds_uses_2_776():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    mean, half = statistics.mean_ci95(values)
    assert mean == 3.0
    assert half == pytest.approx(2.7764451 * np.std(values, ddof=1) / np.sqrt(5), rel=1e-7)


def test_one_client_has_no_interval():
    assert statistics.mean_ci95([4.0]) == (4.0, None)
    assert "4.0 ± -" in statistics.table({"one": statistics.summarise([[4.0]])})


def test_summary_is_column_by_column():
    rows = np.random.default_rng(0).normal(size=(7, 4))
    summary = statistics.summarise(rows.tolist())
    np.testing.assert_allclose(summary["mean"], rows.mean(0), rtol=1e-12)
    low, high = stats.t.interval(0.95, 6, loc=rows.mean(0), scale=stats.sem(rows))
    np.testing.assert_allclose(summary["ci95"], (high - low) / 2, rtol=1e-9)
    assert summary["num_clients"] == 7


def test_names_and_table():
    summary = statistics.summarise([[0.0, 10.0], [2.0, 10.0]])
    named = statistics.named("eval", summary)
    assert list(named) == ["eval/return/adapt_0", "eval/return/adapt_1"]
    assert named["eval/return/adapt_1"] == {"mean": 10.0, "ci95": 0.0, "num_clients": 2}
    lines = statistics.table({"all clients": summary}).splitlines()
    assert lines[0].split() == ["return", "clients", "before", "1", "step"]
    assert lines[1].split() == ["all", "clients", "2", "1.0", "±", "12.7", "10.0", "±", "0.0"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 7), (5, 20), (2, 5)])
def test_iqm_is_scipys_trimmed_mean(shape):
    scores = np.random.default_rng(1).normal(size=shape) ** 3
    assert statistics.iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None), rel=1e-12)


def test_worst_tenth_rounds_up_and_is_of_each_seed():
    scores = np.array([np.arange(11.0), 100 + np.arange(11.0)[::-1]])
    np.testing.assert_array_equal(statistics.worst_tenth(scores), [0.5, 100.5])  # ceil(1.1) = 2 clients
    np.testing.assert_array_equal(statistics.worst_tenth(scores[:, :10]), [0.0, 101.0])


def test_probability_of_improvement_by_enumeration():
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 4, (3, 6)), rng.integers(0, 3, (3, 6))  # few values, so that many tie
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(x.flat, y.flat, strict=True)]
    assert 0.5 in points
    assert statistics.improvement(x - y) == pytest.approx(np.mean(points), rel=1e-12)
    assert statistics.improvement(x - y) + statistics.improvement(y - x) == pytest.approx(1.0)
    tasks = rng.normal(scale=100, size=(3, 6))
    assert statistics.improvement((tasks + 1) - tasks) == 1.0  # better on every task, however much the tasks differ


def exact_interval(statistic, scores):
    """The 2.5 % and 97.5 % quantiles over every possible resample of whole seeds."""
    drawn = [scores[list(ids)] for ids in itertools.product(range(len(scores)), repeat=len(scores))]
    return np.quantile([statistic(table) for table in drawn], (0.025, 0.975), method="inverted_cdf")


def test_bootstrap_of_an_enumerable_case():
    """Two seeds, four resamples: the interval's ends are atoms well apart from their neighbours."""
    scores = np.array([[0.0, 0.0, 0.0], [1.0, 4.0, 16.0]])
    want = exact_interval(np.mean, scores)
    np.testing.assert_allclose(want, [0, 7])  # clients drawn one by one would give 0.5 / 3 and 20.5 / 3
    assert statistics.bootstrap_ci95(np.mean, scores) == pytest.approx(tuple(want))


def test_short_numbers_name_the_same_float32():
    values = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32) * 1e3
    values[0, 0], values[1, 1] = np.nan, 0.1
    short = statistics.short(values)
    np.testing.assert_array_equal(np.float32(short), values)
    assert short[1][1] == 0.1 and max(len(repr(x)) for row in short for x in row) <= 12


def test_whole_numbers_stay_whole():
    """A client's id has more digits than float32 holds."""
    assert statistics.short(np.array([2**24 + 1, -1], np.int32)) == [16777217, -1]
