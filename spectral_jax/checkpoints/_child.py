"""Readers that rest on native libraries, each in a process of its own.

One changed byte of a file can make HDF5 or tensorstore end their process, ask for all the memory
there is, or run without end. A child may do so: it has limits, and its end is one line. Between the
processes go JSON and the bytes of arrays, so nothing that a broken one sends is ever unpickled.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from spectral_jax.checkpoints._base import (
    CheckpointError,
    Source,
    Tensor,
    any_failure,
    fill,
    stored_bytes,
    to_dtype,
)

MEMORY = 512 << 20  # bytes beyond what is asked for: library buffers, threads
COPIES = 4  # of what is asked for: compressed, whole, in order, and on its way
SECONDS = 8  # of the processor, and for each byte asked for:
BYTES_PER_SECOND = 4 << 20  # a tenth of what the slowest codec does

# The child finds the packages where its parent did, whatever was done to the path since.
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from spectral_jax.checkpoints._child import serve; serve(*sys.argv[2:])"
)


def open_apart(
    module: str, function: str, library: str, path: Path, resources: ExitStack
) -> Source:
    """The source that ``function`` of ``module`` makes of ``path``, in a child process.

    ``library`` is what it is made with, whose import is not held against the file. It costs the
    start of a Python with that library, and a tensor takes its memory twice as it passes.
    """
    child = _Child(path, module, function, library)
    resources.callback(child.end)
    answer = child.answer()
    tensors = {name: Tensor(name, tuple(shape), dtype) for name, shape, dtype in answer["tensors"]}

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        child.ask(name)
        child.answer()
        return fill(child.output, tensor.size, to_dtype(tensor.dtype)).reshape(tensor.shape)

    return Source(tensors, read, answer["skipped"])


class _Child:
    """The process, seen from its parent."""

    def __init__(self, path: Path, *command: str):
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT, json.dumps(sys.path), *command, path.absolute()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the error says it all
            bufsize=0,
            # Reading needs no accelerator, whose memory the parent may have taken already.
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert self.process.stdin and self.process.stdout
        self.input = self.process.stdin
        self.output = open(self.process.stdout.fileno(), "rb", closefd=False)

    def ask(self, name: str) -> None:
        """Request a tensor."""
        try:
            self.input.write(json.dumps(name).encode() + b"\n")
        except BrokenPipeError as error:
            raise CheckpointError(self.path, self.cause()) from error

    def answer(self) -> Any:
        """What the child says, once it says it; its failure is raised here."""
        line = self.output.readline()
        if not line:
            raise CheckpointError(self.path, self.cause())
        answer = json.loads(line)
        if "problem" in answer:
            raise CheckpointError(self.path, answer["problem"])
        return answer

    def cause(self) -> str:
        """Why the child is no more."""
        code = self.process.wait()
        if code == -getattr(signal, "SIGXCPU", 0):
            return "takes far longer to read than its size allows: corrupt, or made to"
        if code >= 0:
            return f"the process that reads it ended with exit code {code}"
        return f"corrupt: the library that reads it ended by {signal.Signals(-code).name}"

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        with self.process:  # closes the pipes and waits
            pass


def serve(module: str, function: str, library: str, file: str) -> None:
    """Be the child: describe the file on stdout, then send the tensors that stdin names."""
    path = Path(file)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it too, decides
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    opener = getattr(importlib.import_module(module), function)
    with suppress(ImportError):  # of which the opener has more to say
        importlib.import_module(library)
    with ExitStack() as resources, _told(output):
        with any_failure(path):
            _limit(stored_bytes(path))
            source = opener(path, resources)
        _say(output, {"tensors": [*source.tensors.values()], "skipped": source.skipped})
        for line in sys.stdin:
            with _told(output):  # another tensor may be sound
                _send(output, path, source, source.tensors[json.loads(line)])


def _send(output: IO[bytes], path: Path, source: Source, tensor: Tensor) -> None:
    with any_failure(path):
        _limit(tensor.nbytes)
        array = np.ascontiguousarray(source.read(tensor.name))
    if array.nbytes != tensor.nbytes:
        raise CheckpointError(path, f"{tensor.name!r:.80} is not as it is declared")
    _say(output, {})
    output.write(array.reshape(-1).view(np.uint8).data)
    output.flush()


@contextmanager
def _told(output: IO[bytes]) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        _say(output, {"problem": error.args[1]})
    except OSError as error:  # a file that may not be read, or is gone
        _say(output, {"problem": str(error)})


def _say(output: IO[bytes], answer: dict[str, Any]) -> None:
    output.write(json.dumps(answer).encode() + b"\n")
    output.flush()


def _limit(expected: int) -> None:
    """From now on, die of memory or time out of proportion to the bytes that are asked for."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    _lower(resource.RLIMIT_CORE, 0)  # a crash leaves no file behind
    _lower(resource.RLIMIT_CPU, int(time.process_time() + SECONDS + expected / BYTES_PER_SECOND))
    if (held := _data()) is not None:
        _lower(resource.RLIMIT_DATA, held + MEMORY + COPIES * expected)


def _lower(which: int, limit: int) -> None:
    import resource

    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (limit if hard < 0 else min(limit, hard), hard))


def _data() -> int | None:
    """The bytes of private memory this process has; None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    _, _, found = status.partition("VmData:")
    return int(found.split()[0]) << 10 if found else None
