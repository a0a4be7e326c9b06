"""Figures of the feature map draw what a run stored, and the animation needs nothing else."""

import json
import re

import numpy as np
import pytest

from spectral_jax import plots

AT = np.array([0, 1, 10, 100])
P, CLASSES = 12, 4


def spectra(**changes):
    fall = 10.0 ** -np.outer(1 + np.arange(4), np.linspace(0, 1, P))
    rise = np.minimum(np.arange(1, P + 1) / np.array([9, 7, 5, 3])[:, None], 1)
    fall[:, -1] = np.nan
    return plots.FeatureSpectra(AT, fall, 0.9 * rise, rise, CLASSES, rows=60)._replace(**changes)


def figures():
    rng = np.random.default_rng(0)
    curve = (AT, rng.uniform(0.1, 1, (4, 3)))
    return {
        "feature_spectra": plots.feature_spectra(spectra()),
        "spectrum_map": plots.spectrum_map(spectra()),
        "time_courses": plots.time_courses(
            {name: {"MSE": curve} for name in ("NC1", "NC2", "NC3", "NC4")}, logarithmic=["NC1"]
        ),
        "course_map": plots.course_map(AT, ["a", "b$"], rng.uniform(size=(4, 2)), label="$D_{LR}$"),
        "richness_against_accuracy": plots.richness_against_accuracy(
            {"full": (np.array([0.02, 0.1]), np.array([95.0, 96]))}
        ),
        "quality_by_eigenvalue": plots.quality_by_eigenvalue(
            {"init": (np.array([2.0, 1, np.nan]), np.array([0.5, 0.1, np.nan]))}
        ),
    }


def test_every_axis_has_a_label():
    for name, figure in figures().items():
        for ax in figure.axes:
            told = ax.get_xlabel() or ax.get_ylabel() if "colorbar" in ax.get_label() else (
                ax.get_xlabel() and (ax.get_ylabel() or ax.get_yticklabels())
            )  # fmt: skip
            assert told, name


@pytest.mark.slow
def test_the_same_arrays_give_the_same_bytes():
    first, second = figures(), figures()
    for name in first:
        assert plots.to_svg(first[name]) == plots.to_svg(second[name]), name
    assert plots.animated_spectra(spectra()) == plots.animated_spectra(spectra())


def test_lines_are_the_checkpoints_and_end_at_the_floor():
    quality, utilisation, values = plots.feature_spectra(spectra()).axes[:3]
    chance, rule, *lines = quality.get_lines()
    np.testing.assert_allclose(chance.get_ydata(), np.arange(1, P + 1) / 60)
    assert rule.get_xdata()[0] == CLASSES - 1
    assert len(lines) == len(AT)
    np.testing.assert_allclose(lines[2].get_ydata()[:-1], spectra().quality[2, :-1])
    assert np.isnan(values.get_lines()[-1].get_ydata()[-1])
    assert len(utilisation.get_lines()) == 1 + len(AT)


def test_uncentred_features_need_one_direction_more():
    assert spectra(centred=False).rule == CLASSES


def test_the_map_shows_how_many_directions_the_outputs_use():
    line = plots.spectrum_map(spectra(), level=1.0).axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_ydata(), [9, 7, 5, 3])
    # Of centred features the whole is less than 1, and what counts is the share of that.
    centred = spectra(utilisation=0.9 * spectra().utilisation)
    line = plots.spectrum_map(centred, level=1.0).axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_ydata(), [9, 7, 5, 3])


def test_a_checkpoint_at_0_has_a_place_on_the_logarithmic_axis():
    ax = figures()["time_courses"].axes[0]
    assert ax.get_xscale() == "symlog" and ax.get_xlim()[0] <= 0
    assert ax.get_yscale() == "log"


def test_a_band_of_shares_ends_at_one_and_that_of_other_numbers_does_not():
    near_one = (AT, np.array([[0.2, 0.9, 1.0]] * len(AT)))
    panels = {"accuracy": {"MSE": near_one}, "NC1": {"MSE": near_one}}
    figure = plots.time_courses(panels, shares=["accuracy"])
    tops = [ax.collections[0].get_paths()[0].vertices[:, 1].max() for ax in figure.axes]
    assert tops[0] == 1 and tops[1] > 1.5


def test_the_animation_is_one_file_with_every_checkpoint_in_it():
    page = plots.animated_spectra(spectra(), title="Digits", xlabel="step")
    outside = re.findall(r"""(?:src|href)=["'](?!#)([^"']+)|url\((?!#)([^)]+)\)|@import""", page)
    assert not outside
    data = json.loads(re.search(r"const data = (.*);", page)[1])
    assert data["told"] == ["step 0", "step 1", "step 10", "step 100"]
    assert [len(frame) for frame in data["frames"]] == [3] * len(AT)


def test_a_frame_is_the_line_that_the_figure_draws():
    page = plots.animated_spectra(spectra())
    data = json.loads(re.search(r"const data = (.*);", page)[1])
    for number, moving in enumerate(data["frames"][-1]):
        drawn = re.search(rf'id="spectra-moving-{number}">\s*<path d="([^"]*)"', page)[1]
        ours, theirs = (
            np.array(re.findall(r"[-\d.]+", path), float).reshape(-1, 2)[[0, -1]]
            for path in (moving, drawn)
        )
        np.testing.assert_allclose(ours, theirs, atol=0.1)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"at": AT[::-1]}, "increasing order"),
        ({"quality": np.ones((4, 3))}, "spectra.quality has shape"),
        ({"eigenvalues": np.full((4, P), np.nan)}, "no eigenvalue is above 0"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        plots.feature_spectra(spectra(**changes))


def test_panels_and_maps_say_what_is_missing():
    with pytest.raises(ValueError, match="give at least one panel"):
        plots.time_courses({})
    with pytest.raises(ValueError, match=r"shares \['accuracy'\]: .*name only panels"):
        plots.time_courses({"NC1": {"MSE": (AT, np.ones(4))}}, shares=["accuracy"])
    with pytest.raises(ValueError, match="one column per name"):
        plots.course_map(AT, ["a"], np.zeros((4, 2)), label="x")
    with pytest.raises(ValueError, match="level is 0"):
        plots.spectrum_map(spectra(), level=0)
