"""Where to prune a character GPT: sparsity from the tails of its weights, and from controls.

AlphaPruning (arXiv 2410.10912) gives a block of heavier tails less sparsity; FARMS replaces its
exponent. Here every allocation has the same epsilon, which the papers tune per cell and method.
Blocks of a transformer share their shapes, so between blocks the shape bias cancels: analytic
debiasing changes nothing there, and shapes alone say nothing. Allocation layer by layer, where
shapes differ, is therefore measured too; there all of them differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import data
from experiments.claims import Claim, Judged, judge
from experiments.papers.farms.fitting import Tree, fit, from_arrays, start, to_arrays
from experiments.report import Picture, Section, Table
from experiments.runs import Run
from experiments.runs.study import study
from models import network
from models.gpt import TransformerBlock
from spectral_jax import optim, plots, prune, tails, weights
from spectral_jax.plots.pruning import pruning_curves

TITLE = "Sparsity allocation on a character GPT"
PRUNERS = ("magnitude", "wanda", "sparsegpt")
ARMS = {
    "uniform": "uniform",
    "hill/blocks": "plain alpha, by block",
    "farms/blocks": "FARMS, by block",
    "shuffled/blocks": "FARMS shuffled, by block",
    "hill/layers": "plain alpha, by layer",
    "farms/layers": "FARMS, by layer",
    "debiased/layers": "analytic debiasing, by layer",
    "shape_only/layers": "shape only, by layer",
    "shuffled/layers": "FARMS shuffled, by layer",
}
KERNELS = tuple(
    f"{layer}/kernel"
    for layer in (
        *("attention/query", "attention/key", "attention/value", "attention/out"),
        *("mlp/up", "mlp/down"),
    )
)
WINDOW_DRAWS = 8
FARMS, ALPHA_PRUNING = "arXiv 2506.06280", "arXiv 2410.10912"
DIFFERENCE = (
    "a character GPT instead of LLaMA, the median rule instead of the peak, epsilon the same in "
    "every arm instead of tuned: only the sign is tested"
)
CHUNK = 20  # steps per compiled scan; every number of steps is a multiple of it

COSTS = {
    "smoke": "half a minute on one CPU core, words that ship with scikit-learn",
    "small": "15 to 20 minutes on one CPU core, tiny Shakespeare",
    "paper": "hours on one GPU, tiny Shakespeare: 5 nets of 11 million weights, each "
    "pruned 135 times",
}

_SMALL = {
    "corpus": "tinyshakespeare",
    "width": 64,
    "depth": 6,
    "heads": 4,
    "context": 64,
    "batch": 16,
    "steps": 1000,
    "rate": 3e-3,
    "sparsities": (0.5, 0.6, 0.7, 0.8, 0.85),
    "epsilons": (0.3, 0.3, 0.3, 0.2, 0.15),
    "pruners": PRUNERS,
    "calibration": 32,
    "validation": 128,
    "seeds": 5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        **_SMALL,
        **{"corpus": "descriptions", "width": 32, "depth": 2, "heads": 2, "context": 32},
        **{"steps": 60, "sparsities": (0.5, 0.8), "epsilons": (0.3, 0.2)},
        **{"pruners": ("magnitude", "sparsegpt")},
        **{"calibration": 8, "validation": 32, "seeds": 2},
    },
    "small": _SMALL,
    "paper": {
        **_SMALL,
        **{"width": 384, "heads": 6, "context": 256, "batch": 64, "steps": 5000, "rate": 1e-3},
        **{"calibration": 128},
    },
}


class Corpus(NamedTuple):
    """Tokens to train on and to evaluate on."""

    train: np.ndarray
    validation: np.ndarray
    classes: int
    sha256: str


def run(preset: str, *, root: str | Path) -> Run:
    """Train the preset's transformers and prune them, or find that done."""
    options = PRESETS[preset]
    sha256 = corpus(options["corpus"]).sha256
    return study("farms/pruning", measure, options=options, root=root, data_sha256=sha256)


