"""A few extreme eigenpairs of a symmetric operator: LOBPCG and thick-restart Lanczos."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, Int

from spectral_jax.linalg.lanczos import lanczos, orthogonalise
from spectral_jax.linalg.operators import SymmetricOperator

# A random Krylov probe of this length looks for an eigenvalue beyond the ones a start block led to.
_PROBE_STEPS = 8
# Lanczos basis beyond the wanted pairs; 20 is ARPACK's habit and was the best of 12..40 on our
# graphs.
_LANCZOS_EXTRA = 20


class EigResult(NamedTuple):
    """Eigenpairs, best first (``SA`` ascending, ``LA`` descending), and how far to trust them.

    ``residuals[i] = ||A v_i - values_i v_i||``: an eigenvalue of ``A`` lies that close to
    ``values[i]``. ``converged`` is per pair; ``matvecs`` counts every product with the operator.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "n k"]
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    matvecs: Int[Array, ""]


@partial(jax.jit, static_argnames=("k", "which", "tol", "max_matvecs", "method"))
def eigsh(
    op: SymmetricOperator,
    k: int = 1,
    *,
    which: Literal["SA", "LA"] = "SA",
    v0: Float[Array, "n s"] | Float[Array, " n"] | None = None,
    deflate: Float[Array, "n d"] | None = None,
    preconditioner: Float[Array, " n"] | SymmetricOperator | None = None,
    tol: float | None = None,
    max_matvecs: int = 1000,
    method: Literal["auto", "lobpcg", "lanczos"] = "auto",
) -> EigResult:
    """The ``k`` smallest (``SA``) or largest (``LA``) eigenpairs of ``op``.

    A pair has converged when ``||A v - theta v|| <= tol |theta|``, or when that residual is at the
    rounding floor of the dtype (which is how an eigenvalue 0 converges). Pairs are sought in the
    orthogonal complement of ``deflate``.

    Args:
      v0: start vector or block ``[n, s]``, for instance the previous solution; a fixed random one
        if None. A start block can lie in an invariant subspace that does not hold the wanted pair,
        so a converged answer is probed by ``8`` random Lanczos steps in its complement and the
        search goes on from there if they see a value beyond it.
      deflate: orthonormal columns ``[n, d]`` to keep out of the search: known eigenvectors of
        ``op``.
      preconditioner: for ``lobpcg``; an approximate inverse of ``op`` to multiply residuals with,
        positive definite: a diagonal ``[n]`` (such as ``1 / diag(A)``) or an operator.
      tol: relative residual; ``sqrt(eps)`` of the dtype if None.
      max_matvecs: cap; on reaching it the best pairs so far come back with ``converged = False``.
      method: ``auto`` picks ``lobpcg`` for one pair with a preconditioner or a start, else
        ``lanczos`` (measured: benchmarks/RESULTS.md).

    Works under ``jit`` (static: ``k``, ``which``, ``tol``, ``max_matvecs``, ``method``), ``vmap``
    and on sharded operators. Reverse-mode derivatives with respect to ``op.data`` are exact at a
    converged pair: ``d values = v^T dA v``, and for ``vectors`` (``k == 1`` only) the adjoint
    solved by conjugate gradients; no derivative flows to ``v0``, ``deflate`` or ``preconditioner``.
    At a repeated eigenvalue the derivative of ``values`` is one finite element of the generalised
    gradient, that of ``vectors`` does not exist. NaN in the operator gives NaN values and
    ``converged = False``.
    Raises ``ValueError`` for an impossible ``k``, ``which``, ``method`` or start
    block, and ``NotImplementedError`` for derivatives of several vectors.
    Sources: Knyazev 2001 (LOBPCG), in the orthogonal basis of Hetmaniuk & Lehoucq 2006;
    Wu & Simon 2000 (thick-restart Lanczos).

    >>> from spectral_jax.linalg import dense_operator
    >>> result = eigsh(dense_operator(jnp.diag(jnp.arange(1.0, 9.0))), 2)
    >>> [round(float(x), 4) for x in result.values], result.converged.tolist()
    ([1.0, 2.0], [True, True])
    """
    chosen = _check(op, k, which, v0, deflate, preconditioner, method)
    tol = float(jnp.finfo(op.dtype).eps) ** 0.5 if tol is None else tol
    options = _Options(k, 1 if which == "SA" else -1, tol, max_matvecs, chosen)
    return _eigsh(options, op, v0, deflate, preconditioner)


