"""Scientific machine learning: a Fourier neural operator, trained on one fluid, moved to another.

The released code has no scientific part, so the nearest protocol is followed (ModelBalancing,
arXiv 2410.12178; sheet farms.md, section 3): Adam with weight decay, stepwise learning rate,
TB-Sigmoid on layers of at least 12 eigenvalues, complex spectral weights left alone. The data are
solutions of Burgers' equation; the operator learns a thick fluid and is tuned to a thin one, from
all examples or from a tenth of them. Every arm has the same learning rates to choose from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.claims import Claim, Judged, judge
from experiments.data.pde import burgers, random_fields
from experiments.papers.farms.fitting import Tree, fit, from_arrays, start, to_arrays
from experiments.report import Picture, Section, Table
from experiments.runs import Run
from experiments.runs.study import study
from models.fno import FNO
from models.functional import functional
from models.layers import draw
from spectral_jax import optim, plots
from spectral_jax.weights import matrices

TITLE = "A Fourier neural operator moved from one fluid to another"
ARMS = {
    "adam": "Adam",
    "hill": "TB-Sigmoid, plain alpha",
    "farms": "TB-Sigmoid, FARMS",
    "debiased": "TB-Sigmoid, analytic debiasing",
    "shape_only": "TB-Sigmoid, shape only",
}
# The share of the data, and TB-Sigmoid's s for it: the published setting per share.
SHARES = {"full": (1.0, 0.125), "tenth": (0.1, 0.25)}
TAU, MIN_EIGENVALUES, WEIGHT_DECAY, REFRESH, HALVINGS = 10.0, 12, 1e-4, 10, 5
CHUNK = 20  # steps per compiled scan; every number of steps is a multiple of it
THICK, THIN = 0.05, 0.01  # viscosities: pretraining, fine-tuning

COSTS = {
    "smoke": "20 seconds on one CPU core, no data but its own",
    "small": "about 15 minutes on one CPU core",
    "paper": "some 10 hours on one GPU: 205 trainings of 35,000 steps",
}

_SMALL = {
    "points": 64,
    "width": 32,
    "modes": 16,
    "depth": 4,
    "hidden": 128,
    "examples": 200,
    "batch": 20,
    "pretraining_steps": 1000,
    "steps": 500,
    "rates": (2.5e-3, 5e-3, 1e-2),
    "seeds": 5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        **_SMALL,
        **{"points": 32, "width": 16, "modes": 6, "depth": 2, "hidden": 32, "examples": 40},
        **{"pretraining_steps": 60, "steps": 40, "rates": (2.5e-3,), "seeds": 2},
    },
    "small": _SMALL,
    "paper": {
        **_SMALL,
        **{"points": 256, "width": 64, "examples": 1000, "pretraining_steps": 35_000},
        **{"steps": 35_000, "rates": (1e-3, 2.5e-3, 5e-3, 1e-2)},
    },
}


def run(preset: str, *, root: str | Path) -> Run:
    """Train the preset's operators, or find them trained."""
    return study("farms/operators", measure, options=PRESETS[preset], root=root)


def measure(run: Run, *, seeds: int, **options: Any) -> dict[str, Any]:
    """Errors of every cell ``share/arm/rate``, per seed; a finished seed is not trained again."""
    ready = programs(**options)
    found = []
    for seed in range(seeds):
        errors: Mapping[str, Any] | None = run.load_array(f"errors-{seed}")
        if errors is None:
            errors = ready.errors(run, seed)
            run.save_array(f"errors-{seed}", **errors)
            run.log(f"operators: seed {seed + 1} of {seeds} is trained")
        found.append(errors)
    cells = {cell: [float(one[cell]) for one in found] for cell in found[0]}
    return {"errors": cells, "solver_error": solver_error()}


def claims(run: Run, command: str) -> list[Judged]:
    """What was said of such arms, and what ours say."""
    claim = partial(
        Claim,
        origin="published",
        direction=-1,
        unit=" %",
        difference="1-D Burgers by a small operator, not the paper's models; each arm's learning "
        "rate is chosen on validation data",
    )
    rows: list[tuple[Claim, Any]] = []
    for share, words in (("full", "all data"), ("tenth", "a tenth of the data")):
        rows += [
            (
                claim(
                    id=f"operator-{share}-farms-hill",
                    text=f"fine-tuning on {words}: FARMS has a lower error than plain alpha "
                    "(published: up to 5.66 % lower)",
                    source="arXiv 2506.06280",
                ),
                change(run, share, "farms", "hill"),
            ),
            (
                claim(
                    id=f"operator-{share}-hill-adam",
                    text=f"fine-tuning on {words}: TB-Sigmoid with plain alpha has a lower error "
                    "than Adam",
                    source="arXiv 2410.12178",
                ),
                change(run, share, "hill", "adam"),
            ),
            (
                claim(
                    id=f"operator-{share}-farms-adam",
                    text=f"fine-tuning on {words}: TB-Sigmoid with FARMS has a lower error than "
                    "Adam",
                    source="arXiv 2506.06280",
                ),
                change(run, share, "farms", "adam"),
            ),
            (
                claim(
                    id=f"operator-{share}-farms-shape",
                    text=f"fine-tuning on {words}: FARMS has a lower error than a schedule that "
                    "knows only the shapes",
                    source="arXiv 2506.06280, its thesis with a control (sheet farms.md, 8)",
                ),
                change(run, share, "farms", "shape_only"),
            ),
        ]
    solver = Claim(
        id="operator-solver",
        text="the solver of the data meets the closed form of Cole and Hopf (largest error)",
        source="Cole 1951, Hopf 1950",
        origin="our reference",
        value=0.0,
        tolerance=1e-4,
    )
    rows.append((solver, [run.summary["solver_error"]]))
    return [judge(one, evidence, command=command) for one, evidence in rows]


