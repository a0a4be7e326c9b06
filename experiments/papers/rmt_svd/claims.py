"""What the papers, their successors and we say, and which of our numbers speak to it.

Numbers of networks on MNIST are those of the protocols ``ranks`` and ``loop``; the stand-ins of a
smoke test are ``ranks/digits`` and ``loop/digits``, which only questions of direction look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from experiments.papers.paper import Outcome
from experiments.papers.rmt_svd.protocols import PUBLISHED
from experiments.papers.rmt_svd.studies import cnn, fashion, resnet
from experiments.papers.rmt_svd.studies.loop import ARMS, CELLS
from experiments.report.claims import Claim
from experiments.report.evidence import Evidence, final, first_run, paired, slope
from experiments.report.verdicts import Judged

PAPER = "arXiv 2303.08986"
FOLLOWER = "arXiv 2310.03165"
SUCCESSOR = "arXiv 2606.02608, Fashion-MNIST table"
NOTEBOOK = "jtj5311/NN-RMT-SVD@1838d93, notebook output"
FAIR = "the paper's thesis, tested fairly"
OURS = "our measurement before this repository"
NO_COMMAND = "none: its script is not kept"
RAISES = (
    "to determine which and how many singular values should be removed from the weight layers of a "
    "DNN during training [...] so as to reduce overfitting and increase accuracy"
)
KEEPS = "this pruning leads to a drastic reduction of parameters while not reducing the accuracy"

# A test accuracy near 96 % has a standard error of .2 points over samples of 10,000 images: a
# smaller difference is nobody's concern.
direction = partial(
    Claim, type="direction", direction=1, unit=" points", smallest_effect=0.2, largest_n=32,
    cost="preset small",
)  # fmt: skip
question = partial(direction, source=FAIR, origin="our question")
control = partial(question, family="control")
reference = partial(
    Claim, source=OURS, origin="our reference", type="stochastic", largest_n=32,
    command=NO_COMMAND, cost="preset small",
)  # fmt: skip


def _ranks() -> list[Claim]:
    """Fig. 5: what our reference of two seeds and the notebook's one network say of 784-1000-10."""
    number = partial(reference, source=f"{OURS}: two seeds, 10,000 digits")
    linear = partial(final, arm="linear", protocol="ranks")
    claims = [
        number("figure5-rank", "784-1000-10: rank above the MP edge", value=29.5,
               smallest_effect=1.5, evidence=linear("rank/MP edge")),
        number("figure5-gof", "its distance from the law", value=0.005, smallest_effect=0.002,
               evidence=linear("ks")),
        number("figure5-sigma", "variance of the noise over that of the initial weights",
               value=1.07, smallest_effect=0.02, evidence=linear("variance ratio")),
        number("figure5-gd", "rank above the Gavish-Donoho threshold", value=21.0,
               smallest_effect=1.5, evidence=linear("rank/Gavish-Donoho")),
    ]  # fmt: skip
    claims += [
        number(f"figure5-lost-k{rank}", f"the {rank} largest kept: change of test accuracy",
               value=change, smallest_effect=d, unit=" points", evidence=_kept(rank))
        for rank, change, d in ((30, -0.4, 0.3), (20, -1.05, 0.5), (10, -5.45, 1.5))
    ]  # fmt: skip
    claims += [
        number("figure5-full", "test accuracy, all values kept", value=95.6, smallest_effect=0.3,
               unit=" %", evidence=linear("test/accuracy", scale=100),
               difference="two seeds then, on 10,000 digits that are not these"),
        number("figure5-dead-linear", "dead classes with linear logits", type="deterministic",
               value=0.0, tolerance=0.0, evidence=linear("dead_classes")),
        number("figure5-dead-relu", "dead classes with a ReLU on the logits (of 10)", value=1.25,
               smallest_effect=0.7, spread=0.89, reference_n=8,
               evidence=final("dead_classes", arm="relu-logits", protocol="ranks"),
               difference="eight seeds of ours then, eight others now"),
    ]  # fmt: skip
    lost = partial(
        Claim, source=NOTEBOOK, origin="released code", type="stochastic", largest_n=32,
        unit=" points", cost="preset small", difference="10,000 training digits instead of 60,000",
    )  # fmt: skip
    claims += [
        lost(f"figure5-notebook-k{rank}",
             f"784-1000-10, the {rank} largest kept: change of test accuracy",
             value=value, smallest_effect=d, evidence=_kept(rank))
        for rank, value, d in ((20, -7.58, 2.0), (30, -1.0, 1.0), (60, -0.06, 0.3))
    ]  # fmt: skip
    enough = Claim(
        "figure5-enough", "the values above the MP edge keep the accuracy: loss against the whole",
        f"{PAPER}, Fig. 5", "published", type="stochastic", value=0.0, spread=0.0,
        smallest_effect=0.5, unit=" points", largest_n=32, citation=KEEPS,
        evidence=_either("ranks", "linear", "linear", metric="accuracy/MP edge",
                         other_metric="test/accuracy"),
    )  # fmt: skip
    return [*claims, enough]


