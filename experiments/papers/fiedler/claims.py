"""What the papers, the peer and we say, and which of our numbers speak to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from experiments.papers.paper import Outcome
from experiments.report.claims import Claim
from experiments.report.evidence import best_of, final, first_run, paired
from experiments.report.verdicts import Judged

PAPER = "arXiv 2003.00992"
CODE = "edrictam/FiedlerRegularization@76408bf"
PEER = "arXiv 2103.03386, results/clustering_factors_clust_grad.csv"
OURS = "our measurement before this repository"
COMMAND = "python -m experiments reproduce fiedler"
COMPARED = (
    "We performed experiments on datasets that compare Fiedler regularization with traditional "
    "regularization methods such as Dropout and weight decay. Results demonstrate the efficacy of "
    "Fiedler regularization."
)
COLLAPSED = "this one collapsed; eight others of ours, in NumPy, ended at 91.5 to 94 %"
SPECTRAL = {
    "fiedler": "lambda_2 penalty",
    "fiedler-proximal": "lambda_2 proximal",
    "fiedler_normalised": "nu_2 penalty",
    "fiedler_normalised-proximal": "nu_2 proximal",
    "layer_quotient": "layer-quotient penalty (L1 with layer constants)",
    "layer_quotient-proximal": "layer-quotient proximal",
    "spectral_gap": "-nu_2 penalty (wider gap)",
    "spectral_gap-proximal": "-nu_2 proximal",
}
BASELINES = ("l2", "l1", "dropout")
BEST_BASELINE = best_of(*BASELINES, protocol="fair")

# A test accuracy near 96 % has a standard error of 0.2 points over samples of 10,000 images: a
# smaller difference is nobody's concern.
direction = partial(
    Claim, type="direction", unit=" points", smallest_effect=0.2, largest_n=32, cost="preset small"
)


def _initial() -> list[Claim]:
    """Connectivity of untrained nets: needs no data, so every preset checks it.

    The reference's spread is the range of its five draws over 2.33, which the range of five normal
    numbers is, on average, in standard deviations.
    """
    number = partial(Claim, source=OURS, origin="our reference", command=COMMAND)
    drawn = partial(number, type="stochastic", reference_n=5, largest_n=20)
    net = partial(final, protocol="untrained")
    return [
        drawn(
            id="init-lambda2", text="lambda_2 of the untrained 784-500-500-500-10 net",
            value=5.629, spread=0.0017, smallest_effect=0.006,
            evidence=net("lambda_2", arm="mnist"),
        ),
        drawn(
            id="init-spread", value=1389.0, spread=4.3, smallest_effect=15.0,
            text="its Fiedler vector is spread over the net (participation ratio, of 2294)",
            evidence=net("participation_ratio", arm="mnist"),
        ),
        drawn(
            id="init-nu2", text="nu_2 (normalised Laplacian) of the same net",
            value=0.4633, spread=0.00026, smallest_effect=0.0006, evidence=net("nu_2", arm="mnist"),
        ),
        number(
            id="init-one-gene", type="deterministic", value=1.0, tolerance=0.05,
            text="with 2308 inputs and 50 hidden units it sits on a single input instead "
            "(participation ratio)", evidence=net("participation_ratio", arm="khan"),
        ),
        drawn(
            id="init-one-gene-lambda2",
            text="lambda_2 of that net: the degree of its weakest input",
            value=0.376, spread=0.0069, smallest_effect=0.016, evidence=net("lambda_2", arm="khan"),
        ),
    ]  # fmt: skip


def _released() -> list[Claim]:
    """Released settings; the reference is one seed of ours, the papers' table is unknown."""
    number = partial(
        Claim, source=OURS, origin="our reference", type="stochastic", largest_n=32,
        command=f"{COMMAND} --preset small", cost="6,000 steps a seed: preset small",
    )  # fmt: skip
    table = {
        "none": (96.10, 5.81),
        "fiedler": (96.10, 5.75),
        "fiedler-100": (11.35, 0.08),
        "weight-decay": (94.96, 3.32),
        "l1": (90.55, None),
        "dropout": (95.87, 5.80),
    }
    claims = []
    for arm, (test, lambda_2) in table.items():
        text = f"MNIST, released settings, {arm}: "
        others = f"; {COLLAPSED}" if arm == "fiedler-100" else ""
        one = partial(number, difference=f"8 seeds instead of 1{others}")
        claims.append(
            one(
                id=f"mnist-{arm}", text=text + "test accuracy", value=test, unit=" %",
                evidence=final("test/accuracy", arm=arm, protocol="mnist", scale=100),
                smallest_effect=0.4,
            )
        )  # fmt: skip
        if lambda_2 is not None:
            claims.append(
                one(
                    id=f"mnist-{arm}-lambda2", text=text + "final lambda_2", value=lambda_2,
                    evidence=final("spectra/lambda_2", arm=arm, protocol="mnist"),
                    smallest_effect=max(0.05, 0.02 * lambda_2),
                )
            )  # fmt: skip
    left_on = number(
        id="mnist-dropout-left-on", value=1.6, unit=" points", smallest_effect=0.4,
        difference="8 seeds instead of 1",
        text="the released evaluation leaves dropout on: test accuracy lost by it",
        evidence=paired("dropout", "dropout", protocol="mnist",
                        other_metric="final_test_dropout_on/accuracy"),
    )  # fmt: skip
    return [*claims, left_on]


