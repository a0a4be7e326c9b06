"""The released FARMS code, where there is a checkout of it: its own estimator, in PyTorch.

`SPECTRAL_JAX_FARMS` names the folder `Image_Classification` of github.com/HUST-AI-HYZ/FARMS (read
at 8e07c3f); torch and pandas must be importable. Nothing of it is kept here.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

VARIABLE = "SPECTRAL_JAX_FARMS"
RULES = {"peak": "xmin_peak", "median": "median"}


def state() -> str:
    """Whether it is measured."""
    return "measured" if os.environ.get(VARIABLE) else f"not measured: {VARIABLE} is not set"


def estimator(
    matrices: Sequence[np.ndarray], rule: str, window: int, per_axis: int
) -> Callable[[], np.ndarray] | None:
    """A call that gives the exponents of linear ``[m, n]`` and square ``[positions, m, n]`` layers.

    A kernel is cut into disjoint blocks there, whatever ``window`` and ``per_axis`` say: fewer
    windows than ours. None where the code is not here.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    sys.path.insert(0, folder)
    try:
        torch = importlib.import_module("torch")
        released = importlib.import_module("tempbalance_farms")
    finally:
        sys.path.remove(folder)
    torch.set_num_threads(1)
    found = released.Tempbalance_FARMS(
        torch.nn.Sequential(*(_layer(torch, matrix) for matrix in matrices)),
        pl_fitting=RULES[rule],
        use_sliding_window=True,
        num_row_samples=window,
        Q_ratio=1.0,
        sampling_ops_per_dim=per_axis,
        batchnorm=False,
    )

    def alphas() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its options at every call
            return np.array(found.net_esd_estimator(True)["alpha"])

    return alphas


def _layer(torch: Any, matrix: np.ndarray) -> Any:
    *positions, m, n = matrix.shape
    if not positions:
        layer, weight = torch.nn.Linear(n, m, bias=False), matrix
    else:
        side = round(positions[0] ** 0.5)
        layer = torch.nn.Conv2d(n, m, side, bias=False)
        weight = np.moveaxis(matrix.reshape(side, side, m, n), (0, 1), (2, 3))
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(weight))
    return layer
