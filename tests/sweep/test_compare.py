"""Groups of made-up trials, whose truth is known, against a baseline: from trials to the page."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.errors import UserError
from experiments.report import comparison as statistics
from experiments.sweep import comparison_page
from experiments.sweep.compare import compare
from experiments.sweep.groups import grouped
from tests.sweep.made_up import BASE, Truth, swept, training

OPTIONS = {"by": "penalty.name", "baseline": "none"}
STRENGTHS = (0.01, 0.1, 1.0)
SPACE = {"penalty.name": ("none", "l2", "l1", "fiedler"), "penalty.strength": STRENGTHS}
EFFECTS = {
    "none": Truth(0, 0),
    "l2": Truth(0.5, 1.0),
    "l1": Truth(2.0, -1.0),  # better on validation data, worse on test data
    "fiedler": Truth(0.0, 0.0),
}


def truth_of(config):
    """The middle strength is best on validation data, the greatest on test data."""
    effect = EFFECTS[config.penalty.name]
    if config.penalty.name in ("none", "fiedler"):
        return effect
    gain = {0.01: (-1, -1), 0.1: (1, 0), 1.0: (0, 9)}[config.penalty.strength]
    return effect._replace(validation=effect.validation + gain[0], test=effect.test + gain[1])


def train_by(truth, monkeypatch):
    """Make numbers up where settings are to be trained; returns a list of what was asked for."""
    module = training(truth)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.asked


@pytest.fixture
def asked(monkeypatch):
    """What was asked for; numbers are by ``truth_of``."""
    return train_by(truth_of, monkeypatch)


def verdicts(found):
    return {group: one.verdict for (_, group), one in found.against.items()}


def test_the_truth_about_the_winners_comes_out(asked):
    found = compare([swept(truth_of, SPACE)], by="penalty.name", baseline="none")
    assert verdicts(found) == {"l2": "better", "l1": "worse", "fiedler": "not separated"}
    gains = {group: one.difference.mean for (_, group), one in found.against.items()}
    assert gains == pytest.approx({"l2": 1.0, "l1": -1.0, "fiedler": 0.0}, abs=0.15)
    assert found.learned()[:2] == [
        f"l2 is better than none: {found.table.rows[1]['minus none (points)']} points of "
        "test/accuracy.",
        f"l1 is worse than none: {found.table.rows[2]['minus none (points)']} points of "
        "test/accuracy.",
    ]
    assert found.learned()[2].startswith("Not told apart from none: fiedler; so many seeds mostly")


def test_winners_are_chosen_on_validation_data_and_trained_on_fresh_seeds(asked):
    compare([swept(truth_of, SPACE)], by="penalty.name", baseline="none", finals=5)
    ((name, settings, seeds),) = asked
    assert (name, seeds) == ("toy/all", range(100, 105))
    assert [one.get("penalty.name", "none") for one in settings] == list(SPACE["penalty.name"])
    assert settings[1]["penalty.strength"] == settings[2]["penalty.strength"] == 0.1


def test_pairs_are_runs_of_the_same_seed(asked):
    found = compare([swept(truth_of, SPACE)], by="penalty.name", baseline="none")
    mine, theirs = (found.scores["digits"][name] for name in ("l2", "none"))
    np.testing.assert_allclose(found.pairs["digits", "l2"], 100 * (mine - theirs))
    assert found.seeds == {"digits": [*range(100, 108)]}
    spread = found.pairs["digits", "l2"].std()
    assert spread < 0.3 < 100 * mine.std()  # what a seed does to all cancels


def test_without_finals_nothing_is_claimed_and_nothing_trained(asked):
    found = compare([swept(truth_of, SPACE)], by="penalty.name", baseline="none", finals=0)
    assert not asked and found.metric == "validation/accuracy"
    assert not {"verdict", "p", "P(better)"} & {*found.table.columns} and not found.table.bold
    assert "Nothing is claimed" in found.table.caption
    assert "nothing is claimed" in found.learned()[0] and "--finals 8" in found.learned()[0]
    assert "verdict" not in found.rows()[1]


def test_of_a_loss_less_is_better(asked):
    sweep = swept(truth_of, SPACE, objective="validation/loss", higher=False)
    found = compare([sweep], by="penalty.name", baseline="none")
    assert found.metric == "test/loss" and verdicts(found)["l2"] == "better"
    (row,) = (row for row in found.rows() if row["penalty.name"] == "l2")
    assert row["difference"] == pytest.approx(-0.01, abs=2e-3) and row["difference high"] < 0
    assert row["P(better)"] == 1.0
    assert found.table.rows[1]["minus none"].startswith("-0.0")


def test_the_metric_that_is_compared_chooses_nothing(asked):
    options = {"by": "penalty.name", "baseline": "none"}
    sweep = swept(truth_of, SPACE)
    compare([sweep], **options, objective="test/loss")
    compare([sweep], **options)
    assert asked[0] == asked[1]


def test_a_choice_by_test_data_is_refused():
    sweep = swept(truth_of, SPACE, objective="test/accuracy")
    with pytest.raises(UserError, match="chosen on validation data alone"):
        compare([sweep], by="penalty.name", baseline="none", finals=0)


def drawn_settings(found):
    section, *_ = comparison_page.sections(found)
    (ax,) = section.figures["settings"].figure.axes
    return ax, {float(x) for line in ax.lines for x in line.get_xdata()}


def test_what_chose_is_drawn_in_its_own_unit(asked):
    sweep = swept(truth_of, SPACE, objective="validation/loss", higher=False)
    ax, _ = drawn_settings(compare([sweep], **OPTIONS, objective="test/accuracy"))
    assert ax.get_ylabel() == "validation/loss" and ax.get_ylim()[1] < 1


def test_what_was_left_behind_early_is_not_drawn_among_the_others():
    sweep = swept(truth_of, SPACE, halve="2@5")
    trials = tuple(
        trial._replace(epochs=5) if trial.setting["penalty.strength"] == 1.0 else trial
        for trial in sweep.trials
    )
    _, values = drawn_settings(compare([replace(sweep, trials=trials)], **OPTIONS, finals=0))
    assert values == {0.01, 0.1}


def test_equal_groups_are_told_apart_no_more_often_than_is_said(monkeypatch):
    alike = dict.fromkeys(SPACE["penalty.name"], 0)
    space = {"penalty.name": [*alike], "penalty.strength": (0.1,)}
    train_by(lambda config: Truth(noise=1.0), monkeypatch)
    claims = 0
    for first in range(0, 12_000, 200):
        config = replace(BASE, train=replace(BASE.train, seed=first))
        sweep = swept(lambda config: Truth(), space, config=config)
        found = compare([sweep], by="penalty.name", baseline="none")
        claims += any(verdict != "not separated" for verdict in verdicts(found).values())
    assert claims <= 7  # of 60, at 5 %: more in one of a hundred such tests


@pytest.mark.parametrize("lost, cell", [((102,), "7 of 8"), (tuple(range(100, 108)), "0 of 8")])
def test_a_group_that_lost_runs_gets_no_claim(monkeypatch, lost, cell):
    def truth(config):
        return truth_of(config)._replace(lost=lost if config.penalty.name == "l2" else ())

    train_by(truth, monkeypatch)
    found = compare([swept(truth_of, SPACE)], by="penalty.name", baseline="none")
    row = found.table.rows[1]
    assert (row["penalty.name"], row["seeds"], row["verdict"]) == ("l2", cell, "not separated")
    assert found.against["digits", "l2"].improves.value == 1 - len(lost) / 8


def test_a_group_that_came_to_nothing_in_tuning_is_told(asked):
    def truth(config):
        return truth_of(config)._replace(lost=range(9) if config.penalty.name == "l1" else ())

    found = compare([swept(truth, SPACE)], by="penalty.name", baseline="none")
    assert len(asked[0][1]) == 3 and found.table.rows[2]["test/accuracy (%)"] == "all lost"
    with pytest.raises(UserError, match=r"every trial of penalty.name=l1 on digits was lost"):
        compare([swept(truth, SPACE)], by="penalty.name", baseline="l1")


def two_sizes():
    fewer = replace(BASE, data=replace(BASE.data, validation=100))
    return [
        swept(truth_of, {"penalty.strength": STRENGTHS}, directory=directory, config=config)
        for directory, config in (("one", BASE), ("two", fewer))
    ]


def two_tasks():
    other = replace(BASE, data=replace(BASE.data, train_limit=500))
    return [
        swept(truth_of, SPACE, directory="one"),
        swept(truth_of, SPACE, config=other, directory="two"),
    ]


def test_sweeps_on_other_data_are_other_tasks(asked):
    found = compare(two_tasks(), by="penalty.name", baseline="none")
    assert list(found.tasks) == ["digits train_limit=null", "digits train_limit=500"]
    assert len(found.against) == 6 and len(asked) == 2
    assert [row["task"] for row in found.table.rows] == [t for t in found.tasks for _ in range(4)]
    scores = {
        group: [100 * scores[group] for scores in found.scores.values()]
        for group in SPACE["penalty.name"]
    }
    scaled = statistics.in_deviations(scores, baseline="none")
    expected = statistics.across_tasks(scaled, baseline="none")
    assert found.across["l2"].middle == expected["l2"].middle
    assert [row["penalty.name"] for row in found.across_table.rows] == [*SPACE["penalty.name"]]


def test_data_may_be_swept_too(asked):
    space = {**SPACE, "data.label_noise": (0.0, 0.2)}
    found = compare([swept(truth_of, space)], by="penalty.name", baseline="none")
    assert list(found.tasks) == ["digits label_noise=0", "digits label_noise=0.2"]
    assert [setting.get("data.label_noise", 0.0) for setting in asked[1][1]] == [0.2] * 4
    assert not any("data." in row["setting"] for row in found.table.rows)


def test_arms_may_be_sweeps_of_their_own(asked):
    arms = [
        swept(truth_of, {"penalty.strength": STRENGTHS}, directory=name, config=replace(
            BASE, name=f"try/{name}", penalty=replace(BASE.penalty, name=name)))
        for name in ("none", "l2")
    ]  # fmt: skip
    found = compare(arms, by="name", baseline="none")
    assert verdicts(found) == {"l2": "better"}
    assert [name for name, _, _ in asked] == ["try/none", "try/l2"]  # each is found on its own
    assert not any("differ in" in caveat for caveat in found.caveats())
    faster = replace(arms[1].plan.config, optimizer=replace(BASE.optimizer, momentum=0.5))
    arms[1] = replace(arms[1], plan=replace(arms[1].plan, config=faster))
    told = "on digits the sweeps differ in optimizer.momentum as well, which nothing chose"
    assert told in compare(arms, by="name", baseline="none").caveats()


def test_a_name_is_a_text_even_if_it_reads_as_a_number():
    space = {"penalty.strength": STRENGTHS}
    arms = [
        swept(truth_of, space, directory=name, config=replace(BASE, name=f"rates/{name}"))
        for name in ("1e-2", "1e-3")
    ]
    assert compare(arms, by="name", baseline="1e-3", finals=0).baseline == "1e-3"


def test_groups_that_agree_exactly_are_told_without_a_reach(monkeypatch):
    train_by(lambda config: Truth(noise=0.0), monkeypatch)
    found = compare([swept(truth_of, SPACE)], **OPTIONS)
    assert found.learned() == ["Not told apart from none: l2, l1, fiedler."]


def test_what_limits_it_is_told(asked):
    found = compare([swept(truth_of, {**SPACE, "penalty.strength": (0.1,)})],
                    by="penalty.name", baseline="none")  # fmt: skip
    assert found.caveats() == [
        "8 pairs: it takes 29 to tell a probability of improvement of 0.75 from a half at a power "
        "of 80 %"
    ]
    more = compare([swept(truth_of, SPACE)], by="penalty.name", baseline="none", finals=29)
    (edges,) = more.caveats()
    assert edges.startswith("on digits the best is at the edge of what was tried for ")


def test_a_key_that_changes_nothing_is_not_at_the_edge():
    def inert(config):
        name = config.penalty.name
        return Truth(noise=0.0) if name == "none" else Truth(config.penalty.strength)

    (found,) = grouped([swept(inert, SPACE)], by="penalty.name").values()
    assert found["none"].best.at_edge == ()
    assert found["l2"].best.at_edge == ("penalty.strength",)


def test_a_value_is_the_same_whether_it_is_searched_or_configured():
    searched = {"optimizer.momentum": (0, 0.9), "data.label_noise": (0,)}
    still = replace(BASE, optimizer=replace(BASE.optimizer, momentum=0.0))
    sweeps = [
        swept(lambda config: Truth(), searched, directory="searched"),
        swept(lambda config: Truth(), {"penalty.strength": STRENGTHS}, config=still),
    ]
    with pytest.raises(UserError, match="momentum=0 stands in searched and in sweep"):
        grouped(sweeps, by="optimizer.momentum")
    found = compare(sweeps[:1], by="optimizer.momentum", baseline="0.0", finals=0)
    assert found.baseline == "0" and [*found.tasks["digits"]] == ["0", "0.9"]


def unequal():
    few = {"penalty.name": ("l1",), "penalty.strength": (0.1,)}
    many = {"penalty.name": ("none", "l2"), "penalty.strength": STRENGTHS}
    return [swept(truth_of, many, directory="many"), swept(truth_of, few, directory="few")]


def test_groups_that_had_fewer_trials_are_not_compared_unless_told(asked):
    options = {"by": "penalty.name", "baseline": "none"}
    told = "none, l2: 3 settings x 4 seeds x 10 epochs; l1: 1 settings x 4 seeds x 10 epochs"
    with pytest.raises(UserError, match=told):
        compare(unequal(), **options)
    found = compare(unequal(), **options, unequal=True)
    assert told in found.caveats()[0] and verdicts(found)["l1"] == "worse"


@pytest.mark.parametrize("train", [{"epochs": 3}, {"seeds": 5}])
def test_epochs_and_seeds_are_part_of_the_budget(train):
    parts = {name: {"penalty.name": (name,), "penalty.strength": STRENGTHS} for name in EFFECTS}
    other = replace(BASE, train=replace(BASE.train, **train))
    sweeps = [swept(truth_of, parts["none"]), swept(truth_of, parts["l2"], config=other)]
    with pytest.raises(UserError, match="were not tuned alike"):
        compare(sweeps, by="penalty.name", baseline="none")


def test_a_group_that_was_left_behind_early_was_not_tuned_as_long():
    sweep = swept(truth_of, SPACE, halve="2@5")
    trials = tuple(
        trial._replace(epochs=5) if trial.setting["penalty.name"] == "l1" else trial
        for trial in sweep.trials
    )
    with pytest.raises(UserError, match="l1: 3 settings x 4 seeds x 5 epochs, halved 2@5"):
        compare([replace(sweep, trials=trials)], by="penalty.name", baseline="none")


def test_code_that_was_mixed_is_told(asked):
    sweep = swept(truth_of, SPACE, accepted=({"a.py": "2"},))
    (told, *_) = compare([sweep], by="penalty.name", baseline="none").caveats()
    assert told.startswith("other code has gone on with sweep")


@pytest.mark.parametrize(
    "options, told",
    [
        ({"baseline": "fidler"}, r"digits has penalty.name=fidler; did you mean 'fiedler'\?"),
        ({"baseline": "l3"}, "there are: none, l2, l1, fiedler"),
        ({"by": "penalty.nme"}, r"unknown key 'penalty.nme'; did you mean 'penalty.name'\?"),
        ({"objective": "test/accurcy"}, r"'test/accurcy' was not .*; did you mean 'test/accuracy'"),
        ({"by": "penalty.mode", "baseline": "penalty"}, "there is nothing to compare it with"),
        ({"finals": 1}, "of one pair nothing can be said"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(options, told):
    with pytest.raises(UserError, match=told):
        compare([swept(truth_of, SPACE)], **{**OPTIONS, **options})


def test_what_cannot_be_compared_is_refused():
    sweep, unfinished = swept(truth_of, SPACE), swept(truth_of, SPACE, finished=False)
    with pytest.raises(UserError, match=r"sweep has not ended: .*`.* sweep resume sweep`"):
        compare([unfinished], **OPTIONS)
    with pytest.raises(UserError, match="penalty.name=none stands in sweep and in sweep"):
        compare([sweep, sweep], **OPTIONS)
    first, second = two_tasks()
    by_loss = replace(second.plan, objective="validation/loss", higher=False)
    with pytest.raises(UserError, match="choose by different metrics"):
        compare([first, replace(second, plan=by_loss)], **OPTIONS)


@pytest.mark.parametrize("finals, by", [(8, "data.name"), (8, "data.test_limit"),
                                        (0, "data.name"), (0, "data.subsets")])  # fmt: skip
def test_groups_are_not_compared_by_what_they_are_scored_on(finals, by):
    with pytest.raises(UserError, match=f"by = {by}: .*would be one of the data"):
        compare([swept(truth_of, SPACE)], by=by, baseline="", finals=finals)


def test_what_is_held_out_may_be_compared_on_the_test_set(asked):
    found = compare(two_sizes(), by="data.validation", baseline="200")
    assert list(found.scores["digits"]) == ["200", "100"] and len(asked) == 2


def test_tuning_scores_of_several_validation_sets_are_no_pairs(asked):
    """Where seeds share their subsets, the first one draws them for all."""
    later = replace(BASE, train=replace(BASE.train, seed=1))
    parts = [{"penalty.name": (name,), "penalty.strength": STRENGTHS} for name in ("none", "l2")]
    sweeps = [swept(truth_of, parts[0]), swept(truth_of, parts[1], config=later)]
    with pytest.raises(UserError, match=r"different seeds \(0, 1\).*--finals 8"):
        compare(sweeps, **OPTIONS, finals=0)
    assert compare(sweeps, **OPTIONS).finals


def test_without_common_seeds_there_are_no_pairs():
    later = replace(BASE, train=replace(BASE.train, seed=50))
    parts = [{"penalty.name": (name,), "penalty.strength": STRENGTHS} for name in ("none", "l2")]
    sweeps = [swept(truth_of, parts[0]), swept(truth_of, parts[1], config=later)]
    with pytest.raises(UserError, match=r"no seed in common \(none: 0 to 3; l2: 50 to 53\)"):
        compare(sweeps, **OPTIONS, finals=0)


def test_a_group_is_called_as_one_types_it():
    space = {"model.dropout": (0.0, 0.5), "model.hidden": ([64], [32, 32])}
    sweep = swept(lambda config: Truth(), space)
    assert [*grouped([sweep], by="model.dropout")["digits"]] == ["0", "0.5"]
    assert [*grouped([sweep], by="model.hidden")["digits"]] == ["[64]", "[32, 32]"]


def test_the_baseline_is_a_value_however_it_is_written(asked):
    options = {"by": "penalty.strength", "finals": 0}
    sweep = swept(truth_of, {"penalty.strength": STRENGTHS})
    assert compare([sweep], **options, baseline="1e-2").baseline == "0.01"
    with pytest.raises(UserError, match=r"no trial on digits has penalty.strength=2"):
        compare([sweep], **options, baseline="2")


def test_the_page_and_its_tables(asked, tmp_path, monkeypatch):
    svg_alone = lambda figure, stem, *, drawn: Path(f"{stem}.svg").write_text(drawn)  # noqa: E731
    monkeypatch.setattr("spectral_jax.plots.save", svg_alone)
    (tmp_path / "out" / "figures").mkdir(parents=True)
    found = compare(two_tasks(), **OPTIONS)
    folder = found.page(tmp_path / "out")
    made = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert {"page.html", "table.csv", "table.md", "table.tex", "figures/all-profiles.svg",
            "figures/digits-train-limit-500-settings.svg"} <= made  # fmt: skip
    html = (folder / "page.html").read_text()
    assert "<script" not in html and "http://" not in html.replace("http://www.w3.org", "")
    assert found.learned()[0] in html and html.count("<svg") == 5
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [row["verdict"] for row in rows[:4]] == ["", "better", "worse", "not separated"]
    first, second = (float(row["test/accuracy"]) for row in rows[:2])
    assert float(rows[1]["difference"]) == pytest.approx(second - first)
    bold = [line for line in (folder / "table.tex").read_text().splitlines() if "textbf" in line]
    assert len(bold) == 2 and all(" l2 & " in line for line in bold)


def test_only_the_forms_that_are_asked_for_are_written(asked, tmp_path):
    found = compare([swept(truth_of, SPACE)], **OPTIONS)
    found.page(tmp_path, formats=["md"])
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.csv"}


@pytest.fixture
def on_disk(asked, monkeypatch, tmp_path):
    """A directory that reads as a made-up sweep."""
    sweep = swept(truth_of, SPACE, directory=tmp_path)
    monkeypatch.setattr("experiments.sweep.outcome.read", lambda directory: sweep)
    return tmp_path


COMPARE = ["--by", "penalty.name", "--baseline", "none", "--format", "md"]


def test_the_command_prints_the_table_and_says_what_was_learned(on_disk, capsys):
    assert main(["compare", str(on_disk), *COMPARE]) == 0
    out, told = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        "penalty.name",
        *SPACE["penalty.name"],
    ]
    assert "l2 is better than none" in told and "note: 8 pairs: it takes 29" in told
    (folder,) = on_disk.glob("comparison-penalty.name-none-test-accuracy-*")
    assert f"comparison: {folder}" in told and (folder / "table.csv").exists()


def test_comparisons_that_differ_in_anything_have_folders_of_their_own(asked):
    sweep, other = two_tasks()
    asks = [{}, {"finals": 5}, {"finals": 0}, {"objective": "test/loss"}, {"baseline": "l2"}]
    found = [compare([sweep], **{**OPTIONS, **more}) for more in asks]
    found += [compare([sweep, other], **OPTIONS), compare([other], **OPTIONS)]
    assert len({one.stem for one in found}) == len(found)
    assert compare([sweep], **OPTIONS).stem == found[0].stem  # the same again is found there
    assert found[3].stem.startswith("comparison-penalty.name-none-test-loss-")


def test_the_command_gives_numbers_as_json(on_disk, capsys):
    assert main(["compare", str(on_disk), *COMPARE, "--json", "--finals", "0"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["penalty.name"] for row in rows] == [*SPACE["penalty.name"]]
    assert rows[1]["validation/accuracy"] == pytest.approx(np.mean(rows[1]["scores"]))
    assert len(rows[1]["scores"]) == 4 and rows[0]["setting"].startswith("penalty.strength=")


@pytest.mark.parametrize("words, told", [
    (["--by", "penalty.nam"], "did you mean 'penalty.name'?"),
    (["--format", "mdx"], "--format: no form 'mdx'; did you mean 'md'?"),
])  # fmt: skip
def test_a_typo_is_one_line(on_disk, capsys, words, told):
    assert main(["compare", str(on_disk), *COMPARE, *words]) == 2
    assert told in capsys.readouterr().err
