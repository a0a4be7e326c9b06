"""`sweep` at the door: a small one of digits, told on stdout and stderr, and found again."""

import json
from dataclasses import replace

import pytest

from experiments.__main__ import main
from experiments.config import DataConfig, ExperimentConfig, TrainConfig
from experiments.errors import DONE, USAGE
from experiments.runs.files import append_line
from experiments.sweep import estimate as estimates
from experiments.sweep import meter as meters
from experiments.sweep.block import Block, BlockTrial, write_block
from experiments.sweep.estimate import estimate
from experiments.sweep.log import Entry, TrialLog
from experiments.sweep.meter import Meter
from experiments.sweep.planning import plan_of
from experiments.sweep.space import Choice, Log
from experiments.sweep.width import Layout

CONFIG = """\
name: small
data: {name: digits, validation: 100, train_limit: 200, test_limit: 50, batch_size: 50}
model: {hidden: [4]}
penalty: {name: l2, strength: 1e-3}
train: {epochs: 1, seeds: 2, measures: [], seed_axis: map}
"""
PLAN = plan_of(
    ExperimentConfig("plan", data=DataConfig("digits", validation=9), train=TrainConfig(epochs=4)),
    over={"penalty.strength": Log(1e-3, 1e-1, 3), "penalty.name": Choice(["l1", "l2"])},
    search="grid",
    seeds=2,
    halve="2@1",
    objective="validation/accuracy",
)


def test_the_code_of_a_sweep_is_what_trains_it():
    """And nothing that only reads its results."""
    files = PLAN.code
    assert {"experiments/training/trainer.py", "experiments/sweep/attempts.py"} <= files.keys()
    assert not {"experiments/sweep/outcome.py", "experiments/report/tables.py"} & files.keys()


