"""Neural collapse and its neighbours: frames that are known, bad data, and the peers' numbers."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax import features
from spectral_jax.features import Head
from spectral_jax.linalg.pseudo_inverse import pseudo_inverse

pytestmark = pytest.mark.usefixtures("quick_compilation")
C, P = 4, 5
RNG = np.random.default_rng(0)
COUNTS = (6, 3, 2, 2)
LABELS = np.repeat(np.arange(C), COUNTS).astype(np.int32)
N = len(LABELS)
SIMPLEX = np.pad(np.eye(C) - 1 / C, ((0, 0), (0, P - C)))
ROTATION = np.linalg.qr(RNG.standard_normal((P, P)))[0]
NOISE = RNG.standard_normal((N, P)) / 10
MEANS = RNG.standard_normal((C, P))


def measure(x, labels=LABELS, classes=C, **options):
    found = features.neural_collapse(
        np.asarray(x, np.float32), labels=labels, classes=classes, **options
    )
    return jax.tree.map(float, found)


def of_frame(frame, **options):
    """Every example at its class's vector of a frame, turned and shifted."""
    return measure((frame @ ROTATION + 2)[LABELS], **options)


def test_a_simplex_is_one_about_the_mean_of_class_means_whatever_their_sizes():
    exact = of_frame(SIMPLEX)
    assert max(exact.nc1, exact.nc1_cdnv, exact.nc2, exact.nc2_equinorm, exact.gnc2) < 1e-6
    assert max(exact.nc2_equiangular, exact.nc2_max_angle, abs(exact.gnc2_energy)) < 1e-6
    assert exact.nc2_least == 0 and exact.rank == C - 1
    sample = of_frame(SIMPLEX, centre="sample")
    off = SIMPLEX - np.repeat(SIMPLEX, COUNTS, axis=0).mean(axis=0)
    gram = off @ off.T
    ideal = (np.eye(C) - 1 / C) / np.sqrt(C - 1)
    expected = np.linalg.norm(gram / np.linalg.norm(gram) - ideal)
    assert expected > 0.3 and sample.nc2 == pytest.approx(expected, rel=1e-5)


def test_about_the_sample_mean_the_scatters_add_up_to_the_covariance():
    x = MEANS[LABELS] + NOISE
    within = x - np.repeat([x[LABELS == c].mean(axis=0) for c in range(C)], COUNTS, axis=0)
    w, total = np.sum(within**2), np.sum((x - x.mean(axis=0)) ** 2)
    assert measure(x, centre="sample").nc1_quotient == pytest.approx(w / (total - w), rel=1e-5)


def test_orthogonal_frames_are_told_from_the_simplex_that_they_are_about_their_mean():
    frame = np.eye(C, P) @ ROTATION
    assert measure(frame[LABELS]).nc2 < 1e-6  # centred, they are simplices
    assert measure(frame[LABELS], target="orthogonal").nc2 < 1e-6
    assert measure((frame + 1)[LABELS], target="orthogonal").nc2 > 0.1
    longer = (np.array([[1.0], [2.0], [3.0], [4.0]]) * frame)[LABELS]
    assert measure(longer, target="orthogonal").nc2 > 0.1
    found = measure(longer, target="general_orthogonal", head=Head(frame.T.astype(np.float32)))
    assert max(found.nc2, found.nc3) < 1e-6


def seli():
    """Features and head that interpolate the labels less their mean over classes."""
    z = np.eye(C)[LABELS].T - 1 / C
    u, s, vt = np.linalg.svd(z, full_matrices=False)
    return (vt.T * np.sqrt(s)) @ np.eye(C, P) @ ROTATION, (u * np.sqrt(s)) @ np.eye(C, P) @ ROTATION


def test_classes_of_different_size_collapse_to_the_geometry_of_their_labels():
    x, w = seli()
    head = Head(w.T.astype(np.float32))
    found, simplex = measure(x, target="seli", head=head), measure(x, head=head)
    assert found.nc2 < 1e-5 < 0.1 < simplex.nc2
    assert found.nc3 < 1e-5 and simplex.nc3 < 1e-5
    assert found.nc3_difference > 0.1  # head and means are no longer alike
    even = np.arange(3 * C) % C
    assert measure((SIMPLEX @ ROTATION)[even], even, target="seli", head=head).nc2 < 1e-5


