"""Penalties of a file outside the package: ``penalty.name = "my_reg.py"`` or ``"my_reg.py:name"``.

    # my_reg.py
    import jax.numpy as jnp
    from spectral_jax.optim import regulariser


    @regulariser(strengths=(1e-4, 1e-1))
    def my_reg(matrices):
        return sum(jnp.sum(w**4) for w in matrices)

The path is relative to the directory that the command runs in. A regulariser is what the decorator
makes, a ``Penalty``, or a function without arguments that is annotated to return one.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from experiments.config import ExperimentConfig, read_small_text
from experiments.errors import MISSING, UserError
from experiments.names import offered
from experiments.runs.code import code_hash, executed
from experiments.runs.provenance import REPOSITORY
from spectral_jax.optim import Penalty
from spectral_jax.optim.sight import check_kind

DECORATE = "put @regulariser (from spectral_jax.optim) above the function of the matrices"


class Prototype(NamedTuple):
    """A penalty, and its name in its file."""

    name: str
    penalty: Penalty


def is_file(name: str) -> bool:
    """Whether a penalty's name is that of a file."""
    return name.partition(":")[0].endswith(".py")


def load(name: str) -> Prototype:
    """The regulariser of ``file.py`` or ``file.py:name``; of the same content the same object.

    ``UserError`` (one line): 4 for a file that is not there, 2 for one that cannot be imported,
    with its line, or that has none of that name, none at all, or several and no name says which.
    """
    path, _, wanted = name.partition(":")
    return _chosen(path, _text_of(path), wanted)


def sources(config: ExperimentConfig) -> dict[str, str]:
    """The file of the configured penalty with a digest of what it holds and reaches, or nothing.

    It belongs to the code of a run: an edited prototype is another one. Raises as `load` does.
    """
    name = config.penalty.name
    if not is_file(name):
        return {}
    path, _, wanted = name.partition(":")
    return {path: _digest(path, _text_of(path), wanted)}


@lru_cache
def _digest(path: str, text: str, wanted: str) -> str:
    """Of the file as it is, and of what its functions call in this repository."""
    functions = filter(callable, _chosen(path, text, wanted).penalty)
    try:
        reached = executed(*functions)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return hashlib.sha256(f"{text}{code_hash(reached)}".encode()).hexdigest()


def _text_of(path: str) -> str:
    try:
        return read_small_text(Path(path))
    except FileNotFoundError:
        raise UserError(
            f"no file {path} in {Path.cwd()}: give the path of a Python file with a regulariser",
            MISSING,
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None


@lru_cache
def _chosen(path: str, text: str, wanted: str) -> Prototype:
    module = _module(path, text)
    found = _regularisers(module)
    if not wanted and len(found) == 1:
        wanted = next(iter(found))
    if not wanted:
        names = ", ".join(f"{path}:{name}" for name in found)
        many = f"{path} has several regularisers: choose one of {names}"
        raise UserError(many if found else f"{path} has no regulariser: {DECORATE}")
    if not hasattr(module, wanted):
        hint = offered(wanted, found)
        raise UserError(f"{path} has no {wanted!r}{hint}")
    return Prototype(wanted, _made(path, wanted, getattr(module, wanted)))


def _regularisers(module: ModuleType) -> dict[str, Any]:
    """By name, what can be tried without saying which; one object counts once."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {
        next(name for name, other in public.items() if other is value): value
        for value in public.values()
        if isinstance(value, Penalty) or _makes_one(value, module)
    }


def _makes_one(value: Any, module: ModuleType) -> bool:
    ours = isinstance(value, FunctionType) and value.__module__ == module.__name__
    return ours and value.__annotations__.get("return") in (Penalty, "Penalty")


def _made(path: str, name: str, value: Any) -> Penalty:
    if callable(value) and not isinstance(value, Penalty):
        value = _guarded(path, value) if _takes_nothing(value) else None
    if not isinstance(value, Penalty):
        raise UserError(f"{path}: {name} is no regulariser: {DECORATE}")
    _guarded(path, check_kind, value)
    return value


def _takes_nothing(value: Callable[..., Any]) -> bool:
    code = getattr(value, "__code__", None)
    return code is not None and code.co_argcount == len(value.__defaults__ or ())


@lru_cache
def _module(path: str, text: str) -> ModuleType:
    """The file's module, under a name of its content; no bytecode is written or read."""
    digest = hashlib.sha256(f"{path}\0{text}".encode()).hexdigest()[:12]
    module = ModuleType(f"prototype_{digest}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look there for theirs
    try:
        tree = ast.parse(text, path)
        _refuse_neighbours(path, tree)
        _guarded(path, exec, compile(tree, path, "exec"), vars(module))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None
    except ValueError as error:  # a null byte
        raise UserError(f"{path}: {error}") from None
    return module


def _guarded(path: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what somebody wrote; what goes wrong is one line that names the line of the file."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(f"{where}: {type(error).__name__}: {error}") from None


def _refuse_neighbours(path: str, tree: ast.Module) -> None:
    """`UserError` for an import of a file beside this one: nobody would see that it was edited."""
    folder = Path(path).resolve().parent
    if folder == REPOSITORY:
        return  # what is reached in the repository is followed
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for top in {name.partition(".")[0] for name in names} - {""}:
            if (folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file():
                raise UserError(
                    f"{path}, line {node.lineno}: imports {top}, a file beside it, whose edits "
                    f"would not be noticed: put what is needed into {path}"
                )
