"""Kronecker factors: their algebra against dense matrices, their values against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.curvature.kronecker import KroneckerBlock, KroneckerOperator

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
