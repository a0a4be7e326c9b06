"""A block of a sweep: trials of one structure that are trained in one program, and its files.

for block in blocks_of(config, settings, seeds, width=64, axis="map", end=10):
    write_block(directory, block)
...                             # `attempts.run_block`, in any process
result_of(directory, block.id)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config import ExperimentConfig, from_mapping, to_mapping
from experiments.errors import MISSING, UserError
from experiments.runs.files import (
    cannot_write_is_one_line,
    make_directory,
    plain,
    read_json,
    write_json,
)
from experiments.sweep.space import configure
from experiments.training.optimisers import structure_of
from experiments.training.program import Axis


class BlockTrial(NamedTuple):
    """A configuration's number in the sweep, a seed, and what is set in the base configuration."""

    number: int
    seed: int
    setting: Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """Trials of one structure, from the end of epoch ``start`` to that of epoch ``end``.

    config: the sweep's; its seeds are all of the sweep's, so that blocks share data and programs.
    width: for how many trials the program is compiled; the same for all blocks of a sweep.
    parents: ids of committed blocks in which the trials stood at ``start``; of no matter at 0.
    """

    config: ExperimentConfig
    trials: tuple[BlockTrial, ...]
    width: int
    axis: Axis
    start: int
    end: int
    parents: tuple[str, ...] = ()

    @cached_property
    def id(self) -> str:
        """Of all that decides the block's numbers but code and data."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back."""
        fields = {name: getattr(self, name) for name in ("width", "axis", "start", "end")}
        trials = [[trial.number, trial.seed, dict(trial.setting)] for trial in self.trials]
        config, parents = to_mapping(_checked(self.config)), list(self.parents)
        return plain({"config": config, "trials": trials, **fields, "parents": parents})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Block:
        """What `to_json` made."""
        return cls(
            **{
                **stored,
                "config": from_mapping(stored["config"], where="the configuration of a sweep"),
                "trials": tuple(BlockTrial(*trial) for trial in stored["trials"]),
                "parents": tuple(stored["parents"]),
            }
        )


class BlockResult(NamedTuple):
    """What a committed block measured, one entry per trial in the order of the block.

    trials: ``(number, seed)``.
    metrics: by name, what a run's summary has; NaN for a trial that diverged.
    collapsed: the trial is no better than the majority class.
    steps: at which step they stand.
    parts: the ids of the blocks in which it was trained where memory did not hold it as one.
    attempt: the name of the directory that the numbers come from.
    """

    trials: list[tuple[int, int]]
    metrics: dict[str, list[float]]
    diverged: list[bool]
    collapsed: list[bool]
    steps: int
    seconds: float
    parts: list[str]
    attempt: str


def blocks_of(
    config: ExperimentConfig,
    settings: Mapping[int, Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    width: int,
    axis: Axis,
    start: int = 0,
    end: int,
    parents: Sequence[str] = (),
) -> list[Block]:
    """The trials of all ``settings`` (by number) and ``seeds``, by structure, in equal parts.

    Raises:
        ValueError: for a seed that comes twice, or is not of ``config``, whose data are loaded.
        UserError: (2) as `grouped`.
    """
    first, count = config.train.seed, config.train.seeds
    if not set(seeds) <= set(range(first, first + count)) or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"seeds={list(seeds)}: give each of {first} to {first + count - 1}, those of config, "
            "once at most; or change config.train"
        )
    return [
        Block(config, part, width, axis, start, end, tuple(parents))
        for trials in grouped(config, settings, seeds).values()
        for part in equal_parts(trials, most=width)
    ]


def grouped(
    config: ExperimentConfig, settings: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]
) -> dict[ExperimentConfig, list[BlockTrial]]:
    """All trials by what those of one block have in common: all but the numbers that are traced.

    Raises ``UserError`` (2) for values that do not go together, and for a ``train.stop``, which
    ends trials by what others of the block measure.
    """
    groups: dict[ExperimentConfig, list[BlockTrial]] = {}
    for number in sorted(settings):
        chosen = configure(config, settings[number])
        if chosen.train.stop is not None:
            raise UserError(
                f"train.stop = {chosen.train.stop!r} ends all trials of a program together: leave "
                "it out in a sweep, and set train.epochs, or stop bad trials with --halve"
            )
        train = replace(chosen.train, label_scale=1.0)
        shape = replace(structure_of(chosen), name=config.name, data=chosen.data, train=train)
        trials = [BlockTrial(number, seed, settings[number]) for seed in seeds]
        groups.setdefault(shape, []).extend(trials)
    return groups


def write_block(directory: Path, block: Block) -> str:
    """Put a block into a sweep's directory, if it is not there, and return its id."""
    path = folder_of(directory, block.id) / "block.json"
    with cannot_write_is_one_line(path.parent):
        make_directory(path.parent)
        if not path.exists():
            write_json(path, block.to_json())
    return block.id


def read_block(directory: Path, block_id: str) -> Block:
    """What `write_block` wrote; `UserError` (2) if it is damaged, (4) if it is not there."""
    path = folder_of(directory, block_id) / "block.json"
    remedy = f"remove {path} and run the same sweep again"
    stored = read_json(path, remedy=remedy)
    if not stored:
        raise UserError(f"{path} is not there; run the same sweep again", MISSING)
    block = Block.from_json(stored)
    if block.id != block_id:
        raise UserError(f"{path} is another block's; {remedy}")
    return block


def result_of(directory: Path, block_id: str) -> BlockResult | None:
    """What the block measured; None if it is not committed."""
    stored = stored_result(directory, block_id)
    if not stored:
        return None
    metrics = {
        name: [math.nan if value is None else value for value in values]
        for name, values in stored["metrics"].items()
    }
    trials = [(number, seed) for number, seed in stored["trials"]]
    return BlockResult(**{**stored, "trials": trials, "metrics": metrics})


def _checked(config: ExperimentConfig) -> ExperimentConfig:
    """As it comes back from JSON: 1.0 where 1 was written for a number that is no count."""
    return from_mapping(to_mapping(config), where="the configuration of a sweep")


def folder_of(directory: Path, block_id: str) -> Path:
    """Where a block's files are."""
    return Path(directory) / "blocks" / block_id


def stored_result(directory: Path, block_id: str) -> dict[str, Any]:
    """The result as JSON; empty if the block is not committed."""
    folder = folder_of(directory, block_id)
    return read_json(folder / "result.json", remedy=f"remove {folder} and run the same sweep again")


def equal_parts(trials: Sequence[BlockTrial], *, most: int) -> Iterator[tuple[BlockTrial, ...]]:
    """The trials in order, in as few parts of one size as can be; the last may be smaller."""
    size = math.ceil(len(trials) / math.ceil(len(trials) / most))
    for first in range(0, len(trials), size):
        yield tuple(trials[first : first + size])
