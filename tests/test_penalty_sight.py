"""What a penalty sees of a network, and that its true gradient and proximal step come back."""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.optim import PENALTIES, Penalty, every, regulariser, spectral_penalty
from tests.test_optim import first_update, nothing

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def network(seed=0):
    """One leaf of each kind of layer, by the names and shapes that Flax gives them."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv": {"kernel": (3, 3, 2, 5), "bias": (5,)},
        "dense": {"kernel": (8, 6), "bias": (6,)},
        "embed": {"embedding": (7, 8)},
        "attention": {
            "query": {"kernel": (8, 2, 4), "bias": (2, 4)},
            "out": {"kernel": (2, 4, 8), "bias": (8,)},
        },
        "norm": {"scale": (8,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape)),
        shapes,
        is_leaf=lambda x: type(x) is tuple,
    )


def by_hand(params):
    """The matrices of `network`."""
    return {
        "conv": params["conv"]["kernel"].reshape(18, 5),
        "dense": params["dense"]["kernel"],
        "embed": params["embed"]["embedding"],
        "query": params["attention"]["query"]["kernel"].reshape(8, 8),
        "out": params["attention"]["out"]["kernel"].reshape(8, 8),
    }


def spectral_norms(matrices, state):
    return sum(jnp.linalg.norm(w, 2, axis=(-2, -1)).sum() for w in matrices)


def thresholded(w, by):
    """The matrix with every singular value less by ``by``, at least 0: the nuclear norm's prox."""
    u, s, vt = np.linalg.svd(np.asarray(w), full_matrices=False)
    return u * np.maximum(s - by, 0) @ vt


def nuclear_prox(matrices, step, state):
    def one(w):
        u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        return u * jnp.maximum(s - step, 0) @ vt

    return [one(w) for w in matrices]


NUCLEAR = Penalty(
    lambda matrices, state: sum(jnp.linalg.norm(w, "nuc") for w in matrices), prox=nuclear_prox
)


def test_a_value_sees_signed_matrices_and_its_gradient_is_that_of_the_same_function():
    params = network()
    updates, _ = first_update(spectral_penalty(Penalty(spectral_norms), 0.3), params)
    gradient = jax.grad(lambda p: spectral_norms(by_hand(p).values(), ()))(params)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: 0.3 * g, gradient), atol=1e-12)
    for name, matrix in by_hand(params).items():
        u, _, vt = np.linalg.svd(np.asarray(matrix))
        expected = 0.3 * np.outer(u[:, 0], vt[0])
        np.testing.assert_allclose(by_hand(updates)[name], expected, atol=1e-10)


def test_the_example_of_the_readme_adds_the_gradient_of_what_it_writes():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (source,) = re.findall(r"```python\n([^`]*Penalty\(spectral_norms\).*?)```", readme, re.DOTALL)
    example: dict = {}
    exec(source, example)
    params = network()
    updates, _ = first_update(example["penalty"], params)
    gradient = jax.grad(lambda p: example["spectral_norms"](by_hand(p).values(), ()))(params)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, 1e-2 * g, atol=1e-12), updates, gradient
    )


def test_a_spectral_norm_is_that_of_the_matrix_and_not_of_its_magnitudes():
    """On |W|, with its mean of 0.8, one value would be 224: that of the mean."""
    w = jax.random.normal(jax.random.key(0), (784, 100))
    for penalty in (Penalty(spectral_norms), regulariser(lambda w: spectral_norms(w, ()))):
        init, update = spectral_penalty(penalty, 1.0)
        state = update({"kernel": w}, init({"kernel": w}), {"kernel": w})[1]
        assert 36 < state.value < 39


def test_only_penalties_on_graphs_and_elementwise_ones_see_magnitudes():
    others = {name for name in PENALTIES if PENALTIES[name]().sees != "magnitudes"}
    assert others == {"richness", "spectral_norm"}
    assert Penalty(spectral_norms).sees == "matrices"
    params = {"a": {"kernel": jnp.array([[3.0, -4.0]])}}
    seen = {}
    for sees in ("matrices", "magnitudes"):
        first = Penalty(lambda w, state: w[0].sum(), init=lambda w: w[0], sees=sees)
        seen[sees] = spectral_penalty(first, 1.0).init(params).penalty.tolist()
    assert seen == {"matrices": [[3.0, -4.0]], "magnitudes": [[3.0, 4.0]]}


