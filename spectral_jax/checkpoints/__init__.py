"""Files of weights in, named arrays out, a tensor at a time; importing it does not import jax.

>>> import numpy, pathlib, tempfile
>>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
>>> save_safetensors(path, {"dense/kernel": numpy.eye(2, 3, dtype="float32")})
>>> with open_checkpoint(path) as checkpoint:
...     print(checkpoint.format, *checkpoint.tensors.values())
...     print(checkpoint.read("dense/kernel"))
safetensors Tensor(name='dense/kernel', shape=(2, 3), dtype='float32')
[[1. 0. 0.]
 [0. 1. 0.]]
"""

from spectral_jax.checkpoints._base import CheckpointError, Tensor, as_line
from spectral_jax.checkpoints._open import FORMATS, Checkpoint, load, open_checkpoint
from spectral_jax.checkpoints._safetensors import save_safetensors

__all__ = [
    "FORMATS",
    "Checkpoint",
    "CheckpointError",
    "Tensor",
    "as_line",
    "load",
    "open_checkpoint",
    "save_safetensors",
]