def test_a_gram_matrix_may_be_the_target():
    means = MEANS - MEANS.mean(axis=0)
    assert measure(MEANS[LABELS], target=(means @ means.T).astype(np.float32)).nc2 < 1e-6


def test_a_class_without_examples_is_left_out_and_counted():
    x = MEANS[LABELS] + NOISE
    labels = np.array([0, 2, 3, 5], np.int32)[LABELS]
    kernel = np.full((P, 7), np.nan, np.float32)
    kernel[:, [0, 2, 3, 5]] = MEANS.T
    gaps = measure(x, labels, 7, head=Head(kernel), target="seli")
    dense = measure(x, head=Head(MEANS.T.astype(np.float32)), target="seli")
    assert (gaps.classes, gaps.missing, dense.missing) == (C, 3, 0)
    for ours, theirs, name in zip(gaps, dense, gaps._fields, strict=True):
        if name not in ("missing", "nc4", "nc5"):  # the head may say a class that is not there
            assert ours == pytest.approx(theirs, rel=1e-5), name


def test_few_examples_few_classes_and_imbalance_are_told():
    keep = np.array([0, 1, 2, 6, 9, 11])  # of sizes 3, 1, 1, 1
    found = measure((MEANS[LABELS] + NOISE)[keep], LABELS[keep])
    assert (found.single, found.imbalance, found.rank) == (3, 3, C - 1)
    lonely = measure((MEANS[LABELS] + NOISE)[:6], LABELS[:6])
    assert lonely.classes == 1 and np.isnan([lonely.nc2, lonely.nc1_cdnv, lonely.gnc2]).all()
    assert np.isnan([lonely.nc1, lonely.nc1_svd, lonely.nc1_quotient]).all()
    none = measure(np.zeros((0, P)), LABELS[:0])
    assert none.classes == 0 and np.isnan([none.nc1, none.nc2, none.nc1_cdnv]).all()


def test_more_classes_than_a_simplex_has_room_for_come_as_near_as_they_can():
    angle = 2 * np.pi * np.arange(5) / 5
    corners = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels = np.arange(10) % 5
    found = measure(corners[labels] + np.repeat([[0.1], [-0.1]], 5, axis=0), labels, 5)
    assert found.nc2 == pytest.approx(found.nc2_least, rel=1e-5) and found.nc2_least > 0.5
    assert found.rank == 2 and found.nc1_svd == found.nc1 < 1
    assert found.gnc2_energy > 0 and found.nc2_equinorm < 1e-6


def test_directions_that_class_means_lack_are_told_by_the_form_that_inverts_them():
    line = np.arange(C)[:, None] * MEANS[:1]
    off, flat = measure(line[LABELS] + NOISE), measure(line[LABELS])
    assert off.rank == C - 1 and off.nc1_svd == off.nc1  # noise moves them off the line
    assert flat.rank == 1 and flat.nc1_svd == np.inf and flat.nc1 == 0


def test_what_is_left_within_classes_is_exact_far_below_float32_beside_their_distance():
    x = np.round(MEANS * 8)[LABELS]
    tiny = 2.0**-18 * np.where(np.arange(N) % 2, 1, -1)[:, None]
    exact = x + tiny
    within = exact - np.repeat([exact[LABELS == c].mean(0) for c in range(C)], COUNTS, axis=0)
    means = np.stack([exact[LABELS == c].mean(axis=0) for c in range(C)])
    between = np.mean(np.sum((means - means.mean(axis=0)) ** 2, axis=1))
    expected = np.mean(np.sum(within**2, axis=1)) / between
    assert expected < 1e-11
    assert measure(exact).nc1_quotient == pytest.approx(expected, rel=1e-4)


def test_a_vocabulary_of_classes_is_measured_a_block_of_rows_at_a_time():
    c = 130
    means = RNG.standard_normal((c, 3))
    found = measure(np.repeat(means, 2, axis=0), np.repeat(np.arange(c), 2), c)
    off = means - means.mean(axis=0)
    gram = off @ off.T
    ideal = (np.eye(c) - 1 / c) / np.sqrt(c - 1)
    assert found.nc2 == pytest.approx(np.linalg.norm(gram / np.linalg.norm(gram) - ideal), rel=1e-5)
    units = off / np.linalg.norm(off, axis=1)[:, None]
    cosines = (units @ units.T)[~np.eye(c, dtype=bool)]
    assert found.nc2_equiangular == pytest.approx(cosines.std(), rel=1e-5)


