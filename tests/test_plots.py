"""Figures carry their units and draw the numbers they were given."""

import numpy as np
import pytest
from scipy import stats

from spectral_jax import plots

STEPS = np.arange(5)
CURVE = (STEPS, np.random.default_rng(0).normal(size=(5, 4)) + 3)


def figures():
    rng = np.random.default_rng(1)
    spectra = {name: CURVE for name in ("lambda_2", "nu_2", "participation_ratio")}
    return {
        "training_curves": plots.training_curves(
            {"none": CURVE, "l1": CURVE}, ylabel="loss (nats)"
        ),
        "spectral_evolution": plots.spectral_evolution({"none": spectra}),
        "fiedler_by_layer": plots.fiedler_by_layer(rng.normal(size=(3, 9)), (4, 3, 2)),
        "strength_sweep": plots.strength_sweep(
            np.array([0.0, 0.1, 1.0]), {"l1": rng.normal(size=(3, 4))}, baseline=rng.normal(size=4)
        ),
        "score_by_setting": plots.score_by_setting(
            np.array([1e-3, 0.0, 0.1]), rng.normal(size=(3, 4)), xlabel="a", ylabel="b", log=True
        ),
        "alphas_by_layer": plots.alphas_by_layer(
            ["a", "b"],
            np.array([2.0, 3.0]),
            np.array([2.1, 3.5]),
            np.array([2.0, 3.0]),
            np.array([2.2, np.inf]),
        ),
        "alphas_of_many_layers": plots.alphas_by_layer(
            [str(i) for i in range(90)],
            np.full(90, 2.0),
            np.full(90, 2.1),
            np.full(90, 2.0),
            np.full(90, np.inf),
        ),
        "tails": plots.tails(
            [
                plots.Tail("a", np.arange(1.0, 9), np.arange(1.0, 7), 2.5, 4.0),
                plots.Tail("b", np.arange(1.0, 9), np.arange(1.0, 7), np.nan, np.nan),
            ]
        ),
        "density_by_decade": plots.density_by_decade(
            np.logspace(-6, 0, 7),
            np.array([np.nan, 0.0, 0.1, 0.2, 0.1, 0.0, 0.0]),
            np.zeros(7),
            resolved=np.arange(7) > 2,
        ),
        "paired_differences": plots.paired_differences({"l1": rng.normal(size=4)}),
        "setting_effects": plots.setting_effects(
            {
                "rate": {"l1": (list(np.logspace(-3, 0, 20)), rng.normal(size=20))},
                "name": {"l1": (["a", "b"], rng.normal(size=2)), "l2": (["a"], np.array([np.nan]))},
            },
            ylabel="accuracy (%)",
        ),
        "performance_profiles": plots.performance_profiles(
            np.arange(3.0),
            {"l1": np.array([[1, 0.9, 1], [0.5, 0.2, 0.8], [0, 0, 0.1]])},
            xlabel="deviations",
        ),
    }


def test_a_score_is_shown_for_every_trial_and_what_collapsed_is_counted():
    scores = np.array([[0.9, 0.8], [0.7, np.nan], [0.8, 0.9], [0.1, 0.1], [np.nan, np.nan]])
    values = np.array([1.0, 3.0, 2.0, 4.0, 5.0])
    ax = plots.score_by_setting(values, scores, xlabel="a", ylabel="b").axes[0]
    trials, means = ax.lines
    assert list(trials.get_xdata()) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    np.testing.assert_allclose(means.get_ydata(), [0.85, 0.85, 0.7, 0.1, np.nan])
    assert means.get_linestyle() == "-" and ax.texts[0].get_text() == "not shown: 2 below, at 0.1"
    with pytest.raises(ValueError, match="a row each"):
        plots.score_by_setting(values, scores.T, xlabel="a", ylabel="b")


@pytest.mark.parametrize("name", list(figures()))
def test_every_axis_has_a_label(name):
    for ax in figures()[name].axes:
        assert ax.get_xlabel()
        assert ax.get_ylabel() or ax.get_yticklabels()


@pytest.mark.parametrize("name", list(figures()))
def test_the_same_figure_gives_the_same_bytes(name):
    assert plots.to_svg(figures()[name]) == plots.to_svg(figures()[name])


def test_the_interval_is_students():
    samples = np.array([96.1, 96.4, 95.8, 96.0])
    mean, half_width, count = plots.t_interval(samples)
    low, high = stats.t.interval(0.95, 3, loc=samples.mean(), scale=stats.sem(samples))
    np.testing.assert_allclose([mean - half_width, mean + half_width], [low, high])
    assert count == 4


def test_a_lost_seed_is_left_out_of_the_interval():
    whole = plots.t_interval(np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(plots.t_interval(np.array([1.0, np.nan, 2.0, 4.0])), whole)


def test_a_band_of_losses_does_not_reach_below_zero():
    values = np.abs(np.random.default_rng(0).normal(size=(5, 3))) * 0.1
    (ax,) = plots.training_curves({"none": (STEPS, values)}, ylabel="loss (nats)").axes
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 1].min() >= 0


