"""The spectrum of a table of data, with its floor, its missing cells and its intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number, count
from spectral_jax.laws import marchenko_pastur_edges, marchenko_pastur_quantile
from spectral_jax.linalg import moments
from spectral_jax.linalg.jackknife import Interval, interval
from spectral_jax.linalg.precision import working

Missing = Literal["refuse", "rows", "pairwise"]

# A standard deviation that is this small beside the mean is the rounding of a constant.
CONSTANT = 2.0**-40


class InputSpectrum(NamedTuple):
    """Eigenvalues of ``X^T X / n``, and what is known about them."""

    values: Float[Array, " k"]
    """Descending; ``k = min(n, p)``, all others are 0. Those up to ``floor`` are rounding."""
    floor: Float[Array, ""]
    replicates: Float[Array, "blocks k"]
    """The values without each block of rows in turn, for `jackknife`; none for ``blocks=0``."""
    rank: int
    """How many values are above the floor."""
    n: int
    """Rows that were read."""
    p: int
    """Columns."""
    constant: int
    """Columns of variance 0."""
    missing: float
    """The share of cells that were NaN."""
    indefinite: float
    """``sum |negative values| / sum |values|``. Above rounding only for ``missing="pairwise"``,
    whose matrix need not be one of moments; the floor is then the size of the most negative."""
    centred: bool


class Noise(NamedTuple):
    """The eigenvalues that noise of independent entries would not have."""

    variance: float
    """Of the noise, in the squared unit of the data."""
    edge: float
    """``variance (1 + sqrt(p / n))^2``, where the bulk of Marchenko and Pastur ends."""
    above: int
    """Values above the edge, and the floor."""
    estimated: bool
    """Whether the variance was taken from the spectrum itself."""


def input_spectrum(
    x: Num[ArrayLike, "n p"] | Sequence[moments.Moments],
    *,
    centred: bool = False,
    standardise: bool = False,
    missing: Missing = "refuse",
    blocks: int = 16,
) -> InputSpectrum:
    """The eigenvalues of ``X^T X / n`` of a table: rows are examples, columns features.

    In float64 whatever the table's dtype and whether or not JAX has it: by the moments of the
    columns, or by those of the rows if there are fewer. The floor is that of `linalg.moments`.

    Args:
      x: a table; or, of data too large for one, a list of `linalg.moments` states, each of one
        part, which then are the blocks.
      centred: take off the mean of each column first (the covariance: what differs between
        examples) or not (the default: what a first layer without biases sees, and what arXiv
        2110.14163 uses). The mean is most of the first uncentred eigenvalue.
      standardise: divide each column by its standard deviation about its mean: if columns have
        different units. Constant columns stay as they are.
      missing: what to do about NaN, None and masked cells. ``"refuse"`` them; leave out the
        ``"rows"`` that have one; or ``"pairwise"``: each entry of the covariance from the rows that
        have both columns. Those differ, so the matrix may have negative eigenvalues: ``indefinite``
        says how much.
      blocks: of consecutive rows, each left out in turn for the intervals of `jackknife`: as many
        eigenvalue problems more. 0 for none.

    A table is read on the host; this is not for use under ``jit``: there use `linalg.moments`.
    Raises ``ValueError`` for what is no table of real numbers, for fewer than two rows or no
    column, for infinity, or NaN unless ``missing`` says what it means (for states it is too late to
    say), and for squares that the dtype of the results does not hold (in float32, of numbers near
    1e19 or 1e-19).

    >>> table = np.random.default_rng(0).normal(size=(200, 3)) * [10.0, 1.0, 0.0]
    >>> found = input_spectrum(table)
    >>> found.rank, found.constant, bool(found.values[0] > 50 * found.values[1])
    (2, 1, True)
    """
    check_choice(("refuse", "rows", "pairwise"), missing=missing)
    blocks = count("blocks", blocks, least=0)
    if isinstance(x, Sequence) and x and isinstance(x[0], moments.Moments):
        if standardise or missing != "refuse":
            raise ValueError("states of moments have no cells: pass a table to change its columns")
        if not all(isinstance(state, moments.Moments) for state in x):
            raise ValueError("x mixes states of moments with others: pass states, or one table")
        return _of_states(x, centred, intervals=blocks > 0, missing=0.0)
    table, hole = _table(x, missing)
    still = np.nanmax(table, axis=0) == np.nanmin(table, axis=0)
    if standardise:
        table = table / np.where(still, 1, _units(table))  # squares of any column are in range
        table = table / np.where(still, 1, np.nanstd(table, axis=0, dtype=np.float64))
    _check_squares(table)
    parts = np.array_split(table, max(1, min(blocks, len(table) // 2)))
    complete = not np.isnan(table).any()
    if complete and table.shape[1] <= len(table):
        states = [_state(part) for part in parts]
        found = _of_states(states, centred, intervals=len(parts) > 1, missing=hole)
        return found._replace(constant=int(still.sum()))  # exactly, at any scale
    measure = partial(_by_rows if complete else _pairwise, centred=centred)
    values, floor = measure(table)
    if np.isnan(values).any():
        raise ValueError("two columns have no row in common: drop one, or choose missing='rows'")
    rest = _without_each(parts, measure) if len(parts) > 1 else []
    return _summary(
        values, floor, rest, table.shape, constant=int(still.sum()), missing=hole, centred=centred
    )


def jackknife(
    spectrum: InputSpectrum, function: Callable[[InputSpectrum], Any], *, level: float = 0.95
) -> Interval:
    """Any number of a spectrum with a confidence interval, by leaving out blocks of rows.

    See `linalg.interval`, which says how and for what this holds. Blocks are of consecutive rows.

    NaN where the spectrum without some block is: two columns then have no row in common. Raises
    ``ValueError`` for a level outside (0, 1), a spectrum with fewer than two blocks or a function
    that gives more than one number.

    >>> table = np.random.default_rng(0).normal(size=(2000, 3))
    >>> found = jackknife(input_spectrum(table), lambda s: s.values.sum())
    >>> found.low < 3 < found.high
    True
    """
    if len(spectrum.replicates) < 2:
        raise ValueError("the spectrum has no blocks: input_spectrum(x, blocks=16), 4 rows or more")
    if np.ndim(whole := function(spectrum)) != 0:
        raise ValueError(f"function gives {np.shape(whole)}: return one number, and ask for each")
    value = float(whole)
    others = np.array([float(function(spectrum._replace(values=v))) for v in spectrum.replicates])
    return Interval(*map(float, interval(value, others, level=level)))


def above_noise(spectrum: InputSpectrum, *, variance: float | None = None) -> Noise:
    """Which eigenvalues stand above those of pure noise: independent entries of one variance.

    Args:
      variance: of the noise, if the instrument's is known. If not, it is taken from the median
        eigenvalue over that of the law, as if half of the values were noise. In a *sloppy* spectrum
        none need be: the estimate is then small, and nearly all values stand above its edge.

    Raises ``ValueError`` for a variance not above 0.
    Source: Marchenko & Pastur 1967; Gavish & Donoho, arXiv 1305.5870 (the median).

    >>> table = np.random.default_rng(0).normal(size=(400, 100))
    >>> table[:, 0] *= 5
    >>> above_noise(input_spectrum(table)).above
    1
    """
    ratio = spectrum.p / spectrum.n
    estimated = variance is None
    if variance is None:
        known = np.asarray(spectrum.values)[: spectrum.rank]
        middle = marchenko_pastur_quantile(1 - len(known) / (2 * spectrum.p), ratio)
        variance = float(np.median(known)) / middle if len(known) and middle > 0 else np.nan
    else:
        variance = np.asarray(variance).item()  # of one of our own results, say
        check_number("pass a number above 0", lambda x: x > 0, variance=variance)
    edge = variance * marchenko_pastur_edges(ratio)[1]
    above = int(np.sum(np.asarray(spectrum.values) > max(edge, float(spectrum.floor))))
    return Noise(variance, edge, above, estimated)


def _table(x: Any, missing: Missing) -> tuple[np.ndarray, float]:
    """The table, without rows of which it is asked, and the share of its cells that were NaN."""
    x = _cells(x)
    if x.dtype.kind not in "fiu":  # bfloat16, bool; and a refusal of what is no real number
        x = np.asarray(working(x, "x"))
    if x.ndim != 2 or min(x.shape) < 1:
        raise ValueError(f"x has shape {x.shape}: pass a table [n, p] of examples and features")
    holes = np.isnan(x)
    share = float(holes.mean())
    if share and missing == "refuse":
        columns = int(holes.any(axis=0).sum())
        raise ValueError(f"x has NaN in {columns} columns: choose missing='rows' or 'pairwise'")
    if missing == "rows":
        x = x[~holes.any(axis=1)]
    elif holes.all(axis=0).any():
        raise ValueError("x has a column of nothing but NaN: leave it out")
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} complete rows: a spectrum needs two")
    if np.isinf(x).any():
        raise ValueError("x holds infinity: replace it by NaN, and choose missing=")
    return x, share


def _cells(x: Any) -> np.ndarray:
    """As an array, in which masked cells, None and the NA of a data frame are NaN."""
    if isinstance(x, jax.core.Tracer):
        raise ValueError("input_spectrum reads a table on the host: under jit use linalg.moments")
    if isinstance(x, moments.Moments):
        raise ValueError("x is one state of moments: pass a list, [state], or one for each block")
    if isinstance(x, np.ma.MaskedArray) and x.dtype.kind in "fiub":
        return np.ma.filled(x.astype(np.float64), np.nan)
    _refuse_what_is_no_table(x)
    try:
        cells = np.asarray(x)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"x is no table of real numbers: {error}") from None
    if cells.dtype.kind != "O" and cells.dtype != np.longdouble:
        return cells
    try:
        if hasattr(x, "to_numpy"):
            return x.to_numpy(dtype=np.float64, na_value=np.nan)
        return cells.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"x is no table of real numbers: {error}") from None


def _refuse_what_is_no_table(x: Any) -> None:
    """Raise ``ValueError`` for what NumPy would make other numbers of, or a single object."""
    if hasattr(x, "toarray"):
        raise ValueError("x is a sparse matrix: pass x.toarray()")
    # A data frame's times would become nanoseconds, and outweigh all other columns.
    named: Any = getattr(x, "dtypes", None)
    columns = named.items() if hasattr(named, "items") else ()
    times = [name for name, kind in columns if getattr(kind, "kind", None) in ("m", "M")]
    if times:
        raise ValueError(f"x has columns of times, {times}: leave them out or make them numbers")


def _units(table: np.ndarray) -> np.ndarray:
    """For each column a power of two near its largest entry: divided by it nothing is rounded."""
    largest = np.maximum(
        np.nanmax(table, axis=0).astype(np.float64), -np.nanmin(table, axis=0).astype(np.float64)
    )
    return np.ldexp(1.0, np.frexp(largest)[1] - 1)


def _check_squares(table: np.ndarray) -> None:
    """Eigenvalues are at most the largest square times the longer side."""
    largest = max(float(np.nanmax(table)), -float(np.nanmin(table)))
    span = jnp.finfo(jnp.result_type(float))
    most = np.sqrt(float(span.max) / (4 * max(table.shape)))
    if largest and not np.sqrt(float(span.tiny)) <= largest <= most:
        raise ValueError(
            f"x has entries up to {largest:.1e}, whose squares {span.dtype} lacks: rescale x"
        )


def _state(table: np.ndarray) -> moments.Moments:
    return moments.update(moments.zero(table.shape[1]), table)


def _of_states(
    states: Sequence[moments.Moments], centred: bool, *, intervals: bool, missing: float
) -> InputSpectrum:
    whole = reduce(moments.merge, states)
    values, floor = moments.eigenvalues(whole, centred=centred)
    rows = float(moments.effective_rows(whole))
    if np.isnan(rows) or jnp.isnan(values).any():
        raise ValueError(
            "the states' moments are NaN, as of a row with NaN or a negative weight, or of squares "
            "beyond their dtype: give such rows weights=0, or rescale"
        )
    if round(rows) < 2:
        raise ValueError(f"the states hold {rows:.3g} rows: a spectrum needs two")
    rest = moments.leave_one_out(states) if intervals and len(states) > 1 else []
    # Of a constant column the mean is rounded, and so the variance is not quite 0.
    variances = jnp.diagonal(moments.second(whole, centred=True))
    still = jnp.sum(variances <= (CONSTANT * moments.mean(whole)) ** 2)
    return _summary(
        values,
        floor,
        [moments.eigenvalues(state, centred=centred).values for state in rest],
        (round(rows), whole.size),
        constant=int(still),
        missing=missing,
        centred=centred,
    )


def _without_each(
    parts: Sequence[np.ndarray], measure: Callable[[np.ndarray], tuple[Array, Array]]
) -> list[Array]:
    return [measure(np.concatenate([*parts[:i], *parts[i + 1 :]]))[0] for i in range(len(parts))]


def _summary(
    values: Array, floor: Array, rest: Sequence[Array], shape: tuple[int, int], **known: Any
) -> InputSpectrum:
    kept = min(shape)
    # Before the tail is cut: of a pairwise matrix its negative values are the last.
    total = float(jnp.sum(jnp.abs(values)))
    negative = float(-jnp.sum(jnp.minimum(values, 0)))
    values = values[:kept]
    padded = [jnp.pad(v, (0, max(0, kept - len(v))))[:kept] for v in rest]
    return InputSpectrum(
        values=values,
        floor=floor,
        replicates=jnp.stack(padded) if len(padded) > 1 else jnp.zeros((0, kept), values.dtype),
        rank=int(jnp.sum(values > floor)),
        n=shape[0],
        p=shape[1],
        indefinite=negative / (total or 1.0),
        **known,
    )


def _by_rows(table: np.ndarray, *, centred: bool) -> tuple[Array, Array]:
    """By the moments of the rows of ``X^T``, of which there are ``p``: they are ``X X^T / p``."""
    n, p = table.shape
    wide = table.astype(np.float64)
    if centred:
        wide = wide - wide.mean(axis=0)
    values, floor = moments.eigenvalues(_state(np.ascontiguousarray(wide.T)))
    return values * (p / n), floor * (p / n)


def _pairwise(table: np.ndarray, *, centred: bool) -> tuple[Array, Array]:
    """Each entry from the rows that have both columns; columns about their means throughout.

    NaN if two columns have no row in common, as may be without a block.
    """
    seen = (~np.isnan(table)).astype(np.float64)
    pairs = seen.T @ seen
    if not pairs.all():
        return jnp.full(table.shape[1], jnp.nan), jnp.asarray(jnp.nan)
    middle = np.nanmean(table, axis=0, dtype=np.float64)
    apart = np.where(seen > 0, table - middle, 0.0)
    means = apart.T @ seen / pairs  # of column i over the rows that have j too
    matrix = apart.T @ apart / pairs - means * means.T
    if not centred:
        matrix += np.outer(middle, middle)
    values = np.linalg.eigvalsh(matrix)[::-1]
    rounding = max(table.shape) * np.finfo(np.float64).eps * values[0]
    return jnp.asarray(values.copy()), jnp.asarray(max(rounding, -values[-1]))
