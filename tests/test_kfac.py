"""Kronecker factors: their algebra against dense matrices, their values against autodiff."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spectral_jax.curvature.kfac import ekfac, kfac
from spectral_jax.curvature.kronecker import KroneckerBlock, KroneckerOperator, nearest_product
from spectral_jax.curvature.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def definite(n, rank=None):
    root = RNG.standard_normal((n, rank or n + 2))
    return root @ root.T


A, B, DENSE, SCALES = definite(5), definite(3), definite(4), RNG.uniform(0.5, 2, 6)
# In the raveled vector: the bias of a layer, a vector, a kernel stored [out, 2, 2], a table.
PLACE = np.arange(25)
KERNEL = PLACE[7:19].reshape(3, 2, 2).transpose(2, 1, 0).reshape(4, 3)
LAYER_INDEX = np.concatenate([KERNEL, PLACE[None, :3]])
X = RNG.standard_normal((25, 2))
LAYER = np.ix_(LAYER_INDEX.ravel(), LAYER_INDEX.ravel())


def operator(a=A, b=B):
    return KroneckerOperator(
        (
            KroneckerBlock(jnp.asarray(a), jnp.asarray(b), LAYER_INDEX),
            KroneckerBlock(jnp.asarray(SCALES), jnp.ones((1, 1)), PLACE[19:, None]),
            KroneckerBlock(jnp.ones((1, 1)), jnp.asarray(DENSE), PLACE[None, 3:7]),
        )
    )


def by_hand(a=A, b=B):
    """The same matrix from ``np.kron``, its rows moved to where the parameters stand."""
    matrix = np.zeros((25, 25))
    matrix[np.ix_(LAYER_INDEX.ravel(), LAYER_INDEX.ravel())] = np.kron(a, b)
    matrix[3:7, 3:7] = DENSE
    matrix[19:, 19:] = np.diag(SCALES)
    return matrix


@jax.jit
def answers(op, x=X, damping=0.3):
    """All that an operator can say, in one program for every operator of these shapes."""
    basis = op.eigenbasis()
    return {
        "dense": op.dense(),
        "product": op @ x,
        "diagonal": op.diagonal(),
        "trace": op.trace(),
        "eigenvalues": op.eigenvalues(),
        "coordinates": basis.to_basis(x[:, 0]),
        "back": basis.from_basis(basis.to_basis(x[:, 0])),
        "from_eigenbasis": basis.dense(),
        "inverse": op.inverse(damping).dense(),
        "pi_inverse": op.inverse(damping, split="pi").dense(),
        "logdet": op.logdet(),
        "damped_logdet": op.logdet(damping),
    }


@jax.jit
def dense(op):
    return op.dense()


def close(ours, theirs, tolerance=1e-12):
    scale = np.max(np.abs(theirs))
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance * scale)


def test_products_are_those_of_the_dense_matrix():
    found, matrix = answers(operator()), by_hand()
    close(found["dense"], matrix)
    close(found["product"], matrix @ X)
    close(found["diagonal"], np.diag(matrix))
    close(found["trace"], np.trace(matrix))


def test_eigenvalues_and_basis_are_those_of_the_dense_matrix():
    found, matrix = answers(operator()), by_hand()
    close(found["eigenvalues"], np.linalg.eigvalsh(matrix)[::-1])
    close(found["back"], X[:, 0])
    close(np.linalg.norm(found["coordinates"]), np.linalg.norm(X[:, 0]))
    close(found["from_eigenbasis"], matrix)


def test_damped_inverse_and_logdet_are_those_of_the_dense_matrix():
    found, damped = answers(operator()), by_hand() + 0.3 * np.eye(25)
    close(found["inverse"], np.linalg.inv(damped), 1e-10)
    close(found["damped_logdet"].value, np.linalg.slogdet(damped)[1])
    close(found["logdet"].value, np.linalg.slogdet(by_hand())[1])
    assert found["logdet"].rank == found["damped_logdet"].rank == 25


def test_pi_damping_inverts_the_product_of_the_damped_factors():
    pi, root = np.sqrt((np.trace(A) / 5) / (np.trace(B) / 3)), np.sqrt(0.3)
    expected = by_hand(A + pi * root * np.eye(5), B + root / pi * np.eye(3))
    found = answers(operator())["pi_inverse"]
    close(found[LAYER], np.linalg.inv(expected)[LAYER], 1e-10)


def test_a_singular_matrix_says_so():
    op = operator(a=definite(5, rank=2))
    found, undamped = answers(op), answers(op, damping=0.0)
    assert found["logdet"].value == -jnp.inf
    assert found["logdet"].rank == found["damped_logdet"].rank == 25 - 3 * 3
    assert jnp.isfinite(found["damped_logdet"].value)
    assert jnp.sum(found["eigenvalues"] == 0) == 3 * 3
    assert jnp.isnan(undamped["inverse"][LAYER]).all()
    close(undamped["inverse"][3:7, 3:7], np.linalg.inv(DENSE), 1e-10)
    close(found["inverse"] @ (found["dense"] + 0.3 * np.eye(25)), np.eye(25), 1e-10)


def test_a_zero_block_is_inverted_by_its_damping_alone():
    found = answers(operator(a=np.zeros((5, 5))), damping=0.25)
    for inverse in (found["inverse"], found["pi_inverse"]):
        close(inverse[LAYER], 4 * np.eye(15))


def test_nan_in_a_factor_is_nan_in_its_block():
    found = answers(operator(a=np.full((5, 5), np.nan)))
    assert jnp.isnan(found["eigenvalues"]).sum() == 15
    assert jnp.isnan(found["damped_logdet"].value)
    for inverse in (found["inverse"], found["pi_inverse"]):
        assert jnp.isnan(inverse[LAYER]).all() and jnp.isfinite(inverse[3:7, 3:7]).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_factors_may_have_opposite_scales(scale):
    found, plain = answers(operator(a=scale * A, b=B / scale)), answers(operator())
    for name in ("eigenvalues", "inverse", "pi_inverse"):
        close(found[name], plain[name], 1e-10)


def test_small_products_of_sure_factors_are_no_rounding():
    """1e-20 of the largest would be lost in an ``eigh`` of the whole matrix."""
    graded = jnp.diag(jnp.array([1.0, 1e-10]))
    op = KroneckerOperator((KroneckerBlock(graded, graded, PLACE[:4].reshape(2, 2)),))
    np.testing.assert_allclose(op.eigenvalues(), [1, 1e-10, 1e-10, 1e-20], rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda op: op.inverse(-1.0),
        lambda op: op.logdet(jnp.ones(2)),
        lambda op: op.inverse(1.0, split="half"),
        lambda op: op @ jnp.ones(3),
        lambda op: op.eigenbasis().to_basis(jnp.ones(op.size + 1)),
        lambda op: op.eigenbasis().from_basis(jnp.ones(op.size - 1)),
    ],
)
def test_misuse_is_named(call):
    with pytest.raises(ValueError, match="choose|pass"):
        call(operator())


def test_operators_transform():
    def damped(scale):
        return operator(scale * A).logdet(0.3).value

    mapped = jax.jit(jax.vmap(damped))(jnp.array([1.0, 1 + 1e-5, 1 - 1e-5]))
    close(mapped[0], np.linalg.slogdet(by_hand() + 0.3 * np.eye(25))[1])
    close(jax.jit(jax.grad(damped))(1.0), (mapped[1] - mapped[2]) / 2e-5, 1e-7)


def test_the_nearest_product_is_the_best_rank_one():
    terms = [(definite(3), definite(4)) for _ in range(3)]
    nearest = jax.jit(nearest_product)
    a, b = nearest([(jnp.asarray(a), jnp.asarray(b)) for a, b in terms])
    rearranged = sum(np.outer(a.ravel(), b.ravel()) for a, b in terms)
    u, s, vt = np.linalg.svd(rearranged)
    close(np.outer(a.ravel(), b.ravel()), s[0] * np.outer(u[:, 0], vt[0]))
    diagonal, full = (jnp.ones(3), jnp.eye(4)), (jnp.eye(3), jnp.eye(4))
    close(np.kron(*nearest([diagonal, full])), 2 * np.eye(12))
    assert not any(np.any(f) for f in nearest([(0 * a, 0 * b)] * 3))


# Curvature of models, against that of their dense Jacobians.


@partial(jax.jit, static_argnums=(0, 1, 5))
def exact_matrix(model, loss, params, data, shares, empirical=False):
    """``sum_i s_i J_i^T H_i J_i`` from the Jacobian of the outputs."""
    inputs, targets = data
    flat, unravel = ravel_pytree(params)
    outputs = model(params, inputs)
    items, c = outputs.size // outputs.shape[-1], outputs.shape[-1]
    j = jax.jacrev(lambda w: model(unravel(w), inputs))(flat).reshape(items, c, flat.size)
    if empirical:
        gradient = jax.grad(lambda f: jnp.sum(loss.value(f, targets)))(outputs).reshape(items, c)
        h = gradient[:, :, None] * gradient[:, None]
    else:
        whole = jax.hessian(lambda f: jnp.sum(loss.value(f, targets)))(outputs)
        h = jnp.einsum("iaib->iab", whole.reshape(items, c, items, c))
    shares = jnp.full(items, 1 / items) if shares is None else shares.ravel()
    return jnp.einsum("i,iap,iab,ibq->pq", shares, j, h, j)


def exact_blocks(model, loss, params, data, op, shares=None, empirical=False):
    """The exact matrix within the blocks of ``op``."""
    whole = np.asarray(exact_matrix(model, loss, params, data, shares, empirical))
    within = np.zeros_like(whole)
    for block in op.blocks:
        entries = np.ix_(*[np.asarray(block.index).ravel()] * 2)
        within[entries] = whole[entries]
    return within


def params_like(**shapes):
    return {name: RNG.standard_normal(shape) for name, shape in shapes.items()}


def deep_linear(p, x):
    """Kernels stored either way, with and without a bias; positions, if any, are kept apart."""
    return (x @ p["first"] + p["bias"]) @ p["last"].T


DEEP_LINEAR = params_like(first=(4, 3), bias=(3,), last=(2, 3))


def test_exact_for_a_deep_linear_network_however_the_data_are_split():
    data = RNG.standard_normal((8, 4)), RNG.standard_normal((8, 2))
    op = kfac(deep_linear, SquaredError(), DEEP_LINEAR, data, micro_batch=3)
    expected = exact_blocks(deep_linear, SquaredError(), DEEP_LINEAR, data, op)
    close(dense(op), expected)
    assert op.kinds == {"first": "kronecker", "bias": "kronecker", "last": "kronecker"}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(data, NamedSharding(mesh, PartitionSpec("data")))
    close(dense(kfac(deep_linear, SquaredError(), DEEP_LINEAR, sharded)), expected)


def test_leaves_that_are_not_chosen_are_constants():
    data = RNG.standard_normal((8, 4)), RNG.standard_normal((8, 2))
    chosen = kfac(deep_linear, SquaredError(), DEEP_LINEAR, data, where=lambda name: name == "last")
    whole = exact_matrix(deep_linear, SquaredError(), DEEP_LINEAR, data, None)
    close(dense(chosen), np.asarray(whole)[-6:, -6:])
    assert chosen.kinds == {"last": "kronecker"}


def test_expand_is_exact_where_every_position_has_its_own_loss():
    data = RNG.standard_normal((3, 5, 4)), RNG.standard_normal((3, 5, 2))
    weight = RNG.uniform(0, 1, (3, 5)) * (RNG.uniform(size=(3, 5)) > 0.3)
    op = kfac(deep_linear, SquaredError(), DEEP_LINEAR, data, weight=weight, micro_batch=2)
    shares = weight / weight.sum()
    close(dense(op), exact_blocks(deep_linear, SquaredError(), DEEP_LINEAR, data, op, shares))


def pooled_convolution(p, x):
    """Linear, with the mean over positions before the loss: the setting of ``reduce``."""
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, p["kernel"], (1, 2), "SAME", dimension_numbers=numbers)
    return jnp.mean(y + p["bias"], axis=(1, 2)) @ p["last"]


def test_reduce_is_exact_where_positions_are_averaged():
    params = params_like(kernel=(3, 2, 2, 3), bias=(3,), last=(3, 2))
    data = RNG.standard_normal((3, 4, 5, 2)), RNG.standard_normal((3, 2))
    op = kfac(pooled_convolution, SquaredError(), params, data, sharing="reduce", micro_batch=2)
    close(dense(op), exact_blocks(pooled_convolution, SquaredError(), params, data, op))


def network(p, x):
    return jnp.tanh(x @ p["first"] + p["bias"]) @ p["last"].T


@pytest.mark.parametrize(
    ("loss", "target", "sharing"),
    [(SoftmaxCrossEntropy(), [1], "expand"), (SigmoidCrossEntropy(), [[0.3, 1.0]], "reduce")],
)
def test_exact_for_one_datum(loss, target, sharing):
    data = RNG.standard_normal((1, 4)), jnp.asarray(target)
    op = kfac(network, loss, DEEP_LINEAR, data, sharing=sharing)
    close(dense(op), exact_blocks(network, loss, DEEP_LINEAR, data, op))


def language_model(p, tokens):
    """An embedding, a norm's scale and shift, a table of positions read in part, a spare leaf."""
    x = p["table"][tokens] + p["places"][: tokens.shape[1]]
    x = p["scale"] * x / jnp.sqrt(1 + jnp.sum(x**2, axis=-1, keepdims=True)) + p["shift"]
    return x @ p["head"]


