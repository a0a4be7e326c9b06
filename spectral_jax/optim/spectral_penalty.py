"""Any penalty of the catalogue as an Optax transformation."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from spectral_jax import weights as weights_of
from spectral_jax.optim.penalties import PENALTIES, Penalty

View = Callable[[optax.Params], tuple[Array, ...]]


class Refresh(NamedTuple):
    """When to recompute a penalty's eigenvectors.

    ``due(step)`` says at which steps to look; with a ``tolerance``, what is due is first a look at
    the relative residual of the vectors at hand (one matvec), and only above it a solve.
    """

    due: Callable[[Int[Array, ""]], Bool[Array, ""]]
    tolerance: float | None = None


def every(steps: int) -> Refresh:
    """Solve at step 0 and then every ``steps`` steps."""
    return Refresh(lambda step: step % steps == 0)


def on_residual(tolerance: float = 0.05, *, check_every: int = 10) -> Refresh:
    """Solve when ``||L v - rho v|| / rho`` exceeds ``tolerance``, checked every so many steps."""
    return Refresh(lambda step: step % check_every == 0, tolerance)


def epoch_start_and_every_100(steps_per_epoch: int) -> Refresh:
    """The released schedule (arXiv 2003.00992): an epoch's start and after its steps 0, 100, ..."""

    def due(step):
        within = step % steps_per_epoch
        return (within == 0) | (within % 100 == 1)

    return Refresh(due)


class SpectralPenaltyState(NamedTuple):
    """``step`` counts updates; ``penalty`` is the penalty's own state (warm start, diagnostics).

    ``strength`` is here rather than in the code so that a sweep over strengths compiles once.
    """

    step: Int[Array, ""]
    strength: Float[Array, ""]
    penalty: Any


