"""Groups against a baseline: closed forms, SciPy, and coverage where the truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.report.comparison import (
    across_tasks,
    against_baseline,
    differences,
    in_deviations,
    pairs_needed,
    probability_of_improvement,
)

PAIRS = np.array([0.3, 0.1, -0.1, 0.4, 0.2, 0.3, 0.2, 0.6])
LOST = np.array([np.nan, np.inf])


def test_a_run_that_was_lost_is_worse_than_any_other():
    ours, theirs = np.array([1.0, np.nan, 2.0, np.inf]), np.array([3.0, 1.0, np.nan, np.nan])
    np.testing.assert_array_equal(differences(ours, theirs), [-2.0, -np.inf, np.inf, np.nan])


def test_the_share_of_pairs_won_counts_half_a_tie():
    assert probability_of_improvement(np.array([1.0, 2.0, 0.0, -1.0])).value == 0.625
    assert probability_of_improvement(np.array([-np.inf, np.inf, 0.5, np.nan])).value == 2 / 3
    assert all(map(math.isnan, probability_of_improvement(np.array([np.nan]))))


def test_its_interval_is_wilsons_centre_with_walds_width():
    # Agresti and Coull 1998, by hand: 6 of 8, z^2 = 3.8415.
    share, z = probability_of_improvement(np.array([1.0] * 6 + [-1.0] * 2)), 1.959964
    centre = (6 + 1.920729) / 11.841459
    half = z * math.sqrt(centre * (1 - centre) / 11.841459)
    assert share == pytest.approx((0.75, centre - half, centre + half), rel=1e-6)
    assert probability_of_improvement(np.ones(8)).high == 1.0
    assert probability_of_improvement(-np.ones(8)).low == 0.0


def exact_coverage(n, probability):
    """Of the interval over all numbers of wins, by the binomial law."""
    won = np.arange(n + 1)
    found = [probability_of_improvement(np.repeat([1.0, -1.0], [w, n - w])) for w in won]
    covered = [share.low <= probability <= share.high for share in found]
    return float(stats.binom.pmf(won, n, probability) @ covered)


@pytest.mark.parametrize("n, least", [(8, 0.92), (16, 0.92), (29, 0.937)])
def test_it_covers_what_it_says(n, least):
    covered = [exact_coverage(n, p) for p in np.linspace(0.02, 0.98, 49)]
    assert min(covered) > least and 0.955 < np.mean(covered) < 0.97


def test_so_many_pairs_mostly_tell_three_of_four():
    n = pairs_needed(0.75)
    low = np.array([probability_of_improvement(np.repeat([1, -1], [w, n - w])).low
                    for w in range(n + 1)])  # fmt: skip
    power = stats.binom.pmf(np.arange(n + 1), n, 0.75) @ (low > 0.5)
    assert n == 29 and 0.75 < power < 0.9


def test_a_single_comparison_is_the_paired_t_test():
    ours, theirs = PAIRS + np.arange(8), np.arange(8.0)
    found = against_baseline({("t", "a"): differences(ours, theirs)})["t", "a"]
    expected = stats.ttest_rel(ours, theirs)
    assert found.difference.mean == pytest.approx(PAIRS.mean())
    assert found.p == pytest.approx(expected.pvalue / 2) and found.verdict == "better"


def test_more_comparisons_ask_for_more():
    noise = PAIRS - PAIRS.mean()
    barely = noise + 2.5 * stats.sem(PAIRS)  # p = .02 one-sided
    alone = against_baseline({("t", "a"): barely})["t", "a"]
    among = against_baseline({("t", "a"): barely, ("u", "a"): noise})["t", "a"]
    assert alone.verdict == "better" and among.p == pytest.approx(2 * alone.p)
    assert among.verdict == "not separated"


@pytest.mark.parametrize("n", [2, 8, 29])
def test_what_is_visible_is_told_nine_times_of_ten(n):
    """Found by drawing so many pairs again and again."""
    random = np.random.default_rng(n)
    found = against_baseline({("t", "a"): random.normal(size=n)})["t", "a"]
    effect = found.visible / found.difference.error / np.sqrt(n)  # in deviations of a pair
    pairs = effect + random.normal(size=(4000, n))
    t = pairs.mean(axis=1) / pairs.std(axis=1, ddof=1) * np.sqrt(n)
    assert np.mean(t > stats.t.ppf(0.975, n - 1)) == pytest.approx(0.9, abs=0.015)


def test_worse_is_told_as_such_and_equal_as_nothing():
    found = against_baseline({("t", "worse"): -PAIRS, ("t", "same"): np.zeros(8)})
    assert found["t", "worse"].verdict == "worse"
    assert found["t", "same"].verdict == "not separated"
    assert found["t", "same"].improves.value == 0.5


@pytest.mark.parametrize("n, verdict", [(3, "not separated"), (8, "better")])
def test_a_few_pairs_that_agree_exactly_prove_nothing(n, verdict):
    # Accuracies on a few test items do: their standard error of 0 would make any p-value 0.
    found = against_baseline({("t", "a"): np.full(n, 0.25)})["t", "a"]
    assert found.p == 0.5**n and found.verdict == verdict


def test_nothing_is_claimed_where_runs_were_lost():
    found = against_baseline({("t", "a"): np.append(PAIRS, -np.inf)})["t", "a"]
    assert found.p < 0.025 and found.verdict == "not separated"
    assert (found.difference.n, found.difference.lost) == (8, 1)


def test_equal_arms_are_told_apart_no_more_often_than_is_said():
    random = np.random.default_rng(0)
    runs = random.normal(size=(500, 5, 8)) + random.normal(size=(500, 1, 8))  # seeds shared
    wrong = [
        any(one.verdict != "not separated" for one in against_baseline(
            {("t", str(i)): arm - table[0] for i, arm in enumerate(table[1:])}).values())
        for table in runs
    ]  # fmt: skip
    assert 0.02 < np.mean(wrong) < 0.06  # the four share a baseline, so it is a little below 5 %


def test_scores_of_tasks_come_on_one_scale():
    random = np.random.default_rng(0)
    scores = {name: [random.normal(shift, 1, 6), random.normal(shift, 1, 4)]
              for name, shift in (("a", 1.0), ("b", 0.0))}  # fmt: skip
    other = {name: [5 + 100 * tasks[0], tasks[1] / 7] for name, tasks in scores.items()}
    one, same = in_deviations(scores, baseline="b"), in_deviations(other, baseline="b")
    for name in scores:
        for task in range(2):
            np.testing.assert_allclose(one[name][task], same[name][task], rtol=1e-12)
    pooled = np.sqrt((np.var(scores["a"][0], ddof=1) + np.var(scores["b"][0], ddof=1)) / 2)
    np.testing.assert_allclose(one["a"][0], (scores["a"][0] - scores["b"][0].mean()) / pooled)


def test_a_lost_run_stays_lost_and_a_task_without_noise_has_no_scale():
    scores = {"a": [LOST, np.ones(2)], "b": [np.array([1.0, 3.0]), np.ones(2)]}
    found = in_deviations(scores, baseline="b")
    assert (found["a"][0] == -np.inf).all()
    assert np.isnan(found["a"][1]).all() and np.isnan(found["b"][1]).all()


def test_the_interquartile_mean_is_scipys_trimmed_mean_over_all_runs():
    scores = {"a": [np.array([1.0, 9.0, 2.0]), np.array([3.0, 4.0, 100.0])],
              "b": [np.zeros(3), np.array([0.0, 1.0, 2.0])]}  # fmt: skip
    found = across_tasks(scores, baseline="b")
    assert found["a"].middle.value == stats.trim_mean([1, 2, 3, 4, 9, 100], 0.25) == 4.5
    assert found["a"].gain.value == 4.5 - 0.25
    assert found["b"].gain == (0.0, 0.0, 0.0)  # the same seeds are drawn for both
    assert found["a"].middle.low < 4.5 < found["a"].middle.high


def test_a_profile_is_the_share_of_runs_above():
    scores = {"a": [np.array([1.0, 2.0, -np.inf]), np.array([3.0, 4.0, 5.0])],
              "b": [np.zeros(3), np.zeros(3)]}  # fmt: skip
    found = across_tasks(scores, baseline="b")["a"]
    expected = [np.mean(np.concatenate(scores["a"]) > tau) for tau in found.taus]
    np.testing.assert_allclose(found.above[:, 0], expected)
    assert (found.above[:, 1] <= found.above[:, 2]).all() and found.above[-1, 0] == 0


@pytest.mark.parametrize("lost, expected", [(2, 4.5), (3, -np.inf)])
def test_a_quarter_of_the_runs_may_be_lost_and_no_more(lost, expected):
    runs = np.where(np.arange(8) < lost, -np.inf, np.arange(1.0, 9))
    found = across_tasks({"a": [runs], "b": [np.zeros(8)]}, baseline="b")["a"]
    assert found.middle.value == expected


def test_what_is_not_paired_is_refused():
    with pytest.raises(ValueError, match="give pairs"):
        across_tasks({"a": [np.zeros(3)], "b": [np.zeros(2)]}, baseline="b")
    with pytest.raises(ValueError, match="two or more"):
        across_tasks({"b": [np.zeros(1)]}, baseline="b")


def test_the_bootstrap_covers_what_it_says(monkeypatch):
    monkeypatch.setattr("experiments.report.comparison.DRAWS", 400)
    monkeypatch.setattr("experiments.report.comparison.TAUS", 1)
    random = np.random.default_rng(0)
    hits = {"middle": 0, "gain": 0}
    for _ in range(250):
        shared = random.normal(size=(3, 8))
        scores = {name: list(shift + (shared + random.normal(size=(3, 8))) / math.sqrt(2))
                  for name, shift in (("a", 0.5), ("b", 0.0))}  # fmt: skip
        found = across_tasks(scores, baseline="b")["a"]
        hits["middle"] += found.middle.low < 0.5 < found.middle.high
        hits["gain"] += found.gain.low < 0.5 < found.gain.high
    assert 0.91 < hits["middle"] / 250 < 0.97 and 0.93 < hits["gain"] / 250 < 0.98
