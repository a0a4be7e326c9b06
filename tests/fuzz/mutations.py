"""Damage: of bytes, of text, and of the structure of JSON."""

import json
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

Mutation = Callable[[np.random.Generator, bytes], bytes]

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
WORDS = (
    "", ".", "..", "/", "//etc/passwd", "/etc/passwd", "../outside/secret", "C:\\x", "nul", "\x00",
    "a$b^{$c", "=1+1", "\x1b[2J", "\u202e", "\ud800", "x" * 3000, "é", "-0", "nan", "1e999", "None",
    "__proto__", "../outside/secret.safetensors", "../../outside/dense.weight",
)  # fmt: skip


def damage(rng: np.random.Generator, content: bytes) -> bytes:
    """One to three mutations, of structure where there is any."""
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.6 and (tree := _tree(content)) is not None:
            content = json.dumps(_branch(rng, tree)).encode()
        else:
            content = MUTATIONS[rng.integers(len(MUTATIONS))](rng, content)
    return content


def word(rng: np.random.Generator) -> str:
    """Text that nobody expects."""
    return str(rng.choice(np.array(WORDS, dtype=object)))


def _flip(rng: np.random.Generator, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 5) if content else 0):
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
    return bytes(damaged)


def _number(rng: np.random.Generator, content: bytes) -> bytes:
    """A length, an offset or a count that lies."""
    value, layout = NUMBERS[rng.integers(len(NUMBERS))], "bhiqBHIQ"[rng.integers(8)]
    number = struct.pack("<q", value)[: struct.calcsize(layout)]
    at = int(rng.integers(len(content) + 1))
    order = 1 if rng.random() < 0.7 else -1
    return content[:at] + number[::order] + content[at + len(number) :]


def _cut(rng: np.random.Generator, content: bytes) -> bytes:
    return content[: rng.integers(len(content) + 1)]


def _drop(rng: np.random.Generator, content: bytes) -> bytes:
    start, end = _slice(rng, content)
    return content[:start] + content[end:]


def _repeat(rng: np.random.Generator, content: bytes) -> bytes:
    start, end = _slice(rng, content)
    return content[:end] + content[start:end] * int(rng.integers(1, 5)) + content[end:]


def _insert(rng: np.random.Generator, content: bytes) -> bytes:
    at = int(rng.integers(len(content) + 1))
    return content[:at] + rng.bytes(int(rng.integers(1, 9))) + content[at:]


def _digits(rng: np.random.Generator, content: bytes) -> bytes:
    """Another number where one stands as text."""
    found = list(re.finditer(rb"\d+", content[:100_000]))
    if not found:
        return _flip(rng, content)
    at = found[rng.integers(len(found))]
    number = NUMBERS[rng.integers(len(NUMBERS))]
    return content[: at.start()] + str(number).encode() + content[at.end() :]


def _slice(rng: np.random.Generator, content: bytes) -> tuple[int, int]:
    start = int(rng.integers(len(content) + 1))
    return start, min(len(content), start + int(rng.integers(1, 65)))


MUTATIONS: tuple[Mutation, ...] = (_flip, _flip, _number, _number, _cut, _drop, _repeat, _insert,
                                   _digits)  # fmt: skip


def _tree(content: bytes) -> Any:
    try:
        return json.loads(content) if content[:1] in (b"{", b"[") else None
    except (ValueError, RecursionError):
        return None


def _branch(rng: np.random.Generator, tree: Any) -> Any:
    """The tree with one node, at any depth, replaced, renamed, removed or doubled."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.15:
        return _odd(rng, tree)
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key = keys[rng.integers(len(keys))]
    changed = tree.copy()
    if rng.random() < 0.6:
        changed[key] = _branch(rng, tree[key])
    elif isinstance(changed, dict):
        value = changed.pop(key)
        if rng.random() < 0.7:
            changed[word(rng)] = value
    elif rng.random() < 0.5:
        del changed[key]
    else:
        changed.append(tree[key])
    return changed


def _odd(rng: np.random.Generator, node: Any) -> Any:
    deep: Any = 1
    for _ in range(int(rng.integers(200))):
        deep = [deep]
    odd = (None, True, 0.5, -0.0, [], {}, [node] * 3, {"a": node}, deep, word(rng), word(rng),
           NUMBERS[rng.integers(len(NUMBERS))], NUMBERS[rng.integers(len(NUMBERS))])  # fmt: skip
    return odd[rng.integers(len(odd))]
