"""What to do to which layer's spectrum, how much of its noise to keep, and when."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax._options import check_count, check_number, count
from spectral_jax._transforms.hyperparameters import check_share, check_strength

Edit = Literal["truncate", "random", "halve", "shrink", "sparsify", "sparsify_vectors"]
Number: TypeAlias = float | Float[Array, ""]
Keep: TypeAlias = Number | Callable[[Any], Number]
Trigger: TypeAlias = Callable[[int, Sequence[float]], bool]
"""(epochs done, validation errors since the last pruning) -> prune now?"""


@dataclass(frozen=True, eq=False)
class Policy:
    """How to prune a layer; numbers may be arrays, traced in a sweep.

    edit: what happens to the singular values up to the edge, as in the functions of these names:
      ``truncate`` keeps the largest share ``keep_below`` of them, ``random`` a random one.
    keep_below: that share, or a function of the epoch. arXiv 2303.08986 writes that 45 % are
      removed; its code keeps 45 %.
    gate: leave a layer alone whose Kolmogorov-Smirnov distance from the law is above; 1 is off.
    min_rank: singular values that stay in any case, so that no layer is cut through.
    keep_offset: values at the edge that count as above it; 1 is the released code.
    threshold: entries up to it go, in the two sparsifying edits.

    Raises ``ValueError`` for a value out of its range.
    """

    edit: Edit = "truncate"
    keep_below: Keep = 0.0
    gate: Number = 1.0
    min_rank: int = 1
    keep_offset: int = 0
    threshold: Number = 0.0

    def __post_init__(self) -> None:
        if self.edit not in get_args(Edit):
            raise ValueError(f"edit={self.edit!r}: choose one of {', '.join(get_args(Edit))}")
        check_share("keep_below", self.keep_below)
        check_share("gate", self.gate)
        count("min_rank", self.min_rank, least=0)
        count("keep_offset", self.keep_offset, least=0)
        check_strength("threshold", self.threshold)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        """Arrays have no truth of equality, nor a hash: they are themselves or another."""
        return tuple(id(x) if isinstance(x, jax.Array) else x for x in vars(self).values())

    def keep_at(self, epoch: Any) -> Float[Array, ""] | float:
        """The share of the noise to keep at that epoch."""
        return self.keep_below(epoch) if callable(self.keep_below) else self.keep_below


def linear_keep(epochs: float | int) -> Callable[[Any], Float[Array, ""]]:
    """``keep_below(epoch) = max(0, 1 - epoch / epochs)``, the schedule of arXiv 2310.03165.

    Raises ``ValueError`` unless ``epochs > 0``.

    >>> float(linear_keep(300)(75))
    0.75
    """
    check_number("choose above 0", lambda number: number > 0, epochs=epochs)
    return lambda epoch: jnp.clip(1 - jnp.asarray(epoch, float) / epochs, 0, 1)


def every_epochs(period: int, *, at_start: bool = False) -> Trigger:
    """Prune whenever ``period`` more epochs are done; ``at_start`` also before the first.

    Raises ``ValueError`` unless ``period >= 1``.

    >>> [epoch for epoch in range(10) if every_epochs(3)(epoch, [])]
    [3, 6, 9]
    """
    check_count(period=period)
    return lambda epoch, errors: epoch % period == 0 and (epoch > 0 or at_start)


def on_plateau(patience: int, *, least_gain: float = 0.0) -> Trigger:
    """Prune once ``patience`` epochs have not lowered the best validation error by ``least_gain``.

    Hand over the errors since the last pruning: the network gets as long to recover.
    Raises ``ValueError`` unless ``patience >= 1``.

    >>> [on_plateau(2)(0, errors) for errors in ([0.3, 0.2, 0.1], [0.3, 0.1, 0.2, 0.1])]
    [False, True]
    """
    check_count(patience=patience)

    def stalled(epoch: int, errors: Sequence[float]) -> bool:
        if len(errors) <= patience:
            return False
        return not min(errors[-patience:]) < min(errors[:-patience]) - least_gain

    return stalled


def policy_of(names: Iterable[str], policies: Policy | Mapping[str, Policy]) -> dict[str, Policy]:
    """The policy of each layer: that of the first glob its name matches; none, if it matches none.

    Raises ``ValueError`` for a glob that names no layer.
    """
    names = list(names)
    if isinstance(policies, Policy):
        policies = {"*": policies}
    found: dict[str, Policy] = {}
    for glob, policy in policies.items():
        matched = [name for name in names if fnmatchcase(name, glob)]
        if not matched:
            near = difflib.get_close_matches(glob, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the layers are {', '.join(names)}"
            raise ValueError(f"policies: {glob!r} names no layer; {hint}")
        for name in matched:
            found.setdefault(name, policy)
    return found
