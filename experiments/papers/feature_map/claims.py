"""What the paper and we say, and which of our numbers speak to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from experiments.papers.feature_map import claims_dynamics
from experiments.papers.feature_map.protocols import DATASETS, NETWORKS
from experiments.papers.feature_map.studies import regimes
from experiments.papers.paper import Outcome
from experiments.report.claims import Claim
from experiments.report.evidence import final, paired
from experiments.report.verdicts import Judged

PAPER = "arXiv 2410.04264"
FAIR = "a question that the paper leaves open"
REVIEW = "asked by the paper's reviewers"
OURS = "our measurement before this repository, of one seed"
COMMAND = "python -m experiments reproduce feature_map --preset small"
MINIMAL = (
    "DNNs converge, after just a few epochs, to a minimal feature (MF) regime dominated by a "
    "number of eigenfunctions equal to the number of classes."
)
EXTENDED = (
    "for other DNN-data combinations, such as a fully connected network on CIFAR10, we find an "
    "extended feature (EF) regime where significantly more features are used"
)
SMALL_LAYER = {"resnet": ". 64 features, of which so few are effective before training, too"}
NOT_GOOD = (
    "Dynamic feature transformation (the rich regime) does not always align with predictive "
    "performance (better representation)"
)
BATCH_NORM = "new observations (e.g., batch normalization promotes rich dynamics)"
EARLIER = {
    "mse": (0.122, 23.5),
    "last_layer": (0.556, 63.6),
    "shuffled": (0.498, 116.8),
    "unshuffled": (0.073, None),
}

direction = partial(Claim, type="direction", largest_n=32, cost="preset small")
context = partial(Claim, type="stochastic", largest_n=32, cost="preset small")
# A difference that must be nothing, and what would be something.
nothing = partial(context, value=0.0, spread=0.0)
RICHNESS, DIMENSION = "features/richness", "features/effective_dimension"
richness = partial(paired, protocol="p1", metric=RICHNESS, scale=1.0)


def _ways() -> list[Claim]:
    """The networks of ``p1``: what training does to richness, and what it must not do."""
    richer = partial(direction, smallest_effect=0.02)
    ours, ends = partial(final, protocol="p1"), partial(final, protocol="endpoints")
    claims = [
        richer("training-is-rich", "training makes the last layer richer than at the start "
               "(difference of D_LR, 0 the richest)", FAIR, "our question", direction=-1,
               evidence=ends(f"moved/{RICHNESS}", arm="mse")),
        richer("last-layer-is-lazy", "trained whole, it is richer than with the last layer trained "
               "alone (difference of D_LR)", PAPER, "published", citation=".0087; .63",
               direction=-1, evidence=richness("mse", "last_layer"),
               difference="the source's images have the class written into them"),
        richer("decay-is-rich", "decoupled decay makes it richer (difference of D_LR)", FAIR,
               "our question", direction=-1, evidence=richness("decay", "mse")),
        richer("shuffled-is-lazy", "with labels that say nothing of the image it is lazier than "
               "with true ones (difference of D_LR)", FAIR, "our question", direction=1,
               evidence=richness("shuffled", "unshuffled"),
               difference="the source has .034 with shuffled labels and .031 with true ones"),
        Claim("features-stay", "last layer alone: the effective dimension of the features does not "
              "move", "exact: the features are those of the start", "our reference",
              type="deterministic", value=0.0, tolerance=1e-9, command=COMMAND,
              evidence=ends(f"moved/{DIMENSION}", arm="last_layer")),
    ]  # fmt: skip
    known = partial(context, source=OURS, origin="our reference", command=COMMAND)
    for way, (value, dimension) in EARLIER.items():
        claims.append(
            known(f"{way}-richness", f"{way}: D_LR on training images", value=value,
                  smallest_effect=0.05, evidence=ours(RICHNESS, arm=way))
        )  # fmt: skip
        if dimension is not None:
            claims.append(
                known(f"{way}-dimension", f"{way}: effective dimension", value=dimension,
                      smallest_effect=3.0, evidence=ours(DIMENSION, arm=way))
            )  # fmt: skip
    return claims


def _review() -> list[Claim]:
    """Layers, classes of unequal size, unseen images, and how many images it takes."""
    layer = partial(richness, "mse", "mse")
    few = partial(final, protocol="estimates")
    claims = [
        direction("last-layer-is-richest", "the last hidden layer is richer than the first "
                  "(difference of D_LR)", REVIEW, "our question", direction=-1,
                  smallest_effect=0.02, evidence=layer(other_metric=f"{RICHNESS}/layers/1")),
        nothing("balanced", "counting every class alike changes D_LR by nothing that matters",
                REVIEW, "our question", smallest_effect=0.02,
                evidence=final("balanced", arm="mse", protocol="endpoints")),
        direction("unseen", "on unseen images it looks lazier than on those it was trained on "
                  "(difference of D_LR)", FAIR, "our question", direction=1, smallest_effect=0.02,
                  evidence=layer(metric="features/unseen/richness", other_metric=RICHNESS)),
    ]  # fmt: skip
    for way in ("mse", "last_layer"):
        claims += [
            nothing(f"corrected-{way}", f"{way}: the corrected D_LR of 128 images is that of 2,000 "
                    "(difference)", REVIEW, "our question", smallest_effect=0.03,
                    evidence=few("corrected/128", arm=way)),
            nothing(f"plain-{way}", f"{way}: so is the plain one of 128 images", REVIEW,
                    "our question", smallest_effect=0.03, family="control",
                    evidence=few("plain/128", arm=way)),
        ]  # fmt: skip
    return claims


def _sizes() -> list[Claim]:
    """Width, classes, examples, and the scale of the outputs."""
    sized = partial(direction, source=REVIEW, origin="our question", smallest_effect=0.02)
    among = partial(paired, protocol="sizes", metric="richness", scale=1.0)
    return [
        sized("width", "512 units wide, it is lazier than 64 units wide (difference of D_LR)",
              direction=1, evidence=among("width=512", "width=64")),
        sized("classes", "five classes leave it lazier than two (difference of D_LR)", direction=1,
              evidence=among("classes=5", "classes=2"),
              difference="two classes have fewer images, which are seen more often"),
        sized("examples", "after as many steps, 8,000 examples leave it lazier than 1,000 "
              "(difference of D_LR)", direction=1,
              evidence=among("examples=8000", "examples=1000")),
        direction("alpha", "outputs scaled by 100 make training lazier than by 1 (difference of "
                  "D_LR)", FAIR, "our question", direction=1, smallest_effect=0.02,
                  evidence=paired("alpha=100", "alpha=1", protocol="lazy", metric="richness",
                                  scale=1.0)),
    ]  # fmt: skip


def _pixels() -> list[Claim]:
    """Rich and wrong: the class in the first pixels."""
    among = partial(paired, "full/amp=3", "last/amp=3", protocol="pixels")
    fig1 = partial(context, source=f"{PAPER}, Fig. 1", origin="published",
                   difference="its code of the class in the image is not known to us")  # fmt: skip
    ours = partial(final, protocol="pixels")
    return [
        direction("pixels-rich", "class in the pixels: trained whole, the network is richer than "
                  "with its last layer trained (difference of D_LR)", PAPER, "published",
                  citation=NOT_GOOD, direction=-1, smallest_effect=0.05,
                  evidence=among(metric="richness", scale=1.0)),
        direction("pixels-wrong", "and worse where the pixels name a random class (difference of "
                  "accuracy)", PAPER, "published", citation=NOT_GOOD, direction=-1, unit=" points",
                  smallest_effect=2.0, evidence=among(metric="conflicting/accuracy")),
        direction("pixels-held", "its leading directions hold more of the code than of the image "
                  "(difference of Pi*)", FAIR, "our question", direction=1, smallest_effect=0.05,
                  evidence=paired("full/amp=3", "full/amp=3", protocol="pixels", scale=1.0,
                                  metric="code/quality", other_metric="image/quality")),
        fig1("fig1-full-accuracy", "class in the image, trained whole: test accuracy", value=10.0,
             citation="10.0", unit=" %", smallest_effect=2.0,
             evidence=ours("conflicting/accuracy", arm="full/amp=3", scale=100)),
        fig1("fig1-full-richness", "the same: D_LR", value=0.0087, citation=".0087",
             smallest_effect=0.02, evidence=ours("richness", arm="full/amp=3")),
        fig1("fig1-last-accuracy", "class in the image, last layer alone: test accuracy",
             value=74.4, citation="74.4", unit=" %", smallest_effect=2.0,
             evidence=ours("conflicting/accuracy", arm="last/amp=3", scale=100)),
        fig1("fig1-last-richness", "the same: D_LR", value=0.63, citation=".63",
             smallest_effect=0.05, evidence=ours("richness", arm="last/amp=3")),
    ]  # fmt: skip


def _regimes() -> list[Claim]:
    """As many directions as classes, or more."""
    per_class = partial(direction, unit=" directions per class", smallest_effect=0.2)
    claims = [
        per_class(
            f"minimal-{data}-{net}",
            f"{net} on {data}: at the end no more than twice as many directions as classes "
            "(excess of the effective dimension)",
            PAPER, "published", citation=MINIMAL, direction=-1,
            evidence=final("beyond minimal", arm=f"{data}-{net}", protocol="regimes"),
            difference="effective dimension of centred features; the source counts significant "
            "eigenfunctions. 5,000 examples, 10 epochs" + SMALL_LAYER.get(net, ""),
        )
        for data in DATASETS
        for net in NETWORKS
        if (data, net) != ("cifar10", "mlp")
    ]  # fmt: skip
    return [
        *claims,
        per_class(
            "extended-cifar10-mlp", "mlp on cifar10: more directions per class than the mlp on "
            "mnist (difference)", PAPER, "published", citation=EXTENDED, direction=1,
            evidence=paired("cifar10-mlp", "mnist-mlp", protocol="regimes", metric="per class",
                            scale=1.0),
        ),
    ]  # fmt: skip


def _open() -> list[Claim]:
    """What is not measured here, with the reason."""
    return [
        Claim("batch-norm", "batch normalisation makes training richer (VGG-16, CIFAR-100: .66 "
              "without, .073 with)", PAPER, "published", citation=BATCH_NORM,
              reason="needs VGG-16 on CIFAR-100, which is no data set of this repository"),
        Claim("learning-rate", "ResNet-18 on CIFAR-100: richest at a learning rate of .05 (.025; "
              ".053 at .005, .039 at .2), where it tests best", PAPER, "published",
              citation=".053; .025; .039", reason="needs CIFAR-100 and a GPU"),
    ]  # fmt: skip


CLAIMS: Sequence[Claim] = (
    *_ways(),
    *_review(),
    *_sizes(),
    *_pixels(),
    *_regimes(),
    *_open(),
    *claims_dynamics.CLAIMS,
)


def learned(outcome: Outcome, judged: Sequence[Judged]) -> list[str]:
    """What a reader who reads nothing else should know."""
    found = {one.id: one for one in judged}
    told = [
        "Richness, D_LR, compares the features of a network's last layer with what its outputs "
        "need of them: 0 if they are that and nothing more, near 1 if training left them alone."
    ]
    parts = (_of_ways, _of_pixels, _of_review, partial(_of_regimes, outcome))
    return [*told, *(line for part in parts for line in part(found)),
            *claims_dynamics.learned(judged)]  # fmt: skip


def _of_ways(found: Mapping[str, Judged]) -> list[str]:
    rich, shuffled = found["training-is-rich"].told, found["shuffled-is-lazy"].told
    sentences = [
        f"Training moved it by {rich}; negative is richer." if rich else "",
        f"With labels that say nothing of the image it ended {shuffled} from where true labels "
        "lead; positive is lazier." if shuffled else "",
    ]  # fmt: skip
    return [*filter(None, sentences)]


def _of_pixels(found: Mapping[str, Judged]) -> list[str]:
    rich, wrong = found["pixels-rich"].told, found["pixels-wrong"].told
    if not rich:
        return []
    return [
        "Is rich good? Where the class was written into the pixels, training the whole network "
        f"instead of its last layer changed D_LR by {rich}, and the accuracy where the pixels lie "
        f"by {wrong}."
    ]


def _of_review(found: Mapping[str, Judged]) -> list[str]:
    plain, corrected = found["plain-last_layer"], found["corrected-last_layer"]
    if not corrected.told:
        return []
    return [
        f"From 128 images in place of 2,000, D_LR of a lazy network comes out {plain.told} off, "
        f"and {corrected.told} with the correction."
    ]


def _of_regimes(outcome: Outcome, found: Mapping[str, Judged]) -> list[str]:
    minimal = [one for id, one in found.items() if id.startswith("minimal-") and one.told]
    if not minimal:
        return []
    few = [one.id.removeprefix("minimal-") for one in minimal if one.verdict == "SUPPORTED"]
    start = partial(outcome.results.known, "start/per class", protocol="regimes")
    before = sum(np.mean(start(arm=arm)) <= regimes.MINIMAL for arm in few)
    return [
        f"Of {len(minimal)} pairs of network and data that should end with few directions, "
        f"{len(few)} surely had no more than two a class; of these, {before} had no more before "
        "training, either."
    ]
