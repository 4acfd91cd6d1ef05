"""Trust among clients of unlike networks: messages have no coordinate of a network, and who lies is who should."""

from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fedjax_rl import config
from fedjax_rl.config import trust
from fedjax_rl.envs import make_env
from fedjax_rl.federation import attacks, simulate
from fedjax_rl.rl import mlp
from fedjax_rl.runs import assemble

PUBLIC = Path(__file__).parent / "fixtures" / "public-states.npy"
HIDDEN = ((5,), (3, 2))
BASE = {
    "env": "probe/target", "kinds": "6x5:tanh, 6x3-2:tanh", "selection": "by_kind", "num_clients": 12, "episodes": 2,
    "clients_per_round": 6, "local_steps": 1, "new_clients": 0, "critic": "none", "attack_share": 0.3,
}  # fmt: skip
DISTILS = {"public_states": str(PUBLIC), "loops": 1, "parts": 1}
MODELS = [name for name, cls in config.CONFIGS.items() if cls.keeps_models]


def built(algorithm, **values):
    return config.build(algorithm, BASE, DISTILS if algorithm == "fedhpd" else {}, values)


def first_round(made):
    """(The run, its state before and after its first round, metrics, who of the cohort is malicious [M])."""
    run = assemble.make_run(made)
    before = assemble.initial_state(run)
    after, metrics = jax.jit(run.simulation.round)(before)
    key = simulate.stream(before.key, simulate.MALICIOUS)
    bad = np.asarray(attacks.is_malicious(key, 12, made.attack_share))[metrics["who/selected"]]
    assert 0 < bad.sum() < 3 and metrics["health/dropped_clients"] == 0
    return run, before, after, metrics, bad


def attacked(rows, bad, name):
    """Rows [M, d] with those of the malicious replaced, by the formulas of the papers."""
    honest = rows[~bad]
    lie = {"ipm": -honest.mean(axis=0), "alie": honest.mean(axis=0) - 2 * honest.std(axis=0, ddof=1)}
    lie["sign_flip"] = -2 * rows
    return np.where(bad[:, None], lie[name], rows)


def message_size(made):
    """Entries that a client of each place sends."""
    run = assemble.make_run(made)
    state = assemble.abstract_state(run)
    work = lambda state: jax.vmap(run.simulation.work)(*run.simulation.cohort(state)[1:])[0].message
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(work, state))) // 6


@pytest.mark.parametrize("algorithm", MODELS)
def test_what_is_sent_has_no_coordinate_of_a_network(algorithm):
    """So nothing is filled up in it; and it is empty exactly where options for messages are refused."""
    option, silent = trust.SILENT.get(algorithm, ("algorithm", ()))
    rule = next((item.metadata["rule"] for item in fields(config.CONFIGS[algorithm]) if item.name == option), None)
    for value in rule.choices if rule else (algorithm,):
        given = {option: value} if rule else {}
        sizes = {message_size(built(algorithm, **given, kinds=kinds)) for kinds in (BASE["kinds"], "12x30-9:relu")}
        assert len(sizes) == 1 and (sizes == {0}) == (value in silent), value


def said(params):
    """(Mean, deviation) of a client's policy in the public states, one after the other: its network in NumPy."""
    hidden, states = HIDDEN[int(params["kind"])], np.load(PUBLIC)
    flat, tree_of = ravel_pytree(mlp(make_env("probe/target").spec, hidden=hidden).init(jax.random.key(0)))
    tree = jax.tree.map(np.asarray, tree_of(params["row"][: flat.size]))
    assert not np.any(params["row"][flat.size :])
    x = states
    for i in range(len(hidden)):
        x = np.tanh(x @ tree[f"hidden_{i}"]["kernel"] + tree[f"hidden_{i}"]["bias"])
    mean = x @ tree["mean"]["kernel"] + tree["mean"]["bias"]
    return np.concatenate([mean, np.broadcast_to(np.exp(tree["log_std"]), mean.shape)]).ravel()


