"""Where to prune a character GPT: sparsity from the tails of its weights, and from controls.

AlphaPruning (arXiv 2410.10912) gives a block of heavier tails less sparsity; FARMS replaces its
exponent. Here every allocation has the same epsilon, which the papers tune per cell and method.
Blocks of a transformer share their shapes, so between blocks the shape bias cancels: analytic
debiasing changes nothing there, and shapes alone say nothing. Allocation layer by layer, where
shapes differ, is therefore measured too; there all of them differ.

Results: protocol ``pruning``, arm ``<pruner>/<allocation>``. ``perplexity/0.8`` is the validation
perplexity at a sparsity of .8, ``perplexity`` the geometric mean over sparsities. The arm ``dense``
is not pruned; the arm ``exponents`` says how certain a block's exponent is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments import data
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.program import TrainState
from experiments.training.task import OBJECTIVES, Data, Hyper, Task, windows
from experiments.training.trainer import Trainer
from models import network
from models.gpt import TransformerBlock
from spectral_jax import optim, prune, tails, weights

Tree = Any
Alphas = Mapping[str, np.ndarray]
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
PLAIN = optim.hill()
CERTAINTY = ("window_sd", "block_sd", "debiasing_in_blocks")


class Bench(NamedTuple):
    """What all seeds share: the trainer, one block as a module, and the tokens to calibrate on."""

    trainer: Trainer
    block: Any
    calibration: jax.Array
    farms: Callable
    placed: Callable


def measure(
    run: Run,
    *,
    seeds: int,
    rate: float,
    steps: int,
    sparsities: Sequence[float],
    epsilons: Sequence[float],
    pruners: Sequence[str],
    **options: Any,
) -> Results:
    """Perplexities of every pruned network; a seed that is done is not done again."""
    bench = bench_of(**options)
    state = bench.trainer.start(
        [Trial(seed, {"learning_rate": rate, "steps": steps}) for seed in range(seeds)]
    )
    found = run.restore_checkpoint(state)
    state = found[1] if found else bench.trainer.train(state, steps=steps)
    if not found:
        run.save_checkpoint(steps, state)
    cells = list(zip(sparsities, epsilons, strict=True))
    return merge(_of_seed(run, bench, state, seed, cells, pruners) for seed in range(seeds))


def _of_seed(
    run: Run,
    bench: Bench,
    state: TrainState,
    seed: int,
    cells: Sequence[tuple[float, float]],
    pruners: Sequence[str],
) -> Results:
    """One trained network: whole, and pruned in every cell."""
    stored = run.load_array(f"losses-{seed}")
    if stored is None:
        own = jax.tree.map(lambda leaf: leaf[seed : seed + 1], state)
        params = jax.tree.map(lambda leaf: leaf[0], own.params)
        blocks = stacked(params)
        alphas = alphas_of(bench, blocks, jax.random.key(seed))
        stored = {"dense": bench.trainer.evaluate(own)["loss"]}
        stored |= certainty(bench, blocks, alphas)
        for (sparsity, epsilon), pruner in ((cell, p) for cell in cells for p in pruners):
            ratios = allocations(alphas, blocks, sparsity, epsilon)
            pruned = [pruned_by(bench, params, blocks, ratios[arm], pruner) for arm in ARMS]
            stored[f"{pruner}/{sparsity:g}"] = _losses(bench.trainer, own, pruned)
        run.save_array(f"losses-{seed}", **stored)
        run.log(f"pruning: seed {seed} is pruned")
    return merge(_rows(stored, seed, cells, pruners))


def _losses(trainer: Trainer, own: TrainState, pruned: Sequence[Tree]) -> np.ndarray:
    """Validation losses of networks that differ in their weights, evaluated together."""
    copies = jax.tree.map(lambda leaf: jnp.repeat(leaf, len(pruned), axis=0), own)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pruned)
    return trainer.evaluate(copies._replace(params=params))["loss"]


def _rows(
    stored: Mapping[str, np.ndarray],
    seed: int,
    cells: Sequence[tuple[float, float]],
    pruners: Sequence[str],
) -> Iterator[Results]:
    row = partial(of_arrays, "pruning", first_seed=seed)
    yield row("dense", {"perplexity": np.exp(stored["dense"])})
    yield row("exponents", {metric: stored[metric] for metric in CERTAINTY})
    for pruner in pruners:
        losses = np.stack([stored[f"{pruner}/{sparsity:g}"] for sparsity, _ in cells])
        for arm, of_arm in zip(ARMS, losses.T, strict=True):
            by_sparsity = {
                f"perplexity/{sparsity:g}": [np.exp(loss)]
                for (sparsity, _), loss in zip(cells, of_arm, strict=True)
            }
            yield row(f"{pruner}/{arm}", {"perplexity": [np.exp(of_arm.mean())], **by_sparsity})


def bench_of(
    *,
    corpus: str,
    width: int,
    depth: int,
    heads: int,
    context: int,
    batch: int,
    calibration: int,
    validation: int,
) -> Bench:
    """The trainer of a character GPT, and what prunes it."""
    text = corpus_of(corpus)
    net = network("gpt", input_shape=(context,), classes=text.classes, width=width, depth=depth,
                  heads=heads)  # fmt: skip
    starts = {"train": np.arange(len(text.train) - context - 1)}
    starts["test"] = spread(len(text.validation) - context - 1, validation)
    tokens = {"train": text.train, "test": text.validation}
    parts = {
        split: Data(jnp.asarray(at, jnp.int32), jnp.asarray(tokens[split], jnp.int32))
        for split, at in starts.items()
    }
    task = Task("pruning", net, OBJECTIVES["next_token"], parts, text.sha256, batch,
                prepare=windows(context), order="replacement")  # fmt: skip
    at = jnp.asarray(spread(len(text.train) - context - 1, calibration))
    block = nnx.eval_shape(lambda: TransformerBlock(width, heads, 1.0, rngs=nnx.Rngs(0)))
    window = width // 2
    return Bench(
        Trainer(task, adamw),
        nnx.split(block)[0],
        task.prepare(at, parts["train"].shared)["x"],
        optim.farms(window=window, samples=9),
        random_windows(window),
    )


def spread(most: int, count: int) -> np.ndarray:
    """``count`` places from 0 to ``most``, evenly spread."""
    return np.linspace(0, most, count).astype(np.int32)


def adamw(hyper: Hyper) -> optax.GradientTransformation:
    """AdamW, warmed up over a twentieth of the steps, then a cosine to a tenth."""

    def rate(step):
        share = step / hyper["steps"]
        cosine = 0.1 + 0.45 * (1 + jnp.cos(jnp.pi * share))
        return hyper["learning_rate"] * jnp.minimum(20 * share, cosine)

    return optax.chain(
        # One long vector: XLA compiles one update instead of one for every leaf.
        optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))),
        optax.add_decayed_weights(0.1, mask=partial(jax.tree.map, lambda p: p.ndim > 1)),
        optax.scale_by_learning_rate(rate),
    )


class Corpus(NamedTuple):
    """Tokens to train on and to evaluate on."""

    train: np.ndarray
    validation: np.ndarray
    classes: int
    sha256: str


def corpus_of(name: str) -> Corpus:
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


def alphas_of(bench: Bench, blocks: Tree, key: jax.Array) -> Mapping[str, Alphas]:
    """The exponents of every kernel, ``[depth]``, by what allocates with them."""
    found = measured(blocks, {"hill": PLAIN, "farms": bench.farms})
    for metric in ("debiased", "shape_only"):
        found[metric] = {}
    for kernel, plain in found["hill"].items():
        shape = blocks[kernel].shape[1:]
        found["debiased"][kernel] = np.asarray(tails.debiased_alpha(jnp.asarray(plain), shape))
        found["shape_only"][kernel] = np.full(len(plain), tails.null_alpha(shape).mean)
    return found | shuffled(found["farms"], key)


def allocations(
    alphas: Mapping[str, Alphas], blocks: Tree, sparsity: float, epsilon: float
) -> dict[str, Alphas]:
    """The sparsity of every kernel, ``[depth]``, by arm."""
    sizes = {kernel: blocks[kernel][0].size for kernel in KERNELS}
    depth = len(blocks[KERNELS[0]])
    ratios: dict[str, Alphas] = {
        "uniform": {kernel: np.full(depth, sparsity) for kernel in KERNELS}
    }
    for arm in list(ARMS)[1:]:
        metric, _, by = arm.partition("/")
        source = alphas[arm if metric == "shuffled" else metric]
        ratios[arm] = allocate(source, sizes, sparsity, epsilon=epsilon, by=by)
    return ratios


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


def certainty(bench: Bench, blocks: Tree, alphas: Mapping[str, Alphas]) -> dict[str, np.ndarray]:
    """How far a block's mean exponent moves with the windows, and from block to block.

    Also the largest change of sparsity that analytic debiasing makes, allocating by block.
    """
    drawn = measured(blocks, {"placed": bench.placed})["placed"]
    draws = np.mean([drawn[kernel] for kernel in KERNELS], axis=0)
    means = np.mean([alphas["farms"][kernel] for kernel in KERNELS], axis=0)
    sizes = {kernel: blocks[kernel][0].size for kernel in KERNELS}
    plain, debiased = (
        allocate(alphas[metric], sizes, 0.7, epsilon=0.3, by="blocks")
        for metric in ("hill", "debiased")
    )
    moved = max(float(np.max(np.abs(plain[k] - debiased[k]))) for k in KERNELS)
    values = np.mean(np.std(draws, axis=1, ddof=1)), np.std(means, ddof=1), moved
    return {metric: np.array([value]) for metric, value in zip(CERTAINTY, values, strict=True)}


def pruned_by(bench: Bench, params: Tree, blocks: Tree, ratios: Alphas, pruner: str) -> Tree:
    """The net with its blocks pruned in turn, each on what the pruned ones before it give."""
    kernels = _prune(params, blocks, ratios, bench.calibration, block=bench.block, pruner=pruner)
    return with_kernels(params, kernels)


@partial(jax.jit, static_argnames=("block", "pruner"))
def _prune(
    params: Tree, blocks: Tree, ratios: Tree, calibration: jax.Array, *, block: Any, pruner: str
) -> Tree:
    def one(hidden, given):
        kernels, rest, sparsities = given
        inputs, _ = block_pass(block, {**rest, **kernels}, hidden)
        kernels = prune.prune_weights(kernels, sparsities, method=pruner, inputs=inputs)
        _, hidden = block_pass(block, {**rest, **kernels}, hidden)
        return hidden, kernels

    kernels = {name: blocks[name] for name in KERNELS}
    rest = {name: leaf for name, leaf in blocks.items() if name not in KERNELS}
    hidden = embedded(params, calibration)
    return jax.lax.scan(one, hidden, (kernels, rest, ratios))[1]


def block_pass(
    block: Any, params: Mapping[str, jax.Array], hidden: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """What each of a block's layers is given, ``[samples, in]``, and the block's output."""
    module = nnx.merge(block, unflatten_dict(params, sep="/"))
    recorders = {}
    for name in KERNELS:
        part, layer, _ = name.split("/")
        parent = getattr(module, part)
        recorders[name] = _Recorder(getattr(parent, layer))
        setattr(parent, layer, recorders[name])
    out = module(hidden)
    return {name: r.seen.reshape(-1, r.seen.shape[-1]) for name, r in recorders.items()}, out


def stacked(params: Tree) -> dict[str, jax.Array]:
    """Every parameter of a block, by name, stacked over the blocks."""
    blocks = [flatten_dict(params["blocks"][str(i)], sep="/") for i in range(len(params["blocks"]))]
    return {name: jnp.stack([block[name] for block in blocks]) for name in blocks[0]}


def with_kernels(params: Tree, kernels: Mapping[str, jax.Array]) -> Tree:
    """The net with these kernels, stacked over the blocks, in place of its own."""
    blocks = {}
    for number, block in params["blocks"].items():
        new = {name: kernel[int(number)] for name, kernel in kernels.items()}
        blocks[number] = unflatten_dict(flatten_dict(block, sep="/") | new, sep="/")
    return {**params, "blocks": blocks}


def embedded(params: Tree, tokens: jax.Array) -> jax.Array:
    """What the first block is given."""
    positions = params["position_embedding"]["embedding"][: tokens.shape[1]]
    return params["token_embedding"]["embedding"][tokens] + positions


class _Recorder:
    """A layer that keeps what it is given."""

    def __init__(self, layer: Callable) -> None:
        self.layer = layer
        self.seen: Any = None

    def __call__(self, x):
        self.seen = x
        return self.layer(x)
