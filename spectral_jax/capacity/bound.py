"""The PAC-Bayes bound, a function of empirical risk, relative entropy and sample size.

The same function is the objective that a posterior is trained on: it is differentiable.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number
from spectral_jax.capacity.kl import kl_inverse
from spectral_jax.linalg.precision import working

Form = Literal["kl", "quadratic", "pinsker"]
Constant = Literal["maurer", "seeger"]
# The theorem of each constant holds from this sample size on.
LEAST = {"maurer": 8, "seeger": 2}


def pac_bayes_bound(
    risk: Float[ArrayLike, "..."],
    kl: Float[ArrayLike, "..."],
    *,
    n: ArrayLike,
    delta: ArrayLike = 0.025,
    penalty: ArrayLike = 0.0,
    form: Form = "kl",
    constant: Constant = "maurer",
) -> Float[Array, "..."]:
    """An upper bound on the true risk of a random predictor, that of its weights drawn from ``Q``.

    For losses in [0, 1], a prior ``P`` fixed before the ``n`` examples were seen and, with
    probability at least ``1 - delta`` over those examples, *all* ``Q`` at once,

        ``kl(risk || true risk) <= c = (KL(Q || P) + penalty + log(2 sqrt(n) / delta)) / n``.

    Which number is returned is the ``form``:

    ``"kl"``
        the largest true risk that this allows (`kl_inverse`): the tightest;
    ``"quadratic"``
        ``(sqrt(risk + c / 2) + sqrt(c / 2))^2``, the objective ``f_quad`` of arXiv 2007.12911. The
        bound with a free parameter ``lambda`` (arXiv 1608.05610), minimised over it, is the same;
    ``"pinsker"``
        ``risk + sqrt(c / 2)``, McAllester's, and the objective of arXiv 1703.11008.

    The last two follow from ``"kl"`` and are never below it (but for its rounding outwards); they
    may exceed 1, and are defined for a ``risk`` above 1, as of a cross-entropy that is not bounded:
    good objectives then, but not bounds.

    Args:
      risk: mean loss over the ``n`` examples *and* over draws from ``Q``. Of a Monte Carlo mean
        this is not a bound until that is corrected; `certify` does.
      kl: ``KL(Q || P)`` in nats, see `gaussian_kl`.
      delta: probability that the bound fails; a number or an array in (0, 1).
      penalty: nats that a choice of ``P`` costs: ``log(1 / weight)`` for a ``P`` chosen after the
        fact among countably many whose weights sum to 1 (`ScaleGrid`).
      constant: ``"maurer"`` is the ``c`` above, for ``n >= 8`` (Maurer 2004, arXiv cs/0411099);
        ``"seeger"``, ``(KL + penalty + log(n / delta)) / (n - 1)``, is that of arXiv 1703.11008
        and 2110.14163: looser.

    Arguments broadcast. NaN for ``n`` below 8 (``"seeger"``: 2), ``delta`` outside (0, 1), a
    negative ``kl``, ``penalty`` or risk, or one of them NaN; ``"kl"`` also for a risk above 1.
    Works under ``jit``, ``vmap`` and ``grad`` (infinite at risk 0 and ``c = 0``). Half precision
    and integers are read as float32. Raises ``ValueError`` for complex numbers, an unknown option,
    and for ``n`` or ``delta`` out of range if they are Python numbers.

    >>> round(float(pac_bayes_bound(0.028, 5144.0, n=55000, constant="seeger")), 4)
    0.1608
    >>> round(float(pac_bayes_bound(0.028, 5144.0, n=55000, form="pinsker")), 4)
    0.2445
    """
    check_choice(get_args(Form), form=form)
    check_choice(LEAST, constant=constant)
    check_sample(n, constant)
    check_confidence(delta=delta)
    if isinstance(n, int):  # so that billions of tokens are no overflow
        n = float(n)
    numbers = (working(x, name) for name, x in _named(risk, kl, n, delta, penalty))
    return _bound(*numbers, form=form, constant=constant)


def check_sample(n: ArrayLike, constant: Constant) -> None:
    """``ValueError`` for a Python number of examples for which the constant's theorem is silent."""
    if not isinstance(n, jax.Array | np.ndarray):
        least = LEAST[constant]
        check_number(f"choose at least {least} ({constant!r})", lambda x: x >= least, n=n)


def check_confidence(**options: ArrayLike) -> None:
    """``ValueError`` for a Python number that is no probability between 0 and 1."""
    numbers = {k: x for k, x in options.items() if not isinstance(x, jax.Array | np.ndarray)}
    check_number("choose above 0 and below 1", lambda x: 0 < x < 1, **numbers)


def _named(*numbers: ArrayLike) -> zip:
    return zip(("risk", "kl", "n", "delta", "penalty"), numbers, strict=True)


@partial(jax.jit, static_argnames=("form", "constant"))
def _bound(risk, kl, n, delta, penalty, form: Form, constant: Constant) -> Array:
    dtype = jnp.result_type(risk, kl)
    risk, kl, n, delta, penalty = (x.astype(dtype) for x in (risk, kl, n, delta, penalty))
    within = (n >= LEAST[constant]) & (delta > 0) & (delta < 1) & (kl >= 0) & (penalty >= 0)
    c = complexity(kl + penalty, n, delta, constant)
    return invert(jnp.where(risk >= 0, risk, jnp.nan), jnp.where(within, c, jnp.nan), form)


def complexity(
    nats: Array | float, n: Array | float | int, delta: Array | float, constant: Constant
) -> Array:
    """``c`` of the theorem, from relative entropy and penalty together."""
    if constant == "maurer":
        return (nats + jnp.log(2 * jnp.sqrt(n) / delta)) / n
    return (nats + jnp.log(n / delta)) / (n - 1)


def invert(risk: Array | float, c: Array | float, form: Form) -> Array:
    """The bound that ``kl(risk || true risk) <= c`` gives in this form."""
    if form == "kl":
        return kl_inverse(risk, c)
    if form == "pinsker":
        return risk + jnp.sqrt(c / 2)
    return (jnp.sqrt(risk + c / 2) + jnp.sqrt(c / 2)) ** 2
