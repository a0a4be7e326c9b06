"""What an exponent owes to the shape of a matrix and to its windows; trains nothing.

Three measurements: noise of many shapes; convolutions as they are initialised; windows of many
sizes and shapes on noise and, where their files are, on the trained networks of `pretrained/`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from experiments.claims import Claim, Judged, judge
from experiments.report import Picture, Section, Table
from experiments.runs import Run
from experiments.runs.study import study
from spectral_jax import plots, tails, weights
from spectral_jax.plots import farms as figures

SHEET = "our measurement before this repository"
PAPER = "arXiv 2506.06280"
RELEASED = "HUST-AI-HYZ/FARMS@8e07c3f, one draw"

# Kernels of the released code's kind, [out, in, height, width], and what it says of them at
# Gaussian initialisation (mean and standard deviation over draws): plain, then FARMS.
CONVOLUTIONS: dict[tuple[int, int, int, int], tuple[tuple[float, float], tuple[float, float]]] = {
    (64, 3, 3, 3): ((6.44, 1.08), (2.071, 0.055)),
    (128, 64, 3, 3): ((2.697, 0.028), (2.117, 0.015)),
    (96, 64, 3, 3): ((2.444, 0.023), (2.117, 0.021)),
    (64, 1, 3, 3): ((11.8, 5.9), (2.32, 0.11)),
    (256, 512, 1, 1): ((2.721, 0.022), (2.130, 0.009)),
}
# Plain exponent of Gaussian matrices: mean and standard deviation over 40 draws.
NOISE = {
    (64, 64): (2.150, 0.054),
    (128, 128): (2.140, 0.026),
    (256, 256): (2.128, 0.0135),
    (128, 512): (3.479, 0.057),
    (256, 2048): (4.481, 0.044),
}
# One draw of the released code on 512 x n: plain, and FARMS with windows of 128.
ONE_DRAW = {
    (512, 512): (2.1246, 2.1203),
    (512, 768): (2.4709, 2.1230),
    (512, 1024): (2.7174, 2.1160),
    (512, 2048): (3.4610, 2.1204),
    (512, 4096): (4.4915, 2.1117),
}
# Kernels with fewer singular values are not balanced (TempBalance).
LEAST_VALUES = 50
WINDOWS_PER_SLICE = 9
_SMALL: dict[str, Any] = {
    "shapes": [*ONE_DRAW, (512, 1536), (512, 3072), *NOISE],
    "draws": 12,
    "window": 128,
    "samples": 5,
    "ablation": {
        "shape": (128, 512),
        "windows": (16, 32, 64, 128),
        "ratios": (0.5, 0.75, 1.0, 1.25, 1.5),
        "draws": 10,
        "placements": 5,
    },
    "layers": {"windows": (8, 16), "ratios": (0.5, 1.0, 1.5), "placements": 5},
    "networks": ("resnet20_cifar10", "resnet32_cifar10"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "smoke": {
        "shapes": [*((128, n) for n in (128, 192, 256, 384, 512, 1024)), (64, 64)],
        "draws": 12,
        "window": 64,
        "samples": 5,
        "ablation": {
            "shape": (64, 256),
            "windows": (16, 32),
            "ratios": (0.5, 1.0),
            "draws": 10,
            "placements": 5,
        },
        "layers": _SMALL["layers"],
        "networks": (),
    },
    "small": _SMALL,
    "paper": _SMALL,
}


def run(preset: str, *, root: str | Path) -> Run:
    """The measurements of a preset, made or found."""
    options = OPTIONS[preset]
    files = {name: path for name in options["networks"] if (path := _file(name)).is_file()}
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()]
    present = {**options, "networks": list(files)}
    return study("farms/bias", measure, options=present, root=root, data_sha256=" ".join(digests))


def measure(
    run: Run,
    *,
    shapes: Sequence[tuple[int, int]],
    draws: int,
    window: int,
    samples: int,
    ablation: Mapping[str, Any],
    layers: Mapping[str, Any],
    networks: Sequence[str],
) -> dict[str, Any]:
    """Measure and keep all of it; the summary says on what grids, and on which networks."""
    run.save_array("shapes", shapes=shapes, **noise(shapes, draws, window, samples))
    run.save_array("convolutions", **convolutions(max(draws, 16)))
    run.save_array("ablation", alphas=window_grid(**ablation))
    for name in networks:
        run.save_array(f"layers-{name}", **trained_layers(name, **layers))
    return {"networks": list(networks), "ablation": dict(ablation), "layers": dict(layers)}


def noise(
    shapes: Sequence[tuple[int, int]], draws: int, window: int, samples: int
) -> dict[str, np.ndarray]:
    """Plain and FARMS exponents of Gaussian matrices, ``[shapes, draws]``."""
    plain, farms = [], []
    for shape in shapes:
        matrices = _gaussian(draws, shape)
        plain.append(_spectra(matrices))
        cut = partial(tails.farms_windows, window=window, samples=samples)
        farms.append(_pooled(_spectra(jax.vmap(cut)(matrices))))
    return {"plain": exponents(plain), "farms": exponents(farms)}


def convolutions(draws: int) -> dict[str, np.ndarray]:
    """Exponents of convolutions at Gaussian initialisation, ``[kernels, draws]``.

    ``plain`` pools the slices; ``blocks`` is the released FARMS code, disjoint blocks and the mean
    of their exponents; ``windows`` slides over the slices and fits once.
    """
    plain, blocks, windows = [], [], []
    for o, i, height, width in CONVOLUTIONS:
        kernels = _gaussian(draws, (height * width, i, o))
        plain.append(_pooled(_spectra(kernels)))
        released = partial(tails.farms_windows, window=1, paper_compat={"conv_blocks"})
        values = _spectra(jax.vmap(released)(kernels))
        blocks.append(exponents([values.reshape(*values.shape[:2], -1)])[0].mean(axis=-1))
        cut = partial(tails.farms_windows, window=100, samples=5)
        windows.append(_pooled(_spectra(jax.vmap(cut)(kernels))))
    return {"plain": exponents(plain), "blocks": np.stack(blocks), "windows": exponents(windows)}


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


def trained_layers(
    name: str, windows: Sequence[int], ratios: Sequence[float], placements: int
) -> dict[str, np.ndarray]:
    """Every metric on the layers of a trained network that could be balanced.

    ``plain``, ``null`` and ``debiased`` ``[layers]``; ``farms`` ``[ratios, windows, layers,
    placements]``.
    """
    from models.pretrained import load_pretrained

    found = weights.matrices(load_pretrained(name, _file(name)).params)
    kernels = {
        layer: kernel.matrix
        for layer, kernel in found.items()
        if kernel.matrix.size // max(kernel.matrix.shape[-2:]) >= LEAST_VALUES
    }
    plain = exponents([_spectra(kernel).ravel() for kernel in kernels.values()])
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


def placed_spectra(
    matrices: jax.Array, window: int, cols_per_row: float, samples: int, placements: int
) -> np.ndarray:
    """FARMS' pooled spectra for random placements of its windows, ``[matrices, placements, N]``."""
    values = _spectra(_placed_windows(matrices, window, cols_per_row, samples, placements))
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


