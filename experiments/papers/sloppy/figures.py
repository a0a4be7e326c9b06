"""The figures and tables of the report, from the results and what the runs stored."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from experiments.data.sloppy import decades
from experiments.papers.paper import Outcome
from experiments.papers.sloppy.protocols import TITLES
from experiments.papers.sloppy.studies.causal import CONTROLS, FEATURES
from experiments.papers.sloppy.studies.curvature import STAGES, numbers
from experiments.report.page import Picture, Section
from experiments.report.results import Results
from experiments.report.tables import Table, of_results
from experiments.runs import Run
from spectral_jax import plots
from spectral_jax.plots import sloppy as figures
from spectral_jax.plots.training import Curve

COLUMNS = {
    "test accuracy (%)": ("test/accuracy", 100.0),
    "train accuracy (%)": ("final_train/accuracy", 100.0),
    "test error (%)": ("test/error", 100.0),
    "train error (%)": ("train/error", 100.0),
}
BOUNDS = {
    "certified (%)": ("bound", 100.0),
    "risk taken as exact (%)": ("plug-in", 100.0),
    "risk (%)": ("risk", 100.0),
    "corrected risk (%)": ("risk bound", 100.0),
    "test error (%)": ("test/error", 100.0),
    "prior alone (%)": ("prior bound", 100.0),
    "test-set bound (%)": ("test-set bound", 100.0),
    "KL (nats)": ("kl", 1.0),
    "directions the data determine": ("dimension", 1.0),
    "distance": ("distance", 1.0),
}
TRAINED = {
    "certified (%)": ("bound", 100.0),
    "risk (%)": ("risk", 100.0),
    "test error (%)": ("test/error", 100.0),
    "chance (%)": ("chance", 100.0),
    "prior alone (%)": ("prior/bound", 100.0),
    "test-set bound (%)": ("held-out/bound", 100.0),
    "KL (nats)": ("kl", 1.0),
    "examples": ("n", 1.0),
}
FIRST = {
    **TRAINED,
    "SGD, train error (%)": ("sgd/train/error", 100.0),
    "SGD, test error (%)": ("sgd/test/error", 100.0),
    "sqrt(KL / 2(n - 1))": ("complexity", 1.0),
    "point of the grid": ("point", 1.0),
}
# Of FC-600-2 on MNIST, isotropic, risk taken as exact.
PUBLISHED = 0.5461
SLOPES = {
    "points per decade": ("per decade", 1.0),
    "explained (%)": ("per decade/r2", 100.0),
    "points per 100 of effective rank": ("per 100 ranks", 1.0),
    "explained by rank (%)": ("per 100 ranks/r2", 100.0),
}


def sections(outcome: Outcome) -> list[Section]:
    """A section for whatever the preset measured."""
    drawn = {"spectra": _spectra, "curvature": _curvature, "mirror": _mirror}
    made = [
        draw(outcome.runs[study][study]) for study, draw in drawn.items() if study in outcome.runs
    ]
    told = {"causal": _causal, "analytic": _analytic, "pac_bayes": _trained_on_bounds,
            "dziugaite_roy": _dziugaite_roy}  # fmt: skip
    return made + [tell(outcome.results) for study, tell in told.items() if study in outcome.runs]


def _spectra(run: Run) -> Section:
    """The spectra of the data sets."""
    tables = [path.stem for path in sorted((run.path / "arrays").glob("*.npz"))]
    stored = {name: run.array(name) for name in tables}
    panels = {
        kind: {
            name: (found[f"{kind}/values"], float(found[f"{kind}/floor"]))
            for name, found in stored.items()
        }
        for kind in ("uncentred", "centred")
    }
    picture = Picture(
        figures.falling_spectra(panels),
        "Second moments of the inputs, about zero and about their mean: what is left of the first "
        "eigenvalue's drop on the right does not come from the mean.",
    )
    return Section("Inputs: the spectra of data sets", "spectra", {"inputs": picture})


def _curvature(run: Run) -> Section:
    """Curvature beside inputs, and the share of training in its first directions, by network."""
    pictures, rows = {}, []
    for arm, title in TITLES.items():
        files = (run.path / "arrays").glob(f"{arm}-*.npz")
        seeds = sorted(int(path.stem.rpartition("-")[2]) for path in files)
        if not seeds:
            continue
        stored = [run.array(f"{arm}-{seed}") for seed in seeds]
        pictures[f"mirror-{arm}"] = Picture(
            figures.falling_spectra({stage: _lines(stored[0], stage) for stage in STAGES}),
            f"{title}, first seed: curvature at start and end beside the spectrum of its inputs, "
            "each over its largest value. Of the Hessian only the largest are computed.",
        )
        shares = {
            f"Fisher at the {stage}": np.stack(
                [each[f"displacement/{stage}"] for each in stored], 1
            )
            for stage in STAGES
        }
        size = round(shares["Fisher at the start"].shape[0] / float(stored[0]["subspace/chance"]))
        pictures[f"shares-{arm}"] = Picture(
            figures.subspace_shares(shares, parameters=size, title=title),
            f"{title}: the share of the way from start to end that lies in the leading "
            "eigenvectors of the Fisher matrix. The line is a half: what 'predominantly' would be.",
        )
        rows += [_row(title, seed, each) for seed, each in zip(seeds, stored, strict=True)]
    return Section("Curvature: networks and their inputs", "curvature", pictures,
                   [Table("Trained networks, by seed", rows)])  # fmt: skip


def _lines(stored: Mapping[str, np.ndarray], stage: str) -> dict[str, tuple[np.ndarray, float]]:
    """What one panel of the mirror figure shows."""
    names = {
        "inputs": "input",
        "Gauss-Newton = Fisher": f"{stage}/ggn",
        "Fisher at the given labels": f"{stage}/fisher",
        "Jacobian of the logits": f"{stage}/logits",
    }
    lines = {name: (stored[key], float(stored[f"{key}/floor"])) for name, key in names.items()}
    return lines | {"Hessian, largest": (stored[f"{stage}/hessian"], 0.0)}


def _row(title: str, seed: int, found: Mapping[str, np.ndarray]) -> dict[str, str]:
    told = numbers(dict(found))
    cells = {
        "share at start (%)": ("subspace/displacement/start", 100),
        "share at end (%)": ("subspace/displacement/end", 100),
        "overlap (%)": ("subspace/overlap", 100),
        "at random (%)": ("subspace/chance", 100),
        "decades at end": ("end/ggn/decades", 1),
        "negative / positive at end (%)": ("end/hessian/negative share", 100),
        "largest, Hessian / Gauss-Newton": ("end/hessian over ggn", 1),
    }
    shown = {name: f"{scale * told[key]:.3g}" for name, (key, scale) in cells.items()}
    return {"network": title, "seed": str(seed), **shown}


def _mirror(run: Run) -> Section:
    """Curvature of the networks of the causal grid, by the spectrum of their inputs."""
    files = (run.path / "arrays").glob("seed-0-b-*.npz")
    stored = {path.stem.partition("-b-")[2]: run.array(path.stem) for path in files}
    stored = {rate: stored[rate] for rate in sorted(stored, key=float)}
    panels = {
        stage: {
            f"inputs over {decades(float(rate), FEATURES):.1f} decades": (
                found[stage], float(found[f"{stage}/floor"])
            )
            for rate, found in stored.items()
        }
        for stage in STAGES
    }  # fmt: skip
    picture = Picture(
        figures.falling_spectra(panels),
        "Gauss-Newton spectra before and after training, first seed: nothing differs but the "
        "spectrum of the inputs.",
    )
    return Section("Mirrored: curvature when only the inputs' spectrum changes", "mirror",
                   {"spectra": picture})  # fmt: skip


def _analytic(results: Results) -> Section:
    """The bounds, as a table and as a figure."""
    at = partial(results.known, protocol="analytic")
    kinds = {"certified": "bound", "risk taken as exact": "plug-in", "test error": "test/error",
             "prior alone": "prior bound"}  # fmt: skip
    arms = results.arms("analytic")
    drawn = {
        arm.partition("/")[2]: {kind: at(key, arm=arm) for kind, key in kinds.items()}
        for arm in arms
    }
    rivals = {"chance": 0.5, "test-set bound": at("test-set bound", arm=arms[0]).mean()}
    if arms[0].startswith("fc2/"):
        rivals["released code, isotropic"] = PUBLISHED
    picture = Picture(
        figures.bounds_by_method(drawn, lines=rivals),
        "Two classes: bounds of random networks around the trained one, and the bound that the "
        "test set gives for the network itself. A bound above chance says nothing.",
    )
    caption = "Bounds, two classes: mean and 95 % interval over seeds"
    table = of_results(results, BOUNDS, protocols=["analytic"], caption=caption)
    return Section("Bounds: what curvature certifies", "analytic", {"bounds": picture}, [table])


def _trained_on_bounds(results: Results) -> Section:
    """The bounds of networks that were trained on them."""
    caption = "Trained on the bound, by prior: mean and 95 % interval over seeds"
    table = of_results(results, TRAINED, protocols=["pac_bayes"], caption=caption)
    return Section("Bounds: networks that are trained on them", "pac_bayes", {}, [table])


def _dziugaite_roy(results: Results) -> Section:
    """Their table as we find it; theirs stands with the claims."""
    caption = "Dziugaite and Roy's protocol: mean and 95 % interval over seeds"
    table = of_results(results, FIRST, protocols=["dziugaite_roy"], caption=caption)
    return Section("Bounds: the protocol of Dziugaite and Roy", "dziugaite_roy", {}, [table])


def _causal(results: Results) -> Section:
    """Test error over the spread of the inputs' spectrum, by examples; and with the controls."""
    curves = error_curves(results)
    same = {arm: curve for arm, curve in curves.items() if "flat" not in arm}
    count = next(arm.partition(", ")[0] for arm in curves if "flat" in arm)
    apart = {arm: curve for arm, curve in curves.items() if arm.partition(", ")[0] == count}
    pictures = {
        "examples": Picture(
            _errors(same, list(curves)),
            "Test error against the decades that the inputs' spectrum spans, norm, steps and law "
            "of the teacher fixed. Left: all directions alike.",
        ),
        "controls": Picture(
            _errors(apart, list(curves)),
            "The same where labels (flat labels) or inputs (flat inputs) keep the flat spectrum "
            "while the other falls: where an effect of the spectrum is lost, it needs both.",
        ),
    }
    fits = [arm for arm in results.arms("causal") if arm.startswith("regression")]
    tables = [
        of_results(
            results, SLOPES, protocols=["causal"], arms=fits,
            caption="Least squares over the spectra, per seed: mean and 95 % interval",
        )
    ]  # fmt: skip
    return Section("Causes: the spectrum of the inputs, all else equal", "causal", pictures, tables)