def _kept(rank: int) -> Evidence:
    return paired("linear", "linear", protocol="ranks", metric=f"accuracy/{rank}",
                  other_metric="test/accuracy")  # fmt: skip


def _either(study: str, *arms: str, **options: Any) -> Evidence:
    """A difference of two arms on MNIST, or on digits in the preset that has no other data."""
    return first_run(*(paired(*arms, protocol=at, **options) for at in (study, f"{study}/digits")))


def _gain() -> list[Claim]:
    """Does a split raise accuracy, with a ReLU on the logits, as published, and without?"""
    claims = []
    for cell in CELLS:
        published = cell == "ReLU"
        claims.append(
            direction(
                f"loop-split-gains-{_slug(cell)}",
                f"{_told(cell)}: a network split while it trains tests better than the dense one",
                source=PAPER, origin="published" if published else "our question",
                citation=RAISES if published else "",
                evidence=_either("loop", f"{cell}/split", f"{cell}/dense"),
                difference="a smaller network and fewer digits; a real test split; rates tuned "
                "alike",
            )
        )  # fmt: skip
    none = reference(
        "loop-split-linear", "linear logits: change of test accuracy by the split",
        source=f"{OURS}, four seeds of 784-1000-10", value=-0.1, smallest_effect=0.4,
        unit=" points", spread=0.19, reference_n=4,
        evidence=paired("linear/split", "linear/dense", protocol="loop"),
    )  # fmt: skip
    return [*claims, none]


def _controls() -> list[Claim]:
    """What else could explain a difference, with linear logits."""
    pairs = {
        ("split", "split-random"): "the largest values below the edge do better than random ones",
        ("split", "split-scratch"): "splitting a trained network does better than training its "
        "factors from scratch",
        ("split", "split-init"): "splitting a trained network does better than splitting an "
        "untrained one, as released",
        ("split", "split-reset"): "momentum carried over the split does better than momentum lost",
        ("split", "split-55"): "keeping 45 % of the noise does better than removing 45 %",
        ("dense-reset", "dense"): "what loses its momentum tests better, without any split",
        ("edge", "gd"): "the MP edge does better than the Gavish-Donoho threshold",
        ("edge", "shrink"): "dropping the noise does better than shrinking as well",
    }
    return [
        control(f"loop-{arm}-over-{other}", f"linear logits: {text}",
                evidence=_either("loop", f"linear/{arm}", f"linear/{other}"))
        for (arm, other), text in pairs.items()
    ]  # fmt: skip


def _second_question() -> list[Claim]:
    """At equal parameters: does the rank that the noise dictates beat other ways to spend them?"""
    return [
        question(
            f"loop-{family}-over-{family}-{other}-{_slug(cell)}",
            f"{_told(cell)}, equal parameters: {ARMS[family].title} tests better than "
            f"{ARMS[f'{family}-{other}'].title}",
            evidence=_either("loop", f"{cell}/{family}", f"{cell}/{family}-{other}"),
        )
        for cell in ("linear", "linear, L2")
        for family in ("split", "edge")
        for other in ("fixed", "magnitude", *(("scratch",) if family == "edge" else ()))
    ]  # fmt: skip


