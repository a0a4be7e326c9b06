"""How far up noise reaches: the Marchenko-Pastur edge and the Tracy-Widom width around it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from typing import Any

from spectral_jax import laws
from spectral_jax._options import check_number, is_count

COMPAT = ("tw_quartic_over_3", "cdf_zero_above_edge")


def noise_edge(
    shape: tuple[int, int],
    *,
    variance: Any = 1.0,
    beta: float = 0.1,
    paper_compat: Collection[str] = (),
) -> Any:
    """The value that the largest eigenvalue of noise exceeds with probability ``beta``.

    ``variance ((1 + sqrt(g))^2 + t n^(-2/3) g^(-1/6) (1 + sqrt(g))^(4/3))`` for eigenvalues of
    ``W^T W / n``, ``p, n = sorted(shape)``, ``g = p / n`` and ``t`` the ``1 - beta`` quantile of
    the Tracy-Widom law. The first term is where the bulk of an infinite matrix ends; the second is
    how far the largest eigenvalue of a finite one scatters around it.

    Args:
      shape: ``(m, n)`` of ``W``, in either order.
      variance: of the entries; a factor of the result, and may be a traced array.
      beta: rate of false positives, one in ``1 / beta`` matrices of pure noise; 0.1 as in arXiv
        2006.00436. From 0.17 up the edge lies below the end of the bulk, and above one half, about
        which there is a warning, it cuts into the bulk of most matrices.
      paper_compat: ``("tw_quartic_over_3",)`` takes ``(1 + sqrt(g))^4 / 3`` in place of the power
        ``4/3``, as the code of arXiv 2303.08986 and its successors does: 2.1 times the width for
        square matrices.

    A Python number for one, else an array of the shape of ``variance``. Works under ``jit``,
    ``vmap`` and ``grad`` with respect to ``variance``.
    Raises ``ValueError`` for an impossible shape, ``beta`` out of (0, 1) or an unknown option.
    Sources: Johnstone, Ann. Stat. 29 (2001); arXiv 2006.00436.

    >>> round(noise_edge((200, 500), variance=2.0), 5)
    5.36182
    """
    check_compat(paper_compat)
    check_beta(beta)
    return scale_of_noise(variance, "variance") * edge_factor(sizes(shape), beta, paper_compat)


def scale_of_noise(value: Any, name: str) -> Any:
    """A variance or standard deviation: a checked Python number, or an array in a working dtype."""
    if isinstance(value, int | float):
        check_number("pass a finite number above 0", lambda x: 0 < x < math.inf, **{name: value})
        return value
    # Imported here, because this module loads without jax for callers that pass numbers.
    from spectral_jax.linalg.precision import working

    return working(value, name)


def edge_factor(shape: tuple[int, int], beta: float, paper_compat: Collection[str]) -> float:
    """The edge of noise of variance 1, for a checked ``shape`` of ``(p, n)``."""
    p, n = shape
    g = p / n
    root = 1 + g**0.5
    power = root**4 / 3 if "tw_quartic_over_3" in paper_compat else root ** (4 / 3)
    width = n ** (-2 / 3) * g ** (-1 / 6) * power
    return root**2 + laws.tracy_widom_quantile(1 - float(beta)) * width


def sizes(shape: tuple[int, int]) -> tuple[int, int]:
    """Smaller and larger dimension ``(p, n)``; ``ValueError`` if it is no shape of a matrix."""
    if len(shape) != 2 or not all(map(is_count, shape)):
        raise ValueError(f"shape={shape}: pass (m, n), both at least 1")
    p, n = sorted(map(int, shape))
    return p, n


def check_compat(paper_compat: Collection[str]) -> None:
    """``ValueError`` for an unknown option, and for a string where a tuple is meant."""
    if isinstance(paper_compat, str) or not set(paper_compat) <= set(COMPAT):
        raise ValueError(f"paper_compat={paper_compat!r}: choose a tuple out of {COMPAT}")


def check_beta(beta: float) -> None:
    """``ValueError`` for a rate outside (0, 1); a warning for one that cuts into the bulk."""
    wanted = "choose a false-positive rate above 0 and below 1"
    check_number(wanted, lambda rate: 0 < rate < 1, beta=beta)
    if beta > 0.5:
        warnings.warn(
            f"beta={beta} puts the edge where more than half of all noise exceeds it: pass at most "
            "0.5, or compare with bulk_edge",
            stacklevel=3,
        )
