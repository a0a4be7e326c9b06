"""Every metric on the layers of networks that other people have trained; trains nothing.

The array of a network holds ``plain``, ``null`` and ``debiased`` exponents ``[layers]``, and those
of FARMS ``[ratios, windows, layers, placements]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.data.files import path_of
from experiments.papers.farms.studies.bias import exponents, placed_spectra, spectra
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from models.pretrained import load_pretrained
from spectral_jax import tails, weights

# Kernels with fewer singular values are not balanced (TempBalance).
LEAST_VALUES = 50
WINDOWS_PER_SLICE = 9


def measure(
    run: Run,
    *,
    networks: Sequence[str],
    windows: Sequence[int],
    ratios: Sequence[float],
    placements: int,
) -> Results:
    """How far FARMS' exponent of a layer depends on where its windows fall, and layers differ."""
    found = []
    for network in networks:
        stored = trained_layers(network, windows, ratios, placements)
        run.save_array(network, **stored, windows=windows, ratios=ratios)
        placed = stored["farms"]
        numbers = {
            f"windows of {window}, {ratio:g}/{what}": [np.nanmean(value)]
            for i, ratio in enumerate(ratios)
            for j, window in enumerate(windows)
            for what, value in (
                ("sd over placements", placed[i, j].std(axis=-1, ddof=1)),
                ("sd over layers", np.nanstd(placed[i, j].mean(axis=-1), ddof=1)),
            )
        }
        found.append(of_arrays("layers", network, numbers))
    return merge(found)


def trained_layers(
    network: str, windows: Sequence[int], ratios: Sequence[float], placements: int
) -> dict[str, np.ndarray]:
    """Every metric on the layers of a trained network that could be balanced.

    ``plain``, ``null`` and ``debiased`` ``[layers]``; ``farms`` ``[ratios, windows, layers,
    placements]``.
    """
    found = weights.matrices(load_pretrained(network, path_of(f"pretrained/{network}.npz")).params)
    kernels = {
        layer: kernel.matrix
        for layer, kernel in found.items()
        if kernel.matrix.size // max(kernel.matrix.shape[-2:]) >= LEAST_VALUES
    }
    plain = exponents([spectra(kernel).ravel() for kernel in kernels.values()])
    null = np.array([tails.null_alpha(kernel.shape).mean for kernel in kernels.values()])
    placed = [
        placed_spectra(kernel[None], window, ratio, WINDOWS_PER_SLICE, placements)[0]
        for ratio in ratios
        for window in windows
        for kernel in kernels.values()
    ]
    farms = exponents(placed).reshape(len(ratios), len(windows), len(kernels), placements)
    return {
        "names": np.array(list(kernels)),
        "plain": plain,
        "null": null,
        "debiased": plain - null,
        "farms": farms,
    }
