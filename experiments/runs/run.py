"""A run on disk: opened once, resumable at any instant, never done twice.

with open_run(config, entry=train, data_sha256=..., root="runs", argv=sys.argv) as run:
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any

import numpy as np

from experiments.config import ExperimentConfig, StudyConfig, config_hash, dump_yaml, to_mapping
from experiments.errors import DONE, FAILED, UserError
from experiments.runs.code import changed_files, code_hash, executed, listed, words_of
from experiments.runs.files import (
    append_line,
    cannot_write_is_one_line,
    make_directory,
    plain,
    read_json,
    replacing,
    sha256_of,
    write_json,
    write_text,
)
from experiments.runs.interruption import WORDS, meaning
from experiments.runs.provenance import now, session, stamp

__all__ = ["Run", "open_run"]

# What a finished run is read for: status.json keeps the digests.
RESULTS = ("config.yaml", "provenance.json", "metrics.jsonl", "summary.json", "arrays/*.npz")


def open_run(
    config: ExperimentConfig | StudyConfig,
    *,
    entry: Callable[..., Any],
    data_sha256: str,
    root: str | Path = "runs",
    argv: Sequence[str],
    sources: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """Open the run of this config, code and data: finished, resumed, or new.

    The directory is `root/<config.name>/<utc>-<hash12>`. A finished one is returned with
    `complete` set and is not to be run again; an unfinished one has `resumed` set. Raises
    `UserError` (2) while another process works on the same run, and where a file of the run is not
    what was written: nothing is computed from it, and nothing is overwritten.

    `entry` is the function that computes the numbers; the code is what it reaches (`runs/code.py`).
    Where only that has changed since a finished run, a new one begins beside it and says so.
    `sources` are digests of files that no import reaches: a penalty that the config names by its
    file.
    """
    code = {**executed(entry, words=set(words_of(to_mapping(config)))), **sources}
    hashes = {"config": config_hash(config), "code": code_hash(code), "data": data_sha256}
    key = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()[:12]
    folder = Path(root) / config.name
    found = _latest(folder, key)
    if found is not None and _state(found) == "complete":
        _refuse_changed_results(found)
        return Run(found)
    lock = _lock(folder, key)
    try:
        found = _latest(folder, key)  # again: it may have appeared before the lock was ours
        directory = found or folder / f"{now():%Y%m%dT%H%M%SZ}-{key}"
        run = Run(directory, resumed=found is not None, lock=lock)
        if not run.complete:
            _describe(run, config, hashes, code, argv)
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
        return _read_object(self.path / "summary.json")

    @property
    def provenance(self) -> dict[str, Any]:
        """Hashes, git, versions, device and settings of the run, and of its resumptions."""
        return _read_object(self.path / "provenance.json")

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
        path = self.path / "metrics.jsonl"
        try:
            return _series(path.read_text(encoding="utf-8") if path.exists() else "")
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{path} is damaged or was edited; run the same command again to go on from the "
                "last checkpoint, which has its own copy of these lines"
            ) from None

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
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a damaged file makes NumPy say
            raise UserError(_damaged(path, f"remove {self.path} to start again")) from error

    def array(self, name: str) -> dict[str, np.ndarray]:
        """`load_array` of what must be there; `UserError` (2) if it is not."""
        found = self.load_array(name)
        if found is None:
            path = self.path / "arrays" / f"{name}.npz"
            raise UserError(_damaged(path, f"remove {self.path} to start again"))
        return found

    def save_checkpoint(self, step: int, tree: Any) -> None:
        """Write the training state of `step` and the metrics up to it; the last two are kept."""
        from experiments.runs import checkpoint  # imports Orbax

        checkpoint.save(
            self.path / "checkpoints", int(step), tree, note=_content(self.path / "metrics.jsonl")
        )

    def restore_checkpoint(self, like: Any) -> tuple[int, Any] | None:
        """Read the newest sound checkpoint into the structure of `like`; None if there is none.

        The metrics become those of its step: later lines are dropped, and lines that were lost or
        damaged come back, so that the history goes on as if never cut.
        """
        from experiments.runs import checkpoint  # imports Orbax

        newest = max(checkpoint.steps(self.path / "checkpoints"), default=-1)
        found = checkpoint.restore(self.path / "checkpoints", like)
        if found is None:
            self._set_metrics(b"", "the start")
            return None
        if found.step < newest:
            self.log(f"the checkpoint of step {newest} cannot be read; going on from {found.step}")
        else:
            self.log(f"going on from step {found.step}")
        self._set_metrics(found.note, f"step {found.step}")
        return found.step, found.tree

    def log(self, message: str) -> None:
        """Say something on stderr and keep it, with the time, in log.txt."""
        print(message, file=sys.stderr)
        append_line(self.path / "log.txt", f"{stamp()} {message}")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json and mark the run complete."""
        write_json(self.path / "summary.json", summary)
        results = {path for pattern in RESULTS for path in self.path.glob(pattern)}
        digests = {path.relative_to(self.path).as_posix(): sha256_of(path) for path in results}
        self._set_status("complete", "", DONE, sha256=digests)
        self._release()

    def fail(self, message: str, code: int = FAILED) -> None:
        """Mark the run failed, preempted or interrupted; its state stays for a resumption."""
        try:
            self._set_status(WORDS.get(code, "failed"), message, code)
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
            self.fail(*meaning(error))
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

    def _set_metrics(self, known: bytes, place: str) -> None:
        """Make metrics.jsonl what it was at `place`, and say what that takes."""
        path = self.path / "metrics.jsonl"
        there = _content(path)
        if not there.startswith(known):
            self.log(f"{path} was cut or damaged: its lines up to {place} are restored")
        elif there != known:
            self.log(f"{path}: dropping what is later than {place}; it will be recorded again")
        with replacing(path) as temporary:
            temporary.write_bytes(known)

    def _set_status(self, state: str, message: str, exit_code: int | None, **more: Any) -> None:
        status = {"state": state, "message": message, "exit_code": exit_code, "updated": stamp()}
        write_json(self.path / "status.json", {**status, **more})

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _describe(
    run: Run,
    config: ExperimentConfig | StudyConfig,
    hashes: Mapping[str, str],
    code: Mapping[str, str],
    argv: Sequence[str],
) -> None:
    """Write what the run is; a resumption adds its command and its machine."""
    for folder in ("checkpoints", "arrays", "figures"):
        make_directory(run.path / folder)
    before, this = run.provenance, session()
    if not before and any((run.path / "checkpoints").iterdir()):
        # It says which order of the seeds' sums was chosen: another one gives other last digits.
        remedy = f"remove {run.path} to start again"
        raise UserError(_damaged(run.path / "provenance.json", remedy))
    write_text(run.path / "config.yaml", dump_yaml(config))
    append_line(run.path / "command.txt", shlex.join(argv))
    resumptions = [*before.get("resumed", []), this] if before else []
    first = before or {"sha256": dict(hashes), "code": dict(code), **this}
    write_json(run.path / "provenance.json", {**first, "resumed": resumptions})
    run._set_status("running", "", None)
    if not before:
        _say_what_code_changed(run, hashes, code)


