"""Telling a process in which nothing happens any more from one that works, and ending it by signal.

While XLA waits, Python runs no signal handler: a program that waits for ever could only be killed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.runs.interruption import MEANINGS
from experiments.runs.lapack import PAGE

# Seconds without work: before it is said, and before a signal ends the process.
QUIET, GRACE = 60.0, 10.0
# A process that uses less than this share of a core does no work, but may show a progress bar.
WORK = 0.1
TICK = 0.5


@contextmanager
def watchdog() -> Iterator[None]:
    """Say once where the process waits if it does no work, and let SIGTERM and Ctrl-C end it then.

    On a CPU only: who waits for an accelerator does no work either. Nothing is saved, so the
    checkpoint before stays. To be used in the main thread; elsewhere it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, pythons = socket.socketpair()  # Python writes each signal's number, whatever it waits for
    pythons.setblocking(False)
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(ours, threading.get_ident()), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        pythons.close()  # which ends the watch
        watch.join()
        ours.close()


def _watch(signals: socket.socket, main: int) -> None:
    idle, asked, told = 0.0, None, False
    clock, work = time.monotonic(), time.process_time()
    while (numbers := _received(signals)) is not None:
        for number in numbers:
            asked, idle = (number, 0.0) if number in MEANINGS else (asked, idle)
        passed, used = time.monotonic() - clock, time.process_time() - work
        clock, work = clock + passed, work + used
        # A process that was itself stopped comes back after any time.
        idle = 0.0 if used > WORK * passed else idle + min(passed, 2 * TICK)
        if asked and idle > GRACE:
            _end(asked, main)
        if idle > QUIET and not told:
            told = True
            _say(
                f"warning: nothing has been computed for {QUIET:g} s, waiting at {_place(main)}; a "
                f"decomposition may wait for ever ({PAGE}): Ctrl-C or SIGTERM ends it, and what is "
                "saved is kept"
            )


def _received(signals: socket.socket) -> bytes | None:
    """The signals of the last tick; None once there will be no more."""
    if not select.select([signals], [], [], TICK)[0]:
        return b""
    return signals.recv(64) or None


def _end(number: int, main: int) -> None:
    word, code = MEANINGS[signal.Signals(number)]
    _say(
        f"error: {word} while waiting at {_place(main)}, where nothing was computed any more "
        f"({PAGE}); the state of the last checkpoint is kept: run the same command again to go on"
    )
    os._exit(code)


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # not print: the main thread may hold the stream


def _place(main: int) -> str:
    """Where in our own code the main thread is."""
    frame = sys._current_frames()[main]
    while "site-packages" in frame.f_code.co_filename and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
