"""Pieces for training a posterior: noise that is cheap, a loss that is bounded, where to start.

A posterior is trained like a network. Its parameters are a `Gaussian`; its loss is the bound
itself, `pac_bayes_bound` of the mean loss of a batch and of `gaussian_kl` to the prior.
docs/bounds.md has the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number, count
from spectral_jax.capacity.gaussians import Basis, Gaussian, Tree, draw, gaussian
from spectral_jax.linalg.precision import working

Method = Literal["dziugaite-roy", "M1", "M2", "M3", "M4"]


def local_dense(
    key: PRNGKeyArray,
    inputs: Float[Array, "*batch i"],
    kernel: Gaussian,
    bias: Gaussian | None = None,
) -> Float[Array, "*batch o"]:
    """``x W + b`` with weights drawn *anew for every example*, by local reparametrisation.

    Given ``x``, the outputs of a dense layer whose weights are independent Gaussians are
    independent Gaussians of mean ``x M + m`` and variance ``x^2 S^2 + s^2``; they are drawn instead
    of the weights. That costs one matrix product more than the layer itself, and gradients have
    less noise than with one draw for a whole batch. For a network of dense layers the outputs for
    each example have exactly the law of the random predictor, and those of different examples are
    independent, which is what the correction in `certify` counts. Not so where one weight is used
    at several positions, as in a convolution: there is `local_conv`.

    Args:
      inputs: ``[..., i]``, every row an example; of a size whose square the dtype holds.
      kernel: of mean ``[i, o]`` and ``log_scale`` ``[i, o]`` or one number.
      bias: of mean ``[o]``, or none.

    Works under ``jit``, ``vmap`` and ``grad``. Half precision is computed in float32. Raises
    ``ValueError`` for shapes that do not fit and complex numbers.
    Source: arXiv 1506.02557.

    >>> kernel = Gaussian(jnp.ones((2, 3)), jnp.array(-20.0))
    >>> local_dense(jax.random.key(0), jnp.array([[1.0, 2.0]]), kernel).round(3).tolist()
    [[3.0, 3.0, 3.0]]
    """
    inputs, means = working(inputs, "inputs"), working(kernel.mean, "kernel.mean")
    if means.ndim != 2 or inputs.ndim == 0 or inputs.shape[-1] != means.shape[0]:
        raise ValueError(
            f"inputs {inputs.shape} and kernel {means.shape}: pass [..., i] and [i, o]"
        )
    _check_bias(bias, means)
    mean = inputs @ means
    variance = inputs**2 @ jnp.broadcast_to(_variances(kernel), means.shape)
    if bias is not None:
        mean, variance = mean + working(bias.mean, "bias.mean"), variance + _variances(bias)
    # The root of 0 has no slope: where there is no noise, none is added.
    noisy = variance > 0
    spread = jnp.where(noisy, jnp.sqrt(jnp.where(noisy, variance, 1)), 0)
    return mean + spread * jax.random.normal(key, mean.shape, mean.dtype)


def local_conv(
    key: PRNGKeyArray,
    inputs: Float[Array, "b h w i"],
    kernel: Gaussian,
    bias: Gaussian | None = None,
) -> Float[Array, "b y x o"]:
    """A convolution whose weights are drawn *anew for every example*: `local_dense` for images.

    One weight is used at every position, so outputs at two positions are not independent and cannot
    be drawn in place of the weights. Here each example draws a kernel of its own, by which its
    patches are multiplied: small kernels are few numbers, and batched products of small matrices
    are faster in a compiled loop on a CPU than a convolution is. The outputs for each example have
    exactly the law of the random predictor, and those of different examples are independent.

    Args:
      inputs: ``[b, h, w, i]``, each an example.
      kernel: of mean ``[y, x, i, o]`` and ``log_scale`` alike or one number; not flipped, stride 1,
        no padding (pad the inputs).
      bias: of mean ``[o]``, or none.

    When not to use it: large kernels or many channels, of which every example would draw its own;
    there `risk_draws` draws once for a batch. Works under ``jit``, ``vmap`` and ``grad``. Half
    precision is computed in float32. Raises ``ValueError`` for shapes that do not fit and complex
    numbers.

    >>> kernel = Gaussian(jnp.ones((2, 2, 1, 1)), jnp.array(-20.0))
    >>> local_conv(jax.random.key(0), jnp.ones((1, 3, 3, 1)), kernel).round(3)[0, :, :, 0].tolist()
    [[4.0, 4.0], [4.0, 4.0]]
    """
    inputs, means = working(inputs, "inputs"), working(kernel.mean, "kernel.mean")
    fits = means.ndim == 4 and inputs.ndim == 4 and inputs.shape[-1] == means.shape[2]
    if not fits or any(a < b for a, b in zip(inputs.shape[1:3], means.shape[:2], strict=True)):
        raise ValueError(
            f"inputs {inputs.shape} and kernel {means.shape}: pass [b, h, w, i] and, no larger "
            "than the images, [y, x, i, o]"
        )
    _check_bias(bias, means)
    of_kernel, of_bias = jax.random.split(key)
    patches, images = _patches(inputs, *means.shape[:2]), len(inputs)
    # Sizes in full: of no images, none can be left to be found.
    places, seen = math.prod(patches.shape[1:3]), math.prod(means.shape[:3])
    weights = _drawn_each(of_kernel, kernel, images).reshape(images, seen, means.shape[-1])
    flat = patches.reshape(images, places, seen)
    outputs = jax.lax.batch_matmul(flat, weights, precision=jax.lax.Precision.HIGHEST)
    outputs = outputs.reshape(*patches.shape[:3], means.shape[-1])
    if bias is None:
        return outputs
    return outputs + _drawn_each(of_bias, bias, images)[:, None, None]


def _patches(images: Array, height: int, width: int) -> Array:
    """``[b, y, x, height, width, i]``: what a kernel of this size sees at every place."""
    down, across = images.shape[1] - height + 1, images.shape[2] - width + 1
    # First the rows, then the columns of all of them: a sum of slices instead of a product.
    rows = jnp.stack([images[:, y : y + down] for y in range(height)], axis=3)
    return jnp.stack([rows[:, :, x : x + across] for x in range(width)], axis=4)


def _drawn_each(key: PRNGKeyArray, weights: Gaussian, count: int) -> Array:
    """So many independent draws of one array of weights, ``[count, ...]``."""
    means = working(weights.mean, "mean")
    noise = jax.random.normal(key, (count, *means.shape), means.dtype)
    scales = jnp.exp(working(weights.log_scale, "log_scale"))
    return means + noise * jnp.broadcast_to(scales, means.shape)


def _check_bias(bias: Gaussian | None, kernel: Array) -> None:
    """One that broadcasts is refused, too: a weight of several outputs ties their noise."""
    shape = None if bias is None else jnp.shape(bias.mean)
    if shape not in (None, kernel.shape[-1:]):
        raise ValueError(f"bias {shape} and kernel {kernel.shape}: pass a bias [o], one an output")


@partial(jax.jit, static_argnames=("loss", "draws", "batch"))
def risk_draws(
    key: PRNGKeyArray,
    posterior: Gaussian,
    loss: Callable[[Tree, Tree], Array],
    data: Tree,
    *,
    draws: int,
    batch: int,
    basis: Basis | None = None,
) -> Float[Array, " draws"]:
    """What `certify` counts, for any model: one number for each draw of the weights.

    Each is the mean loss of weights drawn anew on ``batch`` examples drawn anew, with replacement;
    so all are independent, and their expectation is the risk on ``data``. Few examples and many
    draws are the better use of time: the correction falls with the number of draws alone. For
    networks of dense layers `local_dense` costs far less.

    Args:
      loss: ``loss(weights, examples)`` gives one number in [0, 1] for each example; static, so a
        function at the top of a module (a fresh lambda compiles afresh).
      data: a pytree whose leaves have a leading axis of ``n`` examples.
      basis: of the posterior.

    One draw after another, in one compiled program; works under ``jit`` and ``vmap``. Raises
    ``ValueError`` unless the loss has the shape ``[batch]``, for data without a common leading axis
    and for counts below 1.

    >>> def above(weights, x):
    ...     return weights > x
    >>> risk_draws(jax.random.key(0), gaussian(jnp.array(1.0), 0.1), above, jnp.array([0.0, 9.0]),
    ...            draws=3, batch=1).shape
    (3,)
    """
    count("draws", draws)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(f"data has leaves of lengths {sorted(sizes)}: pass arrays [n, ...] of one")
    ((examples,),) = sizes

    def one(key):
        of_weights, of_rows = jax.random.split(key)
        rows = jax.random.randint(of_rows, (count("batch", batch),), 0, examples)
        weights = draw(of_weights, posterior, basis=basis)
        losses = working(loss(weights, jax.tree.map(lambda leaf: leaf[rows], data)), "loss")
        if losses.shape != (batch,):
            raise ValueError(f"loss gives {losses.shape}: return one number per example, [{batch}]")
        return jnp.mean(losses)

    return jax.lax.map(one, jax.random.split(key, draws))


def bounded_cross_entropy(
    logits: Float[Array, "*batch c"], labels: Int[Array, "*batch"], *, pmin: float = 1e-5
) -> Float[Array, "*batch"]:
    """``-log max(p, pmin) / log(1 / pmin)`` of the label's probability: a cross-entropy in [0, 1].

    PAC-Bayes bounds hold for losses in [0, 1]. The smaller ``pmin``, the less is clipped, and the
    flatter is the loss where networks are good.

    ``logits`` ``[..., c]``, integer ``labels`` ``[...]``. Works under ``jit``, ``vmap`` and
    ``grad`` (0 where clipped). NaN for a label that is no class. Half precision is computed in
    float32. Raises ``ValueError`` for ``pmin`` outside (0, 1), shapes that do not fit, labels that
    are no whole numbers and complex ones.
    Source: arXiv 2007.12911.

    >>> logits, labels = jnp.array([[0.0, 0.0], [99.0, 0.0]]), jnp.array([0, 1])
    >>> bounded_cross_entropy(logits, labels, pmin=0.25).tolist()
    [0.5, 1.0]
    """
    check_number("choose above 0 and below 1", lambda x: 0 < x < 1, pmin=pmin)
    logits, labels = working(logits, "logits"), jnp.asarray(labels)
    if logits.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"logits {logits.shape} and labels {labels.shape} of {labels.dtype}: pass [..., c] and "
            "classes [...]"
        )
    logs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logs, labels[..., None], axis=-1)[..., 0]
    chosen = jnp.where(labels >= 0, chosen, jnp.nan)  # -1 is no name of the last class
    return jnp.minimum(-chosen / math.log(1 / pmin), 1)


def starting_posterior(
    method: Method,
    weights: Tree,
    *,
    eigenvalues: Float[Array, " k"] | None = None,
    epsilon: float = math.exp(-6),
    floor: float = 1e-4,
) -> Gaussian:
    """Where the numerical bounds of arXiv 1703.11008 and 2110.14163 start their posteriors.

    Mean ``weights``, and standard deviations

    ``"dziugaite-roy"``
        ``2 |w|``;
    ``"M1"``
        ``sqrt(|w| / 10)``;
    ``"M2"``, ``"M3"``, ``"M4"``
        in a basis, ``sqrt((eigenvalues + epsilon) / 10)`` where there is an eigenvalue for every
        weight; else, in a `vector_basis`, ``sqrt(|eigenvalues| / 3000)`` along the vectors and
        ``sqrt(1 / 3000)`` beyond them. ``M2`` keeps the basis of the initial weights, ``M3``
        computes a new one every epoch, ``M4`` takes it from held-out examples.

    Args:
      epsilon: the variance of the isotropic prior.
      floor: the least standard deviation: the source's is 0 at biases that are 0, and its
        logarithm minus infinity.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for an unknown method and for
    ``eigenvalues`` that are missing.

    >>> start = starting_posterior("M1", {"b": jnp.zeros(1), "w": jnp.full(1, 0.1)})
    >>> jnp.exp(start.log_scale["w"]).round(3).tolist(), jnp.exp(start.log_scale["b"]).tolist()
    ([0.1], [0.0001])
    """
    check_choice(get_args(Method), method=method)
    check_number("choose above 0", lambda x: 0 < x < math.inf, floor=floor, epsilon=epsilon)
    if method == "dziugaite-roy":
        return gaussian(
            weights, jax.tree.map(lambda w: jnp.maximum(2 * jnp.abs(w), floor), weights)
        )
    if method == "M1":
        roots = jax.tree.map(lambda w: jnp.sqrt(jnp.abs(w) / 10), weights)
        return gaussian(weights, jax.tree.map(lambda root: jnp.maximum(root, floor), roots))
    if eigenvalues is None:
        raise ValueError(f"method={method!r} is diagonal in a basis: pass its eigenvalues=")
    values = working(eigenvalues, "eigenvalues")
    if len(values) == sum(leaf.size for leaf in jax.tree.leaves(weights)):
        return gaussian(weights, jnp.maximum(jnp.sqrt((values + epsilon) / 10), floor))
    along = jnp.maximum(jnp.sqrt(jnp.abs(values) / 3000), floor)
    return gaussian(weights, (along, jnp.asarray(1 / 3000, values.dtype) ** 0.5))


def _variances(weights: Gaussian) -> Array:
    return jnp.exp(2 * working(weights.log_scale, "log_scale"))
