"""What defines an experiment: frozen dataclasses, read from YAML, checked to the last key.

    config = load_yaml("experiment.yaml")
    config = apply_overrides(config, ["train.epochs=3", "model.hidden=[64, 64]"])
    config_hash(config)

A mistake in a file or on the command line is a `UserError` that names the key, the value and the
fix; a mistake in Python code that builds a config is the `ValueError` of the dataclass.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from experiments.errors import MISSING, UserError
from experiments.names import did_you_mean

# A published number may need one of these departures from the default behaviour; the reasons are
# in the paper modules that use them.
PAPER_COMPAT = (
    "coupled_l2",
    "dropout_at_eval",
    "epoch_start_and_every_100",
    "half_gradient",
    "l1_biases",
    "relu_logits",
    "rescale_units",
    "whole_graph",
)

# What no experiment here can mean: refused before anything is written or allocated.
MOST = 10**9
MOST_UNITS = 10**6
MOST_SEEDS = 10**4
SEEDS = 2**32  # a key is made of 32 bits: seed 2^32 would repeat seed 0
LONGEST_NAME = 120
LARGEST_FILE = 1 << 20
DEEPEST = 16

BalanceMetric = Literal[
    "none", "hill", "farms", "debiased", "shape_only", "shuffled", "random_windows"
]


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {_shown(value)}: expected {expected}")


def _shown(value: Any) -> str:
    """What was given, short enough to leave room for what was expected."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)


def _require_count(name: str, value: int, *, least: int, most: int = MOST) -> None:
    _require(least <= value <= most, name, value, f"an integer >= {least} and <= {most:,}")


@dataclass(frozen=True)
class DataConfig:
    """The data set; `validation` examples are split off the training set, the rest is limited.

    `subsets`: with `own` every seed draws a training and a validation set, and label noise, of its
    own; with `shared` the first seed draws them for all.
    `test_limit` is for networks whose evaluation would cost as much as their training; `augment`
    changes what is trained on, anew every time it is seen.
    """

    name: str = "mnist"
    batch_size: int = 100
    train_limit: int | None = None
    test_limit: int | None = None
    validation: int = 0
    label_noise: float = 0.0
    preprocessing: Literal["standard", "unit", "raw"] = "standard"
    split: Literal["stratified", "released"] = "stratified"
    subsets: Literal["shared", "own"] = "shared"
    augment: Literal["none", "crop_flip"] = "none"

    def __post_init__(self) -> None:
        _require_count("batch_size", self.batch_size, least=1)
        for name in ("train_limit", "test_limit"):
            limit = getattr(self, name)
            if limit is not None:
                _require_count(name, limit, least=1)
        _require_count("validation", self.validation, least=0)
        _require(0 <= self.label_noise <= 1, "label_noise", self.label_noise, "between 0 and 1")


@dataclass(frozen=True)
class ModelConfig:
    """The network: a name in `models`, and the sizes and the initial `gain` that network reads."""

    name: str = "mlp"
    hidden: tuple[int, ...] = (500, 500, 500)
    dropout: float = 0.0
    depth: int = 20
    width: int = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"
    gain: float | None = None

    def __post_init__(self) -> None:
        gain = self.gain
        _require(gain is None or 0 < gain < math.inf, "gain", gain, "a finite number > 0, or null")
        sizes = all(1 <= width <= MOST_UNITS for width in self.hidden)
        _require(sizes, "hidden", list(self.hidden), f"widths >= 1 and <= {MOST_UNITS:,}")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "0 <= dropout < 1")
        _require_count("depth", self.depth, least=1, most=1000)
        _require_count("width", self.width, least=1, most=MOST_UNITS)


