"""What the names and shapes of parameters mean in Flax, PyTorch, Keras, Haiku and TensorFlow."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias, get_args

Framework = Literal["flax", "torch", "keras", "haiku", "tf"]
FRAMEWORKS: tuple[str, ...] = get_args(Framework)

# What a leaf name says about who wrote it.
_VOTES: dict[str, tuple[str, ...]] = {
    "weight": ("torch",),
    "running_mean": ("torch",),
    "running_var": ("torch",),
    "in_proj_weight": ("torch",),
    "kernel": ("flax", "keras", "tf"),
    "scale": ("flax",),
    "embedding": ("flax",),
    "bias": ("flax", "torch", "keras", "tf"),
    "depthwise_kernel": ("keras",),
    "recurrent_kernel": ("keras",),
    "embeddings": ("keras", "haiku"),
    "gamma": ("keras", "tf"),
    "beta": ("keras", "tf"),
    "moving_mean": ("keras", "tf"),
    "moving_variance": ("keras", "tf"),
    "weights": ("tf",),
    "biases": ("tf",),
    "depthwise_weights": ("tf",),
    "w": ("haiku",),
    "b": ("haiku",),
    "offset": ("haiku",),
}

FROM_MODEL = re.compile(r"(query|key|value)(_dense)?|[qkv]_proj")
TO_MODEL = re.compile(r"out|output|attention_output|o_proj|output_dense")
_OUTPUTS_FIRST = re.compile(r"weight|.+_weight|weight_.+")
_INPUTS_FIRST = re.compile(r"kernel|.+_kernel|w|w_[ih]|weights|.+_weights|.*MatMul.*")
# "conv", but not the beginning of "conversation", "convex", "convince" or "convoy"; nor ConvLocal,
# which has a dense kernel at every position.
_CONVOLUTION = re.compile(r"conv(?!e[nrxy]|i[cn]|oy|_?local)", re.IGNORECASE)
_TRANSPOSED = re.compile(r"transpose|deconv|up_?conv", re.IGNORECASE)
_COUNTED = re.compile(r"(layers?|blocks?|modules?)?_?\d*")
_CONV1D = {"c_attn", "c_fc", "c_proj", "q_attn"}  # GPT-2's own dense layer, which is [in, out]


Shape: TypeAlias = tuple[int, ...]


class Tensor(NamedTuple):
    """A named shape; ``path`` is the name's parts in one spelling for all frameworks."""

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    order: int

    @property
    def leaf(self) -> str:
        """The last part of the name: what the layer calls this tensor."""
        return self.path[-1]

    @property
    def module(self) -> str:
        """The part before the leaf: what the layer is called."""
        return self.path[-2] if len(self.path) > 1 else ""

    @property
    def layer(self) -> str:
        """What the layer is called: the nearest part above the leaf that is more than a number.

        Parts further up say what the layer is for ("conversation", "upsampling"), not what it is.
        """
        named = (part for part in reversed(self.path[:-1]) if not _COUNTED.fullmatch(part))
        return next(named, "")

    @property
    def parent(self) -> tuple[str, ...]:
        """The path of the layer."""
        return self.path[:-1]


class Network(NamedTuple):
    """All tensors of a network: what a single name leaves open, the others decide."""

    tensors: tuple[Tensor, ...]
    by_path: Mapping[tuple[str, ...], Tensor]
    kernels: Mapping[tuple[str, ...], list[Tensor]]
    repeats: Counter[tuple[str, tuple[int, ...]]]
    framework: str
    forced: bool
    conv1d: bool
    settled: frozenset[str] = frozenset()  # names that are skipped, or of a kind told by the user

    @classmethod
    def of(cls, shapes: Mapping[str, Iterable[int]], framework: str) -> "Network":
        """Index the tensors, and decide the framework by vote unless it is given."""
        tensors = tuple(
            Tensor(name, parts(name), tuple(int(n) for n in shape), order)
            for order, (name, shape) in enumerate(shapes.items())
        )
        kernels = defaultdict(list)
        for tensor in tensors:
            if len(tensor.shape) > 2:
                kernels[tensor.path[:-2]].append(tensor)
        forced = framework != "auto"
        return cls(
            tensors=tensors,
            by_path={tensor.path: tensor for tensor in reversed(tensors)},
            kernels=kernels,
            repeats=Counter((numberless(tensor.name), tensor.shape) for tensor in tensors),
            framework=framework if forced else elected(tensors),
            forced=forced,
            conv1d=any(
                tensor.module in ("c_attn", "c_fc")
                and len(tensor.shape) == 2
                and tensor.shape[0] < tensor.shape[1]
                for tensor in tensors
            ),
        )

    def sibling(self, tensor: Tensor, leaf: str) -> Tensor | None:
        """The tensor of the same layer that is called ``leaf``."""
        return self.by_path.get((*tensor.parent, leaf))


