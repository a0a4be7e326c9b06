"""Moments in files: for another program, or to compare with next week."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import is_zipfile

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax._choices import check_choice
from spectral_jax._files import parsed, replacing
from spectral_jax._options import count
from spectral_jax.features import layers
from spectral_jax.features.drift import Reference
from spectral_jax.features.layers import LayerMoments
from spectral_jax.features.moments import FeatureMoments, zero

__all__ = ["load", "save"]

FORMAT = 1

Stored = FeatureMoments | LayerMoments | Reference


def save(path: str | os.PathLike[str], stored: Stored) -> None:
    """Write moments, or what `calibrate` made, to an ``.npz`` file, whole or not at all.

    Nothing of the rows is in it but their moments. Replaces a file of this name. Raises
    ``ValueError`` for anything else, `OSError` for what the disk refuses. Not under ``jit``.
    """
    header = json.dumps(_described(stored))
    leaves = map(np.asarray, jax.tree.leaves(stored))
    with replacing(Path(path)) as partial, partial.open("wb") as file:
        np.savez(file, np.array(header), *leaves)


def load(path: str | os.PathLike[str]) -> Any:
    """What `save` wrote: `FeatureMoments`, `layers.LayerMoments` or a `Reference`.

    Runs nothing that the file holds. Raises ``ValueError`` that names the file if it is damaged or
    holds something else, or float64 where JAX has none; `OSError` if it cannot be read.

    >>> import tempfile
    >>> from spectral_jax import features
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     features.save(f"{folder}/m.npz", features.of(np.eye(3)))
    ...     features.load(f"{folder}/m.npz").sizes.features
    3
    """
    with parsed(Path(path), "moments") as file:
        header, arrays = _read(file)
        like = jax.eval_shape(lambda: _begun(header))
    wanted = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(like)]
    if [(x.shape, str(x.dtype)) for x in arrays] != wanted:
        raise ValueError(f"{path} is damaged: its arrays are not those that its header describes")
    if isinstance(like, Reference):
        null = arrays[-1]
        if (null < 0).any() or not np.array_equal(np.sort(null), null, equal_nan=True):
            raise ValueError(f"{path} is damaged: its distances do not ascend from 0 up")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(x) for x in arrays])


def _read(file: BinaryIO) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The description of the moments, which is the first array of the file, and all others."""
    if not is_zipfile(file):
        raise ValueError("it is no .npz file")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        names = [f"arr_{place}" for place in range(len(archive.files))]
        arrays = [np.asarray(archive[name]) for name in names]  # bytes, if that is no array
    return json.loads(str(arrays[0])), arrays[1:]


def _described(stored: Any) -> dict[str, Any]:
    """All that is static, as JSON has it."""
    if isinstance(stored, Reference):
        rows, draws = list(stored.rows), stored.null.shape[-1]
        of_moments = _described(stored.moments)
        return {
            "format": FORMAT,
            "kind": "reference",
            "moments": of_moments,
            "rows": rows,
            "draws": draws,
        }
    if not isinstance(stored, FeatureMoments | LayerMoments):
        raise ValueError(f"{type(stored).__name__} is not stored: pass moments, or a Reference")
    state = stored.state
    summed = {"format": FORMAT, "method": state.method, "dtype": str(state.high.mean.dtype)}
    if isinstance(stored, LayerMoments):
        return {"kind": "layers", "sizes": stored.sizes, **summed}
    return {
        "kind": "features",
        **stored.sizes._asdict(),
        "classes": stored.classes,
        "fourth": state.high.fourth is not None,
        "blocks": stored.blocks,
        **summed,
    }


def _begun(header: dict[str, Any]) -> Stored:
    """The same as the description says, of no rows."""
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']}: update spectral_jax")
    if header.get("dtype") == "float64" and jnp.result_type(float) != jnp.float64:
        raise ValueError("float64: jax.config.update('jax_enable_x64', True)")
    check_choice(("features", "layers", "reference"), kind=header["kind"])
    options = {name: value for name, value in header.items() if name not in ("format", "kind")}
    if header["kind"] == "layers":
        return layers.zero(options.pop("sizes"), **options)
    if header["kind"] == "features":
        return zero(options.pop("features"), **options)
    m, rows = _begun(options["moments"]), [count("rows", n, least=2) for n in options["rows"]]
    if rows != sorted(set(rows)):
        raise ValueError(f"rows={rows} do not ascend")
    if not isinstance(m, FeatureMoments):
        raise TypeError("a reference without moments of features")
    null = jnp.zeros((len(rows), options["draws"]), m.state.high.mean.dtype)
    return Reference(m, null, tuple(rows))
