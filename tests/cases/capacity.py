"""capacity: numbers of a spectrum, against NumPy in float64."""

import numpy as np

from spectral_jax.capacity import effective_dimension, n_effective, sloppiness, spread
from spectral_jax.linalg.precision import working
from tests import draws
from tests.contract import Case, Degenerate, exempt, register

K = 8
HOST = "reads a table on the host, once: tests/test_data_spectra.py"


def eigenvalues(key, dtype):
    return (0.2 + draws.uniform(key, (K,), dtype),)


def eigenvalues_and_a_number(key, dtype):
    return (*eigenvalues(key, dtype), np.asarray(0.5, dtype))


def numbers(found):
    return found.decades, found.slope, found.r_squared, found.drop, found.effective_rank


def numbers_by_numpy(values):
    logs = np.sort(np.log10(values))[::-1]
    x, y = np.arange(1, 6), logs[1:6]  # (i + 1/2) / 8 between .1 and .7
    slope, start = np.polyfit(x, y, 1)
    explained = np.corrcoef(x, y)[0, 1] ** 2
    span, total = logs[0] - logs[-1], values.sum() / values.max()
    return span, slope, explained, logs[0] - start, total


register(
    Case(
        name="capacity.sloppiness",
        function=lambda values: sloppiness(values, window=(0.1, 0.7)),
        make_inputs=eigenvalues,
        oracle=numbers_by_numpy,
        select=numbers,
        tolerance={"float32": 2e-5, "float64": 1e-11},
        degree=0,
        degenerate={
            "zero": Degenerate(
                (np.zeros(K),),
                lambda found: int(found.rank) == 0 and bool(np.isnan(found.slope)),
                finite_gradient=False,
            ),
            "empty": Degenerate((np.zeros(0),), lambda found: int(found.rank) == 0, False),
            "one value": Degenerate(
                (np.array([2.0]),),
                lambda found: float(found.decades) == 0 and bool(np.isnan(found.slope)),
                finite_gradient=False,
            ),
            "equal": Degenerate((np.ones(K),), lambda found: float(found.slope) == 0, False),
            "NaN": Degenerate((np.full(K, np.nan),), lambda found: int(found.rank) == 0, False),
        },
    )
)
register(
    Case(
        name="capacity.effective_dimension",
        function=lambda values, epsilon: effective_dimension(
            values, n=2, epsilon=2 * working(epsilon)
        ),
        make_inputs=eigenvalues_and_a_number,
        oracle=lambda values, epsilon: (np.sum(values > epsilon), np.sum(values > epsilon)),
        degree=0,
        differentiable=False,
        degenerate={
            "zero": Degenerate((np.zeros(K), 1.0), lambda found: float(found.at_most) == 0),
            "NaN": Degenerate((np.full(K, np.nan), 1.0), lambda found: bool(np.isnan(found.value))),
        },
    )
)
register(
    Case(
        name="capacity.n_effective",
        function=lambda values, alpha: n_effective(values, alpha=alpha).value,
        make_inputs=eigenvalues_and_a_number,
        oracle=lambda values, alpha: np.sum(values / (values + alpha)),
        degree=0,
        degenerate={"zero": Degenerate((np.zeros(K), 1.0), lambda found: float(found) == 0)},
    )
)
register(
    Case(
        name="capacity.spread",
        function=spread,
        make_inputs=eigenvalues,
        oracle=lambda v: (
            v.sum() / v.max(),
            v.sum() ** 2 / (v**2).sum(),
            np.exp(-np.sum(v / v.sum() * np.log(v / v.sum()))),
        ),
        degree=0,
        degenerate={
            "zero": Degenerate((np.zeros(K),), lambda found: all(float(x) == 0 for x in found)),
            "NaN": Degenerate(
                (np.full(K, np.nan),),
                lambda found: all(bool(np.isnan(x)) for x in found),
                finite_gradient=False,
            ),
        },
    )
)
for name in ("input_spectrum", "jackknife", "above_noise", "data_dimension"):
    exempt(f"capacity.{name}", HOST)
