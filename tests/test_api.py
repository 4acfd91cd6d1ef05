"""`import fedjax_rl`: what Python gets is what the command makes; loggers look on, callbacks end runs."""

import ast
import importlib
import itertools
import json
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rl as fr
from fedjax_rl import cli, testing
from fedjax_rl.algorithms.fedavg import fedavg
from fedjax_rl.envs.navigation import navigation
from fedjax_rl.host import registry

SMALL = {"preset": "tiny", "hidden": [4], "new_clients": 2, "adapt_steps": 1, "quiet": True}
ARGV = "--env navigation --preset tiny --hidden 4 --new-clients 2 --adapt-steps 1 --quiet".split()
ADAPT_0 = "train/return/adapt_0"
NAMES = """
    Aggregate Aggregator Algorithm Callback Config ConfigError Diverged Env EnvSpec EnvState Logger NoCheckpoint Policy
    Problem Range Run Runs Server Simulation State Stats TensorBoard Upload WandB load make_env make_problem
    make_simulation parts register_aggregator register_algorithm register_environment register_policy run_rounds sweep
    tasks testing train
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fr.train("fmrl", "navigation", out=tmp_path_factory.mktemp("api") / "run", **SMALL)


def test_the_names_are_these_and_importing_them_imports_no_jax():
    assert fr.__all__ == sorted(NAMES.split())
    assert all(getattr(fr, name) is not None for name in fr.__all__)
    code = "import sys, fedjax_rl as fr; dir(fr); assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = fr.trian


def test_type_checkers_see_the_names_that_there_are():
    """What __init__.py imports for them alone is each name, under that name, from where it is found at run time."""
    tree = ast.parse(Path(fr.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in block.body:
        [alias] = node.names
        assert alias.asname == alias.name  # without it a checker takes the name for private
        seen = importlib.import_module(node.module)
        assert getattr(fr, alias.name) is getattr(seen, alias.name)
    assert sorted(node.names[0].name for node in block.body) == fr.__all__
    assert Path(fr.__file__).with_name("py.typed").exists()


def test_a_run_is_the_commands_own(run, tmp_path):
    assert cli.main(["train", "fmrl", *ARGV, "--out", str(tmp_path / "run")]) == 0
    same = fr.load(tmp_path / "run")
    assert same.config == run.config
    for name, column in run.history.items():
        if not name.startswith(("sys/", "time")):
            np.testing.assert_array_equal(column, same.history[name], name)
    np.testing.assert_array_equal(run.history["env_steps"], [1600, 3200])
    assert np.all(np.diff(run.history["time"]) > 0)
    np.testing.assert_array_equal(run.returns["eval"], same.returns["eval"])
    np.testing.assert_array_equal(run.evaluate(), run.returns["eval"])
    np.testing.assert_array_equal(run.evaluate("new"), run.returns["eval_new"])
    np.testing.assert_array_equal(run.evaluate(3, adapt_steps=0), run.returns["eval"][:3, :1])
    assert f"{run.returns['eval'][:, 1].mean():.1f} ±" in run._repr_html_()


def test_one_client_has_no_interval(run, monkeypatch):
    monkeypatch.setattr(fr.Run, "returns", {"eval": np.array([[1.0, 2.0]])})
    assert "2.0 ± -" in run._repr_html_()


def test_a_policy_is_the_one_that_an_evaluation_measures(run):
    """Before adaptation it is the server's; its noise is its distribution's."""
    shared, x = run.state().server.shared, np.array([0.3, -0.2], np.float32)
    hidden = np.tanh(x @ shared["hidden_0"]["kernel"] + shared["hidden_0"]["bias"])
    mean = hidden @ shared["mean"]["kernel"] + shared["mean"]["bias"]
    act = run.policy(3, adapt_steps=0)
    np.testing.assert_allclose(act(x), mean, rtol=1e-5)
    assert act(np.stack([x, x])).shape == (2, 2) and not np.allclose(run.policy(3)(x), mean)
    draws = act(np.tile(x, (4000, 1)), np.random.default_rng(0))
    np.testing.assert_allclose(draws.std(axis=0), np.exp(shared["log_std"]), rtol=0.05)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.06)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(act(np.tile(x, (4000, 1)), np.random.default_rng(0)), draws)


def test_mistakes_are_named(run):
    for number in (8, -1, 1.5):
        with pytest.raises(fr.ConfigError, match=f"client {number}: must be an integer, 0 to 7"):
            run.policy(number)
    with pytest.raises(fr.ConfigError, match="clients = 'old'"):
        run.evaluate("old")
    with pytest.raises(fr.ConfigError, match="exists and is not empty"):
        fr.train("fmrl", "navigation", out=run.path, **SMALL)
    with pytest.raises(fr.ConfigError, match=r"unknown key 'sever_lr' .*did you mean server_lr"):
        fr.train("fmrl", "navigation", sever_lr=1.0)
    for given, message in (
        ({"grid": {"sever_lr": [1.0]}}, r"grid: 'sever_lr' cannot be swept .*did you mean server_lr"),
        ({"grid": {"client_batch": [1, 2]}}, "grid: 'client_batch' cannot be swept"),
        ({"grid": {"server_lr": []}}, "grid: server_lr has no values"),
        ({"grid": {"server_lr": np.array([])}}, "grid: server_lr has no values"),
        ({"grid": {"server_lr": 0.1}}, r"grid: server_lr = 0.1: must be a list of values, such as \[0.1\]"),
        ({"grid": {"server": "sgd"}}, "grid: server = 'sgd': must be a list of values"),
        ({"seed": 7, "seeds": []}, r"seed = 7: a sweep takes seeds, such as range\(5\)"),
        ({"seeds": range(10**30)}, "10,001 runs; a sweep takes at most 10,000"),
        ({"seeds": [2**31]}, "seed = 2147483648: must be an integer, 0 to 2.14748e"),
        ({"seeds": []}, "seeds: give one or more"),
        ({"seeds": 2}, r"seeds = 2: must be several, such as range\(2\)"),
        ({"seeds": np.int64(2)}, r"seeds = 2: must be several, such as range\(2\)"),
        ({"halvings": 21}, "--halvings 21: must be an integer, 0 to 20"),
        ({"halvings": 1.0}, "--halvings 1.0: must be an integer, 0 to 20"),
    ):
        with pytest.raises(fr.ConfigError, match=message):
            fr.sweep("fmrl", "navigation", **given)
    with pytest.raises(fr.ConfigError, match="adapt_lr = 101: must be numbers from 0 to 100"):
        run.evaluate(adapt_lr=101)
    for steps in (-1, 101, 1.5):
        for ask in (run.evaluate, lambda adapt_steps: run.policy(0, adapt_steps)):
            with pytest.raises(fr.ConfigError, match=f"adapt_steps = {steps}: must be an integer, 0 to 100"):
                ask(adapt_steps=steps)
    with pytest.raises(fr.ConfigError, match="not a run directory"):
        fr.load(run.path / "ckpt")
    with pytest.raises(fr.ConfigError, match=rf"holds runs and is none: name one of them, such as {run.path}"):
        fr.load(run.path.parent)
    with pytest.raises(fr.NoCheckpoint, match=r"no checkpoint of round 77 in .*; there are .*2"):
        run.state(step=77)


def test_a_run_in_what_a_program_had_registered_is_read_everywhere_and_goes_on_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry.OWN})
    monkeypatch.setattr(registry, "_OF_RUNS", set())
    fr.register_environment(navigation, "my_walk")
    run = fr.train("fmrl", "my_walk", out=tmp_path / "run", **SMALL)
    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry.OWN})  # another program
    for argv in (["ls", str(tmp_path)], ["show", str(run.path)], ["report", str(run.path)]):
        assert cli.main(argv) == 0
        assert "my_walk" in capsys.readouterr().out or argv[0] == "report"
    for command in ("eval", "resume"):
        assert cli.main([command, str(run.path), *(["--rounds", "3"] if command == "resume" else [])]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "environment 'my_walk' was registered by the program that began the run" in said
    monkeypatch.setattr(registry, "_OF_RUNS", set())
    assert cli.main(["train", "--env", "my_walk"]) == 2  # a name that no run has is unknown as before
    assert "env = 'my_walk': must be one of" in capsys.readouterr().err


def test_a_sweep_gives_its_rows(tmp_path):
    grid = {"server_lr": np.array([0.01, 0.1])}
    runs = fr.sweep("fedavg", "navigation", seeds=np.arange(2), grid=grid, out=tmp_path / "s", **SMALL)
    rows = runs.report()
    assert len(runs) == 4 and [row["seeds"] for row in rows] == [2] * 4
    assert {row["group"] for row in rows} == {"fedavg server_lr=0.01", "fedavg server_lr=0.1"}
    means = [one.returns["eval"][:, 1].mean() for one in runs if one.config.server_lr == 0.1]
    row = next(r for r in rows if r["group"].endswith("0.1") and r["clients"] == "all")
    assert row["adapt_1"] == pytest.approx(np.mean(means)) and "<table>" in runs._repr_html_()


class Listening:
    def __init__(self):
        self.heard = []

    def start(self, config, directory):
        self.heard.append(("start", config["algorithm"], directory.name))

    def log(self, record, round, env_steps):
        self.heard.append((round, env_steps, record.get("eval/return/adapt_1")))

    def finish(self, summary):
        self.heard.append(("finish", sorted(summary)))


class Unmade(Listening):
    def __init__(self):
        raise OSError("no server")


class Broken(Listening):
    def log(self, record, round, env_steps):
        raise RuntimeError("no network\nat all")


def test_loggers_see_every_number_and_a_broken_one_ends_nothing(tmp_path, capsys):
    listening, given = Listening(), {**SMALL, "eval_every": 1, "rounds": 3}
    run = fr.train("fedavg", "navigation", out=tmp_path / "run", loggers=[Unmade, Broken(), listening], **given)
    error = capsys.readouterr().err
    assert error.count("Unmade failed, so it is dropped: OSError: no server\n") == 1
    assert error.count("Broken.log failed, so it is dropped: RuntimeError: no network\n") == 1
    first, *logged, last = listening.heard
    assert (first, last) == (("start", "fedavg", "run"), ("finish", ["eval", "eval_new"]))
    assert [(r, s) for r, s, x in logged if x is None] == list(zip((1, 2, 3), run.history["env_steps"], strict=True))
    rows = [json.loads(line) for line in (run.path / "eval.jsonl").read_text().splitlines()]
    assert [(r, x) for r, _, x in logged if x] == [(row["round"], row["eval/return/adapt_1"]["mean"]) for row in rows]


def test_a_resume_refuses_fewer_rounds_and_goes_on_with_a_diverged_run(run, tmp_path):
    with pytest.raises(fr.ConfigError, match="--rounds 1: 2 rounds are done already; ask for more"):
        run.resume(rounds=1, quiet=True)
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "diverged.json").write_text('{"round": 2}')
    assert fr.load(tmp_path / "run").diverged == 2
    again = fr.load(tmp_path / "run").resume(rounds=3, quiet=True)
    assert again.history["round"].tolist() == [1, 2, 3] and not (again.path / "diverged.json").exists()


class Stopping:
    def __init__(self, rounds=99, evaluations=99):
        self.rounds, self.evaluations = rounds, evaluations

    def after_round(self, directory, record):
        return record["round"] == self.rounds

    def after_evaluation(self, directory, returns):
        assert len(returns) == 8
        self.evaluations -= 1
        return self.evaluations == 0


@pytest.mark.parametrize("limits", [{"rounds": 2}, {"evaluations": 2}])
def test_a_callback_ends_a_run_that_is_saved_and_evaluated_and_can_go_on(tmp_path, limits):
    given = {**SMALL, "eval_every": 1, "save_every": 10, "rounds": 4}
    run = fr.train("fedavg", "navigation", out=tmp_path / "run", callbacks=[Stopping(**limits)], **given)
    assert int(run.state().round) == 2 == len(run.history["round"]) and "eval" in run.returns
    whole = fr.train("fedavg", "navigation", out=tmp_path / "whole", **given)
    assert run.resume(quiet=True).history["round"].tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(run.returns["eval"], whole.returns["eval"])


def test_runs_train_in_threads_beside_each_other(tmp_path, run):
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda i: fr.train("fmrl", "navigation", out=tmp_path / str(i), **SMALL), range(2)))
    for one in done:
        np.testing.assert_array_equal(one.returns["eval"], run.returns["eval"])


def test_who_took_part_is_in_a_file_of_its_own(tmp_path):
    """Whoever dropped out is among the unheard, whoever was late among the stragglers; a resume makes no line twice."""
    given = {**SMALL, "rounds": 4, "dropout": 0.5, "stragglers": 0.5}
    run = fr.train("fedavg", "navigation", out=tmp_path / "run", **given).resume(rounds=6, quiet=True)
    rows = [json.loads(line) for line in (run.path / "participants.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    counts = {"unheard": "health/dropped_clients", "stragglers": "health/stragglers"}
    for name, metric in counts.items():
        assert [len(row[name]) for row in rows] == run.history[metric].tolist() and sum(run.history[metric]) > 0
        assert all(set(row[name]) <= set(row["selected"]) and len(row["selected"]) == 4 for row in rows)


def events(directory):
    """[(tag, step, value)] of all event files, whose frames are length, crc, message, crc (TFRecord)."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted((directory / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value if v.HasField("simple_value")]
            at += 16 + length
    return found


