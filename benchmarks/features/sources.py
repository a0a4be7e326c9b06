"""The same features, and what each library calls by the same name: how far apart, and why."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.features import peers
from benchmarks.features.rows import Rows, independent, trained, views
from benchmarks.harness import Table
from spectral_jax import features
from spectral_jax.features import Head

HEADER = ("number", "ours", "peer", "its number", "ours by its definition", "why they differ")


class Size(NamedTuple):
    rows: int
    p: int


FULL = Size(2000, 128)
SMOKE = Size(120, 101)


class Source(NamedTuple):
    """A number by a peer, and by us in two ways."""

    name: str
    ours: Callable[[], Any]
    peer: str  # what to call it
    module: str  # that it is in
    theirs: Callable[[], Any]
    by_theirs: Callable[[], Any] | None
    why: str


def sources(size: Size) -> Table:
    """A row for each number that is not everywhere the same."""
    with jax.enable_x64(True):
        rows = [_row(source) for source in _sources(size)]
    note = (
        f"The features of `rows.trained`, n = {size.rows}, p = {size.p}, ten classes of unequal "
        "size, a head with bias; and what a row says. All of ours in float64. What the definitions "
        "are is on the page docs/where-each-number-comes-from.md."
    )
    return Table("Where each number comes from", note, rows, HEADER)


def _row(source: Source) -> tuple[str, ...]:
    there = peers.have(source.module)
    theirs = _told(source.theirs) if there else peers.MISSING
    again = _told(source.by_theirs) if source.by_theirs else "–"
    return source.name, _told(source.ours), source.peer, theirs, again, source.why


def _told(number: Callable[[], Any]) -> str:
    """The number; or how a library that has none fails."""
    try:
        return f"{float(number()):.6g}"
    except Exception as error:
        return f"{type(error).__name__}"


def _sources(size: Size) -> Iterator[Source]:
    yield from _of_spectra(trained(size.rows, size.p).features)
    yield from _of_classes(trained(size.rows, size.p))
    yield from _of_views()
    yield from _of_pairs()


def _of_spectra(x: np.ndarray) -> Iterator[Source]:
    dimension = partial(features.effective_dimension, x)
    rankme = partial(dimension, kind="rankme", centred=False)
    even = np.linalg.qr(np.random.default_rng(0).standard_normal((500, 64)))[0].astype("float32")
    yield Source(
        "RankMe", rankme, "reptrix", "reptrix.rankme", lambda: peers.reptrix_rankme(x),
        lambda: dimension(kind="rankme_eigenvalues", eps=1e-7),
        "eigenvalues of centred features in the place of singular values of uncentred ones",
    )  # fmt: skip
    yield Source(
        "RankMe", rankme, "stable-pretraining", "stable_pretraining.jax.callbacks.rankme",
        lambda: peers.stable_rankme(x), lambda: rankme(eps=1e-7),
        "1e-7 is added to each share, and the shares no longer sum to 1",
    )  # fmt: skip
    yield Source(
        "RankMe of 64 orthonormal columns",
        lambda: features.effective_dimension(even, kind="rankme", centred=False),
        "stable-pretraining", "stable_pretraining.jax.callbacks.rankme",
        lambda: peers.stable_rankme(even),
        lambda: features.effective_dimension(even, kind="rankme", centred=False, eps=1e-7),
        "for the same reason: more directions than there are",
    )  # fmt: skip
    yield Source(
        "alpha-ReQ, ranks 11 to 100", lambda: features.alpha_req(x, first=11, last=100).alpha,
        "reptrix", "reptrix.alpha", lambda: peers.reptrix_alpha(x), None,
        "rank j weighs 1 / j in its fit; below 100 features it fails",
    )  # fmt: skip


def _of_classes(rows: Rows) -> Iterator[Source]:
    with_bias, without = Head(rows.kernel, rows.bias), Head(rows.kernel)
    collapse = partial(_collapse, rows.features, rows.labels, rows.classes)
    yield Source(
        "NC4, share that disagree", lambda: collapse(head=with_bias).nc4, "neural_collapse",
        "neural_collapse", lambda: peers.collapse(rows)["nc4"],
        lambda: collapse(head=without).nc4, "leaves the bias of the head out",
    )  # fmt: skip
    yield Source(
        "UNC3", lambda: collapse(head=with_bias).unc3, "neural_collapse", "neural_collapse",
        lambda: peers.variance_of_products(rows), None,
        "its example takes the variance of inner products, which grows with the features, and "
        "divides by C - 1",
    )  # fmt: skip
    fewer = rows._replace(features=rows.features[rows.labels > 0],
                          labels=rows.labels[rows.labels > 0])  # fmt: skip
    known = partial(_collapse, fewer.features, fewer.labels, rows.classes)
    yield Source(
        "NC2, one class missing", lambda: known().nc2, "neural_collapse", "neural_collapse",
        lambda: peers.collapse(fewer)["nc2"], None,
        "counts the class in, with a mean of 0, and says nothing; ours leaves it out, and says so",
    )  # fmt: skip
    yield Source(
        "NC2 about the mean of all rows",
        lambda: collapse(centre="sample").nc2, "neural_collapse", "neural_collapse",
        lambda: peers.collapse(rows)["nc2"], lambda: collapse().nc2,
        "about the mean of class means, as ours is by default; others take the mean of rows",
    )  # fmt: skip
    narrow = trained(400, 6)
    yield Source(
        "NC1 by the svd of C - 1 directions, C = 10 > p = 6",
        lambda: _collapse(narrow.features, narrow.labels, 10).nc1_svd, "neural_collapse",
        "neural_collapse", lambda: peers.collapse_svd(narrow), None,
        "asks for 9 of 6 directions, and fails",
    )  # fmt: skip


def _collapse(x: np.ndarray, labels: np.ndarray, classes: int, **options: Any) -> Any:
    return features.neural_collapse(x, labels=labels, classes=classes, **options)


def _of_views() -> Iterator[Source]:
    x, labels = views()
    lidar = partial(features.lidar, x, labels=labels, classes=len(set(labels)))
    yield Source(
        "LiDAR", lambda: lidar().value, "stable-pretraining",
        "stable_pretraining.jax.callbacks.lidar", lambda: peers.stable_lidar(x, labels),
        lambda: lidar(compat="paper").value,
        "1e-4 is added to the covariance itself, as in the paper, not to its share of the variance;"
        " ours divides by n, theirs by n less the classes",
    )  # fmt: skip
    yield Source(
        "LiDAR", lambda: lidar().value, "reptrix", "reptrix.lidar",
        lambda: peers.reptrix_lidar(x, labels), lambda: lidar(compat="reptrix").value,
        "takes the spectrum of the covariance of the rows of the matrix whose eigenvalues it is of",
    )  # fmt: skip


def _of_pairs() -> Iterator[Source]:
    x, y = independent()
    cka = lambda **options: features.cka(x, y, **options).value  # noqa: E731
    told = "CKA of independent features, n = 200, p = 512 and 256"
    yield Source(told, cka, "ckatorch", "ckatorch", lambda: peers.cka_by_grams(x, y),
                 lambda: cka(unbiased=False), "the biased form is its default")  # fmt: skip
    yield Source(
        told, cka, "ckatorch, `unbiased=True`", "ckatorch",
        lambda: peers.cka_by_grams(x, y, unbiased=True), cka, "none",
    )  # fmt: skip
    yield Source(
        told, cka, "ckatorch, `unbiased=True, method=\"hsic\"`", "ckatorch",
        lambda: peers.cka_by_grams(x, y, unbiased=True, method="hsic"),
        lambda: cka(unbiased=False), "its method `hsic` does not read `unbiased`",
    )  # fmt: skip
    yield Source(
        told, cka, "pytorch-cka", "cka", lambda: peers.cka_cut_off(x, y), None,
        "what is below 0 is cut off, so that averages over pairs are too large",
    )  # fmt: skip
