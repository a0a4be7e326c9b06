"""A study is done once, and what it saved survives an interruption."""

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.runs.study import study

CALLS: list[int] = []


def measure(run, *, number):
    """Count the calls and keep an array."""
    CALLS.append(number)
    run.save_array("squares", squares=np.arange(number) ** 2)
    return {"number": number}


def fails_once(run, *, number):
    if run.load_array("first") is None:
        run.save_array("first", first=np.ones(number))
        raise RuntimeError("in the middle")
    return {"found": float(run.load_array("first")["first"].sum())}


def test_the_same_options_are_measured_once(tmp_path):
    CALLS.clear()
    first = study("name/part", measure, options={"number": 4}, root=tmp_path)
    again = study("name/part", measure, options={"number": 4}, root=tmp_path)
    other = study("name/part", measure, options={"number": 5}, root=tmp_path)
    assert CALLS == [4, 5]
    assert first.path == again.path != other.path
    assert again.summary == {"number": 4}
    np.testing.assert_array_equal(again.load_array("squares")["squares"], [0, 1, 4, 9])
    assert again.load_array("cubes") is None


def test_an_interrupted_study_finds_what_it_saved(tmp_path):
    with pytest.raises(UserError, match="in the middle"):
        study("name", fails_once, options={"number": 3}, root=tmp_path)
    assert study("name", fails_once, options={"number": 3}, root=tmp_path).summary == {"found": 3}
