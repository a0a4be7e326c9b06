"""Does richness depend on how wide the network is, how many classes there are, how many examples?

Results: protocol ``sizes`` has arms ``width=<p>``, ``classes=<C>`` and ``examples=<n>``, in all of
which nothing else is changed; but fewer classes have fewer examples, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.config import OptimizerConfig
from experiments.papers.feature_map.measured import of_last
from experiments.papers.feature_map.trained import (
    Images,
    columns,
    dense,
    each,
    images,
    split,
    trainer,
)
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from models import Network

ADAM = OptimizerConfig("adam", 1e-3)


def measure(
    run: Run, *, widths: Sequence[int], classes: Sequence[int], examples: Sequence[int],
    dataset: str, layers: int, width: int, batch: int, steps: int, seeds: int, measured: int,
) -> Results:  # fmt: skip
    """Every size in turn; ``measured`` images are looked at, of those that were trained on."""
    data = images(dataset)
    kinds = {
        **{f"width={p}": (data, p) for p in widths},
        **{f"classes={c}": (of_classes(data, c), width) for c in classes},
        **{f"examples={n}": (of_examples(data, n), width) for n in examples},
    }
    parts = []
    for arm, (known, p) in kinds.items():
        net = dense(known.shape, (p,) * layers, known.classes)
        rows = trained_and_told(known, net, batch, steps, seeds, measured)
        parts.append(of_arrays("sizes", arm, columns(rows)))
        run.log(f"sizes: {arm} is trained")
    return merge(parts)


def trained_and_told(
    data: Images, net: Network, batch: int, steps: int, seeds: int, measured: int
) -> list[dict[str, float]]:
    """The numbers of every seed's last layer, on training images."""
    splits = {"train": split(data.x, data.y), "test": split(data.test_x, data.test_y)}
    training = trainer(net, splits, batch=batch, optimizer=ADAM)
    state = training.start([Trial(s, {"learning_rate": ADAM.learning_rate}) for s in range(seeds)])
    state = training.train(state, steps=steps)
    rows = [
        of_last(net, params, splits["train"], rows=measured)[0] for params in each(state.params)
    ]
    tested = training.evaluate(state)["accuracy"]
    return [
        {
            **row,
            "unseen/accuracy": right,
            "per class": row["effective_dimension"] / data.classes,
        }
        for row, right in zip(rows, tested, strict=True)
    ]


def of_classes(data: Images, count: int) -> Images:
    """The first classes alone."""
    kept, tested = data.y < count, data.test_y < count
    parts = data.x[kept], data.y[kept], data.test_x[tested], data.test_y[tested]
    return Images(*parts, count)


def of_examples(data: Images, count: int) -> Images:
    """The first examples alone."""
    return data._replace(x=data.x[:count], y=data.y[:count])