class _Options(NamedTuple):
    k: int
    sign: int
    tol: float
    max_matvecs: int
    method: str


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _eigsh(options, op, v0, deflate, preconditioner) -> EigResult:
    k, sign, tol, max_matvecs, method = options
    fixed = jnp.zeros((op.size, 0), op.dtype) if deflate is None else deflate
    search = _Search(op, k, sign, fixed, tol, max_matvecs)
    if method == "lobpcg":
        solve = partial(_lobpcg, search, _as_function(preconditioner))
    else:
        solve = partial(_thick_restart, search)
    spent = jnp.zeros((), jnp.int32)
    noise = jax.random.normal(jax.random.key(0), (op.size, k), op.dtype)
    if v0 is None:
        return solve(noise, spent)
    start = v0.reshape(op.size, -1).astype(op.dtype)
    start = jnp.concatenate([start, noise[:, : max(k - start.shape[1], 0)]], axis=1)
    if search.free_dimension <= k:
        return solve(start, spent)
    return _solve_and_probe(search, solve, start)


def _eigsh_forward(options, *arguments):
    op, v0, deflate, preconditioner = custom_vjp_primal_tree_values(arguments)
    # Vectors kept for the backward pass carry their own derivative: second derivatives are right.
    result = _eigsh(options, op, v0, deflate, preconditioner)
    return result, (op, v0, deflate, preconditioner, result.values, result.vectors)


def _eigsh_backward(options, saved, cotangent: EigResult):
    """``A_bar = sum_j z_j v_j^T``, ``z_j = values_bar_j v_j - (A - values_j)^+ vectors_bar_j``."""
    op, v0, deflate, preconditioner, values, vectors = saved
    adjoint = jnp.zeros_like(vectors)
    if not isinstance(cotangent.values, SymbolicZero):
        adjoint += cotangent.values * vectors
    if not isinstance(cotangent.vectors, SymbolicZero):
        if options.k > 1:
            raise NotImplementedError(
                f"derivative of {options.k} eigenvectors: only k=1 is supported"
            )
        adjoint += _vector_adjoint(options, op, deflate, values[0], vectors, cotangent.vectors)
    _, pull_back = jax.vjp(lambda data: dataclasses.replace(op, data=data) @ vectors, op.data)
    op_bar = dataclasses.replace(op, data=pull_back(adjoint)[0])
    return op_bar, *jax.tree.map(jnp.zeros_like, (v0, deflate, preconditioner))


def _vector_adjoint(options, op, deflate, value, vector, cotangent) -> Array:
    """Solve ``(A - value) z = -P cotangent`` off the vector.

    By division on the deflated eigenvectors, by conjugate gradients on the rest, where
    ``A - value`` is definite.
    """
    fixed = jnp.zeros((op.size, 0), op.dtype) if deflate is None else deflate

    def shifted(z):
        return options.sign * orthogonalise(op @ z - value * z, fixed, vector)

    right = -options.sign * orthogonalise(cotangent, fixed, vector)
    z, _ = jax.scipy.sparse.linalg.cg(shifted, right, tol=options.tol, maxiter=options.max_matvecs)
    gaps = jnp.sum(fixed * (op @ fixed), axis=0) - value
    parts = _mm(fixed.T, cotangent)[:, 0] / jnp.where(gaps == 0, jnp.inf, gaps)
    return z - _mm(fixed, parts[:, None])


_eigsh.defvjp(_eigsh_forward, _eigsh_backward, symbolic_zeros=True)


