"""A Python file as its parts: what each statement of it does, and what it refers to.

Comments, docstrings, annotations and layout are not part of what a statement does.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

# Fields of the syntax tree that change nothing when the code runs.
SAID_ONLY = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx"}
# Uses of a table for its names; anything else may read all of it.
LOOKUPS = {"get", "keys"}
LISTS_NAMES = {
    "sorted", "list", "tuple", "set", "len", "join", "get_close_matches", "did_you_mean",
    "offered",
}  # fmt: skip
READS_ITS_MODULE = {("globals",), ("eval",), ("exec",)}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
COMPOUND = (ast.If, ast.Try, ast.With, ast.For, ast.While, ast.Match)


class Reference(NamedTuple):
    """An attribute, of an attribute, ... of a module; without attributes, the module itself."""

    module: str
    attributes: tuple[str, ...] = ()

    def then(self, *attributes: str) -> Reference:
        """An attribute of this one."""
        return Reference(self.module, self.attributes + attributes)


class Part:
    """A statement of a module, or one item of a table there."""

    def __init__(self, module: Module, *nodes: ast.stmt | ast.expr) -> None:
        self.module, self.nodes = module, nodes
        self.references: set[Reference] = set()
        self.strings: set[str] = set()
        self.imports: dict[str, list[Reference]] = defaultdict(list)  # those inside functions
        self.imports_computed_name = False
        self._looping = self._decorating = False

    @property
    def place(self) -> tuple[int, int]:
        """Where it begins: tables are read, and names bound again, in the order of the file."""
        return self.nodes[0].lineno, self.nodes[0].col_offset

    @cached_property
    def meaning(self) -> str:
        """What it does, as text. Reading this fills in what it refers to."""
        text = ";".join(self._read(node) for node in self.nodes)
        for reference in [*self.references]:
            if reference.module == self.module.name and reference.attributes:
                name, *rest = reference.attributes
                self.references.update(target.then(*rest) for target in self.imports[name])
        return text

    def _read(self, node: Any, *, looks_up: bool = False) -> str:
        if isinstance(node, list):
            items = (self._read(item, looks_up=looks_up) for item in node if not is_text(item))
            return f"[{','.join(items)}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if chain := dotted(node):
            self._refer(chain, looks_up)
            return ".".join(chain)
        self._notice(node)
        fields = ((field, getattr(node, field, None)) for field in node._fields)
        read = [
            f"{field}={self._field(node, field, value)}"
            for field, value in fields
            if field not in SAID_ONLY and value is not None and value != []
        ]
        return f"{type(node).__name__}({','.join(read)})"

    def _field(self, node: ast.AST, field: str, value: Any) -> str:
        before = self._looping, self._decorating
        self._looping |= field == "iter"
        self._decorating |= field == "decorator_list"
        text = self._read(value, looks_up=_looks_up(node, field))
        self._looping, self._decorating = before
        return text

    def _refer(self, chain: tuple[str, ...], looks_up: bool) -> None:
        """Keep a dotted name; the last attribute says whether a table is used for its names."""
        if self._looping and len(chain) > 1 and chain[-1] in LOOKUPS:
            chain = chain[:-1]
        elif self._decorating:
            # A decorator reads a table before anything runs: for signatures, as `injectable` does.
            chain = (*[name for name in chain if name not in ("values", "items")], "get")
        elif looks_up and not self._looping:
            chain = (*chain, "get")
        self.references.add(Reference(self.module.name, chain))

    def _notice(self, node: ast.AST) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.strings.add(node.value)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for bound, target in self.module.targets(node):
                self.imports[bound].append(target)
        elif isinstance(node, ast.Call):
            called = _last_name(node.func)
            if called in ("import_module", "__import__") and node.args:
                name = getattr(node.args[0], "value", None)
                if isinstance(name, str) and not name.startswith("."):
                    self.references.add(Reference(name))
                else:
                    self.imports_computed_name = True
            elif dotted(node.func) in READS_ITS_MODULE:
                self.references.add(Reference(self.module.name))


class Module:
    """A file: the parts that make up each of its names, its imports, and what else it does."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.definitions: dict[str, list[Part]] = defaultdict(list)
        self.tables: dict[str, dict[str, Part]] = {}  # dicts with constant strings for keys
        self.imports: dict[str, list[Reference]] = defaultdict(list)
        self.loads: set[Reference] = set()  # imported as soon as this module is
        self.effects: list[Part] = []  # statements that act on something elsewhere
        for statement in ast.parse(path.read_bytes()).body:
            self._add(statement)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def targets(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Reference]]:
        """The names that an import binds, and what they are."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield alias.asname or top, Reference(alias.name if alias.asname else top)
            return
        parts = self.name.split(".")
        parents = parts[: len(parts) - node.level + self.is_package] if node.level else []
        base = ".".join([*parents, node.module] if node.module else parents)
        for alias in node.names:
            what = Reference(base) if alias.name == "*" else Reference(base, (alias.name,))
            yield alias.asname or alias.name, what

    def _add(self, statement: ast.stmt, *, loads: bool = True) -> None:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for name, target in self.targets(statement):
                self.imports[name].append(target)
                self.loads |= {target} if loads else set()
            if isinstance(statement, ast.Import) and loads:
                self.loads |= {Reference(alias.name) for alias in statement.names}
        elif isinstance(statement, ast.If) and _last_name(statement.test) == "TYPE_CHECKING":
            for inner in statement.body:  # where a lazy package says what its names are
                self._add(inner, loads=False)
            for inner in statement.orelse:
                self._add(inner)
        elif not is_text(statement) and not _is_main(statement):
            self._file(statement)

    def _file(self, statement: ast.stmt) -> None:
        """Put a statement under the names that it binds or acts on, or among the effects."""
        names, value = _bound(statement), getattr(statement, "value", None)
        if len(names) == 1 and isinstance(value, ast.Dict) and all(map(_is_string, value.keys)):
            (name,) = names
            self.definitions.setdefault(name, [])
            self.tables[name] = {
                ast.literal_eval(key): Part(self, key, item)
                for key, item in zip(value.keys, value.values, strict=True)
                if key is not None
            }
            return
        part = Part(self, statement)
        owners = names | {name for name in _acted_on(statement) if name in self.definitions}
        for name in owners:
            self.definitions[name].append(part)
        if not owners or isinstance(statement, COMPOUND) or _registers(statement):
            self.effects.append(part)
        for node in ast.walk(statement) if isinstance(statement, COMPOUND) else ():
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._add(node)


def parse(name: str, path: Path) -> Module:
    """The module in a file, read again when the file has changed."""
    status = path.stat()
    return _parsed(name, path, status.st_mtime_ns, status.st_size)


@cache
def _parsed(name: str, path: Path, changed: int, size: int) -> Module:
    return Module(name, path)


def dotted(node: Any) -> tuple[str, ...]:
    """``("a", "b", "c")`` for ``a.b.c``; empty for any other expression."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return (*before, node.attr) if before else ()
    return (node.id,) if isinstance(node, ast.Name) else ()


