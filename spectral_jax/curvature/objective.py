"""A model and a loss as one function of the parameters, with the loss's closed-form derivatives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree

from spectral_jax.curvature.losses import Loss


@dataclasses.dataclass(frozen=True)
class Objective:
    """``objective(params, (inputs, targets)) -> [n, *positions]``; see `objective`."""

    model: Callable[[Any, Any], Array]
    loss: Loss

    def __call__(self, params: PyTree, data: tuple[Any, Any]) -> Float[Array, "n *positions"]:
        """The loss of each item."""
        inputs, targets = data
        return _value(self.loss, self.model(params, inputs), targets)

    def mask(self, data: tuple[Any, Any]) -> Float[Array, "n *positions"]:
        """1 for items that count, 0 for masked ones."""
        return self.loss.mask(data[1])


def objective(model: Callable[[Any, Any], Array], loss: Loss) -> Objective:
    """The loss of a model as a function ``(params, (inputs, targets)) -> [n, *positions]``.

    Its second derivatives are ``J^T H v`` plus the curvature of the model weighted by the loss's
    gradient, both in closed form: nothing differentiates twice through a softmax, and saturated
    ones keep their digits. `hessian` of it leaves masked items out of its mean, as `ggn` does.

    ``model(params, inputs) -> outputs [n, *positions, c]``. Works under ``jit``, ``vmap`` and
    ``grad``. Raises ``ValueError`` if ``loss`` is none of this room.

    >>> from spectral_jax.curvature import SquaredError
    >>> f = objective(lambda w, x: x * w, SquaredError())
    >>> f(jnp.array([2.0]), (jnp.ones((3, 1)), jnp.zeros((3, 1)))).tolist()
    [4.0, 4.0, 4.0]
    """
    check_loss(loss)
    return Objective(model, loss)


def check_loss(loss: Any) -> None:
    """Raise ``ValueError`` for what is no loss of this room."""
    if not isinstance(loss, Loss):
        raise ValueError(
            f"loss is {loss!r}: pass SoftmaxCrossEntropy(), SigmoidCrossEntropy() or "
            "SquaredError(); hessian takes any function of parameters and data"
        )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(loss: Loss, outputs: Array, targets: Array) -> Array:
    return loss.value(outputs, targets)


@partial(_value.defjvp, symbolic_zeros=True)
def _value_jvp(loss: Loss, primals: Any, tangents: Any) -> tuple[Array, Array]:
    outputs, targets = primals
    value = _value(loss, outputs, targets)
    slope = _gradient(loss, outputs, targets) * _instantiated(tangents[0], value.dtype)
    along = _along_targets(partial(loss.value, outputs), targets, tangents[1])
    return value, jnp.sum(slope, axis=-1) + along


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(loss: Loss, outputs: Array, targets: Array) -> Array:
    return loss.gradient(outputs, targets)


@partial(_gradient.defjvp, symbolic_zeros=True)
def _gradient_jvp(loss: Loss, primals: Any, tangents: Any) -> tuple[Array, Array]:
    outputs, targets = primals
    gradient = _gradient(loss, outputs, targets)
    curved = loss.hessian_product(outputs, targets, _instantiated(tangents[0], gradient.dtype))
    return gradient, curved + _along_targets(partial(loss.gradient, outputs), targets, tangents[1])


def _along_targets(function: Callable[[Array], Array], targets: Array, tangent: Any) -> Array | int:
    """What a change of the targets adds: nothing, and at no cost, where they are constants."""
    if isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0:
        return 0
    return jax.jvp(function, (targets,), (tangent,))[1]


def _instantiated(tangent: Any, dtype: jnp.dtype) -> Array:
    """A tangent of outputs in the dtype that losses compute in."""
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros(tangent.shape, dtype)
    return tangent.astype(dtype)
