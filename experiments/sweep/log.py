"""The log of a sweep: `trials.jsonl`, one line per configuration and rung.

It is made of committed blocks and of nothing else. So a line that was torn, damaged or written
twice costs nothing: it is left out, and made again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from experiments.runs.files import append_line, write_text

FILE = "trials.jsonl"


class Entry(msgspec.Struct, frozen=True):
    """A configuration at the end of a rung.

    round: of the search, counted from 0: those of one round compete at its rungs.
    metrics: one number per seed, None where it has none; ``diverged`` and ``collapsed`` are 1 for
      the seeds that came to nothing.
    """

    round: int
    rung: int
    number: int
    setting: dict[str, Any]
    epochs: int
    seeds: list[int]
    metrics: dict[str, list[float | None]]
    check: str = ""

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in the log: by rung, then by number."""
        return self.rung, self.number

    def line(self) -> bytes:
        """As it stands in the log, with a digest of the rest as ``check``."""
        return _encode(msgspec.structs.replace(self, check=self._digest()))

    @property
    def sound(self) -> bool:
        """Whether it is what was written."""
        return self.check == self._digest()

    def _digest(self) -> str:
        return hashlib.sha256(_encode(msgspec.structs.replace(self, check=""))).hexdigest()[:16]


class TrialLog:
    """The entries of a sweep so far."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.entries: dict[tuple[int, int], Entry] = {}
        for entry in filter(None, map(_decode, _lines(self.path))):
            self.entries.setdefault(entry.place, entry)

    def add(self, entries: Iterable[Entry]) -> None:
        """Append what is new, in one write."""
        new = {entry.place: entry for entry in entries if entry.place not in self.entries}
        if new:
            text = b"\n".join(entry.line() for entry in new.values()).decode()
            # Behind a line that somebody's end has torn, what is appended would be lost with it.
            append_line(self.path, text if _ends_a_line(self.path) else f"\n{text}")
            self.entries |= new

    def settle(self) -> None:
        """Put the file in order, if it is not: with each entry once, by rung and number."""
        text = b"".join(self.entries[place].line() + b"\n" for place in sorted(self.entries))
        if text != _content(self.path):
            write_text(self.path, text.decode())


def _ends_a_line(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read() == b"\n"
    except OSError:  # there is no file, or nothing in it
        return True


def _lines(path: Path) -> list[bytes]:
    return [line for line in _content(path).split(b"\n") if line]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Entry)


def _decode(line: bytes) -> Entry | None:
    """The entry of a line; None where it is not what was written."""
    try:
        entry = _decoder.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    return entry if entry.sound else None