def measure(run: Run, *, seeds: int, **options: Any) -> dict[str, Any]:
    """Losses of every cell ``pruner/sparsity/arm``, per seed; a finished seed is not done again."""
    ready = programs(**options)
    found = []
    for seed in range(seeds):
        losses: Mapping[str, Any] | None = run.load_array(f"losses-{seed}")
        if losses is None:
            losses = ready.losses(run, seed)
            run.save_array(f"losses-{seed}", **losses)
            run.log(f"pruning: seed {seed + 1} of {seeds} is trained and pruned")
        found.append(losses)
    return {key: [float(one[key]) for one in found] for key in found[0]}


def claims(run: Run, command: str) -> list[Judged]:
    """What was said of such allocations, and what ours say."""
    return [
        judge(one, found, command=command) for one, found in [*_published(run), *_controls(run)]
    ]


def _published(run: Run) -> list[tuple[Claim, Any]]:
    """The papers' direction in each pruner, over all sparsities; their two best cells."""
    claim = partial(Claim, origin="published", direction=-1, unit=" %", difference=DIFFERENCE)
    rows: list[tuple[Claim, Any]] = []
    for pruner in PRUNERS:
        for arm, other, words, source in (
            ("hill/blocks", "uniform", "plain alpha than uniform", ALPHA_PRUNING),
            ("farms/blocks", "hill/blocks", "FARMS than plain alpha", FARMS),
            ("farms/blocks", "uniform", "FARMS than uniform", FARMS),
        ):
            made = claim(
                id=f"pruning-{pruner}-{arm}-{other}".replace("/", "-"),
                text=f"{pruner}, mean over all sparsities: lower perplexity by {words}",
                source=source,
            )
            rows.append((made, change(run, pruner, arm, other)))
    for pruner, sparsity, published in (
        ("sparsegpt", 0.8, "LLaMA-7B: 96.02 to 79.42, -17.3 %"),
        ("magnitude", 0.7, "LLaMA-13B: 2029 to 414, -80 %"),
    ):
        made = claim(
            id=f"pruning-{pruner}-{sparsity:g}",
            text=f"{pruner}, S = {sparsity:g}: lower perplexity by FARMS than by plain alpha "
            f"(published: {published})",
            source=FARMS,
        )
        rows.append((made, change(run, pruner, "farms/blocks", "hill/blocks", sparsity)))
    return rows


def _controls(run: Run) -> list[tuple[Claim, Any]]:
    """Is it the tails, is it the windows, is it the shapes? (Sheet farms.md, section 8.)"""
    claim = partial(Claim, origin="published", direction=-1, unit=" %", difference=DIFFERENCE)
    rows: list[tuple[Claim, Any]] = []
    for pruner in PRUNERS:
        for arm, other, words in (
            ("farms/blocks", "shuffled/blocks", "FARMS than its exponents shuffled among blocks"),
            ("farms/layers", "hill/layers", "FARMS than plain alpha, both by layer"),
            ("debiased/layers", "hill/layers", "analytic debiasing than plain alpha, by layer"),
            ("farms/layers", "debiased/layers", "FARMS than analytic debiasing, by layer"),
            ("farms/layers", "shuffled/layers", "FARMS than its exponents shuffled among layers"),
        ):
            made = claim(
                id=f"pruning-{pruner}-{arm}-{other}".replace("/", "-"),
                text=f"{pruner}, mean over all sparsities: lower perplexity by {words}",
                source=f"{FARMS}, its thesis with a control (sheet farms.md, section 8)",
            )
            rows.append((made, change(run, pruner, arm, other)))
    cancels = Claim(
        id="pruning-debiasing-cancels",
        text="between blocks of equal shapes analytic debiasing moves no weight: largest change of "
        "a block's sparsity",
        source="sheet farms.md, section 8 (our inference)",
        origin="our reference",
        value=0.0,
        tolerance=1e-4,
    )
    rows.append((cancels, run.summary["debiasing_in_blocks"]))
    noise = Claim(
        id="pruning-window-noise",
        text="what FARMS sees between blocks is more than the choice of windows (sd of a block's "
        "exponent over random windows, less that between blocks)",
        source="sheet farms.md, section 8",
        origin="published",
        direction=-1,
    )
    rows.append((noise, _seeds(run, "window_sd") - _seeds(run, "block_sd")))
    return rows


