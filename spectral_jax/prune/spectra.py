"""Prune the singular values below the edge of the noise, layer by layer, while training goes on.

    policy = Policy(keep_below=0.45, gate=0.05)
    pruned, report = prune_spectra(params, {"layers/*": policy})     # kernels keep their shapes

The entries of a kernel at initialisation are independent noise, whose singular values follow the
Marchenko-Pastur law up to its edge; training adds larger ones, and leaves most of the noise. The
law is fitted to each layer's spectrum, and what lies up to the edge is removed, or some of it.

`svd_prune` does so inside the compiled step. `spectral_jax.prune.factorize` makes a smaller network
of the result, between two compiled phases. Source: arXiv 2303.08986.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from spectral_jax import rmt
from spectral_jax import weights as weights_of
from spectral_jax._options import check_count
from spectral_jax._transforms.hyperparameters import injectable
from spectral_jax._transforms.leaves import changed, floats, moved
from spectral_jax._transforms.members import where_needed
from spectral_jax.linalg.arguments import check_key
from spectral_jax.linalg.lapack import each
from spectral_jax.linalg.precision import unit_of
from spectral_jax.prune import surgery
from spectral_jax.prune.policies import Policy, policy_of
from spectral_jax.prune.surgery import Spectrum

Policies: TypeAlias = Policy | Mapping[str, Policy]
Fit: TypeAlias = Callable[[Array, tuple[int, int]], Any]
"""``(eigenvalues, shape) -> fit``: of the eigenvalues ``s^2 / max(m, n)``, ascending, a result with
``variance`` (of an entry of the noise), ``edge``, ``spikes`` and ``ks``, as `rmt.MPFit` has."""


class PruneStatus(IntEnum):
    """What became of a layer; it is as it was unless it is ``PRUNED``."""

    PRUNED = 0
    NO_FIT = 1
    """Too few singular values for a fit, or weights that are not finite."""
    GATE_CLOSED = 2
    """The bulk is too far from the Marchenko-Pastur law."""
    NO_NOISE = 3
    """Most singular values are 0 already and the policy keeps no noise: what is left is signal."""


class LayerReport(NamedTuple):
    """What was found in a layer, and what was done to it.

    sigma: standard deviation of an entry of the noise.
    edge: the largest singular value that noise alone would give.
    spikes: number of singular values above the edge.
    ks: Kolmogorov-Smirnov distance between the spectrum up to the edge and the Marchenko-Pastur
      law, from 0 to 1.
    rank: number of singular values that are left; all of them where nothing was done.
    status: a `PruneStatus`.
    """

    sigma: Float[Array, ""]
    edge: Float[Array, ""]
    spikes: Int[Array, ""]
    ks: Float[Array, ""]
    rank: Int[Array, ""]
    status: Int[Array, ""]


class Pruning(NamedTuple):
    """The result of `prune_spectra`.

    params: the parameters, pruned kernels in their old shapes and dtypes.
    report: a `LayerReport` for each layer that a policy names.
    """

    params: PyTree
    report: dict[str, LayerReport]


class SVDPruneState(NamedTuple):
    """The state of `svd_prune`.

    step: updates done.
    report: by layer, what the last pruning found; before the first, NaN and, for integers, 0.
    """

    step: Int[Array, ""]
    report: dict[str, LayerReport]


def prune_spectra(
    params: PyTree,
    policies: Policies,
    *,
    fit: Fit | None = None,
    epoch: int | Float[Array, ""] = 0,
    key: PRNGKeyArray | None = None,
) -> Pruning:
    """Prune the spectrum of every dense and convolution kernel that a policy names.

    A convolution ``[h, w, i, o]`` is the matrix ``[h w i, o]``; the factors of a split layer count
    as two layers, and a leaf that stacks several as so many (``"layers/fc/kernel:3"``). Layers of
    equal shape and policy are computed in one batch, in float32 at least; every leaf keeps its
    dtype.

    Args:
      policies: one `Policy` for all layers, or one for each glob of their names (``"layers/*"``),
        of which the first that matches counts; a layer that none matches is left alone.
      fit: estimates the edge (`Fit`); by default `spectral_jax.rmt.fit_marchenko_pastur`.
      epoch: the argument for a ``keep_below`` that is a function of the epoch; may be traced.
      key: needed for ``edit="random"``.

    A layer with NaN or inf, or with too few values to fit, stays as it is: see its ``status``.
    Quantised kernels (integers, and float8 with a scale beside it) are codes and no weights: they
    stay as they are, and are not in the report.
    Holds under ``jit`` and ``vmap``. Costs a symmetric eigendecomposition per layer, of its shorter
    side.
    Raises ``ValueError`` for a glob that names no layer, or a missing ``key``.
    """
    return _pruned(params, params, policies, fit=fit, epoch=epoch, key=key)


def _pruned(
    stored: PyTree,
    params: PyTree,
    policies: Policies,
    *,
    fit: Fit | None = None,
    epoch: Any = 0,
    key: PRNGKeyArray | None = None,
) -> Pruning:
    """Do the work of `prune_spectra` on parameters that may be in other dtypes than as ``stored``.

    What is a kernel goes by the stored ones: float8 with a scale is none, but is one as float32.
    """
    kernels = weights_of.places(
        weights_of.named_leaves(stored), kinds=("dense", "conv", "low_rank")
    )
    leaves = weights_of.named_leaves(floats(params))
    chosen = policy_of(kernels, policies)
    if any(policy.edit == "random" for policy in chosen.values()):
        check_key(key, draws="edit='random' draws")
    key = jax.random.key(0) if key is None else key
    layers = {name: weights_of.entry(leaves[leaf], at) for name, (leaf, at) in kernels.items()}
    matrices = {
        name: (_matrix(layers[name]), jax.random.fold_in(key, place))
        for place, name in enumerate(chosen)
    }
    pruned: dict[str, tuple[Array, LayerReport]] = {}
    for policy in dict.fromkeys(chosen.values()):
        its_own = {name: pair for name, pair in matrices.items() if chosen[name] == policy}
        one = partial(_prune_matrix, policy, fit, policy.keep_at(epoch))
        pruned |= weights_of.map_by_shape(its_own, one)
    for name, (matrix, _) in pruned.items():
        leaf, at = kernels[name]
        layer = matrix.reshape(layers[name].shape)
        leaves[leaf] = weights_of.with_entry(leaves[leaf], at, layer)

    touched = {kernels[name].leaf for name in chosen}

    def after(path, leaf):
        name = weights_of.leaf_name(path)
        return leaves[name].astype(leaf.dtype) if name in touched else leaf

    params = jax.tree.map_with_path(after, params)
    return Pruning(params, {name: pruned[name][1] for name in chosen})


@injectable()
def svd_prune(
    policies: Policies,
    *,
    steps_per_epoch: int,
    every: int,
    fit: Fit | None = None,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Prune as `prune_spectra` does at the end of every ``every``-th epoch, in the compiled step.

    Put it last in ``optax.chain``: it replaces the update by the one that leads to the pruned
    weights. Momentum goes on as if nothing had happened, and what was removed may grow again until
    the next pruning.

    Args:
      policies, fit, key: as in `prune_spectra`. A ``keep_below`` that is a function gets the
        number of epochs done, a fraction: steps over ``steps_per_epoch``.

    The state holds the last report: ``opt_state[-1].report`` of a chain. Works under ``jit``,
    ``scan`` and ``vmap``.
    Raises ``ValueError`` as `prune_spectra` does, and for periods below 1 or missing ``params``.
    """
    check_count(steps_per_epoch=steps_per_epoch, every=every)
    prune = partial(_pruned, policies=policies, fit=fit)

    def init(params):
        shapes = jax.eval_shape(lambda p: prune(p, p, key=key).report, params)
        return SVDPruneState(jnp.zeros((), jnp.int32), jax.tree.map(_unknown, shapes))

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError("params are pruned: call update(updates, state, params)")
        step = state.step + 1
        due = step % (steps_per_epoch * every) == 0

        def event():
            draw = None if key is None else jax.random.fold_in(key, step)
            led = moved(params, updates)
            pruned, report = prune(params, led, epoch=step / steps_per_epoch, key=draw)
            return changed(lambda u, p, to: to - p, updates, params, pruned), report

        updates, report = where_needed(due, event, (updates, state.report))
        return updates, SVDPruneState(step, report)

    return optax.GradientTransformationExtraArgs(init, update)


