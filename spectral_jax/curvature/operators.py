"""Hessian, Gauss-Newton and Fisher matrices as operators on raveled parameters; never formed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from spectral_jax._choices import check_choice
from spectral_jax._options import count
from spectral_jax.curvature._batches import (
    Model,
    Weight,
    leading,
    micro_size,
    one_batch,
    pair_of,
    split,
)
from spectral_jax.curvature._products import (
    HessianTerm,
    JacobianProduct,
    MeanProduct,
    OutputsTerm,
    Term,
    check_precision,
    outputs_of,
)
from spectral_jax.curvature._subset import Where, select
from spectral_jax.curvature.losses import Loss
from spectral_jax.curvature.objective import Objective, check_loss
from spectral_jax.linalg.arguments import check_key
from spectral_jax.linalg.operators import LinearOperator, SymmetricOperator

Method = Literal["forward", "reverse", "difference"]
Accumulate = Literal["plain", "compensated"]


def hessian(
    loss: Callable[[Any, Any], Array],
    params: PyTree,
    data: PyTree,
    *,
    weight: Weight = None,
    where: Where = None,
    micro_batch: int | None = None,
    method: Method = "forward",
    accumulate: Accumulate = "plain",
) -> SymmetricOperator:
    """The Hessian of a mean loss, ``sum_i w_i d^2 loss_i / sum_i w_i``, in raveled parameters.

    ``loss(params, batch)`` gives one number for each example of ``batch``, ``[b]`` (or each item,
    ``[b, *positions]``); or one number, the mean over its batch. Of a model and a loss of this room
    take `objective`: its products never differentiate twice through a softmax. ``data`` is any tree
    whose leaves have a leading axis of ``n`` examples. ``loss`` is static: keep it a module-level
    function, with arrays in ``params`` and ``data``, for a fresh lambda compiles afresh.

    Vectors are ``ravel_pytree(params)`` ``[p]``, of the leaves that ``where`` chooses: a predicate
    of their names (``lambda name: "lora" in name``) or a tree of booleans. Half parameters count
    as the float32 numbers that they are.

    ``weight`` is ``w``, ``[n]`` or ``[n, *positions]``. ``micro_batch`` examples are in memory at a
    time; which number changes the result by rounding only, divisor of ``n`` or not. A product
    costs two to three gradients. ``method`` is "forward" (over reverse mode), "reverse" (over
    reverse, for functions without a forward rule), or "difference" (of two gradients, for functions
    whose gradient cannot be differentiated: three or four digits in float32, and `check` says how
    many). ``accumulate="compensated"`` sums over micro-batches as if with twice the digits.

    Examples sharded over devices cost one all-reduce a product. Works under ``jit`` and ``vmap``,
    and ``grad`` with respect to ``params`` and ``data``. Raises ``ValueError`` for data without a
    common leading axis, a loss of another shape, a mean loss with weights or with micro-batches
    that do not divide ``n``, and parameters and data of different precision.

    >>> def squares(w, batch):
    ...     x, y = batch
    ...     return (x @ w - y) ** 2
    >>> data = (jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.zeros(2))
    >>> hessian(squares, jnp.zeros(2), data).dense().tolist()
    [[2.0, 2.0], [2.0, 4.0]]
    """
    check_choice(("forward", "reverse", "difference"), method=method)
    if isinstance(inside := inspect.unwrap(loss), Objective):
        loss = inside  # jit of an objective masks what the objective does
    n, m = leading(data), micro_size(leading(data), micro_batch)
    values = jax.eval_shape(loss, params, one_batch(data, m))
    _check_values(values, n, m, weight)
    if isinstance(loss, Objective):
        mask = loss.mask(data)
    else:
        mask = jnp.ones((n, *values.shape[1:]))
    term = HessianTerm(loss, method)
    return _mean(term, params, data, mask, m, weight=weight, where=where, accumulate=accumulate)


def ggn(
    model: Model,
    loss: Loss,
    params: PyTree,
    data: tuple[Any, Any],
    *,
    weight: Weight = None,
    where: Where = None,
    micro_batch: int | None = None,
    method: Method = "forward",
    accumulate: Accumulate = "plain",
) -> SymmetricOperator:
    """The generalised Gauss-Newton matrix ``sum_i w_i J_i^T H_i J_i / sum_i w_i``: never negative.

    ``J_i`` is the Jacobian of the outputs of item ``i`` in the raveled parameters and ``H_i`` the
    Hessian of its loss in the outputs. It is the Hessian without the curvature of the model.

    ``model(params, inputs) -> outputs [n, *positions, c]``, ``data = (inputs, targets)`` with a
    leading axis of ``n`` examples and ``loss`` one of this room. The mean is over items (of a
    sequence: its positions); those that the targets mask count neither above nor below the line.
    ``weight`` is for examples ``[n]`` or items ``[n, *positions]``. A product costs one and a half
    gradients. ``method`` "difference" takes ``J v`` as a difference of outputs, for models without
    a forward rule, and "reverse" as the transpose of the transpose. The other options are those of
    `hessian`, as are the transformations and errors.

    Source: Schraudolph 2002.

    >>> from spectral_jax.curvature import SquaredError
    >>> data = (jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 1)))
    >>> ggn(lambda w, x: (x @ w)[:, None], SquaredError(), jnp.zeros(2), data).dense().tolist()
    [[2.0, 2.0], [2.0, 4.0]]
    """
    term = OutputsTerm(model, loss, "hessian", method)
    return _of_outputs(
        term, params, data, micro_batch, weight=weight, where=where, accumulate=accumulate
    )


def fisher(
    model: Model,
    loss: Loss,
    params: PyTree,
    data: tuple[Any, Any],
    *,
    mode: Literal["exact", "mc"] = "exact",
    key: PRNGKeyArray | None = None,
    samples: int = 1,
    index: Int[ArrayLike, " n"] | None = None,
    weight: Weight = None,
    where: Where = None,
    micro_batch: int | None = None,
    accumulate: Accumulate = "plain",
) -> SymmetricOperator:
    """The Fisher matrix: the second moment of gradients at targets drawn from the model itself.

    ``mode="exact"`` takes the expectation over targets in closed form; for the losses of this room
    it is `ggn` (of hard targets: soft labels that do not sum to 1 weigh items there). ``"mc"``
    draws ``samples`` targets for each example with ``key``, folded with the example's ``index``
    ``[n]``, by default its place in ``data``: whatever the micro-batches, and the order of data
    that carry their index, the matrix is the same. Its relative error is about
    ``1 / sqrt(n samples)``. Targets in ``data`` only say what is masked.

    Arguments else, transformations and errors as of `ggn`; ``ValueError`` for "mc" without a key.
    Source: Kunstner, Balles & Hennig 2019, arXiv 1905.12558.

    >>> from spectral_jax.curvature import SquaredError
    >>> data = (jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 1)))
    >>> fisher(lambda w, x: (x @ w)[:, None], SquaredError(), jnp.zeros(2), data).dense().tolist()
    [[2.0, 2.0], [2.0, 4.0]]
    """
    check_choice(("exact", "mc"), mode=mode)
    options: dict[str, Any] = dict(weight=weight, where=where, accumulate=accumulate)
    if mode == "exact":
        term = OutputsTerm(model, loss, "hessian", "forward")
        return _of_outputs(term, params, data, micro_batch, **options)
    check_key(key, draws="mode='mc' draws targets")
    term = OutputsTerm(model, loss, "sampled", "forward", count("samples", samples))
    n = leading(data)
    order = jnp.arange(n) if index is None else jnp.asarray(index)
    if order.shape != (n,) or not jnp.issubdtype(order.dtype, jnp.integer):
        raise ValueError(f"index is {order.dtype}{list(order.shape)}: pass {n} whole numbers [{n}]")
    return _of_outputs(term, params, data, micro_batch, index=order, key=key, **options)


def empirical_fisher(
    model: Model,
    loss: Loss,
    params: PyTree,
    data: tuple[Any, Any],
    *,
    weight: Weight = None,
    where: Where = None,
    micro_batch: int | None = None,
    accumulate: Accumulate = "plain",
) -> SymmetricOperator:
    """The second moment of the gradients of items at their given targets, uncentred.

    No Fisher matrix: where a model fits its data the gradients vanish and so does this, whatever
    the curvature. Of a sequence every position is an item with a gradient of its own.

    Arguments, transformations and errors as of `ggn`.
    Source: Kunstner, Balles & Hennig 2019, arXiv 1905.12558.

    >>> from spectral_jax.curvature import SquaredError
    >>> data = (jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.array([[1.0], [0.0]]))
    >>> model = lambda w, x: (x @ w)[:, None]
    >>> empirical_fisher(model, SquaredError(), jnp.zeros(2), data).dense().tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    term = OutputsTerm(model, loss, "outer", "forward")
    return _of_outputs(
        term, params, data, micro_batch, weight=weight, where=where, accumulate=accumulate
    )


