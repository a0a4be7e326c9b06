"""Worker processes that are forked: to start Python and JAX for each would take seconds."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from experiments.errors import FAILED, UserError
from experiments.runs.interruption import meaning, stop_on_signals
from experiments.sweep.executors import worker
from experiments.sweep.executors.crew import Worker


class Forked(Worker):
    """What `processes.Process` starts, as a copy of this process."""

    def __init__(self, directory: Path, name: str, share: tuple[int, int]) -> None:
        self.name = name
        self.log = directory / "workers" / f"{name}.log"
        self._code: int | None = None
        stdin, self._pipe = os.pipe()
        self._process = os.fork()
        if not self._process:
            os.close(self._pipe)
            os.dup2(stdin, 0)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            options = {"directory": directory, "share": share, "tied": name}
            os._exit(_work(argparse.Namespace(**options, accept_machine=False)))
        os.close(stdin)

    def ended(self) -> int | None:
        if self._code is None:
            found, status = os.waitpid(self._process, os.WNOHANG)
            if found:
                self._code = os.waitstatus_to_exitcode(status)
                os.close(self._pipe)
        return self._code

    def stop(self) -> None:
        if self.ended() is None:
            os.kill(self._process, signal.SIGTERM)

    def kill(self) -> None:
        if self.ended() is None:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            os.close(self._pipe)
            self._code = -signal.SIGKILL


def _work(options: argparse.Namespace) -> int:
    """As the command line does: the exit code, and what went wrong as the last line of the log."""
    try:
        stop_on_signals()
        return worker.command(options)
    except UserError as error:
        message, code = error.message, error.exit_code
    except KeyboardInterrupt as error:
        message, code = meaning(error)
    except OSError as error:
        message, code = str(error), FAILED
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
