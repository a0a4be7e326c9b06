"""Which matrices a network has and how to read them, from names and shapes alone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from spectral_jax._choices import check_choice
from spectral_jax.weights import _read
from spectral_jax.weights._codes import Codes
from spectral_jax.weights._low_rank import low_rank
from spectral_jax.weights._names import (
    FRAMEWORKS,
    Framework,
    Network,
    Shape,
    Tensor,
    outputs_first,
)
from spectral_jax.weights._read import Conv
from spectral_jax.weights._rules import (
    RULES,
    View,
    convolution_views,
    depthwise_views,
    equal_parts,
    folded_view,
    kernel_axes,
    table_view,
)
from spectral_jax.weights._skips import not_real, skip
from spectral_jax.weights._stacks import Stack, find_stacks


class Skipped(NamedTuple):
    """A tensor that no view reads, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


class Plan(NamedTuple):
    """Every tensor of a network, once: read by a view, or skipped with a reason."""

    views: tuple[View, ...]
    skipped: tuple[Skipped, ...]


@runtime_checkable
class Shaped(Protocol):
    """An array, or what stands for one, as ``jax.ShapeDtypeStruct``."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


def plan(
    shapes: Mapping[str, Sequence[int] | Shaped],
    *,
    conv: Conv = "positions",
    framework: Framework | Literal["auto"] = "auto",
    kinds: Mapping[str, str] | None = None,
    dtypes: Mapping[str, str] | None = None,
    tied: Mapping[str, str] | None = None,
) -> Plan:
    """Decide from names and shapes which tensors are matrices, and how to read each.

    No data is touched: a checkpoint can be read one view at a time, in the order of `shapes`.
    A dense kernel W is read ``[in, out]`` whatever the layout it is stored in. A convolution kernel
    K of ``i`` to ``o`` channels is read at each kernel position, ``[positions, i, o]``
    (``conv="positions"``), as ``[positions * i, o]`` (``"flattened"``) or as the channel graph
    ``sum_positions |K|``, ``[i, o]`` (``"channels"``); a grouped one as a stack of these, a
    depthwise one as ``[positions, filters]``, one column per filter. Fused attention comes as
    queries, keys and values ``name:q``, ``name:k``, ``name:v``, an LSTM or GRU kernel gate by gate.
    Two low-rank factors are one view, their product.

    Layers that are stacked along an axis, as ``nnx.vmap`` and ``nn.scan`` leave them, networks of
    many seeds and experts come one by one, ``name:0``, ``name:1``. A bias or a norm of the same
    module with that axis shows the stack; nothing shows it where there is neither.

    Args:
      shapes: by name, a shape, or an array (anything with a shape and a dtype).
      framework: whose layouts to expect where a name leaves it open; ``"auto"`` lets the tensors
        vote. Naming one also overrules leaf names (``weight``, ``kernel``) and biases.
      kinds: glob of names to kind, first match wins, overrules everything: a kind of ``View``
        (``low_rank`` aside, which takes two tensors), ``"grouped:4"`` for four groups,
        ``"recurrent:4"`` for four gates, ``"attention:2"`` for a kernel of three axes or more of
        which the first two are inputs (one, unless said), ``"stacked"`` for layers along the
        first axis (``"stacked:1"``: the second), each read by the rules, or ``"skip"``.
      dtypes: NumPy names of dtypes, where `shapes` has no arrays; integer, boolean and complex
        tensors are skipped.
      tied: names to the first name of the same array, for those that have one; read once.

    What cannot be known is not guessed silently: see ``View.note`` and ``Skipped.reason``. The
    number of groups of most grouped convolutions is one of these, and the head sizes of a fused
    ``qkv_proj`` with fewer keys than queries.

    Raises:
        ValueError: no tensor is a matrix; `conv`, `framework` or a kind is unknown; a glob of
            `kinds` matches nothing, or a tensor that cannot be of that kind.

    >>> found = plan({"fc.weight": (10, 64), "fc.bias": (10,), "gru.weight_hh_l0": (96, 32)})
    >>> [(view.name, view.kind, view.shape) for view in found.views]
    [('fc.weight', 'dense', (64, 10)), ('gru.weight_hh_l0:r', 'recurrent', (32, 32)),
     ('gru.weight_hh_l0:z', 'recurrent', (32, 32)), ('gru.weight_hh_l0:n', 'recurrent', (32, 32))]
    >>> found.skipped
    (Skipped(name='fc.bias', shape=(10,), reason='bias'),)
    """
    found = classify(shapes, conv=conv, framework=framework, kinds=kinds, dtypes=dtypes, tied=tied)
    require_views(found, "shapes")
    return found


def classify(
    shapes: Mapping[str, Sequence[int] | Shaped],
    *,
    conv: Conv,
    framework: str,
    kinds: Mapping[str, str] | None,
    dtypes: Mapping[str, str] | None = None,
    tied: Mapping[str, str] | None = None,
) -> Plan:
    """Do the work of `plan`, but let a network without matrices pass."""
    check_choice(get_args(Conv), conv=conv)
    check_choice(("auto", *FRAMEWORKS), framework=framework)
    stored = {name: _shape(given) for name, given in shapes.items()}
    dtypes = {name: _dtype(given) for name, given in shapes.items()} | dict(dtypes or {})
    told = _told_kinds(stored, kinds or {})
    _check_numbers(told, dtypes)
    codes, reasons, stacks = _one_layer(stored, framework, told, dtypes)
    told = {name: kind for name, kind in told.items() if not _is_stack(kind)}
    # What is settled is no partner for others: a factor of a pair that is skipped, for instance.
    network = codes.network._replace(settled=frozenset({*told, *reasons}))
    views: list[View] = []
    for tensor in network.tensors:
        if tensor.name in reasons:
            continue
        if tensor.name in told:
            found: Sequence[View] | str | None = _as_told(tensor, network, conv, told[tensor.name])
        else:
            found = _by_rule(tensor, network, conv)
        if found is None or isinstance(found, str):
            reasons[tensor.name] = found or _unknown(tensor)
            continue
        for view in found:
            views.extend(_entries(codes.weights(view), stored, stacks))
    # Scales of float8 had a reason to be skipped, until a view took them as a source.
    read = {source for view in views for source in view.sources}
    left_out = [name for name in stored if name in reasons and name not in read]
    skipped = [Skipped(name, stored[name], reasons[name]) for name in left_out]
    return _once(Plan(tuple(views), tuple(skipped)), stored, tied or {})


def coded(leaves: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Find the leaves that hold codes of quantised weights, and for each what scales it, if known.

    float8 and float4 are codes where a scale is beside them, and weights where none is.

    >>> import numpy as np
    >>> coded({"a/kernel": np.ones((2, 3), "int8"), "a/kernel_scale": np.ones(3), "b": np.ones(3)})
    {'a/kernel': ()}
    """
    shapes = {name: _shape(leaf) for name, leaf in leaves.items()}
    dtypes = {name: _dtype(leaf) for name, leaf in leaves.items()}
    return Codes.of(Network.of(shapes, "auto"), dtypes).coded()


