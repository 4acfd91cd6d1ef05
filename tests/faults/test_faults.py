"""The fault suite with small counts; `python tests/faults` runs it with the full ones, and what other tests cover."""

import pytest

from faults import damage, ends, paths, streams, suite
from faults.outcome import REFUSED, SURVIVED


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def good(cases) -> int:
    """All survived or refused; how many there were."""
    cases = list(cases)
    assert [str(case) for case in cases if case.end not in (SURVIVED, REFUSED)] == []
    return len(cases)


def test_runs_killed_starved_repeated_and_configured_impossibly(home):
    assert good(suite.cases(home / "runs", 2)) > 60


def test_damaged_files(home):
    assert good(damage.cases(home / "damage", 40, ("run",))) == 40


def test_names_and_places_of_directories(home):
    assert good(paths.cases(home / "paths", 25)) == 25


def test_signals(home):
    assert good(ends.cases(home / "ends", 3)) == 3


def test_streams(home):
    assert good(streams.cases(home / "streams", 6, ("train", "eval", "list", "--help"))) == 6
