"""Any penalty of the catalogue as an Optax transformation.

The eigenvectors that a penalty needs cost far more than a training step, and change slowly. So they
are kept in the optimiser's state and solved for again, from the kept ones, when a schedule or their
residual says so, inside the compiled step.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from spectral_jax._choices import check_choice
from spectral_jax._options import check_count, check_number
from spectral_jax._transforms.hyperparameters import (
    Strength,
    check_strength,
    injectable,
    strength_at,
)
from spectral_jax._transforms.leaves import finite
from spectral_jax._transforms.members import where_needed
from spectral_jax.optim.crossings import Crossings, crossings, no_crossings
from spectral_jax.optim.penalties import PENALTIES, Penalty, Sees
from spectral_jax.optim.sight import (
    SIGHTS,
    Apply,
    BatchView,
    Sight,
    View,
    arguments,
    check_kind,
    looking_at,
    started,
)

Mode = Literal["penalty", "proximal"]


class Refresh(NamedTuple):
    """When to solve again for a penalty's eigenvectors.

    due: ``step -> whether to look``, given the number of updates done. The first update always
      looks, and solves.
    tolerance: None solves at every look. Otherwise a look computes the residual of the kept vectors
      for the current weights, relative to their eigenvalue (one product with the matrix per
      vector), and a solve follows only if that is above the tolerance.

    Weights that are not finite are never solved for.
    """

    due: Callable[[Int[Array, ""]], Bool[Array, ""]]
    tolerance: float | None = None


def every(steps: int) -> Refresh:
    """Solve at step 0 and then every ``steps`` steps."""
    check_count(steps=steps)
    return Refresh(lambda step: step % steps == 0)


def on_residual(tolerance: float = 0.05, *, check_every: int = 10) -> Refresh:
    """Solve when ``||L v - rho v|| / rho`` exceeds ``tolerance``, looked at every so many steps.

    ``L`` is the matrix of the current weights, ``v`` a kept vector and ``rho = v^T L v``.
    """
    check_number("choose a finite number, 0 or above", lambda x: 0 <= x < inf, tolerance=tolerance)
    check_count(check_every=check_every)
    return Refresh(lambda step: step % check_every == 0, tolerance)


def epoch_start_and_every_100(steps_per_epoch: int) -> Refresh:
    """The released schedule (arXiv 2003.00992): an epoch's start and after its steps 0, 100, ..."""
    check_count(steps_per_epoch=steps_per_epoch)

    def due(step):
        within = step % steps_per_epoch
        return (within == 0) | (within % 100 == 1)

    return Refresh(due)


class SpectralPenaltyState(NamedTuple):
    """The state of `spectral_penalty`; `metrics` reads it wherever it is in an optimiser's state.

    step: updates done.
    strength: the strength at the last update.
    penalty: the penalty's own state: vectors to start the next solve from, and its diagnostics.
    value: the penalty at its last refresh; of one that has nothing to refresh, at the last look.
      NaN before the first update, and after a look that found weights that are not finite.
    staleness: the relative residual of the kept vectors for the weights of the last look, before a
      refresh then; 0 at the first, when there are none yet.
    crossings: signs of a sample of the weights, to see whether they chatter.
    """

    step: Int[Array, ""]
    strength: Float[Array, ""]
    penalty: Any
    value: Float[Array, ""]
    staleness: Float[Array, ""]
    crossings: Crossings


