"""Bounds that curvature gives, certified, beside what they must beat.

The dense network of two classes is trained on, as in the source, with a pull towards its initial
weights, which a bound pays for by distance. The posterior is then read off the leading eigenpairs
of its Gauss-Newton matrix (the Hessian less what can be negative in it). The point of the prior's
grid is chosen by a few draws, at the grid's price; the risk that is certified is measured on fresh
ones. Each draw of the weights answers a batch of its own, so that draws are independent. Beside
these formulas stand posteriors that are trained on the bound, at the point that ``factor 2`` chose
(M1 finds its own): see `numerical`.

Results: arms ``<network>/isotropic``, ``<network>/factor <factor>`` and ``<network>/M1`` to
``<network>/M4`` of protocol ``analytic``, one seed per network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.flatten_util import ravel_pytree

from experiments.papers.networks import Bench, Model, opened
from experiments.papers.paper import trained
from experiments.papers.sloppy.studies import dziugaite_roy, numerical
from experiments.papers.sloppy.studies.causal import optimizer_of
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.program import Optimizer
from experiments.training.task import Hyper
from experiments.training.trainer import Trainer
from spectral_jax import capacity, curvature
from spectral_jax.capacity.analytic import Factor

Tree = Any
CHANCE = 0.5  # of two classes, as balanced as the source has them
METHODS: dict[str, Factor] = {
    "isotropic": "isotropic", "factor 2": 2, "factor 4": 4, "factor optimal": "optimal"
}  # fmt: skip
# Of the formulas, the one whose point of the grid the trained posteriors take over.
CHOOSER = "factor 2"
# The released code's with a larger c: for few examples the best prior would be at its edge.
GRID = capacity.ScaleGrid(b=10, c=1.0)
HELD_OUT = 1000  # of the examples set aside, so many give the curvature in the prior of M4
LANES = 10  # draws side by side: one pass over the eigenvectors serves them all


class Found(NamedTuple):
    """A network, its leading curvature, and the examples it is held against."""

    model: Model
    weights: Tree
    start: Tree
    values: jax.Array
    basis: capacity.Basis | None
    within: np.ndarray
    """The displacement along the eigenvectors."""
    distance: float
    """Its length in all directions."""
    examples: tuple[jax.Array, jax.Array]
    """Those of training, and behind them those of the test set."""
    size: int
    """Training examples, which the bound counts."""


def measure(
    run: Run,
    *,
    runs: Mapping[str, str],
    arm: str,
    epochs: int,
    learning_rate: float,
    decay: float,
    examples: int,
    vectors: int,
    points: Sequence[int],
    tried: int,
    draws: int,
    batch: int,
    start: Mapping[str, Any],
    training: Mapping[str, Any],
) -> Results:
    """Every method on every seed's network; a seed that is done is not measured again.

    Args:
        decay: of the pull ``decay ||w - w0||^2``.
        examples, vectors: of the Gauss-Newton matrix, and how many eigenvectors of it.
        points: of the prior's grid that are tried, with ``tried`` draws each.
        draws, batch: of the certified risk, and the examples that each answers; a fifth of them
            for the posterior's test error, and for the prior alone.
        start: of the trained posteriors: the ``weight`` of held-out curvature in the prior of M4.
        training: their ``epochs``, ``learning_rate`` and ``batch``.
    """
    bench = opened(trained(run, runs)[arm])
    methods = (*METHODS, *numerical.METHODS)
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    ends = None
    for place, seed in enumerate(bench.seeds):
        stored = run.load_array(f"bounds-{seed}")
        if stored is None:
            ends = ends or _pulled(run, bench, epochs, learning_rate, decay)
            params = jax.tree.map(lambda leaf, place=place: jnp.asarray(leaf[place]), ends)
            found = _curved(bench, seed, params, examples, vectors)
            told = bounds(found, seed, points=points, tried=tried, draws=draws, batch=batch)
            j = int(told[f"{CHOOSER}/point"])
            starts = _starts(bench, found, seed, j, **start)
            again = partial(_directions, bench.model, bench.examples(examples), vectors)
            told |= of_trained(
                found, starts, seed, j, training, renewed=again, draws=draws, batch=batch
            )
            stored = {name: np.asarray(value) for name, value in told.items()}
            run.save_array(f"bounds-{seed}", **stored)
            run.log(f"analytic: seed {seed} is measured")
        for method in methods:
            prefix = f"{method}/"
            rows[method].append(
                {k.removeprefix(prefix): float(v) for k, v in stored.items() if prefix in k}
            )
    columns = {
        method: {name: [row[name] for row in each] for name in each[0]}
        for method, each in rows.items()
    }
    first = bench.seeds.start
    return merge(
        of_arrays("analytic", f"{arm}/{method}", numbers, first_seed=first)
        for method, numbers in columns.items()
    )


def bounds(
    found: Found, seed: int, *, points: Sequence[int], tried: int, draws: int, batch: int
) -> dict[str, float]:
    """Per formula: the certificate, its rivals, and the number that the source would print."""
    held_out = _test_errors(found, found.weights)
    told: dict[str, float] = {}
    for method, key in zip(
        METHODS, jax.random.split(jax.random.key(seed), len(METHODS)), strict=True
    ):
        choosing, certifying, testing, guessing = jax.random.split(key, 4)
        plug_ins = [
            plug_in(found, j, method, errors(found, j, method, choosing, tried, batch))
            for j in points
        ]
        j = points[int(np.nanargmin(plug_ins))]
        risks = errors(found, j, method, certifying, draws, batch)
        alone = _errors(found, prior(found, j), guessing, draws // 5, batch)
        certificate = certified(found, j, method, risks, prior_draws=alone, held_out=held_out)
        tested = errors(found, j, method, testing, draws // 5, batch, tested=True)
        told |= _told(method, found, GRID, j, certificate, tested, held_out)
    return told


def of_trained(
    found: Found,
    starts: Mapping[str, numerical.Laws],
    seed: int,
    j: int,
    training: Mapping[str, Any],
    *,
    renewed: Callable[[Tree], jax.Array],
    draws: int,
    batch: int,
) -> dict[str, float]:
    """The same of posteriors that are trained, from where each starts.

    renewed: the eigenvectors at other weights, for M3.
    """
    x, y = found.examples
    examples = x[: found.size], y[: found.size]
    told: dict[str, float] = {}
    for method, start in starts.items():
        certifying, testing, guessing = jax.random.split(jax.random.key(seed), 3)
        laws = numerical.trained(
            found.model, start, examples, seed, **training,
            renewed=renewed if method == "M3" else None,
        )  # fmt: skip
        q, turned = laws.posterior, found._replace(basis=laws.basis)
        held_out = _test_errors(found, q.mean)
        # The scale of M1's prior was learnt, and is rounded to a grid here.
        learnt = method == "M1"
        late: dict[str, Any] = (
            {"grid": dziugaite_roy.GRID} if learnt else {"penalty": GRID.penalty(j)}
        )
        certificate = numerical.certified(
            laws, _errors(turned, q, certifying, draws, batch), n=found.size,
            chance=CHANCE, held_out=held_out, **late,
            prior_draws=_errors(turned, laws.prior.gaussian, guessing, draws // 5, batch),
        )  # fmt: skip
        tested = _errors(turned, q, testing, draws // 5, batch, tested=True)
        grid, point = (dziugaite_roy.GRID, certificate.grid_index) if learnt else (GRID, j)
        told |= _told(method, found, grid, point, certificate, tested, held_out)
    return told


def _told(
    method: str,
    found: Found,
    grid: capacity.ScaleGrid,
    j: int | None,
    certificate: capacity.Certificate,
    tested: np.ndarray,
    held_out: tuple[int, int],
) -> dict[str, float]:
    """What a method comes to at a point of the grid, by name; None for a prior that diverged."""
    numbers = {
        "bound": certificate.bound, "risk bound": certificate.risk_bound,
        "risk": certificate.risk, "kl": certificate.kl,
        "point": math.nan if j is None else j,
        "plug-in": capacity.pac_bayes_bound(
            certificate.risk, certificate.kl, n=found.size, penalty=certificate.penalty,
            constant="seeger",
        ),
        "prior bound": certificate.prior_bound, "test-set bound": certificate.held_out_bound,
        "test/error": tested.mean(), "margin": CHANCE - certificate.bound,
        "dimension": math.nan if j is None else capacity.effective_dimension(
            found.values, n=found.size, epsilon=1 / grid.variance(j), floor=0.0
        ).value,
        "distance": found.distance, "test/error of the mean": held_out[0] / held_out[1],
    }  # fmt: skip
    return {f"{method}/{name}": float(value) for name, value in numbers.items()}  # type: ignore[arg-type]


def _test_errors(found: Found, weights: Tree) -> tuple[int, int]:
    """How many test examples a network gets wrong, of how many."""
    x, y = (part[found.size :] for part in found.examples)
    wrong = jnp.argmax(found.model(weights, x), axis=-1) != y
    return int(wrong.sum()), len(wrong)


def posterior(found: Found, j: int, method: str) -> capacity.AnalyticPosterior:
    """The precisions that the method prescribes at a point of the grid.

    Eigenvalues are those of the loss in bits, the source's stand-in for the error.
    """
    return capacity.analytic_posterior(
        found.values / math.log(2), found.distance, n=found.size,
        epsilon=1 / GRID.variance(j), penalty=GRID.penalty(j), factor=METHODS[method],
    )  # fmt: skip


def prior(found: Found, j: int) -> capacity.Gaussian:
    """A Gaussian of the grid's variance around the first weights, in the eigenvectors' basis."""
    scale = jnp.asarray(math.log(GRID.variance(j)) / 2, found.values.dtype)
    return capacity.Gaussian(found.start, (jnp.full_like(found.values, scale), scale))


def plug_in(found: Found, j: int, method: str, risks: np.ndarray) -> float:
    """The bound at the mean of the draws, as if that were exact: what the source prints."""
    chosen = posterior(found, j, method)
    return float(
        capacity.pac_bayes_bound(
            risks.mean(), float(chosen.kl), n=found.size, penalty=GRID.penalty(j), constant="seeger"
        )
    )


def certified(
    found: Found, j: int, method: str, risks: np.ndarray, **rivals: Any
) -> capacity.Certificate:
    """The certificate, computed in the coordinates that matter.

    Beyond the eigenvectors prior and posterior have one variance, so that of all those directions
    only the length of the displacement counts: one number, instead of float64 eigenvectors.
    """
    chosen = posterior(found, j, method)
    within = found.within
    beyond = math.sqrt(max(found.distance**2 - float(within @ within), 0.0))
    scale = -math.log(float(chosen.epsilon)) / 2
    moved = {"within": within, "beyond": np.array([beyond])}
    spread = {"within": -np.log(np.asarray(chosen.precision)) / 2, "beyond": np.array([scale])}
    prior = capacity.data_free_prior(
        {name: np.zeros_like(part) for name, part in moved.items()}, math.sqrt(GRID.variance(j))
    )
    return capacity.certify(
        capacity.Gaussian(moved, spread), prior, risks, examples=found.size,
        penalty=GRID.penalty(j), chance=CHANCE, **rivals,
    )  # fmt: skip


def errors(
    found: Found, j: int, method: str, key: jax.Array, count: int, batch: int, tested: bool = False
) -> np.ndarray:
    """Errors of independent draws from the posterior, on training or on test examples."""
    chosen = posterior(found, j, method)
    within = jnp.broadcast_to(-jnp.log(chosen.precision) / 2, found.values.shape)
    q = capacity.Gaussian(found.weights, (within, -jnp.log(chosen.epsilon) / 2))
    return _errors(found, q, key, count, batch, tested)


def _errors(
    found: Found, q: capacity.Gaussian, key: jax.Array, count: int, batch: int, tested: bool = False
) -> np.ndarray:
    keys = jax.random.split(key, (-(-count // LANES), LANES))
    ends = (found.size, len(found.examples[1])) if tested else (0, found.size)
    drawn = _drawn_errors(found.model, q, found.basis, found.examples, ends, keys, batch)
    return np.asarray(drawn, float).ravel()[:count]


@partial(jax.jit, static_argnames=("model", "batch"))
def _drawn_errors(
    model: Model,
    q: capacity.Gaussian,
    basis: capacity.Basis | None,
    examples: tuple[jax.Array, jax.Array],
    ends: tuple[int, int],
    keys: jax.Array,
    batch: int,
) -> jax.Array:
    x, y = examples

    def one(key):
        weights, rows = jax.random.split(key)
        params = capacity.draw(weights, q, basis=basis)
        chosen = jax.random.randint(rows, (batch,), *ends)
        return jnp.mean(jnp.argmax(model(params, x[chosen]), axis=-1) != y[chosen])

    return jax.lax.map(jax.vmap(one), keys)


def _curved(bench: Bench, seed: int, weights: Tree, examples: int, vectors: int) -> Found:
    """A network with its leading eigenpairs and its distance from its start."""
    values, basis = _leading(bench.model, weights, bench.examples(examples), vectors)
    moved = ravel_pytree(weights)[0] - ravel_pytree(bench.start(seed))[0]
    splits = bench.splits
    x = np.concatenate([splits.train_x, splits.test_x])
    y = np.concatenate([splits.train_y, splits.test_y])
    return Found(
        bench.model, weights, bench.start(seed), values, capacity.vector_basis(basis),
        np.asarray(moved @ basis, float), float(jnp.linalg.norm(moved)),
        (bench.scaled(x), jnp.asarray(y)), len(splits.train_y),
    )  # fmt: skip


def _leading(
    model: Model, weights: Tree, examples: tuple[jax.Array, jax.Array], vectors: int
) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalues of the Gauss-Newton matrix, and their vectors as columns."""
    loss = curvature.SoftmaxCrossEntropy()
    full = curvature.ggn_spectrum(model, loss, weights, examples, vectors=vectors)
    # Below the floor there is no eigenvector; such directions count as flat.
    known = full.values[:vectors] > full.floor
    return jnp.where(known, full.values[:vectors], 0), jnp.where(
        known, jnp.asarray(full.vectors), 0
    )


