"""The matrices of a pytree of parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from spectral_jax.weights._names import Framework
from spectral_jax.weights._plan import Plan, Skipped, classify, require_views
from spectral_jax.weights._read import At, Conv
from spectral_jax.weights._rules import Kind


class WeightMatrix(NamedTuple):
    """A kernel read as a matrix, or as a stack of them (one per kernel position)."""

    name: str
    matrix: Float[Array, "*positions m n"]
    kind: Kind


def matrices(
    params: PyTree,
    *,
    conv: Conv = "positions",
    framework: Framework | Literal["auto"] = "auto",
    kinds: Mapping[str, str] | None = None,
) -> dict[str, WeightMatrix]:
    """Name every weight matrix of a network, in the natural order of the pytree paths.

    Dense ``[in, out]``; a convolution kernel K ``[h, w, i, o]`` becomes ``[h * w, i, o]``
    (``"positions"``), ``[h * w * i, o]`` (``"flattened"``) or ``sum_hw |K|``, ``[i, o]``
    (``"channels"``). For the other kinds, and the options, see `plan`; for what is left out,
    `skipped`. An array that is there under two names (tied weights) comes under the first.

    Holds inside jit, vmap and grad (the names are not arrays: return the matrices only); jit and
    vmap hand over a copy per name, so that tied weights come twice there.

    Raises:
        ValueError: there is no matrix; an option is wrong, as in `plan`.

    >>> import jax.numpy as jnp
    >>> found = matrices({"conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}})
    >>> found["conv/kernel"].kind, found["conv/kernel"].matrix.shape
    ('conv', (9, 2, 4))
    """
    require_arrays(params)
    leaves = named_leaves(params)
    found = _plan(leaves, conv, framework, kinds)
    require_views(found, "params")
    return {
        view.name: WeightMatrix(
            view.name, view.read(*(leaves[source] for source in view.sources)), view.kind
        )
        for view in found.views
    }


def skipped(
    params: PyTree,
    *,
    framework: Framework | Literal["auto"] = "auto",
    kinds: Mapping[str, str] | None = None,
) -> tuple[Skipped, ...]:
    """List the leaves that `matrices` leaves out, each with its reason.

    Raises:
        ValueError: an option is wrong, as in `plan`.

    >>> skipped({"dense": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}})
    (Skipped(name='dense/bias', shape=(3,), reason='bias'),)
    """
    return _plan(named_leaves(params), "positions", framework, kinds).skipped


class Place(NamedTuple):
    """Where a kernel is: a leaf of the pytree, or the layer ``at`` of a leaf that stacks some."""

    leaf: str
    at: At = ()


def places(
    leaves: Mapping[str, Any], *, kinds: Collection[Kind] = get_args(Kind)
) -> dict[str, Place]:
    """Find the kernels of those kinds by name, in the order of the leaves and the layouts of Flax.

    A kernel of fused parts is one, the two factors of a low-rank matrix are two. One of float8 that
    has a scale is none: it is not the weights.

    >>> stack = {"fc/kernel": np.ones((2, 4, 3)), "fc/bias": np.ones((2, 3))}
    >>> places(stack)["fc/kernel:1"]
    Place(leaf='fc/kernel', at=((0, 1),))
    """
    found: dict[str, dict[str, Place]] = {leaf: {} for leaf in leaves}
    for view in classify(leaves, conv="positions", framework="flax", kinds=None).views:
        whole = len(view.sources) == 1 or view.kind == "low_rank"
        for leaf in view.sources if whole and view.kind in kinds else ():
            name = ":".join([leaf, *(str(index) for _, index in view.at)])
            found[leaf][name] = Place(leaf, view.at)
    return {name: place for of_leaf in found.values() for name, place in of_leaf.items()}


def _plan(
    leaves: Mapping[str, Any], conv: Conv, framework: str, kinds: Mapping[str, str] | None
) -> Plan:
    tied = tied_leaves(leaves)
    return classify(leaves, conv=conv, framework=framework, kinds=kinds, tied=tied)


def tied_leaves(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Tied weights: names whose array stands under an earlier name as well, and that name.

    Judged by the identity of the array objects; equal numbers in two arrays are not tied.

    >>> table = np.ones((3, 2))
    >>> tied_leaves({"embedding": table, "head": table})
    {'head': 'embedding'}
    """
    first: dict[int, str] = {}
    return {
        name: first[id(leaf)]
        for name, leaf in leaves.items()
        if first.setdefault(id(leaf), name) != name
    }


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by path, in natural order: ``"layers/2"`` before ``"layers/10"``.

    What has no dtype, as a Python number, comes as an array.

    >>> list(named_leaves({"fc10": {"kernel": 1.0}, "fc2": {"kernel": 2.0}}))
    ['fc2/kernel', 'fc10/kernel']
    """
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {leaf_name(path): _as_array(leaf) for path, leaf in found}
    return dict(sorted(named.items(), key=lambda item: _natural(item[0])))


def require_arrays(tree: PyTree, argument: str = "params") -> None:
    """Raise ``ValueError`` for a leaf that has a shape and no numbers: ``jax.ShapeDtypeStruct``."""
    if not any(map(_is_abstract, jax.tree.leaves(tree))):
        return
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if _is_abstract(leaf):
            raise ValueError(
                f"{argument}: {leaf_name(path)!r} is a {type(leaf).__name__}, a shape without "
                "numbers: pass arrays (weights.plan goes by shapes, jax.eval_shape traces the rest)"
            )


def _is_abstract(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return False
    holds = hasattr(leaf, "__array__") or hasattr(leaf, "__jax_array__")
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not holds


def _as_array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf)


def leaf_name(path: tuple[Any, ...]) -> str:
    """Where a leaf stands in a pytree, as in ``"layers/0/kernel"``, from its key path.

    An ``nnx.State`` holds variables, and what is in a variable is its ``value``: that step is left
    out, since ``nnx.Optimizer`` hands Optax variables at first and bare arrays at every update.

    >>> tree = {"layers": [{"kernel": 1.0}]}
    >>> [leaf_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    ['layers/0/kernel']
    """
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _natural(path: str) -> Any:
    """Sort key that puts ``"layers/2"`` before ``"layers/10"``."""
    return [
        [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key)]
        for key in path.split("/")
    ]
