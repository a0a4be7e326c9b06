"""A study is done once, and what it saved survives an interruption."""

import importlib
import sys
from functools import partial

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.runs.code import executed
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


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A study of two files, in a repository of its own: `toy(factor)` writes and imports it."""

    def write(factor):
        (tmp_path / "toy_helper.py").write_text(f"FACTOR = {factor}\n")
        (tmp_path / "toy_study.py").write_text(
            "import toy_helper\n\ndef measure(run):\n    return {'factor': toy_helper.FACTOR}\n"
        )
        module = importlib.import_module("toy_study")
        importlib.reload(module.toy_helper)
        return module.measure

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("experiments.runs.run.executed", partial(executed, root=tmp_path))
    yield write
    for name in ("toy_study", "toy_helper"):
        sys.modules.pop(name, None)


def test_a_study_whose_helper_changed_is_made_again_and_the_old_one_kept(toy, tmp_path, capsys):
    first = study("toy", toy(2), options={}, root=tmp_path)
    assert "code changed" not in capsys.readouterr().err
    second = study("toy", toy(30), options={}, root=tmp_path)
    assert (
        f"code changed since {first.path}, which is kept: toy_helper.py"
        in (capsys.readouterr().err.splitlines()[0])
    )
    assert second.path != first.path
    assert (first.summary, second.summary) == ({"factor": 2}, {"factor": 30})
    assert study("toy", toy(2), options={}, root=tmp_path).path == first.path