@dataclass(frozen=True)
class OptimizerConfig:
    """The gradient step; Adam does not read `momentum`.

    `schedule` lowers the rate to 0 along a half cosine: at every step, or, as published for FARMS
    and TempBalance, once per epoch. `weight_decay` is added to the gradient, biases and norms
    included, as torch does; by `adamw`, times the rate, to the step instead.
    `trained`: everything, or the `head` alone, the layer that makes the outputs.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    schedule: Literal["constant", "cosine", "cosine_by_epoch"] = "constant"
    weight_decay: float = 0.0
    trained: Literal["all", "head"] = "all"

    def __post_init__(self) -> None:
        rate, decay = self.learning_rate, self.weight_decay
        _require(0 < rate < math.inf, "learning_rate", rate, "a finite number > 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "0 <= momentum < 1")
        _require(0 <= decay < math.inf, "weight_decay", decay, "a finite number >= 0")


@dataclass(frozen=True)
class BalanceConfig:
    """Layer-wise learning rates from the spectra of the weights, measured every so many epochs.

    `metric`: `hill` is TempBalance; `debiased` subtracts what the shape alone does; `shape_only` is
    that part alone, `shuffled` deals FARMS' exponents to random layers, `random_windows` places
    them anew each time. The maps `linear` and `step` go from `low` to `high` times the rate.
    """

    metric: BalanceMetric = "none"
    assignment: Literal["linear", "sqrt", "log2", "step", "tb_sigmoid", "llr_sigmoid"] = "linear"
    low: float = 0.5
    high: float = 1.5
    refresh_every: int = 1
    tuned: Literal["all", "inner", "not_last"] = "all"
    window: int = 100
    samples: int = 9
    cols_per_row: float = 1.0
    min_eigenvalues: int = 50

    def __post_init__(self) -> None:
        _require(0 <= self.low <= self.high, "low", self.low, f"0 <= low <= high = {self.high:g}")
        ratio = self.cols_per_row
        _require(0 < ratio < math.inf, "cols_per_row", ratio, "a finite number > 0")
        for name in ("refresh_every", "window", "samples", "min_eigenvalues"):
            _require_count(name, getattr(self, name), least=1)


@dataclass(frozen=True)
class PenaltyConfig:
    """The regulariser, its strength, and when a spectral one solves for its vector again."""

    name: str = "none"
    strength: float = 0.0
    mode: Literal["penalty", "proximal"] = "penalty"
    refresh: Literal["residual", "schedule"] = "residual"
    refresh_every: int = 100
    residual_tolerance: float = 0.1

    def __post_init__(self) -> None:
        tolerance = self.residual_tolerance
        _require(0 <= self.strength < math.inf, "strength", self.strength, "a finite number >= 0")
        _require_count("refresh_every", self.refresh_every, least=1)
        _require(0 < tolerance < math.inf, "residual_tolerance", tolerance, "a finite number > 0")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how many seeds (`seed`, `seed + 1`, ...), what to measure and how often.

    `evaluate_every`, `measure_every`: epochs, or text as in `50 steps` and `20 log-spaced`.
    `measures`: names in `experiments.training.measures`: the connectivity of the weight graph
    (`spectra`), the `tails` of each layer's spectrum, its `bulk`, the pull of the `penalty`, the
    `curvature` of the loss, what the `features` hold and their neural `collapse`.
    `stop`: the end of training before its last epoch, as in `features/richness below 0.05 for 3`: a
    metric that is measured, and for how many measurements in a row all seeds are there.
    `features_decay`: the `features` of the training batches themselves are measured too, in moments
    that a step multiplies by so much before it adds its batch; 0: they are not.
    `objective`: a name in `experiments.training.task`; `label_scale` is the size of one-hot labels,
    which `mse` reads.
    `seed_axis`: all seeds in one program, side by side (`vmap`) or in turn (`map`); `auto` takes
    the faster of the two.
    `shard`: all devices share the work: each trains some of the `trials` (seeds) of a block, or has
    some rows of every `batch` (one large network).
    """

    epochs: int = 10
    seeds: int = 5
    seed: int = 0
    evaluate_every: int | str = 1
    measure_every: int | str = 1
    measures: tuple[str, ...] = ("spectra", "penalty")
    stop: str | None = None
    features_decay: float = 0.0
    objective: str = "cross_entropy"
    label_scale: float = 1.0
    seed_axis: Literal["auto", "vmap", "map"] = "auto"
    shard: Literal["none", "trials", "batch"] = "none"

    def __post_init__(self) -> None:
        for name in ("epochs", "evaluate_every", "measure_every"):
            value = getattr(self, name)
            if not isinstance(value, str):
                _require_count(name, value, least=1)
        _require_count("seeds", self.seeds, least=1, most=MOST_SEEDS)
        _require_count("seed", self.seed, least=0, most=SEEDS - self.seeds)
        decay = self.features_decay
        _require(0 <= decay < 1, "features_decay", decay, "at least 0 and below 1")
        scale = self.label_scale
        _require(0 < scale < math.inf, "label_scale", scale, "a finite number > 0")