def _spectra(matrices: Any) -> np.ndarray:
    """Squared singular values of a batch, by NumPy: dozens of shapes, of which none is compiled."""
    return np.linalg.svd(np.asarray(matrices), compute_uv=False) ** 2


def _pooled(spectra: np.ndarray) -> np.ndarray:
    return spectra.reshape(len(spectra), -1)


def _gaussian(draws: int, shape: tuple[int, ...]) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((draws, *shape), np.float32))


def _file(network: str) -> Path:
    return Path(os.environ.get("SPECTRAL_JAX_DATA", "")) / "pretrained" / f"{network}.npz"


def claims(run: Run, command: str) -> list[Judged]:
    """What the sheet and the paper say of these measurements, and whether it is so."""
    rows = [*_noise_claims(run), *_convolution_claims(run)]
    return [judge(claim, evidence, command=command) for claim, evidence in rows]


def section(run: Run, folder: Path) -> Section:
    """Figures and tables of the measurements; each figure is a file in ``folder`` as well."""
    pictures = {"shape-bias": _shape_bias(run), "windows": _windows(run)}
    for network in run.summary["networks"]:
        pictures[f"agreement-{network}"] = _agreement(run, network)
    for name, picture in pictures.items():
        plots.save(picture.figure, folder / name)
    tables = [_noise_table(run), _convolution_table(run)]
    tables += [_layers_table(run, network) for network in run.summary["networks"]]
    return Section("Shape bias and windows", figures=list(pictures.values()), tables=tables)


