"""`spectral-jax analyze` as its user feels it: a whole process, imports included."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.farms import networks, weightwatcher
from benchmarks.harness import NOTHING, Table, Target, Timing, one_core, ratio_of, ratio_text, row
from spectral_jax.checkpoints import save_safetensors

METRICS = ("--metrics", "norms,ks")  # what WeightWatcher computes
# It takes GPT-2's queries, keys and values for one matrix, which by default we read as three.
MATRICES = {"gpt2": ("--kind", "*c_attn.weight=dense")}
EVERYTHING = ("--metrics", "norms,hill,ks")


class Size(NamedTuple):
    networks: tuple[str, ...]
    repeats: int
    block: dict[str, tuple[int, ...]]


FULL = Size(("resnet20", "minilm", "gpt2"), 5, networks.llama_block_shapes())
SMOKE = Size(("random",), 1, networks.llama_block_shapes(width=64, hidden=172))
TARGETS = {"resnet20": 2.0, "minilm": 2.0, "gpt2": 4.0, "random": 1.0}


def whole_process(size: Size) -> Table:
    """Ours and WeightWatcher's process on the same safetensors file, in turn."""
    rows = []
    for name in size.networks:
        arrays = networks.load(name)
        if arrays is None:
            rows.append(row(f"{name}: no such file on this machine", NOTHING))
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save_safetensors(path, networks.torch_layout(arrays))
            rows += _rows(name, path, size.repeats)
    note = (
        "Both sides are fresh Python processes held to one core and one BLAS thread, in turn, file "
        "cache warm; ours is `spectral-jax analyze FILE --json`. The host path compiles nothing, "
        "so that there is no cold and warm of it. gpt2 has the shapes of GPT-2 small's 12 blocks "
        "and heavy-tailed random weights. Targets: 2x the peer's time, on GPT-2's shapes 4x its "
        "CPU time, each for the metrics that WeightWatcher has, of the matrices that it has; 'all "
        "defaults' adds the Hill exponent and its null, and takes GPT-2's queries, keys and values "
        "apart (72 matrices instead of 48)."
    )
    return Table("analyze against WeightWatcher, whole processes", note, rows)


def streamed(size: Size) -> Table:
    """One LLaMA-7B block from a safetensors file, in bounded memory."""
    arrays = {name: shape for name, shape in size.block.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block.safetensors"
        save_safetensors(path, networks.spread(arrays, seed=0))
        seconds, _, peak = _run(
            [sys.executable, "-m", "spectral_jax.cli", "analyze", str(path), *EVERYTHING, "--json"]
        )  # noqa: E501
        total = path.stat().st_size
    largest = 4 * max(int(np.prod(shape)) for shape in arrays.values())
    rows = [
        row("one block, seconds", f"{seconds:.1f} s"),
        row("32 blocks, extrapolated", f"{32 * seconds / 60:.0f} min"),
        row(
            f"peak memory, in largest tensors (file: {total / largest:.1f})",
            f"{peak / 2**20:.0f} MiB",
            ratio=f"{peak / largest:.1f}",
        ),
    ]
    note = (
        "The seven matrices of a block in float32, all of NumPy's threads held to one core. "
        "Memory is that of the whole process: interpreter and libraries (about 90 MiB), the tensor "
        "as read, and the Gram matrix of its short side, twice, in float64."
    )
    return Table("A LLaMA-7B block, streamed", note, rows)


def _rows(name: str, path: Path, repeats: int) -> list[tuple[str, ...]]:
    ours = [sys.executable, "-m", "spectral_jax.cli", "analyze", str(path), "--json"]
    calls = {"ours": [*ours, *METRICS, *MATRICES.get(name, ())], "defaults": [*ours, *EVERYTHING]}
    if weightwatcher.version():
        calls["peer"] = weightwatcher.command(path.parent)
    with one_core():
        times = _interleaved(calls, repeats)
    defaults = row(f"{name}: all defaults", times["defaults"])
    if "peer" not in times:
        return [row(f"{name}: its metrics", times["ours"], "not installed"), defaults]
    by_cpu = name == "gpt2"
    ratio = ratio_of(times["peer"], times["ours"])
    cpu = float(np.median(times["peer"].cpu) / np.median(times["ours"].cpu))
    return [
        row(
            f"{name}: its metrics" + by_cpu * ", CPU time",
            times["ours"],
            times["peer"],
            ratio_text(times["peer"], times["ours"]),
            Target(">=", TARGETS[name]),
            cpu if by_cpu else ratio,
        ),
        defaults,
    ]


def _interleaved(calls: dict[str, list[str]], repeats: int) -> dict[str, Timing]:
    first = {name: _run(call)[0] for name, call in calls.items()}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            samples[name].append(_run(call)[:2])
    return {name: Timing(*np.transpose(samples[name]), first[name]) for name in calls}


def _run(call: list[str]) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak bytes of a process."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import resource, subprocess, sys, json; "
        "done = subprocess.run(json.loads(sys.argv[1]), stdout=subprocess.DEVNULL, "
        "stderr=subprocess.PIPE); "
        "sys.stderr.buffer.write(done.stderr); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, json.dumps(call)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(call[:4])} failed: {done.stderr[-500:]}")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, 1024 * int(done.stdout.split()[-1])
