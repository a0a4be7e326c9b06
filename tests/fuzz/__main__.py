"""Two processes that work through the targets, and what they find."""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from tests.fuzz.targets import TARGETS, attempt, seeds

SECONDS, MEGABYTES = 10, 1024  # that an input may take
PATIENCE = {"hdf5": 3, "keras": 3, "orbax": 5}  # shares of the time: each input starts a process
SLICE = 15  # seconds that a process spends on a target
GRACE = 60  # seconds after which a silent process hangs
PROCESSES = 2


def main() -> int:
    """Fuzz for some minutes; 0 if nothing was found, 3 if something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", "--format", choices=TARGETS, action="append")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this input, and no other")
    parser.add_argument("--work", nargs=2, metavar=("FIRST", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.work:
        _work(names[0], options.seed, int(options.work[0]), float(options.work[1]))
        return 0
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            attempt(names[0], options.seed, options.only, Path(folder))
        return 0
    return _Campaign(names, options.seed, 60 * options.minutes).run()


class _Campaign:
    """Slices of work, the shortest-served target first, on a few processes at once."""

    def __init__(self, names: list[str], seed: int, seconds: float):
        self.names, self.seed, self.end = names, seed, time.monotonic() + seconds
        self.lock = threading.Lock()
        self.served: Counter[str] = Counter()  # slices
        self.inputs: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self) -> int:
        threads = [threading.Thread(target=self._serve) for _ in range(PROCESSES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in self.names:
            print(f"{name}: {self.inputs[name]} inputs")
        print(f"{self.inputs.total()} inputs, {len(self.failures)} failures")
        return 3 if self.failures else 0

    def _serve(self) -> None:
        while (left := self.end - time.monotonic()) > 1:
            with self.lock:
                name = min(self.names, key=lambda name: self.served[name] / PATIENCE.get(name, 1))
                self.served[name] += 1
                # Numbers of its own for each slice, as another may work on the same target.
                first = 1_000_000 * self.served[name]
            self._slice(name, first, min(SLICE, left))

    def _slice(self, name: str, first: int, seconds: float) -> None:
        """One process, and another after one that died, each from where the last one was."""
        end, number = time.monotonic() + seconds, first
        while number >= 0 and time.monotonic() < end:
            number = self._process(name, number, end - time.monotonic())

    def _process(self, name: str, first: int, seconds: float) -> int:
        """Work from input ``first``; the next number if the process died of one, -1 if not."""
        command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--seed", str(self.seed)]
        command += ["--work", str(first), str(seconds)]
        number, folder = first, ""
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            watchdog = threading.Timer(seconds + GRACE, process.kill)
            watchdog.start()
            heard: list[str] = []
            for line in process.stdout or ():
                try:
                    report = json.loads(line)
                    number = report["number"]
                except (ValueError, TypeError, KeyError):
                    heard.append(line)
                    continue
                if "folder" in report:
                    self.inputs[name] += 1
                    folder = report["folder"]
                else:
                    self._found(name, number, folder, report["failure"])
            watchdog.cancel()
        if process.returncode == 0:
            return -1
        died = f"ended with {process.returncode}: {''.join(heard[-3:])!r}"
        self._found(name, number, folder, died)
        return number + 1

    def _found(self, name: str, number: int, folder: str, failure: str) -> None:
        again = f"--seed {self.seed} --target {name} --only {number}"
        with self.lock:
            self.failures.append(failure)
            print(f"{again}, kept in {folder}\n    {failure}", flush=True)


def _work(name: str, seed: int, first: int, seconds: float) -> None:
    """Be one of the processes: say the number of each input before it is tried."""
    report = sys.stdout
    sys.stdout = sys.stderr
    seeds(name)
    warnings.simplefilter("error")  # whoever types a command has no use for one
    _limit_memory()
    end = time.monotonic() + seconds
    number = first
    while time.monotonic() < end:
        folder = tempfile.mkdtemp(prefix=f"fuzz-{name}-")
        print(json.dumps({"number": number, "folder": folder}), file=report, flush=True)
        start = _used()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        try:
            attempt(name, seed, number, Path(folder))
            failure = None
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            failure = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        if _used() - start > SECONDS or _peak() > MEGABYTES:
            took = f"{_used() - start:.0f} s and {_peak():.0f} MB"
            failure = f"took {took}: {failure or 'else fine'}"
        if failure:
            print(json.dumps({"number": number, "failure": failure}), file=report, flush=True)
        else:
            shutil.rmtree(folder)
        number += 1


def _used() -> float:
    """Seconds of the processor, of this process and of the children that it waited for."""
    usage = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in usage)


def _peak() -> float:
    """The most megabytes at once, of this process or of a child."""
    status = Path("/proc/self/status").read_text()
    own = int(status.partition("VmHWM:")[2].split()[0])
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def _limit_memory() -> None:
    """Keep the machine alive: what takes this much is found before, by its peak."""
    resource.setrlimit(resource.RLIMIT_DATA, (4 * MEGABYTES << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
