"""A progress bar for a person at a terminal, and nothing for anyone else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Move the bar on by `steps` and show a short `note` beside it."""

    def __call__(self, steps: float = 1, note: str = "") -> None:
        """Move on."""


@contextmanager
def progress(
    total: float, description: str, *, done: float = 0, show: bool = True
) -> Iterator[Advance]:
    """Show a bar with an estimate of the time left on stderr; `done` is where a resumption starts.

    Shown are whole steps: a step that is done in parts moves the bar on all the same.

    `show=False` is for work that is over before anyone has read a bar.

    with progress(steps, "training", done=step) as advance:
        advance(chunk, note="accuracy 0.96")
    """
    if not (show and sys.stderr.isatty()):
        yield lambda steps=1, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Estimate

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Estimate(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=int(done), note="")
        yield lambda steps=1, note="": bar.update(task, advance=steps, note=note)
