"""The command line of the experiments: `python -m experiments --help`.

Nothing here imports jax before a command needs it; stdout is for data, stderr for everything else.
"""

from __future__ import annotations

from experiments.runs.interruption import meaning, stop_on_signals

if __name__ == "__main__":
    stop_on_signals()  # first: what follows takes a second or two to import

import argparse
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NoReturn

from experiments.commands import compare, exporting, sweep, trying
from experiments.commands.choosing import COMMAND, CONFIG_FILES, DEFAULT_PRESET, choose, lookup
from experiments.commands.printing import print_rows
from experiments.errors import CHECK_FAILED, DONE, FAILED, UserError, one_line
from experiments.names import did_you_mean
from experiments.papers import PAPERS
from experiments.papers import load as load_paper
from experiments.papers.paper import Paper, reproduce
from experiments.papers.plan import Part
from experiments.runs import Run
from experiments.runs.environment import set_defaults

SHOWN_ARMS = 6
# What `run` shows of a summary, and as what; all the rest is in summary.json and with --json.
COLUMNS = {
    "test/accuracy": "test/accuracy %",
    "final_train/accuracy": "train/accuracy %",
    "test/loss": "test/loss",
    "spectra/lambda_2": "lambda_2",
    "spectra/nu_2": "nu_2",
    "spectra/penalty": "penalty",
    "seconds": "seconds",
}

