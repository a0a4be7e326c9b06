"""A run is done once, goes on after any end as if it had not ended, and never half-writes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.config import DataConfig, ExperimentConfig, load_yaml
from experiments.errors import FAILED, INTERRUPTED, MISSING, PREEMPTED, USAGE, UserError
from experiments.runs import checkpoint, files, open_run, provenance
from experiments.runs.interruption import interruption
from spectral_jax._progress import progress

CONFIG = ExperimentConfig("fiedler/toy")
REPOSITORY = provenance.REPOSITORY


class State(NamedTuple):
    """What a trainer keeps: nested dicts, Optax's tuples, keys, numbers."""

    params: dict
    opt_state: tuple
    key: jax.Array
    step: jax.Array
    epoch: int
    nothing: None = None


def make_state(width=3, seed=0):
    values = np.random.default_rng(seed).normal(size=(5, 4, width)).astype(np.float32)
    params = {
        "layers": {"10": jnp.asarray(values), "2": jnp.ones((width,), jnp.bfloat16)},
        "with.dots/and slashes": jnp.asarray([True, False]),
        "empty": jnp.zeros((0, width)),
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(1e-3), optax.scale_by_schedule(lambda step: 1.0)
    )
    keys = jax.random.split(jax.random.key(seed), 5)
    return State(params, optimizer.init({"w": params["layers"]["10"]}), keys, jnp.int32(seed), seed)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert type(one) is type(other)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
        if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def reopen(tmp_path, monkeypatch):
    """Open the same run in the same place, as the same command would; git is not asked."""
    monkeypatch.setattr(provenance, "_git", lambda *command: " ".join(command))

    def reopen(config=CONFIG, data_sha256="data"):
        return open_run(
            config, entry=make_state, data_sha256=data_sha256, root=tmp_path, argv=["python", "a b"]
        )

    return reopen


def status(run):
    return json.loads((run.path / "status.json").read_text())


# The directory


def test_a_new_run_writes_down_what_it_is(reopen, tmp_path, monkeypatch):
    monkeypatch.setenv("NPROC", "3")
    with reopen() as run:
        assert not run.resumed and not run.complete
        assert run.path.parent == tmp_path / "fiedler" / "toy"
        assert load_yaml(run.path / "config.yaml") == CONFIG
        assert (run.path / "command.txt").read_text() == "python 'a b'\n"
        assert status(run)["state"] == "running"
        facts = run.provenance
        assert facts["versions"]["jax"] == jax.__version__
        assert facts["dtype"] == "float32" and "cpu" in facts["device"]
        assert facts["threads"]["XLA"] == 3
        assert set(facts["sha256"]) == {"config", "code", "data"}
        assert "tests/test_runs.py" in facts["code"]
        assert facts["git"]["commit"] == "rev-parse HEAD"
        run.annotate(seed_axis="vmap")
        assert run.provenance == {**facts, "seed_axis": "vmap"}


def test_a_finished_run_is_not_run_again(reopen):
    with reopen() as run:
        run.finish({"test_accuracy": np.array([0.5, np.nan], np.float32), "n": 2})
    again = reopen()
    assert again.complete and again.path == run.path
    assert again.summary == {"test_accuracy": [0.5, None], "n": 2}
    assert (run.path / "command.txt").read_text().count("\n") == 1


def test_config_data_and_code_each_make_another_run(reopen, monkeypatch):
    with reopen() as run:
        run.finish({})
    with reopen(ExperimentConfig("fiedler/toy", data=DataConfig(batch_size=7))) as other:
        assert not other.resumed
    with reopen(data_sha256="other") as other:
        assert not other.resumed
    monkeypatch.setattr("experiments.runs.run.code_hash", lambda code: "changed")
    with reopen() as other:
        assert not other.resumed


def test_a_second_process_may_not_work_on_the_same_run(reopen):
    with reopen() as run:
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is working") as failure:
            reopen()
        assert failure.value.exit_code == USAGE
        with reopen(data_sha256="other"):
            pass
    with reopen() as again:
        assert again.resumed and again.path == run.path


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in .*give --runs a folder") as failure:
        open_run(CONFIG, entry=make_state, data_sha256="d", root=tmp_path / "file", argv=[])
    assert failure.value.exit_code == USAGE