@pytest.fixture
def door(tmp_path, monkeypatch, capsys):
    """The command in a directory of its own: its code, what it printed, what it said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)

    def call(*words):
        code = main(["sweep", *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.slow
def test_a_sweep_is_told_and_found_again(door, tmp_path):
    words = ("small.yaml", "penalty.strength=[0.001, 0.1, 10]")
    code, out, err = door(*words)
    head, *rows = out.splitlines()
    assert code == DONE and len(rows) == 3
    assert head.split()[:4] == [
        "number",
        "penalty.strength",
        "validation/accuracy",
        "validation/loss",
    ]
    (directory,) = tmp_path.glob("runs/small/sweeps/*")
    assert "best: number" in err and str(directory.relative_to(tmp_path)) in err
    assert (directory / "table.csv").read_text().count("\n") == 4
    assert (directory / "trials.csv").read_text().count("finished") == 6
    assert (directory / "figures" / "penalty.strength.svg").is_file()
    for again in (words, ("status", str(directory)), ("resume", str(directory))):
        assert door(*again)[:2] == (DONE, out)
    told = json.loads(door("status", str(directory), "--json")[1])
    assert told["finished"] and len(told["trials"]) == 6
    assert told["best"]["number"] == int(rows[0].split()[0])
    assert told["best"]["config"]["penalty"]["strength"] in (0.001, 0.1, 10.0)
    assert door("worker", str(directory))[0] == DONE  # there is nothing left to do


@pytest.mark.parametrize(
    "words, said",
    [
        (["small.yaml"], "there is nothing to sweep"),
        (["small.yaml", "penalty.strength=log(0,1,3)"], "low > 0"),
        (["small.yaml", "penalty.strenght=log(1,2,3)"], "did you mean 'penalty.strength'"),
        (["small.yaml", "penalty.strength=log(1e-3,1)"], "has no count"),
        (["small.yaml", "data.validation=0", "penalty.strength=[0, 1]"], "data.validation=200"),
        (["small.yaml", "penalty.strength=[0, 1]", "train.stop=a below 1"], "stop bad trials with"),
        (["small.yaml", "train.stop=[null, a below 1]"], "stop bad trials with"),
        (["small.yaml", "penalty.strength=[0, 1]", "--executor", "sge"], "no executor 'sge'"),
        (["fiedler/digits", "penalty.strength=[0, 1]"], "choose the one to sweep with --arm"),
        (["stats", "runs/small"], "did you mean 'status'"),
        (["status"], "takes the directory of one sweep"),
        (["status", "runs/small"], "runs/small is no sweep"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(door, words, said, tmp_path):
    code, out, err = door(*words)
    assert code == USAGE and not out and err.count("\n") == 1 and said in err
    assert not (tmp_path / "runs").exists()


def test_an_estimate_counts_blocks_programs_bytes_and_hours(monkeypatch):
    """6 settings x 2 seeds to epoch 1, then 3 x 2 to epoch 2, 2 x 2 to epoch 4; width 4."""
    monkeypatch.setattr(estimates, "layout", lambda *_, **options: Layout("map", 4))
    hours = {"l1": 0.25, "l2": 0.75}  # of a trial
    monkeypatch.setattr(
        estimates, "pace",
        lambda config, trials, axis: 3600 * hours[trials[0].setting["penalty.name"]],
    )  # fmt: skip
    found = estimate(PLAN, workers=2)
    assert (found.configurations, found.trials) == (6, 12)
    assert found.blocks == 2 * 2 + 2 + 2 and (found.compilations, found.timed) == (2, 2)
    assert found.hours == pytest.approx((12 * 1 + 6 * 1 + 4 * 2) / 4 * 0.5 / 2)
    told = " ".join(estimates.assumptions(PLAN, found, workers=2))
    assert "2 workers are taken to be 2 times" in told and "keep the same share" in told
    assert found.disk % (2 * (4 * 2 + 12 + 6)) == 0


def test_of_many_structures_some_are_timed_and_the_others_count_as_their_mean(monkeypatch):
    widths = Choice([[units] for units in range(1, 22)])
    plan = replace(PLAN, space={"model.hidden": widths}, count=21, halve="")
    asked = []

    def seconds(config, trials, axis):
        asked.append(trials[0].setting["model.hidden"][0])
        return 3600.0 * asked[-1]

    monkeypatch.setattr(estimates, "layout", lambda *_, **options: Layout("map", 4))
    monkeypatch.setattr(estimates, "pace", seconds)
    found = estimate(plan, workers=1)
    assert (found.compilations, found.timed) == (21, 8) and asked[0] == 1 and asked[-1] == 21
    assert found.hours == pytest.approx(42 * 11, rel=0.01)
    widest = replace(plan, space={"model.hidden": Choice([[21]])}, count=1)
    assert found.memory == estimate(widest, workers=1).memory
    (note, *_) = estimates.assumptions(plan, found, workers=1)
    assert note.startswith("8 of 21 programs were timed")


def test_an_estimate_and_the_bar_count_the_epochs_that_are_swept(monkeypatch, tmp_path):
    """Two trials of 1 epoch, which are timed, and two of 3, in a configuration of 4."""
    space = {"train.epochs": Choice([1, 3])}
    plan = replace(PLAN, space=space, count=2, halve="")
    monkeypatch.setattr(estimates, "layout", lambda *_, **options: Layout("map", 4))
    monkeypatch.setattr(
        estimates, "pace",
        lambda config, trials, axis: 1800 * trials[0].setting["train.epochs"],
    )  # fmt: skip
    assert estimate(plan, workers=1).hours == pytest.approx((2 * 1 + 2 * 3) * 0.5, rel=1e-3)
    seeds, known = list(plan.seeds), {"diverged": [0.0, 0.0]}
    TrialLog(tmp_path).add(
        Entry(0, 0, number, {"train.epochs": epochs}, epochs, seeds, known)
        for number, epochs in enumerate([1, 3])
    )
    moves = []
    Meter(tmp_path, plan, TrialLog(tmp_path), lambda steps, note="": moves.append(steps), 0).look()
    assert moves == [plan.work]


def test_the_bar_counts_what_blocks_have_trained_so_far(tmp_path, monkeypatch):
    """Two trials of four epochs, of a block from epoch 1 on, which others may remove meanwhile."""

    def vanished(metrics):
        raise FileNotFoundError(metrics)

    block = Block(PLAN.config, (BlockTrial(0, 0, {}), BlockTrial(0, 1, {})), 4, "map", 1, 3)
    folder = tmp_path / "blocks" / write_block(tmp_path, block) / "attempts" / "one"
    folder.mkdir(parents=True)
    moves = []
    meter = Meter(tmp_path, PLAN, TrialLog(tmp_path), lambda steps, note="": moves.append(steps), 0)
    meter.look()
    for epoch in (1.0, 1.5, 1.5, 2.0):
        append_line(folder / "metrics.jsonl", json.dumps({"epoch": epoch}))
        meter.look()
    with monkeypatch.context() as patch:
        patch.setattr(meters, "_last_epoch", vanished)
        meter.look()
    (folder.parent.parent / "result.json").write_text("{}")
    meter.look()
    assert moves == [2 * 0.5 / 4, 2 * 0.5 / 4]