def _noise_claims(run: Run) -> list[tuple[Claim, Any]]:
    stored = _stored(run, "shapes")
    plain, farms = _by_shape(stored, "plain"), _by_shape(stored, "farms")
    square, longest = _extremes(plain)
    nulls = np.array([tails.null_alpha(shape).mean for shape in plain])
    rows: list[tuple[Claim, Any]] = [
        (
            Claim(
                id="bias-plain",
                text=f"the plain exponent of noise grows with the aspect ratio "
                f"({_name(longest)} minus {_name(square)})",
                source=PAPER,
                origin="published",
                direction=1,
            ),
            plain[longest] - plain[square],
        ),
        (
            Claim(
                id="bias-farms",
                text=f"that of FARMS does not ({_name(longest)} minus {_name(square)})",
                source=PAPER,
                origin="published",
                value=0.0,
                tolerance=0.03,
                difference="the tolerance is ours: one hundredth of the plain bias",
            ),
            farms[longest] - farms[square],
        ),
        (
            Claim(
                id="bias-closed-form",
                text="the closed form with its 1/N term is the mean exponent of noise "
                "(plain minus closed form, mean over shapes)",
                source="spectral_jax.tails.null_alpha",
                origin="our reference",
                value=0.0,
                tolerance=0.02,
            ),
            np.mean([plain[s] - null for s, null in zip(plain, nulls, strict=True)], axis=0),
        ),
    ]
    for shape, (mean, deviation) in NOISE.items():
        claim = Claim(
            id=f"noise-{_name(shape)}",
            text=f"plain exponent of {_name(shape)} noise",
            source=SHEET,
            origin="our reference",
            value=mean,
            tolerance=deviation,
            difference="our mean of draws, held to their standard deviation for one",
            cost="preset small",
        )
        rows.append((claim, plain.get(shape)))
    return [*rows, *_one_draw_claims(plain, farms)]


def _one_draw_claims(plain: dict, farms: dict) -> list[tuple[Claim, Any]]:
    rows = []
    for shape, values in ONE_DRAW.items():
        tolerances = 4 * tails.null_alpha(shape).deviation, 0.03
        measured = plain.get(shape), farms.get(shape)
        for kind, value, tolerance, evidence in zip(
            ("plain", "FARMS"), values, tolerances, measured, strict=True
        ):
            claim = Claim(
                id=f"released-{kind.lower()}-{_name(shape)}",
                text=f"{kind} exponent of {_name(shape)} noise",
                source=RELEASED,
                origin="released code",
                value=value,
                tolerance=round(tolerance, 4),
                difference="mean of draws instead of one; windows of 128 on our grid",
                cost="preset small",
            )
            rows.append((claim, evidence))
    return rows


def _convolution_claims(run: Run) -> list[tuple[Claim, Any]]:
    stored = _stored(run, "convolutions")
    rows = []
    for place, (shape, references) in enumerate(CONVOLUTIONS.items()):
        for kind, name, (mean, deviation) in zip(
            ("plain", "blocks"), ("TempBalance", "FARMS"), references, strict=True
        ):
            claim = Claim(
                id=f"conv-{_name(shape)}-{kind}",
                text=f"{name} exponent of a Gaussian {_name(shape)} convolution",
                source=SHEET,
                origin="our reference",
                value=mean,
                tolerance=deviation,
                difference="our mean of draws, held to the standard deviation of one",
            )
            rows.append((claim, stored[kind][place]))
    return rows


def _shape_bias(run: Run) -> Picture:
    stored = _stored(run, "shapes")
    short = stored["shapes"][:, 0]
    family = short == np.bincount(short).argmax()
    aspects = stored["shapes"][family, 1] / short[family]
    order = np.argsort(aspects)
    alphas = {
        "plain (TempBalance)": stored["plain"][family][order],
        "FARMS": stored["farms"][family][order],
    }
    x = np.geomspace(1, aspects.max(), 100)
    law = x, np.array([tails.marchenko_pastur_alpha(1 / aspect) for aspect in x])
    caption = (
        f"Exponents of Gaussian matrices with a short side of {short[family][0]}. What the plain "
        "one measures here is the shape alone; the closed form knows it without a measurement."
    )
    return Picture(figures.shape_bias(aspects[order], alphas, law=law), caption)


def _windows(run: Run) -> Picture:
    options = run.summary["ablation"]
    alphas = _stored(run, "ablation")["alphas"]
    named = {
        f"columns / rows = {ratio:g}": values
        for ratio, values in zip(options["ratios"], alphas, strict=True)
    }
    caption = (
        f"FARMS on {_name(options['shape'])} noise with as many windows as tile it, placed at "
        "random. Left: a window has the bias of its own shape. Right: how much of an exponent is "
        "due to where its windows fell."
    )
    return Picture(figures.window_ablation(np.array(options["windows"]), named), caption)