EXAMPLES = f"""\
examples:
  {COMMAND} list                                    what there is to run
  {COMMAND} reproduce fiedler                       a paper's claims in a minute, on tiny data
  {COMMAND} reproduce fiedler --preset small        the real data set, under an hour on two cores
  {COMMAND} run fiedler/mnist --preset small --arm none train.epochs=3
  {COMMAND} run my-experiment.yaml penalty.strength=1e-2
  {COMMAND} sweep my-experiment.yaml 'penalty.strength=log(1e-5,1e-1,8)'
  {COMMAND} data fetch mnist                        download and check a data set

A run that was stopped goes on where it was when the same command is given again.
Exit codes: 0 done, 1 failed (state kept), 2 usage or configuration, 3 a check failed,
4 data or checkpoint missing (reproduce does the rest and writes the report), 75 preempted after
saving, 130 interrupted.
"""
RUN_EXAMPLES = f"""\
examples:
  {COMMAND} run fiedler/mnist --preset small        every arm, one after the other
  {COMMAND} run fiedler/digits --arm none train.epochs=3 model.hidden='[64, 64]'
  {COMMAND} run my-experiment.yaml                  a configuration file
  {COMMAND} run runs/NAME/RUN/config.yaml           an earlier run's configuration
"""
REPRODUCE_EXAMPLES = f"""\
examples:
  {COMMAND} reproduce fiedler                       a minute or two, on data of scikit-learn
  {COMMAND} reproduce fiedler --preset paper        the published protocol
  {COMMAND} reproduce --preset small --dry-run      what every paper would take; runs nothing
"""
DATA_EXAMPLES = f"""\
examples:
  {COMMAND} data                                    every data set, and where it was found
  {COMMAND} data fetch mnist                        download it from its publisher and check it
  {COMMAND} data verify mnist                       check the files that are there
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a failure is one line on stderr."""
    set_defaults()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if sys.stdout is None:
            raise UserError("stdout is closed: send it to a file, or to /dev/null")
        options = parse(arguments)
        code = options.command(options)
        sys.stdout.flush()  # what cannot be written is found here, not when the interpreter ends
        return code
    except UserError as error:
        message, code = error.message, error.exit_code
    except KeyboardInterrupt as error:
        word, code = meaning(error)
        message = f"{word}; run the same command again to go on"
    except BrokenPipeError:  # the reader of stdout, say `head`, has seen enough
        sys.stdout = open(os.devnull, "w")
        return DONE
    except OSError as error:
        message, code = f"{error.filename or 'stdout'}: {error.strerror or error}", FAILED
        sys.stdout = open(os.devnull, "w")
    except Exception as error:
        message, code = _bug(error), FAILED
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; settings may stand anywhere. `UserError` (2) for what is not known."""
    parser, commands = _parsers()
    options, rest = parser.parse_known_args(arguments)
    options.arguments = list(arguments)
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    unknown = [word for word in rest if word not in settings]
    if unknown or (settings and "settings" not in options):
        word = (unknown or settings)[0]
        command = commands[options.name]
        known = re.findall(r"--[a-z-]+", command.format_help())
        command.error(f"{word} is not an option{did_you_mean(word.partition('=')[0], known)}")
    if settings:
        options.settings = [*options.settings, *settings]
    return options


class _Parser(argparse.ArgumentParser):
    """Argparse with examples first, whole option names only, and suggestions for typos."""

    def __init__(self, *, examples: str = "", **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.examples = examples

    def format_help(self) -> str:
        return f"{self.examples}\n{super().format_help()}".lstrip()

    def error(self, message: str) -> NoReturn:
        typo = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        hint = did_you_mean(typo[1], re.findall(r"[\w-]+", typo[2])) if typo else ""
        raise UserError(f"{message}{hint} (see {self.prog} --help)")


def _parsers() -> tuple[_Parser, Mapping[str, argparse.ArgumentParser]]:
    parser = _Parser(prog=COMMAND, examples=EXAMPLES, description="Train, measure, reproduce.")
    commands = parser.add_subparsers(required=True, dest="name", metavar="COMMAND")

    listing = commands.add_parser("list", help="what there is to run", examples="")
    listing.set_defaults(command=list_command)

    run = commands.add_parser("run", help="train one experiment", examples=RUN_EXAMPLES)
    run.add_argument("experiment", help="PAPER, PAPER/PROTOCOL or a YAML file")
    run.add_argument("settings", nargs="*", default=[], help="changes, as in train.epochs=3")
    run.add_argument("--arm", help="one arm of the protocol (default: all, in turn)")
    run.add_argument(
        "--distributed", metavar="PLACE",
        help="be one of several processes: ADDRESS,COUNT,INDEX, or auto (docs/several-devices.md)",
    )  # fmt: skip
    run.set_defaults(command=run_command)

    reproduce = commands.add_parser(
        "reproduce", help="a paper's claims with verdicts", examples=REPRODUCE_EXAMPLES
    )
    reproduce.add_argument("paper", nargs="?", help="default: every paper")
    reproduce.add_argument("settings", nargs="*", help="changes, as in train.seeds=2")
    reproduce.set_defaults(command=reproduce_command)

    for command in (run, reproduce):
        command.add_argument("--preset", help=f"smoke, small or paper (default {DEFAULT_PRESET})")
        command.add_argument("--runs", default="runs", metavar="DIR", help="default: runs")
        command.add_argument(
            "--dry-run", action="store_true", help="say what it would take, and run nothing"
        )

    data = commands.add_parser("data", help="list, fetch or verify data", examples=DATA_EXAMPLES)
    data.add_argument("action", nargs="?", default="list", choices=("list", "fetch", "verify"))
    data.add_argument("dataset", nargs="?", help="the data set to fetch or check")
    data.set_defaults(command=data_command)

    exporting.add(commands)
    sweep.add(commands)
    compare.add(commands)
    trying.add(commands)

    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="JSON on stdout")
    return parser, commands.choices


def list_command(options: argparse.Namespace) -> int:
    """Print every experiment of every paper, one row per preset and protocol."""
    rows = [
        {
            "experiment": f"{name}/{protocol}",
            "preset": preset,
            "arms": " ".join(declared.arms) if options.json else _some(list(declared.arms)),
            "cost": paper.costs.get(preset, ""),
        }
        for name, paper in ((name, load_paper(name)) for name in PAPERS)
        for preset, protocols in paper.protocols.items()
        for protocol, declared in protocols.items()
    ]
    print_rows(rows, as_json=options.json)
    return DONE


def run_command(options: argparse.Namespace) -> int:
    """Train the chosen arms in turn and print their summaries; 3 if a seed came to nothing."""
    configs = choose(
        options.experiment, preset=options.preset, arm=options.arm, settings=options.settings
    )
    if not options.experiment.endswith(CONFIG_FILES):
        name = options.experiment.partition("/")[0]
        _announce(load_paper(name), options.preset or DEFAULT_PRESET)
    if options.dry_run:
        from experiments.papers.plan import of_arms

        _print_plan([of_arms(options.experiment, configs, root=options.runs)], options.json)
        return DONE
    from experiments.runs.processes import by_first, joined
    from experiments.training.train import train

    argv = [*COMMAND.split(), *options.arguments]
    with joined(options.distributed, options.runs) as root:
        runs = {arm: train(config, root=root, argv=argv) for arm, config in configs.items()}
        return by_first(lambda: _print_runs(runs, options))


def _print_runs(runs: Mapping[str, Run], options: argparse.Namespace) -> int:
    if options.json:
        rows: list[dict[str, Any]] = [
            {"arm": arm, "run": str(run.path), "summary": run.summary} for arm, run in runs.items()
        ]
    else:
        print("mean ± standard deviation over seeds; all numbers: --json", file=sys.stderr)
        rows = [
            {"arm": arm, **dict(_cells(run.summary)), "run": str(run.path)}
            for arm, run in runs.items()
        ]
    print_rows(rows, as_json=options.json)
    lost = [line for arm, run in runs.items() for line in _lost_seeds(arm, run.summary)]
    if lost:
        print(f"warning: {'; '.join(lost)}; log.txt says what to change", file=sys.stderr)
    return CHECK_FAILED if lost else DONE


def reproduce_command(options: argparse.Namespace) -> int:
    """Judge the claims of one paper, or of all; the worst exit code is returned."""
    settings = list(options.settings)
    if options.paper and "=" in options.paper:
        settings, options.paper = [options.paper, *settings], None
    chosen = {name: load_paper(name) for name in ([options.paper] if options.paper else PAPERS)}
    preset = options.preset or DEFAULT_PRESET
    for paper in chosen.values():
        lookup(paper.protocols, preset, "preset")
        paper.arms(preset, settings)  # every setting for every arm, before the first one is trained
    codes = []
    for paper in chosen.values():
        _announce(paper, preset)
        asked = {"root": options.runs, "overrides": settings}
        if options.dry_run:
            from experiments.papers.plan import parts

            _print_plan(list(parts(paper, preset, **asked)), options.json)
        else:
            codes.append(reproduce(paper, preset, as_json=options.json, **asked))
    return max(codes, default=DONE)


def data_command(options: argparse.Namespace) -> int:
    """List the data sets, or download or check one of them."""
    from experiments import data

    if options.action == "list":
        if options.dataset:
            raise UserError(f"data list takes no name; data verify {options.dataset} checks one")
        rows = data.listing()
    elif options.dataset is None:
        known = ", ".join(data.DATASETS)
        raise UserError(f"data {options.action} needs the name of a data set: {known}")
    else:
        if options.action == "fetch":
            data.fetch(options.dataset)
        rows = data.verify(options.dataset)
        print(_verified(options.dataset, rows), file=sys.stderr)
    print_rows(rows, as_json=options.json)
    return DONE


def _verified(dataset: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Which files were compared with the published digests, and where they lie."""
    if not rows:
        return f"{dataset}: comes with scikit-learn; there is no file to verify"
    folders = ", ".join(sorted({os.path.dirname(row["path"]) for row in rows}))
    names = ", ".join(row["file"] for row in rows)
    return f"{dataset}: as published, by SHA-256: {names} in {folders}"