@dataclass(frozen=True)
class ExperimentConfig:
    """One run: `name` is its folder under `runs/`, the rest decides its numbers."""

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    paper_compat: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        folder = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", self.name)
        _require(
            folder is not None and len(self.name.encode()) <= LONGEST_NAME,
            "name",
            self.name,
            f"letters, digits, '_', '-', '.' and '/' only, at most {LONGEST_NAME} bytes",
        )
        for option in self.paper_compat:
            _require(
                option in PAPER_COMPAT,
                "paper_compat",
                option,
                f"names among {', '.join(PAPER_COMPAT)}{did_you_mean(option, PAPER_COMPAT)}",
            )


@dataclass(frozen=True)
class StudyConfig:
    """A measurement that is not a training run: its folder, and all that decides its numbers."""

    name: str
    options: Mapping[str, Any]


def from_mapping(mapping: Mapping[str, Any], *, where: str) -> ExperimentConfig:
    """Check a nested mapping and build the config; `where` names its origin in the messages.

    Raises `UserError` (exit 2) for an unknown key, a missing `name`, a wrong type or a bad value.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"{where}: expected a mapping of keys, got {type(mapping).__name__}")
    _check_keys(mapping, ExperimentConfig, where=where)
    try:
        return _complete(msgspec.convert(mapping, ExperimentConfig, strict=True))
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_explain(str(error), mapping)}") from None


def load_yaml(path: str | Path) -> ExperimentConfig:
    """Read a config file; exit code 4 if it is not there, 2 if it is not a config."""
    try:
        text = read_small_text(Path(path))
    except FileNotFoundError:
        raise UserError(
            f"no file {path}: give the path of a configuration file, or an experiment that "
            "`python -m experiments list` shows",
            MISSING,
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    return from_mapping(parse_yaml(text, where=str(path)), where=str(path))


def apply_overrides(
    config: ExperimentConfig, overrides: Sequence[str], *, where: str = "command line"
) -> ExperimentConfig:
    """Return `config` with `key=value` settings applied; values are YAML, keys are dotted."""
    settings = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{where}: {_shown(override)} is not a setting; write key=value")
        require_key(key, where=where)
        settings[key] = parse_yaml(text, where=f"{where}: {key}")
    return apply_settings(config, settings, where=where)


def apply_settings(
    config: ExperimentConfig, settings: Mapping[str, Any], *, where: str
) -> ExperimentConfig:
    """Return `config` with other values at these dotted keys; `UserError` as in `from_mapping`."""
    mapping = to_mapping(config)
    for key, value in settings.items():
        require_key(key, where=where)
        *parents, last = key.split(".")
        target = mapping
        for parent in parents:
            target = target[parent]
        target[last] = value
    return from_mapping(mapping, where=where)


def require_key(key: str, *, where: str) -> None:
    """`UserError` (2), with the key that was meant, unless `key` is a dotted key of a config."""
    known = dotted_keys()
    if key not in known:
        raise UserError(f"{where}: unknown key {key!r}{_suggest_key(key, known)}")


@cache
def dotted_keys() -> tuple[str, ...]:
    """Every key of an experiment that can be set, as in ``penalty.strength``."""
    return tuple(_dotted_keys(ExperimentConfig))


def parse_yaml(text: str, *, where: str) -> Any:
    """One YAML 1.2 value, exponents and all; `UserError` (2) that begins with `where`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{where}: not valid YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def to_mapping(config: ExperimentConfig | StudyConfig) -> dict[str, Any]:
    """The config as nested dicts and lists, every default written out."""
    return msgspec.json.decode(msgspec.json.encode(config))


def values_of(config: ExperimentConfig) -> dict[str, Any]:
    """Every value by its dotted key: what `apply_settings` would make the same config of.

    >>> values_of(ExperimentConfig("a"))["penalty.strength"]
    0.0
    """
    mapping = to_mapping(config)
    return {key: reduce(operator.getitem, key.split("."), mapping) for key in dotted_keys()}


def dump_yaml(config: ExperimentConfig | StudyConfig) -> str:
    """The config as YAML; `load_yaml` reads an experiment's back to an equal config."""
    return yaml.dump(to_mapping(config), Dumper=_Dumper, sort_keys=False)


