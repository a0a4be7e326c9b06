"""Figures of the network as a graph: its spectrum in training, and what a penalty on it touches."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_jax.plots import style
from spectral_jax.plots.intervals import t_interval
from spectral_jax.plots.training import Curve, as_seeds, draw_curves, seed_counts

_PANELS = {
    "lambda_2": r"Fiedler value $\lambda_2$ (weight units)",
    "nu_2": r"normalised $\nu_2$ (dimensionless)",
    "participation_ratio": "participation ratio (nodes)",
}
# An entry of a unit vector that holds a tenth of it: a single dot, and to be seen.
LARGE = 0.1**0.5


@style.styled
def spectral_evolution(
    histories: Mapping[str, Mapping[str, Curve]],
    *,
    xlabel: str = "step",
    arms: Sequence[str] = (),
) -> Figure:
    r"""lambda_2, nu_2 and the participation ratio of the Fiedler vector over training, by arm.

    Mean and 95 % Student interval over seeds. The participation ratio :math:`1/\sum_i v_i^4` is 1
    when the vector sits on a single node and N when it is spread evenly; it is always on a
    logarithmic axis, the other two when they span more than a factor of 30. Zeros stay visible.

    Args:
        histories: per arm and metric (any of ``lambda_2``, ``nu_2``, ``participation_ratio``) the
            steps [t] and the values [t, s]. A metric that no arm has gets no panel.
        xlabel: what the steps count.
        arms: all arms of the experiment in order, so that an arm looks the same in every figure.

    Raises:
        ValueError: no arm has any of the three metrics.
    """
    metrics = [m for m in _PANELS if any(m in history for history in histories.values())]
    if not metrics:
        raise ValueError(f"histories has none of {', '.join(_PANELS)}: record at least one")
    figure = Figure(figsize=(style.PAGE, 3.2), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    order = [*dict.fromkeys([*arms, *histories])]
    for ax, metric in zip(panels, metrics, strict=True):
        curves = {arm: h[metric] for arm, h in histories.items() if metric in h}
        draw_curves(ax, curves, arms=order)
        _scale(ax, metric, curves)
        ax.set(xlabel=xlabel, ylabel=_PANELS[metric])
    # The panel with the most arms explains them all.
    fullest = max(panels, key=lambda ax: len(ax.get_lines()))
    counts = seed_counts(curve for history in histories.values() for curve in history.values())
    style.arm_legend(figure, fullest, counts, below=True)
    return figure


def _scale(ax: Axes, metric: str, curves: Mapping[str, Curve]) -> None:
    values = np.concatenate([as_seeds(values).ravel() for _, values in curves.values()])
    values = values[np.isfinite(values)]
    if metric == "participation_ratio":
        ax.set_yscale("log")
        ax.set_ylim(0.8, 2 * values.max(initial=10.0))
    elif values.size and values.max() > 30 * values.min():
        style.log_scale(ax, "y", values)


@style.styled
def fiedler_by_layer(
    vectors: Float[np.ndarray, "*s N"],
    widths: Sequence[int],
    *,
    coefficients: Float[np.ndarray, "*s L"] | None = None,
) -> Figure:
    r"""What a Fiedler penalty acts on: the vector by layer, and the mean pull on each weight block.

    Left, every entry v_i with the median and the 5 to 95 % range of its layer; right, the mean of
    (v_i - v_j)^2 over each block, which is the L1 coefficient the penalty puts on those weights
    (arXiv 2003.00992). Vectors are scaled to unit length and oriented input to output.

    Args:
        vectors: [N] or [s, N], nodes in layer order; a vector with NaN is left out.
        widths: units per layer, input first, summing to N.
        coefficients: [L] or [s, L] for the L = len(widths) - 1 blocks, where they are not the
            mean (v_i - v_j)^2 (the normalised Laplacian has others).

    Raises:
        ValueError: the widths do not sum to N, or no vector is finite.
    """
    vectors = np.atleast_2d(np.asarray(vectors, dtype=float))
    if sum(widths) != vectors.shape[-1]:
        raise ValueError(
            f"widths sum to {sum(widths)} but vectors have {vectors.shape[-1]} entries: "
            "give the units of every layer, input and output included"
        )
    vectors = vectors[np.isfinite(vectors).all(axis=-1)]
    if not len(vectors):
        raise ValueError("vectors has no finite row: there is no Fiedler vector to draw")
    layers = _oriented_layers(vectors, widths)
    if coefficients is None:
        coefficients = _mean_squared_differences(layers)
    figure = Figure(figsize=(style.PAGE, 3.0), layout="constrained")
    entries, blocks = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_entries(entries, layers)
    _draw_blocks(blocks, np.atleast_2d(coefficients), widths)
    return figure


def _oriented_layers(vectors: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """Unit vectors [s, N] with mean(output) >= mean(input), cut into layers [s, n_l]."""
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cuts = np.cumsum(widths)[:-1]
    layers = np.split(vectors, cuts, axis=-1)
    rise = layers[-1].mean(axis=-1) - layers[0].mean(axis=-1)
    sign = np.where(rise < 0, -1.0, 1.0)[:, None]
    return [sign * layer for layer in layers]


def _mean_squared_differences(layers: list[np.ndarray]) -> np.ndarray:
    """Mean over a block of (v_i - v_j)^2 from the layers' first two moments, [s, L]."""
    first = np.stack([layer.mean(axis=-1) for layer in layers], axis=-1)
    spread = np.stack([layer.var(axis=-1) for layer in layers], axis=-1)
    return np.diff(first, axis=-1) ** 2 + spread[:, :-1] + spread[:, 1:]


