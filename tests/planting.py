"""A fault planted in a copy of a module, to see whether a test would notice it."""

import importlib.machinery
import sys
from contextlib import contextmanager
from pathlib import Path

import experiments


@contextmanager
def planted(module, old, new, *, rooms):
    """These rooms of `experiments` imported anew, one of their modules with other words in it."""
    kept = {name: found for name, found in sys.modules.items() if name.startswith(rooms)}
    names = [room.rpartition(".")[2] for room in rooms]
    packages = {name: vars(experiments).get(name) for name in names}
    for name in kept:
        del sys.modules[name]
    finder = Editor(module, old, new)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith(rooms)]:
            del sys.modules[name]
        sys.modules.update(kept)
        vars(experiments).update({name: found for name, found in packages.items() if found})


class Editor(importlib.machinery.SourceFileLoader):
    """Finds one module, and loads it with ``new`` in the one place where ``old`` stands."""

    def __init__(self, module, old, new):
        path = Path(experiments.__file__).parent.parent / f"{module.replace('.', '/')}.py"
        super().__init__(module, str(path))
        self.old, self.new = old, new

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            return importlib.machinery.ModuleSpec(name, self, origin=self.path)
        return None

    def get_code(self, name):
        source = Path(self.path).read_text()
        times = source.count(self.old)
        assert times == 1, f"{self.old!r} stands {times} times in {self.path}: update FAULTS"
        return compile(source.replace(self.old, self.new), self.path, "exec")