def config_hash(config: ExperimentConfig | StudyConfig) -> str:
    """SHA-256 of the config's content: the same for 1 and 1.0, and in any order of keys."""
    if isinstance(config, ExperimentConfig):
        config = from_mapping(to_mapping(config), where=f"configuration {config.name!r}")
    text = json.dumps(to_mapping(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_small_text(path: Path) -> str:
    """The text of a regular file of at most ``LARGEST_FILE`` bytes; a pipe or a device may hang."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as stream:
        content = stream.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE >> 20} MiB")
    return content.decode()


class _Loader(yaml.SafeLoader):
    """Plain YAML: no aliases (nine lines of them make 10^9 items), no depth, a key only once."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise self._problem("aliases (*name) are not read: write the value out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._problem(f"nested more than {DEEPEST} deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                problem = f"key {name!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def _problem(self, problem: str) -> yaml.MarkedYAMLError:
        return yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)


# The plain values of YAML 1.2, and 1e-3. PyYAML follows 1.1, where 010 is 8, 1:30 is 90, `no` is
# false, 2026-11-29 is a date and 1e-3 is text; here all but the last are text, so that what asks
# for a number says so.
_Loader.yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what looks like a number to this loader, as well as what does to YAML 1.1."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][\d_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?((\d[\d_]*)?\.\d[\d_]*|\d[\d_]*\.)([eE][-+]?\d+)?|[-+]?\d[\d_]*[eE][-+]?\d+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _language in (_Loader, _Dumper):
        _language.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
        )


@cache  # reading them takes most of the time of a config, and a sweep makes thousands
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _dotted_keys(cls: type, prefix: str = "") -> Iterator[str]:
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _dotted_keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _complete(config: Any) -> Any:
    """With its defaults stored: msgspec leaves them in the class, and encodes what is stored.

    Else a configuration file that does not say a default would have another hash than one that
    does, and a run's config.yaml would not hold it.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    sections = {name: _complete(v) for name, v in values.items() if dataclasses.is_dataclass(v)}
    return dataclasses.replace(config, **sections)


def _check_keys(mapping: Mapping[str, Any], cls: type, *, where: str, prefix: str = "") -> None:
    hints = _hints(cls)
    for key, value in mapping.items():
        if key not in hints:
            close = did_you_mean(str(key), list(hints), prefix=prefix)
            suggestion = close or _suggest_key(str(key), dotted_keys())
            raise UserError(f"{where}: unknown key '{prefix}{key}'{suggestion}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            nested = typing.cast(type, hints[key])
            _check_keys(value, nested, where=where, prefix=f"{prefix}{key}.")


def _suggest_key(key: str, known: Sequence[str]) -> str:
    """Suggest the dotted key that `key` misspells, or the one whose last part it is."""
    same_ending = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    close = f"; did you mean {same_ending[0]!r}?" if same_ending else did_you_mean(key, known)
    return close or f"; known keys: {', '.join(known)}"


def _explain(message: str, mapping: Mapping[str, Any]) -> str:
    """Turn msgspec's message into `key = value: expected type`."""
    problem, _, path = message.partition(" - at `$")
    keys = re.findall(r"\w+", re.sub(r"\[.*?\]", "", path))
    missing = re.search(r"missing required field `(\w+)`", problem)
    if missing:
        return f"key {missing[1]!r} is missing; add a line such as `{missing[1]}: my-experiment`"
    value, hint = mapping, typing.cast(Any, ExperimentConfig)
    for key in keys:
        value, hint = value[key], _hints(hint)[key]
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        # A check in __post_init__ failed: its message already names the key inside this section.
        return ".".join([*keys, problem])
    return f"{'.'.join(keys)} = {_shown(value)}: expected {_describe(hint, value)}"


def _describe(hint: Any, value: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(arguments)}{did_you_mean(str(value), arguments)}"
    if origin is types.UnionType:
        return " or ".join(_describe(part, value) for part in arguments)
    if origin is tuple:
        example = "[64, 64]" if arguments[0] is int else "[a, b]"
        return f"a list of {_describe(arguments[0], value)}, such as {example}"
    if dataclasses.is_dataclass(hint):
        return f"a mapping with keys among {', '.join(_hints(typing.cast(type, hint)))}"
    names = {int: "int", float: "float", str: "str", types.NoneType: "null"}
    return names[hint]