def section(run: Run, folder: Path) -> Section:
    """Differences by seed, and every cell of the table."""
    words = {"full": "all data", "tenth": "1/10 data"}
    differences = {
        f"{ARMS[arm].removeprefix('TB-Sigmoid, ')}, {words[share]}": change(run, share, arm, "adam")
        for share in SHARES
        for arm in ARMS
        if arm != "adam"
    }
    figure = plots.paired_differences(
        differences, xlabel="relative L2 error, change against Adam (%), paired by seed"
    )
    plots.save(figure, Path(folder) / "operators-paired")
    picture = Picture(
        figure,
        "Fine-tuning a Fourier neural operator with TB-Sigmoid: change of the test error against "
        "Adam alone, each arm at its own best learning rate.",
    )
    table = Table("Relative L2 error, mean and 95 % interval over seeds", rows(run))
    return Section(TITLE, figures=[picture], tables=[table])


def rows(run: Run) -> list[dict[str, str]]:
    """One row per arm: its chosen learning rates and its errors."""
    made = [{"arm": "before fine-tuning"}]
    for share in SHARES:
        made[0][f"error, {share} (%)"] = _cell(100 * _errors(run, "before/test"))
    for arm, name in ARMS.items():
        row = {"arm": name}
        for share in SHARES:
            row[f"rate, {share}"] = f"{chosen_rate(run, share, arm):g}"
            row[f"error, {share} (%)"] = _cell(100 * tuned(run, share, arm))
            if arm != "adam":
                row[f"against Adam, {share} (%)"] = _cell(change(run, share, arm, "adam"))
        made.append(row)
    return made


def change(run: Run, share: str, arm: str, other: str) -> np.ndarray:
    """Test error of one arm against another, in percent, per seed."""
    return 100 * (tuned(run, share, arm) / tuned(run, share, other) - 1)


def tuned(run: Run, share: str, arm: str) -> np.ndarray:
    """Test error per seed at the arm's chosen learning rate."""
    return _errors(run, f"{share}/{arm}/{chosen_rate(run, share, arm):g}/test")


def chosen_rate(run: Run, share: str, arm: str) -> float:
    """The learning rate with the least mean validation error."""
    start, end = f"{share}/{arm}/", "/validation"
    cells = [cell for cell in run.summary["errors"] if cell.startswith(start)]
    scores = {
        float(cell.removeprefix(start).removesuffix(end)): np.nanmean(_errors(run, cell))
        for cell in cells
        if cell.endswith(end)
    }
    return min(scores, key=lambda rate: scores[rate])


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
def programs(**options: Any) -> _Programs:
    """What a preset compiles, once in a process."""
    return _Programs(**options)


