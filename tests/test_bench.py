"""The benchmarks measure what they say; how fast this machine is, no test asks."""

import itertools
import json

import jax
import numpy as np
import pytest

from fedjax_rl import config
from fedjax_rl.bench import bench, rows, show, trust
from fedjax_rl.bench.physics import one_step_error
from fedjax_rl.bench.round import make_replay, make_sampling
from fedjax_rl.cli import main
from fedjax_rl.config import presets
from fedjax_rl.runs import assemble

ENV = "half_cheetah/direction"


@pytest.mark.parametrize("env", [ENV, pytest.param("ant/direction", marks=pytest.mark.nightly)])
def test_the_replay_is_the_rounds_own_physics(env):
    """Without the last action it ends where the rollouts stood before theirs."""
    values = {"env": env, "backend": "native", "clients_per_round": 2, "episodes": 2}
    run = assemble.make_run(config.build("fmrl", presets.preset("paper", "fmrl", env), values))
    batches = make_sampling(run, assemble.initial_state(run))()
    last = np.asarray(batches[1].obs)[:, :, -1].reshape(4, -1)
    whole = np.asarray(batches[1].mask)[:, :, -1].reshape(4)
    ended = make_replay(env, [b._replace(action=b.action[:, :, :-1]) for b in batches])().astype(np.float32)
    wanted = np.concatenate([last[:, 17:18], last[:, :8]], axis=1) if env == ENV else last[:, :15]
    np.testing.assert_allclose(ended[whole], wanted[whole], rtol=1e-5, atol=1e-6)
    assert whole.any()


@pytest.mark.nightly
def test_the_exact_gradient_costs_at_most_twice_the_first_order_ones_operations():
    [found] = bench("update", ENV, "native", (2,), 1)
    assert 1.5 <= found["exact_to_first_flops"] <= 2.0
    assert found["clients"] == 2 and found["versions"]["jax"] == jax.__version__


def test_accuracy_is_that_of_the_engine():
    """Native is C MuJoCo at its default tolerance, seen in float32."""
    assert one_step_error(ENV, "native") <= 1e-6


def test_steps_of_episodes_that_are_over_are_not_counted():
    """No pole falls within eight steps, and not every one stands for twenty under random actions."""
    pytest.importorskip("gymnasium")
    from fedjax_rl.bench import envs

    taken = np.asarray(envs.ours("gym", "CartPole-v1", 50)()).sum(axis=1)
    assert taken.min() >= 8 and taken.max() == 20 and 16 < taken.mean() < 20
    found = bench("envs", ENV, "auto", (2,), 1)
    assert [row["env"] for row in found] == ["CartPole-v1", "LunarLander-v3"]
    assert all(row["gym_range"][0] <= row["gym_steps_per_s"] <= row["gym_range"][1] for row in found)


def test_what_is_not_finite_is_not_timed():
    with pytest.raises(FloatingPointError):
        rows.timed(lambda: jax.numpy.array([1.0, float("nan")]))


def test_rows_are_written_once(tmp_path, capsys):
    out = tmp_path / "rows.json"
    show([rows.row("P0", ratio=1.25)], as_json=True, out=out)
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out)
    assert main(["bench", "physics", "--out", str(out)]) == 2
    assert "exists; choose another name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["speed"], "--what speed: must be one of physics, update, round"),
        (["physics", "--sizes", "64,0"], "--sizes 64,0: must be integers from 1"),
        (["memory", "--sizes", "200,40,1000"], "memory: N,M pairs"),
        (["physics", "--env", "navigation"], "--env navigation: must be one of half_cheetah/..., ant/..."),
        (["round", "--repeats", "0"], "--repeats 0: must be at least 1"),
    ],
)
def test_bad_input_is_one_line(options, said, capsys):
    assert main(["bench", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_one_network_has_the_parameters_of_ten_unlike_ones():
    from fedjax_rl.bench import kinds
    from fedjax_rl.config.kinds import parse

    def size(hidden):
        return sum((i + 1) * j for i, j in itertools.pairwise((4, *hidden, 2)))

    text, one = kinds.unlike(200)
    ten = parse(text)
    assert [kind.count for kind in ten] == [20] * 10
    assert size(one) == pytest.approx(np.mean([size(kind.hidden) for kind in ten]), rel=0.02)


@pytest.mark.nightly
def test_unlike_networks_are_timed_beside_one_and_beside_a_loop():
    few, alone = bench("kinds", ENV, "auto", (1,), 1)
    assert few["episodes"] == 1 and few["speed_of_one_kind"] == few["one_kind_s"] / few["ten_kinds_s"]
    assert alone["loop_over_program"] == alone["a_loop_over_agents_s"] / alone["one_program_s"] > 1


@pytest.mark.nightly
def test_what_trust_costs_is_set_beside_a_round():
    rows = bench("trust", ENV, "auto", (4,), 1)
    assert {row["what"] for row in rows} == {*trust.CASES}
    for row in rows:
        assert row["clients_per_round"] == 4 and row["parameters"] > 1000
        assert row["share_of_round"] == row["part_s"] / row["round_s"]


@pytest.mark.nightly
def test_jobs_at_times_of_their_own_are_compared_with_those_of_rounds():
    late, buffered = bench("async", "half_cheetah/run", "native", (2,), 1)
    assert (late["clients"], late["lanes"], late["cohort"]) == (2, 1, 2) and late["lanes_used"] == 1.0
    assert (buffered["what"], buffered["lanes"], buffered["cohort"]) == ("FedBuff", 10, 10)
    assert late["job_over_synchronous"] == late["job_s"] / late["synchronous_job_s"]
