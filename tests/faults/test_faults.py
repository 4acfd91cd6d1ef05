"""The fault suite with small counts; `python tests/faults` runs it with the full ones, and what other tests cover."""

import pytest

from faults import suite


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(autouse=True)
def cache(home, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(home / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def test_killed_runs_resume_to_the_same_bits(home):
    assert suite.kills(home, 2) == (2, 2, 0)


def test_no_corruption_is_silent(home):
    tried, survived, lost = suite.corruptions(home, 2)
    assert (survived, lost) == (tried, 0)
    assert tried > 20


def test_one_seed_is_one_run(home):
    assert suite.repeated(home) == (1, 1, 0)


def test_a_full_disk_leaves_the_older_steps(home):
    assert suite.full_disk(home) == (1, 1, 0)


def test_forty_invalid_configurations_are_refused(home):
    outcome, _ = suite.invalid(home)
    assert outcome == (40, 40, 0)