def _directions(
    model: Model, examples: tuple[jax.Array, jax.Array], vectors: int, weights: Tree
) -> jax.Array:
    """The vectors alone, as a basis needs them whatever the floor leaves of them."""
    return jnp.linalg.qr(_leading(model, weights, examples, vectors)[1])[0]


def _starts(
    bench: Bench, found: Found, seed: int, j: int, *, weight: float
) -> dict[str, numerical.Laws]:
    """Where the methods' training starts, those with a prior of this grid at its point ``j``."""
    assert found.basis is not None  # that of the formulas
    variance, vectors = GRID.variance(j), found.basis.data
    splits, count = bench.splits, vectors.shape[1]
    # The set aside stands behind the examples that count, in the numbering of all of them.
    seen = found.size + np.arange(len(splits.validation_y))
    rows = seen[:HELD_OUT] - found.size
    held_out = bench.scaled(splits.validation_x[rows]), jnp.asarray(splits.validation_y[rows])
    values, other = _leading(found.model, found.start, held_out, count)
    chosen = posterior(found, j, CHOOSER)
    along = jnp.broadcast_to(-jnp.log(chosen.precision) / 2, found.values.shape)
    q = capacity.Gaussian(found.weights, (along, -jnp.log(chosen.epsilon) / 2))
    isotropic = numerical.isotropic_start(found.start, variance, vectors, q)
    return {
        "M1": numerical.diagonal_start(found.start, found.weights),
        "M2": isotropic,
        "M3": isotropic,
        "M4": numerical.held_out_start(
            found.start, found.weights, variance, other, values / math.log(2), weight=weight,
            seen=seen,
        ),
    }  # fmt: skip


