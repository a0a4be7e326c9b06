"""`python -m experiments sweep`: many trials of one experiment, and what becomes of them."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commands.choosing import COMMAND, choose
from experiments.commands.printing import print_rows
from experiments.config import to_mapping
from experiments.errors import DONE, FAILED, UserError
from experiments.names import did_you_mean
from experiments.papers.plan import size
from experiments.runs.files import plain
from experiments.sweep.executors import worker as workers
from experiments.sweep.space import divide, shown

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig
    from experiments.sweep.outcome import Best, Sweep

SHOWN = 10  # rows of a table in a terminal; all are in table.csv
EXAMPLES = f"""\
examples:
  {COMMAND} sweep fiedler/digits --arm fiedler data.validation=200 \\
      'penalty.strength=log(1e-5,1e-1,8)' --seeds 8
  {COMMAND} sweep my-experiment.yaml 'optimizer.learning_rate=log(1e-3,1)' \\
      'penalty.name=[none, l1, l2]' --search random:64 --halve 2@5 --dry-run
  {COMMAND} sweep status runs/NAME/sweeps/KEY      how far it is, and its best settings
  {COMMAND} sweep resume runs/NAME/sweeps/KEY      go on with one that was stopped
  {COMMAND} sweep worker runs/NAME/sweeps/KEY      train blocks that wait, from another machine
A range or a list is swept, as log(low,high,count), lin(low,high,count), int(low,high) or [a, b, c];
any other value is a setting. In a shell they stand in quotes.
"""


def add(commands: Any) -> None:
    """Add the parser."""
    sweep = commands.add_parser("sweep", help="many trials of one experiment", examples=EXAMPLES)
    sweep.add_argument(
        "experiment",
        metavar="EXPERIMENT|status|resume|worker",
        help="PAPER, PAPER/PROTOCOL or a YAML file; or what to do with a sweep's directory",
    )
    sweep.add_argument("settings", nargs="*", default=[], help="key=space or key=value; or DIR")
    sweep.add_argument("--preset", help="smoke, small or paper (default smoke)")
    sweep.add_argument("--arm", help="the arm of the protocol that is swept")
    sweep.add_argument("--seeds", type=int, help="of every setting (default: train.seeds)")
    sweep.add_argument("--search", default="grid", help="grid, random:N or tpe:N (default grid)")
    sweep.add_argument("--halve", metavar="2@5", help="after 5, 10, 20 ... epochs keep the half")
    sweep.add_argument("--objective", default="validation/accuracy", help="default: %(default)s")
    sweep.add_argument("--executor", default="local", help="local, processes:N, slurm:N or ray:N")
    sweep.add_argument("--accept-code", action="store_true", help="go on with other code's sweep")
    sweep.add_argument("--runs", default="runs", metavar="DIR", help="default: runs")
    sweep.add_argument("--dry-run", action="store_true", help="say what it would take, run nothing")
    workers.add_options(sweep)
    sweep.set_defaults(command=sweep_command)


def sweep_command(options: Namespace) -> int:
    """Carry out a sweep, or do with a sweep's directory what is asked."""
    if options.experiment in ACTIONS:
        return ACTIONS[options.experiment](_directory(options), options)
    typo = did_you_mean(options.experiment, ACTIONS)
    if typo and not Path(options.experiment).suffix:
        raise UserError(f"sweep {options.experiment}: no experiment and no action{typo}")
    settings, over = divide(options.settings)
    config = _config(options, settings)
    asked: dict[str, Any] = {
        "over": over,
        "search": options.search,
        "seeds": options.seeds,
        "halve": options.halve,
        "objective": options.objective,
    }
    if options.dry_run:
        return _dry_run(config, asked, options)
    from experiments.sweep.sweep import sweep

    placed: dict[str, Any] = {"executor": options.executor, "root": options.runs}
    placed |= _accepted(options)
    found = sweep(config, **asked, **placed)
    return _finish(found, options)


def _dry_run(config: ExperimentConfig, asked: Mapping[str, Any], options: Namespace) -> int:
    """What the sweep would take."""
    from experiments.sweep.estimate import assumptions, estimate
    from experiments.sweep.executors import parse
    from experiments.sweep.planning import plan_of

    plan, workers = plan_of(config, **asked), parse(options.executor).workers
    found = estimate(plan, workers=workers)
    row = found._asdict()
    if not options.json:
        told = {
            "memory": size(found.memory),
            "disk": size(found.disk),
            "time": _time(row.pop("hours")),
        }
        row = {name: str(value) for name, value in (row | told).items()}
    print_rows([row], as_json=options.json)
    for line in assumptions(plan, found, workers=workers):
        print(f"note: {line}", file=sys.stderr)
    return DONE


