"""Losses of a model's outputs with their gradients and Hessians in closed form.

An item is one prediction: a row ``[c]`` of outputs ``[*items, c]``. The Hessian of an item's loss
in its outputs is a ``c x c`` matrix ``H``, here as a product and as a root ``R`` with
``R R^T = H``. No automatic differentiation passes through a softmax, and compiled products with a
large vocabulary hold no temporary of the size of the outputs.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from spectral_jax.linalg.precision import unit_of, working

Outputs = Float[Array, "*items c"]
Targets = Num[Array, "..."]
PerItem = Float[Array, "*items"]


class Loss(abc.ABC):
    """What curvature needs to know of a loss of outputs ``[*items, c]`` and targets.

    Losses are hashable and static; they compute in float32, or float64 if the outputs are. All
    methods work under ``jit``, ``vmap`` and on sharded items, and raise ``ValueError`` for targets
    whose shape or dtype does not fit the outputs.
    """

    @abc.abstractmethod
    def value(self, outputs: Outputs, targets: Targets) -> PerItem:
        """The loss of each item."""

    @abc.abstractmethod
    def gradient(self, outputs: Outputs, targets: Targets) -> Outputs:
        """The gradient of each item's loss in its outputs."""

    @abc.abstractmethod
    def hessian_product(self, outputs: Outputs, targets: Targets, tangents: Outputs) -> Outputs:
        """``H t`` for a tangent ``t`` of each item's outputs."""

    @abc.abstractmethod
    def rank(self, c: int) -> int:
        """The largest rank ``r`` that ``H`` can have for ``c`` outputs."""

    @abc.abstractmethod
    def root_product(
        self, outputs: Outputs, targets: Targets, y: Float[Array, "*items r"]
    ) -> Outputs:
        """``R y``."""

    @abc.abstractmethod
    def root_transpose(
        self, outputs: Outputs, targets: Targets, u: Outputs
    ) -> Float[Array, "*items r"]:
        """``R^T u``."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, outputs: Outputs, targets: Targets) -> Targets:
        """Targets drawn from the distribution whose negative log-likelihood the loss is.

        The second moment of ``gradient`` over them is ``H``, which makes the Fisher matrix. What
        the given ``targets`` mask stays masked.
        """

    @abc.abstractmethod
    def mask(self, targets: Targets) -> PerItem:
        """1 for items that count and 0 for masked ones."""


@dataclasses.dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """``log sum_j exp f_j - f_y`` for a class ``y``, or its mean over soft labels.

    Targets are integer classes ``[*items]``, where a negative class masks the item (loss, gradient
    and Hessian 0) and one beyond the last gives NaN, or floating soft labels ``[*items, c]``, which
    weigh an item by their sum.

    >>> loss = SoftmaxCrossEntropy()
    >>> loss.value(jnp.zeros((2, 4)), jnp.array([3, -1])).round(4).tolist()
    [1.3863, 0.0]
    >>> loss.hessian_product(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([[1.0, 0.0]])).tolist()
    [[0.25, -0.25]]
    """

    def value(self, outputs: Outputs, targets: Targets) -> PerItem:
        """The loss ``[*items]``."""
        outputs = working(outputs, "outputs")
        targets = _class_targets(outputs, targets)
        if targets.ndim == outputs.ndim:
            return inner(targets, _log_normaliser(outputs) - outputs)[..., 0]
        return _mass(outputs, targets) * -_at(outputs - _log_normaliser(outputs), targets)

    def gradient(self, outputs: Outputs, targets: Targets) -> Outputs:
        """``m p - t`` with ``p = softmax(f)`` and ``m`` the sum of the labels ``t``."""
        outputs = working(outputs, "outputs")
        targets = _class_targets(outputs, targets)
        mass = _mass(outputs, targets)[..., None]
        if targets.ndim == outputs.ndim:
            return mass * _probabilities(outputs) - targets
        # p_y - 1 has no digits where p_y rounds to 1; minus the sum of the others has them all.
        here = jnp.arange(outputs.shape[-1]) == targets[..., None]
        absent = jnp.finfo(outputs.dtype).min
        others = _log_normaliser(jnp.where(here, absent, outputs)) - _log_normaliser(outputs)
        return mass * jnp.where(here, -jnp.exp(others), _probabilities(outputs))

    def hessian_product(self, outputs: Outputs, targets: Targets, tangents: Outputs) -> Outputs:
        """``m (diag(p) - p p^T) t``."""
        outputs, tangents = working(outputs, "outputs"), working(tangents, "tangents")
        mass = _mass(outputs, _class_targets(outputs, targets))[..., None]
        # H 1 = 0: relative to the likeliest class nothing cancels where p rounds to 0 and 1.
        relative = tangents - _at(tangents, jnp.argmax(outputs, axis=-1))[..., None]
        # A division, for the reason that `inner` has, and without p as an array.
        mean = jnp.sum(relative / _one_over_probabilities(outputs), axis=-1, keepdims=True)
        return mass * _probabilities(outputs) * (relative - mean)

    def rank(self, c: int) -> int:
        """``c - 1``: adding a constant to all outputs changes nothing."""
        return c - 1

    def root_product(
        self, outputs: Outputs, targets: Targets, y: Float[Array, "*items r"]
    ) -> Outputs:
        """``R y`` for the ``c x (c - 1)`` root described at `_likeliest`."""
        outputs, y = working(outputs, "outputs"), working(y, "y")
        mass = _mass(outputs, _class_targets(outputs, targets))[..., None]
        s, k, s_k = _likeliest(outputs)
        c = outputs.shape[-1]
        # The column that H lacks is k; y has no entry for the last one, which takes that of k.
        y = jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, 1)])
        y = jnp.where(jnp.arange(c) == c - 1, _at(y, k)[..., None], y)
        y = jnp.where(jnp.arange(c) == k[..., None], 0, y)
        along = inner(s, y)
        reflected = jnp.where(jnp.arange(c) == k[..., None], -along, y - s * along / (1 + s_k))
        return jnp.sqrt(mass) * s * reflected

    def root_transpose(
        self, outputs: Outputs, targets: Targets, u: Outputs
    ) -> Float[Array, "*items r"]:
        """``R^T u`` for the root of `root_product`."""
        outputs, u = working(outputs, "outputs"), working(u, "u")
        mass = _mass(outputs, _class_targets(outputs, targets))[..., None]
        s, k, s_k = _likeliest(outputs)
        # R^T 1 = 0, so that u counts relative to its entry k, where most of the sum would cancel.
        z = s * (u - _at(u, k)[..., None])
        z = z - s * inner(s, z) / (1 + s_k)
        last = jnp.arange(u.shape[-1] - 1) == k[..., None]
        return jnp.sqrt(mass) * jnp.where(last, z[..., -1:], z[..., :-1])

    def sample(self, key: PRNGKeyArray, outputs: Outputs, targets: Targets) -> Targets:
        """Classes ``[*items]`` with probabilities ``softmax(f)``."""
        drawn = jax.random.categorical(key, working(outputs, "outputs"))
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            return drawn
        targets = _wide(targets)
        return jnp.where((targets >= 0) & (targets < outputs.shape[-1]), drawn, targets)

    def mask(self, targets: Targets) -> PerItem:
        """0 for a negative class and for soft labels that are all 0."""
        targets = jnp.asarray(targets)
        if jnp.issubdtype(targets.dtype, jnp.integer):
            return (targets >= 0).astype(float)
        return jnp.any(targets != 0, axis=-1).astype(float)


@dataclasses.dataclass(frozen=True)
class SigmoidCrossEntropy(Loss):
    """``sum_j log(1 + exp f_j) - t_j f_j``: binary labels, hard or soft, in each of ``c`` outputs.

    Targets ``[*items, c]`` lie in [0, 1]; a negative one masks its output. An item of one output
    has targets ``[*items, 1]``.

    >>> SigmoidCrossEntropy().value(jnp.zeros((1, 2)), jnp.array([[1, 0]])).round(4).tolist()
    [1.3863]
    """

    def value(self, outputs: Outputs, targets: Targets) -> PerItem:
        """The loss ``[*items]``."""
        outputs, targets, known = self._arguments(outputs, targets)
        return inner(known, jax.nn.softplus(outputs) - targets * outputs)[..., 0]

    def gradient(self, outputs: Outputs, targets: Targets) -> Outputs:
        """``s(f) - t``, as ``(1 - t) s(f) - t s(-f)``, which has digits where ``s`` rounds to 1."""
        outputs, targets, known = self._arguments(outputs, targets)
        up, down = jax.nn.sigmoid(outputs), jax.nn.sigmoid(-outputs)
        return known * ((1 - targets) * up - targets * down)

    def hessian_product(self, outputs: Outputs, targets: Targets, tangents: Outputs) -> Outputs:
        """``s(f) s(-f) t``."""
        return self.root_product(outputs, targets, self.root_product(outputs, targets, tangents))

    def rank(self, c: int) -> int:
        """``c``: the outputs do not share a normalisation."""
        return c

    def root_product(
        self, outputs: Outputs, targets: Targets, y: Float[Array, "*items r"]
    ) -> Outputs:
        """``sqrt(s(f) s(-f)) y``: the root is diagonal."""
        outputs, _, known = self._arguments(outputs, targets)
        half = (jax.nn.log_sigmoid(outputs) + jax.nn.log_sigmoid(-outputs)) / 2
        return known * jnp.exp(half) * working(y, "y")

    def root_transpose(
        self, outputs: Outputs, targets: Targets, u: Outputs
    ) -> Float[Array, "*items r"]:
        """The same as `root_product`."""
        return self.root_product(outputs, targets, u)

    def sample(self, key: PRNGKeyArray, outputs: Outputs, targets: Targets) -> Targets:
        """Labels 0 or 1 ``[*items, c]``, each 1 with probability ``s(f)``; -1 where masked."""
        outputs, _, known = self._arguments(outputs, targets)
        drawn = jax.random.bernoulli(key, jax.nn.sigmoid(outputs))
        return jnp.where(known, drawn, -1).astype(outputs.dtype)

    def mask(self, targets: Targets) -> PerItem:
        """0 for an item whose outputs are all masked."""
        return jnp.any(~(jnp.asarray(targets) < 0), axis=-1).astype(float)

    def _arguments(self, outputs: Array, targets: Array) -> tuple[Array, Array, Array]:
        outputs = working(outputs, "outputs")
        targets = _like_outputs(outputs, targets)
        # Not (>= 0): a label that is NaN is no mask, and shows in the loss and its gradient.
        return outputs, targets, (~(targets < 0)).astype(outputs.dtype)


@dataclasses.dataclass(frozen=True)
class SquaredError(Loss):
    """``sum_j (f_j - t_j)^2``, without the half: the mean over a linear model's data has the
    Hessian ``(2/n) X^T X``.

    Targets ``[*items, c]``.

    >>> SquaredError().value(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2))).tolist()
    [5.0]
    """

    def value(self, outputs: Outputs, targets: Targets) -> PerItem:
        """The loss ``[*items]``."""
        outputs = working(outputs, "outputs")
        return jnp.sum((outputs - _like_outputs(outputs, targets)) ** 2, axis=-1)

    def gradient(self, outputs: Outputs, targets: Targets) -> Outputs:
        """``2 (f - t)``."""
        outputs = working(outputs, "outputs")
        return 2 * (outputs - _like_outputs(outputs, targets))

    def hessian_product(self, outputs: Outputs, targets: Targets, tangents: Outputs) -> Outputs:
        """``2 t``."""
        _like_outputs(outputs, targets)
        return 2 * working(tangents, "tangents")

    def rank(self, c: int) -> int:
        """``c``."""
        return c

    def root_product(
        self, outputs: Outputs, targets: Targets, y: Float[Array, "*items r"]
    ) -> Outputs:
        """``sqrt(2) y``."""
        _like_outputs(outputs, targets)
        return 2**0.5 * working(y, "y")

    def root_transpose(
        self, outputs: Outputs, targets: Targets, u: Outputs
    ) -> Float[Array, "*items r"]:
        """The same as `root_product`."""
        return self.root_product(outputs, targets, u)

    def sample(self, key: PRNGKeyArray, outputs: Outputs, targets: Targets) -> Targets:
        """``f`` plus normal noise of variance 1/2, the distribution that this loss is right for."""
        outputs = working(outputs, "outputs")
        return outputs + 0.5**0.5 * jax.random.normal(key, outputs.shape, outputs.dtype)

    def mask(self, targets: Targets) -> PerItem:
        """1: no target says that it is none. Leave items out by weight."""
        return jnp.ones(jnp.shape(targets)[:-1])


def inner(x: Outputs, y: Outputs) -> Float[Array, "*items 1"]:
    """``sum_j x_j y_j``, right also where jaxlib 0.10.2 on a CPU has other sums of products wrong.

    That release takes them for matrix products. Where ``vmap`` repeats one factor, and there are
    more than about 32,000 products, it gives other numbers without a word (jax#39103). Selected
    products it leaves alone. Linear in ``y``, which may be a tangent; ``x`` decides what is NaN.
    """
    return jnp.sum(jnp.where(jnp.isnan(x), x, x * y), axis=-1, keepdims=True)


def item_shares(
    loss: Loss, outputs: Outputs, targets: Targets, weight: Float[Array, "..."] | None = None
) -> PerItem:
    """The share of each item in a mean over all of them, ``w_i m_i / sum_j w_j m_j``.

    ``m`` is the loss's mask, so that masked tokens count neither above nor below the line. The
    ``weight`` is for each example ``[n]`` or each item ``[*items]``, not negative, 1 by default;
    only ratios count. Of the dtype that the loss computes in. If nothing has a weight, or one is
    negative, the shares are NaN.

    Works under ``jit`` and ``vmap``. Raises ``ValueError`` for a weight of any other shape.

    >>> item_shares(SoftmaxCrossEntropy(), jnp.zeros((2, 2, 3)), jnp.array([[1, 2], [0, -1]]),
    ...             jnp.array([1.0, 2.0])).tolist()
    [[0.25, 0.25], [0.5, 0.0]]
    """
    values = jax.eval_shape(loss.value, outputs, targets)
    mask = loss.mask(targets).astype(values.dtype)
    return shares_of(mask, weight)[0]


def shares_of(
    mask: PerItem, weight: Float[Array, "..."] | None = None
) -> tuple[PerItem, Float[Array, ""]]:
    """``w m / sum w m`` as in `item_shares`, and the sum."""
    unit = jnp.ones((), mask.dtype)
    if weight is not None:
        weight = working(weight, "weight")
        if weight.shape not in (mask.shape[:1], mask.shape):
            raise ValueError(
                f"weight has shape {weight.shape}: pass one number for each of {mask.shape[0]} "
                f"examples {list(mask.shape[:1])}, or for each item {list(mask.shape)}"
            )
        # Sums of the smallest and the largest weights leave a dtype that holds their ratios.
        unit = unit_of(weight)
        # A matrix with a negative share need not be one of curvature, nor a number near it.
        weight = jnp.where(weight >= 0, weight / unit, jnp.nan).astype(mask.dtype)
        mask = mask * weight.reshape(weight.shape + (1,) * (mask.ndim - weight.ndim))
    total = jnp.sum(mask)
    return mask / total, total * unit.astype(mask.dtype)


def _class_targets(outputs: Array, targets: Array) -> Array:
    """Integer classes as they are, soft labels in the dtype of the outputs."""
    targets = jnp.asarray(targets)
    if targets.shape == outputs.shape[:-1] and jnp.issubdtype(targets.dtype, jnp.integer):
        return _wide(targets)
    if targets.shape == outputs.shape and jnp.issubdtype(targets.dtype, jnp.floating):
        return targets.astype(outputs.dtype)
    raise ValueError(
        f"targets are {targets.dtype} of shape {targets.shape} for outputs {outputs.shape}: pass "
        f"integer classes {outputs.shape[:-1]} or floating soft labels {outputs.shape}"
    )


def _wide(classes: Array) -> Array:
    """In a type that holds their number as well: bytes (uint8) lack that of 256 classes."""
    return classes.astype(jnp.int32) if classes.dtype.itemsize < 4 else classes


def _like_outputs(outputs: Array, targets: Array) -> Array:
    targets = jnp.asarray(targets)
    if targets.shape != outputs.shape:
        raise ValueError(
            f"targets have shape {targets.shape} and outputs {outputs.shape}: pass one shape, "
            "such as targets[..., None] for a single output"
        )
    return working(targets, "targets").astype(working(outputs, "outputs").dtype)


def _mass(outputs: Array, targets: Array) -> Array:
    """What an item weighs: 1, or 0 if masked; NaN for a class that is none; the sum of labels."""
    if targets.ndim == outputs.ndim:
        return jnp.sum(targets, axis=-1)
    known = (targets >= 0).astype(outputs.dtype)
    return jnp.where(targets < outputs.shape[-1], known, jnp.nan)


def _at(x: Array, index: Array) -> Array:
    """``x[..., index]`` with an index for each item."""
    inside = jnp.clip(index, 0, x.shape[-1] - 1)
    return jnp.take_along_axis(x, inside[..., None], axis=-1)[..., 0]


# Softmaxes are written as exp(f - log Z): XLA then computes them where they are used, inside the
# loops of sums and products, instead of once into an array as large as the outputs.


def _log_normaliser(outputs: Array) -> Array:
    """``log Z`` ``[*items, 1]``."""
    top = jnp.max(outputs, axis=-1, keepdims=True)
    return top + jnp.log(jnp.sum(jnp.exp(outputs - top), axis=-1, keepdims=True))


def _probabilities(outputs: Array) -> Array:
    return jnp.exp(outputs - _log_normaliser(outputs))


def _one_over_probabilities(outputs: Array) -> Array:
    return jnp.exp(_log_normaliser(outputs) - outputs)


def _likeliest(outputs: Array) -> tuple[Array, Array, Array]:
    """``s = sqrt(p)``, the likeliest class ``k`` and ``s_k``.

    ``diag(p) - p p^T = D (I - s s^T) D`` with ``D = diag(s)`` and a unit vector ``s``. The
    Householder reflection ``I - u u^T / (1 + s_k)`` with ``u = s + e_k`` takes ``s`` to ``-e_k``:
    its other columns ``Q`` are orthonormal and orthogonal to ``s``, so that ``R = D Q`` is a root
    with ``c - 1`` columns. With the likeliest class for ``k`` no entry of ``R`` is a difference of
    nearly equal numbers, and the smallest eigenvalues of ``H`` keep their digits.
    """
    s = jnp.exp((outputs - _log_normaliser(outputs)) / 2)
    k = jnp.argmax(outputs, axis=-1)
    return s, k, _at(s, k)[..., None]
