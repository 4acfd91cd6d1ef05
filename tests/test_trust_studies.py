"""The studies of liars, bytes, privacy and FedPG-BR, at the tiny scale and with few of their lines."""

import json

import numpy as np
import pytest

from experiments import attacks, bytes, common, fedpg_br, privacy
from fedjax_rl import load
from fedjax_rl.runs import rundir

nightly = pytest.mark.nightly
TINY = common.SCALES["tiny"]


@pytest.mark.parametrize("scale", ["tiny", "laptop"])
def test_every_line_of_the_studies_is_legal(scale, monkeypatch):
    """Nothing is run: all configurations, which each check what they are given."""
    monkeypatch.setattr(privacy.privacy, "with_noise", lambda c, _: c)  # how much noise takes a search
    studies = {attacks.cells: attacks, bytes.lines: bytes, privacy.lines: privacy, fedpg_br.lines: fedpg_br}
    for study, module in studies.items():
        for part in module.PARTS:
            assert study(common.SCALES[scale], part)


def test_trajectories_of_an_agent_are_those_of_all_and_the_server():
    """As the authors' code counts: 60 rounds of 16 episodes and 300 steps of 4; alone the agent is the server."""
    every = fedpg_br.lines(common.SCALES["laptop"], "clean")["nobody lies"]
    ten, alone = (next(iter(every[label].values())) for label in ("ten, filter", "alone"))
    assert fedpg_br.trajectories(ten, 60, 300) == (10 * 60 * 16 + 300 * 4) / 11
    assert fedpg_br.trajectories(alone, 60, 300) == 60 * 16 + 300 * 4


def test_lines_of_the_table_are_read_where_the_published_curve_was():
    seen = fedpg_br.Looks(np.array([[800.0, 1000.0], [850.0, 950.0]]), np.array([[300.0, 400.0], [310.0, 410.0]]))
    assert seen.at(900) == [350.0, 360.0]
    short = seen._replace(trajectories=np.array([[800.0, 899.0], [850.0, 950.0]]))
    rows = fedpg_br.table({"nobody lies": {"ten, filter": seen, "ten, mean": short}}, "a note", "clean")
    assert "| nobody lies | ten, filter | 900 | 355.0 ± 63.5 | 500 | 975 | 405.0 ± 63.5 |" in rows  # 12.706 x 5
    assert "| nobody lies | ten, mean | 900 | - | - | 924 | 405.0 ± 63.5 |" in rows


def test_no_band_is_cut_off_by_the_figure(tmp_path, monkeypatch):
    """Of returns up to 500: their interval ends above 600, and below 0."""
    drawn = []
    monkeypatch.setattr(fedpg_br, "finish", lambda figure, *_: drawn.append(figure))
    seen = fedpg_br.Looks(np.ones((3, 2)) * [1, 2], np.array([[0.0, 500.0], [100.0, 500.0], [0.0, 100.0]]))
    fedpg_br.draw({"nobody lies": {"ten, mean": seen}}, tmp_path, "")
    low, high = drawn[0].axes[0].get_ylim()
    assert low < 33.3 - 143.4 and high > 366.7 + 573.7  # 4.303 x 57.7 / sqrt(3), and x 230.9 / sqrt(3)


def test_what_a_step_makes_of_an_attack_is_a_difference_of_costs():
    """Two seeds: 10 and 12 lost before the step and 1 and 2 after it under one rule, nothing under the other."""
    of = lambda before, new: {"before": before, "new": new}
    honest = of([-10.0, -12.0], [-5.0, -6.0])
    found = {
        "mean": {"none": honest, "a lie": of([-90.0, -90.0], [-90.0, -90.0])},  # is left out
        "median": {"none": honest, "a lie": of([-20.0, -24.0], [-6.0, -8.0])},
        "geomed": {"none": honest, "a lie": honest},
    }
    assert attacks.costs(found)[2] == "| a lie | 5.5 ± 6.4 | 0.8 ± 3.2 | -4.8 ± 3.2 |"  # 12.706 x .5, .25

    # seed 0 diverged under the lie: nothing else is taken for its partner, and no mean is of the seeds that are left
    half = {**found, "median": {"none": honest, "a lie": of([None, -24.0], [None, -8.0])}}
    assert attacks.costs(half)[2] == "| a lie | diverged | diverged | diverged |"
    assert attacks.table(half, "new")[-2:] == ["| geomed | -5.5 ± 6.4 | -5.5 ± 6.4 |", ""]
    assert "| median | -5.5 ± 6.4 | diverged |" in attacks.table(half, "new")


