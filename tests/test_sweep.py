"""Sweeps: members equal solo runs, one compilation, memory, divergence, interruption, halving."""

import json
import os
import shutil
import signal
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl import cli, config
from fedjax_rl.api import training
from fedjax_rl.cli import commands
from fedjax_rl.runs import assemble, checkpoint, loop, memory, records, rundir, runner, scoring, sweep
from fedjax_rl.runs.arrays import state_hash
from fedjax_rl.runs.progress import Reporter
from fedjax_rl.runs.recorder import Hooks
from test_train import LITTLE, untimed

SMALL = replace(LITTLE, rounds=4, max_change_norm=0.01, adapt_steps=1, new_clients=0, save_every=2)
QUIET = Reporter(quiet=True)


def members(out, grid, seeds=(0, 1), base=SMALL):
    return sweep.members(base, grid, seeds, out)


def hashes(paths):
    found = {}
    for path in paths:
        run = assemble.make_run(rundir.open_run(path))
        found[path.name] = state_hash(checkpoint.restore(path / "ckpt", assemble.abstract_state(run), print).state)
    return found


@pytest.mark.parametrize("algorithm", ["fmrl", pytest.param("pfedme", marks=pytest.mark.nightly)])
def test_members_draw_what_solo_runs_draw_and_take_the_same_round(algorithm, tmp_path):
    """Rates, the clip and the seed differ; 0 stands for no clip also beside a clip."""
    base = config.build(algorithm, {k: v for k, v in asdict(SMALL).items() if k != "order"})
    base = replace(base, local_lr=0.1, server="sgd", server_lr=1.0)
    grid = {"inner_lr": [0.1, 0.4], "max_change_norm": [0.0, 0.003], "discount": [0.9, 0.5]}
    configs = [*members(tmp_path, grid, (0, 3), base).values()]
    group = assemble.make_group(configs)
    states = jax.jit(lambda: assemble.initial_states(group))()
    after, alive, measured = jax.jit(lambda *x: assemble.round_of(group, *x))(states, jnp.ones(16, bool), group.values)
    assert alive.all()
    for i in (0, 15):
        run = assemble.make_run(configs[i])
        state = assemble.initial_state(run)
        one, two = loop.state_of(states, i), state
        assert state_hash((one.tasks, one.key, one.server)) == state_hash((two.tasks, two.key, two.server))
        solo, metrics = jax.jit(run.simulation.round)(state)
        for a, b in zip(
            *(jax.tree.leaves((s.server, s.clients)) for s in (loop.state_of(after, i), solo)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(measured["train/return/adapt_0"][i], metrics["train/return/adapt_0"], rtol=1e-5)


def test_five_seeds_and_four_rates_are_one_compilation(tmp_path):
    """Counted by JAX itself: a sweep of twenty members compiles one round, once."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, fun_name="", **rest: compiled.append(fun_name) if "backend_compile" in event else None
    )
    some = members(tmp_path, {"server_lr": [1e-4, 1e-3, 0.01, 0.1]}, range(5), replace(SMALL, rounds=2))
    try:
        runner.run_members(some, QUIET)
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(some) == 20 and all(runner.is_settled(*item) for item in some.items())
    assert compiled.count("jit(round_of_members)") == 1
    assert compiled.count("jit(column)") == 1


def test_integers_and_names_are_programs_of_their_own(tmp_path):
    groups = runner.together(
        members(tmp_path, {"order": ["first", "second"], "inner_lr": [0.1, 0.2], "episodes": [2, 3]})
    )
    assert [len(group) for group in groups] == [4, 4, 4, 4]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "whole"
    some = members(out, {"server_lr": [0.01, 0.1]})
    runner.run_members(some, QUIET)
    return some


def test_every_member_is_a_run_of_its_own(whole):
    assert len(set(hashes(whole).values())) == 4
    for path, c in whole.items():
        assert rundir.open_run(path) == c
        assert [r["round"] for r in records.sound(path / "metrics.jsonl")] == [1, 2, 3, 4]
        assert [r["final"] for r in records.sound(path / "eval.jsonl")] == [True]


def test_finished_members_are_left_alone(whole):
    before = {p: p.stat().st_mtime_ns for path in whole for p in path.rglob("*")}
    runner.run_members(whole, QUIET)
    assert {p: p.stat().st_mtime_ns for path in whole for p in path.rglob("*")} == before


@pytest.mark.parametrize("crash", [signal.SIGINT, MemoryError])
def test_an_interrupted_sweep_resumes_to_the_same_bits(crash, whole, tmp_path, monkeypatch):
    """A signal saves all; a crash in the midst of saving leaves some members a checkpoint ahead."""
    some = members(tmp_path, {"server_lr": [0.01, 0.1]})
    save, calls = checkpoint.save, []

    def interrupting(*args, **options):
        calls.append(args)
        if crash is MemoryError and len(calls) == 7:
            raise crash
        save(*args, **options)
        if len(calls) == 2:
            if crash is not MemoryError:
                os.kill(os.getpid(), crash)

    monkeypatch.setattr(checkpoint, "save", interrupting)
    with pytest.raises(MemoryError if crash is MemoryError else loop.Interrupted):
        runner.run_members(some, QUIET)
    monkeypatch.undo()
    steps = [checkpoint.steps(path / "ckpt")[0] for path in some]
    assert steps == ([4, 4, 2, 2] if crash is MemoryError else [2, 2, 2, 2])
    runner.run_members(some, QUIET)
    assert hashes(some) == hashes(whole)
    for one, two in zip(some, whole, strict=True):
        for name in ("metrics.jsonl", "eval.jsonl"):
            assert untimed(one / name) == untimed(two / name)


def test_members_that_do_not_fit_are_split(whole, tmp_path, monkeypatch, capsys):
    """Memory for three of four members: two programs of two, and the numbers of the whole."""
    needs = {n: memory.needed(loop.compile_round(assemble.make_group([*whole.values()][:n])).step) for n in (2, 4)}
    assert needs[2] < needs[4]
    monkeypatch.setattr(memory, "available", lambda: (needs[2] + needs[4]) / 2 / memory.SHARE)
    some = members(tmp_path, {"server_lr": [0.01, 0.1]})
    runner.run_members(some, Reporter(quiet=False))
    assert "4 members need" in (err := capsys.readouterr().err) and "split in two" in err
    for one, two in zip(some, whole, strict=True):
        a, b = (records.sound(path / "metrics.jsonl")[-1]["train/return/adapt_1"] for path in (one, two))
        assert a == pytest.approx(b, rel=1e-4)


@pytest.fixture
def breaking(monkeypatch):
    """From round 3 on, the server of a member with server_lr above a limit is not finite; returns the setter."""
    make_run, limit = assemble.make_run, [0.0]

    def broken(c, values=None, env=None):
        run = make_run(c, values, env)
        rate = (values or {}).get("server_lr", c.server_lr)

        def round(state):
            new, metrics = run.simulation.round(state)
            bad = (state.round == 2) & (rate > limit[0])
            spoilt = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x).astype(x.dtype), new.server)
            return new._replace(server=spoilt), metrics

        return run._replace(simulation=run.simulation._replace(round=round))

    monkeypatch.setattr(assemble, "make_run", broken)
    return lambda value: limit.__setitem__(0, value)


def test_a_diverged_member_is_masked_and_the_others_go_on(whole, tmp_path, breaking, capsys):
    breaking(0.05)
    some = members(tmp_path, {"server_lr": [0.01, 0.1]})
    runner.run_members(some, QUIET)
    err = capsys.readouterr().err
    assert err.count("diverged in round 3") == 2 and "the other members go on" in err
    good, bad = [*some][:2], [*some][2:]
    assert [len(records.sound(p / "metrics.jsonl")) for p in some] == [4, 4, 3, 3]
    assert [json.loads((p / "diverged.json").read_text()) for p in bad] == [{"round": 3}] * 2
    assert [len(records.sound(p / "eval.jsonl")) for p in some] == [1, 1, 0, 0]
    assert [checkpoint.steps(p / "ckpt") for p in bad] == [[2], [2]]
    for one, two in zip(good, whole, strict=False):
        assert untimed(one / "metrics.jsonl") == untimed(two / "metrics.jsonl")
    assert all(runner.is_settled(p, c) for p, c in some.items())


def test_a_sweep_of_python_keeps_the_runs_that_diverged(tmp_path, breaking, capsys):
    breaking(0.05)
    few = {"num_clients": 4, "clients_per_round": 2, "episodes": 2, "hidden": (4,), "rounds": 3, "new_clients": 0}
    given = {"preset": "tiny", "seeds": [0], "grid": {"server_lr": [0.01, 0.1]}, "out": tmp_path / "sweep"}
    runs = training.sweep("fedavg", "navigation", **given, **few, quiet=True)
    assert [run.diverged for run in runs] == [None, 3]
    assert [row["group"] for row in runs.report()] == ["fedavg"]
    assert "diverged in round 3: it has no returns" in capsys.readouterr().err


def test_a_finished_run_of_another_rate_is_not_taken_for_this_one(whole):
    """An experiment's directory does not say the rate that was chosen."""
    paths = [*whole]
    for change in ({"server_lr": 0.9}, {"order": "first"}):
        with pytest.raises(config.ConfigError, match=f"{paths[0].name} was trained with {next(iter(change))}"):
            runner.run_members({paths[0]: replace(rundir.open_run(paths[0]), **change)}, QUIET)
    runner.run_members({paths[0]: replace(rundir.open_run(paths[0]), save_every=1, eval_every=0)}, QUIET)


def test_a_sweep_of_which_nothing_is_left_is_exit_3(tmp_path, breaking, capsys):
    some = members(tmp_path, {"server_lr": [0.01, 0.1]}, (0,))
    with pytest.raises(loop.Diverged, match="all 2 runs"):
        commands.sweep(some, tmp_path, 0, as_json=False, quiet=True)
    assert loop.Diverged.code == 3 and capsys.readouterr().out == ""


def test_the_second_half_of_a_split_sweep_is_trained_where_the_first_diverged(tmp_path, breaking, monkeypatch, capsys):
    breaking(0.05)
    free = iter([0, None, None])  # for two members; for one and the other
    monkeypatch.setattr(memory, "available", lambda: next(free))
    some = members(tmp_path, {"server_lr": [0.1, 0.01]}, (0,))
    bad, good = some
    assert commands.sweep(some, tmp_path, 0, as_json=False, quiet=True) == 0
    assert rundir.diverged(bad) == 3 and runner.is_settled(good, some[good])
    assert "diverged in round 3" in capsys.readouterr().err


def test_a_member_without_any_record_is_no_success(tmp_path, capsys):
    [(path, c)] = members(tmp_path, {}, (0,)).items()
    path.mkdir()
    assert commands._how_heard({path: c}) == 4
    assert f"{path} was not trained: it has no records; continue with: " in capsys.readouterr().err
    rundir.append(path / rundir.EVAL, {"round": 4, "final": True, "eval/returns": [[0.0, 1.0]]})
    assert commands._how_heard({path: c}) == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ['{"halvings": 0, "memb', "[]", '{"members": {}}'])
def test_a_damaged_plan_is_one_line(text, tmp_path, capsys):
    (tmp_path / rundir.SWEEP).write_text(text)
    assert cli.main(["resume", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "is damaged; its runs can be resumed one by one" in err


def test_a_plan_of_unknown_values_says_which(tmp_path, capsys):
    plan = {"halvings": 0, "members": {"a": 'schema = 1\nalgorithm = "fmrl"\nsever_lr = 0.1\n'}}
    (tmp_path / rundir.SWEEP).write_text(json.dumps(plan))
    assert cli.main(["resume", str(tmp_path)]) == 2
    assert "sever_lr" in capsys.readouterr().err


def test_halving_keeps_the_better_half_of_the_points(tmp_path):
    """Scores are 10 rate + seed: of five points three, then two go on; rounds 2, 5, 10 of 10."""
    base = replace(SMALL, rounds=10, new_clients=3)
    some = members(tmp_path, {"server_lr": [0.1, 0.5, 0.2, 0.4, 0.3]}, (0, 1), base)
    ran = []

    def run(left):
        ran.append({(c.server_lr, c.seed, c.rounds, c.new_clients) for c in left.values()})

    left = sweep.halve(some, 2, run, lambda path, number: 10 * some[path].server_lr + some[path].seed)
    rates = [sorted({rate for rate, *_ in rung}) for rung in ran]
    assert rates == [[0.1, 0.2, 0.3, 0.4, 0.5], [0.3, 0.4, 0.5], [0.4, 0.5]]
    assert [{(rounds, new) for *_, rounds, new in rung} for rung in ran] == [{(2, 0)}, {(5, 0)}, {(10, 3)}]
    assert sorted({c.server_lr for c in left.values()}) == [0.4, 0.5]
    assert sweep.halve(some, 0, run, None) == some


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--grid server_lr=", "give each key once, with one or more different values"),
        ("--grid server_lr", "give each key once"),
        ("--grid sever_lr=1", "unknown key 'sever_lr' (did you mean server_lr?)"),
        ("--grid seed=1,2", "seeds are given by --seeds"),
        ("--grid server_lr=a,b", "each value must be float"),
        ("--grid server_lr=0.1,0.1", "different values"),
        ("--grid server_lr=0.1,-1", "server_lr = -1.0: must be a number, more than 0 and at most 1000"),
        ("--grid order=third", "order = 'third'"),
        ("--grid", "with one or more keys"),
        ("--grid server_lr=0.1,1 --grid inner_lr=0.1,0.2", "give it once"),
        ("--out /proc/none/sweep", "--out /proc/none/sweep: it cannot be written: "),
        ("--seeds 3:3", "--seeds '3:3': must be a range like 0:5"),
        ("--seeds a", "--seeds 'a'"),
        ("--seed 3", "a sweep takes --seeds"),
        ("--seeds 1,1", "--seeds '1,1'"),
        ("--log tensorbord", "--log tensorbord: must be one of tensorboard, wandb"),
        ("--halvings -1", "--halvings -1: must be an integer, 0 to 20"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_seed_of_the_environment_is_refused_as_a_typed_one(capsys, monkeypatch):
    monkeypatch.setenv("FEDJAX_RL_SEED", "7")
    assert cli.main(["sweep", "--rounds", "0"]) == 2
    assert "FEDJAX_RL_SEED: a sweep takes --seeds" in capsys.readouterr().err


@pytest.mark.nightly
def test_the_command_sweeps_reports_and_resumes(capsys, tmp_path):
    small = "--env probe/delayed --preset tiny --hidden 4 --episodes 3 --new-clients 0 --eval-every 0 --quiet".split()
    argv = ["sweep", "fedavg", *small, "--grid", "server_lr=0.01,0.1", "--seeds", "0:2", "--halvings", "1"]
    assert cli.main([*argv, "--out", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("| fedavg")]
    assert len(rows) == 2 and sum("rounds=2" in row for row in rows) == 1
    assert cli.main(["resume", str(tmp_path / "s"), "--quiet"]) == 0
    assert capsys.readouterr().out == out
    assert cli.main(["resume", str(tmp_path / "s"), "--rounds", "9"]) == 2
    assert "is a sweep" in capsys.readouterr().err
    assert cli.main([*argv, "--out", str(tmp_path / "s")]) == 2
    assert f"fedjax-rl resume {tmp_path / 's'}" in capsys.readouterr().err


class EndsAfter:
    """A callback that ends runs after a round: they then go on as ones that were interrupted."""

    def __init__(self, number):
        self.number = number

    def after_round(self, directory, row):
        return row["round"] == self.number

    def after_evaluation(self, directory, returns):
        return False


def test_a_callback_ends_one_member_alone(whole, tmp_path):
    """It is ranked by its last evaluation, and is not finished; the others go on."""

    class EndsOne(EndsAfter):
        def after_round(self, directory, row):
            return directory.name.endswith("0.01,seed=1") and super().after_round(directory, row)

    some = members(tmp_path, {"server_lr": [0.01, 0.1]})
    runner.run_members(some, QUIET, Hooks(callbacks=(EndsOne(3),)))
    assert [len(records.sound(path / "metrics.jsonl")) for path in some] == [4, 3, 4, 4]
    for one, two in zip(some, whole, strict=True):
        rounds = len(records.sound(one / "metrics.jsonl"))
        assert untimed(one / "metrics.jsonl") == untimed(two / "metrics.jsonl")[:rounds]
        [row] = records.sound(one / "eval.jsonl")
        assert row["round"] == rounds == checkpoint.steps(one / "ckpt")[0]
        assert scoring.score_at(one, 4) == row["eval/return/adapt_1"]["mean"]
    ended = [*some][1]
    assert [runner.is_settled(*item) for item in some.items()] == [True, False, True, True]
    rundir.mark_diverged(ended, 4)
    assert scoring.score_at(ended, 4) == -np.inf


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "fedavg --grid policy=gaussian_mlp,table,mlp --env navigation",
            "policy table: navigation has continuous",
        ),
        ("dqn_avg --grid capacity=10000000,1000", "capacity = 10000000: a client's replay takes"),
        ("dqn_avg --grid max_client_mb=8,0.001,8.5", "max_client_mb = 0.001 are allowed"),
    ],
)
def test_what_one_point_cannot_be_is_refused_before_anything_is_written(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", *line.split(), "--preset", "tiny", "--seeds", "0,1", "--out", "s"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_a_member_that_is_ahead_of_the_others_is_not_lost(tmp_path, capsys):
    """It has no checkpoint in common with them, and is not trained again."""
    some = members(tmp_path, {}, (0, 1), replace(SMALL, rounds=6, save_every=1, adapt_steps=0))
    ahead = next(iter(some))
    runner.run_members(some, QUIET, Hooks(callbacks=(EndsAfter(1),)))
    runner.run_members({ahead: some[ahead]}, QUIET, Hooks(callbacks=(EndsAfter(5),)))
    checkpoint.digest.path_of(ahead / "ckpt", 1).unlink()  # the best one, else kept
    shutil.rmtree(ahead / "ckpt/1")
    times = [row["sys/round_s"] for row in records.sound(ahead / "metrics.jsonl")]
    assert runner.run_members(some, QUIET) == [] and capsys.readouterr().err == ""
    assert [checkpoint.steps(path / "ckpt")[0] for path in some] == [6, 6]
    assert [row["sys/round_s"] for row in records.sound(ahead / "metrics.jsonl")][:5] == times and len(times) == 5


def test_who_has_no_checkpoint_in_common_with_the_others_goes_on_alone(tmp_path, monkeypatch, capsys):
    """Of four, one has none at all, and it alone is lost."""
    some, ran = members(tmp_path, {}, (0, 1, 2, 3)), []
    _, ahead, lost, _ = some

    def run_group(configs, paths, *_):
        if lost in paths or (ahead in paths and len(paths) > 1):
            raise checkpoint.NoCheckpoint("gone", lost if lost in paths else ahead)
        ran.append([*paths])

    monkeypatch.setattr(runner, "run_group", run_group)
    assert runner.run_members(some, QUIET) == [lost]
    assert sorted(ran, key=len) == [[ahead], [path for path in some if path not in (ahead, lost)]]
    assert capsys.readouterr().err.count("gone; the other runs go on") == 1


def test_a_member_that_was_prolonged_keeps_its_rounds_and_stops_no_other(tmp_path, capsys, monkeypatch):
    some = members(tmp_path, {}, (0, 1))
    for path, c in some.items():
        rundir.create(path, c)
    prolonged, other = some
    rundir.write_config(prolonged, replace(some[prolonged], rounds=11))
    checkpoint.digest.write(prolonged / "ckpt", {"step": 9, "score": None, "files": {}})
    ran = {}
    monkeypatch.setattr(runner, "run_group", lambda configs, paths, *_: ran.update(zip(paths, configs, strict=True)))
    assert runner.run_members(some, QUIET) == []
    assert {path: c.rounds for path, c in ran.items()} == {prolonged: 11, other: 4}
    assert f"{prolonged} was prolonged: it goes on to round 11, not 4" in capsys.readouterr().err


def test_a_second_sweep_in_one_place_is_refused(tmp_path):
    out = tmp_path / "s"
    rundir.create_sweep(out, members(out, {}), 0)
    plan = (out / rundir.SWEEP).read_bytes()
    with pytest.raises(config.ConfigError, match=f"s exists and is not empty; continue it with: .* resume {out}"):
        rundir.create_sweep(out, members(out, {}, (7,)), 1)
    assert (out / rundir.SWEEP).read_bytes() == plan


def test_what_its_time_ended_before_a_halving_has_the_score_of_its_end(tmp_path):
    """What went no further for another reason, as a run whose checkpoints are lost, has none."""
    rundir.write_config(tmp_path, config.build("fedavg", {"max_time": 7.0, "speed": "linear"}))
    seconds = {"sys/round_s": 1.0, "sys/env_steps_per_s": 1.0, "env_steps": 1}
    for number, score in ((2, 4.0), (3, 5.0)):
        rundir.append(tmp_path / rundir.EVAL, {"round": number, "final": True, "eval/returns": [[0.0, score]]})
    rundir.append(tmp_path / rundir.METRICS, {"round": 1, "clock/time": 6.9, **seconds})
    assert [scoring.score_at(tmp_path, number) for number in (1, 2, 3, 9)] == [-np.inf, 4.0, 5.0, -np.inf]
    rundir.append(tmp_path / rundir.METRICS, {"round": 2, "clock/time": 7.0, **seconds})
    assert scoring.score_at(tmp_path, 9) == 5.0
