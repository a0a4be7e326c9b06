"""Spectra that fall over many decades, the part of training in their first directions, and bounds.

Figures of the study of arXiv 2110.14163. Nothing is drawn below a floor.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectral_jax.plots import style
from spectral_jax.plots.intervals import t_interval

Falling = tuple[Float[np.ndarray, " k"], float]


@style.styled
def falling_spectra(
    panels: Mapping[str, Mapping[str, Falling]], *, xlabel: str = "rank of the eigenvalue"
) -> Figure:
    """Eigenvalues over the largest of their spectrum, by rank, each line down to its own floor.

    Where a line ends in a cross, values below were rounding, or zero. The shade lies below the
    lowest of all floors, where no line could be.

    Args:
        panels: per panel and line the values [k], in any order, NaN left out, and their floor.

    Raises:
        ValueError: no spectrum has a value above its floor.
    """
    lines = dict.fromkeys(name for panel in panels.values() for name in panel)
    styles = style.arm_styles(lines, list(lines))
    figure = Figure(figsize=(style.PAGE, 3.3), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    floors = []
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        for name, (values, floor) in panel.items():
            floors += _falling(ax, name, np.asarray(values, float), float(floor), styles[name])
        ax.set(yscale="log", title=title, xlabel=xlabel)
    if not floors:
        raise ValueError("no spectrum has a value above its floor: pass larger ones")
    axes[0].set_ylabel("eigenvalue / largest")
    _shade(axes, min(floors))
    handles = {h.get_label(): h for ax in axes for h in ax.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return figure


def _falling(
    ax: Axes, name: str, values: np.ndarray, floor: float, look: style.ArmStyle
) -> list[float]:
    """Draw one line; its floor over its largest value, if it has values."""
    values = -np.sort(-values[np.isfinite(values)])
    kept = values[values > max(floor, 0.0)]
    if not len(kept):
        return []
    shown = kept / kept[0]
    few = len(kept) <= 30
    ax.plot(
        np.arange(1, len(kept) + 1), shown, label=name, color=look.color,
        linestyle="none" if few else look.linestyle, marker=look.marker if few else None,
    )  # fmt: skip
    if len(kept) < len(values):
        ax.plot(len(kept), shown[-1], "x", color="black", label="the rest is rounding or zero")
    return [floor / kept[0]] if floor > 0 else []


def _shade(axes: Sequence[Axes], floor: float) -> None:
    """What is below ``floor``, unless it is so far down that it would leave the axis half empty."""
    low, _ = axes[0].get_ylim()
    if floor < low / 1e3:
        return
    for ax in axes:
        ax.axhspan(floor / 10, floor, color="0.85", linewidth=0, label="rounding")
    axes[0].set_ylim(bottom=floor / 10)


@style.styled
def subspace_shares(
    shares: Mapping[str, Float[np.ndarray, "k s"]], *, parameters: int, title: str = ""
) -> Figure:
    """How much of a displacement lies in the first eigenvectors, by their number.

    Mean and 95 % Student interval over seeds, and what a random direction has, ``k / parameters``.

    Args:
        shares: per basis [k, s], cumulative.
    """
    figure = Figure(figsize=(style.COLUMN, 3.3), layout="constrained")
    ax = figure.subplots()
    styles = style.arm_styles(shares, list(shares))
    for name, values in shares.items():
        index = np.arange(1, len(values) + 1)
        mean, half_width, _ = t_interval(values)
        look = styles[name]
        ax.plot(index, mean, label=name, color=look.color, linestyle=look.linestyle)
        wide = np.nan_to_num(half_width)
        low, high = np.clip(mean - wide, 0, 1), np.clip(mean + wide, 0, 1)
        ax.fill_between(index, low, high, color=look.color, alpha=0.16, linewidth=0)
    ax.plot(index, index / parameters, color="#666666", linestyle=(0, (2, 2)), label="at random")
    ax.axhline(0.5, color="black", linewidth=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(ylim=(0, 1), xlabel="leading eigenvectors", ylabel="share of the squared way",
           title=title)  # fmt: skip
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@style.styled
def bounds_by_method(
    bounds: Mapping[str, Mapping[str, Float[np.ndarray, " s"]]], *, lines: Mapping[str, float]
) -> Figure:
    """Bounds and risks of each method, mean and 95 % Student interval, and what to beat as lines.

    Args:
        bounds: per method and kind of number [s].
        lines: numbers that are the same for all methods, such as chance.
    """
    kinds = list(dict.fromkeys(kind for each in bounds.values() for kind in each))
    styles = style.arm_styles(kinds, kinds)
    figure = Figure(figsize=(style.PAGE, 1.5 + 0.6 * len(bounds)), layout="constrained")
    ax = figure.subplots()
    for row, each in enumerate(bounds.values()):
        for place, (kind, values) in enumerate(each.items()):
            mean, half_width, _ = t_interval(np.asarray(values, float))
            wide = np.nan_to_num(half_width)
            # A share knows bounds that Student's interval does not.
            ends = [[mean - max(mean - wide, 0)], [min(mean + wide, 1) - mean]]
            aside = 0.16 * (place - (len(each) - 1) / 2)
            ax.errorbar(mean, row + aside, xerr=ends, capsize=2, linestyle="none",
                        marker=styles[kind].marker, color=styles[kind].color,
                        label=kind if row == 0 else None)  # fmt: skip
    for number, (name, value) in enumerate(lines.items()):
        ax.axvline(value, color="#444444", linewidth=1, linestyle=style.DASHES[number + 1],
                   label=f"{name}: {value:.3g}")  # fmt: skip
    ax.set_yticks(range(len(bounds)), list(bounds))
    ax.set(ylim=(len(bounds) - 0.5, -0.5), xlabel="error or bound on it", xlim=(0, 1))
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
