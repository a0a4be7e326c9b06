"""A bound that can be quoted: what it is made of, whether it holds, and what it must be below."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number, count
from spectral_jax.capacity.binomial import held_out_bound
from spectral_jax.capacity.bound import (
    LEAST,
    Constant,
    Form,
    check_sample,
    complexity,
    invert,
)
from spectral_jax.capacity.gaussians import (
    Basis,
    Gaussian,
    Prior,
    check_gaussian,
    gaussian_kl,
    rows,
)
from spectral_jax.capacity.grid import ScaleGrid, check_grid
from spectral_jax.capacity.kl import kl_inverse

Compat = Literal["penalty_as_written", "plugin_mc", "newton5", "prior_on_train"]
# Why a number computed with such an option is no bound.
NO_BOUND = {
    "penalty_as_written": "the penalty is that of the released code: its scale is no grid point, "
    "and delta multiplies where it should divide",
    "plugin_mc": "the risk is a Monte Carlo mean without a correction for its error",
    "newton5": "kl is inverted by five Newton steps, which may end below the inverse",
    "prior_on_train": "the prior saw examples that the risk is measured on",
}

PROBABILITY = "choose above 0 and below 1"


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A bound on the risk of a random predictor, its parts, and whether it is one."""

    bound: float
    """With probability ``confidence`` the true risk is at most this, if ``valid``."""
    valid: bool
    why_not: tuple[str, ...]
    """Why it is no bound; empty if it is one."""
    confidence: float
    """``1 - delta - delta_mc``."""
    risk: float
    """On the ``n`` examples, mean over the draws."""
    risk_bound: float
    """The same, after the correction for the error of that mean."""
    kl: float
    """From prior to posterior, in nats."""
    penalty: float
    """Nats for the late choice of the prior."""
    n: int
    draws: int
    """Independent draws behind ``risk``; 0 where it was given as a number."""
    form: Form
    constant: Constant
    grid_index: int | None
    """Which point of the grid the prior's variance was rounded to."""
    chance: float | None
    """The error of guessing."""
    prior_bound: float | None
    """What the prior alone is certified for, its relative entropy being 0 (from a point of a grid,
    not quite); held by itself with the same confidence."""
    held_out_bound: float | None
    """What the examples of a test set certify by themselves, at ``delta``."""

    @property
    def nonvacuous(self) -> bool | None:
        """Whether a bound is below chance and below the prior's own; None if one is not known."""
        rivals = (self.chance, self.prior_bound)
        if not self.valid or any(r is not None and not self.bound < r for r in rivals):
            return False
        return None if None in rivals else True

    @property
    def verdict(self) -> str:
        """One sentence: no bound, vacuous, or not, and why."""
        if not self.valid:
            return "not a bound: " + "; ".join(self.why_not)
        rivals = {"chance": self.chance, "the bound of the prior alone": self.prior_bound}
        for name, value in rivals.items():
            if value is not None and not self.bound < value:
                return f"vacuous: {self.bound:.4f} is not below {name}, {value:.4f}"
        missing = [name for name, value in rivals.items() if value is None]
        if missing:
            return f"a bound; {' and '.join(missing)} not given to compare with"
        return "non-vacuous: below chance and below the bound of the prior alone"


