"""Several processes that train as one: the first writes, and all know what it knows.

    with joined("10.0.0.1:1234,2,0", "runs") as root:     # on the other machine: ",2,1"
        train(config, root=root, argv=argv)

All run the same program in step, each with its own devices. What depends on a clock, a signal or a
disk differs between them, so it is settled between them (`by_first`, `agreed`). For a process that
is alone nothing is sent or compiled.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.errors import FAILED, UserError
from experiments.runs.interruption import meaning

Value = TypeVar("Value")
STDOUT, STDERR = 1, 2
WORD = 2**32
# What the others need, when all end, to have gone before the first.
LAST_SECONDS = 2.0
EXPECTED = "ADDRESS,COUNT,INDEX, as in 10.0.0.1:1234,2,0, or auto on Slurm, Open MPI and TPU pods"


@contextlib.contextmanager
def joined(where: str | None, root: str | Path) -> Iterator[str | Path]:
    """Be one of the processes that ``--distributed`` names; yields the folder for this one's runs.

    It is ``root`` in the first. The others write to a folder that is gone afterwards, and say
    nothing, for it would be said twice. None: this process is alone, and nothing is started.

    Raises ``UserError``: 2 for a place that cannot be read or found, 1 if it cannot be taken. Where
    the others do not come, JAX aborts the process.
    """
    if where is None:
        yield root
        return
    _start(where)
    try:
        with _stdout_for_data():
            if is_first():
                yield root
            else:
                with tempfile.TemporaryDirectory() as folder, _silence():
                    yield folder
    except BaseException as error:
        atexit.register(_leave_others, _exit_code(error))
        raise
    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def by_first(function: Callable[[], Value]) -> Value:
    """What the function gives in the first process, which alone calls it, in all of them.

    None goes on before the first is done. A `UserError` that it raises is raised in all.
    """
    if jax.process_count() == 1:
        return function()
    outcome: Any = None
    if is_first():
        try:
            outcome = function()
        except UserError as error:
            outcome = error
    outcome = pickle.loads(_told(pickle.dumps(outcome)))
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def agreed(*numbers: int) -> np.ndarray:
    """The numbers of every process, ``[processes, numbers]``, the same in all of them."""
    mine = np.array(numbers, np.int32)
    if jax.process_count() == 1:
        return mine[None]
    return np.asarray(multihost_utils.process_allgather(mine))


def gathered(tree: Any) -> Any:
    """The tree's arrays as NumPy's, whole, though other processes hold parts; keys as words."""
    return jax.tree.map(_whole, tree)


def put(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """Arrays and typed keys, spread as ``sharding`` says.

    Either every process has all of them whole, or they are spread over the processes by now.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    leaves = jax.tree.leaves(tree)
    if all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return jax.tree.map(partial(_dealt, sharding=sharding), tree)
    return _moved(tree, sharding)


def is_key(leaf: Any) -> bool:
    """Whether it is an array of typed PRNG keys."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _whole(leaf: Any) -> np.ndarray:
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _dealt(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    whole = _whole(leaf)
    # Not device_put: it would send the array to every process, to see whether all have the same.
    dealt = jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])
    return (
        jax.random.wrap_key_data(dealt, impl=jax.random.key_impl(leaf)) if is_key(leaf) else dealt
    )


@partial(jax.jit, static_argnums=1)
def _moved(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.lax.with_sharding_constraint(tree, sharding)


def _told(message: bytes) -> bytes:
    """The first process's message. As words of integers: a sum of floats would lose -0 and NaN."""
    # The length as two words: JAX would cut one of 64 bits.
    high, low = multihost_utils.broadcast_one_to_all(
        np.array(divmod(len(message), WORD), np.uint32)
    )
    length = int(high) * WORD + int(low)
    words = np.zeros(-(-length // 4), np.uint32)
    if is_first():
        words.view(np.uint8)[:length] = np.frombuffer(message, np.uint8)
    return multihost_utils.broadcast_one_to_all(words).tobytes()[:length]


def _start(where: str) -> None:
    place = _place(where)
    if place.get("process_id") == 0:
        _refuse_taken_port(where, place["coordinator_address"])
    # XLA's own handler of SIGTERM would take the place of the one that saves the state.
    jax.config.update("jax_enable_preemption_service", False)
    # Only the CPU needs to be told how processes talk to each other.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    print(f"waiting for the other processes, five minutes at most ({where})", file=sys.stderr)
    try:
        jax.distributed.initialize(**place)
    except ValueError as error:  # JAX has found no cluster, or what it says of itself is odd
        raise UserError(f"--distributed {where}: {error} Say {EXPECTED}") from error
    except RuntimeError as error:
        raise UserError(f"--distributed {where}: {error}", FAILED) from error


def _place(where: str) -> dict[str, Any]:
    if where == "auto":
        return {}
    found = re.fullmatch(r"(?P<address>[^,]+:\d+),(?P<count>\d+),(?P<index>\d+)", where)
    if found is None or int(found["index"]) >= int(found["count"]):
        raise UserError(f"--distributed {where}: expected {EXPECTED}, with INDEX below COUNT")
    return {
        "coordinator_address": found["address"],
        "num_processes": int(found["count"]),
        "process_id": int(found["index"]),
        "cluster_detection_method": "deactivate",
    }


def _refuse_taken_port(where: str, address: str) -> None:
    """JAX dies of one without a word."""
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError):
        message = f"--distributed {where}: port {port} is taken here: say another one, to all"
        raise UserError(message) from None


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return meaning(error)[1]
    return error.exit_code if isinstance(error, UserError) else FAILED


def _leave_others(code: int) -> None:
    """End this process, when all is said, without JAX's way out: it waits until all have come.

    They may never, and then JAX aborts, code and all. The first keeps them together: it goes last.
    """
    if is_first():
        time.sleep(LAST_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@contextlib.contextmanager
def _stdout_for_data() -> Iterator[None]:
    """Gloo greets on stdout, from C++, whenever processes connect: send that to stderr."""
    sys.stdout.flush()
    kept = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with open(kept, "w", closefd=False) as stream, contextlib.redirect_stdout(stream):
            yield
    finally:
        os.dup2(kept, STDOUT)
        os.close(kept)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
