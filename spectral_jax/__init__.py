"""Spectral analysis and spectral control of neural networks as pure JAX functions.

Subpackages load on first use, so importing the package (and every ``--help``) stays free of jax.

>>> import spectral_jax
>>> spectral_jax.linalg.eigsh.__name__
'eigsh'
"""

import importlib
import pkgutil
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {_ROOMS}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
