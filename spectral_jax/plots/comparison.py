"""Arms against each other: scores over a number of theirs, and paired differences by seed."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_jax.plots import style
from spectral_jax.plots.intervals import Interval, t_interval


@style.styled
def strength_sweep(
    strengths: Num[np.ndarray, " d"],
    accuracy: Mapping[str, Float[np.ndarray, "d *s"]],
    *,
    baseline: Float[np.ndarray, " s"] | None = None,
    ylabel: str = "test accuracy (%)",
    arms: Sequence[str] = (),
) -> Figure:
    """Accuracy against penalty strength, mean and 95 % Student interval over seeds.

    Args:
        strengths: [d] non-negative, in any order; a zero gets a place of its own on the
            logarithmic axis.
        accuracy: per arm [d, s] (or [d]); NaN for a seed that has no number.
        baseline: [s], the arm without a penalty, drawn across the figure.
        ylabel: quantity and unit.
        arms: all arms of the experiment in order, so that an arm looks the same in every figure.

    Raises:
        ValueError: a strength is negative, or an arm has not one row per strength.
    """
    strengths = np.asarray(strengths, dtype=float)
    if (strengths < 0).any():
        raise ValueError(f"strengths has {strengths.min():g}: give values >= 0")
    figure = Figure(figsize=(style.PAGE, 3.1), layout="constrained")
    ax = figure.subplots()
    style.log_scale(ax, "x", strengths)
    seeds = []
    if baseline is not None:
        seeds.append(np.size(baseline))
        _draw_baseline(ax, t_interval(np.atleast_1d(baseline)))
    styles = style.arm_styles(accuracy, arms)
    order = np.argsort(strengths)
    for i, (name, values) in enumerate(accuracy.items()):
        values = np.asarray(values, dtype=float).reshape(len(values), -1)
        if len(values) != len(strengths):
            raise ValueError(
                f"accuracy[{name!r}] has {len(values)} rows for {len(strengths)} strengths: "
                "values must be [d, s] with one row per strength"
            )
        seeds.append(values.shape[1])
        offset = 0.05 * (i - (len(accuracy) - 1) / 2)
        interval = t_interval(values[order])
        label = name + _missing(values)
        _draw_points(ax, _beside(ax, strengths[order], offset), interval, styles[name], label)
    ax.set(xlabel="penalty strength (dimensionless)", ylabel=ylabel)
    _focus_on_most(ax, [*accuracy.values(), *([] if baseline is None else [baseline])])
    style.arm_legend(figure, ax, seeds)
    return figure


@style.styled
def score_by_setting(
    values: Num[np.ndarray, " n"],
    scores: Float[np.ndarray, "n s"],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> Figure:
    """Every trial as a point, and the mean over seeds, over a number that was set.

    A line joins the means where each value is one configuration. Where other numbers vary, too,
    several configurations share a value: their means are apart, and how far they scatter is what
    the value alone does not decide. What collapsed far below (or above) the rest is left out of
    sight, and counted.

    Args:
        values: [n], the number of each configuration.
        scores: [n, s], one per seed; NaN for a seed that has none.
        xlabel: what ``values`` are, ``ylabel`` what ``scores`` are, with units.
        log: a logarithmic axis; a value of 0 gets a place of its own.

    Raises:
        ValueError: there is not one row of scores per value.
    """
    values, scores = np.asarray(values, dtype=float), np.asarray(scores, dtype=float)
    if scores.ndim != 2 or len(scores) != len(values):
        raise ValueError(
            f"scores has shape {scores.shape} for {len(values)} values: give [n, s], a row each"
        )
    figure = Figure(figsize=(style.COLUMN, 3.1), layout="constrained")
    ax = figure.subplots()
    if log:
        style.log_scale(ax, "x", values)
    order = np.argsort(values, kind="stable")
    values, scores = values[order], scores[order]
    means = t_interval(scores).mean
    alone = len(set(values.tolist())) == len(values)
    ax.plot(np.repeat(values, scores.shape[1]), scores.ravel(), "o", color=style.OKABE_ITO[1],
            markersize=3, alpha=0.45, markeredgewidth=0, label="trial")  # fmt: skip
    ax.plot(values, means, "D-" if alone else "D", color=style.OKABE_ITO[0], markersize=4,
            linewidth=1.0, label="mean over seeds")  # fmt: skip
    ax.set(xlabel=xlabel, ylabel=ylabel)
    rows = scores[np.isfinite(scores).any(axis=1)]
    if len(rows):
        low, high = style.focus(np.nanmin(rows, axis=1), np.nanmax(rows, axis=1))
        _cut_off(ax, rows.ravel(), low, high, least=0.02 * float(np.nanmax(np.abs(rows))))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _focus_on_most(ax: Axes, samples: Sequence[np.ndarray]) -> None:
    """Cut off what collapsed: its place on the axis would be taken from all that did not."""
    means = np.concatenate([np.atleast_1d(t_interval(_by_row(each)).mean) for each in samples])
    _cut_off(ax, means, *style.focus(means, means), least=0.5)


def _cut_off(ax: Axes, values: np.ndarray, low: float, high: float, *, least: float) -> None:
    """Show values from low to high, and say how many are not among them; nothing if all are."""
    known = values[np.isfinite(values)]
    sides = {"below": known[known < low], "above": known[known > high]}
    told = [f"{len(cut)} {side}, at {_span(cut)}" for side, cut in sides.items() if len(cut)]
    if told:
        room = max(0.4 * (high - low), least)
        ax.set_ylim(low - room, high + room)
        ax.annotate(f"not shown: {'; '.join(told)}", (0.01, 0.02), xycoords="axes fraction",
                    fontsize=7.5, color="#444444")  # fmt: skip


def _span(values: np.ndarray) -> str:
    ends = f"{values.min():.3g}", f"{values.max():.3g}"
    return ends[0] if len(set(ends)) == 1 else " to ".join(ends)


def _by_row(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values.reshape(len(values), -1) if values.ndim > 1 else values[None]


def _draw_baseline(ax: Axes, interval: Interval) -> None:
    mean, half_width = float(interval.mean), float(interval.half_width)
    ax.axhline(mean, color="#666666", linewidth=1.2, linestyle=(0, (2, 2)), label="no penalty")
    if np.isfinite(half_width):
        ax.axhspan(mean - half_width, mean + half_width, color="#666666", alpha=0.12, linewidth=0)


def _draw_points(
    ax: Axes, x: np.ndarray, interval: Interval, look: style.ArmStyle, label: str
) -> None:
    ax.errorbar(x, interval.mean, yerr=np.nan_to_num(interval.half_width), label=label,
                capsize=2, elinewidth=0.9, **look._asdict())  # fmt: skip


def _beside(ax: Axes, x: np.ndarray, offset: float) -> np.ndarray:
    """Moved by ``offset`` decades on the axis, so that intervals of several arms do not hide."""
    scale = ax.xaxis.get_transform()
    return scale.inverted().transform(scale.transform(x) + offset)


def _missing(values: np.ndarray) -> str:
    """Which part of the numbers is there, if it is not all of them."""
    finite = int(np.isfinite(values).sum())
    return "" if finite == values.size else f" ({finite} of {values.size} runs)"


@style.styled
def paired_differences(
    differences: Mapping[str, Float[np.ndarray, " s"]],
    *,
    xlabel: str = "paired difference in test accuracy (percentage points)",
) -> Figure:
    """Mean difference to the baseline per arm, with its 95 % Student interval and every seed.

    A difference pairs two arms on the same seed, so what they share (initialisation, batches)
    cancels. An interval that leaves out zero is drawn filled, one that covers it open.

    Args:
        differences: per arm [s], arm minus baseline; NaN for a seed that has no number.
        xlabel: which quantity minus which baseline, and the unit.

    Raises:
        ValueError: no arm is given.
    """
    if not differences:
        raise ValueError("differences is empty: give at least one arm, as {name: [s]}")
    figure = Figure(figsize=(style.PAGE, 0.9 + 0.36 * len(differences)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0.0, color="black", linewidth=0.9)
    for row, values in enumerate(differences.values()):
        _draw_difference(ax, row, np.asarray(values, dtype=float))
    ax.set_yticks(range(len(differences)), [style.wrap(name, 34) for name in differences])
    ax.set_ylim(len(differences) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(xlabel)
    return figure


def _draw_difference(ax: Axes, row: int, values: np.ndarray) -> None:
    mean, half_width, count = t_interval(values)
    ax.plot(values, np.full(values.shape, row + 0.2), "o", color=style.OKABE_ITO[1],
            markersize=4, alpha=0.85, markeredgewidth=0)  # fmt: skip
    clear = bool(abs(mean) > half_width)
    if count:
        ax.errorbar(mean, row, xerr=np.nan_to_num(half_width), fmt="D", color="black", capsize=3,
                    markerfacecolor="black" if clear else "white")  # fmt: skip
    text = f"n = {count}" if count == values.size else f"n = {count} of {values.size}"
    size = half_width if half_width > 0 else abs(mean)
    digits = int(max(2, 1 - np.floor(np.log10(size)))) if size > 0 else 2  # two of the interval's
    if count > 1:
        text = f"{mean:+.{digits}f} ± {half_width:.{digits}f},  {text}"
    elif count:
        text = f"{mean:+.{digits}f},  {text}"
    ax.annotate(text, (1.0, row), xycoords=("axes fraction", "data"), xytext=(6, 0),
                textcoords="offset points", va="center", fontsize=8)  # fmt: skip
