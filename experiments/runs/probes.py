"""What a probe of this machine found, kept for the next process beside the compiled programs.

found = answered(question)
if found is None:
    keep(question, found := "map" if quicker() else "vmap")
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jaxlib

from experiments.errors import UserError
from experiments.runs.files import plain, read_json, write_json
from spectral_jax.linalg.lapack import cpu_threads

_KNOWN: dict[str, str] = {}


def answered(question: Any) -> str | None:
    """The answer that this process, or one like it on a machine like this, has found.

    question: of JSON values. Machines are alike that have the same devices, threads and JAX.
    """
    key = _key(question)
    if key not in _KNOWN and (path := _path(key)) is not None:
        with suppress(UserError):  # damaged: it is asked again, and replaced
            _KNOWN.update(read_json(path, remedy=f"remove {path}").get("answers", {}))
    return _KNOWN.get(key)


def keep(question: Any, answer: str) -> None:
    """Answer the question so from now on, in the next processes too if JAX keeps programs."""
    key = _key(question)
    _KNOWN[key] = answer
    path = _path(key)
    if path is None:
        return
    with suppress(OSError, UserError):  # a full disk, or a cache of others: it is asked again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"question": question, "answers": {key: answer}})


def _key(question: Any) -> str:
    device = jax.devices()[0]
    machine = [device.platform, device.device_kind, jax.device_count(), cpu_threads()]
    versions = [jax.__version__, jaxlib.__version__]
    text = json.dumps(plain([question, machine, versions]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _path(key: str) -> Path | None:
    """Where an answer is; None if JAX keeps no compiled programs, or keeps them in a bucket."""
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # added at run time
    if not folder or "://" in folder:
        return None
    return Path(folder) / f"probe-{key}.json"
