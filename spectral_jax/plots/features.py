"""What a network has learned, from its penultimate layer: spectra, time courses, maps of layers.

Figures of arXiv 2410.04264, drawn from arrays that a run stored. ``k`` counts eigenfunctions of the
forward feature map from 1, by falling eigenvalue.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from spectral_jax.plots import style
from spectral_jax.plots.training import Curve, draw_curves, seed_counts

_RED = style.OKABE_ITO[2]
_GREY = "#666666"
# Readable by the colour-blind, and in grey; its last tenth is too pale for a line on white paper.
_MAP = matplotlib.colormaps["cividis"]
_LINE_COLORS = 0.9
_TICKS = 6
_OUTLINED = withStroke(linewidth=3.5, foreground="white")  # black on dark colours, too
_PLAIN = StrMethodFormatter("{x:g}")
_ROW = 0.28  # inches: one line of a map with its name
LABELS = (r"cumulative quality $\Pi^*(k)$", r"cumulative utilisation $\hat\Pi(k)$",
          r"eigenvalue $\rho_k / \rho_1$")  # fmt: skip


class FeatureSpectra(NamedTuple):
    """The feature map of one network at ``t`` checkpoints: `features.diagonalize`, stacked.

    Attributes:
        at: steps or epochs of the checkpoints, increasing; 0 is the initial network.
        eigenvalues: descending along ``p``; NaN, which is not drawn, below their floor.
        quality, utilisation: *cumulative* over ``k``, from 0 to 1.
        classes: of the task.
        centred: the spectrum is of centred features: ``classes - 1`` directions tell classes apart.
        rows: how many inputs were diagonalised, for what labels without meaning would give; or
            None, and no such line is drawn.
    """

    at: Num[np.ndarray, " t"]
    eigenvalues: Float[np.ndarray, "t p"]
    quality: Float[np.ndarray, "t p"]
    utilisation: Float[np.ndarray, "t p"]
    classes: int
    centred: bool = True
    rows: float | None = None

    @property
    def rule(self) -> int:
        """How many eigenfunctions a minimal feature map needs."""
        return max(1, self.classes - self.centred)


@style.styled
def feature_spectra(spectra: FeatureSpectra, *, xlabel: str = "epoch") -> Figure:
    """Quality, utilisation and eigenvalues by rank, one line per checkpoint, early ones dark.

    The first checkpoint is dashed and the last one thick. The upright line is where a minimal
    feature map ends; the dotted curve is the quality ``k / rows`` of labels without meaning.

    xlabel: what ``spectra.at`` counts.

    Raises:
        ValueError: arrays of the spectra do not belong together, or no eigenvalue is above 0.
    """
    figure, axes = spectra_panels(spectra)
    count = len(spectra.at)
    colors = _line_colors(count)
    for place in range(count):
        last = place == count - 1
        for ax, values in zip(axes, panel_values(spectra, place), strict=True):
            ax.plot(
                np.arange(1, len(values) + 1), values, color=colors(place), zorder=2 + last,
                linewidth=2.2 if last else 1.1, linestyle="--" if place == 0 and not last else "-",
            )  # fmt: skip
    _checkpoint_bar(figure, axes, spectra.at, colors, xlabel)
    return figure


def spectra_panels(spectra: FeatureSpectra) -> tuple[Figure, Sequence[Axes]]:
    """The three panels with their limits, rules and legend, without a checkpoint in them."""
    _check(spectra)
    figure = Figure(figsize=(style.PAGE, 2.9), dpi=72, layout="constrained")
    axes = figure.subplots(1, 3)
    p = spectra.eigenvalues.shape[1]
    k = np.arange(1, p + 1)
    if spectra.rows is not None:
        axes[0].plot(k, np.minimum(k / spectra.rows, 1), ":", color=_RED, label="random labels")
    for ax, label in zip(axes, LABELS, strict=True):
        told = f"$k$ = {spectra.rule}, " + "classes" + " − 1" * spectra.centred
        ax.axvline(spectra.rule, color=_GREY, linewidth=1, linestyle=(0, (5, 2)), label=told)
        ax.set(xscale="log", xlim=(0.9, 1.1 * p), xlabel="$k$", ylabel=label)
        ax.xaxis.set_major_formatter(_PLAIN)
    for ax in axes[:2]:
        ax.set_ylim(-0.02, 1.03)
    shown = np.stack([panel_values(spectra, place)[2] for place in range(len(spectra.at))])
    axes[2].set(yscale="log", ylim=(0.5 * np.nanmin(shown, initial=0.1), 2))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure, axes


def panel_values(spectra: FeatureSpectra, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the panels show of one checkpoint; NaN where there is nothing to show."""
    values = np.asarray(spectra.eigenvalues[place], float)
    shown = np.where(values > 0, values, np.nan)
    known = np.isfinite(shown)
    quality, utilisation = (
        np.where(known, each[place], np.nan) for each in (spectra.quality, spectra.utilisation)
    )
    return quality, utilisation, shown / shown[0]


