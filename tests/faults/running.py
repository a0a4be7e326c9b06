"""The processes of a sweep, found by a variable of their environment, which they inherit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parent.parent.parent
MARK = "SPECTRAL_JAX_SOAK"
# What a worker's command line holds, of `processes`, of submitit and of Ray.
WORKERS = ("worker", "submitit.core._submit", "ray::_place")


class Process(NamedTuple):
    """A process of a sweep; ``worker``: it trains, perhaps for a coordinator that is dead."""

    pid: int
    worker: bool

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Running:
    """A sweep that ``command`` runs below ``folder``, with any number of coordinators."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.root, self.output = folder / "runs", folder / "output.txt"
        self.command = [sys.executable, *command, "--runs", str(self.root)]
        self.coordinators: list[subprocess.Popen] = []
        folder.mkdir(parents=True)

    def start(self) -> int:
        """One more coordinator."""
        with self.output.open("ab") as output:
            started = subprocess.Popen(
                self.command, cwd=REPOSITORY, env={**os.environ, MARK: str(self.root)},
                stdout=output, stderr=output,
            )  # fmt: skip
        self.coordinators.append(started)
        return started.pid

    def ended(self) -> list[int]:
        """The exit codes of coordinators that have ended since the last time."""
        codes = {each.pid: each.poll() for each in self.coordinators}
        self.coordinators = [each for each in self.coordinators if codes[each.pid] is None]
        return [code for code in codes.values() if code is not None]

    def processes(self) -> list[Process]:
        """All that are alive, orphans and helpers too."""
        mark = f"{MARK}={self.root}"
        return [
            Process(int(entry.name), not {*WORKERS}.isdisjoint(_words(entry / "cmdline")))
            for entry in Path("/proc").glob("[0-9]*")
            if mark in _words(entry / "environ")
        ]

    @property
    def directory(self) -> Path | None:
        """That of the sweep, once there is one."""
        return next((path.parent for path in listed(self.root, "**/sweep.json")), None)

    def attempts(self, process: Process) -> set[Path]:
        """All attempts at the blocks that a process has tried."""
        tried = set(listed(self.root, "**/blocks/*/attempts/*"))
        # A name ends with the process's number and four random digits.
        folders = {path.parent for path in tried if path.name.split("-")[-2] == str(process.pid)}
        return {path for path in tried if path.parent in folders}


def listed(folder: Path, pattern: str) -> list[Path]:
    """What matches; nothing if a folder goes while it is looked at."""
    try:
        return list(folder.glob(pattern))
    except FileNotFoundError:
        return []


def _words(path: Path) -> list[str]:
    try:
        return os.fsdecode(path.read_bytes()).split("\0")
    except OSError:
        return []  # it has just ended, or is another person's
