"""Rungs cover the training, and whoever goes on does so for reasons that anyone can repeat."""

import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import DataConfig, ExperimentConfig
from experiments.errors import USAGE, UserError
from experiments.sweep.halving import check, parse, survivors
from experiments.sweep.space import Int, Lin
from experiments.sweep.sweep import resume, sweep
from tests.faults import toy
from tests.faults.oracle import compare, outputs

CONFIG = ExperimentConfig("toy", data=DataConfig(validation=100))
NAN = math.nan
SCORES = st.floats(-1e30, 1e30) | st.sampled_from([NAN, math.inf, -math.inf])


def test_rungs_end_at_multiples_of_the_first_until_training_does():
    assert parse("2@5", epochs=40).rungs == ((0, 5), (5, 10), (10, 20), (20, 40))
    assert parse("3@2", epochs=20).rungs == ((0, 2), (2, 6), (6, 18), (18, 20))
    assert parse("4@1", epochs=2).rungs == ((0, 1), (1, 2))
    assert str(parse("2@5", epochs=40)) == "2@5"


@given(st.integers(2, 9), st.integers(1, 50), st.integers(1, 10**9))
def test_rungs_follow_each_other_without_gaps(factor, first, more):
    rungs = parse(f"{factor}@{first}", epochs=first + more).rungs
    assert (rungs[0][0], rungs[-1][1]) == (0, first + more)
    assert all(end == start for (_, end), (start, _) in zip(rungs, rungs[1:], strict=False))
    assert all(start < end for start, end in rungs)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({0: [0.1], 1: [0.3], 2: [0.2]}, [1, 2]),  # one in two, rounded up
        ({0: [0.9, 0.1], 1: [0.6, 0.6]}, [1]),  # the mean over seeds, not the best one
        ({0: [0.5], 1: [0.5], 2: [0.5], 3: [0.5]}, [0, 1]),  # ties by number
        ({3: [0.5], 2: [0.5], 1: [0.5], 0: [0.5]}, [0, 1]),  # in whatever order they come
        ({0: [NAN, 0.9], 1: [0.1, 0.1]}, [1]),  # a lost seed is worse than any score
        ({0: [NAN, NAN], 1: [NAN, 0.1]}, [1]),
        ({0: [math.inf], 1: [0.1]}, [1]),
        ({0: [NAN], 1: [NAN], 2: [NAN]}, [0, 1]),
        ({7: [0.0]}, [7]),
        ({}, []),
    ],
)
def test_the_better_half_goes_on(scores, kept):
    assert survivors(scores, 2) == kept


def test_of_a_loss_the_lower_half_goes_on():
    scores = {0: [1e30], 1: [1e-30], 2: [NAN], 3: [1e10]}
    assert survivors(scores, 2, higher=False) == [1, 3]
    assert survivors(scores, 3, higher=False) == [1, 3]
    assert survivors(scores, 4, higher=False) == [1]


@given(st.dictionaries(st.integers(0, 99), st.tuples(SCORES, SCORES)))
def test_survivors_do_not_depend_on_the_order_of_the_others(scores):
    assert survivors(scores, 3) == survivors(dict(reversed(scores.items())), 3)
    assert len(survivors(scores, 3)) == math.ceil(len(scores) / 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "write FACTOR@EPOCHS, as in 2@5"),
        ("2@0", "write FACTOR@EPOCHS, as in 2@5"),
        ("1.5@2", "write FACTOR@EPOCHS, as in 2@5"),
        ("-2@2", "write FACTOR@EPOCHS, as in 2@5"),
        ("1@5", "a factor of 1 keeps every setting; write 2@5"),
        ("2@10", "training ends after train.epochs = 10"),
    ],
)
def test_what_halves_nothing_is_refused(text, message):
    with pytest.raises(UserError) as refusal:
        parse(text, epochs=10)
    assert message in refusal.value.message
    assert refusal.value.exit_code == USAGE


@pytest.mark.parametrize(
    ("config", "space", "objective", "message"),
    [
        (ExperimentConfig("toy"), {}, "validation/loss", "set data.validation="),
        (CONFIG, {}, "test/accuracy", "objective='test/accuracy': settings are dropped by valid"),
        (CONFIG, {"train.epochs": Int(1, 2)}, "validation/loss", "train.epochs cannot be searched"),
    ],
)
def test_settings_are_dropped_by_validation_data_alone(config, space, objective, message):
    with pytest.raises(UserError) as refusal:
        check(config, space, objective)
    assert message in refusal.value.message
    check(CONFIG, {"model.dropout": Lin(0, 0.5)}, "validation/accuracy")


def test_a_block_that_was_removed_is_trained_again_where_a_rung_begins_with_it(tmp_path):
    """As one is told to where a file is damaged; the log has its numbers, but not its states."""
    options = {"over": toy.SPACE, "seeds": toy.SEEDS, "halve": "2@1", "root": tmp_path}
    with toy.in_no_time(tmp_path):
        directory = sweep(toy.CONFIG, **options).directory
        expected, log = outputs(directory), directory / "trials.jsonl"
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:4]))
        for path in directory.glob("blocks/*"):
            shutil.rmtree(path)
        assert resume(directory).directory == directory
    compare(directory, expected)
