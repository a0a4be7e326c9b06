"""A low-rank approximation of a large matrix, at the error that others reach."""

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from sklearn.utils.extmath import randomized_svd as sklearn_svd

from benchmarks.harness import (
    NOTHING,
    Table,
    Target,
    interleaved,
    one_core,
    ratio_of,
    ratio_text,
    row,
    with_first,
)
from spectral_jax.linalg.randomized import randomized_svd
from spectral_jax.linalg.subspace import mm

SLACK = 1e-4  # of equal error: the residuals are float32


class Size(NamedTuple):
    n: int
    rank: int
    repeats: int
    seeds: int
    blocks: tuple[int, ...]  # that we try
    widest: int  # Krylov space that we try, in ranks


FULL = Size(4096, 64, 7, 3, (64, 32, 16), 6)
SMOKE = Size(128, 8, 1, 1, (8, 4), 2)


class Errors(NamedTuple):
    """Norms of what an approximation leaves, over those of the best one of that rank."""

    frobenius: float
    spectral: float

    def __str__(self) -> str:
        return f"error {self.frobenius:.4f} F, {self.spectral:.4f} 2"


def low_rank(size: Size) -> Table:
    """Ours at the fastest block size and depth that reach each peer's error."""
    rows = []
    with one_core():
        rate = _product_rate(size)
        for name, values in spectra(size.n).items():
            rows += _rows(name, rotated(values), values, size, rate)
    note = (
        f"float32, {size.n} x {size.n}, k = {size.rank}. The matrix is orthogonal x diagonal x "
        "orthogonal; decaying: 1/i, flat: the singular values of a Gaussian matrix. Peers run at "
        "their defaults with 10 extra columns (scikit-learn: 7 power iterations; torch: 2). Ours "
        f"is block Krylov at the fastest of the block sizes {size.blocks}, each with the fewest "
        f"power iterations q whose errors are no larger than the peer's, up to {size.widest} k "
        "columns of Krylov space, and includes the error estimate that peers lack. Errors are "
        f"residual norms over the best possible ones, mean over {size.seeds} seeds; where ours "
        "stay larger, the target counts as missed. Bound: 2 n^2 flops for each column multiplied "
        f"by the matrix or its transpose, at the {rate / 1e9:.0f} GFlop/s of a product with "
        f"{size.rank} columns in this run (NumPy's or XLA's); the time that takes is given. What "
        "ours takes beyond it is that products "
        "with 16 columns are bound by reading the matrix, and the orthonormalisation."
    )
    return Table("Randomised SVD at equal error, one core", note, rows)


def spectra(n: int) -> dict[str, np.ndarray]:
    # The quarter-circle law, by its quantiles.
    x = np.linspace(0, 2, 200_001)
    share = np.cumsum(np.sqrt(4 - x**2))
    middles = 1 - (np.arange(n) + 0.5) / n
    return {
        "decaying": 1 / np.arange(1.0, n + 1),
        "flat": np.interp(middles, share / share[-1], x),
    }


def rotated(values: np.ndarray) -> np.ndarray:
    """Two rounds of random signs and a cosine transform on either side of the diagonal."""
    rng, a = np.random.default_rng(0), np.diag(values).astype("float32")
    for axis in (0, 1, 0, 1):
        signs = rng.choice(np.float32([-1, 1]), len(values))
        a = scipy.fft.dct(a * np.expand_dims(signs, 1 - axis), axis=axis, norm="ortho")
    return a


def _product_rate(size: Size) -> float:
    """Flops a second of a matrix product as wide as the rank, by whoever is faster."""
    draw = np.random.default_rng(0).standard_normal((size.n, size.n + size.rank), dtype="float32")
    a, block = draw[:, : size.n].copy(), draw[:, size.n :].copy()
    on_device, product = (jnp.asarray(a), jnp.asarray(block)), jax.jit(mm)
    calls = {"NumPy": lambda: a @ block, "XLA": lambda: product(*on_device)}
    times = interleaved(calls, repeats=max(size.repeats, 3))
    return 2 * a.size * size.rank / min(timing.median for timing in times.values())


