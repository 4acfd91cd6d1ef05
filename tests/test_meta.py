"""The meta-gradient against jax.grad through adaptation, finite differences and a quadratic's closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl import meta


def loss(params, batch):
    """A small network: curved, not symmetric in its parameters."""
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


@pytest.fixture
def case(x64):
    keys = jax.random.split(jax.random.key(0), 6)
    params = {"w": jax.random.normal(keys[0], (3, 4)), "v": jax.random.normal(keys[1], (4,))}
    batches = [(jax.random.normal(keys[i], (7, 3)), jax.random.normal(keys[i + 1], (7,))) for i in (2, 4)]
    return params, *batches


def test_second_order_is_grad_through_adapt(case):
    params, inner, outer = case
    got = meta.meta_gradient(loss, 0.3, "second")(params, inner, outer)
    want = jax.grad(lambda p: loss(meta.adapt(loss, p, inner, 0.3), outer))(params)
    for name in params:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-10, atol=1e-12)


def test_first_order_is_the_gradient_at_the_adapted_point(case):
    params, inner, outer = case
    got = meta.meta_gradient(loss, 0.3, "first")(params, inner, outer)
    want = jax.grad(loss)(meta.adapt(loss, params, inner, 0.3), outer)
    second = meta.meta_gradient(loss, 0.3, "second")(params, inner, outer)
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-12)
    assert np.abs(got["w"] - second["w"]).max() > 1e-2


def test_orders_agree_at_inner_rate_zero(case):
    params, inner, outer = case
    first, second = (meta.meta_gradient(loss, 0.0, order)(params, inner, outer) for order in ("first", "second"))
    np.testing.assert_allclose(first["w"], second["w"], rtol=1e-12)


def test_hvp_is_the_finite_difference_of_gradients(case):
    params, inner, outer = case
    vector = jax.grad(loss)(params, outer)
    gradient, product = meta.hvp(loss, params, inner, vector)
    h = 1e-5
    plus, minus = (
        jax.grad(loss)(jax.tree.map(lambda p, v, s=s: p + s * h * v, params, vector), inner) for s in (1.0, -1.0)
    )
    for name in params:
        np.testing.assert_allclose(product[name], (plus[name] - minus[name]) / (2 * h), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(gradient[name], jax.grad(loss)(params, inner)[name], rtol=1e-12)


def test_quadratic_closed_form(x64):
    """L = a (x - u)^2 / 2: psi = x - s a (x - u), and the meta-gradient is (1 - s a) b (psi - w) for an outer b, w."""
    a, u, b, w, s, x = 2.0, 1.0, 3.0, -1.0, 0.1, 0.5

    def quadratic(p, batch):
        return 0.5 * batch[0] * (p - batch[1]) ** 2

    psi = x - s * a * (x - u)
    got = meta.meta_gradient(quadratic, s)(jnp.array(x), (a, u), (b, w))
    np.testing.assert_allclose(got, (1 - s * a) * b * (psi - w), rtol=1e-12)


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"'third'.*'first', 'second'"):
        meta.meta_gradient(loss, 0.1, "third")
