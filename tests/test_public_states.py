"""States to distil on: which are kept, and the command that makes them."""

import numpy as np
import pytest

from fedjax_rl.cli import main
from fedjax_rl.cli.parse import PublicStatesOptions
from fedjax_rl.config import ConfigError
from fedjax_rl.runs import public_states, visited


def test_equally_many_are_kept_of_each_cluster_one_cluster_after_the_other():
    """Four clouds of unlike sizes in a plane; a third number says the first again and is of no component."""
    rng = np.random.default_rng(0)
    centres, sizes = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [9, 9, 0]], float), (5, 60, 70, 80)
    of = np.repeat(np.arange(4), sizes)
    states = np.float32(centres[of] + rng.normal(size=(len(of), 3)) * [0.3, 0.3, 0.0])
    states[:, 2] = 5.0 * states[:, 0]
    chosen = visited.spread(states, 40, components=2, clusters=4, seed=0)
    assert chosen.shape == (40, 3) and chosen.dtype == np.float32
    cloud = np.linalg.norm((chosen[:, None] - centres)[..., :2], axis=2).argmin(axis=1).reshape(4, 10)
    assert (cloud == cloud[:, :1]).all() and sorted(cloud[:, 0]) == [0, 1, 2, 3]
    known = {tuple(row) for row in states}
    assert all(tuple(row) in known for row in chosen)
    counts = [len(np.unique(block, axis=0)) for block in chosen.reshape(4, 10, 3)]
    assert sorted(counts)[1:] == [10, 10, 10] and min(counts) <= 5  # five states cannot give ten
    np.testing.assert_array_equal(visited.spread(states, 40, 2, 4, 0), chosen)


@pytest.mark.parametrize("states", [np.arange(8.0).reshape(4, 2), np.ones((40, 2))])
def test_more_clusters_than_unlike_states_are_refused_in_one_line(states, recwarn):
    with pytest.raises(ConfigError, match=f"--clusters 9: the {len(states)} visited states are too few, or too alike"):
        visited.spread(states, 9, components=2, clusters=9, seed=0)
    assert not recwarn


def test_the_command_makes_a_file_that_training_reads(tmp_path, capsys):
    small = "--env navigation --hidden 8 --episodes 4 --snapshots 2 --rollouts 2 --states 12 --clusters 3".split()
    assert main(["public-states", *small, "--out", str(tmp_path)]) == 0
    path = capsys.readouterr().out.strip()
    states = np.load(path)
    assert states.shape == (12, 2) and path.endswith(f"navigation-{public_states.digest(states)}.npy")
    assert np.abs(states).max() <= 10.0  # 100 steps of at most .1 from the origin
    clients = [
        "--num-clients",
        "2",
        "--clients-per-round",
        "2",
        "--episodes",
        "2",
        "--local-steps",
        "2",
        "--rounds",
        "1",
    ]
    quick = ["--new-clients", "0", "--adapt-steps", "0", "--loops", "1", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["train", "fedhpd", "--env", "navigation", "--public-states", path, *clients, *quick]) == 0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"states": 11}, "--states 11: must be a multiple of --clusters 5"),
        ({"episodes": 30}, "--episodes 30: must be a multiple of 20"),
        ({"snapshots": 1}, "--snapshots 1: must be an integer, 2 to 1000"),
        ({"clusters": 0}, "--clusters 0: must be an integer, 1 to 1000"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(given, message):
    with pytest.raises(ConfigError, match=message) as error:
        PublicStatesOptions(**given)
    assert "\n" not in str(error.value)
