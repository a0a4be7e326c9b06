"""What a sweep searches: for each dotted key of the configuration, the values it may take.

    words = ["train.epochs=20", "penalty.strength=log(1e-5,1e-1,8)", "penalty.name=[l1, l2]"]
    settings, space = divide(words)     # (["train.epochs=20"], {"penalty.strength": Log(...), ...})
    check(space, config)
    configure(config, {"penalty.strength": 1e-3, "penalty.name": "l1"})

In Python a space is a plain dict, ``{"penalty.strength": Log(1e-5, 1e-1, 8)}``. A range that makes
no sense is the ``ValueError`` of its class there, and a `UserError` on the command line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from experiments.config import (
    ExperimentConfig,
    apply_settings,
    parse_yaml,
    require_key,
    values_of,
)
from experiments.errors import UserError
from experiments.names import did_you_mean

MOST_VALUES = 10**5  # of one key: a grid of more is a mistake, and would fill the memory
LARGEST = 1e300  # size of a number: between larger ones one cannot compute

# Which examples a setting is scored on: where they differ, the easiest ones win.
OF_VALIDATION = ("data.name", "data.split", "data.subsets", "data.validation")
OF_TEST = ("data.name", "data.split", "data.test_limit")
_JUDGED = (
    "settings would be scored on different examples, and the one with the easiest would win; run a "
    "sweep for each value, and compare takes all of their directories"
)
NOT_SEARCHED = {
    **dict.fromkeys((*OF_VALIDATION, *OF_TEST), _JUDGED),
    "name": "it names the folder and decides no number",
    "train.seed": "all settings are trained with the same seeds, so that they can be compared",
    "train.seeds": "all settings are trained with the same seeds, so that they can be compared",
    "train.seed_axis": "it decides how numbers are computed, not which",
    "train.shard": "it decides how numbers are computed, not which",
}


class Values(Protocol):
    """The values of one key."""

    @property
    def size(self) -> int | None:
        """How many there are; None where there is a value between any two."""

    @property
    def ends(self) -> Sequence[Any]:
        """Those that a configuration has to accept for it to accept all."""

    def grid(self) -> list[Any]:
        """The values of a grid search; ``ValueError`` where no count says how many."""

    def at(self, u: float) -> Any:
        """The value at ``0 <= u < 1``: uniform in ``u``, or in its logarithm for `Log`."""

    def to_json(self) -> dict[str, list[Any]]:
        """JSON that `from_json` reads back."""


Space = Mapping[str, Values]


@dataclass(frozen=True)
class _Range:
    """What `Log` and `Lin` have in common."""

    low: float
    high: float
    count: int | None = None
    size: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, _number(f"{self._name}: {name}", getattr(self, name)))
        if self.count is not None:
            expected = "an integer >= 2, for both ends are taken; for one value write key=value"
            count = _integer(f"{self._name}: count", self.count, expected, least=2)
            object.__setattr__(self, "count", count)
        _refuse_reversed(self)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return self.low, self.high

    def grid(self) -> list[float]:
        """``count`` values, the first and the last exactly ``low`` and ``high``."""
        if self.count is None:
            counted = f"{str(self)[:-1]},8)"
            raise ValueError(f"{self} has no count, which a grid needs; write {counted}")
        _refuse_too_many(self, self.count)
        places = (place / (self.count - 1) for place in range(1, self.count - 1))
        # To 12 digits: a default of 0.001 is to be among them, and not 0.000999999999999999.
        inside = (self._clipped(float(f"{self.at(place):.12g}")) for place in places)
        found = [self.low, *inside, self.high]
        if len(set(found)) < len(found):
            raise ValueError(f"{self}: so many numbers of 12 digits do not lie between the ends")
        return found

    def at(self, u: float) -> float:
        """The value at ``0 <= u < 1``."""
        raise NotImplementedError

    def to_json(self) -> dict[str, list[Any]]:
        """``{"log": [low, high, count]}``."""
        return {self._name: [self.low, self.high, self.count]}

    def __str__(self) -> str:
        count = "" if self.count is None else f",{self.count}"
        return f"{self._name}({self.low!r},{self.high!r}{count})"

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def _clipped(self, value: float) -> float:
        return min(max(value, self.low), self.high)


class Log(_Range):
    """Numbers from ``low`` to ``high``, spread evenly by factor: rates, strengths.

    ``count`` is how many a grid takes, both ends included; random and TPE take any between.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(
                f"{self}: a logarithmic range needs low > 0; use lin, or a list that begins with 0"
            )

    def at(self, u: float) -> float:
        """``low (high / low)^u``."""
        low, high = math.log10(self.low), math.log10(self.high)  # high / low might overflow
        return self._clipped(10 ** (low + u * (high - low)))


