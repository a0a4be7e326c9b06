"""Do we agree with WeightWatcher, metric by metric, on trained networks?"""

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.farms import networks, weightwatcher
from benchmarks.harness import NOTHING, Table
from spectral_jax.analysis.layers import Arrays, Layer, spectra
from spectral_jax.checkpoints import save_safetensors
from spectral_jax.tails import host
from spectral_jax.weights import plan

TOLERANCE = 1e-4
# WeightWatcher multiplies the slices of a convolution by sqrt(1/2) before it pools them.
CONVOLUTION = 0.5
SMALLEST = 1e-5  # eigenvalues up to here it does not fit
SMALL_SAMPLE = 20  # eigenvalues below which it has another estimator
FITTED = ("alpha", "D", "sigma", "xmin", "alpha_weighted", "log_alpha_norm")
# Its names for what we have under other ones, or with their logarithm taken.
SHARED = {
    "alpha": "alpha_ks",
    "D": "ks_distance",
    "sigma": "sigma",
    "xmin": "xmin",
    "norm": "norm",
    "log_norm": "log_norm",
    "spectral_norm": "spectral_norm",
    "log_spectral_norm": "log_spectral_norm",
    "stable_rank": "stable_rank",
    "entropy": "entropy",
    "matrix_rank": "rank",
    "alpha_weighted": "alpha_weighted",
    "log_alpha_norm": "log_alpha_norm",
}


class Size(NamedTuple):
    networks: tuple[str, ...]


FULL = Size(("resnet20", "resnet32", "resnet8", "autoencoder", "minilm"))
SMOKE = Size(("random",))


def agreement(size: Size) -> Table:
    """Largest relative difference of each shared metric, and what explains it."""
    header = ("network", "layers", *SHARED)
    rows = [_row(name, header) for name in size.networks]
    note = (
        f"WeightWatcher {weightwatcher.version() or 'is not installed here'}. Largest relative "
        f"difference over layers (target {TOLERANCE:g}), with its conventions put on our spectra: "
        "slices of a convolution times sqrt(1/2), eigenvalues up to 1e-5 left out of the fit. In "
        "brackets: layers beyond the target. Fits are compared where both choose the same xmin; "
        "the last column counts layers where they do not, and layers of fewer than 20 eigenvalues, "
        "for which WeightWatcher has another estimator (`paper_compat='weightwatcher'` of "
        "`tails.power_law_fit` is that one, and agrees with it)."
    )
    return Table("Agreement with WeightWatcher", note, rows, (*header, "another xmin, small"))


def _row(name: str, header: tuple[str, ...]) -> tuple[str, ...]:
    found = networks.load(name)
    if found is None or weightwatcher.version() is None:
        why = "no such file here" if found is None else "not installed"
        return (name, why, *[NOTHING] * (len(header) - 1))
    with tempfile.TemporaryDirectory() as folder:
        save_safetensors(Path(folder) / "model.safetensors", networks.torch_layout(found))
        theirs = weightwatcher.analyse(Path(folder))
    ours = {layer.view.name: layer for layer in _layers(networks.torch_layout(found))}
    pairs = [
        (_metrics(ours[_full_name(row["longname"], ours)]), row)
        for row in theirs
        if row["status"] == "success" and _full_name(row["longname"], ours) in ours
    ]
    large = [pair for pair in pairs if pair[1]["num_evals"] >= SMALL_SAMPLE]
    same = [pair for pair in large if _close(pair[0]["xmin"], pair[1]["xmin"], 1e-4)]
    cells = [
        _cell([(a[mine], b[their]) for a, b in (same if their in FITTED else pairs)])
        for their, mine in SHARED.items()
    ]
    others = f"{len(large) - len(same)}, {len(pairs) - len(large)}"
    return (name, f"{len(pairs)} of {len(ours)}", *cells, others)


def _full_name(longname: str, ours: dict[str, Layer]) -> str:
    return next((name for name in (f"{longname}.weight", longname) if name in ours), longname)


def _layers(arrays: dict[str, np.ndarray]) -> list[Layer]:
    shapes = {name: array.shape for name, array in arrays.items()}
    return list(spectra(Arrays(arrays), plan(shapes, framework="torch").views))


def _metrics(layer: Layer) -> dict[str, Any]:
    values, shape = layer.eigenvalues, layer.view.shape[-2:]
    values = values * (CONVOLUTION if layer.view.kind == "conv" else 1.0)
    kept = values[values > SMALLEST]
    fit = host.power_law_fit(kept)
    return (
        host.norms(values, shape)
        | {"rank": host.matrix_rank(values, shape)}
        | {"alpha_ks": fit.alpha, "ks_distance": fit.ks}
        | {"sigma": fit.standard_error, "xmin": fit.xmin}
        | host.alpha_norms(kept, fit.alpha)
    )


def _cell(pairs: list[tuple[float, float]]) -> str:
    differences = [_difference(a, b) for a, b in pairs]
    beyond = sum(difference > TOLERANCE for difference in differences)
    worst = f"{max(differences, default=math.nan):.1e}"
    return f"{worst} ({beyond})" if beyond else worst


def _difference(a: float, b: float) -> float:
    """Relative to theirs; infinite where one of the two has no number."""
    if math.isfinite(a) and math.isfinite(b):
        return abs(a - b) / max(abs(b), 1e-12)
    return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else math.inf


def _close(a: float, b: float, relative: float) -> bool:
    return abs(a - b) <= relative * abs(b)
