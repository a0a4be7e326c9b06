"""Neural collapse: class means that stand alone, far apart, evenly spaced, and match the head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from spectral_jax.features._classes import Centre, Classes, classes_about, classes_of
from spectral_jax.features._rows import HostRows, class_means, host_rows, within_classes
from spectral_jax.features._sides import checked_head
from spectral_jax.features.frames import Row, Target, by_rows, frame_error, root, target_rows
from spectral_jax.features.moments import (
    FeatureMoments,
    Head,
    as_moments,
    mean,
    pooled,
    unitless,
    within,
)
from spectral_jax.linalg.moments import exactly
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.pseudo_inverse import pseudo_inverse
from spectral_jax.linalg.subspace import mm, unit

# Frames about the origin: centred they would be simplices.
UNCENTRED = ("orthogonal", "general_orthogonal")


class NeuralCollapse(NamedTuple):
    """Every number falls to 0 as features collapse, except where it says otherwise.

    ``C`` counts the classes that are present and ``mu_c`` are their means, ``m_c = mu_c - centre``;
    ``v_c`` is the mean squared distance of a class to its mean, ``S_W`` the covariance of all
    examples about the mean of their class, ``S_B`` that of the ``m_c``, and ``w_c`` the head's
    vector of a class. All numbers stay the same if the features are rotated or rescaled. Those that
    ask for the direction of a vector are NaN where one of them is 0.
    """

    nc1: Float[Array, ""]
    """``tr(S_W S_B^+) / C`` (Papyan, Han & Donoho 2020): within against between, by direction."""
    nc1_svd: Float[Array, ""]
    """The same with exactly ``min(C - 1, p)`` directions of ``S_B``: infinite where one of them is
    no more than rounding, which ``nc1`` leaves out (arXiv 2106.02073)."""
    nc1_quotient: Float[Array, ""]
    """``tr S_W / tr S_B``."""
    nc1_cdnv: Float[Array, ""]
    """The mean of ``(v_i + v_j) / (2 |mu_i - mu_j|^2)`` over pairs (arXiv 2112.15121)."""
    nc2: Float[Array, ""]
    """``|| G / ||G|| - T ||`` in the Frobenius norm, ``G_ij = m_i . m_j`` and ``T`` the target."""
    nc2_least: Float[Array, ""]
    """The least ``nc2`` of a simplex that ``p`` features can have: above 0 for ``C > p + 1``."""
    nc2_equinorm: Float[Array, ""]
    """The standard deviation of the lengths ``|m_c|``, as a share of their mean."""
    nc2_equiangular: Float[Array, ""]
    """The standard deviation of ``cos(m_i, m_j)`` over pairs."""
    nc2_max_angle: Float[Array, ""]
    """The mean of ``|cos(m_i, m_j) + 1 / (C - 1)|`` over pairs."""
    gnc2: Float[Array, ""]
    """The variance over pairs of ``log 1 / |u_i - u_j|``, with ``u_c = m_c / |m_c|``: evenly spread
    over the sphere, for any number of classes (arXiv 2303.06484, 2405.17767)."""
    gnc2_energy: Float[Array, ""]
    """The mean of the same less that of a simplex: above 0 for ``C > p + 1``."""
    classes: Int[Array, ""]
    """``C``. Fewer than two leave NaN everywhere."""
    missing: Int[Array, ""]
    """Classes without an example. They are left out of all numbers."""
    single: Int[Array, ""]
    """Classes with one example: their variance is not 0 but unknown, and NC1 is too small. Told by
    weight, of a class no more than that of the average example: count them yourself where weights
    differ, as those do that balance classes."""
    imbalance: Float[Array, ""]
    """The weight of the largest class over that of the smallest present."""
    rank: Int[Array, ""]
    """Of ``S_B``; at most ``C - 1``, and ``p``."""
    nc3: Float[Array, ""] | None = None
    """``nc2`` of ``G_ij = w_i . m_j``; None, as all of NC3, without a head."""
    nc3_difference: Float[Array, ""] | None = None
    """``|| W / ||W|| - M / ||M|| ||``: the head's vectors are the means, up to one factor."""
    nc3_cosine: Float[Array, ""] | None = None
    """The mean of ``cos(w_c, m_c)``: rises to 1."""
    unc3: Float[Array, ""] | None = None
    """The variance of ``cos(w_c, m_c)`` over classes: all match equally well (arXiv 2405.17767)."""
    nc4: Float[Array, ""] | None = None
    """The share of examples whose nearest class mean is not the class that the head says, bias
    included; None without a head or without the features themselves: see `collapse_agreement`."""
    nc5: Float[Array, ""] | None = None
    """The mean of ``|cos(mu_c, mu_ood)|`` (arXiv 2310.06823); None without ``ood``."""


