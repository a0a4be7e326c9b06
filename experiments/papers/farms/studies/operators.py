"""Scientific machine learning: a Fourier neural operator, trained on one fluid, moved to another.

The released code has no scientific part, so the nearest protocol is followed (ModelBalancing,
arXiv 2410.12178): Adam with weight decay, stepwise learning rate, TB-Sigmoid on layers of at least
12 eigenvalues, complex spectral weights left alone. The data are solutions of Burgers' equation;
the operator learns a thick fluid and is tuned to a thin one, from all examples or from a tenth of
them. Every arm has the same learning rates to choose from, on seeds of their own.

Results: arm ``<share>/<arm>`` of protocol ``operators``, ``<share>/<arm>@<rate>`` of
``operators/tuning``; errors are relative L2 errors. The arm ``solver`` has the largest error of the
solver that makes the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.data.pde import burgers, random_fields
from experiments.papers.paper import FRESH
from experiments.report.results import Results, merge, of_arrays
from experiments.report.selection import TUNING, choose
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.program import Optimizer
from experiments.training.task import OBJECTIVES, Data, Hyper, Task
from experiments.training.trainer import Trainer
from models import Network
from models.fno import FNO
from models.functional import functional
from models.layers import draw
from spectral_jax import optim

Tree = Any
ARMS = {
    "adam": "Adam",
    "hill": "TB-Sigmoid, plain alpha",
    "farms": "TB-Sigmoid, FARMS",
    "debiased": "TB-Sigmoid, analytic debiasing",
    "shape_only": "TB-Sigmoid, shape only",
}
# The share of the data, and TB-Sigmoid's s for it: the published setting per share.
SHARES = {"full": (1.0, 0.125), "tenth": (0.1, 0.25)}
CELLS = list(product(SHARES, ARMS))
TAU, MIN_EIGENVALUES, WEIGHT_DECAY, REFRESH, HALVINGS = 10.0, 12, 1e-4, 10, 5
THICK, THIN = 0.05, 0.01  # viscosities: pretraining, fine-tuning
PRETRAINING_RATE = 2.5e-3


def measure(
    run: Run,
    *,
    seeds: int,
    tuning_seeds: int,
    rates: Sequence[float],
    steps: int,
    pretraining_steps: int,
    **options: Any,
) -> Results:
    """Every arm at its best learning rate, on fresh seeds; a finished seed is not trained again."""
    of_seed = partial(
        _of_seed, run, steps=steps, pretraining_steps=pretraining_steps, options=options
    )
    tuned_on, fresh = range(tuning_seeds if len(rates) > 1 else 0), range(FRESH, FRESH + seeds)
    tuning = merge(
        of_seed(f"operators{TUNING}", seed, [rate] * len(CELLS), suffix=f"@{rate:g}")
        for seed, rate in product(tuned_on, rates)
    )
    best = [_rate(tuning, f"{share}/{arm}", rates[0]) for share, arm in CELLS]
    finals = merge(of_seed("operators", seed, best) for seed in fresh)
    solver = of_arrays("operators", "solver", {"error": [solver_error()]}, first_seed=FRESH)
    return merge([tuning, finals, solver])


def _rate(tuning: Results, method: str, default: float) -> float:
    """The rate with the least validation error; the default where only one was tried."""
    choice = choose(
        tuning, f"operators{TUNING}", method=method, by="validation/error", higher=False
    )
    return float(choice.arm.partition("@")[2]) if choice else default


def _of_seed(
    run: Run,
    protocol: str,
    seed: int,
    rates: Sequence[float],
    *,
    suffix: str = "",
    steps: int,
    pretraining_steps: int,
    options: Mapping[str, Any],
) -> Results:
    """Fine-tune every cell at its rate, from the seed's pretrained operator."""
    file = f"{protocol.replace('/', '-')}-{seed}{suffix}"
    stored = run.load_array(file)
    if stored is None:
        params = _pretrained(run, seed, pretraining_steps, options)
        trainer = trainer_of(jax.random.key(seed), THIN, **options)
        cells = zip(CELLS, rates, strict=True)
        state = trainer.start([_trial(seed, *cell, steps, options) for cell in cells])
        copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(CELLS)), params)
        state = state._replace(params=copies)
        stored = {"before/error": trainer.evaluate(state)["loss"], "learning_rate": np.array(rates)}
        state = trainer.train(state, steps=steps)
        for split in ("validation", "test"):
            stored[f"{split}/error"] = trainer.evaluate(state, split)["loss"]
        run.save_array(file, **stored)
        run.log(f"{protocol}: seed {seed}{suffix} is trained")
    return merge(
        of_arrays(
            protocol, f"{share}/{arm}{suffix}",
            {metric: values[place : place + 1] for metric, values in stored.items()},
            first_seed=seed,
        )
        for place, (share, arm) in enumerate(CELLS)
    )  # fmt: skip


