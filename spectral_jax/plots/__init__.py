"""Figures: one function per figure, arrays in, a matplotlib ``Figure`` out.

Nothing here runs a network, reads a file or touches pyplot, so a figure can be drawn again at any
time from what a run stored. ``save`` and ``to_svg`` write the same bytes for the same figure.

    figure = training_curves({"none": (epochs, accuracy)}, ylabel="test accuracy (%)")
    save(figure, "figures/accuracy")          # accuracy.svg, .pdf and .png
"""

from spectral_jax.plots.animation import animated_spectra
from spectral_jax.plots.capacity import data_spectrum
from spectral_jax.plots.comparison import paired_differences, score_by_setting, strength_sweep
from spectral_jax.plots.density import density_by_decade
from spectral_jax.plots.farms import (
    rank_agreement,
    shape_bias,
    tail_evolution,
    window_ablation,
)
from spectral_jax.plots.features import (
    FeatureSpectra,
    course_map,
    feature_spectra,
    quality_by_eigenvalue,
    richness_against_accuracy,
    spectrum_map,
    time_courses,
)
from spectral_jax.plots.graphs import fiedler_by_layer, spectral_evolution
from spectral_jax.plots.intervals import Interval, t_interval
from spectral_jax.plots.pruning import pruning_curves
from spectral_jax.plots.spectra import Tail, alphas_by_layer, tails
from spectral_jax.plots.style import save, to_svg
from spectral_jax.plots.sweeps import performance_profiles, setting_effects
from spectral_jax.plots.training import training_curves

__all__ = [
    "FeatureSpectra",
    "Interval",
    "Tail",
    "alphas_by_layer",
    "animated_spectra",
    "course_map",
    "density_by_decade",
    "data_spectrum",
    "feature_spectra",
    "fiedler_by_layer",
    "paired_differences",
    "performance_profiles",
    "pruning_curves",
    "quality_by_eigenvalue",
    "rank_agreement",
    "richness_against_accuracy",
    "save",
    "score_by_setting",
    "setting_effects",
    "shape_bias",
    "spectral_evolution",
    "spectrum_map",
    "strength_sweep",
    "t_interval",
    "tail_evolution",
    "tails",
    "time_courses",
    "to_svg",
    "training_curves",
    "window_ablation",
]
