"""The sums of `linalg.moments` of one batch, in NumPy: of ``Z^T Z`` its BLAS computes half."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from spectral_jax.linalg._sums import SMALLEST, Parts, Sums, span

BLOCK = 1024  # rows that are converted at a time: they stay in the cache
EXACT_REACH = 256  # whole numbers within it of each other's middle: blocks of 256 rows or more


class Plan(NamedTuple):
    """How rows are multiplied: the dtype of a block, its rows, and what is taken off each row."""

    dtype: type
    step: int
    shift: np.ndarray
    """``[p]``, or ``[groups, p]`` of rows with labels."""


def host_sums(
    x: np.ndarray, w: np.ndarray | None, labels: np.ndarray | None, groups: int, parts: Parts
) -> Sums:
    """The `Sums` of a batch in float64, as ``gram64`` has them, a block of rows at a time."""
    n, p = x.shape
    weight, total, scatter = np.zeros(groups), np.zeros((groups, p)), np.zeros((p, p))
    spread = None if labels is None else np.zeros((groups, p))
    with np.errstate(invalid="ignore", over="ignore"):
        plan = _by_group(x, w, labels, groups) if labels is not None else _by_block(x, w)
        for start in range(0, n, plan.step):
            block = slice(start, start + plan.step)
            rows: np.ndarray = x[block].astype(plan.dtype)
            v = np.ones(len(rows), plan.dtype) if w is None else w[block]
            shares = v[:, None] if labels is None else _shares(v, labels[block], groups)
            rows -= plan.shift if labels is None else plan.shift[labels[block]]
            weight += shares.sum(axis=0)
            total += shares.T @ rows
            if spread is not None:
                spread += shares.T @ rows**2
            if w is not None:
                rows *= np.sqrt(v)[:, None]
            scatter += rows.T @ rows
        some = np.where(weight == 0, 1, weight)[:, None]
        middle = plan.shift + total / some
        if spread is None:  # in this order a difference of whole numbers is exact
            scatter = (weight * scatter - np.outer(total, total)) / some
        else:
            scatter -= total.T @ (total / some)
            spread -= total**2 / some
        squares = float(n) if w is None else float(w @ w)
    return _in_units(x, parts, weight, squares, middle, scatter, spread)


def _by_block(x: np.ndarray, w: np.ndarray | None) -> Plan:
    """Whole numbers up to a few hundred, as pixels are, are multiplied in float32, which takes half
    of the time: in blocks of so few rows that every sum is a whole number that float32 holds. They
    are shifted to the middle of their range. Others are shifted by the mean of the first block: the
    mean of all cannot be so far from it that a difference loses digits, for the block is part of
    the data.
    """
    if x.size and w is None:
        low, high = float(x.min()), float(x.max())
        reach = np.ceil((high - low) / 2)
        held = max(-low, high) <= 2**24  # by float32, before the shift
        if reach < EXACT_REACH and held and _whole(x):
            step = min(BLOCK, int(2**24 // max(reach, 1) ** 2))
            return Plan(
                np.float32, step, np.full(x.shape[1], np.floor((high + low) / 2), np.float32)
            )
    first = x[:BLOCK].astype(np.float64)
    return Plan(np.float64, BLOCK, first.sum(axis=0) / max(len(first), 1))


def _by_group(x: np.ndarray, w: np.ndarray | None, labels: np.ndarray, groups: int) -> Plan:
    """Shifted by the means of the groups, in a pass of its own: rows of one label may be so much
    closer to each other than to others that any other shift would lose their digits."""
    weight, total = np.zeros((groups, 1)), np.zeros((groups, x.shape[1]))
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        v = np.ones(len(x[block])) if w is None else w[block]
        shares = _shares(v, labels[block], groups)
        weight += shares.sum(axis=0)[:, None]
        total += shares.T @ x[block].astype(np.float64)
    return Plan(np.float64, BLOCK, total / np.where(weight == 0, 1, weight))


def _shares(v: np.ndarray, labels: np.ndarray, groups: int) -> np.ndarray:
    """``[b, groups]``: the weight of each row, at its label."""
    return v[:, None] * (labels[:, None] == np.arange(groups))


def _whole(x: np.ndarray) -> bool:
    if np.issubdtype(x.dtype, np.integer) or x.dtype == bool:
        return True
    blocks = (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))
    return all(bool((block == np.rint(block)).all()) for block in blocks)


def _in_units(
    x: np.ndarray,
    parts: Parts,
    weight: np.ndarray,
    squares: float,
    middle: np.ndarray,
    scatter: np.ndarray,
    spread: np.ndarray | None,
) -> Sums:
    unit = np.array([_unit(x[:, span(i, parts)]) for i in range(len(parts))])
    column = np.repeat(np.where(unit == 0, 1, unit), parts)
    return Sums(
        unit=jnp.asarray(unit),
        weight=jnp.asarray(weight),
        squares=jnp.asarray(squares),
        mean=jnp.asarray(middle / column),
        scatter=jnp.asarray(scatter / column[:, None] / column),
        spread=None if spread is None else jnp.asarray(spread / column**2),
        fourth=None,
    )


def _unit(x: np.ndarray) -> float:
    largest = max(float(x.max(initial=0)), -float(x.min(initial=0)))
    if not 0 < largest < np.inf:
        return float(largest != 0)
    return max(2.0 ** np.frexp(largest)[1], SMALLEST)
