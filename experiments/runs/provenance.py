"""Where a run's numbers come from: the clone and the machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
# Shown with every result; a run's hash leaves them out.
VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
COMPUTING = ("jax", "jaxlib", "flax", "optax")  # of these, those that decide a number's last digits
# What decides how many threads share a sum, and so its last digits, beside the size of XLA's pool.
THREADS = ("OPENBLAS_NUM_THREADS", "XLA_FLAGS")


def session() -> dict[str, Any]:
    """This process: when, which commit and changes, and its `machine`."""
    return {
        "started": stamp(),
        "git": {
            "commit": _git("rev-parse", "HEAD"),
            "diff": _git("diff", "HEAD"),
            "untracked": _git("ls-files", "--others", "--exclude-standard"),
        },
        **machine(),
    }


def machine() -> dict[str, Any]:
    """What this process computes with: versions, device, precision and threads."""
    import jax

    from spectral_jax.linalg.lapack import cpu_threads

    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "dtype": str(jax.numpy.zeros(()).dtype),
        "matmul_precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        "cpus": os.cpu_count(),
        "threads": {"XLA": cpu_threads(), **{name: os.environ.get(name) for name in THREADS}},
        "platform": platform.platform(),
    }


def deciding(machine: Mapping[str, Any]) -> dict[str, str | None]:
    """Of what `machine` says, what decides the last digits of numbers.

    Not how many devices there are: of several, a process may be given one. A CPU knows one
    precision of products, and elsewhere sums are not split over the host's threads.
    """
    device = machine["device"].partition(" x ")[2]
    special = {"JAX_DEFAULT_MATMUL_PRECISION": machine.get("matmul_precision")}
    if device.endswith("(cpu)"):
        threads = machine["threads"].items()
        special = {f"{name} threads" if name == "XLA" else name: count for name, count in threads}
    versions = {name: machine["versions"].get(name) for name in COMPUTING}
    return {**versions, "device": device, "dtype": machine["dtype"], **special}


def _versions() -> dict[str, str]:
    installed = {}
    for name in VERSIONS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _git(*command: str) -> str | None:
    """Git's answer about this clone, or None where there is no git or no clone."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(REPOSITORY), *command], capture_output=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace").strip()


def now() -> datetime.datetime:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def stamp() -> str:
    """The time in UTC, to the second, as text."""
    return f"{now():%Y-%m-%dT%H:%M:%SZ}"
