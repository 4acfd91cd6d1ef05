"""Surrogates: values and gradients by hand, and curvatures by exact enumeration of a small tabular problem."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.rl.surrogates import SURROGATES, Batch, dice, log, mean_over_valid, ratio

STATES, ACTIONS, STEPS = 3, 2, 3


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def batch_of(logp_old, advantage, mask=None) -> Batch:
    mask = jnp.ones(jnp.shape(advantage), bool) if mask is None else mask
    return Batch((), (), jnp.asarray(logp_old), jnp.asarray(advantage), mask)


@pytest.mark.parametrize(
    "r, advantage, value, slope",
    [
        (1.0, 2.0, 2.0, 2.0),  # the tie: half of each of two equal branches
        (1.0, -2.0, -2.0, -2.0),
        (1.1, 2.0, 2.2, 2.2),  # inside: d(r A)/d logp = r A
        (1.5, 2.0, 2.4, 0.0),  # clipped at 1.2, flat
        (1.5, -2.0, -3.0, -3.0),  # the pessimistic branch is the unclipped one
        (0.5, 2.0, 1.0, 1.0),
        (0.5, -2.0, -1.6, 0.0),  # clipped at 0.8, flat
    ],
)
def test_clipped_ratio_by_hand(x64, r, advantage, value, slope):
    batch = batch_of([[0.3]], [[advantage]])
    logp = jnp.asarray([[0.3 + np.log(r)]])
    terms = ratio(0.2)
    np.testing.assert_allclose(terms(logp, batch), [[value]], rtol=1e-12)
    grad = jax.grad(lambda x: terms(x, batch).sum())
    np.testing.assert_allclose(grad(logp), [[slope]], rtol=1e-12)
    np.testing.assert_allclose(jax.jvp(grad, (logp,), (jnp.ones((1, 1)),))[1], [[slope]], rtol=1e-12)


def test_mean_is_over_valid_steps_and_masked_steps_are_inert(x64):
    mask = jnp.asarray([[True, True, False], [True, False, False]])
    batch = batch_of(np.zeros((2, 3)), [[1.0, 2.0, 0.0], [6.0, 0.0, 0.0]], mask)
    logp = jnp.asarray([[0.0, 0.0, 900.0], [0.0, -900.0, 900.0]])  # exp would overflow
    for name, value in {"ratio": 3.0, "log": 0.0, "dice": 3.0}.items():
        terms = SURROGATES[name](0.2)
        got, grad = jax.value_and_grad(lambda x: mean_over_valid(terms(x, batch), mask))(logp)
        np.testing.assert_allclose(got, value, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(grad, np.asarray([[1, 2, 0], [6, 0, 0]]) / 3, atol=1e-12, err_msg=name)


class Tabular(NamedTuple):
    """start [S], moves [S, A, S], rewards [S, A]; states and actions of all trajectories [n, T]."""

    start: jax.Array
    moves: jax.Array
    rewards: jax.Array
    states: np.ndarray
    actions: np.ndarray


def make_tabular() -> Tabular:
    rng = np.random.default_rng(5)
    every = np.asarray(list(itertools.product(range(STATES), range(ACTIONS), repeat=STEPS)))
    start, moves = rng.dirichlet(np.ones(STATES)), rng.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))
    rewards = rng.normal(size=(STATES, ACTIONS))
    return Tabular(*map(jnp.asarray, (start, moves, rewards)), every[:, 0::2], every[:, 1::2])


def log_policy(theta: jax.Array) -> jax.Array:
    """A policy that ties its states: softmax over actions of theta [S + 1, A] (own row plus a shared one) -> [S, A]."""
    return jax.nn.log_softmax(theta[:-1] + jnp.sin(theta[-1:]), axis=-1)


def step_logp(theta: jax.Array, mdp: Tabular) -> jax.Array:
    """[n, T]"""
    return log_policy(theta)[mdp.states, mdp.actions]


def probabilities(theta: jax.Array, mdp: Tabular) -> jax.Array:
    """[n]: start x policy x transitions, of every trajectory."""
    s, a = mdp.states, mdp.actions
    chance = mdp.start[s[:, 0]] * jnp.prod(mdp.moves[s[:, :-1], a[:, :-1], s[:, 1:]], axis=1)
    return chance * jnp.exp(step_logp(theta, mdp).sum(axis=1))


def true_return(theta: jax.Array, mdp: Tabular) -> jax.Array:
    """sum over trajectories of probability x undiscounted return."""
    return probabilities(theta, mdp) @ mdp.rewards[mdp.states, mdp.actions].sum(axis=1)


def exact_advantages(theta: jax.Array, mdp: Tabular) -> jax.Array:
    """Q_t - V_t of the finite horizon by backward induction, read along the trajectories, [n, T]."""
    policy, value, tables = jnp.exp(log_policy(theta)), jnp.zeros(STATES), []
    for _ in range(STEPS):
        q = mdp.rewards + mdp.moves @ value
        value = (policy * q).sum(axis=1)
        tables.append(q - value[:, None])
    return jnp.stack([tables[STEPS - 1 - t][mdp.states[:, t], mdp.actions[:, t]] for t in range(STEPS)], axis=1)


class Exact(NamedTuple):
    mdp: Tabular
    theta: jax.Array
    weight: jax.Array
    batch: Batch


@functools.cache
def make_exact() -> Exact:
    """One episode per trajectory, weighted by its probability: expectations without any sampling."""
    mdp = make_tabular()
    theta = jnp.asarray(np.random.default_rng(6).normal(size=(STATES + 1, ACTIONS)))
    batch = batch_of(step_logp(theta, mdp), exact_advantages(theta, mdp))
    return Exact(mdp, theta, probabilities(theta, mdp), batch)


@pytest.fixture
def exact(x64) -> Exact:
    return make_exact()


def expected(terms, e: Exact):
    """theta -> E_old sum over steps of the terms."""
    return lambda theta: e.weight @ terms(step_logp(theta, e.mdp), e.batch).sum(axis=1)


def hessian(f, theta: jax.Array) -> np.ndarray:
    return np.asarray(jax.jit(jax.hessian(f))(theta)).reshape(theta.size, theta.size)


def cross_curvature(e: Exact) -> np.ndarray:
    """H12 = E sum_{t<u} G_t G_u' A_u, from the scores one by one."""
    g = np.asarray(jax.jit(jax.jacobian(step_logp))(e.theta, e.mdp)).reshape(*e.mdp.states.shape, -1)
    before = np.cumsum(g, axis=1) - g
    return np.einsum("n,nui,nuj,nu->ij", e.weight, before, g, e.batch.advantage)


