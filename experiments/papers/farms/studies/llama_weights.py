"""The exponents of LLaMA-7B, on the weights where they are.

A checkpoint in ``llama-7b`` below a data directory (safetensors or PyTorch) is read one tensor at a
time, and every block's exponents are kept, so that a stopped run goes on. Pruning it and measuring
its perplexity takes a GPU and stays outside: the claims say at what cost.
"""

from __future__ import annotations

import re
from functools import partial

import jax.numpy as jnp
import numpy as np

from experiments.data.files import path_of
from experiments.papers.farms.studies.llama import SHIPPED
from experiments.report.results import Results, of_arrays
from experiments.runs import Run
from spectral_jax import checkpoints, tails
from spectral_jax.linalg import svdvals

LINEAR = re.compile(r"layers\.(\d+)\.(self_attn|mlp)\.\w+_proj\.weight$")


def measure(run: Run, *, samples: int) -> Results:
    """Plain and FARMS exponents of each block's seven linear layers, and how they rank the blocks.

    samples: windows per axis, as released.
    """
    means = []
    with checkpoints.open_checkpoint(path_of("llama-7b/config.json").parent) as stored:
        blocks: dict[int, list[str]] = {}
        for name in stored.tensors:
            if found := LINEAR.search(name):
                blocks.setdefault(int(found[1]), []).append(name)
        for block, names in sorted(blocks.items()):
            kept = run.load_array(f"block-{block}")
            if kept is None:
                plain, farms = np.transpose([exponents(stored.read(n), samples) for n in names])
                kept = {"names": np.array(names), "plain": plain, "farms": farms}
                run.save_array(f"block-{block}", **kept)
            means.append([np.nanmean(kept[kind]) for kind in ("plain", "farms")])
    plain, farms = np.transpose(means)
    agreement = np.corrcoef(farms, SHIPPED)[0, 1]
    return of_arrays("llama_weights", "llama-7b", {"correlation": [agreement]})


def exponents(weight: np.ndarray, samples: int) -> tuple[float, float]:
    """Plain and FARMS exponent of a layer by the released rule, ``xmin_peak``."""
    matrix = jnp.asarray(weight, jnp.float32)
    fit = partial(tails.power_law_fit, xmin="peak", paper_compat="peak_log10")
    windows = tails.farms_eigenvalues(
        matrix, window=2000, samples=samples, paper_compat={"floor_step"}
    )
    return float(fit(svdvals(matrix) ** 2).alpha), float(fit(windows).alpha)
