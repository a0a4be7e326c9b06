"""Losses of outputs: closed forms against automatic differentiation, where that has the digits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.curvature import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    item_shares,
)

C = 4
SOFTMAX, SIGMOID, SQUARED = SoftmaxCrossEntropy(), SigmoidCrossEntropy(), SquaredError()


@pytest.fixture(autouse=True)
def double(quick_compilation):
    with jax.enable_x64(True):
        yield


def outputs():
    return jax.random.normal(jax.random.key(0), (2, 3, C), "float64")


def soft_labels():
    return jax.random.uniform(jax.random.key(1), (2, 3, C), "float64")


CASES = {
    "classes": (SOFTMAX, lambda: jnp.array([[0, 3, -1], [2, 2, 1]])),
    "soft labels": (SOFTMAX, soft_labels),
    "binary labels": (SIGMOID, lambda: soft_labels().at[1, 2, 0].set(-1.0)),
    "numbers": (SQUARED, soft_labels),
}


def textbook(loss, f, *, t):
    """The sum over items, as plainly as it can be written."""
    if loss == SQUARED:
        return jnp.sum((f - t) ** 2)
    if loss == SIGMOID:
        s = 1 / (1 + jnp.exp(-f))
        return -jnp.sum(jnp.where(t < 0, 0, t * jnp.log(s) + (1 - t) * jnp.log(1 - s)))
    labels = t if t.ndim == f.ndim else jax.nn.one_hot(t, C)  # of a negative class: zeros
    return -jnp.sum(labels * jnp.log(jnp.exp(f) / jnp.exp(f).sum(-1, keepdims=True)))


@pytest.mark.parametrize("loss, targets", CASES.values(), ids=CASES)
def test_closed_forms_are_the_derivatives_of_the_textbook_formula(loss, targets):
    @jax.jit
    def both(f, t, v):
        plain = partial(textbook, loss, t=t)
        gradient, curved = jax.jvp(jax.grad(plain), (f,), (v,))
        ours = loss.value(f, t).sum(), loss.gradient(f, t), loss.hessian_product(f, t, v)
        return ours, (plain(f), gradient, curved)

    for got, expected in zip(*both(outputs(), targets(), soft_labels()), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("loss, targets", CASES.values(), ids=CASES)
def test_a_root_times_its_transpose_is_the_hessian(loss, targets):
    @jax.jit
    def matrices(f, t):
        """For each column of the identity, of outputs and of the root's columns."""
        columns, r = jnp.eye(C), loss.rank(C)
        spread = lambda column: jnp.broadcast_to(column, (*f.shape[:-1], column.size))  # noqa: E731
        transpose = jax.vmap(lambda u: loss.root_transpose(f, t, spread(u)))(columns)
        root = jax.vmap(lambda y: loss.root_product(f, t, spread(y)))(jnp.eye(r))
        hessian = jax.vmap(lambda u: loss.hessian_product(f, t, spread(u)))(columns)
        return root, transpose, hessian

    root, transpose, hessian = map(np.asarray, matrices(outputs(), targets()))
    assert root.shape == (loss.rank(C), 2, 3, C)
    np.testing.assert_allclose(root, np.einsum("aijr->rija", transpose), atol=1e-14)
    np.testing.assert_allclose(np.einsum("rija,rijb->aijb", root, root), hessian, atol=1e-14)


@pytest.mark.parametrize("top", range(3))
def test_saturated_softmaxes_keep_the_digits_of_what_is_left(top):
    """p = (1, 1e-20, 3e-30) in any order: p_top - 1 and p_top (1 - p_top) have no digits here."""
    small = np.array([1e-20, 3e-30])
    p = np.insert(small, top, 1.0)
    others = [j for j in range(3) if j != top]
    expected = np.diag(p) - np.outer(p, p)
    expected[top, top] = small.sum()

    @jax.jit
    def products(f, t):
        root = jnp.stack([SOFTMAX.root_product(f, t, e)[0] for e in jnp.eye(2)[:, None]], axis=1)
        back, product = (
            jnp.stack([times(f, t, e[None])[0] for e in jnp.eye(3)])
            for times in (SOFTMAX.root_transpose, SOFTMAX.hessian_product)
        )
        return root, back, product, SOFTMAX.gradient(f, t)[0]

    found = products(np.log(p)[None], np.array([top]))
    root, back, product, gradient = map(np.asarray, found)
    np.testing.assert_allclose(root @ root.T, expected, rtol=1e-13)
    np.testing.assert_allclose(back, root, rtol=1e-13)
    np.testing.assert_allclose(product, expected, rtol=1e-13)
    np.testing.assert_allclose(gradient[top], -small.sum(), rtol=1e-13)
    np.testing.assert_allclose(gradient[others], small, rtol=1e-13)