class _Programs:
    """The compiled programs of a preset: all seeds, arms and learning rates share them."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        abstract = nnx.eval_shape(lambda: self._model(jax.random.key(0)))
        self.apply = functional(abstract).apply
        self.init = jax.jit(lambda key: functional(self._model(key)).params)
        self.error = jax.jit(lambda params, data: self._relative(params, *data).mean())

    def errors(self, run: Run, seed: int) -> dict[str, float]:
        """Fine-tune every arm at every rate from this seed's pretrained operator."""
        key = jax.random.key(seed)
        before = self.pretrained(run, seed)
        train, validation, test = self.solutions(jax.random.fold_in(key, 1), THIN)
        found = {"before/test": float(self.error(before, test))}
        for share, arm, rate in itertools.product(SHARES, ARMS, self.options["rates"]):
            part, s = SHARES[share]
            count = round(part * len(train[0]))
            after = self.fit(before, train, count, key, arm=arm, rate=rate, s=s)
            cell = f"{share}/{arm}/{rate:g}"
            found[f"{cell}/validation"] = float(self.error(after, validation))
            found[f"{cell}/test"] = float(self.error(after, test))
        return found

    def pretrained(self, run: Run, seed: int) -> Tree:
        """The operator of the thick fluid, trained or found."""
        stored = run.load_array(f"pretrained-{seed}")
        if stored is None:
            key = jax.random.fold_in(jax.random.key(seed), 2)
            train, *_ = self.solutions(key, THICK)
            steps = self.options["pretraining_steps"]
            params = self.fit(self.init(key), train, len(train[0]), key, rate=2.5e-3, steps=steps)
            stored = to_arrays(params)
            run.save_array(f"pretrained-{seed}", **stored)
        return from_arrays(stored)

    def solutions(self, key: jax.Array, viscosity: float) -> list[Tree]:
        """Initial and final fields: to train on, to choose by and to report on."""
        examples, points = self.options["examples"], self.options["points"]
        fields = random_fields(key, 2 * examples, 2 * points)
        # The fields stay under 3, so these steps are stable.
        solved = burgers(fields, viscosity=viscosity, time=1.0, steps=8 * points)
        if not bool(solved.resolved.all()):
            raise ValueError(f"points={points} do not resolve viscosity={viscosity}: choose more")
        pair = [field[:, ::2, None] for field in (fields, solved.values)]
        cuts = (examples, examples * 3 // 2)
        return [tuple(parts) for parts in zip(*(jnp.split(f, cuts) for f in pair), strict=True)]

    def fit(
        self,
        params: Tree,
        examples: Tree,
        count: int,
        key: jax.Array,
        *,
        rate: float,
        arm: str = "adam",
        s: float = 0.0,
        steps: int | None = None,
    ) -> Tree:
        """Train on the first ``count`` examples."""
        steps = steps or self.options["steps"]
        control = {"arm": list(ARMS).index(arm), "rate": rate, "s": s, "steps": steps}
        state = start(params, self._optimizer, control, key)
        data = {"x": examples[0], "y": examples[1], "count": count}
        while int(state.step) < steps:
            state, _ = fit(
                state, data, control, loss=self._loss, draw=self._batch,
                optimizer=self._optimizer, steps=CHUNK,
            )  # fmt: skip
        return state.params

    def _model(self, key: jax.Array) -> FNO:
        names = ("width", "modes", "depth", "hidden")
        model = FNO(**{name: self.options[name] for name in names}, rngs=nnx.Rngs(0))
        draw(key, model)
        return model

    def _relative(self, params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        predicted, _ = self.apply(params, {}, x)
        norm = partial(jnp.linalg.norm, axis=(1, 2))
        return norm(predicted - y) / norm(y)

    def _loss(self, params: Tree, examples: Tree) -> jax.Array:
        return self._relative(params, *examples).mean()

    def _batch(self, data: Tree, key: jax.Array) -> Tree:
        rows = jax.random.randint(key, (self.options["batch"],), 0, data["count"])
        return data["x"][rows], data["y"][rows]

    def _optimizer(self, control: Tree) -> optax.GradientTransformation:
        """Adam of the control's rate, its layers scaled as the control's arm will have it."""
        window = {"window": self.options["width"] // 2, "samples": 5}
        metrics = [
            optim.METRICS[arm](**(window if arm == "farms" else {})) for arm in list(ARMS)[1:]
        ]

        def metric(matrix):
            return jax.lax.switch(control["arm"] - 1, metrics, matrix)

        def assign(alphas):
            scales = optim.tb_sigmoid(alphas, tau=TAU, s_min=control["s"], s_max=control["s"])
            return jnp.where(control["arm"] == 0, 1.0, scales)

        def rate(step):
            return control["rate"] * 0.5 ** (HALVINGS * step // control["steps"])

        balance = optim.temp_balance(
            assign, metric=metric, refresh_every=REFRESH, min_eigenvalues=MIN_EIGENVALUES
        )
        return optax.chain(
            optax.add_decayed_weights(WEIGHT_DECAY),
            optax.scale_by_adam(),
            optax.scale_by_learning_rate(rate),
            optax.masked(balance, _not_spectral),
        )


def _not_spectral(params: Tree) -> Tree:
    return {
        name: jax.tree.map(lambda _, steered=name != "spectral": steered, part)
        for name, part in params.items()
    }


def layer_alphas(params: Tree, metric: Callable) -> dict[str, float]:
    """The metric of every layer that is steered."""
    steered = {name: part for name, part in params.items() if name != "spectral"}
    kernels = {name: view.matrix for name, view in matrices(steered).items()}
    return {
        name: float(metric(matrix))
        for name, matrix in kernels.items()
        if min(matrix.shape[-2:]) >= MIN_EIGENVALUES
    }


def _errors(run: Run, cell: str) -> np.ndarray:
    values: Mapping[str, Any] = run.summary["errors"]
    return np.array([np.nan if value is None else value for value in values[cell]], float)


def _cell(values: np.ndarray) -> str:
    mean, half, count = (float(part) for part in plots.t_interval(values))
    return f"{mean:.4g} ± {half:.2g}" if count > 1 else f"{mean:.4g}"
