"""Fiedler regularisation: arXiv 2003.00992 (ICML 2020), arXiv 2304.03096; a peer, arXiv 2103.03386.

Penalise the algebraic connectivity of the network's weight graph. `protocols` says what is trained,
`claims` what is claimed and how our numbers speak to it, `figures` what is drawn.
"""

from experiments.papers.fiedler.protocols import PROTOCOLS
from experiments.papers.paper import Paper, Study

NETS = {"mnist": [784, 500, 500, 500, 10], "khan": [2308, 50, 50, 50, 4]}
CLUSTERS = {"clusters": 12}

PAPER = Paper(
    "fiedler",
    "Fiedler regularisation",
    PROTOCOLS,
    studies=(
        Study("untrained", dict.fromkeys(PROTOCOLS, {"nets": NETS, "seeds": 5})),
        Study("clusters", {"small": CLUSTERS, "paper": CLUSTERS}, of="peer"),
    ),
    costs={
        "smoke": "1-2 minutes on two CPU cores, data that ships with scikit-learn",
        "small": "under an hour on two CPU cores, MNIST",
        "paper": "about 3 hours on two CPU cores or minutes on a GPU; MNIST, CIFAR-10 and TCGA",
    },
)
