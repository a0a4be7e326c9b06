"""Networks whose kernels may be two factors, one applied after the other.

    net = factored("mlp", input_shape=(28, 28), classes=10)
    params, state = net.init(key)                                # whole kernels, as of `network`
    smaller = spectral_jax.prune.factorize(params, {"layers/0/kernel": 56})
    logits, state = net.apply(smaller, state, x)                 # the thin products, nothing else

The tree of parameters says which kernels are factored, so one `apply` (and one training program)
serves a network before and after every split; JAX compiles anew when the shapes change.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from models.functional import Network, network, plain_tree
from models.registry import build
from spectral_jax.prune import is_factored


def factored(name: str, *, input_shape: tuple[int, ...], classes: int, **options: Any) -> Network:
    """`network`, whose `apply` also takes dense and convolution kernels ``{"u": ..., "v": ...}``.

    ``u`` comes first, with the strides and the padding of the layer; ``v`` is dense or 1 x 1; the
    bias comes last. A factor may be two factors in turn.

    Raises:
        ValueError: as `network`; from `apply`, for factors in the place of another kind of leaf.
    """
    plain = network(name, input_shape=input_shape, classes=classes, **options)
    create = partial(build, name, input_shape=input_shape, classes=classes, **options)
    abstract = nnx.eval_shape(lambda: create(rngs=nnx.Rngs(0)))
    graphdef, shapes, _ = nnx.split(abstract, nnx.Param, ...)  # type: ignore[misc]
    whole_shapes = nnx.to_pure_dict(shapes)

    def apply(params, state, x, *, train=False, key=None, **given):
        chains = dict(_chains(params))
        if not chains:
            return plain.apply(params, state, x, train=train, key=key, **given)
        whole = _with_placeholders(nnx.restore_int_paths(params), whole_shapes)
        merged = nnx.merge(graphdef, whole, nnx.restore_int_paths(state))
        for path, chain in chains.items():
            _run_through(merged, path, chain)
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits = merged(x, train=train, rngs=rngs, **given)
        return logits, plain_tree(nnx.state(merged, nnx.Not(nnx.Param)))

    return Network(plain.init, apply, plain.blocks)


def _chains(params: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list]]:
    """The path of each factored kernel, and its factors in the order they are applied."""
    if not isinstance(params, Mapping):
        return
    if is_factored(params):
        yield path, _links(params)
        return
    for name, child in params.items():
        yield from _chains(child, (*path, name))


def _links(kernel: Any) -> list[Array]:
    return [*_links(kernel["u"]), *_links(kernel["v"])] if is_factored(kernel) else [kernel]


def _with_placeholders(params: Any, shapes: Any) -> Any:
    """The parameters of the whole network; zeros, which nothing reads, for factored kernels."""
    if is_factored(params):
        return jnp.zeros(shapes.shape, shapes.dtype)
    if not isinstance(params, Mapping):
        return params
    return {key: _with_placeholders(child, shapes[key]) for key, child in params.items()}


def _run_through(model: nnx.Module, path: tuple[str, ...], links: list[Array]) -> None:
    """Make the layer that owns the kernel at ``path`` apply its factors."""
    layer: Any = model
    for name in path[:-1]:
        layer = layer[int(name)] if name.isdecimal() else getattr(layer, name)
    if path[-1] == "kernel" and isinstance(layer, nnx.Linear):
        layer.dot_general = partial(_dense, layer.dot_general, links)
    elif path[-1] == "kernel" and isinstance(layer, nnx.Conv) and layer.feature_group_count == 1:
        layer.conv_general_dilated = partial(_conv, layer.conv_general_dilated, links)
    else:
        where = "/".join(path)
        raise ValueError(f"params: {where!r} is no dense or convolution kernel: recombine it")


def _dense(product: Callable, links: list[Array], x: Array, _: Array, *args, **options) -> Array:
    for link in links:
        x = product(x, link.astype(x.dtype), *args, **options)
    return x


def _conv(
    convolve: Callable,
    links: list[Array],
    x: Array,
    _: Array,
    strides: tuple[int, ...],
    padding: Any,
    *,
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    **options: Any,
) -> Array:
    """The first factor has the window, and all that belongs to it; the others are 1 x 1."""
    ones = (1,) * len(strides)
    dilations = {"lhs_dilation": lhs_dilation, "rhs_dilation": rhs_dilation}
    for link in links:
        x = convolve(x, link.astype(x.dtype), strides, padding, **dilations, **options)
        strides, padding = ones, "VALID"
        dilations = {"lhs_dilation": ones, "rhs_dilation": ones}
    return x
