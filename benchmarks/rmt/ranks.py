"""How many spikes there are, by the Marchenko-Pastur edge and by the rules of others."""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.farms import weightwatcher
from benchmarks.harness import NOTHING, Table, Target, row
from benchmarks.rmt.null import Shape
from spectral_jax.checkpoints import save_safetensors
from spectral_jax.rmt import fit_marchenko_pastur, hard_threshold

Ranks = np.ndarray


class Size(NamedTuple):
    cases: tuple[tuple[Shape, int], ...]
    draws: int
    watched: int


FULL = Size(
    cases=(
        ((500, 500), 0),
        ((500, 500), 10),
        ((784, 1000), 10),
        ((784, 1000), 40),
        ((100, 1000), 3),
    ),
    draws=50,
    watched=6,
)
SMOKE = Size(cases=(((30, 40), 2),), draws=3, watched=2)


class Planted(NamedTuple):
    """Signal and noise of variance 1; what a cut at each rank misses of the signal."""

    shape: Shape
    spikes: int
    values: np.ndarray
    errors: np.ndarray
    first: dict[str, np.ndarray]

    def judged(self, ranks: Ranks) -> tuple[str, float]:
        """In words, and the root mean square error of the count."""
        missed = ranks - self.spikes
        errors = self.errors[np.arange(len(ranks)), ranks]
        rmse = float(np.sqrt(np.mean(missed**2)))
        return f"{missed.mean():+.2f}, {rmse:.2f}, {errors.mean():.2f}", rmse


def rank_selection(size: Size) -> Table:
    """Bias and error of the number of planted spikes."""
    rows = [cells for case in size.cases for cells in _case(*case, size)]
    note = (
        f"Noise of variance 1 and spikes of 1.2 to 4 times the strength at which noise hides them; "
        f"{size.draws} draws, {size.watched} for WeightWatcher {weightwatcher.version() or ''}, "
        "whose fit takes 0.7 s, ours beside it on the same. Cells: mean of count less truth, its "
        "root mean square error, and the Frobenius distance of the matrix cut there from the "
        "signal, in units of sqrt(n). Targets: our root mean square error, against that of the "
        "peer. Where nothing is planted the higher thresholds of others are right more often: one "
        "noise in ten has a value above our edge, by the choice of beta = .1. With 40 spikes "
        "BEMA's variance is too large, and optht is told the noise. 'gd' is Gavish and Donoho's "
        "threshold at unknown noise, ours and optht's: it does not count spikes, it leaves out "
        "those that bring less signal than noise, and has the smaller distance for it. optht "
        "raises where nothing stands out (counted as 0), and takes the smaller side for the larger "
        "where the noise is known."
    )
    return Table("Ranks of planted spikes", note, rows)


def _case(shape: Shape, spikes: int, size: Size) -> Iterator[tuple[str, ...]]:
    drawn = planted(shape, spikes, size)
    what = f"{shape[0]} x {shape[1]}, {spikes} spikes"
    found = edge_ranks(drawn)
    ours, rmse = drawn.judged(found)
    for name, rule in PEERS.items():
        if name.startswith("optht") and not importlib.util.find_spec("optht"):
            yield row(f"{what}: {name}", ours, "not installed")
            continue
        peer, limit = drawn.judged(rule(drawn))
        yield row(f"{what}: {name}", ours, peer, NOTHING, Target("<=", round(limit, 2)), rmse)
    if weightwatcher.version():
        peer, limit = drawn.judged(watched_ranks(drawn))
        ours, rmse = drawn.judged(found[: size.watched])
        target = Target("<=", round(limit, 2))
        yield row(f"{what}: WeightWatcher", ours, peer, NOTHING, target, rmse)
    else:
        yield row(f"{what}: WeightWatcher", ours, "not installed")
    for name, rule in OTHERS.items():
        yield row(f"{what}: ours, {name}", drawn.judged(rule(drawn))[0])


def planted(shape: Shape, spikes: int, size: Size) -> Planted:
    rng, (p, n) = np.random.default_rng(0), sorted(shape)
    strengths = np.linspace(1.2, 4, spikes) * n**0.5 * (p / n) ** 0.25
    values, errors, first = [], [], {}
    for draw in range(size.draws):
        left, right = (np.linalg.qr(rng.standard_normal((d, spikes)))[0] for d in (p, n))
        matrix = (left * strengths) @ right.T + rng.standard_normal((p, n))
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        # |X_r - S|^2, the squares of X_r less twice its product with the signal S
        overlaps = ((u.T @ left) * strengths * (vt @ right)).sum(1)
        gained = np.append(0, np.cumsum(s * (s - 2 * overlaps)))
        values.append(s)
        errors.append(np.sqrt(np.maximum(np.sum(strengths**2) + gained, 0) / n))
        if draw < size.watched:
            first[f"layer{draw}.weight"] = matrix.astype(np.float32)
    return Planted(shape, spikes, np.stack(values), np.stack(errors), first)


def edge_ranks(drawn: Planted, **options) -> Ranks:
    eigenvalues = jnp.asarray(drawn.values**2 / max(drawn.shape), jnp.float32)
    return np.asarray(fit_marchenko_pastur(eigenvalues, drawn.shape, **options).spikes)


def gd_ranks(drawn: Planted) -> Ranks:
    values = jnp.asarray(drawn.values, jnp.float32)
    cut = np.asarray(hard_threshold(drawn.shape, singular_values=values))
    return np.sum(drawn.values > cut[:, None], axis=1)


def energy_ranks(share: float) -> Callable[[Planted], Ranks]:
    def ranks(drawn: Planted) -> Ranks:
        energy = np.cumsum(drawn.values**2, axis=1)
        return np.sum(energy < share * energy[:, -1:], axis=1) + 1

    return ranks


def optht_ranks(sigma: float | None) -> Callable[[Planted], Ranks]:
    def ranks(drawn: Planted) -> Ranks:
        from optht import optht

        p, n = sorted(drawn.shape)
        found = np.zeros(len(drawn.values), int)
        for draw, values in enumerate(drawn.values):
            try:
                found[draw] = optht(p / n, values, sigma=sigma)
            except ValueError:
                found[draw] = 0
        return found

    return ranks


def watched_ranks(drawn: Planted) -> Ranks:
    with tempfile.TemporaryDirectory() as folder:
        save_safetensors(Path(folder) / "model.safetensors", drawn.first)
        rows = weightwatcher.analyse(Path(folder), mp_fit=True)
    counts = {found["name"]: found["num_spikes"] for found in rows}
    return np.array([counts[name.removesuffix(".weight")] for name in drawn.first], int)


PEERS: dict[str, Callable[[Planted], Ranks]] = {
    "optht, noise unknown": optht_ranks(None),
    "optht, noise known": optht_ranks(1.0),
    "energy .9": energy_ranks(0.9),
    "energy .99": energy_ranks(0.99),
}
OTHERS: dict[str, Callable[[Planted], Ranks]] = {
    "beta .01": partial(edge_ranks, beta=0.01),
    "by density fit": partial(edge_ranks, method="density"),
    "gd": gd_ranks,
}
