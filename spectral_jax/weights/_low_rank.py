"""Updates and layers that are stored as factors: LoRA and its relatives, halves of a cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

from spectral_jax.weights import _read
from spectral_jax.weights._names import Network, Tensor
from spectral_jax.weights._read import Conv
from spectral_jax.weights._rules import View

# Names of the first factor and of the second: PEFT, Flax and MLX, kohya, and older diffusers (in a
# module that is called after LoRA). `_PAIRS` adds the names of this library, which two layers that
# are no factors of each other may have as well.
_ADAPTER_PAIRS = {
    "lora_A": "lora_B",
    "lora_a": "lora_b",
    "lora_embedding_A": "lora_embedding_B",
    "lora_down": "lora_up",
    "down": "up",
}
_PAIRS = _ADAPTER_PAIRS | {"kernel_a": "kernel_b", "u": "v"}
_PARTNERS = _PAIRS | {second: first for first, second in _PAIRS.items()}
_INSIDE_LORA = ("down", "up")
_BETWEEN_FACTORS = ("lora_E", "lora_mid")  # the diagonal of AdaLoRA, the window of LoCon
_OUTPUTS_LAST = ("lora_A", "lora_embedding_A", "lora_down", "down")  # PyTorch: [rank, in] first

# Parts of an adapter: LoHa, LoKr, LoCon, AdaLoRA, DoRA, IA3, OFT and BOFT, VeRA, FourierFT, LN.
_ADAPTER = re.compile(
    r"lora_(A|B|a|b|down|up|mid|E|embedding_[AB]|magnitude_vector)|dora_scale|ia3_l"
    r"|hada_[wt][12](_[ab])?|lokr_[wt][12](_[ab])?|b?oft_\w+|vera_\w+|fourierft_\w+"
)
_NOTE = "without the scale of the adapter"


def low_rank(tensor: Tensor, network: Network, conv: Conv) -> Sequence[View] | str | None:
    """Factors that are one matrix together; the reason if their adapter is of another form."""
    pair = _pair(tensor, network)
    if pair is not None:
        return pair
    places = [i for i, part in enumerate(tensor.path) if _ADAPTER.fullmatch(part)]
    if not places:
        return None
    at = places[-1]
    found = _loha(tensor, network, at) or _lokr(tensor, network, at)
    if found is None:
        return f"part of an adapter ({tensor.path[at]}) whose update is not read"
    return found if found[0].sources[0] == tensor.name else []


def _pair(tensor: Tensor, network: Network) -> Sequence[View] | None:
    """Two factors of one update or layer, as the view of the first."""
    # The last such part of the name: a factor may itself be stored as two factors.
    places = [i for i in range(len(tensor.path)) if _is_factor(tensor, i)]
    if not places:
        return None
    at = places[-1]
    marker = tensor.path[at]
    other = _part(tensor, network, at, _PARTNERS[marker])
    if other is None or network.by_path[tensor.path] != tensor:
        return None
    first, second = (tensor, other) if marker in _PAIRS else (other, tensor)
    factors = _factors(first, second, first.path[at])
    if factors is None or any(_part(tensor, network, at, third) for third in _BETWEEN_FACTORS):
        return None
    if marker not in _PAIRS:
        return []
    shape, sources, options, rank = factors
    name = f"{first.name}*{second.path[at]}"
    note = _NOTE if marker in _ADAPTER_PAIRS else ""
    read = partial(_read.product, **options)
    return [View(name, sources, "low_rank", shape, read, note, rank=rank)]


def _is_factor(tensor: Tensor, at: int) -> bool:
    part = tensor.path[at]
    return part in _PARTNERS and (
        part not in _INSIDE_LORA or any("lora" in each for each in tensor.path[:at])
    )


def _part(tensor: Tensor, network: Network, at: int, name: str) -> Tensor | None:
    """The tensor of the same adapter that is called ``name``, if it may be read."""
    found = network.by_path.get((*tensor.path[:at], name, *tensor.path[at + 1 :]))
    return None if found is None or found.name in network.settled else found


def _factors(
    a: Tensor, b: Tensor, marker: str
) -> tuple[tuple[int, int], tuple[str, str], dict[str, bool], int] | None:
    """The order and orientation in which two factors multiply to ``[in, out]``, and its rank."""
    torch = a.path[-1] == "weight" or marker in _OUTPUTS_LAST
    if min(len(a.shape), len(b.shape)) < 2 or (max(len(a.shape), len(b.shape)) > 2 and not torch):
        return None
    # The factors of a convolution are convolutions: [rank, in, h, w] and [out, rank, 1, 1].
    (m, k), (p, n) = ((each.shape[0], prod(each.shape[1:])) for each in (a, b))
    # In which of three orientations the inner sizes agree: a b, (b a)^T, and a b^T. For PyTorch's
    # layout, where the first factor is [rank, in], the second of these is tried first.
    options = [
        (k == p, k, (m, n), {}),
        (m == n, m, (k, p), {"transpose_a": True, "transpose_b": True}),
        (k == n, k, (m, p), {"transpose_b": True}),
    ]
    if torch:
        options[0], options[1] = options[1], options[0]
    fitting = [option for option in options if option[0]]
    # Take an orientation in which the inner size is below both outer ones, as a factoring has it.
    # Only the names of adapters are trusted without that: other names may be those of two layers.
    unlike_layers = [option for option in fitting if option[1] < min(option[2])]
    chosen = unlike_layers or (fitting if marker in _ADAPTER_PAIRS else [])
    if not chosen:
        return None
    _, inner, shape, transposes = chosen[0]
    return shape, (a.name, b.name), transposes, min(inner, *shape)


def _loha(tensor: Tensor, network: Network, at: int) -> Sequence[View] | None:
    """The elementwise product of two low-rank matrices."""
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    factors = _all_parts(tensor, network, at, names)
    if factors is None or any(len(each.shape) != 2 for each in factors):
        return None
    first, second = factors[:2], factors[2:]
    outer = {(a.shape[0], b.shape[1]) for a, b in (first, second)}
    if len(outer) != 1 or any(a.shape[1] != b.shape[0] for a, b in (first, second)):
        return None
    ((outputs, inputs),) = outer
    # The rank of an elementwise product is at most the product of the ranks.
    rank = first[0].shape[1] * second[0].shape[1]
    return _update(factors, at, (inputs, outputs), _read.hadamard, rank)


def _lokr(tensor: Tensor, network: Network, at: int) -> Sequence[View] | None:
    """The Kronecker product of two matrices, each whole or in two factors."""
    first, second = (
        _all_parts(tensor, network, at, (f"lokr_w{i}",))
        or _all_parts(tensor, network, at, (f"lokr_w{i}_a", f"lokr_w{i}_b"))
        for i in (1, 2)
    )
    if first is None or second is None or _part(tensor, network, at, "lokr_t2") is not None:
        return None
    shapes, rank = [], 1
    for factors in (first, second):
        a, b = factors[0].shape, factors[-1].shape
        if min(len(a), len(b)) < 2 or (len(factors) == 2 and a[1] != b[0]):
            return None
        shapes.append((a[0], prod(b[1:])))
        rank *= min(*shapes[-1], *a[1:2] * (len(factors) - 1))  # that of a Kronecker product
    outputs, inputs = (prod(sizes) for sizes in zip(*shapes, strict=True))
    read = partial(_read.kronecker, split=len(first))
    return _update([*first, *second], at, (inputs, outputs), read, rank)


def _all_parts(
    tensor: Tensor, network: Network, at: int, names: Sequence[str]
) -> list[Tensor] | None:
    found = [_part(tensor, network, at, name) for name in names]
    return None if None in found else [each for each in found if each is not None]


def _update(
    parts: Sequence[Tensor],
    at: int,
    shape: tuple[int, int],
    read: Callable[..., Any],
    rank: int,
) -> list[View]:
    name = "*".join([parts[0].name, *(each.path[at] for each in parts[1:])])
    sources = tuple(each.name for each in parts)
    return [View(name, sources, "low_rank", shape, read, _NOTE, rank=min(rank, *shape))]