class Lin(_Range):
    """Numbers from ``low`` to ``high``, spread evenly; ``count`` as in `Log`."""

    def at(self, u: float) -> float:
        """``low + u (high - low)``."""
        return self._clipped((1 - u) * self.low + u * self.high)


@dataclass(frozen=True)
class Int:
    """The integers from ``low`` to ``high``, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            end = _integer(f"int: {name}", getattr(self, name), "an integer; lin has fractions")
            object.__setattr__(self, name, end)
        _refuse_reversed(self)

    @property
    def size(self) -> int:
        """How many integers there are."""
        return self.high - self.low + 1

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the greatest value."""
        return self.low, self.high

    def grid(self) -> list[int]:
        """Every integer."""
        _refuse_too_many(self, self.size)
        return list(range(self.low, self.high + 1))

    def at(self, u: float) -> int:
        """Each integer for an equal share of ``u``."""
        return min(self.low + math.floor(u * self.size), self.high)

    def to_json(self) -> dict[str, list[Any]]:
        """``{"int": [low, high]}``."""
        return {"int": [self.low, self.high]}

    def __str__(self) -> str:
        return f"int({self.low},{self.high})"


@dataclass(frozen=True)
class Choice:
    """These values and no others: numbers, strings, ``None`` or lists of them."""

    values: Sequence[Any]

    def __post_init__(self) -> None:
        if isinstance(self.values, str) or not isinstance(self.values, Iterable):
            raise ValueError(f"Choice: values = {self.values!r}: expected a list, as in [1, 2]")
        values = tuple(map(settled, self.values))
        if not values:
            raise ValueError("an empty list has no values to try; write [a, b, c]")
        object.__setattr__(self, "values", values)
        known = set()
        for value in values:
            if (text := as_text(value)) in known:
                raise ValueError(f"{value!r} stands in the list twice")
            known.add(text)

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def ends(self) -> Sequence[Any]:
        """All of them: a configuration may accept any or none."""
        return self.values

    def grid(self) -> list[Any]:
        """All of them, in order."""
        return list(self.values)

    def at(self, u: float) -> Any:
        """Each value for an equal share of ``u``."""
        return self.values[min(math.floor(u * self.size), self.size - 1)]

    def to_json(self) -> dict[str, list[Any]]:
        """``{"choice": [a, b, c]}``."""
        return {"choice": list(self.values)}

    def __str__(self) -> str:
        return json.dumps(list(self.values), ensure_ascii=False)


RANGES: Mapping[str, Any] = {"log": Log, "lin": Lin, "int": Int}
FORMS = {
    "log": "log(low,high) or log(low,high,count), as in log(1e-5,1e-1,8)",
    "lin": "lin(low,high) or lin(low,high,count), as in lin(0,0.5,6)",
    "int": "int(low,high), as in int(1,8)",
}


def divide(words: Sequence[str]) -> tuple[list[str], dict[str, Values]]:
    """The settings and the space among the ``key=...`` of a command line.

    Raises ``UserError`` (2) where a key has two spaces, or a space and a setting.
    """
    settings = [word for word in words if not is_space(word)]
    space: dict[str, Values] = {}
    for key, values in map(parse, filter(is_space, words)):
        if key in space:
            raise UserError(f"{key} is searched twice: in {space[key]} and in {values}; keep one")
        space[key] = values
    for word in settings:
        key = word.partition("=")[0]
        if key in space:
            raise UserError(f"{word} sets what is searched in {key}={space[key]}; keep one")
    return settings, space


def is_space(word: str) -> bool:
    """Whether ``key=...`` says what to search: ``name(...)`` or a list.

    Of a key that holds a list itself, ``model.hidden=[64, 64]`` is a setting, and a list of lists
    is a space: ``model.hidden=[[64, 64], [128]]``.
    """
    key, _, text = word.partition("=")
    text = text.strip()
    if re.match(r"\w+\(", text):
        return True
    if not text.startswith("["):
        return False
    return not _holds_a_list(key) or text[1:].lstrip().startswith("[")


def parse(word: str) -> tuple[str, Values]:
    """Read ``key=log(1e-5,1e-1,8)``, ``key=lin(a,b,n)``, ``key=int(a,b)`` or ``key=[a, b, c]``.

    Numbers are the YAML of configuration files. Raises ``UserError`` (2) for anything else, an
    unknown key and a range that makes no sense.
    """
    key, equals, text = word.partition("=")
    if not equals:
        raise UserError(f"{word!r} is no space; write key=log(1e-5,1e-1,8) or key=[a, b]")
    require_key(key, where="space")
    try:
        return key, _values_of(key, text.strip())
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


