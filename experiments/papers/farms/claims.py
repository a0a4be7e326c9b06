"""What the papers, their code and we say, and which of our numbers speak to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from experiments.papers.farms.protocols import TITLES
from experiments.papers.farms.studies.bias import name
from experiments.papers.paper import Outcome
from experiments.report.claims import Claim
from experiments.report.evidence import Evidence, final, paired, ratio
from experiments.report.verdicts import Judged
from spectral_jax.tails import null_alpha

PAPER = "arXiv 2506.06280"
TEMPBALANCE = "arXiv 2312.00359"
ALPHA_PRUNING = "arXiv 2410.10912"
MODEL_BALANCING = "arXiv 2410.12178"
RELEASED = "HUST-AI-HYZ/FARMS@8e07c3f, one draw"
FAIR = "the paper's thesis, tested fairly"
OURS = "our measurement before this repository"
NO_COMMAND = "none: its script is not kept"
BIASED = (
    "matrices of varying sizes (and aspect ratios) introduce a non-negligible bias in estimating "
    "the heavytailness of ESDs"
)
MITIGATES = "this method effectively mitigates the aspect ratio bias"
ENABLES = "enabling more effective layer-wise hyperparameter assignment"
OUTPERFORMS = (
    "TempBalance significantly outperforms ordinary SGD and carefully-tuned spectral norm "
    "regularization"
)

IMPROVES = "FARMS uniformly improves the accuracy of eigenspectrum analysis"
PRUNERS = ("magnitude", "wanda", "sparsegpt")

# Plain exponent of Gaussian matrices: mean and standard deviation over 40 draws.
NOISE = {
    (64, 64): (2.150, 0.054),
    (128, 128): (2.140, 0.026),
    (256, 256): (2.128, 0.0135),
    (128, 512): (3.479, 0.057),
    (256, 2048): (4.481, 0.044),
}
# One draw of the released code on 512 x n: plain, and FARMS with windows of 128.
ONE_DRAW = {
    (512, 512): (2.1246, 2.1203),
    (512, 768): (2.4709, 2.1230),
    (512, 1024): (2.7174, 2.1160),
    (512, 2048): (3.4610, 2.1204),
    (512, 4096): (4.4915, 2.1117),
}
# The released code on convolutions at Gaussian initialisation: mean and standard deviation over 16
# draws, plain, then FARMS.
CONVOLUTIONS = {
    (64, 3, 3, 3): ((6.44, 1.08), (2.071, 0.055)),
    (128, 64, 3, 3): ((2.697, 0.028), (2.117, 0.015)),
    (96, 64, 3, 3): ((2.444, 0.023), (2.117, 0.021)),
    (64, 1, 3, 3): ((11.8, 5.9), (2.32, 0.11)),
    (256, 512, 1, 1): ((2.721, 0.022), (2.130, 0.009)),
}
# (method, other, whose claim): the method tests better, says its author or the paper's thesis.
COMPARISONS = (
    ("tempbalance", "uniform", TEMPBALANCE, OUTPERFORMS),
    ("farms", "uniform", PAPER, ENABLES),
    ("farms", "tempbalance", PAPER, ENABLES),
    ("farms", "debiased", FAIR, ""),
    ("farms", "shape-only", FAIR, ""),
    ("farms", "shuffled", FAIR, ""),
    ("farms", "random-windows", FAIR, ""),
)

noise = partial(final, protocol="bias")
drawn = partial(Claim, type="stochastic", replication="draws", largest_n=64)


def _bias() -> list[Claim]:
    """The bias of noise, that of FARMS, and the closed form that knows both."""
    extremes = partial(noise, arm="longest minus square")
    return [
        drawn(
            "bias-plain",
            "the plain exponent of noise grows with the aspect ratio (longest minus square)",
            PAPER, "published", type="direction", direction=1, smallest_effect=0.1,
            citation=BIASED, evidence=extremes("plain"),
        ),
        drawn(
            "bias-farms", "that of FARMS does not (longest minus square)", PAPER, "published",
            value=0.0, spread=0.0, smallest_effect=0.03, citation=MITIGATES,
            evidence=extremes("farms"),
            difference="the smallest effect is ours: one hundredth of the plain bias",
        ),
        drawn(
            "bias-closed-form",
            "the closed form with its 1/N term is the mean exponent of noise (plain minus closed "
            "form, mean over shapes)",
            "docs/null-exponents.md", "our question", value=0.0, spread=0.0, smallest_effect=0.02,
            evidence=noise("plain minus closed form", arm="all shapes"),
        ),
    ]  # fmt: skip


def _noise() -> list[Claim]:
    """Exponents of noise that we and the released code have measured before."""
    claims = [
        drawn(
            f"noise-{name(shape)}", f"plain exponent of {name(shape)} noise", OURS, "our reference",
            value=mean, spread=deviation, reference_n=40, smallest_effect=deviation,
            command=NO_COMMAND, cost="preset small", evidence=noise("plain", arm=_arm(shape)),
        )
        for shape, (mean, deviation) in NOISE.items()
    ]  # fmt: skip
    for shape, values in ONE_DRAW.items():
        bounds = 4 * null_alpha(shape).deviation, 0.03
        for kind, value, d in zip(("plain", "FARMS"), values, bounds, strict=True):
            claims.append(
                drawn(
                    f"released-{kind.lower()}-{name(shape)}",
                    f"{kind} exponent of {name(shape)} noise", RELEASED, "released code",
                    value=value, smallest_effect=round(d, 4), cost="preset small",
                    evidence=noise(kind.lower(), arm=_arm(shape)),
                    difference="mean of draws instead of one; windows of 128 on our grid",
                )
            )  # fmt: skip
    for kernel, references in CONVOLUTIONS.items():
        kinds = (("plain", "TempBalance"), ("blocks", "FARMS"))
        for (kind, title), (mean, deviation) in zip(kinds, references, strict=True):
            claims.append(
                drawn(
                    f"conv-{name(kernel)}-{kind}",
                    f"{title} exponent of a Gaussian {name(kernel)} convolution", OURS,
                    "our reference", value=mean, spread=deviation, reference_n=16,
                    smallest_effect=deviation, command=NO_COMMAND,
                    evidence=noise(kind, arm=f"conv/{name(kernel)}"),
                )
            )  # fmt: skip
    return claims


def _arm(shape: tuple[int, ...]) -> str:
    return f"noise/{name(shape)}"


def _llama() -> list[Claim]:
    """The shipped exponents through our allocation; ours on the weights; what a GPU could say."""
    shipped = "our computation before this repository (alphas shipped with HUST-AI-HYZ/FARMS)"
    claims = [
        Claim(
            f"llama-7b-shipped-{which}",
            f"{which} block sparsity of LLaMA-7B at .8, epsilon .2, from the shipped FARMS "
            "exponents",
            shipped, "our reference", type="deterministic", value=value, tolerance=1e-4,
            command=NO_COMMAND, evidence=final(which, arm="llama-7b", protocol="llama"),
        )
        for which, value in (("least", 0.6408), ("greatest", 0.9612))
    ]  # fmt: skip
    agree = Claim(
        "llama-7b-exponents",
        "our FARMS exponents of LLaMA-7B rank its blocks as the shipped ones do (correlation)",
        shipped, "released code", type="stochastic", value=1.0, smallest_effect=0.1, largest_n=2,
        replication="models",
        evidence=final("correlation", arm="llama-7b", protocol="llama_weights"),
        cost="the weights (13 GB) in llama-7b below a data directory and, for FARMS, 22,400 SVDs "
        "of 2000 x 2000: some 13 hours of one CPU core",
        difference="the peak rule is not exactly reproducible: the authors' two releases correlate "
        ".99",
    )  # fmt: skip
    perplexity = partial(
        Claim, source=f"{PAPER}, abstract", origin="published", type="stochastic", largest_n=8,
        cost="the weights (13 or 26 GB) and a GPU of 24 or 48 GB, about an hour a cell: calibrate "
        "on 128 x 2048 tokens of C4, prune, measure perplexity on WikiText-2",
    )  # fmt: skip
    return [
        *claims,
        agree,
        perplexity(
            "llama-7b-sparsegpt",
            "LLaMA-7B, SparseGPT at .8: perplexity with FARMS (96.02 with AlphaPruning)",
            value=79.42, smallest_effect=1.0, citation="79.42",
        ),
        perplexity(
            "llama-13b-magnitude",
            "LLaMA-13B, magnitude at .7: perplexity with FARMS (2029.20 with AlphaPruning)",
            value=413.76, smallest_effect=5.0, citation="413.76",
        ),
    ]  # fmt: skip


def _operators() -> list[Claim]:
    """Fine-tuning a neural operator; a change of 2 % is a tenth of what the papers report."""
    claim = partial(
        Claim, type="direction", direction=-1, unit=" %", smallest_effect=2.0, largest_n=32,
        difference="1-D Burgers by a small operator, not the paper's models; each arm's learning "
        "rate is chosen on validation data",
    )  # fmt: skip
    claims = []
    for share, words in (("full", "all data"), ("tenth", "a tenth of the data")):
        for arm, other, text, source, citation in (
            ("farms", "hill", "FARMS has a lower error than plain alpha (published: up to 5.66 % "
             "lower)", PAPER, ENABLES),
            ("hill", "adam", "TB-Sigmoid with plain alpha has a lower error than Adam",
             MODEL_BALANCING, ""),
            ("farms", "adam", "TB-Sigmoid with FARMS has a lower error than Adam", PAPER, ENABLES),
            ("farms", "shape_only", "FARMS has a lower error than a schedule that knows only the "
             "shapes", FAIR, ""),
        ):  # fmt: skip
            id = f"operator-{share}-{arm}-{other}".replace("shape_only", "shape")
            claims.append(
                claim(
                    id, f"fine-tuning on {words}: {text}", source,
                    "published" if citation else "our question", citation=citation,
                    family="control" if source == FAIR else "primary",
                    evidence=ratio(f"{share}/{arm}", f"{share}/{other}", protocol="operators",
                                   metric="test/error"),
                )
            )  # fmt: skip
    solver = Claim(
        "operator-solver",
        "the solver of the data meets the closed form of Cole and Hopf (largest error)",
        "Cole 1951, Hopf 1950", "our reference", type="deterministic", value=0.0, tolerance=1e-4,
        command="the closed form", evidence=final("error", arm="solver", protocol="operators"),
    )  # fmt: skip
    return [*claims, solver]


def _pruning() -> list[Claim]:
    """Sparsity of a small transformer: the papers' direction, and what else could explain it."""
    claim = partial(
        Claim, type="direction", direction=-1, unit=" %", smallest_effect=1.0, largest_n=32,
        difference="a character GPT instead of LLaMA, the median rule instead of the peak, epsilon "
        "the same in every arm instead of tuned: only the sign is tested",
    )  # fmt: skip
    claims = []
    for pruner in PRUNERS:
        for arm, other, words, source, citation in PRUNING:
            claims.append(
                claim(
                    f"pruning-{pruner}-{arm}-{other}".replace("/", "-"),
                    f"{pruner}, mean over all sparsities: lower perplexity by {words}", source,
                    "published" if citation else "our question", citation=citation,
                    family="primary" if citation else "control",
                    evidence=_change(pruner, arm, other), cost="preset small",
                )
            )  # fmt: skip
    for pruner, sparsity, published in (
        ("sparsegpt", 0.8, "LLaMA-7B: 96.02 to 79.42, -17.3 %"),
        ("magnitude", 0.7, "LLaMA-13B: 2029 to 414, -80 %"),
    ):
        claims.append(
            claim(
                f"pruning-{pruner}-{sparsity:g}",
                f"{pruner}, S = {sparsity:g}: lower perplexity by FARMS than by plain alpha "
                f"(published: {published})",
                PAPER, "published", citation=published, cost="preset small",
                evidence=_change(pruner, "farms/blocks", "hill/blocks", f"/{sparsity:g}"),
            )
        )  # fmt: skip
    exponents = partial(final, arm="exponents", protocol="pruning")
    cancels = Claim(
        "pruning-debiasing-cancels",
        "between blocks of equal shapes analytic debiasing moves no weight: largest change of a "
        "block's sparsity",
        "blocks of a transformer share their shapes", "our reference", type="deterministic",
        value=0.0, tolerance=1e-4, command="the closed form",
        evidence=exponents("debiasing_in_blocks"),
    )  # fmt: skip
    noise = claim(
        "pruning-window-noise",
        "what FARMS sees between blocks is more than the choice of windows (sd of a block's "
        "exponent over random windows, less that between blocks)",
        FAIR, "our question", unit="", smallest_effect=0.05, family="control",
        evidence=paired("exponents", "exponents", protocol="pruning", metric="window_sd",
                        other_metric="block_sd", scale=1),
    )  # fmt: skip
    return [*claims, cancels, noise]


