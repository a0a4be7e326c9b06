"""What a sweep has come to, whatever happened to it on the way."""

from __future__ import annotations

from pathlib import Path

TABLES = ("table.csv", "trials.csv", "table.md")
BUGS = ("Traceback", "this is a bug")


def outputs(directory: Path) -> dict[str, bytes]:
    """The tables of a sweep, as they are on the disk."""
    return {name: (directory / name).read_bytes() for name in TABLES}


def compare(directory: Path, expected: dict[str, bytes]) -> None:
    """`AssertionError` unless the tables are the expected ones and every block has its result."""
    for name, content in outputs(directory).items():
        assert content == expected[name], f"{directory / name} is not the undisturbed one"
    for path in (directory / "blocks").iterdir():
        assert (path / "result.json").exists(), f"{path} has no result"


def refuse_bugs(output: Path) -> None:
    """`AssertionError` if a process said anything but lines for a person."""
    said = output.read_text(encoding="utf-8", errors="replace")
    for word in BUGS:
        assert word not in said, f"{output}: {said[max(0, said.index(word) - 500) :][:3000]}"
