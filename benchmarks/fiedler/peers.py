"""What else one could use for a Fiedler pair on the same graph: SciPy, networkx, JAX, matfree."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from jax.experimental.sparse.linalg import lobpcg_standard

Blocks = Sequence[np.ndarray]


class Answer(NamedTuple):
    value: float
    residual: float
    """Relative: ``||L v - value v|| / value``."""
    matvecs: int


class NumpyLaplacian:
    """The deflated operator ``L + c 1 1^T / N`` from the same blocks, matrix-free.

    Normalised: ``L_n + 2 u u^T`` with ``u`` the null vector ``D^1/2 1``. The shift moves the
    trivial eigenvalue 0 to the top of the spectrum, so the smallest is ``lambda_2``.
    """

    def __init__(self, blocks: Blocks, laplacian: str, dtype: str) -> None:
        normalised, dtype = laplacian == "normalised", np.dtype(dtype)
        self.magnitudes = [np.abs(np.asarray(block)).astype(dtype) for block in blocks]
        widths = [self.magnitudes[0].shape[0], *(a.shape[1] for a in self.magnitudes)]
        ends = np.cumsum(widths)
        self.groups = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
        self.size, self.dtype, self.matvecs = int(ends[-1]), dtype, 0
        self.degree = np.zeros(self.size, dtype)
        for a, near, far in self._blocks():
            self.degree[near] += a.sum(axis=1)
            self.degree[far] += a.sum(axis=0)
        self.scale = self.degree**-0.5 if normalised else np.ones(self.size, dtype)
        null = self.degree**0.5 if normalised else np.ones(self.size, dtype)
        self.null = null / np.linalg.norm(null)
        self.shift = dtype.type(2) if normalised else 2 * self.degree.max()

    def _blocks(self):
        return zip(self.magnitudes, self.groups[:-1], self.groups[1:], strict=True)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.matvecs += 1
        x = x.reshape(-1)
        scaled = self.scale * x
        y = self.degree * scaled
        for a, near, far in self._blocks():
            y[near] -= a @ scaled[far]
            y[far] -= a.T @ scaled[near]
        return self.scale * y + self.shift * self.null * (self.null @ x)

    def operator(self) -> scipy.sparse.linalg.LinearOperator:
        return scipy.sparse.linalg.LinearOperator((self.size,) * 2, self, dtype=self.dtype)

    def sparse(self) -> scipy.sparse.csr_array:
        """The combinatorial Laplacian itself, as networkx holds it."""
        n = len(self.groups)
        grid: list[list[Any]] = [[None] * n for _ in range(n)]
        for layer, a in enumerate(self.magnitudes):
            grid[layer][layer + 1], grid[layer + 1][layer] = a, a.T
        adjacency = scipy.sparse.block_array(
            [[None if a is None else scipy.sparse.csr_array(a) for a in line] for line in grid],
            format="csr",
        )
        return scipy.sparse.csr_array(scipy.sparse.diags_array(self.degree) - adjacency)

    def answer(self, vector: np.ndarray) -> Answer:
        matvecs = self.matvecs
        vector = vector / np.linalg.norm(vector)
        image = self(vector)
        value = float(vector @ image)
        return Answer(value, float(np.linalg.norm(image - value * vector)) / value, matvecs)


def dense_oracle(blocks: Blocks, laplacian: str) -> float:
    """``lambda_2`` by a dense float64 eigensolver."""
    network = NumpyLaplacian(blocks, laplacian, "float64")
    dense = network.sparse().toarray() * network.scale[:, None] * network.scale
    return float(scipy.linalg.eigh(dense, eigvals_only=True, subset_by_index=[1, 1])[0])


def scipy_eigsh(
    blocks: Blocks, laplacian: str, dtype: str, tol: float, *, v0: np.ndarray | None = None
) -> Answer:
    """ARPACK, from the weights on; from a fixed generic vector if there is no better start."""
    network = NumpyLaplacian(blocks, laplacian, dtype)
    if v0 is None:
        v0 = np.random.default_rng(0).normal(size=network.size)
    _, vectors = scipy.sparse.linalg.eigsh(
        network.operator(), 1, which="SA", tol=tol, v0=v0.astype(dtype)
    )
    return network.answer(vectors[:, 0])


def scipy_lobpcg(blocks: Blocks, laplacian: str, dtype: str, tol: float, *, value: float) -> Answer:
    """LOBPCG with the Jacobi preconditioner; its tolerance is absolute, so it is told ``value``."""
    network = NumpyLaplacian(blocks, laplacian, dtype)
    jacobi = 1 / (network.scale**2 * network.degree)
    _, vectors = scipy.sparse.linalg.lobpcg(
        network.operator(),
        np.random.default_rng(0).normal(size=(network.size, 1)).astype(dtype),
        M=scipy.sparse.diags_array(jacobi),
        Y=network.null[:, None],
        tol=tol * value,
        maxiter=400,
        largest=False,
    )
    return network.answer(vectors[:, 0])


def networkx_graph(laplacian: scipy.sparse.csr_array):
    import networkx

    adjacency = scipy.sparse.diags_array(laplacian.diagonal()) - laplacian
    return networkx.from_scipy_sparse_array(scipy.sparse.csr_array(adjacency))


def networkx_solver(matrix, *, tol: float) -> float:
    """The solver behind ``algebraic_connectivity(method="lanczos")``, on a ready Laplacian."""
    from networkx.linalg.algebraicconnectivity import _get_fiedler_func

    start = np.random.default_rng(0).normal(size=matrix.shape[0])
    return float(_get_fiedler_func("lanczos")(matrix, start, False, tol, None)[0])


def networkx_call(graph, *, tol: float) -> float:
    import networkx

    return float(networkx.algebraic_connectivity(graph, method="lanczos", tol=tol, seed=0))


@jax.jit
def jax_lobpcg(operator):
    """``jax.experimental``'s LOBPCG: it finds the largest only, so of ``c I - L - c 1 1^T / N``."""
    shift = 2 * jnp.max(operator.data.degree)

    def flipped(x):
        return shift * (x - x.mean(axis=0)) - operator @ x

    start = jax.random.normal(jax.random.key(0), (operator.size, 1), operator.dtype)
    values, vectors, steps = lobpcg_standard(flipped, start, m=100)
    return shift - values[0], vectors[:, 0], steps


def matfree_lanczos(steps: int):
    """matfree's Lanczos, full reorthogonalisation: the smallest pair of ``L + c 1 1^T / N``."""
    from matfree import decomp, eig

    solve = eig.eigh_partial(decomp.tridiag_sym(steps))

    @jax.jit
    def smallest(operator):
        shift = 2 * jnp.max(operator.data.degree)
        start = jax.random.normal(jax.random.key(0), (operator.size,), operator.dtype)
        values, vectors = solve(lambda x: operator @ x + shift * x.mean(), start)
        return values[0], vectors[0]

    return smallest
