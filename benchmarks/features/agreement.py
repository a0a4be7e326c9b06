"""That numbers are what they should be: closed vectors, dense routes, and what peers say."""

from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.features import peers
from benchmarks.features.rows import Rows, trained
from benchmarks.features.speed import dense_richness, in_a_process, our_collapse
from benchmarks.harness import NOTHING, Table, Target, row
from spectral_jax import features

EXACT, VECTOR, SINGLE = Target("<=", 1e-12), Target("<=", 1e-6), Target("<=", 1e-3)
ONE = Target("<=", 1)
SIX_DIGITS = {"literal": 0.421516, "centre-first": 0.401682}
# Eight inputs, three features, two classes: short enough to be checked by hand.
VECTORS = Rows(
    np.array([[1, 0, 2], [2, 1, 0], [0, 1, 1], [3, 0, 1], [1, 2, 0], [0, 3, 2], [2, 2, 1],
              [1, 1, 3]], float),
    np.array([0, 0, 1, 0, 1, 1, 0, 1]),
    np.array([[1, 0], [0, 1], [1, -1]], float),
    np.array([0.5, 0]),
)  # fmt: skip


class Size(NamedTuple):
    rows: int
    p: int


FULL = Size(4000, 128)
SMOKE = Size(60, 6)


def agreement(size: Size) -> Table:
    """Errors against what is known, and against what others compute."""
    with jax.enable_x64(True):
        rows = [*_vectors(), *_routes(size)]
    rows += [*_devices(size), *_collapse(size), _cka(size)]
    note = (
        f"n = {size.rows}, p = {size.p}; float64 up to the devices, then float32 features. The "
        "vector of eight inputs is known to six digits. Dense: from n x n matrices, by their "
        "definition. An order is one in which the moments of 16 parts are merged. neural_collapse "
        "computes in float32, with the mean of class means as the centre; where its definition is "
        "another (NC4, which leaves the bias out) the table of sources has both."
    )
    return Table("Agreement", note, rows)


def _vectors() -> list[tuple[str, ...]]:
    head = features.Head(VECTORS.kernel, VECTORS.bias)
    m = features.of(VECTORS.features)
    found = []
    for order, known in SIX_DIGITS.items():
        value = float(features.richness(m, head=head, order=order).value)
        error = abs(value - known)
        found.append(row(f"D_LR of eight inputs, {order}: error", f"{value:.7f}", known,
                         f"{error:.0e}", VECTOR, error))  # fmt: skip
    return found


def _routes(size: Size) -> list[tuple[str, ...]]:
    """Streamed against dense, and one order of merging against another."""
    rows = trained(size.rows, size.p, dtype="float64")
    head = features.Head(rows.kernel, rows.bias)
    parts = [features.of(part) for part in np.array_split(rows.features, 16)]
    rng = np.random.default_rng(0)
    values = []
    for _ in range(5):
        m = features.zero(size.p)
        for place in rng.permutation(len(parts)):
            m = features.merge(m, parts[place])
        values.append(float(features.richness(m, head=head).value))
    dense = dense_richness(rows)
    apart = abs(values[0] - dense), max(values) - min(values)
    return [
        row("D_LR, streamed: difference from dense", values[0], dense, f"{apart[0]:.0e}", EXACT,
            apart[0]),
        row("D_LR, five orders of merging: largest difference", f"{apart[1]:.0e}", target=EXACT,
            value=apart[1]),
    ]  # fmt: skip


def _devices(size: Size) -> list[tuple[str, ...]]:
    found = in_a_process("shard", size.rows, size.p)
    told = f"{found['matrices']}, and {found['collectives'] - found['matrices']} of vectors"
    return [
        row("D_LR on four devices: difference from one", f"{found['apart']:.0e}", target=EXACT,
            value=found["apart"]),
        row("the same: all-reduces of a matrix", told, target=ONE, value=found["matrices"]),
    ]  # fmt: skip


def _collapse(size: Size) -> list[tuple[str, ...]]:
    if not peers.have("neural_collapse"):
        return [row("neural collapse", NOTHING, peers.MISSING)]
    rows = trained(size.rows, size.p)
    ours: dict[str, Any] = our_collapse(rows)._asdict()
    theirs = peers.collapse(rows, agreement=False)
    found = []
    for name, value in theirs.items():
        mine = float(ours[name])
        apart = abs(mine / value - 1)
        found.append(row(f"{name}: relative difference from neural_collapse", f"{mine:.6g}",
                         f"{value:.6g}", f"{apart:.0e}", SINGLE, apart))  # fmt: skip
    return found


def _cka(size: Size) -> tuple[str, ...]:
    if not peers.have("ckatorch"):
        return row("unbiased CKA", NOTHING, peers.MISSING)
    x, y = (trained(size.rows, p, seed=p).features for p in (size.p, size.p // 2))
    with jax.enable_x64(True):
        mine = float(features.cka(x.astype(float), y.astype(float)).value)
    theirs = peers.cka_by_grams(x, y, unbiased=True)
    apart = abs(mine - theirs)
    return row("unbiased CKA: difference from ckatorch", mine, theirs, f"{apart:.0e}", EXACT, apart)
