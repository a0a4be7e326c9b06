"""Subtypes of breast cancer from gene expression: a small stand-in for the UCI set."""

import io

import numpy as np

from experiments.data.base import Dataset, Spec, from_mean_std, unscaled
from experiments.data.files import File, Files, Source

FILE = "tcga_brca.npz"
SUBTYPES = ("Basal", "Her2", "LumA")


def load(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read the mRNA features and the subtypes, standardised per gene on the training set.

    The archive also holds miRNA (`mirna_train`, `mirna_test`: 184 features) and protein
    (`protein_train`: 142, not measured on the test set), which are not used. `split` has no effect,
    as the test set is the published one. Rows come sorted by subtype.
    """
    with np.load(io.BytesIO(files.read(FILE)), allow_pickle=False) as arrays:
        train_x, test_x = arrays["mrna_train"], arrays["mrna_test"]
        train_y, test_y = (
            np.searchsorted(SUBTYPES, arrays[f"subtype_{part}"]).astype(np.int32)
            for part in ("train", "test")
        )
    scaling = unscaled()
    if preprocessing == "standard":
        scaling = from_mean_std(train_x.mean(0, np.float64), train_x.std(0, np.float64))
    return Dataset("tcga_brca", train_x, train_y, test_x, test_y, *scaling, 3, files.sha256)


TCGA_BRCA = Spec(
    name="tcga_brca",
    what="breast cancer subtypes from 200 genes (mixOmics breast.TCGA)",
    shape="150 + 70 x 200, 3 classes",
    size="0.4 MB",
    licence="GPL >= 2 (mixOmics)",
    source=Source(
        folder="expression",
        files=(File(FILE, ("93a40c6540d36661d7ddb45decfbd6a4add5c140065f74270567036d312eea9a",)),),
    ),
    load=load,
)
