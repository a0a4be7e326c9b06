"""In which order a trial sees its examples: drawn once per seed and epoch, outside the steps."""

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from experiments.runs.processes import gathered


class Orders(NamedTuple):
    """The orders of an epoch: one row per seed, and the row of each trial."""

    rows: Int[Array, "seeds n"]
    row_of: Int[Array, " trials"]


def orders(keys: Key[Array, " trials"], epoch: int, size: int, *, seeds: int = 1) -> Orders:
    """How the trials of these keys order ``size`` examples in an epoch; equal keys share a row.

    The last row is repeated up to ``seeds`` rows.
    """
    words = gathered(keys)
    _, first, row_of = np.unique(words, axis=0, return_index=True, return_inverse=True)
    first = first[np.minimum(np.arange(max(seeds, len(first))), len(first) - 1)]
    distinct = np.ascontiguousarray(words[first])
    rows = _rows(distinct.tobytes(), distinct.shape, jax.random.key_impl(keys), epoch, size)
    return Orders(rows, jnp.asarray(row_of.reshape(-1), jnp.int32))


def no_orders(keys: Key[Array, " trials"]) -> Orders:
    """For batches that are drawn with replacement."""
    return Orders(jnp.zeros((1, 0), jnp.int32), jnp.zeros(len(keys), jnp.int32))


@lru_cache(maxsize=2)
def _rows(words: bytes, shape: tuple[int, ...], impl: str, epoch: int, size: int) -> Array:
    data = np.frombuffer(words, np.uint32).reshape(shape)
    keys = _keys_of(jax.random.wrap_key_data(jnp.asarray(data), impl=impl), epoch)
    if jax.default_backend() != "cpu":
        return _permutations(keys, size)
    return jnp.asarray(np.stack([permutation(key, size) for key in keys]))


@jax.jit
def _keys_of(keys: Key[Array, " seeds"], epoch: Int[Array, ""]) -> Key[Array, " seeds"]:
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.split(key)[0], epoch))(keys)


@partial(jax.jit, static_argnums=1)
def _permutations(keys: Key[Array, " seeds"], size: int) -> Int[Array, "seeds n"]:
    return jax.vmap(lambda key: jax.random.permutation(key, size))(keys)


def permutation(key: Key[Array, ""], size: int) -> Int[np.ndarray, " n"]:
    """``jax.random.permutation``, sorted by NumPy: XLA's sort takes five times as long on a CPU.

    JAX sorts the examples by random words, and again by others until ties do not matter. Its sorts
    are stable, which the example's place in the lower half of the sorted words makes this one too.
    """
    order = np.arange(size, dtype=np.uint32)
    for words in np.asarray(_words(key, size)):
        placed = words.astype(np.uint64) << np.uint64(32) | np.arange(size, dtype=np.uint64)
        placed.sort()
        order = order[placed.astype(np.uint32)]
    return order.astype(np.int32)


@partial(jax.jit, static_argnums=1)
def _words(key: Key[Array, ""], size: int) -> Array:
    """The words that JAX sorts by in each of its rounds."""
    # So many that three times as many bits as name an example have been drawn.
    rounds = int(np.ceil(3 * np.log(max(1, size)) / np.log(np.iinfo(np.uint32).max)))
    drawn = []
    for _ in range(rounds):
        key, of_round = jax.random.split(key)
        drawn.append(jax.random.bits(of_round, (size,), jnp.uint32))
    return jnp.stack(drawn) if drawn else jnp.zeros((0, size), jnp.uint32)
