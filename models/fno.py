"""Fourier neural operator in one dimension: from a periodic field to a periodic field."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.layers import dense
from spectral_jax.weights import Block


class SpectralConv(nnx.Module):
    """Multiply the lowest Fourier modes of all channels by a complex matrix each; drop the rest.

    ``real + i imag`` is ``[modes, in, out]``; `draw` gives it E|w|^2 = 1 / in, which keeps the
    power of a mode.
    """

    def __init__(self, width: int, modes: int, *, rngs: nnx.Rngs):
        self.modes = modes
        std = math.sqrt(0.5 / width)
        shape = (modes, width, width)
        self.real = nnx.Param(jnp.zeros(shape), std=std)
        self.imag = nnx.Param(jnp.zeros(shape), std=std)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        points = x.shape[1]
        low = jnp.fft.rfft(x, axis=1)[:, : self.modes]
        weights = jax.lax.complex(self.real[...], self.imag[...])
        mixed = jnp.einsum("bki,kio->bko", low, weights)
        return jnp.fft.irfft(mixed, points, axis=1)  # the modes that are missing are zero


class FNO(nnx.Module):
    """Lift, `depth` Fourier layers ``gelu(K v + W v + b)``, project (arXiv 2010.08895).

    Fields ``[b, n, channels]`` -> ``[b, n, outputs]``, on any grid of ``n >= 2 modes`` points of
    the circle: the function computed does not depend on the grid, and without the paper's channel
    of coordinates it commutes with shifts. The last Fourier layer has no activation, as there.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int = 1,
        width: int = 32,
        modes: int = 16,
        depth: int = 4,
        hidden: int = 128,
        rngs: nnx.Rngs,
    ):
        if min(channels, outputs, width, modes, depth, hidden) < 1:
            raise ValueError(
                f"channels={channels}, outputs={outputs}, width={width}, modes={modes}, "
                f"depth={depth}, hidden={hidden} must be positive"
            )
        self.modes = modes
        self.lift = dense(channels, width, rngs=rngs)
        self.spectral = nnx.List([SpectralConv(width, modes, rngs=rngs) for _ in range(depth)])
        self.pointwise = nnx.List([dense(width, width, rngs=rngs) for _ in range(depth)])
        self.project = dense(width, hidden, rngs=rngs)
        self.head = dense(hidden, outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n i"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n o"]:
        if x.shape[1] < 2 * self.modes:
            raise ValueError(
                f"x has {x.shape[1]} points for modes={self.modes}: give it at least "
                f"{2 * self.modes}, or keep fewer modes"
            )
        y = self.lift(x)
        last = len(self.spectral) - 1
        for number, (kernel, local) in enumerate(zip(self.spectral, self.pointwise, strict=True)):
            y = kernel(y) + local(y)
            y = y if number == last else jax.nn.gelu(y)
        return self.head(jax.nn.gelu(self.project(y)))

    @property
    def representations(self) -> tuple[str, ...]:
        """The inputs of the Fourier layers, of the projection and of the head."""
        layers = (f"spectral/{k}:input" for k in range(len(self.spectral)))
        return (*layers, "project:input", "head:input")

    def layout(self) -> tuple[Block, ...]:
        """Raise ValueError: a mode mixes every point with every other, so no weight joins two."""
        raise ValueError(
            "FNO has no graph: its complex weights join modes, not units; read its kernels one by "
            "one with spectral_jax.weights.matrices"
        )