def error_curves(results: Results) -> dict[str, Curve]:
    """By examples and control, the decades ``[rates]`` and the test errors in percent, by seed."""
    found: dict[str, dict[float, np.ndarray]] = {}
    for arm in results.arms("causal"):
        rate, _, kind = arm.partition("/")
        if rate.startswith("b="):
            errors = 100 * results.known("test/error", arm=arm, protocol="causal")
            found.setdefault(kind, {})[decades(float(rate[2:]), FEATURES)] = errors
    for kind, by_span in found.items():
        for control in filter(None, CONTROLS):
            if kind.endswith(f"/{control}"):  # where nothing falls all controls are one
                by_span.setdefault(0.0, found[kind.removesuffix(f"/{control}")][0.0])
    curves = {}
    for kind, by_span in found.items():
        spans = sorted(by_span)
        errors = np.stack([by_span[span] for span in spans])
        curves[_in_words(kind)] = np.array(spans), errors
    return curves


def _in_words(kind: str) -> str:
    """A number of examples, and the control.

    >>> _in_words("n=5000/flat labels")
    '5000 examples, flat labels'
    """
    count, _, control = kind.removeprefix("n=").partition("/")
    return f"{count} examples, {control}" if control else f"{count} examples"


def _errors(curves: dict[str, Curve], arms: list[str]) -> Figure:
    top = min(100.0, 1.2 * max(values.max() for _, values in curves.values()))
    return plots.training_curves(
        curves, ylabel="test error (%)", xlabel="decades between largest and smallest variance",
        ylim=(0, top), arms=arms,
    )  # fmt: skip
