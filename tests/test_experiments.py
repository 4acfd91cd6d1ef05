"""The table and the figures at the tiny scale, on real physics: they run, reuse what is there, and say what it is."""

import json
import runpy
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments import (
    agreement,
    ant,
    ant_velocity,
    asynchrony,
    by_seed,
    common,
    curvature,
    dynamics,
    efficiency,
    efficient,
    engines,
    fig1,
    fig2,
    fig3,
    fig4,
    fig5,
    fig6,
    many_clients,
    pole_lengths,
    queue,
    results,
    reuse,
    rollouts,
    servers,
    strategies,
    table1,
)
from fedjax_rl.config import CONFIGS, ConfigError
from fedjax_rl.envs import make_env
from fedjax_rl.reports.finished import FinishedRun
from fedjax_rl.runs import records, rundir

ENV = "half_cheetah/direction"
TINY = common.SCALES["tiny"]
METHODS = ("fmrl", "ditto")


@pytest.fixture(scope="module", autouse=True)
def plain_programs():
    """These tests are mostly compilation, and no figure of theirs matters."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    out = tmp_path_factory.mktemp("table1")
    table1.experiment(TINY, out, (ENV,), METHODS)
    return out


def test_the_table_holds_its_methods_their_budget_and_the_published_values(table):
    text = (table / "table1.md").read_text()
    scores = json.loads((table / "table1.json").read_text())
    assert list(scores[ENV]) == list(METHODS)
    assert {seed: len(row) for seed, row in scores[ENV]["fmrl"].items()} == {"0": 2, "1": 2}  # columns 0 and 1
    assert "457.02 ± 30.82" in text and "scale tiny: seeds 0, 1; 6,400 environment steps a run" in text
    assert text.count("FMRL above") == 1


def test_a_second_run_and_the_figures_of_the_same_runs_train_nothing(table):
    before = {p: p.stat().st_mtime_ns for p in table.rglob("metrics.jsonl")}
    assert len(before) == 2 * (3 * 2 + 2)  # rates and their seeds, seeds of the results
    for again in (table1, fig1, fig6):
        again.experiment(TINY, table, (ENV,), METHODS)
    assert {p: p.stat().st_mtime_ns for p in table.rglob("metrics.jsonl")} == before
    assert np.shape(json.loads((table / "fig6.json").read_text())[ENV]["ditto"]) == (2, 6)
    assert (table / "fig1.png").stat().st_size > 10_000 < (table / "fig6.png").stat().st_size


def test_runs_that_another_experiment_has_finished_are_taken_and_no_others(table, tmp_path):
    [rate] = {c.server_lr for c in map(rundir.open_run, (table / ENV / "fmrl").glob("seed*"))}
    equal = common.line(TINY, ENV, "equal", server_lr=rate)
    others = {
        "another seed": common.line(TINY._replace(seeds=(7,)), ENV, "7", server_lr=rate),
        "another rate": common.line(TINY, ENV, "rate", server_lr=rate * 1.1),
        "more steps": common.line(TINY, ENV, "steps", server_lr=rate, adapt_steps=2),
        "other evaluations": common.line(TINY, ENV, "evaluated", server_lr=rate, eval_every=2),
        "another engine": common.line(TINY, ENV, "engine", server_lr=rate, backend="mjx"),
        "another method": common.line(TINY, ENV, "fedavg", "fedavg", server_lr=rate),
    }
    members = equal | {name: c for some in others.values() for name, c in some.items()}
    assert reuse.reuse(members, tmp_path, (table,)) == list(equal)
    assert sorted(p.parent for p in tmp_path.rglob("*.jsonl")) == sorted([tmp_path / name for name in equal] * 2)
    common.run(TINY._replace(reuse=(table,)), equal, tmp_path)  # nothing to do: a run would make checkpoints
    for name, c in equal.items():
        source = table / ENV / "fmrl" / f"seed{c.seed}"
        assert json.loads((tmp_path / name / reuse.NOTE).read_text()) == {"source": str(source)}
        assert (tmp_path / name / rundir.METRICS).read_bytes() == (source / rundir.METRICS).read_bytes()
        assert rundir.open_run(tmp_path / name) == replace(c, backend=rundir.open_run(source).backend)
        assert not (tmp_path / name / rundir.CHECKPOINTS).exists()


def test_of_a_run_that_is_taken_only_what_was_asked_for_is_kept(tmp_path):
    """A source with two steps more, evaluated between its rounds: the last column is that of the step asked for."""
    asked = common.line(TINY._replace(seeds=(0,)), ENV, "a line")
    [(name, c)] = asked.items()
    source = tmp_path / "source" / name
    source.mkdir(parents=True)
    rundir.write_config(source, replace(c, adapt_steps=3, eval_every=1, backend="native"))
    for number, final in ((1, False), (2, False), (2, True)):
        means = {f"eval/return/adapt_{j}": {"mean": 10.0 * j, "ci95": None, "num_clients": 1} for j in range(4)}
        row = {"round": number, "final": final, **means, "eval/returns": [[0.0, 10.0, 20.0, 30.0]]}
        rundir.append(source / rundir.EVAL, row)
    assert reuse.reuse(asked, tmp_path / "out", (tmp_path / "source",)) == [name]
    [row] = records.sound(tmp_path / "out" / name / rundir.EVAL)
    assert row["final"] and row["eval/returns"] == [[0.0, 10.0]]
    assert [key for key in row if "adapt_" in key] == ["eval/return/adapt_0", "eval/return/adapt_1"]
    assert common.curve(tmp_path / "out", name, "eval/return/adapt_1") == {2: 10.0}
    # what is compared with it and has not begun has its engine, unless it asks for another
    others = {name: c, "auto": c, "mjx": replace(c, backend="mjx")}
    engines = [c.backend for c in reuse.on_one_engine(others, tmp_path / "out").values()]
    assert engines == ["auto", "native", "mjx"] and reuse.on_one_engine(others, tmp_path / "none") == others
    more = replace(c, new_clients=4), replace(c, final_clients=c.num_clients - 1)
    assert not any(reuse.serves(done, c) for done in more)


def test_mistakes_are_one_line_and_exit_code_2(table, tmp_path, monkeypatch, capsys):
    def another_rate(scale, out, envs):
        common.run(scale, common.over(scale, envs[0], "fmrl", server_lr=0.5), out)

    argv = ["--scale", "tiny", "--envs", ENV, "--out", str(table)]
    for more, said in (([], "was trained with server_lr"), (["--reuse", str(tmp_path / "no")], "no such directory")):
        monkeypatch.setattr("sys.argv", ["experiment", *argv, *more])
        with pytest.raises(SystemExit) as stopped:
            common.main("An experiment.", "table1", another_rate)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "names"),
    [
        (("--scale", "paper"), ("attacks", "audit", "bytes", "capability", "efficient", "engines", "privacy")),
        (("--envs", "navigation"), ("asynchrony", "attacks", "audit", "bytes", "fedpg_br", "pole_lengths", "values")),
        (("--jobs", "1"), ("audit",)),
        (("--reuse", "."), ("audit",)),
    ],
)
def test_an_option_that_would_do_nothing_is_not_there(option, names, monkeypatch, capsys):
    for name in names:
        monkeypatch.setattr("sys.argv", [name, *option])
        monkeypatch.delitem(sys.modules, f"experiments.{name}", raising=False)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(f"experiments.{name}", run_name="__main__")
        assert stopped.value.code == 2 and option[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "figure",
    [fig3, *(pytest.param(f, marks=pytest.mark.nightly) for f in (fig2, fig4, fig5))],
    ids=lambda f: f.__name__,
)
def test_the_figures_run(figure, tmp_path):
    figure.experiment(TINY, tmp_path, (ENV,))
    name = figure.__name__.rsplit(".", 1)[1]
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    scores = json.loads((tmp_path / f"{name}.json").read_text())[ENV]
    assert len(scores) > 2 and {len(columns["after"]) for columns in scores.values()} == {2}  # seeds


@pytest.mark.nightly  # a committed study's tables are made again below
def test_a_study_tabulates_every_line_with_its_worst_clients(tmp_path, monkeypatch):
    monkeypatch.setattr(curvature, "LINES", {k: curvature.LINES[k] for k in ("first order", "exact, log")})
    curvature.experiment(TINY, tmp_path, (ENV,))
    scores = json.loads((tmp_path / "curvature.json").read_text())[ENV]
    assert list(scores) == list(curvature.LINES)
    one = records.sound(tmp_path / ENV / "exact-log" / "seed1" / rundir.EVAL)[-1]["eval/returns"]
    after = sorted(row[1] for row in one)
    assert scores["exact, log"]["worst"][1] == pytest.approx(after[0])  # of 8 clients the worst tenth is one
    assert scores["exact, log"]["after"][1] == pytest.approx(np.mean(after))
    assert "scale tiny: seeds 0, 1" in (tmp_path / "curvature.md").read_text()


@pytest.mark.parametrize("seeds", (2, 3))
def test_two_seeds_have_no_band_and_three_have_student_ts(seeds, tmp_path):
    lines = {"a line": common.over(TINY._replace(seeds=tuple(range(seeds))), ENV, "a line")}
    for seed, name in enumerate(lines["a line"]):
        (tmp_path / name).mkdir(parents=True)
        times = {"sys/round_s": 1.0, "sys/env_steps_per_s": 1.0}
        rundir.append(tmp_path / name / rundir.METRICS, {"round": 1, common.SELECTED[0]: float(seed), **times})
    axes = common.pyplot().figure().subplots()
    common.draw(axes, tmp_path, lines, common.SELECTED[0])
    bands = [path.vertices[:, 1] for band in axes.collections for path in band.get_paths()]
    if seeds == 2:
        assert not bands
    else:  # of 0, 1, 2: their standard error is 1 / sqrt(3)
        half = scipy.stats.t.ppf(0.975, 2) / np.sqrt(3)
        assert np.allclose((bands[0].min(), bands[0].max()), (1 - half, 1 + half))


def test_figures_say_what_their_lines_are_and_no_more(tmp_path, monkeypatch):
    """Training curves are smoothed, evaluations are not; poles have neither thin lines nor bands."""
    drawn = []
    monkeypatch.setattr(common, "finish", lambda figure, *_: drawn.append(figure))
    monkeypatch.setattr(common, "run", lambda *_: None)
    lines = {"a line": common.over(TINY, ENV, "a line")}
    common.curves(TINY, tmp_path, (ENV,), lambda _: lines, (common.SELECTED, common.EVALUATED), "x")
    titles = [ax.get_title().partition("\n")[2] for ax in drawn[0].axes]
    assert titles == ["selected clients after one step, 2-round means", "evaluated clients, after one step"]
    said = []
    monkeypatch.setattr(pole_lengths, "finish", lambda figure, path, note, marks="thin: bands": said.append(marks))
    some = {name: {1: np.ones((2, 4, 2))} for name in ("independent", "fedavg", "fmrl")}
    pole_lengths.draw(some, np.array([[0.2, 0.4, 0.6, 0.8]] * 2), tmp_path / "x.png", "a note")
    assert said == ["points: clients of all seeds; lines: means in ranges of length"]


@pytest.mark.parametrize("scale", common.SCALES)
@pytest.mark.parametrize("module", [ant, curvature, dynamics, efficiency, many_clients, servers, strategies])
def test_a_studys_lines_have_one_budget_and_differ(module, scale, tmp_path, monkeypatch):
    """Nothing is run: the members of every line, at every scale."""
    seen, panels = {}, [common.SELECTED]

    def study(scale, out, envs, lines, *_, **options):
        seen.update(lines(envs[0]))
        panels[:] = options.get("panels", panels)

    monkeypatch.setattr(module, "study", study)
    monkeypatch.setattr(
        module, "tuned_rate", lambda scale, out, env, label, name, rates, *_, **__: rates[0], raising=False
    )
    env = getattr(module, "ENVS", common.ENVS)[0]
    module.experiment(common.SCALES[scale], tmp_path, (env,))
    members = {name: c for some in seen.values() for name, c in some.items()}
    assert len({replace(c, seed=0) for c in members.values()}) == len(seen) > 2
    assert all(c.env == env and name.startswith(f"{env}/") for name, c in members.items())
    budgets = {c.rounds if module is many_clients else common.env_steps(c) for c in members.values()}
    assert max(budgets) <= 2 * min(budgets) or not common.SCALES[scale].matched
    if common.SELECTED in panels:  # or the figure would lack lines
        assert {c.algorithm for c in members.values()} <= {"fmrl", "per_fedavg", "meta_sgd"}
    if common.EVALUATED in panels:
        assert all(c.eval_every for c in members.values())


# whose rounds select clients, with one set of options for all
ALL_WORK = ("fedhpd", "dpa_fedrl", "npg_admm", "dqn_avg")
MATCHED = [name for name in CONFIGS if name not in ALL_WORK and CONFIGS[name]().schedule == "sync"]


@pytest.mark.parametrize("scale", ["tiny", "laptop"])
@pytest.mark.parametrize("method", MATCHED)
def test_matched_methods_take_the_samples_of_fmrl(scale, method):
    """Per-FedAvg and Reptile take several batches a client: their cohorts are smaller, down to a client at least."""
    ours, theirs = (common.env_steps(common.configure(common.SCALES[scale], m, ENV)) for m in ("fmrl", method))
    assert theirs == pytest.approx(ours, rel=0.5 if method in ("per_fedavg", "reptile") else 0)


def test_the_paper_scale_is_the_published_one():
    scale = common.SCALES["paper"]
    c = common.configure(scale, "fedavg", "ant/velocity")
    assert (c.clients_per_round, c.rounds, c.server_lr, c.local_lr, scale.seeds) == (
        40,
        500,
        0.001,
        0.001,
        (0, 1, 2, 3, 4),
    )
    assert common.configure(scale, "ditto", ENV, **table1.chosen(scale, ENV, "ditto", None)).local_lr == 0.01
    assert common.configure(scale, "fmrl", ENV).server_lr == 0.0005
    assert common.env_steps(common.configure(scale, "fmrl", ENV)) == 160_000_000


def test_variants_of_fmrl_differ_from_it_as_they_say_and_nothing_is_claimed_of_them(tmp_path):
    scale = common.SCALES["paper"]

    def one(method):
        return next(iter(table1.cell(scale, ENV, method, table1.chosen(scale, ENV, method, tmp_path)).values()))

    plain = one("fmrl")
    assert one("fmrl-clip") == replace(plain, max_change_norm=0.002)
    assert one("fmrl-exact") == replace(plain, order="second") and plain.order == "first"
    two = lambda first, second: {0: [0, first], 1: [0, second]}
    scores = {"fmrl": two(3, 4), "fedavg": two(1, 2), "fmrl-clip": two(5, 6)}
    assert table1.orderings(ENV, scores) == [
        "- FMRL above fedavg after one step: held; difference 2.0 [2.0, 2.0]",
        "- FMRL against fmrl-clip after one step: difference -2.0 [-2.0, -2.0]",
    ]
    assert "published" not in "".join(
        table1.table(ENV, {"fmrl-clip": scores["fmrl-clip"]}, {f"{ENV}/fmrl-clip/": replace(plain, adapt_steps=1)})
    )
    with pytest.raises(ConfigError, match="fmrl-clip is for --scale paper; at the tiny scale fmrl is it already"):
        table1.chosen(TINY, ENV, "fmrl-clip", tmp_path)


def test_a_run_that_diverged_is_named_and_pairs_are_of_the_same_seed(tmp_path):
    """FMRL leads by 1, 2 and 6. Without its seed 1 the others' rows stay with their own seeds."""
    scale = common.SCALES["laptop"]
    members = {name: c for method in METHODS for name, c in table1.cell(scale, ENV, method, {}).items()}
    returns = {"fmrl": (11.0, None, 36.0), "ditto": (10.0, 20.0, 30.0)}
    for name, c in members.items():
        if (after := returns[name.split("/")[2]][c.seed]) is not None:
            (tmp_path / name).mkdir(parents=True)
            means = {f"eval/return/adapt_{j}": {"mean": after} for j in range(c.adapt_steps + 1)}
            row = {"round": c.rounds, "final": True, **means, "eval/returns": [[after] * (c.adapt_steps + 1)]}
            rundir.append(tmp_path / name / rundir.EVAL, row)
    table1.write(scale, tmp_path, members)
    assert json.loads((tmp_path / "table1.json").read_text())[ENV]["fmrl"]["1"] is None
    text = (tmp_path / "table1.md").read_text()
    assert f"| fmrl | 0.0015 | 5,120,000 |{' diverged |' * 4}" in text and "20.0 ± 24.8 |" in text
    half = scipy.stats.t.ppf(0.975, 1) * np.std([1, 6], ddof=1) / np.sqrt(2)
    claim = "- FMRL above ditto after one step: undecided; difference 3.5"
    assert f"{claim} [{3.5 - half:.1f}, {3.5 + half:.1f}], of seeds 0, 2 alone: a run diverged" in text
    nobody = {"fmrl": {0: None, 1: [0, 3]}, "ditto": {0: [0, 1], 1: None}}
    assert table1.orderings(ENV, nobody) == [
        "- FMRL above ditto after one step: undecided: a run diverged on every seed"
    ]


