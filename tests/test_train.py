"""A run's promises: resumed equals uninterrupted, signals save, divergence stops, records are complete."""

import fcntl
import json
import os
import shutil
import signal
import time
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl import cli
from fedjax_rl.cli import commands
from fedjax_rl.config import CONFIGS, Config
from fedjax_rl.config.algorithms import FmrlConfig, ScaffoldConfig
from fedjax_rl.federation import evaluate, simulate
from fedjax_rl.host import exits, output, signals
from fedjax_rl.runs import assemble, checkpoint, digest, locking, mending, records, rundir, runner, scoring
from fedjax_rl.runs.arrays import state_hash
from fedjax_rl.runs.progress import Reporter

LITTLE = FmrlConfig(env="probe/delayed", hidden=(4,), num_clients=6, clients_per_round=2, episodes=3, local_steps=2)
SMALL = replace(LITTLE, rounds=6, eval_every=2, eval_clients=3, adapt_steps=2, new_clients=2, save_every=3)


@pytest.fixture(scope="module")
def run():
    return assemble.make_run(SMALL)


def go(config, directory):
    """A whole run in a directory, as the command does it; its exit code."""
    rundir.refuse_existing(directory)
    return code_of(commands.train, config, directory, as_json=True, quiet=True)


def resume(directory, rounds=None):
    return code_of(commands.resume, commands.ResumeOptions(directory, rounds=rounds, json=True, quiet=True))


def code_of(command, *args, **options):
    try:
        return command(*args, **options)
    except exits.Refusal as error:
        output.inform(str(error))
        return error.code


def final_hash(directory):
    run = assemble.make_run(rundir.open_run(directory))
    restored = checkpoint.restore(directory / "ckpt", assemble.abstract_state(run), print)
    return restored.step, state_hash(restored.state)


def untimed(path):
    return [{k: v for k, v in r.items() if not k.startswith(("sys/", "time"))} for r in records.sound(path)]


def assert_same_run(one, other):
    """Two runs ended in the same state, and every round of theirs showed the same numbers."""
    assert final_hash(one) == final_hash(other)
    assert untimed(one / "metrics.jsonl") == untimed(other / "metrics.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert go(SMALL, directory) == 0
    return directory


def test_six_rounds_are_three_and_three_resumed(whole, tmp_path):
    assert go(replace(SMALL, rounds=3), tmp_path / "run") == 0
    assert final_hash(tmp_path / "run")[0] == 3
    assert resume(tmp_path / "run", rounds=6) == 0
    assert_same_run(tmp_path / "run", whole)
    assert rundir.open_run(tmp_path / "run") == SMALL


def test_scaffolds_variates_survive_a_restore(tmp_path):
    """Two rounds and two resumed are four; the variates that come back are those that were saved, and not zero."""
    config = ScaffoldConfig(**{f.name: getattr(SMALL, f.name) for f in fields(Config)} | {"rounds": 4, "eval_every": 0})
    assert go(config, tmp_path / "whole") == 0
    assert go(replace(config, rounds=2), tmp_path / "run") == 0
    like = assemble.abstract_state(assemble.make_run(config))
    state = checkpoint.restore(tmp_path / "run/ckpt", like, print).state
    for tree in (state.clients, state.server.shared["variate"]):
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree)) > 0
    assert resume(tmp_path / "run", rounds=4) == 0
    assert final_hash(tmp_path / "run") == final_hash(tmp_path / "whole")


def test_another_seed_is_another_run(whole, tmp_path):
    assert go(replace(SMALL, seed=1), tmp_path / "run") == 0
    assert final_hash(tmp_path / "run")[1] != final_hash(whole)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_round_saves_and_resumes_equal(number, whole, tmp_path, monkeypatch, capsys):
    append = rundir.append

    def interrupt_in_round_2(path, record, **options):
        append(path, record, **options)
        if path.name == "metrics.jsonl" and record["round"] == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(rundir, "append", interrupt_in_round_2)
    handler = signal.getsignal(number)
    assert go(SMALL, tmp_path / "run") == 128 + number
    assert signal.getsignal(number) == handler
    assert f"fedjax-rl resume {tmp_path / 'run'}" in capsys.readouterr().err
    monkeypatch.undo()
    assert final_hash(tmp_path / "run")[0] == 2
    assert resume(tmp_path / "run") == 0
    assert final_hash(tmp_path / "run") == final_hash(whole)
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert untimed(tmp_path / "run" / name) == untimed(whole / name)


