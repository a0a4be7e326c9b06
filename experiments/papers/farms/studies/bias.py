"""What an exponent owes to the shape of a matrix and to its windows, on noise; trains nothing.

Noise of many shapes; convolutions as they are initialised; windows of many sizes and shapes.

Results: protocol ``bias``, arms ``noise/<shape>`` and ``conv/<shape>``, one seed per draw. The arm
``longest minus square`` compares the longest shape with the square of its short side, the arm
``all shapes`` the plain exponent with its closed form, on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import tails

Shape = tuple[int, ...]
# Kernels of the released code's kind, [out, in, height, width].
CONVOLUTIONS: tuple[Shape, ...] = (
    (64, 3, 3, 3), (128, 64, 3, 3), (96, 64, 3, 3), (64, 1, 3, 3), (256, 512, 1, 1),
)  # fmt: skip


def measure(
    run: Run,
    *,
    shapes: Sequence[Shape],
    draws: int,
    window: int,
    samples: int,
    ablation: Mapping[str, Any],
) -> Results:
    """All of it; the exponents by window are kept as the array ``ablation``."""
    run.save_array("ablation", alphas=window_grid(**ablation),
                   **{name: ablation[name] for name in ("shape", "windows", "ratios")})  # fmt: skip
    found = noise(shapes, draws, window, samples)
    short, long = max(found, key=lambda shape: (shape[1] / shape[0], shape[0]))
    bias = {
        kind: found[short, long][kind] - found[short, short][kind] for kind in found[short, long]
    }
    off = [numbers["plain"] - tails.null_alpha(shape).mean for shape, numbers in found.items()]
    arms = {f"noise/{name(shape)}": numbers for shape, numbers in found.items()}
    arms |= {
        f"conv/{name(shape)}": numbers for shape, numbers in convolutions(max(draws, 16)).items()
    }
    arms["longest minus square"] = bias
    arms["all shapes"] = {"plain minus closed form": np.mean(off, axis=0)}
    return merge(of_arrays("bias", arm, numbers) for arm, numbers in arms.items())


def noise(
    shapes: Sequence[Shape], draws: int, window: int, samples: int
) -> dict[Shape, dict[str, np.ndarray]]:
    """Plain and FARMS exponents of Gaussian matrices, ``[draws]``."""
    plain, farms = [], []
    for shape in shapes:
        matrices = _gaussian(draws, shape)
        plain.append(spectra(matrices))
        cut = partial(tails.farms_windows, window=window, samples=samples)
        farms.append(_pooled(spectra(jax.vmap(cut)(matrices))))
    pairs = zip(shapes, exponents(plain), exponents(farms), strict=True)
    return {tuple(shape): {"plain": one, "farms": other} for shape, one, other in pairs}


def convolutions(draws: int) -> dict[Shape, dict[str, np.ndarray]]:
    """Exponents of convolutions at Gaussian initialisation, ``[draws]``.

    ``plain`` pools the slices; ``blocks`` is the released FARMS code, disjoint blocks and the mean
    of their exponents; ``windows`` slides over the slices and fits once.
    """
    plain, blocks, windows = [], [], []
    for o, i, height, width in CONVOLUTIONS:
        kernels = _gaussian(draws, (height * width, i, o))
        plain.append(_pooled(spectra(kernels)))
        released = partial(tails.farms_windows, window=1, paper_compat={"conv_blocks"})
        values = spectra(jax.vmap(released)(kernels))
        blocks.append(exponents([values.reshape(*values.shape[:2], -1)])[0].mean(axis=-1))
        cut = partial(tails.farms_windows, window=100, samples=5)
        windows.append(_pooled(spectra(jax.vmap(cut)(kernels))))
    rows = zip(CONVOLUTIONS, exponents(plain), blocks, exponents(windows), strict=True)
    kinds = ("plain", "blocks", "windows")
    return {shape: dict(zip(kinds, found, strict=True)) for shape, *found in rows}


def window_grid(
    shape: tuple[int, int],
    windows: Sequence[int],
    ratios: Sequence[float],
    draws: int,
    placements: int,
) -> np.ndarray:
    """Exponents of noise by columns per row and window, ``[ratios, windows, draws, placements]``.

    As many windows as would tile the matrix, placed at random.
    """
    matrices = _gaussian(draws, shape)
    spectra = []
    for ratio in ratios:
        for window in windows:
            tiles = max(1, round(matrices[0].size / (window * int(window * ratio))))
            spectra.append(placed_spectra(matrices, window, ratio, tiles, placements))
    return exponents(spectra).reshape(len(ratios), len(windows), draws, placements)


def placed_spectra(
    matrices: jax.Array, window: int, cols_per_row: float, samples: int, placements: int
) -> np.ndarray:
    """FARMS' pooled spectra for random placements of its windows, ``[matrices, placements, N]``."""
    values = spectra(_placed_windows(matrices, window, cols_per_row, samples, placements))
    return values.reshape(len(matrices), placements, -1)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _placed_windows(matrices, window, cols_per_row, samples, placements):
    def cut(matrix, key):
        return tails.farms_windows(
            matrix,
            window=window,
            cols_per_row=cols_per_row,
            samples=samples,
            key=key,
            scheme="random",
        )

    keys = jax.random.split(jax.random.key(1), placements)
    return jax.vmap(lambda matrix: jax.vmap(partial(cut, matrix))(keys))(matrices)


def exponents(spectra: Sequence[Any]) -> np.ndarray:
    """Hill exponents of spectra ``[..., N]`` of several lengths; zeros pad them to one program."""
    spectra = [np.asarray(values) for values in spectra]
    longest = max(values.shape[-1] for values in spectra)
    padded = np.zeros((len(spectra), *spectra[0].shape[:-1], longest), np.float32)
    for row, values in zip(padded, spectra, strict=True):
        row[..., : values.shape[-1]] = values
    return np.asarray(tails.hill_alpha(jnp.asarray(padded)))


def spectra(matrices: Any) -> np.ndarray:
    """Squared singular values of a batch, by NumPy: dozens of shapes, of which none is compiled."""
    return np.linalg.svd(np.asarray(matrices), compute_uv=False) ** 2


def _pooled(spectra: np.ndarray) -> np.ndarray:
    return spectra.reshape(len(spectra), -1)


def _gaussian(draws: int, shape: tuple[int, ...]) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((draws, *shape), np.float32))


def name(shape: Sequence[int]) -> str:
    """``128x512``."""
    return "x".join(map(str, shape))
