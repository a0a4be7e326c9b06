"""Each kind of evidence gives the numbers of the arms it names, seed by seed."""

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.report.evidence import best_of, final, first_run, paired, ratio, slope
from experiments.report.results import Need, Results, Row, merge, of_arrays

RESULTS = merge(
    [
        of_arrays(
            "p", "none", {"test/accuracy": [0.5, 0.6, 0.7], "validation/accuracy": [0.5] * 3}
        ),
        of_arrays("p", "l1", {"test/accuracy": [0.9, 0.9, 0.9], "validation/accuracy": [0.6] * 3}),
        of_arrays("p", "l2", {"test/accuracy": [0.6, 0.6, 0.6], "validation/accuracy": [0.7] * 3}),
        of_arrays("q", "x", {"error": [2.0, 4.0], "other": [1.0, 5.0]}),
        of_arrays("q", "y", {"error": [1.0, 2.0]}),
    ]
)


def check(evidence, expected):
    np.testing.assert_allclose(evidence.of(RESULTS), expected)


def test_a_final_number_is_scaled():
    check(final("test/accuracy", arm="none", protocol="p", scale=100), [50, 60, 70])


def test_a_pair_is_the_first_minus_the_second_in_percentage_points():
    check(paired("l1", "none", protocol="p"), [40, 30, 20])


def test_two_metrics_of_one_arm_are_a_pair_too():
    check(paired("x", "x", protocol="q", metric="error", other_metric="other", scale=1), [1, -1])


def test_two_protocols_are_a_pair_too():
    found = paired("x", "none", protocol="q", metric="error", other_protocol="p",
                   other_metric="test/accuracy", scale=1)  # fmt: skip
    check(found, [1.5, 3.4, np.nan])  # seed 2 has no partner


def test_a_ratio_is_a_change_in_percent():
    check(ratio("x", "y", protocol="q", metric="error"), [100, 100])


def test_a_ratio_to_nothing_is_no_number():
    zero = merge([RESULTS, of_arrays("q", "z", {"error": [0.0, 4.0]})])
    found = ratio("x", "z", protocol="q", metric="error").of(zero)
    np.testing.assert_array_equal(found, [np.nan, 0])


def test_pairs_go_by_seed_not_by_place():
    rows = [Row("p", "a", s, {"m": float(s)}) for s in (2, 0, 1)]
    rows += [Row("p", "b", s, {"m": 10.0 * s}) for s in (1, 2, 3)]
    found = paired("a", "b", protocol="p", metric="m", scale=1).of(Results(tuple(rows)))
    np.testing.assert_array_equal(found, [np.nan, -9, -18, np.nan])


def test_the_best_baseline_is_the_one_of_validation():
    # l1 tests best, but on validation data l2 does.
    best = best_of("none", "l1", "l2", protocol="p")
    check(final("test/accuracy", arm=best, protocol="p"), [0.6] * 3)
    remark = paired("none", best, protocol="p").remark(RESULTS)
    assert remark == "best of none, l1, l2 on validation data: l2"


def test_the_best_may_be_the_least():
    best = best_of("none", "l1", "l2", protocol="p", higher=False)
    check(final("test/accuracy", arm=best, protocol="p"), [0.5, 0.6, 0.7])


def test_a_baseline_with_a_lost_seed_is_not_the_best():
    rows = [r._replace(metrics={**r.metrics, "validation/accuracy": np.nan})
            if (r.arm, r.seed) == ("l2", 0) else r for r in RESULTS.rows]  # fmt: skip
    best = best_of("none", "l1", "l2", protocol="p")
    assert best.name(Results(tuple(rows))) == "l1"


def test_no_baseline_at_all_is_no_evidence():
    best = best_of("l5", "l6", protocol="p")
    assert paired("none", best, protocol="p").of(RESULTS) is None


def test_the_best_is_never_looked_up_on_test_data():
    with pytest.raises(UserError, match="chosen on validation data"):
        best_of("none", "l1", protocol="p", by="test/accuracy")


def test_a_slope_is_one_number_per_arm_whose_seeds_differ():
    lines = merge(
        [
            of_arrays("p", "a", {"x": [0, 1, 2], "y": [1, 3, 5]}),
            of_arrays("p", "b", {"x": [4, 4, 4], "y": [1, 3, 5]}),
            of_arrays("p", "c", {"x": [0, 1, np.nan], "y": [0, -1, 7]}),
        ]
    )
    found = slope("y", "x", arms=("a", "b", "c", "d"), protocol="p", scale=10)
    np.testing.assert_allclose(found.of(lines), [20, -10])
    assert slope("y", "x", arms=("b",), protocol="p").of(lines) is None


def test_the_first_that_was_run_is_taken():
    digits = paired("l1", "none", protocol="digits")
    check(first_run(digits, paired("l2", "none", protocol="p")), [10, 0, -10])
    assert first_run(digits).of(RESULTS) is None


@pytest.mark.parametrize(
    "evidence",
    [
        final("loss", arm="none", protocol="p"),
        final("test/accuracy", arm="nine", protocol="p"),
        paired("none", "nine", protocol="p"),
        paired("none", "l1", protocol="q"),
    ],
)
def test_what_was_not_measured_is_none(evidence):
    assert evidence.of(RESULTS) is None


def test_evidence_names_all_that_it_looks_at():
    best = best_of("l1", "l2", protocol="p")
    assert first_run(paired("none", best, protocol="p")).needs() == {
        Need("p", arm, "test/accuracy") for arm in ("none", "l1", "l2")
    } | {Need("p", arm, "validation/accuracy") for arm in ("l1", "l2")}


def test_differences_are_known_item_by_item_where_both_are():
    hits = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    rows = [of_arrays("p", arm, {"test/accuracy": h.mean(axis=1)})
            for arm, h in (("a", hits), ("b", 1 - hits))]  # fmt: skip
    items = {Need("p", "a", "test/accuracy"): hits, Need("p", "b", "test/accuracy"): 1 - hits}
    whole, half = merge([*rows, Results(items=items)]), merge(rows)
    found = first_run(paired("a", "b", protocol="p"))
    np.testing.assert_array_equal(found.items(whole), 100 * (2 * hits - 1))
    np.testing.assert_allclose(found.items(whole).mean(axis=1), found.of(whole))
    assert found.items(half) is None
    assert ratio("a", "b", protocol="p", metric="test/accuracy").items(whole) is None