def test_moments_of_batches_and_blocks_give_what_all_examples_give_with_an_interval():
    x = (MEANS[LABELS] + NOISE).astype(np.float32)
    m = features.zero(P, classes=C, blocks=2)
    for half in (np.arange(0, N, 2), np.arange(1, N, 2)):
        m = features.update(m, x[half], labels=LABELS[half])
    assert float(features.neural_collapse(m).nc1) == pytest.approx(measure(x).nc1, rel=1e-5)
    found = features.jackknife(m, lambda m: features.neural_collapse(m).nc1)
    assert float(found.low) < float(found.value) < float(found.high)


def by_moments(x, labels, classes, head, weights=None, **options):
    m = features.of(x, labels=labels, classes=classes, weights=weights)
    found = features.neural_collapse(m, head=head, **options)
    seen = {"labels": labels, "weights": weights}
    return found._replace(nc4=1 - features.collapse_agreement(m, x, head=head, **seen).value)


ROWS = (MEANS[LABELS] + NOISE).astype(np.float32)
BENT = Head(MEANS[[0, 2, 1, 3]].T.astype(np.float32), np.float32([0.5, 0, -0.5, 0]))
OTHERS = np.random.default_rng(1)
SPOILT = np.where(np.arange(N)[:, None] < 2, [[np.nan], [np.inf]] * 6 + [[0]], ROWS)
MANY = np.arange(60) % 20
ALIKE = {
    "plain": {},
    "about the mean of examples": {"centre": "sample", "target": "orthogonal"},
    "weighted": {"weights": OTHERS.random(N), "target": "seli"},
    "masked": {"x": SPOILT.astype("f4"), "weights": np.arange(N) > 1},
    "without some labels": {"x": SPOILT, "labels": np.where(np.arange(N) < 2, -1, LABELS)},
    "a label that is no class": {"labels": np.where(np.arange(N) == 5, C, LABELS)},
    "a weight that is none": {"weights": np.arange(N) - 1.0},
    "NaN": {"x": SPOILT[:9], "labels": LABELS[:9]},
    "half": {"x": jnp.asarray(ROWS, jnp.bfloat16)},
    "double": {"x": 1000 + ROWS.astype(float)},
    "whole": {"x": np.round(9 * ROWS).astype(np.int16), "labels": LABELS.astype(np.uint8)},
    "of another order": {"x": np.asfortranarray(ROWS)[::-1], "labels": LABELS[::-1]},
    "few": {"x": ROWS[[0, 1, 2, 6, 9]], "labels": LABELS[[0, 1, 2, 6, 9]]},
    "none": {"x": ROWS[:0], "labels": LABELS[:0]},
    "constant": {"x": np.full((N, P), 3.3)},
    "collapsed": {"x": ROWS[:C][LABELS], "weights": OTHERS.random(N)},
    "more classes than features": {
        "x": (OTHERS.standard_normal((20, 2))[MANY] + OTHERS.standard_normal((60, 2)) / 9).astype(
            "f4"
        ),
        "labels": MANY,
        "classes": 22,
        "head": Head(OTHERS.standard_normal((2, 22)).astype("f4")),
    },
}


@pytest.mark.parametrize("kind", ALIKE)
def test_rows_in_memory_say_what_their_moments_say(kind):
    given = {"x": ROWS, "labels": LABELS, "classes": C, "head": BENT, **ALIKE[kind]}
    theirs = by_moments(**given, ood=MEANS[0, : given["x"].shape[1]])
    ours = features.neural_collapse(
        given.pop("x"), **given, ood=MEANS[0, : given["head"].kernel.shape[0]]
    )
    for name, mine, other in zip(ours._fields, ours, theirs, strict=True):
        assert mine.dtype == other.dtype, name
        np.testing.assert_allclose(mine, other, rtol=2e-6, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e9, 1e30])
def test_rows_in_memory_may_have_any_size(size):
    def numbers(size):
        head = BENT._replace(bias=BENT.bias * np.float32(size))
        return [*measure(size * (MEANS[LABELS] + NOISE), head=head)._replace(nc5=0)]

    np.testing.assert_allclose(numbers(size), numbers(1), rtol=1e-5)
    assert 0 < measure(ROWS, head=BENT).nc4 < 1


