"""What a sweep is: `sweep.json`, written once; everything else in its directory follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import data as datasets
from experiments.config import ExperimentConfig, config_hash, from_mapping, to_mapping, values_of
from experiments.errors import UserError
from experiments.names import did_you_mean
from experiments.runs.code import changed_files, code_hash, executed, listed, words_of
from experiments.runs.files import (
    cannot_write_is_one_line,
    make_directory,
    read_json,
    write_json,
    write_json_once,
)
from experiments.runs.source import Reference
from experiments.sweep import space as spaces
from experiments.sweep.halving import Halving, kept
from experiments.sweep.halving import parse as parse_halving
from experiments.sweep.space import Space, Values

if TYPE_CHECKING:
    from experiments.training.program import Axis  # imports jax

FILE = "sweep.json"
# Named, not imported: a table is listed without jax.
TRAINS = Reference("experiments.sweep.attempts", ("train_block",))


@dataclass(frozen=True)
class Plan:
    """All that decides the numbers of a sweep.

    Attributes:
        config: what settings are applied to; its `train.seed` and `train.seeds` are the sweep's.
        space: the values of each swept key; empty where `settings` are written out.
        count: how many configurations the search proposes.
        halve: as in ``2@5``, or "" where every trial is trained to its end.
        objective: the validation metric that decides, ``higher`` whether more of it is better.
        axis, width: of every block; chosen once, as the numbers may depend on them.
        data: SHA-256 of the data set.
        code: of each file, a digest of what training executes (`runs/code.py`).
        accepted: the codes by which the sweep was continued although they differ.
        mixed: whether machines that compute other last digits may go on with it (`machine.py`).
    """

    config: ExperimentConfig
    space: Mapping[str, Values]
    search: str
    count: int
    objective: str
    higher: bool
    data: str
    code: Mapping[str, str]
    settings: tuple[Mapping[str, Any], ...] = ()
    halve: str = ""
    axis: Axis = "map"
    width: int = 0
    accepted: tuple[Mapping[str, str], ...] = ()
    mixed: bool = False

    @property
    def seeds(self) -> range:
        """The seeds of every configuration."""
        train = self.config.train
        return range(train.seed, train.seed + train.seeds)

    @property
    def trials(self) -> int:
        """How many there are: each configuration with each seed."""
        return self.count * len(self.seeds)

    @property
    def keys(self) -> list[str]:
        """The swept keys, in order."""
        named = (key for setting in self.settings for key in setting)
        return list(dict.fromkeys([*self.space, *named]))

    @cached_property
    def halving(self) -> Halving | None:
        """Which configurations are trained on, and when that is decided."""
        return parse_halving(self.halve, epochs=self.config.train.epochs) if self.halve else None

    @property
    def rungs(self) -> tuple[tuple[int, int], ...]:
        """From which epoch to which; without halving there is one rung."""
        return self.halving.rungs if self.halving else ((0, self.config.train.epochs),)

    @property
    def sizes(self) -> list[int]:
        """How many trials each rung trains."""
        sizes = [self.count]
        while len(sizes) < len(self.rungs):
            assert self.halving is not None, "without halving there is one rung"
            sizes.append(kept(sizes[-1], self.halving.factor))
        return [size * len(self.seeds) for size in sizes]

    @property
    def work(self) -> float:
        """How many whole trainings it is worth: a trial that is left behind counts in part."""
        epochs = self.config.train.epochs
        rungs = zip(self.rungs, self.sizes, strict=True)
        return sum(size * (end - start) / epochs for (start, end), size in rungs)

    @property
    def key(self) -> str:
        """Twelve digits for what was asked, its code and its data; axis and width follow."""
        asked = {**self.asked, "code": code_hash(self.code)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def asked(self) -> dict[str, Any]:
        """The question: all but the code, and what was chosen for this machine."""
        return {
            "config": config_hash(self.config),
            "space": spaces.to_json(self.space),
            "search": self.search,
            "settings": [dict(setting) for setting in self.settings],
            "halve": self.halve,
            "objective": [self.objective, self.higher],
            "data": self.data,
        }

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads back."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "config": to_mapping(self.config),
            "space": spaces.to_json(self.space),
            "settings": [dict(setting) for setting in self.settings],
            "code": dict(self.code),
            "accepted": [dict(code) for code in self.accepted],
        }


def from_json(stored: Mapping[str, Any], *, where: str) -> Plan:
    """What `Plan.to_json` made."""
    return Plan(
        **{
            **stored,
            "config": from_mapping(stored["config"], where=where),
            "space": spaces.from_json(stored["space"]),
            "settings": tuple(stored["settings"]),
            "accepted": tuple(stored["accepted"]),
        }
    )


def read_plan(directory: str | Path) -> Plan:
    """The plan of a sweep's directory; `UserError` (2) where there is none, or a damaged one."""
    path = Path(directory) / FILE
    stored = read_json(path, remedy="remove it and give the sweep's command again: blocks stay")
    if not stored:
        near = [str(other.parent) for other in path.parent.parent.glob(f"*/{FILE}")]
        hint = did_you_mean(str(path.parent), near) or (
            f"; give a directory such as runs/NAME/sweeps/KEY that holds {FILE}"
        )
        raise UserError(f"{directory} is no sweep{hint}")
    try:
        return from_json(stored, where=str(path))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is of another version of this program ({error}): give the sweep's command "
            "again, which begins a new one beside it"
        ) from None


