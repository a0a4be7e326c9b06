"""`compare DIR...`: the values of a key against a baseline, over all trials of some sweeps."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from experiments.commands.choosing import COMMAND
from experiments.errors import DONE, UserError
from experiments.names import offered

EXAMPLES = f"""\
examples:
  {COMMAND} compare runs/a/sweeps/KEY --by penalty.name --baseline l2
  {COMMAND} compare DIR --by penalty.name --baseline l2 --finals 29    more fresh seeds tell more
  {COMMAND} compare DIR --by penalty.name --baseline l2 --finals 0     tuning scores, no claims
  {COMMAND} compare MNIST DIGITS --by penalty.name --baseline l2       over several tasks
"""


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = commands.add_parser(
        "compare", help="groups of a sweep's trials against a baseline", examples=EXAMPLES
    )
    command.add_argument(
        "directories", nargs="+", metavar="DIR", help="of a sweep; other data is another task"
    )
    command.add_argument(
        "--by", required=True, metavar="KEY", help="whose values are compared, as in penalty.name"
    )
    command.add_argument("--baseline", required=True, metavar="VALUE", help="compare with this one")
    command.add_argument(
        "--finals",
        type=int,
        metavar="N",
        help="fresh seeds on which the winners are trained again (default 8); 0: claim nothing",
    )
    command.add_argument("--objective", metavar="METRIC", help="as in test/loss; chooses nothing")
    command.add_argument(
        "--unequal", action="store_true", help="although groups had different numbers of trials"
    )
    command.add_argument("--executor", default="local", help="where the finals are trained")
    command.add_argument("--runs", default="runs", metavar="DIR", help="default: runs")
    command.add_argument("--format", default="md,csv,tex,html", help="default: md,csv,tex,html")
    command.add_argument(
        "--out", metavar="DIR", help="default: in the first DIR, a folder of its own for each"
    )
    command.set_defaults(command=compare_command)


def compare_command(options: argparse.Namespace) -> int:
    """Compare, print the tables, and write them with a page."""
    from experiments.sweep.compare import FINALS, compare
    from experiments.sweep.outcome import read

    formats = _formats(options.format)
    found = compare(
        [read(directory) for directory in dict.fromkeys(options.directories)],
        by=options.by,
        baseline=options.baseline,
        objective=options.objective,
        finals=FINALS if options.finals is None else options.finals,
        unequal=options.unequal,
        executor=options.executor,
        root=options.runs,
    )
    out = options.out or Path(options.directories[0], found.stem)
    folder = found.page(out, formats=formats)
    if options.json:
        print(json.dumps(found.rows(), indent=2))
    else:
        print(found.table.terminal(), end="")
        if found.across:
            print(f"\n{found.across_table.terminal()}", end="")
    for line in [
        found.table.caption,
        *found.learned(),
        *(f"note: {caveat}" for caveat in found.caveats()),
    ]:
        print(line, file=sys.stderr)
    print(f"comparison: {folder}", file=sys.stderr)
    return DONE


def _formats(text: str) -> list[str]:
    from experiments.sweep.comparison import FORMATS

    formats = [word.strip() for word in text.split(",")]
    for word in formats:
        if word not in FORMATS:
            hint = offered(word, FORMATS)
            raise UserError(f"--format: no form {word!r}{hint}")
    return formats
