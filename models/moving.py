"""Networks that keep the moments of their features, as training batches go by."""

import jax
from jaxtyping import Array

from models.functional import Network
from spectral_jax import features

MOMENTS = "moments"


def moving(net: Network, *, decay: float) -> Network:
    """``net``, whose state also holds decayed moments of its penultimate features.

    Each call with ``train=True`` adds its batch, and takes what was there before times ``decay``:
    so ``1 / (1 - decay)`` batches count, of a network that has moved on meanwhile. That costs a
    product ``x^T x`` a step; no other pass, and no other examples. Read them with
    ``features.richness(state["moments"], head=net.head(params))`` and the like.

    Raises:
        ValueError: the network is not written in NNX, or ``decay`` is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay} must be at least 0 and below 1: .99 is 100 batches")
    if not net.representations:
        raise ValueError("decay: the network has no representations; leave it as it is")
    last = net.representations[-1]

    def init(key):
        params, state = net.init(key)
        size, _ = net.head(params).kernel.shape
        return params, {**state, MOMENTS: features.zero(size, method="gram")}

    def tapped(params, state, x, *, points, train=False, **options):
        inner = {name: value for name, value in state.items() if name != MOMENTS}
        wanted = (*points, last) if train else points
        logits, inner, found = net.tapped(params, inner, x, points=wanted, train=train, **options)
        kept = state[MOMENTS]
        if train:
            kept = features.decay(kept, decay)
            kept = features.update(kept, jax.lax.stop_gradient(found[last]))
        return logits, {**inner, MOMENTS: kept}, {point: found[point] for point in points}

    def apply(params, state, x, **options) -> tuple[Array, dict]:
        return tapped(params, state, x, points=(), **options)[:2]

    return net._replace(init=init, apply=apply, tapped=tapped)
