"""Parameters followed through a traced program to the operations that consume them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from math import isnan, prod
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core import Literal as Constant
from jax.lax import Precision
from jaxtyping import Array, Float

Kind: TypeAlias = Literal["dense", "conv", "embedding", "bias"]
Move: TypeAlias = Callable[[Array], Array]


class Use(NamedTuple):
    """One place where a parameter enters: as a kernel ``[in, out]`` of ``y = a W (+ bias)``.

    kind: a ``conv`` reads patches; an ``embedding`` looks up rows; a ``bias`` that is added to no
      product with a kernel is one itself, ``[1, out]``, that reads a 1.
    leaf: the place of the parameter among ``jax.tree.leaves(params)``.
    bias: that of the bias ``[out]`` that is added to the product, if one is.
    shape: ``(in, out)``, and ``leaf_shape`` that of the leaf.
    move: takes an array of the leaf's shape to the kernel, by rearranging entries.
    whole: the kernel has every entry of the leaf once, which keeps lengths and angles.
    """

    kind: Kind
    leaf: int
    bias: int | None
    shape: tuple[int, int]
    leaf_shape: tuple[int, ...]
    move: Move
    whole: bool

    def place(self, gradient: Float[Array, "in out"]) -> Float[Array, " size"]:
        """The gradient of the leaf, raveled, that belongs to one of the kernel."""
        leaf = jax.ShapeDtypeStruct(self.leaf_shape, gradient.dtype)
        (placed,) = jax.linear_transpose(self.move, leaf)(gradient)
        return placed.ravel()


class _Moved(NamedTuple):
    """A parameter, rearranged: ``value = move(leaf)``, but for its dtype.

    row: it lies along the last axis, and along the others it is repeated, if that.
    """

    leaf: int
    leaf_shape: tuple[int, ...]
    value: Array
    move: Move
    whole: bool
    row: bool


class _Product(NamedTuple):
    """The result of the use of that number; ``last``: its last axis is that of the outputs."""

    value: Array
    use: int
    last: bool


class _Reading(NamedTuple):
    """How an operation uses a parameter: as the kernel ``kernel(value)`` of ``y = a W``.

    ``arrange`` takes the operation's result, or a gradient, to ``y`` ``[positions, out]``; ``last``
    says that the outputs are its last axis.
    """

    kind: Kind
    activations: Array
    kernel: Move
    arrange: Move
    whole: bool = True
    last: bool = False


class Walk:
    """One evaluation of a program on one example, with a zero added to the result of every use.

    Args:
      opaque: leaves that are not followed, and so enter as any array does.
      paired: biases that count as part of the product to which they are added.
      zeros: for each use, in order; None adds nothing.

    uses, activations, arrange, results: what was found, an entry for each use; the last are the
      arrays that the zeros must be like.
    lost: leaves that were followed to an operation that is no use of a kernel.
    pairs: of biases, each with the uses to whose product it is added.
    reads: how often the product of each use is read.
    """

    def __init__(
        self,
        opaque: Collection[int] = (),
        paired: Collection[int] = (),
        zeros: Sequence[Array] | None = None,
    ):
        self.opaque, self.paired, self.zeros = frozenset(opaque), paired, zeros
        self.uses: list[Use] = []
        self.activations: list[Array] = []
        self.arrange: list[Move] = []
        self.results: list[Array] = []
        self.lost: set[int] = set()
        self.pairs: dict[int, list[int]] = {}
        self.reads: Counter[int] = Counter()

    def __call__(
        self, program: ClosedJaxpr, leaves: Sequence[Array], others: Sequence[Array]
    ) -> list[Array]:
        """The results of a program of the leaves of ``params`` and of other arguments."""
        followed = [
            _Moved(i, jnp.shape(leaf), leaf, lambda x: x, True, jnp.ndim(leaf) == 1)
            if i not in self.opaque and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            else leaf
            for i, leaf in enumerate(leaves)
        ]
        results = self._run(program.jaxpr, program.consts, [*followed, *others])
        return [self._given_up(result) for result in results]

    def _run(self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        known = dict(zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def value(variable: Any) -> Any:
            return variable.val if isinstance(variable, Constant) else known[variable]

        for equation in jaxpr.eqns:
            given = [value(variable) for variable in equation.invars]
            results = self._equation(jaxpr, equation, given)
            known.update(zip(equation.outvars, results, strict=True))
        return [value(variable) for variable in jaxpr.outvars]

    def _equation(self, jaxpr: Any, equation: Any, given: Sequence[Any]) -> list[Any]:
        name = equation.primitive.name
        if any(isinstance(each, _Moved) for each in given):
            if name in _INLINED:
                inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
                constants = getattr(inner, "consts", ())
                return self._run(getattr(inner, "jaxpr", inner), constants, given)
            if name in _MOVES:
                return [_moved(jaxpr, equation, given[0])]
            if name in ("add", "add_any") and self._is_pair(given):
                return _evaluated(jaxpr, equation, [each.value for each in given])
            if name in _READINGS:
                return self._used(jaxpr, equation, given)
        return _evaluated(jaxpr, equation, [self._given_up(each) for each in given])

    def _given_up(self, value: Any) -> Any:
        """The array itself, for an operation that is no use of a kernel."""
        if isinstance(value, _Moved):
            self.lost.add(value.leaf)
        if isinstance(value, _Product):
            self.reads[value.use] += 1
        return value.value if isinstance(value, _Moved | _Product) else value

    def _used(self, jaxpr: Any, equation: Any, given: Sequence[Any]) -> list[Any]:
        moved = [isinstance(each, _Moved) for each in given]
        place = moved.index(True)
        arrays = [
            each.value if at == place else self._given_up(each) for at, each in enumerate(given)
        ]
        (result,) = _evaluated(jaxpr, equation, arrays)
        reading = _READINGS[equation.primitive.name](equation.params, arrays, place, result)
        if reading is None:
            self._given_up(given[place])
            return [result]
        return [self._tapped(given[place], reading, result)]

    def _tapped(self, leaf: _Moved, reading: _Reading, result: Array) -> _Product:
        kernel = jax.eval_shape(reading.kernel, leaf.value)
        self.uses.append(
            Use(
                kind=reading.kind,
                leaf=leaf.leaf,
                bias=None,
                shape=kernel.shape,
                leaf_shape=leaf.leaf_shape,
                move=lambda x: reading.kernel(leaf.move(x)),
                whole=leaf.whole and reading.whole,
            )
        )
        self.activations.append(reading.activations)
        self.arrange.append(reading.arrange)
        self.results.append(result)
        use = len(self.uses) - 1
        tapped = result if self.zeros is None else result + self.zeros[use]
        return _Product(tapped, use, reading.last)

    def _is_pair(self, given: Sequence[Any]) -> bool:
        """Whether this adds a bias to a product, of which it then is a part.

        On the first walk pairs are noted only: whether a product is read by nothing else, and a
        bias used nowhere else, is known at the end.
        """
        bias, product = sorted(given, key=lambda each: isinstance(each, _Product))
        if not (isinstance(bias, _Moved) and isinstance(product, _Product) and bias.row):
            return False
        use = self.uses[product.use]
        if not product.last or bias.leaf_shape != (use.shape[1],):
            return False
        self.pairs.setdefault(bias.leaf, []).append(product.use)
        if bias.leaf not in self.paired:
            return False
        self.uses[product.use] = use._replace(bias=bias.leaf)
        return True


_INLINED = frozenset("jit pjit closed_call core_call checkpoint remat remat2".split())
_MOVES = frozenset(
    "reshape transpose squeeze broadcast_in_dim slice rev copy copy_p convert_element_type".split()
)


def _evaluated(jaxpr: Any, equation: Any, values: Sequence[Array]) -> list[Array]:
    """The results of one operation, with the derivative that it has in the program."""
    given = {
        variable: value
        for variable, value in zip(equation.invars, values, strict=True)
        if not isinstance(variable, Constant)
    }
    alone = jaxpr.replace(
        constvars=(),
        invars=tuple(given),
        outvars=equation.outvars,
        eqns=[equation],
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())


def _moved(jaxpr: Any, equation: Any, leaf: _Moved) -> _Moved | Array:
    """The parameter after an operation that only moves, repeats or leaves out entries."""
    (value,) = _evaluated(jaxpr, equation, [leaf.value])
    name, last = equation.primitive.name, leaf.value.shape[-1:]
    row = leaf.row and value.shape[-1:] == last
    if name == "broadcast_in_dim" and last:
        row &= equation.params["broadcast_dimensions"][-1] == value.ndim - 1
    if name in ("transpose", "rev"):
        row = False
    if name == "convert_element_type":
        # A gradient is moved in its own dtype.
        lossless = jnp.issubdtype(value.dtype, jnp.floating)
        return leaf._replace(value=value) if lossless else value
    return leaf._replace(
        value=value,
        move=lambda x: equation.primitive.bind(leaf.move(x), **equation.params),
        whole=leaf.whole and value.size == leaf.value.size,
        row=row,
    )


def _dense(params: Any, arrays: Sequence[Array], place: int, result: Array) -> _Reading | None:
    """``dot_general`` of any contracted axes, without batch axes."""
    contracted, batch = params["dimension_numbers"]
    if any(batch):
        return None
    kernel, other = arrays[place], arrays[1 - place]
    read, contracted = list(contracted[place]), list(contracted[1 - place])
    # Whole numbers that are multiplied by a kernel are no rows of a table.
    dtype = jnp.promote_types(other.dtype, kernel.dtype)
    outputs = [axis for axis in range(kernel.ndim) if axis not in read]
    positions = [axis for axis in range(other.ndim) if axis not in contracted]
    inside, out = prod(kernel.shape[i] for i in read), prod(kernel.shape[i] for i in outputs)

    def arrange(y: Array) -> Array:
        return y.reshape(-1, out) if place == 1 else y.reshape(out, -1).T

    return _Reading(
        kind="dense",
        activations=other.transpose(positions + contracted).reshape(-1, inside).astype(dtype),
        kernel=lambda w: w.transpose(read + outputs).reshape(inside, out),
        arrange=arrange,
        last=place == 1 and len(outputs) == 1,
    )


def _conv(params: Any, arrays: Sequence[Array], place: int, result: Array) -> _Reading | None:
    """A convolution that is one group; it multiplies patches."""
    if place != 1 or params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    out_axis, in_axis, *window = numbers.rhs_spec
    images, kernel = arrays[0].transpose(numbers.lhs_spec), arrays[1]
    patches = jax.lax.conv_general_dilated_patches(
        images,
        filter_shape=[kernel.shape[axis] for axis in window],
        window_strides=params["window_strides"],
        padding=params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        precision=Precision.HIGHEST,
    )
    out = kernel.shape[out_axis]

    def arrange(y: Array) -> Array:
        return jnp.moveaxis(y.transpose(numbers.out_spec), 1, -1).reshape(-1, out)

    return _Reading(
        kind="conv",
        activations=jnp.moveaxis(patches, 1, -1).reshape(-1, patches.shape[1]),
        kernel=lambda w: w.transpose(in_axis, *window, out_axis).reshape(-1, out),
        arrange=arrange,
        last=numbers.out_spec[1] == result.ndim - 1,
    )


def _embedding(params: Any, arrays: Sequence[Array], place: int, result: Array) -> _Reading | None:
    """A gather of whole rows of a table."""
    numbers, (table, indices) = params["dimension_numbers"], arrays
    last = tuple(range(indices.ndim - 1, indices.ndim - 1 + table.ndim - 1))
    rows = params["slice_sizes"] == (1, *table.shape[1:])
    if place != 0 or not rows or numbers.start_index_map != (0,) or numbers.offset_dims != last:
        return None
    filled = params["fill_value"]
    if filled is not None and not isnan(filled):
        return None  # a number in place of what lies outside the table is no row of it
    out = prod(table.shape[1:])
    # What lies outside the table is NaN in the outputs, or is moved to its edge.
    rows_read = jnp.clip(indices.reshape(-1), 0, table.shape[0] - 1)
    return _Reading(
        kind="embedding",
        activations=rows_read,
        kernel=lambda w: w.reshape(-1, out),
        arrange=lambda y: y.reshape(-1, out),
    )


def _bias(params: Any, arrays: Sequence[Array], place: int, result: Array) -> _Reading | None:
    return _Reading(
        kind="bias",
        activations=jnp.ones((1, 1), result.dtype),
        kernel=lambda w: jnp.broadcast_to(w, result.shape).reshape(1, -1),
        arrange=lambda y: y.reshape(1, -1),
        whole=arrays[place].shape == result.shape,
    )


_READINGS: dict[str, Callable[[Any, Sequence[Array], int, Array], _Reading | None]] = {
    "dot_general": _dense,
    "conv_general_dilated": _conv,
    "gather": _embedding,
    "add": _bias,
    "add_any": _bias,
}
