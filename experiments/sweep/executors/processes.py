"""Worker processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.runs.environment import passed_on
from experiments.sweep.executors.crew import Crew, Worker


def processes(workers: int, options: Mapping[str, Any]) -> Crew:
    """`processes:N`: N times `python -m experiments sweep worker DIR`."""
    if options:
        raise UserError("--executor processes takes a number alone, as in processes:2")
    return Crew(workers, Process)


class Process(Worker):
    """A worker that lives as long as this process holds its stdin open.

    A new interpreter, never a fork: that would inherit locks of JAX's threads, and not the threads.
    """

    def __init__(self, directory: Path, name: str, share: tuple[int, int]) -> None:
        self.name = name
        self.log = directory / "workers" / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                worker_command(directory, name, share),
                env={**os.environ, **passed_on(), **_accelerator(share)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        assert self._process.stdin is not None, "a pipe was asked for"
        self._stdin = self._process.stdin

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._stdin.close()
        return code

    def stop(self) -> None:
        """Close its stdin, which it takes for SIGTERM."""
        self._stdin.close()
        self._process.send_signal(signal.SIGCONT)  # a stopped process would never know

    def kill(self) -> None:
        """End it at once, if it has not."""
        self.stop()
        self._process.kill()
        self._process.wait()


def worker_command(directory: Path, name: str, share: tuple[int, int]) -> list[str]:
    """What a person could type, but for the name."""
    part, parts = share
    words = ["sweep", "worker", str(directory), "--share", f"{part}/{parts}", "--tied", name]
    return [sys.executable, "-m", "experiments", *words]


def _accelerator(share: tuple[int, int]) -> dict[str, str]:
    """Of several GPUs one for each worker, in turn: JAX would give all of them the first."""
    part, parts = share
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    gpus = found if named is None else [name for name in named.split(",") if name]
    if len(gpus) < 2 or parts < 2:
        return {}
    return {"CUDA_VISIBLE_DEVICES": gpus[part % len(gpus)]}
