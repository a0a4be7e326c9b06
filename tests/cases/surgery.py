"""prune: operations on singular values, against NumPy's SVD."""

import jax
import numpy as np

from spectral_jax.prune import (
    Policy,
    halve,
    prune_spectra,
    random_subset,
    recombine,
    shrink,
    sparsify,
    sparsify_vectors,
    split,
    truncate,
)
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, exempt, register

EDGE, NOISE = 2.5, 0.6


def well_separated(key, dtype):
    """Singular values 5, 4, .. 1, so that no cut is a matter of rounding."""
    a, b = draws.normal(key, (2, 8, 5), dtype)
    u, v = np.linalg.qr(a)[0], np.linalg.qr(b[:5])[0]
    values = np.arange(5, 0, -1).astype(dtype)
    return ((u * values) @ v.T,)


def edited(change):
    """The matrix whose values are ``change(values)``."""

    def oracle(w):
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        return (u * change(s)) @ vt

    return oracle


def without_small(x, limit):
    return np.where(np.abs(x) > limit, x, 0)


def sparsified(w):
    signal = edited(lambda s: s * (s > EDGE))(w)
    return signal + without_small(w - signal, 0.3)


def with_sparse_vectors(w):
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    limits = 0.2 * np.maximum(1 / 750, np.maximum(1 - s / EDGE, 0) ** 2)
    return (without_small(u, limits) * s) @ without_small(vt.T, limits).T


def shrunk(s):
    y, b = s / (np.sqrt(8) * NOISE), 5 / 8
    signal = y > 1 + np.sqrt(b)
    root = np.sqrt(np.where(signal, (y**2 - b - 1) ** 2 - 4 * b, 0))
    return np.where(signal, root / y, 0) * np.sqrt(8) * NOISE


def stays_zero(w):
    return bool((w == 0).all())


ZERO = {"zero": Degenerate((np.zeros((8, 5)),), stays_zero)}
CASES = {
    "truncate": (lambda w: truncate(w, 3), edited(lambda s: s * (s > EDGE))),
    "halve": (lambda w: halve(w, EDGE), edited(lambda s: np.where(s > EDGE, s, s / 2))),
    "random_subset": (
        lambda w: random_subset(jax.random.key(0), w, EDGE, 0.0),
        edited(lambda s: s * (s > EDGE)),
    ),
    "shrink": (lambda w: shrink(w, NOISE), edited(shrunk)),
    "sparsify": (lambda w: sparsify(w, EDGE, 0.3), sparsified),
    "sparsify_vectors": (
        lambda w: sparsify_vectors(w, EDGE, 0.2, power=2),
        with_sparse_vectors,
    ),
}

for name, (function, oracle) in CASES.items():
    register(
        Case(
            name=f"prune.{name}",
            function=function,
            make_inputs=well_separated,
            oracle=oracle,
            differentiable=False,
            degree=1 if name == "truncate" else None,
            unscaled="the edge is bound; at its own scales: tests/test_optim_numbers.py",
            replaces=True,
            degenerate=ZERO,
            leading=name != "random_subset",  # one key for a batch draws anew for each matrix
        )
    )

register(
    Case(
        name="prune.split",
        function=lambda w: split(w, 2),
        make_inputs=well_separated,
        oracle=edited(lambda s: s * (np.arange(5) < 2)),
        select=lambda factors: factors["u"] @ factors["v"],
        differentiable=False,
        degree=1,
        replaces=True,
        degenerate={
            "zero": Degenerate(
                (np.zeros((8, 5)),), lambda f: stays_zero(f["u"]) and stays_zero(f["v"])
            )
        },
    )
)


def factors(key, dtype):
    keys = jax.random.split(key, 3)
    shapes = ((8, 4), (4, 2), (2, 5))
    u, a, b = (draws.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))
    return ({"u": u, "v": {"u": a, "v": b}},)


register(
    Case(
        name="prune.recombine",
        function=recombine,
        make_inputs=factors,
        oracle=lambda kernel: kernel["u"] @ kernel["v"]["u"] @ kernel["v"]["v"],
        degree=3,
        exact_dtype="a product, of complex factors too, in the dtype of the factors",
    )
)


def layers(key, dtype):
    noise = 0.05 * draws.normal(key, (2, 24, 16), dtype)
    spikes = np.zeros((24, 16), dtype)
    spikes[0, 0], spikes[1, 1] = 9, 6
    return ({"a": {"kernel": noise[0] + spikes}, "b": {"kernel": noise[1] - spikes}},)


def two_largest(w):
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    return (u[:, :2] * s[:2]) @ vt[:2]


register(
    Case(
        name="prune.prune_spectra",
        function=lambda params: prune_spectra(params, Policy()).params,
        gathered=IN_TURN,
        make_inputs=layers,
        oracle=lambda params: {
            name: {"kernel": two_largest(layer["kernel"])} for name, layer in params.items()
        },
        differentiable=False,
        degree=1,
        exact_dtype="integers are no weights; half types: tests/test_optim_numbers.py",
    )
)

for name in (
    "attempt",
    "carry_moments",
    "dead_classes",
    "every_epochs",
    "factorize",
    "is_factored",
    "kept_ranks",
    "linear_keep",
    "on_plateau",
    "parameter_count",
    "pruning_report",
    "recombine_all",
    "report_rows",
    "split_refusal",
):
    exempt(f"prune.{name}", "for the host, or for trees: tests/test_{factored,svd_prune}.py")
exempt("prune.svd_prune", "a transformation over steps: tests/test_svd_prune.py")
for name in ("prune_spectra", "recombine", "split", "svd_prune", "truncate"):
    exempt(f"optim.{name}", f"prune.{name}, by the name that it had before")
