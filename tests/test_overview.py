"""What `ls` and `show` say of finished, interrupted, diverged and damaged runs."""

import json

import pytest

import fedjax_rl as fr
from fedjax_rl import cli, config
from fedjax_rl.runs import rundir

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
    assert {"rounds: 2", "of: 2"} <= {*out.splitlines()}
    assert cli.main(["show", "runs/a", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"]["env"] == "navigation" and [e["round"] for e in shown["evaluations"]] == [1, 2]
    run.resume(rounds=3, quiet=True)
    assert cli.main(["ls", "nowhere"]) == 2
    assert "nowhere is not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metrics", "eval"])
def test_a_damaged_record_is_named_and_nothing_older_is_shown(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rundir.create(tmp_path / "a", config.build("fedavg", {"env": "navigation"}))
    path = tmp_path / "a" / f"{name}.jsonl"
    times = {"sys/round_s": 1.0, "sys/env_steps_per_s": 1.0}
    row = times if name == "metrics" else {"final": True, "eval/returns": [[1.0]]}
    for number in (1, 2):
        rundir.append(path, {"round": number, **row})
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([first, second.replace("1.0", "3.0"), ""]))
    fault = f"{name}.jsonl line 2: is not what was written, by its crc32"
    assert cli.main(["ls", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"].startswith(fault)
    assert cli.main(["show", "a"]) == (2 if name == "eval" else 0)
    assert fault in "".join(capsys.readouterr())
    if name == "eval":
        with pytest.raises(fr.ConfigError, match=fault):
            _ = fr.load("a").returns