def test_the_queue_of_the_papers_scale_has_every_cell_of_the_table():
    """Of an environment first, without the exact gradient; then of all."""
    text = (results.ROOT / "experiments" / "paper.queue").read_text()
    *some, whole = [line.split() for line in queue.commands(text) if "experiments.table1" in line]
    every = {*common.METHODS, *table1.VARIANTS}
    assert sorted(words[words.index("--envs") + 1] for words in some) == sorted(common.ENVS)
    for words in some:
        assert {*words[words.index("--methods") + 1 :]} == every - {"fmrl-exact"}
    assert "--envs" not in whole and {*whole[whole.index("--methods") + 1 :]} == every


@pytest.mark.parametrize("scale", common.SCALES)
def test_ant_velocitys_lines_have_one_budget_and_differ(scale):
    lines = ant_velocity.lines(common.SCALES[scale])
    members = {name: c for some in lines.values() for name, c in some.items()}
    assert len({replace(c, seed=0) for c in members.values()}) == len(lines) == len(ant_velocity.CHANGES)
    [budget] = {common.env_steps(c) for c in members.values()}
    assert budget == {"tiny": 16_000, "laptop": 4_000_000, "paper": 40_000_000}[scale]


def test_ant_velocitys_rules_differ_from_the_published_ones_as_they_say():
    """On C MuJoCo: a step, and a fall."""
    own = {name: make_env(rule, backend="native") for name, rule in ant_velocity.RULES.items()}
    env, task, action = make_env("ant/velocity", backend="native"), jnp.float32(2.5), jnp.full(8, 3.0)
    start = env.reset(jax.random.key(0), task)
    plain = env.step(start, action, task)
    steps = [jax.jit(rule.step) for rule in (env, own["no_end"])]
    both, fell = [start, start], False
    for i in range(100):
        hard = jax.random.choice(jax.random.key(i), jnp.array([-10.0, 10.0]), (8,))
        both = [step(state, hard, task) for step, state in zip(steps, both, strict=True)]
        fell |= bool(both[0].done)
        assert not both[1].done and both[0].reward == both[1].reward
    assert fell
    assert np.allclose(own["paid"].step(start, action, task).reward, plain.reward + 2.0)
    full = own["full_range"].step(start, action / 10, task)
    assert np.allclose(full.physics.qpos, plain.physics.qpos, atol=1e-6)
    assert own["twice_as_long"].spec.horizon == 2 * env.spec.horizon == 200
    theirs = own["gym"].step(start, action, task).physics.qpos
    assert 1e-5 < np.abs(theirs - plain.physics.qpos).max() < 0.1  # near, by another integrator


