"""The report: grouping, statistics on real numbers, formats and mistakes. The statistics alone: test_metrics.py."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from fedjax_rl import cli
from fedjax_rl.config import build
from fedjax_rl.reports import finished, plot, tables
from fedjax_rl.runs import records, rundir

STEPS_PER_ROUND = 1280


def make_run(path, returns, new=None, algorithm="fmrl", rounds=3, **values):
    """A run directory as training leaves it, without checkpoints; `returns` [N, k+1] or None for an unfinished run."""
    path.mkdir(parents=True)
    rundir.write_config(path, build(algorithm, {"env": "probe/delayed", "rounds": rounds, **values}))
    for number in range(1, rounds + 1):
        seconds = 0.1 * number
        after = float(number + values.get("seed", 0))
        row = {"round": number, "train/return/adapt_0": -1.0, "train/return/adapt_1": after}
        speed = {"sys/env_steps_per_s": STEPS_PER_ROUND / seconds, "sys/round_s": seconds}
        rundir.append(path / rundir.METRICS, {**row, **speed})
    rundir.append(path / rundir.EVAL, {"round": 1, "final": False, "eval/returns": [[7.0, 7.0]]})
    if returns is not None:
        part = {} if new is None else {"eval_new/returns": np.asarray(new).tolist()}
        row = {"round": rounds, "final": True, "eval/returns": np.asarray(returns).tolist(), **part}
        rundir.append(path / rundir.EVAL, row)
    return path


def noise(seed, clients=12, columns=3, shift=0.0):
    return np.random.default_rng(seed).normal(size=(clients, columns)) + shift


def call(capsys, *argv):
    code = cli.main(["report", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def labels(*paths):
    return [group.label for group in finished.gather(paths, print)]


@pytest.fixture
def two(tmp_path):
    """FMRL on five seeds, FedAvg on three; the first named group is FMRL."""
    for seed in range(5):
        make_run(tmp_path / f"a/seed{seed}", noise(seed, shift=1.0), noise(seed + 50, 7), seed=seed)
    for seed in range(3):
        make_run(tmp_path / f"b/deep/seed{seed}", noise(seed + 9), noise(seed + 90, 7), algorithm="fedavg", seed=seed)
    return tmp_path


def test_seeds_are_one_group_in_their_order(two):
    (two / "a/seed0").rename(two / "a/zero")
    fmrl, fedavg = finished.gather([two], print)
    assert (fmrl.label, fedavg.label) == ("fmrl", "fedavg")
    assert [run.config.seed for run in fmrl.runs] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(fmrl.scores("eval"), [noise(seed, shift=1.0) for seed in range(5)])


def test_seeds_that_diverged_are_counted_and_named(two, capsys):
    for path in (two / "a/seed1", two / "a/seed4"):
        rundir.mark_diverged(path, 2)
    code, out, err = call(capsys, two)
    assert code == 0 and "| 3, 2 diverged |" in out and "seeds that diverged are in no number" in out
    assert f"{two / 'a/seed1'} diverged in round 2: it has no returns" in err
    fmrl, fedavg = finished.gather([two], lambda line: None)
    assert (fmrl.seeds, fmrl.diverged, fedavg.diverged) == ([0, 2, 3], (1, 4), ())
    for options in (("--format", "csv"), ("--format", "latex"), ("--json",)):
        assert "diverged" in call(capsys, two, *options)[1]
    assert [row["diverged"] for row in tables.rows([two], lambda line: None)][:2] == [2, 0]
    for seed in (0, 2, 3):
        rundir.mark_diverged(two / f"a/seed{seed}", 2)
    code, out, err = call(capsys, two / "a")
    assert code == 2 and "all runs diverged" in err and out == ""


def test_groups_come_as_their_first_runs_are_named(two):
    assert labels(two) == ["fmrl", "fedavg"]
    assert labels(two / "b/deep/seed1", two) == ["fedavg", "fmrl"]
    assert len(finished.gather([two / "b", two / "b/deep", two], print)[0].runs) == 3  # a run named twice counts once


def test_labels_say_what_differs_and_nothing_else(tmp_path):
    make_run(tmp_path / "0", noise(0), server_lr=0.001, mu=0.1, algorithm="fedprox", hidden=(4,))
    make_run(tmp_path / "1", noise(0), server_lr=0.002, mu=0.1, algorithm="fedprox", hidden=(4,))
    make_run(tmp_path / "2", noise(0), server_lr=0.001, algorithm="fmrl", hidden=(4, 5))
    want = ["fedprox hidden=4 server_lr=0.001", "fedprox hidden=4 server_lr=0.002", "fmrl hidden=4x5 server_lr=0.001"]
    assert labels(tmp_path) == want
    make_run(tmp_path / "3", noise(0), server_lr=0.001, algorithm="fmrl", hidden=(4, 5), order="first")
    made = labels(tmp_path)  # FMRL's own field now separates FMRL's groups, and only those
    assert made[:2] == want[:2]
    assert made[2:] == [want[2] + " order=second", want[2] + " order=first"]


def test_execution_does_not_separate_groups(tmp_path):
    make_run(tmp_path / "0", noise(0), noise(1, 5), seed=0)
    other = {"client_batch": 3, "save_every": 4, "eval_every": 1, "eval_clients": 2, "new_clients": 4}
    make_run(tmp_path / "1", noise(2), noise(3, 4), seed=1, **other)
    (group,) = finished.gather([tmp_path], print)
    assert len(group.runs) == 2
    np.testing.assert_array_equal(group.scores("eval_new"), [noise(1, 5)[:4], noise(3, 4)])


def test_the_engine_stands_in_the_title_or_separates_groups(tmp_path, capsys):
    for number, backend in enumerate(("native", "native", "fused")):
        make_run(tmp_path / backend / str(number), noise(number), seed=number, env="ant/velocity", backend=backend)
    assert "**ant/velocity on native physics, all clients**" in call(capsys, tmp_path / "native")[1]
    both = call(capsys, tmp_path)[1]
    assert "**ant/velocity, all clients**" in both and "fmrl backend=native" in both and "fmrl backend=fused" in both
    assert [row["backend"] for row in json.loads(call(capsys, tmp_path, "--json")[1])["rows"]] == ["fused", "native"]


def test_a_prolonged_run_counts_as_far_as_its_last_evaluation(tmp_path):
    make_run(tmp_path / "0", noise(0))
    make_run(tmp_path / "1", noise(0), seed=1)
    rundir.write_config(tmp_path / "1", build("fmrl", {"env": "probe/delayed", "rounds": 9, "seed": 1}))
    rundir.append(tmp_path / "1" / rundir.METRICS, {"round": 4, "sys/round_s": 1.0, "sys/env_steps_per_s": 2.0})
    (group,) = finished.gather([tmp_path], print)
    assert [run.config.rounds for run in group.runs] == [3, 3]
    assert [len(run.rounds) for run in group.runs] == [3, 3]


def test_rows_are_scipys_numbers(two, capsys):
    code, out, err = call(capsys, two, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["env"] == "probe/delayed"
    assert len(found["runs"]["fmrl"]) == 5
    row = found["rows"][0]
    scores = np.array([noise(seed, shift=1.0) for seed in range(5)])
    assert (row["group"], row["clients"], row["seeds"], row["num_clients"]) == ("fmrl", "all", 5, 12)
    assert row["env_steps"] == 3 * STEPS_PER_ROUND
    for j in range(3):
        per_seed = scores[:, :, j].mean(axis=1)
        assert row[f"adapt_{j}"] == pytest.approx(per_seed.mean())
        assert row[f"adapt_{j}_ci95"] == pytest.approx(2.7764451 * per_seed.std(ddof=1) / np.sqrt(5), rel=1e-6)
    assert row["iqm"] == pytest.approx(stats.trim_mean(scores[:, :, 1], 0.25, axis=None))
    assert row["iqm_low"] < row["iqm"] < row["iqm_high"]
    worst = np.sort(scores[:, :, 1])[:, :2].mean(axis=1)  # 2 = ceil(12 / 10)
    half = stats.t.ppf(0.975, 4) * stats.sem(worst)
    assert (row["worst_10"], row["worst_10_ci95"]) == pytest.approx((worst.mean(), half))
    assert "p_first_better" not in row


def test_first_group_against_the_others(two, capsys):
    rows = json.loads(call(capsys, two, "--json")[1])["rows"]
    wins = [noise(seed, shift=1.0)[:, 1] > noise(seed + 9)[:, 1] for seed in range(3)]  # the seeds that both have
    assert rows[1]["p_first_better"] == pytest.approx(np.mean(wins))
    assert rows[1]["p_first_better"] > 0.5
    assert rows[1]["p_first_better_low"] < rows[1]["p_first_better"] < rows[1]["p_first_better_high"]


def test_groups_without_a_common_seed_have_other_tasks_and_are_not_compared(tmp_path, capsys):
    make_run(tmp_path / "a", noise(0), seed=0)
    make_run(tmp_path / "b", noise(1), algorithm="fedavg", seed=1)
    assert "p_first_better" not in json.loads(call(capsys, tmp_path, "--json")[1])["rows"][1]
    assert "P(first row better)" in call(capsys, tmp_path)[1]


def test_new_clients_have_their_own_rows_when_all_runs_do(two, capsys):
    rows = json.loads(call(capsys, two, "--json")[1])["rows"]
    assert [(row["group"], row["clients"]) for row in rows] == [
        *[("fmrl", "all"), ("fedavg", "all")],
        *[("fmrl", "new"), ("fedavg", "new")],
    ]
    assert rows[2]["num_clients"] == 7
    assert rows[2]["adapt_0"] == pytest.approx(np.mean([noise(seed + 50, 7)[:, 0].mean() for seed in range(5)]))
    make_run(two / "c", noise(0), seed=5)
    rows = json.loads(call(capsys, two, "--json")[1])["rows"]
    assert {row["clients"] for row in rows} == {"all"}


def test_one_seed_has_no_interval(tmp_path, capsys):
    make_run(tmp_path / "a", noise(0))
    make_run(tmp_path / "b", noise(1), algorithm="fedavg")
    rows = json.loads(call(capsys, tmp_path, "--json")[1])["rows"]
    assert rows[0]["adapt_1"] == pytest.approx(noise(0)[:, 1].mean())
    names = ("adapt_1_ci95", "iqm_low", "iqm_high", "worst_10_ci95", "p_first_better_low", "p_first_better_high")
    assert {rows[1][name] for name in names} == {None}
    out = call(capsys, tmp_path)[1]
    assert out.splitlines()[-1].endswith("1 seed: no interval")
    assert "±" not in "".join(out.splitlines()[:-1])


def test_what_does_not_exist_is_a_dash(tmp_path, capsys):
    make_run(tmp_path / "a", noise(0, 12, 3))
    make_run(tmp_path / "b", noise(1, 12, 1), adapt_steps=0)
    make_run(tmp_path / "c", noise(1, 8, 2), adapt_steps=1, num_clients=100)  # no comparison of 12 clients with 8
    for name in "abc":
        (tmp_path / name / rundir.METRICS).unlink()
    lines = call(capsys, tmp_path)[1].splitlines()
    header, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    dashes = [[name for name, cell in zip(header, row, strict=True) if cell == "-"] for row in body]
    steps, p = ["1 step", "2 steps"], "P(first row better)"
    assert dashes == [
        ["env steps", p],
        ["env steps", *steps, "IQM", "worst 10 %", p],
        ["env steps", "2 steps", p],
    ]


def test_csv_and_json_hold_the_same_numbers(two, capsys):
    rows = json.loads(call(capsys, two, "--json")[1])["rows"]
    parsed = list(csv.DictReader(io.StringIO(call(capsys, two, "--format", "csv")[1])))
    assert len(parsed) == len(rows) == 4
    for cells, row in zip(parsed, rows, strict=True):
        assert None not in cells and None not in cells.values()
        assert set(row) <= set(cells)
        for name, cell in cells.items():
            value = row.get(name)
            assert cell == ("" if value is None else str(value))
    assert float(parsed[0]["adapt_2"]) == pytest.approx(
        np.mean([noise(seed, shift=1.0)[:, 2].mean() for seed in range(5)])
    )


def test_markdown(tmp_path, capsys):
    for seed in range(2):
        make_run(tmp_path / f"{seed}", [[-1.0 - seed, 10.0, 20.0]] * 4, seed=seed)
    lines = call(capsys, tmp_path)[1].splitlines()
    assert lines[0] == "**probe/delayed, all clients**"
    cells = [cell.strip() for cell in lines[4].split("|")[1:-1]]
    #        t_.975(1) = 12.706, s / sqrt(2) = 0.5
    want = ["-1.5 ± 6.4", "10.0 ± 0.0", "20.0 ± 0.0", "10.0 [10.0, 10.0]", "10.0 ± 0.0"]
    assert cells == ["fmrl", "2", "4", "3,840", *want]
    assert len({line.index("|", 5) for line in lines[2:5]}) == 1


def test_latex_is_booktabs_and_escaped(tmp_path, capsys):
    make_run(tmp_path / "0", [[-1.0, 10.0]] * 4, server_lr=0.001)
    make_run(tmp_path / "1", [[-1.0, 10.0]] * 4, server_lr=0.002)
    lines = call(capsys, tmp_path, "--format", "latex")[1].splitlines()
    body = [line for line in lines if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{lrrrrrrrr}"
    assert [body[i] for i in (1, 3, 6, 7)] == [r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"]
    assert r"worst 10 \%" in body[2]
    assert body[4].startswith(r"fmrl server\_lr=0.001 & 1 & 4 & 3,840 & $-$1.0 & 10.0 &")
    assert {line.count(" & ") for line in (body[2], *body[4:6])} == {8}
    assert tables._latex("a_b ± -1 50% \\ {x} #&$~^ a-b") == (
        r"a\_b $\pm$ $-$1 50\% \textbackslash{} \{x\} \#\&\$\textasciitilde{}\textasciicircum{} a-b"
    )


def test_unfinished_runs_are_left_out_by_name(two, capsys):
    make_run(two / "crashed", None, seed=7)
    make_run(two / "wild", [[np.nan, 1.0]], seed=8)
    code, out, err = call(capsys, two, "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["seeds"] == 5
    assert sorted(err.splitlines()) == [
        f"{two / 'crashed'} is left out: it has no final evaluation",
        f"{two / 'wild'} is left out: its final evaluation holds models that were not finite, and have no return; "
        "lower --inner-lr",
    ]


def test_mistakes_exit_2_with_a_line_that_says_what_to_do(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "crashed", None)
    make_run(tmp_path / "a/0", noise(0))
    make_run(tmp_path / "a/1", noise(1))
    make_run(tmp_path / "b/0", noise(0), env="navigation")
    for path, message in [
        (tmp_path / "missing", "is not a directory; give a run directory"),
        (tmp_path / "a/0/config.toml", "is not a directory; give a run directory"),
        (tmp_path / "empty", "holds no run: there is no config.toml in it or below"),
        (tmp_path / "crashed", "no run has a final evaluation to report"),
        (tmp_path / "a", f"{tmp_path / 'a/0'} and {tmp_path / 'a/1'} have the same configuration and seed 0"),
        (tmp_path, "the runs are of different environments (navigation, probe/delayed); report one at a time"),
    ]:
        code, out, err = call(capsys, path)
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]
    (tmp_path / "a/1/config.toml").write_text("schema = 1\nalgorithm = 'fmrl'\nsever = 'adam'\n")
    lines = []
    assert [len(group.runs) for group in finished.gather([tmp_path / "a"], lines.append)] == [1]
    assert "a/1/config.toml: unknown key 'sever'" in lines[0] and "did you mean server" in lines[0]


def test_figure_shows_the_means_and_needs_matplotlib(two, capsys, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: drawn.append(self))
    assert call(capsys, two, "--figure", two / "f.png")[0] == 0
    left, right = drawn[0].axes
    x, y = left.lines[1].get_data()
    np.testing.assert_allclose(x, [STEPS_PER_ROUND, 2 * STEPS_PER_ROUND, 3 * STEPS_PER_ROUND])
    np.testing.assert_allclose(y, [3.0, 4.0, 5.0])  # round + mean of the seeds 0 to 4
    band = left.collections[1].get_paths()[0].get_extents()
    half = 2.7764451 * np.std([0, 1, 2, 3, 4], ddof=1) / np.sqrt(5)
    np.testing.assert_allclose([band.ymin, band.ymax], [3 - half, 5 + half], rtol=1e-6)
    bars = right.containers[0]
    scores = np.array([noise(seed, shift=1.0).mean(axis=0) for seed in range(5)])
    np.testing.assert_allclose(bars[0].get_ydata(), scores.mean(axis=0))
    ends = np.array(bars[2][0].get_segments())[:, :, 1]
    np.testing.assert_allclose((ends[:, 1] - ends[:, 0]) / 2, 2.7764451 * stats.sem(scores), rtol=1e-6)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = call(capsys, two, "--figure", two / "f.png")
    assert (code, out) == (2, "")
    assert "pip install 'fedjax-rl[plot]'" in err


def test_curves_are_ten_round_means_of_long_runs():
    values = np.random.default_rng(0).normal(size=(2, 25))
    want = [np.convolve(row, np.ones(10) / 10, mode="valid") for row in values]
    np.testing.assert_allclose(plot._smooth(values), want, rtol=1e-12)
    np.testing.assert_array_equal(plot._smooth(values[:, :19]), values[:, :19])


def test_figure_is_written_or_the_reason_said(tmp_path, capsys):
    make_run(tmp_path / "run", noise(0))
    assert call(capsys, tmp_path / "run", "--figure", tmp_path / "f.png")[0] == 0
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = call(capsys, tmp_path / "run", "--figure", tmp_path / "no/f.png")
    assert (code, out) == (2, "")
    assert err.startswith("fedjax-rl: cannot write the figure") and err.count("\n") == 1


def test_report_and_figure_import_no_jax(tmp_path):
    make_run(tmp_path / "run", noise(0))
    code = (
        "import sys; from fedjax_rl import cli; code = cli.main(sys.argv[1:]);"
        "print(code, 'jax' in sys.modules, 'matplotlib' in sys.modules)"
    )
    for extra, want in ((), "0 False False"), (("--figure", str(tmp_path / "f.png")), "0 False True"):
        argv = [sys.executable, "-c", code, "report", str(tmp_path / "run"), *extra]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == want


def test_runs_that_ended_by_their_time_are_one_group_whatever_their_rounds(tmp_path):
    """A round takes two units of time; max_time = 100 is not reached."""
    for number, (rounds, limit) in enumerate(((3, 5.0), (4, 5.0), (3, 100.0), (4, 100.0))):
        path = make_run(
            tmp_path / str(number), noise(number), rounds=rounds, seed=number, speed="linear", max_time=limit
        )
        rows = records.sound(path / rundir.METRICS)
        (path / rundir.METRICS).write_text(records.text([{**row, "clock/time": 2.0 * row["round"]} for row in rows]))
    groups = finished.gather([tmp_path], print)
    assert [group.seeds for group in groups] == [[0, 1], [2], [3]]
    assert "max_time=5.0" in groups[0].label and "rounds=4" in groups[2].label
