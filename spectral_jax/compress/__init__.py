"""A checkpoint's layers cut at a rank and written as two factors: NumPy in float64, no jax.

    result = compress("model.safetensors", rank="mp")
    result.rows                              # what happened to each layer, and why
    save_safetensors("smaller.safetensors", result.tensors)

The command ``spectral-jax compress`` does both.
"""

from spectral_jax.compress.engine import Compressed, compress
from spectral_jax.compress.ranks import parse_rank

__all__ = ["Compressed", "compress", "parse_rank"]
