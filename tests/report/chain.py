"""A synthetic paper whose truth is known, taken through everything from a preset to its verdicts.

Training is the one thing that is made up: `train` reads the truth of a configuration off its
penalty, and ends as a real run does. All else is the house's own code, which tests may replace:
`outcome` imports it when it is called.
"""

import dataclasses
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np

from experiments.config import DataConfig, ExperimentConfig, PenaltyConfig, TrainConfig

SPREAD = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])  # by seed; standard error 0.354
COMMON = np.array([3.0, -4.0, 5.0, -6.0, 2.0])  # what a seed does to every arm, in points


class Truth(NamedTuple):
    """What a penalty does, in points against none; ``lost``: the places of seeds it diverges on."""

    test: float = 0.0
    noise: float = 0.2
    validation: float = 0.0
    validation_noise: float = 0.0
    lost: tuple[int, ...] = ()


NONE = Truth(noise=0.0)
PLAIN = {
    "better": Truth(1.0),
    "worse": Truth(-1.0),
    "tiny": Truth(0.1),
    "barely": Truth(0.0, noise=0.75),  # 90 % interval: ± .57 by Student's t, ± .44 by the normal
    "lucky": Truth(1.15, noise=1.0),  # p = .03 alone, .13 among all
    "fragile": Truth(1.0, lost=(0,)),
}
TUNED = {
    # The second is best on validation data, the third on test data, by far.
    "l2": {"0.001": Truth(0, validation=0), "0.01": Truth(1, validation=3),
           "0.1": Truth(5, validation=2)},
    # The first is best by less than a standard error: the default, the second, wins.
    "l1": {"1": Truth(-3, validation=1.0), "2": Truth(-1, validation=0.9, validation_noise=1)},
    # Never the best of the baselines on validation data, but on test data.
    "fiedler": {"7": Truth(0.9, validation=0.2)},
}  # fmt: skip


def truth_of(config):
    """The truth about an arm, from what it is and not from what it is called."""
    if config.penalty.name == "none":
        return NONE
    if config.penalty.name == "layer_quotient":
        return list(PLAIN.values())[int(config.penalty.strength)]
    settings = {float(text): truth for text, truth in TUNED[config.penalty.name].items()}
    return settings[config.penalty.strength]


def train(config, *, root, argv):
    """What `experiments.training.train.train` would return."""
    truth, seeds = truth_of(config), np.arange(config.train.seeds) + config.train.seed
    place = seeds % 5
    seen = 6.0 * (seeds < 3) * (config.penalty.name != "none")  # seeds that settings are tuned to
    swing = np.array([1.0, -1.0, 0.0])[seeds % 3]
    validation = COMMON[place] + truth.validation + truth.validation_noise * swing
    numbers = {
        "test/accuracy": 70 + COMMON[place] + truth.test + truth.noise * SPREAD[place],
        "validation/accuracy": 70 + validation,
        "final_train/accuracy": 99.0 + 0 * seeds,
    }
    if config.name.startswith("toy/fair"):
        numbers["test/accuracy"] = numbers["test/accuracy"] + seen
    summary = {name: _stored(values / 100, truth.lost) for name, values in numbers.items()}
    summary["spectra/lambda_2"] = [5.63] * len(seeds)
    summary["spectra/nu_2"] = list(0.5 + 0.01 * SPREAD[place])
    lost = [int(seeds[place]) for place in truth.lost]
    summary |= {"diverged_seeds": lost, "collapsed_seeds": [], "steps": 10}
    return SimpleNamespace(summary=summary, load_array=lambda name: None)


def _stored(values, lost):
    return [None if place in lost else float(value) for place, value in enumerate(values)]


def outcome(preset="small"):
    """Every claim's verdict, estimate and number of seeds, by id."""
    paper = import_module("experiments.papers.paper")
    verdicts = import_module("experiments.report.verdicts")
    claims = declared()
    results = paper.carry_out(toy(paper), preset, root="unused").results
    import_module("experiments.report.claims").check(claims, toy(paper).known())
    judged = verdicts.judge_all(claims, results, preset=preset)
    return {one.id: _told(one) for one in judged}


def _told(judged):
    negligible = ", negligible" if "negligible" in judged.note else ""
    return f"{judged.verdict}{negligible}: {judged.estimate.mean:.3f}, n={judged.estimate.n}"


def toy(paper):
    """Two protocols: one as it is, one that is tuned."""
    base = ExperimentConfig("toy", DataConfig("digits"), train=TrainConfig(seeds=5))

    def penalised(config, name, strength):
        return dataclasses.replace(config, penalty=PenaltyConfig(name, float(strength)))

    plain = {name: penalised(base, "layer_quotient", place) for place, name in enumerate(PLAIN)}
    few = dataclasses.replace(base, train=TrainConfig(seeds=3))
    fair = {
        f"{method}@{setting}": penalised(few, method, setting)
        for method, settings in TUNED.items()
        for setting in settings
    }
    tuning = paper.Tuning(seeds=5, defaults={"l1": "2", "l2": "0.001"})
    protocols = {
        "plain": paper.Protocol({"none": base, **plain}),
        "fair": paper.Protocol({"none": few, **fair}, tuning),
    }
    return paper.Paper("toy", "A toy", {"small": protocols, "smoke": protocols})


def declared():
    """Claims on both."""
    claims = import_module("experiments.report.claims")
    evidence = import_module("experiments.report.evidence")

    def direction(id, found, **more):
        options = {"direction": 1, "smallest_effect": 0.5, "largest_n": 20, **more}
        return claims.Claim(id, id, "us", "our question", "direction", found, **options)

    def number(id, kind, metric, **more):
        found = evidence.final(metric, arm="none", protocol="plain")
        return claims.Claim(id, id, "us", "our question", kind, found, **more)

    over_none = {arm: evidence.paired(arm, "none", protocol="plain") for arm in PLAIN}
    baseline = evidence.best_of("l1", "fiedler", protocol="fair")
    seeds = {"smallest_effect": 0.012, "largest_n": 20, "reference_n": 9}
    return [
        *(direction(arm, found) for arm, found in over_none.items()),
        direction("falls", over_none["worse"], direction=-1),
        direction("small", over_none["better"], smallest_effect=3.0),
        direction("control", over_none["better"], family="control"),
        direction("error", evidence.ratio("better", "none", protocol="plain",
                                          metric="test/accuracy")),
        *(direction(f"tuned-{method}", evidence.paired(method, "none", protocol="fair"))
          for method in TUNED),
        direction("over-baseline", evidence.paired("l2", baseline, protocol="fair")),
        number("met", "deterministic", "spectra/lambda_2", value=5.62, tolerance=0.02),
        number("missed", "deterministic", "spectra/lambda_2", value=5.60, tolerance=0.02),
        number("sharp", "stochastic", "spectra/nu_2", value=0.5, spread=0.003, **seeds),
        number("vague", "stochastic", "spectra/nu_2", value=0.5, spread=0.03, **seeds),
        number("elsewhere", "stochastic", "spectra/nu_2", value=0.6, spread=0.003, **seeds),
        number("context", "stochastic", "spectra/nu_2", value=0.5, **seeds),
    ]  # fmt: skip


def fake_training():
    """The module that stands in for `experiments.training.train`."""
    module = ModuleType("experiments.training.train")
    module.train = train
    return module