def _time(hours: float) -> str:
    """For a person.

    >>> _time(0.012), _time(2.34)
    ('1 min', '2.3 h')
    """
    return f"{max(60 * hours, 1):.0f} min" if hours < 0.1 else f"{hours:.1f} h"


def status(directory: Path, options: Namespace) -> int:
    """How far a sweep is, and its best settings so far."""
    from experiments.sweep.outcome import read

    return _report(read(directory), options)


def resume(directory: Path, options: Namespace) -> int:
    """Go on with a sweep that was stopped."""
    from experiments.sweep.sweep import resume as go_on

    found = go_on(directory, executor=options.executor, **_accepted(options))
    return _finish(found, options)


def worker(directory: Path, options: Namespace) -> int:
    """Train the blocks of a sweep that wait for somebody."""
    options.directory = directory
    return workers.command(options)


def _accepted(options: Namespace) -> dict[str, bool]:
    return {name: getattr(options, name) for name in ("accept_code", "accept_machine")}


ACTIONS: Mapping[str, Callable[[Path, Namespace], int]] = {
    "status": status,
    "resume": resume,
    "worker": worker,
}


def _directory(options: Namespace) -> Path:
    if len(options.settings) != 1:
        raise UserError(
            f"sweep {options.experiment} takes the directory of one sweep, as in "
            f"sweep {options.experiment} runs/NAME/sweeps/KEY"
        )
    return Path(options.settings[0])


def _config(options: Namespace, settings: list[str]) -> ExperimentConfig:
    """The one arm that is swept."""
    arms = choose(options.experiment, preset=options.preset, arm=options.arm, settings=settings)
    if len(arms) > 1:
        raise UserError(
            f"{options.experiment} has several arms; choose the one to sweep with --arm: "
            f"{', '.join(arms)}"
        )
    return next(iter(arms.values()))


def _finish(sweep: Sweep, options: Namespace) -> int:
    """The table first: figures take a while to draw."""
    from experiments.sweep.writing import draw

    code = _report(sweep, options)
    sys.stdout.flush()
    draw(sweep)
    return code


def _report(sweep: Sweep, options: Namespace) -> int:
    """The best settings on stdout; the rest on stderr. 1 if no trial came to anything."""
    best = sweep.best()
    if options.json:
        print(json.dumps(_as_json(sweep, best), indent=2))
    elif sweep.trials:
        table = sweep.top(SHOWN)
        print(table.caption, file=sys.stderr)
        print(table.terminal(), end="")
    for line in _told(sweep, best):
        print(line, file=sys.stderr)
    return FAILED if sweep.finished and best is None else DONE


def _told(sweep: Sweep, best: Best | None) -> Iterator[str]:
    """What a person is to know beside the table."""
    plan = sweep.plan
    lost = sum(trial.state == "diverged" for trial in sweep.trials)
    if lost:
        yield f"warning: {lost} trials diverged: their settings come last"
    if best is not None:
        words = " ".join(f"{key}={shown(value)}" for key, value in best.setting.items())
        yield f"best: number {best.number}, {words} ({plan.objective} {best.score:.4g})"
        if best.tied:
            more = f" and {len(best.tied) - SHOWN} more" if len(best.tied) > SHOWN else ""
            told = ", ".join(map(str, best.tied[:SHOWN]))
            yield f"within a standard error of it: {told}{more}"
        for key in best.at_edge:
            yield f"warning: {key} is at the edge of what was tried: a better one may lie outside"
    elif sweep.finished:
        yield "error: no trial came to a number: lower the learning rate or the strengths"
    if sweep.finished:
        yield f"all trials, tables and figures: {sweep.directory}"
    else:
        yield (
            f"{sweep.ended} of {plan.trials} trials have ended: "
            f"{COMMAND} sweep resume {sweep.directory} goes on"
        )


def _as_json(sweep: Sweep, best: Best | None) -> dict[str, Any]:
    told = {**best._asdict(), "config": to_mapping(best.config)} if best else None
    trials = [plain(trial._asdict()) for trial in sweep.trials]
    return {
        "directory": str(sweep.directory),
        "finished": sweep.finished,
        "objective": sweep.plan.objective,
        "best": plain(told),
        "trials": trials,
    }
