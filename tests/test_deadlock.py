"""What could wait for ever is seen before it runs, and ended by a signal if it does."""

import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import DataConfig, ExperimentConfig, ModelConfig, PenaltyConfig, TrainConfig
from experiments.errors import INTERRUPTED, PREEMPTED
from experiments.runs import lapack, watchdog
from experiments.runs.lapack import batches_at_once
from experiments.training import optimisers
from experiments.training.train import train
from spectral_jax import linalg, optim
from spectral_jax.optim import Penalty

REPOSITORY = Path(watchdog.__file__).parent.parent
STACKS = [jnp.ones((5, 4, 2 + size)) for size in range(3)]


def nuclear_norms(matrices):
    """Of every matrix, as a user would write it."""
    return sum(jnp.linalg.svd(matrix, compute_uv=False).sum() for matrix in matrices)


def twins(matrices):
    return sum(linalg.svdvals(matrix).sum() for matrix in matrices)


def one_after_the_other(matrix):
    for _ in range(3):
        matrix = jnp.linalg.qr(matrix @ matrix.T)[0]
    return matrix


def sometimes(matrices):
    return jax.lax.cond(matrices[0][0, 0] > 0, nuclear_norms, lambda m: m[0][0, 0], matrices)


def again_and_again(matrices):
    return jax.lax.fori_loop(0, 3, lambda _, total: total + nuclear_norms(matrices), 0.0)


@pytest.mark.parametrize(
    ("function", "argument", "calls"),
    [
        (jax.vmap(nuclear_norms), STACKS, 3),
        (jax.vmap(jax.grad(nuclear_norms)), STACKS, 3),
        (jax.vmap(jax.jit(nuclear_norms)), STACKS, 3),
        (jax.vmap(sometimes), STACKS, 3),
        (jax.vmap(again_and_again), STACKS, 3),
        (nuclear_norms, STACKS, 3),  # of stacks as they are
        (lambda stacks: jax.lax.map(nuclear_norms, stacks), STACKS, 0),
        (jax.vmap(one_after_the_other), STACKS[0], 1),
        (jax.vmap(lambda matrix: matrix @ matrix.T), STACKS[0], 0),
    ],
)
def test_batched_lapack_calls_that_may_run_at_once_are_counted(function, argument, calls):
    assert batches_at_once(jax.jit(function).lower(argument)) == calls


def test_the_decompositions_of_the_library_wait_for_nobody(monkeypatch):
    monkeypatch.setattr("spectral_jax.linalg.lapack.cpu_threads", lambda: 2)
    assert batches_at_once(jax.jit(jax.vmap(jax.grad(twins))).lower(STACKS)) == 0


@pytest.fixture
def decomposing(monkeypatch):
    """A configuration, seeds side by side, with a user's penalty: the sum of nuclear norms."""
    monkeypatch.setitem(optim.PENALTIES, "nuclear", lambda: Penalty(lambda w, _: nuclear_norms(w)))
    monkeypatch.setitem(optimisers.CATALOGUE, "nuclear", ("nuclear", {}))
    monkeypatch.setattr(lapack, "cpu_threads", lambda: 2)
    monkeypatch.setattr(lapack, "splits_batches", lambda: True)
    return ExperimentConfig(
        "toy",
        data=DataConfig("digits", batch_size=10, train_limit=10),
        model=ModelConfig("mlp", hidden=(4,)),
        penalty=PenaltyConfig("nuclear", 0.01),
        train=TrainConfig(epochs=1, seeds=2, seed_axis="vmap", measures=("bulk", "penalty")),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_seeds_are_trained_in_turn_where_a_penalty_could_hang(decomposing, tmp_path, capsys):
    run = train(decomposing, root=tmp_path, argv=[])
    assert run.summary["seed_axis"] == run.provenance["seed_axis"] == "map"
    assert "toy: seeds are trained in turn: side by side could wait for ever" in (
        capsys.readouterr().err
    )
    kernels = [w for name, w in run.load_array("parameters").items() if name.endswith("kernel")]
    norms = sum(np.linalg.svd(kernel, compute_uv=False).sum(-1) for kernel in kernels)
    np.testing.assert_allclose(run.summary["spectra/penalty"], 0.01 * norms, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("cpu_threads", 16), ("cpu_threads", 1), ("splits_batches", False)]
)
def test_where_it_cannot_hang_nothing_is_lowered_or_changed(name, value, decomposing, monkeypatch):
    monkeypatch.setattr(lapack, name, lambda: value)
    lowered = []

    def lower(stacks):
        lowered.append(stacks)
        return jax.jit(jax.vmap(nuclear_norms)).lower(stacks)

    assert not lapack.may_deadlock(lower, STACKS)
    assert bool(lowered) == (value == 16)


STUCK = """
import ctypes
from experiments.runs import watchdog
from experiments.runs.interruption import interruption

watchdog.QUIET, watchdog.GRACE, watchdog.TICK = 0.3, 0.3, 0.1
lock = ctypes.create_string_buffer(64)  # no signal handler runs while Python waits for it
wait = ctypes.CDLL(None).pthread_mutex_lock
with interruption(), watchdog.watchdog():
    wait(lock)
    wait(lock)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="waits in glibc")
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, PREEMPTED, "preempted"), (signal.SIGINT, INTERRUPTED, "interrupted")],
)
def test_a_process_that_waits_for_ever_says_so_and_ends_by_a_signal(number, code, word):
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    ) as process:
        warning = process.stderr.readline()
        process.send_signal(number)
        _, last = process.communicate(timeout=60)
    assert "warning: nothing has been computed for 0.3 s, waiting at <string>:11" in warning
    assert "docs/method-selection.md" in warning
    assert process.returncode == code
    assert last.startswith(f"error: {word} while waiting at <string>:11, where nothing")
    assert last.count("\n") == 1


WORKING = STUCK.replace("    wait(lock)\n    wait(lock)", """
    import hashlib, os, signal, time
    os.kill(os.getpid(), signal.SIGTERM)
    watchdog.GRACE, ends = 1.5, time.monotonic() + 2.5
    while time.monotonic() < ends:
        hashlib.sha256(bytes(1_000_000))
""")  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="waits in glibc")
def test_a_process_that_works_is_left_to_save_its_state():
    done = subprocess.run(
        [sys.executable, "-c", WORKING], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "stopping at the next checkpoint; Ctrl-C stops at once\n"
