"""Operators over examples that do not fit into memory: the host reads them for every product."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from spectral_jax.curvature._products import MeanProduct
from spectral_jax.linalg.operators import SymmetricOperator

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Batches = Iterable[PyTree] | Callable[[], Iterable[PyTree]]


class StreamOperator:
    """The mean of an operator over batches that are read anew for each product, on the host.

    ``build(batch)`` gives the operator of a batch by a function of this room; the mean is exact
    over all examples, whatever the lengths of the batches, and is summed in float64. Made by
    `stream`.
    """

    def __init__(self, build: Callable[[PyTree], SymmetricOperator], batches: Batches) -> None:
        self._build, self._batches = build, batches
        self._seen: list[int] = []
        first = self.first()
        self.size, self.dtype = first.size, first.dtype

    def __matmul__(self, x: Any) -> Float[np.ndarray, "..."]:
        """Apply to a vector ``[p]`` or to the columns of a block ``[p, k]``; a pass over the data.

        Raises ``ValueError`` under ``jit``, and for batches that are not those of the first pass.
        """
        if isinstance(x, jax.core.Tracer):
            raise ValueError(
                "a stream of batches is read on the host: call its products outside jit, vmap and "
                "grad, or give hessian or ggn all examples as arrays"
            )
        total, weight, seen = np.zeros(np.shape(x)), 0.0, []
        for batch in self._pass():
            op = self._operator(batch)
            seen.append(_fingerprint(batch))
            share = float(op.data[-1].total)
            if share == 0:
                continue  # a batch without an item that counts has no mean, and adds nothing
            total += share * np.asarray(op @ jnp.asarray(x, self.dtype), np.float64)
            weight += share
        self._seen = self._seen or seen
        if seen != self._seen:
            raise ValueError(
                "batches differ from those of the first product: a loader that shuffles or "
                "augments gives another matrix each time; pass shuffle=False, or a fixed seed"
            )
        return (total / (weight or np.nan)).astype(self.dtype)

    def first(self) -> SymmetricOperator:
        """That of the first batch alone."""
        return self._operator(next(self._pass(), None))

    def to_scipy(self) -> "LinearOperator":
        """As a SciPy ``LinearOperator``, for ``eigsh``, ``cg`` and the rest."""
        from scipy.sparse.linalg import LinearOperator

        def product(x: np.ndarray) -> np.ndarray:
            return self @ x

        return LinearOperator(
            (self.size, self.size), matvec=product, rmatvec=product, matmat=product,
            rmatmat=product, dtype=self.dtype,
        )  # fmt: skip

    def _pass(self) -> Iterator[PyTree]:
        return iter(self._batches() if callable(self._batches) else self._batches)

    def _operator(self, batch: PyTree | None) -> SymmetricOperator:
        if batch is None:
            raise ValueError("batches holds no batch: pass at least one")
        op = self._build(batch)
        if not isinstance(op, SymmetricOperator) or not isinstance(op.apply, MeanProduct):
            raise ValueError("build(batch) must return what hessian, ggn or a fisher returns")
        return op


def stream(build: Callable[[PyTree], SymmetricOperator], batches: Batches) -> StreamOperator:
    """The mean of ``build(batch)`` over batches that the host reads anew for every product.

    ``build`` is one of `hessian`, `ggn`, `fisher` or `empirical_fisher` with everything but the
    data, such as ``partial(ggn, model, loss, params)``; ``batches`` what gives the same batches
    whenever it is iterated (a list, a loader that does not shuffle) or a function that returns such
    an iterable. Batches may have different lengths: the mean is over examples, by their weights.
    Each length compiles once. Monte Carlo draws go by an example's place in its own batch: give
    `fisher` the ``index`` of each.

    Not jittable, for it reads on the host: solvers are those of SciPy, by ``to_scipy()``. Raises
    ``ValueError`` for an iterator, which can be read but once, and for no batch; a product raises
    it under ``jit``, and where the batches are not those of the first one.

    >>> def squares(w, batch):
    ...     x, y = batch
    ...     return (x @ w - y) ** 2
    >>> parts = [(jnp.ones((3, 1)), jnp.zeros(3)), (3 * jnp.ones((1, 1)), jnp.zeros(1))]
    >>> from functools import partial
    >>> from spectral_jax.curvature import hessian
    >>> (stream(partial(hessian, squares, jnp.zeros(1)), parts) @ jnp.ones(1)).tolist()
    [6.0]
    """
    if isinstance(batches, Iterator):
        raise ValueError(
            "batches is an iterator, empty after one product: pass a list, a loader, or a function "
            "that makes the iterator anew"
        )
    return StreamOperator(build, batches)


def _fingerprint(batch: PyTree) -> int:
    """A checksum of every byte, in order."""
    checksum = 0
    for leaf in jax.tree.leaves(batch):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    return checksum
