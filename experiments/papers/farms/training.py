"""Train a preset's protocols: tuning first where there is any, then the chosen settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.papers.farms import protocols
from experiments.papers.farms.evidence import accuracy
from experiments.reproduction import Runs, train_protocols


def train_all(preset: str, *, root: str | Path, overrides: Sequence[str] = ()) -> tuple[Runs, Runs]:
    """The final runs and, under the same names, the tuning runs they were chosen by."""
    declared = protocols.PRESETS[preset]
    first = train_protocols(declared, root=root, overrides=overrides)
    runs: Runs = {}
    tuning: Runs = {}
    for name, arms in declared.items():
        protocol, tuned, _ = name.partition("-tuning")
        if not tuned:
            runs[protocol] = first[name]
            continue
        tuning[protocol] = first[name]
        validation = {
            arm: float(np.nan_to_num(accuracy(run, "validation")).mean())
            for arm, run in first[name].items()
        }
        seeds = protocols.FINAL_SEEDS[preset]
        chosen = protocols.finals(arms, validation, prefix=protocol, seeds=seeds)
        runs |= train_protocols({protocol: chosen}, root=root, overrides=overrides)
    return runs, tuning
