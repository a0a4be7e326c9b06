"""Training all arms of a paper's preset, in turn, with one bar over all of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import ExperimentConfig, apply_overrides
from experiments.errors import FAILED, UserError
from experiments.runs import Run
from experiments.training.train import train
from spectral_jax._progress import progress

Runs = dict[str, dict[str, Run]]


def train_protocols(
    protocols: Mapping[str, Mapping[str, ExperimentConfig]],
    *,
    root: str | Path,
    overrides: Sequence[str] = (),
) -> Runs:
    """Train every arm of every protocol, or find it done; ``runs[protocol][arm]``.

    An arm whose seeds all diverge is reported and left out of the result: that, too, is a finding.
    """
    configs = {
        protocol: {arm: apply_overrides(config, overrides) for arm, config in arms.items()}
        for protocol, arms in protocols.items()
    }
    total = sum(len(arms) for arms in configs.values())
    runs: Runs = {protocol: {} for protocol in configs}
    with progress(total, "arms") as advance:
        for protocol, arms in configs.items():
            for arm, config in arms.items():
                print(f"{protocol}/{arm}", file=sys.stderr)
                try:
                    runs[protocol][arm] = train(config, root=root, argv=sys.argv)
                except UserError as error:
                    if error.exit_code != FAILED or "diverged" not in error.message:
                        raise
                    print(f"warning: {error.message}", file=sys.stderr)
                advance(1, note=f"{protocol}/{arm}")
    return runs


def final(run: Run, metric: str) -> np.ndarray:
    """A run's last value of ``metric`` per seed; NaN for seeds without one."""
    values: Any = run.summary.get(metric)
    if values is None:
        values = run.history()[metric][1][-1]
    return np.array([np.nan if value is None else value for value in values], float)
