"""One schedule of everything: start and end always, and between them what was asked for."""

import pytest

from experiments.errors import USAGE, UserError
from experiments.training.when import every_epochs, every_steps, log_spaced, parse


@pytest.mark.parametrize(
    ("when", "steps"),
    [
        (every_epochs(2), (0, 8, 16, 20)),
        (every_epochs(9), (0, 20)),
        (every_steps(7), (0, 7, 14, 20)),
        (log_spaced(3), (0, 1, 4, 20)),
        (log_spaced(1), (0, 1, 20)),
    ],
)
def test_start_and_end_and_what_lies_between(when, steps):
    assert when.steps(20, 4) == steps


def test_log_spaced_steps_grow_by_one_factor_once_they_are_apart():
    steps = log_spaced(30).steps(10**6, 1000)
    ratios = [after / before for before, after in zip(steps[10:], steps[11:], strict=False)]
    assert steps[:4] == (0, 1, 2, 3)
    assert max(ratios) < 1.05 * 10 ** (6 / 29) and min(ratios) > 0.95 * 10 ** (6 / 29)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (2, every_epochs(2)),
        ("2", every_epochs(2)),
        ("1 epoch", every_epochs(1)),
        ("50 steps", every_steps(50)),
        ("1 step", every_steps(1)),
        ("20 log-spaced", log_spaced(20)),
    ],
)
def test_a_configuration_says_it_in_words(text, same):
    assert parse("train.measure_every", text).steps(1000, 100) == same.steps(1000, 100)


@pytest.mark.parametrize("text", ["", "0", "0 steps", "-1", "2 days", "1.5", "steps", "9" * 20])
def test_what_is_no_schedule_is_one_line(text):
    with pytest.raises(
        UserError, match="train.measure_every = .*: expected a number of epochs"
    ) as e:
        parse("train.measure_every", text)
    assert e.value.exit_code == USAGE
