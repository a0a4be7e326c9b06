"""Quantised weights: which tensors are codes or belong to them, and which give the weights back.

Only float8 (and float4) with a scale per tensor, row or block is read: all who write it agree on
``weight = code * scale``. How integer codes are packed, ordered and centred does not show in names
and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from spectral_jax.weights import _read
from spectral_jax.weights._names import Network, Tensor, output_axis, recognised
from spectral_jax.weights._rules import View

# How many rows and columns share a scale, where a last block that is cut short hides it: 128, as in
# DeepSeek's checkpoints and those that follow them. Blocks in use have 16, 32 or 128 entries.
BLOCK = 128
SMALLEST_BLOCK = 16
NARROW = ("float8", "float6", "float4")  # floats that are stored with a scale

# bitsandbytes, GPTQ, AWQ, EXL2, HQQ, compressed-tensors, QuIP#, MLX, quanto, torchao, AQT
_PACKED = re.compile(r"qweight|W_q|weight_packed|q_weight|Qidxs|weight_qdata")
_INTEGER_CODES = re.compile(r"codes|_data|qdata|qvalue|trellis")
_BESIDE_CODES = re.compile(
    r"(weight|kernel)_(global_)?(scale|zero_point|shape)\w*|scale_(weight|input)"
    r"|(input|output|activation|act|[kvq]|kv|prob)_(global_)?(scale|zero_point)\w*"
    r"|scales|scales_and_zeros|qscales|qzeros|q_scale\w*|q_(groups|perm|invperm)|g_idx|_scale|_shift"
    r"|SCB|(nested_)?(absmax|quant_map)"
)
_BESIDE_NAMED = re.compile(r"(.+)_(scales?|scale_inv|scale_\d|zeros|zero_points?)")
_NESTED = ("meta", "quant_state")  # where HQQ and bitsandbytes keep what belongs to their codes


class Scale(NamedTuple):
    """What a tensor of float8 is to be multiplied by.

    ``grid`` is the shape of the scale, with as many axes as the tensor; ``blocks`` says how many
    entries of the tensor share one of the scale, along each axis.
    """

    name: str
    grid: tuple[int, ...]
    blocks: tuple[int, ...]


class Codes(NamedTuple):
    """What is known of quantisation in a network."""

    network: Network
    dtypes: Mapping[str, str]
    """By name, empty where unknown."""
    tensors: Mapping[str, Tensor]
    layers: frozenset[tuple[str, ...]]
    """The paths of layers and tensors that hold integer codes."""

    @classmethod
    def of(cls, network: Network, dtypes: Mapping[str, str]) -> "Codes":
        """Look for codes among all tensors."""
        coded = [tensor for tensor in network.tensors if _is_coded(tensor, dtypes)]
        paths = [path for tensor in coded for path in (tensor.parent, tensor.path) if path]
        tensors = {tensor.name: tensor for tensor in network.tensors}
        return cls(network, dtypes, tensors, frozenset(paths))

    def reason(self, tensor: Tensor) -> str | None:
        """Why a tensor of a quantised network is no weight matrix, or None."""
        if _is_coded(tensor, self.dtypes):
            return "codes of quantised weights, which are not read: analyse the original"
        if self._belongs_to_codes(tensor):
            return "belongs to quantised weights (scale, zero point or table), no layer"
        beside = self._scales(tensor)
        if beside and self._scale(tensor) is None:
            named = " and ".join(f"{each.name!r} of shape {each.shape}" for each in beside)
            dtype = self.dtypes[tensor.name].partition("_")[0]
            return f"quantised to {dtype} with {named}, which does not tell how it is to be scaled"
        return None

    def coded(self) -> dict[str, tuple[str, ...]]:
        """Names of the tensors that hold codes, each with the names of what scales it.

        Nothing scales integers as far as names and shapes tell.
        """
        kernels = (tensor for tensor in self.network.tensors if len(tensor.shape) > 1)
        scales = {each.name: tuple(self.scales(each.name)) for each in kernels}
        integers = {name for name in scales if _is_coded(self.tensors[name], self.dtypes)}
        return {name: found for name, found in scales.items() if found or name in integers}

    def scales(self, name: str) -> list[str]:
        """Names of the tensors that may be the scale of a tensor of float8."""
        return [each.name for each in self._scales(self.tensors[name])]

    def weights(self, view: View) -> View:
        """The view that multiplies float8 codes by their scales before it reads a matrix."""
        narrow = [name for name in view.sources if self._is_narrow(name)]
        found = {name: self._scale(self.tensors[name]) for name in narrow}
        scales = {view.sources.index(name): scale for name, scale in found.items() if scale}
        if len(scales) < len(narrow):
            dtype = self.dtypes[narrow[0]].partition("_")[0]
            note = f"{dtype} without a scale: read as stored"
            view = view._replace(note=f"{view.note}; {note}" if view.note else note)
        if not scales:
            return view
        layouts = tuple((at, scale.grid, scale.blocks) for at, scale in scales.items())
        return view._replace(
            sources=(*view.sources, *(scale.name for scale in scales.values())),
            read=partial(_read.rescaled, read=view.read, layouts=layouts),
        )

    def _belongs_to_codes(self, tensor: Tensor) -> bool:
        parent = tensor.parent[:-1] if tensor.module in _NESTED else tensor.parent
        beside = parent in self.layers and not tensor.leaf.endswith("bias")
        return beside or bool(_BESIDE_CODES.fullmatch(tensor.leaf)) or self._is_named_after(tensor)

    def _is_named_after(self, tensor: Tensor) -> bool:
        """Whether its name is that of codes beside it with a suffix: ``w_scale`` beside ``w``."""
        named = _BESIDE_NAMED.fullmatch(tensor.leaf)
        codes = self.network.sibling(tensor, named[1]) if named else None
        if codes is None or len(codes.shape) < 2:
            return False
        return self.dtypes[codes.name].startswith((*NARROW, "int", "uint"))

    def _is_narrow(self, name: str) -> bool:
        return self.dtypes[name].startswith(NARROW)

    def _scales(self, tensor: Tensor) -> list[Tensor]:
        """What a kernel of float8 may have to be multiplied by."""
        if not self._is_narrow(tensor.name) or _BESIDE_CODES.fullmatch(tensor.leaf):
            return []
        leaf = tensor.leaf
        of_leaf = (f"{leaf}_scale", f"{leaf}_scale_inv", f"{leaf}_scale_2", f"scale_{leaf}")
        names = (*of_leaf, "scale", "scale_inv", "_scale")
        found = (self.network.sibling(tensor, name) for name in names)
        return [each for each in found if each is not None]

    def _scale(self, tensor: Tensor) -> Scale | None:
        """The scale of a kernel of float8; None where there is none, or doubt."""
        scales = self._scales(tensor)
        if len(scales) != 1 or not re.match("(b?float|$)", self.dtypes[scales[0].name]):
            return None
        grid = _aligned(scales[0].shape, tensor, self.network)
        if len(grid) != len(tensor.shape):
            return None
        blocks = [_block(n, parts) for n, parts in zip(tensor.shape, grid, strict=True)]
        return Scale(scales[0].name, grid, tuple(blocks)) if all(blocks) else None


def _is_coded(tensor: Tensor, dtypes: Mapping[str, str]) -> bool:
    if len(tensor.shape) < 2:
        return False
    dtype = dtypes[tensor.name]
    # 64-bit integers are indices, never codes of quantised weights.
    integer = dtype.startswith(("int", "uint")) and not dtype.endswith("64")
    named = recognised(tensor) or _INTEGER_CODES.fullmatch(tensor.leaf)
    return bool(_PACKED.fullmatch(tensor.leaf) or (integer and named))


def _aligned(grid: tuple[int, ...], tensor: Tensor, network: Network) -> tuple[int, ...]:
    """The shape of a scale per tensor or per output, padded with ones to the tensor's axes."""
    axes = len(tensor.shape)
    if grid in ((), (1,)):
        return (1,) * axes
    if len(grid) == 1 and axes == 2 and grid[0] == tensor.shape[output_axis(tensor, network)]:
        return (*grid, 1) if output_axis(tensor, network) == 0 else (1, *grid)
    return grid


def _block(size: int, parts: int) -> int:
    """How many entries of an axis share a scale; 0 where it cannot be told."""
    if parts in (1, size):
        return size // parts
    if -(-size // BLOCK) == parts:
        return BLOCK
    block, rest = divmod(size, parts)
    return block if not rest and block >= SMALLEST_BLOCK and block & (block - 1) == 0 else 0
