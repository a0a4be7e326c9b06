"""Kernels in two factors, run by a Flax network of your own; and read from a compressed file.

    smaller = prune.factorize(params, ranks)             # or load_factored("small.safetensors")
    model = factored_module(model, smaller)              # NNX: a module, to call and to train
    logits = factored_apply(net)({"params": smaller}, x) # Linen: in the place of net.apply

A factored dense layer multiplies by ``u``, then by ``v``; a convolution is its window to a few
channels and a 1 x 1 one. Strides, padding and dtypes are those of the layer; the bias comes last.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jaxtyping import PyTree

from spectral_jax.checkpoints import load
from spectral_jax.prune import is_factored

# What makes of a convolution the 1 x 1 one that the second factor is.
_POINTWISE: dict[str, Any] = dict(strides=1, padding="VALID", input_dilation=1, kernel_dilation=1)


def load_factored(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that ``spectral-jax compress`` wrote, as a tree of parameters.

    ``a/kernel/u`` and ``a/kernel/v`` (``a.kernel.u`` where no name has a slash) become the factored
    kernel ``tree["a"]["kernel"]``; what was not factored is an array. For a network with names of
    its own framework, such as ``fc.weight``, the tree is in that framework's layout.
    Raises ``ValueError`` for a name that leads through another, ``CheckpointError`` for a bad file.
    """
    tensors = load(path)
    separator = "/" if any("/" in name for name in tensors) else "."
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *parents, last = name.split(separator)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{os.fspath(path)}: {name!r} leads through a tensor")
        if last in node:
            raise ValueError(f"{os.fspath(path)}: {name!r} is a tensor and a group of tensors")
        node[last] = jnp.asarray(tensor)
    return tree


def factored_module(model: nnx.Module, params: PyTree) -> nnx.Module:
    """Copy an NNX model with these parameters; where a kernel is factored, two layers for one.

    Args:
      params: an ``nnx.State`` or a tree of mappings by the model's attributes, as ``factorize``
        leaves it; numbers of a sequence may be strings. What is not in it stays as it is.

    The copy is an ordinary module: ``nnx.state`` of it has ``fc/layers/0/kernel`` and
    ``fc/layers/1/kernel`` in the place of ``fc/kernel``. Raises ``ValueError`` for a name that the
    model has not, a shape that does not fit, or factors of another layer than ``nnx.Linear`` and an
    ungrouped ``nnx.Conv``.
    """
    if isinstance(model, linen.Module):
        raise ValueError("model is a Linen module, which needs no copy: use factored_apply(model)")
    return _filled(nnx.clone(model), params, "params")


def factored_apply(model: linen.Module) -> Callable[..., Any]:
    """``model.apply`` for variables whose kernels may be factored, of ``Dense`` and ``Conv``.

    Works under ``jit``, ``vmap`` and ``grad``, as ``apply`` does. Raises ``ValueError`` for factors
    of another layer.
    """
    if not isinstance(model, linen.Module):
        raise ValueError(
            f"model is a {type(model).__name__}: pass a Linen module (factored_module is for NNX)"
        )

    def apply(variables: Any, *args: Any, **options: Any) -> Any:
        with linen.intercept_methods(_through_factors):
            return model.apply(variables, *args, **options)

    return apply


def _filled(module: Any, tree: Any, where: str) -> Any:
    """The module with the values of the tree; another one where its kernel is factored."""
    tree = nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: no parameter of the model; pass a mapping of those in it")
    if is_factored(tree.get("kernel")):
        return _two_layers(module, tree["kernel"], tree.get("bias"), where)
    for key, value in tree.items():
        at = f"{where}/{key}"
        child = _child(module, key, at)
        if not isinstance(child, nnx.Variable):
            _replace(module, key, _filled(child, value, at))
        elif isinstance(value, Mapping):
            raise ValueError(f"{at}: a mapping for an array of shape {child.shape}")
        elif jnp.shape(value) != child.shape:
            raise ValueError(f"{at}: shape {jnp.shape(value)} for one of {child.shape}")
        else:
            child[...] = jnp.asarray(value)
    return module


def _two_layers(layer: Any, kernel: Any, bias: Any, where: str) -> Any:
    """``u``, then ``v``; either may be two layers in turn."""
    convolves = isinstance(layer, nnx.Conv)
    if not (isinstance(layer, nnx.Linear) or (convolves and layer.feature_group_count == 1)):
        raise ValueError(
            f"{where}: factors are for nnx.Linear and an ungrouped nnx.Conv, and this is "
            f"{type(layer).__name__}; recombine_all(params) makes one kernel of them"
        )
    if not is_factored(kernel):
        return _with_kernel(layer, kernel, bias)
    first, second = nnx.clone(layer), nnx.clone(layer)
    if convolves:
        vars(second).update(_POINTWISE)
    return nnx.Sequential(
        _two_layers(first, kernel["u"], None, where),
        _two_layers(second, kernel["v"], bias, where),
    )


def _with_kernel(layer: Any, kernel: Any, bias: Any) -> Any:
    layer.kernel = nnx.Param(jnp.asarray(kernel))
    layer.bias = nnx.data(None) if bias is None else nnx.Param(jnp.asarray(bias))
    layer.use_bias = bias is not None
    *window, layer.in_features, layer.out_features = jnp.shape(kernel)
    if window:
        layer.kernel_size, layer.kernel_shape = tuple(window), jnp.shape(kernel)
    return layer


def _child(module: Any, key: Any, where: str) -> Any:
    try:
        return module[int(key)] if _is_sequence(module) else getattr(module, str(key))
    except (AttributeError, IndexError, ValueError):
        raise ValueError(f"{where}: the model has no such part") from None


def _replace(module: Any, key: Any, child: Any) -> None:
    if _is_sequence(module):
        module[int(key)] = child
    else:
        setattr(module, str(key), child)


def _is_sequence(module: Any) -> bool:
    return isinstance(module, nnx.List | list | tuple)


def _through_factors(call: Callable, args: Any, options: Any, context: Any) -> Any:
    """Run a layer whose kernel is factored as two layers; anything else as it is."""
    layer = context.module
    if context.method_name != "__call__" or layer.scope is None:
        return call(*args, **options)
    own = layer.scope.variables().get("params", {})
    kernel = own.get("kernel")
    if not is_factored(kernel):
        return call(*args, **options)
    convolves = isinstance(layer, linen.Conv)
    if not (isinstance(layer, linen.Dense) or (convolves and layer.feature_group_count == 1)):
        where = "/".join(layer.path)
        raise ValueError(
            f"{where}: factors are for Dense and an ungrouped Conv, and this is "
            f"{type(layer).__name__}; recombine_all(params) makes one kernel of them"
        )
    rank = jax.tree.leaves(kernel["v"])[0].shape[-2]
    first = layer.clone(parent=None, features=rank, use_bias=False)
    pointwise = {**_POINTWISE, "kernel_size": (1,) * len(layer.kernel_size)} if convolves else {}
    second = layer.clone(parent=None, **pointwise)
    hidden = first.apply({"params": {"kernel": kernel["u"]}}, *args, **options)
    return second.apply({"params": {**own, "kernel": kernel["v"]}}, hidden)
