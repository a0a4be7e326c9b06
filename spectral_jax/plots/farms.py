"""Figures of tail exponents: their shape bias, their windows, and their course in training."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num
from matplotlib.figure import Figure

from spectral_jax.plots import style
from spectral_jax.plots.intervals import t_interval
from spectral_jax.plots.training import Curve, draw_curves, seed_counts


@style.styled
def shape_bias(
    aspects: Num[np.ndarray, " a"],
    alphas: Mapping[str, Float[np.ndarray, "a s"]],
    *,
    law: tuple[Num[np.ndarray, " t"], Float[np.ndarray, " t"]],
) -> Figure:
    """Exponents of pure noise against the aspect ratio: the closed form, and what estimators say.

    Points are means over draws with their 95 % Student interval, for each estimator the same
    matrices. The dotted line is the exponent of a square matrix, where an unbiased one would stay.

    Args:
        aspects: [a], long side over short side, 1 and above.
        alphas: per estimator [a, s], one number per draw.
        law: aspect ratios and the exponent of infinitely large matrices there.

    Raises:
        ValueError: an estimator has not one row per aspect ratio.
    """
    figure = Figure(figsize=(style.COLUMN, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.plot(*law, color="black", label="Marchenko-Pastur law, closed form")
    ax.axhline(law[1][np.argmin(law[0])], color="#666666", linewidth=1, linestyle=(0, (1, 2)))
    looks = style.arm_styles(alphas, ["law", *alphas])
    for name, values in alphas.items():
        if len(values) != len(aspects):
            raise ValueError(
                f"alphas[{name!r}] has {len(values)} rows for {len(aspects)} aspect ratios"
            )
        mean, half_width, _ = t_interval(values)
        look = looks[name]._replace(linestyle="none")._asdict()
        ax.errorbar(aspects, mean, yerr=half_width, label=name, capsize=3, **look)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="aspect ratio (long side / short side)", ylabel=r"tail exponent $\alpha$")
    draws = next(iter(alphas.values())).shape[1]
    title = f"mean and 95 % t-interval, {draws} Gaussian matrices"
    ax.legend(title=title, loc="upper left", alignment="left")
    return figure


@style.styled
def window_ablation(
    windows: Num[np.ndarray, " w"],
    alphas: Mapping[str, Float[np.ndarray, "w s p"]],
    *,
    xlabel: str = "window (rows)",
) -> Figure:
    """What the exponent of noise owes to the windows: their size and shape, and where they fall.

    Left the mean over ``s`` matrices (and ``p`` random placements each), right the standard
    deviation over placements in one matrix; both with their 95 % Student interval over matrices.

    Args:
        windows: [w], rows of a window.
        alphas: per shape of window [w, s, p].
    """
    figure = Figure(figsize=(style.PAGE, 3.0), layout="constrained")
    level, spread = figure.subplots(1, 2)
    looks = style.arm_styles(alphas, list(alphas))
    for name, values in alphas.items():
        for ax, samples in (
            (level, values.mean(axis=-1)),
            (spread, values.std(axis=-1, ddof=1)),
        ):
            mean, half_width, _ = t_interval(samples)
            ax.errorbar(windows, mean, yerr=half_width, label=name, capsize=2,
                        **looks[name]._asdict())  # fmt: skip
    level.set(xlabel=xlabel, ylabel=r"$\alpha$, mean over matrices")
    spread.set(xlabel=xlabel, ylabel=r"sd of $\alpha$ over placements")
    spread.set_ylim(bottom=0)
    for ax in (level, spread):
        ax.set_xscale("log", base=2)
        ax.set_xticks(windows, [f"{window:g}" for window in windows])
    matrices = next(iter(alphas.values())).shape[1]
    legend = style.arm_legend(figure, level, [matrices], below=True)
    legend.set_title(f"mean and 95 % t-interval, {matrices} matrices")
    return figure


@style.styled
def rank_agreement(
    names: Sequence[str], correlation: Float[np.ndarray, "k k"], *, title: str = ""
) -> Figure:
    """Spearman correlation between metrics over the layers of a network, written in its cells."""
    side = 1.9 + 0.42 * len(names)
    figure = Figure(figsize=(side + 0.7, side), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(correlation, vmin=-1, vmax=1, cmap="PuOr")
    for row, column in np.ndindex(correlation.shape):
        value = round(float(correlation[row, column]), 2) + 0.0  # no -0.0
        ax.text(column, row, f"{value:.2f}".replace("0.", "."), ha="center", va="center",
                fontsize=7, color="white" if abs(value) > 0.6 else "black")  # fmt: skip
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.set_title(title)
    figure.colorbar(image, label="Spearman correlation over layers", shrink=0.8)
    return figure


@style.styled
def tail_evolution(
    exponents: Mapping[str, Mapping[str, Curve]],
    scales: Mapping[str, Curve] | None = None,
    *,
    xlabel: str = "epoch",
) -> Figure:
    """Each layer's exponent over training, one panel per estimator, all on one scale.

    Args:
        exponents: per estimator and layer the times [t] and the values [t, s].
        scales: per layer what multiplied its learning rate; a panel of its own.
        xlabel: what the times count.
    """
    count = len(exponents) + (scales is not None)
    figure = Figure(figsize=(style.PAGE, 3.2), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    layers = list(dict.fromkeys(layer for curves in exponents.values() for layer in curves))
    for ax, (name, curves) in zip(axes, exponents.items(), strict=False):
        draw_curves(ax, curves, arms=layers)
        ax.set_title(name)
        ax.set_ylabel(r"tail exponent $\alpha$")
        ax.sharey(axes[0])
    if scales is not None:
        draw_curves(axes[-1], scales, arms=layers)
        axes[-1].set_title("learning rate")
        axes[-1].set_ylabel("scale of the learning rate")
    for ax in axes:
        ax.set_xlabel(xlabel)
    every = [curve for panel in exponents.values() for curve in panel.values()]
    style.arm_legend(figure, axes[0], seed_counts(every), below=True)
    return figure