def write_plan(directory: Path, plan: Plan) -> Plan:
    """Write the plan unless somebody has; return the one that is there.

    Two processes may find different axes faster: what the first one wrote holds for both.
    """
    with cannot_write_is_one_line(directory):
        make_directory(directory)
        write_json_once(directory / FILE, plan.to_json())
    return read_plan(directory)


def code_of(
    config: ExperimentConfig, space: Space, settings: Sequence[Mapping[str, Any]] = ()
) -> dict[str, str]:
    """By file, what training any configuration of the sweep executes; prototypes are files, too."""
    said = [to_mapping(config), spaces.to_json(space), list(settings)]
    files = executed(TRAINS, words=set(words_of(said)))
    for name in taken("penalty.name", config, space, settings):
        if name.partition(":")[0].endswith(".py"):
            from experiments.training.prototypes import sources  # imports jax

            files |= sources(replace(config, penalty=replace(config.penalty, name=name)))
    return files


def data_of(config: ExperimentConfig) -> str:
    """The digest of the data set that every configuration of the sweep is trained on."""
    return datasets.load(config.data.name).sha256


def taken(
    key: str, config: ExperimentConfig, space: Space, settings: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Every value that a key has in some configuration of the sweep; of a range, the ends."""
    default = values_of(config)[key]
    named = {setting.get(key, default) for setting in settings}
    return sorted(space[key].ends if key in space else named or {default})


def refuse_other_code(plan: Plan, directory: str | Path) -> None:
    """`UserError` (2) that names the files, where this process would train by other code."""
    code = code_of(plan.config, plan.space, plan.settings)
    if code != plan.code and code not in plan.accepted:
        raise UserError(
            f"{directory} was begun by other code, which differs in "
            f"{listed(changed_files(plan.code, code))}: give the sweep's command again for one of "
            "its own, or --accept-code to mix the two"
        )


def accept(plan: Plan, directory: Path) -> Plan:
    """Note in the plan that the code of this process goes on with it, too."""
    code = code_of(plan.config, plan.space, plan.settings)
    if code == plan.code or code in plan.accepted:
        return plan
    plan = replace(plan, accepted=(*plan.accepted, code))
    write_json(directory / FILE, plan.to_json())
    return plan


def accept_machines(plan: Plan, directory: Path) -> Plan:
    """Note in the plan that machines which compute other last digits go on with it, too."""
    if plan.mixed:
        return plan
    plan = replace(plan, mixed=True)
    write_json(directory / FILE, plan.to_json())
    return plan


def same_question(plan: Plan, folder: Path) -> Path | None:
    """The newest sweep in a folder that asks for the same, by other code; None if there is none."""
    found = sorted(folder.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        try:
            if read_plan(path.parent).asked == plan.asked:
                return path.parent
        except UserError:
            continue  # damaged: whoever asks for that sweep is told
    return None