class Between(NamedTuple):
    """The covariance of class means, ``S_B = A^T A``."""

    inverse: Float[Array, "p c"]
    """``A^+``: ``A^+ A^+^T`` is ``S_B^+``."""
    rank: Float[Array, ""]


class Agreement(NamedTuple):
    """How often the nearest class mean says what the head says."""

    value: Float[Array, ""]
    """The share of the rows' weight on which both agree: rises to 1 (NC4 is 1 less it)."""
    nearest_mean: Float[Array, ""] | None
    """The accuracy of the nearest class mean; None without labels."""
    head: Float[Array, ""] | None
    """The accuracy of the head; None without labels."""
    weight: Float[Array, ""]
    """The sum of weights, by which the numbers of several batches are averaged."""


def neural_collapse(
    m: FeatureMoments | Float[ArrayLike, "n p"],
    *,
    head: Head | None = None,
    ood: FeatureMoments | Float[ArrayLike, " p"] | None = None,
    centre: Centre = "classes",
    target: Target | Float[ArrayLike, "c c"] = "etf",
    **arrays: Any,
) -> NeuralCollapse:
    """The numbers of neural collapse, NC1 to NC5, from one pass over the examples.

    Args:
      m: moments with ``classes``; or features ``[n, p]``, with ``labels=`` and ``classes=`` (and
        ``weights=``), of which NC4 is counted too. Those in the memory of a CPU are read twice and
        never summed to ``p x p`` moments, which takes a fifth of the time: class means in float64,
        then what float32 rows differ from them by in float32, to about 1e-6 of its size.
      head: the last layer, of which NC3 and NC4 are. Its vectors are taken as they are; what all of
        them have in common has no effect on a softmax, and can be taken off beforehand.
      ood: features of inputs from elsewhere, or their mean ``[p]``, for NC5.
      centre: ``"classes"``: the mean of class means, every class counting alike in ``S_B`` too.
        ``"sample"``: the mean of examples, a class counting by its weight, so that ``S_W + S_B`` is
        the covariance. They differ where classes do in size, and only about the first is an exact
        simplex one. ``S_W`` counts examples either way: for one that does not, weigh them.
      target: of NC2 and NC3. ``"etf"``: a simplex. ``"orthogonal"``: right angles and one length,
        of the means as they are, not centred: to which a head without bias leads; lengths may
        differ for ``"general_orthogonal"``. ``"seli"``: what cross-entropy without bias leads to
        for classes of different size (arXiv 2208.05512), a simplex for classes of one size; of NC3
        its target is the simplex. Or a Gram matrix ``[C, C]``, for both.

    Works under ``jit``, ``vmap`` and ``grad`` (of moments by ``method="gram"`` in float32; the
    derivative of ``nc1`` is right for equal eigenvalues too). NaN in the features is NaN in all
    numbers. ``nc1_cdnv`` and ``gnc2`` take ``C^2 p`` operations and ``C p`` memory.
    Raises ``ValueError`` for moments without classes, a head or a target of other sizes, and an
    unknown name.

    >>> corners = jnp.eye(3) - 1 / 3
    >>> x = jnp.concatenate([corners + 0.01, corners - 0.01])
    >>> found = neural_collapse(x, labels=jnp.array([0, 1, 2] * 2), classes=3)
    >>> round(float(found.nc1_quotient), 6), bool(found.nc2 < 1e-6), int(found.rank)
    (0.00045, True, 2)
    """
    matrix = None if isinstance(target, str) else target
    name: Target = target if isinstance(target, str) else "etf"  # not read beside a matrix
    given = (m, head, ood, target, arrays)
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(given))
    rows = None if traced else host_rows(m, arrays)
    if rows is not None:
        return _of_rows(rows, matrix, head, ood, centre=centre, target=name)
    state = as_moments(m, **arrays)
    sizes = state.sizes.features, state.classes
    head = None if head is None else _checked_head(head, *sizes)
    elsewhere = _mean_elsewhere(ood, sizes[0])
    found = _measured(state, matrix, head, elsewhere, centre=centre, target=name)
    if head is None or isinstance(m, FeatureMoments):
        return found
    seen = {name: arrays.get(name) for name in ("labels", "weights")}
    return found._replace(nc4=1 - collapse_agreement(state, m, head=head, **seen).value)