def test_rows_far_from_the_origin_keep_the_digits_that_they_have():
    labels = np.arange(3000) % C
    x = (1e4 + 1e-2 * (MEANS[labels] + RNG.standard_normal((3000, P)))).astype(np.float32)
    ours, exact = measure(x, labels), features.neural_collapse(x.astype(float), labels=labels)
    np.testing.assert_allclose(ours[:12], exact[:12], rtol=1e-5)


def test_rows_in_memory_are_not_summed_to_a_matrix():
    p = 3000
    x = np.random.default_rng(0).standard_normal((2 * C, p)).astype(np.float32)
    tracemalloc.start()
    found = features.neural_collapse(x, labels=np.arange(2 * C) % C)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.rank == C - 1 and peak < p * p


def test_rows_in_memory_are_read_while_a_program_around_them_is_traced():
    x, labels = jnp.asarray(ROWS), jnp.asarray(LABELS)
    ours, elsewhere = measure(ROWS, head=BENT), features.of(ROWS)

    @jax.jit
    def program(scale):
        found = features.neural_collapse(x, labels=labels, head=BENT, ood=elsewhere)
        head = Head(scale * BENT.kernel, BENT.bias)
        traced = features.neural_collapse(x, labels=labels, classes=C, head=head)
        return scale * found.nc1, found, traced

    nc1, found, traced = program(2.0)
    assert float(nc1) == pytest.approx(2 * ours.nc1, rel=1e-6)
    assert float(found.nc4) == ours.nc4 and 0 < float(found.nc5) < 1
    assert float(traced.nc1) == pytest.approx(ours.nc1, rel=1e-5) and traced.nc4 is not None


def test_the_bias_of_the_head_decides_with_it_and_the_nearest_mean_has_none():
    x, labels = np.array([[0.0], [1.0], [4.0], [5.0]], np.float32), np.array([0, 0, 1, 1])
    kernel = np.array([[0.0, 1.0]], np.float32)
    bare, right = (Head(kernel, bias) for bias in (None, np.array([2.5, 0], np.float32)))
    m = features.of(x, labels=labels)
    agreed = [features.collapse_agreement(m, x, head=head).value for head in (bare, right)]
    assert [float(share) for share in agreed] == [0.75, 1.0]  # 1 > 0 without the bias
    unseen = np.array([[np.nan], [2.0], [9.0]], np.float32)
    found = features.collapse_agreement(
        m, unseen, head=bare, labels=np.array([0, 0, 1]), weights=np.array([0.0, 1.0, 1.0])
    )
    assert [float(x) for x in found] == [0.5, 1.0, 0.5, 2.0]
    assert np.isnan(features.collapse_agreement(m, unseen, head=bare).value)


def test_means_at_right_angles_to_what_comes_from_elsewhere():
    x = np.eye(C, P)[LABELS]
    elsewhere = features.of(np.tile(np.float32([0, 0, 0, 0, 1]), (3, 1)))
    assert measure(x, ood=elsewhere).nc5 == 0
    nothing = Head(np.zeros((P, C), np.float32))  # has no direction
    along = measure(x, ood=np.float32([1, 1, 1, 1, 0]), head=nothing)
    assert along.nc5 == pytest.approx(0.5)
    assert np.isnan([along.nc3, along.nc3_difference, along.nc3_cosine, along.unc3]).all()


def test_nc1_has_its_derivative_where_all_eigenvalues_are_alike():
    """Which a derivative through eigenvectors misses: an exact simplex, and a step off it."""
    even = np.arange(2 * C) % C
    step = RNG.standard_normal((2 * C, P))
    with jax.enable_x64(True):

        @jax.jit
        def nc1(t):
            x = SIMPLEX[even] + np.repeat([[0.1], [-0.1]], C, axis=0) + t * step
            return features.neural_collapse(x, labels=even, classes=C, method="gram").nc1

        numeric = (nc1(1e-5) - nc1(-1e-5)) / 2e-5
        assert abs(jax.jit(jax.grad(nc1))(0.0) - numeric) < 1e-8 * abs(numeric) + 1e-9


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_a_pseudo_inverse_is_that_of_numpy_and_nan_where_its_matrix_is(shape):
    a = RNG.standard_normal((*shape[:1], 2)) @ RNG.standard_normal((2, *shape[1:]))  # rank 2
    with jax.enable_x64(True):
        found = pseudo_inverse(jnp.asarray(a), jnp.asarray(0.0))
        np.testing.assert_allclose(found, np.linalg.pinv(a, 1e-8), atol=1e-10)
        assert np.isnan(pseudo_inverse(jnp.full(shape, jnp.nan), jnp.asarray(0.0))).all()