def _check(op, k, which, v0, deflate, preconditioner, method) -> str:
    n = op.size
    free = n - (0 if deflate is None else deflate.shape[1])
    if not 1 <= k <= free:
        raise ValueError(f"k={k}: choose 1 <= k <= {free} (n = {n} less the deflated directions)")
    if which not in ("SA", "LA"):
        raise ValueError(f"which={which!r}: choose 'SA' (smallest) or 'LA' (largest)")
    if method not in ("auto", "lobpcg", "lanczos"):
        raise ValueError(f"method={method!r}: choose 'auto', 'lobpcg' or 'lanczos'")
    if v0 is not None and (v0.shape[0] != n or v0.ndim > 2):
        raise ValueError(f"v0 has shape {v0.shape}: pass [n] or [n, s] with n = {n}")
    if deflate is not None and (deflate.ndim != 2 or deflate.shape[0] != n):
        raise ValueError(f"deflate has shape {deflate.shape}: pass orthonormal columns [{n}, d]")
    if preconditioner is not None and method == "lanczos":
        raise ValueError("preconditioner is set but method='lanczos' cannot use it: use 'lobpcg'")
    if method == "auto":
        informed = v0 is not None or preconditioner is not None
        method = "lobpcg" if k == 1 and informed else "lanczos"
    return method


def _as_function(preconditioner) -> Callable[[Array], Array]:
    if preconditioner is None:
        return lambda r: r
    if isinstance(preconditioner, SymmetricOperator):
        return lambda r: preconditioner @ r
    return lambda r: preconditioner[:, None] * r


class _Search(NamedTuple):
    """What every method needs to know of the problem; ``sign * values`` ascend."""

    op: SymmetricOperator
    k: int
    sign: int
    fixed: Array
    tol: float
    max_matvecs: int

    @property
    def free_dimension(self) -> int:
        return self.op.size - self.fixed.shape[1]

    def converged(self, values: Array, residuals: Array, scale: Array) -> Array:
        floor = 10 * jnp.finfo(residuals.dtype).eps * scale
        return residuals <= jnp.maximum(self.tol * jnp.abs(values), floor)

    def certify(self, vectors: Array, scale: Array, spent: Array) -> EigResult:
        """Rayleigh quotients and residuals from fresh products: nothing recurred or drifted."""
        images = self.op @ vectors
        values = jnp.sum(vectors * images, axis=0)
        residuals = jnp.linalg.norm(images - values * vectors, axis=0)
        # A vanished column (nothing found) must not pass as an eigenpair of residual zero.
        exists = jnp.linalg.norm(vectors, axis=0) > 0.5
        converged = exists & self.converged(values, residuals, scale)
        return EigResult(values, vectors, residuals, converged, spent + self.k)


def _solve_and_probe(search: _Search, solve, start: Array) -> EigResult:
    """Solve and probe the complement; while it holds a better value, solve again from there."""
    op, k, sign = search.op, search.k, search.sign
    steps = min(_PROBE_STEPS, search.free_dimension - k)
    width = max(start.shape[1], k + 1)
    start = jnp.pad(start, ((0, 0), (0, width - start.shape[1])))

    def best_elsewhere(vectors, key):
        found = jnp.concatenate([search.fixed, vectors], axis=1)
        v = jax.random.normal(key, (op.size,), op.dtype)
        tri = lanczos(op, v, steps, deflate=found)
        t = jnp.diag(tri.alpha) + jnp.diag(tri.beta, 1) + jnp.diag(tri.beta, -1)
        values, coordinates = _best_pairs(sign * t, jnp.arange(steps) < tri.rank, 1)
        return sign * values[0], _mm(tri.basis, coordinates)

    def round_(carry):
        start, result, _, key = carry
        result = solve(start, result.matvecs)
        key, probe_key = jax.random.split(key)
        value, vector = best_elsewhere(result.vectors, probe_key)
        result = result._replace(matvecs=result.matvecs + steps)
        worst = result.values[-1]
        beyond = sign * value < sign * worst - search.tol * jnp.abs(worst) - result.residuals[-1]
        start = jnp.zeros_like(start).at[:, : k + 1].set(jnp.append(result.vectors, vector, axis=1))
        return start, result._replace(converged=result.converged & ~beyond), beyond, key

    def again(carry):
        _, result, beyond, _ = carry
        return beyond & (result.matvecs < search.max_matvecs)

    carry = (start, _nothing_yet(search), jnp.array(True), jax.random.key(1))
    return jax.lax.while_loop(again, round_, carry)[1]


