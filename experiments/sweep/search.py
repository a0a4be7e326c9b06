"""Which settings a sweep tries: all of a grid, a number of them at random, or what TPE proposes.

    search("random:64", space).propose([])        # 64 settings
    search("tpe:64", space).propose(told)         # the next 8, from the scores of those before

A search holds no state: what it proposes next is a function of its arguments and of what it is
told, so a sweep that was killed goes on as if it had not been. The log of trials stays the truth.
"""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments.errors import UserError
from experiments.names import did_you_mean
from experiments.sweep.space import Choice, Int, Log, Space, as_text

Setting = Mapping[str, Any]

MOST = 10**5  # settings of a search
MOST_DOUBLINGS = 6  # of a sample, where ever new draws are settings that were drawn before
BATCH = 8  # settings that TPE proposes at once: constant, for it decides what is proposed
STARTUP = 2 * BATCH  # before there is something to learn from, TPE takes those of a random search
KINDS = ("grid", "random", "tpe")


class Told(NamedTuple):
    """What a setting came to: a score, the higher the better; not finite if it was lost."""

    setting: Setting
    score: float


class Search(Protocol):
    """What proposes settings."""

    @property
    def count(self) -> int:
        """How many settings it proposes in all."""

    def propose(self, told: Sequence[Told]) -> list[Setting]:
        """The settings that come next, given all results so far in order; empty at the end."""


@dataclass(frozen=True)
class Fixed:
    """Settings that are known from the start: a grid, a random sample, a list."""

    settings: Sequence[Setting]

    @property
    def count(self) -> int:
        """How many settings there are."""
        return len(self.settings)

    def propose(self, told: Sequence[Told]) -> list[Setting]:
        """All that nothing is told about yet."""
        return list(self.settings[len(told) :])


@dataclass(frozen=True)
class Tpe:
    """The tree-structured Parzen estimator of Optuna (arXiv 2304.11127), several at a time.

    It models where the best scores lie and where the others do, and proposes what is likely under
    the first and unlikely under the second. A count in a range is not read: any value is proposed.
    A lost setting is worse than every other.
    """

    space: Space
    count: int
    seed: int = 0

    def propose(self, told: Sequence[Told]) -> list[Setting]:
        """The rest of the batch in which ``told`` ends; each is proposed from those before it."""
        if len(told) < min(STARTUP, self.count):
            return sample(self.space, min(STARTUP, self.count), seed=self.seed)[len(told) :]
        known = len(told) - len(told) % BATCH
        wanted = min(BATCH, self.count - known)
        if known + wanted <= len(told):
            return []
        with _quiet():
            study = _study(self.space, told[:known], seed=self.seed)
            distributions = {key: _distribution(values) for key, values in self.space.items()}
            # All asked before any is told: the estimator keeps them apart from each other.
            asked = [study.ask(distributions).params for _ in range(wanted)]
        return [self._setting(params) for params in asked[len(told) - known :]]

    def _setting(self, params: Mapping[str, Any]) -> Setting:
        return {
            key: values.values[params[key]] if isinstance(values, Choice) else params[key]
            for key, values in self.space.items()
        }


def search(text: str, space: Space, *, seed: int = 0, settings: Sequence[Setting] = ()) -> Search:
    """Read ``grid``, ``random:64``, ``tpe:64`` or ``list``, which tries the given ``settings``.

    Raises ``UserError`` (2) for anything else, a space that does not fit, and a missing package.
    """
    if text == "list":
        return Fixed([dict(setting) for setting in settings])
    if text == "grid":
        return Fixed(grid(space))
    found = re.fullmatch(r"(random|tpe):([1-9]\d{0,8})", text)
    if found is None:
        name = text.partition(":")[0]
        hint = "" if name in KINDS else did_you_mean(name, KINDS)
        raise UserError(f"search={text!r}: write grid, random:64 or tpe:64{hint}")
    count = int(found[2])
    _refuse_what_is_no_sample(text, space, count)
    if found[1] == "random":
        return Fixed(sample(space, count, seed=seed))
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            f"search={text!r} needs optuna: pip install 'spectral-jax[sweep]', or search=random:"
            f"{count}, which needs nothing"
        )
    return Tpe(dict(space), count, seed)


