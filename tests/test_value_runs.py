"""Runs of clients that learn values: refused in a line, resumed, swept, reported; what they keep is in checkpoints."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl import config, trees
from fedjax_rl.cli import main
from fedjax_rl.config import ConfigError
from fedjax_rl.config.values import DqnAvgConfig
from fedjax_rl.federation import simulate
from fedjax_rl.runs import assemble, checkpoint, models, records, rundir
from test_train import assert_same_run, go, resume
from test_trusted_runs import end_after_three

pytestmark = pytest.mark.usefixtures("shared_programs")
SMALL = DqnAvgConfig(
    hidden=(4,), num_clients=4, clients_per_round=2, rounds=6, episodes=2, local_steps=8, learn_after=4, capacity=12,
    batch=4, new_clients=2, save_every=3, keep="all",
)  # fmt: skip
REFUSED = {
    "capacity = 1000000: a client's replay takes 73.0 MB, at most max_client_mb = 8 are allowed; lower it to 109589":
        {"capacity": 1_000_000},
    "env = 'navigation': navigation has continuous actions": {"env": "navigation"},
    "kinds: not for dqn_avg": {"kinds": "200x8:tanh"},
    "critic = 'federated': not for dqn_avg, which learns values": {"critic": "federated"},
    "critic = 'local': not for q_avg": {"algorithm": "q_avg", "critic": "local"},
    "learn_after = 2000: must be at most capacity = 1000": {"learn_after": 2000},
    "learn_after = 32: a round has 20 environment steps": {"local_steps": 10, "learn_every": 2},
    "personal = 'head': not with aggregate = 'none'": {"personal": "head", "aggregate": "none"},
    "personal = 'head': not with aggregate = 'gradients'": {"personal": "head", "aggregate": "gradients"},
    "personal = 'head': policy = 'table' has no layer": {"personal": "head", "policy": "table"},
    "aggregate = 'gradients': needs local_optimizer = 'sgd'": {"aggregate": "gradients"},
    "attack = 'ipm': aggregate = 'none' sends no messages": {"aggregate": "none", "attack": "ipm"},
    "dp_clip = 0.1: aggregate = 'none' sends no messages": {"aggregate": "none", "dp_clip": 0.1, "dp_noise": 1.0},
    "compress = 'sign': aggregate = 'none' sends no messages": {"aggregate": "none", "compress": "sign"},
    "restart: clients here keep something between jobs": {"schedule": "async"},
    "policy = 'mlp': q_avg learns a table": {"algorithm": "q_avg", "policy": "mlp"},
    "attack = 'reward_flip': q_avg's clients know": {"algorithm": "q_avg", "attack": "reward_flip"},
    "env = 'gymnax/CartPole-v1': q_avg needs a process whose probabilities are known; take dqn_avg":
        {"algorithm": "q_avg", "env": "gymnax/CartPole-v1"},
    "env = 'gym/CartPole-v1': gym/CartPole-v1 is stepped on the host": {"env": "gym/CartPole-v1"},
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_is_one_line(line):
    if "gym/" in line or "gymnax" in line:
        pytest.importorskip("gymnasium" if "gym/" in line else "gymnax")
    values = {"algorithm": "dqn_avg", **REFUSED[line]}
    with pytest.raises(ConfigError) as error:
        assemble.make_run(config.build(values.pop("algorithm"), values))
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"keep": "none"}, {"steps"}),
        ({"keep": "replay"}, {"steps", "replay"}),
        ({"keep": "all"}, {"steps", "replay", "running", "moments"}),
        ({"keep": "replay", "aggregate": "none"}, {"steps", "replay", "params"}),
    ],
)
def test_clients_keep_what_was_asked_for(values, kept, capsys):
    made = replace(SMALL, **values)
    state = assemble.abstract_state(assemble.make_run(made))
    assert set(state.clients) == kept
    row = 8 * 4 + 4 + 4 + 1 + 8 * 4  # obs, action, reward, ended, next_obs; of one client with 12 of them
    assert trees.num_bytes(state.clients.get("replay", ())) == (4 * (12 * row + 4) if "replay" in kept else 0)
    lines = models.remarks(made, lambda: state.clients)
    assert len(lines) == (made.keep != "none") and all("MB in all, in every checkpoint" in line for line in lines)


def rounds(made, count):
    run = assemble.make_run(made)
    return simulate.run_rounds(run.simulation, assemble.initial_state(run), count)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert go(SMALL, directory) == 0
    return directory


def test_six_rounds_are_three_and_three_resumed(whole, tmp_path):
    """The replay, the optimiser and the running episode are in the checkpoint."""
    half = tmp_path / "half"
    end_after_three(SMALL, half)
    like = assemble.abstract_state(assemble.make_run(SMALL))
    state = checkpoint.restore(half / "ckpt", like, print).state
    pushed, running = np.asarray(state.clients["replay"].pushed), state.clients["running"]
    assert int(state.round) == 3 and pushed.sum() == 3 * 2 * 8
    assert running.t.tolist() == pushed.tolist()  # an episode of 50 steps goes on from round to round
    assert state.clients["steps"].tolist() == np.maximum(pushed - 3, 0).tolist()  # not before four are there
    assert resume(half) == 0
    assert_same_run(half, whole)


def test_a_run_counts_its_steps_and_is_reported(whole, capsys):
    last = records.sound(whole / rundir.METRICS)[-1]
    assert last["env_steps"] == 6 * 2 * 8 and np.isfinite(last["train/return/adapt_0"])
    assert main(["report", str(whole)]) == 0
    assert "dqn_avg" in capsys.readouterr().out


def test_members_of_one_program_are_what_solo_runs_are():
    base = replace(SMALL, dropout=0.3, stragglers=0.5, personal="head", keep="none")
    points = [
        replace(base, local_lr=a, head_lr=b, epsilon_floor=c) for a, b, c in ((0.001, 0.1, 0.5), (0.1, 0.01, 0.1))
    ]
    assert len({assemble.static_fields(c) for c in points}) == 1
    group = assemble.make_group(points)
    states = assemble.initial_states(group)
    step = jax.jit(lambda s: assemble.round_of(group, s, jnp.ones(2, bool), group.values))
    for _ in range(3):
        states, _, measured = step(states)
    alone = rounds(points[1], 3)
    of_member = jax.tree.map(lambda x: x[1], states)
    for a, b in zip(jax.tree.leaves(of_member.server), jax.tree.leaves(alone.server), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(
        of_member.clients["kept"]["logits"]["bias"], alone.clients["kept"]["logits"]["bias"], 2e-4
    )
    assert np.isfinite(measured["train/return/adapt_0"]).all()


MESSAGES = {
    "attacked": {
        "compress": "top_k",
        "compress_ratio": 0.2,
        "attack": "sign_flip",
        "aggregator": "geomed",
        "dropout": 0.2,
    },
    "asynchronous": {"schedule": "async", "restart": "update", "buffer": 2, "clients_per_round": 0, "keep": "replay"},
    "private": {"aggregate": "gradients", "local_optimizer": "sgd", "dp_clip": 0.1, "dp_noise": 1.0},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "attacked" else pytest.mark.nightly) for name in MESSAGES]
)
def test_messages_are_changes_like_any_others(name):
    state = rounds(replace(SMALL, **MESSAGES[name]), 2)
    shared = jax.tree.leaves(state.server.shared)
    assert all(np.isfinite(x).all() for x in shared) and max(float(jnp.abs(x).max()) for x in shared) > 0
