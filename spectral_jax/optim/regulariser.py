"""A regulariser as one writes it down first: a function without a state."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, overload

from jaxtyping import Array

from spectral_jax._choices import check_choice
from spectral_jax.optim.penalties import Blocks, Penalty, Sees
from spectral_jax.optim.sight import SIGHTS, check_kind

Value = Callable[..., Array]
Prox = Callable[[Blocks, Array], Blocks]


@overload
def regulariser(value: Value) -> Penalty: ...
@overload
def regulariser(
    *, sees: Sees = ..., strengths: tuple[float, float] = ..., prox: Prox | None = ...
) -> Callable[[Value], Penalty]: ...
def regulariser(
    value: Value | None = None,
    *,
    sees: Sees = "matrices",
    strengths: tuple[float, float] = (1e-5, 1e-1),
    prox: Prox | None = None,
) -> Any:
    """Make a ``Penalty`` of a function that returns a number; a decorator, with options or without.

    The function is given ``matrices``, the weights of every layer with their signs, from which
    singular values are those of the layers. Its gradient is JAX's. What needs a state, such as
    vectors that are kept from step to step, is a ``Penalty`` itself.

    Args:
      value: ``matrices -> scalar``; with ``sees="magnitudes"`` ``|W| blocks -> scalar``, with
        ``"activations"`` ``arrays -> scalar``, with ``"function"``
        ``(apply, params, batch, key) -> scalar``, as ``Penalty`` says.
      sees: what it is given.
      strengths: the least and the largest strength that are worth a try.
      prox: ``(matrices, step) -> matrices``, the minimiser ``x`` of
        ``step value(x) + ||x - matrices||^2 / 2``, for ``mode="proximal"``.

    Raises ``ValueError`` for an unknown kind, a range of strengths that is none, a function of
    another number of arguments, and a proximal step of what is not on matrices.

    >>> import jax.numpy as jnp
    >>> from spectral_jax.optim import spectral_penalty
    >>> @regulariser(strengths=(1e-4, 1e-2))
    ... def orthogonality(matrices):
    ...     return sum(jnp.sum((w.mT @ w - jnp.eye(w.shape[-1])) ** 2) for w in matrices)
    >>> params = {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}
    >>> tx = spectral_penalty(orthogonality, 0.5)
    >>> updates, _ = tx.update({"kernel": jnp.zeros((2, 2))}, tx.init(params), params)
    >>> updates["kernel"].tolist()
    [[0.0, 0.0], [0.0, 12.0]]
    """
    if value is None:
        return functools.partial(regulariser, sees=sees, strengths=strengths, prox=prox)
    check_choice(SIGHTS, sees=sees)
    _check_strengths(strengths)
    stateless = _value_without_state(value, sees)
    penalty = Penalty(stateless, sees=sees, strengths=strengths, prox=_prox_without_state(prox))
    check_kind(penalty)
    return penalty


def _value_without_state(value: Value, sees: Sees) -> Value:
    if sees == "function":
        _check_arguments(value, "value", ("apply", "params", "batch", "key"))
        return value
    _check_arguments(value, "value", ("matrices" if sees == "matrices" else "arrays",))

    @functools.wraps(value)
    def stateless(seen: Blocks, _: Any) -> Array:
        return value(seen)

    return stateless


def _prox_without_state(prox: Prox | None) -> Callable[[Blocks, Array, Any], Blocks] | None:
    if prox is None:
        return None
    _check_arguments(prox, "prox", ("matrices", "step"))

    @functools.wraps(prox)
    def stateless(seen: Blocks, step: Array, _: Any) -> Blocks:
        return prox(seen, step)

    return stateless


def _check_strengths(strengths: tuple[float, float]) -> None:
    with suppress(TypeError, ValueError):  # of what is no pair of numbers
        low, high = strengths
        if 0 < low < high < math.inf:
            return
    raise ValueError(f"strengths={strengths}: choose 0 < least < largest, as (1e-5, 1e-1)")


def _check_arguments(function: Callable[..., Any], role: str, names: tuple[str, ...]) -> None:
    try:
        inspect.signature(function).bind(*names)
    except TypeError as error:
        wanted = f"({', '.join(names)})"
        raise ValueError(
            f"{role}={getattr(function, '__name__', function)!r} is called with {wanted}: {error}; "
            "what keeps a state is a Penalty, not a regulariser"
        ) from None
