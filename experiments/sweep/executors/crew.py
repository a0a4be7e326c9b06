"""Workers that are started, replaced when they end too soon, and stopped with the sweep."""

from __future__ import annotations

import math
import platform
import secrets
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from experiments.runs.files import make_directory
from experiments.runs.provenance import now
from experiments.sweep.executors.tries import Tries
from experiments.sweep.executors.waiting import POLL, as_committed
from experiments.sweep.executors.worker import at_block

STOPPING = 10.0  # seconds that a worker has to end in once nothing is left to do
TAIL = 8192  # bytes of a log in which its last words are


class Worker(ABC):
    """A process or job that runs `sweep worker`: started where it is made."""

    name: str
    log: Path

    @abstractmethod
    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs or waits for its turn."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to save and to end; do not wait."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once, if it has not."""


class Crew(AbstractContextManager["Crew"]):
    """An executor of some workers, each of which takes what blocks it finds in the directory."""

    def __init__(self, workers: int, start: Callable[[Path, str, tuple[int, int]], Worker]) -> None:
        self.workers = workers
        self._start = start
        self._directory = Path()
        self._running: dict[int, Worker] = {}  # by turn
        self._tries = Tries()

    def run(self, directory: Path, blocks: Sequence[str]) -> Iterator[str]:
        """Wait for the results, and see to it that there are workers."""
        if directory != self._directory:
            self._stop(STOPPING)
            self._directory = directory
        make_directory(directory / "workers")
        return as_committed(directory, blocks, self._keep_up)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Stop the workers; where the sweep is not finished they have the time to save."""
        self._stop(STOPPING if kind is None else math.inf)

    def _keep_up(self, left: list[str]) -> None:
        for turn in range(self.workers):
            worker = self._running.get(turn)
            code = None if worker is None else worker.ended()
            if worker is not None and code is not None:
                del self._running[turn]
                self._judge(worker, code, left)
            if turn not in self._running and turn < len(left):
                name = f"{now():%Y%m%dT%H%M%SZ}-{platform.node()}-{secrets.token_hex(4)}"
                self._running[turn] = self._start(self._directory, name, (turn, self.workers))
        time.sleep(POLL)

    def _judge(self, worker: Worker, code: int, left: list[str]) -> None:
        block = next((b for b in left if at_block(self._directory, b, worker.name)), None)
        # Of those at no block three are too many, unless blocks were finished in between.
        what = f"block {block}" if block else f"a worker (blocks left: {len(left)})"
        how = signal.Signals(-code).name if code < 0 else _last_words(worker.log)
        self._tries.ended(what, code, f"{how} ({worker.log})")

    def _stop(self, patience: float) -> None:
        """Ask all to stop, and end those that still run after `patience` or a second Ctrl-C."""
        workers = list(self._running.values())
        self._running.clear()
        try:
            for worker in workers:
                worker.stop()
            latest = time.monotonic() + patience
            while any(worker.ended() is None for worker in workers) and time.monotonic() < latest:
                time.sleep(POLL)
        finally:
            for worker in workers:
                worker.kill()


def _last_words(log: Path) -> str:
    """What the command line or a job said last of an error, or whatever was said last."""
    try:
        lines = log.read_bytes()[-TAIL:].decode(errors="replace").split("\n")
    except OSError:
        lines = []
    said = [line for line in lines if line.strip()] or ["nothing"]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (errors or said)[-1]
