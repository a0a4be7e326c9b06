"""Curves in other viewers are those of the JSONL, trial by trial, and never there twice."""

import json
import math
import shlex
import struct
import sys
import warnings

import pytest

from experiments.__main__ import main
from experiments.config import ExperimentConfig, TrainConfig, dump_yaml
from experiments.errors import MISSING, USAGE, UserError
from experiments.runs import Run
from experiments.runs.files import write_json
from experiments.sweep.block import BlockResult, blocks_of, write_block
from experiments.sweep.export import export
from tests.sweep import viewers

CONFIG = ExperimentConfig("toy/net", train=TrainConfig(epochs=2, seeds=2, seed=5))


@pytest.fixture
def run(tmp_path):
    """Two seeds, of which the second diverges after the first epoch."""
    run = Run(tmp_path / "20261130T120000Z-0123456789ab")
    run.path.mkdir()
    (run.path / "config.yaml").write_text(dump_yaml(CONFIG))
    run.record(0, 0, {"test/loss": [2.5, 2.25]})
    run.record(10, 1, {"test/loss": [1.5, math.nan], "rate": 0.1})
    summary = {"test/loss": [1.5, math.nan], "final_train/loss": [1.0, math.nan]}
    run.finish({**summary, "diverged_seeds": [6], "collapsed_seeds": []})
    return run


SEED_5 = {0: {"test/loss": 2.5}, 10: {"test/loss": 1.5, "rate": 0.1, "final_train/loss": 1.0,
                                      "diverged": 0.0, "collapsed": 0.0}}  # fmt: skip
SEED_6 = {0: {"test/loss": 2.25}, 10: {"rate": 0.1, "diverged": 1.0, "collapsed": 0.0}}


@pytest.fixture
def sweep(tmp_path):
    """Two settings for an epoch, and the better one for another.

    Memory did not hold the two together, so each was trained in a block of its own.
    """
    directory = tmp_path / "0123456789ab"
    settings = {0: {"penalty.strength": 0.5}, 3: {"penalty.strength": 0.25}}
    (both,) = blocks_of(CONFIG, settings, [5], end=1, width=2, axis="map")
    halves = blocks_of(CONFIG, settings, [5], end=1, width=1, axis="map")
    more = blocks_of(CONFIG, {3: settings[3]}, [5], start=1, end=2, width=2, axis="map")
    _commit(directory, more[0], {20: [0.5]}, [0.5])
    _commit(directory, both, {}, [2.0, 1.0], parts=[half.id for half in halves])
    _commit(directory, halves[0], {0: [4.0], 10: [2.0]}, [2.0])
    _commit(directory, halves[1], {0: [3.0], 10: [1.0]}, [1.0])
    return directory


def _commit(directory, block, losses, final, *, parts=()):
    folder = directory / "blocks" / write_block(directory, block)
    attempt = Run(folder / "attempts" / "mine")
    attempt.path.mkdir(parents=True)
    for step, values in losses.items():
        attempt.record(step, step / 10, {"validation/loss": values})
    result = BlockResult(
        trials=[trial[:2] for trial in block.trials],
        metrics={"validation/loss": final, "test/loss": final},
        diverged=[False] * len(final),
        collapsed=[False] * len(final),
        steps=10 * block.end,
        seconds=1.0,
        parts=list(parts),
        attempt="mine",
    )
    write_json(folder / "result.json", result._asdict())


TRIAL_0 = {0: {"validation/loss": 4.0},
           10: {"validation/loss": 2.0, "test/loss": 2.0, "diverged": 0.0}}  # fmt: skip
TRIAL_3 = {0: {"validation/loss": 3.0},
           10: {"validation/loss": 1.0, "test/loss": 1.0, "diverged": 0.0},
           20: {"validation/loss": 0.5, "test/loss": 0.5, "diverged": 0.0}}  # fmt: skip


def test_tensorboard_shows_every_seed_of_a_run(run):
    exported = export(run.path, to="tensorboard")
    assert exported.look == f"tensorboard --logdir {run.path}/tensorboard"
    assert exported.curves == 2
    place = run.path / "tensorboard" / run.path.name
    assert _scalars(place / "seed-5") == _rounded(SEED_5)
    assert _scalars(place / "seed-6") == _rounded(SEED_6)
    assert _setting(place / "seed-6") == {"seed": 6.0}


def test_tensorboard_shows_every_trial_of_a_sweep_over_all_its_rungs(sweep, tmp_path):
    export(sweep, to="tensorboard", out=tmp_path / "out")
    place = tmp_path / "out" / sweep.name
    assert _scalars(place / "0000" / "seed-5") == TRIAL_0
    assert _scalars(place / "0003" / "seed-5") == TRIAL_3
    assert _setting(place / "0003" / "seed-5") == {"penalty.strength": 0.25, "seed": 5.0}
    assert not (sweep / "tensorboard").exists()


