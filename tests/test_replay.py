"""What a run writes down of a client whose numbers ceased to be finite, and what its replay says."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from fedjax_rl.cli import main
from fedjax_rl.config import build
from fedjax_rl.config.presets import preset
from fedjax_rl.host import files
from fedjax_rl.runs import nan_dump, records, rundir
from fedjax_rl.runs.assemble import initial_state, make_run

SMALL = {"env": "probe/delayed", "hidden": (4,), "episodes": 1, "new_clients": 0, "adapt_steps": 0, "nan_dump": 1}


def killed(descriptor):
    """os.fsync of a process that does not live to see its file on the disk."""
    raise KeyboardInterrupt


def test_a_replay_is_the_clients_part_of_the_round(tmp_path, monkeypatch):
    config = build("ditto", preset("tiny", "ditto"), {**SMALL, "local_steps": 1})
    run = make_run(config)
    state = initial_state(run)
    ids, *rows = run.simulation.cohort(state)
    work = jax.jit(run.simulation.work)(*jax.tree.map(lambda x: x[2], rows))
    path = nan_dump.dump(run, config, state, int(ids[2]), tmp_path)
    assert nan_dump.dump(run, config, state, int(ids[3]), tmp_path) is None  # one was asked for
    monkeypatch.setattr(files.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):  # what is left of one that was killed is not counted, and hinders nobody
        nan_dump.dump(run, replace(config, nan_dump=2), state, int(ids[3]), tmp_path)
    monkeypatch.undo()
    assert nan_dump.dump(run, replace(config, nan_dump=2), state, int(ids[3]), tmp_path).exists()
    said = nan_dump.replay(path).splitlines()
    assert said[0] == f"client {ids[2]} in round 1: ditto on probe/delayed"
    assert "no operation gives a NaN" in said
    largest = max(np.abs(x).max() for x in jax.tree.leaves(work[0].message))
    line = next(line for line in said if line.startswith("message"))
    assert "0 not finite" in line
    np.testing.assert_allclose(float(line.split()[-1]), largest, rtol=1e-3)
    returned = next(line for line in said if line.startswith("return/adapt_0"))
    np.testing.assert_allclose(float(returned.split()[-1]), work[2]["return/adapt_0"], rtol=1e-4)


def test_the_line_that_gave_the_first_nan_is_named(tmp_path, capsys):
    """A standard deviation of exp(1e4): 0 times infinity in the density."""
    config = build("fedavg", preset("tiny", "fedavg"), SMALL)
    run = make_run(config)
    state = initial_state(run)
    wild = {**state.server.shared, "log_std": state.server.shared["log_std"] + 1e4}
    state = state._replace(server=state.server._replace(shared=wild), round=state.round + 6)
    client = int(run.simulation.cohort(state)[0][0])
    path = nan_dump.dump(run, config, state, client, tmp_path)
    assert main(["replay", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"client {client} in round 7: fedavg on probe/delayed" in said
    assert "first NaN: invalid value (nan)" in said and "distributions.py" in said


def test_a_run_writes_down_who_was_not_finite(tmp_path, capsys):
    """Steps of rate 100, without a clip, blow up log_std."""
    out = tmp_path / "run"
    line = (
        "train fedavg --preset tiny --env navigation --hidden 4 --episodes 1 --new-clients 0 --adapt-steps 0 --rounds 4"
    )
    line += " --server sgd --server-lr 1000 --local-lr 100 --max-change-norm 0 --nan-dump 1 --quiet"
    assert main([*line.split(), "--out", str(out)]) in (0, 3)
    [path] = (out / nan_dump.DUMPS).iterdir()
    assert f"fedjax-rl replay {path}" in capsys.readouterr().err
    number, client = path.stem.removeprefix("round").split("-client")
    record = records.sound(out / rundir.METRICS)[int(number) - 1]
    assert record["health/suspect"] == int(client)
    assert record["health/nonfinite_clients"] > 0


@pytest.mark.parametrize(("name", "what"), [("config.toml", "is not a dump"), ("none.npz", "does not exist")])
def test_what_is_no_dump_is_refused(name, what, tmp_path, capsys):
    (tmp_path / "config.toml").write_text("schema = 1")
    assert main(["replay", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1
