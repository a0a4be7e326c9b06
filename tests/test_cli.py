"""The experiments' door: data on stdout, one line per failure, the exit codes of the house."""

import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from experiments import __main__ as cli
from experiments import papers
from experiments.config import ExperimentConfig, StudyConfig, TrainConfig, dump_yaml
from experiments.errors import (
    CHECK_FAILED,
    DONE,
    FAILED,
    INTERRUPTED,
    MISSING,
    PREEMPTED,
    USAGE,
    UserError,
)
from experiments.papers.paper import Paper, Protocol
from experiments.runs import Run, open_run
from experiments.runs.files import read_json, write_json
from experiments.runs.interruption import stop_on_signals

REPOSITORY = Path(cli.__file__).parent.parent
CONFIG = ExperimentConfig("stub", train=TrainConfig(epochs=1, seeds=2))
SUMMARY = {
    "spectra/lambda_2": [5.0, None],
    "spectra/lambda_2/matvecs": [20, 30],
    "test/accuracy": [0.5, 0.75],
    "seed_axis": "map",
    "diverged_seeds": [],
    "collapsed_seeds": [],
}


def shell(*arguments, cwd=REPOSITORY):
    command = [sys.executable, "-m", "experiments", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture
def paper(monkeypatch):
    """A paper with one protocol of two arms, in the registry as `stub`."""
    module = types.ModuleType("experiments.papers.stub")
    toy = Protocol({"none": CONFIG, "l1": CONFIG})
    module.PAPER = Paper(
        "stub",
        "A stub",
        {"smoke": {"toy": toy}, "small": {"toy": toy, "real": toy}},
        costs={"small": "an hour on two cores"},
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(papers, "PAPERS", ["stub"])
    monkeypatch.setattr(cli, "PAPERS", papers.PAPERS)


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A trainer that only writes a summary; the list holds what it was asked to do."""
    calls = []

    def train(config, *, root, argv):
        calls.append((config, root, argv))
        path = tmp_path / f"run-{len(calls)}"
        path.mkdir()
        write_json(path / "summary.json", SUMMARY)
        return Run(path)

    module = types.ModuleType("experiments.training.train")
    module.train = train
    monkeypatch.setitem(sys.modules, "experiments.training.train", module)
    return calls


def test_help_starts_with_examples_and_never_imports_jax():
    code = (
        "import sys\n"
        "from experiments.__main__ import main\n"
        "for command in ([], ['list'], ['run'], ['reproduce'], ['data']):\n"
        "    try:\n"
        "        main([*command, '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'orbax', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("examples:\n  python -m experiments list")
    assert done.stdout.count("examples:") == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], USAGE, "required: COMMAND"),
        (["rnu", "x"], USAGE, "did you mean 'run'?"),
        (["run"], USAGE, "required: experiment (see"),
        (["run", "fiedlr"], USAGE, "no paper 'fiedlr'; did you mean 'fiedler'?"),
        (["run", "fiedler", "--prest", "small"], USAGE, "did you mean '--preset'?"),
        (["run", "absent.yaml"], MISSING, "no file absent.yaml"),
        (["run", "bad.yaml"], USAGE, "bad.yaml: not valid YAML: line 1"),
        (["run", "key.yaml"], USAGE, "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        (["run", "type.yaml"], USAGE, "train.epochs = 'many': expected int"),
        (["run", "good.yaml", "epochs=3"], USAGE, "did you mean 'train.epochs'?"),
        (["run", "good.yaml", "--arm", "none"], USAGE, "no presets and arms"),
        (["data", "fetch", "mnst"], USAGE, "unknown data set 'mnst'; did you mean mnist?"),
        (["data", "fetch"], USAGE, "needs the name of a data set: digits"),
        (["data", "fetchh"], USAGE, "did you mean 'fetch'?"),
        (["data", "list", "mnist"], USAGE, "data verify mnist checks one"),
        (["list", "x=1"], USAGE, "x=1 is not an option"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_with_the_fix(
    arguments, code, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "bad.yaml").write_text("name: [")
    (tmp_path / "key.yaml").write_text("name: x\ntrain: {epoch: 3}")
    (tmp_path / "type.yaml").write_text("name: x\ntrain: {epochs: many}")
    (tmp_path / "good.yaml").write_text("name: x")
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rnu"], USAGE, "did you mean 'run'?"),
        (["run", "absent.yaml"], MISSING, "no file absent.yaml"),
        (["data", "verify", "mnst"], USAGE, "did you mean mnist?"),
    ],
)
def test_the_process_exits_with_the_code_and_without_a_traceback(arguments, code, message):
    done = shell(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_an_unknown_data_set_in_a_config_stops_before_anything_is_written(tmp_path):
    (tmp_path / "experiment.yaml").write_text("name: x\ndata: {name: mnst}")
    done = shell("run", str(tmp_path / "experiment.yaml"), "--runs", str(tmp_path / "runs"))
    assert done.returncode == USAGE
    assert "'mnst'; did you mean mnist?" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_list_shows_every_preset_and_protocol(paper, capsys):
    assert cli.main(["list", "--json"]) == DONE
    rows = json.loads(capsys.readouterr().out)
    assert [(row["preset"], row["experiment"]) for row in rows] == [
        ("smoke", "stub/toy"), ("small", "stub/toy"), ("small", "stub/real"),
    ]  # fmt: skip
    assert rows[1]["arms"] == "none l1" and rows[1]["cost"] == "an hour on two cores"


def test_run_trains_every_arm_with_the_settings_wherever_they_stand(paper, trained, capsys):
    words = ["run", "stub/toy", "train.epochs=7", "--runs", "elsewhere", "model.depth=3"]
    assert cli.main(words) == DONE
    assert [config.name for config, _, _ in trained] == ["stub/toy/none", "stub/toy/l1"]
    assert [(config.train.epochs, config.model.depth) for config, _, _ in trained] == [(7, 3)] * 2
    assert trained[0][1:] == ("elsewhere", ["python", "-m", "experiments", *words])
    header, none, l1 = capsys.readouterr().out.splitlines()
    # Wide gaps between columns, for a column's name may hold a space.
    assert re.split(" {2,}", header) == ["arm", "test/accuracy %", "lambda_2", "run"]
    assert re.split(" {2,}", none)[:3] == ["none", "62.5 ± 18", "5 (1 of 2)"]
    assert l1.startswith("l1")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_run_with_seeds_that_came_to_nothing_exits_3_and_names_them(
    paper, trained, form, monkeypatch, capsys
):
    monkeypatch.setitem(SUMMARY, "diverged_seeds", [1])
    monkeypatch.setitem(SUMMARY, "collapsed_seeds", [0, 2])
    assert cli.main(["run", "stub", *form]) == CHECK_FAILED
    out, err = capsys.readouterr()
    assert out  # the numbers of the others are data all the same
    (warning,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert "none: seeds 1 diverged; none: seeds 0, 2 collapsed; l1: seeds 1 diverged" in warning


def test_run_prints_json_for_one_arm(paper, trained, capsys):
    assert cli.main(["run", "stub", "--arm", "l1", "--json"]) == DONE
    (row,) = json.loads(capsys.readouterr().out)
    assert row["arm"] == "l1"
    assert row["summary"] == SUMMARY
    assert Path(row["run"]).name == "run-1"


def test_run_takes_a_configuration_file(trained, tmp_path):
    (tmp_path / "experiment.yaml").write_text(dump_yaml(CONFIG))
    assert cli.main(["run", str(tmp_path / "experiment.yaml"), "train.seed=3"]) == DONE
    assert trained[0][0].train == TrainConfig(epochs=1, seeds=2, seed=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stub", "--preset", "smal"], "no preset 'smal'; did you mean 'small'?"),
        (["stub", "--preset", "small"], "choose one: stub/toy, stub/real"),
        (["stub/ral", "--preset", "small"], "'ral'; did you mean 'real'?"),
        (["stub/real"], "stub/real is not in preset smoke: pass --preset small"),
        (["stub", "--arm", "nonne"], "no arm 'nonne'; did you mean 'none'?"),
        (["stub", "--arm", "zzz"], "there are: none, l1"),
    ],
)
def test_run_names_what_there_is(paper, trained, words, message, capsys):
    assert cli.main(["run", *words]) == USAGE
    assert message in capsys.readouterr().err
    assert not trained


def test_reproduce_returns_the_worst_verdict_and_says_what_it_costs(paper, monkeypatch, capsys):
    asked = []

    def reproduce(paper, preset, *, root, overrides, as_json):
        asked.append((preset, root, overrides, as_json))
        return CHECK_FAILED

    monkeypatch.setattr(cli, "reproduce", reproduce)
    words = ["reproduce", "stub", "--preset", "small", "train.seeds=2", "--json"]
    assert cli.main(words) == CHECK_FAILED
    assert cli.main(["reproduce", "train.seeds=2"]) == CHECK_FAILED
    assert asked == [("small", "runs", ["train.seeds=2"], True),
                     ("smoke", "runs", ["train.seeds=2"], False)]  # fmt: skip
    out, err = capsys.readouterr()
    assert out == "" and "A stub, preset small: an hour on two cores" in err


@pytest.mark.parametrize("setting", ["nonsense.key=1", "train.epochs=0", "train.epochs=010"])
@pytest.mark.parametrize("words", [["reproduce", "stub"], ["reproduce"], ["run", "stub"]])
def test_a_wrong_setting_is_refused_before_anything_is_said_or_done(
    paper, trained, setting, words, monkeypatch, capsys
):
    monkeypatch.setattr(cli, "reproduce", lambda *_, **__: pytest.fail("it began"))
    assert cli.main([*words, setting]) == USAGE
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert not trained


def test_a_message_cannot_move_the_cursor_or_fill_the_screen(paper, capsys):
    assert cli.main(["run", "stub", "--arm", "\x1b[2J" + 10**5 * "x"]) == USAGE
    _, err = capsys.readouterr()
    assert "\\x1b[2J" in err and "\x1b" not in err and len(err) < 2000


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (UserError("no space left; state kept", FAILED), FAILED, "no space left; state kept"),
        (KeyboardInterrupt(), INTERRUPTED, "run the same command again"),
        (ZeroDivisionError("by\nzero"), FAILED, "ZeroDivisionError: by (" + __file__),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_code(
    paper, failure, code, message, monkeypatch, capsys
):
    def reproduce(*_, **__):
        raise failure

    monkeypatch.setattr(cli, "reproduce", reproduce)
    assert cli.main(["reproduce", "stub"]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last


TRAINER_THAT_WAITS_TO_BE_STOPPED = """
import sys, time, types
import numpy as np
from experiments.__main__ import main
from experiments.runs import open_run
from experiments.runs.interruption import interruption

def train(config, *, root, argv):
    with (
        open_run(config, entry=open_run, data_sha256="d", root=root, argv=argv) as run,
        interruption() as stop,
    ):
        step, state = run.restore_checkpoint({"w": np.zeros(3)}) or (0, {"w": np.zeros(3)})
        while step < 4:
            step, state = step + 1, {"w": state["w"] + step}
            run.record(step, step, {"w": state["w"]})
            if step == 2 and not run.resumed:
                print("ready", flush=True)
                while not stop:
                    time.sleep(0.01)
            if stop:
                run.save_checkpoint(step, state)
                raise stop.error(step)
        run.finish({"w": state["w"]})
    return run

sys.modules["experiments.training.train"] = types.ModuleType("experiments.training.train")
sys.modules["experiments.training.train"].train = train
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_preempted_run_exits_75_and_the_same_command_finishes_it(tmp_path):
    (tmp_path / "experiment.yaml").write_text("name: toy")
    arguments = ["run", str(tmp_path / "experiment.yaml"), "--runs", str(tmp_path), "--json"]
    command = [sys.executable, "-c", TRAINER_THAT_WAITS_TO_BE_STOPPED, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as first:
        assert first.stdout.readline() == "ready\n"
        first.send_signal(signal.SIGTERM)
        _, err = first.communicate(timeout=60)
    assert first.returncode == PREEMPTED
    assert err.splitlines()[-1].startswith("error: preempted; the state of step 2 is kept")
    second = subprocess.run(command, cwd=REPOSITORY, timeout=60, **pipes)
    assert second.returncode == DONE, second.stderr
    (row,) = json.loads(second.stdout)
    assert row["summary"] == {"w": [6.0, 6.0, 6.0]}
    steps, _ = Run(Path(row["run"])).history()["w"]
    assert steps.tolist() == [1, 2, 3, 4]


JAX_THAT_SWALLOWS = """
import time
try:
    print("importing", flush=True)
    time.sleep(60)
except BaseException:  # as callbacks of the import system do
    pass
import this_is_never_reached
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, INTERRUPTED, "interrupted"), (signal.SIGTERM, PREEMPTED, "preempted")],
)
def test_a_signal_while_jax_is_imported_is_one_line_at_once(number, code, word, tmp_path):
    (tmp_path / "jax.py").write_text(JAX_THAT_SWALLOWS)
    (tmp_path / "experiment.yaml").write_text("name: toy")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    command = [sys.executable, "-m", "experiments", "run", str(tmp_path / "experiment.yaml")]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f"error: {word}; run the same command again\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [(signal.SIGINT, INTERRUPTED, "interrupted"), (signal.SIGTERM, PREEMPTED, "preempted")],
)
def test_a_signal_outside_of_training_is_in_the_status(
    number, code, state, paper, monkeypatch, tmp_path
):
    def reproduce(*_, **__):
        with open_run(
            StudyConfig("toy", {}), entry=open_run, data_sha256="d", root=tmp_path, argv=[]
        ):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(cli, "reproduce", reproduce)
    before = {other: signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)}
    stop_on_signals()
    try:
        assert cli.main(["reproduce", "stub"]) == code
    finally:
        for other, handler in before.items():
            signal.signal(other, handler)
    (status,) = tmp_path.glob("toy/*/status.json")
    assert read_json(status, remedy="")["state"] == state


def test_data_lists_and_verifies(capsys):
    assert cli.main(["data"]) == DONE
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.startswith("name") and first.startswith("digits")
    assert cli.main(["data", "verify", "digits"]) == DONE
    out, err = capsys.readouterr()
    assert out == "" and "comes with scikit-learn" in err


@pytest.mark.skipif("SPECTRAL_JAX_DATA" not in os.environ, reason="SPECTRAL_JAX_DATA is not set")
def test_data_verify_names_what_it_verified(capsys):
    assert cli.main(["data", "verify", "mnist"]) == DONE
    _, err = capsys.readouterr()
    assert "t10k-labels-idx1-ubyte" in err and os.environ["SPECTRAL_JAX_DATA"] in err


@pytest.mark.parametrize(
    ("stdout", "code", "says"),
    [(">&-", USAGE, "stdout is closed"), (">/dev/full", FAILED, "No space")],
)
def test_output_that_goes_nowhere_is_one_line(stdout, code, says):
    command = f"{sys.executable} -m experiments data --json {stdout}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1) and says in done.stderr


def test_a_reader_that_stops_early_is_no_failure():
    command = f"{sys.executable} -m experiments data --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout, done.stderr) == (DONE, "[", "")