@injectable("strength", "learning_rate", options_of=tuple(PENALTIES.values()))
def spectral_penalty(
    name: str | Penalty,
    strength: Strength,
    *,
    mode: Mode = "penalty",
    learning_rate: Strength | None = None,
    view: View | BatchView | None = None,
    apply: Apply | None = None,
    refresh: Refresh | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Add ``strength * penalty(W)`` to the objective.

    ``mode="penalty"`` adds ``strength`` times the penalty's gradient to the gradient; put it first
    in ``optax.chain``. Eigenvectors are held constant at those of the last refresh.
    ``mode="proximal"`` takes the penalty's proximal step, of size ``learning_rate * strength``,
    after the optimiser's; put it last. Momentum ``m`` enlarges a steady gradient by
    ``1 / (1 - m)``, so for the same effect pass ``lr / (1 - m)`` as the learning rate there.
    Leaves that the penalty does not see (biases, integers) are left alone; the others keep their
    dtype.

    A penalty on activations (``"richness"``) looks at what the network computes of a batch: pass a
    ``view`` that computes it, and the batch of the step, ``tx.update(grads, state, params,
    batch=batch)``. One on the function differentiates the network itself: it needs ``apply``, the
    batch and a random key of the step, ``tx.update(grads, state, params, batch=batch, key=key)``.
    Their gradients are those of the whole network; the proximal mode is not for them.

    For a penalty on magnitudes, with the slope ``c = d penalty / d|W|``, the gradient is
    ``c * sign(W)``. The proximal step makes each magnitude smaller by
    ``learning_rate * strength * c`` and stops at zero, where a large strength in penalty mode
    makes weights jump from one sign to the other at every step.

    Args:
      name: an entry of ``PENALTIES`` (``options`` go to it) or a ``Penalty``.
      strength: a number, an array, or a function of the number of updates done.
      mode: ``"penalty"`` or ``"proximal"``, see above.
      learning_rate: for the proximal mode: that of the optimiser; as ``strength``, a number, an
        array or a function of the number of updates done.
      view: ``params -> arrays``, what the penalty sees. It is given the floating leaves, with None
        in the place of any other (for a penalty on magnitudes, their magnitudes). By default a
        penalty on matrices sees those of ``weights.plan``: dense and attention layers, embeddings,
        convolutions as ``[h w i, o]``, a grouped one as ``[groups, h w i, o]``. One on
        magnitudes sees the chain of dense kernels, in the order of their names; for any other
        network pass ``lambda params: weights.graph_weights(params, blocks)`` with the blocks of
        ``weights.layout_of``, and for one with skips the option ``edges=weights.edges(blocks)``.
        A view of magnitudes must be linear and keep them non-negative (a selection of kernels, a
        norm over kernel positions). In proximal mode a view of matrices may only select and
        rearrange entries. Of a penalty on activations it is ``(params, batch) -> arrays``, those
        that the penalty names, and is given the parameters as they are.
      apply: ``(params, x) -> outputs``, for a penalty on the function. A network with a state, such
        as running statistics, has another one in every step: then it is passed to ``update``.
      refresh: when to solve for eigenvectors again (`every`, `on_residual`,
        `epoch_start_and_every_100`); the default is ``on_residual()``.
      options: those of the named penalty, as in ``spectral_penalty("fiedler", 0.1, k=2)``.

    Works under ``jit``, ``vmap``, ``scan`` and ``optax.inject_hyperparams``; the state is a pytree
    of arrays. Under ``vmap`` (over seeds, for instance) a refresh is computed for all members when
    one needs it, and taken by those that do: no member's course depends on the others'. Inside of
    ``jax.shard_map``, ``"fiedler"`` needs ``check_vma=False``.
    Raises ``ValueError`` for an unknown name or mode, a strength that is negative or not finite,
    ``mode="proximal"`` with a penalty on matrices that has no ``prox``, a ``prox``, a state, a view
    or an ``apply`` that the penalty's kind does not use, a missing ``learning_rate``, ``params``,
    ``batch``, ``key`` or ``apply``, and for a penalty on weights among which are codes (float8 with
    a scale beside it: mask them); ``TypeError`` for an option that nothing reads.
    Source: arXiv 2003.00992; proximal mode on magnitudes: ours.

    >>> params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 2))}}
    >>> tx = optax.chain(spectral_penalty("l1", 0.5), optax.sgd(1.0))
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> float(updates["a"]["kernel"][0, 0])
    -0.5
    """
    penalty = _penalty(name, options)
    check_kind(penalty)
    _check(penalty, mode, strength, learning_rate)
    _check_network(penalty.sees, view, apply)
    sight = SIGHTS[penalty.sees](penalty, apply if penalty.sees == "function" else view)
    refresh = on_residual() if refresh is None else _checked_refresh(refresh)

    def init(params):
        (dtype, kept), step = started(sight, params), jnp.zeros((), jnp.int32)
        factor = jnp.asarray(strength_at(strength, step), dtype)
        unseen, fresh = jnp.full_like(factor, jnp.nan), jnp.zeros_like(factor)
        return SpectralPenaltyState(step, factor, kept, unseen, fresh, no_crossings(params))

    def update(updates, state, params=None, *, batch=None, key=None, apply=None, **extra):
        del extra
        if params is None:
            raise ValueError("spectral_penalty needs params: call update(updates, state, params)")
        looking = looking_at(sight, batch=batch, key=key, apply=apply)
        kept, value, staleness = _looked(looking, refresh, jax.lax.stop_gradient(params), state)
        factor = jnp.asarray(strength_at(strength, state.step), state.strength.dtype)
        signs = crossings(params, state.crossings)
        # Always true, but XLA does not know that. If nothing waited for the read of the weights in
        # `crossings`, XLA could do it after the update, and would copy all weights for it.
        factor = jnp.where(signs.chatter <= 1, factor, jnp.nan)
        if mode == "penalty":
            updates = looking.pulled(updates, params, kept, factor)
        else:
            size = factor * jnp.asarray(strength_at(learning_rate, state.step), factor.dtype)
            updates = looking.shrunk(updates, params, kept, size)
        state = SpectralPenaltyState(state.step + 1, factor, kept, value, staleness, signs)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


@injectable("delta", "learning_rate", options_of=spectral_penalty)
def fiedler_decay(
    delta: Strength, *, normalised: bool = False, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Fiedler regularisation: ``delta * lambda_2``, or ``delta * nu_2`` if ``normalised``.

    ``spectral_penalty("fiedler", delta, ...)``, whose options it takes.
    Source: arXiv 2003.00992, arXiv 2304.03096.

    >>> params = {"a": {"kernel": jnp.ones((1, 1))}, "b": {"kernel": jnp.full((1, 1), 2.0)}}
    >>> tx = fiedler_decay(1.0)
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> round(float(updates["b"]["kernel"][0, 0]), 3)
    0.134
    """
    check_strength("delta", delta)
    return spectral_penalty("fiedler", delta, normalised=normalised, **options)


