"""A paper is declared; the house trains, measures, judges and writes the page.

    PAPER = Paper(
        "fiedler",
        title="Fiedler regularisation",
        protocols={"smoke": {"digits": Protocol({"none": config, "fiedler": other})}},
        studies=(Study("untrained", options={"smoke": {"seeds": 5}}),),
    )

stands in the paper's `__init__.py`. Beside it stand `claims.py` (`CLAIMS`, and `learned(outcome,
judged)`, the sentences that the page begins with), `figures.py` (`sections(outcome)`), and
one `studies/<name>.py` a study (`measure(run, **options) -> Results`). A declaration imports no
jax: the command line lists papers and plans runs without it.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from experiments.config import ExperimentConfig, apply_overrides
from experiments.errors import FAILED, MISSING, Diverged, UserError
from experiments.report.selection import FRESH

if TYPE_CHECKING:
    from experiments.report.page import Section
    from experiments.report.results import Results
    from experiments.report.selection import Choice
    from experiments.runs.run import Run

Arms = Mapping[str, ExperimentConfig]


@dataclass(frozen=True)
class Tuning:
    """Arms `method@setting` compete; each method's best setting is trained again on fresh seeds.

    by, higher: the validation metric that decides, and whether more of it is better; no test
      metric is looked at.
    seeds: of the final runs.
    defaults: the setting of a method that wins where others are no better than a standard error.
    """

    seeds: int
    by: str = "validation/accuracy"
    higher: bool = True
    defaults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """Arms under one budget, each with a name of its own; `Paper` names their run directories.

    hours: what it takes on two CPU cores, as declared; a plan prefers what was measured.
    """

    arms: Arms
    tuning: Tuning | None = None
    hours: float | None = None

    @property
    def results(self) -> set[str]:
        """The arms that results are named after: of a tuned protocol its methods."""
        return {arm.partition("@")[0] for arm in self.arms} if self.tuning else set(self.arms)


@dataclass(frozen=True)
class Study:
    """A measurement that is no training run: `measure` of `studies/<name>.py`.

    options: by preset, JSON values; a preset that is not named leaves the study out.
    needs: by preset, the data sets, and the files below a data directory, that it reads.
    of: the protocol whose trained networks it reads; `measure` is given `runs`, from arm to the
      run's directory below the root of all runs.
    hours: by preset, on two CPU cores.
    """

    name: str
    options: Mapping[str, Mapping[str, Any]]
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    of: str = ""
    hours: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Paper:
    """All that a paper declares; `name` is its package below `experiments.papers`.

    costs: by preset, what it takes, in words for a person who is about to start it.
    """

    name: str
    title: str
    protocols: Mapping[str, Mapping[str, Protocol]]
    studies: Sequence[Study] = ()
    costs: Mapping[str, str] = field(default_factory=dict)

    def arms(
        self, preset: str, overrides: Sequence[str] = ()
    ) -> dict[str, dict[str, ExperimentConfig]]:
        """The configurations of a preset, named and with settings applied, by protocol and arm."""
        return {
            name: {
                arm: apply_overrides(self._named(config, name, arm, protocol.tuning), overrides)
                for arm, config in protocol.arms.items()
            }
            for name, protocol in self.protocols[preset].items()
        }

    def final_arm(
        self, preset: str, protocol: str, arm: str, overrides: Sequence[str] = ()
    ) -> ExperimentConfig:
        """A tuned arm's configuration on the fresh seeds of the final runs."""
        declared = self.protocols[preset][protocol]
        assert declared.tuning is not None
        config = self._named(declared.arms[arm], protocol, arm.partition("@")[0], None)
        train = replace(config.train, seeds=declared.tuning.seeds)
        config = apply_overrides(replace(config, train=train), overrides)
        return replace(config, train=replace(config.train, seed=config.train.seed + FRESH))

    def known(self) -> dict[str, set[str] | None]:
        """What evidence may name: the arms of a protocol; None for a study, which makes its own."""
        arms: dict[str, set[str]] = defaultdict(set)
        for protocols in self.protocols.values():
            for name, protocol in protocols.items():
                arms[name] |= protocol.results
                if protocol.tuning:
                    arms[f"{name}/tuning"] |= set(protocol.arms)
        return {**arms, **{study.name: None for study in self.studies}}

    def studies_of(self, preset: str) -> list[Study]:
        """The studies that a preset makes."""
        return [study for study in self.studies if preset in study.options]

    def part(self, name: str) -> ModuleType:
        """The paper's module `claims`, `figures` or `studies.<name>`; it may import jax."""
        module = f"experiments.papers.{self.name}.{name}"
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise UserError(f"paper {self.name!r} has no module {module}: write it") from None

    def _named(
        self, config: ExperimentConfig, protocol: str, arm: str, tuning: Tuning | None
    ) -> ExperimentConfig:
        folder = f"{protocol}/tuning" if tuning else protocol
        return replace(config, name=f"{self.name}/{folder}/{arm.replace('@', '-at-')}")


