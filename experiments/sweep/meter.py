"""How far a sweep is while its blocks are trained, wherever that is: seen by their files."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.sweep.block import Block, read_block
from experiments.sweep.committed import committed
from experiments.sweep.log import Entry, TrialLog
from experiments.sweep.plan import Plan
from spectral_jax._progress import Advance, progress

LOOKS = 2.0  # seconds between two


@contextmanager
def metered(directory: Path, plan: Plan, log: TrialLog) -> Iterator[None]:
    """Show a bar over trials for the time: on a terminal, and a part of each while it is trained.

    A trial that is left behind at a rung counts as the part of a training that it was given.
    """
    done = _logged(plan, log)
    with progress(plan.work, plan.config.name, done=done) as advance:
        if not sys.stderr.isatty():
            yield
            return
        meter, ended = Meter(directory, plan, log, advance, done), threading.Event()
        watcher = threading.Thread(target=meter.watch, args=(ended,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


class Meter:
    """What the bar shows, in whole trainings."""

    def __init__(
        self, directory: Path, plan: Plan, log: TrialLog, advance: Advance, shown: float
    ) -> None:
        self.directory, self.plan, self.log = directory, plan, log
        self.advance, self.shown = advance, shown
        self.blocks: dict[str, Block] = {}

    def watch(self, ended: threading.Event) -> None:
        """Look now and then, and once more at the end."""
        while not ended.wait(LOOKS):
            self.look()
        self.look()

    def look(self) -> None:
        """Move the bar to where the files say the trials are; never back."""
        try:
            seen = _logged(self.plan, self.log) + sum(map(self._part, self._running()))
        except FileNotFoundError:  # a block has ended meanwhile, and its attempts are removed
            return
        seen = min(seen, self.plan.work)  # where a block was halved, its halves count as well
        if seen > self.shown:
            self.advance(seen - self.shown)
            self.shown = seen

    def _running(self) -> Iterator[Block]:
        for path in self.directory.glob("blocks/*/block.json"):
            name = path.parent.name
            if not committed(self.directory, name):
                if name not in self.blocks:
                    self.blocks[name] = read_block(self.directory, name)
                yield self.blocks[name]

    def _part(self, block: Block) -> float:
        """Of how many trainings a block's furthest attempt has done as much."""
        attempts = self.directory.glob(f"blocks/{block.id}/attempts/*/metrics.jsonl")
        epoch = max(map(_last_epoch, attempts), default=0.0)
        trained = min(max(epoch - block.start, 0.0), block.end - block.start)
        return len(block.trials) * trained / _whole(self.plan, block.end)


def _logged(plan: Plan, log: TrialLog) -> float:
    """How many whole trainings the log stands for."""
    return sum(_worth(plan, entry) for entry in [*log.entries.values()])


def _worth(plan: Plan, entry: Entry) -> float:
    start, _ = plan.rungs[entry.rung]
    return len(entry.seeds) * (entry.epochs - start) / _whole(plan, entry.epochs)


def _whole(plan: Plan, end: int) -> int:
    """The epochs of a whole training; where nothing is halved, a setting may have its own."""
    return plan.config.train.epochs if plan.halving else end


def _last_epoch(metrics: Path) -> float:
    """That of the last whole line; 0 where there is none."""
    lines = metrics.read_bytes().split(b"\n")[:-1]
    return float(json.loads(lines[-1])["epoch"]) if lines else 0.0
