"""The spectrum of a table: what it reads, what it resolves, and what it says of a model's size."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_digits

from spectral_jax import capacity, plots
from spectral_jax.linalg import moments

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(60, 5)) * [8, 4, 2, 1, 0.5] + 3


def oracle(table, *, centred=False):
    table = np.asarray(table, np.float64)
    table = table - table.mean(axis=0) if centred else table
    return np.linalg.svd(table, compute_uv=False) ** 2 / len(table)


@pytest.mark.parametrize(
    "centred, top, decades, slope, explained",
    [(False, 10.476, 6.77, -0.0489, 0.906), (True, 0.692, 5.59, -0.0481, 0.902)],
)
def test_digits_have_the_spectrum_that_was_published_for_them(
    centred, top, decades, slope, explained
):
    """The published line is through the values of index 5 to 53 of 61."""
    digits = load_digits().data[np.random.default_rng(0).permutation(1797)[:1400]] / 16
    spectrum = capacity.input_spectrum(digits, centred=centred, blocks=0)
    found = capacity.sloppiness(spectrum, window=(5 / 61, 54 / 61))
    assert (spectrum.rank, spectrum.constant, int(found.first), int(found.last)) == (61, 3, 5, 53)
    assert abs(float(spectrum.values[0]) - top) < 5e-4
    assert abs(float(found.decades) - decades) < 5e-3
    assert abs(float(found.slope) - slope) < 5e-5
    assert abs(float(found.r_squared) - explained) < 5e-4


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("table", [TABLE, TABLE[:6].T @ RNG.normal(size=(6, 9))])
def test_columns_or_rows_whichever_are_fewer(table, centred):
    found = capacity.input_spectrum(table, centred=centred, blocks=2)
    np.testing.assert_allclose(found.values, oracle(table, centred=centred), rtol=1e-5, atol=1e-5)
    half = len(table) - len(table) // 2
    for values, rest in zip(found.replicates, (table[half:], table[:half]), strict=True):
        expected = oracle(rest, centred=centred)
        np.testing.assert_allclose(values[: len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_parts_of_a_stream_are_blocks_of_a_table():
    parts = np.array_split(TABLE, 4)
    states = [moments.update(moments.zero(5), part) for part in parts]
    streamed, whole = capacity.input_spectrum(states), capacity.input_spectrum(TABLE, blocks=4)
    np.testing.assert_array_equal(streamed.replicates, whole.replicates)
    assert streamed[3:] == whole[3:]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, ml_dtypes.bfloat16, np.float32, bool])
def test_any_type_of_number_is_read_exactly(dtype):
    table = RNG.integers(0, 200, (50, 4)).astype(dtype)
    found = capacity.input_spectrum(table, blocks=0)
    np.testing.assert_allclose(found.values, oracle(table), rtol=1e-6)


def test_standardised_columns_have_no_units():
    units = np.array([1e-6, 1, 1e6, 1, 1])
    plain, scaled = (
        capacity.input_spectrum(t, centred=True, standardise=True) for t in (TABLE, TABLE * units)
    )
    np.testing.assert_allclose(plain.values, scaled.values, rtol=1e-5)
    np.testing.assert_allclose(plain.values.sum(), 5, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_a_column_whose_squares_no_dtype_holds_is_standardised_like_the_others(unit):
    plain, scaled = (
        capacity.input_spectrum(t, centred=True, standardise=True)
        for t in (TABLE, TABLE * [unit, 1, 1, 1, 1])
    )
    assert scaled.constant == 0
    np.testing.assert_allclose(scaled.values, plain.values, rtol=1e-6)


def holes(share, table=TABLE):
    return np.where(np.random.default_rng(1).random(table.shape) < share, np.nan, table)


def test_pairwise_uses_the_rows_that_both_columns_have():
    table = holes(0.2)
    found = capacity.input_spectrum(table, centred=True, missing="pairwise", blocks=0)
    matrix = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            both = table[~np.isnan(table[:, [i, j]]).any(axis=1)]
            matrix[i, j] = np.cov(both[:, i], both[:, j], bias=True)[0, 1]
    shift = np.nanvar(table, axis=0) - np.diag(matrix)
    assert abs(shift).max() < 1e-12
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(matrix)[::-1], rtol=1e-5)
    assert found.missing == np.isnan(table).mean()


def test_lost_definiteness_is_reported_and_raises_the_floor():
    table = holes(0.5, RNG.normal(size=(25, 8)))
    found = capacity.input_spectrum(table, centred=True, missing="pairwise", blocks=0)
    negative = -np.minimum(found.values, 0)
    assert found.indefinite > 0.01
    np.testing.assert_allclose(found.indefinite, negative.sum() / abs(found.values).sum(), 1e-5)
    assert found.floor == negative.max() and found.rank == np.sum(found.values > negative.max())


def test_indefiniteness_counts_values_beyond_the_number_of_rows():
    table = holes(0.3, RNG.normal(size=(8, 10)))
    found = capacity.input_spectrum(table, centred=True, missing="pairwise", blocks=0)
    assert found.values.shape == (8,) and found.values.min() > -found.floor
    assert found.indefinite > -np.minimum(found.values, 0).sum() / abs(found.values).sum() + 0.01


def test_masked_cells_and_those_of_no_number_are_missing_too():
    gaps = holes(0.1)
    masked = np.ma.masked_invalid(np.where(np.isnan(gaps), np.inf, gaps))
    cells = np.where(np.isnan(gaps), None, gaps)
    for missing in ("rows", "pairwise"):
        expected = capacity.input_spectrum(gaps, missing=missing)
        for table in (masked, cells, gaps.astype(np.longdouble)):
            found = capacity.input_spectrum(table, missing=missing)
            np.testing.assert_array_equal(found.values, expected.values)
            assert found.missing == expected.missing > 0
    with pytest.raises(ValueError, match="x has NaN in 5 columns"):
        capacity.input_spectrum(masked)


def state(table, **options):
    return moments.update(moments.zero(5), table, **options)


@pytest.mark.parametrize(
    "states, message",
    [
        (lambda: [moments.zero(5)], "the states hold 0 rows"),
        (lambda: [state(TABLE[:1])], "the states hold 1 rows"),
        (lambda: [state(TABLE), TABLE], "x mixes states"),
        (lambda: state(TABLE), "x is one state of moments: pass a list"),
        (lambda: [state(TABLE, weights=np.full(60, -1.0))], "states' moments are NaN"),
        (lambda: [state(holes(0.1))], "states' moments are NaN"),
    ],
)
def test_states_that_have_no_spectrum_are_refused(states, message):
    with pytest.raises(ValueError, match=message):
        capacity.input_spectrum(states())


def test_rows_with_holes_can_be_left_out():
    table = holes(0.1)
    found = capacity.input_spectrum(table, missing="rows")
    complete = table[~np.isnan(table).any(axis=1)]
    assert found.n == len(complete) < len(table)
    np.testing.assert_allclose(found.values, oracle(complete), rtol=1e-5)


def test_constant_columns_and_rank_zero_are_counted_not_drawn():
    still = np.full((9, 3), 0.1)
    assert capacity.input_spectrum(still).rank == 1
    nothing = capacity.input_spectrum(still, centred=True)
    assert (nothing.rank, nothing.constant) == (0, 3)
    assert np.isnan(capacity.sloppiness(nothing).slope)
    assert np.isnan(capacity.above_noise(nothing).edge)
    for refused in (plots.data_spectrum, capacity.data_dimension):
        with pytest.raises(ValueError, match="constant, or zero"):
            refused(nothing)


@pytest.mark.parametrize(
    "table, message",
    [
        (holes(0.1), "x has NaN in 5 columns: choose missing="),
        (np.full((9, 2), np.inf), "x holds infinity"),
        (np.zeros((0, 3)), r"x has shape \(0, 3\): pass a table"),
        (np.zeros(3), r"x has shape \(3,\)"),
        (np.zeros((1, 3)), "x has 1 complete rows"),
        (np.zeros((3, 2), complex), "x has the complex dtype"),
        (np.array([["a", "b"], ["c", "d"]]), "x is no array of numbers: its dtype is <U1"),
        (np.array([[1, "b"], [2, "d"]], object), "x is no table of real numbers: could not"),
        ([[1.0, 2.0], [3.0]], "x is no table of real numbers: setting an array"),
        (scipy.sparse.eye(3), r"x is a sparse matrix: pass x.toarray\(\)"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        capacity.input_spectrum(table)


def test_times_of_a_data_frame_are_refused_and_not_read_as_nanoseconds():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(TABLE).assign(day=pandas.date_range("2020", periods=len(TABLE)))
    with pytest.raises(ValueError, match=r"x has columns of times, \['day'\]"):
        capacity.input_spectrum(frame)
    assert capacity.input_spectrum(frame.drop(columns="day")).p == TABLE.shape[1]


def test_no_column_is_taken_for_constant_because_its_squares_are_lost():
    assert capacity.input_spectrum(TABLE * 10.0 ** -np.arange(5) * 1e-18).constant == 0


def test_holes_that_lie_in_one_block_leave_no_interval_and_one_line():
    late = TABLE.copy()
    late[:-1, 0] = np.nan
    found = capacity.input_spectrum(late, missing="pairwise")
    assert found.rank > 0
    assert np.isnan(capacity.jackknife(found, lambda s: s.values[0]).low)
    with pytest.raises(ValueError, match="without one block of rows two columns have no row"):
        capacity.data_dimension(found)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("table", [TABLE, TABLE[:4], holes(0.1)])
def test_squares_beyond_the_dtype_are_refused(table, scale):
    with pytest.raises(ValueError, match="whose squares float32 lacks"):
        capacity.input_spectrum(table * scale, missing="pairwise", blocks=0)


def test_columns_that_never_meet_are_refused():
    apart = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, 1.0], [np.nan, 3.0]])
    with pytest.raises(ValueError, match="no row in common"):
        capacity.input_spectrum(apart, missing="pairwise")
    with pytest.raises(ValueError, match="a column of nothing but NaN"):
        capacity.input_spectrum(apart[:2], missing="pairwise")


def test_the_jackknife_covers_the_truth_as_often_as_it_says():
    """300 tables of 160 rows with variances 4 and 1, in 16 blocks."""
    tables = np.random.default_rng(2).normal(size=(300, 160, 2)) * [2, 1]
    by_block = tables.reshape(300, 16, 10, 2)
    grams = np.einsum("tbni,tbnj->tbij", by_block, by_block)
    total = grams.sum(axis=1)
    values = np.linalg.eigvalsh(total / 160)[:, ::-1]
    without = np.linalg.eigvalsh((total[:, None] - grams) / 150)[..., ::-1]
    model = capacity.input_spectrum(tables[0])
    covered = {"top": 0, "decades": 0}
    for v, r in zip(values, without, strict=True):
        spectrum = model._replace(values=v, replicates=r)
        top = capacity.jackknife(spectrum, lambda s: s.values[0])
        ratio = capacity.jackknife(spectrum, lambda s: np.log10(s.values[0] / s.values[1]))
        covered["top"] += top.low < 4 < top.high
        covered["decades"] += ratio.low < np.log10(4) < ratio.high
    assert all(0.91 < hits / 300 < 0.98 for hits in covered.values()), covered


def test_an_interval_needs_blocks():
    with pytest.raises(ValueError, match="the spectrum has no blocks"):
        capacity.jackknife(capacity.input_spectrum(TABLE, blocks=0), lambda s: s.rank)


def test_planted_directions_stand_above_noise_and_noise_does_not():
    noise = np.random.default_rng(3).normal(size=(500, 100)) * 2
    planted = noise.copy()
    planted[:, :3] *= 4
    flat, spiked = (capacity.input_spectrum(t, blocks=0) for t in (noise, planted))
    known, guessed = capacity.above_noise(spiked, variance=4), capacity.above_noise(spiked)
    assert (known.above, guessed.above) == (3, 3)
    assert abs(known.edge - 4 * (1 + 0.2**0.5) ** 2) < 1e-12
    assert guessed.estimated and abs(guessed.variance / 4 - 1) < 0.1
    assert capacity.above_noise(flat, variance=4.5).above == 0


def test_nothing_below_the_floor_is_counted():
    values = 10.0 ** -np.arange(8)
    for tail in (values[6:], [0, -1e-7]):
        seen = np.concatenate([values[:6], tail])
        assert capacity.sloppiness(seen, floor=3e-6).rank == 6
        assert abs(capacity.sloppiness(seen, floor=3e-6).decades - 5) < 1e-6
        assert capacity.spread(seen, floor=3e-6).intrinsic < 1.11112
        found = capacity.effective_dimension(seen, n=1001, epsilon=2e-3, floor=3e-6)
        assert (found.value, found.at_most) == (6, 8)  # the threshold is 1e-6
        found = capacity.effective_dimension(seen, n=1001, epsilon=1.0, floor=3e-6)
        assert (found.value, found.at_most) == (4, 4)
    found = capacity.n_effective(values[:6], alpha=1e-3, floor=0.0)
    np.testing.assert_allclose(found, [3.4990010, 3.4990010], rtol=1e-6)
    with pytest.raises(ValueError, match="a floor of its own"):
        capacity.spread(capacity.input_spectrum(TABLE, blocks=0), floor=1.0)


def test_numbers_out_of_range_and_values_that_are_nan_count_nothing():
    values = np.array([1.0, 0.1, 0.01])
    for epsilon in (jnp.array(-1.0), jnp.array(jnp.nan), np.array(-1.0)):
        assert np.isnan(capacity.effective_dimension(values, n=9, epsilon=epsilon)).all()
        assert np.isnan(capacity.n_effective(values, alpha=epsilon)).all()
    billions = capacity.effective_dimension(values, n=3_000_000_000, epsilon=jnp.array(1e9))
    assert billions.value == 1
    found = capacity.sloppiness(np.append(values, np.nan), floor=0.0)
    numbers = found._replace(rank=np.nan, first=np.nan, last=np.nan)
    assert np.isnan(numbers).all() and found.rank == 3


def test_numbers_may_be_arrays_of_no_axes():
    spectrum = capacity.input_spectrum(TABLE, centred=True)
    for number in (jnp.float32(2.0), np.array(2.0), np.float32(2.0)):
        assert capacity.above_noise(spectrum, variance=number).variance == 2.0
        found = capacity.data_dimension(spectrum, noise=number)
        assert found == capacity.data_dimension(spectrum, noise=2.0)
    with pytest.raises(ValueError, match=r"function gives \(5,\): return one number"):
        capacity.jackknife(spectrum, lambda s: s.values)


def test_look_at_the_data_before_choosing_the_size():
    table = np.random.default_rng(4).normal(size=(800, 12)) * 10.0 ** -np.arange(0, 3, 0.25)
    found = capacity.data_dimension(capacity.input_spectrum(table))
    exact = oracle(table)
    threshold = exact.mean() / 799
    assert found.determined.value == np.sum(exact > threshold) == 8
    assert found.determined.low <= 8 <= found.determined.high
    assert found.ninety.value == 3 and found.sizes == (3, 8)
    assert "800 rows determine about 8 " in str(found) and "sloppy" in found.says
    assert "cannot know" in found.cannot_know
    noisier = capacity.data_dimension(capacity.input_spectrum(table), noise=100.0)
    assert noisier.determined.value == np.sum(exact > 100 / 799)


@pytest.mark.parametrize("bad", [{"window": (0.9, 0.1)}, {"window": (-1, 1)}, {"window": 5}])
def test_a_window_is_two_shares(bad):
    with pytest.raises(ValueError, match="window="):
        capacity.sloppiness(jnp.ones(3), **bad)


def test_a_figure_draws_nothing_below_the_floor():
    table = np.random.default_rng(5).normal(size=(40, 6)) * 10.0 ** -np.arange(0, 12, 2)
    spectrum = capacity.input_spectrum(table)
    assert spectrum.rank < 6
    figure = plots.data_spectrum(
        spectrum, fall=capacity.sloppiness(spectrum), noise=capacity.above_noise(spectrum)
    )
    (ax,) = figure.axes
    assert all((np.asarray(line.get_ydata()) > float(spectrum.floor)).all() for line in ax.lines)
    assert ax.get_xlabel() and ax.get_ylabel()
    again = plots.data_spectrum(spectrum)
    assert plots.to_svg(again) == plots.to_svg(plots.data_spectrum(spectrum))
