"""`try`: what the arms are, what is refused before anything is trained, a whole small session."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import __main__ as cli
from experiments.config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig, dump_yaml
from experiments.errors import DONE, MISSING, USAGE, UserError
from experiments.sweep import trying
from experiments.sweep.space import Lin, Log
from experiments.sweep.trying import arms_of, try_regulariser
from tests.sweep.made_up import Truth, swept

FOURTH = """
import jax.numpy as jnp
from spectral_jax.optim import regulariser

@regulariser(strengths=(1e-4, 1e-2))
def fourth(matrices):
    return sum(jnp.sum(w**4) for w in matrices)
"""
CONFIG = ExperimentConfig(
    "toy",
    data=DataConfig("digits", batch_size=16, train_limit=80, test_limit=50),
    model=ModelConfig(hidden=(4,), dropout=0.5),
    train=TrainConfig(epochs=1, seeds=2),
    paper_compat=("half_gradient",),
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file into the working directory."""
    monkeypatch.chdir(tmp_path)
    write = lambda text, name="my_reg.py": (tmp_path / name).write_text(text)  # noqa: E731
    write(FOURTH)
    write(dump_yaml(CONFIG), "toy.yaml")
    return write


def test_every_arm_searches_the_rate_and_a_number_of_its_own(write):
    write(FOURTH.replace("def fourth", "def other"), "other.py")
    arms = arms_of("my_reg.py", CONFIG, ("none", "dropout", "l2", "other.py"))
    rate = {"optimizer.learning_rate": Log(1e-4, 1e-2)}
    assert [(arm.name, arm.space) for arm in arms] == [
        ("none", rate),
        ("dropout", {**rate, "model.dropout": Lin(0.05, 0.7)}),
        ("l2", {**rate, "penalty.strength": Log(1e-5, 1e-1)}),
        ("other", {**rate, "penalty.strength": Log(1e-4, 1e-2)}),
        ("fourth", {**rate, "penalty.strength": Log(1e-4, 1e-2)}),
    ]
    assert [arm.config.name for arm in arms] == [f"toy/{arm.name}" for arm in arms]
    assert [arm.config.penalty.name for arm in arms][2:] == [
        "l2",
        "other.py",
        "my_reg.py",
    ]


def test_the_command_and_python_begin_alike():
    options = cli.parse(["try", "my_reg.py"])
    expected = (",".join(trying.AGAINST), trying.TRIALS, trying.FINALS)
    assert (options.against, options.trials, options.finals) == expected


def test_what_regularises_the_experiment_itself_is_left_out_and_validation_data_are_held_out(write):
    (none, _) = arms_of("my_reg.py", CONFIG, ("none",))
    assert none.config.model.dropout == 0 and none.config.paper_compat == ()
    assert none.config.data.validation == 16 and none.config.data.subsets == "own"
    held_out = replace(CONFIG, data=replace(CONFIG.data, validation=7))
    assert arms_of("my_reg.py", held_out, ("none",))[0].config.data.validation == 7


@pytest.mark.parametrize(
    "words, message, code",
    [
        (["nowhere.py"], "no file nowhere.py in ", MISSING),
        (["my_reg.py", "--against", "none,drop"], "'drop' is no method; did you mean 'dropout'", 2),
        (["my_reg.py", "--against", ","], "--against names nothing", USAGE),
        (["my_reg.py", "--against", "l2,l2"], "l2 is there twice", USAGE),
        (["my_reg.py", "--trials", "1"], "give at least 2 settings per arm", USAGE),
        (["my_reg.py", "--finals", "1"], "finals = 1: of one pair nothing can be said", USAGE),
        (["flat.py"], "flat.py breaks its contract: gradient, on dense layers 5 x 4 and", USAGE),
        (["broken.py"], "broken.py, line 2: ModuleNotFoundError", USAGE),
    ],
)
def test_what_cannot_be_tried_is_one_line_before_anything_is_written(
    write, tmp_path, capsys, words, message, code
):
    write(FOURTH.replace("w**4", "jnp.round(w)"), "flat.py")
    write("\nimport nothing_like_it", "broken.py")
    assert cli.main(["try", *words, "--experiment", "toy.yaml"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "runs").exists()


def test_a_network_without_dropout_has_no_such_arm(write):
    config = replace(CONFIG, model=ModelConfig("resnet", depth=8))
    with pytest.raises(UserError, match="model.name = resnet has none; leave it out"):
        arms_of("my_reg.py", config, ("dropout",))


def test_the_contract_of_a_file_can_be_had_alone(write, capsys):
    assert cli.main(["try", "my_reg.py", "--check", "--json"]) == DONE
    assert {"clause": "jit", "input": "dense layers 5 x 4 and 4 x 3"} in json.loads(
        capsys.readouterr().out
    )


@pytest.fixture
def meanwhile(write, monkeypatch):
    """Arms with made-up numbers; returns a list of what is done while one is trained."""
    acts = []

    def sweep(config, **options):
        for act in acts:
            act()
        space = {"optimizer.learning_rate": (0.01, 0.1)}
        return swept(lambda config: Truth(), space, config=config, directory=config.name)

    monkeypatch.setattr(trying, "sweep", sweep)
    monkeypatch.setattr(trying, "contract", lambda file: ())
    return acts


def test_without_fresh_seeds_nothing_is_said_of_them(meanwhile, tmp_path, monkeypatch):
    svg_alone = lambda figure, stem, *, drawn: Path(f"{stem}.svg").write_text(drawn)  # noqa: E731
    monkeypatch.setattr("spectral_jax.plots.save", svg_alone)
    (tmp_path / "out" / "figures").mkdir(parents=True)
    tried = try_regulariser("my_reg.py", CONFIG, against=("none",), finals=0)
    html = tried.page(tmp_path / "out").read_text()
    assert "Every arm was tuned with 2 settings of 2 seeds, by validation/accuracy." in html
    assert "nothing is claimed" in html and "only these count" not in html
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["fourth", "none"]
    assert all(0.6 < float(row["validation/accuracy"]) < 0.8 for row in rows)


def test_numbers_of_a_file_that_was_edited_meanwhile_are_not_mixed(meanwhile, write):
    meanwhile.append(lambda: write(FOURTH.replace("w**4", "w**6")))
    with pytest.raises(UserError, match="was edited while it was tried"):
        try_regulariser("my_reg.py", CONFIG, against=("none",), finals=0)


@pytest.mark.slow
def test_a_session_ends_with_a_page_and_an_edit_trains_its_own_arm_only(write, tmp_path, capsys):
    words = ["try", "my_reg.py", "--experiment", "toy.yaml", "--against", "none"]
    words += ["--trials", "2", "--finals", "2", "--json"]
    assert cli.main(words) == DONE
    said = capsys.readouterr()
    assert [row["name"] for row in json.loads(said.out)] == ["fourth", "none"]
    (written,) = tmp_path.glob("runs/tried/fourth-*/page.html")
    page = written.read_text()
    assert "Every arm was tuned with 2 settings of 2 seeds" in page and "def fourth" in page
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/try/toy/*/sweeps/*/b*")}
    write(FOURTH.replace("w**4", "w**6"))
    assert cli.main(words) == DONE
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/try/toy/*/sweeps/*/b*")}
    new = {path.parts[-4] for path in after if before.get(path) != after[path]}
    assert new == {"fourth"}
    assert len([*tmp_path.glob("runs/tried/fourth-*/page.html")]) == 2
    assert written.read_text() == page  # it is of the file as it was
