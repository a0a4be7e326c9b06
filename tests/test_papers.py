"""A paper is files and a line: what it declares is trained, measured and judged."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import __main__ as cli
from experiments import papers
from experiments.config import ExperimentConfig, TrainConfig
from experiments.errors import CHECK_FAILED, FAILED, MISSING, USAGE, Diverged, UserError
from experiments.papers.fiedler.studies.clusters import n_cut
from experiments.papers.paper import (
    FRESH,
    Paper,
    Protocol,
    Study,
    Tuning,
    carry_out,
    reproduce,
)
from experiments.report.claims import check
from experiments.report.results import study_results
from experiments.runs import Run
from experiments.runs.files import write_json
from experiments.training import train as trainer

REPOSITORY = Path(cli.__file__).parent.parent

# A sixth paper: these files, and its name in the registry.
TOY = {
    "__init__.py": '''
        """A toy: does a little L2 change what a small network learns of digits?"""

        from experiments.config import (
            DataConfig, ExperimentConfig, ModelConfig, OptimizerConfig, PenaltyConfig, TrainConfig,
        )
        from experiments.papers.paper import Paper, Protocol, Study, Tuning

        def arm(data="digits", **options):
            return ExperimentConfig(
                "toy", data=DataConfig(data, batch_size=32, train_limit=320, validation=100),
                model=ModelConfig(hidden=(8,)), optimizer=OptimizerConfig(learning_rate=0.05),
                train=TrainConfig(epochs=1, seeds=2, measures=(), seed_axis="map"), **options,
            )

        tiny = Protocol(
            {
                "none": arm(),
                "l2@0.001": arm(penalty=PenaltyConfig("l2", 0.001)),
                "l2@0.01": arm(penalty=PenaltyConfig("l2", 0.01)),
            },
            Tuning(seeds=2),
        )
        PAPER = Paper(
            "toy", "A toy",
            {
                "smoke": {"tiny": tiny},
                "small": {"tiny": tiny, "genes": Protocol({"none": arm("tcga")})},
            },
            studies=(Study("weights", {"smoke": {"power": 2}, "small": {"power": 2}}, of="tiny"),),
        )
    ''',
    "claims.py": '''
        """What is claimed of the toy."""

        from experiments.report.claims import Claim
        from experiments.report.evidence import final, paired

        asked = dict(origin="our question", type="direction", direction=1, smallest_effect=1.0,
                     largest_n=8, source="a test")
        CLAIMS = (
            Claim("l2-helps", "a little L2 helps", evidence=paired("l2", "none", protocol="tiny"),
                  **asked),
            Claim("genes", "genes can be told apart", cost="five minutes",
                  evidence=final("test/accuracy", arm="none", protocol="genes"), **asked),
            Claim("small", "the first weights are as small as they were drawn", "a test",
                  "our reference", type="deterministic", command="reproduce toy", value=0.0,
                  tolerance=0.05, evidence=final("size", arm="none", protocol="weights")),
        )

        def learned(outcome, judged):
            return [f"L2 changes accuracy by {judged[0].ours}."]
    ''',
    "figures.py": '''
        """The toy has no figures."""

        COLUMNS = {"test accuracy (%)": ("test/accuracy", 100.0)}

        def sections(outcome):
            return []
    ''',
    "studies/__init__.py": "",
    "studies/weights.py": '''
        """How large trained weights are."""

        import numpy as np

        from experiments.papers.paper import trained
        from experiments.report.results import merge, of_arrays

        def measure(run, *, runs, power):
            found = []
            for arm, peer in trained(run, runs).items():
                first = np.abs(peer.load_array("parameters")["layers/0/kernel"])
                found.append(of_arrays("weights", arm, {"size": (first**power).mean((1, 2))}))
            return merge(found)
    ''',
}
COMMANDS = """
import contextlib, dataclasses, io, json, os, sys
from experiments.__main__ import main

