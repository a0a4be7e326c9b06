"""The end of training before its last epoch: when a number that is measured has come far enough.

stop = parse("features/richness below 0.05 for 3")
reached(stop, run.history())
"""

import re
from collections.abc import Mapping

import numpy as np

from experiments.errors import UserError
from experiments.names import offered
from spectral_jax.optim import Stop, when

Histories = Mapping[str, tuple[np.ndarray, np.ndarray]]
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def parse(text: str) -> Stop:
    """What a configuration says: a metric, ``below`` or ``above``, a limit, and how often in a row.

    Raises ``UserError`` (2) for anything else.
    """
    found = re.fullmatch(rf"(\S+) (below|above) ({NUMBER})(?: for ([1-9]\d{{0,5}}))?", text.strip())
    if found is None:
        raise UserError(
            f"train.stop = {text!r}: expected a metric and where it ends training, as in "
            "'features/richness below 0.05 for 3' (measurements in a row)"
        )
    name, side, limit, patience = found.groups(default="1")
    return when(name, **{side: float(limit)}, patience=int(patience))


def reached(stop: Stop, history: Histories) -> bool:
    """Whether the number is in its range for every seed that has it, as often as is asked for.

    So a seed that has diverged keeps nobody waiting. Raises ``UserError`` (2) if the number is not
    among those recorded.
    """
    if stop.name not in history:
        hint = offered(stop.name, history)
        raise UserError(f"train.stop: {stop.name!r} is not recorded{hint}")
    _, values = history[stop.name]
    latest = values[-stop.patience :]
    known = ~np.isnan(latest).any(axis=0)
    enough = len(latest) == stop.patience and known.any()
    return bool(enough and stop.holds(latest[:, known]).all())
