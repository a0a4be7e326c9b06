"""What training changed: the networks of protocol ``p1`` at the end, beside how they began.

Results: arms of protocol ``endpoints`` are those of ``p1``. Every number of the measures stands
below ``start/`` as it was at first, and below ``moved/`` as it differs in the end; ``balanced`` is
richness at the end with every class counting alike, less what it is with every image doing so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.papers.feature_map.measured import balancing, last_of, look
from experiments.papers.networks import Bench, opened
from experiments.papers.paper import trained
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import features

MEASURES = ("features/", "collapse/")


def measure(run: Run, *, runs: Mapping[str, str], examples: int) -> Results:
    """Every seed of every arm; richness is balanced on so many of the images it was trained on."""
    parts = []
    for arm, peer in trained(run, runs).items():
        bench = opened(peer)
        numbers = changes(peer.history())
        numbers["balanced"] = np.array([balanced(bench, seed, examples) for seed in bench.seeds])
        parts.append(of_arrays("endpoints", arm, numbers, first_seed=bench.seeds.start))
        run.log(f"endpoints: {arm} is measured")
    return merge(parts)


def changes(history: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """First values of the measures, and by how much the last ones differ."""
    found = {}
    for name, (_, values) in history.items():
        if name.startswith(MEASURES):
            found[f"start/{name}"] = values[0]
            found[f"moved/{name}"] = values[-1] - values[0]
    return found


def balanced(bench: Bench, seed: int, examples: int) -> float:
    """How much richness changes when every class counts alike."""
    looked = look(bench.net, bench.end(seed), bench.known(seed), rows=examples)
    alike = balancing(looked.labels, bench.dataset.classes)
    each, plain = (
        features.richness(last_of(looked), head=looked.head, weights=weights).value
        for weights in (alike, looked.weights)
    )
    return float(each - plain)
