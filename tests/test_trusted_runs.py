"""Runs that compress, are attacked, are private: refused in a line, resumed, swept, replayed, reported."""

import inspect
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from fedjax_rl import config
from fedjax_rl.cli import main
from fedjax_rl.config import ConfigError, presets, trust
from fedjax_rl.config.notices import notices
from fedjax_rl.federation import accountant, aggregators, attacks, compress, robust, simulate
from fedjax_rl.host import numerics, registry
from fedjax_rl.runs import assemble, nan_dump, privacy, records, rundir, runner, scoring, trusting
from fedjax_rl.runs.progress import Reporter
from fedjax_rl.runs.recorder import Hooks
from test_train import SMALL, assert_same_run, go, resume

QUIET = Reporter(quiet=True)
DP = {"dp_clip": 0.1, "dp_noise": 1.0}
SECURE = {"secagg_bits": 16, "secagg_range": 1.0}
REFUSED = {
    "dp_clip: dp_epsilon = 0 and dp_noise = 0; give one of them": {"dp_clip": 0.1},
    "dp_noise = 1.0: only with dp_clip": {"dp_noise": 1.0},
    "dp_where = 'local': only with dp_clip": {"dp_where": "local"},
    "dp_epsilon = -1.0: must be a number, 0 to": {"dp_clip": 0.1, "dp_epsilon": -1.0},
    "dp_delta = 0.01: must be below 1/num_clients = 0.005": {**DP, "dp_delta": 0.01},
    "dp_delta = 0.0001: must be below 1/dp_population = 0.0001": {
        **DP, "dp_delta": 1e-4, "dp_population": 10_000, "selection": "poisson"},
    "dp_population = 100: must be at least num_clients = 200": {**DP, "dp_population": 100, "selection": "poisson"},
    "dp_population = 1000: needs selection = 'poisson'": {**DP, "dp_population": 1000},
    "dp_quantile = 0.5: not with dp_population": {
        **DP, "dp_population": 1000, "selection": "poisson", "dp_quantile": 0.5},
    "secagg_bits = 24: 270 clients overflow": {
        **SECURE, "secagg_bits": 24, "num_clients": 1000, "clients_per_round": 230, "selection": "poisson"},
    "dp_clip: not with aggregator = 'median': its sensitivity": {**DP, "aggregator": "median"},
    "dp_noise_kind = 'banded': needs selection = 'cyclic', not 'uniform'": {**DP, "dp_noise_kind": "banded"},
    "dp_quantile = 0.5: not with banded noise": {
        **DP, "dp_noise_kind": "banded", "selection": "cyclic", "dp_quantile": 0.5},
    "dp_quantile = 0.5: the noisy quantile takes all of dp_noise = 4.0": {**DP, "dp_noise": 4.0, "dp_quantile": 0.5},
    "dp_quantile = 0.5: not with dp_where = 'local'": {**DP, "dp_where": "local", "dp_quantile": 0.5},
    "dp_clip: not with schedule = 'async'": {**DP, "schedule": "async"},
    "selection = 'cyclic': clients_per_round = 30 must divide num_clients = 200; 25 does": {
        "selection": "cyclic", "clients_per_round": 30},
    "selection = 'poisson': only with schedule = 'sync'": {"selection": "poisson", "schedule": "async"},
    "wait_for = 3: not with selection = 'poisson'": {"selection": "poisson", "wait_for": 3, "speed": "linear"},
    "byzantine = 0.3: bulyan needs clients_per_round >= 51 for 12 attackers, not 40": {
        "aggregator": "bulyan", "byzantine": 0.3},
    "byzantine = 0.4: krum needs clients_per_round >= 11 for 4 attackers, not 10": {
        "aggregator": "krum", "byzantine": 0.4, "clients_per_round": 10},
    "bucket+geomed needs clients_per_round >= 41 for 10": {"aggregator": "bucket+geomed", "byzantine": 0.25},
    "downlink_bits = 1: must be 0 (off) or 2 to 16": {"downlink_bits": 1},
    "compress_ratio = 0.0: must be a number, more than 0": {"compress_ratio": 0.0},
    "feedback = 'ef21': nothing is compressed": {"feedback": "ef21"},
    "secagg_range = 1.0: only with secagg_bits": {"secagg_range": 1.0},
    "secagg_bits = 3: must be 0 (off) or 4 to 24": {**SECURE, "secagg_bits": 3},
    "secagg_range = 0: a secure sum needs the largest size": {"secagg_bits": 16},
    "secagg_bits: only the sum is seen, and aggregator = 'median' looks": {**SECURE, "aggregator": "median"},
    "secagg_bits: only the sum is seen, and nan_dump looks": {**SECURE, "nan_dump": 1},
    "secagg_bits: only the sum is seen, and dp_quantile looks": {**SECURE, **DP, "dp_quantile": 0.5},
    "need every coordinate, and compress = 'sign' sends others": {**SECURE, "compress": "sign"},
    "secagg_bits = 24: 300 clients overflow 32 bits, at most 256 fit; 23 bits do": {
        **SECURE, "secagg_bits": 24, "num_clients": 1000, "clients_per_round": 300},
    "secagg_min = 41: must be at most the 40 clients of a sum": {**SECURE, "secagg_min": 41},
    "secagg_min = 10: not with dp_clip": {**SECURE, **DP, "secagg_min": 10},
    "secagg_bits: with harmonic a buffer of 300 is seldom two thirds full": {
        **SECURE, "algorithm": "nigt", "harmonic": 200, "clients_per_round": 0, "buffer": 300},
    "attack = 'ipm': algorithm = 'independent' sends no messages; try reward_flip": {
        "algorithm": "independent", "attack": "ipm"},
    "secagg_bits = 16: distill = 'none' sends no messages; leave it out": {
        "algorithm": "fedhpd", "distill": "none", **SECURE},
    "compress = 'top_k': sharing = 'none' sends no messages": {
        "algorithm": "fedstrategy", "sharing": "none", "compress": "top_k"},
    "dp_clip = 0.1: sharing = 'fixed' sends no messages": {
        "algorithm": "fedstrategy", "sharing": "fixed", **DP},
    "secagg_min = 8: must be at most the 3 clients of a sum": {
        **SECURE, "wait_for": 3, "speed": "linear", "secagg_min": 8},
    "secagg_min = 1: a sum of one message is that message": {**SECURE, "secagg_min": 1},
    "secagg_bits = 16: a sum of one message is that message": {**SECURE, "clients_per_round": 1},
    "secagg_bits = 16: a sum of one message is that message, and hides nothing": {**SECURE, "algorithm": "fedasync"},
    "byzantine = 0.4: krum needs wait_for >= 5 for 1 attackers, not 3": {
        "aggregator": "krum", "byzantine": 0.4, "wait_for": 3, "speed": "linear"},
    "aggregator = 'median': not for scaffold: its server keeps the mean of the clients' variates": {
        "algorithm": "scaffold", "aggregator": "median"},
    "aggregator = 'norm_clip': not for lapg": {"algorithm": "lapg", "aggregator": "norm_clip"},
    "aggregator = 'centered_clip': not for fedhpd": {"algorithm": "fedhpd", "aggregator": "centered_clip"},
    "aggregator = 'median': not with harmonic": {
        "algorithm": "nigt", "harmonic": 200, "clients_per_round": 0, "buffer": 300, "aggregator": "median"},
    "compress = 'random_k': not with aggregator = 'trimmed'": {"compress": "random_k", "aggregator": "trimmed"},
    "compress = 'top_k': not with aggregator = 'median'": {
        "compress": "top_k", "aggregator": "median", "feedback": "classic"},
    "dp_clip: not with attack = 'mimic': its liars send on what they read": {**DP, "attack": "mimic"},
    "dp_clip: not with attack = 'alie'": {**DP, "attack": "alie"},
    "dp_quantile = 0.9: only 70% of the clients come": {**DP, "dp_quantile": 0.9, "dropout": 0.3},
    "choose one between 0.4 and 0.6": {**DP, "dp_quantile": 0.3, "wait_for": 8, "speed": "linear"},
    "fair: not for fedasync": {"algorithm": "fedasync", "fair": True},
    "policy = 'table': it has no output layer": {"algorithm": "fedrep", "policy": "table", "env": "finite/random"},
    "unknown key 'dp_clip' for scaffold (it is an option of": {"algorithm": "scaffold", **DP},
    "unknown key 'compress' for independent (it is an option of": {"algorithm": "independent", "compress": "sign"},
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_fit_together_is_one_line(line):
    values = {"algorithm": "fmrl", **REFUSED[line]}
    with pytest.raises(ConfigError) as error:
        config.build(values.pop("algorithm"), values)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_it_is_told_before_jax_is_there():
    code = (
        "import sys; from fedjax_rl.config import build\n"
        "try: build('fmrl', {'dp_clip': 0.1, 'dp_noise': 1.0, 'aggregator': 'median'})\n"
        "except Exception as error: print(error)\n"
        "print(sorted({'jax', 'dp_accounting', 'mujoco'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("dp_clip: not with aggregator = 'median'") and said.rstrip().endswith("[]")


def test_the_rows_of_a_poisson_round_are_counted_everywhere_alike():
    for n, m in ((200, 40), (30, 6), (10, 10)):
        drawn = config.build("fmrl", {"num_clients": n, "clients_per_round": m, "selection": "poisson"})
        assert trust.at_most_together(drawn) == accountant.capacity(n, m)


def test_every_name_that_can_be_typed_exists():
    assert {*attacks.ATTACKS} == {*trust.MESSAGE_ATTACKS}
    rules = {name for name in registry.OWN["aggregator"] if name != "mean"}
    assert rules == {*trust.ROBUST}
    assert all(callable(registry.find("aggregator", name)) for name in rules)
    for name in trust.COMPRESSORS[1:]:
        compress.compressor(name, ratio=0.1, bits=8, rank=2)


@pytest.mark.parametrize(
    "values",
    [
        {"compress": "top_k", "feedback": "ef21", "aggregator": "median"},
        {**DP, "attack": "mimic", "dp_where": "local"},
        {**DP, "attack": "sign_flip", "dp_quantile": 0.7, "dropout": 0.3},
    ],
)
def test_what_goes_together_is_taken_as_it_was_given(values):
    made = vars(config.build("fmrl", values))
    assert {key: made[key] for key in values} == values


def test_a_secure_sum_that_waits_for_some_is_opened_by_two_thirds_of_them():
    waiting = config.build("fmrl", {**SECURE, "wait_for": 9, "speed": "linear"})
    assert trusting.aggregator_of(waiting, vars(waiting)).at_least == 6


def test_what_a_rule_withstands_reads_what_the_honest_send():
    """A message of an honest client moves what the liars of READING send, and no other's."""
    rows = {"x": jax.random.normal(jax.random.key(0), (8, 5))}
    bad, key = jnp.arange(8) < 2, jax.random.key(1)
    for name in trust.MESSAGE_ATTACKS:
        forge = attacks.forge(name, 2.0, aggregators.mean())
        moved = jax.tree.map(lambda x: x.at[2].multiply(9.0), rows)
        one, other = (np.asarray(forge(m, ~bad, bad, key)["x"])[:2] for m in (rows, moved))
        assert (name in trust.READING) == (not np.array_equal(one, other, equal_nan=True)), name


def test_what_is_legal_but_should_be_known_is_said():
    said = lambda **values: "\n".join(notices(config.build("fmrl", values)))
    assert "weights are ignored" in said(aggregator="median", stragglers=0.2)
    assert "weights" not in said(aggregator="geomed", stragglers=0.2)
    assert "server = 'adam'" in said(**DP) and "divided by clients_per_round" in said(**DP, dropout=0.1, server="sgd")
    assert not notices(config.build("fmrl", {}))
    few = {"num_clients": 8, "clients_per_round": 4}
    assert "byzantine = 0.2 of 4 messages is not one" in said(aggregator="trimmed", **few)
    assert "is not one" not in said(aggregator="trimmed", byzantine=0.25, **few)
    assert "is not one" not in said(aggregator="median", **few)


UNLIKE = {
    "plain": ("fmrl", {}),
    "late": ("fedavg", {"schedule": "async", "staleness": "hinge", "speed": "linear", "critic": "federated"}),
    "older": ("fedavg", {"schedule": "async", "staleness": "polynomial", "surrogate": "log"}),
    "attacked": ("fedavg", {"attack": "ipm", "aggregator": "fedpg_br"}),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_what_a_round_does_not_read_is_said_to_do_nothing_and_nothing_else_is(case):
    """Numbers are inputs of a round's program, which shows whether it reads them; 0 turns off what a number is for."""
    algorithm, values = UNLIKE[case]
    few = {"env": "probe/delayed", "hidden": (4,), "num_clients": 6, "clients_per_round": 3, "episodes": 2}
    made = config.build(algorithm, {**few, **values})
    group = assemble.make_group([made])
    numbers = {key: np.float32([value]) for key, value in vars(made).items() if isinstance(value, float) and value}
    states = jax.eval_shape(lambda: assemble.initial_states(group))
    shapes = (states, jax.ShapeDtypeStruct((1,), bool), numbers)
    traced = jax.make_jaxpr(lambda *inputs: assemble.round_of(group, *inputs))(*shapes).jaxpr
    _, is_read = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    idle = {key for key, used in zip(sorted(numbers), is_read[-len(numbers) :], strict=True) if not used}
    said = {key for key in numbers if says_idle(key, replace(made, **{key: 0.75 * getattr(made, key)}))}
    assert said == idle - {"inner_lr"}  # which is an evaluation's too
    assert {"dp_delta", "compress_ratio"} < said


def says_idle(key, made):
    return any(line.startswith(f"{key} = {getattr(made, key)}: does nothing with") for line in notices(made))


def test_what_a_rule_takes_and_a_coding_has_is_not_said_to_do_nothing():
    few = {"num_clients": 40, "clients_per_round": 20}
    for rule in ("mean", *trust.ROBUST):
        taken = inspect.signature(registry.find("aggregator", rule)).parameters
        for key in ("clip_radius", "filter_sigma"):
            made = config.build("fmrl", {"aggregator": rule, key: 0.5, **few})
            assert says_idle(key, made) == (key not in taken)
        assert not (says_idle("byzantine", replace(made, byzantine=0.1)) and "byzantine" in taken)
    guest = {"aggregator": f"{robust.__name__}:centered_clip", "clip_radius": 0.5, "filter_sigma": 0.5}
    assert not notices(config.build("fmrl", guest))
    few_bits = ("quantise", "top_k+quantise")
    read = {"compress_ratio": trust.SPARSE, "compress_bits": few_bits, "compress_rank": ("low_rank",)}
    for key, value in {"compress_ratio": 0.1, "compress_bits": 4, "compress_rank": 3}.items():
        for name in trust.COMPRESSORS:
            assert says_idle(key, config.build("fmrl", {"compress": name, key: value})) == (name not in read[key])
    assert not says_idle("dp_delta", config.build("fmrl", {**DP, "dp_delta": 1e-6}))


def test_no_preset_sets_what_does_nothing():
    for algorithm in config.CONFIGS:
        for name in presets.PRESETS:
            said = notices(config.build(algorithm, presets.preset(name, algorithm)))
            assert not any("does nothing" in line for line in said), (algorithm, name, said)


def test_what_a_cohort_of_fixed_size_costs_is_said():
    """Whatever the selection of that kind; not of poisson and cyclic, whose claim is what is proven."""
    kinds = {"kinds": "100x8:tanh, 100x4:tanh", "critic": "none", "reduction": "mean"}
    asked = {"by_kind": ("fedstrategy", kinds)}
    for name in ("uniform", "stratified", "by_kind", "poisson", "cyclic"):
        algorithm, values = asked.get(name, ("fmrl", {}))
        said = privacy.remarks(config.build(algorithm, {"selection": name, "server": "sgd", **DP, **values}))
        fixed = name not in ("poisson", "cyclic")
        assert sum(f"selection = {name!r}: the proven epsilon is" in line for line in said) == fixed


PRIVATE = replace(
    SMALL, num_clients=6, clients_per_round=2, selection="cyclic", dp_clip=0.05, dp_epsilon=4.0, dp_delta=0.01,
    dp_noise_kind="banded", server="sgd", eval_every=3, rounds=6, downlink_bits=8, max_change_norm=0.0,
)  # fmt: skip
ATTACKED = replace(
    SMALL, num_clients=6, clients_per_round=4, compress="top_k", compress_ratio=0.2, client_momentum=0.5,
    attack="noise", attack_share=0.4, aggregator="nnm+trimmed", dropout=0.2, rounds=6, eval_every=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    directory = tmp_path_factory.mktemp("private") / "run"
    assert go(PRIVATE, directory) == 0
    return directory


def test_a_private_run_keeps_its_noise_and_says_what_it_cost(private, capsys):
    begun = rundir.open_run(private)
    assert begun.dp_epsilon == 4.0 and begun.dp_noise > 0
    spent = [row["privacy/epsilon"] for row in records.sound(private / rundir.EVAL)]
    np.testing.assert_allclose(spent, 4.0, rtol=1e-3)  # of banded noise it is that of the whole run from the beginning
    assert main(["report", str(private)]) == 0
    said = capsys.readouterr().out
    assert "(epsilon = 4.00, delta = 0.01) after 6 rounds" in said and "Not covered" in said


class EndsAfterThree:
    """A callback that ends a run: it then goes on as one that was interrupted."""

    def after_round(self, directory, row):
        return row["round"] == 3

    def after_evaluation(self, directory, returns):
        return False


def end_after_three(config, directory):
    """Bring a run to its third round, as if it had been interrupted there."""
    runner.run_members({directory: config}, QUIET, Hooks(callbacks=(EndsAfterThree(),)))
    assert records.sound(directory / rundir.METRICS)[-1]["round"] == 3


@pytest.mark.parametrize("base", [PRIVATE, ATTACKED], ids=["private", "attacked"])
def test_six_rounds_are_three_and_three_resumed(base, private, tmp_path):
    """The noises of earlier rounds, what was not sent yet, the momentum: all of it is in the checkpoint."""
    whole, half = private, tmp_path / "half"
    if base is ATTACKED:
        whole = tmp_path / "whole"
        assert go(base, whole) == 0
    end_after_three(base, half)
    assert resume(half) == 0
    assert_same_run(half, whole)


def test_what_privacy_was_bought_for_is_not_prolonged(private, tmp_path, capsys):
    assert resume(private, rounds=8) == 2
    assert "rounds = 8: banded noise was made for 6; train anew" in capsys.readouterr().err
    white = replace(PRIVATE, dp_noise_kind="white", dp_noise=0.0, rounds=2, eval_every=0)
    assert go(white, tmp_path / "white") == 0
    assert resume(tmp_path / "white", rounds=3) == 2
    assert "dp_epsilon = 4.0 is spent by round 2; train anew with dp_noise =" in capsys.readouterr().err
    path = tmp_path / "white" / rundir.CONFIG
    path.write_text(path.read_text().replace("rounds = 2\n", "rounds = 3\n"))
    assert rundir.open_run(path.parent).rounds == 3 and resume(path.parent) == 2
    assert "rounds = 3: dp_epsilon = 4.0 is spent by round 2" in capsys.readouterr().err
    noise = rundir.open_run(tmp_path / "white").dp_noise
    with pytest.raises(
        ConfigError, match=r"dp_epsilon = 4.0 and dp_noise = 0.1: this noise costs .*; give one of them"
    ):
        privacy.with_noise(replace(white, dp_noise=0.1), None)
    assert privacy.with_noise(replace(white, dp_noise=noise), None).dp_noise == noise
    free = replace(white, dp_epsilon=0.0, dp_noise=2.0)
    assert go(free, tmp_path / "free") == 0 and resume(tmp_path / "free", rounds=3) == 0
    spent = [row["privacy/epsilon"] for row in records.sound(tmp_path / "free" / rundir.EVAL)]
    assert spent[0] <= spent[1]  # two of three groups have worked after two rounds


def test_privacy_for_a_number_of_rounds_is_not_halved(tmp_path):
    with pytest.raises(ConfigError, match="--halvings 1: dp_epsilon and banded noise are for one number of rounds"):
        runner.begin_sweep({tmp_path / "out" / "a": PRIVATE}, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_without_the_extra_a_private_run_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    privacy._epsilon.cache_clear()
    assert go(replace(PRIVATE, dp_epsilon=0.0, dp_noise=1.7, dp_noise_kind="white"), tmp_path / "run") == 2
    assert "pip install 'fedjax-rl[privacy]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


SWEEPS = {
    "attacks": (ATTACKED, {"attack_share": [0.2, 0.5], "attack_strength": [0.5, 20.0], "byzantine": [0.1, 0.4]}),
    "noise": (replace(PRIVATE, dp_epsilon=0.0, dp_noise=0.5), {"dp_noise": [0.5, 3.0], "dp_clip": [0.01, 0.2]}),
    "world": (replace(SMALL, attack="reward_noise", aggregator="centered_clip"), {"attack_strength": [0.5, 2.0],
              "clip_radius": [0.0, 0.01]}),
}  # fmt: skip


@pytest.mark.parametrize("name", ["attacks", *[pytest.param(n, marks=pytest.mark.nightly) for n in ("noise", "world")]])
def test_members_of_one_program_are_what_solo_runs_are(name):
    base, grid = SWEEPS[name]
    points = [replace(base, **dict(zip(grid, values, strict=True))) for values in np.stack(
        [np.ravel(axis) for axis in np.meshgrid(*grid.values())], axis=-1).tolist()]  # fmt: skip
    assert len({assemble.static_fields(c) for c in points}) == 1
    group = assemble.make_group(points)
    states = assemble.initial_states(group)
    round = jax.jit(lambda s, alive, values: assemble.round_of(group, s, alive, values))
    for _ in range(2):
        states, _, measured = round(states, jnp.ones(len(points), bool), group.values)
    for i in (0, len(points) - 1):
        run = assemble.make_run(points[i])
        state, step = assemble.initial_state(run), jax.jit(run.simulation.round)
        for _ in range(2):
            state, metrics = step(state)
        of_member = jax.tree.map(lambda x: x[i], states)
        for a, b in zip(jax.tree.leaves(of_member.server), jax.tree.leaves(state.server), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
        for key in {"robust/distance", "health/attacked", "comm/up_bytes"} & metrics.keys():
            np.testing.assert_allclose(measured[key][i], metrics[key], rtol=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"dp_clip": 0.1, "dp_noise": 1.0, "dp_where": "local", "compress": "top_k+quantise"},
        {"compress": "random_k", "attack": "noise", "aggregator": "bucket+geomed", "downlink_bits": 4},
    ],
)
def test_no_key_is_used_twice_on_the_way(values):
    """JAX's own check, over a whole round of two members."""
    values = {"selection": "poisson", "dropout": 0.2, **values}
    group = assemble.make_group([replace(SMALL, seed=seed, **values) for seed in (0, 1)])
    states, alive = jax.eval_shape(lambda: assemble.initial_states(group)), jax.ShapeDtypeStruct((2,), bool)
    with jax.debug_key_reuse(True):
        jax.jit(lambda *args: assemble.round_of(group, *args)).lower(states, alive, group.values)


def test_shapes_and_memories_are_programs_of_their_own():
    changes = [
        {"compress_ratio": 0.2},
        {"compress_ratio": 0.4},
        {"client_momentum": 0.0},
        {"compress": "none"},
        {"compress": "none", "compress_ratio": 0.4},
    ]
    points = [replace(ATTACKED, **change) for change in changes]
    assert len({assemble.static_fields(c) for c in points}) == 4


def test_evaluation_is_in_the_true_world_and_apart_for_the_malicious(tmp_path):
    """Rewards are turned round where the malicious train: what is reported of them is what they earn in truth."""
    base = replace(
        SMALL, env="navigation", attack="reward_flip", attack_share=0.5, eval_every=0, eval_clients=0, rounds=1
    )
    assert go(base, tmp_path / "run") == 0
    [last] = records.sound(tmp_path / "run" / rundir.EVAL)
    assert len(last["eval/returns"]) == len(last["eval_malicious/returns"]) == 3
    assert np.max(last["eval_malicious/returns"]) < 0
    run = assemble.make_run(base)
    key = assemble.initial_state(run).key
    bad = np.asarray(attacks.is_malicious(simulate.stream(key, simulate.MALICIOUS), 6, 0.5))
    assert bad.sum() == 3
    [row] = records.sound(tmp_path / "run" / rundir.METRICS)
    who = records.sound(tmp_path / "run" / rundir.PARTICIPANTS)[0]["selected"]
    assert row["health/attacked"] == bad[who].sum()


@pytest.mark.parametrize("seed", [0, 3, 7, 15])  # of the first four clients, 2, 3, 1 and 0 are honest
def test_the_best_step_is_of_the_same_honest_clients_however_many_are_evaluated(seed):
    """A client's return stands for its id here."""
    base = replace(SMALL, num_clients=12, eval_clients=4, attack="sign_flip", attack_share=0.5)
    state, rows = SimpleNamespace(key=numerics.root_key(seed)), [[0.0, float(i)] for i in range(12)]
    bad = np.asarray(attacks.is_malicious(simulate.stream(state.key, simulate.MALICIOUS), 12, 0.5))[:4]
    who = np.flatnonzero(~bad) if not bad.all() else np.arange(4)
    for count in (4, 12):
        assert scoring._compared_score(base, state, rows[:count]) == who.mean()


@pytest.mark.nightly
def test_a_client_that_is_lied_to_is_replayed_with_its_lie(tmp_path):
    base = replace(SMALL, attack="reward_flip", attack_share=0.5, nan_dump=1, env="navigation")
    run = assemble.make_run(base)
    state = assemble.initial_state(run)
    ids, *rows = run.simulation.cohort(state)
    bad = int(np.argmax(np.asarray(rows[2]["malicious"])))
    work = jax.jit(run.simulation.work)(*jax.tree.map(lambda x: x[bad], rows))
    said = nan_dump.replay(nan_dump.dump(run, base, state, int(ids[bad]), tmp_path)).splitlines()
    returned = next(line for line in said if line.startswith("return/adapt_0"))
    np.testing.assert_allclose(float(returned.split()[-1]), work[2]["return/adapt_0"], rtol=1e-4)
    assert work[2]["return/adapt_0"] > 0 or not rows[2]["malicious"].any()


def test_memory_beyond_four_gibibytes_is_refused_with_its_size():
    many = replace(SMALL, hidden=(4096, 64), num_clients=100_000, eval_clients=1, compress="top_k")
    with pytest.raises(
        ConfigError, match=r"num_clients = 100000: what they keep of their messages takes 1\d\d\.\d GiB"
    ):
        assemble.make_group([many])


def test_a_round_in_which_nobody_was_drawn_is_a_round(tmp_path):
    """Each of six clients is drawn with probability 1/6."""
    drawn = replace(SMALL, clients_per_round=1, selection="poisson", rounds=8, eval_every=0, adapt_steps=0)
    assert go(drawn, tmp_path / "run") == 0
    said = records.sound(tmp_path / "run" / rundir.PARTICIPANTS)
    speeds = [row["sys/env_steps_per_s"] for row in records.sound(tmp_path / "run" / rundir.METRICS)]
    assert [speed == 0 for speed in speeds] == [not row["selected"] for row in said]
    assert 0.0 in speeds and len(speeds) == 8
    for line in ('"sys/round_s": 0.0, "sys/env_steps_per_s": 1.0', '"sys/round_s": 1.0, "sys/env_steps_per_s": -1.0'):
        (tmp_path / rundir.METRICS).write_text(f'{{"round": 1, {line}}}\n')
        with pytest.raises(ConfigError, match="is missing or"):
            records.sound(tmp_path / rundir.METRICS)
