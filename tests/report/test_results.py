"""One encoding of what was measured: by protocol, arm, seed and metric."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.report.results import (
    Need,
    Results,
    Row,
    from_json,
    merge,
    of_arrays,
    of_run,
    study_results,
)

ONE = of_arrays("mnist", "none", {"loss": [1.0, 2.0], "accuracy": [0.5, np.nan]}, first_seed=3)


def test_values_are_by_ascending_seed():
    shuffled = Results(ONE.rows[::-1])
    np.testing.assert_array_equal(shuffled.values("loss", arm="none", protocol="mnist"), [1, 2])
    assert shuffled.seeds(arm="none", protocol="mnist") == (3, 4)


def test_a_seed_without_a_number_has_nan():
    rows = (*ONE.rows, Row("mnist", "none", 5, {"loss": 3.0}))
    found = Results(rows).values("accuracy", arm="none", protocol="mnist")
    np.testing.assert_array_equal(found, [0.5, np.nan, np.nan])


def test_what_was_not_run_or_not_measured_is_none():
    assert ONE.values("loss", arm="l2", protocol="mnist") is None
    assert ONE.values("loss", arm="none", protocol="digits") is None
    assert ONE.values("lambda_2", arm="none", protocol="mnist") is None


def test_a_row_must_not_come_twice():
    with pytest.raises(UserError, match="seed 3 of mnist/none 2 times"):
        merge([ONE, ONE])


def test_arms_keep_the_order_in_which_they_were_declared():
    both = merge([of_arrays("z", "none", {"m": [1]}), of_arrays("z", "l2", {"m": [1]}), ONE])
    assert both.protocols() == ("z", "mnist") and both.arms("z") == ("none", "l2")


def test_it_survives_json():
    whole = ONE.without("cifar10", "", "no such file")
    again = from_json(json.loads(json.dumps(whole.to_json(), allow_nan=False)))
    assert again.absent == whole.absent
    np.testing.assert_array_equal(
        again.values("accuracy", arm="none", protocol="mnist"), [0.5, np.nan]
    )


def test_protocols_can_be_picked():
    items = {Need("mnist", "none", "loss"): np.ones((2, 7))}
    both = merge([ONE, of_arrays("q", "x", {"m": [1]}), Results(items=items)])
    assert both.select("mnist").protocols() == ("mnist",)
    assert both.select("mnist").items == items and not both.select("q").items


def test_the_reason_of_a_protocol_is_that_of_its_arms():
    missing = ONE.without("mnist", "", "no data").without("mnist", "l2", "diverged")
    assert missing.reason(arm="l2", protocol="mnist") == "diverged"
    assert missing.reason(arm="l1", protocol="mnist") == "no data"
    assert missing.reason(arm="l1", protocol="digits") == ""


def test_metrics_of_different_lengths_are_refused():
    with pytest.raises(UserError, match="one number per seed"):
        of_arrays("p", "a", {"loss": [1.0], "accuracy": [1.0, 2.0]})


def run(**more):
    summary = {
        "test/accuracy": [0.9, None],
        "final_train/loss": [0.1, None],
        "diverged_seeds": [8],
        "collapsed_seeds": [],
        "not_measured": [],
        "steps": 10,
        **more,
    }
    arrays = {"test_items": {"test/accuracy": np.ones((2, 4))}}
    return SimpleNamespace(summary=summary, load_array=arrays.get)


def test_a_run_gives_its_last_numbers_by_its_own_seeds():
    found = of_run(run(), "mnist", "none", first_seed=7)
    values = {m: found.values(m, arm="none", protocol="mnist") for m in found.rows[0].metrics}
    assert set(values) == {"test/accuracy", "final_train/loss", "diverged", "collapsed"}
    np.testing.assert_array_equal(values["test/accuracy"], [0.9, np.nan])
    np.testing.assert_array_equal(values["diverged"], [0, 1])
    assert found.seeds(arm="none", protocol="mnist") == (7, 8)
    assert found.items[Need("mnist", "none", "test/accuracy")].shape == (2, 4)


def test_a_study_gives_what_it_measured():
    assert study_results(SimpleNamespace(summary={"results": ONE.to_json()})).rows[0] == ONE.rows[0]
