"""Try a regulariser that was just written: its contract, then a fair comparison with what there is.

    tried = try_regulariser("my_reg.py", config, against=("none", "l2", "dropout"))
    print(tried.comparison.table.text())
    tried.page("runs/tried/my_reg")

Every arm is a sweep of its own, with as many trials as every other: a baseline that was tuned
before is found, and when the file is edited nothing but its own arm is trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments import data as datasets
from experiments.config import ExperimentConfig, PenaltyConfig
from experiments.errors import UserError
from experiments.names import offered
from experiments.sweep.compare import FINALS, compare, refuse_few
from experiments.sweep.comparison import Comparison
from experiments.sweep.executors import Executor
from experiments.sweep.space import Lin, Log, Space
from experiments.sweep.sweep import Sweep, sweep
from experiments.training import prototypes
from experiments.training.optimisers import CATALOGUE, strengths_of
from models import options
from spectral_jax.optim import Held, check_penalty

AGAINST = ("none", "l2", "dropout", "spectral_norm")
TRIALS = 16
RATES = 10.0  # how far the learning rate of an experiment is searched, either way, as a factor
DROPOUT = Lin(0.05, 0.7)
# Of the training examples, those that choose the settings where an experiment holds none out.
HELD_OUT, MOST_HELD_OUT = 0.2, 5000


class Arm(NamedTuple):
    """A method: the configuration that it starts from, and what of it is searched."""

    name: str
    config: ExperimentConfig
    space: Space


@dataclass(frozen=True)
class Tried:
    """A regulariser beside its baselines.

    held: the clauses of its contract, with the inputs that they were checked on.
    source: the text of its file.
    """

    name: str
    arms: tuple[Arm, ...]
    sweeps: tuple[Sweep, ...]
    held: tuple[Held, ...]
    source: str
    comparison: Comparison

    @property
    def learned(self) -> list[str]:
        """What came out, in sentences."""
        from experiments.sweep import trying_page

        return trying_page.learned(self)

    def page(self, folder: str | Path) -> Path:
        """Write the page, the table and the figures; return the page's path."""
        from experiments.sweep import trying_page  # imports matplotlib: a second

        trying_page.write(self, Path(folder))
        return Path(folder) / "page.html"


def try_regulariser(
    file: str,
    config: ExperimentConfig,
    *,
    against: Sequence[str] = AGAINST,
    trials: int = TRIALS,
    seeds: int | None = None,
    finals: int = FINALS,
    executor: str | Executor = "local",
    root: str | Path = "runs",
) -> Tried:
    """Check a regulariser, tune it and every method that it is held against, and compare them.

    Args:
        file: ``my_reg.py`` or ``my_reg.py:name`` (`experiments.training.prototypes`).
        config: the experiment; its penalty and its dropout are those of the arms.
        against: ``none``, ``dropout``, names of penalties, files.
        trials: settings per arm: of none the rate is searched, of the others the rate and the
            strength (or the dropout rate), on a Sobol sequence.
        seeds: of every setting; None takes ``config.train.seeds``.
        finals: fresh seeds on which the best setting of each arm is trained again.
        executor, root: as for `sweep`.

    Raises:
        UserError: (2) the file has no regulariser or breaks the contract, and nothing is trained;
            a file was edited meanwhile; what `sweep` and `compare` raise.
    """
    refuse_few(finals)
    name = prototypes.load(file).name
    arms = arms_of(file, config, against)  # a misspelt baseline is known before the check begins
    held = contract(file)
    before = [prototypes.sources(arm.config) for arm in arms]
    place: dict[str, Any] = {"executor": executor, "root": root}
    sweeps = tuple(
        sweep(arm.config, over=arm.space, search=f"random:{trials}", seeds=seeds, **place)
        for arm in arms
    )
    # Of one family: each method against the regulariser, which is what is asked.
    comparison = compare(sweeps, by="name", baseline=name, finals=finals, **place)
    if [prototypes.sources(arm.config) for arm in arms] != before:
        raise UserError(
            "a regulariser was edited while it was tried, so its numbers are of several versions: "
            "give the same command again; what was trained as it is now is found"
        )
    source = Path(file.partition(":")[0]).read_text(encoding="utf-8")
    return Tried(name, arms, sweeps, held, source, comparison)


def contract(file: str) -> tuple[Held, ...]:
    """Check the regulariser of a file; `UserError` (2) that names the clause and the input."""
    try:
        return check_penalty(prototypes.load(file).penalty)
    except ValueError as error:
        raise UserError(f"{file} breaks its contract: {error}") from None


def arms_of(file: str, config: ExperimentConfig, against: Sequence[str]) -> tuple[Arm, ...]:
    """The baselines in their order, and the regulariser; each with a space of its own."""
    if not against:
        raise UserError("--against names nothing: give at least one baseline, as in none,l2")
    known = ["none", "dropout", *CATALOGUE]
    for name in against:
        if name not in known and not prototypes.is_file(name):
            hint = offered(name, [*known, "a file.py"])
            raise UserError(f"--against: {name!r} is no method{hint}")
    base = _without_regulariser(config)
    arms = [_arm(base, name) for name in (*against, file)]
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{name} is there twice: name the function differently, or leave it out"
            )
    return tuple(arms)


def _without_regulariser(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment as all arms have it: nothing that regularises, and validation data.

    It is evaluated at the end alone, and every seed draws a training set of its own: so the
    intervals count that another one would differ.
    """
    data, train = config.data, config.train
    size = data.train_limit or len(datasets.load(data.name).train_y)
    held_out = data.validation or min(int(HELD_OUT * size), MOST_HELD_OUT)
    return replace(
        config,
        data=replace(data, validation=held_out, subsets="own"),
        model=replace(config.model, dropout=0.0),
        penalty=PenaltyConfig(),
        optimizer=replace(config.optimizer, weight_decay=0.0),
        train=replace(
            train, measures=(), evaluate_every=train.epochs, measure_every=train.epochs, stop=None
        ),
        paper_compat=(),
    )


def _arm(base: ExperimentConfig, method: str) -> Arm:
    """`none`, `dropout`, or a penalty of the catalogue or of a file."""
    name = prototypes.load(method).name if prototypes.is_file(method) else method
    config = replace(base, name=f"{base.name}/{name}")
    rate = base.optimizer.learning_rate
    space: dict[str, Log | Lin] = {"optimizer.learning_rate": Log(rate / RATES, rate * RATES)}
    if method == "dropout":
        if "dropout" not in options(base.model.name):
            raise UserError(
                f"--against dropout: model.name = {base.model.name} has none; leave it out"
            )
        space["model.dropout"] = DROPOUT
    elif method != "none":
        low, high = strengths_of(method)
        config = replace(config, penalty=PenaltyConfig(method, low))
        space["penalty.strength"] = Log(low, high)
    return Arm(name, config, space)
