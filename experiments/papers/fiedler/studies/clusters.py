"""How well trained networks fall apart into clusters: the peer's n-cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.papers.paper import trained
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run


def measure(run: Run, *, runs: Mapping[str, str], clusters: int) -> Results:
    """Per arm and seed, the n-cut of a spectral clustering of the weight graph."""
    found = []
    for arm, peer in trained(run, runs).items():
        stored = peer.array("parameters")
        kernels = [np.abs(stored[name]) for name in sorted(stored) if name.endswith("/kernel")]
        cuts = [n_cut([w[seed] for w in kernels], clusters) for seed in range(len(kernels[0]))]
        found.append(of_arrays("clusters", arm, {"n_cut": cuts}))
    return merge(found)


def n_cut(blocks: Sequence[np.ndarray], clusters: int) -> float:
    """Sum over clusters of the share of their edge weight that leaves them.

    blocks: non-negative weights between adjacent layers, [in, out]; units without any are left out.
    """
    from sklearn.cluster import SpectralClustering

    adjacency = _adjacency(blocks)
    clustering = SpectralClustering(clusters, affinity="precomputed", random_state=0)
    labels = clustering.fit_predict(adjacency)
    inside = (labels[:, None] == np.unique(labels)).astype(float)
    volume = adjacency.sum(axis=0) @ inside
    within = np.einsum("ic,ij,jc->c", inside, adjacency, inside)
    return float(np.sum((volume - within) / volume))


def _adjacency(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The symmetric weights of the whole graph, without isolated nodes."""
    sizes = [blocks[0].shape[0], *(block.shape[1] for block in blocks)]
    starts = np.cumsum([0, *sizes])
    adjacency = np.zeros((starts[-1], starts[-1]))
    for layer, block in enumerate(blocks):
        rows, columns = slice(*starts[layer : layer + 2]), slice(*starts[layer + 1 : layer + 3])
        adjacency[rows, columns], adjacency[columns, rows] = block, block.T
    alive = adjacency.sum(axis=0) > 0
    return adjacency[np.ix_(alive, alive)]
