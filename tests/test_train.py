"""A run measures what it says, loses a seed without losing the rest, and resumes to the bit."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as cli
from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    dump_yaml,
)
from experiments.data import load
from experiments.errors import CHECK_FAILED, FAILED, PREEMPTED, USAGE, UserError
from experiments.runs import checkpoint, files, probes
from experiments.runs import run as runs
from experiments.training import loading, session, trainer
from experiments.training import train as training
from experiments.training.measures import MEASURES
from experiments.training.session import Session
from experiments.training.train import train
from experiments.training.trainer import Trainer, chunk_steps

REPOSITORY = Path(cli.__file__).parent.parent
EPOCH = 8  # steps
CONFIG = ExperimentConfig(
    "toy",
    data=DataConfig("digits", batch_size=10, train_limit=10 * EPOCH),
    model=ModelConfig("mlp", hidden=(8,)),
    optimizer=OptimizerConfig("sgd", 0.1, 0.9),
    train=TrainConfig(epochs=2, seeds=3, seed=5, seed_axis="map"),
)

pytestmark = pytest.mark.usefixtures("quick_compilation", "shared_programs")


@pytest.fixture(scope="module")
def shared_programs():
    """Runs of one configuration share their program, and an epoch has two chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CHUNK_STEPS", EPOCH // 2)
        patch.setattr(session, "SAVE_SECONDS", 0.0)  # a checkpoint every epoch
        patch.setattr(runs, "code_hash", lambda code: "this code")  # whoever edits it meanwhile
        yield


def change(section, **values):
    return dataclasses.replace(
        CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **values)}
    )


