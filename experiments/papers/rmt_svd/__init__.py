"""RMT-SVD: arXiv 2303.08986, 2310.03165 and 2503.01922, a successor 2606.02608.

Prune the singular values below the edge of a layer's noise, and factor the layer, while training.
`ranks` asks how many values a trained layer needs, `loop` splits networks while they train and
holds them against every control there is, `counts` counts the published parameters; `fashion`
prunes a deep network again and again, `cnn` splits convolutions, `resnet` compresses a trained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments.papers.rmt_svd.protocols import PRESETS

__all__ = ["COSTS", "PRESETS", "STUDIES", "TITLE", "reproduce"]

TITLE = "RMT-SVD: pruning by the Marchenko-Pastur edge"
COSTS = {
    "smoke": "under a minute on two CPU cores, data that ships with scikit-learn",
    "small": "about 20 minutes on one CPU core; MNIST, Fashion-MNIST, CIFAR-10",
    "paper": "an estimated 120 hours on two CPU cores, a few on a GPU: the published networks, "
    "unpruned, and the loop on all of MNIST",
}

# Modules here that measure something of their own besides Fig. 5 and the loop:
# `run(preset, root=...) -> Run`, None where the preset has none, `claims(run, command)`,
# `section(run, folder)`.
STUDIES = ("fashion", "cnn", "resnet")


def reproduce(
    preset: str, *, root: str | Path, overrides: Sequence[str] = (), as_json: bool = False
) -> int:
    """Train, cut, judge the claims, write the report; 3 if a reference is missed."""
    from experiments.papers.rmt_svd import evidence, loop, pictures, ranks
    from experiments.papers.rmt_svd.report import write_report
    from experiments.reproduction import train_protocols

    command = " ".join(
        ["python -m experiments reproduce rmt_svd", f"--preset {preset}", *overrides]
    )
    folder = Path(root) / "reports" / f"rmt_svd-{preset}"
    trained = train_protocols(PRESETS[preset], root=root, overrides=overrides)["figure5"]
    dataset = PRESETS[preset]["figure5"]["linear"].data.name
    cut = ranks.run(trained, dataset, root=root)
    split = loop.run(preset, root=root)
    claims = [*ranks.claims(cut, command), *evidence.claims(split, command)]
    sections = [
        ranks.section(cut, trained, folder / "figures"),
        pictures.section(split, folder / "figures"),
    ]
    for name in STUDIES:
        module = import_module(f"{__name__}.{name}")
        run = module.run(preset, root=root)
        claims += module.claims(run, command)
        if run is not None:
            sections.append(module.section(run, folder / "figures"))
    return write_report(
        claims, sections, split, preset, folder=folder, command=command, as_json=as_json
    )