def run(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*words, "--runs", "runs", "--json"])
    return {"code": code, "out": json.loads(out.getvalue() or "null"), "err": err.getvalue()}

def run_with_another_number():
    "The smoke preset, all of it found, against a reference that it does not give."
    from experiments.papers.toy import claims
    *others, number = claims.CLAIMS
    claims.CLAIMS = (*others, dataclasses.replace(number, value=9.0))
    return run("reproduce", "toy")

json.dump(
    {
        "plan": run("reproduce", "toy", "--preset", "small", "--dry-run"),
        "plan wrote": os.listdir("runs") if os.path.exists("runs") else [],
        "smoke": run("reproduce", "toy"),
        "small": run("reproduce", "toy", "--preset", "small"),
        "again": run("reproduce", "toy", "--dry-run"),
        "missed": run_with_another_number(),
    },
    sys.stdout,
)
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory, quick_environment):
    """The repository with the toy in it, and what its commands gave."""
    home = tmp_path_factory.mktemp("clone")
    for package in ("experiments", "models", "spectral_jax"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, home / package, ignore=ignored)
    for name, text in TOY.items():
        path = home / "experiments" / "papers" / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip())
    registry = home / "experiments" / "papers" / "__init__.py"
    line = "PAPERS = ["
    assert line in registry.read_text()
    registry.write_text(registry.read_text().replace(line, f'{line}"toy", '))
    environment = {**quick_environment, "PYTHONPATH": str(home), "XDG_CACHE_HOME": str(home)}
    environment.pop("SPECTRAL_JAX_DATA", None)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return home, json.loads(done.stdout)


def verdicts(said):
    return {claim["id"]: (claim["verdict"], claim["note"]) for claim in said["out"]["claims"]}


@pytest.mark.slow
def test_a_sixth_paper_is_files_and_one_line(toy):
    home, said = toy
    assert said["smoke"]["code"] == 0, said["smoke"]["err"]
    judged = verdicts(said["smoke"])
    assert judged["l2-helps"][0] == "ESTIMATE"
    assert judged["genes"] == ("NOT RUN", "cost: five minutes")
    assert judged["small"][0] == "NUMBER MATCH"
    assert said["smoke"]["out"]["learned"][0].startswith("L2 changes accuracy by")
    page = (home / "runs" / "reports" / "toy-smoke" / "report.html").read_text()
    assert "L2 changes accuracy by" in page and "Chosen settings" in page


@pytest.mark.slow
def test_the_winner_is_trained_again_on_seeds_it_was_not_tuned_on(toy):
    home, _ = toy
    tuned, final = (list((home / "runs" / "toy" / "tiny").glob(f"{name}/*/config.yaml"))
                    for name in ("tuning/l2-at-*", "l2"))  # fmt: skip
    assert len(tuned) == 2 and len(final) == 1
    assert f"seed: {FRESH}" in final[0].read_text()


@pytest.mark.slow
def test_a_missed_reference_is_a_failed_check(toy):
    _, said = toy
    assert said["missed"]["code"] == CHECK_FAILED
    assert verdicts(said["missed"])["small"][0] == "NUMBER MISS"


@pytest.mark.slow
def test_missing_data_leave_their_claims_not_run_and_the_rest_is_reported(toy):
    home, said = toy
    assert said["small"]["code"] == MISSING
    verdict, note = verdicts(said["small"])["genes"]
    assert verdict == "NOT RUN" and "python -m experiments data fetch tcga" in note
    assert verdicts(said["small"])["l2-helps"][0] != "NOT RUN"
    assert (home / "runs" / "reports" / "toy-small" / "report.html").is_file()


