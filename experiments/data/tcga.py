"""Gene expression of five cancers: the UCI archive (id 401) that arXiv 2003.00992 uses."""

import io
import tarfile
from typing import IO

import numpy as np

from experiments.data.base import SPLIT_SEED, Dataset, Spec, from_mean_std, unscaled
from experiments.data.files import File, Files, Source
from experiments.data.splits import stratified_split
from experiments.errors import UserError

ARCHIVE = "TCGA-PANCAN-HiSeq-801x20531.tar.gz"
CLASSES = ("COAD", "PRAD", "LUAD", "BRCA", "KIRC")  # the released code's order
RELEASED_TRAIN = 600  # the released code trains on the first 600 rows of the file


def parse_expression(lines: IO[bytes]) -> tuple[list[bytes], np.ndarray]:
    """Return sample names and float32 `[n, p]` of `data.csv`: `,gene_0,...` then `sample_0,...`."""
    genes = next(lines).count(b",")
    names, rows = [], []
    for line in lines:
        name, *values = line.rstrip().split(b",")
        if len(values) != genes:
            raise ValueError(f"{name.decode()} has {len(values)} values for {genes} genes")
        names.append(name)
        rows.append(np.array(values, np.float32))
    return names, np.stack(rows)


def parse_labels(lines: IO[bytes]) -> tuple[list[bytes], np.ndarray]:
    """Return sample names and int32 labels `[n]` of `labels.csv`: `,Class` then `sample_0,PRAD`."""
    next(lines)
    pairs = [line.decode().strip().split(",") for line in lines]
    labels = np.array([CLASSES.index(label) for _, label in pairs], np.int32)
    return [name.encode() for name, _ in pairs], labels


def load(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read the archive (about 10 s: 206 MB of text), standardised per gene on the training set.

    `split="stratified"` keeps the released sizes and the class proportions; `"released"` takes the
    first 600 rows for training, whatever their classes, as the released code does.
    """
    parsed = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(files.read(ARCHIVE)), mode="r:gz") as archive:
            for member in archive:
                for name, parse in (("data.csv", parse_expression), ("labels.csv", parse_labels)):
                    stream = archive.extractfile(member)
                    if stream is not None and member.name.endswith(f"/{name}"):
                        parsed[name] = parse(stream)
        names, x = parsed["data.csv"]
        labelled, y = parsed["labels.csv"]
        if names != labelled:
            raise ValueError("data.csv and labels.csv do not list the same samples")
    except (ValueError, KeyError, StopIteration, tarfile.TarError) as error:
        raise UserError(f"tcga: {ARCHIVE} is malformed: {error}; replace it") from error
    if split == "released":
        train, test = np.arange(RELEASED_TRAIN), np.arange(RELEASED_TRAIN, len(y))
    else:
        train, test = stratified_split(y, test=len(y) - RELEASED_TRAIN, seed=SPLIT_SEED)
    train_x = x[train]
    scaling = unscaled()
    if preprocessing == "standard":
        scaling = from_mean_std(train_x.mean(0, np.float64), train_x.std(0, np.float64))
    return Dataset(
        "tcga", train_x, y[train], x[test], y[test], *scaling, len(CLASSES), files.sha256
    )


TCGA = Spec(
    name="tcga",
    what="gene expression of five cancers (UCI id 401)",
    shape="600 + 201 x 20531, 5 classes",
    size="73 MB",
    licence="CC BY 4.0",
    source=Source(
        folder="tcga",
        files=(
            File(ARCHIVE, ("e6ea3628f9656efa2d7cf382bf5a403e2cc214df3d90312b1928f5650b43a559",)),
        ),
        urls=("https://archive.ics.uci.edu/static/public/401/",),
        archive="gene+expression+cancer+rna+seq.zip",
    ),
    load=load,
)