@pytest.fixture(scope="module")
def language():
    data, loss = (TOKENS, CLASSES), SoftmaxCrossEntropy()
    op = kfac(language_model, loss, LANGUAGE, data, micro_batch=4)
    corrected = ekfac(op, language_model, loss, LANGUAGE, data, micro_batch=4)
    shares = loss.mask(CLASSES) / jnp.sum(loss.mask(CLASSES))
    return op, corrected, exact_blocks(language_model, loss, LANGUAGE, data, op, shares)


LANGUAGE = params_like(table=(5, 3), places=(6, 3), scale=(3,), shift=(3,), head=(3, 4), spare=(2,))
TOKENS = jnp.asarray(RNG.integers(0, 5, (6, 4)))
CLASSES = jnp.asarray(RNG.integers(-1, 4, (6, 4)))


def test_every_parameter_of_a_language_model_is_accounted_for(language):
    op, _, exact = language
    assert op.kinds == {
        "head": "kronecker",
        "places": "dense",
        "scale": "dense",
        "shift": "dense",
        "spare": "unused",
        "table": "kronecker",
    }
    assert op.size == ravel_pytree(LANGUAGE)[0].size
    ours = np.asarray(dense(op))
    for block in op.blocks:
        if block.kind != "kronecker":
            entries = np.ix_(*[np.asarray(block.index).ravel()] * 2)
            close(ours[entries], exact[entries])
    # The embedding is Kronecker for one-hot rows: the frequencies of the tokens that count.
    (table,) = (block for block in op.blocks if block.names == ("table",))
    counted = np.asarray(TOKENS)[np.asarray(CLASSES) >= 0]
    close(table.a, np.bincount(counted, minlength=5) / len(counted))


