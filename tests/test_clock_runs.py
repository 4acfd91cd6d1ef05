"""Runs on a clock: resumed, swept, ended by their time, replayed, reported."""

import json
import os
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rl as fr
from fedjax_rl import config
from fedjax_rl.cli import main
from fedjax_rl.host import signals
from fedjax_rl.reports import finished
from fedjax_rl.runs import assemble, checkpoint, loop, nan_dump, records, rundir, runner, timing
from fedjax_rl.runs.progress import Reporter
from test_train import SMALL, assert_same_run, final_hash, go, resume, untimed

CLOCK = {"num_clients": 6, "in_flight": 4, "schedule": "async", "buffer": 2, "clients_per_round": 4, "speed": "uniform"}
LATE = replace(SMALL, eval_every=0, **CLOCK, delay_noise="shifted", staleness="polynomial", dropout=0.2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert go(LATE, directory) == 0
    return directory


def test_six_rounds_are_three_and_three_resumed(whole, tmp_path):
    assert go(replace(LATE, rounds=3), tmp_path / "run") == 0
    assert resume(tmp_path / "run", rounds=6) == 0
    assert_same_run(tmp_path / "run", whole)


def test_steps_and_participants_are_those_of_the_arrivals(whole):
    rows, said = records.sound(whole / rundir.METRICS), records.sound(whole / rundir.PARTICIPANTS)
    horizon = assemble.make_run(LATE).env.spec.horizon
    arrived = np.cumsum([len(row["selected"]) for row in said])
    assert [row["clock/arrivals"] for row in rows] == arrived.tolist()
    assert [row["env_steps"] for row in rows] == (arrived * 2 * LATE.episodes * horizon).tolist()
    heard = [len(row["selected"]) - len(row["unheard"]) for row in said]
    assert [row["comm/uploads"] for row in rows] == heard and sum(heard) < arrived[-1]
    assert all(np.diff([row["clock/time"] for row in rows]) > 0)
    assert {0, 1, 2, 3, 4, 5} == {client for row in said for client in row["selected"]}


@pytest.mark.nightly
def test_members_of_a_sweep_have_a_clock_each():
    """Seeds and ratios differ, and with them who arrives: each is what it is alone."""
    configs = [replace(LATE, seed=seed, speed_ratio=ratio, dropout=0.0) for seed, ratio in ((0, 2.0), (1, 9.0))]
    group = assemble.make_group(configs)
    states, alive = assemble.initial_states(group), jnp.ones(2, bool)
    step = jax.jit(lambda *args: assemble.round_of(group, *args))
    for _ in range(3):
        states, alive, metrics = step(states, alive, group.values)
    for i, c in enumerate(configs):
        run = assemble.make_run(c)
        state, solo = assemble.initial_state(run), jax.jit(run.simulation.round)
        for _ in range(3):
            state, alone = solo(state)
        assert metrics["clock/time"][i] == alone["clock/time"]
        assert metrics["who/selected"][i].tolist() == alone["who/selected"].tolist()
        for a, b in zip(jax.tree.leaves(loop.state_of(states, i).server), jax.tree.leaves(state.server), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert metrics["clock/time"][0] != metrics["clock/time"][1]


def test_a_run_ends_at_its_time_is_evaluated_and_finished(tmp_path, capsys):
    timed = replace(LATE, rounds=500, max_time=6.0)
    assert go(timed, tmp_path / "run") == 0
    rows = records.sound(tmp_path / "run" / rundir.METRICS)
    assert rows[-1]["clock/time"] >= 6.0 > rows[-2]["clock/time"]
    assert runner.is_settled(tmp_path / "run", timed)
    assert main(["ls", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert said[0]["state"] == "finished" and said[0]["rounds"] == len(rows) < 500
    before = final_hash(tmp_path / "run")
    assert resume(tmp_path / "run") == 0
    assert final_hash(tmp_path / "run") == before


def test_a_member_ends_at_its_own_time(tmp_path, monkeypatch):
    """The slower clients are, the fewer rounds: whoever is over waits for the others as it is, and is evaluated.

    So it does in a sweep that was interrupted after its end.
    """
    timed = replace(LATE, rounds=500, max_time=14.0, dropout=0.0, save_every=1, new_clients=0)
    some = {tmp_path / f"{ratio}": replace(timed, speed_ratio=ratio) for ratio in (2.0, 9.0)}
    assert len(runner.together(some)) == 1
    runner.run_members(some, Reporter(quiet=True))
    rounds = []
    for path in some:
        rows = records.sound(path / rundir.METRICS)
        assert rows[-1]["clock/time"] >= 14.0 > rows[-2]["clock/time"]
        [final] = records.sound(path / rundir.EVAL)
        assert final["round"] == len(rows) == final_hash(path)[0]
        np.testing.assert_allclose(fr.load(path).evaluate(), final["eval/returns"], rtol=1e-4)
        rounds.append(len(rows))
    assert rounds[0] != rounds[1]
    late = max(some, key=lambda path: len(records.sound(path / rundir.METRICS)))
    append, again = rundir.append, {tmp_path / "again" / path.name: config for path, config in some.items()}

    def end(path, record, **options):
        append(path, record, **options)
        if path == tmp_path / "again" / late.name / rundir.METRICS and record["round"] == max(rounds) - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(rundir, "append", end)
    with pytest.raises(signals.Interrupted):
        runner.run_members(again, Reporter(quiet=True))
    monkeypatch.undo()
    assert len({checkpoint.steps(path / rundir.CHECKPOINTS)[0] for path in again}) == 2
    packed, compile_members = [], runner.compile_members

    def counting(group, reporter):
        packed.append(len(group.configs))
        return compile_members(group, reporter)

    monkeypatch.setattr(runner, "compile_members", counting)
    runner.run_members(again, Reporter(quiet=True))
    assert packed == [2]
    for path, same in zip(some, again, strict=True):
        assert_same_run(path, same)
        assert untimed(path / rundir.EVAL) == untimed(same / rundir.EVAL)


def test_while_nobody_has_worked_the_time_that_is_left_follows_from_the_rounds(capsys):
    reporter = Reporter(quiet=False)
    reporter.start(0, 4, max_time=60.0)
    for number, (clock, left) in enumerate([(0.0, "3.0"), (40.0, "1.0")], start=1):  # of 60 units, 20 a round
        reporter.last = -np.inf
        reporter.round([{"round": number, "clock/time": clock, "sys/round_s": 60.0, "sys/env_steps_per_s": 0.0}])
        assert f"time {clock:.1f} ({left} min left)" in capsys.readouterr().err


@pytest.mark.nightly
def test_what_a_late_client_was_sent_is_what_is_replayed(tmp_path):
    run = assemble.make_run(replace(LATE, nan_dump=1))
    state, step = assemble.initial_state(run), jax.jit(run.simulation.round)
    for _ in range(3):
        state, _ = step(state)
    ids, *rows = run.simulation.cohort(state)
    stale = np.abs(np.asarray(rows[0]["log_std"]) - np.asarray(state.server.shared["log_std"])).max(axis=1)
    place = int(np.argmax(stale))
    assert stale[place] > 0
    path = nan_dump.dump(run, run.config, state, int(ids[place]), tmp_path)
    work = jax.jit(run.simulation.work)(*jax.tree.map(lambda x: x[place], rows))
    line = next(line for line in nan_dump.replay(path).splitlines() if line.startswith("message"))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(work[0].message))
    np.testing.assert_allclose(float(line.split()[-1]), largest, rtol=1e-3)


def test_lanes_are_chosen_from_the_speeds_and_kept():
    late = config.build("afedpg", {"env": "probe/delayed", "num_clients": 40, "speed": "linear"})
    chosen = timing.with_lanes(late)
    assert chosen.clients_per_round == round(0.75 * np.sum(1 / np.linspace(1, 4, 40)))
    assert timing.with_lanes(chosen) == chosen
    assert timing.with_lanes(replace(late, restart="abort", buffer=7)).clients_per_round == 7
    unsaid = timing.with_lanes(replace(late, buffer=0))  # an update for every arrival, however many lanes
    assert (unsaid.buffer, unsaid.clients_per_round) == (1, chosen.clients_per_round)
    assert (timing.schedule_of(unsaid).buffer, timing.schedule_of(chosen).buffer) == (1, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": 10**9, "speed": "linear"}, "rounds = 1000000000: the clock is full after about 536,870,912 rounds"),
        ({"speed": "linear", "speed_ratio": 1000.0, "link_time": 20.0}, "speed = 'linear': a round may last 21,000"),
    ],
)
def test_a_clock_that_would_overflow_says_so(values, message):
    with pytest.raises(config.ConfigError) as caught:
        timing.with_lanes(replace(SMALL, **values))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", ["ditto", "scaffold"])
def test_clients_that_keep_something_arrive_once_an_update(algorithm):
    values = {"env": "probe/delayed", "num_clients": 4, "clients_per_round": 2, "schedule": "async"}
    with pytest.raises(config.ConfigError, match="restart: clients here keep something"):
        assemble.make_run(config.build(algorithm, values))
    assemble.make_run(config.build(algorithm, values | {"restart": "update"}))


def test_the_command_ends_with_what_its_clock_shows(tmp_path, capsys):
    line = "train afedpg --preset tiny --env probe/delayed --hidden 4 --speed linear --new-clients 0 --quiet --out"
    assert main([*line.split(), str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    rows = records.sound(tmp_path / "run" / rundir.METRICS)
    shown = dict(zip(finished.SPENT, finished.spent(rows).values(), strict=True))
    for name in finished.SPENT:
        [found] = [line for line in said.splitlines() if line.startswith(name.replace("_", " "))]
        assert float(found.split()[-1]) == pytest.approx(shown[name], abs=0.06)
    assert main(["report", str(tmp_path / "run"), "--x", "virtual_time", "--figure", str(tmp_path / "f.png")]) == 0
    assert "| virtual time | updates | staleness | uploads |" in capsys.readouterr().out
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_curves_of_unlike_positions_are_interpolated(whole):
    """Two seeds with rounds at 1, 2, 3 and at 2, 3, 4 units; along rounds there is nothing to interpolate."""
    rows = lambda times, values: [
        {"round": r + 1, "clock/time": t, "train/x": v, "env_steps": 10 * (r + 1), "comm/uploads": 2}
        for r, (t, v) in enumerate(zip(times, values, strict=True))
    ]
    both = [
        finished.FinishedRun(whole, LATE, {}, rows(*some)) for some in (([1, 2, 3], [0, 2, 4]), ([2, 3, 4], [5, 6, 7]))
    ]
    setting = finished.Setting("", tuple(both))
    x, values = setting.curve("train/x", "virtual_time")
    assert x.tolist() == [2, 2.5, 3] and values.tolist() == [[2, 3, 4], [5, 5.5, 6]]
    x, values = setting.curve("train/x", "rounds")
    assert x.tolist() == [1, 2, 3] and values.tolist() == [[0, 2, 4], [5, 6, 7]]
    assert setting.curve("train/x", "uploads")[0].tolist() == [2, 4, 6]
