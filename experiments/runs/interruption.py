"""Stopping a process from outside without losing work, a signal, or the one line that says so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from experiments.errors import INTERRUPTED, PREEMPTED, UserError

MEANINGS = {
    signal.SIGINT: ("interrupted", INTERRUPTED),
    signal.SIGTERM: ("preempted", PREEMPTED),
}
WORDS = {code: word for word, code in MEANINGS.values()}


class Preempted(KeyboardInterrupt):
    """SIGTERM, which batch systems send, while there is no training state to save."""


def meaning(error: KeyboardInterrupt) -> tuple[str, int]:
    """What happened in a word, and the exit code that says so."""
    return MEANINGS[signal.SIGTERM if isinstance(error, Preempted) else signal.SIGINT]


def stop_on_signals() -> None:
    """From here on SIGINT and SIGTERM end the command in one line; call it before importing jax.

    They raise `KeyboardInterrupt`. Only while a module is being imported they end the process:
    there is nothing to save, and callbacks of the import system swallow an exception or print it.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        error = Preempted() if number == signal.SIGTERM else KeyboardInterrupt()
        if _importing(frame):
            word, code = meaning(error)
            os.write(2, f"error: {word}; run the same command again\n".encode())
            os._exit(code)
        raise error

    for number in MEANINGS:
        signal.signal(number, stop)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class Interruption:
    """Which signal asked the run to stop; true once one did."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def error(self, step: int) -> UserError:
        """What to raise once the state of `step` is saved."""
        assert self.number is not None, "nothing has asked the run to stop"
        word, code = MEANINGS[signal.Signals(self.number)]
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
    before = {number: signal.signal(number, ask) for number in MEANINGS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
