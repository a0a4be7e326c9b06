"""`export DIR --to tensorboard`: curves for another viewer, after the fact."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.commands.choosing import COMMAND
from experiments.commands.printing import print_rows
from experiments.errors import DONE

EXAMPLES = f"""\
examples:
  {COMMAND} export runs/NAME/RUN --to tensorboard
  {COMMAND} export runs/NAME/sweeps/KEY --to wandb --out curves
"""


def add(commands: Any) -> None:
    """Add the parser of `export`."""
    export = commands.add_parser(
        "export", help="curves for TensorBoard, wandb or Trackio", examples=EXAMPLES
    )
    export.add_argument("directory", metavar="DIR", help="of a run or of a sweep")
    export.add_argument(
        "--to", required=True, metavar="VIEWER", help="tensorboard, wandb or trackio"
    )
    export.add_argument("--out", metavar="FOLDER", help="default: DIR/VIEWER")
    export.set_defaults(command=export_command)


def export_command(options: argparse.Namespace) -> int:
    """Write the curves and print where they are and what shows them."""
    from experiments.sweep.export import export

    exported = export(options.directory, to=options.to, out=options.out)
    row = {"folder": str(exported.folder), "trials": exported.curves, "look": exported.look}
    print_rows([row], as_json=options.json)
    return DONE