def _prune_matrix(
    policy: Policy, fit: Fit | None, keep_below: Any, drawing: tuple[Array, PRNGKeyArray]
) -> tuple[Array, LayerReport]:
    w, key = drawing
    shape = (w.shape[0], w.shape[1])
    n = max(shape)
    # In a unit near the largest entry no square over- or underflows. A caller's own fit may go by
    # the size of eigenvalues, so it gets them as they are.
    unit = unit_of(w) if fit is None else jnp.ones((), w.dtype)
    spectral = _spectrum(w / unit)
    found = (fit or _fit_bulk)(spectral.values[::-1] ** 2 / n, shape)
    edge, sigma = jnp.sqrt(n * found.edge), jnp.sqrt(found.variance)
    status = _status(policy, spectral, found, keep_below)
    ready = status == PruneStatus.PRUNED
    cut = _Cut(edge, sigma, keep_below, key, unit)
    edited, rank = _EDITS[policy.edit](w / unit, spectral, cut, policy)
    rank = jnp.where(ready, rank, len(spectral.values)).astype(jnp.int32)
    spikes, ks = jnp.asarray(found.spikes, jnp.int32), jnp.asarray(found.ks, w.dtype)
    row = LayerReport(unit * sigma, unit * edge, spikes, ks, rank, status)
    return jnp.where(ready, unit * edited, w), row


