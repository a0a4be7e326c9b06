"""The spectral density of a symmetric operator, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from spectral_jax._options import count
from spectral_jax.linalg.compose import columns, project
from spectral_jax.linalg.lanczos import lanczos, three_term
from spectral_jax.linalg.operators import SymmetricOperator, check_operator
from spectral_jax.linalg.precision import unit_of
from spectral_jax.linalg.subspace import mm, outside, unit
from spectral_jax.linalg.trace import Estimate, average, sphere


class Density(NamedTuple):
    """One quadrature rule for each probe, for the density ``mu = (1/n) sum_i delta(lambda_i)``.

    Row ``p`` holds the nodes (eigenvalues of the Lanczos matrix, ascending, in the unit of the
    operator) and weights (at least 0, sum 1) of probe ``p``. ``rank[p]`` counts the Lanczos steps
    before breakdown: if it is below the number of steps, the probe lay in an invariant subspace of
    that dimension, the rule is exact for it, and the nodes left over have weight 0. ``matvecs`` is
    the number of products made in all.

    ``known`` marks nodes that no probe found: the eigenvalues on the deflated directions, ``1/n``
    each. ``coupling`` is ``||(I - V V^T) A V||_F`` for these directions ``V``, 0 for eigenvectors:
    the density is that of an operator whose eigenvalues, in order, differ from those of ``A`` by at
    most ``coupling``.

    The methods that return an ``Estimate`` give the mean over probes and its standard error. That
    error is the spread between probes alone; what a rule of few nodes does not resolve is told by
    `quadrature_error` and `resolved`. They work under ``jit``, ``vmap`` and ``grad``; with one
    probe the standard error is NaN.
    """

    nodes: Float[Array, "probes m"]
    weights: Float[Array, "probes m"]
    rank: Int[Array, " probes"]
    matvecs: Int[Array, ""]
    known: Bool[Array, "probes m"]
    coupling: Float[Array, ""]

    @property
    def floor(self) -> Float[Array, ""]:
        """``m eps max|node|``, ``m`` nodes a rule: a magnitude below it is rounding, not a result.

        ``eps`` is that of float32 or float64 and the largest node stands for ``||A||``.
        """
        size = self.nodes.shape[-1] * float(jnp.finfo(self.nodes.dtype).eps)
        return size * jnp.max(jnp.abs(self.nodes))

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

        A staircase with steps at the nodes. What it may be off by for want of nodes is
        `quadrature_error`, which the standard error does not show.
        """
        return self.mean(lambda x: (x <= at[:, None, None]).astype(x.dtype))

    def quadrature_error(self, at: Float[Array, " grid"]) -> Float[Array, " grid"]:
        """How far ``cdf(at)`` may be from the truth because the rules have few nodes: ``[grid]``.

        The probes' measures have the moments up to order ``2 steps - 1`` of their rules, and no
        more is known of them. All measures with these moments agree on the share at most ``x`` to
        within ``1 / sum_j p_j(x)^2``, with ``p_j`` the first orthonormal polynomials of the rule
        (Chebyshev, Markov and Stieltjes; the bound is sharp). Given is its mean over probes: the
        true share differs from ``cdf`` by at most this and the error of the probes.

        Nodes closer than `floor` count as one, as the copies are that the bare recurrence makes.
        """
        free = jnp.where(self.known, 0, self.weights)
        largest_atom = jax.vmap(_largest_atom, in_axes=(0, 0, None, None))
        return jnp.mean(largest_atom(self.nodes, free, at, self.floor), axis=0)

    def resolved(self, at: Float[Array, " grid"], within: float = 0.05) -> Bool[Array, " grid"]:
        """From which magnitude on a logarithmic axis shows the spectrum and not the method.

        ``at`` are magnitudes, positive and ascending. True from the first one on that is above
        `floor` and below which the share of eigenvalues, ``|lambda| <= at``, is known to ``within``
        as far as nodes go. What lies below is known as one share only: shade it.
        """
        error = self.quadrature_error(at) + self.quadrature_error(-at)
        good = (error <= within) & (at > self.floor)
        return jax.lax.cummax(good.astype(jnp.int32)) > 0

    def per_decade(
        self, at: Float[Array, " grid"], broadening: float = 0.1, *, negative: bool = False
    ) -> Estimate:
        """The share of eigenvalues per decade of ``|lambda|``, at magnitudes ``at``: ``[grid]``.

        Of the positive eigenvalues, or of the ``negative`` ones; convolved with a Gaussian whose
        standard deviation is ``broadening`` decades. Over ``log10(at)`` both together integrate to
        the share of eigenvalues above `floor` in magnitude. Values at magnitudes below `floor` are
        NaN: there is nothing to draw; from where on a value is more than a guess, `resolved` says.
        """
        sign = -1 if negative else 1

        def bumps(x: Array) -> Array:
            distance = jnp.log10(jnp.maximum(sign * x, self.floor) / at[:, None, None]) / broadening
            height = jnp.exp(-(distance**2) / 2) / (broadening * math.sqrt(2 * math.pi))
            return jnp.where(sign * x > self.floor, height, 0)

        drawn = self.mean(bumps)
        visible = at > self.floor
        return drawn._replace(
            value=jnp.where(visible, drawn.value, jnp.nan),
            standard_error=jnp.where(visible, drawn.standard_error, jnp.nan),
        )

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


