"""Why a tensor is no weight matrix."""

from __future__ import annotations

import re

from spectral_jax.weights._names import Network, Tensor, bias_axes

# Reasons that `_stacks` looks at: such tensors have one axis, or one more where layers are stacked.
BIAS = "bias"
BIAS_OR_MASK = "bias or attention mask"
STATISTICS = "batch-norm statistics"
NORM_SCALE = "scale of a normalisation"
VECTOR = "one axis: a scale, a statistic or some other vector"

# The patterns match whole parts of a name, and are tried on one part only (the leaf or its module):
# a layer may be in a module that is called after what it is for, such as "rope_attention",
# "spectral_branch" or "unbiased".
_OPTIMISER = re.compile(
    r"opt_state|optimi[sz]er(_states?|_weights)?|exp_avg(_sq)?|max_exp_avg_sq|momentum_buffer"
)
_SLOT = re.compile(r"(Adam|RMSProp)(_\d+)?|adam_[mv]|Momentum|Adagrad")
_ROTARY_TABLE = re.compile(r"inv_freq|(cos|sin)_cached|freqs(_c(is|os)|_sin)?")
_ROTARY = re.compile(r"(rotary|rope)(_?(pos(ition)?_?)?emb(ed(ding)?)?s?)?")
_SPECTRAL = re.compile(r"spectral(?!_?norm)|fourier", re.IGNORECASE)
_NORM = re.compile(
    r"(.+_)?(ln|norm|bn|layer_?norm|group_?norm|batch_?norm|rms_?norm)"
    r"(_?\d+|_f|_final|_pre|_post|_out)?",
    re.IGNORECASE,
)
_STATISTICS = re.compile(r"(running|moving)_(mean|var|variance)|num_batches_tracked")
_POSITIONS = re.compile(
    r"position_ids|token_type_ids"
    r"|relative_(position|attention)_(bias|bias_table|table|index|bucket|embeddings?)"
)
_BIAS = re.compile(r"(.+_)?bias(es)?(_?\d+|_[ih]h\w*|_[kv])?")
_MASK = re.compile(r"(.+_)?mask")
_SHIFTS = ("b", "beta", "offset")  # a kernel may be called "b" as well, but has two axes


def skip(tensor: Tensor, network: Network, dtype: str) -> str | None:
    """The reason to leave a tensor out, or None if it may be a weight matrix."""
    return (
        _by_role(tensor, network)
        or _by_shape(tensor.shape)
        or _by_dtype(dtype)
        or _by_parametrisation(tensor, network)
    )


def _by_role(tensor: Tensor, network: Network) -> str | None:
    leaf, axes = tensor.leaf, len(tensor.shape)
    if (
        any(_OPTIMISER.fullmatch(part) for part in tensor.path)
        or _SLOT.fullmatch(leaf)
        or _adam_moment(tensor, network)
    ):
        return "optimiser state"
    if _ROTARY_TABLE.fullmatch(leaf) or _table_of(_ROTARY, tensor, network):
        return "rotary table"
    if _POSITIONS.fullmatch(leaf) or _table_of(_POSITIONS, tensor, network):
        return "position buffer"
    if _BIAS.fullmatch(leaf) or (axes == 1 and leaf in _SHIFTS):
        return BIAS if axes < 3 else BIAS_OR_MASK
    if _MASK.fullmatch(leaf):
        return "mask"
    if _STATISTICS.fullmatch(leaf) or (axes == 1 and leaf in ("mean", "var")):
        return STATISTICS
    if leaf in ("scale", "gamma") or _norm_weight(tensor, network):
        return NORM_SCALE
    other = {"real": "imag", "imag": "real"}.get(leaf)
    twin = None if other is None else network.sibling(tensor, other)
    if twin is not None and twin.shape == tensor.shape:
        return "complex weights in two arrays, real and imag: not a real matrix"
    if axes > 2 and _modes(tensor, network):
        return "weights of a spectral convolution (modes of a transform)"
    return None


def _table_of(modules: re.Pattern[str], tensor: Tensor, network: Network) -> bool:
    """A table is the only tensor of its module; what has a bias is a layer."""
    return bool(modules.fullmatch(tensor.module)) and not bias_axes(tensor, network)


def _norm_weight(tensor: Tensor, network: Network) -> bool:
    """The scale of a norm has the shape of its bias."""
    bias = network.sibling(tensor, "bias")
    of_one_shape = bias is None or bias.shape == tensor.shape
    return tensor.leaf == "weight" and bool(_NORM.fullmatch(tensor.module)) and of_one_shape


def _modes(tensor: Tensor, network: Network) -> bool:
    """Complex numbers in a real array, which has a last axis for their two parts.

    The names alone fit convolutions as well: over the bands of hyperspectral images, for instance.
    """
    named = _SPECTRAL.search(tensor.module) or re.fullmatch(r"weights\d", tensor.leaf)
    return bool(named) and tensor.shape[-1] == 2 and not bias_axes(tensor, network)


def _adam_moment(tensor: Tensor, network: Network) -> bool:
    """``mu`` and ``nu`` are names of layers too: the moments of optax come as twins."""
    for at, part in enumerate(tensor.path):
        if part in ("mu", "nu"):
            other = "nu" if part == "mu" else "mu"
            twin = network.by_path.get((*tensor.path[:at], other, *tensor.path[at + 1 :]))
            return twin is not None and twin.shape == tensor.shape
    return False


def _by_shape(shape: tuple[int, ...]) -> str | None:
    if 0 in shape:
        return "empty"
    if not shape:
        return "scalar"
    if len(shape) == 1:
        return VECTOR
    return None


def _by_dtype(dtype: str) -> str | None:
    if dtype.startswith(("int", "uint", "bool")):
        return f"{dtype} tensor: a counter, an index, a mask or quantised weights"
    return not_real(dtype)


def not_real(dtype: str) -> str | None:
    """Why a tensor of that dtype, where it is known, cannot be read as real numbers."""
    if dtype.startswith("complex"):
        return "complex weights, as of a Fourier layer: not a real matrix"
    if dtype.startswith("key"):
        return "random key"
    if dtype and not dtype.startswith(("float", "bfloat", "int", "uint", "bool")):
        return f"{dtype} is no dtype of numbers"
    return None


def _by_parametrisation(tensor: Tensor, network: Network) -> str | None:
    leaf = tensor.leaf
    pair = {"weight_g", "weight_v"}
    if leaf in pair and all(network.sibling(tensor, other) for other in pair):
        return "weight-norm pair: merge it into the weight before saving"
    if leaf == "weight_orig" or (leaf.startswith("original") and "parametrizations" in tensor.path):
        return "parametrised weight: merge it into the weight before saving"
    return None