def _dead() -> list[Claim]:
    """Where the published gap comes from."""
    dead = partial(final, "dead_classes", protocol="loop")
    arms = tuple(f"ReLU/{arm}" for arm in ARMS)
    return [
        reference("loop-dead-linear", "dense, linear logits: classes never answered",
                  type="deterministic", value=0.0, tolerance=0.0,
                  evidence=dead(arm="linear/dense")),
        question("loop-dead-relu", "dense: a ReLU on the logits leaves classes without an answer",
                 source=OURS, unit="", smallest_effect=0.1,
                 evidence=paired("ReLU/dense", "linear/dense", protocol="loop",
                                 metric="dead_classes", scale=1)),
        reference("loop-dead-cost",
                  "ReLU logits, all arms: test accuracy lost with each dead class",
                  source=f"{OURS}: a line through its eight seeds", value=9.5, smallest_effect=1.2,
                  unit=" points", replication="arms",
                  evidence=slope("test/accuracy", "dead_classes", arms=arms, protocol="loop",
                                 scale=-100),
                  difference="another network; a class answered now and then is not counted as "
                  "dead"),
    ]  # fmt: skip


def _counts() -> list[Claim]:
    """The published parameter counts, from shapes."""

    def number(id: str, text: str, value: float, evidence: Evidence) -> Claim:
        return Claim(id, text, PAPER, "published", type="deterministic", evidence=evidence,
                     value=value, tolerance=0.0, citation=f"{value:,.0f}")  # fmt: skip

    first = final("first layer", arm="ex4.1", protocol="counts")
    text = "Ex. 4.1: first layer at its top 20 values"
    claims = [number("parameters-ex4.1", text, 35_680.0, first)]
    for name, net in PUBLISHED.items():
        example = name.replace("ex", "Ex. ")
        counted = partial(final, arm=name, protocol="counts")
        if net.dense is not None:
            claims.append(
                number(f"parameters-{name}-dense", f"{example}: parameters, dense",
                       float(net.dense), counted("dense"))
            )  # fmt: skip
        if net.parameters is not None:
            claims.append(
                number(f"parameters-{name}",
                       f"{example}: parameters after the splits, a bias for every factor",
                       float(net.parameters), counted("parameters"))
            )  # fmt: skip
    return claims


def _big() -> list[Claim]:
    """Published accuracies: the networks are constructed, training them is for the paper preset."""
    return [
        direction(
            f"accuracy-{name}",
            f"{name.replace('ex', 'Ex. ')}, {'-'.join(map(str, net.widths))}: accuracy "
            f"{net.plain:g} % plain, {net.split:g} % split",
            source=PAPER, origin="published",
            citation=f"accuracy {net.plain:g} % and {net.split:g} %",
            cost=f"{net.epochs} epochs of MNIST, an estimated {net.hours:g} hours a network on two "
            "cores; plain networks: preset paper",
        )
        for name, net in PUBLISHED.items()
    ]  # fmt: skip


def _fashion() -> list[Claim]:
    """The published gains, with the logits as published and with linear ones."""
    claims = []
    none = fashion.PUBLISHED["none"][1]
    for logits in ("ReLU", "linear"):
        for arm in ("MP", "L1+L2", "MP+L2", "MP+L1+L2"):
            gain = fashion.PUBLISHED[arm][1] - none
            published = logits == "ReLU"
            claims.append(
                direction(
                    f"fashion-{arm}-{logits}".lower().replace("+", "-"),
                    f"Fashion-MNIST, {logits} logits: {arm} tests better than no regularisation "
                    f"(published: {gain:+.1f} points)",
                    source=SUCCESSOR, origin="published" if published else "our question",
                    smallest_effect=0.5,
                    citation=f"test accuracy {none} % and {fashion.PUBLISHED[arm][1]} %"
                    if published else "",
                    evidence=paired(f"{logits}/{arm}", f"{logits}/none", protocol="fashion"),
                    difference="784-200x4-100-10 on 5,000 images for 12 epochs",
                )
            )  # fmt: skip
    explained = reference(
        "fashion-dead", "test accuracy lost with each dead class, over all arms with ReLU logits",
        value=9.5, smallest_effect=2.0, unit=" points", replication="arms",
        evidence=slope("test/accuracy", "dead_classes", scale=-100, protocol="fashion",
                       arms=tuple(f"ReLU/{arm}" for arm in fashion.ARMS)),
    )  # fmt: skip
    return [*claims, explained]


