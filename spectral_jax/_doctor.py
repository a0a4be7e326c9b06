"""Look at this machine, and say what will be wrong or slow on it, why, and the fix."""

import importlib.metadata
import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax

from spectral_jax import __version__
from spectral_jax._environment import LIBRARY_OF_SUMS, RIGHT_SUMS, WRONG_SUMS, given
from spectral_jax.linalg.lapack import LAST_JAXLIB_TO_SPLIT

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Memory maps enough for the programs of a few hundred shapes.
MANY_MAPS = 262_144


class Finding(NamedTuple):
    """One thing to know about this machine: what, why it matters, and what mends it."""

    what: str
    why: str
    fix: str


def examine() -> dict[str, Any]:
    """Collect the facts about this machine and this environment, and the findings they lead to."""
    default_dtype = str(jax.numpy.result_type(float))
    cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # added at run time
    facts: dict[str, Any] = {
        "versions": {"spectral-jax": __version__, "python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "devices": _devices(),
        "hardware": {"gpu": Path("/dev/nvidia0").exists(), "tpu": Path("/dev/accel0").exists()},
        "precision": {"default_dtype": default_dtype, "x64": default_dtype == "float64"},
        "threads": {"cores": os.cpu_count()}
        | {name: given(name) for name in ("OPENBLAS_NUM_THREADS", "XLA_FLAGS")},
        "compilation_cache": cache,
        "memory_maps": _memory_maps(),
        "data": _data(),
    }
    return facts | {"findings": [finding._asdict() for finding in findings(facts)]}


def findings(facts: dict[str, Any]) -> list[Finding]:
    """Say what will be wrong, slow or missing, from the facts; the most harmful comes first."""
    checks = (
        _wrong_sums,
        _backend,
        _lapack_threads,
        _float64,
        _compilation_cache,
        _few_maps,
        _data_folder,
    )
    return [finding for check in checks if (finding := check(facts)) is not None]


def render(report: dict[str, Any]) -> str:
    """Lay a report out as text for a terminal."""
    devices = report["devices"]
    rows = {
        "versions": report["versions"],
        "devices": {"backend": devices["backend"] or "none"} | devices["count"],
        "precision": report["precision"],
        "threads": report["threads"],
        "compilation cache": {"folder": report["compilation_cache"]},
        "memory maps": {"at most": report["memory_maps"]},
        "data": report["data"],
    }
    lines = [
        f"{name:<19}" + ", ".join(f"{key} {_word(value)}" for key, value in row.items())
        for name, row in rows.items()
    ]
    for number, finding in enumerate(report["findings"], start=1):
        lines += ["", f"{number}. {finding['what']}"]
        lines += [f"   why: {finding['why']}", f"   fix: {finding['fix']}"]
    return "\n".join(lines if report["findings"] else [*lines, "", "nothing to mend"])


def _word(value: Any) -> str:
    words = {None: "not set", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _devices() -> dict[str, Any]:
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX raises the first where a driver fails and the second where a plugin is absent.
        reason = str(error).partition("\n")[0] or "the platform asked for is not installed"
        return {"backend": None, "count": {}, "error": reason}
    count = Counter(device.device_kind for device in devices)
    return {"backend": devices[0].platform, "count": dict(count), "error": None}


def _memory_maps() -> int | None:
    """How many memory maps Linux grants a process; None elsewhere."""
    limit = Path("/proc/sys/vm/max_map_count")
    return int(limit.read_text()) if limit.is_file() else None


def _data() -> dict[str, str | bool | None]:
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    named = os.environ.get("SPECTRAL_JAX_DATA")
    cache = Path(cache_home) / "spectral_jax" / "data"
    return {
        "SPECTRAL_JAX_DATA": named,
        "exists": named is not None and Path(named).is_dir(),
        "cache": str(cache),
        "cached": cache.is_dir(),
    }


def _wrong_sums(facts: dict[str, Any]) -> Finding | None:
    flags = facts["threads"].get("XLA_FLAGS") or ""
    if facts["devices"]["backend"] != "cpu" or LIBRARY_OF_SUMS in flags:
        return None
    if facts["versions"]["jaxlib"] != WRONG_SUMS:
        return None
    return Finding(
        f"jaxlib {WRONG_SUMS} computes some large sums of products wrongly on a CPU",
        "compiled, sums of more than 32,000 products of which vmap or broadcasting repeats one "
        "factor may be other numbers, without a word (jax#39103); losses and operators here avoid "
        "such sums, models and losses of yours may have them",
        f"install jaxlib 0.10.1, or 0.11.0 and newer; or export XLA_FLAGS={RIGHT_SUMS}",
    )


def _backend(facts: dict[str, Any]) -> Finding | None:
    devices, hardware = facts["devices"], facts["hardware"]
    if devices["backend"] is None:
        return Finding(
            "JAX finds no device",
            devices["error"],
            "unset JAX_PLATFORMS, or install the extra of the platform it names",
        )
    if devices["backend"] != "cpu":
        return None
    for kind, extra in (("gpu", "cuda"), ("tpu", "tpu")):
        if hardware[kind]:
            return Finding(
                f"a {kind.upper()} is in this machine, but JAX runs on the CPU",
                "the installed jaxlib has no plugin for it, or JAX_PLATFORMS hides it",
                f"pip install 'spectral-jax[{extra}]' and unset JAX_PLATFORMS",
            )
    return Finding(
        "JAX runs on the CPU only",
        "the paper presets are sized for an accelerator",
        "use the presets smoke and small here, and paper on a machine with an accelerator",
    )


def _lapack_threads(facts: dict[str, Any]) -> Finding | None:
    threads, jaxlib = facts["threads"], facts["versions"]["jaxlib"]
    if threads["OPENBLAS_NUM_THREADS"] == "1" or (threads["cores"] or 1) == 1:
        return None
    release = tuple(int(part) for part in jaxlib.split(".")[:3] if part.isdigit())
    nested = release <= LAST_JAXLIB_TO_SPLIT
    return Finding(
        "batched eigenvalues and singular values on the CPU may be "
        f"{'many times ' if nested else ''}slower than need be",
        f"jaxlib {jaxlib} runs batched LAPACK over XLA's threads while OpenBLAS starts its own "
        "(jax#36927; on large hosts jax#39292)"
        if nested
        else "OpenBLAS starts its own threads for each matrix of a batch, beside those of XLA",
        "export OPENBLAS_NUM_THREADS=1 before Python starts",
    )


def _float64(facts: dict[str, Any]) -> Finding | None:
    if facts["precision"]["x64"]:
        return None
    return Finding(
        "float64 is off",
        "JAX turns float64 input into float32, so small eigenvalues below the float32 floor "
        "cannot be checked",
        "call under `with jax.enable_x64(True):`, or export JAX_ENABLE_X64=1",
    )


def _compilation_cache(facts: dict[str, Any]) -> Finding | None:
    if facts["compilation_cache"]:
        return None
    return Finding(
        "compiled programs are not kept between processes",
        "every new process compiles every program again",
        "export JAX_COMPILATION_CACHE_DIR=$HOME/.cache/jax",
    )


def _few_maps(facts: dict[str, Any]) -> Finding | None:
    granted = facts["memory_maps"]
    if granted is None or granted >= MANY_MAPS:
        return None
    return Finding(
        f"a process that sees many shapes may die: it may have {granted} memory maps",
        "XLA keeps every program it has compiled, in tens to hundreds of maps for each shape; at "
        "the limit the process ends with SIGSEGV, whatever memory is free",
        "call jax.clear_caches() every few dozen shapes, or raise the limit: "
        f"sysctl vm.max_map_count={MANY_MAPS}",
    )


def _data_folder(facts: dict[str, Any]) -> Finding | None:
    data = facts["data"]
    if data["SPECTRAL_JAX_DATA"] and not data["exists"]:
        return Finding(
            "SPECTRAL_JAX_DATA is not a folder",
            f"{data['SPECTRAL_JAX_DATA']} does not exist",
            "point SPECTRAL_JAX_DATA at the folder that holds mnist/ and the rest, or unset it",
        )
    if data["exists"] or data["cached"]:
        return None
    return Finding(
        "no data folder",
        "only the smoke presets run, on data that ships with scikit-learn",
        "python -m experiments data fetch mnist, or export SPECTRAL_JAX_DATA=<folder>",
    )