def certify(
    posterior: Gaussian,
    prior: Prior,
    risk_draws: Float[ArrayLike, " m"] | float,
    *,
    examples: int | Int[ArrayLike, " n"],
    delta: float = 0.025,
    delta_mc: float = 0.01,
    form: Form = "kl",
    constant: Constant = "maurer",
    grid: ScaleGrid | None = None,
    penalty: float = 0.0,
    basis: Basis | None = None,
    chance: float | None = None,
    prior_draws: Float[ArrayLike, " m"] | None = None,
    held_out: tuple[int, int] | None = None,
    paper_compat: Collection[Compat] = (),
) -> Certificate:
    """Bound the true risk of weights drawn from ``posterior``, and say whether it is a bound.

    `pac_bayes_bound` of the risk on ``examples``. That risk is an average over the posterior, of
    which only draws are seen: it is replaced by ``kl^-1(mean | log(2 / delta_mc) / m)``, an upper
    bound for ``m`` independent draws of losses in [0, 1] (Chernoff; Langford & Caruana 2001).

    Args:
      posterior: any `Gaussian`, chosen in any way from any data.
      prior: a `Prior`; it knows the rows of the training set that it saw.
      risk_draws: ``[m]`` losses in [0, 1] whose expectations average to the risk on ``examples``,
        *independent of each other*. Each may be the mean loss of one draw of the weights on all
        examples or on a random batch; ``m`` counts draws, never examples. Best is a fresh draw for
        each example, the same number for all: then ``m`` is a multiple of ``n``, the correction is
        tiny, and for dense networks it costs one forward pass (`local_dense`). A plain number
        stands for a mean without known error: no bound.
      examples: the rows of the training set that the risk is measured on, none of which the prior
        saw; or their number ``n``, if it saw none at all.
      delta, delta_mc: probabilities that the bound, and that the correction, fail.
      form, constant: see `pac_bayes_bound`.
      grid: for a prior of one variance that was learnt: it is replaced by each of its neighbours
        on the grid, and the better bound returned with that point's penalty.
      penalty: nats for any other choice among priors, `pac_bayes_bound`. It does not pay for draws:
        if ``k`` posteriors were compared by these very draws, pass a ``k``-th of ``delta_mc``.
      basis: in which both are diagonal.
      chance: the error of guessing, ``1 - 1 / classes`` for balanced classes.
      prior_draws: as ``risk_draws``, of weights drawn from the prior.
      held_out: ``(errors, trials)`` of a test set, for `held_out_bound`.
      paper_compat: what published numbers need; each makes the result invalid.
        ``"penalty_as_written"`` (with ``grid`` and ``constant="seeger"``): the learnt variance
        ``s`` is left as it is and costs ``2 log(2 |b log(c / s)|)``, and ``log(n / delta)`` is
        ``log(pi^2 n delta / 6)``, as in the code of arXiv 2110.14163; minus infinity at ``s = c``.
        ``"plugin_mc"``: no correction of the mean. ``"newton5"``: see `kl_inverse`.
        ``"prior_on_train"``: a prior that saw some of the ``examples`` is not refused.

    Runs on the host in float64; not for ``jit``. A relative entropy or risk that is NaN, as of a
    posterior that diverged, gives ``bound`` NaN and ``valid`` False. Warns where the grid ends.
    Raises ``ValueError`` for losses or ``chance`` outside [0, 1], ``delta`` outside (0, 1), means
    of other shapes, a prior without a record of what it saw or that saw some of the ``examples``, a
    grid for a prior of several scales, and options that do not exist.

    >>> import jax.numpy as jnp
    >>> from spectral_jax.capacity import data_free_prior, gaussian
    >>> prior = data_free_prior(jnp.zeros(3), 0.1)
    >>> posterior = gaussian(jnp.full(3, 0.2), 0.1)
    >>> draws = jnp.zeros(60_000).at[:1200].set(1)
    >>> found = certify(posterior, prior, draws, examples=60_000, chance=0.9)
    >>> round(found.kl, 3), round(found.risk_bound, 5), round(found.bound, 5), found.valid
    (6.0, 0.02192, 0.02546, True)
    """
    check_choice(get_args(Form), form=form)
    check_choice(LEAST, constant=constant)
    check_number("choose at least 0", lambda x: 0 <= x < math.inf, penalty=penalty)
    check_gaussian("posterior", posterior)
    chance, tested = _rivals(chance, held_out, delta)
    setting = _Setting(delta, delta_mc, form, constant, _checked(paper_compat, grid, constant))
    n, reasons = _sample(prior, examples, setting)
    risk = _risk("risk_draws", risk_draws, setting)
    with jax.enable_x64(True):
        posterior, chosen, basis = _float64((posterior, prior.gaussian, basis))
        found = [
            (_price(float(_entropy(posterior, p, basis)), nats, j, risk, n, setting), p)
            for j, nats, p in _choices(chosen, grid, penalty, setting)
        ]
        best, fixed = min(found, key=lambda pair: pair[0].bound)
        # Draws of a prior whose scale was learnt are not of the grid's point that stands for it.
        alone = _alone(prior_draws, float(_entropy(chosen, fixed, basis)), best.penalty, n, setting)
    if risk.draws == 0:
        reasons += ("the risk is a number, not draws: its Monte Carlo error is unknown",)
    if math.isnan(best.bound):
        reasons += ("relative entropy or risk is NaN: the posterior diverged, or is no Gaussian",)
    return Certificate(
        **best._asdict(),
        valid=not reasons,
        why_not=reasons,
        confidence=1 - delta - delta_mc,
        risk=risk.mean,
        risk_bound=risk.bound,
        n=n,
        draws=risk.draws,
        form=form,
        constant=constant,
        chance=chance,
        prior_bound=alone,
        held_out_bound=tested,
    )