def spectral_penalty(
    name: str | Penalty,
    strength: float | Float[Array, ""],
    *,
    mode: Literal["penalty", "proximal"] = "penalty",
    learning_rate: float | optax.Schedule | None = None,
    view: View | None = None,
    refresh: Refresh | None = None,
    axis_name: str | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Add ``strength * penalty(|W|)`` to the objective.

    With ``c = d penalty / d|W|`` at the vectors of the last refresh, ``mode="penalty"`` adds
    ``strength * c * sign(W)`` to the gradient (put it first in ``optax.chain``);
    ``mode="proximal"`` shrinks each weight by ``learning_rate * strength * c`` after the step,
    stopping at zero (put it last; under heavy-ball momentum ``m`` pass ``lr / (1 - m)`` for the
    same strength). The proximal step cannot chatter across zero, which the penalty does at large
    strengths. Weights on no edge (biases) are left alone.

    Args:
      name: an entry of ``PENALTIES`` (``options`` go to it) or a ``Penalty``.
      view: ``params -> blocks``, a non-negative linear map of magnitudes to the graph's weight
        blocks (a selection of kernels, a norm over kernel positions); default: the chain of dense
        kernels, in the order of their names. Where that is not the order of the layers:
        ``lambda params: weights.graph_weights(params, (Block("hidden/kernel", 0, 1), ...))``.
      refresh: when to recompute eigenvectors, inside the compiled step; default ``on_residual()``.
      axis_name: name of the ``vmap`` axis the step runs under (seeds, for instance). The refresh
        is then computed for all members when any needs it, for a batched predicate would make
        ``lax.cond`` run both branches each step; only those that need it take it, so that no
        member's course depends on the company it is in.

    Works under ``jit``, ``vmap`` (with ``axis_name``) and ``scan``; the state is a pytree of
    arrays. Raises ``ValueError`` for an unknown name or mode, a missing ``learning_rate`` or
    ``params``.
    Source: arXiv 2003.00992; proximal mode: ours.

    >>> params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 2))}}
    >>> tx = optax.chain(spectral_penalty("l1", 0.5), optax.sgd(1.0))
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> float(updates["a"]["kernel"][0, 0])
    -0.5
    """
    penalty = _penalty(name, options)
    if mode not in ("penalty", "proximal"):
        raise ValueError(f"mode={mode!r}: choose 'penalty' or 'proximal'")
    if mode == "proximal" and learning_rate is None:
        raise ValueError(
            "mode='proximal' needs learning_rate: pass the step size the shrinkage goes with"
        )
    refresh = on_residual() if refresh is None else refresh

    def init(params):
        blocks = _blocks(view, params)
        step, factor = jnp.zeros((), jnp.int32), jnp.asarray(strength, blocks[0].dtype)
        return SpectralPenaltyState(step, factor, penalty.init(blocks))

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError("spectral_penalty needs params: call update(updates, state, params)")
        constants = jax.lax.stop_gradient(params)

        def blocks():
            """To be called where they are needed: magnitudes cost a pass over the weights."""
            return _blocks(view, jax.tree.map(jnp.abs, constants))

        kept = _refreshed(penalty, refresh, blocks, state, axis_name)
        # The slope in |W|, not a subgradient: a weight at zero has one too, which keeps it there.
        magnitudes = jax.tree.map(
            lambda p: jnp.maximum(jnp.abs(p), jnp.finfo(p.dtype).tiny), params
        )
        pull = jax.grad(lambda m: penalty.value(_blocks(view, m), kept))(magnitudes)
        if mode == "penalty":
            updates = jax.tree.map(
                lambda u, p, c: u + state.strength * c * jnp.sign(p), updates, params, pull
            )
        else:
            rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
            shrink = lambda u, p, c: _soft_threshold(p + u, rate * state.strength * c) - p  # noqa: E731
            updates = jax.tree.map(shrink, updates, params, pull)
        return updates, SpectralPenaltyState(state.step + 1, state.strength, kept)

    return optax.GradientTransformationExtraArgs(init, update)


def fiedler_decay(
    delta: float | Float[Array, ""], *, normalised: bool = False, **options: Any
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
    return spectral_penalty("fiedler", delta, normalised=normalised, **options)


def _penalty(name: str | Penalty, options: dict[str, Any]) -> Penalty:
    if isinstance(name, Penalty):
        return name
    if name not in PENALTIES:
        near = difflib.get_close_matches(name, PENALTIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {sorted(PENALTIES)}"
        raise ValueError(f"name={name!r} is no penalty: {hint}")
    return PENALTIES[name](**options)


def _blocks(view: View | None, params) -> tuple[Array, ...]:
    if view is not None:
        return tuple(view(params))
    try:
        layout = weights_of.layout(params)
    except ValueError as error:
        hint = "view=lambda params: weights.graph_weights(params, layout)"
        raise ValueError(f"{error} ({hint})") from None
    return weights_of.graph_weights(params, layout)


def _refreshed(penalty: Penalty, refresh: Refresh, blocks, state: SpectralPenaltyState, axis_name):
    if penalty.refresh is None:
        return state.penalty

    def somewhere(flag):
        """True if it is for any vmapped member; not batched, so ``cond`` stays a branch."""
        return flag if axis_name is None else jax.lax.pmax(flag.astype(jnp.int32), axis_name) > 0

    def solve_where(needed):
        def solve():
            fresh = penalty.refresh(blocks(), state.penalty)
            return jax.tree.map(partial(jnp.where, needed), fresh, state.penalty)

        return jax.lax.cond(somewhere(needed), solve, lambda: state.penalty)

    first = state.step == 0
    due = refresh.due(state.step) | first
    if refresh.tolerance is None:
        return solve_where(due)

    def look():
        stale = ~(penalty.staleness(blocks(), state.penalty) <= refresh.tolerance)
        return solve_where(due & (stale | first))

    return jax.lax.cond(somewhere(due), look, lambda: state.penalty)


def _soft_threshold(w: Array, threshold: Array) -> Array:
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - threshold, 0)
