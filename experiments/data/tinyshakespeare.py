"""Tiny Shakespeare: a megabyte of plays, one character per token."""

import numpy as np

from experiments.data.base import Dataset, Spec, unscaled
from experiments.data.files import File, Files, Source
from experiments.errors import UserError

FILE = "input.txt"
CONTEXT = 256
TRAIN_SHARE = 0.9

# Every character of the file, in the order of their codes.
VOCABULARY = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def encode(text: str) -> np.ndarray:
    """Return the characters as positions in `VOCABULARY`, uint8 `[n]`; `UserError` (2) if not so.

    >>> encode("Hi!")
    array([20, 47,  2], dtype=uint8)
    """
    unknown = sorted(set(text) - set(VOCABULARY))
    if unknown:
        raise UserError(f"{unknown[0]!r} is not in the vocabulary of tinyshakespeare; remove it")
    return np.array([VOCABULARY.index(character) for character in text], np.uint8)


def decode(tokens: np.ndarray) -> str:
    """Return the text of tokens `[n]`.

    >>> decode(encode("All:"))
    'All:'
    """
    return "".join(VOCABULARY[token] for token in tokens)


def windows(tokens: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a stream `[n]` into consecutive windows: tokens and their successors `[m, context]`.

    m = floor((n - 1) / context). The windows follow each other, so `x.ravel()` is the stream again.
    """
    count = (len(tokens) - 1) // context
    end = count * context
    x, y = tokens[:end].reshape(count, context), tokens[1 : end + 1].reshape(count, context)
    return x, y.astype(np.int32)


def load(files: Files, *, preprocessing: str, split: str) -> Dataset:
    """Read the text: its first 90 % to train on, the last 10 % to test on, in windows of 256.

    An example is a window uint8 `[256]`, its label the next character at each position, int32
    `[256]`. `preprocessing` and `split` have no effect.
    """
    tokens = encode(files.read(FILE).decode("ascii"))
    first_test = int(TRAIN_SHARE * len(tokens))
    train_x, train_y = windows(tokens[:first_test], CONTEXT)
    test_x, test_y = windows(tokens[first_test:], CONTEXT)
    return Dataset(
        *("tinyshakespeare", train_x, train_y, test_x, test_y),
        *unscaled(),
        len(VOCABULARY),
        files.sha256,
    )


TINY_SHAKESPEARE = Spec(
    name="tinyshakespeare",
    what="plays of Shakespeare, character by character",
    shape=f"3921 + 435 x {CONTEXT}, {len(VOCABULARY)} characters",
    size="1 MB",
    licence="public domain",
    source=Source(
        folder="tinyshakespeare",
        files=(File(FILE, ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",)),),
        urls=(
            "https://raw.githubusercontent.com/karpathy/char-rnn/"
            "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/",
        ),
    ),
    load=load,
    splits=("stratified",),
)
