"""Curvature: what a product costs in gradients, and complete spectra beside Krylov solvers."""

from collections.abc import Iterator

from benchmarks.curvature import products, spectra
from benchmarks.harness import Table, say


def tables(smoke: bool) -> Iterator[Table]:
    """Every table of the suite, as it is measured."""
    for part, table in (
        (products, products.products),
        (spectra, spectra.complete),
        (spectra, spectra.largest),
    ):
        say(table.__name__)
        yield table(part.SMOKE if smoke else part.FULL)
