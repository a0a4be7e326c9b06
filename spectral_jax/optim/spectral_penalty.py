"""Any penalty of the catalogue as an Optax transformation."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from spectral_jax._options import check_count
from spectral_jax._transforms.hyperparameters import (
    Strength,
    check_strength,
    injectable,
    strength_at,
)
from spectral_jax._transforms.leaves import finite
from spectral_jax._transforms.members import where_needed
from spectral_jax.optim.crossings import Crossings, crossings, no_crossings
from spectral_jax.optim.penalties import PENALTIES, Penalty
from spectral_jax.optim.sight import SIGHTS, View

Mode = Literal["penalty", "proximal"]


class Refresh(NamedTuple):
    """When to recompute a penalty's eigenvectors.

    ``due(step)`` says at which steps to look; with a ``tolerance``, what is due is first a look at
    the relative residual of the vectors at hand (one matvec), and only above it a solve.
    """

    due: Callable[[Int[Array, ""]], Bool[Array, ""]]
    tolerance: float | None = None


def every(steps: int) -> Refresh:
    """Solve at step 0 and then every ``steps`` steps."""
    check_count(steps=steps)
    return Refresh(lambda step: step % steps == 0)


def on_residual(tolerance: float = 0.05, *, check_every: int = 10) -> Refresh:
    """Solve when ``||L v - rho v|| / rho`` exceeds ``tolerance``, checked every so many steps."""
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
    """What the transformation carries; ``spectral_jax.optim.metrics`` reads it.

    step: updates done.
    strength: that of the last update.
    penalty: the penalty's own state (warm start, diagnostics).
    value: the penalty at its last refresh, or, if it has none, at the last look; NaN before.
    staleness: what a refresh could repair, at the last look; 0 where nothing was kept before it.
    crossings: signs of a sample of the weights.
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
    view: View | None = None,
    refresh: Refresh | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Add ``strength * penalty(W)`` to the objective.

    ``mode="penalty"`` adds ``strength`` times the penalty's gradient, at the vectors of the last
    refresh, to the gradient (put it first in ``optax.chain``). ``mode="proximal"`` makes the
    penalty's proximal step, of size ``learning_rate * strength``, after the step (put it last;
    under heavy-ball momentum ``m`` pass ``lr / (1 - m)`` for the same strength). Leaves that the
    penalty does not see (biases, integers) are left alone; the others keep their dtype.

    For a penalty on magnitudes, with ``c = d penalty / d|W|``, the gradient is ``c * sign(W)`` and
    the proximal step shrinks each weight by ``learning_rate * strength * c``, stopping at zero: it
    cannot chatter across zero, which the penalty does at large strengths.

    Args:
      name: an entry of ``PENALTIES`` (``options`` go to it) or a ``Penalty``.
      strength: a number, an array, or a function of the number of updates done; so too
        ``learning_rate``.
      view: ``params -> arrays``, what the penalty sees; the params are the floating leaves, with
        None in the place of any other. By default a penalty on matrices sees those of
        ``weights.plan``: dense, attention, embeddings, a convolution as ``[h w i, o]``, several in
        one leaf as ``[stack, m, n]``. One on magnitudes sees the chain of dense kernels, in the
        order of their names. For any other network:
        ``lambda params: weights.graph_weights(params, blocks)`` with the blocks of
        ``weights.layout_of``.
        A view of magnitudes is linear and keeps them non-negative (a selection of kernels, a norm
        over kernel positions); before a proximal step on matrices it only moves entries.
      refresh: when to recompute eigenvectors, inside the compiled step; default ``on_residual()``.

    Works under ``jit``, ``vmap``, ``scan`` and ``optax.inject_hyperparams``; the state is a pytree
    of arrays. Under ``vmap`` (over seeds, for instance) a refresh is computed for all members when
    one needs it, and taken by those that do: no member's course depends on the others'.
    Raises ``ValueError`` for an unknown name or mode, a strength that is negative or not finite,
    ``mode="proximal"`` with a penalty on matrices that has no ``prox``, and a missing
    ``learning_rate`` or ``params``; ``TypeError`` for an option that nothing reads.
    Source: arXiv 2003.00992; proximal mode on magnitudes: ours.

    >>> params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 2))}}
    >>> tx = optax.chain(spectral_penalty("l1", 0.5), optax.sgd(1.0))
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> float(updates["a"]["kernel"][0, 0])
    -0.5
    """
    penalty = _penalty(name, options)
    _check(penalty, mode, strength, learning_rate)
    sight = SIGHTS[penalty.sees](penalty, view)
    refresh = on_residual() if refresh is None else refresh

    def init(params):
        blocks, step = sight.blocks(params), jnp.zeros((), jnp.int32)
        factor = jnp.asarray(strength_at(strength, step), blocks[0].dtype)
        unseen, fresh = jnp.full_like(factor, jnp.nan), jnp.zeros_like(factor)
        kept, signs = penalty.init(blocks), no_crossings(params)
        return SpectralPenaltyState(step, factor, kept, unseen, fresh, signs)

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError("spectral_penalty needs params: call update(updates, state, params)")
        # To be called where they are needed: they cost a pass over the weights.
        blocks = partial(sight.blocks, jax.lax.stop_gradient(params))
        kept, value, staleness = _looked(penalty, refresh, blocks, state)
        factor = jnp.asarray(strength_at(strength, state.step), state.strength.dtype)
        signs = crossings(params, state.crossings)
        # Always so, but XLA does not know: were this read of the weights one that nothing waits
        # for, it would copy them at every step rather than update them in place.
        factor = jnp.where(signs.chatter <= 1, factor, jnp.nan)
        if mode == "penalty":
            updates = sight.pulled(updates, params, kept, factor)
        else:
            size = factor * jnp.asarray(strength_at(learning_rate, state.step), factor.dtype)
            updates = sight.shrunk(updates, params, kept, size)
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
    _refuse_unread(options, list(inspect.signature(PENALTIES[name]).parameters), repr(name))
    return PENALTIES[name](**options)


def _refuse_unread(options: dict[str, Any], read: Sequence[str], penalty: str) -> None:
    """Raise ``TypeError``, as Python does for a keyword that nobody reads, with a suggestion."""
    for option in options:
        if option not in read:
            known = [*inspect.getfullargspec(inspect.unwrap(spectral_penalty)).kwonlyargs, *read]
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known)}"
            raise TypeError(f"{option!r} is no option of spectral_penalty with {penalty}: {hint}")


def _check(penalty: Penalty, mode: str, strength: Strength, rate: Strength | None) -> None:
    check_strength("strength", strength)
    if penalty.sees not in SIGHTS:
        raise ValueError(f"Penalty(sees={penalty.sees!r}): choose 'matrices' or 'magnitudes'")
    if mode not in ("penalty", "proximal"):
        raise ValueError(f"mode={mode!r}: choose 'penalty' or 'proximal'")
    if mode == "penalty":
        return
    if rate is None:
        raise ValueError(
            "mode='proximal' needs learning_rate: pass the step size the shrinkage goes with"
        )
    check_strength("learning_rate", rate)
    if penalty.sees == "matrices" and penalty.prox is None:
        raise ValueError(
            "mode='proximal' needs the proximal step of a penalty on matrices: pass "
            "Penalty(..., prox=(w, step, state) -> w), or choose mode='penalty'"
        )


def _looked(
    penalty: Penalty,
    refresh: Refresh,
    blocks: Callable[[], tuple[Array, ...]],
    state: SpectralPenaltyState,
) -> tuple[Any, Array, Array]:
    """The penalty's state, its value and its staleness: as they were, or anew where it is time."""
    first = state.step == 0
    due = refresh.due(state.step) | first

    def valued(kept: Any) -> tuple[Any, Array]:
        return kept, jnp.asarray(penalty.value(blocks(), kept), state.value.dtype)

    def look() -> tuple[Any, Array, Array]:
        solve = penalty.refresh
        if solve is None:
            return *valued(state.penalty), state.staleness
        # Of weights that have diverged there are no eigenvectors: solving again would only keep
        # the other members waiting. The value and the staleness, both NaN, say so.
        needed, staleness = finite(blocks()), state.staleness
        last = state.penalty, jnp.where(needed, state.value, jnp.nan)
        if penalty.staleness is not None:
            seen = jnp.asarray(penalty.staleness(blocks(), state.penalty), staleness.dtype)
            staleness = jnp.where(first, 0, seen)
            if refresh.tolerance is not None:
                needed &= ~(seen <= refresh.tolerance) | first
        fresh = where_needed(due & needed, lambda: valued(solve(blocks(), state.penalty)), last)
        return *fresh, staleness

    return where_needed(due, look, (state.penalty, state.value, state.staleness))