def test_what_shows_it_can_be_pasted_into_a_shell(run, tmp_path):
    exported = export(run.path, to="tensorboard", out=tmp_path / "my curves")
    assert shlex.split(exported.look)[-1] == str(tmp_path / "my curves")


def test_exporting_again_replaces_what_was_there_and_nothing_else(run):
    place = run.path / "tensorboard" / run.path.name / "seed-5"
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    for _ in range(2):
        export(run.path, to="tensorboard")
    assert len(list(place.glob("events.out.tfevents.*"))) == 1
    assert _scalars(place) == _rounded(SEED_5)
    assert (place / "notes.txt").read_text() == "mine"


def test_wandb_gets_an_offline_run_per_trial_and_keeps_its_id(sweep, monkeypatch, tmp_path):
    package = viewers.wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    for _ in range(2):
        exported = export(sweep, to="wandb", out=tmp_path)
    assert exported.look == f"wandb sync {tmp_path}/wandb/offline-run-*"
    assert len(list(tmp_path.glob("wandb/*"))) == 2
    first, second, again, _ = package.runs
    assert first.options["id"] == again.options["id"] != second.options["id"]
    assert dict(first.points) == TRIAL_0 and dict(second.points) == TRIAL_3
    assert second.options["config"]["penalty"]["strength"] == 0.25
    assert second.options["config"]["seed"] == 5
    assert second.options["name"] == f"{sweep.name}/0003/seed-5"
    assert (second.options["project"], second.options["mode"]) == ("toy-net", "offline")
    assert all(run.finished for run in package.runs)


def test_trackio_gets_a_run_per_trial_in_place_of_an_earlier_one(run, monkeypatch, capsys):
    folder = run.path / "trackio"
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    package = viewers.trackio()
    monkeypatch.setitem(sys.modules, "trackio", package)
    for _ in range(2):
        export(run.path, to="trackio")
    assert capsys.readouterr().out == ""  # stdout is for data
    left = package.Api().runs("toy-net")
    assert [one.name for one in left] == [f"{run.path.name}/seed-{seed}" for seed in (5, 6)]
    assert [dict(one.points) for one in left] == [SEED_5, SEED_6]
    with pytest.raises(UserError, match="trackio was loaded before"):
        export(run.path, to="trackio", out=run.path / "elsewhere")


def test_the_command_prints_where_the_curves_are(run, capsys):
    assert main(["export", str(run.path), "--to", "tensorboard", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["trials"] == 2 and row["look"] == f"tensorboard --logdir {row['folder']}"


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("tensorbord", "did you mean 'tensorboard'?"),
        ("excel", "there are: tensorboard, wandb, trackio"),
    ],
)
def test_other_viewers_are_refused(run, to, message):
    with pytest.raises(UserError) as refusal:
        export(run.path, to=to)
    assert message in refusal.value.message
    assert refusal.value.exit_code == USAGE


@pytest.mark.parametrize("to", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_one_line_that_says_what_to_install(run, monkeypatch, to):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"is not installed: pip install '"):
        export(run.path, to=to)


def test_a_directory_without_curves_is_refused_with_those_below_it(run, tmp_path):
    with pytest.raises(UserError, match=f"there is {run.path}") as refusal:
        export(tmp_path, to="tensorboard")
    assert refusal.value.exit_code == MISSING
    with pytest.raises(UserError, match="is no run that recorded anything"):
        export(tmp_path / "nothing", to="tensorboard")
    (tmp_path / "begun" / "blocks").mkdir(parents=True)
    with pytest.raises(UserError, match="begun has no finished block") as refusal:
        export(tmp_path / "begun", to="tensorboard")
    assert refusal.value.exit_code == MISSING


def test_an_unfinished_run_has_the_curves_so_far(run):
    (run.path / "status.json").unlink()
    (run.path / "summary.json").unlink()
    export(run.path, to="tensorboard")
    found = _scalars(run.path / "tensorboard" / run.path.name / "seed-5")
    assert found == {0: {"test/loss": 2.5}, 10: _rounded({0: {"test/loss": 1.5, "rate": 0.1}})[0]}


def _events(place):
    """What TensorBoard reads: each record is its length, a checksum, the event and another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboardX.proto.event_pb2 import Event
    (path,) = place.glob("events.out.tfevents.*")
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def _scalars(place):
    points = {}
    for event in _events(place):
        for value in event.summary.value:
            if not value.tag.startswith("_hparams_"):
                points.setdefault(event.step, {})[value.tag] = value.simple_value
    return points


def _setting(place):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    for event in _events(place):
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                stored = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                setting = stored.session_start_info.hparams
                return {key: one.number_value for key, one in setting.items()}
    return None


def _rounded(points):
    """In 32 bits."""
    return {
        step: {name: struct.unpack("f", struct.pack("f", v))[0] for name, v in point.items()}
        for step, point in points.items()
    }
