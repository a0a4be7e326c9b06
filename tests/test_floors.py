"""Imports point down the floors, and no theory room imports another's."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
THEORY = ("tails", "rmt", "graphs", "curvature", "features", "capacity")
FLOORS = (
    ("_lazy", "_options", "_choices", "_files", "_factors"),
    ("laws",),
    ("linalg",),
    ("weights",),
    THEORY,
    ("_transforms",),
    ("prune",),
    ("optim",),
    ("plots", "checkpoints", "_progress"),
    ("_door",),
    ("analysis", "compress", "factored"),
    ("cli", "_doctor"),
    ("models",),
    ("experiments",),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
# Other people's libraries have a lowest floor too: the laws load without jax, and no theory room
# has heard of a network.
LIBRARY_FLOOR = {
    "jax": FLOOR["linalg"],
    "optax": FLOOR["_transforms"],
    "matplotlib": FLOOR["plots"],
    "orbax": FLOOR["checkpoints"],
    "flax": FLOOR["factored"],
    "rich": FLOOR["_progress"],
}


def room_of(module: str) -> str | None:
    """The room a dotted module name belongs to; None for the package root and for strangers."""
    top, _, rest = module.partition(".")
    if top == "spectral_jax":
        return rest.partition(".")[0] or None
    return top if top in FLOOR else None


def imported_modules(source: str, module: str, *, is_package: bool) -> list[str]:
    """Every module that a source file imports, at any depth, relative imports resolved."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            parents = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join(parents + [node.module] * bool(node.module))
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def offences(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of a module that point up, or across from theory room to theory room."""
    room = room_of(module)
    height = FLOOR.get(room, -1)  # the package root stands below every room: it imports none
    found = []
    for name in imported_modules(source, module, is_package=is_package):
        target = room_of(name)
        lowest = FLOOR.get(target, LIBRARY_FLOOR.get(name.partition(".")[0], -1))
        across = room in THEORY and target in THEORY and room != target
        if lowest > height or across:
            found.append(f"{module} imports {name}")
    return found


def source_files() -> list[tuple[str, Path]]:
    """Each module of the three packages, by dotted name."""
    files = []
    for package in ("spectral_jax", "models", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            files.append((".".join(parts).removesuffix(".__init__"), path))
    return files


def test_every_room_has_a_floor():
    rooms = {
        path.relative_to(ROOT / "spectral_jax").parts[0].removesuffix(".py")
        for module, path in source_files()
        if module.startswith("spectral_jax.")
    }
    assert rooms - {"__init__"} <= set(FLOOR)


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
    ],
)
def test_an_import_that_points_down_is_allowed(module, source):
    assert offences(source, module) == []