def section(run: Run, folder: Path) -> Section:
    """Perplexity over sparsity, differences by seed, and every cell of the table."""
    sparsities, losses = cells(run)
    named = {
        pruner: {ARMS[arm]: values for arm, values in by_arm.items()}
        for pruner, by_arm in losses.items()
    }
    pictures = []
    for by in ("block", "layer"):
        shown = {
            pruner: {arm: v for arm, v in by_arm.items() if arm == "uniform" or arm.endswith(by)}
            for pruner, by_arm in named.items()
        }
        figure = pruning_curves(
            sparsities, shown, dense=_seeds(run, "dense"), reference="uniform",
            arms=list(ARMS.values()),
        )  # fmt: skip
        plots.save(figure, Path(folder) / f"pruning-{by}s")
        pictures.append(
            Picture(
                figure,
                f"A character GPT pruned, sparsity allocated by {by}: perplexity, and its change "
                "against uniform sparsity, paired by seed (logarithmic beyond 10 %).",
            )
        )
    tables = [
        Table("Validation perplexity, mean over seeds (change against uniform, %)", rows(run)),
        Table("How certain a block's exponent is", noise_rows(run)),
    ]
    return Section(TITLE, figures=pictures, tables=tables)


def rows(run: Run) -> list[dict[str, str]]:
    """One row per pruner and arm, one column per sparsity."""
    sparsities, losses = cells(run)
    made = []
    for pruner, by_arm in losses.items():
        for arm, values in by_arm.items():
            row = {"pruner": pruner, "allocation": ARMS[arm]}
            for sparsity, seeds in zip(sparsities, values, strict=True):
                row[f"S = {sparsity:g}"] = f"{np.exp(np.nanmean(seeds)):.3f}"
                if arm != "uniform":
                    against = change(run, pruner, arm, "uniform", sparsity)
                    row[f"S = {sparsity:g}"] += f" ({_cell(against)})"
            made.append(row)
    return made


def noise_rows(run: Run) -> list[dict[str, str]]:
    """The spread of FARMS exponents over windows and over blocks; the unpruned loss."""
    names = {
        "dense": "loss before pruning (nats per character)",
        "block_sd": "sd of FARMS alpha from block to block",
        "window_sd": f"sd of a block's FARMS alpha over {WINDOW_DRAWS} sets of random windows",
    }
    return [{"quantity": text, "value": _cell(_seeds(run, name))} for name, text in names.items()]


def change(
    run: Run, pruner: str, arm: str, other: str, sparsity: float | None = None
) -> np.ndarray | None:
    """Perplexity of one arm against another, in percent, per seed; over all sparsities if None.

    None where the preset has no such cell.
    """
    sparsities, losses = cells(run)
    if pruner not in losses or (sparsity is not None and sparsity not in sparsities):
        return None
    difference = losses[pruner][arm] - losses[pruner][other]
    picked = slice(None) if sparsity is None else [sparsities.index(sparsity)]
    return 100 * np.expm1(difference[picked].mean(axis=0))


def cells(run: Run) -> tuple[list[float], dict[str, dict[str, np.ndarray]]]:
    """The sparsities, and the losses ``[sparsities, seeds]`` by pruner and arm."""
    names = [key.split("/", 2) for key in run.summary if key.count("/") >= 2]
    sparsities = list(dict.fromkeys(float(sparsity) for _, sparsity, _ in names))
    losses = {
        pruner: {
            arm: np.stack([_seeds(run, f"{pruner}/{s:g}/{arm}") for s in sparsities])
            for arm in ARMS
        }
        for pruner in dict.fromkeys(pruner for pruner, _, _ in names)
    }
    return sparsities, losses


def _seeds(run: Run, key: str) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in run.summary[key]], float)


def _cell(values: np.ndarray | None) -> str:
    if values is None:
        return ""
    mean, half, count = (float(part) for part in plots.t_interval(values))
    return f"{mean:.3g} ± {half:.2g}" if count > 1 else f"{mean:.3g}"


def corpus(name: str) -> Corpus:
    """Tiny Shakespeare, or the words that come with scikit-learn's data sets."""
    if name == "tinyshakespeare":
        plays = data.load(name)
        train, test = plays.train_x.ravel(), plays.test_x.ravel()
        return Corpus(train, test, plays.classes, plays.sha256)
    from sklearn import datasets

    loaders = (datasets.load_breast_cancer, datasets.load_diabetes, datasets.load_iris)
    text = "".join(loader().DESCR for loader in loaders)
    characters, tokens = np.unique(list(text), return_inverse=True)
    first = int(0.9 * len(tokens))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(tokens[:first], tokens[first:], len(characters), sha256)