# (allocation, other, in words, whose claim, its words); the rest asks whether it is the tails, the
# windows or the shapes.
PRUNING = (
    ("hill/blocks", "uniform", "plain alpha than uniform", ALPHA_PRUNING,
     "AlphaPruning prunes LLaMA-7B to 80% sparsity while maintaining reasonable perplexity"),
    ("farms/blocks", "hill/blocks", "FARMS than plain alpha", PAPER, IMPROVES),
    ("farms/blocks", "uniform", "FARMS than uniform", PAPER, IMPROVES),
    ("farms/blocks", "shuffled/blocks", "FARMS than its exponents shuffled among blocks", FAIR, ""),
    ("farms/layers", "hill/layers", "FARMS than plain alpha, both by layer", FAIR, ""),
    ("debiased/layers", "hill/layers", "analytic debiasing than plain alpha, by layer", FAIR, ""),
    ("farms/layers", "debiased/layers", "FARMS than analytic debiasing, by layer", FAIR, ""),
    ("farms/layers", "shuffled/layers", "FARMS than its exponents shuffled among layers", FAIR, ""),
)  # fmt: skip


def _change(pruner: str, arm: str, other: str, sparsity: str = "") -> Evidence:
    return ratio(f"{pruner}/{arm}", f"{pruner}/{other}", protocol="pruning",
                 metric=f"perplexity{sparsity}")  # fmt: skip


