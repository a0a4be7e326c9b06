"""One rule per kind of layer: which views a tensor has.

A rule answers with the views, with none if another tensor's view covers this one, with the reason
to leave the tensor out, or with None if it is not of its kind. The first answer holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from spectral_jax.weights import _read
from spectral_jax.weights._names import (
    FROM_MODEL,
    TO_MODEL,
    Network,
    Tensor,
    bias_axes,
    bias_of,
    named_convolution,
    numberless,
    output_axis,
    outputs_first,
    recognised,
    transposed_by_name,
)
from spectral_jax.weights._read import At, Conv

Kind: TypeAlias = Literal[
    "dense", "conv", "depthwise", "grouped", "embedding", "attention", "recurrent", "low_rank"
]


class View(NamedTuple):
    """One matrix to be read, or a stack of them, before any data is there.

    name: the tensor's name; a part of a fused tensor adds ``":q"``.
    sources: the tensors that ``read`` takes, in this order.
    kind: the layer; ``"attention"`` is a fused or many-axed projection, a plain one is dense.
    shape: of what ``read`` returns, ``[m, n]`` or ``[positions, m, n]``; inputs before outputs.
    read: works on NumPy and on jax arrays, under jit, vmap and grad.
    note: what had to be assumed; empty where names and shapes leave no doubt.
    at: where the sources are a stack of layers, the one that is read: ``(axis, index)``, outermost
      first. Its number is the last part of the name, ``"layers/fc/kernel:3"``.
    rank: the most that a product of factors has; None of any other, whose rank its sides limit.
    """

    name: str
    sources: tuple[str, ...]
    kind: Kind
    shape: tuple[int, ...]
    read: Callable[..., Any]
    note: str = ""
    at: At = ()
    rank: int | None = None


LONGEST = 32  # entries along a convolution's window; a longer axis may count layers instead

Rule: TypeAlias = Callable[[Tensor, Network, Conv], Sequence[View] | str | None]

# The gates in the order in which their columns (PyTorch: rows) stand in a fused kernel, by how many
# there are: as the cells of torch.nn, flax.nnx, keras.layers, haiku and tf.compat.v1.nn.rnn_cell
# split them. i, f, o, g (c, j): input, forget, output and candidate of an LSTM; r, z (u), n (h, a):
# reset, update and candidate of a GRU.
_GATES = {
    "torch": {4: "ifgo", 3: "rzn"},
    "flax": {4: "ifgo", 3: "rzn"},
    "keras": {4: "ifco", 3: "zrh"},
    "haiku": {4: "igfo", 3: "zra"},
    "tf": {4: "ijfo", 2: "ru"},
}
_FUSED_CELL = re.compile(r"(layer_norm_)?(basic_)?lstm(_cell)?(_\d+)?")


def recurrent(tensor: Tensor, network: Network, conv: Conv) -> Sequence[View] | None:
    """The gates of an LSTM or GRU, one view each."""
    if len(tensor.shape) != 2:
        return None
    if re.match(r"weight_(ih|hh|hr)", tensor.leaf):
        hidden = network.sibling(tensor, re.sub("_[ih][hr]", "_hh", tensor.leaf, count=1))
        projected = network.sibling(tensor, re.sub("_[ih][hr]", "_hr", tensor.leaf, count=1))
        gates = 4 if projected else _gate_count(hidden, rows=True)
        gates = 1 if tensor.leaf.startswith("weight_hr") else gates
        return _gates(tensor, "torch", gates, transpose=True)
    hidden, style = _recurrent_kernel(tensor, network)
    if hidden is not None:
        return _gates(tensor, style, _gate_count(hidden, rows=False))
    if _is_gate(tensor, network):
        return _gates(tensor, "flax", 1)
    return _fused_cell(tensor)


def _recurrent_kernel(tensor: Tensor, network: Network) -> tuple[Tensor | None, str]:
    """The hidden-to-hidden kernel of the cell that this tensor is in, and whose cell it is."""
    if tensor.leaf in ("kernel", "recurrent_kernel"):
        hidden = network.sibling(tensor, "recurrent_kernel")
        if hidden is not None and len(hidden.shape) == 2:
            return hidden, "keras"
    if tensor.leaf in ("w_i", "w_h"):
        return network.sibling(tensor, "w_h"), "haiku"
    if tensor.module in ("dense_i", "dense_h"):
        return network.by_path.get((*tensor.path[:-2], "dense_h", tensor.leaf)), "flax"
    return None, ""


def _gate_count(hidden: Tensor | None, *, rows: bool) -> int:
    """How many gates a hidden-to-hidden kernel holds; 0 if it does not tell."""
    if hidden is None or len(hidden.shape) != 2:
        return 0
    wide, narrow = hidden.shape if rows else hidden.shape[::-1]
    return wide // narrow if wide % narrow == 0 else 0


def _is_gate(tensor: Tensor, network: Network) -> bool:
    """A gate of its own, as in Flax: input i or hidden h, then the gate."""
    cells = {"hf": "[ih][ifgo]_?", "hn": "[ih][rzn]_?"}  # "if" and "in" are words of Python
    return tensor.leaf == "kernel" and any(
        (*tensor.path[:-2], mark, "kernel") in network.by_path
        and re.fullmatch(names, tensor.module)
        for mark, names in cells.items()
    )


def _fused_cell(tensor: Tensor) -> Sequence[View] | None:
    """A cell that stacks input and state, ``[inputs + state, gates]``: TensorFlow and Haiku."""
    if tensor.leaf not in ("kernel", "weights", "w"):
        return None
    *_, outer, inner, _ = ("", "", *tensor.path)
    if inner == "gates" and "gru" in outer:
        return _gates(tensor, "tf", 2)
    if (inner == "candidate" and "gru" in outer) or (
        inner == "projection" and _FUSED_CELL.fullmatch(outer)
    ):
        return _gates(tensor, "tf", 1)
    if _FUSED_CELL.fullmatch(inner):
        return _gates(tensor, "tf", 4)
    if inner == "linear" and _FUSED_CELL.fullmatch(outer):
        return _gates(tensor, "haiku", 4)
    return None


def _gates(tensor: Tensor, style: str, count: int, *, transpose: bool = False) -> Sequence[View]:
    width = tensor.shape[0 if transpose else 1]
    if count < 1 or width % count:
        note = f"gates not split: {width} outputs do not tell how many there are"
        return _slices(tensor, "recurrent", (("", width),), transpose=transpose, note=note)
    names = _GATES[style].get(count, "") or [str(gate) for gate in range(count)]
    sizes = [(name if count > 1 else "", width // count) for name in names]
    return _slices(tensor, "recurrent", sizes, transpose=transpose)


_TABLE = re.compile(
    r"(.+_)?(embed|emb|embd|embedding|embeddings|wte|wpe|embed_tokens|embed_positions|embed_in)|shared"
)


def embedding(tensor: Tensor, network: Network, conv: Conv) -> Sequence[View] | None:
    """A table with a row per token or position, whatever the framework; what has a bias is none."""
    named = tensor.module if tensor.leaf in ("weight", "w") else tensor.leaf
    if not _TABLE.fullmatch(named) or bias_axes(tensor, network):
        return None
    return table_view(tensor)


def table_view(tensor: Tensor) -> Sequence[View] | None:
    """The view of a table ``[..., rows, features]`` whose leading axes are 1."""
    shape = tensor.shape
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or (shape[0] == 1 and len(tensor.shape) > 2):
        return None
    read = partial(_read.columns, fold=shape)
    return [View(tensor.name, (tensor.name,), "embedding", shape, read)]


_THIRDS = re.compile(r"in_proj_weight|c_attn|(attn_)?qkv|Wqkv|to_qkv|qkv_proj|query_key_value")


def attention(tensor: Tensor, network: Network, conv: Conv) -> Sequence[View] | None:
    """Queries, keys and values of a fused kernel; projections that keep their heads apart."""
    name = tensor.leaf if tensor.leaf.endswith("_weight") else tensor.module
    if len(tensor.shape) == 2 and _THIRDS.fullmatch(name):
        return _queries_keys_values(tensor, network, name)
    if len(tensor.shape) == 2 and re.fullmatch("[qkv]_proj_weight", tensor.leaf):
        return _slices(tensor, "attention", (("", tensor.shape[0]),), transpose=True)
    if len(tensor.shape) != 3 or tensor.leaf != "kernel":
        return None
    a, b, c = tensor.shape
    for names, fold in ((FROM_MODEL, (a, b * c)), (TO_MODEL, (a * b, c))):
        if names.fullmatch(tensor.module):
            return folded_view(tensor, fold, note=_doubt_of_heads(tensor, network))
    return _biased_outputs(tensor, network)


def _doubt_of_heads(tensor: Tensor, network: Network) -> str:
    """Three axes are heads if the bias has two of them, or if the way back has the same."""
    bias = bias_of(tensor, network)
    if bias is not None and bias.shape in (tensor.shape[1:], tensor.shape[2:]):
        return ""
    there = FROM_MODEL.fullmatch(tensor.module)
    for other in network.kernels[tensor.path[:-2]]:
        query, out = (tensor, other) if there else (other, tensor)
        if FROM_MODEL.fullmatch(query.module) and TO_MODEL.fullmatch(out.module):
            if query.shape[1:] == out.shape[:-1]:
                return ""
    heads = "[in, heads, size]" if there else "[heads, size, out]"
    return f"read as {heads} by its name; if layers are stacked, say so with kinds: 'stacked'"


def _biased_outputs(tensor: Tensor, network: Network) -> Sequence[View] | None:
    """A projection ``[in, a, b]`` with a bias ``[a, b]``, which says that both are outputs.

    Experts and stacked networks, ``[n, in, out]`` with ``[n, out]``, look the same where n = in.
    """
    bias = network.sibling(tensor, "bias")
    if bias is None or len(bias.shape) != 2 or 1 in bias.shape:
        return None
    a, b, c = tensor.shape
    if bias.shape != (b, c) or bias.shape in ((a, b), (a, c)):
        return None
    note = "two axes of outputs, those of the bias"
    return folded_view(tensor, (a, b * c), note=note)


def folded_view(tensor: Tensor, fold: tuple[int, int], *, note: str = "") -> Sequence[View]:
    """The view of a projection whose inputs or outputs have several axes."""
    read = partial(_read.columns, fold=fold)
    return [View(tensor.name, (tensor.name,), "attention", fold, read, note)]


def _queries_keys_values(tensor: Tensor, network: Network, name: str) -> Sequence[View]:
    axis = output_axis(tensor, network)
    inputs, outputs = tensor.shape[1 - axis], tensor.shape[axis]
    transpose = axis == 0
    if name == "query_key_value":
        note = "not split: this layer interleaves queries, keys and values head by head"
    elif outputs == 3 * inputs or (name == "to_qkv" and outputs % 3 == 0):
        thirds = [(part, outputs // 3) for part in "qkv"]
        return _slices(tensor, "attention", thirds, transpose=transpose)
    else:
        note = f"not split: {outputs} outputs of {inputs} inputs do not tell the sizes of q, k, v"
    return _slices(tensor, "attention", (("", outputs),), transpose=transpose, note=note)


_DEPTHWISE = re.compile(r"depth_?wise|(^|_)dw(_|\d|$|conv)", re.IGNORECASE)


def depthwise(tensor: Tensor, network: Network, conv: Conv) -> Sequence[View] | None:
    """Convolutions that see one channel each."""
    axes = kernel_axes(tensor, network)
    if axes is None:
        return None
    first = outputs_first(tensor, network) and not tensor.leaf.startswith("depthwise_")
    named = _DEPTHWISE.search(tensor.leaf) or _DEPTHWISE.search(tensor.module)
    single = tensor.shape[axes[-2]] == 1 < tensor.shape[axes[-1]]
    if not (named and (single or not first)) and not (single and _inside(tensor, network, axes)):
        return None
    return depthwise_views(tensor, axes if first else range(len(axes)), conv)


def depthwise_views(tensor: Tensor, axes: Sequence[int], conv: Conv) -> Sequence[View]:
    """Views of a kernel that is known to be depthwise."""
    *spatial, channels, multiplier = (tensor.shape[axis] for axis in axes)
    shape: tuple[int, ...] = (math.prod(spatial), channels * multiplier)
    if conv == "channels":
        shape = (multiplier, 1, 1) if channels == 1 else (channels, 1, multiplier)
    read = partial(_read.depthwise, axes=tuple(axes), conv=conv)
    return [View(tensor.name, (tensor.name,), "depthwise", shape, read)]


def _inside(tensor: Tensor, network: Network, axes: Sequence[int]) -> bool:
    """Whether a kernel of one input channel is depthwise: not the stem of a network on grey images.

    A stem comes once and first. A depthwise kernel repeats, or follows one of as many channels.
    """
    channels = tensor.shape[axes[-1]]
    return network.repeats[numberless(tensor.name), tensor.shape] > 1 or any(
        other.order < tensor.order
        and len(other.shape) == len(tensor.shape)
        and other.shape[axes[-1]] == channels
        for others in network.kernels.values()
        for other in others
    )


def convolution(tensor: Tensor, network: Network, conv: Conv) -> Sequence[View] | None:
    """Convolutions in one to three dimensions, transposed and grouped ones among them."""
    axes = kernel_axes(tensor, network)
    if axes is None:
        return None
    groups, note = _groups(tensor, network, axes)
    note = note or _doubt_of_window(tensor, network, axes)
    if not recognised(tensor):
        layout = "[out, in, h, w]" if outputs_first(tensor, network) else "[h, w, in, out]"
        note = f"unknown name; read as a convolution {layout}"
    elif groups == 1 and tensor.shape[axes[-2]] == 1 < tensor.shape[axes[-1]]:
        note = "read as a convolution of one channel; if it is depthwise, say so with kinds"
    return convolution_views(tensor, axes, conv, groups=groups, note=note)


def convolution_views(
    tensor: Tensor, axes: Sequence[int], conv: Conv, *, groups: int = 1, note: str = ""
) -> Sequence[View]:
    """Views of a kernel that ``axes`` brings to ``[*spatial, in / groups, out]``."""
    *spatial, i, o = (tensor.shape[axis] for axis in axes)
    positions, o = math.prod(spatial), o // groups
    shapes = {
        "positions": (groups * positions, i, o),
        "flattened": (groups, positions * i, o)[groups == 1 :],
        "channels": (groups, i, o)[groups == 1 :],
    }
    read = partial(_read.convolution, axes=tuple(axes), conv=conv, groups=groups)
    kind: Kind = "grouped" if groups > 1 else "conv"
    return [View(tensor.name, (tensor.name,), kind, shapes[conv], read, note)]


def _doubt_of_window(tensor: Tensor, network: Network, axes: Sequence[int]) -> str:
    """A window of uneven sides or a very long one may count layers, that of a projection heads.

    A bias rules that out.
    """
    sides = {tensor.shape[axis] for axis in axes[:-2]} - {1}
    plain = len(sides) == 1 and max(sides) <= LONGEST and not _PROJECTION.fullmatch(tensor.module)
    if bias_axes(tensor, network) or not sides or plain:
        return ""
    window = " x ".join(str(tensor.shape[axis]) for axis in axes[:-2])
    return f"read as a window of {window}; if layers are stacked, say so with kinds: 'stacked'"


def kernel_axes(tensor: Tensor, network: Network, *, told: bool = False) -> tuple[int, ...] | None:
    """The order of axes that makes a kernel ``[*spatial, in, out]``; None if it is no kernel."""
    count = len(tensor.shape)
    if count not in (3, 4, 5) or "einsum" in tensor.module:
        return None
    first = outputs_first(tensor, network)
    if not told and _cannot_be_kernel(tensor, network):
        return None
    torch_kernel = recognised(tensor) and first
    named = torch_kernel or named_convolution(tensor)
    if not (told or named or count == 4):
        # Three axes may as well be attention heads, or layers stacked in one array.
        return None
    spatial = range(2, count) if first else range(count - 2)
    i, o = (1, 0) if first else (count - 2, count - 1)
    return (*spatial, o, i) if _transposed(tensor, network, i, o) else (*spatial, i, o)


def _cannot_be_kernel(tensor: Tensor, network: Network) -> bool:
    """A stack of what has two axes by its name, or of heads, that no bias and no norm shows."""
    if _TWO_AXES.fullmatch(tensor.leaf):
        return True
    heads = tensor.leaf == "kernel" and FROM_MODEL.fullmatch(tensor.module)
    window = tensor.shape[:-2]
    return bool(heads) and len(set(window)) > 1 and not bias_axes(tensor, network)


_PROJECTION = re.compile("[qkvo]_proj")
_TWO_AXES = re.compile(r"weight_[ih][hr].*|(in|[qkv])_proj_weight")


def _transposed(tensor: Tensor, network: Network, i: int, o: int) -> bool:
    """A transposed convolution swaps the channel axes, in all frameworks but Flax."""
    if not network.forced:
        by_bias = [axis for axis in bias_axes(tensor, network) if axis in (i, o)]
        if len(by_bias) == 1:  # the bias is as long as the outputs are many
            return by_bias == [i]
    return transposed_by_name(tensor) and network.framework != "flax"


def _groups(tensor: Tensor, network: Network, axes: Sequence[int]) -> tuple[int, str]:
    """Groups as far as the neighbours tell: a bottleneck is 1 x 1, grouped, 1 x 1 of one width."""
    block = network.kernels[tensor.path[:-2]]
    at = block.index(tensor)
    before, after = (block[j] if 0 <= j < len(block) else None for j in (at - 1, at + 1))
    inputs, outputs = tensor.shape[axes[-2]], tensor.shape[axes[-1]]
    # A grouped kernel stores inputs / groups: fewer than the layer before has outputs.
    if before is None or len(before.shape) != len(tensor.shape) or inputs == 1:
        return 1, ""
    fed = before.shape[axes[-1]]
    if fed <= inputs or fed % inputs or fed != outputs:
        return 1, ""
    pointwise = all(before.shape[axis] == 1 for axis in axes[:-2])
    closed = after is not None and after.shape[axes[-2]] == outputs
    if pointwise and closed and any(tensor.shape[axis] > 1 for axis in axes[:-2]):
        return fed // inputs, ""
    return 1, f"may have {fed // inputs} groups: the kernel before has {fed} outputs; see kinds"


def dense(tensor: Tensor, network: Network, conv: Conv) -> Sequence[View] | None:
    """Everything else with two axes."""
    if len(tensor.shape) != 2:
        return None
    axis = output_axis(tensor, network)
    layout = "[out, in]" if axis == 0 else "[in, out]"
    note = "" if recognised(tensor) else f"unknown name; read as a dense kernel {layout}"
    return _slices(tensor, "dense", (("", tensor.shape[axis]),), transpose=axis == 0, note=note)


def equal_parts(
    tensor: Tensor, network: Network, kind: Kind, parts: Sequence[str]
) -> Sequence[View]:
    """The outputs of a dense kernel in named parts of one size; none if they do not divide."""
    if len(tensor.shape) != 2:
        return ()
    axis = output_axis(tensor, network)
    size, rest = divmod(tensor.shape[axis], len(parts))
    sizes = [] if rest else [(part, size) for part in parts]
    return _slices(tensor, kind, sizes, transpose=axis == 0)


def _slices(
    tensor: Tensor,
    kind: Kind,
    sizes: Sequence[tuple[str, int]],
    *,
    transpose: bool,
    note: str = "",
) -> Sequence[View]:
    """Cut the outputs of a dense kernel into named parts of the given sizes."""
    inputs = tensor.shape[1 if transpose else 0]
    views, start = [], 0
    for part, size in sizes:
        stop = start + size if len(sizes) > 1 else None
        read = partial(_read.columns, transpose=transpose, start=start, stop=stop)
        name = f"{tensor.name}:{part}" if part else tensor.name
        views.append(View(name, (tensor.name,), kind, (inputs, size), read, note))
        start += size
    return views


RULES: tuple[Rule, ...] = (
    recurrent,
    embedding,
    attention,
    depthwise,
    convolution,
    dense,
)