def allocate(
    alphas: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    sparsity: float,
    *,
    epsilon: float,
    by: str,
) -> dict[str, np.ndarray]:
    """Sparsity of every kernel, ``[depth]`` each, from the exponents of all, ``[depth]`` each."""
    named = {
        f"blocks/{block}/{kernel}": float(alpha)
        for kernel, values in alphas.items()
        for block, alpha in enumerate(values)
    }
    whole = {name: sizes[name.split("/", 2)[2]] for name in named}
    own: Callable | None = (lambda name: name) if by == "layers" else None
    ratios = optim.layer_sparsities(named, whole, sparsity, epsilon=epsilon, block_of=own)
    depth = len(next(iter(alphas.values())))
    return {
        kernel: np.array([float(ratios[f"blocks/{block}/{kernel}"]) for block in range(depth)])
        for kernel in alphas
    }


def measured(
    blocks: Mapping[str, jax.Array], metrics: Mapping[str, Callable]
) -> dict[str, dict[str, np.ndarray]]:
    """Every metric of every kernel, ``[depth, ...]``; equal shapes are measured together."""
    # Square windows and singular values do not know a matrix from its transpose.
    wide = {name: blocks[name] for name in KERNELS}
    wide = {n: w if w.shape[1] <= w.shape[2] else jnp.swapaxes(w, 1, 2) for n, w in wide.items()}
    found = {name: jax.device_get(_together(metric, wide)) for name, metric in metrics.items()}
    return {name: {kernel: of[kernel] for kernel in KERNELS} for name, of in found.items()}


@partial(jax.jit, static_argnums=0)
def _together(metric: Callable, kernels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return weights.map_by_shape(kernels, jax.vmap(metric))


def random_windows(window: int) -> Callable[[jax.Array], jax.Array]:
    """The FARMS exponent of a kernel for several sets of windows at random places."""
    keys = jax.random.split(jax.random.key(0), WINDOW_DRAWS)

    def once(kernel, key):
        options = {"window": window, "samples": 81, "scheme": "random", "key": key}
        return tails.hill_alpha(tails.farms_eigenvalues(kernel, **options))

    return lambda kernel: jax.vmap(partial(once, kernel))(keys)


def shuffled(alphas: Mapping[str, np.ndarray], key: jax.Array) -> dict[str, dict[str, np.ndarray]]:
    """The same exponents for other blocks, and for other layers."""
    stack = np.stack([alphas[kernel] for kernel in KERNELS])
    of_blocks, of_layers = jax.random.split(key)
    blocks = stack[:, np.asarray(jax.random.permutation(of_blocks, stack.shape[1]))]
    layers = np.asarray(jax.random.permutation(of_layers, stack.ravel())).reshape(stack.shape)
    return {
        "shuffled/blocks": dict(zip(KERNELS, blocks, strict=True)),
        "shuffled/layers": dict(zip(KERNELS, layers, strict=True)),
    }


def stacked(params: Tree) -> dict[str, jax.Array]:
    """Every parameter of a block, by name, stacked over the blocks."""
    blocks = [to_arrays(params["blocks"][str(i)]) for i in range(len(params["blocks"]))]
    return {name: jnp.stack([block[name] for block in blocks]) for name in blocks[0]}


def with_kernels(params: Tree, kernels: Mapping[str, jax.Array]) -> Tree:
    """The net with these kernels, stacked over the blocks, in place of its own."""
    new = {name: np.asarray(kernel) for name, kernel in kernels.items()}
    blocks = {
        number: from_arrays(to_arrays(block) | {name: new[name][int(number)] for name in new})
        for number, block in params["blocks"].items()
    }
    return {**params, "blocks": blocks}


def embedded(params: Tree, tokens: jax.Array) -> jax.Array:
    """What the first block is given."""
    positions = params["position_embedding"]["embedding"][: tokens.shape[1]]
    return params["token_embedding"]["embedding"][tokens] + positions


def _adamw(control: Tree) -> optax.GradientTransformation:
    """Warmed up over a twentieth of the steps, then a cosine to a tenth."""

    def rate(step):
        share = step / control["steps"]
        cosine = 0.1 + 0.45 * (1 + jnp.cos(jnp.pi * share))
        return control["rate"] * jnp.minimum(20 * share, cosine)

    return optax.chain(
        # One long vector: XLA compiles one update instead of one for every leaf.
        optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))),
        optax.add_decayed_weights(0.1, mask=partial(jax.tree.map, lambda p: p.ndim > 1)),
        optax.scale_by_learning_rate(rate),
    )


