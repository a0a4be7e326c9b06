"""Sharded checkpoints: a JSON index of which file beside it holds which tensor."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from spectral_jax.checkpoints._base import (
    CheckpointError,
    LeftOut,
    Source,
    Tensor,
    beside,
    one_line,
)
from spectral_jax.checkpoints._safetensors import MAX_HEADER, is_safetensors, parse_json

Opener = Callable[[Path, ExitStack], tuple[str, Source]]


def is_index(path: Path) -> bool:
    """Whether a file is JSON, so that it may be an index."""
    with path.open("rb") as file:
        head = file.read(64)
    return head.lstrip()[:1] == b"{" and not is_safetensors(head)


def open_index(path: Path, resources: ExitStack, open_shard: Opener) -> tuple[str, Source]:
    """The tensors of all shards in the order of the index, and the format of the first shard."""
    shards: dict[str, Source] = {}
    formats: list[str] = []
    tensors: dict[str, Tensor] = {}
    skipped = LeftOut(path)
    weight_map = _weight_map(path)
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(path, f"the shard of {name!r:.80} is {shard!r:.80}, no file name")
        if shard not in shards:
            file = beside(path, shard)
            if is_index(file):
                raise CheckpointError(path, f"names the shard {shard!r:.80}, which is an index too")
            with one_line(file):
                format, shards[shard] = open_shard(file, resources)
            formats.append(format)
        held = shards[shard]
        if name in held.tensors:
            tensors[name] = held.tensors[name]
        elif name in held.skipped:
            skipped[name] = held.skipped[name]
        else:
            raise CheckpointError(path, f"promises {name!r:.80} in {shard!r:.80}, which lacks it")
    tied = {
        name: first
        for shard in shards.values()
        for name, first in shard.tied.items()
        if name in tensors and first in tensors
    }

    def read(name: str) -> np.ndarray:
        return shards[weight_map[name]].read(name)

    return formats[0], Source(tensors, read, skipped, tied)


def _weight_map(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_HEADER:
        raise CheckpointError(path, "is too long for the index of a sharded checkpoint")
    weight_map = parse_json(path, path.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(path, "is JSON, but not the index of a sharded checkpoint")
    return weight_map