def test_enumeration_is_complete(exact):
    np.testing.assert_allclose(exact.weight.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(exact.weight @ exact.batch.advantage, np.zeros(STEPS), atol=1e-14)


@pytest.mark.parametrize("name", SURROGATES)
def test_gradients_at_the_sampling_parameters_are_the_policy_gradient(exact, name):
    got = jax.jit(jax.grad(expected(SURROGATES[name](0.2), exact)))(exact.theta)
    want = jax.grad(true_return)(exact.theta, exact.mdp)
    assert np.abs(want).max() > 0.05
    np.testing.assert_allclose(got, want, atol=1e-13)


def test_dice_has_the_hessian_of_the_true_return(exact):
    want = hessian(lambda theta: true_return(theta, exact.mdp), exact.theta)
    np.testing.assert_allclose(hessian(expected(dice, exact), exact.theta), want, atol=1e-13)


def test_ratio_lacks_the_cross_terms(exact):
    """H_true = H_ratio + H12 + H12'."""
    cross = cross_curvature(exact)
    assert np.abs(cross).max() > 0.01
    want = hessian(lambda theta: true_return(theta, exact.mdp), exact.theta) - cross - cross.T
    np.testing.assert_allclose(hessian(expected(ratio(0.2), exact), exact.theta), want, atol=1e-13)


def test_log_keeps_h2_alone_and_ratio_h1_and_h2(exact):
    score = np.asarray(jax.jit(jax.jacobian(step_logp))(exact.theta, exact.mdp)).reshape(*exact.mdp.states.shape, -1)
    curve = jax.hessian(step_logp)(exact.theta, exact.mdp).reshape(*score.shape, exact.theta.size)
    h1 = np.einsum("n,nti,ntj,nt->ij", exact.weight, score, score, exact.batch.advantage)
    h2 = np.einsum("n,ntij,nt->ij", exact.weight, curve, exact.batch.advantage)
    assert min(np.abs(h1).max(), np.abs(h2).max()) > 0.01
    np.testing.assert_allclose(hessian(expected(log, exact), exact.theta), h2, atol=1e-13)
    np.testing.assert_allclose(hessian(expected(ratio(0.2), exact), exact.theta), h1 + h2, atol=1e-13)


def test_dice_away_from_the_sampling_parameters_weighs_by_per_decision_ratios(exact):
    """Its gradient at another theta is E_theta sum G_t A_t with the old advantages: exactly reweighted."""
    other = exact.theta + 0.3 * jnp.cos(jnp.arange(exact.theta.size, dtype=float)).reshape(exact.theta.shape)
    got = jax.grad(expected(dice, exact))(other)
    weight = probabilities(other, exact.mdp)
    want = jax.grad(lambda th: weight @ (step_logp(th, exact.mdp) * exact.batch.advantage).sum(axis=1))(other)
    np.testing.assert_allclose(got, want, atol=1e-13)
    # The value is the change of the return (Kakade and Langford 2002, performance difference).
    gain = true_return(other, exact.mdp) - true_return(exact.theta, exact.mdp)
    np.testing.assert_allclose(expected(dice, exact)(other), gain, atol=1e-13)