def parts(name: str) -> tuple[str, ...]:
    """Split a name: ``"a.b.weight"``, ``"a/b/kernel:0"`` and Keras' ``"b/vars/0"``.

    >>> parts("layers/lstm/cell/vars/1")
    ('layers', 'lstm', 'cell', 'recurrent_kernel')
    """
    path = tuple(part for part in re.split(r"[/.]", re.sub(r":\d+$", "", name)) if part)
    if len(path) > 1 and path[-1] in ("value", "raw_value"):  # nnx.Variable
        path = path[:-1]
    if len(path) > 1 and path[-2] == "vars" and path[-1].isdecimal():
        *layer, _, index = path
        # A layer that is saved by itself has no name; one that it keeps to itself a private one.
        layer = [part.removeprefix("_") for part in layer]
        path = (*layer, _keras_variable(layer[-1] if layer else "", int(index)))
    return path or (name,)


# The last word of a layer's name, which Keras makes of the name of its class.
_KERAS_VARIABLES: dict[str, list[str]] = {
    r"embeddings?": ["embeddings"],
    r"separable_conv[12]d": ["depthwise_kernel", "pointwise_kernel", "bias"],
    r"depthwise_conv[12]d": ["depthwise_kernel", "bias"],
    r"cell|lstm|gru|rnn": ["kernel", "recurrent_kernel", "bias"],
}


def _keras_variable(layer: str, index: int) -> str:
    kinds = (
        order
        for words, order in _KERAS_VARIABLES.items()
        if re.fullmatch(rf"(.+_)?({words})(_\d+)?", layer)
    )
    order = next(kinds, ["kernel", "bias"])
    return order[index] if index < len(order) else f"vars{index}"


def numberless(name: str) -> str:
    """The name with its numbers blanked: equal for the repeated blocks of a network."""
    return re.sub(r"\d+", "#", name)


def elected(tensors: Iterable[Tensor]) -> str:
    """The framework that most leaf names point to; Flax, as in this library, if none does."""
    votes: Counter[str] = Counter()
    for tensor in tensors:
        votes.update(_VOTES.get(tensor.leaf, ()))
        votes.update(["torch"] * bool(re.match(r"weight_[ih]h", tensor.leaf)))
        votes.update(["tf"] * ("lstm_cell" in tensor.path or tensor.name.endswith(":0")))
        votes.update(["haiku"] * ("~" in tensor.path))
        votes.update(["keras"] * ("/vars/" in tensor.name))
        if len(tensor.shape) == 4 and tensor.leaf not in _VOTES:
            votes.update(_spatial_vote(tensor.shape))
    return max(FRAMEWORKS, key=lambda framework: votes[framework])


def _spatial_vote(shape: tuple[int, ...]) -> list[str]:
    """A square window in front is HWIO, at the end OIHW."""
    front, end = shape[0] == shape[1] <= 11, shape[2] == shape[3] <= 11
    return ["torch"] * (end and not front) + ["flax"] * (front and not end)


def recognised(tensor: Tensor) -> bool:
    """Whether the leaf name is one that some framework gives to kernels."""
    return bool(_OUTPUTS_FIRST.fullmatch(tensor.leaf) or _INPUTS_FIRST.fullmatch(tensor.leaf))


def outputs_first(tensor: Tensor, network: Network) -> bool:
    """Whether the layout is that of PyTorch: the leaf's own word, else that of the majority."""
    if network.forced or not recognised(tensor):
        return network.framework == "torch"
    return bool(_OUTPUTS_FIRST.fullmatch(tensor.leaf))


def output_axis(tensor: Tensor, network: Network) -> int:
    """The axis of a dense kernel that its outputs are on.

    The bias of the layer, which is as long as that axis, is better evidence than any name.
    """
    if network.conv1d and tensor.module in _CONV1D:
        return 1
    by_name = 0 if outputs_first(tensor, network) else 1
    by_bias = bias_axes(tensor, network)
    return by_name if network.forced or len(by_bias) != 1 else by_bias[0]


def named_convolution(tensor: Tensor) -> bool:
    """Whether the layer, or the leaf itself, is called a convolution."""
    return any(_CONVOLUTION.search(word) for word in (tensor.layer, tensor.leaf))


def transposed_by_name(tensor: Tensor) -> bool:
    """Whether the layer is called a transposed convolution, which may swap the channel axes."""
    return bool(_TRANSPOSED.search(tensor.layer))


def bias_of(tensor: Tensor, network: Network) -> Tensor | None:
    """The bias of the layer of which the tensor is the kernel."""
    leaf = tensor.leaf
    names = ("bias", "b", "biases", leaf.replace("weight", "bias"), f"{leaf}_bias")
    for name in (*names, re.sub("^[wW]", "b", leaf)):
        bias = None if name == leaf else network.sibling(tensor, name)
        if bias is not None:
            return bias
    return None


def bias_axes(tensor: Tensor, network: Network) -> list[int]:
    """The axes that are as long as the bias of the layer; none if it has no bias."""
    bias = bias_of(tensor, network)
    if bias is None or len(bias.shape) != 1:
        return []
    return [axis for axis, n in enumerate(tensor.shape) if n == bias.shape[0]]
