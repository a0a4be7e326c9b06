"""What a preset would take, before anything is run: arms, compilations, bytes, hours, data."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.config import ExperimentConfig
from experiments.errors import MISSING, UserError
from experiments.papers.paper import Arms, Paper, Study, digest

# Of an arm's state on disk: two checkpoints, and the weights and vectors that are kept.
COPIES_ON_DISK = 3


@dataclass(frozen=True)
class Part:
    """A protocol or a study.

    Attributes:
        compilations: training programs; arms that differ in numbers share one.
        state: bytes of parameters and optimiser of all trials; 0 where the data are missing.
        hours: on this machine, of an earlier run that is still there; or as declared.
        missing: what is not there, and how to get it.
    """

    name: str
    arms: int = 0
    trials: int = 0
    compilations: int = 0
    state: int = 0
    data: int = 0
    hours: float | None = None
    measured: bool = False
    missing: str = ""

    @property
    def disk(self) -> int:
        """Bytes that are written."""
        return COPIES_ON_DISK * self.state

    def row(self) -> dict[str, str]:
        """For a table."""
        hours = "" if self.hours is None else f"{self.hours:.{0 if self.hours >= 10 else 2}f}"
        source = "measured" if self.measured else "declared"
        return {
            "part": self.name,
            "arms": f"{self.arms or ''}",
            "trials": f"{self.trials or ''}",
            "compilations": f"{self.compilations or ''}",
            "state": size(self.state),
            "data": size(self.data),
            "disk": size(self.disk),
            "hours": f"{hours} ({source})" if hours else "",
            "missing": self.missing,
        }


def parts(
    paper: Paper, preset: str, *, root: str | Path, overrides: Sequence[str] = ()
) -> Iterator[Part]:
    """Every protocol and study of a preset; a tuned protocol comes twice, its final runs second."""
    for name, arms in paper.arms(preset, overrides).items():
        protocol = paper.protocols[preset][name]
        if protocol.tuning is None:
            yield of_arms(name, arms, root=root, declared=protocol.hours)
            continue
        yield of_arms(f"{name}/tuning", arms, root=root, declared=protocol.hours)
        # Which setting is trained again is not known yet: the first of each method stands for it.
        firsts = {arm.partition("@")[0]: arm for arm in reversed(arms)}
        finals = {
            method: paper.final_arm(preset, name, arm, overrides) for method, arm in firsts.items()
        }
        yield of_arms(name, finals, root=root)
    for study in paper.studies_of(preset):
        yield _of_study(study, preset)


def of_arms(name: str, arms: Arms, *, root: str | Path, declared: float | None = None) -> Part:
    """What training these arms takes."""
    from experiments.training.optimisers import structure_of
    from experiments.training.train import sizes

    programs: dict[Any, list[ExperimentConfig]] = defaultdict(list)
    for config in arms.values():
        programs[structure_of(config), config.data, config.train.seeds].append(config)
    part = Part(
        name,
        arms=len(arms),
        trials=sum(config.train.seeds for config in arms.values()),
        compilations=len(programs),
        hours=declared,
    )
    measured = [hours for arm in arms.values() if (hours := _hours(arm, root)) is not None]
    if measured:  # arms that were never run take as long as the others on average
        hours = sum(measured) / len(measured) * len(arms)
        part = replace(part, hours=hours, measured=True)
    try:
        found = [(sizes(same[0]), len(same)) for same in programs.values()]
    except UserError as error:
        if error.exit_code != MISSING:
            raise
        return replace(part, missing=error.message)
    state = sum(size.state * count for size, count in found)
    return replace(part, state=state, data=max((size.data for size, _ in found), default=0))


def total(parts: Sequence[Part]) -> Part:
    """All parts together; the data of one at a time, and hours only where they are known."""
    known = [part for part in parts if part.hours is not None]
    return Part(
        "all",
        arms=sum(part.arms for part in parts),
        trials=sum(part.trials for part in parts),
        compilations=sum(part.compilations for part in parts),
        state=sum(part.state for part in parts),
        data=max((part.data for part in parts), default=0),
        hours=sum(part.hours or 0 for part in known) if known else None,
        measured=bool(known) and all(part.measured for part in known),
    )


def _of_study(study: Study, preset: str) -> Part:
    part = Part(study.name, hours=study.hours.get(preset))
    try:
        digest(study.needs.get(preset, ()))
    except UserError as error:
        if error.exit_code != MISSING:
            raise
        return replace(part, missing=error.message)
    return part


def _hours(config: ExperimentConfig, root: str | Path) -> float | None:
    """What this arm takes at the pace of its last run, if there is one; by steps and seeds."""
    for path in sorted((Path(root) / config.name).glob("*/summary.json"), reverse=True):
        summary = json.loads(path.read_text(encoding="utf-8"))
        trained = summary["epochs"] * len(summary["final_train/loss"])
        wanted = config.train.epochs * config.train.seeds
        return summary["seconds"] / 3600 * wanted / trained
    return None


def size(count: int) -> str:
    """Bytes for a person."""
    if not count:
        return ""
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"