def test_returns_by_speed_are_the_means_of_their_clients():
    rows = [{"speeds": [0.5, 1.5, 2.5, 0.7], "returns": [[0, 1], [0, 2], [4, 3], [0, 5]]}]
    assert ant_velocity.columns_of(rows) == {
        "before": [1.0],
        "after": [2.75],
        "0 to 1": [3.0],
        "1 to 2": [2.0],
        "2 to 3": [3.0],
    }
    assert ant_velocity.columns_of([{"speeds": [0.5], "returns": [[0, 1]]}])["1 to 2"] == [None]


def test_a_value_is_reached_where_the_seeds_mean_stays_above_it(tmp_path):
    for name, values in {"a": (1.0, 5.0, 2.0, 6.0), "b": (3.0, 7.0, 2.0, 8.0)}.items():
        (tmp_path / name).mkdir()
        for number, value in zip((10, 20, 30, 40), values, strict=True):
            means = {efficient.EVALUATED[0]: {"mean": value, "ci95": 0.0, "num_clients": 1}}
            row = {"round": number, "final": False, **means, "eval/returns": [[0.0, value]]}
            rundir.append(tmp_path / name / rundir.EVAL, row)
    some = dict.fromkeys("ab")
    assert efficient.reached(tmp_path, some, 3.0, 0.5) == "20"  # means 2, 6, 2, 7: round 20 does not last
    assert efficient.reached(tmp_path, some, 2.0, 0.5) == "5"
    assert efficient.reached(tmp_path, some, 7.5, 0.5) == "not reached"


