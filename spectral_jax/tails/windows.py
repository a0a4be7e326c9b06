"""FARMS: spectra of submatrices of one fixed shape, so that layers can be compared."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from spectral_jax._choices import check_choice
from spectral_jax._options import check_count, check_number
from spectral_jax.linalg import eigvalsh, svdvals
from spectral_jax.linalg.arguments import check_key
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.subspace import mm
from spectral_jax.tails.support import NOISE

Scheme = Literal["grid", "stride", "random"]
Method = Literal["svd", "gram"]
COMPAT = ("floor_step", "ic_unclamped", "conv_blocks")
TAKES = {"grid": {"samples"}, "stride": {"stride"}, "random": {"samples", "key"}}
NEEDS = {**TAKES, "grid": set()}
# Eigenvalues of a Gram matrix below 4 eps of the largest count as rounding. Their errors were
# measured as 2 eps of the largest, for windows of 32 to 1024.
GRAM_NOISE = 4.0
CHUNK = 2**24  # matrix entries that are decomposed at a time: 64 MB of windows in float32


def farms_windows(
    w: Float[Array, "*stack m n"],
    *,
    window: int,
    cols_per_row: float = 1.0,
    samples: int | None = None,
    stride: int | None = None,
    key: PRNGKeyArray | None = None,
    scheme: Scheme = "grid",
    paper_compat: Collection[str] = (),
) -> Float[Array, "*stack windows r c"]:
    """Cut a matrix, or each matrix of a stack, into overlapping submatrices of one shape.

    A window has ``r = min(window, m, floor(n / cols_per_row))`` rows and ``c = int(r *
    cols_per_row)`` columns of the matrix as passed: ``cols_per_row`` is the inverse of the paper's
    ``Q = m' / n'``, and transposing a matrix is the caller's decision.

    Spectra of matrices of different shapes differ for noise, too (docs/null-exponents.md); those of
    windows of one shape can be compared between layers.

    Args:
      window: rows of a window, at most; fewer where the matrix has no room.
      cols_per_row: columns of a window for each of its rows; 1 is a square window.
      samples: ``grid``: windows per axis, default as many as it takes to cover the matrix;
        ``random``: windows in all (required).
      stride: ``stride``: rows and columns from one window to the next (required).
      key: ``random``: where the windows lie, uniformly and independently (required).
      scheme: ``grid`` spreads windows evenly, the first and the last at the edges; ``stride`` puts
        one every ``stride`` entries and one at the edge.
      paper_compat: what the released code does otherwise. ``floor_step``: steps rounded down, so
        that the far edge is left out (of 4096 rows, 10). ``ic_unclamped``: ``r = window``, and
        what sticks out of the matrix is cut as a Python slice would cut it, to another aspect
        ratio. ``conv_blocks``: for stacks, disjoint blocks times ``sqrt(1/2)`` along the long side
        of the transposed-to-tall slices, ``[blocks, positions, r, c]``; all but ``cols_per_row``
        is ignored, and so is what the blocks do not reach.

    Half precision and integers are read as float32. Works under ``jit`` (options static), ``vmap``
    (over matrices and keys) and ``grad``. Raises ``ValueError`` for a window that cannot be cut, a
    missing or misplaced option and complex numbers.
    Source: arXiv 2506.06280; github.com/HUST-AI-HYZ/FARMS at 8e07c3f for the quirks.

    >>> farms_windows(jnp.ones((512, 784)), window=100, samples=9).shape
    (81, 100, 100)
    """
    w = working(w, "w")
    options = (window, cols_per_row, samples, stride, key, scheme, paper_compat)
    _check(w, *options)
    if "conv_blocks" in paper_compat:
        return _conv_blocks(w, cols_per_row)
    corners, size = _place(w.shape, *options)
    return _windows(w, corners, size)


def farms_eigenvalues(
    w: Float[Array, "*stack m n"],
    *,
    window: int,
    cols_per_row: float = 1.0,
    samples: int | None = None,
    stride: int | None = None,
    key: PRNGKeyArray | None = None,
    scheme: Scheme = "grid",
    pooled: bool = True,
    method: Method = "svd",
    paper_compat: Collection[str] = (),
) -> Float[Array, " N"] | Float[Array, "windows k"]:
    """Squared singular values of all FARMS windows, pooled, ascending ``[windows * min(r, c)]``.

    Windows have equal shapes, so the pooled spectrum is the average of theirs. A stack (the
    positions of a convolution kernel) is cut slice by slice and pooled too. ``pooled=False`` gives
    ``[windows, min(r, c)]``, ascending in each: for quantities such as norms and stable ranks,
    which grow with the number of windows if pooled, take the mean of those of the windows.
    With ``paper_compat={"conv_blocks"}`` either gives ``[blocks, positions * min(r, c)]``: the
    released code fits every block and takes the mean of the fits.

    Args:
      method: ``svd`` is ``linalg.svdvals(method="auto")``, right to rounding throughout. ``gram``
        is ``linalg.eigvalsh`` of Gram matrices, right to ``2 eps max`` (measured): twice as fast on
        a CPU for windows of 128, and enough for exponents of the upper half. What is below
        ``4 eps max`` of its window is rounding and comes back as 0, in float32 one eigenvalue of
        square noise in some 2,000, which moves an ``alpha`` by 1e-3: do not read ranks off it.

    ``window``, ``cols_per_row``, ``samples``, ``stride``, ``key`` and ``scheme``, transforms and
    errors are those of ``farms_windows``; also ``ValueError`` for an unknown method. NaN or inf in
    a window gives NaN for that window. Squares reach half as far as numbers do: what underflows in
    a float32 matrix below 1e-16 or so comes back as NaN, and what overflows as inf, so that no fit
    takes the rest for the whole; exponents do not change if the matrix is scaled first. Memory:
    ``2^24`` entries of windows at a time, whatever their number.

    >>> w = jax.random.normal(jax.random.key(0), (64, 96))
    >>> farms_eigenvalues(w, window=32, samples=3).shape
    (288,)
    """
    w = working(w, "w")
    options = (window, cols_per_row, samples, stride, key, scheme, paper_compat)
    _check(w, *options)
    check_choice(get_args(Method), method=method)
    if "conv_blocks" in paper_compat:
        values = squares(_conv_blocks(w, cols_per_row), method)
        return jnp.sort(values.reshape(values.shape[0], -1), axis=-1)
    corners, size = _place(w.shape, *options)
    return _spectrum(w, corners, size, pooled, method)


@partial(jax.jit, static_argnames="size")
def _windows(w: Array, corners: Array, size: tuple[int, int]) -> Array:
    stack = w.reshape(-1, *w.shape[-2:])

    def cut(matrix, corners):
        return jax.vmap(lambda at: jax.lax.dynamic_slice(matrix, at, size))(corners)

    # Each matrix by itself, so that a sharded stack is cut where its matrices are.
    windows = jax.vmap(cut)(stack, jnp.reshape(corners, (len(stack), -1, 3))[..., 1:])
    return windows.reshape(*w.shape[:-2], -1, *size)


@partial(jax.jit, static_argnames=("size", "pooled", "method"))
def _spectrum(w: Array, corners: Array, size: tuple[int, int], pooled: bool, method: str) -> Array:
    stack = w.reshape(-1, *w.shape[-2:])
    together = max(1, CHUNK // (size[0] * size[1]))
    if len(corners) <= together:
        values = squares(_cut(stack, corners, size), method)
    else:
        values = jax.lax.map(
            lambda corner: squares(_cut(stack, corner[None], size), method)[0],
            corners,
            batch_size=together,
        )
    return jnp.sort(values.ravel()) if pooled else values


def squares(windows: Array, method: str) -> Array:
    """Squared singular values, ascending; NaN for those whose squares underflow."""
    eps, tiny = (float(getattr(jnp.finfo(windows.dtype), name)) for name in ("eps", "tiny"))
    if method == "svd":
        values = svdvals(windows)[..., ::-1]
        rounding = NOISE * eps * values[..., -1:]
        return jnp.where((values > rounding) & (values**2 < tiny), jnp.nan, values**2)
    tall = windows if windows.shape[-2] >= windows.shape[-1] else jnp.swapaxes(windows, -2, -1)
    values = eigvalsh(mm(jnp.swapaxes(tall, -2, -1), tall))
    rounding = GRAM_NOISE * eps * values[..., -1:]
    # NaN <= rounding is False, so that NaN stays NaN.
    values = jnp.where(values <= rounding, 0, values)
    return jnp.where((values > 0) & (rounding < tiny), jnp.nan, values)


def _cut(stack: Array, corners: Int[Array, "w 3"], size: tuple[int, int]) -> Array:
    return jax.vmap(lambda at: jax.lax.dynamic_slice(stack, tuple(at), (1, *size))[0])(corners)


def _place(shape, window, cols_per_row, samples, stride, key, scheme, paper_compat):
    """Where windows start, rows of (matrix, row, column), and their size."""
    wanted = _wanted(shape[-2:], window, cols_per_row, "ic_unclamped" in paper_compat)
    begin, size, room = zip(*map(_fit, shape[-2:], wanted), strict=True)
    matrices = math.prod(shape[:-2])
    if scheme == "random":
        last = jnp.array(room) + 1
        at = jax.random.randint(key, (matrices, samples, 2), 0, last)
        matrix = jnp.broadcast_to(jnp.arange(matrices)[:, None, None], (matrices, samples, 1))
        return jnp.concatenate([matrix, at], axis=-1).reshape(-1, 3), size
    spread, amount = (_grid, samples) if scheme == "grid" else (_strides, stride)
    floored = "floor_step" in paper_compat
    starts = [
        first + spread(left, extent, amount, floored)
        for first, left, extent in zip(begin, room, size, strict=True)
    ]
    mesh = np.meshgrid(np.arange(matrices), *starts, indexing="ij")
    return np.stack(mesh, axis=-1).reshape(-1, 3).astype(np.int32), size


def _wanted(matrix, window: int, cols_per_row: float, unclamped: bool) -> tuple[int, int]:
    m, n = matrix
    # 1e-9 against binary fractions: 100 * .29 is 28.99..., which int() would cut to 28.
    rows = window if unclamped else min(window, m, int(n / cols_per_row + 1e-9))
    columns = int(rows * cols_per_row + 1e-9)
    if rows < 1 or columns < 1:
        raise ValueError(
            f"cols_per_row={cols_per_row} leaves windows of {rows} x {columns} in a matrix of "
            f"{m} x {n}: choose a ratio that it can hold"
        )
    return rows, columns


def _fit(length: int, wanted: int) -> tuple[int, int, int]:
    """First start and size of a window in an axis, and how far it can move."""
    if wanted <= length:
        return 0, wanted, length - wanted
    # The released code slices [length - wanted : length]; in Python a negative start counts from
    # the end, so that a window that is too large becomes a smaller one at the far edge.
    begin = max(2 * length - wanted, 0)
    return begin, length - begin, 0


def _grid(room: int, extent: int, samples: int | None, floored: bool):
    if samples is None:
        samples = -(-room // extent) + 1
    if samples == 1 or room == 0:
        return np.zeros(1, int)
    if floored:
        step = max(1, room // (samples - 1))
        return step * np.arange(min(samples, room // step + 1))
    return np.arange(samples) * room // (samples - 1) if samples <= room else np.arange(room + 1)


def _strides(room: int, extent: int, stride: int, floored: bool):
    starts = np.arange(0, room + 1, stride)
    return starts if floored or starts[-1] == room else np.append(starts, room)


def _conv_blocks(w: Array, cols_per_row: float) -> Array:
    tall = w if w.shape[-2] >= w.shape[-1] else jnp.swapaxes(w, -2, -1)
    positions, rows, columns = tall.shape
    height, width = columns, columns
    if cols_per_row > 1:
        height = int(columns // cols_per_row)
    else:
        width = int(columns // (1 / cols_per_row))
    blocks = rows // columns
    if min(height, width) < 1:
        raise ValueError(f"cols_per_row={cols_per_row} leaves no block in slices {w.shape[-2:]}")
    used = tall[:, : blocks * height, :width].reshape(positions, blocks, height, width)
    return jnp.swapaxes(used, 0, 1) * 0.5**0.5


def _check(w, window, cols_per_row, samples, stride, key, scheme, paper_compat) -> None:
    if w.ndim < 2 or w.size == 0:
        raise ValueError(f"w has shape {w.shape}: pass a matrix or a stack of them, not empty")
    counts = dict(window=window, samples=samples, stride=stride)
    check_count(**{name: value for name, value in counts.items() if value is not None})
    finite = "choose a finite number above 0"
    check_number(finite, lambda x: 0 < x < math.inf, cols_per_row=cols_per_row)
    if unknown := set(paper_compat) - set(COMPAT):
        raise ValueError(f"paper_compat={unknown}: choose among {COMPAT}")
    if "conv_blocks" in paper_compat and w.ndim != 3:
        raise ValueError(f"w has shape {w.shape}: conv_blocks wants a stack [positions, m, n]")
    check_choice(TAKES, scheme=scheme)
    given = {k for k, v in dict(samples=samples, stride=stride, key=key).items() if v is not None}
    if given - TAKES[scheme] or NEEDS[scheme] - given:
        raise ValueError(
            f"scheme={scheme!r} takes {sorted(TAKES[scheme])} and needs {sorted(NEEDS[scheme])}: "
            f"got {sorted(given)}"
        )
    if paper_compat and scheme == "random":
        raise ValueError("paper_compat: the released code places no windows at random")
    if scheme == "random":
        check_key(key, draws="scheme='random' places windows")
