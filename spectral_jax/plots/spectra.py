"""Figures of layer-wise eigenvalue spectra: one exponent per layer, one tail per panel."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from spectral_jax.plots.style import OKABE_ITO, PAGE, literal, styled

_BLACK, _BLUE, _RED = OKABE_ITO[:3]
_TITLE = 32  # letters that fit above a panel
_NAMED_LAYERS = 60  # beyond which names would overlap: the axis counts layers instead


class Tail(NamedTuple):
    """One layer's spectrum, its law of chance, and the power law fitted to its tail.

    eigenvalues, null: ascending; `null` are quantiles of the random matrix of this shape and norm.
    alpha and xmin are NaN where there is no fit.
    """

    name: str
    eigenvalues: Float[np.ndarray, " N"]
    null: Float[np.ndarray, " K"]
    alpha: float
    xmin: float


@styled
def alphas_by_layer(
    names: Sequence[str],
    alpha: Float[np.ndarray, " L"],
    null: Float[np.ndarray, " L"],
    low: Float[np.ndarray, " L"],
    high: Float[np.ndarray, " L"],
) -> Figure:
    """Each layer's Hill exponent beside what chance gives a matrix of its shape.

    low, high: three standard deviations from `null`. An exponent far beyond the others is drawn as
    an arrow at the edge, with its number.
    """
    right = 1.25 * max(_within_reach(alpha), null.max())
    shown, beyond = np.minimum(alpha, right), np.flatnonzero(alpha > right)
    high = np.minimum(high, 2 * right)
    count = len(names)
    named = count <= _NAMED_LAYERS
    figure = Figure(figsize=(PAGE, 1.1 + 0.19 * count if named else 5.0), layout="constrained")
    ax = figure.subplots()
    place = np.arange(count)
    if named:
        ax.errorbar(
            null, place, xerr=(null - low, high - null), fmt="|",
            color=_BLACK, elinewidth=4, alpha=0.35,
            label="random matrix of this shape, ± 3 standard deviations",
        )  # fmt: skip
        ax.plot(np.delete(shown, beyond), np.delete(place, beyond), "o", color=_RED,
                label="this network")  # fmt: skip
        ax.plot(shown[beyond], place[beyond], ">", color=_RED, clip_on=False)
        for i in beyond:
            ax.annotate(f"{alpha[i]:.3g}  ", (right, i), ha="right", va="center", fontsize=7.5)
        ax.set(yticks=place, yticklabels=[*map(literal, names)], ylim=(count - 0.5, -0.5))
        ax.set_xlim(
            max(1, ax.get_xlim()[0]), right if len(beyond) else min(right, ax.get_xlim()[1])
        )
        ax.set_xlabel("Hill exponent of the upper half of the spectrum")
    else:
        ax.vlines(
            place, low, high, color=_BLACK, linewidth=min(3, 270 / count), alpha=0.35,
            label="random matrix of this shape, ± 3 standard deviations",
        )  # fmt: skip
        ax.plot(place, null, "_", color=_BLACK, alpha=0.5, markersize=3)
        ax.plot(np.delete(place, beyond), np.delete(shown, beyond), "o", color=_RED,
                label="this network")  # fmt: skip
        ax.plot(place[beyond], shown[beyond], "^", color=_RED, clip_on=False)
        ax.set(xlabel="layer, in the network's order")
        ax.set_ylabel("Hill exponent of the upper half of the spectrum")
        ax.set_ylim(top=right if len(beyond) else min(right, ax.get_ylim()[1]))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _within_reach(alpha: np.ndarray) -> float:
    """The largest exponent within ten median distances of the median."""
    middle = np.median(alpha)
    reach = middle + 10 * max(np.median(np.abs(alpha - middle)), 0.1 * middle)
    return float(alpha[alpha <= reach].max())


@styled
def tails(panels: Sequence[Tail]) -> Figure:
    """Share of eigenvalues above a value, per layer: data, chance, and the fitted power law."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PAGE, 0.6 + 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax, panel in zip(grid.flat, panels, strict=False):
        _tail(ax, panel)
    for ax in list(grid.flat)[len(panels) :]:
        ax.remove()
    for ax in grid[:, 0]:
        ax.set_ylabel("share above")
    for column in range(columns):
        last = [ax for ax in grid[:, column] if ax.figure is not None][-1]
        last.set_xlabel("eigenvalue")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure


def _tail(ax, panel: Tail) -> None:
    values = panel.eigenvalues[panel.eigenvalues > 0]
    share = 1 - np.arange(len(values)) / len(values)
    ax.plot(values, share, ".", markersize=3, color=_BLUE, label="this network")
    survival = 1 - (np.arange(len(panel.null)) + 0.5) / len(panel.null)
    ax.plot(panel.null, survival, "--", color=_BLACK, label="random matrix of this shape and norm")
    if np.isfinite(panel.alpha) and np.isfinite(panel.xmin):
        tail = values[values >= panel.xmin]
        start = len(tail) / len(values)
        line = start * (tail / panel.xmin) ** (1 - panel.alpha)
        ax.plot(tail, line, "-", color=_RED, label="fitted power law")
    ax.set(xscale="log", yscale="log", ylim=(0.5 / len(values), 1.5))
    ax.set_xlim(left=max(values[0], values[-1] * 1e-5))
    _few_ticks(ax)
    fit = f"\n$\\alpha$ = {panel.alpha:.2f}" if np.isfinite(panel.alpha) else ""
    ax.set_title(f"{literal(_shortened(panel.name))}{fit}", fontsize=7.5)


def _shortened(name: str) -> str:
    """The name without its middle: where it begins and how it ends tell layers apart."""
    half = _TITLE // 2
    return name if len(name) <= _TITLE else f"{name[:half]}…{name[1 - half :]}"


def _few_ticks(ax) -> None:
    """Labels that do not touch: powers of ten, or plain numbers where there is hardly one."""
    left, right = ax.get_xlim()
    if right < 10 * left:
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        ax.xaxis.set_major_locator(LogLocator(numticks=5))
    ax.xaxis.set_minor_formatter(NullFormatter())
