"""The diagnostics that the transformations keep in their states, read from any optimiser state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from spectral_jax.optim.penalties import EigenState
from spectral_jax.optim.spectral_penalty import SpectralPenaltyState
from spectral_jax.optim.temp_balance import TempBalanceState
from spectral_jax.optim.watch import WatchState
from spectral_jax.prune.spectra import SVDPruneState

CHATTER = 0.1  # share of weights that crossed zero twice in a row from which on it is flagged


def metrics(opt_state: PyTree) -> dict[str, Array]:
    """The diagnostics of every spectral transformation in an optimiser's state, by name.

    Reads the state of ``optax.chain``, ``masked``, ``partition``, ``inject_hyperparams`` and
    ``MultiSteps``, and ``optimizer.opt_state`` of an ``nnx.Optimizer``. The second penalty in a
    chain is called ``penalty_2``, and so on; a state of other transformations alone gives ``{}``.

    ``penalty/`` (`spectral_penalty`, `fiedler_decay`)
        ``strength`` at the last update.
        ``value``: the penalty at its last refresh, or at the last look if it has nothing to
        refresh. NaN before the first update, and once the weights are no longer finite.
        ``staleness``: the relative residual of the kept eigenvectors for the weights at the last
        look (every tenth update unless ``refresh`` says otherwise), before any refresh then.
        ``chatter``: of the leaf where it is largest, the share of weights that changed sign in both
        of the last two updates. ``chatters``: whether that is above 0.1. The strength is then too
        large for the learning rate: lower it, or choose ``mode="proximal"``.
        For an eigenvector penalty, of the last refresh: ``lambda_2``, ``lambda_3`` and further if
        it has several, ``residual`` (the largest), ``converged``, ``matvecs``; and ``refreshes``,
        their number so far. For any other penalty, each single number in its own state.
    ``balance/`` (`temp_balance`, `alpha_decay`)
        ``alpha/NAME`` and ``scale/NAME`` of every tuned kernel, at the last measurement.
    ``prune/`` (`svd_prune`)
        ``rank/NAME``, ``spikes/NAME``, ``ks/NAME`` and ``status/NAME`` (a `PruneStatus`) of every
        pruned layer, at the last pruning.
    ``watch/`` (`watch`)
        ``NAME``, ``NAME/residual`` and ``NAME/converged`` of everything watched, and ``measured``,
        the step at which that was.

    Holds under ``jit`` and ``vmap``. Raises ``ValueError`` for ``nnx.state(optimizer)``.

    >>> import optax
    >>> from spectral_jax.optim import spectral_penalty
    >>> tx = optax.chain(spectral_penalty("l1", 0.5), optax.adam(1e-3))
    >>> state = tx.init({"a": {"kernel": jnp.ones((2, 3))}})
    >>> float(metrics(state)["penalty/strength"])
    0.5
    """
    found: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for part in jax.tree.leaves(opt_state, is_leaf=_is_readable):
        if _is_anonymous(part):
            raise ValueError(
                "opt_state: nnx.state(optimizer) keeps the fields of a state but not its type; "
                "pass optimizer.opt_state"
            )
        if type(part) not in _READERS:
            continue
        kind, read = _READERS[type(part)]
        counts[kind] = counts.get(kind, 0) + 1
        prefix = kind if counts[kind] == 1 else f"{kind}_{counts[kind]}"
        found |= {f"{prefix}/{name}": _array(value) for name, value in read(part)}
    return found


def _is_readable(node: Any) -> bool:
    return type(node) in _READERS or _is_anonymous(node)


def _is_anonymous(node: Any) -> bool:
    """Whether a mapping has the fields of one of our states, and no other.

    A penalty without arrays is lost on the way.
    """
    return isinstance(node, Mapping) and any(
        set(node) | {"penalty"} == set(kind._fields) | {"penalty"} for kind in _READERS
    )


def _of_penalty(state: SpectralPenaltyState) -> Iterator[tuple[str, Any]]:
    yield from (("strength", state.strength), ("value", state.value))
    yield from (("staleness", state.staleness), ("chatter", state.crossings.chatter))
    yield "chatters", _array(state.crossings.chatter) > CHATTER
    kept = state.penalty
    if isinstance(kept, EigenState):
        for i, value in enumerate(jnp.moveaxis(_array(kept.values), -1, 0)):
            yield f"lambda_{i + 2}", value
        yield "residual", jnp.max(_array(kept.residuals), axis=-1)
        for name in ("converged", "matvecs", "refreshes"):
            yield name, getattr(kept, name)
    elif hasattr(kept, "_asdict"):
        leaves = {name: jax.tree.leaves(value) for name, value in kept._asdict().items()}
        steps = jnp.ndim(_array(state.step))  # a vmapped state has an axis more in everything
        yield from ((n, x[0]) for n, x in leaves.items() if len(x) == 1 and x[0].ndim == steps)


def _of_balance(state: TempBalanceState) -> Iterator[tuple[str, Any]]:
    yield from ((f"alpha/{name}", alpha) for name, alpha in state.alphas.items())
    yield from ((f"scale/{name}", scale) for name, scale in state.scales.items())


def _of_pruning(state: SVDPruneState) -> Iterator[tuple[str, Any]]:
    for name, row in state.report.items():
        yield from ((f"{key}/{name}", getattr(row, key)) for key in ("rank", "spikes", "ks"))
        yield f"status/{name}", row.status


def _of_watch(state: WatchState) -> Iterator[tuple[str, Any]]:
    yield "measured", state.measured
    for name, reading in state.seen.items():
        yield name, reading.value
        yield from ((f"{name}/{key}", getattr(reading, key)) for key in ("residual", "converged"))


_READERS: dict[Any, tuple[str, Callable[[Any], Iterator[tuple[str, Any]]]]] = {
    SpectralPenaltyState: ("penalty", _of_penalty),
    TempBalanceState: ("balance", _of_balance),
    SVDPruneState: ("prune", _of_pruning),
    WatchState: ("watch", _of_watch),
}


def _array(leaf: Any) -> Array:
    """The array of a leaf: ``nnx.Optimizer`` wraps each in a variable, a tree with one leaf."""
    return jax.tree.leaves(leaf)[0]
