"""The spectral density of a symmetric operator, by stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from spectral_jax._options import count
from spectral_jax.linalg.lanczos import lanczos, three_term
from spectral_jax.linalg.operators import SymmetricOperator, check_operator
from spectral_jax.linalg.trace import Estimate, average, sphere


class Density(NamedTuple):
    """One quadrature rule for each probe, for the density ``mu = (1/n) sum_i delta(lambda_i)``.

    Row ``p`` holds the nodes (eigenvalues of the Lanczos matrix, ascending, in the unit of the
    operator) and weights (at least 0, sum 1) of probe ``p``. ``rank[p]`` counts the Lanczos steps
    before breakdown: if it is below the number of steps, the probe lay in an invariant subspace of
    that dimension, the rule is exact for it, and the nodes left over have weight 0. ``matvecs`` is
    the number of products made in all.

    The methods return an ``Estimate``: the mean over probes and its standard error. The error is
    the spread between probes alone; that a rule of few nodes does not resolve the spectrum is not
    in it. They work under ``jit``, ``vmap`` and ``grad``; with one probe the error is NaN.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]
    rank: Int[Array, " probes"]
    matvecs: Int[Array, ""]

    def mean(self, function: Callable[[Array], Array]) -> Estimate:
        """``tr f(A) / n``, the integral of ``f`` over the density.

        ``f`` gets the nodes ``[probes, steps]``, acts elementwise and may add axes in front.

        Each rule is exact for polynomials of degree ``2 steps - 1``.
        """
        return average(jnp.sum(self.weights * function(self.nodes), axis=-1), self.matvecs)

    def moments(self, order: int) -> Estimate:
        """``tr A^k / n`` for ``k = 1 .. order``; arrays of shape ``[order]``.

        Unbiased up to order ``2 steps - 1``.
        """
        return self.mean(lambda x: jnp.stack([x**k for k in range(1, order + 1)]))

    def cdf(self, at: Float[Array, " grid"]) -> Estimate:
        """The share of eigenvalues at most ``at``, of shape ``[grid]``.

        A staircase with steps at the nodes. Between two nodes the share of one rule is off by at
        most the weight of the next node (Chebyshev-Markov-Stieltjes inequalities), which the
        standard error does not show.
        """
        return self.mean(lambda x: (x <= at[:, None, None]).astype(x.dtype))

    def smoothed(self, at: Float[Array, " grid"], broadening: Float[Array, ""] | float) -> Estimate:
        """The density convolved with a Gaussian of standard deviation ``broadening``, at ``at``.

        ``broadening`` has the unit of the eigenvalues; the result integrates to one. Choose it no
        smaller than the spacing of the nodes, below which the peaks are those of the rule, not of
        the spectrum.
        """
        norm = broadening * jnp.sqrt(2 * jnp.pi).astype(self.nodes.dtype)
        return self.mean(
            lambda x: jnp.exp(-(((x - at[:, None, None]) / broadening) ** 2) / 2) / norm
        )


