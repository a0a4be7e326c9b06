"""`try my_reg.py`: a regulariser in one file, from its contract to a page beside its baselines."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.commands.choosing import COMMAND, choose
from experiments.config import ExperimentConfig
from experiments.errors import DONE, INTERRUPTED, PREEMPTED, UserError

AGAINST = "none,l2,dropout,spectral_norm"
EXPERIMENT = "fiedler/digits"
EXAMPLES = f"""\
examples:
  {COMMAND} try my_reg.py --check                       its contract alone, in seconds
  {COMMAND} try my_reg.py                               beside {AGAINST}
  {COMMAND} try my_reg.py:second --against l2,none --trials 32 --seeds 5
  {COMMAND} try my_reg.py --experiment fiedler/mnist --preset small --executor processes:2
A file with a regulariser, docs/trying-a-regulariser.md:
  import jax.numpy as jnp
  from spectral_jax.optim import regulariser

  @regulariser(strengths=(1e-4, 1e-1))
  def my_reg(matrices):
      return sum(jnp.sum(w**4) for w in matrices)
"""


def add(commands: Any) -> None:
    """Add the parser."""
    trying = commands.add_parser(
        "try", help="a regulariser of your own beside others", examples=EXAMPLES
    )
    trying.add_argument("file", help="my_reg.py, or my_reg.py:name where it has several")
    trying.add_argument("settings", nargs="*", default=[], help="changes, as in train.epochs=3")
    trying.add_argument("--against", default=AGAINST, help="default: %(default)s")
    trying.add_argument("--trials", type=int, default=16, help="settings per arm (default 16)")
    trying.add_argument("--seeds", type=int, help="of every setting (default: train.seeds)")
    trying.add_argument("--finals", type=int, default=8, help="fresh seeds at the end (default 8)")
    trying.add_argument("--experiment", default=EXPERIMENT, help="default: %(default)s")
    trying.add_argument("--preset", help="smoke, small or paper (default smoke)")
    trying.add_argument("--executor", default="local", help="local, processes:N, slurm:N or ray:N")
    trying.add_argument("--runs", default="runs", metavar="DIR", help="default: runs")
    trying.add_argument("--out", metavar="DIR", help="of the page (default: in RUNS/tried)")
    trying.add_argument("--check", action="store_true", help="the contract alone; train nothing")
    trying.set_defaults(command=try_command)


def try_command(options: Namespace) -> int:
    """Check, tune, compare, and write the page."""
    from experiments.sweep.trying import contract, try_regulariser

    if options.check:
        held = contract(options.file)
        rows = [one._asdict() for one in held]
        text = "".join(f"{one.clause}: holds on {one.input}\n" for one in held)
        print(json.dumps(rows, indent=2) if options.json else text, end="")
        return DONE
    if options.trials < 2:
        raise UserError(f"--trials {options.trials}: give at least 2 settings per arm")
    try:
        tried = try_regulariser(
            options.file,
            _experiment(options),
            against=[word.strip() for word in options.against.split(",") if word.strip()],
            trials=options.trials,
            seeds=options.seeds,
            finals=options.finals,
            executor=options.executor,
            root=options.runs,
        )
    except UserError as error:
        if error.exit_code not in (PREEMPTED, INTERRUPTED):
            raise
        further = f"{error.message}; this command goes on with all arms"
        raise UserError(further, error.exit_code) from None
    name = f"{tried.name}-{tried.comparison.key}"
    page = tried.page(options.out or Path(options.runs) / "tried" / name)
    if options.json:
        print(json.dumps(tried.comparison.rows(), indent=2))
    else:
        print(tried.comparison.table.terminal(), end="")
    for line in tried.learned:
        print(line, file=sys.stderr)
    print(f"page: {page}", file=sys.stderr)
    return DONE


def _experiment(options: Namespace) -> ExperimentConfig:
    """What is trained: the arm without a regulariser, under a name that all who try share."""
    arms = choose(options.experiment, preset=options.preset, arm=None, settings=options.settings)
    config = arms.get("none") or next(iter(arms.values()))
    name = config.name if len(arms) == 1 else options.experiment
    return replace(config, name=f"try/{name}")
