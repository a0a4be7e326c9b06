"""Measurements: what the library costs, beside what else one could use.

A suite is a module here with ``tables(smoke: bool) -> Iterator[Table]``, and a line in ``SUITES``.
"""

SUITES = {
    "curvature": "Products in gradients, spectra and largest pairs, watching, moments of data",
    "features": "The feature map: one pass beside n x n, watching, agreement, who computes what",
    "fiedler": "Fiedler pairs and the penalty: accuracy, solvers, a training epoch, seeds",
    "farms": "FARMS, tails, analyze: oracles, agreement, processes, windows, fits, an epoch",
    "linalg": "Spectral kernels: values, low rank, eigenpairs, densities, traces",
    "revisions": "What a change costs: this tree against an earlier revision",
    "rmt": "Marchenko-Pastur fits: noise, spikes, ranks; refits, pruning, factored networks",
    "sweep": "Trials together against one at a time, ten thousand of them, and how soon they start",
    "training": "A training step of many trials in one program, beside bare Optax steps",
}
