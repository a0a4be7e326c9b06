"""What to do to which layer's spectrum, how much of its noise to keep, and when."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectral_jax._choices import check_choice
from spectral_jax._options import check_count, check_number, count
from spectral_jax._transforms.hyperparameters import check_share, check_strength

Edit = Literal["truncate", "random", "halve", "shrink", "sparsify", "sparsify_vectors"]
Number: TypeAlias = float | Float[Array, ""]
Keep: TypeAlias = Number | Callable[[Any], Number]
Trigger: TypeAlias = Callable[[int, Sequence[float]], bool]
"""(epochs done, validation errors since the last pruning) -> prune now?"""
_NO_LAYER = "there is no dense layer and no convolution (codes of quantised weights are none)"


@dataclass(frozen=True, eq=False)
class Policy:
    """How to prune a layer. The numbers may be arrays, and traced: a sweep shares one program.

    edit: what becomes of the singular values up to the edge of the noise. ``truncate`` keeps the
      largest of them, ``random`` as many of them at random, ``halve`` halves them all, and
      ``shrink``, ``sparsify`` and ``sparsify_vectors`` do as the functions of
      `spectral_jax.prune` of these names.
    keep_below: the share of the values up to the edge that ``truncate`` and ``random`` keep, or a
      function of the epoch that gives it. The text of arXiv 2303.08986 says that 45 % are removed;
      its code keeps 45 %.
    gate: the largest Kolmogorov-Smirnov distance between the bulk of the spectrum and the
      Marchenko-Pastur law at which a layer is pruned; where the law does not fit, its edge means
      nothing. 1 prunes every layer.
    min_rank: how many singular values stay in any case; at 0 a layer may lose them all, and the
      network with it.
    keep_offset: how many values next below the edge count as above it; the released code of
      arXiv 2303.08986 has 1.
    threshold: ``threshold`` of `sparsify`, ``theta`` of `sparsify_vectors`.

    Raises ``ValueError`` for a value out of its range.
    """

    edit: Edit = "truncate"
    keep_below: Keep = 0.0
    gate: Number = 1.0
    min_rank: int = 1
    keep_offset: int = 0
    threshold: Number = 0.0

    def __post_init__(self) -> None:
        check_choice(get_args(Edit), edit=self.edit)
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
        """What equality and hash go by: an array has neither, so it is only equal to itself."""
        arrays = jax.Array | np.ndarray
        return tuple(id(x) if isinstance(x, arrays) else x for x in vars(self).values())

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

    The errors to pass are those since the last pruning, one per epoch, so that the network has at
    least ``patience`` epochs to recover from it.
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
    """The policy of each layer: that of the first glob its name matches.

    A layer that no glob matches has none and is not in the result.

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
            there = f"the layers are {', '.join(names)}" if names else _NO_LAYER
            hint = f"did you mean {near[0]!r}?" if near else there
            raise ValueError(f"policies: {glob!r} names no layer; {hint}")
        for name in matched:
            found.setdefault(name, policy)
    return found