class _Recorder:
    """A layer that keeps what it is given."""

    def __init__(self, layer: Callable) -> None:
        self.layer = layer
        self.seen: Any = None

    def __call__(self, x):
        self.seen = x
        return self.layer(x)


@cache
def programs(**options: Any) -> _Programs:
    """What a preset compiles, once in a process."""
    return _Programs(corpus(options["corpus"]), **options)


class _Programs:
    """The compiled programs of a preset: all seeds, arms and sparsities share them."""

    def __init__(self, text: Corpus, **options: Any) -> None:
        self.options, self.text = options, text
        o = options
        self.net = network(
            "gpt", input_shape=(o["context"],), classes=text.classes, width=o["width"],
            depth=o["depth"], heads=o["heads"],
        )  # fmt: skip
        block = nnx.eval_shape(
            lambda: TransformerBlock(o["width"], o["heads"], 1.0, rngs=nnx.Rngs(0))
        )
        self.block = nnx.split(block)[0]
        self.calibration = self._windows(text.train, o["calibration"])
        self.validation = self._windows(text.validation, o["validation"])
        self.loss = jax.jit(self._loss)
        window = o["width"] // 2
        self.metrics = {"hill": optim.hill(), "farms": optim.farms(window=window, samples=9)}
        self.noise = {"farms": random_windows(window)}

    def losses(self, run: Run, seed: int) -> dict[str, Any]:
        """Validation loss of one trained net: whole, and pruned in every cell."""
        params = self.trained(run, seed)
        blocks = stacked(params)
        alphas = self.alphas(blocks, jax.random.key(seed))
        found: dict[str, Any] = {"dense": float(self.loss(params, self.validation))}
        found |= self.window_noise(blocks, alphas["farms"])
        found["debiasing_in_blocks"] = self._debiasing_in_blocks(alphas, blocks)
        for sparsity, epsilon in zip(
            self.options["sparsities"], self.options["epsilons"], strict=True
        ):
            ratios = self.allocations(alphas, blocks, sparsity, epsilon)
            for pruner in self.options["pruners"]:
                for arm in ARMS:
                    pruned = self.pruned(params, blocks, ratios[arm], pruner)
                    loss = self.loss(pruned, self.validation)
                    found[f"{pruner}/{sparsity:g}/{arm}"] = float(loss)
        return found

    def trained(self, run: Run, seed: int) -> Tree:
        """This seed's transformer, trained or found."""
        stored = run.load_array(f"trained-{seed}")
        if stored is None:
            key, steps = jax.random.key(seed), self.options["steps"]
            params, _ = self.net.init(key)
            control = {"rate": self.options["rate"], "steps": steps}
            state = start(params, _adamw, control, key)
            stream = jnp.asarray(self.text.train, jnp.int32)
            while int(state.step) < steps:
                state, _ = fit(
                    state, stream, control, loss=self._loss, draw=self._draw,
                    optimizer=_adamw, steps=CHUNK,
                )  # fmt: skip
            stored = to_arrays(state.params)
            run.save_array(f"trained-{seed}", **stored)
        return from_arrays(stored)

    def alphas(self, blocks: Tree, key: jax.Array) -> dict[str, dict[str, np.ndarray]]:
        """The exponents of every kernel, ``[depth]``, by metric."""
        found = measured(blocks, self.metrics)
        for metric in ("debiased", "shape_only"):
            found[metric] = {}
        for kernel, plain in found["hill"].items():
            shape = blocks[kernel].shape[1:]
            found["debiased"][kernel] = np.asarray(tails.debiased_alpha(jnp.asarray(plain), shape))
            found["shape_only"][kernel] = np.full(len(plain), tails.null_alpha(shape).mean)
        return found | shuffled(found["farms"], key)

    def allocations(self, alphas, blocks, sparsity, epsilon) -> dict[str, dict[str, np.ndarray]]:
        """The sparsity of every kernel, ``[depth]``, by arm."""
        sizes = {kernel: blocks[kernel][0].size for kernel in KERNELS}
        depth = self.options["depth"]
        ratios = {"uniform": {kernel: np.full(depth, sparsity) for kernel in KERNELS}}
        for arm in list(ARMS)[1:]:
            metric, _, by = arm.partition("/")
            source = alphas[arm if metric == "shuffled" else metric]
            ratios[arm] = allocate(source, sizes, sparsity, epsilon=epsilon, by=by)
        return ratios

    def pruned(self, params: Tree, blocks: Tree, ratios: Tree, pruner: str) -> Tree:
        """The net with its blocks pruned in turn, each on what the pruned ones before it give."""
        kernels = self._prune(params, blocks, ratios, pruner)
        return with_kernels(params, kernels)

    @partial(jax.jit, static_argnums=(0, 4))
    def _prune(self, params: Tree, blocks: Tree, ratios: Tree, pruner: str) -> Tree:
        def prune_block(hidden, block):
            kernels, rest, sparsities = block
            inputs, _ = self.block_pass({**rest, **kernels}, hidden)
            kernels = prune.prune_weights(kernels, sparsities, method=pruner, inputs=inputs)
            _, hidden = self.block_pass({**rest, **kernels}, hidden)
            return hidden, kernels

        kernels = {name: blocks[name] for name in KERNELS}
        rest = {name: leaf for name, leaf in blocks.items() if name not in KERNELS}
        hidden = embedded(params, self.calibration[:, :-1])
        return jax.lax.scan(prune_block, hidden, (kernels, rest, ratios))[1]

    def block_pass(self, block: Tree, hidden: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """One block's output, and what each of its layers is given, ``[samples, in]``."""
        module = nnx.merge(self.block, from_arrays(block))
        recorders = {}
        for name in KERNELS:
            part, layer, _ = name.split("/")
            parent = getattr(module, part)
            recorders[name] = _Recorder(getattr(parent, layer))
            setattr(parent, layer, recorders[name])
        out = module(hidden)
        inputs = {name: r.seen.reshape(-1, r.seen.shape[-1]) for name, r in recorders.items()}
        return inputs, out

    def window_noise(self, blocks: Tree, alphas: Tree) -> dict[str, float]:
        """How far a block's mean exponent moves with the windows, and from block to block."""
        drawn = measured(blocks, self.noise)["farms"]
        draws = np.mean([drawn[kernel] for kernel in KERNELS], axis=0)
        means = np.mean([alphas[kernel] for kernel in KERNELS], axis=0)
        return {
            "window_sd": float(np.mean(np.std(draws, axis=1, ddof=1))),
            "block_sd": float(np.std(means, ddof=1)),
        }

    def _debiasing_in_blocks(self, alphas: Tree, blocks: Tree) -> float:
        """The largest change of sparsity that analytic debiasing makes, allocating by block."""
        sizes = {kernel: blocks[kernel][0].size for kernel in KERNELS}
        plain, debiased = (
            allocate(alphas[metric], sizes, 0.7, epsilon=0.3, by="blocks")
            for metric in ("hill", "debiased")
        )
        return max(float(np.max(np.abs(plain[kernel] - debiased[kernel]))) for kernel in KERNELS)

    def _loss(self, params: Tree, windows: jax.Array) -> jax.Array:
        logits, _ = self.net.apply(params, {}, windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    def _draw(self, stream: jax.Array, key: jax.Array) -> jax.Array:
        width = self.options["context"] + 1
        first = jax.random.randint(key, (self.options["batch"], 1), 0, len(stream) - width)
        return stream[first + jnp.arange(width)]

    def _windows(self, stream: np.ndarray, count: int) -> jax.Array:
        """``count`` windows, spread evenly over the text."""
        width = self.options["context"] + 1
        first = np.linspace(0, len(stream) - width, count).astype(int)
        return jnp.asarray(stream[first[:, None] + np.arange(width)], jnp.int32)
