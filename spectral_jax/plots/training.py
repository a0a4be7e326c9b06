"""Curves over training, one line per arm, with the spread over seeds."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_jax.plots import style
from spectral_jax.plots.intervals import t_interval

Curve = tuple[Num[np.ndarray, " t"], Num[np.ndarray, " t *s"]]


@style.styled
def training_curves(
    curves: Mapping[str, Curve],
    *,
    ylabel: str,
    xlabel: str = "step",
    ylim: tuple[float | None, float | None] | None = None,
    arms: Sequence[str] = (),
    most: float = np.inf,
) -> Figure:
    """Mean over seeds against training time, with a band for its 95 % Student interval.

    A seed that is anywhere NaN or infinite is left out of its arm and the legend says how many
    are left, as in "l1 (4 of 5 seeds)". With fewer than two seeds left there is no band. Unless
    ``ylim`` says otherwise the axis shows the second half of training, where arms are told apart,
    and not the climb from chance; an arm that is nowhere in sight is named in the legend.

    Args:
        curves: per arm the steps [t] and the values [t, s] (or [t] for one seed).
        ylabel: quantity and unit, such as "test accuracy (%)".
        xlabel: what ``steps`` counts, such as "epoch".
        ylim: limits of the vertical axis; ``None`` in it leaves that side free.
        arms: all arms of the experiment in order, so that an arm looks the same in every figure.
        most: what no value can exceed, such as 100 for a percentage: there a band ends.

    Raises:
        ValueError: no curve is given, or the steps and values of one have different lengths.
    """
    if not curves:
        raise ValueError("curves is empty: give at least one arm, as {name: (steps, values)}")
    figure = Figure(figsize=(style.PAGE, 3.1), layout="constrained")
    ax = figure.subplots()
    spans = draw_curves(ax, curves, arms=arms, most=most)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if ylim is None:
        _focus_on_the_end(ax, np.array(spans))
    else:
        ax.set_ylim(*ylim)
    style.arm_legend(figure, ax, seed_counts(curves.values()))
    return figure


def draw_curves(
    ax: Axes, curves: Mapping[str, Curve], *, arms: Sequence[str] = (), most: float = np.inf
) -> list[tuple[float, float]]:
    """Draw the line and band of each arm into ``ax``; shared with the panels of other figures.

    Returns what must be seen of each arm to compare it: its means in the second half of training,
    and its interval at the end.
    """
    styles, spans = style.arm_styles(curves, arms), []
    for i, (name, (steps, values)) in enumerate(curves.items()):
        steps, values = np.asarray(steps), as_seeds(values)
        if len(steps) != len(values):
            raise ValueError(
                f"curves[{name!r}] has {len(steps)} steps and {len(values)} rows of values: "
                "values must be [t, s] with one row per step"
            )
        complete = np.asarray(np.isfinite(values).all(axis=0))
        mean, half_width, _ = t_interval(values[:, complete])
        gap = max(1, len(steps) // 8)
        look = styles[name]._asdict()
        low, high = mean - half_width, np.minimum(mean + half_width, most)
        # Student's interval knows no bounds; a loss or an accuracy does.
        low = np.maximum(low, 0.0) if (values[:, complete] >= 0).all() else low
        late = np.append(mean[len(mean) // 2 :], (low[-1:], high[-1:]))
        late = late[np.isfinite(late)]
        spans.append((late.min(), late.max()) if len(late) else (np.nan, np.nan))
        # Staggered markers keep arms apart where their lines coincide.
        ax.plot(steps, mean, label=_label(name, complete), markevery=(i % gap, gap), **look)
        if complete.sum() > 1:
            ax.fill_between(steps, low, high, color=look["color"], alpha=0.16, linewidth=0)
    return spans


def _focus_on_the_end(ax: Axes, spans: np.ndarray) -> None:
    low, high = style.focus(*spans.T)
    room = 0.08 * (high - low)
    if not room > 0:
        return
    ax.set_ylim(low - room, high + room)
    for line, (least, most) in zip(ax.get_lines(), spans, strict=True):
        if most < low or least > high:
            side, end = "below" if most < low else "above", np.asarray(line.get_ydata(), float)[-1]
            line.set_label(f"{line.get_label()!s} ({side}, ends at {end:.3g})")


def as_seeds(values: np.ndarray) -> np.ndarray:
    """[t] or [t, s] as float [t, s]."""
    values = np.asarray(values, dtype=float)
    return values[:, None] if values.ndim == 1 else values


def seed_counts(curves: Iterable[Curve]) -> list[int]:
    """The number of seeds each arm was run with."""
    return [as_seeds(values).shape[1] for _, values in curves]


def _label(name: str, complete: np.ndarray) -> str:
    return name if complete.all() else f"{name} ({complete.sum()} of {complete.size} seeds)"