def _rows(
    name: str, a: np.ndarray, values: np.ndarray, size: Size, rate: float
) -> list[tuple[str, ...]]:
    rows, on_device = [], jnp.asarray(a)

    @cache
    def mine_at(settings: Settings) -> Errors:
        return mean_errors(a, values, partial(_ours, on_device, settings, size), size.seeds)

    for peer, (call, passes) in _peers(a, size).items():
        what = f"{name}: {peer}"
        if call is None:
            rows.append(row(what, NOTHING, "not installed"))
            continue
        theirs = mean_errors(a, values, call, size.seeds)
        settings = _fastest(mine_at, on_device, theirs, size)
        ours, mine = partial(_ours, on_device, settings, size, 0), mine_at(settings)
        times = interleaved({"ours": ours, "peer": partial(call, 0)}, repeats=size.repeats)
        columns = 2 * settings.block * (settings.iterations + 1) + 10
        bound = 2e3 * a.size * columns / rate
        rows.append(
            row(
                what,
                f"{with_first(times['ours'])}, block {settings.block}, q = {settings.iterations}, "
                f"{columns} columns (bound {bound:.0f} ms), {mine}",
                f"{times['peer']}, {passes} columns, {theirs}",
                ratio_text(times["peer"], times["ours"]),
                Target(">=", 3),
                # A larger error is no win at any speed.
                ratio_of(times["peer"], times["ours"]) if _no_worse(mine, theirs) else np.nan,
            )
        )
    return rows


class Settings(NamedTuple):
    block: int
    iterations: int


def _ours(a: jax.Array, settings: Settings, size: Size, seed: int):
    block, iterations = settings
    key = jax.random.key(seed)
    return randomized_svd(key, a, size.rank, block=block, power_iterations=iterations)[:3]


def _fastest(mine_at: Callable, on_device: jax.Array, theirs: Errors, size: Size) -> Settings:
    """Of the settings that do as well, the fastest; of none, the one that came closest."""
    enough = [_enough(mine_at, theirs, size, block) for block in size.blocks]
    good = [settings for settings in enough if _no_worse(mine_at(settings), theirs)]
    if not good:
        return min(enough, key=lambda settings: max(np.subtract(mine_at(settings), theirs)))
    calls = {str(settings): partial(_ours, on_device, settings, size, 0) for settings in good}
    times = interleaved(calls, repeats=3)
    return min(good, key=lambda settings: times[str(settings)].median)


def _enough(mine_at: Callable, theirs: Errors, size: Size, block: int) -> Settings:
    """The fewest power iterations with this block that do as well, or the most that we try."""
    depths = range(size.rank // block, size.widest * size.rank // block)
    tried = (Settings(block, iterations) for iterations in depths)
    return next((s for s in tried if _no_worse(mine_at(s), theirs)), Settings(block, depths[-1]))


def _no_worse(mine: Errors, theirs: Errors) -> bool:
    return all(x <= y + SLACK for x, y in zip(mine, theirs, strict=True))


def _peers(a: np.ndarray, size: Size) -> dict[str, tuple[Callable | None, int]]:
    width = size.rank + 10
    peers: dict[str, tuple[Callable | None, int]] = {
        "scikit-learn": (partial(_sklearn, a, size.rank), 16 * width),
        "torch.svd_lowrank": (None, 6 * width),
    }
    if importlib.util.find_spec("torch") is not None:
        peers["torch.svd_lowrank"] = (partial(_torch, a, size.rank, width), 6 * width)
    return peers


def _sklearn(a: np.ndarray, rank: int, seed: int):
    return sklearn_svd(a, rank, random_state=seed)


def _torch(a: np.ndarray, rank: int, width: int, seed: int):
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    u, s, v = torch.svd_lowrank(torch.from_numpy(a), q=width, niter=2)
    return u[:, :rank].numpy(), s[:rank].numpy(), v[:, :rank].numpy().T


def mean_errors(a: np.ndarray, values: np.ndarray, call: Callable, seeds: int) -> Errors:
    """Over seeds: the spectral norm of what is left is largely the luck of the draw."""
    drawn = [errors(a, values, *map(np.asarray, call(seed))) for seed in range(seeds)]
    return Errors(*np.mean(drawn, axis=0).tolist())


def errors(a: np.ndarray, values: np.ndarray, u, s, vt) -> Errors:
    left, rank = a - (u * s) @ vt, len(s)
    x = np.random.default_rng(1).standard_normal((len(a), 8)).astype("float32")
    for _ in range(12):
        x = np.linalg.qr(left.T @ (left @ x))[0]
    best = np.linalg.norm(values[rank:])
    spectral = np.linalg.norm(left @ x, 2) / values[rank]
    return Errors(float(np.linalg.norm(left) / best), float(spectral))
