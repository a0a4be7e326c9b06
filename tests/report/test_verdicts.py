"""Every verdict of the table from numbers that call for it, and what must never change one."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.errors import UserError
from experiments.report.claims import Claim
from experiments.report.evidence import final, first_run, paired
from experiments.report.results import Need, Results, merge, of_arrays
from experiments.report.verdicts import as_json, judge_all

SPREAD = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])  # sd 0.79, standard error 0.354
MIRROR = {"SUPPORTED": "CONTRADICTED", "CONTRADICTED": "SUPPORTED"}


def direction(id="x", **fields):
    fields = {"direction": 1, "smallest_effect": 1.0, "largest_n": 50, "unit": " points"} | fields
    return Claim(id, "a claim", "us", "our question", "direction",
                 final("m", arm=id, protocol="p"), **fields)  # fmt: skip


def number(kind="stochastic", id="x", **fields):
    return Claim(id, "a claim", "us", "our question", kind,
                 final("m", arm=id, protocol="p"), **fields)  # fmt: skip


def results(**samples):
    return merge(of_arrays("p", arm, {"m": values}) for arm, values in samples.items())


def judge(claim, samples, preset="small"):
    (judged,) = judge_all([claim], results(x=samples), preset=preset)
    return judged


@pytest.mark.parametrize(
    "value, verdict",
    [(1.25, "NUMBER MATCH"), (1.75, "NUMBER MATCH"), (1.0, "NUMBER MISS"), (2.0, "NUMBER MISS")],
)
def test_a_deterministic_number_is_met_within_its_rounding(value, verdict):
    judged = judge(number("deterministic", value=1.5, tolerance=0.25), [value])
    assert judged.verdict == verdict and judged.missed == (verdict == "NUMBER MISS")


# The 90 % interval is ± 0.75, the 95 % one ± 0.98.
@pytest.mark.parametrize(
    "mean, verdict, why",
    [
        (1.0, "SUPPORTED", ""),
        (-1.0, "CONTRADICTED", ""),
        (0.2, "NO EFFECT", ""),
        (-0.2, "NO EFFECT", ""),
        (0.5, "INCONCLUSIVE", "about 2 more seeds are needed"),
        (-0.5, "INCONCLUSIVE", "about 2 more seeds are needed"),
    ],
)
def test_a_direction_needs_its_interval_off_zero(mean, verdict, why):
    judged = judge(direction(), mean + SPREAD)
    assert (judged.verdict, judged.note) == (verdict, why)


def test_a_claimed_fall_is_supported_by_a_fall():
    assert judge(direction(direction=-1), SPREAD - 1).verdict == "SUPPORTED"
    assert judge(direction(direction=-1), SPREAD + 1).verdict == "CONTRADICTED"


def test_a_certain_effect_below_the_smallest_of_interest_is_negligible():
    judged = judge(direction(smallest_effect=3.0), 1.0 + SPREAD)
    assert (judged.verdict, judged.note) == ("SUPPORTED", "negligible")
    assert judged.told.endswith("points (as claimed, but too small to matter)")
    judged = judge(direction(smallest_effect=3.0), -1.0 + SPREAD)
    assert (judged.verdict, judged.note) == ("CONTRADICTED", "negligible")


def test_what_would_take_more_seeds_than_allowed_says_so():
    judged = judge(direction(smallest_effect=0.2), SPREAD)
    assert judged.verdict == "INCONCLUSIVE"  # (3.24 * .79 / .2)^2 = 164.02
    assert judged.note == "about 165 seeds would tell; the claim allows 50"


# Against 10 ± 0.6 (9 runs): the error is hypot(.354, .2) = .406, the freedom 6.6.
@pytest.mark.parametrize(
    "mean, verdict",
    [
        (10.0, "REPRODUCED"),
        (10.2, "REPRODUCED"),
        (10.6, "INCONCLUSIVE"),
        (11.9, "INCONCLUSIVE"),  # outside by the mean, not by the interval
        (12.1, "NOT REPRODUCED"),
        (7.9, "NOT REPRODUCED"),
    ],
)
def test_a_stochastic_number_is_compared_with_both_errors(mean, verdict):
    claim = number(value=10, spread=0.6, reference_n=9, smallest_effect=1.0, largest_n=20)
    assert judge(claim, mean + SPREAD).verdict == verdict


def test_the_references_error_can_be_what_leaves_it_open():
    exact = number(value=10, spread=0.0, smallest_effect=1.0, largest_n=20)
    vague = dataclasses.replace(exact, spread=3.0, reference_n=4)
    assert judge(exact, 10 + SPREAD).verdict == "REPRODUCED"
    judged = judge(vague, 10 + SPREAD)
    assert judged.verdict == "INCONCLUSIVE"
    assert judged.note == "the error of the reference alone is more than d"
    alone = judge(exact, [10.0])
    assert (alone.verdict, alone.note[:6]) == ("INCONCLUSIVE", "one of")


@pytest.mark.parametrize(
    "claim, stated",
    [
        (direction(direction=-1), "negative, d = 1 points"),
        (number("deterministic", value=5.629, tolerance=0.006, unit=" %"), "5.629 ± 0.006 %"),
        (number(value=10, spread=0.6, reference_n=9, smallest_effect=1, largest_n=9),
         "10 (sd 0.6 of 9), d = 1"),
        (number(value=0.0, spread=0.0, smallest_effect=0.03, largest_n=9), "0, d = 0.03"),
    ],
)  # fmt: skip
def test_what_is_stated_is_told_with_what_would_matter(claim, stated):
    assert judge(claim, SPREAD).stated == stated


def test_a_sentence_says_the_verdict_in_words():
    judged = judge(direction(), 1.0 + SPREAD)
    assert judged.told == "1.00 ± 0.98 points (as claimed)"
    assert judge(direction(), 0.5 + SPREAD).told.endswith("(undecided)")
    assert judge(direction(), 1.0 + SPREAD, preset="smoke").told == "1.00 ± 0.98 points"
    assert judge(direction(), [np.nan] * 3).told == ""


def test_a_reference_without_spread_is_context():
    judged = judge(number(value=10, smallest_effect=1.0, largest_n=20), SPREAD)
    assert (judged.verdict, judged.note) == ("CONTEXT", "the reference has no spread")


def test_a_control_shows_its_estimate_alone():
    judged = judge(direction(family="control"), 1.0 + SPREAD)
    assert (judged.verdict, judged.note) == ("ESTIMATE", "a control")
    assert judged.ours == "1.00 ± 0.98 points (n = 5 seeds)"


def test_smoke_decides_no_direction_but_checks_numbers():
    assert judge(direction(), 9.0 + SPREAD, preset="smoke").verdict == "ESTIMATE"
    claim = number("deterministic", value=0.0, tolerance=1.0)
    assert judge(claim, SPREAD, preset="smoke").verdict == "NUMBER MATCH"


def test_one_seed_decides_no_direction():
    judged = judge(direction(), [9.0])
    assert judged.verdict == "INCONCLUSIVE" and "at least 2 are needed" in judged.note
    assert judged.ours == "9 points (n = 1 seeds)"


@pytest.mark.parametrize("value, verdict", [(2.0, "SUPPORTED"), (0.0, "NO EFFECT")])
def test_seeds_that_agree_exactly_are_taken_at_their_word(value, verdict):
    judged = judge(direction(), [value] * 3)
    assert (judged.verdict, judged.note) == (verdict, "all 3 seeds agree exactly")


def test_lost_seeds_are_left_out_and_counted():
    whole = judge(direction(), 1.0 + SPREAD)
    judged = judge(direction(), [np.nan, *(1.0 + SPREAD)])
    assert judged.verdict == whole.verdict and judged.ours == whole.ours
    assert judged.note == "1 of 6 seeds have no number"


def test_more_seeds_than_declared_are_told():
    assert "5 seeds are more than the 4 declared" in judge(direction(largest_n=4), SPREAD).note


def test_no_number_at_all_is_not_run():
    judged = judge(direction(cost="an hour"), [np.nan, np.nan])
    assert judged.verdict == "NOT RUN"
    assert judged.note == "none of 2 seeds has a number; cost: an hour"


@pytest.mark.parametrize(
    "found, told",
    [
        (Results(), "cost: an hour"),
        (Results().without("p", "", "no data set 'mnist'"), "no data set 'mnist'; cost: an hour"),
        (results(y=[1.0]).without("p", "x", "diverged"), "diverged; cost: an hour"),
        (results(xx=[1.0]), "this preset has no arm 'x' in 'p'; did you mean 'xx'?; cost: an hour"),
        (of_arrays("p", "x", {"mm": [1.0]}), "p/x has no metric 'm'; did you mean 'mm'?; "
                                             "cost: an hour"),
    ],
)  # fmt: skip
def test_what_was_not_run_says_why(found, told):
    (judged,) = judge_all([direction(cost="an hour")], found, preset="small")
    assert (judged.verdict, judged.note) == ("NOT RUN", told)


def test_what_has_no_evidence_is_not_run_and_what_is_not_told_is_underspecified():
    unmeasured = dataclasses.replace(direction(), evidence=None, cost="a week")
    untold = Claim("u", "tables", "a paper", "our question", reason="not available")
    judged = judge_all([unmeasured, untold], Results(), preset="paper")
    assert [(one.verdict, one.note) for one in judged] == [
        ("NOT RUN", "cost: a week"), ("UNDERSPECIFIED", "not available"),
    ]  # fmt: skip


def test_a_claim_must_survive_the_number_of_claims():
    # Alone p = .0145 (one-sided), with nine others that say nothing 10 times as much.
    barely = 1.15 + SPREAD
    others = {f"other{i}": SPREAD for i in range(9)}
    claims = [direction("x", smallest_effect=0.2), *map(direction, others)]
    alone, *_ = judge_all(claims[:1], results(x=barely), preset="small")
    among, *_ = judge_all(claims, results(x=barely, **others), preset="small")
    assert (alone.verdict, among.verdict) == ("SUPPORTED", "INCONCLUSIVE")
    assert among.p == pytest.approx(10 * alone.p)
    assert "off zero alone, not among the paper's claims" in among.note


def test_controls_smoke_and_unrun_claims_cost_nothing():
    barely, others = 1.15 + SPREAD, {f"other{i}": SPREAD for i in range(9)}
    claims = [direction("x"), *(direction(name, family="control") for name in others)]
    claims += [direction("unrun"), direction("lost")]
    found = results(x=barely, lost=[np.nan], **others)
    assert judge_all(claims, found, preset="small")[0].verdict == "SUPPORTED"


def test_numbers_of_a_tuned_protocol_must_be_of_fresh_seeds():
    found = merge([of_arrays("p/tuning", "x@1", {"m": [1.0, 2.0]}),
                   of_arrays("p", "x", {"m": [1.0]}, first_seed=1)])  # fmt: skip
    with pytest.raises(UserError, match="'p' was tuned on seed 1, and its final numbers"):
        judge_all([direction()], found, preset="small")


def test_a_small_test_set_widens_the_interval():
    items = np.repeat([1.0, -0.9], [18, 12]) + 0.05 * SPREAD[:, None]
    found = results(x=items.mean(axis=1))
    claim = direction(smallest_effect=0.1, largest_n=10**6)
    (over_seeds,) = judge_all([claim], found, preset="small")
    whole = merge([found, Results(items={Need("p", "x", "m"): items})])
    (over_both,) = judge_all([claim], whole, preset="small")
    assert (over_seeds.verdict, over_both.verdict) == ("SUPPORTED", "INCONCLUSIVE")
    assert over_both.ours.endswith("(n = 5 seeds x 30 test items)")
    assert over_both.note.endswith("or test items, are needed")


def test_a_stand_in_is_judged_where_the_first_was_not_run():
    claim = dataclasses.replace(
        direction(),
        evidence=first_run(
            paired("x", "y", protocol="mnist", metric="m"), final("m", arm="x", protocol="p")
        ),
    )
    assert judge(claim, 1.0 + SPREAD).verdict == "SUPPORTED"


def test_for_programs_every_number_is_finite_or_null():
    judged = judge_all([direction(), direction("y")], results(x=1 + SPREAD), preset="small")
    first, second = map(as_json, judged)
    assert (
        first["mean"] == 1.0 and first["n"] == 5 and first["low"] == pytest.approx(0.0184, abs=1e-4)
    )
    assert (second["mean"], second["p"], second["n"]) == (None, None, 0)


# What must never change a verdict; powers of two keep every rounding.

EVIDENCE = st.lists(st.integers(-64, 64).map(lambda i: i / 16), min_size=1, max_size=9)
FAMILY = st.lists(EVIDENCE, min_size=1, max_size=4)


def verdicts(family, *, d=1.0, sign=1.0):
    claims = [direction(f"x{i}", smallest_effect=d) for i in range(len(family))]
    found = results(**{f"x{i}": sign * np.array(samples) for i, samples in enumerate(family)})
    return [one.verdict for one in judge_all(claims, found, preset="small")]


@given(FAMILY)
@settings(max_examples=150, deadline=None)
def test_turning_the_evidence_turns_supported_into_contradicted(family):
    turned = [MIRROR.get(verdict, verdict) for verdict in verdicts(family)]
    assert verdicts(family, sign=-1.0) == turned


@given(FAMILY, st.integers(-8, 8))
@settings(max_examples=100, deadline=None)
def test_the_unit_does_not_matter(family, power):
    scaled = [[2.0**power * value for value in samples] for samples in family]
    assert verdicts(scaled, d=2.0**power) == verdicts(family)


@given(FAMILY, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_and_of_claims_does_not_matter(family, random):
    claims = [direction(f"x{i}") for i in range(len(family))]
    found = results(**{f"x{i}": samples for i, samples in enumerate(family)})
    first = {one.id: one for one in judge_all(claims, found, preset="small")}
    rows = random.sample(found.rows, len(found.rows))
    claims = random.sample(claims, len(claims))
    again = judge_all(claims, Results(tuple(rows)), preset="small")
    assert {one.id: one for one in again} == first