def test_what_a_target_says_of_a_missing_class_is_not_read():
    target = np.eye(4) - 1 / 3
    target[3], target[:, 3] = np.nan, np.nan
    corners = np.eye(3) - 1 / 3
    found = features.neural_collapse(corners, labels=np.arange(3), classes=4, target=target)
    assert float(found.nc2) < 1e-6


def test_lidar_is_the_papers_and_the_packages_number_on_demand():
    q, c = 4, 6
    labels = np.repeat(np.arange(c), q)
    x = (RNG.standard_normal((c, P))[labels] + RNG.standard_normal((c * q, P)) / 3).astype("f4")
    views = x.astype(float).reshape(c, q, P)
    means = views.mean(axis=1)
    off, between = views - means[:, None], (means - means.mean(axis=0)) / np.sqrt(c)

    def entropy(values):
        shares = values / values.sum() + 1e-7
        return np.exp(-np.sum(shares * np.log(shares)))

    def whitened(within):
        values, vectors = np.linalg.eigh(within)
        root = between @ vectors / np.sqrt(values) @ vectors.T
        return root.T @ root

    within = np.einsum("cqi,cqj->ij", off, off) / c
    paper = np.linalg.eigvalsh(whitened(within / q + 1e-4 * np.eye(P)))
    rows = whitened(within + 1e-6 * np.eye(P))
    package = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    for compat, values in (("paper", paper), ("reptrix", package)):
        found = features.lidar(x, labels=labels, compat=compat)
        assert float(found.value) == pytest.approx(entropy(values), rel=1e-5), compat
    ours = features.lidar(x, labels=labels)
    assert float(ours.value) == pytest.approx(entropy(paper), rel=1e-2)
    scaled = features.lidar(1e-8 * x, labels=labels)
    assert float(scaled.value) == pytest.approx(float(ours.value), rel=1e-5)


def test_a_probe_is_chosen_by_the_error_on_a_row_that_is_left_out():
    x = RNG.standard_normal((N, P)).astype(np.float32)
    onehot = np.eye(C, dtype=np.float32)[LABELS]
    penalties = np.float32([0.01, 0.3, 10])
    found = features.ridge_probe(x, labels=LABELS, classes=C, penalties=penalties)
    same = features.ridge_probe(x, targets=onehot, penalties=penalties)
    np.testing.assert_allclose(found.error, same.error, rtol=1e-5)
    off = x - x.mean(axis=0)
    s = off.T @ off
    for penalty, degrees, error in zip(penalties, found.degrees, found.error, strict=True):
        hat = off @ np.linalg.solve(s + penalty * np.trace(s) / P * np.eye(P), off.T) + 1 / N
        residual = onehot - hat @ onehot
        assert float(degrees) == pytest.approx(np.trace(hat), rel=1e-5)
        expected = np.sum(residual**2) / N / (1 - np.trace(hat) / N) ** 2
        assert float(error) == pytest.approx(expected, rel=1e-5)
    assert int(found.best) == np.argmin(found.error)
    few, y = x[:4], x[:4, :1] ** 2  # as many degrees as rows: the limit of no penalty is finite
    u, s, _ = np.linalg.svd((few - few.mean(axis=0)).astype(float), full_matrices=False)
    found = features.ridge_probe(few, targets=y)
    penalty = np.sum(s**2) / P * np.asarray(found.penalties, float)[:, None]
    kept = penalty / (s[:3] ** 2 + penalty)
    fitted = np.sum((kept * (u[:, :3].T @ (y - y.mean()).astype(float))[:, 0]) ** 2, axis=1)
    np.testing.assert_allclose(found.error, fitted / 4 / (kept.sum(axis=1) / 4) ** 2, rtol=1e-5)
    assert np.isnan(features.ridge_probe(x, targets=onehot, penalties=[0.0]).error).all()