def diagonal_in_basis(basis, matrix):
    q = np.asarray(jax.jit(jax.vmap(basis.from_basis))(jnp.eye(basis.size)))
    return np.einsum("kp,pq,kq->k", q, matrix, q)


def test_corrected_values_are_the_curvature_along_the_vectors_of_the_basis(language):
    op, corrected, exact = language
    close(corrected.values, diagonal_in_basis(corrected, exact))
    close(corrected.trace(), np.trace(exact))
    error, plain = (np.linalg.norm(dense(c) - exact) for c in (corrected, op))
    assert error < plain


def test_corrected_values_of_a_convolution():
    params = params_like(kernel=(3, 2, 2, 3), bias=(3,), last=(3, 2))
    data = RNG.standard_normal((3, 4, 5, 2)), RNG.standard_normal((3, 2))
    op = kfac(pooled_convolution, SquaredError(), params, data)
    corrected = ekfac(op, pooled_convolution, SquaredError(), params, data)
    exact = exact_blocks(pooled_convolution, SquaredError(), params, data, op)
    close(corrected.values, diagonal_in_basis(corrected, exact))


def twice(p, x):
    """A layer used twice with biases of its own, and read out by its transpose."""
    for bias in (p["one"], p["two"]):
        x = jnp.tanh(x @ p["kernel"] + bias)
    return x @ p["kernel"].T