def go(root, config=CONFIG):
    return train(config, root=root, argv=["python", "-m", "experiments"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_programs, quick_compilation):
    """The run of CONFIG that nothing disturbed."""
    return go(tmp_path_factory.mktemp("whole"))


def status(root):
    return json.loads(next(root.glob("toy/*/status.json")).read_text())


def parameters(run):
    with np.load(run.path / "arrays" / "parameters.npz") as stored:
        return dict(stored)


def numbers(run):
    """A run's summary without the clock."""
    return {name: value for name, value in run.summary.items() if name != "seconds"}


def assert_same_run(ours, theirs):
    metrics = [(run.path / "metrics.jsonl").read_bytes() for run in (ours, theirs)]
    assert metrics[0] == metrics[1]
    assert numbers(ours) == numbers(theirs)
    for name, array in parameters(theirs).items():
        np.testing.assert_array_equal(parameters(ours)[name], array)


# A run


def test_pixels_are_not_moved_where_there_are_none():
    config = change("data", augment="crop_flip")
    text = SimpleNamespace(train_x=np.zeros((99, 5)), train_y=np.zeros(99))
    with pytest.raises(UserError, match="data.augment = crop_flip moves pixels, but digits is no"):
        loading._refuse_what_cannot_train(config, None, text)


def test_a_corpus_is_no_set_of_classes():
    corpus = SimpleNamespace(train_x=np.zeros((99, 5)), train_y=np.zeros((99, 5), int))
    with pytest.raises(UserError, match="has no class per example"):
        loading._refuse_what_cannot_train(CONFIG, None, corpus)


@pytest.mark.parametrize("objective", ["relative_l2", "next_token"])
def test_an_objective_that_labels_do_not_give_is_refused_before_anything_is_written(
    tmp_path, objective
):
    """Not even where a batch has as many examples as there are classes, and the shapes fit."""
    said = rf"{objective}.*(class labels \(11,\)|for 11 examples: return one number for each)"
    with pytest.raises(UserError, match=said) as failure:
        go(tmp_path, change("train", objective=objective))
    assert failure.value.exit_code == USAGE and not list(tmp_path.iterdir())


def test_a_run_evaluates_the_weights_it_keeps(whole):
    kept, data = parameters(whole), load("digits")
    assert kept["layers/0/kernel"].shape == (3, 64, 8)
    x = (data.test_x.reshape(-1, 64) - np.float64(data.shift)) * np.float64(data.scale)
    for seed in range(3):
        hidden = np.maximum(x @ kept["layers/0/kernel"][seed] + kept["layers/0/bias"][seed], 0)
        logits = hidden @ kept["layers/1/kernel"][seed] + kept["layers/1/bias"][seed]
        accuracy = (logits.argmax(1) == data.test_y).mean()
        assert whole.summary["test/accuracy"][seed] == pytest.approx(accuracy)
    assert min(whole.summary["final_train/accuracy"]) > 0.3  # and it has learned something
    assert whole.summary["diverged_seeds"] == whole.summary["collapsed_seeds"] == []
    assert whole.summary["steps"] == 2 * EPOCH


def test_a_run_records_every_epoch_and_the_start(whole):
    history = whole.history()
    for name in ("test/accuracy", "test/loss", "spectra/lambda_2", "spectra/nu_2"):
        steps, values = history[name]
        assert steps.tolist() == [0, EPOCH, 2 * EPOCH]
        assert values.shape == (3, 3) and np.isfinite(values).all()
    assert history["train/loss"][0].tolist() == [EPOCH, 2 * EPOCH]
    arrays = {path.stem for path in (whole.path / "arrays").iterdir()}
    assert arrays == {"parameters", "test_items", *(f"vectors-{n * EPOCH:08d}" for n in range(3))}
    assert whole.provenance["seed_axis"] == whole.summary["seed_axis"] == "map"


def test_evaluation_and_spectra_keep_their_own_time(tmp_path):
    run = go(tmp_path, change("train", epochs=4, evaluate_every=2, measure_every=3))
    steps = {name: (row[0] // EPOCH).tolist() for name, row in run.history().items()}
    assert steps["test/accuracy"] == [0, 2, 4]
    assert steps["spectra/lambda_2"] == [0, 3, 4]
    assert steps["train/loss"] == [2, 3, 4]


def test_schedules_may_be_of_steps_and_log_spaced(whole, tmp_path):
    wanted = {"evaluate_every": "6 steps", "measure_every": "3 log-spaced", "measures": ("bulk",)}
    run = go(tmp_path, change("train", **wanted))
    steps = {name: row[0].tolist() for name, row in run.history().items()}
    assert steps["test/accuracy"] == [0, 6, 12, 16]
    assert steps["spectra/sigma/layers/0/kernel"] == [0, 1, 4, 16]
    for name, array in parameters(whole).items():  # looking changes nothing
        np.testing.assert_array_equal(parameters(run)[name], array)


def sometimes(config, network):
    """A toy measure: of two numbers, one that the second seed does not have."""

    def take(state, data):
        seeds = jnp.arange(len(state.step))
        return {"toy/norm": seeds + 1.0, "toy/odd": jnp.where(seeds == 1, jnp.nan, 1.0)}, {}

    return take


def test_a_measure_is_a_function_and_a_line_and_its_nan_is_null_and_told(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(MEASURES, "toy", sometimes)
    run = go(tmp_path, change("train", epochs=1, measures=("toy",)))
    assert run.history()["toy/norm"][1].tolist() == [[1, 2, 3]] * 2
    assert run.summary["toy/odd"] == [1.0, None, 1.0]
    assert run.summary["not_measured"] == ["toy/odd"]
    assert '"toy/odd": [1.0, null, 1.0]' in (run.path / "metrics.jsonl").read_text()
    assert "no number could be had of toy/odd" in capsys.readouterr().err
    assert not any(name.startswith("spectra/") for name in run.summary)


def test_a_recorded_number_ends_training(whole, tmp_path):
    stops = {"measures": (), "measure_every": "3 steps", "stop": "train/loss above 0 for 2"}
    run = go(tmp_path, change("train", epochs=9, **stops))
    assert run.history()["train/loss"][0].tolist() == [3, 6]  # none before the first batch
    assert run.summary["steps"] == 6 and run.history()["test/accuracy"][0].tolist() == [0, 3, 6]


@pytest.mark.parametrize("decay, kept", [(0.0, set()), (0.5, {"moments"})])
def test_a_configuration_says_whether_moments_of_training_batches_are_kept(decay, kept):
    net = loading._network(change("train", features_decay=decay), load("digits"))
    assert jax.eval_shape(net.init, jax.random.key(0))[1].keys() == kept


@pytest.mark.parametrize("name", ["test/accuracy", "features/unseen/richness"])
def test_the_test_set_ends_no_training(tmp_path, name):
    with pytest.raises(UserError, match="set data.validation") as failure:
        go(tmp_path, change("train", stop=f"{name} above 0.9"))
    assert failure.value.exit_code == USAGE and not list(tmp_path.iterdir())


def test_a_complete_run_is_not_run_again(whole, monkeypatch):
    def never(*arguments):
        raise AssertionError("it was run again")

    monkeypatch.setattr(Trainer, "start", never)
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")}
    again = go(whole.path.parent.parent)
    assert again.complete and again.path == whole.path and again.summary == whole.summary
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")} == before


# Seeds that come to nothing


def poison(state, index):
    lost = jax.tree.map(lambda leaf: leaf.at[index].set(jnp.nan), state.params)
    return state._replace(params=lost)


def test_a_lost_seed_is_reported_and_leaves_the_others_as_they_were(
    whole, tmp_path, monkeypatch, capsys
):
    start = Trainer.start
    monkeypatch.setattr(Trainer, "start", lambda self, trials: poison(start(self, trials), 1))
    run = go(tmp_path)
    assert run.summary["diverged_seeds"] == [6] and run.summary["collapsed_seeds"] == []
    for name, (steps, values) in whole.history().items():
        ours = run.history()[name]
        np.testing.assert_array_equal(ours[0], steps)
        np.testing.assert_array_equal(ours[1][:, [0, 2]], values[:, [0, 2]])
    for name in ("test/accuracy", "test/loss", "final_train/accuracy", "spectra/lambda_2"):
        assert run.summary[name][1] is None
        assert run.summary[name][::2] == whole.summary[name][::2]
    warning = "warning: toy: seeds 6 diverged, their numbers are left out: lower optimizer."
    assert warning in capsys.readouterr().err
    assert warning in (run.path / "log.txt").read_text()
    (tmp_path / "toy.yaml").write_text(dump_yaml(CONFIG))
    assert cli.main(["run", str(tmp_path / "toy.yaml"), "--runs", str(tmp_path)]) == CHECK_FAILED
    assert "seeds 6 diverged" in capsys.readouterr().err


def test_when_all_seeds_are_lost_the_run_stops_and_keeps_the_last_good_state(
    whole, tmp_path, monkeypatch
):
    advance = Trainer.advance

    def from_the_second_epoch(self, state, most):
        lost = int(state.step[0]) >= EPOCH
        return advance(self, poison(state, slice(None)) if lost else state, most)

    monkeypatch.setattr(Trainer, "advance", from_the_second_epoch)
    for _ in range(2):  # the same command fails the same way, it does not complete on NaN
        with pytest.raises(UserError, match="all 3 seeds diverged before step 12") as failure:
            go(tmp_path)
        assert failure.value.exit_code == FAILED and "\n" not in failure.value.message
        assert "state before it is kept: lower optimizer.learning_rate" in failure.value.message
        assert status(tmp_path)["state"] == "failed"
    monkeypatch.undo()
    assert_same_run(go(tmp_path), whole)


def test_a_penalty_that_is_far_too_strong_is_called_a_collapse(whole, tmp_path, capsys):
    run = go(tmp_path, change("penalty", name="l1", strength=1e3, mode="proximal"))
    assert run.summary["collapsed_seeds"] == [5, 6, 7] and run.summary["diverged_seeds"] == []
    warning = capsys.readouterr().err
    assert "seeds 5, 6, 7 are no better than the majority class" in warning
    assert "lower penalty.strength = 1000" in warning and "mode=proximal" not in warning
    np.testing.assert_array_equal(  # arms of a seed start from the same weights
        run.history()["test/loss"][1][0], whole.history()["test/loss"][1][0]
    )


def test_the_proximal_mode_is_advised_to_who_does_not_use_it():
    config = change("penalty", name="fiedler", strength=100.0)
    with pytest.raises(UserError, match="lower penalty.strength = 100, or set penalty.mode=prox"):
        training._refuse_total_divergence(config, {"train/loss": np.array([np.nan, np.inf])}, 1)


# Resuming


def test_a_preempted_run_goes_on_in_the_middle_of_an_epoch(whole, tmp_path, monkeypatch):
    advance = Trainer.advance

    def preempted(self, state, most):
        if state.step[0] == EPOCH:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, state, most)

    monkeypatch.setattr(Trainer, "advance", preempted)
    with pytest.raises(UserError, match=f"the state of step {EPOCH * 3 // 2} is kept") as failure:
        go(tmp_path)
    assert failure.value.exit_code == PREEMPTED
    monkeypatch.undo()
    assert_same_run(go(tmp_path), whole)


def test_a_stop_while_the_last_numbers_are_written_is_heeded_after_them(
    whole, tmp_path, monkeypatch
):
    finish = Session.final

    def stopped(self, run):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, run)

    monkeypatch.setattr(Session, "final", stopped)
    with pytest.raises(UserError, match="preempted") as failure:
        go(tmp_path)
    assert failure.value.exit_code == PREEMPTED
    assert_same_run(go(tmp_path), whole)


def test_a_resumption_keeps_the_seed_axis_that_was_chosen(whole, tmp_path, monkeypatch):
    def interrupted(self, state, most):
        raise KeyboardInterrupt

    config = change("train", seed_axis="auto")
    monkeypatch.setattr(probes, "_KNOWN", {})
    monkeypatch.setattr(Trainer, "faster_axis", lambda *given: "map")
    monkeypatch.setattr(Trainer, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, config)
    monkeypatch.undo()
    monkeypatch.setattr(probes, "_KNOWN", {})
    monkeypatch.setattr(Trainer, "faster_axis", lambda *given: "vmap")
    run = go(tmp_path, config)
    assert run.summary["seed_axis"] == run.provenance["seed_axis"] == "map"
    assert run.provenance["width"] == 3  # in turn, nothing is filled up
    assert numbers(run) == numbers(whole)


@pytest.mark.parametrize("seconds, pause", [(0.01, 2.0), (0.02, 2.0), (3.0, 300.0)])
def test_saving_takes_one_percent_of_the_time_at_most(seconds, pause, monkeypatch):
    clock = iter([0.0, seconds])
    monkeypatch.setattr(session, "SAVE_SECONDS", 2.0)
    training_now = SimpleNamespace(step=EPOCH, live={}, kept=-1)
    with monkeypatch.context() as patch:
        patch.setattr(session.time, "monotonic", lambda: next(clock))
        Session.save(training_now, SimpleNamespace(save_checkpoint=lambda step, state: None))
    assert training_now.pause == pytest.approx(pause) and training_now.saved == seconds


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, monkeypatch):
    def foreign(self, run, metrics):
        checkpoint.save(run.path / "checkpoints", 3, self.state._replace(step=jnp.zeros(())))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "record", foreign)
        go(tmp_path)
    with pytest.raises(UserError, match="belongs to another configuration: .* remove") as failure:
        go(tmp_path)
    assert failure.value.exit_code == USAGE
    assert status(tmp_path)["exit_code"] == USAGE


