"""What the transformations of this room know about themselves, from any optimiser state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from spectral_jax.optim.penalties import EigenState
from spectral_jax.optim.spectral_penalty import SpectralPenaltyState
from spectral_jax.optim.temp_balance import TempBalanceState
from spectral_jax.prune.spectra import SVDPruneState

CHATTER = 0.1


def metrics(opt_state: PyTree) -> dict[str, Array]:
    """Read the diagnostics of every transformation of this room, wherever it is in a state.

    Chains, masks, partitions, injected hyper-parameters, ``optax.MultiSteps`` and the states of
    ``nnx.Optimizer`` are looked through. A second transformation of a kind is ``penalty_2``.

    ``penalty/``
        ``strength``; ``staleness`` at the last look, every ten updates unless ``refresh`` says
        otherwise; ``value`` then, or at the last refresh where there is something to refresh (NaN
        before the first update); ``chatter``, the share of the worst leaf's weights that crossed
        zero at both of the last two updates, and ``chatters`` where that is above .1: the strength
        is too large for the rate, so lower it or take ``mode="proximal"``. Of eigenvectors
        ``lambda_2``, further ``lambda_3``, ``residual``, ``converged``, ``matvecs`` and
        ``refreshes``; of another penalty the numbers in its state, by their names there.
    ``balance/``
        ``alpha/NAME`` and ``scale/NAME`` of every tuned kernel (`temp_balance`, `alpha_decay`).
    ``prune/``
        ``rank/NAME``, ``spikes/NAME``, ``ks/NAME`` and ``status/NAME`` of every pruned layer.

    Holds under ``jit`` and ``vmap``. An empty dict where there is none of ours.

    >>> import optax
    >>> from spectral_jax.optim import spectral_penalty
    >>> tx = optax.chain(spectral_penalty("l1", 0.5), optax.adam(1e-3))
    >>> state = tx.init({"a": {"kernel": jnp.ones((2, 3))}})
    >>> float(metrics(state)["penalty/strength"])
    0.5
    """
    found: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for part in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, tuple(_READERS))):
        if type(part) not in _READERS:
            continue
        kind, read = _READERS[type(part)]
        counts[kind] = counts.get(kind, 0) + 1
        prefix = kind if counts[kind] == 1 else f"{kind}_{counts[kind]}"
        found |= {f"{prefix}/{name}": _array(value) for name, value in read(part)}
    return found


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


_READERS: dict[type, tuple[str, Callable[[Any], Iterator[tuple[str, Any]]]]] = {
    SpectralPenaltyState: ("penalty", _of_penalty),
    TempBalanceState: ("balance", _of_balance),
    SVDPruneState: ("prune", _of_pruning),
}


def _array(leaf: Any) -> Array:
    """Flax wraps the arrays of an optimiser's state in variables, which are trees of one leaf."""
    return jax.tree.leaves(leaf)[0]
