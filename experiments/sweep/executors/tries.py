"""How often something may fail before a person is told."""

from __future__ import annotations

from collections import Counter

from experiments.errors import DONE, FAILED, INTERRUPTED, MISSING, PREEMPTED, USAGE, UserError

TRIES = 3
ASKED = (DONE, PREEMPTED, INTERRUPTED)  # somebody stopped it, and it saved
LASTING = (USAGE, MISSING)  # another try would end the same way


class Tries:
    """What has failed so far, by a name for a message."""

    def __init__(self) -> None:
        self._failed: Counter[str] = Counter()

    def ended(self, what: str, code: int, how: str) -> None:
        """Count an end that nobody asked for; `UserError` if to try again is of no use."""
        if code in ASKED:
            return
        if code in LASTING:
            raise UserError(how, code)
        self._failed[what] += 1
        if self._failed[what] >= TRIES:
            raise UserError(f"{what} failed {TRIES} times, the last time with: {how}", FAILED)