def test_huge_outputs_neither_overflow_nor_turn_into_nan():
    f, t, v = jnp.array([[1e5, -1e5]]), jnp.array([[1.0, 0.0]]), jnp.ones((1, 2))
    for loss in (SOFTMAX, SIGMOID):
        assert loss.value(f, t).tolist() == [0.0]
        assert not loss.gradient(f, t).any() and not loss.hessian_product(f, t, v).any()


@pytest.mark.parametrize("name", ["classes", "binary labels", "numbers"])
def test_sampled_gradients_have_the_hessian_as_second_moment(name):
    loss, targets = CASES[name]
    f, t = outputs()[1, 2:], targets()[1, 2:]  # where one binary label is masked
    hessian = jax.vmap(jax.jit(lambda e: loss.hessian_product(f, t, e[None])[0]))(np.eye(C))
    many = np.broadcast_to(f[0], (50_000, C))
    given = np.broadcast_to(t[0], (len(many), *t.shape[1:]))
    draw = jax.jit(lambda f, t: loss.gradient(f, loss.sample(jax.random.key(5), f, t)))
    gradients = np.asarray(draw(many, given))
    squares = gradients[:, :, None] * gradients[:, None]
    error = squares.std(axis=0) / len(many) ** 0.5
    assert (np.abs(squares.mean(axis=0) - hessian) <= 4 * error).all()


def test_shares_leave_out_masked_items_and_count_only_ratios_of_weights():
    f, t = outputs(), CASES["classes"][1]()
    np.testing.assert_allclose(item_shares(SOFTMAX, f, t), np.where(t >= 0, 1 / 5, 0), rtol=1e-15)
    weighted = item_shares(SOFTMAX, f, t, jnp.array([1e-300, 2e-300]))
    np.testing.assert_allclose(weighted, np.array([[1, 1, 0], [2, 2, 2]]) / 8, rtol=1e-15)
    by_item = item_shares(SQUARED, f, soft_labels(), jnp.zeros((2, 3)).at[1, 1].set(7.0))
    assert by_item[1, 1] == 1.0 and by_item.sum() == 1.0
    assert jnp.isnan(item_shares(SOFTMAX, f, jnp.full((2, 3), -1))).all()
    assert jnp.isnan(item_shares(SQUARED, f, soft_labels(), jnp.array([3.0, -1.0]))).all()


def test_a_binary_label_that_is_nan_masks_nothing():
    f, t = outputs()[:1, 0], jnp.full((1, C), jnp.nan)
    assert SIGMOID.mask(t).tolist() == [1] and jnp.isnan(SIGMOID.value(f, t)).all()
    expected = SIGMOID.hessian_product(f, jnp.ones((1, C)), f)
    assert (SIGMOID.hessian_product(f, t, f) == expected).all() and expected.all()


def test_a_class_beyond_the_last_gives_nan():
    f = outputs()[0]
    assert jnp.isnan(SOFTMAX.value(f, jnp.array([0, 1, C]))).tolist() == [False, False, True]
    assert jnp.isnan(SOFTMAX.gradient(f, jnp.array([0, 1, C]))[2]).all()


def test_classes_may_be_bytes_however_many_there_are():
    f, small = jax.random.normal(jax.random.key(0), (3, 256)), np.array([0, 7, 255], np.uint8)
    wide = small.astype(np.int32)
    for of in (SOFTMAX.value, SOFTMAX.gradient, partial(SOFTMAX.sample, jax.random.key(1))):
        np.testing.assert_array_equal(of(f, small), of(f, wide))
    assert jnp.isfinite(SOFTMAX.value(f, small)).all()
    np.testing.assert_array_equal(
        SOFTMAX.hessian_product(f, small, f), SOFTMAX.hessian_product(f, wide, f)
    )


