"""Gradient-based meta-learning on fixed batches: it knows neither reinforcement learning nor federation.

Source: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.
"""

from collections.abc import Callable

import jax

from fedjax_rl import trees
from fedjax_rl.types import Array, Batch, Params

Loss = Callable[[Params, Batch], Array]


def adapt(loss: Loss, params: Params, batch: Batch, inner_lr: Array | float) -> Params:
    """One step of adaptation: psi = theta - inner_lr * grad loss(theta; batch)."""
    return trees.axpy(-inner_lr, jax.grad(loss)(params, batch), params)


def hvp(loss: Loss, params: Params, batch: Batch, vector: Params) -> tuple[Params, Params]:
    """Gradient and Hessian-vector product of loss(.; batch) at params, as the forward derivative of the gradient.

    Returns:
      (grad loss(params), (Hess loss)(params) vector), exact for the fixed batch.
    """
    return jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (vector,))


def meta_gradient(
    loss: Loss, inner_lr: Array | float, order: str = "second"
) -> Callable[[Params, Batch, Batch], Params]:
    """Gradient of theta -> loss(adapt(theta; inner); outer) for fixed batches.

    With psi = theta - a grad L(theta; D0) and g = grad L(psi; D1):
      order="second": g - a Hess L(theta; D0) g     (exact)
      order="first":  g                             (FO-MAML)

    Source: Liu et al., "Federated Meta Reinforcement Learning for Personalized Tasks", 2024, Eq. 20 (there for J = -L).

    Returns:
      A function (params, inner, outer) -> gradient.
    """
    if order not in ("first", "second"):
        raise ValueError(f"order is {order!r}; legal: 'first', 'second'")

    def gradient(params: Params, inner: Batch, outer: Batch) -> Params:
        outer_gradient = jax.grad(loss)(adapt(loss, params, inner, inner_lr), outer)
        if order == "first":
            return outer_gradient
        _, curvature = hvp(loss, params, inner, outer_gradient)
        return trees.axpy(-inner_lr, curvature, outer_gradient)

    return gradient
