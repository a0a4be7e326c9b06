"""What is claimed of the studies of `dynamics`, and what was learned of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from experiments.papers.feature_map.studies.linear import name
from experiments.report.claims import Claim
from experiments.report.evidence import final, paired
from experiments.report.verdicts import Judged

PAPER = "arXiv 2410.04264"
FAIR = "a comparison that no paper makes"
OURS = "our measurement before this repository"
COMMAND = "python -m experiments reproduce feature_map --preset small"
# What may change before the accuracy does: its name in the results, and in words.
LEADERS = {
    "richness": ("unseen/richness", "D_LR"),
    "dimension": ("unseen/effective_dimension", "the effective dimension"),
    "nc1": ("unseen/nc1", "NC1"),
    "kernel": ("unseen/kernel distance", "the kernel's distance from the start"),
    "norm": ("norm", "the squared norm of the parameters"),
}
FURTHER = {
    "centre-first": ("unseen/richness/centre_first", "D_LR, outputs centred first,"),
    "train-richness": ("train/richness", "D_LR on training images"),
    "train-dimension": ("train/effective_dimension", "the effective dimension on training images"),
    "train-nc1": ("train/nc1", "NC1 on training images"),
}
GROKS = "the tanh network of large initial weights"

direction = partial(Claim, type="direction", largest_n=32, cost="preset small", source=FAIR,
                    origin="our question")  # fmt: skip
context = partial(Claim, type="stochastic", largest_n=32, cost="preset small")
exact = partial(Claim, type="deterministic", source=OURS, origin="our reference", command=COMMAND)


def _grokking() -> list[Claim]:
    """Which quantity changes first: an onset is half of the change since all images are fitted."""
    lag = partial(final, arm="as given", protocol="grokking")
    leads = partial(direction, direction=-1, unit=" epochs", smallest_effect=25.0)
    claims = [
        leads(f"grokking-{id}", f"{GROKS}: {words} has its onset before the accuracy on unseen "
              "images (difference of the onsets)", evidence=lag(f"lag/{metric}"),
              family="primary" if id in LEADERS else "control")
        for id, (metric, words) in (LEADERS | FURTHER).items()
    ]  # fmt: skip
    rivals = [
        leads(f"grokking-before-{id}", f"{GROKS}: D_LR has its onset before {words}",
              family="control",
              evidence=paired("as given", "as given", protocol="grokking", scale=1.0,
                              metric="onset/unseen/richness", other_metric=f"onset/{metric}"))
        for id, (metric, words) in LEADERS.items() if id != "richness"
    ]  # fmt: skip
    controls = [
        direction(f"grokking-{id}", f"{words} (test accuracy)", direction=1, unit=" points",
                  smallest_effect=1.0, family="control",
                  evidence=paired("as given", arm, protocol="grokking",
                                  metric="end/unseen/accuracy"))
        for id, arm, words in (
            ("decay", "no L2", f"{GROKS} generalises better with L2 than without"),
            ("gain", "init gain 1", "it ends better than one of small initial weights"),
        )
    ]  # fmt: skip
    return [*claims, *rivals, *controls, *_before()]


def _before() -> list[Claim]:
    """Numbers of one seed that were known before."""
    told = {
        "start/unseen/richness": ("D_LR at the start", 0.724),
        "end/unseen/richness": ("D_LR after 1,500 epochs", 0.398),
        "start/unseen/effective_dimension": ("the effective dimension at the start", 201.0),
        "end/unseen/effective_dimension": ("the effective dimension after 1,500 epochs", 17.0),
        "end/unseen/accuracy": ("the accuracy on unseen images after 1,500 epochs", 0.927),
    }
    return [
        context(f"grokking-{metric.replace(' ', '-').replace('/', '-')}", f"{GROKS}: {words}", OURS,
                "our reference", command=COMMAND, value=value, smallest_effect=0.05 * value,
                evidence=final(metric, arm="as given", protocol="grokking"),
                difference="one seed, of other draws")
        for metric, (words, value) in told.items()
    ]  # fmt: skip


def _linear() -> list[Claim]:
    """The closed form, by trained networks; and where a small D_LR does not mean rich."""
    known = {
        "equal": {0.1: 0.0075, 1: 0.2183, 10: 0.3839},
        "unequal": {0: 0.2184, 0.3: 0.1993, 3: 0.3140},
    }
    return [
        exact(f"linear-{targets}-{lam:g}", f"two linear layers, {targets} singular values, "
              f"lam = {lam:g}: D_LR after gradient descent", value=value, tolerance=5e-4,
              evidence=final("richness", arm=name(targets, lam), protocol="linear"),
              difference="descent in steps, so to 5e-4")
        for targets, values in known.items()
        for lam, value in values.items()
    ]  # fmt: skip


def _modular() -> list[Claim]:
    """Addition modulo 97: the published numbers, and whether D_LR falls."""
    at = partial(final, arm="transformer", protocol="modular")
    falls = partial(direction, direction=-1, smallest_effect=0.05)
    moved = partial(paired, "transformer", "transformer", protocol="modular", scale=1.0)
    published = partial(
        context, source=PAPER, origin="published", citation="step 3000 99.8/.11",
        difference="network and optimiser of the source are not known to us",
    )  # fmt: skip
    return [
        published("modular-accuracy", "addition modulo 97: accuracy on unseen pairs at step 3000",
                  value=0.998, smallest_effect=0.01, evidence=at("end/unseen/accuracy")),
        published("modular-richness", "addition modulo 97: D_LR at step 3000", value=0.11,
                  smallest_effect=0.05, evidence=at("end/unseen/richness")),
        falls("modular-falls", "addition modulo 97: D_LR is smaller at the end than at the start "
              "(difference)",
              evidence=moved(metric="end/unseen/richness", other_metric="start/unseen/richness")),
        falls("modular-resolved", "addition modulo 97: so is that of the directions with more than "
              "3 % of the outputs' largest singular value",
              # On seeds that it was made up for it can be no finding.
              family="control", difference="asked after a run of seed 0, which is among these, "
              "where the others had 1 % at most",
              evidence=moved(metric="end/unseen/richness/resolved",
                             other_metric="start/unseen/richness/resolved")),
    ]  # fmt: skip


def _tangent() -> list[Claim]:
    """The lazy baseline."""
    points = partial(direction, unit=" points", smallest_effect=0.5, direction=1)
    return [
        points("tangent-network", "1,000 digits: a network is better than kernel regression with "
               "the tangent kernel of its start",
               difference="the same unseen images choose the learning rate and the ridge",
               evidence=paired("network", "kernel at start", protocol="tangent")),
        points("tangent-end", "1,000 digits: the tangent kernel of the end is better than that of "
               "the start", evidence=paired("kernel at end", "kernel at start",
                                            protocol="tangent")),
    ]  # fmt: skip


def _regulariser() -> list[Claim]:
    """Whether pushing D_LR helps."""
    claims = []
    for labels, words in (("true", "true labels"), ("noisy", "40 % wrong labels")):
        of = partial(paired, protocol=f"regulariser/{labels}")
        points = partial(direction, unit=" points", smallest_effect=0.3)
        claims += [
            points(f"regulariser-{labels}-richer", f"{words}: pushing D_LR down raises the test "
                   "accuracy", direction=1, evidence=of("richer", "none")),
            points(f"regulariser-{labels}-lazier", f"{words}: pushing D_LR up lowers it",
                   direction=-1, evidence=of("lazier", "none")),
            points(f"regulariser-{labels}-decay", f"{words}: pushing D_LR down is better than "
                   "weight decay", direction=1, family="control", evidence=of("richer", "decay")),
            direction(f"regulariser-{labels}-moved", f"{words}: pushed down, D_LR on unseen images "
                      "is smaller (difference)", direction=-1, smallest_effect=0.01,
                      family="control", evidence=of("richer", "none", metric="richness",
                                                    scale=1.0)),
            direction(f"regulariser-{labels}-lazier-moved", f"{words}: pushed up, it is larger "
                      "(difference)", direction=1, smallest_effect=0.01, family="control",
                      evidence=of("lazier", "none", metric="richness", scale=1.0)),
        ]  # fmt: skip
    fit = partial(paired, protocol="regulariser/shuffled", metric="train/accuracy")
    return [
        *claims,
        *(direction(f"regulariser-shuffled-{method}", f"shuffled labels: fewer of them are fitted "
                    f"with D_LR pushed {way}", direction=-1, unit=" points", smallest_effect=1.0,
                    family="control", evidence=fit(method, "none"))
          for method, way in (("richer", "down"), ("lazier", "up"))),
    ]  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    *_grokking(),
    *_linear(),
    *_modular(),
    *_tangent(),
    *_regulariser(),
)


def learned(judged: Sequence[Judged]) -> list[str]:
    """The sentences that the page has of them."""
    found = {one.id: one for one in judged}
    parts = (_of_grokking, _of_modular, _of_tangent, _of_regulariser)
    return [line for part in parts for line in part(found)]


def _of_grokking(found: Mapping[str, Judged]) -> list[str]:
    shown = [
        f"{words} {one.told}"
        for id, (_, words) in LEADERS.items()
        if (one := found[f"grokking-{id}"]).told
    ]
    if not shown:
        return []
    return [
        "Grokking: what has made half of its change before the accuracy on unseen images has? By "
        f"how many epochs later (negative: earlier): {'; '.join(shown)}."
    ]


def _of_modular(found: Mapping[str, Judged]) -> list[str]:
    moved, resolved = found["modular-falls"].told, found["modular-resolved"].told
    if not moved:
        return []
    return [
        f"Where a transformer learned to add modulo 97, D_LR moved by {moved}; it counts every "
        "direction of the outputs alike, however small. That of the directions which the outputs "
        f"do use, by a threshold that was set after the first seed, moved by {resolved}; negative "
        "is richer."
    ]


def _of_tangent(found: Mapping[str, Judged]) -> list[str]:
    network, end = found["tangent-network"].told, found["tangent-end"].told
    if not network:
        return []
    return [
        f"With 1,000 digits a network differs by {network} from the tangent kernel of its start, "
        f"which cannot learn features; the kernel that it ends with, by {end}."
    ]


def _of_regulariser(found: Mapping[str, Judged]) -> list[str]:
    shown = [
        f"{words}: {richer} pushed down, {found[f'regulariser-{labels}-lazier'].told} pushed up"
        for labels, words in (("true", "true labels"), ("noisy", "40 % wrong labels"))
        if (richer := found[f"regulariser-{labels}-richer"].told)
    ]
    if not shown:
        return []
    return [f"D_LR as a penalty changes the test accuracy so: {'; '.join(shown)}."]
