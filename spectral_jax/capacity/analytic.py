"""The posterior that curvature prescribes: no training, one formula for each eigenvalue."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax._options import REAL, check_number
from spectral_jax.capacity.bound import check_confidence, check_sample
from spectral_jax.capacity.gaussians import Gaussian, Tree
from spectral_jax.linalg.precision import working

Factor = Literal["optimal", "isotropic", 2, 4]
# Of the fixed point. A root that has not settled yet makes a bound as well, only not the least.
ROUNDS = 100


class AnalyticPosterior(NamedTuple):
    """A Gaussian around trained weights, of these precisions in the Hessian's eigenbasis."""

    precision: Float[Array, " k"]
    """Along the eigenvectors that were given."""
    epsilon: Float[Array, ""]
    """The prior's precision, and that of the posterior in all other directions."""
    kl: Float[Array, ""]
    """From the prior, in nats."""
    root: Float[Array, ""]
    """``B = sqrt((kl + penalty + log(n / delta)) / (2 (n - 1)))``, what the bound adds to the risk
    by Pinsker's inequality."""
    rise: Float[Array, ""]
    """``1/2 sum_i lambda_i / precision_i``: the loss that noise along these eigenvectors adds, to
    second order, in the unit of the eigenvalues."""

    def gaussian(self, weights: Tree) -> Gaussian:
        """The posterior around ``weights``, in the `vector_basis` of the eigenvectors."""
        return Gaussian(weights, (-jnp.log(self.precision) / 2, -jnp.log(self.epsilon) / 2))


def analytic_posterior(
    eigenvalues: Float[Array, " k"],
    displacement: Float[ArrayLike, "*p"],
    *,
    n: int,
    epsilon: ArrayLike,
    delta: float = 0.025,
    penalty: ArrayLike = 0.0,
    factor: Factor = "optimal",
) -> AnalyticPosterior:
    """The Gaussian in a Hessian's eigenbasis that trades risk against relative entropy.

    Prior ``N(w0, I / epsilon)``, posterior ``N(w, 1 / precision)`` with, along each eigenvector,

        ``precision_i = epsilon + 4 B (n - 1) lambda_i``

    and ``epsilon`` in all other directions. It minimises the risk to second order plus
    ``B = sqrt((KL + penalty + log(n / delta)) / (2 (n - 1)))``; and

        ``KL = 1/2 sum_i [log(precision_i / epsilon) + epsilon / precision_i - 1]
        + 1/2 epsilon ||w - w0||^2``.

    The posterior may depend on the data as it likes, so no ``factor`` costs anything: each gives a
    bound, and which is least depends on the network.

    Args:
      eigenvalues: the largest of the Hessian of the training loss at ``w``, in any order; negative
        ones count as 0. Those left out count as 0 too: the bound stays one, but the noise is then
        larger than it should be in their directions. For the error in bits as a stand-in for the
        0-1 loss, as in the source, divide the eigenvalues of a loss in nats by ``log 2``.
      displacement: ``w - w0`` in any orthogonal coordinates, or its norm.
      n: examples, at least 2.
      epsilon: precision of the prior, above 0, one over a variance of a `ScaleGrid`.
      penalty: nats for the choice of ``epsilon``.
      factor: ``"optimal"`` solves for ``B``; ``2`` and ``4`` fix ``B`` at 1/2 and 1 in the
        precisions alone (the released code's is 4); ``"isotropic"`` at 0.

    Everything but the risk of the posterior, which is to be measured: draw from
    ``result.gaussian(w)`` in ``vector_basis(eigenvectors)``, and `certify` with
    ``constant="seeger"``. Works under ``jit``, ``vmap`` (over ``epsilon``, say) and ``grad`` (for
    ``"optimal"`` through the iteration). Half precision and integers are read as float32. NaN for
    ``epsilon`` not above 0 and an array ``penalty`` below 0. Raises ``ValueError`` for complex
    numbers, shapes that do not fit, ``n`` or ``delta`` out of range and another factor.
    Source: arXiv 2110.14163, its released code, and the first-order condition.

    >>> one = analytic_posterior(jnp.array([0.1, 1e-9]), 2.0, n=1001, epsilon=1.0, factor=2)
    >>> one.precision.round(3).tolist(), round(float(one.kl), 3)
    ([201.0, 1.0], 4.154)
    """
    if factor not in ("optimal", "isotropic", 2, 4):
        raise ValueError(f"factor={factor!r}: choose 'optimal', 'isotropic', 2 or 4")
    check_sample(n, "seeger")
    check_confidence(delta=delta)
    if isinstance(penalty, REAL):
        check_number("choose at least 0", lambda x: 0 <= x < math.inf, penalty=penalty)
    values, moved = working(eigenvalues, "eigenvalues"), working(displacement, "displacement")
    size = jnp.asarray(n, values.dtype)
    epsilon = working(epsilon, "epsilon").astype(values.dtype)
    epsilon = jnp.where(epsilon > 0, epsilon, jnp.nan)
    if values.ndim != 1 or epsilon.ndim != 0:
        raise ValueError(
            f"eigenvalues {values.shape} and epsilon {epsilon.shape}: pass [k] and one number "
            "(vmap for several)"
        )
    penalty = working(penalty, "penalty").astype(values.dtype)
    nats = jnp.where(penalty >= 0, penalty, jnp.nan) + jnp.log(size / delta)
    distance = jnp.sum(moved.astype(values.dtype) ** 2)
    return _analytic(values, distance, size, epsilon, nats, factor)


@partial(jax.jit, static_argnames="factor")
def _analytic(
    eigenvalues: Array, distance: Array, n: Array, epsilon: Array, nats: Array, factor: Factor
) -> AnalyticPosterior:
    values = jnp.maximum(eigenvalues, 0)

    def posterior(root):
        precision = epsilon + 4 * root * (n - 1) * values
        ratio = precision / epsilon
        kl = (jnp.sum(jnp.log(ratio) + 1 / ratio - 1) + epsilon * distance) / 2
        return precision, kl, jnp.sqrt((kl + nats) / (2 * (n - 1)))

    def round_(_, root):
        return posterior(root)[2]

    fixed = {"isotropic": 0.0, 2: 0.5, 4: 1.0}
    start = jnp.full_like(epsilon, fixed.get(factor, 1.0))
    root = start if factor in fixed else jax.lax.fori_loop(0, ROUNDS, round_, start)
    precision, kl, root = posterior(root)
    return AnalyticPosterior(precision, epsilon, kl, root, jnp.sum(values / precision) / 2)
