"""A probe's answer serves the next process on a machine like this, and nothing depends on it."""

import jax
import pytest

from experiments.runs import probes

QUESTION = ["which is faster", {"size": 8}, 2.0]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of compiled programs, and a process that knows nothing yet."""
    old = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(probes, "_KNOWN", {})
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "compiled"))
    yield tmp_path / "compiled"
    jax.config.update("jax_compilation_cache_dir", old)


def in_the_next_process(monkeypatch):
    monkeypatch.setattr(probes, "_KNOWN", {})
    return probes.answered(QUESTION)


def test_an_answer_is_kept_for_the_next_process(cache, monkeypatch):
    assert probes.answered(QUESTION) is None
    probes.keep(QUESTION, "map")
    assert in_the_next_process(monkeypatch) == "map"
    assert probes.answered([*QUESTION, 1]) is None


def test_other_threads_are_another_machine(cache, monkeypatch):
    probes.keep(QUESTION, "map")
    monkeypatch.setattr(probes, "cpu_threads", lambda: 1000)
    assert in_the_next_process(monkeypatch) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"answers": {}}'])
def test_a_damaged_answer_is_asked_again_and_replaced(cache, content, monkeypatch):
    probes.keep(QUESTION, "map")
    (path,) = cache.glob("probe-*.json")
    path.write_bytes(content)
    assert in_the_next_process(monkeypatch) is None
    probes.keep(QUESTION, "vmap")
    assert in_the_next_process(monkeypatch) == "vmap"


def test_a_cache_that_cannot_be_written_keeps_the_answer_in_this_process(cache, monkeypatch):
    cache.write_text("a file where the folder should be")
    probes.keep(QUESTION, "map")
    assert probes.answered(QUESTION) == "map"
    assert in_the_next_process(monkeypatch) is None


@pytest.mark.parametrize("folder", [None, "gs://bucket/compiled"])
def test_without_a_local_cache_nothing_is_written(cache, folder, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", folder)
    probes.keep(QUESTION, "map")
    assert probes.answered(QUESTION) == "map"
    assert in_the_next_process(monkeypatch) is None
    assert not cache.exists()