@custom_vmap
def _spectrum(w: Array) -> Spectrum:
    return surgery.spectrum(w)


@_spectrum.def_vmap
def _spectra(axis_size: int, in_batched: list[bool], w: Array) -> tuple[Spectrum, Spectrum]:
    """One matrix after the other on a CPU, however many ``vmap``s there are.

    A batched LAPACK call may deadlock where several run at once, and here every group of layers
    makes one: see `spectral_jax.linalg.lapack`.
    """
    del axis_size, in_batched
    return _in_turn(w), Spectrum(True, True)  # type: ignore[arg-type]


@jax.jit
def _in_turn(stack: Array) -> Spectrum:
    return each(_spectrum, stack, split=False)


def _status(policy: Policy, spectral: Spectrum, found: Any, keep_below: Any) -> Int[Array, ""]:
    """The first reason that holds for leaving the layer alone, or ``PRUNED``."""
    squares = spectral.values**2
    zeros = jnp.sum(squares <= _floor(squares.dtype) * squares[0])
    # After a cut that kept no noise, a second fit would take the few values left for noise.
    few_left = (squares[0] > 0) & (2 * zeros > len(squares))
    cut_before = few_left & (jnp.asarray(keep_below) <= 0)
    fitted = jnp.isfinite(found.edge) & jnp.all(jnp.isfinite(squares))
    reasons = [cut_before, ~fitted, ~(found.ks <= policy.gate)]
    codes = [PruneStatus.NO_NOISE, PruneStatus.NO_FIT, PruneStatus.GATE_CLOSED]
    return jnp.select(reasons, [jnp.int32(code) for code in codes], jnp.int32(PruneStatus.PRUNED))