def refuse_codes(leaves: Mapping[str, Any], instead: str) -> None:
    """Raise ``ValueError``, with what to do instead, where a leaf holds codes and not weights."""
    for name, scales in coded(leaves).items():
        scaled = f", which {' and '.join(map(repr, scales))} scales" if scales else ""
        raise ValueError(
            f"params: {name!r} holds the {_dtype(leaves[name])} codes of quantised "
            f"weights{scaled}: {instead}"
        )


def _once(found: Plan, stored: Mapping[str, Shape], tied: Mapping[str, str]) -> Plan:
    """The plan with tied tensors read once, under the first of their names that is read at all."""
    read = {source for view in found.views for source in view.sources}
    first: dict[str, str] = {}
    twins = {
        name: first[tied.get(name, name)]
        for name in stored
        if name in read and first.setdefault(tied.get(name, name), name) != name
    }
    views = tuple(view for view in found.views if not twins.keys() >= set(view.sources))
    skipped = (
        Skipped(name, stored[name], f"tied: the same array as {other!r}")
        for name, other in twins.items()
    )
    return Plan(views, (*found.skipped, *skipped))


def _shape(given: Any) -> Shape:
    return tuple(getattr(given, "shape", given))


def _dtype(given: Any) -> str:
    """The name of the dtype, which for NumPy's has no byte order, or an empty string."""
    dtype = getattr(given, "dtype", "")
    return str(getattr(dtype, "name", dtype))


