"""The check of a penalty that was just written: what it lets through, and which clause it names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.linalg import svd
from spectral_jax.optim import PENALTIES, Penalty, check_penalty, regulariser

pytestmark = pytest.mark.usefixtures("quick_compilation")


def fourth(matrices):
    return sum(jnp.sum(w**4) for w in matrices)


def thresholded(factor):
    """The proximal step of the nuclear norm, with a step so many times too long."""

    def one(w, step):
        u, s, vt = svd(w)
        return (u * jnp.maximum(s - factor * step, 0)[..., None, :]) @ vt

    return lambda matrices, step: [one(w, step) for w in matrices]


def nuclear(matrices):
    return sum(jnp.sum(svd(w).s) for w in matrices)


@regulariser(sees="function")
def jacobian(apply, params, batch, key):
    outputs, pullback = jax.vjp(lambda x: apply(params, x), jnp.asarray(batch["x"]))
    (g,) = pullback(jax.random.normal(key, outputs.shape, outputs.dtype))
    return jnp.mean(g**2)


@regulariser(sees="activations")
def small_features(seen):
    return jnp.mean(seen[0] ** 2)


@pytest.mark.parametrize(
    "penalty",
    [regulariser(fourth), jacobian, small_features, PENALTIES["l1"]()],
    ids=["matrices", "function", "activations", "magnitudes"],
)
def test_a_sound_penalty_of_every_kind_holds_everything(penalty):
    held = check_penalty(penalty)
    clauses = "shape finite gradient jit vmap stack halves scale zeros".split()
    if penalty.sees != "matrices":
        clauses.remove("stack")
    assert list(dict.fromkeys(each.clause for each in held)) == clauses
    inputs = dict.fromkeys(each.input for each in held)
    assert len(inputs) == (3 if penalty.sees == "matrices" else 2)


@pytest.mark.slow
def test_a_right_proximal_step_holds_and_one_twice_too_long_does_not():
    held = check_penalty(regulariser(prox=thresholded(1))(nuclear))
    assert ("prox", "dense layers 5 x 4 and 4 x 3") in held
    with pytest.raises(ValueError, match=r"^prox, on dense layers 5 x 4 .* at another one$"):
        check_penalty(regulariser(prox=thresholded(2))(nuclear))


@jax.custom_jvp
def halved(x):
    return x


halved.defjvp(lambda primals, tangents: (primals[0], tangents[0] / 2))


@pytest.mark.parametrize(
    "value, message",
    [
        (lambda w: w[0] ** 2, r"shape, on .*: the value is float32\[5, 4\]: return one floating"),
        (lambda w: jnp.sum(w[0] > 0), "shape, on .*: the value is int32"),
        (lambda w: w[0].nothing, r"shape, on .*AttributeError: .*test_penalty_contract.py, line "),
        (lambda w: np.sum(np.square(w[0])), "shape, on .*ConversionError: .* use jax.numpy"),
        (lambda w: jnp.log(-jnp.sum(w[0] ** 2)), "finite, on .*: the value is nan"),
        (lambda w: jnp.sum(jnp.round(w[0])), "gradient, on dense .*: it is 0 for every weight"),
        (lambda w: jnp.sum(halved(w[0]) ** 2), "gradient, on .* direction it is .* differences"),
        (
            lambda w: jnp.sum(w[0] ** 2) * (1 if isinstance(w[0], jax.core.Tracer) else 2),
            "jit, on .*: the value compiled is",
        ),
        (lambda w: jnp.sum(jnp.exp(w[0] ** 2)), "scale, on .*: of weights times 1000 the value"),
        (
            lambda w: sum(jnp.sum((x.T @ x) ** 2) for x in w),
            "stack, on dense layers 5 x 4 and 4 x 3: TypeError: .*_contract.py, line ",
        ),
        (
            lambda w: sum(jnp.sum(x**4) if x.ndim == 2 or len(x) == 1 else x for x in w),
            "shape, on convolutions .* in 2 groups, 1 x 1: the value is",
        ),
        (
            # Of a group in [2, 18, 2] it is a sum over the groups, and nothing else is wrong.
            lambda w: sum(jnp.sum(jnp.log1p(jnp.sum(x.T**2, axis=-1))) for x in w),
            "stack, on dense layers 5 x 4 and 4 x 3: .* last two axes, w.mT and not w.T",
        ),
        (lambda w: jnp.linalg.norm(w[0]), "zeros, on .* the gradient is NaN: the derivative of a"),
    ],
    ids="shape integer raises numpy nan round halved branch exp T groups stack root".split(),
)
def test_what_breaks_is_named_by_clause_and_input_in_one_line(value, message):
    with pytest.raises(ValueError, match=message) as error:
        check_penalty(regulariser(value))
    assert "\n" not in str(error.value)


def test_a_state_is_solved_for_before_anything_is_compared():
    """The value holds the top vector, and is that of the matrix only once it was solved for."""

    def solved(w, state):
        return tuple(svd(x).vt[..., 0, :] for x in w)

    top = Penalty(
        lambda w, v: sum(jnp.sum((x @ y[..., None]) ** 2) for x, y in zip(w, v, strict=True)),
        init=lambda w: tuple(jnp.zeros((*x.shape[:-2], x.shape[-1]), x.dtype) for x in w),
        refresh=solved,
    )
    assert check_penalty(top)
