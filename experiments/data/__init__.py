"""Data sets: load, list, fetch and verify them; carve subsets and add label noise.

For example::

    dataset = load("mnist")
    splits = prepare(dataset, train_limit=1000, validation=5000, label_noise=0.2, seed=0)
    model_input = (splits.train_x.astype("float32") - dataset.shift) * dataset.scale
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.data.base import Dataset, Spec
from experiments.data.files import (
    Files,
    checked,
    download,
    find,
    find_archive,
    how_to_get,
    locate,
)
from experiments.data.registry import DATASETS
from experiments.data.splits import (
    Splits,
    corrupt_labels,
    prepare,
    stratified_order,
    stratified_split,
)
from experiments.errors import UserError

__all__ = [
    "DATASETS",
    "Dataset",
    "Splits",
    "corrupt_labels",
    "fetch",
    "listing",
    "load",
    "prepare",
    "stratified_order",
    "stratified_split",
    "verify",
]

PREPROCESSING = ("standard", "unit", "raw")


def load(name: str, *, preprocessing: str = "standard", split: str = "stratified") -> Dataset:
    """Load a data set from verified files.

    `preprocessing`: "standard" normalises (constants of the papers for images, training-set mean
    and spread for features), "unit" divides by the largest training value, "raw" leaves the values
    as published. `split` matters where there is no published test set (tcga): "stratified", or
    "released" for the rows of the released code.
    Raises `UserError`: 2 for an unknown name or option and for a damaged file, 4 for a missing one.
    """
    spec = _spec(name)
    _choose("data.preprocessing", preprocessing, PREPROCESSING)
    _choose(f"data.split of {name}", split, spec.splits)
    files = Files(name, spec.source)
    if preprocessing != "unit":
        return spec.load(files, preprocessing=preprocessing, split=split)
    dataset = spec.load(files, preprocessing="raw", split=split)
    return dataset._replace(scale=np.asarray(1 / dataset.train_x.max(), np.float32))


def fetch(name: str) -> list[Path]:
    """Download what is missing into the user cache, check all files, return where they are.

    Raises `UserError`: 4 when no address answers, 2 for damaged content, 1 when it cannot be kept.
    """
    source = _spec(name).source
    download(name, source)
    return [Path(row["path"]) for row in verify(name)]


def verify(name: str) -> list[dict[str, str]]:
    """Check every file of a data set; one row per file: dataset, file, path, sha256.

    Raises `UserError`: 4 for a missing file, 2 for one that is not the published one.
    """
    source = _spec(name).source
    paths = locate(name, source)
    return [
        {
            "dataset": name,
            "file": file.name,
            "path": str(paths[file.name]),
            "sha256": checked(name, file, paths[file.name])[1],
        }
        for file in source.files
    ]


def listing() -> list[dict[str, str]]:
    """Return one row per data set: name, what, shape, size, where, licence.

    `where` says where the files are, or how to get them; `verify` is what reads them.
    """
    return [
        {
            "name": spec.name,
            "what": spec.what,
            "shape": spec.shape,
            "size": spec.size,
            "where": _where(spec),
            "licence": spec.licence,
        }
        for spec in DATASETS.values()
    ]


def _where(spec: Spec) -> str:
    """Say where a data set was found, or how to get it."""
    source = spec.source
    if not source.files:
        return "scikit-learn"
    found = [path for file in source.files if (path := find(source, file)) is not None]
    if len(found) == len(source.files):
        return str(found[0].parent)
    archive = find_archive(source)
    return str(archive) if archive else how_to_get(spec.name, source)


def _spec(name: str) -> Spec:
    _choose("data set", name, list(DATASETS))
    return DATASETS[name]


def _choose(what: str, value: str, known: Iterable[str]) -> None:
    """Raise a `UserError` (2) with a suggestion unless `value` is one of `known`."""
    known = tuple(known)
    if value in known:
        return
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
    raise UserError(f"unknown {what} {value!r}; {hint}")
