"""Stochastic estimates of the trace and the diagonal of a symmetric operator.

If ``v`` is random with ``E v v^T = I``, then ``E v^T A v = tr A`` (Girard 1989, Hutchinson 1989).
The variance comes from the large eigenvalues. Hutch++ and XTrace first find a basis ``Q`` of their
eigenvectors by multiplying random vectors, take the trace on ``Q`` exactly, and sample the rest.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from spectral_jax._choices import check_choice
from spectral_jax._options import count
from spectral_jax.linalg.operators import SymmetricOperator, check_operator
from spectral_jax.linalg.scale import factor_of
from spectral_jax.linalg.subspace import mm, unit


class Estimate(NamedTuple):
    """A mean over random probes, the standard error of that mean, and the products it took.

    ``value`` and ``standard_error`` have the unit of the estimated quantity. The error is 0 where
    the answer is exact, and NaN if there was one sample only.
    """

    value: Float[Array, "*shape"]
    standard_error: Float[Array, "*shape"]
    matvecs: Int[Array, ""]


@partial(jax.jit, static_argnames=("matvecs", "method"))
def trace(
    op: SymmetricOperator,
    key: PRNGKeyArray,
    *,
    matvecs: int = 60,
    method: Literal["xtrace", "hutch++", "hutchinson"] = "xtrace",
) -> Estimate:
    """Estimate ``tr A`` from at most ``matvecs`` products; value and standard error are scalars.

    The default of 60 products makes 30 samples of ``xtrace``, enough for a standard error to mean
    something. Methods:

    ``hutchinson``
        the mean of ``n v^T A v``, ``v`` uniform on the sphere: error ``~ ||A||_F sqrt(2/matvecs)``,
        whatever the spectrum.
    ``hutch++``
        exact on the range ``Q`` of ``A`` times ``matvecs / 3`` random vectors, Hutchinson on the
        rest.
    ``xtrace``
        the same with every vector serving both purposes, each for the ranges of the others:
        best whenever the spectrum decays, and never far behind. Exact if ``rank A < matvecs / 2``.

    All are unbiased. ``matvecs >= n`` gives the exact trace from ``n`` products, with error 0.
    The standard error is estimated from the samples and unreliable below some ten of them.
    Works under ``jit`` and ``vmap``; ``hutchinson`` under ``grad`` too. The operator may have any
    scale from 1e-30 to 1e30 in float32. NaN in it is NaN in the value.
    Raises ``ValueError`` for an unknown ``method`` or too few ``matvecs``.
    matfree's ``leave_one_out_xtrace`` is as good as ``xtrace``.
    Source: Meyer et al. 2021 (Hutch++); Epperly, Tropp & Webber 2024 (XTrace).

    >>> from spectral_jax.linalg import dense_operator
    >>> low_rank = dense_operator(jnp.ones((50, 50)))
    >>> round(float(trace(low_rank, jax.random.key(0), matvecs=6).value), 3)
    50.0
    """
    check_operator(op)
    _check(method, matvecs, {"xtrace": 4, "hutch++": 3, "hutchinson": 1})
    # With as many products as rows the matrix itself can be had.
    if matvecs >= op.size:
        return _exact(jnp.trace(op.dense()), op.size)
    if method == "xtrace":
        return _xtrace(op, key, matvecs // 2)
    range_key, probe_key = jax.random.split(key)
    if method == "hutchinson":
        return _hutchinson(op, sphere(probe_key, op, matvecs))
    return _hutchpp(op, range_key, probe_key, matvecs)


@partial(jax.jit, static_argnames=("matvecs", "method"))
def diagonal(
    op: SymmetricOperator,
    key: PRNGKeyArray,
    *,
    matvecs: int = 60,
    method: Literal["xdiag", "hutchinson"] = "xdiag",
) -> Estimate:
    """Estimate the diagonal of ``A`` from at most ``matvecs`` products; results ``[n]``.

    ``hutchinson`` averages ``v * A v`` over random signs ``v``: entry ``i`` has variance
    ``sum_{j != i} A_ij^2 / matvecs``, so it is exact for a diagonal ``A``. ``xdiag`` does that only
    for what the range of ``A`` times the other sign vectors has left over: best whenever the
    spectrum decays, exact if ``rank A < matvecs / 2``. Errors are entry by entry, not jointly.

    Unbiased. ``matvecs >= n`` gives the exact diagonal from ``n`` products, with error 0.
    Works under ``jit`` and ``vmap``; ``hutchinson`` under ``grad`` too. The operator may have any
    scale from 1e-30 to 1e30 in float32. NaN in it is NaN in the value.
    Raises ``ValueError`` for an unknown ``method`` or too few ``matvecs``.
    matfree's ``leave_one_out_xdiag`` is as good as ``xdiag``.
    Source: Bekas, Kokiopoulou & Saad 2007; Epperly, Tropp & Webber 2024 (XDiag).

    >>> from spectral_jax.linalg import dense_operator
    >>> a = dense_operator(jnp.diag(jnp.arange(20.0)))
    >>> diagonal(a, jax.random.key(0), matvecs=4, method="hutchinson").value[:3].tolist()
    [0.0, 1.0, 2.0]
    """
    check_operator(op)
    _check(method, matvecs, {"xdiag": 4, "hutchinson": 1})
    if matvecs >= op.size:
        return _exact(jnp.diagonal(op.dense()), op.size)
    if method == "xdiag":
        return _xdiag(op, key, matvecs // 2)
    signs = _signs(key, op, matvecs)
    images, _, factor = _first_products(op, signs)
    return _of(factor, average(signs * images, jnp.asarray(matvecs)))


def average(samples: Float[Array, "*shape m"], matvecs: Int[Array, ""]) -> Estimate:
    """The mean over the last axis, and its standard error."""
    m = samples.shape[-1]
    # The spread of one sample is 0 / 0: NaN, not a claim of exactness.
    error = jnp.std(samples, axis=-1, ddof=1) / m**0.5 if m > 1 else samples[..., 0] * jnp.nan
    return Estimate(jnp.mean(samples, axis=-1), error, matvecs)


def sphere(key: PRNGKeyArray, op: SymmetricOperator, k: int) -> Float[Array, "n k"]:
    """``k`` vectors uniform on the unit sphere.

    Their distribution is the same in every basis, so that the error depends on the eigenvalues
    alone. With random signs it would depend on how nearly diagonal the operator is.
    """
    return unit(jax.random.normal(key, (op.size, k), op.dtype))


def _signs(key: PRNGKeyArray, op: SymmetricOperator, k: int) -> Array:
    return jax.random.rademacher(key, (op.size, k), op.dtype)


def _first_products(op: SymmetricOperator, x: Array) -> tuple[Array, SymmetricOperator, Array]:
    """``op @ x`` and ``op``, scaled to an ordinary magnitude, and the factor (``scale.py``)."""
    images = op @ x
    factor = factor_of(images)
    return factor * images, factor * op, factor


def _of(factor: Array, estimate: Estimate) -> Estimate:
    """The estimate for ``op`` from that for ``factor * op``."""
    value, standard_error, matvecs = estimate
    return Estimate(value / factor, standard_error / factor, matvecs)


def _hutchinson(op: SymmetricOperator, probes: Array) -> Estimate:
    images, _, factor = _first_products(op, probes)
    samples = op.size * jnp.sum(probes * images, axis=0)
    return _of(factor, average(samples, jnp.asarray(probes.shape[1])))


def _hutchpp(op: SymmetricOperator, range_key, probe_key, matvecs: int) -> Estimate:
    """A third of the products finds the range, a third its trace, a third samples the rest."""
    k = matvecs // 3
    sketch, op, factor = _first_products(op, sphere(range_key, op, k))
    q, _ = jnp.linalg.qr(sketch)
    probes = sphere(probe_key, op, matvecs - 2 * k)
    # Projected and rescaled, a probe is uniform on the unit sphere of the complement, of dimension
    # n - k.
    probes = unit(probes - mm(q, mm(q.T, probes)))
    rest = (op.size - k) * jnp.sum(probes * (op @ probes), axis=0)
    return _of(factor, average(rest + jnp.sum(q * (op @ q)), jnp.asarray(matvecs)))


def _xtrace(op: SymmetricOperator, key: PRNGKeyArray, k: int) -> Estimate:
    """Leave-one-out Hutch++: the mean over ``i`` of the estimate with the range ``Q_i`` of all
    products but ``A omega_i``, and ``omega_i`` as the probe of what ``Q_i`` leaves.

    ``Q_i`` is ``Q`` without one direction ``Q s_i``, so that all ``k`` estimates follow from the
    same ``Q``, in ``k x k`` matrices (Epperly, Tropp & Webber 2024).
    """
    omega = sphere(key, op, k)
    sketch, op, factor = _first_products(op, omega)
    q, r = jnp.linalg.qr(sketch)
    s, _ = _left_out(r)
    h = mm(q.T, op @ q)
    w = mm(q.T, omega)
    # omega_i = Q_i x_i + rest; rest^T A rest is expanded into products that are known. The rest is
    # uniform on a sphere of n - k + 1 dimensions but for its length: scaling it to the length it
    # has on average keeps the mean and lowers the variance.
    x = w - s * jnp.sum(s * w, axis=0)
    rest = jnp.sum((w - 2 * x) * r + x * mm(h, x), axis=0)
    length = jnp.sum(omega**2, axis=0) - jnp.sum(x**2, axis=0)
    captured = jnp.trace(h) - jnp.sum(s * mm(h, s), axis=0)
    return _of(factor, average(captured + (op.size - k + 1) * rest / length, jnp.asarray(2 * k)))


def _xdiag(op: SymmetricOperator, key: PRNGKeyArray, k: int) -> Estimate:
    """Leave-one-out: the diagonal of ``Q_i Q_i^T A``, and Hutchinson for what that leaves."""
    signs = _signs(key, op, k)
    sketch, op, factor = _first_products(op, signs)
    q, r = jnp.linalg.qr(sketch)
    # Without column i, Q loses the direction Q s_i: the diagonal of Q_i Q_i^T A is that of Q Q^T A
    # less that direction's part.
    s, left = _left_out(r)
    z = op @ q
    direction = mm(q, s)
    captured = jnp.sum(q * z, axis=1)[:, None] - direction * mm(z, s)
    return _of(factor, average(captured + signs * direction * left, jnp.asarray(2 * k)))


def _left_out(r: Array) -> tuple[Array, Array]:
    """Unit ``s_i`` orthogonal to the columns of ``r`` but the ``i``-th, and ``s_i . r_i``.

    They are the columns of ``r^-T``, scaled. Where ``r`` is singular nothing is lost with any one
    column: ``s_i`` then comes from the null space of ``r^T``.
    """
    u, values, vt = jnp.linalg.svd(r)
    tiny = jnp.finfo(r.dtype)
    floor = jnp.maximum(len(r) * tiny.eps * values[0], tiny.tiny)
    # r^-T = U diag(1 / values) V^T. Scaled by `floor` and cut at 1: directions of the null space
    # outweigh all others by one over a rounding error, and are kept finite.
    s = unit(mm(u / jnp.maximum(values / floor, 1), vt))
    return s, jnp.sum(s * r, axis=0)


def _exact(value: Array, n: int) -> Estimate:
    return Estimate(value, jnp.zeros_like(value), jnp.asarray(n))


def _check(method: str, matvecs: int, least: dict[str, int]) -> None:
    check_choice(least, method=method)
    count("matvecs", matvecs, least=least[method], why=f"for {method!r}")
