"""CIFAR-10 in the layout of its binary distribution."""

import numpy as np

from experiments.data.base import Dataset, Spec, from_mean_std, unscaled
from experiments.data.files import File, Files, Source
from experiments.errors import UserError

RECORD = 1 + 3 * 32 * 32
BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = "test_batch.bin"

# The constants of the released code of arXiv 2003.00992.
MEAN = (125.3, 123.0, 113.9)
STD = (63.0, 62.1, 66.7)


def parse_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 `[n, 32, 32, 3]` (a view) and labels int32 `[n]`; `UserError` (2) if bad.

    A record is one label byte, then the red, green and blue planes of 1024 bytes each, row by row.
    """
    if len(content) % RECORD or not content:
        raise UserError(
            f"{where} has {len(content)} bytes, not a multiple of the {RECORD} of a record; "
            "replace it"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        raise UserError(f"{where} has a label {labels.max()}, expected 0 to 9; replace it")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def load(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read CIFAR-10; `split` has no effect, as the test set is the published one."""
    images, labels = [], []
    for name in BATCHES:
        x, y = parse_batch(files.read(name), name)
        images.append(x)
        labels.append(y)
    test_x, test_y = parse_batch(files.read(TEST), TEST)
    scaling = unscaled() if preprocessing == "raw" else from_mean_std(MEAN, STD)
    return Dataset(
        "cifar10",
        np.concatenate(images),
        np.concatenate(labels),
        np.ascontiguousarray(test_x),
        test_y,
        *scaling,
        10,
        files.sha256,
    )


def load_16(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read CIFAR-10 with each 2 x 2 pixels averaged to one, as float32: a quarter of the work."""
    full = load(files, preprocessing=preprocessing, split=split)
    return full._replace(name="cifar16", train_x=_halved(full.train_x), test_x=_halved(full.test_x))


def _halved(images: np.ndarray) -> np.ndarray:
    quarters = images.reshape(len(images), 16, 2, 16, 2, 3)
    return quarters.mean(axis=(2, 4), dtype=np.float32)


DIGESTS = {
    BATCHES[0]: ("cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",),
    BATCHES[1]: ("a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",),
    BATCHES[2]: ("bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",),
    BATCHES[3]: ("014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",),
    BATCHES[4]: ("755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",),
    TEST: (
        "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        # A copy in which 20 of the 10000 images are lossy (1259, 1369, 1422, ...): labels equal,
        # and a public ResNet-20 has its published error on it. Its runs get a hash of their own.
        "123ca0dad8f960344d9149742165d4215093c84c8c4bdc5922af93b614bdb501",
    ),
}

CIFAR10 = Spec(
    name="cifar10",
    what="colour photographs of animals and vehicles",
    shape="50000 + 10000 x 32 x 32 x 3, 10 classes",
    size="170 MB",
    licence="none stated; cite Krizhevsky 2009",
    source=Source(
        folder="cifar-10-batches-bin",
        files=tuple(File(name, sha256) for name, sha256 in DIGESTS.items()),
        urls=("https://www.cs.toronto.edu/~kriz/",),
        archive="cifar-10-binary.tar.gz",
    ),
    load=load,
)

CIFAR16 = CIFAR10._replace(
    name="cifar16",
    what="CIFAR-10 at 16 x 16: means of 2 x 2 pixels",
    shape="50000 + 10000 x 16 x 16 x 3, 10 classes",
    load=load_16,
)
