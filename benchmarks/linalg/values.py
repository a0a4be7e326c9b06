"""Singular values and eigenvalues of batches: how fast, how accurate, which method."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import (
    NOTHING,
    Table,
    Target,
    Timing,
    interleaved,
    one_core,
    ratio_of,
    ratio_text,
    row,
    with_first,
)
from spectral_jax.linalg.subspace import mm
from spectral_jax.linalg.values import eigvalsh, svdvals

SEED = 0
TARGETS = {32: (2.5, 4), 64: (2.5, 4), 128: (2, 5), 256: (1.5, 6)}  # against JAX, against a loop
Rows = list[tuple[str, ...]]


class Size(NamedTuple):
    sides: tuple[int, ...]
    dtypes: tuple[str, ...]
    batch: int
    repeats: int


FULL = Size((32, 64, 128, 256), ("float32", "float64"), 64, 7)
SMOKE = Size((8,), ("float32",), 8, 1)


def speed(size: Size) -> Table:
    """Batches of matrices against what JAX has and against a loop of NumPy calls."""
    rows: Rows = []
    with one_core():
        for dtype in size.dtypes:
            with jax.enable_x64(dtype == "float64"):
                for n in size.sides:
                    rows += _tall_rows(n, dtype, size)
                    rows += _context_rows(n, dtype, size)
    note = (
        f"Batches of {size.batch} Gaussian matrices, `method='auto'`. JAX's side of a 2n x n "
        "problem is the faster of `jnp.linalg.svd(compute_uv=False)` and `jnp.linalg.eigvalsh` "
        "of the Gram matrix; the NumPy side is `np.linalg.svd(compute_uv=False)` one matrix at a "
        "time. Where a loop target is missed, LAPACK's Householder reduction (`sytrd`, row "
        "`reduction alone`) is what is left: half of its flops are matrix-vector products, which "
        "read the trailing matrix once a column whatever the batch; the rate of its 4/3 n^3 flops "
        "is given, and that of matrix products in the table of the randomised SVD. Square "
        "matrices keep to LAPACK's `gesdd`, which computes no vectors either: their Gram matrix "
        "loses the hard edge."
    )
    return Table("Values of batches of matrices, one core", note, rows)


def accuracy(size: Size) -> Table:
    """Relative error of the largest, the median and the smallest value, per method."""
    n = min(size.sides[-1], 64)
    batches = {
        f"Gaussian, {2 * n} x {n}": _gaussian(size.batch, 2 * n, n),
        f"Gaussian, {n} x {n}": _gaussian(size.batch, n, n),
        f"condition 20, {2 * n} x {n}": _graded(size.batch, n, 20),
        f"condition 1e4, {2 * n} x {n}": _graded(size.batch, n, 1e4),
    }
    rows = []
    for what, a in batches.items():
        methods = ("auto", "lapack", "gram") if a.shape[-2] > a.shape[-1] else ("auto", "lapack")
        for dtype in size.dtypes:
            errors = [_errors(a, dtype, method) for method in methods]
            rows.append((what, dtype, *errors, *[NOTHING] * (3 - len(errors))))
    note = (
        f"`svdvals`: largest relative error over {size.batch} matrices of the largest / median / "
        "smallest value, against NumPy in float64 (float64 against float64: both sides' rounding). "
        "`nan` is Gram's own mark on a value below its floor; `–` is a method that is refused."
    )
    return Table(
        "Accuracy of the methods", note, rows, ("matrix", "dtype", "auto", "lapack", "gram")
    )


def _tall_rows(n: int, dtype: str, size: Size) -> Rows:
    matrices = _gaussian(size.batch, 2 * n, n).astype(dtype)
    a = jnp.asarray(matrices)
    calls = {
        "ours": partial(svdvals, a),
        "svd": partial(_jax_svd, a),
        "Gram": partial(_jax_gram, a),
        "NumPy": lambda: [np.linalg.svd(one, compute_uv=False) for one in matrices],
    }
    times = interleaved(calls, repeats=size.repeats)
    jax_best = min(times["svd"], times["Gram"], key=lambda timing: timing.median)
    # The targets were set for the default dtype.
    targets = TARGETS.get(n, (None, None)) if dtype == "float32" else (None, None)
    what = f"svdvals, {2 * n} x {n}, {dtype}"
    return [
        _against(f"{what}: JAX", times["ours"], jax_best, targets[0]),
        _against(f"{what}: NumPy loop", times["ours"], times["NumPy"], targets[1]),
    ]


def _context_rows(n: int, dtype: str, size: Size) -> Rows:
    square = jnp.asarray(_gaussian(size.batch, n, n), dtype)
    symmetric = square + jnp.swapaxes(square, -2, -1)
    rows = [
        _pair(f"svdvals, {n} x {n}, {dtype}: JAX", svdvals, _jax_svd, square, size),
        _pair(f"eigvalsh, {n} x {n}, {dtype}: JAX", eigvalsh, _jax_eigvalsh, symmetric, size),
    ]
    reduction = interleaved({"sytrd": partial(_reduction, symmetric)}, repeats=size.repeats)
    rate = size.batch * 4 / 3 * n**3 / reduction["sytrd"].median / 1e9
    rows.append(
        row(f"reduction alone, {n} x {n}, {dtype}", f"{reduction['sytrd']}, {rate:.1f} GFlop/s")
    )
    return rows


def _pair(what: str, ours: Callable, peer: Callable, a: jax.Array, size: Size) -> tuple[str, ...]:
    calls: Mapping[str, Callable] = {"ours": partial(ours, a), "peer": partial(peer, a)}
    times = interleaved(calls, repeats=size.repeats)
    return _against(what, times["ours"], times["peer"], None)


def _against(what: str, ours: Timing, peer: Timing, limit: float | None) -> tuple[str, ...]:
    target = None if limit is None else Target(">=", limit)
    ratio = ratio_of(peer, ours)
    return row(what, with_first(ours), peer, ratio_text(peer, ours), target, ratio)


@jax.jit
def _jax_svd(a):
    return jnp.linalg.svd(a, compute_uv=False)


@jax.jit
def _jax_gram(a):
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(mm(jnp.swapaxes(a, -2, -1), a)), 0))


_jax_eigvalsh = jax.jit(jnp.linalg.eigvalsh)


@jax.jit
def _reduction(a):
    return jax.lax.linalg.tridiagonal(a)[1:3]


def _errors(a: np.ndarray, dtype: str, method: str) -> str:
    rounded = a.astype(dtype)
    exact = np.linalg.svd(rounded.astype("float64"), compute_uv=False)
    with jax.enable_x64(dtype == "float64"):
        found = np.asarray(svdvals(jnp.asarray(rounded), method=method))
    worst = np.max(np.abs(found - exact) / exact, axis=0)
    return " / ".join(f"{worst[i]:.0e}" for i in (0, len(worst) // 2, -1))


def _gaussian(batch: int, m: int, n: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal((batch, m, n))


def _graded(batch: int, n: int, condition: float) -> np.ndarray:
    """Singular values evenly spaced on a logarithmic scale."""
    left = np.linalg.qr(_gaussian(batch, 2 * n, n))[0]
    right = np.linalg.qr(_gaussian(batch, n, n))[0]
    return left * np.geomspace(1, 1 / condition, n) @ right