@dataclass
class Outcome:
    """What came of a preset: every number, and the runs that hold the rest.

    results: also says why an arm or a study has no numbers.
    runs: by protocol and arm; a study's own run stands under its name twice. The tuning runs of a
      protocol are those of `<protocol>/tuning`, as its numbers are in `results`.
    choices: by tuned protocol and method, the setting that was chosen.
    """

    paper: Paper
    preset: str
    results: Results
    runs: dict[str, dict[str, Run]] = field(default_factory=dict)
    choices: dict[str, dict[str, Choice]] = field(default_factory=dict)
    exit_code: int = 0

    def add(self, protocol: str, arm: str, run: Run, results: Results) -> None:
        """Take in what a run came to."""
        from experiments.report.results import merge

        self.runs.setdefault(protocol, {})[arm] = run
        self.results = merge([self.results, results])

    @contextmanager
    def noting(self, protocol: str, arm: str = "", *, codes: Sequence[int]) -> Iterator[None]:
        """An error with such an exit code is why there are no numbers; the rest goes on."""
        try:
            yield
        except UserError as error:
            if error.exit_code not in codes:
                raise
            self.results = self.results.without(protocol, arm, error.message)
            if not isinstance(error, Diverged):  # that is a finding
                self.exit_code = max(self.exit_code, error.exit_code)
            place = f"{protocol}/{arm}" if arm else protocol
            print(f"warning: {place}: {error.message}", file=sys.stderr)


def reproduce(
    paper: Paper,
    preset: str,
    *,
    root: str | Path,
    overrides: Sequence[str] = (),
    as_json: bool = False,
) -> int:
    """Train, measure, judge and write `<root>/reports/<paper>-<preset>/`; return the exit code.

    Claims whose data are not there, or whose arms failed, are NOT RUN; the report is written all
    the same, and the code is 4 or 1. It is 3 where a number that must come out does not.
    """
    from experiments.report.claims import check, declare
    from experiments.report.page import Report, write_report
    from experiments.report.tables import of_results
    from experiments.report.verdicts import judge_all
    from experiments.runs.files import cannot_write_is_one_line, make_directory

    claims, figures = paper.part("claims"), paper.part("figures")
    for study in paper.studies_of(preset):
        paper.part(f"studies.{study.name}")  # one that is not there is told before any training
    folder = Path(root) / "reports" / f"{paper.name}-{preset}"
    check(claims.CLAIMS, paper.known())
    with cannot_write_is_one_line(folder):
        make_directory(folder)
        declaration = declare(claims.CLAIMS, folder / "declared.json")  # before anything is known
    outcome = carry_out(paper, preset, root=root, overrides=overrides)
    judged = judge_all(claims.CLAIMS, outcome.results, preset=preset)
    command = ["python -m experiments reproduce", paper.name, f"--preset {preset}", *overrides]
    report = Report(
        f"{paper.title}: preset {preset}",
        learned=claims.learned(outcome, judged),
        judged=judged,
        declaration=declaration,
        sections=[*figures.sections(outcome), *_tuning(outcome)],
        results=of_results(outcome.results, figures.COLUMNS),
        provenance={"command": " ".join(command), **_origin(outcome)},
    )
    return max(write_report(report, folder, as_json=as_json), outcome.exit_code)


def carry_out(
    paper: Paper, preset: str, *, root: str | Path, overrides: Sequence[str] = ()
) -> Outcome:
    """Train every arm of a preset and make every study, or find them done."""
    from experiments.report.results import Results
    from experiments.report.selection import require_fresh_seeds

    outcome = Outcome(paper, preset, Results())
    for name, arms in paper.arms(preset, overrides).items():
        if paper.protocols[preset][name].tuning is None:
            _train(outcome, name, arms, root=root)
        else:
            _tune(outcome, name, arms, root=root, overrides=overrides)
    require_fresh_seeds(outcome.results)
    for study in paper.studies_of(preset):
        with outcome.noting(study.name, codes=(MISSING, FAILED)):
            _make(outcome, study, root=Path(root))
    return outcome


def digest(needs: Sequence[str]) -> str:
    """SHA-256 of the data sets and files that a study reads; `UserError` (4) for a missing one."""
    from experiments import data
    from experiments.data.files import path_of
    from experiments.runs.files import sha256_of

    return " ".join(
        data.load(name).sha256 if name in data.DATASETS else str(sha256_of(path_of(name)))
        for name in needs
    )