@pytest.mark.slow
def test_a_plan_counts_what_a_run_would_take_and_what_is_missing(toy):
    _, said = toy
    tuning, final, genes, study, whole = said["plan"]["out"]
    assert said["plan"]["code"] == 0 and said["plan wrote"] == []
    assert (tuning["name"], tuning["arms"], tuning["trials"]) == ("tiny/tuning", 3, 6)
    assert tuning["compilations"] == 2  # with and without a penalty, whatever its strength
    assert (final["name"], final["arms"], final["trials"]) == ("tiny", 2, 4)
    weights = 64 * 8 + 8 + 8 * 10 + 10
    floats = 6 * 2 * weights  # weights and momentum; the rest of the state is a few numbers
    assert 4 * floats < tuning["state"] < 1.1 * 4 * floats
    assert "data fetch tcga" in genes["missing"] and genes["trials"] == 2
    assert study["name"] == "weights"
    assert whole["trials"] == 12 and whole["hours"] is None


@pytest.mark.slow
def test_a_plan_knows_the_pace_of_earlier_runs(toy):
    _, said = toy
    tuning, *_ = said["again"]["out"]
    assert tuning["measured"] and 0 < tuning["hours"] < 0.1


def test_a_place_for_no_report_is_told_before_anything_is_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["reproduce", "fiedler", "--runs", str(tmp_path / "file")]) == USAGE
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: cannot write in ") and "give --runs a folder" in last


@pytest.mark.parametrize("name", papers.PAPERS)
def test_claims_name_arms_that_some_preset_declares(name):
    paper = papers.load(name)
    check(paper.part("claims").CLAIMS, paper.known())