def to_json(space: Space) -> dict[str, dict[str, list[Any]]]:
    """JSON that `from_json` reads back, in the order of the space."""
    return {key: values.to_json() for key, values in space.items()}


def from_json(stored: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Values]:
    """What `to_json` made."""
    space: dict[str, Values] = {}
    for key, ((name, arguments),) in ((key, one.items()) for key, one in stored.items()):
        space[key] = Choice(arguments) if name == "choice" else RANGES[name](*arguments)
    return space


def check(space: Space, config: ExperimentConfig) -> None:
    """``UserError`` (2) for a key that cannot be searched, or a value that the config refuses.

    Each value is tried while the other keys have their first one, so what two keys allow only
    together is seen; the rest is seen where a setting is applied, with `configure`.
    """
    require_searchable(space)
    for key, values in space.items():
        if not hasattr(values, "grid"):
            raise UserError(f"space: {key} = {values!r}: expected Log, Lin, Int or Choice")
    first = {key: values.ends[0] for key, values in space.items()}
    for key, values in space.items():
        for value in values.ends:
            apply_settings(config, {**first, key: value}, where=f"space {key}={values}")


def require_searchable(keys: Iterable[str]) -> None:
    """``UserError`` (2) for what is no key of a configuration, or the same for a whole sweep."""
    for key in keys:
        require_key(key, where="space")
        if key in NOT_SEARCHED:
            raise UserError(f"space: {key} cannot be searched: {NOT_SEARCHED[key]}")


def configure(config: ExperimentConfig, setting: Mapping[str, Any]) -> ExperimentConfig:
    """``config`` with the values of a setting; ``UserError`` (2) that names key and value."""
    shown = ", ".join(f"{key}={value}" for key, value in setting.items())
    return apply_settings(config, setting, where=f"setting {shown}")


def settled(value: Any) -> Any:
    """A value as JSON has it; ``ValueError`` for one that no configuration can hold."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [settled(item) for item in value]
    if isinstance(value, (int, float)) and not abs(value) <= LARGEST:
        raise ValueError(f"{value!r}: expected numbers of a size up to {LARGEST:g}")
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{value!r}: expected text of one printable line")
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"{value!r}: expected a number, a string, null or a list")
    return value


def as_text(value: Any) -> str:
    """The same text for what is the same value in a configuration, as 1 and 1.0 are."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return json.dumps(float(value) if number else value)


def shown(value: Any) -> str:
    """A value as a command line takes it; of a number all digits.

    >>> shown(1e-3), shown("l2"), shown([64, 64]), shown(None)
    ('0.001', 'l2', '[64, 64]', 'null')
    """
    return value if isinstance(value, str) else json.dumps(value)


def short(value: Any) -> str:
    """A value in a table for a person: a number to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _values_of(key: str, text: str) -> Values:
    call = re.fullmatch(r"(\w+)\((.*)\)", text)
    name = call[1] if call else ""
    values = parse_yaml(f"[{call[2]}]" if call else text, where=f"space {key}")
    if call is None and isinstance(values, list):
        return Choice(values)
    if name not in RANGES:
        typo = did_you_mean(name, RANGES)
        raise ValueError(f"{text!r} is no space{typo}; write {'; '.join(FORMS.values())}; [a, b]")
    if not 2 <= len(values) <= len(fields(RANGES[name])):
        raise ValueError(f"{text} has {len(values)} numbers; write {FORMS[name]}")
    return RANGES[name](*values)


def _holds_a_list(key: str) -> bool:
    return isinstance(values_of(ExperimentConfig("any")).get(key), list)


def _number(name: str, value: Any) -> float:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise ValueError(f"{name} = {value!r}: expected a number, of a size up to {LARGEST:g}")
    return float(value)


def _integer(name: str, value: Any, expected: str, *, least: float = -math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} = {value!r}: expected {expected}")
    return int(value)


def _refuse_too_many(values: Values, count: int) -> None:
    if count > MOST_VALUES:
        raise ValueError(f"{values} has {count:,} values, more than the {MOST_VALUES:,} of a grid")


def _refuse_reversed(values: _Range | Int) -> None:
    if values.low == values.high:
        raise ValueError(f"{values} is one value; write key={values.low}")
    if values.low > values.high:
        raise ValueError(f"{values} is reversed; write the smaller end first")