def test_of_features_that_are_constant_a_probe_tells_the_mean():
    for constant in (0, 3):
        found = features.ridge_probe(np.full((N, P), constant, np.float32), labels=LABELS)
        outputs = constant * found.head.kernel.sum(axis=0) + found.head.bias
        np.testing.assert_allclose(outputs, np.array(COUNTS) / N, rtol=1e-5)
        assert -0.5 < float(found.r2) <= 0


def test_features_that_know_nothing_align_with_targets_by_chance():
    y = RNG.standard_normal((12, 2)).astype(np.float32)
    draws = [features.alignment(RNG.standard_normal((12, P)), targets=y) for _ in range(300)]
    values, chances = np.array(draws).T
    assert chances.mean() == pytest.approx(values.mean(), rel=0.05)
    x = (MEANS[LABELS] + NOISE).astype(np.float32)
    ours = features.alignment(x, labels=LABELS)
    assert float(ours.value) == pytest.approx(
        float(features.alignment(x, targets=np.eye(C)[LABELS].astype("f4")).value), rel=1e-5
    )
    head = Head(MEANS.T.astype(np.float32), np.ones(C, np.float32))
    outputs = x @ head.kernel + head.bias
    for centred in (True, False):
        found = features.alignment(x, head, centred=centred).value
        same = features.alignment(x, "outputs", outputs=outputs, centred=centred).value
        assert float(found) == pytest.approx(float(same), rel=1e-5)


@pytest.mark.parametrize("method", ["gram64", "gram"])
@pytest.mark.parametrize("size", [1e-25, 1e10, 1e25])
def test_the_size_of_features_is_no_matter(method, size):
    def numbers(size, method):
        x = (size * (MEANS[LABELS] + NOISE)).astype(np.float32)
        m = features.of(x, labels=LABELS, method=method)
        head = Head(MEANS.T.astype(np.float32), np.float32([size, 0, 0, 0]))
        collapsed = features.neural_collapse(m, head=head)
        aligned = [features.alignment(m, beside, centred=False) for beside in ("targets", head)]
        names = ("nc1", "nc1_cdnv", "nc2", "gnc2", "nc3", "nc3_difference", "unc3", "rank")
        told = [getattr(collapsed, name) for name in names]
        return np.array([*told, *np.ravel(aligned), features.lidar(m).value])

    np.testing.assert_allclose(numbers(size, method), numbers(1, "gram64"), rtol=1e-4)


def test_what_does_not_fit_is_refused_by_name():
    m = features.of(MEANS.astype("f4"), labels=np.arange(C))
    head = Head(np.zeros((P, C), np.float32))
    refused = {
        "no classes": lambda: features.neural_collapse(np.zeros((3, P))),
        "centre='median': choose": lambda: features.neural_collapse(m, centre="median"),
        "target='cube': choose": lambda: features.neural_collapse(m, target="cube"),
        r"target has shape \(2, 2\)": lambda: features.neural_collapse(m, target=np.eye(2)),
        "head is a ndarray": lambda: features.neural_collapse(m, head=np.zeros((P, C))),
        r"pass \[p, C\], \(5, 4\)": lambda: features.neural_collapse(
            m, head=Head(np.zeros((P, 2)))
        ),
        r"ood has shape \(3, 5\)": lambda: features.neural_collapse(m, ood=np.zeros((3, P))),
        r"head.kernel has shape \(4, 5\): pass": lambda: features.neural_collapse(
            m, head=Head(np.zeros((C, P)))
        ),
        "labels beside moments": lambda: features.neural_collapse(m, labels=np.arange(C)),
        r"features have shape \(5,\): pass rows": lambda: features.collapse_agreement(
            m, np.zeros(P), head=head
        ),
        r"labels have shape \(2,\): pass one": lambda: features.collapse_agreement(
            m, np.zeros((3, P)), head=head, labels=np.zeros(2, int)
        ),
        "compat='torch': choose": lambda: features.lidar(m, compat="torch"),
        "delta=0: choose above 0": lambda: features.lidar(m, delta=0),
        "penalties have shape": lambda: features.ridge_probe(m, penalties=[]),
        "validation has": lambda: features.ridge_probe(
            m, validation=features.of(np.zeros((3, P)), targets=np.zeros((3, C)))
        ),
        "hold no targets": lambda: features.ridge_probe(features.of(np.zeros((3, P)))),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