def _pulled(run: Run, bench: Bench, epochs: int, learning_rate: float, decay: float) -> Tree:
    """All seeds' networks after the second training, trained or found; the source's "ana" run."""
    stored = run.load_array("pulled")
    if stored is None:
        trainer = Trainer(bench.task, _optimizer(epochs * bench.task.steps_per_epoch))
        hyper = {"learning_rate": learning_rate, "decay": decay}
        # What a seed starts from is what it is pulled to; then it goes on from where it ended.
        state = trainer.start([Trial(seed, hyper) for seed in bench.seeds])
        ends = [bench.end(seed) for seed in bench.seeds]
        state = state._replace(params=jax.tree.map(lambda *leaves: jnp.stack(leaves), *ends))
        state = trainer.train(state, epochs=epochs)
        stored = {k: np.asarray(v) for k, v in flatten_dict(state.params, sep="/").items()}
        run.save_array("pulled", **stored)
        run.log(f"analytic: trained on for {epochs} epochs")
    return unflatten_dict(stored, sep="/")


@cache
def _optimizer(steps: int) -> Optimizer:
    """Adam along half a cosine, with a pull towards the first weights."""

    def optimizer(hyper: Hyper) -> optax.GradientTransformation:
        return optax.chain(pull_to_start(hyper["decay"]), optimizer_of(steps)(hyper))

    return optimizer


def pull_to_start(strength: jax.Array) -> optax.GradientTransformation:
    """Add the gradient of ``strength ||w - w0||^2``, ``w0`` being the weights at the beginning."""

    def update(updates, start, params=None):
        pull = jax.tree.map(lambda w, w0: 2 * strength * (w - w0), params, start)
        return jax.tree.map(jnp.add, updates, pull), start

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.copy, params), update)
