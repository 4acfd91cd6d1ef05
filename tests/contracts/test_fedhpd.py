"""FedHPD on the quadratic federation, against a replay in NumPy; and what a round of several exchanges is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contracts.quadratic import LOCAL_LR, PUBLIC_STATES, federation, make
from fedjax_rl import config
from fedjax_rl.algorithms.fedhpd import adam_steps
from fedjax_rl.algorithms.parts import keep_on_client
from fedjax_rl.config import ConfigError
from fedjax_rl.envs import make_env
from fedjax_rl.federation import secure
from fedjax_rl.federation.times import Pace
from fedjax_rl.runs import public_states
from fedjax_rl.types import Upload

pytestmark = pytest.mark.usefixtures("x64")
SETTINGS = {"loops": 2, "parts": 2, "lr_decay": 0.5, "lr_decay_every": 2}


class Adam:
    """Adam's directions (Kingma and Ba 2015), in NumPy."""

    def __init__(self):
        self.m, self.v, self.count = 0.0, 0.0, 0

    def __call__(self, gradient):
        self.count += 1
        self.m, self.v = 0.9 * self.m + 0.1 * gradient, 0.999 * self.v + 0.001 * gradient**2
        return self.m / (1 - 0.9**self.count) / (np.sqrt(self.v / (1 - 0.999**self.count)) + 1e-8)