class _Cut(NamedTuple):
    """What the edits need to know of a layer, whose matrix they get divided by ``unit``.

    edge, noise: the edge and the standard deviation of the noise of the divided matrix.
    keep_below: the policy's, at this epoch.
    key: for the random edit.
    unit: a power of two near the largest entry, so that squares are of order 1.
    """

    edge: Array
    noise: Array
    keep_below: Any
    key: PRNGKeyArray
    unit: Array


def _truncate(w: Array, spectral: Spectrum, cut: _Cut, policy: Policy) -> tuple[Array, Array]:
    rank = _rank(spectral, cut, policy)
    kept = surgery.first(spectral.values, rank)
    return surgery.rescaled(w, spectral, kept.astype(w.dtype)), rank


def _random(w: Array, spectral: Spectrum, cut: _Cut, policy: Policy) -> tuple[Array, Array]:
    rank = _rank(spectral, cut, policy)
    kept = surgery.random_choice(cut.key, spectral.values, cut.edge, rank)
    return surgery.rescaled(w, spectral, kept.astype(w.dtype)), rank


def _halve(w: Array, spectral: Spectrum, cut: _Cut, policy: Policy) -> tuple[Array, Array]:
    gains = jnp.where(spectral.values > cut.edge, 1, 0.5).astype(w.dtype)
    return surgery.rescaled(w, spectral, gains), _all(spectral)


def _shrink(w: Array, spectral: Spectrum, cut: _Cut, policy: Policy) -> tuple[Array, Array]:
    gains = surgery.shrinkage(spectral.values, (w.shape[0], w.shape[1]), cut.noise)
    # In a layer of noise alone all gains are 0: the values that must stay are kept as they are.
    least = surgery.first(spectral.values, policy.min_rank)
    gains = jnp.where(least & (gains == 0), 1, gains)
    return surgery.rescaled(w, spectral, gains), jnp.sum(gains > 0)


def _sparsify(w: Array, spectral: Spectrum, cut: _Cut, policy: Policy) -> tuple[Array, Array]:
    threshold = policy.threshold / cut.unit
    return surgery.sparsified(w, spectral, cut.edge, threshold), _all(spectral)


def _sparsify_vectors(
    w: Array, spectral: Spectrum, cut: _Cut, policy: Policy
) -> tuple[Array, Array]:
    theta = policy.threshold
    return surgery.with_sparse_vectors(w, spectral, cut.edge, theta), _all(spectral)


_EDITS = {
    "truncate": _truncate,
    "random": _random,
    "halve": _halve,
    "shrink": _shrink,
    "sparsify": _sparsify,
    "sparsify_vectors": _sparsify_vectors,
}


def _rank(spectral: Spectrum, cut: _Cut, policy: Policy) -> Array:
    rank = surgery.kept_rank(
        spectral.values, cut.edge, cut.keep_below, keep_offset=policy.keep_offset
    )
    return jnp.clip(rank, min(policy.min_rank, len(spectral.values)))


def _all(spectral: Spectrum) -> Array:
    return jnp.asarray(len(spectral.values))


def _matrix(kernel: Array) -> Array:
    return kernel.reshape(prod(kernel.shape[:-1]), kernel.shape[-1])


def _unknown(shape: jax.ShapeDtypeStruct) -> Array:
    """A number of a report before there is one."""
    floating = jnp.issubdtype(shape.dtype, jnp.floating)
    return jnp.full(shape.shape, jnp.nan if floating else 0, shape.dtype)


def _fit_bulk(eigenvalues: Array, shape: tuple[int, int]) -> rmt.MPFit:
    floor = _floor(eigenvalues.dtype)
    return rmt.fit_marchenko_pastur(eigenvalues, shape, floor=floor, assume_sorted=True)


def _floor(dtype: Any) -> float:
    """The share of the largest eigenvalue of a Gram matrix below which others are rounding."""
    return 16 * float(jnp.finfo(dtype).eps)