def _nothing_yet(search: _Search) -> EigResult:
    zeros = jnp.zeros(search.k, search.op.dtype)
    vectors = jnp.zeros((search.op.size, search.k), search.op.dtype)
    return EigResult(zeros, vectors, zeros, zeros > 0, jnp.zeros((), jnp.int32))


class _Lobpcg(NamedTuple):
    x: Array
    ax: Array
    p: Array
    ap: Array
    values: Array
    residuals: Array
    scale: Array
    matvecs: Array


def _lobpcg(search: _Search, precondition, start: Array, spent: Array) -> EigResult:
    """Locally optimal block preconditioned conjugate gradients, orthonormal basis [X, W, P]."""
    op, k, sign, fixed = search.op, search.k, search.sign, search.fixed

    def rayleigh_ritz(s, image, scale, matvecs, *, starting=False):
        scale = jnp.maximum(scale, jnp.max(jnp.linalg.norm(image, axis=0)))
        gram = sign * _mm(s.T, image)
        values, c = _best_pairs((gram + gram.T) / 2, jnp.linalg.norm(s, axis=0) > 0.5, 2 * k)
        values, c, next_best = sign * values[:k], c[:, :k], c[:, k:]
        # P is what moved X, kept orthogonal to the new X by working in coordinates. At the start
        # nothing has moved yet: what else the start block holds is the best guess.
        moved = next_best if starting else _orthonormalise(c.at[:k].set(0), c)
        moved = jnp.pad(moved, ((0, 0), (0, k - moved.shape[1])))
        x, ax, p, ap = _mm(s, c), _mm(image, c), _mm(s, moved), _mm(image, moved)
        residuals = jnp.linalg.norm(ax - values * x, axis=0)
        return _Lobpcg(x, ax, p, ap, values, residuals, scale, matvecs)

    def iterate(state):
        residual = state.ax - state.values * state.x
        w = _orthonormalise(precondition(residual), fixed, state.x, state.p)
        s = jnp.concatenate([state.x, w, state.p], axis=1)
        image = jnp.concatenate([state.ax, op @ w, state.ap], axis=1)
        return rayleigh_ritz(s, image, state.scale, state.matvecs + k)

    def unfinished(state):
        open_ = ~jnp.all(search.converged(state.values, state.residuals, state.scale))
        affordable = state.matvecs + 2 * k <= search.max_matvecs
        return open_ & affordable & jnp.all(jnp.isfinite(state.residuals))

    block = _orthonormalise(start, fixed)
    spent = spent + start.shape[1]
    first = rayleigh_ritz(block, op @ block, jnp.zeros((), op.dtype), spent, starting=True)
    state = jax.lax.while_loop(unfinished, iterate, first)
    return search.certify(state.x, state.scale, state.matvecs)


class _Restart(NamedTuple):
    basis: Array
    vectors: Array
    kept: Array
    values: Array
    residuals: Array
    scale: Array
    matvecs: Array


