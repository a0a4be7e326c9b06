"""The 8 x 8 digits that ship with scikit-learn: real data, no download, for smoke runs."""

import hashlib

import numpy as np

from experiments.data.base import SPLIT_SEED, Dataset, Spec, from_mean_std, in_halves, unscaled
from experiments.data.files import Files, Source
from experiments.data.splits import stratified_split

TEST_EXAMPLES = 360


def load(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read the digits, values 0 to 16; standardised by the training set's mean and spread."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int32)
    train, test = stratified_split(y, test=TEST_EXAMPLES, seed=SPLIT_SEED)
    scaling = unscaled()
    if preprocessing == "standard":
        # One mean and spread for all pixels, as for the other images: the corners are always 0.
        scaling = from_mean_std(x[train].mean(), x[train].std())
    sha256 = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    return Dataset("digits", x[train], y[train], x[test], y[test], *scaling, 10, sha256)


def load_halves(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read the digits in two classes, 0-4 and 5-9."""
    return in_halves(load(files, preprocessing=preprocessing, split=split))


DIGITS = Spec(
    name="digits",
    what="handwritten digits that ship with scikit-learn",
    shape="1437 + 360 x 8 x 8, 10 classes",
    size="0 MB",
    licence="BSD-3-Clause (scikit-learn); UCI id 80, CC BY 4.0",
    source=Source(folder="", files=()),
    load=load,
    splits=("stratified",),
)

DIGITS2 = DIGITS._replace(
    name="digits2",
    what="the digits in two classes, 0-4 and 5-9",
    shape="1437 + 360 x 8 x 8, 2 classes",
    load=load_halves,
)
