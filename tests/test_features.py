"""Moments of features: what one pass knows, and that the way to it does not matter."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spectral_jax import features
from spectral_jax.features import Head
from spectral_jax.linalg import moments

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
N, P, C = 90, 8, 3
LABELS = RNG.integers(0, C, N)
# One direction 1000 times the rest, and a mean that is none of them.
X = RNG.standard_normal((N, P)) * np.array([1000.0] + [1.0] * (P - 1)) + np.eye(C, P)[LABELS] + 3
KERNEL, BIAS = RNG.standard_normal((P, 2)), RNG.standard_normal(2)


def centred(x):
    return x - x.mean(axis=0)


update = jax.jit(features.update)  # where every operation would be a program


def streamed(x, *, sizes=(1, 30), **options):
    """In batches of unequal size."""
    m = features.zero(x.shape[1], classes=C, dtype=x.dtype, **options)
    for rows, labels in zip(np.split(x, sizes), np.split(LABELS, sizes), strict=True):
        m = update(m, rows, labels=labels)
    return m


@pytest.mark.parametrize("method", moments.METHODS)
def test_streamed_is_dense_to_twelve_digits(method):
    outputs, shares = X @ KERNEL + BIAS, np.eye(C)[LABELS]
    with jax.enable_x64(True):
        m, head = streamed(X, method=method), Head(jnp.asarray(KERNEL), jnp.asarray(BIAS))
        root = features.factor(m) @ KERNEL
        pairs = {
            "covariance": (features.covariance(m), np.cov(X.T, bias=True)),
            "outputs' factor": (root.T @ root, np.cov(outputs.T, bias=True)),
            "outputs": (features.gram(m, head, centred=False), outputs.T @ outputs / N),
            "cross": (features.cross(m, head), centred(outputs).T @ centred(X) / N),
            "cross to the origin": (features.cross(m, head, centred=False), outputs.T @ X / N),
            "mean": (features.mean_beside(m, head), outputs.mean(axis=0)),
            "labels": (features.cross(m, "targets"), shares.T @ centred(X) / N),
            "labels' own": (features.gram(m, "targets"), np.cov(shares.T, bias=True)),
        }
        for name, (found, expected) in pairs.items():
            error = np.abs(found - expected).max() / np.abs(expected).max()
            assert error < 1e-12, (name, error)


@pytest.mark.parametrize("method", ["gram64", "qr"])
def test_half_features_beside_one_large_direction_keep_the_tail(method):
    """Where a float32 Gram matrix is off by per cent."""
    x = X.astype(ml_dtypes.bfloat16)
    exact = np.linalg.svd(centred(x.astype(np.float64)), compute_uv=False) ** 2 / N
    tail = exact[1:] / exact[1:].sum()
    for rows in (x, jnp.asarray(x)):
        found = features.effective_dimension(features.of(rows, method=method), drop=1)
        assert found == pytest.approx(np.exp(-np.sum(tail * np.log(tail))), rel=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_collapsed_class_keeps_its_digits(kind):
    means = 5 * RNG.standard_normal((C, P))
    with jax.enable_x64(True):
        x = means[LABELS] + 1e-6 * RNG.standard_normal((N, P))
        own = np.stack([x[LABELS == c].mean(axis=0) for c in range(C)])[LABELS]
        m = features.merge(
            features.of(kind(x[:40]), labels=kind(LABELS[:40]), classes=C),
            features.of(kind(x[40:]), labels=kind(LABELS[40:]), classes=C),
        )
        found = jnp.trace(features.within(m))
    assert found == pytest.approx(np.sum((x - own) ** 2) / N, rel=1e-8)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_blocks_hold_all_rows_and_take_turns_at_the_odd_ones(kind):
    m = features.zero(P, blocks=4)
    for rows in np.split(X, range(6, N, 6)):
        m = update(m, kind(rows))
    np.testing.assert_allclose(features.covariance(m), np.cov(X.T, bias=True), rtol=1e-5, atol=1e-5)
    weights = np.asarray(m.state.high.weight).ravel()
    assert weights.max() - weights.min() <= 2


def test_an_interval_covers_the_number_it_is_for():
    """The participation ratio of columns of known variance: in 90 to 98 % of 200 draws."""
    scales = np.array([3.0, 2.0, 1.0], np.float32)
    truth = np.sum(scales**2) ** 2 / np.sum(scales**4)
    draws = scales * RNG.standard_normal((200, 320, 3)).astype(np.float32)

    def participation(m):
        matrix = features.covariance(m)
        return jnp.trace(matrix) ** 2 / jnp.sum(matrix**2)

    def inside(x):
        found = features.jackknife(features.of(x, blocks=8, method="gram"), participation)
        return (found.low < truth) & (truth < found.high)

    assert 0.90 <= np.mean(jax.jit(jax.vmap(inside))(draws)) <= 0.98


def test_intervals_without_rows_in_every_block_are_nan_and_without_blocks_refused():
    few = features.of(X[:3], blocks=4)
    assert np.isnan(features.jackknife(few, features.mean).low).all()
    with pytest.raises(ValueError, match="no blocks: begin with"):
        features.jackknife(features.of(X), features.mean)


def test_noise_has_the_participation_ratio_of_marchenko_and_pastur():
    """O6: ``p / (1 + p / n)``, within 3 per cent."""
    p = 64
    for n in (64, 640):
        x = RNG.standard_normal((n, p))
        found = features.effective_dimension(x, kind="participation")
        assert found == pytest.approx(p / (1 + p / n), rel=0.03)
    values = features.spectrum(x).values
    assert values[0] == pytest.approx((1 + np.sqrt(p / n)) ** 2, rel=0.05)
    assert values[-1] == pytest.approx((1 - np.sqrt(p / n)) ** 2, rel=0.05)


def test_kinds_agree_on_equal_directions_and_fall_with_the_order():
    for kind in ("entropy", "participation", "stable_rank", "nesum", "rankme", "renyi"):
        assert features.effective_dimension(jnp.ones(5), kind=kind) == pytest.approx(5)
    assert features.effective_dimension(jnp.ones(5), kind="rankme_log") == pytest.approx(1)
    assert features.effective_dimension(jnp.ones(5), kind="srank", delta=0.3) == 4
    assert features.effective_dimension(jnp.ones(5), kind="rankme", eps=1e-2) > 5
    falling = [
        features.effective_dimension(jnp.array([4.0, 2.0, 1.0]), kind="renyi", order=order)
        for order in (0.5, 1.0, 2.0, float("inf"))
    ]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(7 / 4)


def test_units_that_do_nothing_are_told_apart():
    x = np.abs(RNG.standard_normal((50, 4))) * [0.0, 1e-3, 1.0, 1.0]
    x[:, 3] = 7
    found = features.unit_activity(x)
    assert found.dead.tolist() == [True, False, False, False]
    assert found.dormant.tolist() == [True, True, False, False]
    assert found.constant.tolist() == [True, False, False, True]


def test_devices_pool_their_classes_and_blocks():
    def pooled(x, labels):
        m = features.zero(P, classes=C, blocks=2, fourth=True, dtype=x.dtype)
        m = features.psum(features.update(m, x, labels=labels), "i")
        return features.class_sums(m).mean, features.fourth(m).squares

    x = X.astype(np.float32)
    found, squares = jax.jit(jax.vmap(pooled, axis_name="i"))(
        x.reshape(3, 30, P), LABELS.reshape(3, 30)
    )
    expected = np.stack([x[LABELS == c].mean(axis=0) for c in range(C)])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    fourth = np.mean(np.sum(centred(X) ** 2, axis=1) ** 2)
    np.testing.assert_allclose(squares, np.full(3, fourth), rtol=1e-5)


def test_masks_and_negative_labels_are_no_rows():
    labels = np.where(np.arange(N) % 2, LABELS, -1)
    x = np.where(labels[:, None] < 0, np.nan, X)
    for kind in (np.asarray, jnp.asarray):
        m = features.of(kind(x), labels=kind(labels), classes=C)
        np.testing.assert_allclose(features.mean(m), X[1::2].mean(axis=0), rtol=1e-5)
        assert features.effective_rows(m) == N // 2
    unknown = features.of(X, labels=np.where(LABELS == 0, C, LABELS), classes=C)
    assert np.isnan(features.covariance(unknown)).all()


def test_float64_rows_keep_their_digits_beside_arrays_of_jax():
    x = 1e7 + X
    for m in (
        features.update(features.zero(P, blocks=2), x, weights=jnp.ones(N)),
        features.update(features.zero(P, outputs=1), x, outputs=jnp.ones((N, 1))),
    ):
        np.testing.assert_allclose(features.covariance(m), np.cov(X.T, bias=True), atol=1e-6)
    assert features.update(features.zero(P, blocks=2), jnp.zeros((0, P))).turn == 0


def test_a_unit_of_any_size_is_alive():
    tiny = np.array([[1e-25, 1.0, 0.0], [0.0, 2.0, 0.0]], np.float32)
    assert features.unit_activity(tiny).dead.tolist() == [False, False, True]


def test_renyi_is_continuous_at_the_entropy():
    q = np.array([8.0, 2.0, 2.0, 1.0]) / 13
    for order in (0.95, 1 - 1e-6, 1 + 1e-6, 1.2):
        found = features.effective_dimension(q, kind="renyi", order=order)
        np.testing.assert_allclose(found, np.sum(q**order) ** (1 / (1 - order)), rtol=2e-6)


def test_what_does_not_fit_is_refused_by_name():
    m = features.zero(P, outputs=2, classes=C)
    y = np.zeros((N, 2))
    refused = {
        "outputs are missing": lambda: features.update(m, X, labels=LABELS),
        r"features have shape \(90, 2\)": lambda: features.update(m, y, outputs=y, labels=LABELS),
        "outputs have 3 rows": lambda: features.update(m, X, outputs=y[:3], labels=LABELS),
        f"labels are missing: the moments began with {C}": lambda: features.update(m, X, outputs=y),
        "labels for moments without classes": lambda: features.of(X, labels=LABELS, classes=0),
        "beside='labels': choose 'features', 'outp": lambda: features.cross(m, "labels"),
        "weights has the complex dtype": lambda: features.of(X, weights=np.ones(N) * 1j),
        "targets has the complex dtype": lambda: features.of(X, targets=y + 1j),
        "labels have dtype": lambda: features.update(m, X, outputs=y, labels=LABELS + 0.5),
        "the moments hold no targets": lambda: features.cross(features.of(X), "targets"),
        "the moments have no classes": lambda: features.within(features.of(X)),
        "weights beside moments": lambda: features.as_moments(m, weights=np.ones(N)),
        "merge what one zero": lambda: features.merge(m, features.of(X)),
        "pass classes=": lambda: jax.jit(lambda x: features.of(X, labels=x))(LABELS),
        "weights beside eigenvalues": lambda: features.effective_dimension(X[0], weights=X[0]),
        "kind='rank': choose": lambda: features.effective_dimension(X, kind="rank"),
        "last=1: choose at least 2": lambda: features.alpha_req(X, first=2, last=1),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
