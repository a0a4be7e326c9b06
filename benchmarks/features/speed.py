"""One pass over features, beside matrices of all pairs of inputs and beside several passes."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.features import peers
from benchmarks.features.rows import Rows, trained
from benchmarks.harness import (
    Table,
    Target,
    interleaved,
    one_core,
    ratio_of,
    ratio_text,
    row,
    with_first,
)
from spectral_jax import features


class Size(NamedTuple):
    dense: int  # rows of the n x n route
    passes: int  # rows of neural collapse
    pairs: int  # rows of CKA
    stream: int  # rows whose memory is looked at
    p: int
    repeats: int


FULL = Size(10_000, 60_000, 4096, 1_000_000, 512, 3)
SMOKE = Size(60, 80, 40, 400, 8, 1)
PAIRWISE, PASSES, GRAMS = Target(">=", 30), Target(">=", 4), Target(">=", 10)
BOUNDED = Target("<=", 1.1)


def speed(size: Size) -> Table:
    """Richness, neural collapse and CKA, from arrays in memory to the numbers."""
    with one_core():
        rows = [*_richness(size), *_collapse(size), _cka(size)]
    rows.append(_memory(size))
    note = (
        f"p = {size.p}, from NumPy arrays in float32, one core. Dense: `D_LR` as its definition "
        "reads, from the kernel of the features and the projection onto the outputs, both n x n, "
        "centred in place, in NumPy, without an eigendecomposition; ours goes by the moments and "
        "the head. Neural collapse: NC1 in three forms, NC2, GNC2, NC3 and UNC3, and NC4, by two "
        "passes of ours without a p x p scatter, and in float32 by neural_collapse, of which NC4 "
        "is a third pass; ours counts it in both rows. CKA: ckatorch has n x n in float64. Memory: "
        "the peak of a process that makes its rows a batch at a time, and of one with a tenth of "
        "them."
    )
    return Table("One pass over features", note, rows)


def _richness(size: Size) -> list[tuple[str, ...]]:
    rows = trained(size.dense, size.p)
    head = features.Head(rows.kernel, rows.bias)
    wide = rows._replace(features=rows.features.astype(float))
    ours = lambda: features.richness(features.of(rows.features), head=head).value  # noqa: E731
    return [
        _against(f"D_LR, n = {size.dense}; peer: dense, {each.features.dtype}", ours,
                 partial(dense_richness, each), PAIRWISE, size)
        for each in (rows, wide)
    ]  # fmt: skip


def dense_richness(rows: Rows) -> float:
    """``1 - CKA`` of the features' kernel and the projection onto the outputs, both ``n x n``."""
    left, values, _ = np.linalg.svd(rows.outputs, full_matrices=False)
    basis = left[:, values > 1e-5 * values[0]]
    kernel, plane = rows.features @ rows.features.T, basis @ basis.T
    for each in (kernel, plane):
        each -= each.mean(axis=0)
        each -= each.mean(axis=1)[:, None]
    a, b = kernel.ravel(), plane.ravel()
    return 1 - float(a @ b) / (float(a @ a) * float(b @ b)) ** 0.5


def _collapse(size: Size) -> list[tuple[str, ...]]:
    rows = trained(size.passes, size.p)
    found = []
    for agreement, passes in ((False, "two"), (True, "NC4 too, three")):
        peer = partial(peers.collapse, rows, agreement=agreement)
        what = f"neural collapse, n = {size.passes}; peer: neural_collapse, {passes} passes"
        peer = peer if peers.have("neural_collapse") else None
        found.append(_against(what, partial(our_collapse, rows), peer, PASSES, size))
    return found


def our_collapse(rows: Rows) -> features.NeuralCollapse:
    head = features.Head(rows.kernel, rows.bias)
    return features.neural_collapse(
        rows.features, labels=rows.labels, classes=rows.classes, head=head
    )


def _cka(size: Size) -> tuple[str, ...]:
    x, y = (trained(size.pairs, p, seed=p).features for p in (size.p, size.p // 2))
    peer = partial(peers.cka_by_grams, x, y, unbiased=True) if peers.have("ckatorch") else None
    what = f"unbiased CKA, n = {size.pairs}; peer: ckatorch"
    return _against(what, lambda: features.cka(x, y).value, peer, GRAMS, size)


def _against(
    what: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any] | None,
    target: Target,
    size: Size,
) -> tuple[str, ...]:
    if peer is None:
        times = interleaved({"ours": ours}, repeats=size.repeats)
        return row(what, with_first(times["ours"]), peers.MISSING, target=target)
    times = interleaved({"ours": ours, "peer": peer}, repeats=size.repeats)
    mine, theirs = times["ours"], times["peer"]
    ratio = ratio_of(theirs, mine)
    return row(what, with_first(mine), theirs, ratio_text(theirs, mine), target, ratio)


def _memory(size: Size) -> tuple[str, ...]:
    least, most = (
        in_a_process("stream", n, size.p) for n in (size.stream // 10, size.stream)
    )  # fmt: skip
    told = [f"{found['peak'] / 2**20:.0f} MiB, {found['seconds']:.1f} s" for found in (most, least)]
    ratio = most["peak"] / least["peak"]
    what = f"D_LR of {size.stream} rows in batches; peer: a tenth of the rows"
    return row(what, *told, f"{ratio:.2f}", BOUNDED, ratio)


def in_a_process(*arguments: Any) -> dict[str, float]:
    """What a task of `worker` prints."""
    command = [sys.executable, "-m", "benchmarks.features.worker", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
