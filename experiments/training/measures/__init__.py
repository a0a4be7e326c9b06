"""What is measured of networks while they train: one file and one line here for each measure.

    taken = MEASURES["bulk"](config, network)
    scalars, arrays = taken(state, task.data)     # numbers per trial to record, arrays to keep

NaN is a number that could not be had; it is recorded as null, and the run's summary says so.
"""

from collections.abc import Callable, Mapping
from typing import Any

from experiments.config import ExperimentConfig
from experiments.errors import UserError
from experiments.names import offered
from experiments.training.measures import (
    bulk,
    collapse,
    curvature,
    features,
    penalty,
    spectra,
    tails,
)
from experiments.training.program import TrainState
from experiments.training.task import Data
from models import Network

Taken = Callable[[TrainState, Mapping[str, Data]], tuple[dict[str, Any], dict[str, Any]]]
Measure = Callable[[ExperimentConfig, Network], Taken]

MEASURES: dict[str, Measure] = {
    "bulk": bulk.measure,
    "collapse": collapse.measure,
    "curvature": curvature.measure,
    "features": features.measure,
    "penalty": penalty.measure,
    "spectra": spectra.measure,
    "tails": tails.measure,
}


def measures_of(config: ExperimentConfig, network: Network) -> Taken:
    """All measures that a configuration names; `UserError` (2) for one that there is not."""
    for name in config.train.measures:
        if name not in MEASURES:
            hint = offered(name, MEASURES)
            raise UserError(f"train.measures: {name!r} is no measure{hint}")
    taken = [MEASURES[name](config, network) for name in config.train.measures]

    def measure(state, data):
        scalars, arrays = {}, {}
        for take in taken:
            numbers, kept = take(state, data)
            scalars, arrays = scalars | numbers, arrays | kept
        return scalars, arrays

    return measure