def test_half_outputs_are_computed_in_float32():
    f, t = outputs().astype("bfloat16"), CASES["classes"][1]()
    assert SOFTMAX.value(f, t).dtype == SOFTMAX.gradient(f, t).dtype == jnp.float32


@pytest.mark.parametrize("product", ["gradient", "hessian_product"])
def test_compiled_products_hold_no_temporary_as_large_as_the_outputs(product):
    """A vocabulary of 50,304 is what exhausts the memory of language models."""
    f = jax.ShapeDtypeStruct((8, 50_304), jnp.float32)
    t = jax.ShapeDtypeStruct((8,), jnp.int32)
    arguments = (f, t, f)[: 2 if product == "gradient" else 3]
    memory = jax.jit(getattr(SOFTMAX, product)).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.01 * f.size * 4


@pytest.mark.parametrize(
    "loss, targets, message",
    [
        (SOFTMAX, jnp.zeros((2, 3), jnp.int32), r"integer classes \(2,\) or floating soft"),
        (SOFTMAX, jnp.zeros(2), "floating soft labels"),
        (SQUARED, jnp.zeros(2), r"targets\[..., None\]"),
        (SIGMOID, jnp.zeros(2), r"targets\[..., None\]"),
    ],
)
def test_targets_that_do_not_fit_are_refused(loss, targets, message):
    with pytest.raises(ValueError, match=message):
        loss.value(jnp.zeros((2, 3)), targets)


def test_a_weight_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"2 examples \[2\], or for each item \[2, 3\]"):
        item_shares(SQUARED, outputs(), soft_labels(), jnp.ones(3))


def test_a_single_class_has_neither_gradient_nor_curvature():
    f, t = jnp.ones((2, 1)), jnp.array([0, 0])
    assert SOFTMAX.rank(1) == 0
    assert SOFTMAX.root_product(f, t, jnp.ones((2, 0))).tolist() == [[0.0], [0.0]]
    assert not SOFTMAX.gradient(f, t).any() and not SOFTMAX.hessian_product(f, t, f).any()


@pytest.mark.parametrize("c", [2, 64])
@pytest.mark.parametrize("name", ["hessian_product", "root_transpose", "root_product"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_block_of_many_vectors_is_multiplied_as_one_by_one(name, c, dtype):
    """As in ``dense()``: jaxlib 0.10.2 multiplies such blocks wrongly (jax#39103)."""
    f, block = normal(0, 64, c, dtype=dtype), normal(1, 1024, 64, c, dtype=dtype)
    block = block[..., : SOFTMAX.rank(c)] if name == "root_product" else block
    y = jnp.arange(64) % c

    @jax.jit
    def products(f, block):
        return jax.vmap(lambda v: getattr(SOFTMAX, name)(f, y, v))(block)

    found = products(f, block)
    for at in (0, 511, 512, 1023):
        np.testing.assert_allclose(found[at], products(f, block[at : at + 1])[0], atol=1e-5)


@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID], ids=lambda loss: type(loss).__name__)
def test_losses_of_many_networks_are_those_of_each(loss):
    """Soft labels that members share, in an ensemble that ``vmap`` evaluates."""
    outputs = normal(0, 256, 64, 16, dtype="float32")
    labels = jax.nn.softmax(normal(1, 64, 16, dtype="float32"))

    @jax.jit
    def weighted(labels, outputs):
        return jax.vmap(lambda f: 2 * loss.value(f, labels) + f[..., 0])(outputs)

    found = weighted(labels, outputs)
    for at in (0, 127, 128, 255):
        np.testing.assert_allclose(found[at], weighted(labels, outputs[at : at + 1])[0], rtol=1e-5)


def test_a_derivative_passes_through_labels_that_are_zero():
    labels = jnp.zeros((2, 3, C)).at[..., 1].set(1.0)
    slope = jax.grad(lambda t: SOFTMAX.value(outputs(), t).sum())(labels)
    np.testing.assert_allclose(slope, -jax.nn.log_softmax(outputs()), rtol=1e-12)


def normal(seed, *shape, dtype):
    return jax.random.normal(jax.random.key(seed), shape, dtype)