@partial(jax.jit, static_argnames=("probes", "steps", "reorthogonalise", "batch_size"))
def spectral_density(
    op: SymmetricOperator,
    key: PRNGKeyArray,
    *,
    probes: int = 10,
    steps: int = 100,
    reorthogonalise: bool = True,
    batch_size: int = 1,
) -> Density:
    """Estimate the spectral density of ``op`` from ``probes`` runs of ``steps`` Lanczos steps.

    ``mu = (1/n) sum_i delta(lambda_i) = E sum_i (u_i . v)^2 delta(lambda_i)`` for ``v`` uniform on
    the sphere, and the Gauss rule of that measure has the eigenvalues of the Lanczos matrix ``T``
    as nodes and the squared first entries of its eigenvectors as weights. With ``steps = n`` the
    nodes are the eigenvalues and only the weights are random; more steps are cut to ``n``.

    Args:
      probes: random starts. The standard error of the mean of ``f`` is about
        ``sqrt(2 / (n probes))`` times the spread of ``f`` over the spectrum: 1 % of it for 10
        probes and 2000 rows.
      steps: Lanczos steps, and so nodes, of each. 100 resolve a spectrum to about 2 % of its width
        in the middle, and finer at the ends.
      reorthogonalise: keep the basis of a probe, ``steps n`` numbers, and keep it orthogonal.
        Without, memory is ``3 n`` and time that of the products alone. Converged nodes then appear
        in copies that share their weight: density and moments stay right, but some of the ``steps``
        nodes are spent on copies.
      batch_size: probes that run together, as one product with a block a step, with as many bases
        in memory; 1 takes one after another. Raise it where a product with a block costs little
        more than with a vector, as on accelerators.

    What it cannot see. Nodes are dense at the ends of the spectrum and sparse where eigenvalues
    crowd. An outlier of multiplicity ``m`` that stands apart is found, with weight ``m/n`` to the
    error of the probes; the shape of a narrow bulk is not resolved, nor is anything far smaller
    than ``||A||`` (nodes below ``steps * eps * ||A||`` are rounding). So it cannot certify that a
    spectrum reaches over many decades: of 2000 eigenvalues spread geometrically from 1 to 1e-10,
    100 steps report none below 1e-6 (truth: 40 %), with a standard error of 0. For such spectra
    form the matrix.

    Works under ``jit`` and ``vmap``; not differentiable where nodes coincide (breakdown). The
    operator may have any scale from 1e-30 to 1e30 in float32. NaN in it is NaN in every node and
    weight. Raises ``ValueError`` if ``probes``, ``steps`` or ``batch_size`` is below 1 or no
    integer.
    matfree (``funm.monte_carlo_funm_sym`` on ``decomp.tridiag_sym``) integrates one given function
    with the same rules, and brings gradients of its own; it returns no nodes, divides by zero at a
    breakdown, and reads the whole basis four times a step where two reads of the filled part do.
    Source: Golub & Meurant, Matrices, Moments and Quadrature; Ubaru, Chen & Saad 2017.

    >>> from spectral_jax.linalg import dense_operator
    >>> op = dense_operator(jnp.diag(jnp.array([1.0, 1.0, 1.0, 5.0])))
    >>> density = spectral_density(op, jax.random.key(0), probes=400, steps=2)
    >>> [round(float(x), 3) for x in density.nodes[0]]
    [1.0, 5.0]
    >>> share = density.cdf(jnp.array([0.0, 2.0, 6.0]))
    >>> bool((abs(share.value - jnp.array([0, 0.75, 1])) <= 3 * share.standard_error + 1e-6).all())
    True
    """
    check_operator(op)
    probes, batch_size = count("probes", probes), count("batch_size", batch_size)
    steps = min(count("steps", steps), op.size)

    def rule(start):
        if reorthogonalise:
            t = lanczos(op, start, steps)
            return _gauss(t.alpha, t.beta, t.rank)
        return _gauss(*three_term(op, start, steps))

    starts = sphere(key, op, probes).T
    # `batch_size=1` would `vmap` over batches of one: matrix products with one column, which take
    # twice as long as matrix-vector products.
    together = min(batch_size, probes) if batch_size > 1 else None
    nodes, weights, rank = jax.lax.map(rule, starts, batch_size=together)
    return Density(nodes, weights, rank, jnp.asarray(probes * steps))


@partial(jax.jit, static_argnames=("probes", "steps"))
def logdet(
    op: SymmetricOperator, key: PRNGKeyArray, *, probes: int = 10, steps: int = 100
) -> Estimate:
    """Estimate ``log det A = tr log A`` of a positive definite ``op`` by Lanczos quadrature.

    Value and standard error are scalars; ``probes * steps`` matvecs. The error of the quadrature
    falls like ``exp(-4 steps / sqrt(cond A))`` and makes the value too large; the standard error is
    that over probes alone.

    NaN if some node is not above ``10 eps`` of the largest: then ``A`` is indefinite or singular
    to working precision, and the logarithm of such a node is that of a rounding error.
    Works under ``jit`` and ``vmap``. Raises ``ValueError`` as `spectral_density` does.
    matfree's ``monte_carlo_funm_sym_logdet`` is as accurate, and to be preferred for gradients.
    Source: Ubaru, Chen & Saad 2017.

    >>> from spectral_jax.linalg import dense_operator
    >>> result = logdet(dense_operator(2 * jnp.eye(5)), jax.random.key(0), probes=2)
    >>> round(float(result.value), 3)  # 5 log 2
    3.466
    """
    # A negative or vanishing node makes NaN, not a finite number that looks like an answer.
    density = spectral_density(op, key, probes=probes, steps=steps)
    floor = 10 * jnp.finfo(density.nodes.dtype).eps * jnp.max(jnp.abs(density.nodes))
    one = density.mean(lambda x: jnp.where(x > floor, jnp.log(jnp.abs(x)), jnp.nan))
    return one._replace(value=op.size * one.value, standard_error=op.size * one.standard_error)


def _gauss(alpha: Array, beta: Array, rank: Array) -> tuple[Array, Array, Array]:
    """Nodes and weights of the Gauss rule of a Lanczos matrix (Golub & Welsch 1969)."""
    # Rows after a breakdown are zero. They are not coupled to the others, so their nodes get weight
    # 0; but a node 0 might lie far outside the spectrum (where log fails): take alpha[0] instead.
    left_over = jnp.arange(len(alpha)) >= rank
    alpha = jnp.where(left_over, alpha[0], alpha)
    nodes, vectors = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1))
    weights = vectors[0] ** 2
    return nodes, weights / jnp.sum(weights), rank
