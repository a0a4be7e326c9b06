"""A short cut of the fuzzers: the first inputs of each, the same ones every time."""

import pytest

from spectral_jax.checkpoints import load
from tests.fuzz.targets import TARGETS, attempt, seeds

SLOW = {"hdf5": 5, "keras": 5, "orbax": 2}  # each starts a process


@pytest.mark.parametrize("name", TARGETS)
def test_no_damaged_input_does_worse_than_one_line(name, tmp_path):
    for number in range(SLOW.get(name, 100)):
        folder = tmp_path / str(number)
        folder.mkdir()
        attempt(name, 0, number, folder)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "configuration"])
def test_what_is_damaged_was_sound(name, tmp_path):
    for number, parts in enumerate(seeds(name)):
        (tmp_path / str(number)).mkdir()
        assert load(TARGETS[name].pack(parts, tmp_path / str(number) / "model"))