def test_a_crash_and_a_flipped_bit_cost_only_rounds(whole, tmp_path, monkeypatch, capsys):
    config = replace(SMALL, save_every=1, eval_every=0)
    append = rundir.append

    def crash_in_round_5(path, record, **options):
        append(path, record, **options)
        if record["round"] == 5:
            raise MemoryError

    monkeypatch.setattr(rundir, "append", crash_in_round_5)
    with pytest.raises(MemoryError):
        go(config, tmp_path / "run")
    monkeypatch.undo()
    damaged = max((tmp_path / "run/ckpt/4").rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 3] ^= 16
    damaged.write_bytes(data)
    assert len(untimed(tmp_path / "run/metrics.jsonl")) == 5
    assert resume(tmp_path / "run") == 0
    assert "using step 3 instead" in capsys.readouterr().err
    assert final_hash(tmp_path / "run") == final_hash(whole)
    assert untimed(tmp_path / "run/metrics.jsonl") == untimed(whole / "metrics.jsonl")
    assert len(list((tmp_path / "run/rejected").glob("*-4"))) == 1


@pytest.mark.parametrize(("module", "name"), [(checkpoint, "set_score"), (rundir, "append")])
def test_a_run_that_ends_between_its_last_record_and_its_score_gets_both(module, name, whole, tmp_path, monkeypatch):
    done = getattr(module, name)

    def crash_at_the_end(path, record, *args, **options):
        if name == "set_score" or record.get("final"):
            raise MemoryError
        done(path, record, *args, **options)

    monkeypatch.setattr(module, name, crash_at_the_end)
    with pytest.raises(MemoryError):
        go(SMALL, tmp_path / "run")
    monkeypatch.undo()
    assert resume(tmp_path / "run") == 0
    assert untimed(tmp_path / "run/eval.jsonl") == untimed(whole / "eval.jsonl")
    scores = [digest.read(directory / "ckpt", 6)["score"] for directory in (tmp_path / "run", whole)]
    assert scores[0] == scores[1] is not None