def _some(names: list[str]) -> str:
    """The first few names, so that a row of a table stays a line."""
    shown = names if len(names) <= SHOWN_ARMS else names[: SHOWN_ARMS - 1]
    rest = f" and {len(names) - len(shown)} more (--json)" if len(shown) < len(names) else ""
    return " ".join(shown) + rest


def _announce(paper: Paper, preset: str) -> None:
    cost = paper.costs.get(preset)
    print(f"{paper.title}, preset {preset}{': ' + cost if cost else ''}", file=sys.stderr)


def _print_plan(parts: Sequence[Part], as_json: bool) -> None:
    """What each part would take, and all of them together."""
    from experiments.papers.plan import total

    told = [*parts, total(parts)]
    rows = [{**vars(part), "disk": part.disk} if as_json else part.row() for part in told]
    print_rows(rows, as_json=as_json)


def _cells(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The columns of a summary as text; per-seed lists as mean and standard deviation."""
    for name, column in COLUMNS.items():
        value = summary.get(name)
        values = value if isinstance(value, list) else [value]
        unit = 100 if column.endswith("%") else 1
        numbers = [unit * number for number in values if number is not None]
        missing = f" ({len(numbers)} of {len(values)})" if len(numbers) < len(values) else ""
        if len(numbers) > 1:
            yield column, f"{fmean(numbers):.4g} ± {stdev(numbers):.2g}{missing}"
        elif numbers:
            yield column, f"{numbers[0]:.4g}{missing}"


def _lost_seeds(arm: str, summary: Mapping[str, Any]) -> Iterator[str]:
    for fate in ("diverged", "collapsed"):
        seeds = summary.get(f"{fate}_seeds")
        if seeds:
            yield f"{arm}: seeds {', '.join(map(str, seeds))} {fate}"


def _bug(error: Exception) -> str:
    """An exception that nobody foresaw, in one line that says where it came from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    first_line = (str(error).splitlines() or [""])[0]
    return (
        f"{type(error).__name__}: {first_line} ({place.filename}:{place.lineno}); "
        "this is a bug: please report it with the command"
    )


if __name__ == "__main__":
    sys.exit(main())
