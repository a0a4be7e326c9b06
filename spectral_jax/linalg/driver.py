"""Solvers driven from the host, for operators whose products crawl inside compiled loops."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import jax
from jaxtyping import Array

from spectral_jax._choices import check_choice
from spectral_jax.linalg.operators import SymmetricOperator, check_operator
from spectral_jax.linalg.subspace import generic_vectors, unit

Result = TypeVar("Result")
Driver = Literal["auto", "compiled", "host"]

# From Python the rest of a step takes so many seconds more: a product that takes less in a compiled
# loop stays there.
STEP_FROM_PYTHON = 0.02
# How many times slower the compiled loop must be before Python takes over.
CRAWLS = 1.5


def drive(
    solver: Callable[..., Result],
    op: SymmetricOperator,
    *args: Any,
    driver: Driver = "auto",
    **options: Any,
) -> Result:
    """``solver(op, *args, **options)``, with its loops in the compiled program or in Python.

    Inside a compiled loop XLA on a CPU runs a convolution tens of times slower than outside of one
    (https://github.com/jax-ml/jax/issues/12868), and these solvers are loops. With the driver
    ``host`` the product is a program of its own, called from Python, and everything around it runs
    operation by operation, which costs about 20 milliseconds a product.

    Args:
      solver: ``eigsh``, ``lanczos``, ``spectral_density``, ``logdet``, ``trace`` or ``diagonal``,
        or a function of an operator that calls them.
      driver: ``host`` or ``compiled``, or ``auto``, which times a product of either kind
        (`faster_driver`); the numbers differ by rounding alone.

    Not for use under ``jit``, ``vmap`` or ``grad``: there the loops are compiled in any case.
    Raises ``ValueError`` for an unknown driver and what ``solver`` raises.

    >>> import jax.numpy as jnp
    >>> from spectral_jax.linalg import diagonal_operator, eigsh
    >>> top = drive(eigsh, diagonal_operator(jnp.arange(1.0, 9)), 1, which="LA", driver="host")
    >>> round(float(top.values[0]), 4), bool(top.converged[0])
    (8.0, True)
    """
    check_operator(op)
    check_choice(get_args(Driver), driver=driver)
    if driver == "auto":
        driver = faster_driver(op)
    if driver == "compiled":
        return solver(op, *args, **options)
    with jax.disable_jit():
        return solver(dataclasses.replace(op, apply=_Compiled(op.apply)), *args, **options)


def faster_driver(op: SymmetricOperator) -> Literal["compiled", "host"]:
    """Which driver makes the products of ``op`` sooner: one in a loop and one without, timed.

    Compiles both, each once per kind of operator (``apply`` and shapes). The answer depends on the
    machine, and on what else runs on it. Not for use under ``jit``. Raises ``ValueError`` for what
    is no operator.
    """
    check_operator(op)
    start = unit(generic_vectors(op.size, 1, op.dtype)[:, 0])
    # A loop of no products compiles what is timed, and takes no time itself.
    in_loop = _seconds(partial(_products_in_a_loop, op, start), warm_up=0, timed=1)
    if in_loop < STEP_FROM_PYTHON:
        return "compiled"
    alone = _seconds(lambda _: _product(op.apply, op.data, start), warm_up=1, timed=1)
    return "host" if in_loop > CRAWLS * alone else "compiled"


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A product as a program of its own, also where loops around it run in Python."""

    apply: Callable[[Any, Array], Array]

    def __call__(self, data: Any, x: Array) -> Array:
        with jax.disable_jit(False):
            return _product(self.apply, data, x)


@partial(jax.jit, static_argnums=0)
def _product(apply: Callable[[Any, Array], Array], data: Any, x: Array) -> Array:
    return apply(data, x)


@jax.jit
def _products_in_a_loop(op: SymmetricOperator, x: Array, count: Array) -> Array:
    return jax.lax.fori_loop(0, count, lambda _, y: op @ y, x)


def _seconds(products: Callable[[int], Array], *, warm_up: int, timed: int) -> float:
    """How long ``products(timed)`` takes after ``products(warm_up)``, which compiles them."""
    jax.block_until_ready(products(warm_up))
    start = time.perf_counter()
    jax.block_until_ready(products(timed))
    return time.perf_counter() - start