def _draw_entries(ax: Axes, layers: list[np.ndarray]) -> None:
    for i, layer in enumerate(layers):
        flat = layer.ravel()
        # Golden-ratio jitter fills the strip evenly and is the same in every run.
        jitter = (np.arange(flat.size) * 0.6180339887 % 1.0 - 0.5) * 0.6
        ax.plot(i + jitter, flat, ".", color=style.OKABE_ITO[1], markersize=2.5, alpha=0.35,
                markeredgewidth=0, rasterized=True)  # fmt: skip
        alone = np.abs(flat) > LARGE
        ax.plot(i + jitter[alone], flat[alone], "o", color=style.OKABE_ITO[1], markersize=6)
        low, middle, high = np.quantile(flat, [0.05, 0.5, 0.95])
        ax.vlines(i, low, high, color="black", linewidth=1.2)
        ax.hlines(middle, i - 0.34, i + 0.34, color="black", linewidth=1.8)
    ratio = 1.0 / np.sum(np.concatenate(layers, axis=-1) ** 4, axis=-1)
    nodes = sum(layer.shape[-1] for layer in layers)
    ax.set_title(f"participation ratio {ratio.mean():,.4g} of {nodes:,} nodes")
    ax.set(xlabel="layer (units)", ylabel="entry $v_i$ (unit vector)")
    names = ["input", *(f"hidden {i}" for i in range(1, len(layers) - 1)), "output"]
    _name_ticks(ax, [f"{n}\n{layer.shape[-1]:,}" for n, layer in zip(names, layers, strict=True)])


def _draw_blocks(ax: Axes, coefficients: np.ndarray, widths: Sequence[int]) -> None:
    mean, half_width, count = t_interval(coefficients.T)
    places = np.arange(len(mean))
    style.log_scale(ax, "y", coefficients)
    if len(coefficients) > 1:
        seeds = np.repeat(places, len(coefficients)) + 0.22
        ax.plot(seeds, coefficients.T.ravel(), "o", markersize=3, alpha=0.5,
                color=style.OKABE_ITO[1], markeredgewidth=0)  # fmt: skip
    ax.errorbar(places, mean, yerr=np.nan_to_num(half_width), fmt="D", color="black", capsize=3)
    ax.set_title(style.describe_seeds(count.tolist()))
    ax.set(xlabel="weight block (shape)", ylabel=r"mean $(v_i - v_j)^2$ (L1 coefficient)")
    _name_ticks(ax, [f"$W_{{{i + 1}}}$\n{m:,}×{n:,}" for i, (m, n) in
                     enumerate(zip(widths[:-1], widths[1:], strict=True))])  # fmt: skip


def _name_ticks(ax: Axes, names: list[str]) -> None:
    crowded = len(names) > 6
    labels = [name.replace("\n", "  ") for name in names] if crowded else names
    ax.set_xticks(range(len(names)), labels, rotation=90 if crowded else 0)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(visible=False, axis="x")