def test_nothing_to_resume_is_exit_4(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/ckpt")
    assert cli.main(["resume", str(tmp_path / "run")]) == 4
    assert "holds no checkpoint, so nothing" in capsys.readouterr().err
    assert untimed(tmp_path / "run/metrics.jsonl") == untimed(whole / "metrics.jsonl")


def test_killed_before_its_first_checkpoint_it_starts_again(whole, tmp_path):
    """And env.json says where: of what was computed elsewhere nothing is left."""
    rundir.create(tmp_path / "run", SMALL)
    rundir.append(tmp_path / "run/metrics.jsonl", {"round": 1})
    here = json.loads((tmp_path / "run/env.json").read_text())
    (tmp_path / "run/env.json").write_text(json.dumps({**here, "device": "elsewhere"}))
    assert cli.main(["resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert untimed(tmp_path / "run/metrics.jsonl") == untimed(whole / "metrics.jsonl")
    assert json.loads((tmp_path / "run/env.json").read_text()) == here


def test_divergence_is_exit_3_and_names_the_round(tmp_path, monkeypatch, capsys):
    make_run = assemble.make_run

    def breaking(*args):
        run = make_run(*args)

        def round(state):
            new, metrics = run.simulation.round(state)
            factor = jnp.where(state.round == 3, jnp.nan, 1.0)
            return new._replace(server=jax.tree.map(lambda x: (x * factor).astype(x.dtype), new.server)), metrics

        return run._replace(simulation=run.simulation._replace(round=round))

    monkeypatch.setattr(assemble, "make_run", breaking)
    assert go(SMALL, tmp_path / "run") == 3
    error = capsys.readouterr().err
    assert "diverged in round 4" in error
    assert str(tmp_path / "run/ckpt/3") in error
    assert checkpoint.steps(tmp_path / "run/ckpt") == [3, 2]


def test_metric_names_and_what_they_say(whole):
    lines = records.sound(whole / "metrics.jsonl")
    assert [r["round"] for r in lines] == [1, 2, 3, 4, 5, 6]
    names = {"round", "train/return/adapt_0", "train/return/adapt_1", "comm/up_bytes", "comm/down_bytes"}
    names |= {"health/dropped_clients", "sys/env_steps_per_s", "sys/round_s", "sys/compile_s"}
    assert names <= set(lines[0])
    parameters = (2 * 4 + 4) + (4 * 1 + 1) + 1  # hidden layer, mean layer, log_std
    assert lines[0]["comm/up_bytes"] == 2 * 4 * parameters
    steps = 2 * 2 * 3 * 4  # clients a round, batches, episodes, horizon
    assert lines[3]["sys/env_steps_per_s"] * lines[3]["sys/round_s"] == pytest.approx(steps)
    assert lines[0]["sys/compile_s"] > 0 == lines[1]["sys/compile_s"]


def test_evaluations_hold_the_means_of_their_clients(whole):
    lines = records.sound(whole / "eval.jsonl")
    assert [(r["round"], r["final"]) for r in lines] == [(2, False), (4, False), (6, True)]
    for line in lines:
        for name, count in (("eval", 6 if line["final"] else 3), ("eval_new", 2)):
            if f"{name}/returns" not in line:
                assert name == "eval_new" and not line["final"]
                continue
            rows = np.array(line[f"{name}/returns"])
            assert rows.shape == (count, 3)
            for j in range(3):
                entry = line[f"{name}/return/adapt_{j}"]
                assert entry["mean"] == pytest.approx(rows[:, j].mean(), rel=1e-12)
                assert entry["num_clients"] == count


def test_the_best_step_is_the_highest_return_after_one_step_over_the_same_clients(whole):
    lines = records.sound(whole / "eval.jsonl")
    scores = {r["round"]: np.mean([row[1] for row in r["eval/returns"][:3]]) for r in lines}
    assert checkpoint.best_step(whole / "ckpt") == max(scores, key=scores.get)
    written = {s: json.loads((whole / f"ckpt/{s}.digest.json").read_text())["score"] for s in (6, 4)}
    assert written == {6: pytest.approx(scores[6]), 4: pytest.approx(scores[4])}


def test_a_clients_score_does_not_depend_on_how_many_are_evaluated_or_at_once(run, monkeypatch):
    state = assemble.initial_state(run)
    evaluation = scoring.make_evaluation(run, (0.1,), 1)
    all_of_them = np.array(scoring.old_clients(evaluation, state, 6))
    np.testing.assert_allclose(scoring.old_clients(evaluation, state, 2), all_of_them[:2], rtol=1e-5)
    monkeypatch.setattr(evaluate, "AT_ONCE", 4)  # four, and the two that are left
    np.testing.assert_allclose(scoring.old_clients(evaluation, state, 6), all_of_them, rtol=1e-5)


def test_rates_are_taken_in_order(run):
    state = assemble.initial_state(run)
    score = lambda rates: np.array(scoring.old_clients(scoring.make_evaluation(run, rates, 3), state, 6))
    still, two_rates = score((0.0,)), score((0.0, 0.5))
    assert np.all(still[:, 1:] != still[:, :-1])  # fresh episodes in every column
    np.testing.assert_array_equal(still[:, :2], two_rates[:, :2])  # rate 0 at the first step, columns 0 and 1
    assert np.all(still[:, 2:] != two_rates[:, 2:])


def little(algorithm):
    """A run of an algorithm with the settings that it needs."""
    shared = {item.name: getattr(SMALL, item.name) for item in fields(Config)}
    shared |= {"distill": "none"} if algorithm == "fedhpd" else {}  # else it needs public states
    shared |= {"gae_lambda": 0.9, "entropy_coef": 0.1} if algorithm == "fedstrategy" else {}
    shared |= {"local_steps": 1} if algorithm in ("lapg", "npg_admm", "fedpg_br") else {}
    shared |= {"env": "finite/random"} if CONFIGS[algorithm].learns_values else {}
    shared |= {"policy": "table", "local_steps": 1} if algorithm == "q_avg" else {}
    shared |= {"learn_after": 1} if algorithm == "dqn_avg" else {}
    shared |= {"num_clients": 2, "eval_clients": 2} if algorithm == "npg_admm" else {}  # all, in every round
    return assemble.make_run(CONFIGS[algorithm](**shared))


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_every_algorithm_counts_its_samples(algorithm):
    run = little(algorithm)
    of_client = run.config.batches * 3 * run.env.spec.horizon  # the contract counts the batches
    of_client += 2 if algorithm == "dqn_avg" else 0  # an environment step for each learning step
    assert run.env_steps_per_round == 2 * of_client


@pytest.mark.nightly  # test_bits.py runs three rounds of every algorithm
@pytest.mark.parametrize("algorithm", CONFIGS)
def test_every_algorithm_runs_a_round(algorithm):
    run = little(algorithm)
    state, measured = simulate.run_rounds(run.simulation, assemble.initial_state(run), 1)
    assert int(state.round) == 1
    assert np.isfinite(measured["train/return/adapt_0"]).all()


def test_two_writers_are_refused(tmp_path):
    rundir.create(tmp_path / "run", SMALL)
    with (
        locking.writer(tmp_path / "run"),
        pytest.raises(ValueError, match="written by another process"),
        locking.writer(tmp_path / "run"),
    ):
        pass


def test_records_past_a_round_and_cut_lines_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for number in (1, 2, 3):
        rundir.append(path, {"round": number, "x": float("nan"), "sys/round_s": 1.0, "sys/env_steps_per_s": 2.0})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + '{"round": 4, "x"')
    mending.forget(path, lambda row: row["round"] <= 2, pytest.fail)
    assert path.read_text() == "".join(lines[:2])
    assert [row["x"] for row in records.sound(path)] == [None, None]


def test_a_second_signal_stops_at_once_and_a_third_acts_as_usual():
    # a shell starts background jobs with SIGINT ignored, and then it would stay so
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with signals.heeded() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
        with pytest.raises(signals.Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.nightly
def test_tasks_of_several_arrays_train_resume_evaluate_and_sweep(tmp_path, capsys):
    """Robots of their own: two rounds are one and one resumed, `eval` repeats the last one, a sweep draws alike."""
    argv = "--preset tiny --env half_cheetah/dynamics --hidden 4 --num-clients 4 --clients-per-round 2 --new-clients 0"
    argv = [*argv.split(), "--order", "first", "--adapt-steps", "1", "--local-steps", "1", "--quiet"]
    whole, parts, swept = (str(tmp_path / name) for name in ("whole", "parts", "swept"))
    assert cli.main(["train", *argv, "--out", whole]) == 0
    shutil.copytree(whole, parts)
    (tmp_path / "parts" / "ckpt" / "2.digest.json").unlink()  # the second round was never saved
    assert cli.main(["resume", parts, "--rounds", "2", "--quiet"]) == 0
    assert final_hash(tmp_path / "parts") == final_hash(tmp_path / "whole")
    capsys.readouterr()
    assert cli.main(["eval", whole, "--json"]) == 0
    returns = json.loads(capsys.readouterr().out)["returns"]
    assert returns == records.sound(tmp_path / "whole" / "eval.jsonl")[-1]["eval/returns"]
    assert cli.main(["sweep", *argv, "--seeds", "0:2", "--rounds", "1", "--out", swept]) == 0
    run = assemble.make_run(rundir.open_run(tmp_path / "whole"))
    paths = [tmp_path / "parts", *rundir.read_sweep(tmp_path / "swept")[0]]
    states = [checkpoint.restore(path / "ckpt", assemble.abstract_state(run), print).state for path in paths]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), states[0].tasks, states[1].tasks)
    assert (np.asarray(states[1].tasks.mass) != np.asarray(states[2].tasks.mass)).all()


def test_films_of_pfedme_start_from_the_global_model_as_its_evaluations_do():
    values = {f.name: getattr(SMALL, f.name) for f in fields(Config)} | {"clients_per_round": 6}
    run = assemble.make_run(CONFIGS["pfedme"](**values))
    state, _ = jax.jit(run.simulation.round)(assemble.initial_state(run))
    before, after = scoring.adapted(run, state, jnp.array([1, 4]), 1)
    shared = state.server.shared
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.stack([y, y])), before, shared)
    for one, other in [(after, before), (jax.tree.map(lambda x: x[:2], state.clients), before)]:
        assert any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), one, other)))


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def begin_during(monkeypatch, name, begin):
    """Another process begins after the first look at the directory, while this one makes its environment."""
    make = getattr(runner, name)

    def meanwhile(*args):
        begin()
        return make(*args)

    monkeypatch.setattr(runner, name, meanwhile)


