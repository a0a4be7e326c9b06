"""What a pruned network loses, by how much of it is gone and by who chose where."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from spectral_jax.plots import style
from spectral_jax.plots.intervals import t_interval


@style.styled
def pruning_curves(
    sparsities: Sequence[float],
    losses: Mapping[str, Mapping[str, Float[np.ndarray, "d s"]]],
    *,
    dense: Float[np.ndarray, " s"],
    reference: str,
    arms: Sequence[str] = (),
) -> Figure:
    """Perplexity of a pruned language model, above, and its change against one arm, below.

    A column per pruner. Above, ``exp`` of the mean loss over seeds, with the unpruned model as a
    line across; below, ``100 (exp(loss - loss of the reference) - 1)``, paired by seed, mean and
    95 % Student interval, linear within 10 % and logarithmic beyond. Below zero is better than the
    reference.

    Args:
        sparsities: [d], shares of the weights that are gone.
        losses: per pruner and arm [d, s], in nats per token; NaN for a seed without a number.
        dense: [s], the loss before pruning.
        reference: the arm that the others are held against.
        arms: all arms of the experiment in order, so that an arm looks the same in every figure.

    Raises:
        ValueError: a pruner lacks the reference, or an arm has not one row per sparsity.
    """
    _check(sparsities, losses, reference)
    figure = Figure(figsize=(style.PAGE, 4.6), layout="constrained")
    panels = figure.subplots(2, len(losses), sharex=True, squeeze=False)
    named = dict.fromkeys(name for by_arm in losses.values() for name in by_arm)
    styles = style.arm_styles(named, arms)
    percent = 100 * np.asarray(sparsities)
    for (above, below), (pruner, by_arm) in zip(panels.T, losses.items(), strict=True):
        above.set_yscale("log")
        below.set_yscale("symlog", linthresh=10)
        for number, (name, values) in enumerate(by_arm.items()):
            values, look = np.asarray(values, float), styles[name]._asdict()
            above.plot(percent, np.exp(t_interval(values).mean), label=name, **look)
            if name != reference:
                change = 100 * np.expm1(values - np.asarray(by_arm[reference], float))
                _draw_change(below, percent + _aside(number, len(by_arm)), change, look)
        above.axhline(np.exp(t_interval(dense).mean), color="#666666", label="not pruned")
        below.axhline(0.0, color="black", linewidth=0.9)
        above.set_title(pruner)
        above.yaxis.set_major_formatter("{x:g}")
        low, high = above.get_ylim()
        above.yaxis.set_minor_formatter("{x:g}" if high < 8 * low else NullFormatter())
        below.margins(y=0.12)
        below.yaxis.set_major_formatter("{x:g}")
        below.set_xlabel("sparsity (%)")
    panels[0, 0].set_ylabel("validation perplexity")
    panels[1, 0].set_ylabel(f"change against {reference} (%)")
    for ax in panels[:, 1:].ravel():
        ax.set_ylabel("")
    seeds = [
        np.asarray(values).shape[1] for by_arm in losses.values() for values in by_arm.values()
    ]
    style.arm_legend(figure, panels[0, 0], seeds, below=True)
    return figure


def _draw_change(ax: Axes, x: np.ndarray, change: np.ndarray, look: Mapping) -> None:
    mean, half_width, _ = t_interval(change)
    ax.errorbar(x, mean, yerr=np.nan_to_num(half_width), capsize=1.5, elinewidth=0.8, **look)


def _aside(number: int, count: int) -> float:
    """A little to one side, so that intervals of several arms do not hide each other."""
    return 0.35 * (number - (count - 1) / 2)


def _check(sparsities: Sequence[float], losses: Mapping, reference: str) -> None:
    for pruner, by_arm in losses.items():
        if reference not in by_arm:
            raise ValueError(f"losses[{pruner!r}] has no arm {reference!r}, the reference: add it")
        for name, values in by_arm.items():
            if np.ndim(values) != 2 or len(values) != len(sparsities):
                raise ValueError(
                    f"losses[{pruner!r}][{name!r}] has shape {np.shape(values)} for "
                    f"{len(sparsities)} sparsities: values must be [d, s]"
                )
