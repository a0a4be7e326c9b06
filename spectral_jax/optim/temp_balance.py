"""Layer-wise learning rates and weight decay, steered by the tails of the weights."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from spectral_jax import weights as weights_of
from spectral_jax._choices import check_choice
from spectral_jax._options import check_count, count
from spectral_jax._transforms.hyperparameters import (
    Strength,
    check_strength,
    injectable,
    strength_at,
)
from spectral_jax._transforms.leaves import changed, floats, refuse_codes
from spectral_jax._transforms.members import where_needed
from spectral_jax.linalg.arguments import check_key
from spectral_jax.optim.alphas import METRICS, Metric
from spectral_jax.optim.assignment import ASSIGNMENTS, Assignment
from spectral_jax.optim.ownership import owners

Tuned = Literal["all", "inner", "not_last"]


class TempBalanceState(NamedTuple):
    """The state of `temp_balance` and `alpha_decay`.

    step: updates done.
    alphas: the tail exponent of each tuned matrix at the last measurement; NaN before the first,
      and where the metric cannot decide.
    scales: what the update of each is multiplied by; 1 where the exponent is NaN.

    Names are those of ``weights.plan``: ``"layers/0/kernel"``, ``"c_attn:q"``.
    """

    step: Int[Array, ""]
    alphas: dict[str, Float[Array, ""]]
    scales: dict[str, Float[Array, ""]]


_LEVELS = ("low", "high", "tau", "s_min", "s_max")
_MAPS = tuple(ASSIGNMENTS.values())


@injectable(*_LEVELS, options_of=_MAPS)
def temp_balance(
    assignment: str | Assignment = "tb_sigmoid",
    *,
    refresh_every: int,
    metric: str | Metric = "farms",
    tuned: Tuned = "all",
    layout: Sequence[weights_of.Block] | None = None,
    min_eigenvalues: int = 50,
    shuffle_key: PRNGKeyArray | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Multiply each layer's update by a scale that follows from the tail exponents of all layers.

    A heavy tail, which is a small exponent alpha, is taken for a well trained layer and slows it
    down. Put it last in ``optax.chain``: it then multiplies the learning rate, whatever comes
    before (momentum, Adam, decoupled decay). A kernel's bias, and the norm that belongs to it, take
    its scale; all other leaves keep scale 1, and every update its dtype.

    Args:
      assignment: a name in ``ASSIGNMENTS`` or a function ``alphas -> scales``. The ``options`` of a
        name (``low``, ``high``, ``tau``) may be schedules and are read at each measurement.
        TempBalance's ``"linear"`` always uses its whole range of scales: as long as layers differ
        by chance only, early in training, it makes learning rates out of noise.
      refresh_every: updates between measurements, the first at step 0. The papers measure once per
        epoch: pass the steps per epoch.
      metric: a name in ``METRICS`` or ``matrix -> alpha``; equal shapes are measured in one batch.
      tuned: ``all`` kernels, the ``inner`` ones (neither first nor last), or all but the last
        (``not_last``).
      layout: the order of the model's kernels and the norm behind each, from the model or from
        ``weights.layout_of``; ``tuned`` other than ``"all"`` needs it. Without one, norms are
        matched to kernels by name (``conv1`` and ``bn1``, ``stem`` and ``stem_norm``).
      min_eigenvalues: kernels with fewer singular values keep scale 1 (TempBalance's 50).
      shuffle_key: gives the alphas to the layers in this random order, the same at every
        measurement: a control with the same set of scales, but each at a random layer.

    Works under ``jit``, ``scan`` and ``vmap``; the state is a pytree of scalars.
    Raises ``ValueError`` for an unknown name, a missing ``layout`` or ``params``, for codes among
    the weights (float8 with a scale beside it: mask them), or if no kernel is left to tune.
    Source: TempBalance, arXiv 2312.00359; FARMS, arXiv 2506.06280.

    >>> params = {"a": {"kernel": jnp.ones((64, 64))}, "b": {"kernel": 2 * jnp.ones((64, 64))}}
    >>> tx = temp_balance("linear", metric=jnp.max, refresh_every=100, low=0.5, high=1.5)
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> [float(layer["kernel"][0, 0]) for layer in updates.values()]
    [0.5, 3.0]
    """
    _check(refresh_every, tuned, layout)
    count("min_eigenvalues", min_eigenvalues, least=0)
    if shuffle_key is not None:
        check_key(shuffle_key, draws="shuffle_key draws an order")
    control = _Control(
        assign=_assignment(assignment, options),
        metric=_named(metric, METRICS, "metric")() if isinstance(metric, str) else _one(metric),
        refresh_every=refresh_every,
        tuned=tuned,
        layout=None if layout is None else tuple(layout),
        min_eigenvalues=min_eigenvalues,
        shuffle_key=shuffle_key,
    )

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError("params are measured: call update(updates, state, params)")
        params = jax.lax.stop_gradient(params)
        state = control.refreshed(state, params)
        scales = control.per_leaf(params, state.scales)
        return jax.tree.map(_scaled, updates, scales), state._replace(step=state.step + 1)

    return optax.GradientTransformationExtraArgs(control.init, update)


