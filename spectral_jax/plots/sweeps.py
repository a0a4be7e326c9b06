"""Many trials at once: what each setting does to the score, and profiles over several tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_jax.plots import style

_COLUMNS = 3
_FEW = 12  # values of a setting that a line takes one by one
_STEPS = 8  # of a line through more values than that
_ASIDE = 0.7  # of the way to the next text, for all arms at the same one
_MANY = 500  # points of an arm: a picture of them is smaller than their places

Points = tuple[Sequence[Any], Float[np.ndarray, " n"]]


@style.styled
def setting_effects(
    panels: Mapping[str, Mapping[str, Points]], *, ylabel: str, arms: Sequence[str] = ()
) -> Figure:
    """A panel per setting: the score of every configuration over its value, a colour per arm.

    The line is the median at a value, or, where there are more than a few, of neighbouring ones: it
    says what the value does whatever the other settings are. Numbers over more than a decade and a
    half stand on a logarithmic axis; texts in the order in which they come up. Configurations far
    off are left out of sight, and counted.

    Args:
        panels: per setting and arm the values [n], numbers or texts, and the scores [n]; NaN for a
            configuration that has none.
        ylabel: what the scores are, with their unit.
        arms: all arms in order, so that an arm looks the same in every figure.

    Raises:
        ValueError: there is no panel, or an arm has not one score per value.
    """
    if not panels:
        raise ValueError("panels is empty: give at least one setting, as {key: {arm: (x, y)}}")
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(style.PAGE, 0.8 + 2.3 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    looks = style.arm_styles([arm for points in panels.values() for arm in points], arms)
    for ax, (key, points) in zip(grid, panels.items(), strict=False):
        _draw_panel(ax, key, points, looks)
    scores = [np.asarray(each, float) for points in panels.values() for _, each in points.values()]
    limits = _limits(np.concatenate(scores))
    for ax, points in zip(grid, panels.values(), strict=False):
        _cut(ax, [each for _, each in points.values()], limits)
        ax.set_ylabel(ylabel)
    for ax in grid[len(panels) :]:
        ax.remove()
    fullest = max(grid[: len(panels)], key=lambda ax: len(ax.get_legend_handles_labels()[1]))
    figure.legend(*fullest.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_panel(
    ax: Axes, key: str, points: Mapping[str, Points], looks: Mapping[str, style.ArmStyle]
) -> None:
    every = [value for values, _ in points.values() for value in values]
    texts = not all(isinstance(value, (int, float)) for value in every)
    places = _places_of_texts(ax, every) if texts else {value: float(value) for value in every}
    if not texts and style.needs_log_scale(numbers := np.array(every, float)):
        style.log_scale(ax, "x", numbers)
    for i, (arm, (values, scores)) in enumerate(points.items()):
        if len(values) != len(scores):
            raise ValueError(
                f"panels[{key!r}][{arm!r}] has {len(values)} values and {len(scores)} scores: "
                "give one score per value"
            )
        beside = _ASIDE * ((i + 0.5) / len(points) - 0.5) if texts else 0.0
        x = np.array([places[value] for value in values]) + beside
        _draw_effect(ax, x, scores, looks[arm], arm, joined=not texts)
    ax.set_xlabel(style.literal(key))


def _places_of_texts(ax: Axes, values: Sequence[Any]) -> dict[Any, float]:
    names = list(dict.fromkeys(values))
    ax.set_xticks(range(len(names)), [style.wrap(style.literal(str(name)), 12) for name in names])
    ax.set_xlim(-0.5, len(names) - 0.5)
    return {name: float(place) for place, name in enumerate(names)}


def _draw_effect(
    ax: Axes, x: np.ndarray, scores: np.ndarray, look: style.ArmStyle, arm: str, *, joined: bool
) -> None:
    order = np.argsort(x, kind="stable")
    x, scores = x[order], np.asarray(scores, float)[order]
    kept = np.isfinite(scores)
    x, scores = x[kept], scores[kept]
    ax.plot(x, scores, look.marker, color=look.color, markersize=3, alpha=0.4, markeredgewidth=0,
            rasterized=len(x) > _MANY)  # fmt: skip
    steps = np.unique(x)
    few = [x == step for step in steps]
    parts = few if len(few) <= _FEW else np.array_split(np.arange(len(x)), _STEPS)
    middle = [(np.median(x[part]), np.median(scores[part])) for part in parts]
    line = look._asdict() | ({} if joined else {"linestyle": ""})
    label = arm if kept.all() else f"{arm} ({kept.sum()} of {kept.size})"
    ax.plot(*np.array(middle).reshape(-1, 2).T, label=style.wrap(label), **line)


def _limits(scores: np.ndarray) -> tuple[float, float] | None:
    """The limits within which most configurations can be told apart; None if that is all."""
    known = scores[np.isfinite(scores)]
    low, high = style.focus(known, known)
    room = 0.08 * (high - low)
    outside = bool(((known < low) | (known > high)).any())
    return (low - room, high + room) if outside and room > 0 else None


def _cut(ax: Axes, scores: Sequence[np.ndarray], limits: tuple[float, float] | None) -> None:
    if limits is None:
        return
    every = np.concatenate([np.asarray(each, float) for each in scores])
    cut = np.count_nonzero((every < limits[0]) | (every > limits[1]))
    ax.set_ylim(*limits)
    if cut:
        ax.annotate(f"{cut} out of sight", (0.02, 0.02), xycoords="axes fraction", fontsize=7.5,
                    color="#444444")  # fmt: skip


@style.styled
def performance_profiles(
    taus: Float[np.ndarray, " t"],
    above: Mapping[str, Float[np.ndarray, "t 3"]],
    *,
    xlabel: str,
    arms: Sequence[str] = (),
) -> Figure:
    """The share of an arm's runs that score more than tau, with its band (arXiv 2108.13264).

    Args:
        taus: the thresholds, increasing.
        above: per arm the shares and the ends of their interval.
        xlabel: the scale of the scores: how those of several tasks were made comparable.
        arms: all arms in order, so that an arm looks the same in every figure.

    Raises:
        ValueError: no arm is given, or one has not three numbers per threshold.
    """
    if not above or any(np.shape(each) != (len(taus), 3) for each in above.values()):
        raise ValueError(f"above has {list(above)}: give arms, each three numbers per threshold")
    figure = Figure(figsize=(style.PAGE, 3.1), layout="constrained")
    ax = figure.subplots()
    looks = style.arm_styles(above, arms)
    for arm, shares in above.items():
        value, low, high = np.asarray(shares, float).T
        look = looks[arm]
        ax.step(taus, value, where="post", color=look.color, linestyle=look.linestyle,
                label=style.wrap(arm))  # fmt: skip
        ax.fill_between(taus, low, high, step="post", color=look.color, alpha=0.14, linewidth=0)
    ax.set(xlabel=xlabel, ylabel="share of runs above", ylim=(-0.02, 1.02))
    figure.legend(loc="outside right upper")
    return figure