def replay(start, tasks, rounds, optimizer, distill, local_steps):
    """The clients' parameters [N, 3] after some rounds, their Adams, and the last consensus."""
    x = np.array(start)
    learning = [Adam() for _ in x]
    distilling = learning if optimizer == "shared" else [Adam() for _ in x]
    states, batches, consensus = PUBLIC_STATES.reshape(2, 4, 3), 0, None
    for _ in range(rounds):
        for _ in range(local_steps):
            rate = LOCAL_LR * 0.5 ** (batches // 2)
            for i, adam in enumerate(learning):
                x[i] -= rate * adam(tasks["a"][i] * (x[i] - tasks["u"][i]))
            batches += 1
        rate = LOCAL_LR * 0.5 ** (batches // 2)
        for number in range(4 if distill != "none" else 0):
            part = states[number % 2]
            consensus = np.mean([part @ one for one in x], axis=0)  # anew before each step
            for i, adam in enumerate(distilling):
                gradient = part.T @ (part @ x[i] - consensus) / len(part)
                x[i] -= rate * adam(gradient * (distill == "consensus"))
    return x, (learning, distilling), np.mean([states[0] @ one for one in x], axis=0)


def test_the_rate_falls_with_the_batch_that_is_due():
    """A quotient that is whole may be rounded to just below, as 41 / 41 is in a compiled program."""
    for every in (*range(1, 120), 1000):
        move = adam_steps(optax.sgd(1.0), 0.5, every)
        batches = jnp.asarray([every - 1, every, 2 * every - 1, 2 * every, 7 * every], jnp.float32)
        state = optax.scale_by_adam().init(jnp.zeros(()))

        def moved(number, move=move, state=state):
            return move({"params": jnp.zeros(()), "adam": state, "batches": number}, jnp.ones(()), "adam")["params"]

        halved = np.round(-np.log2(-np.asarray(jax.jit(jax.vmap(moved))(batches)))).astype(int)
        assert halved.tolist() == [0, 1, 1, 2, 7], every


@pytest.mark.parametrize("optimizer", ["own", "shared"])
@pytest.mark.parametrize("distill", ["consensus", "placebo", "none"])
def test_rounds_equal_a_replay(optimizer, distill):
    algorithm = make("fedhpd", distill=distill, distill_optimizer=optimizer, **SETTINGS)
    simulation = federation(algorithm, n=3, m=3)
    state = simulation.init(jax.random.key(0))
    round = jax.jit(simulation.round)
    tasks = jax.tree.map(np.asarray, state.tasks)
    want, adams, consensus = replay(state.clients["params"]["x"], tasks, 2, optimizer, distill, 3)
    for _ in range(2):
        state, metrics = round(state)
    np.testing.assert_allclose(state.clients["params"]["x"], want, rtol=1e-10, atol=1e-12)
    assert (state.clients["adam"].count == adams[0][0].count).all()
    assert (state.clients["batches"] == 6).all()  # of which the schedule is made: distillation does not count
    if optimizer == "own":
        assert (state.clients["distill_adam"].count == adams[1][0].count).all()
    if distill == "consensus":
        np.testing.assert_allclose(state.server.shared, consensus, rtol=1e-10)
        assert metrics["comm/up_bytes"] == metrics["comm/down_bytes"] == 3 * 4 * 4 * 8
    else:
        assert metrics["comm/up_bytes"] == metrics["comm/down_bytes"] == 0


def test_distilling_from_oneself_alone_changes_nothing_and_an_idle_placebo_neither():
    after = {}
    for distill in ("consensus", "placebo", "none"):
        simulation = federation(make("fedhpd", distill=distill, **SETTINGS), n=1, m=1)
        after[distill] = simulation.round(simulation.init(jax.random.key(0)))[0].clients["params"]["x"]
    np.testing.assert_allclose(after["consensus"], after["none"], rtol=1e-12)
    np.testing.assert_array_equal(after["placebo"], after["none"])


def test_who_drops_out_is_silent_in_every_exchange_of_the_round():
    """The consensus is that of those who are left, and who is not heard keeps all that it has."""
    simulation = federation(make("fedhpd", **SETTINGS), n=6, m=6, dropout=0.5)
    state = simulation.init(jax.random.key(1))
    after, metrics = simulation.round(state)
    gone = np.asarray(metrics["who/unheard"])
    assert 0 < gone.sum() < 6
    same = np.all(np.asarray(after.clients["params"]["x"] == state.clients["params"]["x"]), axis=1)
    np.testing.assert_array_equal(same, gone)
    tasks = jax.tree.map(lambda x: np.asarray(x)[~gone], state.tasks)
    want, _, consensus = replay(np.asarray(state.clients["params"]["x"])[~gone], tasks, 1, "own", "consensus", 3)
    np.testing.assert_allclose(np.asarray(after.clients["params"]["x"])[~gone], want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(after.server.shared, consensus, rtol=1e-10)


def test_where_a_sum_is_not_opened_nobody_distils():
    """Else they would follow the answer of an earlier round, on other states."""
    sums = secure.secure_mean(secure.FixedPoint(24, 16.0), at_least=6)
    whole, void = (federation(make("fedhpd", **SETTINGS), aggregator=sums, dropout=share) for share in (0.0, 0.5))
    first = whole.round(whole.init(jax.random.key(1)))[0]
    after, metrics = void.round(first)
    assert 0 < metrics["comm/uploads"] < 6 and metrics["health/nonfinite_clients"] == 0
    np.testing.assert_array_equal(after.server.shared, first.server.shared)
    for old, new in zip(*(jax.tree.leaves(state.clients["distill_adam"]) for state in (first, after)), strict=True):
        np.testing.assert_array_equal(old, new)
    learned = np.any(np.asarray(after.clients["params"]["x"] != first.clients["params"]["x"]), axis=1)
    np.testing.assert_array_equal(learned, ~np.asarray(metrics["who/unheard"]))  # by its own steps


def test_a_message_that_is_not_finite_in_a_later_exchange_leaves_no_trace_of_it():
    algorithm = make("fedhpd", **SETTINGS)
    count, distil = algorithm.exchanges

    def broken(shared, client, task, key, number):
        upload, client = distil(shared, client, task, key, number)
        bad = (task["a"] == tasks["a"][1]) & (number == 2)
        return Upload(jnp.where(bad, jnp.nan, upload.message), upload.weight), client

    tasks = federation(algorithm, n=3, m=3).init(jax.random.key(0)).tasks
    simulation = federation(algorithm._replace(exchanges=(count, broken)), n=3, m=3)
    state = simulation.init(jax.random.key(0))
    after, metrics = simulation.round(state)
    assert metrics["health/nonfinite_clients"] == 1 and metrics["health/suspect"] == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after.server, after.clients)))
    counts = np.asarray(after.clients["distill_adam"].count)
    assert counts.tolist() == [4, 3, 4]  # the step of that exchange is not kept