def test_the_proximal_step_on_matrices_is_the_prox_of_where_the_updates_led():
    params, updates = network(), jax.tree.map(lambda x: 0.1 * x, network(seed=1))
    penalty = spectral_penalty(NUCLEAR, 4.0, mode="proximal", learning_rate=0.25)
    total, _ = first_update(penalty, params, updates)
    led = by_hand(jax.tree.map(jnp.add, params, updates))
    after = by_hand(jax.tree.map(jnp.add, params, total))
    for name, matrix in led.items():
        np.testing.assert_allclose(after[name], thresholded(matrix, 1.0), atol=1e-12)
    np.testing.assert_array_equal(total["dense"]["bias"], updates["dense"]["bias"])
    np.testing.assert_array_equal(total["norm"]["scale"], updates["norm"]["scale"])


@pytest.mark.parametrize("step", [0.3, 3.0])
def test_the_proximal_step_of_the_spectral_norm_is_the_best_of_all_caps(step):
    """The minimiser has the singular vectors of the matrix, and its values cut at some cap."""
    matrices = np.random.default_rng(0).normal(size=(2, 6, 4))
    (after,) = PENALTIES["spectral_norm"]().prox((jnp.asarray(matrices),), step, ())
    for before, found in zip(matrices, after, strict=True):
        u, s, vt = np.linalg.svd(before, full_matrices=False)
        caps = np.linspace(0, s[0], 100_001)
        cut = np.minimum(s, caps[:, None])
        best = np.argmin(step * cut[:, 0] ** 2 / 2 + np.sum((s - cut) ** 2, axis=1) / 2)
        np.testing.assert_allclose(found, u * cut[best] @ vt, atol=1e-4)


def test_the_spectral_norm_follows_a_value_that_overtakes_the_kept_one():
    """The kept vector stays an eigenvector, so its residual would not tell."""
    before, after = ({"kernel": jnp.diag(jnp.array(s))} for s in ([2.0, 1.0], [2.0, 3.0]))
    init, update = spectral_penalty("spectral_norm", 1.0, refresh=every(1))
    _, state = update(before, init(before), before)
    assert state.value == pytest.approx(2.0, rel=1e-3)
    for _ in range(3):
        _, state = update(after, state, after)
    assert state.value == pytest.approx(4.5, rel=1e-3)


def test_a_view_says_which_matrices_are_seen():
    params = network()
    view = lambda p: (p["dense"]["kernel"].T,)  # noqa: E731
    for mode in ("penalty", "proximal"):
        penalty = spectral_penalty(NUCLEAR, 1.0, mode=mode, learning_rate=0.5, view=view)
        updates, _ = first_update(penalty, params)
        touched = {name for name, x in by_hand(updates).items() if x.any()}
        assert touched == {"dense"}
        assert updates["dense"]["kernel"].shape == (8, 6)


def test_init_and_update_see_the_same_matrices_where_weights_are_tied():
    shared = jnp.ones((4, 4))
    params = {"embed": {"embedding": shared}, "head": {"kernel": shared}}
    carried = Penalty(
        spectral_norms,
        init=lambda w: [jnp.ones(block.shape[-1]) for block in w],
        refresh=lambda w, state: [block.T @ (block @ v) for block, v in zip(w, state, strict=True)],
        staleness=lambda w, state: jnp.asarray(1.0),
    )
    penalty = spectral_penalty(carried, 1.0)
    state = penalty.init(params)
    _, after = penalty.update(nothing(params), state, params)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_misuse_names_the_argument_and_the_fix():
    with pytest.raises(ValueError, match=r"needs the proximal step .* pass Penalty\(..., prox="):
        spectral_penalty(Penalty(spectral_norms), 1.0, mode="proximal", learning_rate=0.1)
    with pytest.raises(ValueError, match=r"Penalty\(sees='weights'\): choose one of"):
        spectral_penalty(Penalty(spectral_norms, sees="weights"), 1.0)
    with pytest.raises(ValueError, match=r"Penalty\(prox=...\): one on magnitudes would ignore it"):
        spectral_penalty(Penalty(spectral_norms, sees="magnitudes", prox=nuclear_prox), 1.0)
    with pytest.raises(ValueError, match="view: it shows the penalty nothing"):
        spectral_penalty(Penalty(spectral_norms), 1.0, view=lambda p: ()).init(network())
    with pytest.raises(ValueError, match="no leaf with two or more axes is a weight matrix"):
        spectral_penalty(Penalty(spectral_norms), 1.0).init({})
