"""Blocks one after the other in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.sweep.executors.waiting import POLL, as_committed
from experiments.sweep.executors.worker import Silence, name_of_this, run_one


class Here(AbstractContextManager["Here"]):
    """The executor that needs nothing: a block that another process is at comes last."""

    workers = 1

    def __init__(self, workers: int, options: Mapping[str, Any]) -> None:
        if workers > 1 or options:
            raise UserError("--executor local is this one process: for several, processes:2")

    def run(self, directory: Path, blocks: Sequence[str]) -> Iterator[str]:
        """Run the blocks in their order."""
        silence = Silence(directory)

        def move(left: list[str]) -> None:
            if not run_one(directory, left, name_of_this(), silence):
                time.sleep(POLL)

        return as_committed(directory, blocks, move)

    def __exit__(self, *ended: object) -> None:
        """There is nobody to stop."""
