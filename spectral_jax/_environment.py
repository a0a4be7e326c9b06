"""What our commands tell the libraries below them before jax is imported, if nobody else has."""

import os
from importlib.metadata import version

# jaxlib 0.10.2 computes some large sums wrongly on a CPU (jax#39103); 0.10.1 and 0.11.0 do not.
WRONG_SUMS = "0.10.2"
LIBRARY_OF_SUMS = "--xla_cpu_experimental_ynn_fusion_type"
RIGHT_SUMS = f"{LIBRARY_OF_SUMS}=-reduce"

_before: dict[str, str | None] = {}


def set_defaults() -> None:
    """Set what a person has not set; to be called before jax is imported."""
    # Threads of OpenBLAS under those of XLA are slow, and on large hosts unsafe (jax#39292).
    _default("OPENBLAS_NUM_THREADS", "1")
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib") == WRONG_SUMS and LIBRARY_OF_SUMS not in flags:
        _set("XLA_FLAGS", f"{flags} {RIGHT_SUMS}".strip())


def given(name: str) -> str | None:
    """What a variable was before `set_defaults`: what a person's own scripts see."""
    return _before.get(name, os.environ.get(name))


def _default(name: str, value: str) -> None:
    if name not in os.environ:
        _set(name, value)


def _set(name: str, value: str) -> None:
    _before.setdefault(name, os.environ.get(name))
    os.environ[name] = value
