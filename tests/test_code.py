"""The key of a run changes with the code that it executes, and with nothing else."""

import ast
import importlib
import shutil
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import jax
import pytest

from experiments.runs import code, source
from experiments.runs.code import changed_files, code_hash, executed
from experiments.runs.provenance import REPOSITORY
from experiments.runs.source import Reference
from spectral_jax import graphs, tails

# Two small packages with every way there is to refer to code.
TREE = {
    "lib/__init__.py": """
        from lib.solvers import solve
        from lib.penalties import PENALTIES
    """,
    "lib/solvers.py": '''
        import numpy as np

        RATE = 2

        def solve(x: float, *, times=RATE) -> float:
            """Solve it."""
            return x * times + _step(x)  # a remark

        @np.vectorize
        def _step(x):
            return x + 1

        def _forward(x):
            return x

        solve.defvjp(_forward)

        def unused(x):
            return x - 1
    ''',
    "lib/penalties.py": """
        from lib.decays import l1, l2
        from lib.graph import fiedler

        PENALTIES = {"l1": l1, "l2": l2, "fiedler": fiedler}
    """,
    "lib/decays.py": """
        def l1(x):
            return abs(x)

        def l2(x):
            return x * x
    """,
    "lib/graph.py": """
        class Base:
            power = 3

        class Graph(Base):
            def value(self, x):
                return x**self.power

        def fiedler(x):
            return Graph().value(x)
    """,
    "lib/lazy/__init__.py": """
        from typing import TYPE_CHECKING

        if TYPE_CHECKING:
            from lib.lazy.late import tail as tail

        def __getattr__(name):
            raise NotImplementedError(name)
    """,
    "lib/lazy/late.py": """
        def tail(x):
            return x + 5
    """,
    "lib/lazy/other.py": """
        def other(x):
            return x + 6
    """,
    "lib/figures.py": """
        def draw():
            return 7
    """,
    "lib/settings.py": """
        import os

        os.environ["RATE"] = "8"
    """,
    "run/train.py": """
        import lib.settings
        from lib import PENALTIES, figures, lazy, solve as solver

        def train(config):
            from run.helper import Helper

            decay = PENALTIES[config["penalty"]]
            return Helper().help(solver(decay(1))) + lazy.tail(2)

        def picture():
            return figures.draw()
    """,
    "run/helper.py": """
        SCALE = 9

        class Helper:
            def help(self, x):
                return x * SCALE
    """,
    "run/dynamic.py": """
        from importlib import import_module

        import lib.decays

        def by_attribute(name):
            return getattr(lib.decays, name)

        def by_import(name):
            return import_module(f"run.{name}")

        def over_all():
            from lib.penalties import PENALTIES

            return [penalty(1) for penalty in PENALTIES.values()]
    """,
}


@pytest.fixture
def tree(tmp_path):
    """The two packages on disk."""
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in text.split("\n")))
    return tmp_path


def edit(root, name, old, new):
    path = root / name
    text = path.read_text()
    assert old in text, f"{name} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


def reached(root, entry="run.train:train", words=("l1",)):
    module, name = entry.split(":")
    return executed(Reference(module, (name,)), words=words, root=root)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("run/train.py", "lazy.tail(2)", "lazy.tail(3)"),
        ("run/helper.py", "x * SCALE", "x / SCALE"),  # imported inside the function
        ("run/helper.py", "SCALE = 9", "SCALE = 8"),
        ("lib/solvers.py", "+ _step(x)", "- _step(x)"),  # through the package, by another name
        ("lib/solvers.py", "return x + 1", "return x + 2"),
        ("lib/solvers.py", "times=RATE", "times=RATE + 1"),  # a default
        ("lib/solvers.py", "RATE = 2", "RATE = 3"),
        ("lib/solvers.py", "@np.vectorize", "@np.frompyfunc"),  # a decorator
        ("lib/solvers.py", "    return x\n", "    return -x\n"),  # given to solve.defvjp
        ("lib/penalties.py", '"l1": l1', '"l1": l2'),
        ("lib/decays.py", "abs(x)", "-abs(x)"),
        ("lib/lazy/late.py", "x + 5", "x + 6"),
        ("lib/settings.py", '"8"', '"9"'),  # run by the import alone
    ],
)
def test_an_edit_of_what_is_reached_changes_the_key_and_is_named(tree, name, old, new):
    before = reached(tree)
    edit(tree, name, old, new)
    assert code_hash(reached(tree)) != code_hash(before)
    assert name in changed_files(before, reached(tree))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("lib/solvers.py", "  # a remark", ""),
        ("lib/solvers.py", '"""Solve it."""', '"""Solve it well."""'),
        ("lib/solvers.py", '"""Solve it."""\n', "\n\n"),
        ("lib/solvers.py", "x: float", "x: complex"),
        ("lib/solvers.py", "-> float", ""),
        (
            "lib/solvers.py",
            "x * times + _step(x)",
            "(\n        x * times\n        + _step(x)\n    )",
        ),
        ("lib/solvers.py", "return x - 1", "return x - 2"),  # of a function that nobody calls
        ("lib/decays.py", "x * x", "x**2"),  # of a penalty that nobody names
        ("lib/graph.py", "power = 3", "power = 4"),
        ("lib/penalties.py", '"l2": l2', '"l2": l2, "huber": l2'),
        ("lib/lazy/other.py", "x + 6", "x + 7"),
        ("lib/figures.py", "return 7", "return 8"),
        ("run/train.py", "figures.draw()", "None"),
    ],
)
def test_any_other_edit_does_not(tree, name, old, new):
    before = reached(tree)
    edit(tree, name, old, new)
    assert reached(tree) == before