def _agreement(run: Run, network: str) -> Picture:
    stored, grid = _stored(run, f"layers-{network}"), run.summary["layers"]
    metrics = {name: stored[name] for name in ("plain", "null", "debiased")}
    metrics |= {
        f"FARMS {window}, {ratio:g}": stored["farms"][i, j].mean(axis=-1)
        for i, ratio in enumerate(grid["ratios"])
        for j, window in enumerate(grid["windows"])
    }
    values = np.stack(list(metrics.values()), axis=1)
    correlation = spearmanr(values, nan_policy="omit").statistic
    caption = (
        f"{network}: do the metrics rank its {len(values)} layers alike? 'null' knows the shapes "
        "only; 'FARMS w, r' has windows of w rows and r columns per row."
    )
    labels = ["shape alone" if name == "null" else name for name in metrics]
    return Picture(figures.rank_agreement(labels, np.asarray(correlation)), caption)


def _noise_table(run: Run) -> Table:
    stored = _stored(run, "shapes")
    plain, farms = _by_shape(stored, "plain"), _by_shape(stored, "farms")
    rows = []
    for shape in sorted(plain, key=lambda shape: (shape[0], shape[1])):
        null = tails.null_alpha(shape)
        rows.append(
            {
                "shape": _name(shape),
                "closed form, infinite size": f"{null.limit:.4f}",
                "closed form, this size": f"{null.mean:.4f} ± {null.deviation:.4f}",
                "plain": _spread(plain[shape]),
                "FARMS": _spread(farms[shape]),
                "plain, debiased": _spread(plain[shape] - null.mean),
            }
        )
    draws = stored["plain"].shape[1]
    return Table(f"Exponents of noise: mean ± standard deviation of {draws} draws", rows)


def _convolution_table(run: Run) -> Table:
    stored = _stored(run, "convolutions")
    titles = {"plain": "TempBalance", "blocks": "FARMS as released", "windows": "FARMS, sliding"}
    rows = [
        {
            "kernel (out, in, height, width)": _name(shape),
            **{title: _spread(stored[kind][place]) for kind, title in titles.items()},
        }
        for place, shape in enumerate(CONVOLUTIONS)
    ]
    draws = stored["plain"].shape[1]
    return Table(f"Convolutions as initialised: mean ± standard deviation of {draws} draws", rows)


def _layers_table(run: Run, network: str) -> Table:
    stored, grid = _stored(run, f"layers-{network}"), run.summary["layers"]
    rows = []
    for i, ratio in enumerate(grid["ratios"]):
        for j, window in enumerate(grid["windows"]):
            placed = stored["farms"][i, j]
            own, mean = placed.std(axis=-1, ddof=1), placed.mean(axis=-1)
            rows.append(
                {
                    "rows of a window": f"{window}",
                    "columns per row": f"{ratio:g}",
                    "sd over placements, mean of layers": f"{np.nanmean(own):.3f}",
                    "sd over layers": f"{np.nanstd(mean, ddof=1):.3f}",
                    "rank correlation with plain": f"{_rank(mean, stored['plain']):.2f}",
                    "with debiased": f"{_rank(mean, stored['debiased']):.2f}",
                    "with the shape alone": f"{_rank(mean, stored['null']):.2f}",
                }
            )
    caption = (
        f"{network}, {len(stored['plain'])} layers: the spread of FARMS' exponent over where its "
        f"{WINDOWS_PER_SLICE} windows per slice fall, beside what it is to tell apart"
    )
    return Table(caption, rows)


def _stored(run: Run, name: str) -> dict[str, np.ndarray]:
    stored = run.load_array(name)
    assert stored is not None, name
    return stored


def _by_shape(stored: Mapping[str, np.ndarray], kind: str) -> dict[tuple[int, ...], np.ndarray]:
    return {
        tuple(shape): values
        for shape, values in zip(stored["shapes"].tolist(), stored[kind], strict=True)
    }


def _extremes(shapes: Mapping[tuple[int, ...], Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The longest shape, and the square with its short side."""
    longest = max(shapes, key=lambda shape: (shape[1] / shape[0], shape[0]))
    return (longest[0], longest[0]), longest


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b, nan_policy="omit").statistic)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"


def _name(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