def test_a_band_of_accuracies_does_not_reach_above_what_is_possible():
    values = np.array([[80.0, 99.0, 100.0]] * len(STEPS))
    (ax,) = plots.training_curves({"none": (STEPS, values)}, ylabel="accuracy (%)", most=100).axes
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 1].max() == 100


def test_the_climb_from_chance_and_a_collapsed_arm_do_not_hide_the_others():
    climb = np.array([10.0, 80, 95, 96, 96.5])
    curves = {name: (STEPS, climb + d) for name, d in (("none", 0.0), ("l1", 0.4), ("l2", 0.8))}
    curves["collapsed"] = (STEPS, np.full(5, 11.0))
    figure = plots.training_curves(curves, ylabel="test accuracy (%)")
    low, high = figure.axes[0].get_ylim()
    assert 70 < low < 96 and 96.5 < high < 105
    assert "collapsed (below, ends at 11)" in [t.get_text() for t in figure.legends[0].texts][
        -1
    ].replace("\n", " ")


def test_one_seed_has_a_line_and_no_band():
    figure = plots.training_curves({"none": (STEPS, CURVE[1][:, :1])}, ylabel="loss")
    (ax,) = figure.axes
    assert len(ax.get_lines()) == 1 and not ax.collections
    assert "one seed" in figure.legends[0].get_title().get_text()


def test_curves_are_the_mean_over_seeds():
    (ax,) = plots.training_curves({"none": CURVE}, ylabel="loss").axes
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), CURVE[1].mean(axis=1))


def test_a_zero_strength_has_a_place_on_the_axis():
    figure = figures()["strength_sweep"]
    left, right = figure.axes[0].get_xlim()
    assert left <= 0 < right


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match="strengths has -1"):
        plots.strength_sweep(np.array([-1.0]), {"l1": np.zeros((1, 2))})


def test_a_figure_is_saved_as_vector_and_as_pixels(tmp_path):
    svg, pdf, png = plots.save(figures()["paired_differences"], tmp_path / "figures" / "paired")
    assert svg.read_text().startswith("<?xml")
    assert pdf.read_bytes().startswith(b"%PDF") and b"CreationDate" not in pdf.read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_name_of_a_layer_is_no_formula():
    name = "a$\nb^{$c"
    ones = np.ones(1)
    figures = [
        plots.alphas_by_layer([name], 2 * ones, 2 * ones, ones, 3 * ones),
        plots.tails([plots.Tail(name, np.arange(1.0, 9), np.arange(1.0, 7), 2.5, 4.0)]),
    ]
    assert all("<svg" in plots.to_svg(figure) for figure in figures)
    (label,) = figures[0].axes[0].get_yticklabels()
    assert label.get_text() == r"a\$\nb^{\$c"


def test_what_a_density_does_not_resolve_is_shaded_and_nothing_below_its_floor_drawn():
    ax = figures()["density_by_decade"].axes[0]
    (shade,) = ax.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == pytest.approx((1e-6, 1e-3))
    assert np.isnan(ax.lines[0].get_ydata()[0]) and ax.get_xscale() == "log"


@pytest.mark.parametrize(
    "scale, told", [(1.0, "+2.00 ± 2.48"), (1e-3, "+0.0020 ± 0.0025"), (0.0, "+0.00 ± 0.00")]
)
def test_a_difference_is_told_with_the_digits_that_it_is_worth(scale, told):
    figure = plots.paired_differences({"l1": scale * np.array([1.0, 2.0, 3.0])})
    assert figure.axes[0].texts[0].get_text() == f"{told},  n = 3"


def drawn(ax):
    """Of every line the places of its points."""
    return [np.asarray(line.get_xydata()) for line in ax.get_lines()]


def test_the_line_of_a_setting_is_the_median_at_its_values():
    rates, scores = [0.1, 0.2, 0.1, 0.2, 0.1], np.array([1.0, 5.0, 3.0, np.nan, 2.0])
    figure = plots.setting_effects({"rate": {"l1": (rates, scores)}}, ylabel="score")
    points, line = drawn(figure.axes[0])
    np.testing.assert_allclose(line, [[0.1, 2.0], [0.2, 5.0]])
    assert len(points) == 4 and figure.legends[0].get_texts()[0].get_text() == "l1 (4 of 5)"


def test_settings_far_below_the_rest_are_counted_and_not_drawn():
    scores = np.append(np.random.default_rng(0).normal(size=30), -1e3)
    figure = plots.setting_effects({"x": {"l1": (list(range(31)), scores)}}, ylabel="score")
    (ax,) = figure.axes
    assert ax.get_ylim()[0] > -100 and ax.texts[0].get_text() == "1 out of sight"


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="2 values and 1 scores"):
        plots.setting_effects({"x": {"l1": ([1, 2], np.zeros(1))}}, ylabel="score")
    with pytest.raises(ValueError, match="panels is empty"):
        plots.setting_effects({}, ylabel="score")
    with pytest.raises(ValueError, match="three numbers per threshold"):
        plots.performance_profiles(np.zeros(2), {"a": np.zeros((2, 2))}, xlabel="x")
