"""What a network has learned, followed through anyone's training loop, and the end of it by that.

    look = probe(seen, inputs, at=log_spaced(10_000, 30), measure=("richness",), head=head,
                 stop=when("richness", below=0.05, patience=3))
    log = look.start(params)
    for step in range(10_000):
        params = ...                               # also in a scan, or only at the end of chunks
        log = look.update(log, step + 1, params)
        if log.stopped: break

Measured are inputs that stay the same: of training examples the numbers say what is fitted, of
unseen ones what is learned. For both, take two probes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from spectral_jax import features
from spectral_jax._choices import check_choice
from spectral_jax._options import check_number, count
from spectral_jax._transforms.members import where_needed
from spectral_jax.features.richness import Order, Richness

Seen: TypeAlias = Callable[[PyTree, Any], Array | dict[str, Array]]


class Layer(NamedTuple):
    """Features of one layer, and what stands beside them, for a measure."""

    rows: Float[Array, "n p"]
    head: features.Head | None
    outputs: Float[Array, "n c"] | None
    labels: Int[Array, " n"] | None
    classes: int | None

    def richness(self, order: Order = "literal") -> Richness:
        """``D_LR`` of the features as the head, or the outputs, use them."""
        return features.richness(self.rows, head=self.head, outputs=self.outputs, order=order)

    def utilisation(self) -> Float[Array, ""]:
        """The share of the outputs that the leading directions hold, of as many as they span."""
        found = features.diagonalize(self.rows, head=self.head, outputs=self.outputs)
        shares, rank = found.cumulative_utilisation, found.output_rank
        assert shares is not None and rank is not None
        return shares[jnp.clip(rank - 1, 0)]

    def nc1(self) -> Float[Array, ""]:
        """Within classes against between them."""
        if self.labels is None:
            raise ValueError("labels=None: measure 'nc1' needs those of the inputs")
        return features.neural_collapse(self.rows, labels=self.labels, classes=self.classes).nc1


Measure: TypeAlias = Callable[[Layer], Float[Array, ""]]

MEASURES: dict[str, Measure] = {
    "richness": lambda layer: layer.richness().value,
    "richness_centre_first": lambda layer: layer.richness("centre-first").value,
    "degenerate": lambda layer: layer.richness().degenerate,
    "few_rows": lambda layer: layer.richness().few_rows,
    "effective_dimension": lambda layer: features.effective_dimension(layer.rows),
    "participation": lambda layer: features.effective_dimension(layer.rows, kind="participation"),
    "utilisation": lambda layer: layer.utilisation(),
    "nc1": lambda layer: layer.nc1(),
}


class Stop(NamedTuple):
    """A number, and the range in which it ends training; see `when`."""

    name: str
    below: float | None
    above: float | None
    patience: int

    def holds(self, value: Any) -> Any:
        """Whether the number is where it ends training: infinity may be, NaN is not."""
        low = value == value if self.below is None else value < self.below
        high = value == value if self.above is None else value > self.above
        return low & high


class ProbeLog(NamedTuple):
    """What a `Probe` has seen: a pytree of arrays of fixed size, NaN where nothing is yet.

    steps: at which the numbers were taken, -1 where they were not.
    values: by name; with layers, ``"richness/block1"``.
    done: how many steps of the schedule have passed.
    held: at how many measurements in a row, the last included, ``stop`` has held.
    stopped: whether it has held as often as its patience asks; for good.
    """

    steps: Int[Array, " k"]
    values: dict[str, Float[Array, " k"]]
    done: Int[Array, ""]
    held: Int[Array, ""]
    stopped: Bool[Array, ""]


def _measure(name: str) -> Measure:
    check_choice(MEASURES, measure=name)
    return MEASURES[name]


def log_spaced(total: int, at_most: int) -> tuple[int, ...]:
    """0, ``total``, and whole numbers between, each about the same factor after the one before.

    >>> log_spaced(1000, 5)
    (0, 1, 10, 100, 1000)
    """
    total, at_most = count("total", total), count("at_most", at_most, least=2)
    between = np.geomspace(1, total, at_most - 1).round().astype(int).tolist()
    return tuple(sorted({0, *between, total}))


def when(
    name: str, *, below: float | None = None, above: float | None = None, patience: int = 1
) -> Stop:
    """End training where a number is ``below`` or ``above`` a limit, or between both.

    Args:
      name: of a measure of the probe; of one layer ``"richness/block1"``.
      patience: for so many measurements in a row. NaN is in no range.

    Raises ``ValueError`` without a limit, and where no number is between both.

    >>> when("richness", below=0.05, patience=3).holds(0.01)
    True
    """
    if below is None and above is None:
        raise ValueError(f"below=None, above=None: say where {name!r} ends training")
    given = {"below": below, "above": above}
    limits = {side: limit for side, limit in given.items() if limit is not None}
    check_number("choose a number that is not NaN", lambda x: x == x, **limits)
    if below is not None and above is not None and not above < below:
        raise ValueError(f"below={below}, above={above}: no number is both, choose above < below")
    return Stop(name, below, above, count("patience", patience))


def probe(
    seen: Seen,
    inputs: Any,
    *,
    at: Sequence[int],
    measure: Sequence[str] | Mapping[str, Measure],
    head: Callable[[PyTree], features.Head] | None = None,
    labels: Int[Array, " n"] | None = None,
    stop: Stop | None = None,
) -> "Probe":
    """Numbers of the features of fixed ``inputs``, at some steps of a training loop.

    Args:
      seen: ``(params, inputs)`` to features ``[n, p]``, or to a dict of layers by name, as
        `spectral_jax.nnx.tap` makes; the entry ``"outputs"`` are the network's outputs, with which
        ``richness`` compares each layer. A static function.
      inputs: what ``seen`` takes; a few examples for each feature, the same at all times.
      at: steps at which to measure, in order, as of `log_spaced`. One that no call of ``update``
        names is made up for at the next call, so that calls at the end of chunks are enough.
      measure: names in ``MEASURES``, or functions of a `Layer` by names of your own.
        ``"degenerate"`` and ``"few_rows"`` are 1 where ``"richness"`` says nothing: see `Richness`.
      head: from ``params`` the last layer, for features that are one array.
      labels: of the inputs, for measures of classes.
      stop: where training ends: see `when`. It is for your loop to look at ``log.stopped``.

    The result is a pytree whose leaves are ``inputs`` and ``labels``: pass it to a compiled
    function as an argument, or they become constants of it. Everything works under ``jit`` and in
    ``scan``; under ``vmap`` over networks all are measured where one is due. Raises ``ValueError``
    for a schedule that does not rise, for an unknown measure, and, at ``start``, for a ``stop`` of
    a number that is not there.

    >>> inputs = jnp.eye(4)
    >>> look = probe(lambda params, x: x * params, inputs, at=(0, 10),
    ...              measure=("effective_dimension",), stop=when("effective_dimension", below=1.5))
    >>> log = look.update(look.start(jnp.ones(4)), 0, jnp.ones(4))
    >>> log = look.update(log, 10, jnp.array([1.0, 0.1, 0.0, 0.0]))
    >>> log.steps.tolist(), log.values["effective_dimension"].round(2).tolist(), bool(log.stopped)
    ([0, 10], [3.0, 1.04], True)
    """
    steps = [count("at", step, least=0) for step in at] if np.ndim(at) == 1 else at
    if not isinstance(steps, list) or not steps or sorted(set(steps)) != steps:
        raise ValueError(f"at={steps}: pass steps in rising order, such as log_spaced(1000, 20)")
    if isinstance(measure, str):
        raise ValueError(f"measure={measure!r}: pass a tuple of names, ({measure!r},)")
    if stop is not None and not isinstance(stop, Stop):
        raise ValueError(f"stop={stop!r}: pass when(name, below=..., patience=...)")
    if head is not None and not callable(head):
        raise ValueError(f"head is a {type(head).__name__}: pass a function of params to it")
    named = measure if isinstance(measure, Mapping) else {name: _measure(name) for name in measure}
    classes = None if labels is None else int(np.max(labels, initial=-1)) + 1
    return Probe(inputs, labels, seen, head, classes, tuple(steps), tuple(named.items()), stop)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe:
    """A pytree of the inputs that are looked at; see `probe`."""

    inputs: Any
    labels: Any
    seen: Seen = dataclasses.field(metadata={"static": True})
    head: Callable[[PyTree], features.Head] | None = dataclasses.field(metadata={"static": True})
    classes: int | None = dataclasses.field(metadata={"static": True})
    at: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    measures: tuple[tuple[str, Measure], ...] = dataclasses.field(metadata={"static": True})
    stop: Stop | None = dataclasses.field(metadata={"static": True})

    def start(self, params: PyTree) -> ProbeLog:
        """A log in which nothing is yet; of ``params`` the shapes are read."""
        names = jax.eval_shape(self.numbers, params)
        if self.stop is not None and self.stop.name not in names:
            raise ValueError(f"stop is by {self.stop.name!r}: there are {', '.join(names)}")
        values = {name: jnp.full(len(self.at), jnp.nan) for name in names}
        # Arrays of their own, each: a log that is donated may hold no buffer twice.
        done, held = (jnp.zeros((), jnp.int32) for _ in range(2))
        return ProbeLog(jnp.full(len(self.at), -1), values, done, held, jnp.array(False))

    def update(self, log: ProbeLog, step: Any, params: PyTree) -> ProbeLog:
        """The log, with a measurement of ``params`` if one is due at or before ``step``."""
        passed = jnp.searchsorted(jnp.asarray(self.at), step, side="right").astype(jnp.int32)

        def measured() -> ProbeLog:
            numbers = self.numbers(params)
            values = {name: log.values[name].at[passed - 1].set(numbers[name]) for name in numbers}
            held = log.held
            if self.stop is not None:
                held = jnp.where(self.stop.holds(numbers[self.stop.name]), held + 1, 0)
            patience = self.stop.patience if self.stop else np.inf
            steps = log.steps.at[passed - 1].set(step)
            return ProbeLog(steps, values, passed, held, log.stopped | (held >= patience))

        return where_needed(passed > log.done, measured, log)

    def numbers(self, params: PyTree) -> dict[str, Float[Array, ""]]:
        """The numbers of these parameters, whatever the step."""
        return {
            f"{name}{place}": _number(name, measure(layer))
            for place, layer in self._layers(params).items()
            for name, measure in self.measures
        }

    def _layers(self, params: PyTree) -> dict[str, Layer]:
        found = self.seen(params, self.inputs)
        if not isinstance(found, Mapping):
            head = None if self.head is None else self.head(params)
            return {"": Layer(found, head, None, self.labels, self.classes)}
        if self.head is not None:
            raise ValueError(
                "head beside layers by name: give the network's outputs as the layer 'outputs'"
            )
        outputs = found.get("outputs")
        return {
            f"/{name}": Layer(rows, None, outputs, self.labels, self.classes)
            for name, rows in found.items()
            if name != "outputs"
        }


def _number(name: str, value: Any) -> Float[Array, ""]:
    found = jnp.asarray(value, float)
    if found.ndim:
        raise ValueError(f"measure {name!r} has shape {found.shape}: return one number of a layer")
    return found