def test_declaring_papers_needs_no_jax():
    code = (
        "import sys\n"
        "from experiments import papers\n"
        "for name in papers.PAPERS:\n"
        "    papers.load(name)\n"
        "assert not {'jax', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr


# What a protocol does, with a trainer that only looks up numbers


class Trainer:
    """Validation and test accuracy by arm; what is no number is raised."""

    def __init__(self, folder, table):
        self.folder, self.table, self.asked = folder, table, []

    def __call__(self, config, *, root, argv):
        arm = config.name.rpartition("/")[2]
        self.asked.append((arm, config.train.seed, config.train.seeds))
        found = self.table[arm.replace("-at-", "@")]
        if isinstance(found, Exception):
            raise found
        path = self.folder / config.name
        path.mkdir(parents=True)
        names = ("validation/accuracy", "test/accuracy")
        numbers = {n: [v] * config.train.seeds for n, v in zip(names, found, strict=True)}
        write_json(path / "summary.json", {**numbers, "diverged_seeds": [], "collapsed_seeds": []})
        return Run(path)


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """Carry out a protocol, called `p`, of arms whose numbers are given."""

    def carry(table, tuning=None, overrides=()):
        stub = Trainer(tmp_path, table)
        monkeypatch.setattr(trainer, "train", stub)
        base = ExperimentConfig("x", train=TrainConfig(seeds=3, seed=5))
        arms = {arm: base for arm in table if tuning is None or "@" in arm or arm == "none"}
        paper = Paper("stub", "A stub", {"smoke": {"p": Protocol(arms, tuning)}})
        return carry_out(paper, "smoke", root=tmp_path, overrides=overrides), stub

    return carry


def test_a_setting_is_chosen_by_validation_however_it_tests(carried):
    table = {"a@1": (0.8, 0.3), "a@2": (0.7, 0.9), "none": (0.5, 0.5), "a": (0.8, 0.3)}
    outcome, stub = carried(table, Tuning(seeds=4))
    assert outcome.choices["p"]["a"].arm == "a@1"
    assert stub.asked[3:] == [("a", 5 + FRESH, 4), ("none", 5 + FRESH, 4)]
    assert outcome.results.arms("p") == ("a", "none")
    assert set(outcome.results.arms("p/tuning")) == {"a@1", "a@2", "none"}
    assert outcome.results.seeds(arm="a", protocol="p") == (105, 106, 107, 108)


def test_a_lower_metric_can_be_the_better_one(carried):
    table = {"a@1": (0.8, 0.3), "a@2": (0.7, 0.9), "a": (0.7, 0.9)}
    outcome, _ = carried(table, Tuning(seeds=2, higher=False))
    assert outcome.choices["p"]["a"].arm == "a@2"


def test_settings_reach_the_final_runs_and_leave_them_fresh_seeds(carried):
    table = {"a@1": (0.8, 0.3), "a": (0.8, 0.3)}
    _, stub = carried(table, Tuning(seeds=4), ["train.seeds=2", "train.seed=50"])
    assert stub.asked == [("a-at-1", 50, 2), ("a", 50 + FRESH, 2)]


def test_an_arm_whose_seeds_all_diverge_is_a_finding_and_left_out(carried):
    outcome, _ = carried({"wild": Diverged("all 3 seeds diverged"), "calm": (0.5, 0.5)})
    assert outcome.results.arms("p") == ("calm",) and outcome.exit_code == 0
    assert outcome.results.reason(protocol="p", arm="wild") == "all 3 seeds diverged"


def test_an_arm_that_fails_is_told_from_one_that_diverges(carried):
    outcome, _ = carried({"broken": UserError("a bug", FAILED), "calm": (0.5, 0.5)})
    assert outcome.results.arms("p") == ("calm",) and outcome.exit_code == FAILED


def test_data_that_are_lost_half_way_keep_what_was_trained(carried):
    lost = UserError("no file x", MISSING)
    outcome, stub = carried({"first": (0.5, 0.5), "second": lost, "third": (0.5, 0.5)})
    assert outcome.results.arms("p") == ("first",) and outcome.exit_code == MISSING
    assert outcome.results.reason(protocol="p", arm="third") == "no file x"
    assert len(stub.asked) == 2  # no arm has data where one has none


def test_a_protocol_that_could_not_be_tuned_says_why(carried):
    outcome, _ = carried({"a@1": UserError("no file x", MISSING)}, Tuning(seeds=2))
    assert outcome.results.arms("p") == () and outcome.exit_code == MISSING
    assert outcome.results.reason(protocol="p", arm="a") == "no file x"


def test_a_method_that_diverges_at_every_setting_says_why(carried):
    table = {"wild@1": Diverged("all 3 seeds diverged"), "calm@1": (0.5, 0.5), "calm": (0.5, 0.5)}
    outcome, _ = carried(table, Tuning(seeds=2))
    assert outcome.results.arms("p") == ("calm",) and outcome.exit_code == 0
    assert outcome.results.reason(protocol="p", arm="wild") == "all 3 seeds diverged"


def test_a_module_that_a_paper_lacks_is_one_line(tmp_path):
    paper = papers.load("fiedler")
    paper = replace(paper, studies=(Study("clustres", {"smoke": {}}),))
    with pytest.raises(UserError, match="'fiedler' has no module .*studies.clustres: write it"):
        reproduce(paper, "smoke", root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_study_that_returns_no_results_has_failed():
    run = SimpleNamespace(path="runs/toy/x", summary={"size": 5})
    with pytest.raises(UserError, match="study of runs/toy/x returned no results") as failure:
        study_results(run)
    assert failure.value.exit_code == FAILED  # so `reproduce` goes on, and says so


def test_a_wrong_configuration_ends_it_all(carried):
    with pytest.raises(UserError, match="no penalty"):
        carried({"wrong": UserError("no penalty 'l3'", USAGE), "right": (0.5, 0.5)})


def test_the_cut_between_two_clusters_is_the_share_of_their_weight_that_crosses():
    """Two pairs of units in each of two layers, weight 1 within a cluster, 0.1 across; each cluster
    has 8 + 0.8 of weight, counted from both ends, of which 0.8 cross: 2 * 0.8 / 8.8."""
    block = np.kron(np.eye(2), np.full((2, 2), 0.9)) + 0.1
    assert n_cut([block], 2) == pytest.approx(2 * 0.8 / 8.8, rel=1e-12)
    with_a_dead_unit = np.pad(block, ((0, 1), (0, 0)))
    assert n_cut([with_a_dead_unit], 2) == pytest.approx(2 * 0.8 / 8.8, rel=1e-12)
