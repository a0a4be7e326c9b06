"""A method is held to the setting that validation data choose, not to the one it tests best."""

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.report.results import Results, merge, of_arrays
from experiments.report.selection import choose, require_fresh_seeds

# Standard error of a difference of 1 between seeds that are this far apart: 0.
SEEDS = np.array([-0.1, 0.0, 0.1])


def tuning(first_seed=0, **settings):
    """``_1e2=[...]``: validation accuracies of ``l2@1e2``; what they test is the opposite."""
    return merge(
        of_arrays(
            "p",
            f"l2@{name.lstrip('_')}",
            {"validation/accuracy": scores, "test/accuracy": -np.asarray(scores)},
            first_seed=first_seed,
        )
        for name, scores in settings.items()
    )


GRID = tuning(_1=SEEDS, _2=1 + SEEDS, _3=2 + SEEDS, _4=SEEDS)


def test_the_best_on_validation_data_is_chosen_whatever_it_tests():
    choice = choose(GRID, "p", method="l2")
    assert (choice.method, choice.arm) == ("l2", "l2@3")
    assert not choice.at_edge and choice.tied == ()


def test_the_least_is_chosen_of_what_should_be_small():
    down = tuning(_1=SEEDS, _2=SEEDS - 1, _3=SEEDS + 1)
    assert choose(down, "p", method="l2", higher=False).arm == "l2@2"


@pytest.mark.parametrize("metric", ["test/accuracy", "final_train/accuracy", "accuracy", ""])
def test_nothing_but_validation_data_chooses(metric):
    with pytest.raises(UserError, match="settings are chosen on validation data alone"):
        choose(GRID, "p", method="l2", by=metric)


@pytest.mark.parametrize("best, at_edge", [("_1", True), ("_10", True), ("_2", False)])
def test_a_winner_at_the_edge_of_its_grid_is_flagged(best, at_edge):
    # By number: as text, 10 would come between 1 and 2.
    grid = {name: SEEDS for name in ("_1", "_2", "_10")} | {best: 5 + SEEDS}
    assert choose(tuning(**grid), "p", method="l2").at_edge == at_edge


@pytest.mark.parametrize(
    "best, at_edge", [("0.2-1e-05", True), ("0.2-0.5", False), ("0.4-0.5", True)]
)
def test_each_number_of_a_setting_has_its_edge(best, at_edge):
    settings = [f"{rate}-{spread}" for rate in (0.1, 0.2, 0.4) for spread in (1e-05, 0.5, 0.9)]
    scores = {setting: SEEDS + (setting == best) for setting in settings}
    rows = [
        of_arrays("p", f"farms@{setting}", {"validation/accuracy": values})
        for setting, values in scores.items()
    ]
    assert choose(merge(rows), "p", method="farms").at_edge == at_edge


def test_a_setting_that_failed_is_still_of_the_grid():
    grid = tuning(_1=SEEDS, _2=1 + SEEDS).without("p", "l2@3", "all seeds diverged")
    assert not choose(grid, "p", method="l2").at_edge


def test_one_setting_or_names_instead_of_numbers_have_no_edge():
    assert not choose(tuning(_1=SEEDS), "p", method="l2").at_edge
    assert not choose(tuning(_small=SEEDS, _large=1 + SEEDS), "p", method="l2").at_edge


NEAR = tuning(_1=SEEDS, _2=[0.9, 1.2, 0.9], _3=1 + SEEDS, _4=SEEDS - 1)


def test_a_tie_within_a_standard_error_goes_to_the_default():
    # 2 and 3 differ by 0, .2 and -.2 by seed: 0 on average.
    choice = choose(NEAR, "p", method="l2", default="3")
    assert (choice.arm, choice.tied) == ("l2@3", ("l2@3",))
    assert choose(NEAR, "p", method="l2", default="2").arm == "l2@2"


def test_a_default_that_is_worse_than_a_tie_does_not_win():
    assert choose(NEAR, "p", method="l2", default="1").arm in ("l2@2", "l2@3")


def test_without_a_default_equal_settings_go_to_the_least():
    grid = tuning(_10=SEEDS, _2=SEEDS)
    assert choose(grid, "p", method="l2").arm == "l2@2"


def test_the_order_of_rows_does_not_matter():
    turned = Results(NEAR.rows[::-1])
    assert choose(turned, "p", method="l2") == choose(NEAR, "p", method="l2")


def test_one_seed_cannot_tie():
    grid = tuning(_1=[0.5], _2=[0.5001])
    choice = choose(grid, "p", method="l2", default="1")
    assert (choice.arm, choice.tied) == ("l2@2", ())


def test_a_lost_seed_is_worse_than_any_score():
    grid = tuning(_1=[0.5, 0.5, 0.5], _2=[0.9, 0.9, np.nan])
    assert choose(grid, "p", method="l2", default="2").arm == "l2@1"
    negative = tuning(_1=[-0.5, -0.5, -0.5], _2=[-0.9, -0.9, np.nan])
    assert choose(negative, "p", method="l2", higher=False).arm == "l2@1"


def test_a_method_without_any_number_has_no_choice():
    assert choose(tuning(_1=[np.nan, np.nan]), "p", method="l2") is None
    assert choose(GRID, "p", method="l1") is None


def test_a_method_with_nothing_to_choose_is_its_own_choice():
    plain = of_arrays("p", "none", {"validation/accuracy": SEEDS})
    assert choose(plain, "p", method="none").arm == "none"


def test_a_default_that_nobody_tried_is_refused():
    with pytest.raises(UserError, match="'p' has no arm 'l2@3.5'; did you mean 'l2@3'"):
        choose(GRID, "p", method="l2", default="3.5")


def test_final_numbers_are_of_seeds_that_nothing_was_tuned_on():
    tuned = merge(
        [of_arrays("p/tuning", "l2@1", {"m": SEEDS}), of_arrays("p/tuning", "l2@2", {"m": SEEDS})]
    )
    require_fresh_seeds(merge([tuned, of_arrays("p", "l2", {"m": [1.0]}, first_seed=3)]))
    with pytest.raises(UserError, match="protocol 'p' was tuned on seed 2"):
        require_fresh_seeds(merge([tuned, of_arrays("p", "l2", {"m": [1.0]}, first_seed=2)]))
