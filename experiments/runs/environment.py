"""What the environment says to JAX and to the libraries below it, here and where workers run."""

from __future__ import annotations

import os
import sys

from experiments.data.files import cache
from spectral_jax import _environment

# What changes how a worker computes, or where it finds things.
PASSED_ON = ("JAX_", "XLA_", "SPECTRAL_JAX_", "OPENBLAS_", "NPROC", "XDG_CACHE_HOME")


def set_defaults() -> None:
    """Set what a person has not set; to be called before jax is imported."""
    _environment.set_defaults()
    # Arms that differ in a number compile to the same program, and so does the next run.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache().parent / "xla"))
    # JAX would keep only what took it a second: of a small network, next to nothing.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def passed_on() -> dict[str, str]:
    """What a process that a scheduler starts must be told, so that it computes what this would.

    Also the search path: it may have grown since this process began, say in a notebook.
    """
    ours = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    return {**ours, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
