"""Imports point down the floors, no theory room imports another's, and functions fit a screen."""

import ast

import pytest

from tests.floors import FLOOR, offences, room_of, source_files

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCREEN = 60


def test_every_room_has_a_floor():
    assert {room_of(module) for module, _ in source_files()} - {None} <= set(FLOOR)


@pytest.mark.parametrize("module, path", source_files(), ids=[name for name, _ in source_files()])
def test_a_function_fits_a_screen(module, path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, FUNCTIONS)]
    assert [f.name for f in functions if lines_of_code(f) > SCREEN] == []


def lines_of_code(function):
    """What is left without the docstring, which is longest where most is explained."""
    documented = ast.get_docstring(function) is not None
    text = function.body[0] if documented else None
    length = function.end_lineno - function.lineno + 1
    return length - (text.end_lineno - text.lineno + 1 if text else 0)


@pytest.mark.parametrize("module, path", source_files(), ids=[name for name, _ in source_files()])
def test_imports_point_down(module, path):
    assert offences(path.read_text(), module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("spectral_jax.laws", "from spectral_jax.linalg import eigvalsh"),
        ("spectral_jax.linalg.lanczos", "from spectral_jax.graphs import fiedler"),
        ("spectral_jax.linalg.lanczos", "from ..weights import matrices"),
        ("spectral_jax.linalg.lanczos", "def f():\n    import spectral_jax.optim"),
        ("spectral_jax.graphs.laplacian", "from spectral_jax import tails"),
        ("spectral_jax.graphs.laplacian", "from ..tails import hill_alpha"),
        ("spectral_jax.graphs.laplacian", "import flax.nnx as nnx"),
        ("spectral_jax.tails", "import optax"),
        ("spectral_jax.optim.penalty", "from experiments.training.train import train"),
        ("spectral_jax.prune.spectra", "from spectral_jax.optim import metrics"),
        ("models.mlp", "from experiments import config"),
        ("experiments.training.train", "from experiments.report import tables"),
        ("experiments.runs.study", "from ..training import Task"),
        ("experiments", "from experiments import runs"),
        ("spectral_jax", "from spectral_jax.linalg import eigvalsh"),
    ],
)
def test_an_import_that_points_up_or_across_is_caught(module, source):
    assert len(offences(source, module)) == 1


def test_relative_imports_of_a_package_are_resolved():
    assert offences("from ..graphs import fiedler", "spectral_jax.tails", is_package=True)
    assert not offences("from .windows import farms", "spectral_jax.tails", is_package=True)


@pytest.mark.parametrize(
    "module, source",
    [
        ("spectral_jax.graphs.laplacian", "from ..linalg import eigsh\nimport jax"),
        ("spectral_jax.optim.penalty", "from spectral_jax.graphs import fiedler\nimport optax"),
        ("experiments.training.train", "import models, flax, rich\nfrom spectral_jax import optim"),
        ("experiments.report.page", "from ..runs import files"),
    ],
)
def test_an_import_that_points_down_is_allowed(module, source):
    assert offences(source, module) == []
