"""Operators on raveled parameters, against matrices that dense automatic differentiation makes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spectral_jax.curvature import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    empirical_fisher,
    fisher,
    ggn,
    hessian,
    logit_jacobian,
    objective,
    stored,
)

SOFTMAX, SIGMOID, SQUARED = SoftmaxCrossEntropy(), SigmoidCrossEntropy(), SquaredError()
N, T, C = 7, 3, 3


@pytest.fixture(autouse=True)
def double(quick_compilation):
    with jax.enable_x64(True):
        yield


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def model(params, inputs):
    """Dict inputs, sequence outputs, and a matrix that is used twice."""
    hidden = jnp.tanh(inputs["x"] @ params["tied"] + params["bias"])
    hidden = jnp.tanh(hidden @ params["tied"].T)[..., :C] * inputs["gate"][:, None, None]
    return hidden @ params["head"]


def parameters():
    return {"bias": normal(0, 2), "head": normal(1, C, C), "tied": normal(2, 4, 2), "step": 3}


def inputs(n=N):
    return {"x": normal(3, n, T, 4), "gate": 1 + normal(4, n) ** 2}


def targets(loss, n=N):
    """Soft labels, or of a softmax classes with every fifth item masked."""
    soft = np.random.default_rng(5).uniform(size=(n, T, C))
    masked = np.arange(n * T).reshape(n, T) % 5 == 0
    return np.where(masked, -1, np.argmax(soft, axis=-1)) if loss == SOFTMAX else soft


def flat():
    """The raveled parameters but for the counter, and the way back."""
    params = parameters()
    step = params.pop("step")
    vector, unravel = ravel_pytree(params)
    return vector, lambda w: unravel(w) | {"step": step}


def pieces(loss, weight):
    """Dense Jacobians ``[items, c, p]``, output Hessians and gradients, shares ``[items]``."""
    w, tree = flat()
    t = targets(loss)
    of_items = jnp.reshape(t, (N * T, *t.shape[2:]))

    def outputs(w):
        return model(tree(w), inputs()).reshape(N * T, C)

    def of_item(f, t):
        return loss.value(f[None], t[None])[0]

    @jax.jit
    def dense(w):
        f = outputs(w)
        derivatives = (jax.vmap(each(of_item))(f, of_items) for each in (jax.hessian, jax.grad))
        return jax.jacfwd(outputs)(w), *derivatives

    jacobian, hessians, gradients = dense(w)
    shares = np.repeat(weight, T) * (of_items >= 0 if loss == SOFTMAX else 1)
    return jacobian, hessians, gradients, shares / shares.sum()


def close(operator, expected):
    np.testing.assert_allclose(operator.dense(), expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID, SQUARED], ids=lambda loss: type(loss).__name__)
def test_operators_are_the_matrices_of_dense_differentiation(loss):
    """Weighted means over unmasked items, in micro-batches of 3 + 3 + 1."""
    weight = np.arange(N) + 0.5
    jacobian, hessians, gradients, shares = pieces(loss, weight)
    data, params = (inputs(), targets(loss)), parameters()
    options = dict(weight=weight, micro_batch=3)
    gauss_newton = np.einsum("i,iap,iab,ibq->pq", shares, jacobian, hessians, jacobian)
    close(ggn(model, loss, params, data, **options), gauss_newton)
    rows = np.einsum("ia,iap->ip", gradients, jacobian)
    empirical = np.einsum("i,ip,iq->pq", shares, rows, rows)
    close(empirical_fisher(model, loss, params, data, **options), empirical)

    def mean(w):
        values = loss.value(model(flat()[1](w), inputs()), targets(loss))
        return jnp.sum(shares.reshape(N, T) * values)

    full = jax.jit(jax.hessian(mean))(flat()[0])
    close(hessian(objective(model, loss), params, data, **options), full)


def linear(w, x):
    return x @ w


@partial(jax.jit, static_argnames="micro_batch")
def products(data, index, *, micro_batch):
    """Of a loss and of outputs, whose targets are drawn."""
    params, key = parameters(), jax.random.key(0)
    v = jnp.asarray(normal(9, flat()[0].size))
    sampled = dict(mode="mc", key=key, samples=2, index=index)
    return (
        hessian(objective(model, SOFTMAX), params, data, micro_batch=micro_batch) @ v,
        fisher(model, SOFTMAX, params, data, micro_batch=micro_batch, **sampled) @ v,
    )


def test_micro_batches_and_order_change_rounding_only():
    data, index = (inputs(), targets(SOFTMAX)), np.arange(N)
    whole = products(data, index, micro_batch=None)
    for micro_batch in range(1, N):
        order = np.random.default_rng(micro_batch).permutation(N)
        shuffled = jax.tree.map(lambda x, order=order: x[order], data)
        got = products(shuffled, order, micro_batch=micro_batch)
        np.testing.assert_allclose(np.stack(got), np.stack(whole), atol=1e-12)


def test_an_objective_that_was_compiled_masks_the_same_items():
    loss, data = objective(model, SOFTMAX), (inputs(), targets(SOFTMAX))
    plain, compiled = (hessian(f, parameters(), data).dense() for f in (loss, jax.jit(loss)))
    np.testing.assert_allclose(compiled, plain, rtol=1e-12)


def test_closed_forms_of_linear_models():
    """(2/N) X^T X; (1/N) X^T diag(s (1 - s)) X; and at zero weights, lambda_j(X^T X / N) / C."""
    x = normal(0, 6, 4)
    w, zeros = normal(1, 4, 1), np.zeros((6, 1))
    for operator in (
        ggn(linear, SQUARED, w, (x, zeros)),
        hessian(objective(linear, SQUARED), w, (x, zeros)),
    ):
        np.testing.assert_allclose(operator.dense(), 2 / 6 * x.T @ x, atol=1e-14)
    s = 1 / (1 + np.exp(-x @ w))
    logistic = ggn(linear, SIGMOID, w, (x, zeros)).dense()
    np.testing.assert_allclose(logistic, x.T @ (s * (1 - s) * x) / 6, atol=1e-14)
    softmax = fisher(linear, SOFTMAX, np.zeros((4, C)), (x, np.zeros(6, int))).dense()
    values = np.linalg.eigvalsh(x.T @ x / 6) / C
    expected = np.sort(np.concatenate([np.zeros(4), values, values]))
    np.testing.assert_allclose(np.linalg.eigvalsh(softmax), expected, atol=1e-14)


@pytest.mark.parametrize("method", ["reverse", "difference"])
def test_functions_without_a_forward_rule_have_products(method):
    """A custom reverse rule, as kernels of attention have it, cannot be pushed forward."""

    @jax.custom_vjp
    def backward_only(x):
        return jnp.tanh(x)

    backward_only.defvjp(lambda x: (jnp.tanh(x), x), lambda x, u: (u * (1 - jnp.tanh(x) ** 2),))
    x, w, y = normal(0, 6, 4), normal(1, 4, 2), normal(2, 6, 2)
    kernel, plain = (lambda w, x, f=f: f(x @ w) for f in (backward_only, jnp.tanh))
    with pytest.raises(TypeError, match="forward-mode"):
        ggn(kernel, SQUARED, w, (x, y)) @ jnp.ones(8)
    for matrix in (
        lambda f, **options: ggn(f, SQUARED, w, (x, y), **options),
        lambda f, **options: hessian(objective(f, SQUARED), w, (x, y), **options),
    ):
        expected = matrix(plain) @ jnp.ones(8)
        tolerance = 1e-13 if method == "reverse" else 1e-8
        got = matrix(kernel, method=method) @ jnp.ones(8)
        np.testing.assert_allclose(got, expected, rtol=tolerance)


def test_sampled_targets_approach_the_exact_fisher_matrix():
    exact = ggn(linear, SOFTMAX, normal(1, 4, C), (x := normal(0, 6, 4), y := np.zeros(6, int)))
    options = dict(mode="mc", key=jax.random.key(3), samples=3000)
    sampled = fisher(linear, SOFTMAX, normal(1, 4, C), (x, y), **options).dense()
    error = np.linalg.norm(sampled - exact.dense()) / np.linalg.norm(exact.dense())
    assert error < 0.1


def test_where_keeps_rows_and_columns_of_the_chosen_leaves():
    data, params = (inputs(), targets(SQUARED)), parameters()
    whole = ggn(model, SQUARED, params, data).dense()
    # In alphabetical order: 2 numbers of the bias, 9 of the head, 8 of the tied matrix.
    kept = np.r_[0:2, 11:19]
    by_name = ggn(model, SQUARED, params, data, where=lambda name: name != "head")
    close(by_name, whole[np.ix_(kept, kept)])
    flags = {"bias": False, "head": True, "tied": False, "step": True}
    by_tree = ggn(model, SQUARED, params, data, where=flags)
    close(by_tree, whole[2:11, 2:11])


def test_a_mean_loss_is_that_of_its_examples():
    loss = objective(model, SQUARED)
    data, params = (inputs(6), targets(SQUARED, 6)), parameters()

    def mean(params, batch):
        return jnp.mean(loss(params, batch))

    v = jnp.ones(flat()[0].size)
    expected = hessian(loss, params, data) @ v
    np.testing.assert_allclose(hessian(mean, params, data, micro_batch=2) @ v, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="micro_batch=4 does not divide 6"):
        hessian(mean, params, data, micro_batch=4)
    with pytest.raises(ValueError, match="which has no weights"):
        hessian(mean, params, data, weight=np.ones(6))


def test_the_jacobian_has_a_row_for_each_output():
    w, tree = flat()
    expected = jax.jit(jax.jacfwd(lambda w: model(tree(w), inputs()).ravel()))(w)
    jacobian = logit_jacobian(model, parameters(), inputs(), micro_batch=3)
    assert jacobian.shape == expected.shape
    np.testing.assert_allclose(jacobian @ jnp.eye(w.size), expected, atol=1e-14)
    np.testing.assert_allclose(jacobian.T @ jnp.eye(len(expected)), expected.T, atol=1e-14)


def by_example():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


@pytest.mark.parametrize("micro_batch", [None, 8], ids=["whole", "micro-batches"])
def test_sharded_examples_cost_one_all_reduce_a_product(micro_batch):
    data, params = (inputs(16), targets(SOFTMAX, 16)), parameters()
    sharded = jax.device_put(data, by_example())
    build = partial(ggn, model, SOFTMAX, params)
    operator = build(sharded, micro_batch=micro_batch)
    v = jnp.asarray(normal(9, operator.size))
    program = jax.jit(lambda op, v: op @ v).lower(operator, v).compile()
    np.testing.assert_allclose(program(operator, v), build(data) @ v, atol=1e-13)
    text = program.as_text()
    assert text.count(" all-reduce(") == 1
    assert not [moved for moved in ("all-gather", "all-to-all", "permute") if moved in text]


def test_micro_batches_that_devices_cannot_share_are_refused():
    data = jax.device_put((inputs(16), targets(SOFTMAX, 16)), by_example())
    with pytest.raises(ValueError, match="micro_batch=4 for examples on 8 devices"):
        ggn(model, SOFTMAX, parameters(), data, micro_batch=4)


def test_compensated_sums_keep_what_plain_ones_drop():
    """One example counts 1, and 4095 others 2^-25, which float32 rounds off one by one."""
    x = np.full((4096, 1), 2.0**-12.5, np.float32)
    x[0] = 1.0
    w, y = np.zeros((1, 1), np.float32), np.zeros((4096, 1), np.float32)
    exact = 2 * np.mean(np.float64(x) ** 2)
    plain, compensated = (
        float(ggn(linear, SQUARED, w, (x, y), micro_batch=1, accumulate=how).dense()[0, 0])
        for how in ("plain", "compensated")
    )
    assert abs(compensated / exact - 1) < 1e-7 < 1e-5 < abs(plain / exact - 1)


def test_half_parameters_count_as_the_numbers_that_they_are():
    w = jnp.asarray(normal(1, 4, 2), "bfloat16")
    x, y = np.float32(normal(0, 6, 4)), np.zeros((6, 2), np.float32)
    operator = ggn(linear, SIGMOID, w, (x, y))
    assert operator.dtype == jnp.float32
    full = ggn(linear, SIGMOID, np.float32(w), (x, y))
    np.testing.assert_array_equal(operator.dense(), full.dense())


def test_a_second_operator_of_the_same_shapes_compiles_nothing(compilations):
    data, v = (inputs(), targets(SQUARED)), jnp.ones(flat()[0].size)
    jax.block_until_ready(ggn(model, SQUARED, parameters(), data, micro_batch=3) @ v)
    before = len(compilations)
    moved = parameters() | {"bias": normal(77, 2)}
    jax.block_until_ready(ggn(model, SQUARED, moved, data, micro_batch=3) @ v)
    assert len(compilations) == before


@pytest.mark.parametrize("micro_batch", [None, 3], ids=["whole", "micro-batches"])
def test_stored_activations_give_the_same_products_and_share_programs(micro_batch, compilations):
    data, v = (inputs(), targets(SOFTMAX)), jnp.asarray(normal(9, flat()[0].size))
    loss = objective(model, SOFTMAX)
    for bias in (0, 77):
        before = len(compilations)
        moved = parameters() | {"bias": normal(bias, 2)}
        op = hessian(loss, moved, data, micro_batch=micro_batch)
        np.testing.assert_allclose(stored(op) @ v, op @ v, rtol=1e-13)
    assert len(compilations) == before  # the second time


KEY = jax.random.key(0)
X, Y, W = np.ones((4, 2)), np.ones((4, 1)), np.ones((2, 1))
REFUSED = {
    "unequal lengths": (lambda: ggn(linear, SQUARED, W, (X, Y[:3])), "same leading axis"),
    "no example": (lambda: ggn(linear, SQUARED, W, (X[:0], Y[:0])), "at least one"),
    "no pair": (lambda: ggn(linear, SQUARED, W, X), r"pass \(inputs, targets\)"),
    "no loss": (lambda: ggn(linear, jnp.sum, W, (X, Y)), "pass SoftmaxCrossEntropy"),
    "outputs": (lambda: ggn(lambda w, x: x @ w[:, 0], SQUARED, W, (X, Y)), "with c = 1"),
    "targets": (lambda: ggn(linear, SQUARED, W, (X, Y[:, 0])), r"targets\[..., None\]"),
    "weight": (lambda: ggn(linear, SQUARED, W, (X, Y), weight=np.ones(3)), "each of 4 examples"),
    "where": (lambda: ggn(linear, SQUARED, W, (X, Y), where=lambda name: False), "where chooses"),
    "flags": (lambda: ggn(linear, SQUARED, W, (X, Y), where=[True]), "one boolean for each leaf"),
    "names": (lambda: ggn(linear, SQUARED, W, (X, Y), where="lora"), "one boolean for each leaf"),
    "masks": (lambda: ggn(linear, SQUARED, W, (X, Y), where=W > 0), "one boolean for each leaf"),
    "complex": (lambda: ggn(linear, SQUARED, W + 0j, (X, Y)), "complex"),
    "precision": (lambda: ggn(linear, SQUARED, np.float32(W), (X, Y)), "cast one to the other"),
    "values": (lambda: hessian(lambda w, x: jnp.ones(3), W, X), r"return one real number"),
    "method": (lambda: hessian(lambda w, x: x @ w, W, X, method="backward"), "choose 'forward'"),
    "micro_batch": (lambda: ggn(linear, SQUARED, W, (X, Y), micro_batch=0), "micro_batch=0"),
    "key": (lambda: fisher(linear, SQUARED, W, (X, Y), mode="mc"), "pass key="),
    "seed": (lambda: fisher(linear, SQUARED, W, (X, Y), mode="mc", key=0), "key=0 .*pass key="),
    "index": (
        lambda: fisher(linear, SQUARED, W, (X, Y), mode="mc", key=KEY, index=np.ones((4, 1), int)),
        r"index is int64\[4, 1\]: pass 4 whole numbers",
    ),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_misuse_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_any_weight_products_are_nan():
    assert jnp.isnan(ggn(linear, SQUARED, W, (X, Y), weight=np.zeros(4)) @ jnp.ones(2)).all()


def test_a_loss_that_is_a_plain_number_has_no_curvature():
    assert not (hessian(lambda params, batch: 1.0, W, (X, Y)) @ jnp.ones(W.size)).any()