def _thick_restart(search: _Search, start: Array, spent: Array) -> EigResult:
    """Lanczos with full reorthogonalisation, restarted with the best Ritz vectors kept."""
    op, k, sign, fixed = search.op, search.k, search.sign, search.fixed
    size = min(search.free_dimension, 2 * k + _LANCZOS_EXTRA)
    keep = min(k + _LANCZOS_EXTRA // 2, size - 1) if size > 1 else 0
    refill = jax.random.normal(jax.random.key(2), (op.size, size + 1), op.dtype)

    def extend(j, carry):
        """Column j meets the operator; what is new becomes column j + 1."""
        basis, projected, scale = carry
        image = op @ basis[:, j]
        coordinates = _mm(basis.T, image)
        rest = orthogonalise(image, fixed, basis)
        length = jnp.linalg.norm(rest)
        scale = jnp.maximum(scale, jnp.linalg.norm(image))
        # An invariant subspace is complete: go on in a fresh direction, coupled to nothing.
        broken = length <= 10 * jnp.finfo(rest.dtype).eps * scale
        fresh = orthogonalise(jnp.where(broken, refill[:, j + 1], rest), fixed, basis)
        fresh_length = jnp.linalg.norm(fresh)
        q = fresh / jnp.where(fresh_length > 0, fresh_length, 1)
        basis = basis.at[:, j + 1].set(jnp.where(j + 1 < search.free_dimension, q, 0))
        column = coordinates.at[j + 1].set(jnp.where(broken, 0, length))
        return basis, projected.at[:, j].set(column), scale

    def cycle(state):
        first = jnp.where(state.matvecs == spent, 0, keep)
        projected = jnp.zeros((size + 1, size), op.dtype)
        kept_diagonal = jnp.where(jnp.arange(size) < first, state.kept, 0)
        projected = projected.at[:size].set(jnp.diag(kept_diagonal))
        basis, projected, scale = jax.lax.fori_loop(
            first, size, extend, (state.basis, projected, state.scale)
        )
        # Kept columns were not multiplied again: what couples them is in the upper triangle.
        square = jnp.triu(projected[:size]) + jnp.triu(projected[:size], 1).T
        values, y = jnp.linalg.eigh(sign * square)
        residuals = jnp.abs(projected[size, size - 1] * y[-1, :k])
        ritz = _mm(basis[:, :size], y[:, : max(keep, k)])
        vectors = ritz[:, :k]
        kept = jnp.concatenate([ritz[:, :keep], basis[:, size:]], axis=1)
        basis = jnp.zeros_like(basis).at[:, : keep + 1].set(kept)
        matvecs = state.matvecs + size - first
        return _Restart(basis, vectors, sign * values, sign * values[:k], residuals, scale, matvecs)

    def unfinished(state):
        open_ = ~jnp.all(search.converged(state.values, state.residuals, state.scale))
        affordable = state.matvecs + size - keep + k <= search.max_matvecs
        return open_ & affordable & jnp.all(jnp.isfinite(state.residuals)) & (keep > 0)

    blend = orthogonalise(jnp.sum(_normalise(start), axis=1), fixed)
    basis = jnp.zeros((op.size, size + 1), op.dtype).at[:, 0].set(blend / jnp.linalg.norm(blend))
    zeros = jnp.zeros(size, op.dtype)
    vectors = jnp.zeros((op.size, k), op.dtype)
    state = _Restart(basis, vectors, zeros, zeros[:k], zeros[:k], jnp.zeros((), op.dtype), spent)
    state = jax.lax.while_loop(unfinished, cycle, cycle(state))
    return search.certify(state.vectors, state.scale, state.matvecs)


def _best_pairs(gram: Array, valid: Array, k: int) -> tuple[Array, Array]:
    """Smallest eigenpairs of the projected matrix; empty (zero) basis columns do not compete."""
    ceiling = 2 * jnp.max(jnp.sum(jnp.abs(gram), axis=0)) + 1
    values, coordinates = jnp.linalg.eigh(gram + jnp.diag(jnp.where(valid, 0, ceiling)))
    return values[:k], jnp.where(valid[:, None], coordinates[:, :k], 0)


def _orthonormalise(x: Array, *bases: Array) -> Array:
    """Orthonormal columns for ``x`` outside ``bases``; dependent columns become zero (SVQB)."""
    for _ in range(2):
        x = _normalise(orthogonalise(_normalise(x), *bases))
        values, rotation = jnp.linalg.eigh(_mm(x.T, x))
        independent = values > 10 * jnp.finfo(x.dtype).eps * x.shape[1]
        x = _mm(x, rotation) * jnp.where(independent, jnp.where(independent, values, 1) ** -0.5, 0)
    return x


def _normalise(x: Array) -> Array:
    length = jnp.linalg.norm(x, axis=0)
    return x / jnp.where(length > 0, length, 1)


def _mm(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
