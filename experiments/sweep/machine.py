"""On what a sweep is computed: the first process that trains says so, and others must agree.

The last digits of sums depend on the kind of device, on the versions of JAX, and on a CPU on the
number of threads. So trials of several kinds would differ by more than their settings.
"""

from __future__ import annotations

from pathlib import Path

from experiments.errors import UserError
from experiments.runs.files import read_json, write_json_once
from experiments.runs.provenance import deciding, machine, session
from experiments.sweep.plan import read_plan

FILE = "provenance.json"


def settle(directory: Path) -> None:
    """Note on what the sweep is computed, unless that is known.

    Raises ``UserError`` (2) that says what differs where this process would compute other digits,
    and nobody has accepted that.
    """
    path = directory / FILE
    if not path.exists():
        write_json_once(path, session())
    remedy = f"remove it and run python -m experiments sweep resume {directory}"
    there, here = deciding(read_json(path, remedy=remedy)), deciding(machine())
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if differing and not read_plan(directory).mixed:
        told = "; ".join(
            f"{name}: {there.get(name) or 'unset'} there, {here.get(name) or 'unset'} here"
            for name in differing
        )
        raise UserError(
            f"{directory} was begun on a machine that computes other last digits ({told}): go on "
            "where that is the same (NPROC sets XLA's threads), or mix the two by "
            f"python -m experiments sweep resume {directory} --accept-machine"
        )