@pytest.mark.parametrize("scale", common.SCALES)
@pytest.mark.parametrize("env", common.ENVS)
def test_the_efficient_preset_is_run_on_seeds_that_it_was_not_chosen_on(env, scale):
    members = efficient.members(common.SCALES[scale], env)
    assert not {c.seed for c in members.values()} & {100, 101, 102, 103, 104}
    assert len({replace(c, seed=0) for c in members.values()}) == 1
    if scale != "tiny":
        [steps] = {common.env_steps(c) for c in members.values()}
        assert len(members) == 10 and steps == (16_000_000 if env.startswith("ant/") else 8_000_000)


def test_engines_are_compared_seed_by_seed():
    """Differences of 1, 2 and 3: mean 2, standard error .577, t = 3.46, so that p = 1 - t / sqrt(t^2 + 2) = .074."""
    by_engine = {
        "native": {str(s): [s, s] for s in (1, 2, 3)},
        "fused": {str(s): [2 * s, s - s % 2] for s in (3, 1, 2)},
    }
    title, _, _, _, apart, equal = engines.table(by_engine)
    assert title == "3 seeds on native, 3 seeds on fused"
    assert apart == "| 0 | 2.0 ± 2.5 | 1.5 / 2.0 / 2.5 | 4.0 ± 5.0 | 3.0 / 4.0 / 5.0 | 2.0 [-0.5, 4.5] | 0.07 |"
    assert equal.endswith("| -0.7 [-2.1, 0.8] | 0.18 |")  # t = -2: 1 - 2 / sqrt(6)