def test_a_base_class_counts_where_its_penalty_is_named(tree):
    before = reached(tree, words=("fiedler",))
    edit(tree, "lib/graph.py", "power = 3", "power = 4")
    assert changed_files(before, reached(tree, words=("fiedler",))) == ["lib/graph.py"]


def test_a_name_in_reached_code_names_an_item_too(tree):
    edit(tree, "lib/decays.py", "return abs(x)", 'return abs(x) if x else "l2"')
    before = reached(tree)
    edit(tree, "lib/decays.py", "x * x", "x**2")
    assert reached(tree) != before


@pytest.mark.parametrize(
    ("entry", "name", "old", "new"),
    [
        ("run.dynamic:by_attribute", "lib/decays.py", "x * x", "x**2"),
        ("run.dynamic:by_import", "run/helper.py", "SCALE = 9", "SCALE = 8"),
        ("run.dynamic:over_all", "lib/decays.py", "x * x", "x**2"),
        # In another order: seeds, columns and colours may follow that of a table.
        ("run.dynamic:over_all", "lib/penalties.py", '"l1": l1, "l2": l2', '"l2": l2, "l1": l1'),
        ("run.dynamic:missing", "run/dynamic.py", "[penalty(1)", "[penalty(2)"),
    ],
)
def test_what_cannot_be_followed_counts_whole(tree, entry, name, old, new):
    before = reached(tree, entry)
    edit(tree, name, old, new)
    assert reached(tree, entry) != before


def _one():
    return 1


WAYS = {"one": _one, "other": len}


def _named(name):
    return WAYS[name]()


def _holding(function):
    def call(again=True):
        return call(again=False) if again else function

    return call


def test_an_entry_takes_along_what_it_holds():
    plain = executed(_named)
    assert executed(partial(partial, _named)) == executed(partial(len, _named)) == plain
    assert executed(partial(_named, "other")) != executed(partial(_named, "one")) != plain
    assert executed(_holding(_one)) != executed(_holding(len)) != executed(_named)


def test_an_entry_without_a_file_is_refused():
    with pytest.raises(ValueError, match="entry = <built-in function len> has no source file"):
        executed(len)


# The repository itself


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the three packages, with one more paper."""
    root = tmp_path_factory.mktemp("clone")
    for package in ("spectral_jax", "models", "experiments"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, root / package, ignore=ignore)
    studies = root / "experiments" / "papers" / "toy" / "studies"
    studies.mkdir(parents=True)
    (studies / "lines.py").write_text(
        "from experiments.papers.toy.shapes import shapes\n"
        "from spectral_jax import tails\n\n"
        "def measure(run, *, count):\n"
        "    return [tails.marchenko_pastur_alpha(q) for q in shapes(count)]\n"
    )
    (studies.parent / "shapes.py").write_text("def shapes(count):\n    return range(1, count)\n")
    return root


TRAIN = "experiments.training.train:train"
STUDY = "experiments.papers.toy.studies.lines:measure"
WORDS = ("mnist", "mlp", "fiedler", "crop_flip", "spectra", "penalty", "cross_entropy")


@pytest.fixture
def restoring(clone):
    """Write files of the clone; at the end they are as they were."""
    kept = {}

    def write(name, text):
        path = clone / name
        kept.setdefault(path, path.read_text() if path.exists() else None)
        path.write_text(text)

    yield write
    for path, text in kept.items():
        path.unlink() if text is None else path.write_text(text)


def with_one_more_statement(text, function):
    """The source with ``pass`` before the last statement of a function or method."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    last = next(node for node in nodes if node.name == function).body[-1]
    lines = text.split("\n")
    lines.insert(last.lineno - 1, " " * last.col_offset + "pass")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("entry", "name", "function"),
    [
        (TRAIN, "experiments/training/train.py", "train"),
        (TRAIN, "experiments/training/augmentation.py", "crop_flip"),
        (TRAIN, "experiments/training/optimisers.py", "optimizer_of"),
        (TRAIN, "experiments/data/idx.py", "parse_idx"),
        (TRAIN, "experiments/data/splits.py", "stratified_order"),
        (TRAIN, "experiments/runs/checkpoint.py", "restore"),
        (TRAIN, "models/mlp.py", "__call__"),
        (TRAIN, "spectral_jax/linalg/lobpcg.py", "lobpcg"),
        (TRAIN, "spectral_jax/graphs/laplacian.py", "_quotient_jvp"),
        (STUDY, "experiments/papers/toy/shapes.py", "shapes"),
        (STUDY, "spectral_jax/tails/null.py", "marchenko_pastur_alpha"),
    ],
)
def test_an_edited_helper_changes_the_key(entry, name, function, clone, restoring):
    before = reached(clone, entry, WORDS)
    restoring(name, with_one_more_statement((clone / name).read_text(), function))
    assert changed_files(before, reached(clone, entry, WORDS)) == [name]


