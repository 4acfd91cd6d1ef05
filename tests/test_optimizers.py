"""Server optimisers against their closed forms for a constant pseudo-gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_rl.federation.server_optimizers import SERVER_OPTIMIZERS, scale_by_fed_adam

STEPS = (1, 10, 100, 500)


def trajectory(opt, gradient, steps=500):
    """The update at every step for a constant gradient."""

    def step(state, _):
        updates, state = opt.update(gradient, state, gradient)
        return state, updates

    return jax.lax.scan(step, opt.init(gradient), length=steps)[1]


def reddi_closed_form(k, b1=0.9, b2=0.999):
    """m_k / sqrt(v_k) for g = 1: m_j = 1 - b1^j, v_k = (1 - b2) sum_j b2^(k-j) m_j^2, in float64."""
    j = np.arange(1, k + 1)
    return (1 - b1**k) / np.sqrt((1 - b2) * np.sum(b2 ** (k - j) * (1 - b1**j) ** 2))


def test_adam_takes_unit_steps(x64):
    steps = trajectory(SERVER_OPTIMIZERS["adam"](1.0), jnp.array([1e-1, -2e-2]))
    for k in STEPS:  # eps / |g| is 5e-7 at most
        np.testing.assert_allclose(steps[k - 1], [-1.0, 1.0], rtol=1e-6)


def test_reddi_starts_at_31_6_and_decays(x64):
    steps = trajectory(
        optax.chain(scale_by_fed_adam(eps=0.0), optax.scale_by_learning_rate(1.0)), jnp.array([1.0, -3.0])
    )
    for k, golden in zip(STEPS, (31.6, 14.5, 3.48, 1.61), strict=True):
        np.testing.assert_allclose(-steps[k - 1, 0], reddi_closed_form(k), rtol=1e-9)
        np.testing.assert_allclose(-steps[k - 1, 0], golden, rtol=5e-3)
        np.testing.assert_allclose(
            steps[k - 1, 1], -steps[k - 1, 0], rtol=1e-9
        )  # of the gradient only the sign is left


def test_as_printed_is_momentum_sgd_at_the_usual_size(x64):
    """v is at most g^2 = 1e-12, far below eps = 1e-8: the step is m / sqrt(1e-8) = 1e4 m."""
    g = 1e-6
    steps = trajectory(SERVER_OPTIMIZERS["as_printed"](1.0), jnp.array([g]))
    for k in STEPS:
        np.testing.assert_allclose(steps[k - 1], -1e4 * g * (1 - 0.9**k), rtol=1e-4)


def test_yogi_gathers_a_thousandth_of_g_squared_at_a_time(x64):
    """v_k = k g^2 / 1000 up to k = 1000, corrected by 1 - 0.999^k; at the typical |g| of 1e-5 too."""
    g = np.array([1e-5, -3.0])
    steps = trajectory(SERVER_OPTIMIZERS["yogi"](1.0), jnp.asarray(g))
    for k in STEPS:
        corrected = 1e-3 * k / (1 - 0.999**k)
        np.testing.assert_allclose(-steps[k - 1], np.sign(g) / np.sqrt(corrected), rtol=2e-3)
    assert abs(steps[499, 1]) < 0.9  # where Adam's is 1


def test_avgm_is_ten_times_sgd_in_the_end(x64):
    steps = trajectory(SERVER_OPTIMIZERS["avgm"](1.0), jnp.array([2.0]))
    for k in STEPS:
        np.testing.assert_allclose(steps[k - 1], -2.0 * (1 - 0.9**k) / 0.1, rtol=1e-9)


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_rates_scale_and_may_be_traced(name, x64):
    g = {"w": jnp.array([0.3, -0.2])}

    @jax.jit
    def first(rate):
        opt = SERVER_OPTIMIZERS[name](rate)
        return opt.update(g, opt.init(g), g)[0]["w"]

    np.testing.assert_allclose(first(0.5), 0.5 * first(1.0), rtol=1e-9)


def test_sgd_at_rate_one_takes_the_mean_model(x64):
    opt = SERVER_OPTIMIZERS["sgd"](1.0)
    change = jnp.array([0.5, -1.5])
    updates, _ = opt.update(-change, opt.init(change), change)
    np.testing.assert_allclose(updates, change, rtol=0)