def test_a_comparison_of_engines_goes_on_where_its_file_ends(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(engines, "run", lambda scale, members, out: ran.extend(members))
    monkeypatch.setattr(engines, "finals", lambda out, some: {name: {"eval/returns": [[1.0], [3.0]]} for name in some})
    means = {ENV: {"native": {"0": [5.0], "1": [6.0]}, "fused": {"0": [7.0]}}}
    begun = {"configurations": engines.configurations(TINY, means), "means": means}
    (tmp_path / "engines.json").write_text(json.dumps(begun))
    engines.experiment(TINY, tmp_path, (ENV,))
    assert ran == [f"{ENV}/fused/seed1"]
    found = json.loads((tmp_path / "engines.json").read_text())["means"][ENV]
    assert found == {"native": {"0": [5.0], "1": [6.0]}, "fused": {"0": [7.0], "1": [2.0]}}
    said = (tmp_path / "engines.md").read_text()
    assert f"## {ENV}, preset tiny\n\n2 seeds on native, 2 seeds on fused\n" in said


def test_figures_of_other_configurations_are_not_gone_on_with(tmp_path, monkeypatch):
    """Of another preset, and of nobody knows which; the committed file is of today's."""
    means = {ENV: {"native": {"0": [5.0]}, "fused": {"0": [7.0]}}}
    other = {"configurations": engines.configurations(common.SCALES["laptop"], means), "means": means}
    monkeypatch.setattr(engines, "run", lambda *_: pytest.fail("was run"))
    for found in (other, means):
        (tmp_path / "engines.json").write_text(json.dumps(found))
        with pytest.raises(ConfigError, match=r"engines.json has figures of other configurations than today's"):
            engines.experiment(TINY, tmp_path, (ENV,))
    committed = engines.read(common.SCALES["laptop"], results.HOME / "engines" / "engines.json")
    assert len(committed[ENV]["fused"]) == 12


def test_a_digest_is_of_what_decides_a_runs_figures_but_its_seed():
    c = next(iter(engines.members(common.SCALES["laptop"], ENV, "native").values()))
    same = (replace(c, seed=5), replace(c, save_every=c.save_every + 1))
    others = (replace(c, server_lr=0.5), replace(c, adapt_steps=1), replace(c, final_clients=7), replace(c, rounds=9))
    assert {engines.digest(x) for x in same} == {engines.digest(c)}
    assert len({engines.digest(x) for x in (c, *others)}) == 5


def test_engines_differ_in_nothing_else():
    for env, (_, seeds) in engines.RUNS.items():
        one, two = (engines.members(common.SCALES["laptop"], env, engine) for engine in engines.ENGINES)
        assert len(one) == seeds
        for a, b in zip(one.values(), two.values(), strict=True):
            assert a != b and replace(a, backend="fused") == b


def test_changes_agree_as_their_signal_and_noise_say():
    """Against the closed form for signals s and noise of variance v: cos = |s|^2 / (|s|^2 + v d), d large."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(3, 1, 4000)) * 2.0
    found = agreement.agreement(signal + rng.normal(size=(3, 20, 4000)))
    assert found["cosine"] == pytest.approx(4 / 5, abs=0.01)
    assert found["median_norm"] == pytest.approx(np.sqrt(5 * 4000), rel=0.02)


@pytest.mark.nightly  # the cosines are guarded above, the opening of a run by the long rollouts below
def test_the_agreement_of_a_runs_changes_is_that_of_its_clients(table):
    """From the saved parameters, which training has moved; every replica has episodes of its own."""
    path = table / ENV / "fmrl" / "seed0"
    config = rundir.open_run(path)
    state = agreement.restored(config, path, None)
    assert state.round == config.rounds
    vectors = agreement.changes(config, state)
    assert vectors.shape[:2] == (8, agreement.REPLICAS)
    assert np.isfinite(vectors).all() and len(np.unique(vectors[..., 0])) == vectors.shape[0] * vectors.shape[1]
    # the same keys from other parameters: other changes
    assert not np.allclose(vectors, agreement.changes(config, agreement.restored(config, path, 0)))


def test_long_rollouts_are_compared_by_their_standard_errors(table, monkeypatch, capsys):
    """A few steps from the same states with the same noise: two engines show the same to three digits."""
    path = table / ENV / "fmrl" / "seed0"
    monkeypatch.setattr("sys.argv", ["rollouts", str(path), "--steps", "4", "--each", "3"])
    rollouts.main()
    title, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert title == f"{ENV}: 24 rollouts of 4 steps on each engine" and len(rows) == 5
    for row in rows:
        native, fused = (float(cell.split(" ± ")[0]) for cell in row.split("|")[2:4])
        assert native == pytest.approx(fused, rel=1e-3)
    one = {"height": np.array([[0.0, 2.0], [10.0, 12.0]])}  # deviations^2 of 2 in both clients: an error of sqrt(2 / 4)
    other = {
        "height": np.array([[0.0, 4.0], [10.0, 12.0]])
    }  # differences 0, 2, 0, 0: 1/2, with an error of sqrt(1 / 4)
    assert rollouts.table({"native": one, "fused": other})[2] == "| height | 6 ± 0.71 | 6.5 ± 1.1 | +1.00 |"
    monkeypatch.setattr("sys.argv", ["rollouts", str(table / ENV / "ditto" / "seed0")])
    with pytest.raises(SystemExit, match="2"):
        rollouts.main()
    assert "is a run of ditto: choose one of fmrl" in capsys.readouterr().err


def test_a_committed_study_is_made_again_byte_for_byte(tmp_path):
    """The figure too where the libraries are those that drew it."""
    study = "curvature_velocity"
    about = tomllib.loads((results.HOME / study / "study.toml").read_text())
    differing = results.make(study, tmp_path)
    drawn_alike = all(about["versions"][name] == version(name) for name in results.DRAWN_BY)
    assert differing == [] if drawn_alike else "curvature.md" not in differing
    assert set(about["outputs"]) <= {path.name for path in tmp_path.iterdir()}


def test_archives_are_packed_the_same_again_and_damage_is_named(tmp_path, monkeypatch):
    home = results.HOME / "curvature_velocity"
    shutil.copytree(home, tmp_path / "curvature_velocity")
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    monkeypatch.setattr(results, "HOME", tmp_path)
    results.pack("curvature_velocity", reuse.unpacked(home / "runs.tar.xz"))
    after = {path.name: path.read_bytes() for path in (tmp_path / "curvature_velocity").iterdir()}
    assert {name for name in after if after[name] != before[name]} <= {"study.toml"}  # versions of this machine
    archive = tmp_path / "curvature_velocity" / "runs.tar.xz"
    archive.write_bytes(before["runs.tar.xz"][:-40] + bytes(40))
    with pytest.raises(ConfigError, match=r"runs.tar.xz is damaged: its sha256 is not that of study.toml"):
        reuse.unpacked(archive)


def test_curves_have_every_evaluation_and_the_last_round(tmp_path):
    times = {"sys/round_s": 1.0, "sys/env_steps_per_s": 1.0}
    with open(tmp_path / rundir.METRICS, "w") as file:
        file.write(records.text([{"round": r, "train/return/adapt_0": float(r), **times} for r in range(1, 451)]))
    for number, final in ((2, False), (333, True)):
        means = {"eval/return/adapt_1": {"mean": 0.5}}
        rundir.append(tmp_path / rundir.EVAL, {"round": number, "final": final, **means, "eval/returns": [[0.5]]})
    rows = results.curve(tmp_path, "a run")
    assert [row["round"] for row in rows] == sorted({*range(1, 451, 3), 2, 333, 450})
    assert [row["round"] for row in rows if "eval/return/adapt_1" in row] == [2, 333]
    assert all(row["train/return/adapt_0"] == f"{row['round']}" for row in rows)
    assert results.curve(tmp_path / "nothing", "a run") == []


def test_runs_are_set_out_by_seed(tmp_path):
    for seed, value in ((0, 1.0), (1, 3.0), (2, None)):
        for line in ("a", "b")[: 1 if value is None else 2]:
            path = tmp_path / line / f"seed={seed}"
            path.mkdir(parents=True)
            rundir.write_config(path, common.configure(TINY, "fmrl", ENV, seed=seed, backend="native"))
            row = {"round": 1, "final": value is not None, "eval/return/adapt_1": {"mean": value}}
            rundir.append(path / rundir.EVAL, {**row, "eval/returns": [[0.0, value]]})
    assert by_seed.table(tmp_path)[2:] == ["| a | 0, 1, 2 | 1.0, 3.0, - | - |", "| b | 0, 1 | 1.0, 3.0 | 2.0 |"]


def test_an_output_may_lie_in_a_directory_of_its_own(tmp_path, monkeypatch):
    def make(study, out):
        (out / "a").mkdir()
        (out / "a" / "b.md").write_text("new")
        return ["a/b.md"]

    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.toml").touch()
    monkeypatch.setattr(results, "HOME", tmp_path)
    monkeypatch.setattr(results, "make", make)
    monkeypatch.setattr("sys.argv", ["results", "study", "--write"])
    with pytest.raises(SystemExit) as end:
        results.main()
    assert end.value.code == 0 and (tmp_path / "study" / "a" / "b.md").read_text() == "new"


def test_the_repository_has_no_path_with_a_space_or_a_comma():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=results.ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    names = listed.stdout.split("\0")
    assert len(names) > 100 and not [name for name in names if {" ", ","} & set(name)]


@pytest.mark.nightly
@pytest.mark.parametrize("part", asynchrony.PARTS)
def test_every_part_of_a_federation_on_a_clock_makes_its_table_and_figure(part, tmp_path):
    asynchrony.experiment(common.SCALES["tiny"], tmp_path, (), (part,))
    assert (tmp_path / f"{part}.png").stat().st_size > 10_000
    rows = [line for line in (tmp_path / f"{part}.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) >= 3 and all(" ± " in row or row.startswith("| |") or "never" in row for row in rows)


def test_what_is_reached_is_told_by_where_it_is_first(tmp_path):
    rows = [{"round": r, "clock/time": float(r), "train/return/adapt_0": float(r in (20, 80))} for r in range(1, 101)]
    part = asynchrony.Part({}, wanted=0.5)
    assert asynchrony.reached(FinishedRun(tmp_path, common.config.Config(), {}, rows), part) == 21.0  # it falls again
    page = asynchrony.table({"a title": {"a line": {"reached": [19.0]}}}, {"a title": {"a line": "1"}}, part)
    assert "virtual time when it first reaches 0.5" in page[2]


def test_a_curve_is_the_mean_of_equal_parts_of_its_axis(tmp_path):
    rows = [{"round": r, "clock/time": float(r), "train/return/adapt_0": 2.0 * r} for r in range(1, 101)]
    x, y = asynchrony.curve(FinishedRun(tmp_path, common.config.Config(), {}, rows), "virtual_time")
    np.testing.assert_allclose(x, np.arange(1, 100, 2))
    assert y[1] == 2 * (2 + 3) / 2 and y[-1] == 2 * (98 + 99 + 100) / 3
