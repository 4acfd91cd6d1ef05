"""Statistics against SciPy, and the table."""

import numpy as np
import pytest
from scipy import stats

from fedjax_rl import metrics


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 9, 10, 30, 99, 199, 1000])
@pytest.mark.parametrize("p", [0.025, 0.5, 0.9, 0.975, 0.999])
def test_t_quantile_is_scipys(p, dof):
    assert metrics.t_quantile(p, dof) == pytest.approx(stats.t.ppf(p, dof), rel=1e-9, abs=1e-12)


def test_interval_of_five_seeds_uses_2_776():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    mean, half = metrics.mean_ci95(values)
    assert mean == 3.0
    assert half == pytest.approx(2.7764451 * np.std(values, ddof=1) / np.sqrt(5), rel=1e-7)


def test_one_client_has_no_interval():
    assert metrics.mean_ci95([4.0]) == (4.0, 0.0)


def test_summary_is_column_by_column():
    rows = np.random.default_rng(0).normal(size=(7, 4))
    summary = metrics.summarise(rows.tolist())
    np.testing.assert_allclose(summary["mean"], rows.mean(0), rtol=1e-12)
    low, high = stats.t.interval(0.95, 6, loc=rows.mean(0), scale=stats.sem(rows))
    np.testing.assert_allclose(summary["ci95"], (high - low) / 2, rtol=1e-9)
    assert summary["num_clients"] == 7


def test_names_and_table():
    summary = metrics.summarise([[0.0, 10.0], [2.0, 10.0]])
    named = metrics.named("eval", summary)
    assert list(named) == ["eval/return/adapt_0", "eval/return/adapt_1"]
    assert named["eval/return/adapt_1"] == {"mean": 10.0, "ci95": 0.0, "num_clients": 2}
    lines = metrics.table({"all clients": summary}).splitlines()
    assert lines[0].split() == ["return", "clients", "before", "1", "step"]
    assert lines[1].split() == ["all", "clients", "2", "1.0", "±", "12.7", "10.0", "±", "0.0"]
