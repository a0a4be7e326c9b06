"""What a sweep searches: read, written, walked through, and refused in one line."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config import ExperimentConfig, PenaltyConfig
from experiments.errors import USAGE, UserError
from experiments.sweep.space import (
    Choice,
    Int,
    Lin,
    Log,
    as_text,
    check,
    configure,
    divide,
    from_json,
    is_space,
    parse,
    to_json,
)

KEY = "penalty.strength"
CONFIG = ExperimentConfig("toy", penalty=PenaltyConfig("l2", strength=1e-3))

sizes = st.floats(1e-30, 1e30)
counts = st.none() | st.integers(2, 50)


@st.composite
def ranges(draw, kind, numbers):
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    return kind(low, high, *([draw(counts)] if kind is not Int else []))


logs = ranges(Log, sizes)
lins = ranges(Lin, st.floats(-1e30, 1e30))
ints = ranges(Int, st.integers(-(10**9), 10**9))
values = st.none() | st.booleans() | st.integers() | st.floats(-1e300, 1e300)
values |= st.text().filter(str.isprintable)
choices = st.lists(values, min_size=1, max_size=5, unique_by=as_text).map(Choice)
spaces = logs | lins | ints | choices


@settings(max_examples=200)
@given(spaces)
def test_what_is_written_is_read_back(space):
    assert parse(f"{KEY}={space}") == (KEY, space)
    assert from_json(to_json({KEY: space})) == {KEY: space}


@given(spaces, st.floats(0, 1, exclude_max=True))
def test_every_point_lies_in_the_space(space, u):
    value = space.at(u)
    if isinstance(space, Choice):
        assert any(value is one for one in space.values)
    else:
        assert space.low <= value <= space.high


@given(ranges(Log, sizes) | lins)
def test_a_grid_holds_both_ends_and_ascends(space):
    space = type(space)(space.low, space.high, space.count or 5)
    try:
        grid = space.grid()
    except ValueError as error:  # ends too close for so many numbers
        assert "between the ends" in str(error)
        assert space.high - space.low <= 1e-9 * max(abs(space.low), abs(space.high))
        return
    assert (grid[0], grid[-1], len(grid)) == (space.low, space.high, space.count)
    assert grid == sorted(grid)


@given(st.integers(-30, 30), st.integers(1, 20))
def test_a_grid_over_decades_holds_the_powers_of_ten(low, decades):
    powers = [float(f"1e{low + place}") for place in range(decades + 1)]
    assert Log(powers[0], powers[-1], decades + 1).grid() == powers


def test_grids_are_the_numbers_a_person_would_write():
    assert Log(1e-5, 1e-1, 5).grid() == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert Log(1e-30, 1e30, 3).grid() == [1e-30, 1.0, 1e30]
    assert Lin(0, 0.3, 4).grid() == [0.0, 0.1, 0.2, 0.3]
    assert Int(-1, 2).grid() == [-1, 0, 1, 2]
    assert Choice(["l1", None, [64, 64]]).grid() == ["l1", None, [64, 64]]


def test_log_is_even_in_the_exponent_and_lin_in_the_value():
    assert math.isclose(Log(1e-30, 1e30).at(0.25), 1e-15, rel_tol=1e-12)
    assert Lin(-1e30, 1e30).at(0.5) == 0.0


@given(st.integers(-50, 50), st.integers(1, 9))
def test_integers_and_choices_have_equal_shares(low, more):
    space = Int(low, low + more)
    points = [(place + 0.5) / (space.size * 10) for place in range(space.size * 10)]
    drawn = [space.at(u) for u in points]
    assert {value: drawn.count(value) for value in drawn} == dict.fromkeys(space.grid(), 10)
    assert [Choice(space.grid()).at(u) for u in points] == drawn


def test_numbers_are_those_of_the_configuration_files():
    assert parse("optimizer.learning_rate=log(1e-3, 1.e-1, 3)")[1] == Log(0.001, 0.1, 3)
    assert parse("penalty.name=[l1, 'l2', none]")[1] == Choice(["l1", "l2", "none"])
    assert parse("model.gain=[null, 1e0]")[1] == Choice([None, 1.0])
    assert parse("train.epochs=int(1,3)")[1] == Int(1, 3)


def test_a_list_is_a_space_unless_the_key_holds_a_list():
    words = ["train.epochs=3", "model.hidden=[64, 64]", f"{KEY}=[0, 1e-3]"]
    assert divide(words) == (words[:2], {KEY: Choice([0, 1e-3])})
    assert is_space("model.hidden=[[64, 64], []]")
    assert not is_space("model.hidden=[]")
    assert not is_space("name=log")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (f"{KEY}=log(1e-1,1e-5,8)", "is reversed"),
        (f"{KEY}=lin(1,1)", "is one value; write key=1"),
        (f"{KEY}=log(0,1,8)", "low > 0"),
        (f"{KEY}=log(-1,1)", "low > 0"),
        (f"{KEY}=log(1e-5,1e-1,0)", "count = 0: expected an integer >= 2"),
        (f"{KEY}=log(1e-5,1e-1,8.0)", "count = 8.0: expected an integer >= 2"),
        (f"{KEY}=log(1e-5,.inf)", "high = inf: expected a number"),
        (f"{KEY}=lin(.nan,1)", "low = nan: expected a number"),
        (f"{KEY}=lin(a,1)", "low = 'a': expected a number"),
        (f"{KEY}=lin(true,1)", "low = True: expected a number"),
        (f"{KEY}=log(1e-5)", "has 1 numbers; write log(low,high)"),
        (f"{KEY}=log(1,2,3,4)", "has 4 numbers; write log(low,high)"),
        (f"{KEY}=log(1,2", "is no space; write log(low,high)"),
        (f"{KEY}=lgo(1,2)", "did you mean 'log'?"),
        (f"{KEY}=[1, 2", "not valid YAML"),
        (f"{KEY}=[]", "an empty list"),
        (f"{KEY}=[1, 1.0]", "1.0 stands in the list twice"),
        (f"{KEY}=[1, .nan]", "expected numbers of a size up to"),
        (f"{KEY}=[{{a: 1}}]", "expected a number, a string, null or a list"),
        (f'{KEY}=["a\\nb"]', "one printable line"),
        ("train.epochs=int(1.5,3)", "low = 1.5: expected an integer"),
        ("train.epochs=int(1,3e0)", "high = 3.0: expected an integer"),
        ("train.epochs=int(3,1)", "is reversed"),
        ("penalty.strenght=log(1,2)", "did you mean 'penalty.strength'?"),
        ("strength=log(1,2)", "did you mean 'penalty.strength'?"),
        (KEY, "is no space; write key="),
    ],
)
def test_a_space_that_means_nothing_is_refused_in_one_line(word, message):
    with pytest.raises(UserError) as refusal:
        parse(word)
    assert message in refusal.value.message and "\n" not in refusal.value.message
    assert word.partition("=")[0] in refusal.value.message
    assert refusal.value.exit_code == USAGE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"{KEY}=[1]", f"{KEY}=log(1,2)"], f"{KEY} is searched twice: in [1] and in log(1.0,2.0)"),
        ([f"{KEY}=1", f"{KEY}=log(1,2)"], f"{KEY}=1 sets what is searched"),
    ],
)
def test_a_key_has_one_source(words, message):
    with pytest.raises(UserError, match="keep one") as refusal:
        divide(words)
    assert message in refusal.value.message


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"penalty.strenght": Lin(0, 1)}, "did you mean 'penalty.strength'?"),
        ({"train.seed": Int(0, 9)}, "train.seed cannot be searched: all settings"),
        ({"name": Choice(["a"])}, "name cannot be searched"),
        ({"data.validation": Int(50, 90)}, "scored on different examples, and the one with the"),
        ({"data.name": Choice(["digits", "mnist"])}, "run a sweep for each value, and compare"),
        ({"data.subsets": Choice(["own", "shared"])}, "data.subsets cannot be searched"),
        ({KEY: Lin(-1, 1, 3)}, "penalty.strength = -1.0: expected"),
        ({KEY: [1, 2]}, "penalty.strength = [1, 2]: expected Log, Lin, Int or Choice"),
        ({"train.epochs": Lin(1, 9)}, "train.epochs = 1.0: expected int"),
        ({"optimizer.name": Choice(["sgd", "adma"])}, "did you mean 'adam'?"),
        ({"balance.low": Choice([2.0]), "balance.high": Choice([3.0, 1.0])}, "low <= high = 1"),
    ],
)
def test_values_that_the_configuration_refuses_are_seen_before_anything_runs(space, message):
    with pytest.raises(UserError) as refusal:
        check(space, CONFIG)
    assert message in refusal.value.message and "\n" not in refusal.value.message


def test_two_keys_may_hold_what_only_both_together_allow():
    space = {"balance.low": Choice([2.0]), "balance.high": Choice([3.0, 4.0])}
    check(space, CONFIG)
    check({KEY: Log(1e-5, 1), "model.hidden": Choice([[], [8, 8]])}, CONFIG)
    assert configure(CONFIG, {"balance.low": 2.0, "balance.high": 3.0}).balance.high == 3.0


def test_a_refused_setting_is_named():
    with pytest.raises(UserError, match="setting penalty.strength=-1: penalty.strength = -1"):
        configure(CONFIG, {KEY: -1})


def test_ranges_take_the_numbers_of_numpy_and_nothing_else():
    assert Log(np.float32(0.5), np.int64(2), np.int32(2)) == Log(0.5, 2.0, 2)
    assert Choice(np.array([1, 2])) == Choice([1, 2])
    for bad in ("1", None, 10**400, 1j):
        with pytest.raises(ValueError, match="low"):
            Lin(bad, 2)
    with pytest.raises(ValueError, match="expected a list"):
        Choice("abc")


def test_a_grid_needs_a_count_and_an_end():
    with pytest.raises(ValueError, match="has no count"):
        Log(1, 2).grid()
    with pytest.raises(ValueError, match="more than the 100,000 of a grid"):
        Int(1, 10**9).grid()
    with pytest.raises(ValueError, match="more than the 100,000 of a grid"):
        Log(1, 10, 10**9).grid()