OTHER = replace(SMALL, inner_lr=0.2)


@pytest.mark.parametrize("kind", ["run", "ended run", "sweep"])
def test_a_directory_that_another_process_took_meanwhile_is_refused_and_unchanged(kind, tmp_path, monkeypatch, capsys):
    path, before = tmp_path / "run", {}
    with ExitStack() as other:

        def begin():
            if kind == "sweep":
                rundir.create_sweep(path, {path / "seed=0": OTHER}, 0)
            else:
                lock = other.enter_context(ExitStack())
                lock.enter_context(locking.writer(path))
                rundir.create(path, OTHER)
                if kind == "ended run":
                    lock.close()
            before.update(contents(path))

        begin_during(monkeypatch, "make_group", begin)
        assert go(SMALL, path) == 2
        error = capsys.readouterr().err
        said = "written by another process" if kind == "run" else f"continue it with: fedjax-rl resume {path}"
        assert said in error and error.count("\n") == 1
        after = contents(path)
        after.pop(path / ".lock"), before.pop(path / ".lock", None)
        assert after == before


def test_a_name_through_a_directory_that_was_new_still_leads_to_the_run(tmp_path):
    with locking.writer(tmp_path / "a" / ".." / "b"):
        (tmp_path / "b" / "config.toml").touch()
    assert (tmp_path / "a" / ".." / "b" / "config.toml").exists()
    with locking.writer(tmp_path / "c" / "d"):
        pass
    assert not (tmp_path / "c").exists()


