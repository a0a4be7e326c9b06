"""Curvature: products in gradients, spectra beside Krylov solvers, watching, moments of data."""

from collections.abc import Iterator

from benchmarks.curvature import moments, products, spectra, watching
from benchmarks.harness import Table, say


def tables(smoke: bool) -> Iterator[Table]:
    """Every table of the suite, as it is measured."""
    for part, table in (
        (products, products.products),
        (spectra, spectra.complete),
        (spectra, spectra.largest),
        (spectra, spectra.density),
        (watching, watching.watch_costs),
        (moments, moments.speed),
        (moments, moments.digits),
    ):
        say(table.__name__)
        yield table(part.SMOKE if smoke else part.FULL)
