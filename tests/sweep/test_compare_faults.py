"""Faults planted in the comparison of groups: each must change what made-up sweeps come to."""

import sys
from importlib import import_module

import pytest

from experiments.errors import UserError
from tests.planting import planted
from tests.sweep.made_up import Truth, swept, training

ROOMS = ("experiments.report", "experiments.sweep.groups", "experiments.sweep.compar")
SPACE = {"penalty.name": ("none", "l2", "l1", "fiedler"), "penalty.strength": (0.01, 0.1, 1.0)}
GAIN = {0.01: (-1, -1), 0.1: (1, 0), 1.0: (0, 9)}  # on validation data, on test data


def truth_of(config):
    """In its best setting l2 is better, l1 worse, and fiedler better where it is not lost."""
    if config.penalty.name == "none":
        return Truth(0, 0, noise=0.5)
    effect = {"l2": (0.5, 1.0), "l1": (2.0, -1.0), "fiedler": (0.2, 3.0)}[config.penalty.name]
    points = (one + more for one, more in zip(effect, GAIN[config.penalty.strength], strict=True))
    lost = (103,) if config.penalty.name == "fiedler" else ()
    return Truth(*points, noise=0.5, lost=lost)


def outcome(monkeypatch):
    """Everything that is told of these sweeps, and on which seeds it was found."""
    module = training(truth_of)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    compare = import_module("experiments.sweep.compare").compare
    options = {"by": "penalty.name", "baseline": "none"}
    sweep = swept(truth_of, SPACE)
    loss = swept(truth_of, SPACE, objective="validation/loss", higher=False)
    told = {name: compare([one], **options).rows() for name, one in (("", sweep), ("loss", loss))}
    tuned = compare([sweep], **options, finals=0).rows()
    return told, tuned, [seeds for _, _, seeds in module.asked], refused(compare, options)


def refused(compare, options):
    """Whether groups that were not tuned alike are."""
    few = {"penalty.name": ("l1",), "penalty.strength": (0.1,)}
    try:
        compare([swept(truth_of, SPACE | {"penalty.name": ("none",)}), swept(truth_of, few)],
                **options)  # fmt: skip
    except UserError:
        return True
    return False


FAULTS = {
    "settings chosen among all groups": (
        "sweep.groups", "best_of(self.trials,", "best_of(self.sweep.trials,"),
    "finals on the tuning seeds": ("sweep.compare", "first = fresh_seed(", "first = min("),
    "tuning scores told as final ones": (
        "sweep.compare", "task: again(groups) for",
        "task: _tuned(groups)._replace(directories=again(groups).directories) for"),
    "the metric that chose is compared": (
        "sweep.compare", 'replace(VALIDATION, "test/", 1)', "replace(VALIDATION, VALIDATION, 1)"),
    "the runs of another group": (
        "sweep.compare", "zip(winners, found", "zip([*winners][::-1], found"),
    "pairs of different seeds": (
        "sweep.comparison", "(values, scores[self.baseline])",
        "(values, scores[self.baseline][::-1])"),
    "a flipped difference": ("report.comparison", "kept[0] - kept[1]", "kept[1] - kept[0]"),
    "more of a loss is better": (
        "sweep.comparison", "return better if self.higher else -better", "return better"),
    "claims without finals": (
        "sweep.comparison", "        if found is not None and self.finals:\n            numbers",
        "        if found is not None:\n            numbers"),
    "claims of a group that lost runs": (
        "report.comparison", " and not self.difference.lost", ""),
    "a lost run is no defeat": (
        "report.comparison", "np.where(np.isfinite(each), each, -np.inf)", "np.asarray(each)"),
    "no correction for the number of groups": (
        "report.comparison", "adjusted = statistics.holm(", "adjusted = dict("),
    "unequal budgets": ("sweep.compare", "    if not unequal:\n", "    if False:\n"),
}  # fmt: skip


def test_a_harmless_edit_changes_nothing(monkeypatch):
    expected = outcome(monkeypatch)
    with planted("experiments.report.comparison", "kept[0] - kept[1]", "-(kept[1] - kept[0])",
                 rooms=ROOMS):  # fmt: skip
        assert outcome(monkeypatch) == expected


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_does_not_go_unnoticed(monkeypatch, fault):
    expected = outcome(monkeypatch)
    module, old, new = FAULTS[fault]
    with planted(f"experiments.{module}", old, new, rooms=ROOMS):
        try:
            told = outcome(monkeypatch)
        except (UserError, ValueError):
            return  # refused: noticed as well
    assert told != expected