def test_a_tied_kernel_is_the_nearest_product_to_the_sum_of_its_uses():
    params = params_like(kernel=(3, 3), one=(3,), two=(3,))
    x, y = RNG.standard_normal((5, 3)), RNG.standard_normal((5, 3))
    op = kfac(twice, SquaredError(), params, (x, y))
    corrected = ekfac(op, twice, SquaredError(), params, (x, y))
    exact = exact_blocks(twice, SquaredError(), params, (x, y), op)
    # Uses meet in the exact diagonal, and biases have exact blocks.
    close(corrected.values, diagonal_in_basis(corrected, exact))
    close(dense(op)[9:, 9:], exact[9:, 9:])
    assert op.kinds == {"kernel": "kronecker", "one": "dense", "two": "dense"}
    apart = {"k1": params["kernel"], "k2": params["kernel"], "k3": params["kernel"].T}

    def untied(p, x):
        for kernel, bias in ((p["k1"], params["one"]), (p["k2"], params["two"])):
            x = jnp.tanh(x @ kernel + bias)
        return x @ p["k3"]

    first, second, third = kfac(untied, SquaredError(), apart, (x, y)).blocks
    pairs = [(first.a, first.b), (second.a, second.b), (third.b, third.a)]
    close(op.blocks[0].a[0, 0] * op.blocks[0].b, np.kron(*nearest_product(pairs))[:3, :3])


