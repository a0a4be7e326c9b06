"""MNIST, Fashion-MNIST, and MNIST at 7 x 7: the idx format of yann.lecun.com/exdb/mnist."""

import numpy as np

from experiments.data.base import Dataset, Spec, from_mean_std, in_halves, unscaled
from experiments.data.files import File, Files, Source
from experiments.errors import UserError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
UNSIGNED_BYTE = 8


def parse_idx(content: bytes, dimensions: int, where: str) -> np.ndarray:
    """Return the uint8 array of an idx file; `UserError` (2) if it is not one.

    Layout: two zero bytes, the type (8 = uint8), the number of dimensions, then one big-endian
    uint32 per dimension, then the values with the last dimension fastest.
    """
    expected = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if content[:4] != expected:
        raise UserError(
            f"{where} is not an idx file of {dimensions} dimensions: it starts with "
            f"0x{content[:4].hex()}, expected 0x{expected.hex()}; replace it"
        )
    start = 4 + 4 * dimensions
    shape = tuple(
        int(n) for n in np.frombuffer(content[4:start].ljust(4 * dimensions, b"\0"), ">u4")
    )
    if len(content) != start + np.prod(shape):
        raise UserError(
            f"{where} has {len(content)} bytes, not the {start} of its header and the "
            f"values of shape {shape}; replace it"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def shrink_to_7x7(images: np.ndarray) -> np.ndarray:
    """Resize `[n, 28, 28]` to float32 `[n, 7, 7]`: blur by a Gaussian, then mean of 2 x 2 centres.

    The anti-aliased linear resize by 4 of scikit-image, which the experiments of arXiv 2103.03386
    use: sigma = (4 - 1) / 2 cut at 4 sigma, mirrored borders; output pixel i lies midway between
    input pixels 4 i + 1 and 4 i + 2. Both steps are separable and linear, so they are one 7 x 28
    matrix on each side. Their version (0.15) blurs in uint8, which loses up to two grey levels of
    255 to truncation; here the blur is exact.
    """
    radius = 6
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 1.5) ** 2)
    kernel /= kernel.sum()
    resize = np.zeros((7, 28))
    for row in range(7):
        for centre in (4 * row + 1, 4 * row + 2):
            reached = np.abs(np.arange(centre - radius, centre + radius + 1))
            np.add.at(resize[row], np.where(reached > 27, 54 - reached, reached), kernel / 2)
    resize = resize.astype(np.float32)
    narrow = images.reshape(-1, 28).astype(np.float32) @ resize.T
    return np.matmul(resize, narrow.reshape(-1, 28, 7))


def load_mnist(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read MNIST, normalised by the released code's (x / 255 - 0.1307) / 0.3081."""
    return _load(files, "mnist", 0.1307, 0.3081, preprocessing)


def load_fashion_mnist(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read Fashion-MNIST, normalised by the training set's (x / 255 - 0.2860) / 0.3530."""
    return _load(files, "fashion_mnist", 0.2860, 0.3530, preprocessing)


def load_mnist7(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read MNIST at 7 x 7 in float32, divided by 255 as in arXiv 2103.03386."""
    full = _load(files, "mnist7", 0.0, 1.0, preprocessing)
    return full._replace(train_x=shrink_to_7x7(full.train_x), test_x=shrink_to_7x7(full.test_x))


def load_mnist2(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read MNIST in two classes, 0-4 and 5-9, as PAC-Bayes bounds are reported for it."""
    return in_halves(load_mnist(files, preprocessing=preprocessing, split=split))


def load_mnist10k(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read the test images of MNIST alone: the first 8,000 to train on, the last 2,000 to test."""
    x, y = _pair(files, "mnist10k", TEST_IMAGES, TEST_LABELS)
    scaling = unscaled() if preprocessing == "raw" else _scaling(0.1307, 0.3081)
    cut = 4 * len(y) // 5
    parts = x[:cut], y[:cut], x[cut:], y[cut:]
    return Dataset("mnist10k", *parts, *scaling, 10, files.sha256)


def _load(files: Files, name: str, mean: float, std: float, preprocessing: str) -> Dataset:
    """Read the four files; there is no `split`, as the test set is the published one."""
    train = _pair(files, name, TRAIN_IMAGES, TRAIN_LABELS)
    test = _pair(files, name, TEST_IMAGES, TEST_LABELS)
    scaling = unscaled() if preprocessing == "raw" else _scaling(mean, std)
    return Dataset(name, *train, *test, *scaling, 10, files.sha256)


def _pair(
    files: Files, name: str, image_file: str, label_file: str
) -> tuple[np.ndarray, np.ndarray]:
    x = parse_idx(files.read(image_file), 3, f"{name}: {image_file}")
    y = parse_idx(files.read(label_file), 1, f"{name}: {label_file}")
    if len(x) != len(y):
        raise UserError(
            f"{name}: {len(x)} images in {image_file} but {len(y)} labels in {label_file}; "
            "replace both"
        )
    return x, y.astype(np.int32)


def _scaling(mean: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    return from_mean_std(255 * mean, 255 * std)


def _files(*digests: str) -> tuple[File, ...]:
    names = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
    return tuple(File(name, (digest,)) for name, digest in zip(names, digests, strict=True))


MNIST = Spec(
    name="mnist",
    what="handwritten digits",
    shape="60000 + 10000 x 28 x 28, 10 classes",
    size="12 MB",
    licence="none stated; cite LeCun et al. 1998",
    source=Source(
        folder="mnist",
        files=_files(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        urls=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        suffix=".gz",
    ),
    load=load_mnist,
)

MNIST7 = MNIST._replace(
    name="mnist7",
    what="MNIST shrunk to 7 x 7, as in arXiv 2103.03386",
    shape="60000 + 10000 x 7 x 7, 10 classes",
    load=load_mnist7,
)

MNIST10K = MNIST._replace(
    name="mnist10k",
    what="the test images of MNIST, to train and to test on",
    shape="8000 + 2000 x 28 x 28, 10 classes",
    size="2 MB",
    source=MNIST.source._replace(files=MNIST.source.files[2:]),
    load=load_mnist10k,
)

MNIST2 = MNIST._replace(
    name="mnist2",
    what="MNIST in two classes, 0-4 and 5-9",
    shape="60000 + 10000 x 28 x 28, 2 classes",
    load=load_mnist2,
)

FASHION_MNIST = Spec(
    name="fashion_mnist",
    what="articles of clothing, the harder MNIST",
    shape="60000 + 10000 x 28 x 28, 10 classes",
    size="31 MB",
    licence="MIT",
    source=Source(
        folder="fashion_mnist",
        files=_files(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        urls=("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",),
        suffix=".gz",
    ),
    load=load_fashion_mnist,
)
