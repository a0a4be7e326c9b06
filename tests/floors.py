"""The floors of the three packages, and which rooms stand on which."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
THEORY = ("tails", "rmt", "graphs", "curvature", "features", "capacity")
FLOORS = (
    ("_lazy", "_options", "_choices", "_files", "_factors", "_environment"),
    ("laws",),
    ("linalg",),
    ("weights",),
    THEORY,
    ("_transforms",),
    ("prune",),
    ("optim",),
    ("plots", "checkpoints", "_progress"),
    ("_door",),
    ("analysis", "compress", "factored", "nnx"),
    ("cli", "_doctor"),
    ("models",),
    ("experiments.errors", "experiments.names", "experiments.timing"),
    ("experiments.config",),
    ("experiments.data",),
    ("experiments.runs",),
    ("experiments.training",),
    ("experiments.report",),
    ("experiments.sweep",),
    ("experiments.papers",),
    ("experiments.commands",),
    ("experiments.__main__",),
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
    room = rest.partition(".")[0]
    if top == "spectral_jax":
        return room or None
    if top == "experiments":
        return f"experiments.{room}" if room else None
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


@cache
def rooms_tested_by(path: Path) -> set[str]:
    """The rooms that a file is about: its own, or of a file of tests those it is called after.

    Else the highest that it imports: what stands below is what that room is tested with.
    """
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if not module.startswith("tests."):
        return {room_of(module) or ""}
    imported = imported_modules(path.read_text(), module, is_package=False)
    rooms = {room for room in map(room_of, imported) if room in FLOOR}
    if named := {room for room in rooms if path.stem.startswith(f"test_{room.split('.')[-1]}")}:
        return named
    highest = max((FLOOR[room] for room in rooms), default=0)
    return {room for room in rooms if FLOOR[room] == highest}
