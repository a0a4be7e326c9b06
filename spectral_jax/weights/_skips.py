"""Why a tensor is no weight matrix."""

import re

from spectral_jax.weights._names import Network, Tensor

_OPTIMISER = re.compile(
    r"^(opt_state|optimi[sz]er(_states?|_weights)?|exp_avg(_sq)?|max_exp_avg_sq|momentum_buffer"
    r"|Adam(_\d+)?|adam_[mv]|Momentum|RMSProp(_\d+)?|Adagrad)$"
)
_ROTARY = re.compile(r"^(rotary.*|rope.*|inv_freq|cos_cached|sin_cached|freqs_c(is|os)|freqs_sin)$")
_SPECTRAL = re.compile(r"spectral(?!_?norm)|fourier", re.IGNORECASE)
_NORM = re.compile(
    r"^(.+_)?(ln|norm|bn|layer_?norm|group_?norm|batch_?norm|rms_?norm)"
    r"(_?\d+|_f|_final|_pre|_post|_out)?$",
    re.IGNORECASE,
)
_STATISTICS = re.compile(r"^((running|moving)_(mean|var|variance)|num_batches_tracked)$")
_POSITIONS = re.compile(
    r"^(position_ids|token_type_ids|relative_position_.*|relative_attention_bias)$"
)
_BIAS = re.compile(r"bias")
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
    if tensor.within(_OPTIMISER) or _adam_moment(tensor, network):
        return "optimiser state"
    if tensor.within(_ROTARY):
        return "rotary table"
    if tensor.within(_POSITIONS):
        return "position buffer"
    if _BIAS.search(leaf) or (axes == 1 and leaf in _SHIFTS):
        return "bias" if axes < 3 else "bias or attention mask"
    if leaf.endswith("mask"):
        return "mask"
    if _STATISTICS.search(leaf) or (axes == 1 and leaf in ("mean", "var")):
        return "batch-norm statistics"
    if leaf in ("scale", "gamma") or (leaf == "weight" and _NORM.match(tensor.module)):
        return "scale of a normalisation"
    if axes > 2 and (tensor.within(_SPECTRAL) or re.fullmatch(r"weights\d", leaf)):
        return "weights of a spectral convolution (modes of a transform)"
    return None


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
        return "one axis: a scale, a statistic or some other vector"
    return None


def _by_dtype(dtype: str) -> str | None:
    if dtype.startswith(("int", "uint", "bool")):
        return f"{dtype} tensor: a counter, an index, a mask or quantised weights"
    if dtype.startswith("complex"):
        return "complex weights, as of a Fourier layer: not a real matrix"
    if dtype.startswith("key"):
        return "random key"
    return None


def _by_parametrisation(tensor: Tensor, network: Network) -> str | None:
    leaf = tensor.leaf
    pair = {"weight_g", "weight_v"}
    if leaf in pair and all(network.sibling(tensor, other) for other in pair):
        return "weight-norm pair: merge it into the weight before saving"
    if leaf == "weight_orig" or (leaf.startswith("original") and "parametrizations" in tensor.path):
        return "parametrised weight: merge it into the weight before saving"
    return None
