"""The course of training, arm by arm: what more than one paper draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.report.page import Picture
from experiments.runs import Run
from spectral_jax import plots
from spectral_jax.plots.training import Curve


def by_epoch(run: Run) -> dict[str, Curve]:
    """Every metric of a run's history: epochs, and values by seed."""
    history = run.history()
    steps_per_epoch = run.summary["steps"] / run.summary["epochs"]
    return {name: (steps / steps_per_epoch, values) for name, (steps, values) in history.items()}


def accuracy(runs: Mapping[str, Run], order: Sequence[str]) -> Picture:
    """Test accuracy of each arm; ``order`` gives arms the same colours in every figure."""
    found = {arm: by_epoch(run)["test/accuracy"] for arm, run in runs.items()}
    percent = {arm: (epochs, 100 * values) for arm, (epochs, values) in found.items()}
    figure = plots.training_curves(
        percent, ylabel="test accuracy (%)", xlabel="epoch", arms=order, most=100.0
    )
    return Picture(figure, "Test accuracy over training.")


def loss(runs: Mapping[str, Run], order: Sequence[str]) -> Picture:
    """Test loss of each arm."""
    found = {arm: by_epoch(run)["test/loss"] for arm, run in runs.items()}
    figure = plots.training_curves(found, ylabel="test loss (nats)", xlabel="epoch", arms=order)
    return Picture(figure, "Test loss over training.")
