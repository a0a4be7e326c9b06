"""Blocks as tasks of a Ray cluster, or of a Ray that is started on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from pathlib import Path
from typing import Any

from experiments.errors import DONE, FAILED, UserError, one_line
from experiments.runs.environment import passed_on, set_defaults
from experiments.runs.files import make_directory
from experiments.runs.interruption import meaning
from experiments.sweep.executors.crew import STOPPING
from experiments.sweep.executors.here import Here
from experiments.sweep.executors.tries import Tries
from experiments.sweep.executors.waiting import POLL, as_committed
from experiments.sweep.executors.worker import STALLED, Silence

STORE = 2**27  # bytes of shared memory for what tasks return: next to nothing
OPTIONS = ("num_cpus", "num_gpus", "memory")  # of a task, as Ray counts them


class Ray(AbstractContextManager["Ray"]):
    """`ray:N,num_gpus=1`: at most N tasks at a time, of one block each.

    `RAY_ADDRESS` names the cluster; without it, and where no Ray was started in this process, one
    with N places is started on this machine.
    """

    def __init__(self, workers: int, options: Mapping[str, Any]) -> None:
        try:
            import ray  # noqa: F401
        except ImportError:
            raise UserError("--executor ray needs Ray: pip install 'spectral-jax[ray]'") from None
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise UserError(f"--executor ray: no option {unknown[0]}; it has {', '.join(OPTIONS)}")
        self.workers = workers
        self._options = dict(options)
        self._tasks: dict[Any, str] = {}  # the block of each
        self._tries = Tries()
        self._undo = ExitStack()  # what `_connect` does

    def run(self, directory: Path, blocks: Sequence[str]) -> Iterator[str]:
        """Submit a task for each block, again where one dies, or is silent while others idle."""
        import ray

        self._connect()
        make_directory(directory / "workers")
        environment = {"env_vars": passed_on()}
        task = ray.remote(max_retries=0, runtime_env=environment, **self._options)(_place)
        silence = Silence(directory)

        def move(left: list[str]) -> None:
            for block in self._next(left, silence):
                self._tasks[task.remote(directory.absolute(), block, Path.cwd())] = block
            ended, _ = ray.wait(list(self._tasks), timeout=0)
            for reference in ended:
                block = self._tasks.pop(reference)
                code, how = _outcome(reference)
                self._tries.ended(f"block {block}", code, f"{how} ({_log(directory, block)})")
            time.sleep(POLL)  # not within Ray, where any signal would be Ctrl-C

        return as_committed(directory, blocks, move)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Stop the tasks; where the sweep is not finished they have the time to save."""
        import ray

        references = list(self._tasks)
        self._tasks.clear()
        try:
            for reference in references:
                ray.cancel(reference)  # as Ctrl-C would
            if references:
                patience = STOPPING if kind is None else None
                ray.wait(references, num_returns=len(references), timeout=patience)
        finally:
            self._undo.close()

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        address = os.environ.get("RAY_ADDRESS")
        places = max(1, round(self.workers * self._options.get("num_cpus", 1)))
        here = {"num_cpus": places, "include_dashboard": False, "object_store_memory": STORE}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
        try:
            _knock(address)
            with _our_handler_of_sigterm(), warnings.catch_warnings():
                # JAX warns of forks. Ray's become other programs at once, and touch no lock of JAX.
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                ray.init(
                    log_to_driver=False, logging_level=logging.ERROR, **({} if address else here)
                )
        except (OSError, ValueError) as error:
            raise UserError(
                f"--executor ray: cannot join a cluster at RAY_ADDRESS={address} ({error}); start "
                "one with `ray start --head`, pass its token if it wants one, or unset RAY_ADDRESS "
                "to use this machine"
            ) from None
        self._undo.callback(ray.shutdown)
        # Ray tells of dead workers there, and stdout is for data.
        self._undo.enter_context(redirect_stdout(sys.stderr))

    def _next(self, left: Sequence[str], silence: Silence) -> Iterator[str]:
        """The blocks to submit: those of no task first, then one that has stalled."""
        tasks = Counter(self._tasks.values())
        for block in sorted(left, key=tasks.__getitem__):
            if sum(tasks.values()) >= self.workers:
                return
            if silence.of(block) >= STALLED * tasks[block]:
                tasks[block] += 1
                yield block


def _place(directory: Path, block: str, where: Path) -> tuple[int, str]:
    """The task: run a block as the command line would, and return its exit code and last line."""
    os.chdir(where)
    set_defaults()
    with ExitStack() as stack:
        said = stack.enter_context(_log(directory, block).open("a", encoding="utf-8"))
        stack.enter_context(redirect_stdout(said))
        stack.enter_context(redirect_stderr(said))
        try:
            for _ in Here(1, {}).run(directory, [block]):
                pass
            return DONE, ""
        except UserError as error:
            message, code = error.message, error.exit_code
        except KeyboardInterrupt as error:
            message, code = meaning(error)
        print(f"error: {one_line(message)}", file=sys.stderr)
        return code, message


def _log(directory: Path, block: str) -> Path:
    return directory / "workers" / f"{block}.log"


def _outcome(reference: Any) -> tuple[int, str]:
    """What a task returned, or how it died."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return FAILED, f"{type(error).__name__}: {one_line(str(error))}"


def _knock(address: str | None) -> None:
    """OSError where nobody listens at HOST:PORT: Ray would try for minutes."""
    host, colon, port = (address or "").rpartition("/")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _our_handler_of_sigterm() -> Iterator[None]:
    """Put back what Ray replaces: its handler ends the process and saves nothing."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
