"""A real sweep under random kills and damage, again and again, and what must be true at the end."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.damage import DAMAGES, truncate_checkpoint
from tests.faults.oracle import compare, outputs, refuse_bugs
from tests.faults.restarts import Restarts
from tests.faults.running import Process, Running

# Seconds between two events. A process needs some until it trains: some die before, some after.
PAUSES = (0.5, 25.0)
TICK = 0.1
DAMAGED = 0.5  # how often a file is spoilt before the next coordinator; else workers may be alive
STOPPED = 100.0  # seconds after which a halted worker goes on, whoever has its block
PATIENCE = 600.0  # seconds that a sweep may take once nothing disturbs it any more


class Halted(NamedTuple):
    """Since when a worker is halted, and all attempts at its block at that time."""

    since: float
    attempts: set[Path]


class Soak:
    """Sweeps, one after the other, until so many times something was killed."""

    def __init__(self, command: Sequence[str], folder: Path, *, kills: int, seed: int) -> None:
        self.command, self.folder, self.wanted = command, folder, kills
        self.random, self.began = random.Random(seed), time.monotonic()
        self.kills = self.rounds = 0
        self.running = Running(command, folder / "undisturbed")
        self.halted: dict[Process, Halted] = {}
        self.restarts = Restarts()

    def run(self) -> None:
        """Raises `AssertionError` at the first end that is not the undisturbed one.

        What was then on the disk stays there, and nothing goes on working on it.
        """
        try:
            self._run()
        finally:
            self._end_all()

    def _run(self) -> None:
        self.say("the undisturbed sweep")
        self.running.start()
        self._wait_for_the_end()
        expected = outputs(self._directory())
        while self.kills < self.wanted:
            self.rounds += 1
            self.running = Running(self.command, self.folder / f"round-{self.rounds}")
            self._disturb_one()
            refuse_bugs(self.running.output)
            compare(self._directory(), expected)
            self.say(f"round {self.rounds} ended as the undisturbed one; kills: {self.kills}")
            shutil.rmtree(self.running.root)
        self.say(f"{self.restarts.checked} attempts went on from a checkpoint of another one")

    def say(self, what: str) -> None:
        """A line of the log."""
        print(f"{time.monotonic() - self.began:8.1f} s  {what}", flush=True)

    def start(self) -> None:
        """One more coordinator."""
        self.say(f"coordinator {self.running.start()}")

    def kill(self, processes: Sequence[Process], what: str) -> None:
        """End processes as the system does when memory runs out."""
        for process in processes:
            process.send(signal.SIGKILL)
        if processes:
            self.kills += 1
            self.say(f"kill {self.kills}: {what} {' '.join(str(each.pid) for each in processes)}")

    def worker(self) -> list[Process]:
        """One at random; none if there is none."""
        found = [each for each in self.running.processes() if each.worker]
        return self.random.sample(found, min(1, len(found)))

    def coordinator(self) -> list[Process]:
        """One at random; none if there is none."""
        found = [Process(each.pid, worker=False) for each in self.running.coordinators]
        return self.random.sample(found, min(1, len(found)))

    def halt(self, process: Process) -> None:
        """Stop a process as a laptop's lid does; it goes on once its block was given away."""
        process.send(signal.SIGSTOP)
        self.halted[process] = Halted(time.monotonic(), self.running.attempts(process))
        self.say(f"halt worker {process.pid}")

    def _disturb_one(self) -> None:
        self.start()
        while self.kills < self.wanted:
            if self._ended(within=self.random.uniform(*PAUSES)):
                return
            self.random.choices(list(EVENTS), list(EVENTS.values()))[0](self)
        self.say("no more kills: the sweep is to end")
        self._wait_for_the_end()

    def _ended(self, *, within: float) -> bool:
        """Whether the sweep ends within so many seconds; coordinators that failed are replaced."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            self._continue_halted()
            if self.running.directory is not None:
                self.restarts.look(self.running.directory)
            for code in self.running.ended():
                self.say(f"a coordinator ended with code {code}")
                if code == 0:
                    self._end_all()
                    return True
            if not self.running.coordinators:
                if self.random.random() < DAMAGED:
                    self._damage()
                self.start()
            time.sleep(TICK)
        return False

    def _wait_for_the_end(self) -> None:
        self._continue_halted(now=True)
        assert self._ended(within=PATIENCE), f"{self.running.root}: no end in {PATIENCE:g} s"

    def _directory(self) -> Path:
        found = self.running.directory
        assert found is not None, f"{self.running.root} holds no sweep"
        return found

    def _damage(self) -> None:
        """Spoil a file, once nothing is alive any more."""
        self._end_all()
        damage, directory = self.random.choice(DAMAGES), self.running.directory
        if directory is None:
            return
        said = damage(directory, self.random)
        self.say(f"{damage.__name__}: {said}")
        if damage is truncate_checkpoint:
            self.restarts.spoil(directory / said)

    def _end_all(self) -> None:
        """Kill whatever is left, such as workers that outlived their coordinator."""
        while alive := self.running.processes():
            for process in alive:
                process.send(signal.SIGKILL)
            time.sleep(TICK)
            self.running.ended()
        self.halted.clear()

    def _continue_halted(self, *, now: bool = False) -> None:
        for process, halted in list(self.halted.items()):
            lost = self.running.attempts(process) > halted.attempts
            if lost or now or time.monotonic() > halted.since + STOPPED:
                del self.halted[process]
                process.send(signal.SIGCONT)
                fate = "was given away" if lost else "was kept"
                self.say(f"continue worker {process.pid}: its block {fate}")


def kill_worker(soak: Soak) -> None:
    soak.kill(soak.worker(), "worker")


def kill_coordinator(soak: Soak) -> None:
    soak.kill(soak.coordinator(), "coordinator")


def kill_both(soak: Soak) -> None:
    soak.kill([*soak.worker(), *soak.coordinator()], "worker and coordinator")


def kill_all(soak: Soak) -> None:
    soak.kill(soak.running.processes(), "everything:")


def halt_worker(soak: Soak) -> None:
    if not soak.halted:  # one at a time: somebody has to take over
        for process in soak.worker():
            soak.halt(process)


def second_coordinator(soak: Soak) -> None:
    if len(soak.running.coordinators) < 2:
        soak.start()


# How often each event happens, in relation to the others.
EVENTS: dict[Callable[[Soak], None], int] = {
    kill_worker: 6,
    kill_coordinator: 4,
    kill_both: 3,
    kill_all: 3,
    halt_worker: 2,
    second_coordinator: 2,
}