def _strengths() -> list[Claim]:
    """Who is better at the released strengths; where a preset has no MNIST, on digits."""

    def difference(arm: str, other: str):
        return first_run(*(paired(arm, other, protocol=where) for where in ("mnist", "digits")))

    def gain(other: str, name: str, **more):
        return direction(
            id=f"fiedler-beats-{other}", source=PAPER, direction=1,
            text=f"Fiedler regularisation tests better than {name} at the released strengths",
            evidence=difference("fiedler", other),
            difference="the papers' accuracies are not known to us: only the sign is tested",
            **more,
        )  # fmt: skip

    return [
        gain("none", "no penalty", origin="our question"),
        gain("weight-decay", "weight decay", origin="published", citation=COMPARED),
        gain("dropout", "dropout (switched off at test)", origin="published", citation=COMPARED),
        gain("l1", "L1", origin="our question", family="control"),
        direction(
            id="strong-delta-costs", source=OURS, origin="our question", direction=-1,
            text="as a subgradient with a stale vector, delta = 100 costs accuracy (test accuracy "
            "minus that without penalty)",
            evidence=difference("fiedler-100", "none"), family="control",
        ),
    ]  # fmt: skip


def _peer() -> list[Claim]:
    """Means of ten in the peer's table, which has no spread."""
    number = partial(
        Claim, source=PEER, origin="released code", type="stochastic", reference_n=10, largest_n=32,
        cost="preset small",
        difference="exact down-sampling of the images; our initialisation instead of Keras'",
    )  # fmt: skip
    claims = []
    for arm, name, test, cut in (
        ("control", "no penalty", 95.74, 10.02),
        ("cluster", "mean of nu_2..nu_4 penalised", 95.90, 8.93),
    ):
        claims += [
            number(
                id=f"peer-{arm}-accuracy", text=f"7x7 MNIST, {name}: test accuracy", value=test,
                evidence=final("test/accuracy", arm=arm, protocol="peer", scale=100),
                smallest_effect=0.5, unit=" %",
            ),
            number(
                id=f"peer-{arm}-ncut",
                text=f"7x7 MNIST, {name}: n-cut of a spectral clustering into 12", value=cut,
                evidence=final("n_cut", arm=arm, protocol="clusters"), smallest_effect=0.15,
            ),
        ]  # fmt: skip
    fall = direction(
        id="peer-ncut-falls", source=PEER, origin="released code", direction=-1, unit="",
        text="the penalty makes the net more clusterable (n-cut, minus control, paired)",
        evidence=paired("cluster", "control", protocol="clusters", metric="n_cut", scale=1),
        smallest_effect=0.15, citation="n-cut 10.02 of the control, 8.93 with the cluster gradient",
        difference="our initialisation; units are rescaled with the penalty, not in the control",
    )  # fmt: skip
    pruned = number(
        id="peer-pruning", value=5.51, smallest_effect=0.3,
        text="penalty and pruning together: n-cut 5.51 at 89.60 % test accuracy",
        reason="pruning schedules are not built yet",
    )  # fmt: skip
    return [*claims, fall, pruned]


