"""The studies of liars, bytes and privacy, at the tiny scale and with few of their lines."""

import json

import pytest

from experiments import attacks, bytes, common, privacy

nightly = pytest.mark.nightly
TINY = common.SCALES["tiny"]


@pytest.mark.parametrize("scale", ["tiny", "laptop"])
def test_every_line_of_the_studies_is_legal(scale, monkeypatch):
    """Nothing is run: all configurations, which each check what they are given."""
    monkeypatch.setattr(privacy.privacy, "with_noise", lambda c, _: c)  # how much noise takes a search
    for study, parts in ((attacks.cells, attacks.PARTS), (bytes.lines, bytes.PARTS), (privacy.lines, privacy.PARTS)):
        for part in parts:
            assert study(common.SCALES[scale], part)


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