def test_what_diverged_keeps_its_place_among_the_seeds(tmp_path):
    some = next(iter(attacks.cells(TINY, "sgd")["mean"].values()))
    name = list(some)[1]
    (tmp_path / name).mkdir(parents=True)
    row = {"round": some[name].rounds, "final": True, "eval/returns": [[1.0, 3.0]], "eval_new/returns": [[5.0, 7.0]]}
    rundir.append(tmp_path / name / rundir.EVAL, row)
    assert attacks.figures(tmp_path, some) == {
        "honest": [None, 3.0],
        "new": [None, 7.0],
        "before": [None, 5.0],
        "distance": [None, 0.0],
    }


@nightly
def test_rules_are_set_against_attacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attacks, "RULES", ("mean", "geomed"))
    monkeypatch.setattr(attacks, "ATTACKS", {name: attacks.ATTACKS[name] for name in ("none", "boost 10")})
    attacks.experiment(TINY, tmp_path, (), ("sgd",))
    found = json.loads((tmp_path / "sgd.json").read_text())
    assert {rule: [*row] for rule, row in found.items()} == {rule: ["none", "boost 10"] for rule in ("mean", "geomed")}
    assert max(found["mean"]["none"]["distance"]) == 0  # nobody lies, and nothing is recorded
    assert min(found["mean"]["boost 10"]["distance"]) > 5 * max(found["geomed"]["boost 10"]["distance"])
    assert (tmp_path / "sgd.png").stat().st_size > 10_000 and "| geomed |" in (tmp_path / "sgd.md").read_text()


@nightly
def test_returns_are_set_against_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bytes, "WAYS", {name: bytes.WAYS[name] for name in ("all", "top_k 10 %")})
    bytes.experiment(TINY, tmp_path, (), ("navigation",))
    found = json.loads((tmp_path / "navigation.json").read_text())
    assert found["all"]["message"] / found["top_k 10 %"]["message"] == pytest.approx(10 * 32 / 40, rel=0.1)
    assert (tmp_path / "navigation.png").stat().st_size > 10_000


@nightly
def test_returns_are_set_against_epsilon(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(privacy, "WAYS", {"200, poisson": privacy.WAYS["200, poisson"]})
    privacy.experiment(TINY, tmp_path, (), ("sgd",))
    found = json.loads((tmp_path / "privacy.json").read_text())["sgd"]["200, poisson"]
    noises = [found["noise"][str(epsilon)] for epsilon in privacy.EPSILONS]
    assert sorted(noises, reverse=True) == noises and [len(seeds) for seeds in found["after"].values()] == [2] * 5
    assert (tmp_path / "privacy.png").stat().st_size > 10_000


def gymnasium_return(policy, episodes=60):
    """Mean return of a policy's likeliest actions in Gymnasium's CartPole."""
    env = pytest.importorskip("gymnasium").make("CartPole-v1")
    lengths = []
    for seed in range(episodes):
        obs, over, length = env.reset(seed=seed)[0], False, 0
        while not over:
            obs, _, ended, cut, _ = env.step(int(policy(obs)[0]))
            over, length = ended or cut, length + 1
        lengths.append(length)
    return np.mean(lengths)


@nightly
def test_returns_of_greedy_episodes_are_set_against_trajectories(tmp_path, monkeypatch, capsys):
    lines = {"ten, filter": fedpg_br.FILTER, "alone": fedpg_br.ALONE}
    monkeypatch.setattr(fedpg_br, "LINES", {"clean": {"nobody lies": lines}})
    fedpg_br.experiment(TINY, tmp_path, (), ("clean",))
    found = json.loads((tmp_path / "clean.json").read_text())["nobody lies"]
    for label, agents in (("ten, filter", 10), ("alone", 1)):
        spent = np.array(found[label]["trajectories"]) * (agents + 1 if agents > 1 else 1)
        steps = (spent - agents * 2 * np.array([1, 2])) / 2  # two episodes a round and agent, and a step
        assert steps.shape == (2, 2) and (steps >= [1, 2]).all() and (np.diff(steps) >= 1).all()
        np.testing.assert_allclose(steps, steps.round(), atol=1e-9)
        for seed in range(2):
            policy = load(tmp_path / "clean/nobody-lies" / common.slug(label) / f"seed{seed}").policy(0, adapt_steps=0)
            assert abs(gymnasium_return(policy) - found[label]["returns"][seed][-1]) < 2  # sampled actions: some 20
    assert (tmp_path / "clean.png").stat().st_size > 10_000