@pytest.mark.parametrize(
    ("values", "combined"),
    [
        (
            {"attack": "alie", "attack_strength": 2.0, "aggregator": "trimmed"},
            lambda rows: np.sort(rows, axis=0)[1:-1].mean(axis=0),
        ),
        ({"attack": "ipm", "secagg_bits": 20, "secagg_range": 9.0}, lambda rows: rows.mean(axis=0)),
    ],
    ids=["rule", "secure"],
)
def test_a_consensus_of_unlike_networks_is_that_of_what_each_says(values, combined):
    """The last exchange of a round of FedHPD, from the clients' networks on, in NumPy."""
    made = built("fedhpd", **values)
    _, _, after, metrics, bad = first_round(made)
    clients = jax.tree.map(np.asarray, after.clients["params"])
    rows = np.stack([said(jax.tree.map(lambda x, i=i: x[i], clients)) for i in metrics["who/selected"]])
    want = combined(attacked(rows, bad, made.attack))
    np.testing.assert_allclose(ravel_pytree(after.server.shared)[0], want, rtol=1e-4, atol=5e-5)
    assert np.abs(want - rows.mean(axis=0)).max() > 1e-2


@pytest.mark.nightly  # what is done to a message of 28 numbers is tested elsewhere, and that it is one of 28 above
@pytest.mark.parametrize("private", [False, True])
def test_a_map_learned_by_unlike_networks_moves_by_what_each_sends(private):
    """What each client sends is computed one by one; the rest in NumPy."""
    trusted = {"dp_clip": 0.05, "dp_noise": 1e-6, "dp_delta": 0.01} if private else {"aggregator": "trimmed"}
    attack = "sign_flip" if private else "alie"
    trusted |= {"server": "sgd", "server_lr": 1.0, "attack": attack, "attack_strength": 2.0}
    run, before, after, _, bad = first_round(built("fedstrategy", **trusted))
    places, work = run.simulation.cohort(before)[1:], jax.jit(run.simulation.work)
    rows = np.stack([work(*jax.tree.map(lambda x, i=i: x[i], places))[0].message.ravel() for i in range(6)])
    sent = attacked(rows, bad, attack)
    norms = np.linalg.norm(sent, axis=1, keepdims=True)
    clipped = (sent * np.minimum(1.0, 0.05 / norms)).mean(axis=0)
    want = clipped if private else np.sort(sent, axis=0)[1:-1].mean(axis=0)
    assert norms.max() > 0.05 > norms.min()
    np.testing.assert_allclose((after.server.shared - before.server.shared).ravel(), want, rtol=1e-3, atol=1e-5)


def test_whose_rewards_are_turned_round_learns_the_opposite_whatever_its_network():
    """One step of REINFORCE without a baseline is linear in the rewards: -2 times the change where they are lied to.

    Nobody lies in the first member of the sweep, a part in the second, all in the third.
    """
    plain = {
        "surrogate": "log",
        "advantages": "plain",
        "attack": "reward_flip",
        "attack_strength": 2.0,
        "local_lr": 1.0,
    }
    group = assemble.make_group([built("independent", **plain, attack_share=share) for share in (0.0, 0.3, 1.0)])
    before = assemble.initial_states(group)
    step = jax.jit(lambda *of: assemble.round_of(group, *of))
    after, _, metrics = step(before, jnp.ones(3, bool), group.values)
    ids = np.asarray(metrics["who/selected"][1])
    bad = np.asarray(attacks.is_malicious(simulate.stream(before.key[1], simulate.MALICIOUS), 12, 0.3))[ids]
    change = np.asarray(after.clients["row"] - before.clients["row"])[:, ids]
    kinds = np.asarray(before.clients["kind"][1])[ids]
    assert kinds.tolist() == [0, 0, 0, 1, 1, 1] and 0 < bad.sum() < 6 and np.abs(change[0]).max(axis=1).min() > 1e-3
    for member, lied_to in zip(change, (bad & False, bad, bad | True), strict=True):
        np.testing.assert_allclose(member, np.where(lied_to[:, None], -2.0, 1.0) * change[0], rtol=1e-3, atol=1e-5)
