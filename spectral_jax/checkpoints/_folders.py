"""The checkpoint that a folder stands for: a file of a usual name, or what Orbax keeps in folders.

An Orbax checkpoint is a folder with metadata. A manager of checkpoints makes a folder a step, and
in it one an item (``default``, unless its caller names them: ``params``, ``state``).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from spectral_jax.checkpoints._base import CheckpointError
from spectral_jax.checkpoints._msgpack import is_msgpack

USUAL_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "flax_model.msgpack.index.json",
    "flax_model.msgpack",
)
ORBAX_MARKS = ("_METADATA", "manifest.ocdbt")
# Names of steps: bare, as Orbax and Flax write them, and as the Trainer of transformers does.
STEP = re.compile(r"(?:(?:step|checkpoint|ckpt|epoch|iter)s?[-_]?)?(\d{1,18})", re.ASCII)
# A manager of Orbax takes any word before the number, and leaves its mark in the folder of a step.
PREFIXED_STEP = re.compile(r".+_(\d{1,18})", re.ASCII)
STEP_MARK = "_CHECKPOINT_METADATA"
NAMED = 5  # steps or items in a message


def checkpoint_in(folder: Path, step: int | None = None) -> Path:
    """The file or Orbax folder that ``folder`` stands for: its own, or that of a step in it.

    Of the steps that hold a checkpoint the newest, unless ``step`` says which; what is named like a
    step and holds none is passed over.
    """
    if step is not None:
        return _one(folder, _holdings(_at_step(folder, step)))
    found = _own(folder)
    if not found:
        held = (_holdings(place) for _, place in _steps(folder))
        found = next(filter(None, held), []) or _items(folder)
    return _one(folder, found)


def _at_step(folder: Path, step: int) -> Path:
    held = [(number, place) for number, place in _steps(folder) if _holdings(place)]
    for number, place in held:
        if number == step:
            return place
    there = ", ".join(str(number) for number, _ in held[:NAMED])
    more = ", ..." if len(held) > NAMED else ""
    raise CheckpointError(
        folder, f"has no step {step}: " + (f"there is {there}{more}" if held else "it has no steps")
    )


def _steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """What in it is named like a step, newest first: folders, and files as Flax wrote them."""
    numbered = ((_step_number(place), place) for place in folder.iterdir())
    found = [(number, place) for number, place in numbered if number is not None]
    return iter(sorted(found, reverse=True))


def _step_number(place: Path) -> int | None:
    named = STEP.fullmatch(place.name)
    if not named and (place / STEP_MARK).is_file() and not _own(place):
        named = PREFIXED_STEP.fullmatch(place.name)
    return int(named[1]) if named else None


def _holdings(place: Path) -> list[Path]:
    if place.is_dir():
        return _own(place) or _items(place)
    return [place] if place.is_file() and is_msgpack(place) else []


def _own(folder: Path) -> list[Path]:
    """The checkpoint that lies in the folder itself; several if nothing says which it is."""
    for name in USUAL_NAMES:
        if (folder / name).is_file():
            return [folder / name]
    if any((folder / mark).exists() for mark in ORBAX_MARKS):
        return [folder]
    return sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))


def _items(folder: Path) -> list[Path]:
    """The Orbax checkpoints in folders of other names than those of steps."""
    inside = (place for place in sorted(folder.iterdir()) if place.is_dir())
    return [
        place
        for place in inside
        if not STEP.fullmatch(place.name) and any((place / mark).exists() for mark in ORBAX_MARKS)
    ]


def _one(folder: Path, found: list[Path]) -> Path:
    if not found:
        raise CheckpointError(folder, "is a directory without a checkpoint")
    if len(found) > 1:
        names = ", ".join(place.name for place in found[:NAMED])
        more = ", ..." if len(found) > NAMED else ""
        raise CheckpointError(
            found[0].parent,
            f"holds {len(found)} checkpoints: point at one of {names}{more}",
        )
    return found[0]
