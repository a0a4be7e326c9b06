"""Curvature of a loss in the parameters: Hessian, Gauss-Newton and Fisher matrices, spectra.

Every matrix is that of a mean: ``sum_i w_i h_i / sum_i w_i`` over all items, ``w_i = 1`` by
default, whatever the order, the batches and the micro-batches. Functions of a model take
``model(params, inputs) -> outputs [n, *positions, c]``, a loss of this room, and
``data = (inputs, targets)`` with a leading axis of ``n`` examples.
"""

from spectral_jax.curvature.blocks import Blocks, ggn_blocks
from spectral_jax.curvature.check import Check, check
from spectral_jax.curvature.kernel import Spectrum, empirical_fisher_spectrum, ggn_spectrum
from spectral_jax.curvature.kfac import ekfac, kfac
from spectral_jax.curvature.kronecker import (
    KroneckerBlock,
    KroneckerEigenbasis,
    KroneckerOperator,
)
from spectral_jax.curvature.losses import (
    Loss,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    item_shares,
)
from spectral_jax.curvature.objective import Objective, objective
from spectral_jax.curvature.operators import (
    empirical_fisher,
    fisher,
    ggn,
    hessian,
    logit_jacobian,
)
from spectral_jax.curvature.stored import stored
from spectral_jax.curvature.streams import StreamOperator, stream
from spectral_jax.curvature.subspaces import displacement, overlap

__all__ = [
    "Blocks",
    "Check",
    "KroneckerBlock",
    "KroneckerEigenbasis",
    "KroneckerOperator",
    "Loss",
    "Objective",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "Spectrum",
    "SquaredError",
    "StreamOperator",
    "check",
    "displacement",
    "ekfac",
    "empirical_fisher",
    "empirical_fisher_spectrum",
    "fisher",
    "ggn",
    "ggn_blocks",
    "ggn_spectrum",
    "hessian",
    "item_shares",
    "kfac",
    "logit_jacobian",
    "objective",
    "overlap",
    "stored",
    "stream",
]