def _penalty(name: str | Penalty, options: dict[str, Any]) -> Penalty:
    if isinstance(name, Penalty):
        _refuse_unread(options, [], "a Penalty")
        return name
    if not isinstance(name, str):
        raise ValueError(f"name={name!r}: pass the name of a penalty, or Penalty(value)")
    if name not in PENALTIES:
        near = difflib.get_close_matches(name, PENALTIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {sorted(PENALTIES)}"
        raise ValueError(f"name={name!r} is no penalty: {hint}")
    read = inspect.signature(PENALTIES[name]).parameters
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in read.values()):
        _refuse_unread(options, list(read), repr(name))
    return PENALTIES[name](**options)


def _refuse_unread(options: dict[str, Any], read: Sequence[str], penalty: str) -> None:
    """Raise ``TypeError``, as Python does for a keyword that nobody reads, with a suggestion."""
    for option in options:
        if option not in read:
            known = [*inspect.getfullargspec(inspect.unwrap(spectral_penalty)).kwonlyargs, *read]
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known)}"
            raise TypeError(f"{option!r} is no option of spectral_penalty with {penalty}: {hint}")


def _checked_refresh(refresh: Refresh) -> Refresh:
    if not isinstance(refresh, Refresh):
        raise ValueError(f"refresh={refresh!r}: pass every(steps), on_residual() or Refresh(due)")
    return refresh


def _check(penalty: Penalty, mode: str, strength: Strength, rate: Strength | None) -> None:
    check_strength("strength", strength)
    check_choice(("penalty", "proximal"), mode=mode)
    if mode == "penalty":
        return
    if rate is None:
        raise ValueError(
            "mode='proximal' needs learning_rate: pass the step size the shrinkage goes with"
        )
    check_strength("learning_rate", rate)
    if penalty.sees in ("activations", "function"):
        raise ValueError("mode='proximal' is of penalties on weights: choose mode='penalty'")
    if penalty.sees == "matrices" and penalty.prox is None:
        raise ValueError(
            "mode='proximal' needs the proximal step of a penalty on matrices: pass "
            "Penalty(..., prox=(w, step, state) -> w), or choose mode='penalty'"
        )


def _check_network(sees: Sees, view: View | BatchView | None, apply: Apply | None) -> None:
    """Raise ``ValueError`` for what a penalty of this kind needs, and for what it would ignore."""
    if sees == "activations" and view is None:
        raise ValueError(
            "view=None: a penalty on activations needs view=lambda params, batch: (arrays it sees)"
        )
    if sees == "function" and view is not None:
        raise ValueError("view: a penalty on the function has none; pass apply=(params, x) -> y")
    if sees != "function" and apply is not None:
        raise ValueError(f"apply: a penalty on {sees} does not call it; leave it out")


def _looked(
    sight: Sight, refresh: Refresh, params: optax.Params, state: SpectralPenaltyState
) -> tuple[Any, Array, Array]:
    """The penalty's state, value and staleness: the last ones, or new ones if a look is due.

    The weights are read in the branch that needs them, and in no other step.
    """
    penalty = sight.penalty
    first = state.step == 0
    due = refresh.due(state.step) | first

    def valued(kept: Any) -> tuple[Any, Array]:
        return kept, jnp.asarray(sight.value(params, kept), state.value.dtype)

    def look() -> tuple[Any, Array, Array]:
        solve = penalty.refresh
        if solve is None:
            return *valued(state.penalty), state.staleness
        # Weights that are not finite have no eigenvectors: solving would only keep the other
        # members of a vmap waiting. Value and staleness become NaN and say so.
        given, weights = arguments(sight, params)
        needed, staleness = finite(weights), state.staleness
        last = state.penalty, jnp.where(needed, state.value, jnp.nan)
        if penalty.staleness is not None:
            seen = jnp.asarray(penalty.staleness(*given, state.penalty), staleness.dtype)
            staleness = jnp.where(first, 0, seen)
            if refresh.tolerance is not None:
                needed &= ~(seen <= refresh.tolerance) | first
        fresh = where_needed(due & needed, lambda: valued(solve(*given, state.penalty)), last)
        return *fresh, staleness

    return where_needed(due, look, (state.penalty, state.value, state.staleness))