def grid(space: Space) -> list[Setting]:
    """Every combination, the last key fastest; of an empty space, the one empty setting."""
    columns = []
    for key, values in space.items():
        try:
            columns.append(values.grid())
        except ValueError as error:
            raise UserError(f"search='grid': {key}: {error}; or search=random:64") from None
    count = math.prod(map(len, columns))
    if count > MOST:
        raise UserError(
            f"search='grid': the grid has {count:,} settings, more than {MOST:,}; take smaller "
            "counts, or search=random:64"
        )
    return [dict(zip(space, values, strict=True)) for values in product(*columns)]


def sample(space: Space, count: int, *, seed: int) -> list[Setting]:
    """The first ``count`` different settings of a scrambled Sobol sequence.

    It fills the space more evenly than independent draws do. A larger ``count`` begins with the
    settings of a smaller one.
    """
    drawn: dict[tuple[str, ...], Setting] = {}
    power = (count - 1).bit_length()
    for doublings in range(MOST_DOUBLINGS):
        for point in _sobol(len(space), power + doublings, seed):
            setting = {key: v.at(u) for (key, v), u in zip(space.items(), point, strict=True)}
            drawn.setdefault(tuple(map(as_text, setting.values())), setting)
        if len(drawn) >= count:
            return list(drawn.values())[:count]
    shown = ", ".join(f"{key}={values}" for key, values in space.items())
    raise UserError(f"search: {shown} hold fewer than {count} different settings; widen a range")


def _sobol(dimensions: int, power: int, seed: int) -> Iterator[Sequence[float]]:
    """The first ``2^power`` points; of other numbers scipy warns that they are less even."""
    from scipy.stats import qmc  # a second to import

    return iter(qmc.Sobol(dimensions, rng=np.random.default_rng(seed)).random_base2(power).tolist())


def _refuse_what_is_no_sample(text: str, space: Space, count: int) -> None:
    if not space:
        raise UserError(f"search={text!r}: nothing to search; give key=log(1e-5,1e-1) or the like")
    if count > MOST:
        raise UserError(f"search={text!r}: more than {MOST:,} settings")
    sizes = [values.size for values in space.values()]
    finite = math.prod(size or 0 for size in sizes)  # 0 where any key has endless values
    if 0 < finite <= count:
        raise UserError(f"search={text!r}: the space has {finite} settings in all; use search=grid")


def _study(space: Space, told: Sequence[Told], *, seed: int) -> Any:
    """A study of Optuna, in memory, of the settings that were told and no others."""
    import optuna

    sampler = optuna.samplers.TPESampler(
        n_startup_trials=0,
        multivariate=True,
        constant_liar=True,
        # Another stream for every batch, whichever process proposes it.
        seed=int(np.random.SeedSequence([seed, len(told)]).generate_state(1)[0]),
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {key: _distribution(values) for key, values in space.items()}
    indices = {key: _indices(v) for key, v in space.items() if isinstance(v, Choice)}
    study.add_trials(
        optuna.trial.create_trial(
            params={
                key: indices[key][as_text(value)] if key in indices else value
                for key, value in setting.items()
            },
            distributions=distributions,
            value=score if math.isfinite(score) else -math.inf,
        )
        for setting, score in told
    )
    return study


def _distribution(values: Any) -> Any:
    """The values of one key as Optuna has them; a choice by its place, for lists are no names."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(values, Choice):
        return CategoricalDistribution(range(values.size))
    if isinstance(values, Int):
        return IntDistribution(values.low, values.high)
    return FloatDistribution(values.low, values.high, log=isinstance(values, Log))


def _indices(values: Choice) -> dict[str, int]:
    return {as_text(value): place for place, value in enumerate(values.values)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna logs and warns of: that a study was made, and what is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optuna import logging

        level = logging.get_verbosity()
        logging.set_verbosity(logging.WARNING)
        try:
            yield
        finally:
            logging.set_verbosity(level)