def test_the_clock_charges_every_exchange_of_a_round():
    """What is sent up and down at 24 bytes a unit, and half a job's time for each message."""
    algorithm = make("fedhpd", **SETTINGS)
    count, _ = algorithm.exchanges
    simulation = federation(algorithm, n=3, m=3, pace=Pace(up=24.0, down=24.0, link=0.5))
    _, metrics = simulation.round(simulation.init(jax.random.key(0)))
    sent = float(metrics["comm/up_bytes"] + metrics["comm/down_bytes"]) / 3
    assert count > 1 and sent > 0
    assert float(metrics["clock/time"]) == pytest.approx(1 + sent / 24 + 0.5 * count, abs=1e-3)


@pytest.mark.nightly
def test_kinds_and_a_sweep_over_rates_share_a_program():
    """Two members with unlike decays, three unlike kinds: each member equals its run alone."""
    from fedjax_rl.runs import assemble

    values = {
        "env": "navigation",
        "kinds": "2x4:tanh:0.01,1x3-3:relu",
        "num_clients": 3,
        "clients_per_round": 3,
        "episodes": 2,
        "distill": "placebo",
        "distill_optimizer": "shared",
    }
    with jax.enable_x64(False):
        configs = [config.build("fedhpd", values, {"lr_decay": rate, "lr_decay_every": 1}) for rate in (0.5, 0.9)]
        group = assemble.make_group(configs)
        states = assemble.initial_states(group)
        both, _, _ = jax.jit(lambda s, v: assemble.round_of(group, s, jnp.ones(2, bool), v))(states, group.values)
        for i, one in enumerate(configs):
            alone = assemble.make_run(one)
            want = jax.jit(alone.simulation.round)(assemble.initial_state(alone))[0].clients["params"]["row"]
            np.testing.assert_allclose(both.clients["params"]["row"][i], want, rtol=1e-3, atol=1e-5)


def test_public_states_are_read_or_refused_in_one_line(tmp_path):
    spec, good = make_env("navigation").spec, np.float32(np.random.default_rng(0).normal(size=(6, 2)))
    path = tmp_path / f"a-{public_states.digest(good)}.npy"
    np.save(path, good)
    make_config = lambda **of: config.build("fedhpd", {"env": "navigation", **of})
    np.testing.assert_array_equal(public_states.of(make_config(public_states=str(path)), spec), good)
    assert public_states.of(make_config(distill="none"), spec) is None
    faults = {
        "wide.npy": (np.ones((4, 3), np.float32), r"holds float32 \[4, 3\]; it must be floats \[S, 2\]"),
        "whole.npy": (np.ones((4, 2), int), r"holds int64"),
        "odd.npy": (np.ones((5, 2)), "its 5 states must be finite and divide by parts = 2"),
        "nan.npy": (np.full((4, 2), np.nan), "must be finite"),
        f"a-{'0' * 8}.npy": (good, "was changed: its name says 00000000"),
    }
    for name, (states, message) in faults.items():
        np.save(tmp_path / name, states)
        with pytest.raises(ConfigError, match=message):
            public_states.of(make_config(public_states=str(tmp_path / name)), spec)
    (tmp_path / "text.npy").write_text("no numbers")
    for name in ("text.npy", "none.npy"):
        with pytest.raises(ConfigError, match=r"cannot be read .*; `fedjax-rl public-states` makes one"):
            public_states.of(make_config(public_states=str(tmp_path / name)), spec)
    with pytest.raises(ConfigError, match="none given; `fedjax-rl public-states --env navigation` makes a file"):
        public_states.of(make_config(), spec)


def test_a_part_that_is_kept_is_refused_where_later_exchanges_would_not_have_it():
    with pytest.raises(ValueError, match="keep_on_client: exchanges after the first do not know"):
        keep_on_client(make("fedhpd"), ("value",))