def collapse_agreement(
    m: FeatureMoments,
    features: Float[ArrayLike, "b p"],
    *,
    head: Head,
    labels: Int[ArrayLike, " b"] | None = None,
    weights: Float[ArrayLike, " b"] | None = None,
) -> Agreement:
    """How often the nearest class mean of ``m`` is the class that the head says (NC4).

    A second pass, for class means are known after the first; over the same inputs or unseen ones.

    Args:
      labels: for the accuracy of both; a row of a negative label is not read.
      weights: as in `update`.

    The head may say any class, the nearest mean only one that is present. Works under ``jit`` and
    ``vmap``. A row with NaN that is read makes all numbers NaN. Raises ``ValueError`` for moments
    without classes and arrays that do not fit.

    >>> x, labels = jnp.array([[0.0], [1.0], [4.0]]), jnp.array([0, 0, 1])
    >>> head = Head(jnp.array([[0.0, 1.0]]), jnp.array([0.5, 0.0]))  # says 1 from .5 on
    >>> round(float(collapse_agreement(as_moments(x, labels=labels), x, head=head).value), 6)
    0.666667
    """
    head = _checked_head(head, m.sizes.features, m.classes)
    x = working(features, "features")
    if x.ndim != 2 or x.shape[1] != m.sizes.features:
        raise ValueError(f"features have shape {x.shape}: pass rows [b, {m.sizes.features}]")
    for name, each in (("labels", labels), ("weights", weights)):
        if each is not None and (shape := jnp.shape(each)) != x.shape[:1]:
            raise ValueError(f"{name} have shape {shape}: pass one for each of {len(x)} rows")
    return _agreement(pooled(m), x, head, labels, weights)


@partial(exactly, static=("centre", "target"))
def _measured(
    m: FeatureMoments,
    matrix: Array | None,
    head: Head | None,
    ood: Array | None,
    *,
    centre: Centre,
    target: Target,
) -> NeuralCollapse:
    m = unitless(m)  # products of four means are summed below
    classes = classes_about(m, centre)
    between = _between(classes, 4 * m.state.eps)
    along = jnp.sum(between.inverse * mm(within(m), between.inverse))
    return _numbers(classes, between, along, matrix, head, ood, target=target)


def _of_rows(
    rows: HostRows,
    matrix: ArrayLike | None,
    head: Head | None,
    ood: FeatureMoments | ArrayLike | None,
    *,
    centre: Centre,
    target: Target,
) -> NeuralCollapse:
    """In two passes of NumPy, at once even while JAX traces the program around."""
    p, dtype = rows.features.shape[1], working(rows.features[:0], "features").dtype
    with jax.ensure_compile_time_eval():
        head = None if head is None else _checked_head(head, p, rows.classes)
        elsewhere = _mean_elsewhere(ood, p)
        with jax.enable_x64(True):
            means = class_means(rows)
            classes, between = _of_means(*means, centre=centre)
            found = within_classes(rows, means, np.asarray(between.inverse), head)
            classes = classes._replace(variance=jnp.asarray(found.variance))
            summed = classes, between, found.along, matrix, head, elsewhere
            told = _told(summed, target=target, dtype=dtype)
            disagree = jnp.asarray(found.disagree, dtype)
    return told if head is None else told._replace(nc4=disagree)


@partial(jax.jit, static_argnames="centre")
def _of_means(
    weight: Array, mean: Array, effective: Array, noise: Array, *, centre: Centre
) -> tuple[Classes, Between]:
    classes = classes_of(weight, mean, jnp.zeros_like(weight), effective, centre)
    return classes, _between(classes, noise)


@partial(jax.jit, static_argnames=("target", "dtype"))
def _told(summed: tuple[Any, ...], *, target: Target, dtype: jnp.dtype) -> NeuralCollapse:
    """The numbers of what was ``summed`` in float64, in the dtype of the rows."""
    found = _numbers(*summed, target=target)
    kinds = {"f": dtype, "i": jnp.dtype("int32")}
    return jax.tree.map(lambda x: x.astype(kinds[x.dtype.kind]), found)


