"""A run on disk: opened once, resumable at any instant, never done twice.

with open_run(config, data_sha256=dataset.sha256, root="runs", argv=sys.argv) as run:
    if run.complete:
        return run
    step, state = run.restore_checkpoint(state) or (0, state)
    ...
    run.record(step, epoch, {"test_accuracy": accuracy})  # first the metrics,
    run.save_checkpoint(step, state)  # then the state they belong to
    run.finish({"test_accuracy": accuracy})
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from experiments.config import ExperimentConfig, StudyConfig, config_hash, dump_yaml
from experiments.errors import DONE, FAILED, INTERRUPTED, PREEMPTED, UserError
from experiments.files import (
    append_line,
    disk_full_is_one_line,
    plain,
    read_json,
    replacing,
    write_json,
    write_text,
)
from experiments.interruption import interruption
from experiments.provenance import code_hash, now, session, stamp

__all__ = ["Run", "interruption", "open_run"]

STATES = {PREEMPTED: "preempted", INTERRUPTED: "interrupted"}


def open_run(
    config: ExperimentConfig | StudyConfig,
    *,
    data_sha256: str,
    root: str | Path = "runs",
    argv: Sequence[str],
) -> Run:
    """Open the run of this config, code and data: finished, resumed, or new.

    The directory is `root/<config.name>/<utc>-<hash12>`. A finished one is returned with
    `complete` set and is not to be run again; an unfinished one has `resumed` set. Raises
    `UserError` (2) while another process works on the same run.
    """
    hashes = {"config": config_hash(config), "code": code_hash(), "data": data_sha256}
    key = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()[:12]
    folder = Path(root) / config.name
    found = _latest(folder, key)
    if found is not None and _state(found) == "complete":
        return Run(found)
    lock = _lock(folder, key)
    try:
        found = _latest(folder, key)  # again: it may have appeared before the lock was ours
        directory = found or folder / f"{now():%Y%m%dT%H%M%SZ}-{key}"
        run = Run(directory, resumed=found is not None, lock=lock)
        if not run.complete:
            _describe(run, config, hashes, argv)
    except BaseException:
        lock.close()
        raise
    return run


class Run:
    """One run's directory; every write is whole or absent, whenever the process ends."""

    def __init__(self, path: Path, *, resumed: bool = False, lock: IO[str] | None = None) -> None:
        self.path = Path(path)
        self.resumed = resumed
        self._lock = lock

    @property
    def complete(self) -> bool:
        """Whether the run finished; its results are on disk."""
        return _state(self.path) == "complete"

    @property
    def summary(self) -> dict[str, Any]:
        """What `finish` was given; empty before."""
        return read_json(self.path / "summary.json")

    @property
    def provenance(self) -> dict[str, Any]:
        """Hashes, git, versions, device and settings of the run, and of its resumptions."""
        return read_json(self.path / "provenance.json")

    def annotate(self, **facts: Any) -> None:
        """Add facts only the trainer knows (say, whether seeds were vmapped) to the provenance."""
        write_json(self.path / "provenance.json", {**self.provenance, **facts})

    def record(self, step: int, epoch: float, metrics: Mapping[str, Any]) -> None:
        """Append one line of per-seed metrics; call it before the checkpoint of the same step.

        A value is a scalar or one number per seed; what is not finite is stored as null.
        """
        values = {name: _per_seed(name, value) for name, value in metrics.items()}
        line = {"step": int(step), "epoch": float(epoch), "metrics": values}
        append_line(self.path / "metrics.jsonl", json.dumps(plain(line)))

    def history(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Each metric's `(steps [t], values [t, seeds])`; null reads as NaN."""
        rows: dict[str, list[tuple[int, list[float]]]] = {}
        for line in self._metric_lines():
            for name, values in line["metrics"].items():
                numbers = [math.nan if value is None else value for value in values]
                rows.setdefault(name, []).append((line["step"], numbers))
        return {
            name: (np.array([step for step, _ in row]), np.array([v for _, v in row], float))
            for name, row in rows.items()
        }

    def save_array(self, name: str, **arrays: Any) -> Path:
        """Write `arrays/<name>.npz`, replacing an earlier one as a whole."""
        path = self.path / "arrays" / f"{name}.npz"
        named: Any = {key: np.asarray(array) for key, array in arrays.items()}
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **named)
        return path

    def load_array(self, name: str) -> dict[str, np.ndarray] | None:
        """Read `arrays/<name>.npz` back; None if it was never saved."""
        path = self.path / "arrays" / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    def save_checkpoint(self, step: int, tree: Any) -> None:
        """Write the training state of `step`; the last two are kept."""
        from experiments import checkpoint  # imports Orbax

        checkpoint.save(self.path / "checkpoints", int(step), tree)

    def restore_checkpoint(self, like: Any) -> tuple[int, Any] | None:
        """Read the newest checkpoint into the structure of `like`; None if there is none.

        Metrics recorded after it are dropped, so that the history goes on as if never cut.
        """
        from experiments import checkpoint  # imports Orbax

        found = checkpoint.restore(self.path / "checkpoints", like)
        reached = found[0] if found else -1
        newest = max(checkpoint.steps(self.path / "checkpoints"), default=-1)
        if reached < newest:
            self.log(f"the checkpoint of step {newest} cannot be read; going on from {reached}")
        elif found:
            self.log(f"going on from step {reached}")
        kept = [json.dumps(line) for line in self._metric_lines() if line["step"] <= reached]
        write_text(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in kept))
        return found

    def log(self, message: str) -> None:
        """Say something on stderr and keep it, with the time, in log.txt."""
        print(message, file=sys.stderr)
        append_line(self.path / "log.txt", f"{stamp()} {message}")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json and mark the run complete."""
        write_json(self.path / "summary.json", summary)
        self._set_status("complete", "", DONE)
        self._release()

    def fail(self, message: str, code: int = FAILED) -> None:
        """Mark the run failed, preempted or interrupted; its state stays for a resumption."""
        try:
            self._set_status(STATES.get(code, "failed"), message, code)
        except UserError:
            pass  # the disk is full: the earlier status.json stays, and a resumption goes on
        self._release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Mark the run by what ended it; a bug becomes one line, its traceback goes to log.txt."""
        if isinstance(error, UserError):
            self.fail(error.message, error.exit_code)
        elif isinstance(error, KeyboardInterrupt):
            self.fail("interrupted", INTERRUPTED)
        elif isinstance(error, Exception):
            self.fail(f"{type(error).__name__}: {error}", FAILED)
            raise UserError(self._keep_traceback(error), FAILED) from error
        self._release()

    def _keep_traceback(self, error: Exception) -> str:
        log = self.path / "log.txt"
        try:
            text = "".join(traceback.format_exception(error)).rstrip()
            append_line(log, f"{stamp()} {text}")
        except UserError:
            pass  # the disk is full: the cause is still chained to the exception
        first_line = (str(error).splitlines() or [""])[0]
        return (
            f"the run failed: {type(error).__name__}: {first_line}; its state is kept: "
            f"see {log}, then run the same command again"
        )

    def _metric_lines(self) -> Iterator[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        # A line without its end was being written when the process was killed.
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)

    def _set_status(self, state: str, message: str, exit_code: int | None) -> None:
        status = {"state": state, "message": message, "exit_code": exit_code, "updated": stamp()}
        write_json(self.path / "status.json", status)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _describe(
    run: Run,
    config: ExperimentConfig | StudyConfig,
    hashes: Mapping[str, str],
    argv: Sequence[str],
) -> None:
    """Write what the run is; a resumption adds its command and its machine."""
    for folder in ("checkpoints", "arrays", "figures"):
        (run.path / folder).mkdir(parents=True, exist_ok=True)
    write_text(run.path / "config.yaml", dump_yaml(config))
    append_line(run.path / "command.txt", shlex.join(argv))
    before, this = run.provenance, session()
    resumptions = [*before.get("resumed", []), this] if before else []
    first = before or {"sha256": dict(hashes), **this}
    write_json(run.path / "provenance.json", {**first, "resumed": resumptions})
    run._set_status("running", "", None)


def _latest(folder: Path, key: str) -> Path | None:
    return max(folder.glob(f"*Z-{key}"), default=None, key=lambda path: path.name)


def _lock(folder: Path, key: str) -> IO[str]:
    """Hold `folder/.<key>.lock`; the system lets go of it when the process ends, however it does.

    The file names its holder for the message only, so a stale one does no harm.
    """
    try:
        with disk_full_is_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stream = (folder / f".{key}.lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror}; give --runs a folder you can write in"
        ) from None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        holder = stream.read().strip() or "another process"
        stream.close()
        raise UserError(
            f"{holder} is working on this run in {folder}; wait for it or stop it, "
            "or give --runs another folder"
        ) from None
    except OSError:
        pass  # a file system without locks: better an unguarded run than none
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {platform.node()}")
    stream.flush()
    return stream


def _state(path: Path) -> str | None:
    return read_json(path / "status.json").get("state")


def _per_seed(name: str, value: Any) -> list[Any]:
    array = np.asarray(value)
    if array.ndim > 1:
        raise ValueError(
            f"metrics[{name!r}] has shape {array.shape}: expected a scalar or one number per seed; "
            "save_array keeps larger arrays"
        )
    return np.atleast_1d(array).tolist()
