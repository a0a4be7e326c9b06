"""A sweep trains each trial once and comes to the same bytes, whatever died on the way."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from experiments.config import DataConfig, ExperimentConfig, PenaltyConfig, TrainConfig
from experiments.errors import INTERRUPTED, USAGE, UserError
from experiments.runs.files import read_json, write_json, write_json_once
from experiments.sweep import planning, rounds
from experiments.sweep import sweep as sweeps
from experiments.sweep.block import BlockResult, read_block
from experiments.sweep.committed import committed
from experiments.sweep.outcome import TrialRow, best_of, read
from experiments.sweep.plan import accept, read_plan, refuse_other_code
from experiments.sweep.search import Told
from experiments.sweep.space import Choice, Log
from experiments.sweep.width import Layout

CONFIG = ExperimentConfig(
    "toy",
    data=DataConfig("digits", validation=100),
    penalty=PenaltyConfig("l2", strength=1e-3),
    train=TrainConfig(epochs=8, seeds=2, seed=5),
)
STRENGTHS = {"penalty.strength": Choice([1e-4, 1e-3, 1e-2, 1e-1])}
FILES = ("trials.jsonl", "table.csv", "table.md", "trials.csv")


def accuracy(number, seed, epochs):
    """Configuration 1 is the best, and grows from epoch to epoch as all do."""
    return round(0.9 - 0.1 * abs(number - 1) - 0.2 / epochs + 0.001 * (seed % 3), 6)


class Toy:
    """Commits blocks without training; `stop_after` so many it is interrupted, as by Ctrl-C."""

    workers = 1

    def __init__(self, *, stop_after=math.inf, score=accuracy, before=lambda directory: None):
        self.trained, self.stop_after, self.score, self.before = [], stop_after, score, before

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        return None

    def run(self, directory, blocks):
        for name in blocks:
            if len(self.trained) >= self.stop_after:
                raise UserError("interrupted; the state of step 3 is kept", INTERRUPTED)
            self.before(directory)
            if not committed(directory, name):
                self.trained.append(read_block(directory, name))
                self.commit(directory, self.trained[-1])
            yield name

    def commit(self, directory, block):
        scores = [self.score(trial.number, trial.seed, block.end) for trial in block.trials]
        result = BlockResult(
            trials=[(trial.number, trial.seed) for trial in block.trials],
            metrics={"validation/accuracy": scores, "test/accuracy": [0.5] * len(scores)},
            diverged=[math.isnan(score) for score in scores],
            collapsed=[False] * len(scores),
            steps=block.end,
            seconds=0.1,
            attempt="toy",
            parts=[],
        )
        path = directory / "blocks" / block.id / "result.json"
        write_json_once(path, result._asdict())


@pytest.fixture(autouse=True)
def no_jax(monkeypatch):
    """Blocks of four trials, and one code: those are the business of other tests."""
    monkeypatch.setattr(sweeps, "layout", lambda *_, **options: Layout("map", 4))
    monkeypatch.setattr(planning, "code_of", lambda *_: {"a.py": "1"})
    monkeypatch.setattr(planning, "data_of", lambda *_: "0" * 64)
    monkeypatch.setattr("experiments.sweep.plan.code_of", lambda *_: {"a.py": "1"})


@pytest.fixture
def run(tmp_path):
    return partial(sweeps.sweep, CONFIG, over=STRENGTHS, root=tmp_path)


def content(sweep):
    return {name: (sweep.directory / name).read_bytes() for name in FILES}


def trained_by(*executors):
    """Every trial that was trained, with the epochs from where to where."""
    return sorted(
        (trial.number, trial.seed, block.start, block.end)
        for executor in executors
        for block in executor.trained
        for trial in block.trials
    )


def test_every_configuration_is_trained_with_every_seed_and_the_best_comes_first(run):
    toy = Toy()
    sweep = run(executor=toy)
    assert trained_by(toy) == [(number, seed, 0, 8) for number in range(4) for seed in (5, 6)]
    assert all(len(block.trials) == 4 for block in toy.trained)
    assert sweep.finished and [row["number"] for row in sweep.table.rows] == ["1", "0", "2", "3"]
    best = sweep.best()
    assert (best.number, best.setting) == (1, {"penalty.strength": 1e-3})
    assert best.config == CONFIG and best.at_edge == () and best.tied == ()
    assert best.score == pytest.approx(0.9 - 0.2 / 8 + 0.001)
    assert sweep.results.values("test/accuracy", arm="3", protocol="toy").tolist() == [0.5, 0.5]


def test_the_same_call_finds_the_sweep_done(run):
    before = content(run(executor=Toy()))
    again = Toy()
    assert content(run(executor=again)) == before and not again.trained


def test_a_sweep_that_is_stopped_anywhere_goes_on_and_comes_to_the_same_bytes(tmp_path):
    """With halving: two blocks, then one, then one."""
    run = partial(sweeps.sweep, CONFIG, over=STRENGTHS, halve="2@2")
    whole = Toy()
    undisturbed = content(run(executor=whole, root=tmp_path / "whole"))
    for stop_after in range(len(whole.trained)):
        first, second, root = Toy(stop_after=stop_after), Toy(), tmp_path / str(stop_after)
        with pytest.raises(UserError, match="sweep resume") as stopped:
            run(executor=first, root=root)
        assert stopped.value.exit_code == INTERRUPTED
        (directory,) = (root / "toy" / "sweeps").iterdir()
        assert not read(directory).finished
        assert content(sweeps.resume(directory, executor=second)) == undisturbed
        assert trained_by(first, second) == trained_by(whole)


def test_what_the_dead_left_at_a_block_is_removed_when_it_is_logged(run):
    class Dying(Toy):
        def commit(self, directory, block):
            super().commit(directory, block)
            (directory / "blocks" / block.id / "attempts" / "another").mkdir(parents=True)

    assert not list(run(executor=Dying()).directory.glob("blocks/*/attempts/*"))


def test_what_is_left_at_a_logged_block_is_removed_and_at_others_it_stays(run):
    """A process may die after it has committed, or go on for a while after another one has."""
    first = run(executor=Toy())
    blocks = [path.parent for path in first.directory.glob("blocks/*/result.json")]
    for block in blocks:
        for attempt in ("toy", "dead"):
            (block / "attempts" / attempt / "checkpoints").mkdir(parents=True)
    (blocks[0] / "block.json").write_text("damaged")  # which nobody needs any more
    begun = first.directory / "blocks" / "begun" / "attempts" / "alive" / "checkpoints"
    begun.mkdir(parents=True)
    assert run(executor=Toy()).table == first.table
    left = {str(path.relative_to(blocks[1])) for path in blocks[1].rglob("*")}
    assert left == {"block.json", "result.json", "attempts", "attempts/toy"}
    assert begun.is_dir() and (blocks[0] / "attempts" / "dead").is_dir()


def torn(lines):
    return b"\n".join(lines)[:-20]


def damaged(lines):
    return b"\n".join([lines[0].replace(b"0.8", b"0.7"), *lines[1:], b""])


def duplicated(lines):
    return b"\n".join([*reversed(lines), *lines, b""])


def lost(lines):
    return b""


@pytest.mark.parametrize("spoil", [torn, damaged, duplicated, lost])
def test_the_log_is_made_again_of_what_is_committed(run, spoil):
    sweep = run(executor=Toy())
    before, log = content(sweep), sweep.directory / "trials.jsonl"
    log.write_bytes(spoil(log.read_bytes().splitlines()))
    assert len(read(sweep.directory).trials) < 8 or read(sweep.directory) == sweep
    again = Toy()
    assert content(sweeps.resume(sweep.directory, executor=again)) == before and not again.trained


def test_what_is_appended_behind_a_torn_line_is_not_lost_with_it(run):
    def tear(directory):
        log = directory / "trials.jsonl"
        log.write_bytes(log.read_bytes()[:-9] if log.exists() else b'{"round":0,"ru')

    sweep = run(executor=Toy(before=tear))
    assert sweep == read(sweep.directory) and len(sweep.trials) == 8


def test_two_coordinators_at_once_do_the_same(run, tmp_path):
    other = Toy()
    mine = Toy(before=lambda directory: sweeps.resume(directory, executor=other))
    sweep = run(executor=mine)
    assert not mine.trained and len(trained_by(other)) == 8
    undisturbed = run(executor=Toy(), root=tmp_path / "alone")
    assert content(sweep) == content(undisturbed)


def test_halving_trains_the_better_half_on_from_where_it_was(run):
    toy = Toy()
    sweep = run(executor=toy, halve="2@2")
    rungs = {(0, 2): [0, 1, 2, 3], (2, 4): [0, 1], (4, 8): [1]}
    assert trained_by(toy) == sorted(
        (number, seed, *rung) for rung, numbers in rungs.items() for number in numbers
        for seed in (5, 6)
    )  # fmt: skip
    first = [block.id for block in toy.trained if block.end == 2]
    assert [b.parents for b in toy.trained if b.start == 2] == [tuple(first)]
    assert {t.number: (t.epochs, t.state) for t in sweep.trials} == {
        0: (4, "halved"), 1: (8, "finished"), 2: (2, "halved"), 3: (2, "halved"),
    }  # fmt: skip
    assert sweep.best().number == 1 and sweep.ranking == [1, 0, 2, 3]


def test_of_a_loss_less_is_better(run):
    sweep = run(executor=Toy(), higher=False, halve="2@2")
    assert sweep.best().number == 3 and sweep.best().at_edge == ("penalty.strength",)
    assert sweep.ranking[:2] == [3, 0]


def test_a_diverged_trial_is_no_hole_and_its_setting_comes_last(run):
    def score(number, seed, epochs):
        return math.nan if (number, seed) in {(1, 5), (3, 5), (3, 6)} else accuracy(0, seed, epochs)

    sweep = run(executor=Toy(score=score))
    states = {(trial.number, trial.seed): trial.state for trial in sweep.trials}
    assert [place for place, state in states.items() if state == "diverged"] == [
        (1, 5), (3, 5), (3, 6),
    ]  # fmt: skip
    assert sweep.ranking == [0, 2, 1, 3] and sweep.finished
    assert [row["seeds"] for row in sweep.table.rows] == ["2", "2", "1 of 2", "0 of 2"]
    assert run(executor=Toy(score=lambda *_: math.nan), seeds=3).best() is None


def test_what_a_search_proposed_is_kept(run, monkeypatch):
    """One setting at a time, each from the score of the one before."""
    asked = []

    class Climb:
        count = 3

        def propose(self, told):
            asked.append(list(told))
            value = 1e-4 if not told else told[-1].setting["penalty.strength"] * 10
            return [{"penalty.strength": value}] if len(told) < 3 else []

    monkeypatch.setattr(planning, "search_of", lambda *_, **options: Climb())
    monkeypatch.setattr(rounds, "search_of", lambda *_, **options: Climb())
    with pytest.raises(UserError, match="2 of 6 trials have ended"):
        run(executor=Toy(stop_after=1))
    sweep = run(executor=Toy())
    asked = [told for told in asked if told]  # the first setting is asked for before, as well
    score = pytest.approx(accuracy(0, 6, 8) + 0.001)
    assert len(asked) == 2 and asked[0] == [Told({"penalty.strength": 1e-4}, score)]
    assert len(sweep.trials) == 6


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"over": {}}, "nothing to sweep"),
        ({"over": {"penalty.strenght": Log(1, 2, 2)}}, "did you mean 'penalty.strength'"),
        ({"objective": "test/accuracy"}, "there are: validation/loss, validation/accuracy"),
        ({"objective": "validation/acuracy"}, "did you mean 'validation/accuracy'"),
        ({"objective": "spectra/lambda_2"}, "not recorded on validation data"),
        (
            {
                "over": {"train.label_scale": Choice([1.0, 0.1])},
                "objective": "validation/loss",
            },
            "have no scale in common",
        ),
        ({"halve": "2@8"}, "nothing would be left to save"),
        ({"seeds": 0}, "seeds = 0: expected an integer >= 1"),
        ({"over": {"penalty.name": Choice(["none"]), **STRENGTHS}}, "penalty.name = none has none"),
        ({"search": "sobol:4"}, "write grid, random:64 or tpe:64"),
        ({"executor": "cloud"}, "cloud"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_written(run, tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as refused:
        run(**changes)
    assert refused.value.exit_code == USAGE and not list(tmp_path.iterdir())


def test_penalties_are_not_compared_without_a_strength(tmp_path):
    """They would all be the same as none, and a table would say that they do nothing."""
    weak, names = replace(CONFIG, penalty=PenaltyConfig()), Choice(["none", "l1", "l2"])
    with pytest.raises(UserError, match="the strength of l1, l2 is 0") as refused:
        sweeps.sweep(weak, over={"penalty.name": names}, root=tmp_path, executor=Toy())
    assert refused.value.exit_code == USAGE and not list(tmp_path.iterdir())


def test_a_sweep_without_validation_data_is_told_how_to_have_some(tmp_path):
    blind = replace(CONFIG, data=DataConfig("digits"))
    with pytest.raises(UserError, match="data.validation=200"):
        sweeps.sweep(blind, over=STRENGTHS, root=tmp_path, executor=Toy())


def test_other_code_goes_on_only_if_it_is_accepted(run, monkeypatch, capsys):
    toy = Toy(stop_after=1)
    with pytest.raises(UserError) as stopped:
        run(executor=toy)
    directory = stopped.value.message.rpartition(" ")[2]
    for module in ("planning", "plan"):
        monkeypatch.setattr(f"experiments.sweep.{module}.code_of", lambda *_: {"a.py": "2"})
    with pytest.raises(UserError, match="differs in a.py") as refused:
        sweeps.resume(directory, executor=Toy())
    assert refused.value.exit_code == USAGE
    beside = run(executor=Toy())
    assert str(beside.directory) != directory and "a.py" in capsys.readouterr().err
    mixed = Toy()
    sweeps.resume(directory, executor=mixed, accept_code=True)
    assert len(trained_by(toy, mixed)) == 8
    plan = read_plan(directory)
    assert plan.accepted == ({"a.py": "2"},) and accept(plan, directory) == plan
    refuse_other_code(plan, directory)


def test_that_machines_may_be_mixed_is_noted_however_it_is_said(run):
    assert run(executor=Toy(), accept_machine=True).plan.mixed
    directory = run(executor=Toy(), seeds=1).directory
    assert not read_plan(directory).mixed
    assert sweeps.resume(directory, executor=Toy(), accept_machine=True).plan.mixed
    assert run(executor=Toy(), seeds=1, accept_machine=True).plan == read_plan(directory)


def test_settings_that_are_written_out_are_a_sweep(tmp_path):
    settings = [{"penalty.name": "none"}, {"penalty.strength": 0.5}]
    toy = Toy()
    sweep = sweeps.run_settings(CONFIG, settings, seeds=3, seed=100, root=tmp_path, executor=toy)
    assert [dict(trial.setting) for trial in sweep.trials[::3]] == settings
    assert {trial.seed for trial in sweep.trials} == {100, 101, 102}


def test_settings_may_be_the_numbers_of_numpy(tmp_path):
    settings = [{"penalty.strength": strength} for strength in np.logspace(-3, -1, 3)]
    settings += [{"model.hidden": (8, 8), "train.epochs": np.int64(2)}]
    sweep = sweeps.run_settings(CONFIG, settings, root=tmp_path, executor=Toy())
    assert sweep.plan == read_plan(sweep.directory)
    assert sweep.plan.settings[3] == {"model.hidden": [8, 8], "train.epochs": 2}


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"train.seed": 7}, "train.seed cannot be searched"),
        ({"penalty.strenght": 1.0}, "did you mean 'penalty.strength'"),
        ({"penalty.strength": -1.0}, "penalty.strength = -1.0: expected"),
        ({"penalty.strength": float("nan")}, "nan: expected numbers"),
        ({"data.validation": 50}, "data.validation cannot be searched"),
        ({"train.label_scale": 10.0}, "have no scale in common"),
    ],
)
def test_settings_that_cannot_be_compared_are_refused(tmp_path, setting, said):
    with pytest.raises(UserError, match=said) as refused:
        sweeps.run_settings(CONFIG, [{}, setting], objective="validation/loss", root=tmp_path)
    assert refused.value.exit_code == USAGE and not list(tmp_path.iterdir())


def test_ties_go_to_the_values_that_the_experiment_has():
    """Number 2 scores best by less than its error; 1 are the values of the configuration."""
    plan = planning.plan_of(CONFIG, over=STRENGTHS, search="grid", objective="validation/accuracy")
    scores = {0: (0.1, 0.2), 1: (0.8, 0.6), 2: (0.7, 0.75), 3: (0.3, 0.2)}
    rows = [
        TrialRow(number, seed, {"penalty.strength": 10.0 ** (number - 4)}, 8, "finished",
                 {"validation/accuracy": score})
        for number, both in scores.items() for seed, score in enumerate(both)
    ]  # fmt: skip
    best = best_of(rows, plan)
    assert best.number == 1 and best.tied == (2,)


def test_a_key_of_several_structures_is_swept_like_any_other(run):
    toy = Toy()
    space = {"penalty.name": Choice(["l1", "l2"]), "train.epochs": Choice([2, 4])}
    sweep = run(over=space, executor=toy)
    assert {(b.end, t.setting["train.epochs"]) for b in toy.trained for t in b.trials} == {
        (2, 2), (4, 4),
    }  # fmt: skip
    assert [trial.epochs for trial in sweep.trials[::2]] == [2, 4, 2, 4] and sweep.finished


def test_a_directory_that_is_no_sweep_is_refused(run, tmp_path):
    directory = run(executor=Toy()).directory
    with pytest.raises(UserError, match="did you mean"):
        read(directory.with_name(directory.name[:-1] + "x"))
    plan = read_json(directory / "sweep.json", remedy="")
    assert plan["objective"] == "validation/accuracy"
    write_json(directory / "sweep.json", {**plan, "leases": 3})
    with pytest.raises(UserError, match="another version of this program .*leases"):
        read(directory)
