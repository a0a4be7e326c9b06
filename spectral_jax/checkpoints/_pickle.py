"""A pickle machine that can only build plain values and stand-ins: it imports and calls nothing."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from spectral_jax.checkpoints._base import MAX_NAME, CheckpointError, take

# Steps that a pickle may take, each of which makes an object or less; a tensor takes some 30.
MAX_STEPS = 1 << 22
MAX_KEY = 8  # parts of a tuple


class Global(NamedTuple):
    """A name that a pickle refers to; never resolved."""

    module: str
    name: str


class Foreign(NamedTuple):
    """What stands for an object of any class that is not known here; nothing is made or called."""

    name: str


class Machine:
    """Interprets one pickle at a time from ``stream``.

    ``calls`` maps names to what a call of them makes from its arguments, or to None if they may not
    be called; a call of any other name makes a `Foreign`, and what is done to that has no effect.
    ``persistent`` makes an object from a persistent id. Tables have plain keys, so that nothing in
    a file is ever hashed or compared.
    """

    def __init__(
        self,
        path: Path,
        stream: IO[bytes],
        calls: dict[Global, Callable[..., Any] | None],
        persistent: Callable[[Any], Any],
    ):
        self.path, self.stream = path, stream
        self.calls, self.persistent = calls, persistent
        self.foreign: str | None = None  # the first name that unpickling would have called

    def load(self) -> Any:
        """The next pickled object; the stream then stands behind it."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0
        while (code := take(self.stream, 1)) != b".":
            self.spend(1)
            if code in VALUES:
                self.stack.append(VALUES[code](self.stream))
            elif code in ACTIONS:
                ACTIONS[code](self)
            else:
                raise CheckpointError(self.path, f"its pickle uses the opcode {code!r}: refused")
        return self.stack.pop()

    def spend(self, steps: int) -> None:
        """Refuse a pickle of few bytes that makes objects without end."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise CheckpointError(
                self.path, f"its pickle makes over {MAX_STEPS} objects: not weights, a bomb"
            )

    def since_mark(self) -> list[Any]:
        """Pop what was pushed since the last mark."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def refer(self, module: Any, name: Any) -> None:
        """Push a stand-in for a name."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a pickled name is not text")
        self.stack.append(Global(module, name))

    def call(self) -> None:
        """Push what calling a stand-in makes."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.made(function, arguments))

    def made(self, function: Any, arguments: Any) -> Any:
        """What a call is answered with."""
        if isinstance(function, Foreign):
            return function
        if isinstance(function, Global) and function not in self.calls:
            name = f"{function.module}.{function.name}"
            self.foreign = self.foreign or name
            return Foreign(name)
        maker = self.calls[function] if isinstance(function, Global) else None
        if maker is None or not isinstance(arguments, tuple):
            raise ValueError("the pickle calls what is no function")
        # An argument may be one large table that is recalled over and over.
        self.spend(sum(len(each) for each in arguments if hasattr(each, "__len__")))
        try:
            return maker(*arguments)
        except TypeError as error:
            raise ValueError(f"a call of {function.name} with the wrong arguments") from error

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top of the stack."""
        if isinstance(self.stack[-1], Foreign):
            return
        if not isinstance(self.stack[-1], list):
            raise ValueError("the pickle appends to what is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Enter pairs into the table on top of the stack."""
        table = self.stack[-1]
        if isinstance(table, Foreign):
            return
        if not isinstance(table, dict) or len(items) % 2:
            raise ValueError("the pickle fills what is no table")
        for key, value in zip(items[::2], items[1::2], strict=True):
            enter(table, key, value)

    def pack(self, count: int) -> None:
        """Replace the top of the stack by a tuple of it."""
        if len(self.stack) < count:
            raise ValueError("the pickle packs more than there is")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def pop(self, count: int) -> list[Any]:
        """Pop some, in the order they were pushed."""
        return [self.stack.pop() for _ in range(count)][::-1]


