"""Sweeps: 64 trials against one at a time, what the machinery costs, and how soon work begins."""

from collections.abc import Iterator

from benchmarks.harness import Table, say
from benchmarks.sweep import listing, starts, trials


def tables(smoke: bool) -> Iterator[Table]:
    """Every table of the suite, as it is measured."""
    for part, table in (
        (trials, trials.against_loops),
        (trials, trials.machinery),
        (listing, listing.ten_thousand),
        (starts, starts.resumption),
        (starts, starts.second_start),
    ):
        say(table.__name__)
        yield table(part.SMOKE if smoke else part.FULL)
