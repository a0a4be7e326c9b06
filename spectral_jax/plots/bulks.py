"""Noise and signal in a layer, and what cutting the noise off does to a network."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from spectral_jax import laws
from spectral_jax.plots import style
from spectral_jax.plots.intervals import t_interval


class Bulk(NamedTuple):
    """One layer's singular values, and the noise fitted to them.

    sigma: standard deviation of the noise per entry.
    edge: the singular value at which the noise ends.
    """

    title: str
    values: Float[np.ndarray, " p"]
    shape: tuple[int, int]
    sigma: float
    edge: float


@style.styled
def bulk_evolution(panels: Sequence[Bulk]) -> Figure:
    """Histogram of singular values, the Marchenko-Pastur law fitted to them, and its edge.

    A panel each, side by side, on common axes. What lies above the edge is drawn as ticks.

    Raises:
        ValueError: no panel is given.
    """
    if not panels:
        raise ValueError("panels is empty: give at least one layer")
    figure = Figure(figsize=(style.PAGE, 2.7), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw_bulk(ax, panel)
    axes[0].set_ylabel("density")
    for ax in axes:
        ax.set_xlabel("singular value")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4)
    return figure


def _draw_bulk(ax: Axes, panel: Bulk) -> None:
    p, n = sorted(panel.shape)
    signal = panel.values[panel.values > panel.edge]
    bulk = panel.values[panel.values <= panel.edge]
    counts, bins = np.histogram(bulk, bins=30)
    ax.stairs(counts / len(panel.values) / np.diff(bins), bins, fill=True, color="#b8cfe0",
              label="up to the edge")  # fmt: skip
    ax.plot(signal, np.zeros(len(signal)), "|", color=style.OKABE_ITO[2], markersize=11,
            label="above the edge")  # fmt: skip
    low, high = (panel.sigma * (n * limit) ** 0.5 for limit in laws.marchenko_pastur_edges(p / n))
    s = np.linspace(low, high, 300)
    squares = s**2 / (n * panel.sigma**2)
    density = laws.standard_pdf(squares, p / n, np) * 2 * s / (n * panel.sigma**2)
    ax.plot(s, density, color="black", label="Marchenko-Pastur law, fitted")
    ax.axvline(panel.edge, color=style.OKABE_ITO[2], linewidth=1, linestyle=(0, (4, 2)),
               label="edge")  # fmt: skip
    ax.set_title(f"{panel.title}: {len(signal)} above")
    ax.set_ylim(bottom=0)


@style.styled
def accuracy_by_rank(
    ranks: Num[np.ndarray, " k"],
    accuracy: Float[np.ndarray, "k s"],
    *,
    marks: Mapping[str, Num[np.ndarray, " s"]],
    full: Float[np.ndarray, " s"],
    ylabel: str = "test accuracy (%)",
) -> Figure:
    """Accuracy against the number of singular values kept, with the ranks that rules choose.

    Mean and 95 % Student interval over seeds; a rule's rank is a line across, with its range over
    seeds as a band, and the whole network a line along.

    Raises:
        ValueError: ``accuracy`` has not one row per rank.
    """
    if len(accuracy) != len(ranks):
        raise ValueError(f"accuracy has {len(accuracy)} rows for {len(ranks)} ranks")
    figure = Figure(figsize=(style.PAGE, 3.2), layout="constrained")
    ax = figure.subplots()
    mean, half_width, _ = t_interval(accuracy)
    ax.errorbar(ranks, mean, yerr=np.nan_to_num(half_width), marker="o", color="black",
                capsize=2, label="largest values kept")  # fmt: skip
    ax.axhline(float(np.nanmean(full)), color="#666666", linestyle=(0, (2, 2)), label="all kept")
    looks = style.arm_styles(marks, ["curve", *marks])
    for name, chosen in marks.items():
        look = looks[name]
        low, high = np.nanmin(chosen), np.nanmax(chosen)
        label = f"{name}: {low:g}" + (f" to {high:g}" if high > low else "")
        ax.axvline(np.nanmean(chosen), color=look.color, linestyle=look.linestyle, label=label)
        ax.axvspan(low, high, color=look.color, alpha=0.15, linewidth=0)
    ax.set(xlabel="singular values kept in the first layer", ylabel=ylabel, xlim=(0, None))
    style.arm_legend(figure, ax, [np.shape(accuracy)[1]])
    return figure


@style.styled
def accuracy_by_parameters(
    arms: Mapping[str, tuple[Num[np.ndarray, " s"], Float[np.ndarray, " s"]]],
    *,
    order: Sequence[str] = (),
    unit: str = "seeds",
    ylabel: str = "test accuracy (%)",
) -> Figure:
    """Each arm at its number of parameters (their mean): mean and 95 % interval over samples.

    Of two samples the interval may be wider than all that there is: it is cut at 0 and 100.

    Args:
        arms: parameters and accuracies in percent, [s] each.
        order: all arms of the experiment in order, so that an arm looks the same in every figure.
        unit: what the samples are.
    """
    figure = Figure(figsize=(style.PAGE, 3.8), layout="constrained")
    ax = figure.subplots()
    looks = style.arm_styles(arms, order)
    ax.set_xscale("log")
    for number, (name, (parameters, accuracy)) in enumerate(arms.items()):
        mean, half_width, _ = t_interval(accuracy)
        look = looks[name]._replace(linestyle="none")._asdict()
        room = np.array([[mean], [100.0 - mean]])
        reach = np.clip(room, 0.0, np.nan_to_num(half_width))
        # Arms of equal parameters stand a little beside each other.
        place = np.mean(parameters) * 1.008 ** (number - len(arms) / 2)
        ax.errorbar(place, mean, yerr=reach, capsize=2, clip_on=False, label=name, **look)
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, 0.0), min(high, 100.0))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="parameters", ylabel=ylabel)
    samples = max(np.size(values) for _, values in arms.values())
    legend = style.arm_legend(figure, ax, [samples])
    legend.set_title(f"mean and 95 % t-interval, {samples} {unit}")
    return figure


@style.styled
def dead_classes(
    groups: Mapping[str, tuple[Num[np.ndarray, " s"], Float[np.ndarray, " s"]]],
    *,
    ylabel: str = "test accuracy (%)",
) -> Figure:
    """Accuracy of single networks by how many classes they never answer; a point per network.

    Args:
        groups: dead classes and accuracies, [s] each.
    """
    figure = Figure(figsize=(style.PAGE, 3.2), layout="constrained")
    ax = figure.subplots()
    looks = style.arm_styles(groups, list(groups))
    most = max(int(np.max(dead, initial=0)) for dead, _ in groups.values())
    for number, (name, (dead, accuracy)) in enumerate(groups.items()):
        aside = 0.12 * (number - (len(groups) - 1) / 2)
        places = np.asarray(dead) + aside + np.linspace(-0.05, 0.05, np.size(dead))
        look = looks[name]._replace(linestyle="none")._asdict()
        ax.plot(places, accuracy, alpha=0.7, label=name, **look)
    ax.set_xticks(range(most + 1))
    ax.set(xlabel="classes never answered", ylabel=ylabel)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, title="each point is one network", loc="outside right upper",
                  alignment="left")  # fmt: skip
    return figure
