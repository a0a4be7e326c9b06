"""The feature map: speed, what watching costs, agreement, intervals, and who computes what."""

from collections.abc import Iterator

from benchmarks.features import agreement, coverage, sources, speed, training
from benchmarks.harness import Table, say


def tables(smoke: bool) -> Iterator[Table]:
    """Every table of the suite, as it is measured."""
    for part, table in (
        (speed, speed.speed),
        (training, training.watching),
        (agreement, agreement.agreement),
        (coverage, coverage.coverage),
        (sources, sources.sources),
    ):
        say(table.__name__)
        yield table(part.SMOKE if smoke else part.FULL)
