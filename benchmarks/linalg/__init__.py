"""The spectral kernels: are they right, and how fast beside what people use today?"""

from collections.abc import Iterator

from benchmarks.harness import Table, say
from benchmarks.linalg import density, eigenpairs, randomized, values


def tables(smoke: bool) -> Iterator[Table]:
    """Every table of the suite, as it is measured."""
    for part, table in (
        (values, values.speed),
        (values, values.accuracy),
        (randomized, randomized.low_rank),
        (eigenpairs, eigenpairs.eigenpairs),
        (density, density.density),
        (density, density.traces),
    ):
        say(table.__name__)
        yield table(part.SMOKE if smoke else part.FULL)
