"""Stopping a run from outside without losing work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from experiments.errors import INTERRUPTED, PREEMPTED, UserError


class Interruption:
    """Which signal asked the run to stop; true once one did."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def error(self, step: int) -> UserError:
        """What to raise once the state of `step` is saved."""
        preempted = self.number == signal.SIGTERM
        word, code = ("preempted", PREEMPTED) if preempted else ("interrupted", INTERRUPTED)
        return UserError(
            f"{word}; the state of step {step} is kept: run the same command again to go on", code
        )


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Turn SIGTERM and the first Ctrl-C into a flag to poll; the second Ctrl-C stops at once.

    Signals reach the main thread only; elsewhere the flag stays false.
    """
    stop = Interruption()

    def ask(number: int, frame: Any) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.number = number
        # Not print: the signal may arrive inside another write to the same stream.
        os.write(2, b"stopping at the next checkpoint; Ctrl-C stops at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
