"""Trials and batches over eight fake devices, and two processes that train as one."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.config import ExperimentConfig, apply_overrides, dump_yaml
from experiments.errors import PREEMPTED, UserError
from experiments.runs import checkpoint
from experiments.runs.processes import gathered, joined
from experiments.training.blocks import Trial
from experiments.training.devices import devices_of, here
from experiments.training.loading import task_of
from experiments.training.optimisers import hyper_of, optimizer_of, structure_of
from experiments.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = apply_overrides(
    ExperimentConfig("devices"),
    ["data.name=digits", "data.train_limit=64", "data.batch_size=16", "model.hidden=[8]",
     "optimizer.learning_rate=0.1", "train.measures=[]"],
)  # fmt: skip


@pytest.fixture(scope="module")
def trainer():
    task = task_of(CONFIG)
    optimizer = optimizer_of(structure_of(CONFIG), task.net, task.steps_per_epoch)
    return Trainer(task, optimizer)


def over(trainer, share, count):
    return trainer.over(devices_of(share, jax.devices()[:count]))


def trials(count):
    return [Trial(seed, {**hyper_of(CONFIG), "set": 0}) for seed in range(count)]


def trained(trainer, count, *, epochs=1):
    return trainer.train(trainer.start(trials(count)), epochs=epochs)


def assert_same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, gathered(found), gathered(wanted))


@pytest.fixture(scope="module")
def alone(trainer):
    """64 trials on one device, one after the other."""
    return trained(trainer, 64)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_trials_do_not_depend_on_how_many_devices_share_them(trainer, alone, count):
    spread = over(trainer, "trials", count)
    state = trained(spread, 64)
    assert_same(state, alone)
    assert len(state.key.sharding.device_set) == count
    np.testing.assert_array_equal(
        spread.evaluate(state)["accuracy"], trainer.evaluate(alone)["accuracy"]
    )


@pytest.mark.parametrize("count", [2, 4])
def test_trials_that_cannot_be_dealt_out_evenly_are_the_same_ones(trainer, alone, count):
    spread = over(trainer, "trials", count)
    state = trained(spread, 3)  # one short of even, and fewer than there are devices
    assert_same(state, jax.tree.map(lambda leaf: leaf[:3], alone))
    assert spread.items(state)["accuracy"].shape == (3, trainer.task.data["test"].size)


def text_of(trainer, state):
    """The program that trains a state, where its arrays and the data lie, as it is compiled."""
    given = state, trainer.task.data["train"], trainer._orders(state.key, 0)
    return trainer.program.trace(*given, trainer.axis, trainer._mesh).lower().compile().as_text()


def test_devices_that_share_trials_do_not_wait_for_each_other(trainer):
    spread = over(trainer, "trials", 4)
    assert "all-" not in text_of(spread, spread.start(trials(8)))


def test_a_device_without_a_pair_of_trials_has_dead_ones(trainer):
    # XLA removes a loop of one turn, and sums in another order then.
    assert [over(trainer, "trials", 4).width(count) for count in (1, 8, 9)] == [8, 8, 12]
    assert over(trainer, "batch", 4).width(1) == trainer.width(1) == 1


def test_a_shared_batch_gives_the_numbers_of_one_device(trainer, alone):
    spread = over(trainer, "batch", 8)
    start = spread.start(trials(2))
    assert "all-reduce" in text_of(spread, start)
    state = spread.train(start, epochs=1)
    for found, wanted in zip(
        jax.tree.leaves(here(state).params), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_allclose(found, wanted[:2], rtol=1e-4, atol=1e-6)
    test, of_alone = spread.evaluate(state), trainer.evaluate(alone)
    np.testing.assert_allclose(test["loss"], of_alone["loss"][:2], rtol=1e-5)
    assert spread.items(state)["loss"].shape == (2, trainer.task.data["test"].size)


def test_a_batch_that_devices_cannot_share_is_refused_with_sizes_that_they_can(trainer):
    with pytest.raises(UserError, match=r"batch_size = 16 .* 5 devices .*: set it to 15 or 20$"):
        over(trainer, "batch", 5)


def test_nothing_is_spread_where_nobody_asks(trainer):
    assert devices_of("none") is None
    assert trainer.over(None) is trainer


@pytest.mark.parametrize("share, fewer", [("trials", 1), ("trials", 2), ("batch", 1)])
def test_training_goes_on_on_other_devices(trainer, tmp_path, share, fewer):
    many, few = over(trainer, share, 8), over(trainer, share, fewer)
    state = trained(many, 8)
    checkpoint.save(tmp_path / "checkpoints", 4, state)
    found = checkpoint.restore(tmp_path / "checkpoints", few.start(trials(8))).tree
    assert_same(found, state)
    assert len(found.key.sharding.device_set) == fewer
    went_on, stayed = (each.train(start, epochs=1) for each, start in ((few, found), (many, state)))
    if share == "trials":
        assert_same(went_on, stayed)
    else:
        np.testing.assert_allclose(
            few.evaluate(went_on)["loss"], many.evaluate(stayed)["loss"], rtol=1e-4
        )


@pytest.mark.parametrize("where", ["", "host", "host:1234,2", "host:1234,2,2", "host,2,0"])
def test_a_place_among_processes_is_said_in_full(where, tmp_path):
    with pytest.raises(UserError, match="expected ADDRESS,COUNT,INDEX, as in"):
        with joined(where, tmp_path):
            pass


def test_a_port_that_another_has_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]},2,0"
        with pytest.raises(UserError, match=r"port \d+ is taken here: say another one"):
            with joined(where, tmp_path):
                pass


def test_several_processes_are_told_to_share(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"set train\.shard=trials or train\.shard=batch"):
        devices_of("none")


class Pair:
    """Two processes with two devices each, that run one command as one."""

    def __init__(self, folder: Path, environment: dict[str, str], *settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.processes = [
            subprocess.Popen(
                [*command(folder, *settings), "--distributed", f"{address},2,{index}"],
                env={**environment, "JAX_NUM_CPU_DEVICES": "2"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for index in range(2)
        ]  # fmt: skip

    def end(self) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of both; whoever hangs is ended."""
        try:
            said = [process.communicate(timeout=240) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(p.returncode, *each) for p, each in zip(self.processes, said, strict=True)]