def _rivals(
    chance: float | None, held_out: tuple[int, int] | None, delta: float
) -> tuple[float | None, float | None]:
    """The error of guessing, and the bound of the test set."""
    if chance is not None:
        chance = np.asarray(chance).item()
        check_number("choose 0 to 1, an error of guessing", lambda x: 0 <= x <= 1, chance=chance)
    if held_out is None:
        return chance, None
    if np.shape(held_out) != (2,):
        raise ValueError(f"held_out={held_out!r}: pass (errors, trials)")
    errors, trials = held_out
    return chance, held_out_bound(errors, trials, delta=delta)


@jax.jit
def _entropy(q: Gaussian, p: Gaussian, basis: Basis | None) -> jax.Array:
    """In one program: by themselves its operations would be compiled for every shape of weights."""
    return gaussian_kl(q, p, basis=basis)


class _Setting(NamedTuple):
    delta: float
    delta_mc: float
    form: Form
    constant: Constant
    compat: frozenset[str]


class _Risk(NamedTuple):
    mean: float
    bound: float
    draws: int


class _Price(NamedTuple):
    """What one prior of the grid certifies."""

    bound: float
    kl: float
    penalty: float
    grid_index: int | None


def _checked(
    paper_compat: Collection[Compat], grid: ScaleGrid | None, constant: Constant
) -> frozenset[str]:
    for option in paper_compat:
        check_choice(NO_BOUND, paper_compat=option)
    if "penalty_as_written" in paper_compat and (grid is None or constant != "seeger"):
        raise ValueError("paper_compat='penalty_as_written' needs a grid and constant='seeger'")
    return frozenset(paper_compat)


def _sample(
    prior: Prior, examples: int | Int[ArrayLike, " n"], setting: _Setting
) -> tuple[int, tuple[str, ...]]:
    """The sample size, and what the options themselves say against the bound."""
    delta, delta_mc, _, constant, compat = setting
    check_number(PROBABILITY, lambda x: 0 < x < 1, delta=delta, delta_mc=delta_mc)
    check_number(PROBABILITY, lambda x: 0 < x < 1, **{"delta + delta_mc": delta + delta_mc})
    if not isinstance(prior, Prior):
        raise ValueError(
            "prior has no record of what it saw: make it with data_free_prior or learnt_prior"
        )
    seen = rows("prior.seen", prior.seen)
    if np.ndim(examples) == 0 and not len(seen):
        n, shared = count("examples", examples), 0
    elif np.ndim(examples):
        used = rows("examples", examples)
        n, shared = len(used), len(np.intersect1d(seen, used))
    else:
        raise ValueError(
            f"examples={examples}, and the prior saw {len(seen)} rows: pass the rows that the risk "
            "is measured on, so that it can be checked that they are others"
        )
    if shared and "prior_on_train" not in compat:
        raise ValueError(
            f"the prior saw {shared} of the {n} examples: measure the risk on the others, "
            "or pass paper_compat={'prior_on_train'} for a number that is no bound"
        )
    check_sample(n, constant)
    told = compat if shared else compat - {"prior_on_train"}
    return n, tuple(NO_BOUND[option] for option in sorted(told))