def is_text(node: Any) -> bool:
    """Whether a statement is nothing but a string, as a docstring is."""
    return isinstance(node, ast.Expr) and _is_string(node.value)


def _is_string(node: Any) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _last_name(node: Any) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def _is_main(statement: ast.stmt) -> bool:
    left = getattr(getattr(statement, "test", None), "left", None)
    return isinstance(statement, ast.If) and _last_name(left) == "__name__"


def _looks_up(node: ast.AST, field: str) -> bool:
    """Whether a table that stands in this field is used for its names, or for one item by name."""
    if isinstance(node, ast.Subscript):
        return field == "value" and not isinstance(node.slice, (ast.JoinedStr, ast.BinOp))
    if isinstance(node, ast.Compare):
        membership = all(isinstance(op, (ast.In, ast.NotIn)) for op in node.ops)
        return field == "comparators" and membership
    if isinstance(node, ast.Call):
        return field == "args" and _last_name(node.func) in LISTS_NAMES
    return isinstance(node, ast.Starred)


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement binds in its module."""
    if isinstance(statement, DEFINITIONS):
        return {statement.name}
    if isinstance(statement, COMPOUND):
        inside = list(ast.walk(statement))
    else:
        targets = [*getattr(statement, "targets", ()), getattr(statement, "target", None)]
        inside = [node for target in targets if target for node in ast.walk(target)]
    stored = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {node.name for node in inside if isinstance(node, DEFINITIONS)}


def _acted_on(statement: ast.stmt) -> Iterator[str]:
    """The names of what a statement changes, as ``f.defvjp(...)``, ``@f.defjvp``, ``t[k] = x``."""
    acting = [*getattr(statement, "targets", ()), getattr(statement, "target", None)]
    acting += getattr(statement, "decorator_list", [])
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        acting.append(statement.value.func)
    for node in filter(None, acting):
        for inner in ast.walk(node):
            if isinstance(inner, (ast.Attribute, ast.Subscript)):
                yield _last_name(inner.value)


def _registers(statement: ast.stmt) -> bool:
    """Whether a decorator of that name puts the definition where others find it."""
    decorators = getattr(statement, "decorator_list", [])
    return any(_last_name(getattr(d, "func", d)) == "register" for d in decorators)
