"""capacity: relative entropies and the bounds made of them, against NumPy in float64."""

import numpy as np

from spectral_jax.capacity import (
    Gaussian,
    analytic_posterior,
    binary_kl,
    bounded_cross_entropy,
    gaussian_kl,
    kl_inverse,
    pac_bayes_bound,
)
from tests import draws
from tests.contract import Case, Degenerate, exempt, register

LABELS = np.array([0, 3, 1])
PROBABILITIES = "probabilities and nats have no unit"


def two_probabilities(key, dtype):
    return tuple(0.05 + 0.9 * draws.uniform(key, (2, 4), dtype))


def probability_and_nats(key, dtype):
    q, c = draws.uniform(key, (2, 4), dtype)
    return 0.05 + 0.9 * q, 0.01 + c


def risk_and_entropy(key, dtype):
    q, kl = draws.uniform(key, (2, 4), dtype)
    return 0.05 + 0.9 * q, 10 * kl


def kl(q, p):
    return q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))


def by_bisection(q, c, end):
    """The solution of kl(q || p) = c between q and ``end``."""
    near, far = q, np.full_like(q, end)
    for _ in range(100):
        middle = (near + far) / 2
        beyond = kl(q, middle) > c
        near, far = np.where(beyond, near, middle), np.where(beyond, middle, far)
    return near


def gaussians(key, dtype):
    means, scales = draws.normal(key, (2, 2, 3), dtype)
    return tuple(
        Gaussian({"b": m[0], "w": m[1:]}, {"b": s[0], "w": s[1:]})
        for m, s in zip(means, scales / 3, strict=True)
    )


def gaussian_entropy(q, p):
    (m, log_q), (m0, log_p) = (
        (np.append(x.mean["w"], x.mean["b"]), np.append(x.log_scale["w"], x.log_scale["b"]))
        for x in (q, p)
    )
    ratio = np.exp(2 * (log_q - log_p))
    return (((m - m0) ** 2 * np.exp(-2 * log_p)) + ratio - 1 - np.log(ratio)).sum() / 2


def curvature(key, dtype):
    values, moved = draws.uniform(key, (2, 5), dtype)
    return values, moved


def precisions(values, moved):
    """By iterating the root alone, from above."""
    root = 10.0
    for _ in range(500):
        precision = 2 + 4 * root * 199 * values
        kl = (np.log(precision / 2) + 2 / precision - 1).sum() / 2 + moved @ moved
        root = np.sqrt((kl + np.log(200 / 0.025)) / 398)
    return precision


def certain(q, c):
    return Degenerate((np.array(q), np.array(c)), lambda p: bool(p == q))


register(
    Case(
        name="capacity.binary_kl",
        function=binary_kl,
        make_inputs=two_probabilities,
        oracle=kl,
        unscaled=PROBABILITIES,
        degenerate={
            "equal": Degenerate((np.array(0.3),) * 2, lambda d: bool(d == 0)),
            "never, but seen": Degenerate(
                (np.array(0.3), np.array(0.0)), lambda d: bool(d == np.inf), False
            ),
            "never, and not seen": Degenerate((np.array(0.0),) * 2, lambda d: bool(d == 0), False),
            "no probability": Degenerate(
                (np.array(0.3), np.array(1.1)), lambda d: bool(np.isnan(d)), False
            ),
        },
    )
)
for side, end in (("upper", 1.0), ("lower", 0.0)):
    register(
        Case(
            name=f"capacity.kl_inverse: {side}",
            function=lambda q, c, side=side: kl_inverse(q, c, side=side),
            make_inputs=probability_and_nats,
            oracle=lambda q, c, end=end: by_bisection(q, c, end),
            unscaled=PROBABILITIES,
            degenerate={
                "no evidence against q": certain(0.25, 0.0),
                "q is at the end": certain(end, 0.3),
                "infinite": Degenerate(
                    (np.array(0.3), np.array(np.inf)), lambda p, end=end: bool(p == end)
                ),
                "NaN": Degenerate(
                    (np.array(np.nan), np.array(0.3)), lambda p: bool(np.isnan(p)), False
                ),
            },
        )
    )
register(
    Case(
        name="capacity.pac_bayes_bound",
        function=lambda risk, entropy: pac_bayes_bound(risk, entropy, n=200),
        make_inputs=risk_and_entropy,
        oracle=lambda q, d: by_bisection(q, (d + np.log(2 * 200**0.5 / 0.025)) / 200, 1.0),
        unscaled=PROBABILITIES,
        degenerate={
            "negative entropy": Degenerate(
                (np.array(0.1), np.array(-1.0)), lambda b: bool(np.isnan(b)), False
            ),
        },
    )
)
register(
    Case(
        name="capacity.gaussian_kl",
        function=gaussian_kl,
        make_inputs=gaussians,
        oracle=gaussian_entropy,
        unscaled="logarithms of scales have no unit",
        degenerate={
            "one and the same": Degenerate(
                (Gaussian(np.ones(3), np.array(-2.0)),) * 2, lambda d: bool(d == 0)
            ),
        },
    )
)
register(
    Case(
        name="capacity.bounded_cross_entropy",
        function=lambda logits: bounded_cross_entropy(logits, LABELS, pmin=0.01),
        make_inputs=lambda key, dtype: (draws.normal(key, (3, 4), dtype),),
        oracle=lambda x: np.log(np.exp(x).sum(axis=1) / np.exp(x[range(3), LABELS])) / np.log(100),
        unscaled="logits have no unit",
        degenerate={
            "sure and wrong": Degenerate(
                (100 * np.eye(4)[:3],), lambda loss: bool((loss[1:] == 1).all())
            ),
        },
    )
)
register(
    Case(
        name="capacity.analytic_posterior",
        function=lambda values, moved: analytic_posterior(values, moved, n=200, epsilon=2.0),
        make_inputs=curvature,
        oracle=precisions,
        select=lambda posterior: posterior.precision,
        unscaled="relative entropy and delta fix the unit of the loss",
        degenerate={
            "flat": Degenerate(
                (np.zeros(3), np.ones(3)), lambda p: bool((p.precision == 2).all() & (p.kl == 3))
            ),
            "NaN": Degenerate(
                (np.full(3, np.nan), np.ones(3)), lambda p: bool(np.isnan(p.kl)), False
            ),
        },
    )
)
for name in ("gaussian", "data_free_prior", "learnt_prior", "vector_basis", "starting_posterior"):
    exempt(f"capacity.{name}", "makes a record of arrays; tests/test_bounds.py")
for name in ("draw", "local_conv", "local_dense", "risk_draws"):
    exempt(f"capacity.{name}", "its noise depends on the dtype; tests/test_bounds.py")
for name in ("certify", "held_out_bound"):
    exempt(f"capacity.{name}", "runs on the host, gives Python numbers; tests/test_bounds.py")