def test_a_full_disk_while_recording_keeps_the_state(whole, tmp_path, monkeypatch):
    write = runs.append_line

    def full(path, line):
        if path.name == "metrics.jsonl" and json.loads(line)["step"] == 2 * EPOCH:
            with files.disk_full_is_one_line(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        write(path, line)

    monkeypatch.setattr(runs, "append_line", full)
    with pytest.raises(UserError, match="state saved so far is kept: free some space") as failure:
        go(tmp_path)
    assert failure.value.exit_code == FAILED and status(tmp_path)["state"] == "failed"
    monkeypatch.undo()
    assert_same_run(go(tmp_path), whole)


KILLED_IN_THE_THIRD_EPOCH = """
import os, signal, sys
from experiments import __main__ as cli
from experiments.training import session
from experiments.training.trainer import Trainer

session.SAVE_SECONDS = 0
whole, cut, *words = sys.argv[1:]
assert cli.main([*words, "--runs", whole]) == 0
advance = Trainer.advance

def killed(self, state, most):
    in_the_third = state.step[0] == 2 * self.task.steps_per_epoch
    done = advance(self, state, most)
    if in_the_third:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

Trainer.advance = killed
cli.main([*words, "--runs", cut])
"""


@pytest.mark.slow  # 20 s of two processes; other tests interrupt runs and sweeps in both ways
def test_a_run_killed_while_training_ends_as_if_it_had_not_been(tmp_path, quick_environment):
    config = dataclasses.replace(change("penalty", name="fiedler", strength=0.1), name="toy")
    short = dataclasses.replace(config.train, epochs=4, seeds=2)
    (tmp_path / "toy.yaml").write_text(dump_yaml(dataclasses.replace(config, train=short)))
    words = ["run", str(tmp_path / "toy.yaml"), "--json"]
    roots = [str(tmp_path / "whole"), str(tmp_path / "cut")]
    shell = {
        "cwd": REPOSITORY,
        "capture_output": True,
        "text": True,
        "timeout": 300,
        "env": {
            **quick_environment,
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    }
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_THE_THIRD_EPOCH, *roots, *words], **shell
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole = runs.Run(Path(json.loads(killed.stdout)[0]["run"]))
    (unfinished,) = (tmp_path / "cut" / "toy").glob("*Z-*")
    assert checkpoint.steps(unfinished / "checkpoints") == [EPOCH, 2 * EPOCH]
    resumed = subprocess.run(
        [sys.executable, "-m", "experiments", *words, "--runs", roots[1]], **shell
    )
    assert resumed.returncode == 0 and "going on from step 16" in resumed.stderr
    assert_same_run(runs.Run(unfinished), whole)


# What cannot be trained


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("penalty", {"name": "fidler"}, "penalty.name = 'fidler' .*; did you mean 'fiedler'?"),
        ("model", {"name": "mpl"}, "model: unknown model name 'mpl': did you mean 'mlp'?"),
        ("model", {"name": "resnet", "depth": 9}, "model: depth"),
        ("model", {"hidden": (10**6, 10**6)}, "3 networks of mlp need .* GiB to train, this"),
        ("train", {"measures": ("spectre",)}, "'spectre' is no measure; did you mean 'spectra'?"),
        ("train", {"objective": "msee"}, "'msee' is no objective; did you mean 'mse'?"),
        ("train", {"measure_every": "2 days"}, "train.measure_every = '2 days': expected a numb"),
        ("data", {"name": "digit"}, "unknown data set 'digit'; did you mean digits?"),
        ("data", {"batch_size": 81}, "batch_size = 81 but there are 80 training examples: lower"),
        ("data", {"validation": 5000}, "data.validation=5000 do not fit into the 1437 training"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(section, values, message, tmp_path):
    with pytest.raises(UserError, match=message) as failure:
        go(tmp_path, change(section, **values))
    assert failure.value.exit_code == USAGE and "\n" not in failure.value.message
    assert os.listdir(tmp_path) == []


# Small decisions


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 100, 101, 143, 150, 600, 1437])
def test_chunks_are_short_enough_to_stop_at_and_about_equal(steps_per_epoch, monkeypatch):
    monkeypatch.setattr(trainer, "CHUNK_STEPS", 100)
    length = chunk_steps(steps_per_epoch)
    count = -(-steps_per_epoch // length)
    assert 1 <= length <= 100 and count == -(-steps_per_epoch // 100)
    assert count * length - steps_per_epoch < count


@pytest.mark.parametrize("slow", ["map", "vmap"])
def test_the_faster_axis_is_the_one_that_took_less_time(slow, monkeypatch):
    clock = [0.0]
    seconds = {"map": [9.0, *[1.0] * 4], "vmap": [5.0, *[1.0] * 4]}
    seconds[slow] = [1.0, *[2.0] * 4]  # compilation, the first, does not count

    def advance(self, state, most):
        assert most == trainer.PROBE_STEPS
        clock[0] += seconds[self.axis].pop(0)
        return state, {}, most

    monkeypatch.setattr(Trainer, "start", lambda self, trials: {"w": jnp.ones(2)})
    monkeypatch.setattr(Trainer, "advance", advance)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: clock[0])
    task = SimpleNamespace(steps_per_epoch=50)
    fast = {"map": "vmap", "vmap": "map"}[slow]
    assert Trainer(task, optimizer=None).faster_axis([]) == fast
