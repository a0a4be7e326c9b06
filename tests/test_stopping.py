"""Training ends where a measured number says so, for all seeds that have one."""

import numpy as np
import pytest

from experiments.errors import USAGE, UserError
from experiments.training.stopping import parse, reached

NAN = np.nan


def history(*values):
    return {"a/b": (np.arange(len(values)), np.array(values, float))}


@pytest.mark.parametrize(
    ("text", "values", "ends"),
    [
        ("a/b below 0.5", [[0.6, 0.1]], False),
        ("a/b below 0.5", [[0.6, 0.1], [0.4, 0.4]], True),
        ("a/b below 0.5 for 2", [[0.6, 0.1], [0.4, 0.4]], False),
        ("a/b below 0.5 for 2", [[0.4, 0.4]], False),
        ("a/b below 0.5 for 2", [[0.4, 0.4], [0.6, 0.1], [0.4, 0.4]], False),
        ("a/b above -1e-3 for 2", [[-1, -1], [0, 0], [0, 0]], True),
        ("a/b below 0.5", [[NAN, 0.4]], True),  # a diverged seed keeps nobody waiting
        ("a/b below 0.5", [[NAN, NAN]], False),
        ("a/b above 0", [[NAN, NAN]], False),
        ("a/b above 0", [[np.inf, 1]], True),
    ],
)
def test_a_number_in_its_range_for_so_many_measurements_ends_training(text, values, ends):
    assert reached(parse(text), history(*values)) is ends


@pytest.mark.parametrize(
    "text", ["", "a/b", "a/b below", "a/b under 1", "a/b below x", "a/b below 1 for 0"]
)
def test_what_is_no_rule_is_one_line(text):
    with pytest.raises(UserError, match="train.stop = .*: expected a metric") as failure:
        parse(text)
    assert failure.value.exit_code == USAGE


def test_a_number_that_is_not_recorded_is_named_with_those_that_are():
    with pytest.raises(UserError, match="'a/bb' is not recorded; did you mean 'a/b'"):
        reached(parse("a/bb below 1"), history([0]))