def trained(run: Run, runs: Mapping[str, str]) -> dict[str, Run]:
    """The runs that a study is given by name, opened; ``run`` is the study's own."""
    from experiments.runs import Run

    root = run.path.parents[2]  # below it stand the paper, the study and this run
    return {arm: Run(root / path) for arm, path in runs.items()}


def _train(outcome: Outcome, protocol: str, arms: Arms, *, root: str | Path) -> None:
    """Train the arms in turn; the first whose data are missing ends the protocol."""
    from experiments.report.results import of_run
    from experiments.training.train import train
    from spectral_jax._progress import progress

    with outcome.noting(protocol, codes=[MISSING]), progress(len(arms), protocol) as advance:
        for arm, config in arms.items():
            print(f"{protocol}/{arm}", file=sys.stderr)
            with outcome.noting(protocol, arm, codes=[FAILED]):
                run = train(config, root=root, argv=sys.argv)
                found = of_run(run, protocol, arm, first_seed=config.train.seed)
                outcome.add(protocol, arm, run, found)
            advance(1, note=f"{protocol}/{arm}")


def _tune(
    outcome: Outcome, name: str, arms: Arms, *, root: str | Path, overrides: Sequence[str]
) -> None:
    """Train all settings, then each method's best one on fresh seeds."""
    paper, preset = outcome.paper, outcome.preset
    tuning, tried = paper.protocols[preset][name].tuning, f"{name}/tuning"
    assert tuning is not None
    _train(outcome, tried, arms, root=root)
    outcome.choices[name] = _choices(outcome.results, tried, tuning)
    finals = {
        method: paper.final_arm(preset, name, choice.arm, overrides)
        for method, choice in outcome.choices[name].items()
    }
    if finals:
        _train(outcome, name, finals, root=root)
    for arm in arms:
        method = arm.partition("@")[0]
        if method not in finals:
            reason = outcome.results.reason(protocol=tried, arm=arm)
            outcome.results = outcome.results.without(name, method, reason)


def _choices(results: Results, protocol: str, tuning: Tuning) -> dict[str, Choice]:
    """The setting that validation data choose for each method that has numbers."""
    from experiments.report.selection import choose

    methods = dict.fromkeys(arm.partition("@")[0] for arm in results.arms(protocol))
    chosen = {
        method: choose(
            results, protocol, method=method, by=tuning.by, higher=tuning.higher,
            default=tuning.defaults.get(method, ""),
        )
        for method in methods
    }  # fmt: skip
    return {method: choice for method, choice in chosen.items() if choice is not None}


def _make(outcome: Outcome, study: Study, *, root: Path) -> None:
    """Make a study, or find it made, and add its numbers."""
    from experiments.report.results import study_results
    from experiments.runs.study import study as make_study

    options, needs = dict(study.options[outcome.preset]), study.needs.get(outcome.preset, ())
    if study.of:
        runs = outcome.runs.get(study.of, {})
        if not runs:
            told = (one.reason for one in outcome.results.select(study.of).absent)
            raise UserError(next(told, f"no arm of {study.of} was trained"), MISSING)
        options["runs"] = {arm: str(run.path.relative_to(root)) for arm, run in runs.items()}
    name = f"{outcome.paper.name}/{study.name}"
    measure = outcome.paper.part(f"studies.{study.name}").measure
    run = make_study(name, measure, options=options, root=root, data_sha256=digest(needs))
    outcome.add(study.name, study.name, run, study_results(run))
    for lost in outcome.results.select(study.of).absent:  # so the study has no numbers of it
        outcome.results = outcome.results.without(study.name, lost.arm, lost.reason)


def _tuning(outcome: Outcome) -> list[Section]:
    """Which settings were chosen, and which of them lie at the edge of what was tried."""
    from experiments.report.page import Section
    from experiments.report.tables import Table

    rows = [
        {
            "protocol": protocol,
            "method": method,
            "chosen": choice.arm.partition("@")[2],
            "as good": ", ".join(arm.partition("@")[2] for arm in choice.tied),
            "at the edge of the grid": "yes: try further" if choice.at_edge else "",
        }
        for protocol, choices in outcome.choices.items()
        for method, choice in choices.items()
    ]
    caption = "As good: within a standard error of the best on validation data, over tuning seeds"
    return [Section("Chosen settings", tables=[Table(caption, rows)])] if rows else []


def _origin(outcome: Outcome) -> dict[str, str]:
    """Where the numbers come from: of the first run, or of this process if there is none."""
    from experiments.report.page import origin
    from experiments.runs.provenance import session

    first = next((run for arms in outcome.runs.values() for run in arms.values()), None)
    return origin(first.provenance if first else session())
