"""An exponent read against that of noise of the same shape."""

from typing import Literal

from jaxtyping import Array, Float

from spectral_jax.tails.null import null_alpha


def null_zscore(
    alpha: Float[Array, "*batch"], shape: tuple[int, ...], *, fraction: float = 0.5
) -> Float[Array, "*batch"]:
    """How many null deviations ``alpha`` lies above that of noise: ``(alpha - mean) / deviation``.

    Heavy tails make it negative. ``shape`` and errors as for ``null_alpha``. Works under ``jit``,
    ``vmap`` and ``grad``. It tests for noise and does not measure training: any structure at all
    moves a large matrix by many deviations.
    """
    null = null_alpha(shape, fraction=fraction)
    return (alpha - null.mean) / null.deviation


def debiased_alpha(
    alpha: Float[Array, "*batch"],
    shape: tuple[int, ...],
    *,
    fraction: float = 0.5,
    form: Literal["difference", "ratio"] = "difference",
) -> Float[Array, "*batch"]:
    """Take what is due to the shape alone out of ``alpha``.

    ``difference`` is ``alpha - null.mean``, 0 for noise; ``ratio`` is
    ``(alpha - 1) / (null.mean - 1)``, 1 for noise. The ratio is the better calibrated of the two:
    its spread over noise is close to ``3 / min(m, n)`` for every aspect ratio (2.8 to 3.3 from 1
    to 8), where that of the difference grows with the aspect ratio as ``null.mean - 1`` does.

    ``shape`` and errors as for ``null_alpha``, and ``ValueError`` for an unknown ``form``. Works
    under ``jit``, ``vmap`` and ``grad``.
    """
    mean = null_alpha(shape, fraction=fraction).mean
    if form == "difference":
        return alpha - mean
    if form == "ratio":
        return (alpha - 1) / (mean - 1)
    raise ValueError(f"form={form!r}: choose 'difference' or 'ratio'")
