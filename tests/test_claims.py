"""A verdict follows from the numbers, and each one can be lost."""

import numpy as np
import pytest

from experiments.claims import Claim, judge

VALUE = Claim("v", "a number", "somewhere", "published", value=96.1, tolerance=0.4, unit=" %")
SIGN = Claim("s", "a direction", "somewhere", "published", direction=1, cost="an hour")


def test_a_mean_within_the_tolerance_matches():
    judged = judge(VALUE, [96.0, 96.2, 96.4])
    assert judged.verdict == "MATCH"
    assert judged.ours == "96.20 ± 0.50 % (n=3)"
    assert judged.published == "96.1 ± 0.4 %"


def test_a_mean_outside_it_does_not():
    assert judge(VALUE, [95.6, 95.7, 95.6]).verdict == "MISMATCH"


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [
        ([0.5, 0.6, 0.7], "TREND"),  # the interval is above zero
        ([0.5, -0.6, 0.7], "MISMATCH"),  # it covers zero
        ([-0.5, -0.6, -0.7], "MISMATCH"),  # it is on the other side
        ([0.6], "MISMATCH"),  # one seed has no interval
    ],
)
def test_a_direction_needs_its_interval_off_zero(samples, verdict):
    assert judge(SIGN, samples).verdict == verdict


def test_a_mismatch_says_whether_it_is_only_undecided():
    assert "covers zero" in judge(SIGN, [0.5, -0.6, 0.7]).note
    assert judge(SIGN, [-0.5, -0.6, -0.7]).note == ""


def test_a_missed_value_with_the_right_sign_is_a_trend():
    claim = Claim("b", "both", "here", "published", value=5.0, tolerance=0.1, direction=1)
    assert judge(claim, [1.0, 1.1, 1.2]).verdict == "TREND"


def test_what_was_not_measured_says_what_it_would_cost():
    judged = judge(SIGN, None)
    assert (judged.verdict, judged.note) == ("NOT RUN", "cost: an hour")


def test_what_cannot_be_measured_says_why():
    judged = judge(Claim("u", "x", "y", "published", reason="no table"), None)
    assert (judged.verdict, judged.note) == ("UNDERSPECIFIED", "no table")


def test_seeds_without_a_number_are_left_out_and_counted():
    judged = judge(VALUE, [96.1, np.nan, 96.1])
    assert judged.verdict == "MATCH"
    assert "(n=2)" in judged.ours and judged.note == "1 of 3 seeds have no number"


def test_nothing_but_lost_seeds_is_no_match():
    assert judge(VALUE, [np.nan, np.nan]).verdict == "MISMATCH"


def test_a_value_without_its_tolerance_is_no_claim():
    with pytest.raises(ValueError, match="go together"):
        Claim("x", "text", "source", "published", value=1.0)