def test_tensorboard_has_the_curves_of_metrics_jsonl_also_after_a_resume(tmp_path):
    pytest.importorskip("tensorboardX")
    where = str(tmp_path / "run")
    assert cli.main(["train", "fedavg", *ARGV, "--out", where, "--log", "tensorboard"]) == 0
    assert cli.main(["resume", where, "--rounds", "3", "--log", "tensorboard", "--quiet"]) == 0
    run = fr.load(where)
    curve = {step: value for tag, step, value in events(run.path) if tag == ADAPT_0}
    assert curve == pytest.approx(dict(zip(run.history["env_steps"].tolist(), run.history[ADAPT_0], strict=True)))


def logged(content):
    """The records of a LevelDB log behind W&B's header: pieces of at most a block of 32 KiB, whole (1) or in parts."""
    at, parts = 7, []
    while at + 7 <= len(content):
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        at += 32768 - at % 32768 if 32768 - at % 32768 < 7 else 0
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def test_wandb_offline_has_the_curves_of_metrics_jsonl_also_after_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = fr.train("fedavg", "navigation", out=tmp_path / "run", loggers=[fr.WandB], **SMALL)
    run.resume(rounds=3, loggers=[fr.WandB], quiet=True)
    curve, ids = {}, set()
    for path in run.path.glob("wandb/offline-run-*/*.wandb"):
        for data in logged(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            ids |= {record.run.run_id} if record.WhichOneof("record_type") == "run" else set()
            items = record.history.item if record.WhichOneof("record_type") == "history" else ()
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            curve |= {row["env_steps"]: row[ADAPT_0]} if ADAPT_0 in row else {}
    assert curve == pytest.approx(dict(zip(run.history["env_steps"].tolist(), run.history[ADAPT_0], strict=True)))
    assert len(ids) == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_extra_is_one_line_before_anything_is_written(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    argv = ["train", *ARGV, "--out", str(tmp_path / "run"), "--log"]
    assert cli.main([*argv, name]) == 2
    assert f"install it with: pip install 'fedjax-rl[{name}]'" in capsys.readouterr().err
    assert cli.main([*argv, "wandbb"]) == 2
    assert "--log wandbb: must be one of tensorboard, wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_our_own_pass_the_checks_for_guests():
    testing.check_environment(navigation())
    testing.check_algorithm(fedavg)


def altered(**parts):
    """FedAvg with other functions."""

    def factory(problem, *, client_opt, server_opt, local_steps, inner_lr):
        made = fedavg(problem, client_opt=client_opt, server_opt=server_opt, local_steps=local_steps, inner_lr=inner_lr)
        return made._replace(**parts)

    return factory


def test_the_checks_find_what_is_wrong():
    count, env = itertools.count(), navigation()
    moody = env._replace(step=lambda s, a, t: env.step(s, a, t)._replace(reward=jnp.float32(next(count))))
    with pytest.raises(AssertionError, match="in a batch"):
        testing.check_environment(moody)
    nan = altered(server_update=lambda s, a, k: s._replace(shared=jax.tree.map(lambda x: x * jnp.nan, s.shared)))
    with pytest.raises(AssertionError, match="not finite"):
        testing.check_algorithm(nan)
    half = altered(adapt=lambda shared, client, params, batch: {"x": params["x"][:2]})
    with pytest.raises(AssertionError, match="adapt changes the form"):
        testing.check_algorithm(half)