def _risk(name: str, draws: Float[ArrayLike, " m"] | float, setting: _Setting) -> _Risk:
    """Mean and corrected mean of the draws; of a plain number, itself."""
    if isinstance(draws, np.ma.MaskedArray) or np.iscomplexobj(draws):
        raise ValueError(f"{name} are masked or complex: pass real losses, a vector [m]")
    if isinstance(draws, jax.core.Tracer):
        raise ValueError("certify runs on the host in float64: call it outside jit, vmap and grad")
    try:
        losses = np.asarray(draws, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are no losses [m]: {error}") from None
    if losses.ndim > 1 or losses.size == 0 or np.any((losses < 0) | (losses > 1)):
        raise ValueError(f"{name} of shape {losses.shape}: pass losses within [0, 1], a vector [m]")
    mean = float(losses.mean())
    if losses.ndim == 0:
        return _Risk(mean, mean, 0)
    if "plugin_mc" in setting.compat:
        return _Risk(mean, mean, losses.size)
    with jax.enable_x64(True):
        bound = kl_inverse(mean, math.log(2 / setting.delta_mc) / losses.size)
    return _Risk(mean, float(bound), losses.size)


def _choices(
    prior: Gaussian, grid: ScaleGrid | None, penalty: float, setting: _Setting
) -> list[tuple[int | None, float, Gaussian]]:
    """Priors to try, each with its point of the grid and its nats."""
    if grid is None:
        return [(None, penalty, prior)]
    check_grid(grid)
    if [np.ndim(scale) for scale in jax.tree.leaves(prior.log_scale)] != [0]:
        raise ValueError("grid is for a prior with one scale: pass penalty= for any other choice")
    with np.errstate(over="ignore"):
        variance = float(np.exp(2 * float(prior.log_scale)))
    if not 0 < variance < math.inf:  # it diverged, and there is no point near it
        return [(None, penalty, prior._replace(log_scale=np.float64(np.nan)))]
    if "penalty_as_written" in setting.compat:
        choice = 2 * math.log(2 * abs(grid.b * math.log(grid.c / variance)))
        return [(None, choice + math.log(math.pi**2 * setting.delta**2 / 6), prior)]
    return [
        (j, penalty + grid.penalty(j), Gaussian(prior.mean, np.log(grid.variance(j)) / 2))
        for j in grid.neighbours(variance)
    ]


def _price(
    kl: float, penalty: float, j: int | None, risk: _Risk, n: int, setting: _Setting
) -> _Price:
    c = complexity(kl + penalty, n, setting.delta, setting.constant)
    if "newton5" in setting.compat and setting.form == "kl":
        bound = kl_inverse(risk.bound, c, paper_compat="newton5")
    else:
        bound = invert(risk.bound, c, setting.form)
    return _Price(float(bound), kl, penalty, j)


def _alone(
    draws: Float[ArrayLike, " m"] | None, kl: float, penalty: float, n: int, setting: _Setting
) -> float | None:
    """What the prior certifies by itself."""
    if draws is None:
        return None
    risk = _risk("prior_draws", draws, setting)
    if risk.draws == 0:
        raise ValueError(f"prior_draws={risk.mean}: pass draws [m], for a number is no bound")
    return _price(kl, penalty, None, risk, n, setting).bound


def _float64(tree: Any) -> Any:
    """Its real numbers; the data of a basis may hold whole ones."""

    def cast(x):
        real = jax.numpy.issubdtype(jax.numpy.result_type(x), jax.numpy.floating)
        return np.asarray(x, np.float64) if real else x

    return jax.tree.map(cast, tree)
