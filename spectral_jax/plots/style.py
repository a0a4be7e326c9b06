"""What all figures share: palette, sizes, scales, legends and files with reproducible bytes."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

# Okabe and Ito, https://jfly.uni-koeln.de/color/, without yellow, which vanishes on white paper.
OKABE_ITO = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Colour never stands alone: five dash patterns and six markers make 210 combinations.
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.6)),
    (0, (1.2, 1.2)),
    (0, (6, 1.4, 1.2, 1.4)),
    (0, (9, 3)),
)
MARKERS = "osD^vP"

COLUMN = 4.8  # inches: a single figure
PAGE = 7.2  # inches: panels side by side across a page
_WIDE = 30  # times the least: a range of which a linear axis shows only the upper end

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # letters stay letters, which many journals ask for
    "svg.hashsalt": "spectral_jax",
}

# Decorates every figure function: artists read the defaults when they are made.
styled = matplotlib.rc_context(RC)


class ArmStyle(NamedTuple):
    """How one arm is drawn, in every figure it appears in."""

    color: str
    linestyle: Any
    marker: str


def arm_styles(names: Iterable[str], arms: Sequence[str]) -> dict[str, ArmStyle]:
    """One style per name, by its place in ``arms`` (then in ``names`` for those not listed)."""
    order = dict.fromkeys([*arms, *names])
    return {
        name: ArmStyle(
            OKABE_ITO[i % len(OKABE_ITO)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]
        )
        for i, name in enumerate(order)
    }


def wrap(label: str, width: int = 26) -> str:
    """The label on as many lines as it needs, broken only where it must be."""
    return "\n".join(textwrap.wrap(label, width)) or label


def literal(name: str) -> str:
    """A name as it is, where matplotlib would read ``$`` as mathematics and obey what is no letter.

    >>> print(literal("a$\\nb^{$c"))
    a\\$\\nb^{\\$c
    """
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)
    return shown.replace("$", r"\$")


def log_scale(ax: Axes, which: str, values: np.ndarray) -> None:
    """Logarithmic axis for non-negative values, which still shows zeros, at a tick that says 0.

    Anything under float32 resolution of the largest value is a rounded zero, not a measurement.
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    resolved = values[values > np.finfo(np.float32).eps * values.max(initial=0.0)]
    set_scale = ax.set_xscale if which == "x" else ax.set_yscale
    if not resolved.size:
        return
    if resolved.size == values.size:
        set_scale("log")
        return
    threshold = 10.0 ** np.floor(np.log10(resolved.min()))
    set_scale("symlog", linthresh=threshold, linscale=0.5)
    (ax.set_xlim if which == "x" else ax.set_ylim)(-0.1 * threshold, None)


def needs_log_scale(values: np.ndarray) -> bool:
    """Whether most of these numbers would lie on top of each other on a linear axis.

    So it is with 0.01, 0.1, 1, with a zero or without: over more than a decade and a half.
    """
    positive = values[values > 0]
    wide = positive.size and positive.max() > _WIDE * positive.min()
    return bool(wide and (values >= 0).all())


def focus(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """Limits in which most of these intervals, one per arm, can be told apart.

    One arm that collapsed would press all others into a line: what lies farther from the median of
    all than five times the median distance or width is left out. NaN where there is none.
    """
    middle = (low + high) / 2
    known = np.isfinite(middle)
    if not known.any():
        return np.nan, np.nan
    low, high, middle = low[known], high[known], middle[known]
    away = np.abs(middle - np.median(middle))
    near = away <= 5 * max(np.median(away), np.median(high - low))
    return float(low[near].min()), float(high[near].max())


def arm_legend(figure: Figure, ax: Axes, seeds: Iterable[int], *, below: bool = False) -> Legend:
    """Legend outside the axes, so that it hides no data, with what line and band mean as title."""
    handles, labels = ax.get_legend_handles_labels()
    columns = min(4, len(labels)) if below else 1
    legend = figure.legend(
        handles,
        [wrap(label) for label in labels],
        title=describe_seeds(seeds),
        loc="outside lower center" if below else "outside right upper",
        ncols=columns,
        alignment="left",
    )
    return legend


def describe_seeds(seeds: Iterable[int]) -> str:
    """What a line and its band are, for arms that have these numbers of seeds."""
    counts = sorted(set(seeds))
    if counts[-1:] <= [1]:
        return "one seed"
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean and 95 % t-interval, {span} seeds"


def to_svg(figure: Figure) -> str:
    """The figure as one SVG document, with no date in it: same figure, same bytes."""
    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, stem: str | Path, *, drawn: str = "") -> tuple[Path, Path, Path]:
    """Write ``stem.svg``, ``stem.pdf`` (for a paper) and ``stem.png``; return their paths.

    ``drawn`` is what `to_svg` gave, if it was called before: to draw a figure takes a while.
    """
    svg, pdf, png = (Path(f"{stem}.{ending}") for ending in ("svg", "pdf", "png"))
    svg.parent.mkdir(parents=True, exist_ok=True)
    svg.write_text(drawn or to_svg(figure), encoding="utf-8")
    with matplotlib.rc_context(RC):
        figure.savefig(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
        figure.savefig(png, metadata={"Software": None})
    return svg, pdf, png
