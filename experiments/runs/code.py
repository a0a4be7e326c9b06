"""The code that a run executes: its key changes when that does, and only then.

    executed(train, words={"mnist", "fiedler"})      # {"experiments/config.py": "6c0a...", ...}

Every definition that the entry reaches inside the repository is followed: names, attributes of
imported modules, imports inside functions, base classes, decorators, defaults, constants. Three
rules:

- Of a *table* (a dict of a module whose keys are constant strings), only the items count whose key
  is a word of the configuration or a string in reached code, where the table is used to look
  something up: ``TABLE[name]``, ``TABLE.get(name)``, ``name in TABLE``, a list of its names. So a
  new penalty, which is a file and an item, changes no key of a run that does not name it. Where it
  is used in any other way (a loop over it, as an argument), all of it counts.
- What cannot be followed counts whole: a module used as a value, so also ``getattr`` on one; and
  where the name of an import is computed, the package in which that is written.
- What a statement does beside binding a name (``f.defvjp(...)``, ``TABLE["x"] = f``) counts with
  what it acts on; if that is elsewhere, it counts as soon as its module is imported. So does a
  definition under a decorator named ``register``.

Other people's packages do not count: a run's provenance has their versions.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.runs.provenance import REPOSITORY
from experiments.runs.source import LOOKUPS, Module, Part, Reference, parse

DOTTED = re.compile(r"\w+(\.\w+)+")
SHOWN_FILES = 8  # of those whose code changed


def executed(
    *entries: Callable[..., Any] | Reference,
    words: Collection[str] = (),
    root: Path = REPOSITORY,
) -> dict[str, str]:
    """Of each file that ``entries`` reach, a digest of what they reach in it.

    ``words``: the strings of the configuration, which name items of tables. A partial or a nested
    function takes along what it holds. Raises ``ValueError`` for an entry that no file defines.
    """
    closure = Closure(root, words)
    collecting = gc.isenabled()
    gc.disable()  # many small objects, and none to free: half of the time would go there
    try:
        for entry in entries:
            if isinstance(entry, Reference):
                closure.follow(entry)
            else:
                closure.enter(entry)
        return closure.digests()
    finally:
        if collecting:
            gc.enable()


def code_hash(files: Mapping[str, str]) -> str:
    """One SHA-256 for what ``executed`` returned."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def changed_files(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The files in which what is reached differs."""
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def listed(files: Sequence[str]) -> str:
    """The first of some files, and how many more there are."""
    more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
    return ", ".join(files[:SHOWN_FILES]) + more


