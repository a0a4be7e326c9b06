"""The columns of the table, each with what it means and where its formula comes from.

An eigenvalue here is a squared singular value of a layer's weights, without a factor and without
centring; a convolution's kernel positions are matrices of their own whose eigenvalues are pooled.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """One column: its metric group, and what a reader needs to trust it."""

    name: str
    group: str
    meaning: str


def _columns(group: str, meanings: dict[str, str]) -> tuple[Column, ...]:
    return tuple(Column(name, group, meaning) for name, meaning in meanings.items())


COLUMNS: tuple[Column, ...] = (
    *_columns(
        "layer",
        {
            "layer": "name of the weights, as the checkpoint or the pytree path has it",
            "kind": "dense, conv, depthwise, grouped, embedding, attention, recurrent or low_rank",
            "m": "rows of the matrix (inputs)",
            "n": "columns of the matrix (outputs)",
            "slices": "matrices whose eigenvalues are pooled: a convolution's kernel positions",
            "parameters": "number of weights",
            "eigenvalues": "how many there are: slices x min(m, n)",
            "rank": "eigenvalues above (max(m, n) eps)^2 of the largest, eps of float32",
            "note": "what had to be assumed to read the weights; empty where nothing was in doubt",
            "verdict": "what stands out in the layer, a reading of the other columns",
            "reason": "the numbers behind the verdict",
        },
    ),
    *_columns(
        "norms",
        {
            "norm": "sum of the eigenvalues: squared Frobenius norm",
            "log_norm": "log10 of norm",
            "spectral_norm": "largest eigenvalue: squared spectral norm",
            "log_spectral_norm": "log10 of spectral_norm",
            "stable_rank": "norm / spectral_norm",
            "entropy": "Shannon entropy of eigenvalue / norm, over log(rank)",
            "mp_softrank": "edge of a Marchenko-Pastur bulk with the median of the eigenvalues, "
            "over the largest eigenvalue; unknown for low_rank",
        },
    ),
    *_columns(
        "hill",
        {
            "alpha_hill": "Hill exponent of the upper half of the spectrum",
            "alpha_null": "the same of a matrix of independent entries of this shape: "
            "Marchenko-Pastur, closed form and its finite-size bias; unknown for low_rank",
            "alpha_z": "how far alpha_hill is from alpha_null, in standard deviations of random "
            "matrices of this shape, of 1 / (alpha - 1): beyond -3 the tail is heavier than chance",
            "alpha_debiased": "alpha_hill - alpha_null: comparable between layers of different "
            "shape",
        },
    ),
    *_columns(
        "ks",
        {
            "alpha_ks": "power-law exponent, maximum likelihood above xmin",
            "sigma": "its standard error, (alpha_ks - 1) / sqrt(tail)",
            "xmin": "the eigenvalue where the tail begins: the one with the least ks_distance",
            "tail": "eigenvalues in the tail",
            "ks_distance": "Kolmogorov-Smirnov distance of tail and fit",
            "fit": "ok, or why the fit says nothing",
            "alpha_weighted": "alpha_ks x log_spectral_norm (alpha-hat)",
            "log_alpha_norm": "log10 of the sum of eigenvalue^alpha_ks",
        },
    ),
    *_columns(
        "farms",
        {
            "alpha_farms": "Hill exponent of the pooled spectra of square windows of the weights "
            "(arXiv 2506.06280), free of the bias of the shape"
        },
    ),
    *_columns(
        "alternatives",
        {
            "truncated_ratio": "log-likelihood of the power law less that of a truncated one, "
            "of which it is a limit: never above 0",
            "truncated_p": "chance of such a ratio if the power law holds (chi-squared)",
            "exponential_ratio": "log-likelihood of the power law less that of an exponential: "
            "above 0 the power law is the likelier",
            "exponential_p": "chance of such a ratio if both are equally good (Vuong)",
            "lognormal_ratio": "log-likelihood of the power law less that of a lognormal",
            "lognormal_p": "chance of such a ratio if both are equally good (Vuong)",
        },
    ),
    *_columns(
        "goodness",
        {
            "p_value": "share of power-law samples that fit worse (Clauset, Shalizi and Newman, "
            "bootstrap with xmin fitted again); below 0.1 it is no power law"
        },
    ),
)

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(column.group for column in COLUMNS))
OPTIONAL = GROUPS[1:]
DEFAULT = ("norms", "hill", "ks")


def names(groups: Sequence[str]) -> list[str]:
    """The columns of these groups, in the order of the table."""
    wanted = ("layer", *groups)
    return [column.name for column in COLUMNS if column.group in wanted]
