"""What `ls` and `show` say of finished, interrupted, diverged and damaged runs."""

import json

import pytest

import fedjax_rl as fr
from fedjax_rl import cli

SMALL = {"preset": "tiny", "hidden": [4], "new_clients": 2, "adapt_steps": 1, "quiet": True}


def test_ls_and_show_say_what_there_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = fr.train("fedavg", "navigation", out="runs/a", **SMALL)
    for name in ("b", "c", "d"):
        (tmp_path / "runs" / name).mkdir()
    text = (run.path / "config.toml").read_text()
    for name in ("b", "d"):
        (tmp_path / "runs" / name / "config.toml").write_text(text)
    (tmp_path / "runs/d/diverged.json").write_text('{"round": 1}\n')
    (tmp_path / "runs/c/config.toml").write_text(text.replace("rounds = 2", "rounds = x"))
    assert cli.main(["ls", "--json"]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert [rows[f"runs/{name}"]["state"] for name in "abd"] == ["finished", "not begun", "diverged"]
    assert "is not TOML" in rows["runs/c"]["state"]
    assert rows["runs/a"]["after_1"] == pytest.approx(run.returns["eval"][:, 1].mean())
    assert cli.main(["ls"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == "run algorithm env seed rounds of after_1 state".split() and len(out) == 5
    assert cli.main(["show", "runs/a"]) == 0
    out = capsys.readouterr().out
    assert "checkpoints: 1, 2" in out and "  server_lr = 0.0015" in out and f"{rows['runs/a']['after_1']:.1f}" in out
    assert cli.main(["show", "runs/a", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"]["env"] == "navigation" and [e["round"] for e in shown["evaluations"]] == [1, 2]
    run.resume(rounds=3, quiet=True)
    assert cli.main(["ls", "nowhere"]) == 2
    assert "nowhere is not a directory" in capsys.readouterr().err