def enter(table: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an entry; a key that is a tuple or stands for something else becomes text."""
    if isinstance(key, Global | Foreign):
        key = f"({key.name} {len(table)})"
    elif type(key) is tuple and len(key) <= MAX_KEY and all(map(_is_plain, key)):
        key = str(key)[:MAX_NAME]
    if not _is_plain(key):
        raise ValueError("a table in the pickle has keys that are not plain")
    table[key] = value


def _is_plain(key: Any) -> bool:
    # Python hashes text with a secret; of large integers, a file may choose many with one hash.
    return isinstance(key, str | float | None) or (isinstance(key, int) and abs(key) < 1 << 60)


def _number(layout: str) -> Callable[[IO[bytes]], Any]:
    size = struct.calcsize(layout)
    return lambda stream: struct.unpack(layout, take(stream, size))[0]


def _text(layout: str) -> Callable[[IO[bytes]], str]:
    length = _number(layout)
    return lambda stream: take(stream, length(stream)).decode("utf-8", "surrogatepass")


def _line(stream: IO[bytes]) -> str:
    line = stream.readline(1000)
    if not line.endswith(b"\n"):
        raise ValueError("a pickled name does not end")
    return line[:-1].decode("utf-8")


def _long(layout: str) -> Callable[[IO[bytes]], int]:
    length = _number(layout)
    return lambda stream: int.from_bytes(take(stream, length(stream)), "little", signed=True)


def _bytes(layout: str) -> Callable[[IO[bytes]], bytes]:
    length = _number(layout)
    return lambda stream: take(stream, length(stream))


VALUES: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"N": lambda stream: None,
    b"\x88": lambda stream: True,
    b"\x89": lambda stream: False,
    b")": lambda stream: (),
    b"]": lambda stream: [],
    b"}": lambda stream: {},
    b"\x8f": lambda stream: Foreign("builtins.set"),
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"J": _number("<i"),
    b"G": _number(">d"),
    b"\x8a": _long("<B"),
    b"X": _text("<I"),
    b"\x8c": _text("<B"),
    b"\x8d": _text("<Q"),
    b"U": _text("<B"),  # Python 2's strings
    b"T": _text("<I"),
    b"C": _bytes("<B"),
    b"B": _bytes("<I"),
    b"\x8e": _bytes("<Q"),
    b"\x96": _bytes("<Q"),
}


def _remember(machine: Machine, place: int) -> None:
    machine.memo[place] = machine.stack[-1]


def _recall(machine: Machine, place: int) -> None:
    machine.stack.append(machine.memo[place])


def _pack_since_mark(machine: Machine) -> None:
    machine.stack.append(tuple(machine.since_mark()))


def _forget_state(machine: Machine) -> None:
    machine.stack.pop()  # what a state dict carries as attributes: versions of its modules


def _call_with_keywords(machine: Machine) -> None:
    machine.stack.pop()
    machine.call()


def _frozen_set(machine: Machine) -> None:
    machine.since_mark()
    machine.stack.append(Foreign("builtins.frozenset"))


def _persistent(machine: Machine) -> None:
    machine.stack.append(machine.persistent(machine.stack.pop()))


ACTIONS: dict[bytes, Callable[[Machine], object]] = {
    b"\x80": lambda m: _check_protocol(take(m.stream, 1)[0]),
    b"\x95": lambda m: _skip(m.stream, 8),
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"t": _pack_since_mark,
    b"\x85": lambda m: m.pack(1),
    b"\x86": lambda m: m.pack(2),
    b"\x87": lambda m: m.pack(3),
    b"a": lambda m: m.extend(m.pop(1)),
    b"e": lambda m: m.extend(m.since_mark()),
    b"s": lambda m: m.update(m.pop(2)),
    b"u": lambda m: m.update(m.since_mark()),
    b"q": lambda m: _remember(m, take(m.stream, 1)[0]),
    b"r": lambda m: _remember(m, int.from_bytes(take(m.stream, 4), "little")),
    b"\x94": lambda m: _remember(m, len(m.memo)),
    b"h": lambda m: _recall(m, take(m.stream, 1)[0]),
    b"j": lambda m: _recall(m, int.from_bytes(take(m.stream, 4), "little")),
    b"c": lambda m: m.refer(_line(m.stream), _line(m.stream)),
    b"\x93": lambda m: m.refer(*m.pop(2)),
    b"R": Machine.call,
    b"\x81": Machine.call,  # without __init__, which makes no difference here
    b"\x92": _call_with_keywords,
    b"\x90": lambda m: m.extend(m.since_mark()),
    b"\x91": _frozen_set,
    b"0": lambda m: m.pop(1),
    b"1": Machine.since_mark,
    b"b": _forget_state,
    b"Q": _persistent,
}


def _check_protocol(version: int) -> None:
    if not 2 <= version <= 5:
        raise ValueError(f"pickle protocol {version} is not read")


def _skip(stream: IO[bytes], count: int) -> None:
    take(stream, count)