def test_a_place_where_files_cannot_be_locked_is_refused(reopen, monkeypatch):
    def without_locks(stream, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("experiments.runs.run.fcntl.flock", without_locks)
    with pytest.raises(UserError, match="without file locks .*; give --runs a folder on a local"):
        reopen()


def test_the_names_of_new_folders_reach_the_disk(reopen, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    with reopen() as run:
        assert {tmp_path, run.path.parent, run.path} <= set(synced)


# Metrics


def test_history_gives_back_what_was_recorded(reopen):
    with reopen() as run:
        loss = np.float32([0.1, np.inf])
        run.record(0, 0, {"loss": loss, "rate": 1e-3})
        run.record(6, 0.5, {"loss": jnp.array([0.3, 0.4]), "nu_2": [1.0, np.nan]})
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[1])["metrics"]["nu_2"] == [1.0, None]
        history = run.history()
    steps, values = history["loss"]
    np.testing.assert_array_equal(steps, [0, 6])
    np.testing.assert_array_equal(values[0], [loss[0], np.nan])
    np.testing.assert_array_equal(history["rate"][1], [[1e-3]])
    np.testing.assert_array_equal(history["nu_2"][0], [6])


def test_a_metric_is_a_number_per_seed(reopen):
    with reopen() as run:
        with pytest.raises(ValueError, match=r"metrics\['spectrum'\] has shape \(2, 3\)"):
            run.record(0, 0, {"spectrum": np.zeros((2, 3))})
        assert run.history() == {}


def test_arrays_are_replaced_as_a_whole(reopen):
    with reopen() as run:
        path = run.save_array("fiedler_vector", vectors=jnp.ones((2, 3)), widths=[1, 2])
        with pytest.raises(ValueError):
            run.save_array("fiedler_vector", vectors=[[1], [1, 2]])
        with np.load(path) as kept:
            assert kept["vectors"].shape == (2, 3) and kept["widths"].tolist() == [1, 2]
        assert os.listdir(path.parent) == ["fiedler_vector.npz"]


# Going on


def train(run, upto, *, record_only_at=None):
    """Five metric lines and checkpoints whose values depend on the whole past."""
    start, state = run.restore_checkpoint(make_state()) or (0, make_state())
    for step in range(start + 1, upto + 1):
        key, *_ = state.key
        state = state._replace(
            key=jax.random.split(key, 5), step=state.step + 1, epoch=state.epoch + 1
        )
        noise = jax.vmap(jax.random.uniform)(state.key)
        run.record(step, step / 2, {"noise": noise})
        if step == record_only_at:
            return
        run.save_checkpoint(step, state)


def test_a_run_cut_between_metrics_and_checkpoint_ends_as_if_never_cut(reopen):
    with reopen(data_sha256="uncut") as whole:
        train(whole, 5)
        expected = (whole.path / "metrics.jsonl").read_bytes()
    with reopen() as run:
        train(run, 5, record_only_at=3)
        with (run.path / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 4, "epo')  # what a kill in the middle of a line leaves
        assert run.history()["noise"][0].tolist() == [1, 2, 3]
    with reopen() as run:
        assert run.resumed
        train(run, 5)
        assert (run.path / "metrics.jsonl").read_bytes() == expected
        assert len(run.provenance["resumed"]) == 1
        assert (run.path / "command.txt").read_text().count("\n") == 2


HARMS = (
    (lambda text: text + b"\0" * 50, "dropping what is later than step 2"),
    (lambda text: text + b'{"step": 3, "epo', "dropping what is later than step 2"),
    (lambda text: text.replace(b"0.", b"1.", 1), "was cut or damaged"),
    (lambda text: text.replace(b"metrics", b"metrucs", 1), "was cut or damaged"),
    (lambda text: text.split(b"\n")[0] + b"\n", "was cut or damaged"),
    (lambda text: b"[1]\n\xff\n", "was cut or damaged"),
    (lambda text: None, "was cut or damaged"),
)


def test_a_damaged_history_comes_back_from_the_checkpoint(reopen, capsys):
    with reopen() as run:
        train(run, 2)
        metrics = run.path / "metrics.jsonl"
        recorded = metrics.read_bytes()
    for harm, said in HARMS:
        harmed = harm(recorded)
        metrics.unlink() if harmed is None else metrics.write_bytes(harmed)
        with reopen() as run:
            assert run.restore_checkpoint(make_state())[0] == 2
        assert metrics.read_bytes() == recorded
        assert said in capsys.readouterr().err


def test_a_damaged_history_is_one_line_to_who_reads_it(reopen):
    with reopen() as run:
        run.record(0, 0, {"loss": 1.0})
        for line in ("[1]", "5", '{"step": 1}', "\0", '{"step": 1, "metrics": {"loss": 2}}'):
            (run.path / "metrics.jsonl").write_text(f"{line}\n")
            with pytest.raises(UserError, match="metrics.jsonl is damaged or was edited; run the"):
                run.history()


DAMAGES = {
    "list": b"[]",
    "text": b'"complete"',
    "no keys": b"{}",
    "wrong types": b'{"state": 3, "sha256": [], "resumed": 5}',
    "other state": b'{"state": "complete"}',
    "NUL": b"\0" * 99,
    "nested": b"[" * 100_000,
    "not UTF-8": b"\xff",
    "empty": b"",
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_file_of_the_wrong_kind_is_one_line_and_nothing_is_overwritten(content, reopen):
    with reopen() as run:
        train(run, 1)
    for name, remedy in (
        ("status.json", "remove that file to go on from the last checkpoint"),
        ("provenance.json", f"remove {run.path} to start again"),
    ):
        path = run.path / name
        whole = path.read_bytes()
        path.write_bytes(content)
        before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        with pytest.raises(UserError, match="is damaged or was edited; ") as failure:
            reopen()
        assert failure.value.exit_code == USAGE and failure.value.message.endswith(remedy)
        assert before == {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        path.write_bytes(whole)
    with reopen() as run:
        assert run.resumed


def test_a_digit_that_changed_is_not_believed(reopen):
    with reopen() as run:
        run.annotate(threads=4)
        path = run.path / "provenance.json"
        path.write_text(path.read_text().replace('"threads": 4', '"threads": 8'))
        with pytest.raises(UserError, match="provenance.json is damaged or was edited"):
            run.annotate(seed_axis="vmap")


def test_a_resumption_without_its_provenance_is_refused(reopen):
    with reopen() as run:
        train(run, 1)
    (run.path / "provenance.json").unlink()
    with pytest.raises(UserError, match="provenance.json is missing, damaged or was edited"):
        reopen()


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "arrays/w.npz"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"{}\n")])
def test_a_finished_run_whose_results_changed_is_not_read(name, harm, reopen):
    with reopen() as run:
        run.record(0, 0, {"loss": 1.0})
        run.save_array("w", w=[1])
        run.finish({"loss": [1.0]})
    (run.path / "arrays" / "mine.npz").write_bytes(b"beside them")
    assert reopen().complete
    harm(run.path / name)
    with pytest.raises(UserError, match=f"{name} is missing, damaged or was edited; remove .* to"):
        reopen()


def test_a_finished_run_without_its_status_goes_on_from_its_last_checkpoint(reopen):
    with reopen() as run:
        train(run, 2)
        run.finish({"loss": 1.0})
    (run.path / "status.json").unlink()
    with reopen() as again:
        assert again.path == run.path and again.restore_checkpoint(make_state())[0] == 2


def test_a_damaged_array_is_one_line(reopen):
    with reopen() as run:
        path = run.save_array("w", w=np.arange(100))
        content = path.read_bytes()
        for harmed in (content[:-50], content.replace(b"\x07\0\0\0", b"\x08\0\0\0"), b""):
            path.write_bytes(harmed)
            with pytest.raises(UserError, match="w.npz is missing, damaged or was edited"):
                run.load_array("w")
        path.unlink()
        assert run.load_array("w") is None


def test_without_a_checkpoint_a_resumption_starts_over(reopen):
    with reopen() as run:
        run.record(1, 1, {"loss": 1.0})
    with reopen() as run:
        assert run.resumed
        assert run.restore_checkpoint(make_state()) is None
        assert run.history() == {}


@pytest.mark.parametrize(
    ("failure", "state", "code"),
    [
        (UserError("stopped", PREEMPTED), "preempted", PREEMPTED),
        (UserError("no space left", FAILED), "failed", FAILED),
        (KeyboardInterrupt(), "interrupted", INTERRUPTED),
    ],
)
def test_what_ends_a_run_is_in_its_status(reopen, failure, state, code):
    with pytest.raises(type(failure)):
        with reopen() as run:
            raise failure
    assert (status(run)["state"], status(run)["exit_code"]) == (state, code)
    with reopen() as run:
        assert run.resumed and status(run)["state"] == "running"


def test_a_bug_becomes_one_line_and_its_traceback_is_kept(reopen):
    with pytest.raises(UserError, match="ZeroDivisionError: .*; its state is kept") as failure:
        with reopen() as run:
            raise ZeroDivisionError("division\nby zero")
    assert failure.value.exit_code == FAILED and "\n" not in failure.value.message
    assert 'raise ZeroDivisionError("division' in (run.path / "log.txt").read_text()
    assert status(run)["message"] == "ZeroDivisionError: division\nby zero"


# Checkpoints


def test_a_checkpoint_gives_back_every_leaf_as_it_was(tmp_path):
    state = make_state(seed=3)
    checkpoint.save(tmp_path / "c", 7, state)
    step, restored, *_ = checkpoint.restore(tmp_path / "c", make_state(seed=4))
    assert step == 7
    assert_same(restored, state)
    np.testing.assert_array_equal(
        jax.vmap(jax.random.normal)(restored.key), jax.vmap(jax.random.normal)(state.key)
    )


def test_a_checkpoint_comes_back_sharded_as_asked(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    like = jax.device_put(jnp.arange(16.0), sharding)
    checkpoint.save(tmp_path / "c", 0, {"w": jnp.arange(16.0)})
    restored = checkpoint.restore(tmp_path / "c", {"w": like}).tree
    assert restored["w"].sharding == sharding
    np.testing.assert_array_equal(restored["w"], like)


def test_the_last_two_checkpoints_are_kept_in_order_of_steps(tmp_path):
    for step in (9, 10, 100):
        checkpoint.save(tmp_path / "c", step, {"step": step})
    assert checkpoint.steps(tmp_path / "c") == [10, 100]
    assert checkpoint.restore(tmp_path / "c", {"step": 0})[:3] == (100, {"step": 100}, b"")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: make_state(width=9), r"float32\[5, 4, 3\] there and float32\[5, 4, 9\] here"),
        (lambda s: s._replace(nothing=jnp.ones(2)), r"nothing is absent there and float32\[2\]"),
        (lambda s: s._replace(step=None), r"step is int32\[\] there and absent here"),
        (lambda s: s._replace(step=jnp.float32(0)), r"step is int32\[\] there and float32\[\]"),
        (lambda s: s._replace(key=s.key[:2]), r"key is uint32\[5, 2\] there and uint32\[2, 2\]"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, change, message):
    checkpoint.save(tmp_path / "run" / "checkpoints", 1, make_state())
    with pytest.raises(UserError, match=message) as failure:
        checkpoint.restore(tmp_path / "run" / "checkpoints", change(make_state()))
    assert failure.value.exit_code == USAGE
    assert f"remove {tmp_path / 'run'} to start again" in failure.value.message


def damage(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0")


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_is_replaced(reopen, capsys):
    with reopen() as run:
        train(run, 3)
        damage(run.path / "checkpoints" / "3")
    with reopen() as run:
        step, _ = run.restore_checkpoint(make_state())
        assert step == 2
        assert run.history()["noise"][0].tolist() == [1, 2]
        assert "step 3 cannot be read; going on from 2" in capsys.readouterr().err
        run.save_checkpoint(3, make_state())
        assert run.restore_checkpoint(make_state())[0] == 3


def test_one_flipped_bit_is_never_restored_as_another_state(tmp_path, capfd):
    saved = {step: make_state(seed=step) for step in (1, 2)}
    for step, state in saved.items():
        checkpoint.save(tmp_path, step, state, note=b"what belongs to it")
    whole = {path: path.read_bytes() for path in (tmp_path / "2").rglob("*") if path.is_file()}
    draw, fell_back = random.Random(0), 0
    for path in draw.choices(list(whole), weights=map(len, whole.values()), k=60):
        bit = draw.randrange(8 * len(whole[path]))
        changed = bytearray(whole[path])
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        step, restored, note, _ = checkpoint.restore(tmp_path, make_state())
        assert_same(restored, saved[step])
        assert note == b"what belongs to it"
        fell_back += step == 1
        path.write_bytes(whole[path])
    assert fell_back > 20
    assert capfd.readouterr().err == ""  # Orbax's own words would fill the screen


def test_what_another_process_saves_while_its_older_checkpoint_is_read_is_found(
    tmp_path, monkeypatch
):
    checkpoint.save(tmp_path, 1, {"step": 1})

    def meanwhile(stored):
        monkeypatch.undo()
        for step in (2, 3):
            checkpoint.save(tmp_path, step, {"step": step})  # and 1 is gone
        raise FileNotFoundError(tmp_path / "1")

    monkeypatch.setattr(checkpoint, "_unsealed", meanwhile)
    found = checkpoint.newest([tmp_path], {"step": 0})
    assert (found.step, found.tree) == (3, {"step": 3})


def test_a_save_drops_the_later_checkpoint_that_could_not_be_read(tmp_path):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, {"step": step})
    damage(tmp_path / "20")
    checkpoint.save(tmp_path, 15, {"step": 15})
    assert checkpoint.steps(tmp_path) == [10, 15]


def test_when_no_checkpoint_can_be_read_nothing_is_thrown_away(reopen):
    with reopen() as run:
        train(run, 2)
        for step in (1, 2):
            damage(run.path / "checkpoints" / str(step))
        with pytest.raises(UserError, match="no checkpoint .* can be read; remove") as failure:
            run.restore_checkpoint(make_state())
        assert failure.value.exit_code == MISSING
        assert run.history()["noise"][0].tolist() == [1, 2]


KILLED_WHILE_SAVING = """
import os, signal, sys, threading, time
from pathlib import Path
import jax.numpy as jnp
from experiments.runs import checkpoint

directory = Path(sys.argv[1])
checkpoint.save(directory, 1, {"w": jnp.ones((1500, 1000))})

def kill():
    while not any(file.is_file() for file in directory.glob("2.*/**/*")):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
checkpoint.save(directory, 2, {"w": jnp.zeros((1500, 1000))})
time.sleep(10)  # the save was faster than the kill: the test must not pass for that
"""


def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path / "c")],
        cwd=REPOSITORY, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any("2" in path.name for path in (tmp_path / "c").iterdir())
    step, restored, *_ = checkpoint.restore(tmp_path / "c", {"w": jnp.zeros((1500, 1000))})
    assert step == 1
    np.testing.assert_array_equal(restored["w"], 1)
    assert os.listdir(tmp_path / "c") == ["1"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError('RESOURCE_EXHAUSTED: Failed to write "d/0" [OS error 28: No space left on devi'),
    ],
)
def test_a_full_disk_keeps_the_earlier_state_and_says_so(reopen, monkeypatch, error):
    def fail(self, path, **options):
        Path(f"{path}.orbax-checkpoint-tmp").mkdir()
        raise error

    with pytest.raises(UserError, match="no space left .*the state of step 2 is kept") as failure:
        with reopen() as run:
            train(run, 2)
            monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", fail)
            run.save_checkpoint(3, make_state())
    assert failure.value.exit_code == FAILED
    assert status(run)["state"] == "failed"
    assert sorted(os.listdir(run.path / "checkpoints")) == ["1", "2"]
    monkeypatch.undo()
    with reopen() as run:
        assert run.restore_checkpoint(make_state())[0] == 2