def _check(spectra: FeatureSpectra) -> None:
    at, shape = np.asarray(spectra.at), np.shape(spectra.eigenvalues)
    if at.ndim != 1 or not at.size or (np.diff(at) <= 0).any():
        raise ValueError(f"spectra.at is {at}: give the checkpoints in increasing order")
    for name in ("eigenvalues", "quality", "utilisation"):
        if (given := np.shape(getattr(spectra, name))) != (at.size, *shape[1:]) or len(given) != 2:
            raise ValueError(
                f"spectra.{name} has shape {given} for {at.size} checkpoints: stack one row of "
                "as many numbers as there are features for each"
            )
    if not (np.asarray(spectra.eigenvalues) > 0).any():
        raise ValueError("no eigenvalue is above 0: the features are constant at every checkpoint")


def _line_colors(count: int) -> Colormap:
    return ListedColormap(_MAP(np.linspace(0, _LINE_COLORS, count)))


def _checkpoint_bar(
    figure: Figure, axes: Sequence[Axes], at: np.ndarray, colors: Colormap, label: str
) -> None:
    """Which colour is which checkpoint: by their order, as they are seldom evenly spaced."""
    count = len(at)
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, colors), ax=list(axes), label=label)
    ticks = _few(count)
    bar.set_ticks(ticks, labels=[f"{at[i]:g}" for i in ticks])
    bar.ax.minorticks_off()


def _few(count: int, most: int = _TICKS) -> list[int]:
    """At most so many places, the first and the last among them."""
    return sorted({*np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()})


@style.styled
def spectrum_map(spectra: FeatureSpectra, *, xlabel: str = "epoch", level: float = 0.95) -> Figure:
    """Eigenvalues by checkpoint and rank as colours, and how many of them the outputs use.

    The line is the least ``k`` whose cumulative utilisation is ``level`` of what all eigenfunctions
    have together: of 1 that is, or of a little less where features are centred and outputs are not.
    Grey: below the floor. Colours leave the lowest twentieth of the eigenvalues out.

    Raises:
        ValueError: arrays of the spectra do not belong together, no eigenvalue is above 0, or
            ``level`` is not in (0, 1].
    """
    if not 0 < level <= 1:
        raise ValueError(f"level is {level}: choose a share above 0 and up to 1")
    _check(spectra)
    figure = Figure(figsize=(style.COLUMN, 3.4), layout="constrained")
    ax = figure.subplots()
    count, p = spectra.eigenvalues.shape
    shown = np.stack([panel_values(spectra, place)[2] for place in range(count)])
    ax.set_facecolor("0.85")
    logs = np.ma.masked_invalid(np.log10(shown.T))
    edges = np.arange(count + 1) - 0.5, np.arange(p + 1) + 0.5
    lowest = np.quantile(logs.compressed(), 0.05)
    mesh = ax.pcolormesh(*edges, logs, cmap=_MAP, vmin=lowest, vmax=0, rasterized=True)
    ax.plot(
        np.arange(count), _needed(spectra, level), "o-", color="black", path_effects=[_OUTLINED],
        label=rf"least $k$ with {100 * level:g} % of $\hat\Pi(p)$",
    )  # fmt: skip
    ax.axhline(spectra.rule, color="white", linestyle="--", linewidth=1)
    ax.annotate(f"$k$ = {spectra.rule}", (count - 0.6, spectra.rule), color="white", ha="right",
                va="bottom", fontsize=7.5)  # fmt: skip
    ax.set(yscale="log", ylim=(0.5, p + 0.5), ylabel="$k$")
    ax.yaxis.set_major_formatter(_PLAIN)
    _name_checkpoints(ax, spectra.at, xlabel)
    ax.grid(visible=False)
    figure.colorbar(mesh, label=r"$\log_{10}\ \rho_k / \rho_1$", extend="min")
    figure.legend(loc="outside upper left")
    return figure


def _needed(spectra: FeatureSpectra, level: float) -> np.ndarray:
    """Per checkpoint how many eigenfunctions hold ``level`` of the utilisation of all; or NaN."""
    utilisation = np.nan_to_num(np.asarray(spectra.utilisation, float))
    total = utilisation.max(axis=1, keepdims=True)
    least = (utilisation >= level * total).argmax(axis=1) + 1.0
    return np.where(total[:, 0] > 0, least, np.nan)


def _name_checkpoints(ax: Axes, at: np.ndarray, xlabel: str) -> None:
    ticks = _few(len(at), 11)
    ax.set_xticks(ticks, [f"{at[i]:g}" for i in ticks])
    ax.set_xlabel(xlabel)