def _check_numbers(told: Mapping[str, str], dtypes: Mapping[str, str]) -> None:
    """Raise ``ValueError`` where a kind is told of what no kind makes a real matrix."""
    for name, kind in told.items():
        reason = None if kind == "skip" else not_real(dtypes[name])
        if reason is not None:
            raise ValueError(f"kinds: {name!r} cannot be {kind!r} ({reason}); write 'skip'")


def _one_layer(
    stored: Mapping[str, Shape], framework: str, told: Mapping[str, str], dtypes: Mapping[str, str]
) -> tuple[Codes, dict[str, str], dict[str, Stack]]:
    """The network as it looks with one layer of every stack, what is skipped of it, and the stacks.

    Repeated until no more stacks are found: what names and shapes mean, and what is a bias or a
    scale, shows only once a stack's axis is taken off, and that may reveal a stack of stacks.
    """
    stacks = {
        name: Stack((_stacked_axis(name, kind, stored[name]),))
        for name, kind in told.items()
        if _is_stack(kind) and stored[name]
    }
    while True:
        shapes = {name: stacks.get(name, Stack()).entry(shape) for name, shape in stored.items()}
        codes = Codes.of(Network.of(shapes, framework), dtypes)
        scales = {
            scale: stack
            for name, stack in stacks.items()
            for scale in codes.scales(name)
            if scale not in stacks and len(stored[scale]) == len(stored[name])
        }
        # A scale of stacked codes is stacked as well: look at the network again without that axis.
        if scales:
            stacks |= scales
            continue
        reasons = {
            tensor.name: reason
            for tensor in codes.network.tensors
            if (reason := _reason(tensor, codes, told)) is not None
        }
        found = find_stacks(codes.network, reasons, told)
        if not found:
            return codes, reasons, stacks
        for name, entry in found.items():
            stacks[name] = stacks.get(name, Stack()).then(entry, len(stored[name]))


def _entries(
    view: View, stored: Mapping[str, Shape], stacks: Mapping[str, Stack]
) -> Iterable[View]:
    """The view of every layer of a stack, numbered; the view itself where there is no stack."""
    stack = stacks.get(view.sources[0])
    if stack is None:
        return [view]
    axes = [stacks.get(source, Stack()).axes for source in view.sources]
    indices = product(*(range(stored[view.sources[0]][axis]) for axis in stack.axes))
    note = "; ".join(filter(None, (stack.note, view.note)))
    return [_entry(view, axes, index)._replace(note=note) for index in indices]


def _entry(view: View, axes: Sequence[tuple[int, ...]], index: tuple[int, ...]) -> View:
    # A source that all layers share, such as the scale of some float8, has no axis of the stack and
    # gets an empty place.
    at = tuple(tuple(zip(each, index, strict=False)) for each in axes)
    read = partial(_read.of_entry, read=view.read, at=at)
    return view._replace(name=":".join([view.name, *map(str, index)]), read=read, at=at[0])


def require_views(found: Plan, argument: str) -> None:
    """Refuse a network without a single matrix, and say what there was instead."""
    if found.views:
        return
    closest = sorted(found.skipped, key=lambda left_out: -len(left_out.shape))
    reasons = [f"{name!r} has shape {shape}: {why}" for name, shape, why in closest[:3]]
    reasons += [f"and {len(closest) - 3} more"] * (len(closest) > 3)
    raise ValueError(
        f"{argument}: no leaf with two or more axes is a weight matrix "
        f"({'; '.join(reasons) or 'there are no leaves'}); pass the parameters of a network"
    )


def _reason(tensor: Tensor, codes: Codes, told: Mapping[str, str]) -> str | None:
    if tensor.name in told and not _is_stack(told[tensor.name]):
        return "skipped by kinds" if told[tensor.name] == "skip" else None
    return codes.reason(tensor) or skip(tensor, codes.network, codes.dtypes[tensor.name])


def _by_rule(tensor: Tensor, network: Network, conv: Conv) -> Sequence[View] | str | None:
    answers = (rule(tensor, network, conv) for rule in (low_rank, *RULES))
    return next((answer for answer in answers if answer is not None), None)