def test_monte_carlo_signs_are_unbiased_and_belong_to_examples():
    data, loss = (RNG.standard_normal((4, 4)), RNG.uniform(-0.2, 1, (4, 2))), SigmoidCrossEntropy()
    exact = dense(kfac(network, loss, DEEP_LINEAR, data))
    options = {"fisher": "mc", "samples": 2}

    def draw(key):
        return kfac(network, loss, DEEP_LINEAR, data, key=key, micro_batch=3, **options).dense()

    keys = jax.random.split(jax.random.key(0), 300)
    draws = jax.jit(jax.vmap(draw))(keys)
    error = jnp.std(draws, axis=0) / len(draws) ** 0.5
    assert jnp.all(jnp.abs(jnp.mean(draws, axis=0) - exact) <= 5 * error + 1e-14)
    close(dense(kfac(network, loss, DEEP_LINEAR, data, key=keys[0], **options)), draws[0])


def test_empirical_is_made_of_the_gradients_of_items():
    data, loss = (RNG.standard_normal((1, 4)), jnp.array([1])), SoftmaxCrossEntropy()
    op = kfac(network, loss, DEEP_LINEAR, data, fisher="empirical")
    close(dense(op), exact_blocks(network, loss, DEEP_LINEAR, data, op, empirical=True))
    corrected = ekfac(op, network, loss, DEEP_LINEAR, data, fisher="empirical")
    close(dense(corrected), dense(op))
    assert op.logdet().rank == corrected.logdet().rank == 2  # one for each layer
    assert corrected.logdet().value == -jnp.inf


def centred(p, x):
    return (x - jnp.mean(x, axis=0)) @ p["last"].T


def test_a_model_that_mixes_examples_has_no_factors():
    data = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 2))
    op = kfac(centred, SquaredError(), {"last": DEEP_LINEAR["last"]}, data)
    assert jnp.isnan(op.eigenvalues()).all()


@pytest.mark.parametrize(
    "option",
    [{"fisher": "mc"}, {"key": 0, "fisher": "mc"}, {"sharing": "none"}, {"micro_batch": 0}],
)
def test_options_that_make_no_sense_are_named(option):
    data = jnp.ones((2, 4)), jnp.ones((2, 2))
    with pytest.raises(ValueError, match=next(iter(option))):
        kfac(network, SquaredError(), DEEP_LINEAR, data, **option)


def test_a_basis_of_other_parameters_is_refused():
    data = jnp.ones((2, 4)), jnp.ones((2, 2))
    with pytest.raises(ValueError, match="basis"):
        ekfac(operator(), network, SquaredError(), DEEP_LINEAR, data)
    with pytest.raises(ValueError, match="basis is a Symmetric"):
        ekfac(operator().as_operator(), network, SquaredError(), DEEP_LINEAR, data)