def command(folder: Path, *settings: str) -> list[str]:
    experiments = [sys.executable, "-m", "experiments", "run", str(folder / "config.yaml")]
    return [*experiments, "--runs", str(folder / "runs"), *settings]


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 240
    while not any(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.1)


def alone_with(devices: int, folder: Path, environment: dict[str, str], *settings: str) -> str:
    """The same in one process; returns what it says on stderr."""
    environment = {**environment, "JAX_NUM_CPU_DEVICES": str(devices)}
    ended = subprocess.run(
        command(folder, *settings), env=environment, timeout=240, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def weights(folder: Path) -> dict[str, np.ndarray]:
    (run,) = folder.glob("runs/*/*Z-*")
    return dict(np.load(run / "arrays/parameters.npz"))


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("share", ["trials", "batch"])
def test_two_processes_are_stopped_and_one_goes_on(tmp_path, quick_environment, share):
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for folder in (disturbed, undisturbed):
        folder.mkdir()
        folder.joinpath("config.yaml").write_text(dump_yaml(CONFIG))
    settings = (f"train.shard={share}", "train.seeds=3", "train.epochs=600", "train.seed_axis=map",
                "train.evaluate_every=600")  # fmt: skip
    pair = Pair(disturbed, quick_environment, *settings)
    wait_for(disturbed, "runs/*/*/checkpoints/[0-9]*")
    pair.processes[1].send_signal(signal.SIGTERM)  # one is asked, both stop
    (first, _, said), (second, silent, _) = pair.end()
    assert (first, second) == (PREEMPTED, PREEMPTED), said
    assert "is kept: run the same command again" in said and silent == ""

    assert "going on from step" in alone_with(2, disturbed, quick_environment, *settings)
    alone_with(4, undisturbed, quick_environment, *settings)
    found, wanted = weights(disturbed), weights(undisturbed)
    for name in wanted:
        if share == "trials":
            np.testing.assert_array_equal(found[name], wanted[name])
        else:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_of_two_processes_the_first_writes_and_says_what_came_out(tmp_path, quick_environment):
    tmp_path.joinpath("config.yaml").write_text(dump_yaml(CONFIG))
    settings = ("train.shard=trials", "train.seeds=3", "train.epochs=1", "train.seed_axis=map")
    (first, said, errors), (second, silent, _) = Pair(
        tmp_path, quick_environment, *settings, "--json"
    ).end()
    assert (first, second) == (0, 0), errors
    (row,) = json.loads(said)
    assert silent == "" and [row["run"]] == [str(run) for run in tmp_path.glob("runs/*/*Z-*")]
    alone_with(4, tmp_path, quick_environment, *settings)  # it is the same run, and done
    assert len(list(tmp_path.glob("runs/*/*Z-*"))) == 1
