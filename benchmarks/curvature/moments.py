"""Second moments of a large table: how fast beside NumPy in float64, and how many digits."""

from typing import NamedTuple

import jax
import numpy as np

from benchmarks.harness import (
    NOTHING,
    Table,
    Target,
    interleaved,
    one_core,
    ratio_of,
    ratio_text,
    row,
    with_first,
)
from spectral_jax.linalg import moments

SEED = 0
FASTER = Target(">=", 2)
ACCURATE = Target("<=", 1e-13)
DECADES = (2, 4, 6, 8, 10)


class Size(NamedTuple):
    rows: int
    columns: int
    repeats: int


FULL = Size(60_000, 784, 5)
SMOKE = Size(600, 16, 1)


def speed(size: Size) -> Table:
    """Moments of MNIST's shape from NumPy rows, against the product in float64."""
    rng = np.random.default_rng(SEED)
    shape = size.rows, size.columns
    pixels = (rng.integers(0, 256, shape) * (rng.random(shape) < 0.2)).astype(np.uint8)
    tables = {
        "pixels 0 .. 255, uint8": pixels,
        "pixels 0 .. 255, float32": pixels.astype(np.float32),
        "pixels / 255, float32": pixels.astype(np.float32) / np.float32(255),
    }
    rows = []
    with one_core():
        for what, x in tables.items():
            times = interleaved(
                {"ours": lambda x=x: _ours(x), "peer": lambda x=x: _in_float64(x)},
                repeats=size.repeats,
            )
            ratio = ratio_of(times["peer"], times["ours"])
            text = ratio_text(times["peer"], times["ours"])
            rows.append(row(what, with_first(times["ours"]), times["peer"], text, FASTER, ratio))
            rows.append(_error_row(what, x))
    note = (
        f"{size.rows} x {size.columns}. Ours is `moments.update(moments.zero(p), x)`, which gives "
        "the mean, and centred and uncentred moments; NumPy's side is `y.T @ y` of "
        "`y = x.astype(float64)`, uncentred, of which its BLAS computes half (`syrk`). Whole "
        "numbers are multiplied in float32, exactly, by the same BLAS, at up to 1.8 times the "
        "rate, which is the most that can be had; other float32 numbers have no such way, and take "
        "a tenth longer than the product in float64, but no float64 copy of the table (376 MB at "
        "full size). The error is the largest of any uncentred moment, before rounding to float32, "
        "over the largest of them."
    )
    return Table("Moments of a table, one core", note, rows)


def digits(size: Size) -> Table:
    """Relative error of eigenvalues by how far they stand below the largest."""
    rng = np.random.default_rng(SEED)
    p = min(size.columns, 40)
    falling = 10.0 ** -np.linspace(0, max(DECADES) / 2, p)
    rotation = np.linalg.qr(rng.standard_normal((p, p)))[0]
    x = (rng.standard_normal((10 * p, p)) * falling @ rotation).astype(np.float32)
    exact = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2 / len(x)
    rows = []
    for method in moments.METHODS:
        state = moments.update(moments.zero(p, method=method), jax.numpy.asarray(x))
        values, floor = moments.eigenvalues(state)
        error = np.abs(np.asarray(values, np.float64) / exact - 1)
        at = [int(np.argmin(np.abs(np.log10(exact / exact[0]) + d))) for d in DECADES]
        told = [f"{error[i]:.0e}" if exact[i] > floor else NOTHING for i in at]
        rows.append((method, f"{float(floor) / exact[0]:.0e}", *told))
    note = (
        f"{10 * p} x {p} float32 rows, in a program without float64. {NOTHING}: below the floor "
        "that the method reports, so no number is given."
    )
    header = ("method", "floor", *(f"1e-{d} of the top" for d in DECADES))
    return Table("Eigenvalues of moments: relative error", note, rows, header)


def _ours(x: np.ndarray) -> moments.Moments:
    return moments.update(moments.zero(x.shape[1]), x)


def _in_float64(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide.T @ wide


def _error_row(what: str, x: np.ndarray) -> tuple[str, ...]:
    exact = _in_float64(x) / len(x)
    found = _second_in_float64(_ours(x))
    error = float(np.abs(found - exact).max() / exact.max())
    return row(f"{what}: error", f"{error:.0e}", target=ACCURATE, value=error)


def _second_in_float64(state: moments.Moments) -> np.ndarray:
    """`moments.second`, which rounds, before it does."""
    assert state.low is not None
    names = ("unit", "weight", "mean", "scatter")
    unit, weight, mean, scatter = (
        np.float64(getattr(state.high, name)) + np.float64(getattr(state.low, name))
        for name in names
    )
    # Of one part and one group, whose axes are left out.
    unit, weight, mean = unit[0], weight[0], mean[0]
    return (scatter / weight + np.outer(mean, mean)) * unit**2
