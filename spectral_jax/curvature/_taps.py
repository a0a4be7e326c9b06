"""What flows in and back where the parameters of a model enter, for every example.

A kernel ``W [in, out]`` that is used as ``y = a W`` has the gradient ``a^T b``, where ``b`` is the
gradient with respect to ``y``. So inner products of gradients follow from those of ``a`` and of
``b``, and the gradients, one per example and output, need not be formed. The program that JAX
traces (a jaxpr) is run operation by operation, and parameters are followed until something other
than a rearrangement consumes them. ``b`` is the gradient with respect to a zero added to ``y``.

All of it is done for one example, a batch of one, and mapped over examples: no axis has to be
recognised as that of the batch, and no two examples meet.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, PyTree, Shaped

from spectral_jax.curvature._batches import Model
from spectral_jax.curvature._subset import names_of
from spectral_jax.curvature._uses import Use, Walk


class Backward(NamedTuple):
    """What flows back, in the order in which `Taps` lists uses and explicit leaves.

    signals: per use, the gradient with respect to its result.
    explicit: per explicit leaf, its gradient for each example.
    """

    signals: tuple[Float[Array, "n positions out"], ...]
    explicit: tuple[Float[Array, "n size"], ...]


@dataclasses.dataclass(frozen=True)
class Taps:
    """A model evaluated on ``n`` examples, and the uses of its parameters.

    paths: the names of the leaves of ``params``, to which the numbers in the uses refer.
    uses: a leaf that is used several times is listed as often, and its gradient is the sum.
    explicit: leaves whose gradients are formed outright, since some use of them (in a product of
      activations with a scale, or a scan over layers) has no kernel. Outputs do not depend on
      leaves that are in neither list.
    outputs: the model's.
    activations: per use; of an embedding, the numbers of the rows looked up ``[n, positions]``.
    backward: takes gradients with respect to the outputs to `Backward`, without running the model.
    """

    paths: tuple[str, ...]
    uses: tuple[Use, ...]
    explicit: tuple[int, ...]
    outputs: Float[Array, "n *positions c"]
    activations: tuple[Shaped[Array, "n positions ..."], ...]
    backward: Callable[[Float[Array, "n *positions c"]], Backward]


def taps(
    model: Model, params: PyTree, inputs: PyTree, *, chosen: Sequence[bool] | None = None
) -> Taps:
    """Evaluate ``model(params, inputs)`` example by example, and tap every use of a parameter.

    ``inputs`` is a pytree of arrays with a leading axis of examples. ``chosen`` says which leaves
    of ``params`` are parameters, all by default; the others are in no list. Works under ``jit`` and
    ``vmap``. Raises ``ValueError`` if the model returns anything but one array with that axis.
    """
    examples, program = _traced(model, params, inputs)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
    fixed = [i for i, here in enumerate(chosen or ()) if not here]
    explicit, paired = _survey(program, leaves, inputs, fixed)
    found = _tried(program, leaves, inputs, [*fixed, *explicit], paired)
    zeros = [jnp.zeros((examples, *like.shape), like.dtype) for like in found.results]
    formed = [jnp.broadcast_to(leaves[i], (examples, *leaves[i].shape)) for i in explicit]

    def single(example: PyTree, zeros: Sequence[Array], formed: Sequence[Array]) -> Any:
        given = list(leaves)
        for i, leaf in zip(explicit, formed, strict=True):
            given[i] = leaf
        walk = Walk([*fixed, *explicit], paired, zeros)
        (outputs,) = walk(program, given, _batch_of_one(example))
        return outputs[0], tuple(walk.activations)

    def evaluate(zeros: Sequence[Array], formed: Sequence[Array]) -> Any:
        return jax.vmap(single)(inputs, zeros, formed)

    outputs, pull_back, activations = jax.vjp(evaluate, zeros, formed, has_aux=True)

    def backward(cotangents: Array) -> Backward:
        signals, gradients = pull_back(cotangents.astype(outputs.dtype))
        arranged = (jax.vmap(f)(y) for f, y in zip(found.arrange, signals, strict=True))
        return Backward(tuple(arranged), tuple(g.reshape(examples, -1) for g in gradients))

    return Taps(names_of(params), tuple(found.uses), explicit, outputs, activations, backward)


def _traced(model: Model, params: PyTree, inputs: PyTree) -> tuple[int, ClosedJaxpr]:
    """The number of examples, and the program of the model for a batch of one."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
        raise ValueError(
            f"inputs have shapes {shapes}: pass arrays with one leading axis, [n, ...]"
        )
    ((examples,),) = sizes
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), inputs)
    program, outputs = jax.make_jaxpr(model, return_shape=True)(params, one)
    if not hasattr(outputs, "shape") or len(outputs.shape) < 2 or outputs.shape[0] != 1:
        raise ValueError(
            f"model returns {outputs} for a batch of one: return one array [n, *positions, c] "
            "(drop a new state, and add an axis to a single output)"
        )
    return examples, program


def _survey(
    program: ClosedJaxpr, leaves: Sequence[Array], inputs: PyTree, fixed: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which leaves have to be explicit, and which biases belong to a product."""
    first = _tried(program, leaves, inputs, fixed)
    times = Counter(use.leaf for use in first.uses)
    paired = [
        bias
        for bias, products in first.pairs.items()
        if bias not in first.lost
        and times[bias] == len(products) == 1
        and first.reads[products[0]] == 1
        and first.uses[products[0]].leaf not in first.lost
    ]
    return tuple(sorted(first.lost)), tuple(paired)


def _tried(
    program: ClosedJaxpr,
    leaves: Sequence[Array],
    inputs: PyTree,
    opaque: Sequence[int],
    paired: Sequence[int] = (),
) -> Walk:
    """What a walk finds, on shapes alone."""
    walk = Walk(opaque, paired)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
    jax.eval_shape(lambda leaves, x: walk(program, leaves, _batch_of_one(x)), leaves, example)
    return walk


def _batch_of_one(example: PyTree) -> list[Array]:
    return [leaf[None] for leaf in jax.tree.leaves(example)]
