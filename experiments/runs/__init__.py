"""What was run, kept on disk: done once, resumable at any instant, with provenance."""

from typing import TYPE_CHECKING

from spectral_jax._lazy import lazy

if TYPE_CHECKING:
    from experiments.runs.run import Run as Run
    from experiments.runs.run import open_run as open_run

# Lazily: the command line takes its signal handlers from this room before anything slow is loaded.
__getattr__, __dir__ = lazy(__name__, {"Run": "run", "open_run": "run"})
