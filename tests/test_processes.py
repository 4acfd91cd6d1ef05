"""Two processes that differ, or of which one is missing or killed; faults/processes.py has all ways and phases."""

import pytest

from faults import processes
from faults.outcome import REFUSED
from fedjax_rl.host import agreement


def assert_refused(cases):
    """Every case is; and there is one, or nothing would be looked at."""
    ends = [(case.end, str(case)) for case in cases]
    assert ends and all(end == REFUSED for end, _ in ends), ends


def test_what_differs_is_named_in_both_and_nothing_is_written(tmp_path):
    assert_refused(processes.differing(tmp_path, ("option", "variable")))


def test_a_missing_process_is_given_up_after_the_bound(tmp_path):
    train = (*processes.TRAIN, "--out", str(tmp_path / "run"), "--join-timeout", "2")
    pair = processes.Pair(tmp_path, train, None)
    assert_refused([pair.case("missing", "process 1", 6, ["process 1 of 2 did not come to localhost:"])])
    assert "process 0 of 2: waiting for process 1 at localhost:" in pair.said(0)
    assert not (tmp_path / "run").exists()


def test_a_killed_process_ends_the_other_and_both_resume_to_the_same_bits(tmp_path):
    assert_refused(processes.killed(tmp_path, ["a round"], [1]))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ([[["seed", 1]], [["seed", 1]]], ""),
        ([[["a", 1], ["b", 2]], [["a", 1], ["b", 2]], [["a", 1], ["b", 3]]], "processes 0 and 2 differ in b: 2 and 3"),
        ([[["a", 1]], [["a", 1], ["b", 2]]], "processes 0 and 1 differ in b: None and 2"),
    ],
)
def test_the_first_difference_is_named_with_its_processes(facts, said):
    assert agreement.difference(facts) == said
