"""optim and prune: layer-wise control and pruned weights, against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax.optim import (
    alpha_decay,
    alpha_pruning,
    block_means,
    layer_sparsities,
    linear_map,
    llr_sigmoid,
    log2_map,
    sqrt_map,
    step_map,
    tb_sigmoid,
    temp_balance,
)
from spectral_jax.prune import (
    magnitude_mask,
    prune_weights,
    reconstruction_error,
    sparsegpt,
    wanda_mask,
)
from tests import draws
from tests.cases.optim import added_by
from tests.contract import Case, Degenerate, exempt, register

# Maps


def alphas(key, dtype):
    return (2 + 4 * draws.uniform(key, (5,), dtype),)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


MAPS = {
    linear_map: lambda a: 0.5 + (a - a.min()) / (a.max() - a.min()),
    sqrt_map: lambda a: np.sqrt(a) / np.sqrt(a).mean(),
    log2_map: lambda a: np.log2(a) / np.log2(a).mean(),
    step_map: lambda a: 0.5 + np.argsort(np.argsort(a)) / len(a),
    tb_sigmoid: lambda a: 10 ** (0.5 * (sigmoid(10 * (a - a.mean())) - 0.5)),
    llr_sigmoid: lambda a: 2 * sigmoid(4 * (a - a.mean()) / a.std()),
}

UNSCALED = {
    log2_map: "a logarithm of the exponents themselves",
    tb_sigmoid: "tau counts in units of the exponents",
}

for scale, oracle in MAPS.items():
    register(
        Case(
            name=f"optim.{scale.__name__}",
            function=scale,
            make_inputs=alphas,
            oracle=oracle,
            degree=None if scale in UNSCALED else 0,
            unscaled=UNSCALED.get(scale, ""),
            degenerate={
                "equal": Degenerate((np.full(5, 3.0),), lambda s: bool((s == 1).all())),
                "unknown": Degenerate((np.full(5, np.nan),), lambda s: bool((s == 1).all())),
                "none": Degenerate((np.zeros(0),), lambda s: s.shape == (0,)),
            },
            leading=True,
        )
    )


# Sparsity


SIZES = (3.0, 1.0, 2.0, 4.0, 1.0)


def shares(alpha, epsilon):
    return 1 - epsilon + 2 * epsilon * (alpha - alpha.min()) / (alpha.max() - alpha.min())


def allocation(alpha, sizes):
    r = shares(alpha, 0.3)
    return 0.5 * sizes.sum() * r / (sizes @ r)


def alphas_and_sizes(key, dtype):
    return *alphas(key, dtype), np.asarray(SIZES, dtype)


register(
    Case(
        name="optim.alpha_pruning",
        function=lambda alpha, sizes: alpha_pruning(alpha, sizes, 0.5),
        make_inputs=alphas_and_sizes,
        oracle=allocation,
        select=lambda result: result.ratios,
        degree=0,
        degenerate={
            "equal": Degenerate(
                (np.full(5, 3.0), np.ones(5)), lambda r: bool(np.allclose(r.ratios, 0.5))
            ),
        },
    )
)

NAMES = ("a/0/q", "a/0/k", "a/1/q", "a/1/k", "head")


def named(key, dtype):
    return (dict(zip(NAMES, *alphas(key, dtype), strict=True)),)


def means(alphas):
    return np.array(
        [(alphas["a/0/q"] + alphas["a/0/k"]) / 2, (alphas["a/1/q"] + alphas["a/1/k"]) / 2]
        + [alphas["head"]]
    )


def by_layer(alphas):
    ratios = allocation(means(alphas), np.array([4.0, 6.0, 1.0]))
    return dict(zip(NAMES, ratios[[0, 0, 1, 1, 2]], strict=True))


register(
    Case(
        name="optim.block_means",
        function=block_means,
        make_inputs=named,
        oracle=means,
        select=lambda found: jnp.stack([found[block] for block in ("a/0", "a/1", "head")]),
        degree=1,
    )
)
register(
    Case(
        name="optim.layer_sparsities",
        function=lambda alphas: layer_sparsities(
            alphas, dict(zip(NAMES, map(int, SIZES), strict=True)), 0.5
        ),
        make_inputs=named,
        oracle=by_layer,
        degree=0,
    )
)


# Pruners


def layer(key, dtype):
    keys = jax.random.split(key, 3)
    inputs = draws.normal(keys[1], (40, 6), dtype) @ draws.normal(keys[2], (6, 6), dtype)
    return draws.normal(keys[0], (6, 4), dtype), inputs


def largest_half(scores):
    return np.argsort(np.argsort(scores)) >= len(scores) / 2


def by_magnitude(w):
    return w * largest_half(np.abs(w).ravel()).reshape(w.shape)


def by_output(w, x):
    scores = np.abs(w) * np.linalg.norm(x, axis=0)[:, None]
    return w * np.apply_along_axis(largest_half, 0, scores)


def by_surgery(w, x):
    """One block; the inverse of what is left of H at each input, formed anew."""
    w, gram = w.copy(), x.T @ x
    h = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(len(w))
    inverses = [np.linalg.inv(h[i:, i:]) for i in range(len(w))]
    pivots = np.array([inverse[0, 0] for inverse in inverses])
    kept = largest_half((w**2 / pivots[:, None]).ravel()).reshape(w.shape)
    for i, inverse in enumerate(inverses):
        w[i:] -= np.outer(inverse[:, 0] / pivots[i], w[i] * ~kept[i])
    return w


register(
    Case(
        name="prune.magnitude_mask",
        function=lambda w: jnp.where(magnitude_mask(w, 0.5), w, 0),
        make_inputs=lambda key, dtype: layer(key, dtype)[:1],
        oracle=by_magnitude,
        degree=1,
        exact_dtype="complex numbers have magnitudes too, and nothing is computed but these",
        degenerate={"zero": Degenerate((np.zeros((6, 4)),), lambda w: not w.any())},
    )
)
register(
    Case(
        name="prune.wanda_mask",
        function=lambda w, x: jnp.where(wanda_mask(w, x, 0.5), w, 0),
        make_inputs=layer,
        oracle=by_output,
        degree=1,
        replaces=True,
        degenerate={
            "no signal": Degenerate((np.ones((6, 4)), np.zeros((40, 6))), lambda w: w.sum() == 12)
        },
    )
)
register(
    Case(
        name="prune.sparsegpt",
        function=partial(sparsegpt, sparsity=0.5),
        make_inputs=layer,
        oracle=by_surgery,
        degree=1,
        replaces=True,
        select=lambda result: result.weights,
        tolerance={"float32": 1e-4, "float64": 1e-10},
        differentiable=False,
        degenerate={
            "no signal": Degenerate((np.ones((6, 4)), np.zeros((40, 6))), lambda r: bool(r.sound))
        },
    )
)
register(
    Case(
        name="prune.prune_weights",
        function=lambda params: prune_weights(params, {"w": 0.5}),
        make_inputs=lambda key, dtype: (
            {"w": layer(key, dtype)[0], "bias": draws.normal(key, (4,), dtype)},
        ),
        oracle=lambda params: {**params, "w": by_magnitude(params["w"])},
        degree=1,
        exact_dtype="complex numbers have magnitudes too, and nothing is computed but these",
    )
)
register(
    Case(
        name="prune.reconstruction_error",
        function=reconstruction_error,
        make_inputs=lambda key, dtype: (
            layer(key, dtype)[0],
            layer(jax.random.fold_in(key, 1), dtype)[0],
            layer(key, dtype)[1],
        ),
        oracle=lambda w, v, x: np.sum((x @ (w - v)) ** 2) / np.sum((x @ w) ** 2),
        degree=0,
        degenerate={
            "nothing to lose": Degenerate(
                (np.zeros((6, 4)), np.zeros((6, 4)), np.ones((3, 6))), lambda e: e == 0
            )
        },
    )
)


# Transformations, with a metric that NumPy has too


def three_layers(key, dtype):
    keys = jax.random.split(key, 6)
    kernels = [draws.normal(k, (4, 4), dtype) for k in keys]
    trees = [
        {n: {"kernel": w} for n, w in zip("abc", ws, strict=True)}
        for ws in zip(*[iter(kernels)] * 3, strict=True)
    ]
    return tuple(trees)


def largest(matrix):
    return jnp.max(jnp.abs(matrix))


def scaled(params, tree):
    kernels = [np.abs(layer["kernel"]).max() for layer in params.values()]
    scales = MAPS[linear_map](np.array(kernels))
    return {n: {"kernel": s * tree[n]["kernel"]} for n, s in zip(params, scales, strict=True)}


UPDATE = dict(
    make_inputs=three_layers,
    differentiable=False,
    degree=1,
    exact_dtype="integers are no weights; half types: tests/test_optim_numbers.py",
)
OPTIONS = dict(metric=largest, refresh_every=10, min_eigenvalues=1)

register(
    Case(
        name="optim.temp_balance",
        function=added_by(temp_balance("linear", **OPTIONS)),
        oracle=scaled,
        **UPDATE,
    )
)
register(
    Case(
        name="optim.alpha_decay",
        function=added_by(alpha_decay(0.1, "linear", **OPTIONS)),
        oracle=lambda params, updates: jax.tree.map(
            lambda u, p: u + 0.1 * p, updates, scaled(params, params)
        ),
        **UPDATE,
    )
)

for metric in ("hill", "farms", "debiased", "shape_only"):
    exempt(f"optim.{metric}", "returns a metric, no arrays; tests/test_temp_balance.py")
exempt("optim.owners", "maps names to names; tests/test_temp_balance.py")