@injectable("weight_decay", *_LEVELS, options_of=temp_balance)
def alpha_decay(
    weight_decay: Strength, assignment: str | Assignment = "tb_sigmoid", **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Add ``weight_decay * scale * w`` to each update: the heavier the tail, the weaker the decay.

    It takes the place of ``optax.add_decayed_weights``, before the learning rate. Scales and
    options are those of `temp_balance`; AlphaDecay itself has ``metric="hill"``, the linear map
    from ``low=2/3`` to ``high=3`` or 5, and ``refresh_every=500``. Leaves that belong to no tuned
    kernel decay with scale 1. ``weight_decay`` may be a function of the number of updates done.
    Source: AlphaDecay, arXiv 2506.14562.

    >>> params = {"a": {"kernel": jnp.ones((64, 64))}, "b": {"kernel": 2 * jnp.ones((64, 64))}}
    >>> tx = alpha_decay(0.1, "linear", metric=jnp.max, refresh_every=500, low=0.5, high=3.0)
    >>> nothing = jax.tree.map(jnp.zeros_like, params)
    >>> updates, _ = tx.update(nothing, tx.init(params), params)
    >>> [round(float(layer["kernel"][0, 0]), 3) for layer in updates.values()]
    [0.05, 0.6]
    """
    check_strength("weight_decay", weight_decay)
    balance = temp_balance(assignment, **options)

    def update(updates, state, params=None, **extra):
        rate = jnp.asarray(strength_at(weight_decay, state.step))
        decay = jax.tree.map(lambda p: rate.astype(p.dtype) * p, floats(params))
        decay, state = balance.update(decay, state, params, **extra)
        return changed(lambda u, p, d: u + d, updates, params, decay), state

    return optax.GradientTransformationExtraArgs(balance.init, update)


class _Control(NamedTuple):
    """Which kernels to measure and when, and the scales that follow: `temp_balance`'s options."""

    assign: Callable[[Array, Array], Array]
    metric: Metric
    refresh_every: int
    tuned: Tuned
    layout: tuple[weights_of.Block, ...] | None
    min_eigenvalues: int
    shuffle_key: PRNGKeyArray | None

    def init(self, params) -> TempBalanceState:
        refuse_codes(params)
        matrices = self.matrices(params)
        alphas = {name: jnp.full((), jnp.nan, m.dtype) for name, m in matrices.items()}
        ones = jax.tree.map(jnp.ones_like, alphas)
        return TempBalanceState(jnp.zeros((), jnp.int32), alphas, ones)

    def views(self, leaves: Mapping[str, Array]) -> list[weights_of.View]:
        """The kernels to tune. Not embeddings, whose rows are words and not the inputs of a layer,
        nor depthwise convolutions, which are one small filter for each channel."""
        found = [v for v in _plan(leaves) if v.kind not in ("embedding", "depthwise")]
        if self.layout is not None:
            order = [block.path for block in self.layout if block.path is not None]
            known = {name for v in found for name in (v.name, *v.sources)}
            if known.isdisjoint(order):  # of masked parameters some may be missing, but not all
                raise ValueError(
                    f"layout: no kernel at {order[0]!r}, nor at its other paths; the kernels are "
                    f"{', '.join(sorted(known))}: pass the layout of these parameters"
                )
            untuned = {"all": [], "inner": [order[0], order[-1]], "not_last": order[-1:]}[
                self.tuned
            ]
            found = [v for v in found if not {v.name, *v.sources} & set(untuned)]
        large = [v for v in found if _spectrum_size(v.shape) >= self.min_eigenvalues]
        if not large:
            raise ValueError(
                f"params: no kernel to tune has min_eigenvalues={self.min_eigenvalues} singular "
                "values; lower it"
            )
        return large

    def matrices(self, params) -> dict[str, Array]:
        """The tuned kernels by name."""
        views = self.views(weights_of.named_leaves(params))  # by dtypes as they are stored
        leaves = weights_of.named_leaves(floats(params))
        return {v.name: v.read(*(leaves[s] for s in v.sources)) for v in views}

    def refreshed(self, state: TempBalanceState, params) -> TempBalanceState:
        due = state.step % self.refresh_every == 0

        def measure():
            alphas = self.measured(params)
            scales = self.assign(jnp.stack(list(alphas.values())), state.step)
            return alphas, dict(zip(alphas, scales, strict=True))

        kept = where_needed(due, measure, (state.alphas, state.scales))
        return TempBalanceState(state.step, *kept)

    def measured(self, params) -> dict[str, Float[Array, ""]]:
        """The metric of every tuned kernel, one batch per shape."""
        matrices = self.matrices(params)
        alphas = weights_of.map_by_shape(matrices, self.metric)
        values = jnp.stack(list(alphas.values()))
        if self.shuffle_key is not None:
            values = jax.random.permutation(self.shuffle_key, values)
        return dict(zip(matrices, values, strict=True))

    def per_leaf(self, params, scales: Mapping[str, Array]):
        """For each leaf the scale of the kernel that it belongs to, None if there is none."""
        leaves = weights_of.named_leaves(params)
        views = _plan(leaves)
        readers: dict[str, list[weights_of.View]] = {}
        for view in views:
            for source in view.sources:
                readers.setdefault(source, []).append(view)
        owner, one = owners(leaves, readers, self.layout), jnp.ones(())

        def scale(name):
            own = readers.get(owner.get(name, ""), [])
            if not any(v.name in scales for v in own):
                return None
            return _spread([(v.at, scales.get(v.name, one)) for v in own], leaves[name].shape)

        trained = floats(params)
        return jax.tree.map_with_path(lambda path, _: scale(weights_of.leaf_name(path)), trained)


def _spread(scales: Sequence[tuple[weights_of.At, Array]], shape: tuple[int, ...]) -> Array:
    """The scale of a leaf that holds several matrices, given ``(where, scale)`` of each.

    Of a stack of layers, an array with a scale for each along the axes that count layers. Matrices
    that are fused in one layer, such as queries, keys and values, share their mean.
    """
    layers: dict[weights_of.At, list[Array]] = {}
    for at, value in sorted(scales, key=lambda pair: sorted(pair[0])):
        layers.setdefault(at, []).append(value)
    means = jnp.stack([sum(values) / len(values) for values in layers.values()])
    axes = {axis for axis, _ in next(iter(layers))}
    along = [n if axis in axes else 1 for axis, n in enumerate(shape)]
    return means.reshape(along) if axes and prod(along) == len(means) else means.mean()


def _plan(leaves: Mapping[str, Array]) -> tuple[weights_of.View, ...]:
    return weights_of.plan(leaves).views


def _scaled(update: Any, scale: Array | None) -> Any:
    return update if scale is None else (update * scale).astype(update.dtype)


def _spectrum_size(shape: tuple[int, ...]) -> int:
    return prod(shape[:-2]) * min(shape[-2:])


def _assignment(
    assignment: str | Assignment, options: dict[str, Any]
) -> Callable[[Array, Array], Array]:
    """``(alphas, step) -> scales``."""
    if not isinstance(assignment, str):
        if options:
            raise ValueError(f"{sorted(options)} go to a named assignment: bind them to yours")
        _check_callable("assignment", assignment, ASSIGNMENTS)
        return lambda alphas, step: _as_many(assignment(alphas), alphas)
    chosen = _named(assignment, ASSIGNMENTS, "assignment")
    for name, value in options.items():
        check_strength(name, value)

    def assign(alphas, step):
        levels = {name: strength_at(value, step) for name, value in options.items()}
        return chosen(alphas, **levels)

    assign(jnp.ones(1), 0)  # so that a bad option is refused here, not in the training step
    return assign


def _as_many(scales: Array, alphas: Array) -> Array:
    if jnp.shape(scales) != alphas.shape:
        raise ValueError(
            f"assignment gives scales of shape {jnp.shape(scales)} for alphas of shape "
            f"{alphas.shape}: return one for each"
        )
    return scales


def _one(metric: Metric) -> Metric:
    """The metric, whose result must be one number: several would be taken for those of layers."""
    _check_callable("metric", metric, METRICS)

    def checked(matrix: Array) -> Array:
        alpha = metric(matrix)
        if jnp.ndim(alpha):
            raise ValueError(
                f"metric gives shape {jnp.shape(alpha)} for a matrix of shape {matrix.shape}: "
                "return one number"
            )
        return alpha

    return checked


def _check_callable(argument: str, given: Any, registry: Mapping[str, Callable]) -> None:
    if not callable(given):
        raise ValueError(f"{argument}={given!r}: choose one of {sorted(registry)} or a function")


def _named(name: str, registry: Mapping[str, Callable], argument: str) -> Callable:
    if name not in registry:
        near = difflib.get_close_matches(name, registry, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {sorted(registry)}"
        raise ValueError(f"{argument}={name!r} is unknown: {hint}")
    return registry[name]


def _check(refresh_every: int, tuned: str, layout: Any) -> None:
    check_count(refresh_every=refresh_every)
    check_choice(get_args(Tuned), tuned=tuned)
    if not isinstance(layout, Sequence | None):
        raise ValueError(
            f"layout={layout!r}: pass a sequence of blocks, as weights.layout_of gives it"
        )
    if tuned != "all" and layout is None:
        raise ValueError(
            f"tuned={tuned!r} needs layout=weights.layout_of(function, params, x), or that of the "
            "model: names do not tell first from last"
        )
    if layout is not None and not any(getattr(block, "path", None) for block in layout):
        raise ValueError(
            "layout has no block with a kernel: pass weights.layout_of(function, params, x)"
        )