@partial(jax.jit, static_argnames=("probes", "steps", "reorthogonalise", "memory", "batch_size"))
def spectral_density(
    op: SymmetricOperator,
    key: PRNGKeyArray,
    *,
    probes: int = 10,
    steps: int = 100,
    deflate: Float[Array, "n d"] | None = None,
    reorthogonalise: bool = True,
    memory: int | None = None,
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
      deflate: orthonormal columns ``[n, d]``, as a rule the ``vectors`` of `eigsh`. Their
        eigenvalues then count exactly, ``1/n`` each, for one product each; the probes live in the
        complement and their error is that of what is left, without the outliers. Columns that are
        no eigenvectors leave a ``coupling``, which bounds the harm.
      reorthogonalise: keep the basis of a probe, ``steps n`` numbers, and keep it orthogonal.
        Without, memory is ``3 n`` and time that of the products alone. Converged nodes then appear
        in copies that share their weight: density and moments stay right, but some of the ``steps``
        nodes are spent on copies.
      memory: bytes that the bases may take, of all probes that run together; where they take more,
        none is kept, as without ``reorthogonalise``.
      batch_size: probes that run together, as one product with a block a step, with as many bases
        in memory; 1 takes one after another. Raise it where a product with a block costs little
        more than with a vector, as on accelerators.

    What it cannot see. Nodes are dense at the ends of the spectrum and sparse where eigenvalues
    crowd. An outlier of multiplicity ``m`` that stands apart is found, with weight ``m/n`` to the
    error of the probes; the shape of a narrow bulk is not resolved, nor is anything far smaller
    than ``||A||`` (nodes below ``Density.floor`` are rounding). So it cannot certify that a
    spectrum reaches over many decades: of 2000 eigenvalues spread geometrically from 1 to 1e-10,
    100 steps report none below 1e-6 (truth: 40 %), with a standard error of 0. It does know that it
    does not know: ``Density.resolved`` is False there. For such spectra form the matrix.

    Works under ``jit`` and ``vmap``; not differentiable where nodes coincide (breakdown). The
    operator may have any scale from 1e-30 to 1e30 in float32. NaN in it is NaN in every node and
    weight. Raises ``ValueError`` if a count is below 1 or no integer, and for a ``deflate`` that is
    not columns of the operator's size, fewer than ``n``.
    matfree (``funm.monte_carlo_funm_sym`` on ``decomp.tridiag_sym``) integrates one given function
    with the same rules, and brings gradients of its own; it returns no nodes, divides by zero at a
    breakdown, and reads the whole basis four times a step where two reads of the filled part do.
    Source: Golub & Meurant, Matrices, Moments and Quadrature; Ubaru, Chen & Saad 2017; deflation:
    arXiv 2410.21690.

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
    fixed = _deflated(op, deflate)
    steps = min(count("steps", steps), op.size - fixed.shape[1])
    rest = project(op, fixed) if fixed.shape[1] else op
    bases = min(batch_size, probes) * steps * op.size * jnp.dtype(op.dtype).itemsize
    keep = reorthogonalise and (memory is None or bases <= count("memory", memory))

    def rule(start):
        if keep:
            t = lanczos(op, start, steps, deflate=fixed)
            return _gauss(t.alpha, t.beta, t.rank)
        return _gauss(*three_term(rest, start, steps))

    starts = unit(outside(sphere(key, op, probes), fixed)).T
    # `batch_size=1` would `vmap` over batches of one: matrix products with one column, which take
    # twice as long as matrix-vector products.
    together = min(batch_size, probes) if batch_size > 1 else None
    nodes, weights, rank = jax.lax.map(rule, starts, batch_size=together)
    matvecs = jnp.asarray(probes * steps + fixed.shape[1])
    found = jnp.zeros(nodes.shape, bool)
    rules = Density(nodes, weights, rank, matvecs, found, jnp.zeros((), op.dtype))
    return _with_known(rules, op, fixed) if fixed.shape[1] else rules


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


def _deflated(op: SymmetricOperator, deflate: Array | None) -> Array:
    if deflate is None:
        return jnp.zeros((op.size, 0), op.dtype)
    fixed = columns(op, deflate, "deflate")
    if fixed.shape[1] >= op.size:
        raise ValueError(f"deflate has shape {fixed.shape}: leave a direction for the probes")
    return fixed


def _with_known(rules: Density, op: SymmetricOperator, fixed: Array) -> Density:
    """The rules of the complement of ``fixed``, and the eigenvalues on ``fixed`` in each of them.

    ``A`` is split along ``fixed`` into two blocks. Between them stands ``coupling``, which is left
    out: by Weyl's theorem no eigenvalue moves by more than its norm.
    """
    images, d = op @ fixed, fixed.shape[1]
    size = unit_of(images)
    block = mm(fixed.T, images / size)
    values = size * jnp.linalg.eigvalsh((block + block.T) / 2)
    coupling = size * jnp.linalg.norm(outside(images / size, fixed))
    shape = (len(rules.rank), d)
    nodes = jnp.concatenate([rules.nodes, jnp.broadcast_to(values, shape)], axis=1)
    share = d / op.size
    given = jnp.full(shape, 1 / op.size, nodes.dtype)
    weights = jnp.concatenate([(1 - share) * rules.weights, given], axis=1)
    known = jnp.concatenate([rules.known, jnp.ones(shape, bool)], axis=1)
    order = jnp.argsort(nodes, axis=1)
    nodes, weights, known = (jnp.take_along_axis(x, order, axis=1) for x in (nodes, weights, known))
    return rules._replace(nodes=nodes, weights=weights, known=known, coupling=coupling)


def _largest_atom(nodes: Array, weights: Array, at: Array, floor: Array) -> Array:
    """The largest weight that a measure with the moments of this Gauss rule can have at ``at``.

    ``1 / sum_i l_i(at)^2 / w_i`` (the Christoffel function), with the Lagrange polynomials ``l_i``
    of the nodes, ``l_i(x) = prod_(j != i) (x - x_j) / (x_i - x_j)``. In logarithms, for the
    products of many small differences leave the range of the dtype.
    """
    size, count = unit_of(nodes), len(nodes)
    x, at, floor = nodes / size, at / size, floor / size
    group = jnp.cumsum(jnp.diff(x, prepend=x[:1]) > floor)
    weights = jax.ops.segment_sum(weights, group, count)
    x = jax.ops.segment_min(x, group, count)
    # Groups without a node or without weight are no nodes of the rule; NaN goes on, to be seen.
    there = ~(weights <= 0)
    tiny = float(jnp.finfo(x.dtype).tiny)

    def log_distance(a: Array) -> Array:
        apart = jnp.abs(a[:, None] - jnp.where(there, x, 0))
        return jnp.where(there, jnp.log(jnp.maximum(apart, tiny)), 0)

    others = 1 - jnp.eye(count, dtype=x.dtype)
    between = jnp.sum(log_distance(jnp.where(there, x, 0)) * others, axis=1)
    log_lagrange = mm(log_distance(at), others) - between
    terms = jnp.where(there, 2 * log_lagrange - jnp.log(jnp.where(there, weights, 1)), -jnp.inf)
    return jnp.exp(-jax.nn.logsumexp(terms, axis=1))


def _gauss(alpha: Array, beta: Array, rank: Array) -> tuple[Array, Array, Array]:
    """Nodes and weights of the Gauss rule of a Lanczos matrix (Golub & Welsch 1969)."""
    # Rows after a breakdown are zero. They are not coupled to the others, so their nodes get weight
    # 0; but a node 0 might lie far outside the spectrum (where log fails): take alpha[0] instead.
    left_over = jnp.arange(len(alpha)) >= rank
    alpha = jnp.where(left_over, alpha[0], alpha)
    nodes, vectors = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1))
    weights = vectors[0] ** 2
    return nodes, weights / jnp.sum(weights), rank