def _fair() -> list[Claim]:
    """Tuned alike on few, noisy samples: against the best tuned baseline, and against nothing."""
    claim = partial(
        direction, source="a comparison that no paper makes", origin="our question", direction=1,
        smallest_effect=0.5,
        difference="1,000 MNIST digits, 20 % mislabelled, drawn for each seed, as are the 2,000 "
        "validation digits on which each method is tuned over 4 strengths",
    )  # fmt: skip
    claims = []
    for method, name in SPECTRAL.items():
        text = f"few noisy samples: {name}, tuned, tests better than "
        claims += [
            claim(
                id=f"fair-{method}-over-none", text=text + "no penalty", family="control",
                evidence=paired(method, "none", protocol="fair"),
            ),
            claim(
                id=f"fair-{method}-over-baseline", text=text + "the best tuned baseline",
                evidence=paired(method, BEST_BASELINE, protocol="fair"),
            ),
        ]  # fmt: skip
    return claims


def _open() -> list[Claim]:
    """What the sources do not let us check, said so."""
    return [
        Claim("accuracy-tables", "the accuracy tables of the two papers", PAPER, "published",
              citation=COMPARED, reason="only the abstracts were available to us; the released "
              "code keeps no results"),
        Claim("delta-choice", "how delta = 0.01 was chosen", CODE, "released code",
              reason="no grid, seeds or validation split in the released code"),
        Claim("generalisation-bounds", "Rademacher bounds in terms of the penalty",
              "arXiv 2304.03096", "published",
              citation="We provide uniform generalization error bounds for Fiedler "
              "regularization via a Rademacher complexity analysis.",
              reason="the constants are not known to us"),
    ]  # fmt: skip


CLAIMS = (*_initial(), *_released(), *_strengths(), *_peer(), *_fair(), *_open())


def learned(outcome: Outcome, judged: Sequence[Judged]) -> list[str]:
    """What a reader who reads nothing else should know."""
    told = ["Fiedler regularisation penalises how tightly weights connect a network's units."]
    found = {claim.id: claim for claim in judged}
    released = found["fiedler-beats-none"]
    if released.ours:
        told.append(
            "At the released strength (delta = 0.01) it changes test accuracy by "
            f"{released.ours} against no penalty, paired by seed: {_in_words(released)}."
        )
    baseline = BEST_BASELINE.name(outcome.results)
    best = best_of(*SPECTRAL, protocol="fair").name(outcome.results)
    if baseline and best:
        gain = found[f"fair-{best}-over-baseline"]
        told.append(
            "Tuned alike on few, noisy samples, the best of the spectral methods "
            f"({SPECTRAL[best]}) differs from the best ordinary one ({baseline}) by {gain.ours}: "
            f"{_in_words(gain)}."
        )
    return told


def _in_words(judged: Judged) -> str:
    words = {
        "SUPPORTED": "a gain",
        "CONTRADICTED": "a loss",
        "NO EFFECT": "no effect that would matter",
        "INCONCLUSIVE": "too few seeds to tell",
    }
    return words.get(judged.verdict, "too small a run to decide anything")