def logit_jacobian(
    model: Model,
    params: PyTree,
    inputs: PyTree,
    *,
    where: Where = None,
    micro_batch: int | None = None,
) -> LinearOperator:
    """The Jacobian ``[n positions c, p]`` of all outputs in the raveled parameters, not averaged.

    Rows are ``model(params, inputs)`` raveled, examples first. ``gram`` of it, or of its transpose,
    is the matrix whose spectrum the neural tangent kernel has. Options, transformations and errors
    as of `ggn`; ``micro_batch`` examples are in memory at a time.

    >>> logit_jacobian(lambda w, x: x * w, jnp.ones(2), jnp.array([[3.0, 4.0]])) @ jnp.ones(2)
    Array([3., 4.], dtype=float32)
    """
    subset, chosen, others = select(params, where)
    n, m = leading(inputs), micro_size(leading(inputs), micro_batch)
    outputs = outputs_of(model, params, one_batch(inputs, m))
    batches, layout = split(inputs, jnp.ones(n, subset.dtype), None, m, False, params)
    data = (chosen, others, batches)
    check_precision(subset, data)
    kind = JacobianProduct(model, subset, layout, shape := (n, *outputs.shape[1:]))
    return LinearOperator(kind.forward, kind.backward, data, (math.prod(shape), subset.size))


