"""FARMS, tails and `analyze`: are the numbers right, and how long does one wait for them?"""

from collections.abc import Iterator

from benchmarks.farms import agreement, balance, fits, oracles, process, windows
from benchmarks.harness import Table, say


def tables(smoke: bool) -> Iterator[Table]:
    """Every table of the suite, as it is measured."""
    for part, table in (
        (oracles, oracles.oracles),
        (agreement, agreement.agreement),
        (process, process.whole_process),
        (process, process.streamed),
        (windows, windows.windows),
        (fits, fits.full_search),
        (balance, balance.epoch),
    ):
        say(table.__name__)
        yield table(part.SMOKE if smoke else part.FULL)
