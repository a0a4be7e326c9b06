"""Whole spectra by the kernel route, and the largest pairs, beside curvlinops with SciPy."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import eigsh as scipy_eigsh

from benchmarks.curvature import problems
from benchmarks.harness import NOTHING, Table, Target, one_core, row
from spectral_jax.curvature import ggn_spectrum, hessian, objective, stored
from spectral_jax.linalg import drive, eigsh


class Size(NamedTuple):
    n: int
    width: int
    top: int
    krylov: Callable[[], problems.Problem]
    pairs: int


FULL = Size(n=2000, width=600, top=100, krylov=partial(problems.lenet, n=500), pairs=10)
SMOKE = Size(n=12, width=4, top=3, krylov=partial(problems.dense, n=6, width=4), pairs=2)
COMPLETE, PAIRS = Target(">=", 50), Target(">=", 3)
TOLERANCE = 1e-3


class Run(NamedTuple):
    seconds: float
    values: np.ndarray

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s"


def complete(size: Size) -> Table:
    """Every non-zero eigenvalue of the Gauss-Newton matrix against a solver's largest."""
    problem = problems.dense(size.n, size.width)

    def ours() -> np.ndarray:
        arguments = problem.model, problems.LOSS, problem.params, problem.data
        return np.asarray(ggn_spectrum(*arguments).values)

    with one_core():
        ours()  # compiles
        found = _timed(ours)
        peer = _timed(lambda: _torch_values(problem, "GGN", size.top)) if problems.TORCH else None
    ratio = peer.seconds / found.seconds if peer else None
    rows = [
        row(
            f"{problem.name}, n = {size.n}: {found.values.size} values, against the {size.top} "
            "largest",
            found,
            peer or "not installed",
            f"{ratio:.0f}" if ratio else NOTHING,
            COMPLETE,
            ratio,
        )
    ]
    if peer:
        error = np.max(np.abs(peer.values / found.values[: size.top] - 1))
        rows.append(row("largest relative difference of the values in both", f"{error:.0e}"))
    note = (
        "float32 network. The peer is curvlinops' GGN in SciPy's `eigsh` at its default tolerance; "
        "one run each, after one that compiles ours."
    )
    return Table("Complete Gauss-Newton spectrum, one core", note, rows)


def largest(size: Size) -> Table:
    """The largest Hessian pairs of a network at one accuracy."""
    problem = size.krylov()
    loss = objective(problem.model, problems.LOSS)

    def ours() -> np.ndarray:
        op = stored(hessian(loss, problem.params, problem.data))
        result = drive(eigsh, op, size.pairs, which="LA", tol=TOLERANCE)
        return np.asarray(jax.block_until_ready(result.values))

    with one_core():
        ours()  # compiles
        found = _timed(ours)
        peer = (
            _timed(lambda: _torch_values(problem, "Hessian", size.pairs, which="LA", tol=TOLERANCE))
            if problems.TORCH
            else None
        )
    ratio = peer.seconds / found.seconds if peer else None
    what = f"{problem.name}, {len(problem.data[1])} examples: {size.pairs} largest Hessian pairs"
    told = f"{ratio:.1f}" if ratio else NOTHING
    note = (
        f"float32, relative residual {TOLERANCE:g} on both sides. Ours is `drive(eigsh, "
        "stored(op))`, for convolutions crawl in compiled loops; the peer is curvlinops' Hessian "
        "in SciPy's `eigsh`. Networks of one shape with weights of their own; one run each, after "
        "one that compiles ours."
    )
    rows = [row(what, found, peer or "not installed", told, PAIRS, ratio)]
    return Table("Largest Hessian pairs, one core", note, rows)


def _torch_values(problem: problems.Problem, kind: str, k: int, **options: Any) -> np.ndarray:
    import torch

    op = problems.torch_operator(problem, kind)

    def product(x: np.ndarray) -> np.ndarray:
        return (op @ torch.tensor(x.ravel(), dtype=torch.float32)).numpy()

    operator = LinearOperator(tuple(op.shape), matvec=product, dtype=np.float32)
    return np.sort(scipy_eigsh(operator, k, return_eigenvectors=False, **options))[::-1]


def _timed(call: Callable[[], np.ndarray]) -> Run:
    start = time.perf_counter()
    values = call()
    return Run(time.perf_counter() - start, values)