def _learning_rates() -> list[Claim]:
    """Each comparison in each protocol; controls take one idea each out of the method."""
    claims = []
    for protocol in ("resnet8", "mlp", "resnet18", "vgg16", "digits"):
        for method, other, source, citation in COMPARISONS:
            if protocol == "digits" and other in ("shuffled", "random-windows"):
                continue
            claims.append(
                Claim(
                    f"{protocol}-{method}-over-{other}",
                    f"{protocol}: {TITLES[method]} tests better than {TITLES[other]} (paired)",
                    source, "published" if citation else "our question", type="direction",
                    direction=1, unit=" points", smallest_effect=0.5, largest_n=32,
                    family="primary" if citation and protocol != "digits" else "control",
                    citation=citation, evidence=paired(method, other, protocol=protocol),
                    cost="preset paper" if protocol in ("resnet18", "vgg16") else "preset small",
                    difference="a smoke test: digits, one setting for every arm"
                    if protocol == "digits"
                    else "not the published networks and data; both arms tuned alike",
                )
            )  # fmt: skip
    return claims


def _not_run() -> list[Claim]:
    """What a larger machine could say, and what no source says enough of."""
    told = "per-cell tables were not available to us: abstract only"
    decay = Claim(
        "alphadecay-60m",
        "LLaMA-60M pre-training, AlphaDecay: perplexity (32.39 with uniform decay)",
        "arXiv 2506.14562", "published", type="stochastic", value=31.56, smallest_effect=0.1,
        largest_n=8, citation="31.56", cost="C4 and about 10 GPU hours",
    )  # fmt: skip
    tables = {
        "cifar100-tables": "CIFAR-100, ResNet-18/34 and VGG-16/19: FARMS over TempBalance",
        "window-ablation": "accuracy hardly depends on the window's size and shape",
    }
    return [
        decay,
        *(
            Claim(id, text, PAPER, "published", citation=ENABLES, reason=told)
            for id, text in tables.items()
        ),
    ]


CLAIMS: Sequence[Claim] = (
    *_bias(),
    *_noise(),
    *_pruning(),
    *_operators(),
    *_llama(),
    *_learning_rates(),
    *_not_run(),
)


def learned(outcome: Outcome, judged: Sequence[Judged]) -> list[str]:
    """What a reader who reads nothing else should know."""
    found = {one.id: one.told for one in judged}
    told = []
    if plain := found["bias-plain"]:
        told.append(
            "Between the squarest and the longest matrix of pure noise the plain exponent differs "
            f"by {plain}, that of FARMS by {found['bias-farms']}."
        )
    for protocol in outcome.runs:
        gains = [
            f"{gain} against {TITLES[other]}"
            for other in ("uniform", "tempbalance", "debiased")
            if (gain := found.get(f"{protocol}-farms-over-{other}"))
        ]
        if gains:
            told.append(f"Learning rates by FARMS on {protocol}: {', '.join(gains)}.")
    return told