@style.styled
def time_courses(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    xlabel: str = "step",
    logarithmic: Sequence[str] = (),
    shares: Sequence[str] = (),
    arms: Sequence[str] = (),
) -> Figure:
    """Several numbers over training, each in a panel of its own, the steps on a logarithmic axis.

    Such as richness, effective dimension and accuracy, or the measures of neural collapse. A step 0
    has its place at the left end. Mean over seeds with a band for its 95 % Student interval.

    Args:
        panels: per number, which labels its axis, and arm the steps [t] and values [t] or [t, s].
        xlabel: what the steps count.
        logarithmic: the numbers with a logarithmic axis of their own.
        shares: the numbers that cannot exceed 1, such as an accuracy: there a band ends.
        arms: all arms of the experiment in order, so that an arm looks the same in every figure.

    Raises:
        ValueError: there is no panel, ``logarithmic`` or ``shares`` names none of them, or the
            steps and values of a curve have different lengths.
    """
    if not panels or {*logarithmic, *shares} - set(panels):
        raise ValueError(
            f"panels are {list(panels)}, logarithmic {list(logarithmic)}, shares {list(shares)}: "
            "give at least one panel, and name only panels in the others"
        )
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(style.PAGE, 0.8 + 2.1 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    order = list(dict.fromkeys([*arms, *(arm for curves in panels.values() for arm in curves)]))
    for ax, (name, curves) in zip(grid, panels.items(), strict=False):
        draw_curves(ax, curves, arms=order, most=1.0 if name in shares else np.inf)
        style.log_scale(ax, "x", np.concatenate([np.asarray(t) for t, _ in curves.values()]))
        if name in logarithmic:
            style.log_scale(ax, "y", np.concatenate([np.ravel(v) for _, v in curves.values()]))
        ax.set(xlabel=xlabel, ylabel=name)
    for ax in grid[len(panels) :]:
        ax.remove()
    fullest = max(grid[: len(panels)], key=lambda ax: len(ax.get_lines()))
    counts = seed_counts(curve for curves in panels.values() for curve in curves.values())
    style.arm_legend(figure, fullest, counts, below=True)
    return figure


@style.styled
def course_map(
    at: Num[np.ndarray, " t"],
    names: Sequence[str],
    values: Float[np.ndarray, "t L"],
    *,
    label: str,
    xlabel: str = "epoch",
) -> Figure:
    """One number as colours, a line for each layer (or setting), checkpoints from left to right.

    Grey: no number.

    Args:
        at: steps or epochs of the checkpoints.
        names: of the layers, in the network's order; the first is drawn at the bottom.
        values: per checkpoint and layer.
        label: what the number is.
        xlabel: what ``at`` counts.

    Raises:
        ValueError: ``values`` has not one row per checkpoint and one column per name.
    """
    values = np.asarray(values, float)
    if values.shape != (len(at), len(names)):
        raise ValueError(
            f"values has shape {values.shape} for {len(at)} checkpoints and {len(names)} names: "
            "give one row per checkpoint, one column per name"
        )
    figure = Figure(figsize=(style.COLUMN, 1.3 + _ROW * len(names)), layout="constrained")
    ax = figure.subplots()
    ax.set_facecolor("0.85")
    edges = np.arange(len(at) + 1) - 0.5, np.arange(len(names) + 1) - 0.5
    mesh = ax.pcolormesh(*edges, np.ma.masked_invalid(values.T), cmap=_MAP, rasterized=True)
    ax.set_yticks(range(len(names)), [*map(style.literal, names)])
    _name_checkpoints(ax, np.asarray(at), xlabel)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    figure.colorbar(mesh, label=label, aspect=12)
    return figure


@style.styled
def richness_against_accuracy(
    settings: Mapping[str, tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]],
    *,
    ylabel: str = "test accuracy (%)",
) -> Figure:
    """Whether rich is good: a point per seed, a marker per setting.

    The axis of the richness is logarithmic unless a (corrected) estimate is not above 0.

    settings: per setting the richness and the accuracy of each seed.
    """
    figure = Figure(figsize=(style.PAGE, 3.3), layout="constrained")
    ax = figure.subplots()
    looks = style.arm_styles(settings, list(settings))
    for name, (richness, accuracy) in settings.items():
        look = looks[name]
        ax.plot(richness, accuracy, look.marker, color=look.color, markersize=5, alpha=0.8,
                label=style.wrap(name))  # fmt: skip
    if all(np.min(richness) > 0 for richness, _ in settings.values()):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(_PLAIN)
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="$D_{LR}$ (0 rich, 1 lazy)", ylabel=ylabel)
    figure.legend(loc="outside right upper", title="one point per seed", alignment="left")
    return figure


@style.styled
def quality_by_eigenvalue(
    networks: Mapping[str, tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]],
) -> Figure:
    """Whether large eigenvalues belong to good directions: the quality of each, not their sum.

    networks: per network (or checkpoint) the eigenvalues and the quality of each; NaN is left out.
    """
    figure = Figure(figsize=(style.COLUMN, 3.2), layout="constrained")
    ax = figure.subplots()
    looks = style.arm_styles(networks, list(networks))
    for name, (eigenvalues, quality) in networks.items():
        values = np.asarray(eigenvalues, float)
        look = looks[name]
        ax.plot(values / np.nanmax(values), quality, look.marker, color=look.color, alpha=0.7,
                label=name)  # fmt: skip
    ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel=LABELS[2], ylabel="quality $Q^*_k$")
    figure.legend(loc="outside upper left", ncols=3)
    return figure
