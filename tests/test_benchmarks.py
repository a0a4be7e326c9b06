"""The benchmarks run, and what they print is a table with its targets; times are not tested."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import SUITES, harness

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def tables_in(text: str) -> dict[str, list[list[str]]]:
    """Title -> rows of cells, header first, without the rule below it."""
    tables: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("### "):
            tables[line[4:]] = []
        elif line.startswith("| ") and not line.startswith("| ---"):
            list(tables.values())[-1].append(line.strip("|").strip().split(" | "))
    return tables


def test_list_names_every_suite():
    assert [line.split()[0] for line in run("list").stdout.splitlines()] == list(SUITES)


def test_an_unknown_suite_is_a_usage_error():
    assert run("fielder").returncode == 2


@pytest.mark.slow
def test_a_smoke_run_prints_whole_tables_and_writes_nothing():
    """Of the quickest suite; `.ci/run` asks all of them."""
    results = ROOT / "benchmarks" / "RESULTS.md"
    before = results.read_bytes()
    printed = run("training", "--smoke")
    assert printed.returncode == 0, printed.stderr
    tables = tables_in(printed.stdout)
    assert any(tuple(rows[0]) == harness.HEADER for rows in tables.values())
    assert all(rows for _, *rows in tables.values())
    assert results.read_bytes() == before


@pytest.mark.parametrize("rows", [[], [("what", "ours")]])
def test_a_table_without_rows_or_with_a_short_one_is_refused(rows):
    with pytest.raises(ValueError, match="every row has 6 cells"):
        harness.markdown(harness.Table("title", "note", rows))


def test_calls_are_timed_in_turn_after_a_first_round():
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = harness.interleaved(calls, repeats=2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert [len(times[name].wall) for name in calls] == [2, 2]


@pytest.mark.parametrize(
    "relation, value, met", [("<=", 2, "yes"), ("<=", 3, "no"), (">=", 3, "yes")]
)
def test_a_row_says_whether_its_target_is_met(relation, value, met):
    cells = harness.row("what", value, target=harness.Target(relation, 2.5), value=value)
    assert len(cells) == len(harness.HEADER)
    assert cells[-1] == met
    assert harness.missed(harness.Table("title", "note", [cells])) == (met == "no")


def test_a_suite_replaces_its_own_section_and_no_other(tmp_path):
    path = tmp_path / "RESULTS.md"
    harness.update(path, "one", "first")
    harness.update(path, "two", "second")
    harness.update(path, "one", r"third \1")
    text = path.read_text()
    assert "first" not in text
    assert text.index(r"third \1") < text.index("second")
