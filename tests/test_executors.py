"""Where blocks run: whatever ends a worker, each block gets one result, and nobody waits for ever.

The blocks here are toys without JAX: they count to a number, a file for each step.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from unittest.mock import Mock

import pytest

from experiments.errors import DONE, FAILED, MISSING, PREEMPTED, USAGE, UserError
from experiments.sweep.committed import committed
from experiments.sweep.executors import parse, processes

REPOSITORY = Path(__file__).parent.parent
NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is missing")

TOY = """
import json, os, secrets, shutil, sys, time
from pathlib import Path

from experiments.errors import UserError
from experiments.runs.interruption import interruption


def run_block(directory, block_id, *, stop=None):
    folder = Path(directory) / "blocks" / block_id
    toy = json.loads((folder / "block.json").read_text())
    steps = [int(path.name) for path in folder.glob("attempts/*/[0-9]*")]
    attempt = folder / "attempts" / f"{os.getpid()}-{secrets.token_hex(4)}"
    attempt.mkdir(parents=True)
    (attempt / "from").write_text(str(max(steps, default=0)))
    if "exits" in toy:
        print("error: it broke again", file=sys.stderr)
        os._exit(toy["exits"])
    if "misses" in toy:
        raise UserError("its data are missing", 4)
    with interruption() as asked:
        for step in range(max(steps, default=0), toy["steps"]):
            time.sleep(0.05)
            (attempt / str(step + 1)).touch()
            if asked:
                raise asked.error(step + 1)
    (attempt / "result.json").write_text(json.dumps({"counted": toy["steps"]}))
    try:
        os.link(attempt / "result.json", folder / "result.json")
        return True
    except FileExistsError:
        shutil.rmtree(attempt)
        return False


def worker_command(directory, name, share):
    words = [str(directory), "--share", f"{share[0]}/{share[1]}", "--tied", name]
    return [sys.executable, str(Path(__file__).with_name("worker.py")), *words]


def read_plan(directory):
    pass


def refuse_other_code(plan, directory):
    pass


accept_machines = refuse_other_code
"""
# Every process that has it on its search path runs toys.
SITECUSTOMIZE = """
import os, sys
import toy
from experiments.sweep.executors import processes, worker
sys.modules["experiments.sweep.attempts"] = sys.modules["experiments.sweep.plan"] = toy
processes.worker_command = toy.worker_command
worker.STALLED = float(os.environ["TOY_STALLED"])
"""
# `python -m experiments sweep worker`, without what that imports.
WORKER = """
from experiments.runs.interruption import meaning, stop_on_signals
stop_on_signals()
import argparse, pathlib, sys
from experiments.errors import UserError
from experiments.sweep.executors import worker
parser = argparse.ArgumentParser()
parser.add_argument("directory", type=pathlib.Path)
worker.add_options(parser)
try:
    sys.exit(worker.command(parser.parse_args()))