def _pretrained(run: Run, seed: int, steps: int, options: Mapping[str, Any]) -> Tree:
    """The operator of the thick fluid, trained or found."""
    stored = run.load_array(f"pretrained-{seed}")
    if stored is None:
        trainer = trainer_of(jax.random.fold_in(jax.random.key(seed), 2), THICK, **options)
        trial = _trial(seed, ("full", "adam"), PRETRAINING_RATE, steps, options)
        state = trainer.train(trainer.start([trial]), steps=steps)
        params = jax.tree.map(lambda leaf: np.asarray(leaf[0]), state.params)
        stored = flatten_dict(params, sep="/")
        run.save_array(f"pretrained-{seed}", **stored)
    return unflatten_dict({name: jnp.asarray(leaf) for name, leaf in stored.items()}, sep="/")


def _trial(
    seed: int, cell: tuple[str, str], rate: float, steps: int, options: Mapping[str, Any]
) -> Trial:
    share, arm = cell
    part, s = SHARES[share]
    examples = round(part * options["examples"])
    numbers = {"arm": list(ARMS).index(arm), "learning_rate": rate, "s": s, "steps": steps}
    return Trial(seed, {**numbers, "examples": examples})


def trainer_of(
    key: jax.Array,
    viscosity: float,
    *,
    points: int,
    examples: int,
    batch: int,
    width: int,
    modes: int,
    depth: int,
    hidden: int,
) -> Trainer:
    """A trainer on solutions drawn by ``key``; those of one size share their programs."""
    task = Task(
        "operators",
        network_of(width, modes, depth, hidden),
        OBJECTIVES["relative_l2"],
        solutions(key, viscosity, points, examples),
        sha256="",
        batch_size=batch,
        prepare=_as_it_is,
        order="replacement",
    )
    return Trainer(task, optimizer_of(width // 2))


def solutions(key: jax.Array, viscosity: float, points: int, examples: int) -> dict[str, Data]:
    """Initial and final fields: to train on, to choose by and to report on."""
    fields = random_fields(key, 2 * examples, 2 * points)
    # The fields stay under 3, so these steps are stable.
    solved = burgers(fields, viscosity=viscosity, time=1.0, steps=8 * points)
    if not bool(solved.resolved.all()):
        raise ValueError(f"points={points} do not resolve viscosity={viscosity}: choose more")
    x, y = (field[:, ::2, None] for field in (fields, solved.values))
    ends = {"train": (0, examples), "validation": (examples, examples * 3 // 2)}
    ends["test"] = (examples * 3 // 2, 2 * examples)
    return {split: Data({"x": x[a:b], "y": y[a:b]}) for split, (a, b) in ends.items()}


def solver_error() -> float:
    """Largest error of the solver, in float32, against ``-2 nu phi_x / phi``, as trained on."""
    x, time, wave = np.arange(128) / 128, 1.0, 2 * math.pi
    decay = np.exp(-THIN * wave**2 * np.array([0.0, time]))[:, None]
    heat = 1.2 + decay * np.cos(wave * x)
    closed = 2 * THIN * wave * decay * np.sin(wave * x) / heat
    initial = jnp.asarray(closed[0], jnp.float32)
    found = burgers(initial, viscosity=THIN, time=time, steps=400).values
    return float(np.max(np.abs(np.asarray(found) - closed[1])))


@cache
def network_of(width: int, modes: int, depth: int, hidden: int) -> Network:
    """The operator as a network."""

    def model(key: jax.Array) -> FNO:
        made = FNO(width=width, modes=modes, depth=depth, hidden=hidden, rngs=nnx.Rngs(0))
        draw(key, made)
        return made

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        return functional(model(key)).params, {}

    apply = functional(nnx.eval_shape(lambda: model(jax.random.key(0)))).apply
    return Network(init, apply, tuple)


@cache
def optimizer_of(window: int) -> Optimizer:
    """Adam of the trial's rate, its layers scaled as the trial's arm will have it."""
    windows = {"window": window, "samples": 5}
    metrics = [optim.METRICS[arm](**(windows if arm == "farms" else {})) for arm in list(ARMS)[1:]]

    def optimizer(hyper: Hyper) -> optax.GradientTransformation:
        arm = hyper["arm"].astype(int)

        def metric(matrix):
            return jax.lax.switch(arm - 1, metrics, matrix)

        def assign(alphas):
            scales = optim.tb_sigmoid(alphas, tau=TAU, s_min=hyper["s"], s_max=hyper["s"])
            return jnp.where(arm == 0, 1.0, scales)

        def rate(step):
            return hyper["learning_rate"] * 0.5 ** (HALVINGS * step // hyper["steps"])

        balance = optim.temp_balance(
            assign, metric=metric, refresh_every=REFRESH, min_eigenvalues=MIN_EIGENVALUES
        )
        return optax.chain(
            optax.add_decayed_weights(WEIGHT_DECAY),
            optax.scale_by_adam(),
            optax.scale_by_learning_rate(rate),
            optax.masked(balance, _not_spectral),
        )

    return optimizer


def _not_spectral(params: Tree) -> Tree:
    return {
        name: jax.tree.map(lambda _, steered=name != "spectral": steered, part)
        for name, part in params.items()
    }


def _as_it_is(examples: Tree, shared: Tree) -> Tree:
    return examples
