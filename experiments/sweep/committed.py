"""Whether a block of a sweep has its result: seen without JAX, by whoever waits for it."""

from __future__ import annotations

from pathlib import Path


def committed(directory: Path, block_id: str) -> bool:
    """Whether some attempt at the block came first: its result is the block's."""
    return (Path(directory) / "blocks" / block_id / "result.json").exists()
