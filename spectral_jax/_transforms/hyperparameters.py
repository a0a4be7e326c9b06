"""Numbers that change during training (strengths, rates), and how Optax injects them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

Strength: TypeAlias = float | Float[Array, ""] | optax.Schedule
"""A number, an array (traced, in a sweep), or a function of the number of updates done."""

Factory = TypeVar("Factory", bound=Callable[..., Any])


def strength_at(strength: Strength, step: Any) -> Any:
    """The strength after that number of updates."""
    return strength(step) if callable(strength) else strength


def concrete(*values: Any) -> bool:
    """Whether all of these are numbers already: neither traced nor schedules, so checkable."""
    return not any(isinstance(value, jax.core.Tracer) or callable(value) for value in values)


def check_strength(name: str, strength: Strength) -> None:
    """Raise ``ValueError`` for several, and a negative, infinite or NaN strength unless traced."""
    _check_one(name, strength)
    if not concrete(strength):
        return
    values = _numbers(name, strength)
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise ValueError(f"{name}={strength}: choose a finite number >= 0, or a schedule")


def check_share(name: str, share: Strength) -> None:
    """Raise ``ValueError`` for several, and a share outside [0, 1] unless it is traced."""
    _check_one(name, share)
    if not concrete(share):
        return
    values = _numbers(name, share)
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"{name}={share} is a share: choose it in [0, 1]")


def _check_one(name: str, given: Any) -> None:
    """Several numbers would broadcast against weights, unseen where the shapes allow it."""
    if not callable(given) and np.ndim(given):
        raise ValueError(f"{name} has shape {np.shape(given)}: pass one number, or a schedule")


def _numbers(name: str, given: Any) -> np.ndarray:
    kind = np.asarray(given).dtype
    if not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
        raise ValueError(f"{name}={given!r}: choose a number")
    return np.asarray(given, float)


def injectable(
    *numbers: str, options_of: Callable[..., Any] | tuple[Callable[..., Any], ...] = ()
) -> Callable[[Factory], Factory]:
    """Let ``optax.inject_hyperparams`` change these arguments of a factory, and only these.

    Optax binds the arguments to the factory's signature, then calls every function among them as a
    schedule and traces every integer, defaults included. A ``view`` or a ``metric`` is no schedule,
    and a period must stay a Python int. So the signature that Optax finds here boxes every argument
    except ``numbers`` when it is bound, which Optax passes through untouched, and adds no defaults;
    the factory unpacks the boxes.

    Args:
      numbers: the names of the arguments that may change.
      options_of: functions whose keyword-only arguments the factory takes as ``**options``; they
        are part of the signature.
    """
    lenders = options_of if isinstance(options_of, tuple) else (options_of,)

    def decorate(factory: Factory) -> Factory:
        @functools.wraps(factory)
        def build(*args: Any, **options: Any) -> Any:
            return factory(*args, **{name: _opened(value) for name, value in options.items()})

        parameters = _parameters(factory, numbers, lenders)
        build.__signature__ = _InjectableSignature(parameters)  # type: ignore[attr-defined]
        return build  # type: ignore[return-value]

    return decorate


class _Static(NamedTuple):
    """The box: neither callable nor a number, so that Optax leaves it alone."""

    value: Any


def _opened(value: Any) -> Any:
    return value.value if isinstance(value, _Static) else value


class _Number(inspect.Parameter):
    """An argument that Optax may change."""


class _InjectableSignature(inspect.Signature):
    """A signature that boxes what it binds, except for arguments that Optax may change."""

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        given = super().bind(*args, **kwargs).arguments
        known = {name: self.parameters[name] for name in given}
        boxed = {
            name: value if isinstance(known[name], _Number) else _Static(value)
            for name, value in given.items()
        }
        # Bound to a signature of the given arguments alone, so that Optax's call of apply_defaults
        # has nothing to add.
        named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in known.values()]
        return inspect.BoundArguments(inspect.Signature(named), boxed)  # type: ignore[arg-type]


def _parameters(
    factory: Callable, numbers: tuple[str, ...], lenders: tuple[Callable, ...]
) -> list[inspect.Parameter]:
    own = inspect.signature(factory).parameters.values()
    found = {p.name: p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD}
    for lender in lenders:
        for p in inspect.signature(lender).parameters.values():
            if p.kind is inspect.Parameter.KEYWORD_ONLY:
                found.setdefault(p.name, p)
    for name in numbers:
        p = found[name]
        found[name] = _Number(name, p.kind, default=p.default, annotation=p.annotation)
    return list(found.values())
