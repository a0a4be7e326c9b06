"""Curvature of the loss, watched while training: measured now and then inside the compiled step.

The transformation passes updates on as they are. What it saw is in its state, with how far to trust
it, and the next measurement starts from there: between two of them the top eigenvector of the
Hessian and the critical step size change little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree
from scipy.special import ndtri, stdtrit

from spectral_jax._choices import check_choice
from spectral_jax._options import count
from spectral_jax._transforms.hyperparameters import (
    Strength,
    check_strength,
    injectable,
    strength_at,
)
from spectral_jax._transforms.leaves import floats
from spectral_jax._transforms.members import where_needed
from spectral_jax.curvature import hessian
from spectral_jax.linalg import SymmetricOperator, generic_vectors, lanczos, unit
from spectral_jax.linalg import trace as trace_of
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.subspace import best_pairs, mm

Loss: TypeAlias = Callable[[Any, Any], Array]
What: TypeAlias = Literal["lambda_max", "critical_sharpness", "trace"]
NAMES: tuple[What, ...] = get_args(What)

# A residual, a standard error or the width of a bracket up to this share of its value is good: the
# error of an eigenvalue is far smaller, about the square of its residual over the next gap.
TRUSTED = 0.1
# The part of a generic vector in the start from the last eigenvector: another eigenvalue may have
# become the largest, and Lanczos finds no vector of which its start has no part.
GENERIC_PART = 0.1
# Losses per critical sharpness besides the one at the weights themselves.
PASSES = 5
# An interpolated root is tried this much beyond itself, so that the next loss is likely to close
# the bracket from the other side.
BEYOND = 0.02
# How far beyond the longest step tried the next one may go.
REACH = 4.0


class Reading(NamedTuple):
    """A number, how far off it may be in its own unit, and whether that is little."""

    value: Float[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]


class WatchState(NamedTuple):
    """The state of `watch`; `metrics` reads it wherever it is in an optimiser's state.

    step: updates done.
    measured: the step of the last measurement, -1 before the first.
    seen: the last `Reading` of each name in ``what``; NaN before the first.
    vector: the eigenvector that the next ``lambda_max`` starts from, of the floating parameters as
      ``ravel_pytree`` has them; empty if that is not watched.
    """

    step: Int[Array, ""]
    measured: Int[Array, ""]
    seen: dict[str, Reading]
    vector: Float[Array, " n"]


@injectable("learning_rate")
def watch(
    loss: Loss,
    *,
    every: int | Sequence[int],
    what: Sequence[What] = ("lambda_max",),
    learning_rate: Strength | None = None,
    matvecs: int = 6,
) -> optax.GradientTransformationExtraArgs:
    """Measure the curvature of ``loss`` at every ``every``-th step, or at steps that are listed.

    Updates pass unchanged. Put it last in ``optax.chain``, outside of ``optax.masked``, and pass
    the batch to measure on: ``tx.update(grads, state, params, batch=batch)``. That may be the
    training batch, or a fixed set of examples if the course of the numbers matters more than their
    sampling noise.

    ``"lambda_max"``
        the largest eigenvalue of the Hessian of the mean loss, by ``matvecs`` steps of Lanczos
        from the last eigenvector; ``residual`` is ``||H v - value v||``.
    ``"trace"``
        the trace of the Hessian, by XTrace with ``matvecs`` products; ``residual`` is the standard
        error of ``matvecs // 2`` samples, times what Student's t asks for so few (2.2 for three).
        Other random vectors at every measurement.
    ``"critical_sharpness"``
        ``2 / eta_c``, ``eta_c`` the smallest learning rate at which the update now due would raise
        the loss: ``L(w + (eta / learning_rate) u) > L(w)`` for the update ``u``, with everything
        but the rate held. For plain gradient descent on a quadratic it is ``g^T H g / g^T g``, and
        training is stable while it is below ``2 / learning_rate``. One loss with its slope along
        ``u``, and five losses: the rise over the step, ``(L(w + s u) - L(w)) / s``, is linear for a
        quadratic, so its root is interpolated and bracketed from both sides. ``residual`` is the
        width of the bracket, and what the rounding of the losses adds to it. A second crossing
        beyond the first is not looked for, and a hump shorter than the steps tried is not seen. NaN
        if the loss already rises along ``u`` (the update is no descent direction on this batch). If
        the loss falls at all steps tried, the value is an upper bound, and not converged.

    Args:
      loss: ``(params, batch)`` to one number per example ``[b]`` or their mean, as `hessian` of
        `curvature` takes it, ``objective`` of a model and a loss included; not random. The leaves
        of ``batch`` share a leading axis of examples.
      every: steps from one measurement to the next, the first at step 0; or the numbers of the
        steps to measure at, such as ``(0, 1, 3, 10, 32, 100)``.
      what: which of the names above.
      learning_rate: the rate that is in the update, for ``critical_sharpness``: a number, an array
        or a function of the number of updates done. If None, 1: the number is then in units of one
        over the update itself, and 2 is where the update overshoots.
      matvecs: products with the Hessian for ``lambda_max``, and for ``trace``; at least 4. Each
        costs two to three gradients of the batch.

    A reading is ``converged`` if its residual is at most a tenth of its value. Half precision
    parameters are measured in float32. NaN in the weights or the loss gives NaN, not converged.

    Works under ``jit``, ``scan``, ``optax.inject_hyperparams`` and ``optax.MultiSteps``; under
    ``vmap`` the members measure when one of them is due. Raises ``ValueError`` for unknown names,
    counts below their least, missing ``params`` or ``batch``, and masked parameters.
    Source: critical sharpness, arXiv 2601.16979, whose definition this is; the search is ours.

    >>> def loss(params, batch):
    ...     return jnp.sum(batch * params**2) / 2
    >>> tx = optax.chain(optax.sgd(0.1), watch(loss, every=1, learning_rate=0.1,
    ...                                        what=("lambda_max", "critical_sharpness")))
    >>> params, batch = jnp.array([0.0, 1.0]), jnp.array([[1.0, 5.0]])
    >>> _, state = tx.update(batch[0] * params, tx.init(params), params, batch=batch)
    >>> [round(float(reading.value), 3) for reading in state[1].seen.values()]
    [5.0, 5.0]
    """
    names = _names(what)
    is_due = _due(every)
    matvecs = count("matvecs", matvecs, least=4)
    if learning_rate is not None:
        check_strength("learning_rate", learning_rate)

    def init(params):
        dtype, size = _flat(params)
        kept = generic_vectors(size if "lambda_max" in names else 0, 1, dtype)[:, 0]
        # Arrays of their own, each: a state that is donated may hold no buffer twice.
        seen = {
            name: Reading(*(jnp.full((), jnp.nan, dtype) for _ in range(2)), jnp.array(False))
            for name in names
        }
        return WatchState(jnp.zeros((), jnp.int32), -jnp.ones((), jnp.int32), seen, kept)

    def update(updates, state, params=None, *, batch=None, **extra):
        del extra
        _check_given(params, batch)
        batch = jax.tree.map(jnp.asarray, batch)
        rate = 1.0 if learning_rate is None else strength_at(learning_rate, state.step)
        look = _Look(loss, params, batch, updates, rate, matvecs)
        state = where_needed(is_due(state.step), lambda: look.measured(state), state)
        return updates, state._replace(step=state.step + 1)

    return optax.GradientTransformationExtraArgs(init, update)


class _Look(NamedTuple):
    """What a measurement is of."""

    loss: Loss
    params: PyTree
    batch: PyTree
    updates: PyTree
    rate: Any
    matvecs: int

    def measured(self, state: WatchState) -> WatchState:
        """The state after a measurement of all that is watched."""
        vector, seen = state.vector, {}
        for name, last in state.seen.items():
            if name == "critical_sharpness":
                seen[name] = self.critical(last.value)
                continue
            matrix = hessian(self.loss, self.params, self.batch)
            if name == "trace":
                seen[name] = _trace(matrix, state.step, self.matvecs)
            else:
                seen[name], vector = _largest(matrix, vector, state.step, self.matvecs)
        seen = jax.tree.map(lambda new, old: new.astype(old.dtype), seen, state.seen)
        return WatchState(state.step, state.step, seen, vector)

    def critical(self, last: Array) -> Reading:
        """The critical sharpness along the update; the search starts from the last one."""

        def along(step: Array) -> Array:
            moved = jax.tree.map(partial(_moved, step), self.params, self.updates)
            losses = self.loss(moved, self.batch)
            return jnp.mean(losses.astype(last.dtype))

        rate = jnp.asarray(self.rate, last.dtype)
        guess = 2 / (last * rate)
        guess = jnp.where(jnp.isfinite(guess) & (guess > 0), guess, 2)
        step, low, high, blur = _first_rise(along, guess)
        value = 2 / (step * rate)
        width = (2 / low - 2 / high) / rate + blur * value
        return Reading(value, width, jnp.isfinite(high) & _small(width, value))


def _first_rise(along: Callable[[Array], Array], guess: Array) -> tuple[Array, Array, Array, Array]:
    """The step at which ``along(step) > along(0)`` first, its bracket, and the share of it that
    is lost in the rounding of the losses.

    The rise per step, ``(along(s) - along(0)) / s``, starts at the slope at 0. If ``along`` is
    quadratic it is linear, and two values of it give the root.
    """
    zero, one = jnp.zeros_like(guess), jnp.ones_like(guess)
    start, slope = jax.jvp(along, (zero,), (one,))

    def rise_per_step(step: Array) -> Array:
        rise = (along(step) - start) / step
        # A loss that overflows has risen; it lends no slope to interpolate with.
        return jnp.where(jnp.isfinite(rise), rise, jnp.inf)

    def tried(search):
        low, at_low, high, at_high, step = search
        rise = rise_per_step(step)
        risen = rise > 0
        low, at_low = (jnp.where(risen, *pair) for pair in ((low, step), (at_low, rise)))
        high, at_high = (jnp.where(risen, *pair) for pair in ((step, high), (rise, at_high)))
        root = _root(low, at_low, high, at_high, slope)
        # Towards the side that is still far away, but inside the bracket.
        beyond = root * jnp.where(risen, 1 - BEYOND, 1 + BEYOND)
        return low, at_low, high, at_high, jnp.where((low < beyond) & (beyond < high), beyond, root)

    unknown = jnp.full_like(guess, jnp.inf)
    search = (zero, slope, unknown, unknown, guess)
    for _ in range(PASSES):  # written out: eagerly, a compiled loop would compile at every call
        search = tried(search)
    low, at_low, high, at_high, _ = search
    root = jnp.where(jnp.isinf(high), low, _root(low, at_low, high, at_high, slope))
    # A loss that is wrong by this much moves the crossing of a quadratic by that over the slope.
    rounding = 10 * float(jnp.finfo(guess.dtype).eps) * jnp.abs(start)
    return jnp.where(slope < 0, root, jnp.nan), low, high, rounding / jnp.abs(slope * root)


def _root(low: Array, at_low: Array, high: Array, at_high: Array, slope: Array) -> Array:
    """Where the rise per step is zero, if it is linear between what is known of it."""
    inside = low - at_low * (high - low) / (at_high - at_low)
    # No interpolation with a loss that overflowed: halve the exponents, or come down by far.
    inside = jnp.where(jnp.isfinite(at_high), inside, jnp.sqrt(jnp.maximum(low, high / 16) * high))
    # Nothing has risen yet: the line through 0 and the longest step, but not too far along it.
    line = low * slope / (slope - at_low)
    ahead = jnp.where((line > low) & (line < REACH * low), line, REACH * low)
    return jnp.where(jnp.isinf(high), ahead, inside)


def _moved(step: Array, leaf: Any, update: Any) -> Any:
    """A floating leaf after so much of the update, in float32 or float64; any other as it is."""
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return leaf
    start = working(leaf)
    return start + step * jnp.asarray(update).astype(start.dtype)


def _largest(
    matrix: SymmetricOperator, last: Array, step: Array, matvecs: int
) -> tuple[Reading, Array]:
    """The largest eigenvalue from a Krylov space that starts at the last eigenvector."""
    noise = unit(generic_vectors(matrix.size, 1, matrix.dtype, stream=step + 1)[:, 0])
    # A vector that NaN has spoilt must not spoil the next measurement.
    last = jnp.where(jnp.all(jnp.isfinite(last)), last, 0)
    t = lanczos(matrix, unit(last) + GENERIC_PART * noise, min(matvecs, matrix.size))
    small = jnp.diag(t.alpha) + jnp.diag(t.beta, 1) + jnp.diag(t.beta, -1)
    values, y = best_pairs(-small, jnp.arange(len(t.alpha)) < t.rank, 1)
    size = unit_of(t.residual)  # whose square leaves no dtype, whatever the scale of the loss
    residual = jnp.abs(y[-1, 0]) * size * jnp.linalg.norm(t.residual / size)
    reading = Reading(-values[0], residual, _small(residual, values[0]))
    return reading, mm(t.basis, y[:, 0])


def _trace(matrix: SymmetricOperator, step: Array, matvecs: int) -> Reading:
    found = trace_of(matrix, jax.random.fold_in(jax.random.key(0), step), matvecs=matvecs)
    # Estimated from few samples, a standard error is often far too small: as wide an interval for
    # 95 % takes so many times the 1.96 of them that a normal distribution needs.
    wide = float(stdtrit(matvecs // 2 - 1, 0.975) / ndtri(0.975))
    error = wide * found.standard_error
    return Reading(found.value, error, _small(error, found.value))


def _small(error: Array, value: Array) -> Bool[Array, ""]:
    return error <= TRUSTED * jnp.abs(value)


def _due(every: int | Sequence[int]) -> Callable[[Array], Bool[Array, ""]]:
    """Whether a step is one to measure at."""
    if isinstance(every, Sequence | np.ndarray) and not isinstance(every, str) and len(every):
        if all(isinstance(step, int | np.integer) and step >= 0 for step in every):
            steps = np.asarray(every, np.int32)
            return lambda step: jnp.any(step == steps)
        raise ValueError(f"every={every!r}: the steps listed must be whole numbers, 0 or more")
    period = count("every", every, least=1)
    return lambda step: step % period == 0


def _names(what: Sequence[What]) -> tuple[What, ...]:
    if isinstance(what, str) or not what:
        raise ValueError(f"what={what!r}: pass a tuple of names, such as {NAMES[:1]}")
    for name in what:
        check_choice(NAMES, what=name)
    return tuple(dict.fromkeys(what))


def _flat(params: PyTree) -> tuple[Any, int]:
    """The dtype and the number of the floating parameters."""
    _refuse_masked(params)
    leaves = jax.tree.leaves(floats(params))
    if not leaves:
        raise ValueError("params has no floating leaves: there is no curvature to watch")
    return jnp.result_type(*leaves), sum(leaf.size for leaf in leaves)


def _check_given(params: PyTree, batch: PyTree) -> None:
    if params is None or batch is None:
        raise ValueError(
            "watch needs params and batch: call update(updates, state, params, batch=batch)"
        )
    _refuse_masked(params)


def _refuse_masked(params: PyTree) -> None:
    def masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    if any(map(masked, jax.tree.leaves(params, is_leaf=masked))):
        raise ValueError(
            "params are masked, and the loss needs all of them: chain watch after optax.masked(...)"
        )
