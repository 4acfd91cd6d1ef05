"""The command line: exit codes, one-line errors, and what is printed where."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields

import jax
import numpy as np
import pytest

from fedjax_rl import cli
from fedjax_rl.cli.parse import parse_train
from fedjax_rl.config import CONFIGS, ConfigError
from fedjax_rl.config.algorithms import FmrlConfig

SMALL = "--env probe/delayed --preset tiny --hidden 4 --episodes 3 --new-clients 2 --quiet".split()


def call(capsys, *argv):
    code = cli.main(argv)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian", "unknown command 'trian' (did you mean train?)"),
        ("train fmlr", "unknown algorithm 'fmlr' (did you mean fmrl?)"),
        ("train --sever-lr 1", "unknown option --sever-lr (did you mean --server-lr?)"),
        ("train --mu 1", "unknown option --mu (it is an option of fedprox, fedasync)"),
        ("train --env half_chetah/direction", "(did you mean half_cheetah/direction?)"),
        ("train --preset lapto", "(did you mean laptop?)"),
        ("train --rounds abc", "--rounds: 'abc' is not an integer"),
        ("train --local-lr abc", "--local-lr: 'abc' is not a number"),
        ("train --hidden 64,64", "--hidden 64,64: not of its kind"),
        ("train --hidden 64 abc", "--hidden 64 abc: not of its kind"),
        ("eval missing --adapt-steps two", "--adapt-steps two: not of its kind"),
        ("train --rounds", "--rounds"),
        ("train --rounds 0", "rounds = 0: must be an integer"),
        ("train --local-lr nan", "local_lr = nan: must be a number"),
        ("train --clients-per-round 300", "must be at most num_clients = 200"),
        ("train --dropout 1.1", "dropout = 1.1: must be a number, 0 to 1"),
        ("train scaffold --stragglers 0.5", "stragglers = 0.5: not for this scaffold"),
        ("train --stragglers 0.5 --local-steps 1", "local_steps = 1 cannot be fewer"),
        ("train --config missing.toml", "cannot read missing.toml"),
        ("resume", "run directory"),
        ("resume missing", "missing is not a run directory"),
        ("resume missing --rounds 0", "--rounds 0: must be at least 1"),
        ("eval missing --bets", "unknown option --bets (did you mean --best?)"),
        ("eval missing --best --step 1", "exclude each other"),
        ("eval missing --adapt-lr 0.1,x", "--adapt-lr 0.1,x"),
        ("eval missing --clients old", "must be one of all, new"),
        ("eval missing --new-clients 5", "--new-clients 5: no new clients are evaluated; add --clients new"),
        ("eval missing --clients new --eval-clients 2", "--eval-clients 2: is for the federation's clients"),
        ("report x --x bytes", "--x bytes: is the axis of a figure; add --figure NAME.png"),
        ("report", "report needs at least one run directory"),
        ("report x --format tex", "--format tex: must be one of md, csv, latex (did you mean latex?)"),
        ("report x --figure x.gif", "--figure x.gif: the name must end in .png, .pdf or .svg"),
        ("report x", "x is not a directory"),
        ("list --jsn", "unknown option --jsn (did you mean --json?)"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("fedjax-rl: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["--help", "list", "train --print-config", "train --roundz 3", "eval x", "train x", "report x", "render x"]
)
def test_light_answers_import_neither_jax_nor_mujoco(line):
    code = (
        "import sys; from fedjax_rl import cli; code = cli.main(sys.argv[1:]);"
        "print(code, 'jax' in sys.modules, 'mujoco' in sys.modules)"
    )
    # the exit code is the last line's first word
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, check=True)
    want = "2" if line in ("train --roundz 3", "eval x", "train x", "report x", "render x") else "0"
    assert done.stdout.splitlines()[-1] == f"{want} False False"


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_every_switch_of_the_help_can_be_typed(algorithm):
    """What is off by default is turned on by its name, what is on is turned off by no-NAME."""
    switches = [item for item in fields(CONFIGS[algorithm]) if isinstance(item.default, bool)]
    for item in switches:
        option = ("--no-" if item.default else "--") + item.name.replace("_", "-")
        try:
            assert getattr(parse_train([algorithm, option])[0], item.name) is not item.default
        except ConfigError as error:  # by itself it may not fit; but then it was understood
            assert "unknown option" not in str(error)


@pytest.mark.parametrize(("code", "ends"), [(None, 0), (0, 0), (3, 3), ("usage: x", 1)])
def test_code_that_exits_ends_the_command(code, ends, capsys, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "list", lambda argv: sys.exit(code))
    assert call(capsys, "list") == (ends, "", "fedjax-rl: usage: x\n" if ends == 1 else "")


def test_print_config_reproduces_itself(capsys, tmp_path):
    argv = ("train", "fedprox", "--mu", "0.3", "--preset", "tiny", "--hidden", "7", "8", "--server-lr", "3e-4")
    code, out, _ = call(capsys, *argv, "--print-config")
    assert code == 0
    path = tmp_path / "c.toml"
    path.write_text(out)
    assert call(capsys, "train", "--config", str(path), "--print-config") == (0, out, "")
    assert "mu = 0.3" in out and "hidden = [7, 8]" in out and "server_lr = 0.0003" in out


def test_help_names_every_option_and_default(capsys):
    code, out, _ = call(capsys, "train", "fmrl", "--help")
    assert code == 0
    assert "--server-lr" in out and "--order" in out and "second" in out
    assert "--mu" not in out
    words = " ".join(out.replace("│", "").split())
    for item in fields(FmrlConfig):  # each has a line of its own that says more than its default
        option = f"--{item.name.replace('_', '-')} "
        assert not words.split(option, 1)[1].split(" ", 1)[1].startswith("(default"), option


def test_list_as_json(capsys):
    code, out, _ = call(capsys, "list", "--json")
    assert code == 0
    names = "fmrl fedavg fedprox scaffold per_fedavg pfedme fedrep ditto reptile meta_sgd independent fedhpd dpa_fedrl"
    names += " afedpg nigt fedasync lapg npg npg_admm fedpg_br dqn_avg q_avg fedstrategy"
    assert set(json.loads(out)["algorithms"]) == set(names.split())


def test_an_existing_out_is_refused_untouched(capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    code, _, err = call(capsys, "train", *SMALL, "--out", str(tmp_path))
    assert code == 2
    assert "exists and is not empty" in err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", *SMALL, "--out", str(directory)]) == 0
    return directory


def test_a_run_directory_has_its_files(trained):
    assert {p.name for p in trained.iterdir()} >= {"config.toml", "env.json", "metrics.jsonl", "eval.jsonl", "ckpt"}
    assert json.loads((trained / "env.json").read_text())["seed"] == 0


def test_an_existing_run_is_refused_and_says_resume(trained, capsys):
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    code, _, err = call(capsys, "train", *SMALL, "--out", str(trained))
    assert code == 2
    assert f"fedjax-rl resume {trained}" in err
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


@pytest.mark.parametrize(("clients", "name"), [("all", "eval"), ("new", "eval_new")])
def test_eval_repeats_the_runs_last_evaluation(trained, capsys, clients, name):
    code, out, err = call(capsys, "eval", str(trained), "--clients", clients, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    last = json.loads((trained / "eval.jsonl").read_text().splitlines()[-1])
    assert found["step"] == 2
    np.testing.assert_allclose(found["returns"], last[f"{name}/returns"], rtol=1e-6)
    np.testing.assert_allclose(found["mean"], np.mean(found["returns"], axis=0), rtol=1e-12)


def test_eval_options(trained, capsys):
    argv = ("eval", str(trained), "--step", "1", "--adapt-steps", "1", "--adapt-lr", "0.2,0.1", "--json")
    found = json.loads(call(capsys, *argv)[1])
    assert found["step"] == 1
    assert np.shape(found["returns"]) == (8, 2)
    found = json.loads(call(capsys, "eval", str(trained), "--clients", "new", "--new-clients", "3", "--json")[1])
    assert found["num_clients"] == 3


def test_eval_starts_from_the_personal_or_the_global_model(tmp_path, capsys):
    """Independent learners: the global model is the start, which no training moves; the personal ones have moved."""
    path = str(tmp_path / "run")
    assert cli.main(["train", "independent", *SMALL, "--local-lr", "1", "--rounds", "4", "--out", path]) == 0
    capsys.readouterr()
    argv = ("eval", path, "--adapt-steps", "0", "--json", "--model")
    models = {m: np.array(json.loads(call(capsys, *argv, m)[1])["returns"]) for m in ("personal", "global")}
    assert (models["personal"] != models["global"]).any()
    assert json.loads(call(capsys, *argv[:-1])[1])["returns"] == models["personal"].tolist()
    code, _, err = call(capsys, *argv, "personel")
    assert code == 2 and "must be one of personal, global" in err


@pytest.mark.nightly
def test_eval_of_meta_sgd_has_no_rate_to_choose(tmp_path, capsys):
    path = str(tmp_path / "run")
    assert cli.main(["train", "meta_sgd", *SMALL, "--out", path]) == 0
    capsys.readouterr()
    code, out, err = call(capsys, "eval", path, "--adapt-lr", "0.2")
    assert (code, out) == (2, "") and "rates that it learned" in err and err.count("\n") == 1


def test_eval_of_a_missing_step_is_exit_4(trained, capsys):
    code, out, err = call(capsys, "eval", str(trained), "--step", "7")
    assert (code, out) == (4, "")
    assert "7" in err


def test_the_table_goes_to_stdout(trained, capsys):
    code, out, err = call(capsys, "eval", str(trained), "--best", "--adapt-steps", "2")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split()[:3] == ["return", "clients", "before"]
    assert "2 steps" in out and "3 steps" not in out


def test_resume_cannot_go_backwards(trained, capsys):
    config = (trained / "config.toml").read_text()
    code, _, err = call(capsys, "resume", str(trained), "--rounds", "1", "--quiet")
    assert code == 2
    assert "2 rounds are done already" in err
    assert (trained / "config.toml").read_text() == config


@pytest.mark.parametrize(
    ("change", "then", "now"),
    [("hidden = [4]", "hidden = (4,)", "(5,)"), ("server_lr = 0.0015", "server_lr = 0.0015", "0.002")],
)
def test_resume_refuses_a_configuration_that_was_changed_since(trained, capsys, tmp_path, change, then, now):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    text = (run / "config.toml").read_text()
    assert change in text
    (run / "config.toml").write_text(text.replace(change, change.split("=")[0] + "= " + now.replace("(5,)", "[5]")))
    code, _, err = call(capsys, "resume", str(run), "--rounds", "4", "--quiet")
    assert code == 2 and err.count("\n") == 1
    assert f"was trained with {then}, not {now}; put it back into config.toml" in err
    (run / "config.toml").write_text(text.replace("save_every = 1", "save_every = 2"))
    assert call(capsys, "resume", str(run), "--rounds", "3", "--quiet")[0] == 0  # what changes no number may change


def test_an_interrupted_process_exits_130_and_resumes(tmp_path, capsys):
    argv = [sys.executable, "-m", "fedjax_rl", "train", *SMALL[:-1], "--rounds", "100000", "--eval-every", "0"]
    argv += ["--save-every", "100000", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(argv, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("round "):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait() == 130
    assert "continue with: fedjax-rl resume run" in rest
    assert "Traceback" not in rest
    step = max(int(p.name) for p in (tmp_path / "run/ckpt").iterdir() if p.is_dir())
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == step
    assert call(capsys, "resume", str(tmp_path / "run"), "--rounds", str(step + 2), "--quiet")[0] == 0
    numbers = [json.loads(line)["round"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert numbers == list(range(1, step + 3))


def test_doctor_names_versions_and_runs_the_physics(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "doctor", "--json")
    found = json.loads(out)
    assert (code, found["problems"]) == (0, [])
    assert found["jax"] == jax.__version__
    assert found["env steps/s, native"] > 0
    assert ("env steps/s, fused" in found) == (not found["compiler"].startswith("none"))
    assert list(tmp_path.iterdir()) == []