def words_of(value: Any) -> Iterator[str]:
    """Every string of a configuration; the names of its keys are not among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from words_of(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from words_of(item)


class Closure:
    """What is reached so far: ``parts``. Each reference, module and string is looked at once."""

    def __init__(self, root: Path, words: Iterable[str]) -> None:
        self.root = root
        self.strings = set(words)
        self.items: dict[str, list[Part]] = defaultdict(list)  # not named yet, by their key
        self.parts: set[Part] = set()
        self.todo: list[Part] = []
        self.followed: set[Reference] = set()
        self.loaded: set[str] = set()
        self.entered: list[Any] = []
        self.modules: dict[str, Module | None] = {}
        self.imports_computed_name = False

    def digests(self) -> dict[str, str]:
        """By file, what stands for all that is reached in it, in the order of the file."""
        meanings = defaultdict(list)
        for part in sorted(self.parts, key=lambda part: part.place):
            meanings[self._name_of(part.module.path)].append(part.meaning)
        return {
            name: hashlib.sha256("\n".join(meanings[name]).encode()).hexdigest()[:16]
            for name in sorted(meanings)
        }

    def enter(self, entry: Any) -> None:
        """Follow a callable to its definition, and what it holds to theirs."""
        if isinstance(entry, partial):
            held = [entry.func, *entry.args, *entry.keywords.values()]
        else:
            entry = inspect.unwrap(getattr(entry, "__func__", entry))
            self.follow(self._place_of(entry))
            held = [cell.cell_contents for cell in getattr(entry, "__closure__", None) or ()]
        self.entered.append(entry)
        for value in held:
            if any(value is known for known in self.entered):
                continue  # a nested function that calls itself holds itself
            if isinstance(value, str):
                self._hear({value})
            elif isinstance(value, partial) or (callable(value) and self._is_ours(value)):
                self.enter(value)

    def follow(self, reference: Reference) -> None:
        """Count what a reference is, by way of the modules that hand it on."""
        self._follow(reference)
        while self.todo:
            self._look_into(self.todo.pop())

    def _follow(self, reference: Reference) -> None:
        module = self._module(reference.module)
        if module is None or reference in self.followed:
            return
        self.followed.add(reference)
        self._load(module)
        if not reference.attributes:
            self._count_whole(module)
            return
        name, *rest = reference.attributes
        targets = [t for t in module.imports.get(name, ()) if t != Reference(module.name, (name,))]
        for target in targets:
            self._follow(target.then(*rest))
        if name in module.definitions:
            self._count_definition(module, name, whole=not (rest and rest[0] in LOOKUPS))
        elif not targets and self._module(f"{module.name}.{name}"):
            self._follow(Reference(f"{module.name}.{name}", tuple(rest)))
        elif not targets:
            self._count_unknown(module)

    def _look_into(self, part: Part) -> None:
        part.meaning  # noqa: B018 (reading it fills in the rest)
        self._hear(part.strings)
        if part.imports_computed_name:
            self.imports_computed_name = True
            self._hear(self.strings, again=True)
            self._count_package(part.module)
        for targets in part.imports.values():
            for target in targets:
                self._load_target(target)
        home = part.module
        for reference in part.references:
            name = reference.attributes[0] if reference.attributes else ""
            local = reference.module == home.name and name
            if not local or name in home.definitions or name in home.imports:
                self._follow(reference)

    def _count(self, part: Part) -> None:
        if part not in self.parts:
            self.parts.add(part)
            self.todo.append(part)

    def _count_definition(self, module: Module, name: str, *, whole: bool) -> None:
        for part in module.definitions[name]:
            self._count(part)
        for key, item in module.tables.get(name, {}).items():
            if whole or key in self.strings:
                self._count(item)
            else:
                self.items[key].append(item)

    def _count_whole(self, module: Module) -> None:
        for name in module.definitions:
            self._count_definition(module, name, whole=True)
        for targets in [*module.imports.values()]:
            for target in targets:
                self._follow(target)

    def _count_unknown(self, module: Module) -> None:
        """A name that the file does not show: it is made when the module runs."""
        self._follow(Reference(module.name))
        if "__getattr__" in module.definitions:
            self._count_package(module)

    def _count_package(self, module: Module) -> None:
        for path in sorted(module.path.parent.rglob("*.py")):
            self._follow(Reference(self._dotted(path)))

    def _hear(self, strings: Iterable[str], *, again: bool = False) -> None:
        """Count what waits for these words: items of tables, and modules imported by such names."""
        new = set(strings) if again else set(strings) - self.strings
        self.strings |= new
        for word in new:
            for item in self.items.pop(word, ()):
                self._count(item)
            if self.imports_computed_name and DOTTED.fullmatch(word):
                self._follow(Reference(word))

    def _load(self, module: Module) -> None:
        """Importing a module runs what is in it, its packages and what these import."""
        if module.name in self.loaded:
            return
        self.loaded.add(module.name)
        package = module.name.rpartition(".")[0]
        for target in [*[Reference(package)] * bool(package), *module.loads]:
            self._load_target(target)
        for part in module.effects:
            self._count(part)
        for target in module.imports.get("*", ()):
            self._follow(target)

    def _load_target(self, target: Reference) -> None:
        for name in (target.module, ".".join((target.module, *target.attributes))):
            if (module := self._module(name)) is not None:
                self._load(module)

    def _module(self, name: str) -> Module | None:
        """The module of that name, if it is one of the repository."""
        if name not in self.modules:
            place = self.root.joinpath(*name.split("."))
            paths = place / "__init__.py", place.with_suffix(".py")
            path = next(filter(Path.is_file, paths), None)
            self.modules[name] = parse(name, path) if path else None
        return self.modules[name]

    def _place_of(self, entry: Any) -> Reference:
        """Where a function, a class or an object's class is defined."""
        file, name = _definition_of(entry)
        if file.suffix != ".py" or not file.is_file():
            raise ValueError(f"entry = {entry!r} has no source file: define it in a module")
        module = self._dotted(file)
        self.modules[module] = parse(module, file)
        known = name in parse(module, file).definitions  # a lambda has no name
        return Reference(module, (name,) if known else ())

    def _is_ours(self, value: Any) -> bool:
        file = _definition_of(inspect.unwrap(value))[0]
        return file.is_relative_to(self.root) and "site-packages" not in file.parts

    def _dotted(self, path: Path) -> str:
        parts = Path(self._name_of(path)).with_suffix("").parts
        return ".".join(parts).removesuffix(".__init__")

    def _name_of(self, path: Path) -> str:
        """The path in the repository; of a script elsewhere, its name."""
        inside = path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if inside else path.name


def _definition_of(value: Any) -> tuple[Path, str]:
    """The file of a function or of an object's class, and the name at its top level."""
    code = getattr(value, "__code__", None)
    named = value if code or isinstance(value, type) else type(value)
    module = sys.modules.get(named.__module__)
    file = code.co_filename if code else getattr(module, "__file__", None)
    return Path(file or ""), named.__qualname__.partition(".")[0]