def _cnn() -> list[Claim]:
    """Does a split help or harm a network with convolutions?"""
    return [
        direction(
            f"cnn-{arm.replace(',', '').replace(' ', '-')}",
            f"LeNet-5: {arm} tests better than the dense network (paired)",
            source=FOLLOWER, origin="our question", evidence=paired(arm, "dense", protocol="cnn"),
            difference="LeNet-5 on 3,200 digits, not five convolutions; one rate for all arms; of "
            "convolutions the paper says that accuracy is not reduced",
        )
        for arm in list(cnn.ARMS)[1:]
    ]  # fmt: skip


def _resnet() -> list[Claim]:
    """Does an edge between noise and signal keep the accuracy of a network others have trained?"""
    number = partial(
        reference, source="our earlier run, 500 images", unit=" %", replication="image blocks",
        largest_n=100, smallest_effect=4.0,
        cost="preset small: CIFAR-10 and the network's file, a minute",
    )  # fmt: skip
    accuracy = partial(final, "test/accuracy", protocol="resnet", scale=100)
    whole = number(
        "resnet-whole", "ResNet-20, not compressed: CIFAR-10 test accuracy",
        source="akamaster/pytorch_resnet_cifar10", origin="released code", value=91.73, spread=0.0,
        smallest_effect=1.8, evidence=accuracy(arm=resnet.WHOLE), command="",
        citation="8.27 % error", difference="1,000 of the 10,000 test images",
    )  # fmt: skip
    seen = {resnet.WHOLE: 91.0, "energy .99": 91.0, "energy .95": 84.0, "MP edge": 13.0}
    claims = [
        number(f"resnet-{rule}".replace(" ", "-"), f"ResNet-20, {rule}: CIFAR-10 test accuracy",
               value=value, evidence=accuracy(arm=rule))
        for rule, value in seen.items()
    ]  # fmt: skip
    kept = [
        number(
            f"resnet-keeps-{rule}".replace(" ", "-"),
            f"ResNet-20, {rule}: dropping what counts as noise keeps the accuracy (change)",
            source="the papers' thesis, on a network that others trained",
            origin="our question", command="",
            value=0.0, spread=0.0, smallest_effect=1.0, unit=" points",
            evidence=paired(rule, resnet.WHOLE, protocol="resnet"),
        )
        for rule in ("MP edge", "MP edge, gate .1", "Gavish-Donoho")
    ]  # fmt: skip
    return [whole, *claims, *kept]


def _slug(cell: str) -> str:
    return cell.replace(", ", "-").lower()


def _told(cell: str) -> str:
    logits, _, decay = cell.partition(", ")
    return f"{logits} logits{', weight decay' if decay else ''}"


CLAIMS: Sequence[Claim] = (
    *_ranks(),
    *_gain(),
    *_controls(),
    *_second_question(),
    *_dead(),
    *_counts(),
    *_big(),
    *_fashion(),
    *_cnn(),
    *_resnet(),
)


def learned(outcome: Outcome, judged: Sequence[Judged]) -> list[str]:
    """What a reader who reads nothing else should know."""
    found = {one.id: one.told for one in judged}
    told = []
    gains = [
        f"{gain} with {logits} logits"
        for logits, id in (("linear", "linear"), ("ReLU", "relu"))
        if (gain := found[f"loop-split-gains-{id}"])
    ]
    if gains:
        told.append(f"A split while training changes test accuracy by {' and '.join(gains)}.")
    if dead := found["figure5-dead-relu"]:
        told.append(f"With a ReLU on the logits {dead} of 10 classes are never answered.")
    if even := found["loop-edge-over-edge-fixed-linear"]:
        told.append(
            "At equal parameters the ranks above the Marchenko-Pastur edge differ by "
            f"{even} from one rank for all layers."
        )
    return told
