"""Are the spectra of data sets sloppy? A sharp drop, then small values even over many decades.

Second moments of the inputs, about zero as in the source and about their mean, in float64, with
their floor. Arms ``<data set>/uncentred`` and ``<data set>/centred`` have one number each; arms
``uncentred`` and ``centred`` have one for each data set, in the order of the option. Arrays
``<data set>`` hold the eigenvalues.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments import data as datasets
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import capacity
from spectral_jax.linalg import moments

KINDS = {"uncentred": False, "centred": True}
WINDOW = 8  # characters of text that make one input
LEAST_DECADES = 3.0  # what an "exponentially large range" is at least, declared beforehand


def measure(run: Run, *, tables: Sequence[str], blocks: int) -> Results:
    """Every data set; ``blocks`` of rows are left out in turn for the intervals."""
    told = {name: _told(run, name, blocks) for name in tables}
    found = [
        of_arrays("spectra", f"{name}/{kind}", {k: [v] for k, v in of_kind.items()})
        for name, kinds in told.items()
        for kind, of_kind in kinds.items()
    ]
    for kind in KINDS:
        rows = [kinds[kind] for kinds in told.values()]
        found.append(of_arrays("spectra", kind, {k: [row[k] for row in rows] for k in rows[0]}))
    return merge(found)


def _told(run: Run, name: str, blocks: int) -> dict[str, dict[str, float]]:
    """Both spectra of a data set, in numbers; measured or found."""
    stored = run.load_array(name)
    if stored is None:
        stored = spectra(table(name), blocks)
        run.save_array(name, **stored)
    return {
        kind: {
            key.removeprefix(f"{kind}/"): float(value)
            for key, value in stored.items()
            if key.startswith(f"{kind}/") and value.ndim == 0
        }
        for kind in KINDS
    }


def spectra(x: np.ndarray, blocks: int) -> dict[str, np.ndarray]:
    """Eigenvalues, floor and sloppiness of a table, by kind; both kinds from one reading."""
    parts = np.array_split(x, blocks)
    states = [moments.update(moments.zero(x.shape[1]), part) for part in parts]
    found: dict[str, np.ndarray] = {}
    for kind, centred in KINDS.items():
        spectrum = capacity.input_spectrum(states, centred=centred)
        error = capacity.jackknife(spectrum, lambda s: capacity.sloppiness(s).decades)
        numbers = {
            **capacity.sloppiness(spectrum)._asdict(),
            "floor": spectrum.floor, "columns": x.shape[1], "top": spectrum.values[0],
            "decades/standard error": error.standard_error,
        }  # fmt: skip
        numbers["decades beyond"] = numbers["decades"] - LEAST_DECADES
        found |= {f"{kind}/{k}": np.asarray(v, float) for k, v in numbers.items()}
        found[f"{kind}/values"] = np.asarray(spectrum.values, float)
    return found


def table(name: str) -> np.ndarray:
    """A data set as a table, float32 ``[n, p]``: pixels from 0 to 1, genes, characters.

    ``reference digits`` are the 1,400 rows for which numbers were told before.
    """
    if name == "reference digits":
        return reference_digits()
    dataset = datasets.load(name, preprocessing="raw" if name == "tinyshakespeare" else "unit")
    if name == "tinyshakespeare":
        return one_hot(dataset.train_x.ravel(), dataset.classes)
    rows = dataset.train_x.reshape(len(dataset.train_x), -1).astype(np.float32)
    return rows * dataset.scale


def reference_digits() -> np.ndarray:
    """Rows of scikit-learn's digits, divided by 16."""
    from sklearn.datasets import load_digits

    rows = load_digits().data
    order = np.random.default_rng(0).permutation(len(rows))[:1400]
    return (rows[order] / 16).astype(np.float32)


def one_hot(tokens: np.ndarray, classes: int) -> np.ndarray:
    """Windows of text as a first layer sees them: one column for each character and place.

    >>> one_hot(np.arange(16) % 2, 2).shape
    (2, 16)
    """
    windows = tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW)
    return np.eye(classes, dtype=np.float32)[windows].reshape(len(windows), -1)
