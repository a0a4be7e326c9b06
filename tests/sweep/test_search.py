"""What a sweep tries next is a function of what it was told, and of nothing else."""

import importlib.util
import logging
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.errors import USAGE, UserError
from experiments.sweep.search import BATCH, STARTUP, Told, sample, search
from experiments.sweep.space import Choice, Int, Lin, Log

SPACE = {
    "optimizer.learning_rate": Log(1e-4, 1.0, 3),
    "model.dropout": Lin(0.0, 0.5),
    "penalty.name": Choice(["none", "l2", [64, 64], None]),
    "model.depth": Int(1, 6),
}


def score(setting):
    """A hill at dropout 0.1 and depth 2."""
    return -abs(setting["model.dropout"] - 0.1) - abs(setting["model.depth"] - 2)


def run(found, *, lost=lambda setting: False):
    """Every setting with its score, as a sweep would learn them."""
    told = []
    while batch := found.propose(told):
        told += [Told(s, math.nan if lost(s) else score(s)) for s in batch]
    return told


def test_a_grid_is_every_combination_in_order():
    space = {"a": Log(1, 100, 3), "b": Choice(["x", None])}
    found = search("grid", space)
    assert found.count == 6
    assert found.propose([])[:3] == [{"a": 1, "b": "x"}, {"a": 1, "b": None}, {"a": 10, "b": "x"}]
    assert search("grid", {}).propose([]) == [{}]  # nothing but seeds


def test_a_list_is_tried_as_it_is_given():
    assert search("list", {}, settings=[{"a": 1}, {"a": 1}, {}]).propose([]) == [
        {"a": 1},
        {"a": 1},
        {},
    ]


@given(st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_smaller_sample_is_the_beginning_of_a_larger_one(count, seed):
    found = sample(SPACE, count, seed=seed)
    assert len(found) == count
    assert found == sample(SPACE, 80, seed=seed)[:count]
    assert all(SPACE["penalty.name"].values.count(s["penalty.name"]) for s in found)


def test_a_sample_is_even_in_every_key():
    drawn = sample({"a": Log(1, 10), "b": Lin(0, 1), "c": Int(0, 3)}, 64, seed=3)
    rooms = np.floor(np.log10([s["a"] for s in drawn]) * 16)
    assert np.unique(rooms, return_counts=True)[1].tolist() == [4] * 16
    assert [sum(s["c"] == c for s in drawn) for c in range(4)] == [16] * 4
    assert sample(SPACE, 8, seed=0) != sample(SPACE, 8, seed=1)


def test_a_sample_tries_nothing_twice():
    space = {"a": Choice(["x", "y", "z"]), "b": Int(1, 5)}
    drawn = sample(space, 14, seed=0)
    assert len({tuple(s.values()) for s in drawn}) == 14


@cache
def undisturbed(text):
    return run(search(text, SPACE, seed=7))


@pytest.mark.parametrize("text", ["random:29", "tpe:29"])
@given(here=st.integers(0, 29), before=st.integers(0, 29))
@settings(max_examples=8, deadline=None)
def test_proposals_depend_on_what_was_told_and_on_no_history(text, here, before):
    """Whoever goes on after any trial, in a new process say, proposes what the first would have."""
    told, again = undisturbed(text), search(text, SPACE, seed=7)
    again.propose(told[:before])  # what else it was asked leaves no trace
    proposed = again.propose(told[:here])
    assert proposed == [one.setting for one in told[here : here + len(proposed)]]
    assert proposed or here == 29


def test_tpe_proposes_eight_at_a_time_after_a_sample_and_then_ends():
    found = search("tpe:26", SPACE)
    told = run(found)
    assert [one.setting for one in told[:STARTUP]] == sample(SPACE, STARTUP, seed=0)
    assert len(found.propose(told[:STARTUP])) == BATCH
    assert len(found.propose(told[: STARTUP + BATCH])) == 2
    assert found.propose(told) == []
    assert search("tpe:3", SPACE).propose([]) == sample(SPACE, 3, seed=0)


def test_tpe_goes_where_scores_are_high_and_away_from_what_was_lost():
    tried = [one.setting for one in run(search("tpe:64", SPACE))][STARTUP:]
    assert np.mean([s["model.depth"] == 2 for s in tried]) > 0.5
    # The same hill, but its top is lost.
    lost = run(search("tpe:64", SPACE), lost=lambda s: s["model.depth"] <= 2)[STARTUP:]
    assert np.mean([s.setting["model.depth"] <= 2 for s in lost]) < 0.25


def test_tpe_knows_no_better_than_chance_when_all_is_lost():
    told = [Told(setting, math.nan) for setting in sample(SPACE, 16, seed=0)]
    assert len(search("tpe:24", SPACE).propose(told)) == BATCH


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_tpe_works_at_any_scale_of_values_and_scores(size):
    space = {"a": Log(size, 1e4 * size), "b": Lin(-size, size)}
    told = [Told(s, s["b"]) for s in sample(space, 24, seed=0)]
    proposed = search("tpe:32", space).propose(told)
    assert all(size <= s["a"] <= 1e4 * size and abs(s["b"]) <= size for s in proposed)
    assert np.mean([s["b"] > 0 for s in proposed]) > 0.5


def test_tpe_says_nothing_and_leaves_the_log_of_optuna_as_it_was(capfd):
    logger = logging.getLogger("optuna")
    before = logger.level
    run(search("tpe:24", SPACE))
    assert capfd.readouterr() == ("", "")
    assert logger.level == before


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'spectral-jax\[sweep\]'") as refusal:
        search("tpe:64", SPACE)
    assert refusal.value.exit_code == USAGE
    search("random:64", SPACE)


@pytest.mark.parametrize(
    ("text", "space", "message"),
    [
        ("gird", SPACE, "did you mean 'grid'?"),
        ("random", SPACE, "write grid, random:64 or tpe:64"),
        ("random:0", SPACE, "write grid, random:64 or tpe:64"),
        ("random:1e3", SPACE, "write grid, random:64 or tpe:64"),
        ("random:200000", SPACE, "more than 100,000 settings"),
        ("random:8", {}, "nothing to search"),
        ("tpe:6", {"a": Int(1, 3), "b": Choice([1, 2])}, "has 6 settings in all; use search=grid"),
        ("random:8", {"a": Lin(1, 1 + 1e-15)}, "a=lin(1.0,1.000000000000001) hold fewer than 8"),
        ("grid", {"a": Log(1, 2)}, "a: log(1.0,2.0) has no count"),
        ("grid", {"a": Int(1, 999), "b": Int(1, 999)}, "the grid has 998,001 settings"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(text, space, message):
    with pytest.raises(UserError) as refusal:
        search(text, space)
    assert message in refusal.value.message and "\n" not in refusal.value.message
    assert refusal.value.exit_code == USAGE
