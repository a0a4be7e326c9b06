"""The same numbers by other libraries, as their own examples compute them; on one thread.

None of them is needed, nor comes with `pip install`: a row whose peer is not there says so. What
was measured is neural_collapse (rhubarbwu/neural-collapse at c05a0b8), ckatorch 1.0.3, pytorch-cka
1.1.3, reptrix (BARL-SSL/reptrix at dbf53c5), and the JAX part of stable-pretraining 0.1.8.
"""

import contextlib
import importlib
import io
import warnings
from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks.features.rows import Rows

MISSING = "not installed"
BATCH = 1000


@lru_cache
def have(name: str) -> bool:
    """Whether it can be imported; quietly, for some of them talk as they load."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(name)
        except Exception:  # whatever a library that is half there may raise
            return False
    return True


def collapse(rows: Rows, *, agreement: bool = True) -> dict[str, float]:
    """Neural collapse by the accumulators of neural_collapse, in as many passes as they take."""
    from neural_collapse import accumulate, measure
    from neural_collapse.kernels import kernel_stats, log_kernel

    x, y, w = _tensors(rows)
    sizes = rows.classes, x.shape[1]
    means, centre = _means(rows)
    spreads_of = accumulate.VarNormAccumulator(*sizes, M=means)
    within_of = accumulate.CovarAccumulator(*sizes, M=means)
    for batch in _batches(len(x)):
        spreads_of.accumulate(x[batch], y[batch], means)
        within_of.accumulate(x[batch], y[batch], means)
    within, spreads = within_of.compute(), spreads_of.compute()[0]
    found = {
        "nc1": measure.covariance_ratio(within, means, centre),
        "nc1_quotient": measure.covariance_ratio(within, means, centre, "quotient"),
        "nc1_cdnv": measure.variability_cdnv(spreads, means, tile_size=64),
        "nc2": measure.simplex_etf_error(means, centre),
        "gnc2": kernel_stats(means, centre, kernel=log_kernel, tile_size=64)[1],
        "nc3": measure.self_duality_error(w, means, centre),
        "unc3": measure.similarities(w, means, centre, cos=True).var(correction=0).item(),
    }
    if agreement:
        agreed = accumulate.DecAccumulator(*sizes, M=means, W=w)
        for batch in _batches(len(x)):
            agreed.accumulate(x[batch], y[batch], w, means)
        found["nc4"] = 1 - measure.clf_ncc_agreement(agreed)
    return found


def variance_of_products(rows: Rows) -> float:
    """UNC3 as the example of neural_collapse has it."""
    from neural_collapse import measure

    return float(measure.similarities(_tensors(rows)[2], *_means(rows)).var())


def collapse_svd(rows: Rows) -> float:
    """NC1 by as many directions as there are classes, less one."""
    from neural_collapse import accumulate, measure

    x, y, _ = _tensors(rows)
    means, centre = _means(rows)
    within_of = accumulate.CovarAccumulator(rows.classes, x.shape[1], M=means)
    within_of.accumulate(x, y, means)
    return float(measure.covariance_ratio(within_of.compute(), means, centre, "svd"))


def _tensors(rows: Rows) -> tuple[Any, Any, Any]:
    """Features, labels, and the head's vectors as rows."""
    import torch

    torch.set_num_threads(1)
    arrays = rows.features, rows.labels.astype(np.int64), rows.kernel.T.copy()
    return tuple(torch.from_numpy(each) for each in arrays)


def _means(rows: Rows) -> tuple[Any, Any]:
    """Class means and the mean of these, by a pass of neural_collapse."""
    from neural_collapse.accumulate import MeanAccumulator

    x, y, _ = _tensors(rows)
    means_of = MeanAccumulator(rows.classes, x.shape[1])
    for batch in _batches(len(x)):
        means_of.accumulate(x[batch], y[batch])
    return means_of.compute()


def _batches(n: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, n, BATCH)]


def cka_by_grams(x: np.ndarray, y: np.ndarray, **options: Any) -> float:
    """By ckatorch, from two ``n x n`` matrices in float64."""
    import ckatorch
    import torch

    torch.set_num_threads(1)
    return float(ckatorch.cka_base(torch.from_numpy(x), torch.from_numpy(y), **options))


def cka_cut_off(x: np.ndarray, y: np.ndarray) -> float:
    """By pytorch-cka, which has the unbiased form alone and cuts it off at 0."""
    import cka
    import torch

    torch.set_num_threads(1)
    return float(cka.cka_from_features(torch.from_numpy(x), torch.from_numpy(y)))


def reptrix_rankme(x: np.ndarray) -> float:
    import torch
    from reptrix.rankme import get_rankme

    return float(get_rankme(torch.from_numpy(x)))


def reptrix_alpha(x: np.ndarray) -> float:
    """The exponent, over ranks 11 to 100."""
    import torch
    from reptrix.alpha import get_alpha

    return float(get_alpha(torch.from_numpy(x))[0])


def reptrix_lidar(x: np.ndarray, labels: np.ndarray) -> float:
    """Of rows that stand class by class, all classes having as many."""
    import torch
    from reptrix.lidar import get_lidar

    classes = len(set(labels))
    return float(get_lidar(torch.from_numpy(x), classes, len(labels) // classes))


def stable_rankme(x: np.ndarray) -> float:
    """By the JAX part of stable-pretraining, as is the next one."""
    from stable_pretraining.jax.callbacks.rankme import rankme

    return float(rankme(x))


def stable_lidar(x: np.ndarray, labels: np.ndarray) -> float:
    from stable_pretraining.jax.callbacks.lidar import lidar

    return float(lidar(x, labels))
