"""RMT-SVD: are bulks, edges and ranks right, and how long does one wait for them?"""

from collections.abc import Iterator

from benchmarks.harness import Table, say
from benchmarks.rmt import events, null, ranks, refits, trained


def tables(smoke: bool) -> Iterator[Table]:
    """Every table of the suite, as it is measured."""
    for part, table in (
        (null, null.null_behaviour),
        (null, null.spike_recovery),
        (ranks, ranks.rank_selection),
        (trained, trained.one_shot),
        (refits, refits.refit),
        (events, events.pruning_event),
        (events, events.forward),
    ):
        say(table.__name__)
        yield table(part.SMOKE if smoke else part.FULL)