def _say_what_code_changed(run: Run, hashes: Mapping[str, str], code: Mapping[str, str]) -> None:
    """Name the files, if the newest finished run of this config and data had other code."""
    for path in sorted(run.path.parent.glob("*Z-*"), reverse=True):
        try:
            before = Run(path).provenance if _state(path) == "complete" else {}
        except UserError:
            continue  # damaged: whoever asks for that run is told
        theirs = before.get("sha256", {})
        if all(theirs.get(name) == hashes[name] for name in ("config", "data")):
            files = changed_files(before.get("code", {}), code)
            run.log(f"code changed since {path}, which is kept: {listed(files)}")
            return


def _latest(folder: Path, key: str) -> Path | None:
    return max(folder.glob(f"*Z-{key}"), default=None, key=lambda path: path.name)


def _lock(folder: Path, key: str) -> IO[str]:
    """Hold `folder/.<key>.lock`; the system lets go of it when the process ends, however it does.

    The file names its holder for the message only, so a stale one does no harm.
    """
    with cannot_write_is_one_line(folder):
        make_directory(folder)
        stream = (folder / f".{key}.lock").open("a+", encoding="utf-8")
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
    except OSError as error:
        stream.close()
        raise UserError(
            f"{folder} is on a file system without file locks ({error.strerror}), so two processes "
            "could spoil each other's runs; give --runs a folder on a local disk"
        ) from None
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {platform.node()}")
    stream.flush()
    return stream


def _state(path: Path) -> str | None:
    return _status(path).get("state")


def _status(path: Path) -> dict[str, Any]:
    return read_json(
        path / "status.json", remedy="remove that file to go on from the last checkpoint"
    )


def _read_object(path: Path) -> dict[str, Any]:
    return read_json(path, remedy=f"remove {path.parent} to start again")


def _damaged(path: Path, remedy: str) -> str:
    return f"{path} is missing, damaged or was edited; {remedy}"


def _refuse_changed_results(path: Path) -> None:
    """`UserError` (2) unless a finished run's results are the ones it wrote."""
    for name, digest in _status(path)["sha256"].items():
        if sha256_of(path / name) != digest:
            again = f"remove {path / 'status.json'} to end the run again from its last checkpoint"
            raise UserError(_damaged(path / name, f"{again}, or {path} to start again"))


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _series(text: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The lines of a metrics.jsonl, metric by metric."""
    rows: dict[str, list[tuple[int, list[float]]]] = {}
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            continue  # it was being written when the process was killed
        record = json.loads(line)
        for name, values in record["metrics"].items():
            numbers = [math.nan if value is None else value for value in values]
            rows.setdefault(name, []).append((record["step"], numbers))
    return {
        name: (np.array([step for step, _ in row]), np.array([v for _, v in row], float))
        for name, row in rows.items()
    }


def _per_seed(name: str, value: Any) -> list[Any]:
    array = np.asarray(value)
    if array.ndim > 1:
        raise ValueError(
            f"metrics[{name!r}] has shape {array.shape}: expected a scalar or one number per seed; "
            "save_array keeps larger arrays"
        )
    return np.atleast_1d(array).tolist()