def test_another_failure_of_a_save_is_not_called_a_full_disk(tmp_path, monkeypatch):
    def fail(self, path, **options):
        raise PermissionError("read-only")

    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", fail)
    with pytest.raises(PermissionError):
        checkpoint.save(tmp_path, 0, make_state())


def test_a_full_disk_leaves_metrics_and_arrays_whole(reopen, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with reopen() as run:
        run.record(0, 0, {"loss": 1.0})
        run.save_array("a", x=[1])
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        monkeypatch.setattr(files.os, "fsync", full)
        for write in (
            lambda: run.record(1, 1, {"loss": 2.0}),
            lambda: run.save_array("a", x=[2]),
            lambda: run.finish({"loss": 2.0}),
            lambda: run.annotate(seed_axis="vmap"),
        ):
            with pytest.raises(UserError, match="the state saved so far is kept") as failure:
                write()
            assert failure.value.exit_code == FAILED
        run.fail("no space left")  # cannot be written either, and must not hide the cause
        after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        assert after == before


# Stopping


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, PREEMPTED), (signal.SIGINT, INTERRUPTED)]
)
def test_a_signal_is_a_flag_until_the_state_is_saved(number, code):
    before = signal.getsignal(number)
    with interruption() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        error = stop.error(step=300)
    assert error.exit_code == code
    assert "the state of step 300 is kept: run the same command again" in error.message
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), interruption() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_outside_the_main_thread_signals_stay_as_they_are():
    seen = []

    def work():
        with interruption() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


# Progress


def test_progress_is_silent_where_nobody_watches(capsys):
    with progress(3, "training") as advance:
        advance(2, note="accuracy 0.9")
    assert capsys.readouterr() == ("", "")


def test_progress_shows_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(3, "training", done=1) as advance:
        advance(2, note="accuracy 0.9")
    out, err = capsys.readouterr()
    assert out == "" and "training" in err and "3/3" in err and "accuracy 0.9" in err