except UserError as error:
    print("error:", error.message, file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt as error:
    sys.exit(meaning(error)[1])
"""


class Toys:
    """A sweep's directory of toys."""

    def __init__(self, directory, count, *, steps=2, **toy):
        self.directory, self.steps = directory, steps
        self.names = [f"block{number}" for number in range(count)]
        for name in self.names:
            folder = directory / "blocks" / name
            folder.mkdir(parents=True)
            (folder / "block.json").write_text(json.dumps({"steps": steps, **toy}))

    def attempts(self, name="block0"):
        """Where each attempt began to count, the earliest attempt first."""
        found = (self.directory / "blocks" / name / "attempts").glob("*/from")
        return [int(path.read_text()) for path in sorted(found, key=os.path.getmtime)]

    def at_work(self, name="block0"):
        """Wait until somebody counts, and return his process."""
        until(lambda: list(self.directory.glob(f"blocks/{name}/attempts/*/1")))
        attempts = self.directory.glob(f"blocks/{name}/attempts/*")
        return int(max(attempts, key=os.path.getmtime).name.partition("-")[0])

    def check_finished(self):
        results = [self.directory / "blocks" / name / "result.json" for name in self.names]
        assert {json.loads(path.read_text())["counted"] for path in results} == {self.steps}


def until(happened, seconds=30):
    latest = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < latest, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Make toys, here and in all processes that are started."""
    package = tmp_path / "package"
    package.mkdir()
    for name, text in {"toy": TOY, "sitecustomize": SITECUSTOMIZE, "worker": WORKER}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.syspath_prepend(str(REPOSITORY))
    monkeypatch.setenv("PYTHONPATH", f"{package}{os.pathsep}{REPOSITORY}")
    monkeypatch.setenv("TOY_STALLED", "60")
    specification = spec_from_file_location("toy", package / "toy.py")
    toy = module_from_spec(specification)
    specification.loader.exec_module(toy)
    for name in ("attempts", "plan"):
        monkeypatch.setitem(sys.modules, f"experiments.sweep.{name}", toy)
    monkeypatch.setattr(processes, "worker_command", toy.worker_command)
    return lambda count, **toy: Toys(tmp_path / "sweep", count, **toy)


def run(executor, toys):
    """The blocks in the order in which they were there."""
    with parse(executor) as place:
        return list(place.run(toys.directory, toys.names))


@contextlib.contextmanager
def in_the_background(happens):
    """Something that happens while the sweep runs."""
    thread = threading.Thread(target=happens)
    thread.start()
    yield
    thread.join()


def by_hand(toys, *options):
    """A worker that a person starts."""
    command = processes.worker_command(toys.directory, "", (0, 1))
    return subprocess.Popen([*command[: command.index("--share")], *options])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("proceses:2", "no executor 'proceses'; did you mean 'processes'?"),
        ("kubernetes", "there are: local, processes, slurm, ray"),
        ("processes:two", "write NAME, NAME:WORKERS or NAME:WORKERS,option=value"),
        ("processes:0", "it needs a worker, as in processes:1"),
        ("processes:2,threads=1", "takes a number alone"),
        ("local:2", "for several, processes:2"),
        ("slurm:4,partition=gpu", "there is no sbatch here; run this on a login node"),
        ("slurm:1,cluster=here", "neither slurm nor local"),
    ],
)
def test_what_is_no_executor_is_refused_in_a_line(text, says, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        parse(text)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "module", "says"),
    [
        ("ray:2", "ray", "pip install 'spectral-jax[ray]'"),
        ("slurm:2,cluster=local", "submitit", "pip install 'spectral-jax[slurm]'"),
    ],
)
def test_a_missing_package_is_named_with_what_to_type(text, module, says, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=re.escape(says)):
        parse(text)


@pytest.mark.parametrize("executor", ["local", "processes:2", "slurm:2,cluster=local"])
def test_every_block_is_run_once(executor, toys):
    sweep = toys(5)
    assert sorted(run(executor, sweep)) == sweep.names
    sweep.check_finished()
    assert [sweep.attempts(name) for name in sweep.names] == [[0]] * 5
    assert run(executor, sweep) == sweep.names  # at once: nothing is left to do


def test_workers_stay_for_the_blocks_that_come_later(toys):
    sweep = toys(4)
    with parse("processes:2") as executor:
        assert sorted(executor.run(sweep.directory, sweep.names[:2])) == sweep.names[:2]
        before = {worker._process.pid for worker in executor._running.values()}
        assert sorted(executor.run(sweep.directory, sweep.names)) == sweep.names
        assert {worker._process.pid for worker in executor._running.values()} == before
    assert len(list(sweep.directory.glob("workers/*.log"))) == 2


def test_a_killed_worker_is_replaced_and_its_block_goes_on_from_where_it_was(toys):
    sweep = toys(1, steps=30)

    def kill():
        os.kill(sweep.at_work(), signal.SIGKILL)

    with in_the_background(kill):
        assert run("processes:1", sweep) == sweep.names
    first, second = sweep.attempts()
    assert first == 0 < second


@pytest.mark.parametrize("executor", ["processes:2", "slurm:2,cluster=local"])
@pytest.mark.slow
def test_a_block_that_kills_three_workers_ends_the_sweep_with_the_log_named(
    executor, toys, monkeypatch
):
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)
    sweep = toys(1, exits=70)
    with pytest.raises(UserError, match="block block0 failed 3 times") as failed:
        run(executor, sweep)
    assert failed.value.exit_code == FAILED
    said, _, log = failed.value.message.partition("the last time with: ")[2].partition(" (")
    assert said == "it broke again"
    assert said in Path(log.rstrip(")")).read_text()
    assert sweep.attempts() == [0, 0, 0]


def test_workers_that_never_begin_end_the_sweep_with_their_last_words(toys, monkeypatch):
    broken = [sys.executable, "-c", "raise SystemExit('no module named experiments')"]
    monkeypatch.setattr(processes, "worker_command", lambda *_: broken)
    says = r"a worker \(blocks left: 1\) failed 3 times, .*: no module named experiments"
    with pytest.raises(UserError, match=says):
        run("processes:1", toys(1))


def test_without_file_locks_the_blocks_are_run_all_the_same(toys, monkeypatch):
    def lock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lock)
    sweep = toys(2)
    assert run("local", sweep) == sweep.names


@pytest.mark.parametrize(
    ("visible", "workers", "given"), [("4,5", 3, ["4", "5", "4"]), ("4", 2, ["4", "4"])]
)
def test_each_worker_process_is_given_one_of_several_gpus(
    visible, workers, given, monkeypatch, tmp_path
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    started = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, *, env, **_: started.append(env) or Mock()
    )
    (tmp_path / "workers").mkdir()
    for part in range(workers):
        processes.Process(tmp_path, f"worker{part}", (part, workers))
    assert [env["CUDA_VISIBLE_DEVICES"] for env in started] == given


@pytest.mark.parametrize("executor", ["local", "processes:2", "slurm:1,cluster=local"])
def test_what_no_other_attempt_can_mend_is_tried_once(executor, toys):
    sweep = toys(1, misses=True)
    with pytest.raises(UserError, match="its data are missing") as failed:
        run(executor, sweep)
    assert failed.value.exit_code == MISSING
    assert sweep.attempts() == [0]


@pytest.fixture
def interruptible():
    """Ctrl-C as Python takes it, also where the shell made this process ignore it (`pytest &`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_sweep_that_is_stopped_stops_its_workers_which_save(toys):
    sweep = toys(2, steps=100)

    def interrupt():
        sweep.at_work("block0"), sweep.at_work("block1")
        signal.raise_signal(signal.SIGINT)

    with in_the_background(interrupt), pytest.raises(KeyboardInterrupt):
        run("processes:2", sweep)
    logs = [log.read_text() for log in sweep.directory.glob("workers/*.log")]
    assert len(logs) == 2 and all("preempted; the state of step" in log for log in logs)
    assert not any(committed(sweep.directory, name) for name in sweep.names)


COORDINATOR = """
import sys
from pathlib import Path
from experiments.errors import UserError
from experiments.runs.interruption import meaning, stop_on_signals
from experiments.sweep.executors import parse
stop_on_signals()
try:
    with parse(sys.argv[1]) as executor:
        blocks = list(executor.run(Path(sys.argv[2]), sys.argv[3:]))
    print(*blocks)
except UserError as error:
    print(error.message)
    sys.exit(error.exit_code)
except KeyboardInterrupt as error:
    sys.exit(meaning(error)[1])
"""


def coordinate(executor, toys):
    """A coordinator in a process of its own."""
    words = [executor, str(toys.directory), *toys.names]
    command = [sys.executable, "-c", COORDINATOR, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_workers_whose_coordinator_is_killed_save_and_end(toys):
    sweep = toys(1, steps=100)
    with coordinate("processes:1", sweep) as coordinator:
        process = sweep.at_work()
        coordinator.kill()
    until(lambda: not Path(f"/proc/{process}/fd").exists())
    [log] = sweep.directory.glob("workers/*.log")
    assert "preempted; the state of step" in log.read_text()


@pytest.mark.slow
def test_two_coordinators_share_the_blocks(toys):
    sweep = toys(6, steps=10)
    with coordinate("processes:2", sweep) as one, coordinate("local", sweep) as other:
        assert sorted(one.communicate(timeout=60)[0].split()) == sweep.names
        assert sorted(other.communicate(timeout=60)[0].split()) == sweep.names
    assert [sweep.attempts(name) for name in sweep.names] == [[0]] * 6


def test_a_block_whose_worker_is_stopped_is_given_away_and_the_worker_gives_way(toys, monkeypatch):
    sweep = toys(1, steps=20)
    monkeypatch.setenv("TOY_STALLED", "1")
    with by_hand(sweep) as first:
        sweep.at_work()
        first.send_signal(signal.SIGSTOP)
        assert run("processes:1", sweep) == sweep.names
        result = (sweep.directory / "blocks/block0/result.json").stat()
        first.send_signal(signal.SIGCONT)
        assert first.wait(30) == DONE
    assert (sweep.directory / "blocks/block0/result.json").stat() == result
    assert len(sweep.attempts()) == 1


def test_a_worker_with_nothing_to_do_ends_well(toys):
    with by_hand(toys(0)) as worker:
        assert worker.wait(30) == DONE


def test_a_worker_begins_with_its_share(toys):
    sweep = toys(4, steps=10)
    with by_hand(sweep, "--share", "1/2") as worker:
        assert sweep.at_work("block2") == worker.pid
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == PREEMPTED
    assert not any(committed(sweep.directory, name) for name in sweep.names)


EXPERIMENT = """
name: toy
data: {name: digits, batch_size: 20, train_limit: 100, test_limit: 50, validation: 40}
model: {name: mlp, hidden: [4]}
penalty: {name: l2}
train: {epochs: 2, seeds: 2, measures: [], seed_axis: map}
"""


@pytest.mark.slow
@pytest.mark.soak
def test_a_real_sweep_has_the_same_files_wherever_it_ran(tmp_path, quick_environment):
    (tmp_path / "toy.yaml").write_text(EXPERIMENT)
    paths = {"PYTHONPATH": str(REPOSITORY), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}

    def files(executor):
        command = [sys.executable, "-m", "experiments", "sweep", "toy.yaml", "--halve", "2@1"]
        space, runs = "penalty.strength=log(1e-3,1e-1,3)", executor.partition(":")[0]
        subprocess.run(
            [*command, space, "--executor", executor, "--runs", runs],
            cwd=tmp_path, env={**quick_environment, **paths}, check=True,
        )  # fmt: skip
        [directory] = (tmp_path / runs / "toy/sweeps").iterdir()
        return {name: (directory / name).read_bytes() for name in ("table.csv", "trials.jsonl")}

    undisturbed = files("local")
    assert files("processes:2") == undisturbed
    assert files("slurm:2,cluster=local") == undisturbed
    if find_spec("ray"):
        assert files("ray:2") == undisturbed


@pytest.mark.slow
@NEEDS_RAY
def test_ray_runs_every_block_though_a_worker_is_killed(toys):
    sweep = toys(3, steps=20)
    with coordinate("ray:2", sweep) as coordinator:
        os.kill(sweep.at_work("block1"), signal.SIGKILL)
        assert sorted(coordinator.communicate(timeout=100)[0].split()) == sweep.names
    assert coordinator.returncode == DONE
    assert [sweep.attempts("block0"), sweep.attempts("block2")] == [[0], [0]]
    first, second = sweep.attempts("block1")
    assert first == 0 < second


@pytest.mark.slow
@NEEDS_RAY
def test_ray_lets_its_tasks_save_when_the_sweep_is_stopped(toys):
    sweep = toys(1, steps=200)
    with coordinate("ray:1", sweep) as coordinator:
        sweep.at_work()
        coordinator.terminate()
        assert coordinator.wait(100) == PREEMPTED
    assert "the state of step" in (sweep.directory / "workers/block0.log").read_text()


# What submitit calls of Slurm; a job is a process group here.
SLURM = """
import os, signal, subprocess, sys
from pathlib import Path

folder, (name, *words) = Path(__file__).parent, sys.argv
if name.endswith("sbatch"):
    script = Path(words[-1]).read_text()
    if "--partition=none" in script:
        sys.exit("sbatch: error: invalid partition specified: none")
    number = str(1000 + len(list(folder.glob("*.script"))))
    (folder / f"{number}.script").write_text(script)
    told = {"JOB_ID": number, "PROCID": 0, "NTASKS": 1, "LOCALID": 0, "NODEID": 0}
    environment = {**os.environ, **{f"SLURM_{key}": str(value) for key, value in told.items()}}
    with (folder / f"{number}.log").open("w") as log:
        job = subprocess.Popen(
            ["bash", folder / f"{number}.script"],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )
    (folder / f"{number}.job").write_text(str(job.pid))
    print("Submitted batch job", number)
elif name.endswith("srun"):
    output = words[words.index("--output") + 1]
    log = open(output.replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0"), "a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    os.execvp(sys.executable, words[words.index(sys.executable) :])
elif name.endswith("scancel"):
    os.killpg(int((folder / f"{words[0]}.job").read_text()), signal.SIGTERM)
elif name.endswith("sacct"):
    print("JobID|State|NodeList")
    for job in folder.glob("*.job"):
        stat = Path("/proc", job.read_text(), "stat")
        runs = stat.exists() and ") Z" not in stat.read_text()
        print(f"{job.stem}|{'RUNNING' if runs else 'COMPLETED'}|here")
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The commands of Slurm on the path, and a folder that keeps the jobs' scripts."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "srun", "scancel", "sacct"):
        (folder / name).write_text(f"#!{sys.executable}{SLURM}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.slow
def test_slurm_jobs_ask_for_what_was_typed_and_are_cancelled_at_the_end(toys, cluster):
    sweep = toys(3)
    assert sorted(run("slurm:2,partition=gpu,gpus=1,timeout_min=7", sweep)) == sweep.names
    first, second = (script.read_text() for script in cluster.glob("*.script"))
    for asked in ("--partition=gpu", "--gpus-per-node=1", "--time=7", "--nodes=1"):
        assert asked in first and asked in second
    assert "preempted" in "".join(log.read_text() for log in sweep.directory.glob("workers/*.out"))


@pytest.mark.slow
def test_a_job_that_slurm_stops_saves_and_another_takes_its_place(toys, cluster):
    sweep = toys(1, steps=30)

    def warn():  # as before the time is up
        os.kill(sweep.at_work(), signal.SIGUSR2)

    with in_the_background(warn):
        assert run("slurm:1", sweep) == sweep.names
    first, second = sweep.attempts()
    assert first == 0 < second
    assert len(list(cluster.glob("*.script"))) == 2


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("partition=none", "invalid partition specified: none"),
        ("partitions=gpu", "Unknown argument 'partitions'"),
        ("timeout_min=soon", "timeout_min"),
    ],
)
def test_what_slurm_refuses_is_said_in_its_words(option, says, toys, cluster):
    with pytest.raises(UserError, match=says):
        run(f"slurm:1,{option}", toys(1))


@NEEDS_RAY
def test_a_cluster_of_ray_that_does_not_answer_is_named(toys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with coordinate("ray:1", toys(1)) as coordinator:
        said, _ = coordinator.communicate(timeout=60)
    assert coordinator.returncode == USAGE
    assert "cannot join a cluster at RAY_ADDRESS=127.0.0.1:1" in said
