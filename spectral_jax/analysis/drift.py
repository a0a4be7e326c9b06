"""``spectral-jax drift``: a batch of features beside a stored reference, for whoever is on call."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import is_zipfile

import numpy as np

from spectral_jax._door.table import align, number, or_null
from spectral_jax._files import parsed

ALARM = 3  # the exit code of a check that ran and failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    option = parser.add_argument
    option("path", metavar="REFERENCE", help="what features.calibrate made, by features.save")
    option("batch", metavar="BATCH", help="features.save of moments; or rows: .npy, .npz")
    option("--level", type=float, default=0.01, help="the rate of false alarms (default: 0.01)")
    option("--json", action="store_true", help="one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """Exit code 3 for an alarm, else 0; what is wrong with the input is raised."""
    import jax

    with jax.enable_x64(True):  # files of either dtype
        return _report(options)


def _report(options: argparse.Namespace) -> int:
    from spectral_jax import features

    reference = features.load(options.path)
    if not isinstance(reference, features.Reference):
        raise ValueError(f"{options.path} is no reference: save what features.calibrate makes")
    batch = _batch(Path(options.batch))
    try:
        found = features.drift(reference, batch, level=options.level)
    except ValueError as error:
        raise ValueError(f"{options.batch}, {options.path}: {error}") from None
    if not found.rows >= reference.rows[0] - 0.5:
        raise ValueError(
            f"{options.batch} has {float(found.rows):.0f} rows: the reference is calibrated for "
            f"batches of {reference.rows[0]} or more"
        )
    told = {name: or_null(np.asarray(value).item()) for name, value in found._asdict().items()}
    if options.json:
        print(json.dumps({**told, "level": options.level}, indent=2, allow_nan=False))
    else:
        print("\n".join(align(_lines(told, options.level))))
    return ALARM if told["alarm"] else 0


def _batch(path: Path) -> Any:
    """Moments, or rows: the array of an ``.npy`` file, or the only one of an ``.npz`` file."""
    from spectral_jax import features

    with parsed(path, "features") as file:
        x = _only_array(file)
    if x is not None:
        return _rows(path, x)
    found = features.load(path)
    if not isinstance(found, features.FeatureMoments):
        raise ValueError(f"{path} holds {type(found).__name__}: save moments of features, or rows")
    return found


def _only_array(file: BinaryIO) -> np.ndarray | None:
    plain = file.read(6) == b"\x93NUMPY"
    file.seek(0)
    if plain:
        return np.load(file, allow_pickle=False)
    if not is_zipfile(file):
        return None
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        (*others, name) = archive.files
        return None if others else np.asarray(archive[name])  # bytes, if that is no array


def _rows(path: Path, x: np.ndarray) -> np.ndarray:
    """In the byte order of this machine, the only one that JAX knows."""
    if x.ndim != 2 or x.dtype.kind not in "fiub":
        raise ValueError(f"{path} holds {x.dtype} of shape {x.shape}: save rows of numbers [n, p]")
    return x.astype(x.dtype.newbyteorder("="), copy=False)


def _lines(told: dict[str, Any], level: float) -> list[tuple[str, str]]:
    return [
        ("drift", "ALARM" if told["alarm"] else "none"),
        ("distance", number(told["distance"])),
        (
            "threshold",
            f"{number(told['threshold'])}, passed by {level:.2%} of such batches at most",
        ),
        ("p value", number(told["p_value"])),
        ("of the means", number(told["location"])),
        ("of the shape", number(told["shape"])),
        ("rows", number(told["rows"])),
    ]
