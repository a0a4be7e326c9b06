"""Measurements that are not training runs, kept like runs: done once, on disk, with provenance.

def bias(run, *, shapes, seeds):
    ...
    run.save_array("alphas", plain=plain, farms=farms)
    return {"farms/spread": spread}

run = study("farms/bias", bias, options={"shapes": SHAPES, "seeds": 5}, root="runs")
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.config import StudyConfig
from experiments.runs.memory import make_room
from experiments.runs.run import Run, open_run


def study(
    name: str,
    measure: Callable[..., Any],
    *,
    options: Mapping[str, Any],
    root: str | Path,
    data_sha256: str = "",
) -> Run:
    """Run ``measure(run, **options)`` unless it is done; the same options, code and data
    find the finished run.

    ``measure`` returns a summary, or `Results`, which stand in the summary as ``results``.
    ``options`` are JSON values; the code is what ``measure`` reaches (``runs/code.py``). What it
    saves with ``run.save_array`` stays if it is interrupted; ``run.load_array`` finds it again.
    """
    make_room()
    config = StudyConfig(name, options)
    with open_run(config, entry=measure, data_sha256=data_sha256, root=root, argv=sys.argv) as run:
        if not run.complete:
            found = measure(run, **options)
            run.finish(found if isinstance(found, Mapping) else {"results": found.to_json()})
    return run
