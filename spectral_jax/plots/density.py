"""The spectral density on a logarithmic axis, with what the method cannot see shaded."""

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from spectral_jax.plots.style import COLUMN, OKABE_ITO, styled

_BLACK, _BLUE, _RED = OKABE_ITO[:3]


@styled
def density_by_decade(
    at: Float[np.ndarray, " G"],
    positive: Float[np.ndarray, " G"],
    negative: Float[np.ndarray, " G"] | None = None,
    *,
    resolved: Bool[np.ndarray, " G"],
    unit: str = "",
) -> Figure:
    """Share of eigenvalues per decade of ``|lambda|``, of either sign.

    at, positive, negative, resolved: magnitudes, ``Density.per_decade`` of both signs and
    ``Density.resolved`` there. What is not resolved is shaded: of the eigenvalues below only their
    number is known. NaN, below the floor of rounding, is not drawn.
    """
    figure = Figure(figsize=(COLUMN, 3.0), layout="constrained")
    ax = figure.subplots()
    at, seen = np.asarray(at), np.asarray(resolved)
    if not seen.all():
        end = at[np.argmax(seen)] if seen.any() else at[-1]
        ax.axvspan(at[0], end, color=_BLACK, alpha=0.12, linewidth=0, label="not resolved")
    ax.plot(at, positive, "-", color=_BLUE, label="positive")
    if negative is not None:
        ax.plot(at, negative, "--", color=_RED, label="negative")
    ax.set(xscale="log", xlim=(at[0], at[-1]), ylabel="share of eigenvalues per decade")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("magnitude of the eigenvalue" + (unit and f" ({unit})"))
    figure.legend(loc="outside upper left", ncols=3)
    return figure