def test_a_start_beside_one_that_has_only_its_lock_changes_nothing(tmp_path, capsys):
    with locking.writer(tmp_path / "run"):
        assert go(SMALL, tmp_path / "run") == 2
        assert [path.name for path in (tmp_path / "run").rglob("*")] == [".lock"]
    assert "written by another process" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # nor did the other one write anything


def test_a_sweep_where_a_run_began_meanwhile_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "s"
    begin_during(monkeypatch, "check", lambda: rundir.create(path, OTHER))
    argv = ["sweep", "fmrl", "--preset", "tiny", "--env", "probe/delayed", "--seeds", "0:2", "--out", str(path)]
    assert cli.main(argv) == 2
    assert f"continue it with: fedjax-rl resume {path}" in capsys.readouterr().err
    assert not (path / rundir.SWEEP).exists() and rundir.open_run(path) == OTHER


def test_one_locked_member_leaves_all_of_its_group_as_they_were(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    with locking.writer(paths[1]), pytest.raises(ValueError, match="b is being written by another process"):
        runner.run_group([SMALL, replace(SMALL, seed=1)], paths, Reporter(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_took_away_is_no_lock(tmp_path, monkeypatch):
    """Else this process would hold a file that nobody sees, and the next one another."""
    flock = fcntl.flock

    def late(file, how):
        os.unlink(file.name)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ValueError, match="written by another process"), locking.writer(tmp_path / "run"):
        pytest.fail("both write")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "mine"])
def test_a_lock_that_is_there_already_serves_and_a_file_of_that_name_is_kept(content, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").write_text(content)
    rundir.refuse_existing(tmp_path / "run")
    with locking.writer(tmp_path / "run"):
        assert (tmp_path / "run/.lock").read_text() == content
    assert [path.read_text() for path in (tmp_path / "run").iterdir()] == ([content] if content else [])


def test_names_of_one_second_differ_and_unused_ones_are_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    name = "runs/probe_delayed-fmrl-seed0-20260102-030405"
    with locking.directory(None, SMALL) as one, locking.directory(None, SMALL) as two:
        with locking.directory(None, SMALL) as three:
            assert [str(path) for path in (one, two, three)] == [name, f"{name}-2", f"{name}-3"]
            assert three.is_dir()
        (two / "config.toml").touch()
    assert [str(path) for path in Path("runs").iterdir()] == [f"{name}-2"]


def test_default_names_where_nothing_can_be_made_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    for argv in (["train"], ["sweep", "--seeds", "0:2"]):
        assert cli.main([*argv, "--env", "probe/delayed", "--preset", "tiny"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "it cannot be written: " in err