@pytest.mark.parametrize("entry", [TRAIN, STUDY])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("experiments/__main__.py", "main"),
        ("experiments/papers/paper.py", "reproduce"),
        ("experiments/report/page.py", "write_report"),
        ("spectral_jax/plots/training.py", "training_curves"),
        ("spectral_jax/cli.py", "main"),
    ],
)
def test_the_side_rooms_do_not(entry, name, function, clone, restoring):
    before = reached(clone, entry, WORDS)
    restoring(name, with_one_more_statement((clone / name).read_text(), function))
    assert reached(clone, entry, WORDS) == before


def test_another_paper_does_not(clone, restoring):
    before = [reached(clone, entry, WORDS) for entry in (TRAIN, STUDY)]
    for path in (clone / "experiments" / "papers").rglob("*.py"):
        if "toy" not in path.parts and path.name != "paper.py":
            name = path.relative_to(clone).as_posix()
            restoring(name, f"{path.read_text()}\n\nX = 1\n\n\ndef unused():\n    return X\n")
    assert [reached(clone, entry, WORDS) for entry in (TRAIN, STUDY)] == before


def test_comments_layout_and_docstrings_do_not(clone, restoring):
    before = reached(clone, TRAIN, WORDS)
    for name in before:
        tree = ast.parse((clone / name).read_text())
        for node in filter(source.is_text, ast.walk(tree)):
            node.value.value = "something else"
        restoring(name, ast.unparse(tree))
    assert reached(clone, TRAIN, WORDS) == before


def test_a_new_penalty_does_not(clone, restoring):
    before = reached(clone, TRAIN, WORDS)
    restoring("spectral_jax/optim/huber.py", "def huber():\n    return None\n")
    for name, line in (
        ("spectral_jax/optim/penalties.py", '"huber": huber,'),
        ("experiments/training/optimisers.py", '"huber": ("huber", {}),'),
    ):
        text = (clone / name).read_text()
        imported = "from spectral_jax.optim.huber import huber\nfrom typing import"
        added = text.replace('    "l1": ', f'    {line}\n    "l1": ', 1)
        assert added != text
        restoring(name, added.replace("from typing import", imported, 1))
    assert reached(clone, TRAIN, WORDS) == before
    assert reached(clone, TRAIN, (*WORDS, "huber")) != before


def _moved(vector, blocks):
    """A derivative whose rule the library writes itself, of a package that loads lazily, too."""
    value = graphs.rayleigh_quotient(blocks, vector, normalised=True)
    return value + tails.hill_alpha(jax.numpy.square(vector))


def test_every_function_that_a_profile_sees_is_reached():
    vector, called, library = jax.numpy.arange(1.0, 9.0), set(), f"{REPOSITORY / 'spectral_jax'}/"
    assert graphs.rayleigh_quotient and tails.hill_alpha  # their modules run here, not below

    def note(frame, event, argument):
        body = frame.f_code
        if event == "call" and body.co_filename.startswith(library):
            called.add((Path(body.co_filename), body.co_name, body.co_firstlineno))

    sys.setprofile(note)
    try:
        jax.make_jaxpr(jax.grad(_moved))(vector, (jax.numpy.ones((4, 4)),))
    finally:
        sys.setprofile(None)
    closure = code.Closure(REPOSITORY, ())
    closure.enter(_moved)
    lines = defaultdict(set)
    for part in closure.parts:
        for inner in (inner for node in part.nodes for inner in ast.walk(node)):
            lines[part.module.path].add(getattr(inner, "lineno", None))
    # The loader of lazy names makes no numbers.
    missed = {
        (file.name, name)
        for file, name, line in called
        if line not in lines[file] and file.name != "_lazy.py"
    }
    assert len(called) > 15 and missed == set()


def test_a_lazy_package_says_to_type_checkers_where_its_names_are():
    """The keys follow what is written there: it must be where the names are found when it runs."""
    for package in ("spectral_jax.tails", "spectral_jax.weights", "spectral_jax.rmt"):
        module = importlib.import_module(package)
        parsed = source.parse(package, Path(module.__file__))
        lazy = {t for targets in parsed.imports.values() for t in targets} - parsed.loads
        assert lazy
        for home, (name,) in lazy:
            assert getattr(importlib.import_module(home), name) is getattr(module, name)