def _unknown(tensor: Tensor) -> str:
    axes = len(tensor.shape)
    if math.prod(tensor.shape) == max(tensor.shape):
        return "one vector"
    if "einsum" in tensor.module:
        doubt = f"an einsum of {axes} axes whose equation is not stored"
    else:
        doubt = f"{axes} axes and a name that tells no layer"
    return (
        f"{doubt}; say which with kinds={{name: 'stacked'}}, in a shell --kind NAME=stacked, if "
        "the first axis counts layers, 'attention' if it is the inputs, 'attention:2' if the "
        "first two are, or 'conv'"
    )


def _told_kinds(names: Collection[str], kinds: Mapping[str, str]) -> dict[str, str]:
    told: dict[str, str] = {}
    for glob, kind in kinds.items():
        known = (*_MAKERS, "stacked", "skip")
        check_choice(known, **{f"kinds[{glob!r}]": kind.partition(":")[0]})
        matched = [name for name in names if fnmatchcase(name, glob)]
        if not matched:
            near = difflib.get_close_matches(glob, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "write it as the names are written"
            raise ValueError(f"kinds: {glob!r} matches no tensor; {hint}")
        for name in matched:
            told.setdefault(name, kind)
    return told


def _is_stack(kind: str) -> bool:
    return kind.partition(":")[0] == "stacked"


def _stacked_axis(name: str, kind: str, shape: Shape) -> int:
    _, _, axis = kind.partition(":")
    if axis and not (axis.isdecimal() and int(axis) < len(shape)):
        raise ValueError(
            f"kinds: {kind!r} for {name!r} of shape {shape}: write 'stacked:1' for the second axis"
        )
    return int(axis or 0)


def _as_told(tensor: Tensor, network: Network, conv: Conv, told: str) -> Sequence[View]:
    kind, _, number = told.partition(":")
    optional = kind in ("recurrent", "attention") and number.isdecimal()
    if bool(number) != (kind == "grouped") and not optional:
        raise ValueError(f"kinds: {told!r} for {tensor.name!r}: write 'grouped:4' for four groups")
    views = _MAKERS[kind](tensor, network, conv, int(number or 1))
    if not views:
        raise ValueError(
            f"kinds: {tensor.name!r} has shape {tensor.shape}, which {told!r} cannot be; "
            "choose another kind or 'skip'"
        )
    return views


def _dense(tensor: Tensor, network: Network, conv: Conv, number: int) -> Sequence[View]:
    if len(tensor.shape) == 2:
        return equal_parts(tensor, network, "dense", ("",))
    if len(tensor.shape) < 2:
        return ()
    transpose = outputs_first(tensor, network)
    *leading, m, n = tensor.shape
    shape = (math.prod(leading), n, m) if transpose else (math.prod(leading), m, n)
    read = partial(_read.stack, transpose=transpose)
    return [View(tensor.name, (tensor.name,), "dense", shape, read)]


def _convolution(tensor: Tensor, network: Network, conv: Conv, number: int) -> Sequence[View]:
    axes = kernel_axes(tensor, network, told=True)
    if axes is None or tensor.shape[axes[-1]] % number:
        return ()
    return convolution_views(tensor, axes, conv, groups=number)


def _depthwise(tensor: Tensor, network: Network, conv: Conv, number: int) -> Sequence[View]:
    axes = kernel_axes(tensor, network, told=True)
    return () if axes is None else depthwise_views(tensor, axes, conv)


def _embedding(tensor: Tensor, network: Network, conv: Conv, number: int) -> Sequence[View]:
    return table_view(tensor) or ()


def _attention(tensor: Tensor, network: Network, conv: Conv, number: int) -> Sequence[View]:
    axes = len(tensor.shape)
    if axes == 2 and number == 1:
        return equal_parts(tensor, network, "attention", tuple("qkv"))
    if not 1 <= number < axes:
        return ()
    inputs, outputs = tensor.shape[:number], tensor.shape[number:]
    return folded_view(tensor, (math.prod(inputs), math.prod(outputs)))


def _recurrent(tensor: Tensor, network: Network, conv: Conv, number: int) -> Sequence[View]:
    parts = tuple(map(str, range(number))) if number > 1 else ("",)
    return equal_parts(tensor, network, "recurrent", parts)


_MAKERS: dict[str, Callable[[Tensor, Network, Conv, int], Sequence[View]]] = {
    "dense": _dense,
    "conv": _convolution,
    "grouped": _convolution,
    "depthwise": _depthwise,
    "embedding": _embedding,
    "attention": _attention,
    "recurrent": _recurrent,
}
