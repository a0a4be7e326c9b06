"""How many of a layer's singular values to keep."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from spectral_jax.rmt import host

DEFAULT_ENERGY = 0.99

Rule: TypeAlias = Callable[[np.ndarray, tuple[int, int], host.MPFit], int]
"""(singular values descending, shape, bulk) -> rank; raises ValueError where it cannot say."""


def parse_rank(rank: str | int) -> Rule:
    """The rule that ``--rank`` names: ``mp``, ``gd``, ``energy``, ``energy=0.95`` or a number.

    Raises ``ValueError`` for anything else.
    """
    text = str(rank)
    name, _, number = text.partition("=")
    if text == "mp":
        return _above_edge
    if text == "gd":
        return _gavish_donoho
    if name == "energy":
        return _energy_rule(text, number)
    if text.isdecimal() and int(text) > 0:
        return lambda values, shape, bulk: min(int(text), len(values))
    raise ValueError(f"rank {text!r}: use mp, gd, energy, energy=0.95 or a number from 1 up")


def _above_edge(values: np.ndarray, shape: tuple[int, int], bulk: host.MPFit) -> int:
    if bulk.status != "ok":
        raise ValueError(f"no Marchenko-Pastur fit: {bulk.status}")
    return int(bulk.spikes)


def _gavish_donoho(values: np.ndarray, shape: tuple[int, int], bulk: host.MPFit) -> int:
    threshold = host.hard_threshold(shape, singular_values=values)
    if math.isnan(threshold):
        nonzero = len(host.above_rounding(values))
        raise ValueError(f"no median of noise: {nonzero} of {len(values)} values are not 0")
    return int(np.sum(values > threshold))


def _energy_rule(text: str, number: str) -> Rule:
    try:
        share = float(number) if "=" in text else DEFAULT_ENERGY
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ValueError(f"rank {text!r}: write the share of energy to keep, as in energy=0.95")

    def rank(values: np.ndarray, shape: tuple[int, int], bulk: host.MPFit) -> int:
        energy = np.cumsum(values**2)
        # Relative, or the rounding of the sum would ask for a value more than all.
        return int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12)) + 1)

    return rank
