"""Convolutions in the form that XLA is fast at on a CPU, in compiled loops above all.

Order of axes. XLA's CPU backend has fast convolutions of images ``[n, height, width, channels]`` by
kernels ``[height, width, in, out]``. Any other order of axes runs in a plain loop, 4 to 40 times as
long. The derivatives of a convolution are convolutions in other orders. XLA turns them into the
fast one by transposing what goes in and comes out, but only in the main body of a program, not in
the bodies of its loops and branches (https://github.com/jax-ml/jax/issues/12868). So a step of
training is fast on its own, and crawls in `jax.lax.scan`. Here the transposes are made before XLA
sees the program.

Groups. A convolution in groups, as `jax.vmap` over kernels makes it, takes two to five times as
long as one for each group.

Few channels. The inner loops are over output channels, 16 numbers at a time. With 6 channels most
of each step is wasted: a kernel that gives two or four neighbouring pixels at once, as channels of
one wide pixel, does more arithmetic in less time (first layer of LeNet-5: an eighth of the time).

Kernels larger than images. XLA swaps the two, and has only its plain loop for what comes of it: 40
times as long for 3 x 3 kernels on 2 x 2 images of 512 channels, which the last block of a VGG has
on CIFAR. Images that are padded before the convolution are large enough. The optimisation barrier
keeps XLA from taking the padding into the convolution again.

jaxlib 0.10. Its library for more than 16 channels (YNNPACK) computes on one thread, and is 2 to 8
times slower at large images without padding, among them those that a kernel's derivative is made
from. It leaves to Eigen what has zeros between the rows of its images. A convolution with zeros
between the rows of the kernel as well, and every other row of the result, is the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
from jax.extend import core
from jaxtyping import Array

from spectral_jax.linalg.lapack import cpu_threads

CONVOLUTION = jax.lax.conv_general_dilated_p
# Groups are taken apart if there are so few of them, and each has so many channels: one channel by
# itself is slow, and many operations compile long.
GROUPS_MOST, CHANNELS_LEAST = 32, 3
# Neighbouring pixels are computed at once where channels fill no more than one step of 16 numbers,
# and kernels are so small that a few columns of zeros beside them cost little.
CHANNELS_FEW, KERNEL_SMALL = 16, 8
# The library of jaxlib 0.10: so many threads of Eigen's are as fast where channels are few, and
# images of no more bytes than this stay in the cache, where it is fast.
LIBRARY_IS_SERIAL = jaxlib.__version__.startswith("0.10.")
THREADS_FEW, IMAGES_LARGE = 4, 2**20


def fast_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with its convolutions in the form that XLA is fast at on a CPU.

    For a step of training, and above all for the body of a loop or a branch; after ``jax.grad`` and
    ``jax.vmap``, which make convolutions in slow forms: ``scan(fast_convolutions(step), ...)``.
    Does nothing where JAX's backend is no CPU, and nothing to a function without convolutions.
    Numbers change by rounding alone, but where an image is not finite: up to three pixels beside
    those that it reaches may be NaN as well.

    Args:
      function: of arrays or pytrees of them, as is its result. What is no array goes by keyword,
        and is static.

    Works under ``jit``, ``vmap`` and ``grad``. Inside of ``jax.shard_map`` a function has to be
    wrapped itself.

    >>> def slope(kernel, image):
    ...     return jax.grad(lambda k: jax.lax.conv(image, k, (1, 1), "SAME").sum())(kernel)
    >>> kernel, image = jnp.ones((1, 1, 2, 2)), jnp.ones((1, 1, 3, 3))
    >>> float(fast_convolutions(slope)(kernel, image).sum()), float(slope(kernel, image).sum())
    (25.0, 25.0)
    """

    @wraps(function)
    def quick(*args: Any, **options: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*args, **options)
        traced = jax.make_jaxpr(partial(function, **options), return_shape=True)
        program, shapes = traced(*args)
        results = _evaluated(program, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return quick


def _evaluated(program: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """What the program makes of the arguments: its operations one by one, convolutions fast."""
    if not _has_slow_ones(program):
        return core.jaxpr_as_fun(program)(*args)
    known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    known |= dict(zip(program.jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for operation in program.eqns:
        with operation.ctx.manager:
            results = _applied(operation, [read(atom) for atom in operation.invars])
        known |= dict(zip(operation.outvars, results, strict=True))
    return [read(atom) for atom in program.jaxpr.outvars]


def _applied(operation: core.JaxprEqn, args: list[Any]) -> list[Any]:
    primitive, params = operation.primitive, operation.params
    if _is_slow(operation):
        return [_quick(*args, **params)]
    if primitive.name != "shard_map":  # its body knows axes that are not known outside of it
        params = {name: _with_inner_programs(value) for name, value in params.items()}
    results = primitive.bind(*args, **primitive.get_bind_params(params))
    return results if primitive.multiple_results else [results]


def _with_inner_programs(value: Any) -> Any:
    """A parameter of an operation, with the bodies of loops, branches and calls rewritten."""
    if isinstance(value, tuple):
        inner = [_with_inner_programs(each) for each in value]
        return tuple(inner) if any(a is not b for a, b in zip(inner, value, strict=True)) else value
    if not isinstance(value, core.ClosedJaxpr | core.Jaxpr) or not _has_slow_ones(value):
        return value
    if isinstance(value, core.ClosedJaxpr):
        return jax.make_jaxpr(lambda *args: _evaluated(value, args))(*value.in_avals)
    if value.constvars:
        return value
    inner = _with_inner_programs(core.ClosedJaxpr(value, ()))  # as `jax.checkpoint` has it
    return value if inner.consts else inner.jaxpr


def _has_slow_ones(program: Any) -> bool:
    return any(
        _is_slow(operation) or any(map(_has_slow_ones, core.jaxprs_in_params(operation.params)))
        for operation in program.eqns
    )


def _is_slow(operation: core.JaxprEqn) -> bool:
    """Whether it is a convolution in a form for which there is a faster one."""
    if operation.primitive is not CONVOLUTION or operation.params["batch_group_count"] != 1:
        return False
    shapes: list[Any] = [each.aval for each in operation.invars]
    images, kernel = shapes
    order, groups = (operation.params[k] for k in ("dimension_numbers", "feature_group_count"))
    channels = kernel.shape[order.rhs_spec[1]]
    if order != _fast_order(len(order.lhs_spec)) or _apart(groups, channels):
        return True
    return not Form.of(images, kernel, operation.params).is_plain


def _apart(groups: int, channels: int) -> bool:
    return 1 < groups <= GROUPS_MOST and channels >= CHANNELS_LEAST


def _fast_order(axes: int) -> jax.lax.ConvDimensionNumbers:
    """Images and results with channels last; kernels with inputs and outputs last."""
    inner = range(1, axes - 1)
    images, kernel = (0, axes - 1, *inner), (axes - 1, axes - 2, *range(axes - 2))
    return jax.lax.ConvDimensionNumbers(images, kernel, images)


def _quick(
    images: Array,
    kernel: Array,
    *,
    dimension_numbers: Any,
    feature_group_count: int,
    **params: Any,
) -> Array:
    """The convolution of transposed arrays, of each group by itself, transposed back."""
    given, fast = dimension_numbers, _fast_order(images.ndim)
    images = images.transpose(_moves(given.lhs_spec, fast.lhs_spec))
    kernel = kernel.transpose(_moves(given.rhs_spec, fast.rhs_spec))
    apart = _apart(feature_group_count, kernel.shape[-2])
    number = feature_group_count if apart else 1
    params |= dict(dimension_numbers=fast, feature_group_count=feature_group_count // number)
    results = [
        _in_best_form(some_images, some_kernels, dict(params))
        for some_images, some_kernels in zip(
            jnp.split(images, number, axis=-1), jnp.split(kernel, number, axis=-1), strict=True
        )
    ]
    return jnp.concatenate(results, axis=-1).transpose(_moves(fast.out_spec, given.out_spec))


class Form(NamedTuple):
    """How a convolution in the fast order is computed best.

    With ``pad_first`` the images are padded by an operation of its own. ``at_once`` neighbouring
    pixels of a row come as the channels of one, of the ``width`` pixels asked for. ``spread`` has
    zeros between the rows of images and kernel.
    """

    width: int = 0
    pad_first: bool = False
    at_once: int = 1
    spread: bool = False

    @property
    def is_plain(self) -> bool:
        return self == Form(self.width)

    @classmethod
    def of(cls, images: Any, kernel: Any, params: dict[str, Any]) -> "Form":
        known = all(isinstance(side, int) for side in images.shape + kernel.shape)
        wide_kernel = set(params["rhs_dilation"]) != {1}
        if images.ndim != 4 or not known or wide_kernel or params["feature_group_count"] != 1:
            return cls()
        height, across, inputs, outputs = kernel.shape
        rows, columns = _padded(images, params)
        if 1 < math.prod(images.shape[1:3]) < height * across <= rows * columns:
            return cls(pad_first=True)
        width = (columns - across) // params["window_strides"][1] + 1
        if set(params["lhs_dilation"]) != {1} or width < 2 or height * across == 1:
            return cls()
        if max(inputs, outputs) <= CHANNELS_FEW:
            small = max(height, across) <= KERNEL_SMALL
            return cls(width, at_once=_pixels_at_once(inputs, outputs)) if small else cls()
        large = images.size * images.dtype.itemsize > IMAGES_LARGE and inputs >= CHANNELS_FEW
        bare = not any(map(any, params["padding"]))
        slow = LIBRARY_IS_SERIAL and (bare or cpu_threads() > 1)
        return cls(width, spread=slow and large)


def _pixels_at_once(inputs: int, outputs: int) -> int:
    if inputs <= 4 and not (LIBRARY_IS_SERIAL and cpu_threads() > THREADS_FEW):
        return 4
    return 2 if 2 * outputs <= CHANNELS_FEW else 1


def _padded(images: Any, params: dict[str, Any]) -> list[int]:
    """The height and width of images that are padded, and spread by ``lhs_dilation``."""
    spread = zip(images.shape[1:3], params["padding"], params["lhs_dilation"], strict=True)
    return [(side - 1) * dilation + 1 + sum(ends) for side, ends, dilation in spread]


def _in_best_form(images: Array, kernel: Array, params: dict[str, Any]) -> Array:
    form = Form.of(images, kernel, params)
    strides, padding = params["window_strides"], params["padding"]
    if form.pad_first:
        spread = zip(padding, params["lhs_dilation"], strict=True)
        zeros = [(0, 0, 0), *((*ends, dilation - 1) for ends, dilation in spread), (0, 0, 0)]
        images = jax.lax.pad(images, jnp.zeros((), images.dtype), zeros)
        params |= dict(padding=((0, 0), (0, 0)), lhs_dilation=(1, 1))
        return _in_best_form(jax.lax.optimization_barrier(images), kernel, params)
    if form.spread:
        (top, bottom), columns = padding
        params |= dict(
            window_strides=(2 * strides[0], strides[1]),
            padding=((2 * top, 2 * bottom), columns),
            lhs_dilation=(2, 1),
            rhs_dilation=(2, 1),
        )
    if form.at_once > 1:
        return _some_at_once(images, kernel, params, form)
    return CONVOLUTION.bind(images, kernel, **params)


def _some_at_once(images: Array, kernel: Array, params: dict[str, Any], form: Form) -> Array:
    (down, stride), (rows, (left, right)) = params["window_strides"], params["padding"]
    # The kernel of each of these pixels, between columns of zeros in place of its neighbours'.
    ends = [(b * stride, (form.at_once - 1 - b) * stride) for b in range(form.at_once)]
    moved = [jnp.pad(kernel, ((0, 0), end, (0, 0), (0, 0))) for end in ends]
    missing = -form.width % form.at_once * stride
    params |= dict(
        window_strides=(down, form.at_once * stride), padding=(rows, (left, right + missing))
    )
    found = CONVOLUTION.bind(images, jnp.concatenate(moved, axis=-1), **params)
    return found.reshape(*found.shape[:2], -1, kernel.shape[-1])[:, :, : form.width]


def _moves(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """The permutation that takes axes at the places ``before`` to the places ``after``."""
    return [old for _, old in sorted(zip(after, before, strict=True))]