def _of_outputs(
    term: OutputsTerm,
    params: PyTree,
    data: tuple[Any, Any],
    micro_batch: int | None,
    *,
    index: Array | None = None,
    **options: Any,
) -> SymmetricOperator:
    check_loss(term.loss)
    inputs, targets = pair_of(data)
    m = micro_size(leading(data), micro_batch)
    outputs = outputs_of(term.model, params, one_batch(inputs, m))
    jax.eval_shape(term.loss.value, outputs, one_batch(targets, m))  # refuses targets by name
    return _mean(term, params, (inputs, targets, index), term.loss.mask(targets), m, **options)


def _mean(
    term: Term,
    params: PyTree,
    data: PyTree,
    mask: Array,
    m: int,
    *,
    weight: Weight,
    where: Where,
    accumulate: Accumulate,
    key: PRNGKeyArray | None = None,
) -> SymmetricOperator:
    check_choice(("plain", "compensated"), accumulate=accumulate)
    subset, chosen, others = select(params, where)
    compensated = accumulate == "compensated"
    batches, layout = split(data, mask.astype(subset.dtype), weight, m, compensated, params)
    held = (chosen, others, key, batches)
    check_precision(subset, held)
    return SymmetricOperator(MeanProduct(term, subset, layout), held, subset.size)


def _check_values(values: Any, n: int, m: int, weight: Weight) -> None:
    """Raise ``ValueError`` for a loss that gives neither one number an example nor one in all."""
    real = hasattr(values, "dtype") and jnp.issubdtype(values.dtype, jnp.floating)
    if not real or values.shape[:1] not in ((), (m,)):
        raise ValueError(
            f"loss returns {values} for {m} examples: return one real number for each [{m}], or "
            "their mean"
        )
    if values.shape == () and weight is not None:
        raise ValueError("loss returns a mean, which has no weights: return one number an example")
    if values.shape == () and n % m:
        raise ValueError(
            f"loss returns a mean and micro_batch={m} does not divide {n} examples: choose a "
            "divisor, or return one number an example"
        )
