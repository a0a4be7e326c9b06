"""Waiting for the results of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.sweep.committed import committed

POLL = 0.5  # seconds between two looks at a directory, of whoever has nothing else to do


def as_committed(
    directory: Path, blocks: Sequence[str], move: Callable[[list[str]], None]
) -> Iterator[str]:
    """Yield each block once it has its result, and call `move` with those left in between."""
    left = list(blocks)
    while True:
        states = {block: committed(directory, block) for block in left}
        yield from (block for block in left if states[block])
        left = [block for block in left if not states[block]]
        if not left:
            return
        move(left)
