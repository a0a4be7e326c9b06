"""Selection and evidence, tested as hard as the library: known truth in, right verdicts out.

And the other way round: each of the faults below, planted in a copy of the code, must change what
the synthetic paper is told. One that does not is a fault that nobody would notice in a real one.
"""

import sys

import pytest

from experiments.errors import UserError
from tests.planting import planted
from tests.report import chain

ROOMS = ("experiments.report", "experiments.papers")

EXPECTED = {
    "better": "SUPPORTED: 1.000, n=5",
    "worse": "CONTRADICTED: -1.000, n=5",
    "tiny": "NO EFFECT: 0.100, n=5",
    "barely": "INCONCLUSIVE: 0.000, n=5",
    "lucky": "INCONCLUSIVE: 1.150, n=5",
    "fragile": "SUPPORTED: 1.050, n=4",
    "falls": "SUPPORTED: -1.000, n=5",
    "small": "SUPPORTED, negligible: 1.000, n=5",
    "control": "ESTIMATE: 1.000, n=5",
    "error": "SUPPORTED: 1.436, n=5",  # a point of some 70
    "tuned-l2": "SUPPORTED: 1.000, n=5",
    "tuned-l1": "CONTRADICTED: -1.000, n=5",
    "tuned-fiedler": "SUPPORTED: 0.900, n=5",
    "over-baseline": "SUPPORTED: 2.000, n=5",
    "met": "NUMBER MATCH: 5.630, n=5",
    "missed": "NUMBER MISS: 5.630, n=5",
    "sharp": "REPRODUCED: 0.500, n=5",
    "vague": "INCONCLUSIVE: 0.500, n=5",
    "elsewhere": "NOT REPRODUCED: 0.500, n=5",
    "context": "CONTEXT: 0.500, n=5",
}


@pytest.fixture(autouse=True)
def made_up_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "experiments.training.train", chain.fake_training())


def test_the_truth_comes_out_of_the_whole_chain():
    assert chain.outcome() == EXPECTED


def test_smoke_judges_numbers_and_no_direction():
    told = chain.outcome("smoke")
    directions = list(EXPECTED)[: list(EXPECTED).index("met")]
    assert all(told[id].startswith("ESTIMATE") for id in directions)
    assert {id: told[id] for id in told if id not in directions} == {
        id: EXPECTED[id] for id in told if id not in directions
    }


# What is planted: in which module, what stands there, and what stands there instead.
FAULTS = {
    "settings chosen on the test split": (
        "report.selection", "_scores(results, protocol, arm, by)",
        '_scores(results, protocol, arm, by.replace("validation", "test"))'),
    "the worst setting is chosen": (
        "report.selection", "-mean if higher else mean", "mean if higher else -mean"),
    "ties do not go to the default": (
        "report.selection", "wanted if wanted in tied else best", "best"),
    "everything is a tie": (
        "report.selection", "abs(np.mean(difference)) <= error", "True"),
    "the first of the grid is taken": (
        "papers.paper", "paper.final_arm(preset, name, choice.arm, overrides)",
        'paper.final_arm(preset, name, next(a for a in arms if a.split("@")[0] == method))'),
    "finals on the tuning seeds": (
        "papers.paper", "seed=config.train.seed + FRESH", "seed=config.train.seed"),
    "tuning numbers told as final ones": (
        "papers.paper", "_train(outcome, name, finals, root=root)",
        "_train(outcome, name, {m: arms[c.arm] for m, c in outcome.choices[name].items()}, "
        "root=root)"),
    "the best baseline by its test numbers": (
        "report.evidence", "results.values(self.by,",
        'results.values(self.by.replace("validation", "test"),'),
    "a flipped difference": (
        "report.evidence", "lambda one, other: one - other", "lambda one, other: other - one"),
    "a flipped ratio": (
        "report.evidence", "one / other - 1", "other / one - 1"),
    "seeds out of order": (
        "report.evidence", "others.get(s, np.nan)", "others.get(seeds[-1] + seeds[0] - s, np.nan)"),
    "an arm against itself": (
        "report.evidence", "Final(other_metric or metric, other,",
        "Final(other_metric or metric, arm,"),
    "the accuracy in training": (
        "report.evidence", 'ACCURACY = "test/accuracy"', 'ACCURACY = "final_train/accuracy"'),
    "shares told as points": (
        "report.evidence", "scale: float = 100.0", "scale: float = 1.0"),
    "a lost seed read as 0": (
        "report.results", "math.nan if value is None else value for value in values",
        "0.0 if value is None else value for value in values"),
    "a lost seed counted as 0": (
        "report.statistics", "finite = samples[np.isfinite(samples)]",
        "finite = np.nan_to_num(samples)"),
    "an interval of the normal law": (
        "report.statistics", "special.stdtrit(one.freedom, (1 + level) / 2)",
        "special.ndtri((1 + level) / 2)"),
    "a p-value of the normal law": (
        "report.statistics", "special.stdtr(one.freedom, (bound - one.mean) / one.error)",
        "special.ndtr((bound - one.mean) / one.error)"),
    "the deviation instead of its error": (
        "report.statistics", "_deviation(finite) / math.sqrt(count)", "_deviation(finite)"),
    "no correction for the number of claims": (
        "report.verdicts", "adjusted = statistics.holm(family)", "adjusted = family"),
    "the smallest effect ignored": (
        "report.verdicts", "if statistics.within(found, d):", "if False:"),
    "negligible not told": (
        "report.verdicts", "-d < low and high < d", "False"),
    "the claimed sign ignored": (
        "report.verdicts", "claim.direction * found.mean > 0", "found.mean > 0"),
    "a tolerance twice as wide": (
        "report.verdicts", "<= claim.tolerance", "<= 2 * claim.tolerance"),
    "the error of the reference ignored": (
        "report.verdicts", "against(found, claim.value, claim.spread,",
        "against(found, claim.value, 0.0,"),
    "a reference without spread judged": (
        "report.verdicts", "if claim.spread is None:", "if False:"),
    "controls judged": (
        "report.verdicts", 'if claim.family == "control":', "if False:"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_does_not_go_unnoticed(fault):
    module, old, new = FAULTS[fault]
    with planted(f"experiments.{module}", old, new, rooms=ROOMS):
        try:
            told = chain.outcome()
        except UserError:
            return  # refused: noticed as well
    assert told != EXPECTED


def test_a_harmless_edit_changes_nothing():
    harmless = "other: one - other", "other: -(other - one)"
    with planted("experiments.report.evidence", *harmless, rooms=ROOMS):
        assert chain.outcome() == EXPECTED
