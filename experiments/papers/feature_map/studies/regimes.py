"""Minimal or extended? Effective directions per class while networks train on sets of images.

Read off the histories of protocol ``settings``. A network is in a *minimal feature* regime where
its last layer has about as many directions as there are classes: the threshold is declared here.
Directions are counted by the effective dimension of the features. A layer of few units has few
before any training, so the start is told, too; and ``used per class``, how many it takes to hold
95 % of the outputs, over the classes.

Results: arms of protocol ``regimes`` are those of ``settings``. Arrays ``courses`` hold, by arm,
``<arm>/step [t]`` and ``<arm>/per class [t, seeds]``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.config import load_yaml
from experiments.papers.feature_map.protocols import CLASSES
from experiments.papers.paper import trained
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run

MINIMAL = 2.0  # directions per class, up to which a network counts as minimal
DIMENSION = "features/effective_dimension"
USED = "features/directions"


def measure(run: Run, *, runs: Mapping[str, str]) -> Results:
    """Every arm: directions per class at the start and the end, and how far above ``MINIMAL``."""
    parts = []
    courses: dict[str, np.ndarray] = {}
    for arm, peer in trained(run, runs).items():
        history = peer.history()
        steps, dimensions = history[DIMENSION]
        used = np.asarray(history[USED][1]) / CLASSES
        per_class = np.asarray(dimensions) / CLASSES
        courses |= {f"{arm}/step": np.asarray(steps), f"{arm}/per class": per_class}
        numbers = {
            "start/per class": per_class[0],
            "per class": per_class[-1],
            "beyond minimal": per_class[-1] - MINIMAL,
            "start/used per class": used[0],
            "used per class": used[-1],
        }
        first = load_yaml(peer.path / "config.yaml").train.seed
        parts.append(of_arrays("regimes", arm, numbers, first_seed=first))
    run.save_array("courses", **courses)
    return merge(parts)