def _numbers(
    classes: Classes,
    between: Between,
    along: Array,
    matrix: Array | None,
    head: Head | None,
    ood: Array | None,
    *,
    target: Target,
) -> NeuralCollapse:
    # Of means that coincide up to rounding, no direction is told.
    classes = classes._replace(centred=jnp.where(between.rank == 0, 0, classes.centred))
    for_means, for_head = target_rows(target if matrix is None else matrix, classes.weight)
    means = classes.mean if matrix is None and target in UNCENTRED else classes.centred
    found = NeuralCollapse(
        **_variability(classes, between.rank, along),
        nc2=frame_error(means, means, for_means),
        **_spacing(classes),
        **_census(classes),
    )
    if head is not None:
        found = found._replace(**_duality(classes, means, head, for_head))
    return found if ood is None else found._replace(nc5=_overlap(classes, ood.astype(means.dtype)))


def _between(classes: Classes, noise: ArrayLike) -> Between:
    """``noise`` is how exact class means are, as a share of their length."""
    scaled = root(classes.share)[:, None] * classes.centred  # S_B = scaled^T scaled
    offset = root(jnp.max(jnp.sum(classes.mean**2, axis=1)))
    inverse = pseudo_inverse(scaled, noise * offset)
    return Between(inverse, jnp.round(jnp.sum(inverse.T * scaled)))


def _variability(classes: Classes, rank: Array, along: Array) -> dict[str, Array]:
    """NC1; ``along`` is ``tr(S_W S_B^+)``."""
    within = jnp.sum(classes.weight * classes.variance) / jnp.sum(classes.weight)
    quotient = within / jnp.sum(classes.share[:, None] * classes.centred**2)
    nc1 = jnp.where(rank == 0, quotient, along / classes.number)  # of no directions: infinite
    quotient, nc1 = (jnp.where(classes.number > 1, x, jnp.nan) for x in (quotient, nc1))
    full = jnp.minimum(classes.number - 1, classes.mean.shape[1])
    return {
        "nc1": nc1,
        "nc1_svd": jnp.where((rank < full) & (classes.number > 1), jnp.inf, nc1),
        "nc1_quotient": quotient,
        "rank": jnp.where(rank > 0, rank, 0).astype(int),
    }


def _spacing(classes: Classes) -> dict[str, Array]:
    """CDNV, NC2 and GNC2: of the lengths of the class means, and of pairs of them."""
    simplex = 1 / (classes.number - 1)
    lengths = root(jnp.sum(classes.centred**2, axis=1))
    units = _directions(classes.centred, classes.here)
    length = jnp.sum(classes.each * lengths)

    def row(i: Array, pair: Array) -> Array:
        cosine = mm(units, units[i])
        apart = jnp.where(pair, jnp.sum((classes.mean - classes.mean[i]) ** 2, axis=1), 1)
        chord = jnp.where(pair, jnp.sum((units - units[i]) ** 2, axis=1), 1)
        cdnv = (classes.variance + classes.variance[i]) / (2 * apart)
        return jnp.stack([cdnv, cosine, jnp.abs(cosine + simplex), -jnp.log(chord) / 2])

    middles, variances = _over_pairs(row, classes)
    return {
        "nc1_cdnv": middles[0],
        "nc2_least": root(2 - 2 * root(jnp.minimum(1, units.shape[1] * simplex))),
        "nc2_equinorm": root(jnp.sum(classes.each * (lengths - length) ** 2)) / length,
        "nc2_equiangular": root(variances[1]),
        "nc2_max_angle": middles[2],
        "gnc2": variances[3],
        "gnc2_energy": middles[3] + jnp.log(2 * (1 + simplex)) / 2,
    }


def _over_pairs(row: Callable[[Array, Array], Array], classes: Classes) -> tuple[Array, Array]:
    """Means and variances over pairs of classes of the rows ``[k, C]`` that ``row`` makes."""
    others = classes.number - 1

    def of_row(i: Array) -> tuple[Array, Array]:
        pair = classes.here & classes.here[i] & (jnp.arange(len(classes.here)) != i)
        values = row(i, pair)
        middle = jnp.sum(jnp.where(pair, values, 0), axis=1) / others
        off = jnp.where(pair, values - middle[:, None], 0)
        return middle, jnp.sum(off**2, axis=1) / others

    middles, variances = by_rows(of_row, len(classes.here))
    each = jnp.where(others > 0, classes.each, jnp.nan)[:, None]
    middle = jnp.sum(each * middles, axis=0)
    return middle, jnp.sum(each * (variances + (middles - middle) ** 2), axis=0)


