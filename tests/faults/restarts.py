"""Whether every attempt at a block goes on from the newest checkpoint that was there before it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.running import listed


class Restarts:
    """Looks at a sweep's directory now and then; what it saw first it holds later attempts to.

    An attempt that the last look has not seen began after it; what the look before that had seen
    was saved by then.
    """

    def __init__(self) -> None:
        self.newest: dict[Path, int] = {}  # step, by block
        self.before: dict[Path, int] = {}  # the same at the look before the last one
        self.least: dict[Path, int] = {}  # where an attempt has to begin, at the earliest
        self.spoilt: set[Path] = set()  # checkpoints that nobody can read
        self.checked = 0

    def look(self, directory: Path) -> None:
        """`AssertionError` for an attempt that trains again what had been saved."""
        settled, self.before = self.before, dict(self.newest)
        for block in listed(directory, "blocks/*"):
            attempts = listed(block, "attempts/*")
            for attempt in attempts:
                if attempt not in self.least:
                    self.least[attempt] = settled.get(block, 0)
                    self.checked += self.least[attempt] > 0
                begun = _begun_at(attempt)
                assert begun is None or begun >= self.least[attempt], (
                    f"{attempt} began at step {begun}, and {self.least[attempt]} had been saved"
                )
            saved = [
                int(path.name)
                for attempt in attempts
                for path in listed(attempt, "checkpoints/*")
                if path.name.isdecimal() and path not in self.spoilt
            ]
            self.newest[block] = max(saved, default=0)

    def spoil(self, checkpoint: Path) -> None:
        """This one cannot be read any more, and what was seen before may rest on it."""
        self.spoilt.add(checkpoint)
        self.newest.clear()
        self.before.clear()
        self.least = dict.fromkeys(self.least, 0)


def _begun_at(attempt: Path) -> int | None:
    """The step that an attempt went on from, 0 for the first one; None while it is not known."""
    try:
        said = (attempt / "log.txt").read_text(encoding="utf-8")
    except OSError:
        said = ""
    found = re.search(r"going on from step (\d+)", said)
    if found:
        return int(found[1])
    return 0 if (attempt / "metrics.jsonl").exists() else None
