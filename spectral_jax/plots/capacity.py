"""The spectrum of a table of data, as far down as its digits reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import stdtrit

from spectral_jax.plots.style import COLUMN, OKABE_ITO, styled

if TYPE_CHECKING:  # figures are drawn without jax
    from spectral_jax.capacity import InputSpectrum, Noise, Sloppiness

_BLACK, _BLUE, _RED, _GREEN = OKABE_ITO[:4]
_NEAR = 1e3  # a floor farther below the smallest value than this would leave the axis half empty


@styled
def data_spectrum(
    spectrum: InputSpectrum, *, fall: Sloppiness | None = None, noise: Noise | None = None
) -> Figure:
    """Eigenvalues by rank on a logarithmic axis, the line of their fall, and the edge of noise.

    Nothing is drawn below the floor, which is shaded where it is near. The band is the jackknife's
    95 % interval of each value, where the spectrum has blocks.

    fall: the line of `capacity.sloppiness`.
    noise: the edge of `capacity.above_noise`.

    Raises:
        ValueError: no eigenvalue is above the floor.
    """
    values = np.asarray(spectrum.values, float)[: spectrum.rank]
    if not len(values):
        raise ValueError("no eigenvalue is above the floor: all columns are constant, or zero")
    figure = Figure(figsize=(COLUMN, 3.4), layout="constrained")
    ax = figure.subplots()
    index = np.arange(1, len(values) + 1)
    _band(ax, index, values, spectrum)
    ax.plot(index, values, "o", markersize=3, color=_BLUE, label="eigenvalues")
    if fall is not None and np.isfinite(fall.slope):
        _line(ax, fall)
    if noise is not None and noise.edge > spectrum.floor:
        told = "edge of noise" + ", if half is noise" * noise.estimated
        ax.axhline(noise.edge, color=_GREEN, linestyle=(0, (5, 1.6)), label=told)
    kind = "eigenvalue of the covariance" if spectrum.centred else r"eigenvalue of $X^T X / n$"
    ax.set(yscale="log", xlabel="rank of the eigenvalue", ylabel=kind)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(left=0)
    _floor(ax, values.min(), float(spectrum.floor), len(spectrum.values) - len(values))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _band(ax: Axes, index: np.ndarray, values: np.ndarray, spectrum: InputSpectrum) -> None:
    """In the logarithm, in which values are drawn; none for one that hangs on a single block."""
    replicates = np.asarray(spectrum.replicates, float)[:, : len(values)]
    blocks = len(replicates)
    known = (replicates > float(spectrum.floor)).all(axis=0)
    if blocks < 2 or not known.any():
        return
    logs = np.log10(np.where(known, replicates, 1))
    reach = stdtrit(blocks - 1, 0.975) * np.sqrt((blocks - 1) * logs.var(axis=0))
    ax.fill_between(
        index, np.maximum(values * 10**-reach, spectrum.floor), values * 10**reach, where=known,
        color=_BLUE, alpha=0.25, linewidth=0, label="95 % interval",
    )  # fmt: skip


def _line(ax: Axes, fall: Sloppiness) -> None:
    ends = np.array([fall.first, fall.last], float)
    slope = float(fall.slope)
    ax.plot(
        ends + 1, 10 ** (float(fall.intercept) + slope * ends), color=_RED,
        label=f"{slope:.2g} decades a rank, R² = {float(fall.r_squared):.2f}",
    )  # fmt: skip


def _floor(ax: Axes, smallest: float, floor: float, hidden: int) -> None:
    if floor * _NEAR < smallest:
        if hidden:
            ax.set_title(f"{hidden} more below {floor:.0e}, where all is rounding")
        return
    told = f", with {hidden} eigenvalues" if hidden else ""
    bottom = floor / 10
    ax.set_ylim(bottom=bottom)
    ax.axhspan(bottom, floor, color="0.85", linewidth=0, label=f"rounding{told}")
