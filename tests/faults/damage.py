"""Files as a crash, a second coordinator or a bad disk might leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

Damage = Callable[[Path, Random], str]  # says what was done


def tear_log(directory: Path, random: Random) -> str:
    """The last line is there in part."""
    path = directory / "trials.jsonl"
    lines = _lines(path)
    if not lines:
        return "the log is empty"
    cut = random.randrange(1, len(lines[-1]))
    path.write_bytes(b"".join(lines)[:-cut])
    return f"{cut} bytes off a line of {len(lines[-1])}"


def repeat_log(directory: Path, random: Random) -> str:
    """The last lines are there twice, as two coordinators might write them."""
    path = directory / "trials.jsonl"
    lines = _lines(path)
    count = random.randint(1, 3)
    path.write_bytes(b"".join([*lines, *lines[-count:]]))
    return f"{len(lines[-count:])} lines"


def flip_log(directory: Path, random: Random) -> str:
    """A digit in some line is another one."""
    path = directory / "trials.jsonl"
    content = bytearray(b"".join(_lines(path)))
    digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    if not digits:
        return "the log is empty"
    place = random.choice(digits)
    content[place] = ord(str((int(chr(content[place])) + 1) % 10))
    path.write_bytes(content)
    return f"byte {place} of {len(content)}"


def truncate_checkpoint(directory: Path, random: Random) -> str:
    """A file of the newest checkpoint of all lost its second half; says which checkpoint."""
    saved = directory.glob("blocks/*/attempts/*/checkpoints/*")
    steps = [path for path in saved if path.name.isdecimal()]
    if not steps:
        return "there is no checkpoint"
    newest = max(steps, key=lambda path: path.stat().st_mtime)
    file = max(newest.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return str(newest.relative_to(directory))


DAMAGES: tuple[Damage, ...] = (tear_log, repeat_log, flip_log, truncate_checkpoint)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []
