"""Which tensors hold one tensor of several layers each, along an axis of their own.

So are stored the layers of a scanned transformer (``nnx.vmap``, ``nn.scan``; MaxText has them on
axis 1), the networks of an ensemble of seeds, the experts of a mixture. Shapes alone do not tell:
a stack of dense kernels ``[layers, in, out]`` looks like a convolution or like attention heads.
What tells is a tensor that has one axis too many for what it is: a bias, the scale of a norm.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from spectral_jax.weights._names import (
    FROM_MODEL,
    TO_MODEL,
    Network,
    Shape,
    Tensor,
    bias_of,
    named_convolution,
    outputs_first,
    recognised,
    transposed_by_name,
)
from spectral_jax.weights._skips import BIAS, BIAS_OR_MASK, NORM_SCALE, STATISTICS, VECTOR

# How many axes a tensor of one layer has at least, by the reason why it is no matrix. A statistic
# or another vector may be a single number.
_LEAST = {BIAS: 1, BIAS_OR_MASK: 1, NORM_SCALE: 1, STATISTICS: 0, VECTOR: 0}


Modules: TypeAlias = Mapping[tuple[str, ...], Sequence[Tensor]]
"""By path, all tensors in a module and below it; ``()`` is the network."""


class Found(NamedTuple):
    """The axis that counts layers, and what had to be assumed to say so."""

    axis: int
    note: str


class Stack(NamedTuple):
    """The axes of a stored tensor that count layers, outermost first."""

    axes: tuple[int, ...] = ()
    note: str = ""

    def then(self, found: Found, count: int) -> "Stack":
        """The stack with an axis more, found among those that are left of ``count``."""
        left = [axis for axis in range(count) if axis not in self.axes]
        return Stack((*self.axes, left[found.axis]), self.note or found.note)

    def entry(self, shape: Shape) -> Shape:
        """The shape of one layer."""
        return tuple(n for axis, n in enumerate(shape) if axis not in self.axes)


class _Evidence(NamedTuple):
    """Tensors that show a stack along one of ``axes``, and the module to search for more of it."""

    tensors: tuple[Tensor, ...]
    axes: tuple[int, ...]
    module: tuple[str, ...]
    note: str = ""


def find_stacks(
    network: Network, reasons: Mapping[str, str], told: Collection[str]
) -> dict[str, Found]:
    """One axis of every tensor that is a stack, by name; a stack of stacks takes another call.

    The stack is the largest module around the evidence of which all tensors have that axis, at that
    length. A single bias inside without an axis to spare rules the stack out.

    Args:
      reasons: why tensors are left out, as they are stored.
      told: names whose kind is known.
    """
    members = [
        tensor
        for tensor in network.tensors
        if tensor.name not in told and reasons.get(tensor.name) in (None, *_LEAST)
    ]
    kernels = {tensor.name for tensor in members if tensor.name not in reasons}
    least = {tensor.name: _least(tensor, reasons.get(tensor.name)) for tensor in members}
    inside = _by_module(members)
    # Evidence comes strongest first (a bias, a norm, projections, experts), and what it finds is
    # not overruled by later evidence.
    found: dict[str, Found] = {}
    for evidence in _evidence(inside, network, reasons):
        if found.keys() >= {tensor.name for tensor in evidence.tensors}:
            continue
        stacks = [_stack(evidence, axis, inside, least, kernels) for axis in evidence.axes]
        # Where two axes would do, take the one that more tensors have, else the shorter one:
        # networks have more units than layers.
        sizes = [-evidence.tensors[0].shape[axis] for axis in evidence.axes]
        best = max(range(len(stacks)), key=lambda i: (len(stacks[i]), sizes[i]))
        for name, entry in stacks[best].items():
            found.setdefault(name, entry)
    return found


def _by_module(members: Sequence[Tensor]) -> Modules:
    inside = defaultdict(list)
    for tensor in members:
        for depth in range(len(tensor.path) + 1):
            inside[tensor.path[:depth]].append(tensor)
    return inside


def _least(tensor: Tensor, reason: str | None) -> int:
    if reason is not None:
        return _LEAST[reason]
    if not recognised(tensor):
        return 0
    return 3 if named_convolution(tensor) else 2


def _evidence(inside: Modules, network: Network, reasons: Mapping[str, str]) -> Iterator[_Evidence]:
    members = inside[()]
    for tensor in members:
        # The kernel of an einsum has the axes of its equation, and its bias any choice of them, so
        # that the two together show nothing.
        bias = None if "einsum" in tensor.module else bias_of(tensor, network)
        axis = None if bias is None else _axis_of_bias(tensor, bias.shape, network)
        if bias is not None and axis is not None and tensor.name not in reasons:
            yield _Evidence((tensor, bias), (axis,), tensor.parent)
    for tensor in members:
        if reasons.get(tensor.name) in (NORM_SCALE, STATISTICS) and len(tensor.shape) > 1:
            yield _Evidence((tensor,), (0, 1) if len(tensor.shape) == 2 else (0,), tensor.parent)
    for tensor in members:
        yield from _projections(tensor, inside)
    experts = Counter(t.parent for t in members if t.module == "experts" and len(t.shape) == 3)
    for tensor in members:
        if len(tensor.shape) == 3 and experts[tensor.parent] > 1:
            yield _Evidence((tensor,), (0,), tensor.parent, "taken for an expert by its name")


def _axis_of_bias(kernel: Tensor, bias: Shape, network: Network) -> int | None:
    """The axis that counts layers: one that kernel and bias share besides those of one layer."""
    if len(kernel.shape) < 3 or len(bias) < 2 or _of_one_layer(kernel, bias, network):
        return None
    return next((axis for axis in (0, 1) if _shared(kernel, bias, axis, network)), None)


def _shared(kernel: Tensor, bias: Shape, axis: int, network: Network) -> bool:
    if kernel.shape[axis] != bias[axis]:
        return False
    alone = Stack((axis,))
    kernel, bias = kernel._replace(shape=alone.entry(kernel.shape)), alone.entry(bias)
    fits = _of_one_layer(kernel, bias, network)
    return fits or _axis_of_bias(kernel, bias, network) is not None


def _of_one_layer(kernel: Tensor, bias: Shape, network: Network) -> bool:
    """A number per output, or per head and output of a kernel ``[in, heads, outputs]``."""
    if len(bias) > 1:
        return len(bias) < len(kernel.shape) and kernel.shape[-len(bias) :] == bias
    ends = kernel.shape[:2] if outputs_first(kernel, network) else kernel.shape[:-3:-1]
    either = transposed_by_name(kernel) or not recognised(kernel)
    return bias[0] in ends if either else bias[0] == ends[0]


def _projections(query: Tensor, inside: Modules) -> Iterator[_Evidence]:
    """Attention to heads and back, whose shapes are each other's but for one axis."""
    if not FROM_MODEL.fullmatch(query.module) or len(query.shape) not in (3, 4):
        return
    for out in inside[query.path[:-2]]:
        if (
            TO_MODEL.fullmatch(out.module)
            and (out.path[:-2], out.leaf) == (query.path[:-2], query.leaf)
            and len(out.shape) == len(query.shape)
            and query.shape[1:] != out.shape[:-1]  # the heads of one layer
        ):
            axes = tuple(axis for axis in (0, 1) if _there_and_back(query.shape, out.shape, axis))
            note = f"taken for one of a stack, in which {query.name!r} and {out.name!r} fit"
            if axes:
                yield _Evidence((query, out), axes, query.path[:-2], note)


def _there_and_back(query: Shape, out: Shape, axis: int) -> bool:
    (first, *heads), back = (Stack((axis,)).entry(shape) for shape in (query, out))
    return query[axis] == out[axis] and (*heads, first) == back


def _stack(
    evidence: _Evidence,
    axis: int,
    inside: Modules,
    least: Mapping[str, int],
    kernels: Collection[str],
) -> dict[str, Found]:
    """Everything that the evidence makes a stack on that axis."""
    first = evidence.tensors[0]
    size = first.shape[axis]

    def fits(tensor: Tensor) -> bool:
        return len(tensor.shape) > max(axis, least[tensor.name]) and tensor.shape[axis] == size

    stacked = _largest_module(evidence.module, inside, fits)
    if not stacked and len(evidence.tensors) > 1 and all(map(fits, evidence.tensors)):
        stacked = evidence.tensors
    if not any(len(tensor.shape) > 2 and tensor.name in kernels for tensor in stacked):
        # A norm of two axes shows nothing where no kernel has an axis to spare.
        return {}
    found = {tensor.name: Found(axis, evidence.note) for tensor in stacked}
    # Layers beside it with as many axes, whose own tensors all fit, show the same stack: a kernel
    # without a bias next to one with a bias.
    for sibling in _siblings(first, inside) if first.name in kernels else ():
        layer = [t for t in inside[sibling.parent] if t.parent == sibling.parent]
        if sibling.name not in found and all(map(fits, layer)):
            note = evidence.note or f"taken for one of a stack of {size}, as {first.name!r} is"
            found |= {tensor.name: Found(axis, note) for tensor in layer}
    return found


def _largest_module(
    module: tuple[str, ...], inside: Modules, fits: Callable[[Tensor], bool]
) -> Sequence[Tensor]:
    """The tensors of the module, or of one further up, as far as all of them fit."""
    largest: Sequence[Tensor] = ()
    for depth in range(len(module), -1, -1):
        if not all(map(fits, inside[module[:depth]])):
            break
        largest = inside[module[:depth]]
    return largest


def _siblings(kernel: Tensor, inside: Modules) -> list[Tensor]:
    """Kernels of as many axes in layers beside that of the kernel."""
    return [
        other
        for other in inside[kernel.path[:-2]]
        if (other.path[:-2], other.leaf) == (kernel.path[:-2], kernel.leaf)
        and len(other.shape) == len(kernel.shape)
        and other.parent != kernel.parent
    ]
