"""Which parameters share a Kronecker product, from the uses of the leaves of a model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from spectral_jax.curvature._taps import Backward, Taps
from spectral_jax.curvature._uses import Use
from spectral_jax.curvature.kronecker import Kind
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.subspace import mm

# Parameters that are no kernel (scales and shifts of norms, positions, what is scanned over) keep
# their whole exact block up to this size, and their exact diagonal above: a block of 256 costs no
# more than a small layer.
DENSE_UP_TO = 256

Part: TypeAlias = Literal["kernel", "joined", "bias"]


class Member(NamedTuple):
    """One use of the parameters of a block.

    part: of the use: its kernel, its kernel with the bias joined as the last row, or its bias.
    turned: the kernel is the transpose of the block's matrix, as where a table of embeddings is
      used again to read out.
    """

    use: int
    part: Part
    turned: bool


@dataclasses.dataclass(frozen=True)
class Block:
    """A matrix of parameters: what `KroneckerBlock` says of it, and where its gradient comes from.

    ``places`` are the ``index`` there. A block of ``members`` has the gradient ``sum_members
    a^T b``, turned where they are, with ``a`` from `activations` and ``b`` the `signals`. One
    without members is a whole ``leaf``, with the gradient of `leaf_gradient`, or unused.
    """

    names: tuple[str, ...]
    kind: Kind
    places: np.ndarray
    members: tuple[Member, ...]
    leaf: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.places.shape
        return rows, columns


def blocks_of(names: Sequence[str], leaves: Sequence[Array], tapped: Taps) -> tuple[Block, ...]:
    """The blocks of all parameters; every entry of the raveled leaves belongs to one."""
    ends = list(itertools.accumulate(int(np.size(leaf)) for leaf in leaves))
    places = [
        np.arange(end - np.size(leaf), end, dtype=np.int32).reshape(np.shape(leaf))
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    biases = {use.bias for use in tapped.uses} - {None}
    found: list[Block] = []
    for leaf in range(len(leaves)):
        if leaf not in biases:
            found += _blocks_of_leaf(leaf, names, places, tapped)
    covered = np.concatenate([block.places.ravel() for block in found] + [np.zeros(0, np.int32)])
    return tuple(found) + _unused(names, places, covered)


def activations(member: Member, tapped: Taps) -> Shaped[Array, "n positions ..."]:
    """What enters the kernel, ``[n, positions, in]``; of an embedding the rows ``[n, positions]``.

    With a 1 for a bias, at the end if it is joined.
    """
    entering = _working(tapped.activations[member.use])
    if member.part == "kernel":
        return entering
    ones = jnp.ones((*entering.shape[:2], 1), entering.dtype)
    return ones if member.part == "bias" else jnp.concatenate([entering, ones], axis=-1)


def signals(member: Member, backward: Backward) -> Float[Array, "n positions out"]:
    """What is sent back to the result of the kernel."""
    return _working(backward.signals[member.use])


def leaf_gradient(block: Block, tapped: Taps, backward: Backward) -> Float[Array, "n size"]:
    """The gradient of the leaf of a block without members, for every example."""
    if block.leaf in tapped.explicit:
        return _working(backward.explicit[tapped.explicit.index(block.leaf)])
    gradients = []
    for i, use in enumerate(tapped.uses):
        if use.leaf == block.leaf:
            kernel = jax.vmap(partial(outer, shape=use.shape))
            factors = _working(tapped.activations[i]), _working(backward.signals[i])
            gradients.append(jax.vmap(use.place)(kernel(*factors)))
    return jnp.sum(jnp.stack(gradients), axis=0)


def outer(left: Array, right: Array, shape: tuple[int, int]) -> Float[Array, "i o"]:
    """``left^T right`` for one example, ``[positions, i]`` and ``[positions, o]``.

    Row numbers ``[positions]`` stand for unit vectors on either side.
    """
    if left.ndim == 1:
        return jnp.zeros(shape, right.dtype).at[left].add(right)
    if right.ndim == 1:
        return jnp.zeros(shape, left.dtype).at[:, right].add(left.T)
    return mm(left.T, right)


def _working(x: Array) -> Array:
    """In the dtype of spectra, whatever the model computes in; row numbers as they are."""
    return working(x) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _blocks_of_leaf(
    leaf: int, names: Sequence[str], places: Sequence[np.ndarray], tapped: Taps
) -> list[Block]:
    uses = [i for i, use in enumerate(tapped.uses) if use.leaf == leaf]
    added = any(tapped.uses[i].kind == "bias" for i in uses)
    groups = _grouped([(i, _kernel(tapped.uses[i], places[leaf])) for i in uses])
    if leaf in tapped.explicit or added or groups is None:
        return [_exact(leaf, places[leaf], names[leaf]), *_biases(uses, names, places, tapped)]
    found = []
    for index, members in groups:
        bias = tapped.uses[members[0].use].bias
        if len(members) == 1 and bias is not None:
            index = np.concatenate([index, places[bias].reshape(1, -1)])
            joined = (members[0]._replace(part="joined"),)
            found.append(Block((names[leaf], names[bias]), "kronecker", index, joined, leaf))
        else:
            found.append(Block((names[leaf],), "kronecker", index, tuple(members), leaf))
            found += _biases([member.use for member in members], names, places, tapped)
    return found


def _biases(
    uses: Sequence[int], names: Sequence[str], places: Sequence[np.ndarray], tapped: Taps
) -> list[Block]:
    """The biases of uses as exact blocks of their own.

    The rows of a kernel with several uses see several activations, a bias just one of them.
    """
    return [
        Block(
            (names[bias],), "dense", places[bias].reshape(1, -1), (Member(i, "bias", False),), bias
        )
        for i in uses
        if (bias := tapped.uses[i].bias) is not None
    ]


def _kernel(use: Use, places: np.ndarray) -> np.ndarray:
    """Where the entries of the kernel of a use stand in the raveled parameters."""
    with jax.ensure_compile_time_eval():
        return np.asarray(use.move(jnp.asarray(places)))


def _grouped(
    kernels: Sequence[tuple[int, np.ndarray]],
) -> list[tuple[np.ndarray, list[Member]]] | None:
    """Uses of one leaf by the matrix that they use, as it is or turned.

    None if a kernel repeats entries, or two share some but not all: then no product of Kronecker
    describes either.
    """
    groups: list[tuple[np.ndarray, list[Member]]] = []
    for use, index in kernels:
        if np.unique(index).size < index.size:
            return None
        for first, members in groups:
            turned = not np.array_equal(index, first)
            if not turned or np.array_equal(index.T, first):
                members.append(Member(use, "kernel", turned))
                break
            if np.intersect1d(index, first).size:
                return None
        else:
            groups.append((index, [Member(use, "kernel", False)]))
    return groups


def _exact(leaf: int, places: np.ndarray, name: str) -> Block:
    if places.size <= DENSE_UP_TO:
        return Block((name,), "dense", places.reshape(1, -1), (), leaf)
    return Block((name,), "diagonal", places.reshape(-1, 1), (), leaf)


def _unused(
    names: Sequence[str], places: Sequence[np.ndarray], covered: np.ndarray
) -> tuple[Block, ...]:
    """The parameters that no use reaches: a leaf, or what is left of one."""
    found = []
    for leaf, (name, place) in enumerate(zip(names, places, strict=True)):
        left = np.setdiff1d(place.ravel(), covered).astype(np.int32)
        if left.size:
            name = name if left.size == place.size else f"{name} (rest)"
            found.append(Block((name,), "unused", left[:, None], (), leaf))
    return tuple(found)
