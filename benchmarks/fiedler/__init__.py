"""Fiedler pairs and the penalty: are they right, how fast, and what do they add to training?"""

from collections.abc import Iterator

from benchmarks.fiedler.methods import methods
from benchmarks.fiedler.sizes import FULL, SMOKE
from benchmarks.fiedler.solves import accuracy, speed
from benchmarks.fiedler.training import epochs, seeds
from benchmarks.harness import Table, say


def tables(smoke: bool) -> Iterator[Table]:
    """Every table of the suite, as it is measured."""
    for table in (accuracy, speed, epochs, seeds, methods):
        say(table.__name__)
        yield table(SMOKE if smoke else FULL)