def _duality(classes: Classes, means: Array, head: Head, row: Row) -> dict[str, Array]:
    vectors = head.kernel.astype(means.dtype).T
    vectors = jnp.where(classes.here[:, None], vectors, 0)
    vectors = vectors / unit_of(vectors)
    cosines = jnp.sum(_directions(vectors, classes.here) * _directions(means, classes.here), axis=1)
    cosine = jnp.sum(classes.each * cosines)
    w, m = (x / root(jnp.sum(x**2)) for x in (vectors, means))
    return {
        "nc3": frame_error(vectors, means, row),
        "nc3_difference": root(jnp.sum((w - m) ** 2)),
        "nc3_cosine": cosine,
        "unc3": jnp.sum(classes.each * (cosines - cosine) ** 2),
    }


def _overlap(classes: Classes, ood: Array) -> Array:
    elsewhere = _directions(ood[None], jnp.array([True]))[0]
    cosines = mm(_directions(classes.mean, classes.here), elsewhere)
    return jnp.sum(classes.each * jnp.abs(cosines))


def _directions(vectors: Array, here: Array) -> Array:
    """Rows of length one: NaN for those of no length, and 0 for those of classes not here."""
    lost = here & ~jnp.any(vectors, axis=1)
    return jnp.where(lost[:, None], jnp.nan, unit(vectors.T).T)


def _census(classes: Classes) -> dict[str, Array]:
    smallest = jnp.min(jnp.where(classes.here, classes.weight, jnp.inf))
    return {
        "classes": jnp.sum(classes.here),
        "missing": jnp.sum(~classes.here),
        "single": jnp.sum(classes.single),
        "imbalance": jnp.max(classes.weight) / smallest,
    }


@jax.jit
def _agreement(
    m: FeatureMoments, x: Array, head: Head, labels: Array | None, weights: Array | None
) -> Agreement:
    dtype = m.state.high.mean.dtype
    x = x.astype(dtype)
    w = jnp.ones(len(x), dtype) if weights is None else working(weights, "weights").astype(dtype)
    w = w if labels is None else jnp.where(labels < 0, 0, w)
    x = jnp.where(w[:, None] == 0, 0, x)
    near, says = _nearness(m, x), _outputs(x, head)
    known = ~jnp.any(jnp.isnan(says) | jnp.isnan(near), axis=1)
    w = jnp.where(known | (w == 0), w, jnp.nan)
    nearest, said = jnp.argmax(near, axis=1), jnp.argmax(says, axis=1)
    true = None if labels is None else jnp.asarray(labels).astype(said.dtype)

    def share(hit: ArrayLike) -> Array:
        return jnp.sum(jnp.where(hit, w, 0)) / jnp.sum(w)

    return Agreement(
        value=share(nearest == said),
        nearest_mean=None if labels is None else share(nearest == true),
        head=None if labels is None else share(said == true),
        weight=jnp.sum(w),
    )


def _nearness(m: FeatureMoments, x: Array) -> Array:
    """Larger for nearer class means, ``-inf`` for those of no example.

    About the centre of the means, so that distances keep their digits where that is far away.
    """
    here, middle, means = _means_of(m)
    size = unit_of(means)
    x, means = (x - middle) / size, means / size
    return jnp.where(here, mm(x, means.T) - jnp.sum(means**2, axis=1) / 2, -jnp.inf)


@exactly
def _means_of(m: FeatureMoments) -> tuple[Array, Array, Array]:
    classes = classes_about(m, "classes")
    return classes.here, mm(classes.share, classes.mean), classes.centred


def _outputs(x: Array, head: Head) -> Array:
    found = mm(x, head.kernel.astype(x.dtype))
    return found if head.bias is None else found + head.bias.astype(x.dtype)


def _checked_head(head: Head, p: int, classes: int) -> Head:
    head = checked_head(head, p)
    if head.kernel.shape[1] != classes:
        raise ValueError(
            f"head.kernel has shape {head.kernel.shape}: pass [p, C], "
            f"({p}, {classes}) for these moments"
        )
    return head


def _mean_elsewhere(ood: FeatureMoments | ArrayLike | None, p: int) -> Array | None:
    if ood is None:
        return None
    found = mean(ood) if isinstance(ood, FeatureMoments) else working(ood, "ood")
    if found.shape != (p,):
        raise ValueError(f"ood has shape {found.shape}: pass moments of {p} features, or a mean")
    return found
