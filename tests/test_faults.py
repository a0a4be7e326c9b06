"""A sweep that was interrupted anywhere ends as if it had not been; cuts of `tests.faults`.

All points, and 200 kills: `python -m tests.faults points` and `... soak`, minutes each.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.runs.files import append_line, write_json
from tests.faults.injector import Disk, installed

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900
    )


def test_what_a_file_takes_is_counted_in_order_and_elsewhere_nothing_is(tmp_path):
    (tmp_path / "here").mkdir()
    with installed(Disk(tmp_path / "here")) as disk:
        write_json(tmp_path / "elsewhere", {})
        write_json(tmp_path / "here" / "file", {})
        os.link(tmp_path / "here" / "file", tmp_path / "here" / "other")
    done = (tmp_path / f"here.done-{os.getpid()}").read_text().split()[::2]
    assert done == ["write", "fsync", "rename", "fsync", "link"]
    assert disk.count == 5


def test_an_operation_fails_once_and_what_is_on_the_disk_stays(tmp_path):
    for at in range(1, 5):
        folder = tmp_path / str(at)
        folder.mkdir()
        with installed(Disk(folder, at, "EIO")), pytest.raises(OSError) as failure:
            write_json(folder / "file", {})
        assert failure.value.errno == errno.EIO
        # The last one waits for the new name, which is there.
        assert os.listdir(folder) == (["file"] if at == 4 else [])


def test_a_full_disk_takes_half_and_stays_full(tmp_path):
    log = tmp_path / "log"
    with installed(Disk(tmp_path, 1, "ENOSPC")):
        with open(log, "ab", buffering=0) as stream:
            assert stream.write(b"four") == 2
        for _ in range(2):
            with open(log, "ab", buffering=0) as stream, pytest.raises(OSError) as failure:
                stream.write(b"more")
            assert failure.value.errno == errno.ENOSPC
    assert log.read_bytes() == b"fo"


def test_a_line_that_could_not_be_added_leaves_no_part_of_it(tmp_path):
    log = tmp_path / "log"
    append_line(log, "first")
    for kind, said in ("ENOSPC", "no space left"), ("EIO", "Input/output"):
        with installed(Disk(tmp_path, 2, kind)), pytest.raises(Exception, match=said):
            append_line(log, "second")
        assert log.read_bytes() == b"first\n"


SLOPPY = """
import json, sys
from pathlib import Path
from tests.faults.points import every_point

def count(folder):
    path = folder / "number"
    number = json.loads(path.read_text()) if path.exists() else 100
    path.write_text(json.dumps(["so far", number]))

list(every_point(count, Path(sys.argv[1])))
"""


def test_a_program_that_leaves_half_of_a_file_is_found_out(tmp_path):
    done = run("-c", SLOPPY, str(tmp_path))
    assert "JSONDecodeError" in done.stderr
    assert "after Point(at=1, kind='die', operation='write number') the second run" in done.stderr


@pytest.mark.slow
def test_a_sweep_interrupted_at_any_operation_ends_as_if_it_had_not_been():
    done = run("-m", "tests.faults", "points", "--stride", "13")
    assert done.returncode == 0, done.stderr[-3000:]
    *points, last = done.stdout.splitlines()
    assert last == f"{len(points)} interrupted sweeps ended as the undisturbed one"
    for kind in ("die", "ENOSPC", "EIO"):
        for how in ("local", "local --halve 2@1", "processes:2", "processes:2 --halve 2@1"):
            assert any(line.startswith(f"{how}: {kind}") for line in points)


@pytest.mark.slow
@pytest.mark.soak
def test_a_sweep_that_is_killed_at_random_ends_as_if_it_had_not_been():
    done = run("-m", "tests.faults", "soak", "--kills", "3", "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "ended as the undisturbed one; kills: 3" in done.stdout
