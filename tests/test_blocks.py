"""A block of a sweep is trained as if nothing had disturbed it, and committed once."""

import dataclasses
import json
import math
import os
import shutil
import signal
import tempfile
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from experiments.errors import PREEMPTED, USAGE, UserError
from experiments.runs import checkpoint
from experiments.runs.provenance import machine
from experiments.sweep import attempts, width
from experiments.sweep.attempts import run_block, session_of
from experiments.sweep.block import (
    Block,
    blocks_of,
    folder_of,
    grouped,
    read_block,
    result_of,
    write_block,
)
from experiments.sweep.machine import FILE
from experiments.sweep.width import layout, pace
from experiments.training import session, trainer
from experiments.training.measures import MEASURES
from experiments.training.program import Program
from experiments.training.train import train
from experiments.training.trainer import Trainer

EPOCH = 4  # steps
CONFIG = ExperimentConfig(
    "toy",
    data=DataConfig("digits", batch_size=10, train_limit=10 * EPOCH, validation=50),
    model=ModelConfig("mlp", hidden=(8,)),
    optimizer=OptimizerConfig("sgd", 0.1, 0.9, schedule="cosine"),
    train=TrainConfig(epochs=4, seeds=2, seed=5, seed_axis="map", measures=("toy",)),
)
RATE = "optimizer.learning_rate"
SETTINGS = {0: {RATE: 0.1}, 1: {RATE: 0.05}, 2: {RATE: 0.2}}
DIVERGING = {RATE: 1e30}

pytestmark = pytest.mark.usefixtures("quick_compilation", "often_saved")


def norms(config, network):
    """A toy measure: a number per trial to record, and an array to keep."""

    def take(state, data):
        kernel = state.params["layers"]["0"]["kernel"]
        return {"toy/norm": jnp.abs(kernel).sum((1, 2))}, {"kernel": kernel}

    return take


@pytest.fixture(scope="module")
def often_saved():
    """An epoch has two chunks, and every epoch a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MEASURES, "toy", norms)
        patch.setattr(trainer, "CHUNK_STEPS", EPOCH // 2)
        patch.setattr(session, "SAVE_SECONDS", 0.0)
        yield


def blocks(settings=SETTINGS, seeds=(5, 6), config=CONFIG, **options):
    options = {"width": 8, "axis": "map", "end": CONFIG.train.epochs, **options}
    return blocks_of(config, settings, seeds, **options)


def measured(directory, block):
    """The metrics of each trial of a committed block, by number and seed."""
    result = result_of(directory, block.id)
    return {
        trial: {name: values[place] for name, values in result.metrics.items()}
        for place, trial in enumerate(result.trials)
    }


def trained(directory, *given):
    found = {}
    for block in given:
        assert run_block(directory, write_block(directory, block))
        found |= measured(directory, block)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory, often_saved, quick_compilation):
    """All trials in one block that nothing disturbed."""
    return trained(tmp_path_factory.mktemp("whole"), *blocks())


# What a trial's numbers are


def test_trials_of_several_dropout_rates_are_one_structure_and_none_is_another():
    rates = {number: {"model.dropout": rate} for number, rate in enumerate((0.1, 0.5, 0.0))}
    with_some, without = grouped(CONFIG, rates, [5]).values()
    assert [trial.number for trial in with_some] == [0, 1] and len(without) == 1
    alone = [session_of(CONFIG, [trial]) for trial in with_some]
    assert alone[0].trainer.program == alone[1].trainer.program
    numbers = [trial.hyper["dropout_keep"] for each in alone for trial in each.trials]
    assert numbers == [0.9, 0.5]
    assert "dropout_keep" not in session_of(CONFIG, without).trials[0].hyper


def test_a_trial_of_a_block_is_the_seed_of_a_run(whole, tmp_path):
    slower = dataclasses.replace(CONFIG.optimizer, learning_rate=0.05)
    alone = train(dataclasses.replace(CONFIG, optimizer=slower), root=tmp_path, argv=[]).summary
    assert whole[1, 5].keys() == {name for name in alone if "/" in name}
    for place, seed in enumerate((5, 6)):
        for name, value in whole[1, seed].items():
            assert alone[name][place] == value, name


def test_the_company_of_a_trial_is_of_no_matter(whole, tmp_path):
    """Nor whether it diverges: that trial has no numbers, and the others those that they had."""
    (block,) = blocks({0: SETTINGS[0], 1: DIVERGING, 2: SETTINGS[2]}, seeds=[6])
    found = trained(tmp_path, block)
    assert {trial: found[trial] for trial in ((0, 6), (2, 6))} == {
        trial: whole[trial] for trial in ((0, 6), (2, 6))
    }
    assert all(map(math.isnan, found[1, 6].values()))
    assert result_of(tmp_path, block.id).diverged == [False, True, False]
    assert trained(tmp_path, *blocks({2: SETTINGS[2]}, seeds=[5])) == {(2, 5): whole[2, 5]}
    attempts = [*tmp_path.glob("blocks/*/attempts/*/provenance.json")]
    assert len(attempts) == 2
    told = [json.loads(path.read_text())["device"] for path in (tmp_path / FILE, *attempts)]
    assert told == [machine()["device"]] * 3


def test_side_by_side_a_neighbour_that_diverges_is_of_no_matter_either(tmp_path):
    healthy, ill = (
        blocks({0: SETTINGS[0], 1: neighbour}, axis="vmap")
        for neighbour in ({RATE: 0.3}, DIVERGING)
    )
    found = trained(tmp_path, *ill)
    expected = trained(tmp_path, *healthy)
    assert math.isnan(found[1, 5]["test/loss"]) and not math.isnan(expected[1, 5]["test/loss"])
    assert found[0, 5] == expected[0, 5] and found[0, 6] == expected[0, 6]


def test_a_block_of_which_all_diverge_has_a_result_like_any_other(tmp_path):
    (block,) = blocks({0: DIVERGING})
    trained(tmp_path, block)
    assert result_of(tmp_path, block.id).diverged == [True, True]


def test_rungs_train_as_one(whole, tmp_path):
    """Whatever blocks the trials come from, and where schedules go is known from the start."""
    below = [*blocks(seeds=[5], end=2), *blocks(seeds=[6], end=2)]
    trained(tmp_path, *below)
    parents = [block.id for block in below]
    assert trained(tmp_path, *blocks({1: SETTINGS[1]}, start=2, parents=parents)) == {
        trial: whole[trial] for trial in ((1, 5), (1, 6))
    }


def test_all_blocks_of_a_structure_share_one_program(whole, tmp_path):
    """However many of the lanes are dead, and of however few seeds the others are."""
    compiled = Program.chunk._cache_size()
    given = [*blocks({0: {RATE: 0.3}}), *blocks({1: {RATE: 0.4}, 2: {RATE: 0.5}}, seeds=[6])]
    assert len(trained(tmp_path, *given)) == 4
    assert Program.chunk._cache_size() == compiled


# Attempts


def killed_at(step, monkeypatch):
    """The process dies when it has trained so far, and nothing of it is tidied up."""

    class Killed(BaseException):
        pass

    advance = Trainer.advance

    def until(self, state, most):
        if state.step[0] == step:
            raise Killed
        return advance(self, state, most)

    monkeypatch.setattr(Trainer, "advance", until)
    return pytest.raises(Killed)


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A block whose first attempt died in its fourth epoch: checkpoints of the second and third."""
    (block,) = blocks()
    with monkeypatch.context() as patch, killed_at(3 * EPOCH + 2, patch):
        run_block(tmp_path, write_block(tmp_path, block))
    return block


def checkpoints(directory, block):
    found = folder_of(directory, block.id).glob("attempts/*/checkpoints/*")
    return sorted(found, key=lambda path: int(path.name))


def truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damaged, left", [(0, EPOCH), (1, 2 * EPOCH), (2, 4 * EPOCH)])
def test_a_new_attempt_goes_on_from_the_newest_sound_state(
    damaged, left, interrupted, whole, tmp_path, monkeypatch
):
    assert [int(path.name) for path in checkpoints(tmp_path, interrupted)] == [8, 12]
    for path in checkpoints(tmp_path, interrupted)[2 - damaged :]:
        truncate(path)
    steps, advance = [], Trainer.advance

    def counted(self, state, most):
        found = advance(self, state, most)
        steps.append(found[2])
        return found

    monkeypatch.setattr(Trainer, "advance", counted)
    assert trained(tmp_path, interrupted) == whole
    assert sum(steps) == left
    (attempt,) = (folder_of(tmp_path, interrupted.id) / "attempts").iterdir()
    assert result_of(tmp_path, interrupted.id).attempt == attempt.name
    assert len(list(attempt.glob("arrays/vectors-*"))) == 5  # those of the first attempt as well
    assert checkpoints(tmp_path, interrupted) == []


def test_of_two_attempts_the_first_to_end_counts(interrupted, whole, tmp_path, monkeypatch):
    """The other one notices, at the latest when the place is taken, and leaves nothing behind."""
    final = session.Session.final

    def overtaken(self, run):
        monkeypatch.setattr(session.Session, "final", final)
        assert run_block(tmp_path, interrupted.id)
        return final(self, run)

    monkeypatch.setattr(session.Session, "final", overtaken)
    assert not run_block(tmp_path, interrupted.id)
    assert not run_block(tmp_path, interrupted.id)
    assert measured(tmp_path, interrupted) == whole
    assert len(list((folder_of(tmp_path, interrupted.id) / "attempts").iterdir())) == 1


def test_what_the_dead_left_at_a_committed_block_is_removed(interrupted, tmp_path):
    """Who committed it may have died before that."""
    attempts = folder_of(tmp_path, interrupted.id) / "attempts"
    (left,) = attempts.iterdir()
    shutil.copytree(left, tmp_path / "kept")
    assert run_block(tmp_path, interrupted.id)
    shutil.copytree(tmp_path / "kept", left)
    assert not run_block(tmp_path, interrupted.id)
    (winner,) = attempts.iterdir()
    assert winner.name == result_of(tmp_path, interrupted.id).attempt


def test_who_is_overtaken_and_told_to_stop_says_that_it_was_stopped(
    interrupted, tmp_path, monkeypatch
):
    final = session.Session.final

    def overtaken(self, run):
        monkeypatch.setattr(session.Session, "final", final)
        assert run_block(tmp_path, interrupted.id)  # and removes what this attempt has written
        os.kill(os.getpid(), signal.SIGTERM)
        return final(self, run)

    monkeypatch.setattr(session.Session, "final", overtaken)
    with pytest.raises(UserError, match="preempted") as stop:
        run_block(tmp_path, interrupted.id)
    assert stop.value.exit_code == PREEMPTED


def test_a_signal_saves_the_state_and_the_next_attempt_goes_on(whole, tmp_path, monkeypatch):
    advance, (block,) = Trainer.advance, blocks()

    def preempted(self, state, most):
        if state.step[0] == EPOCH:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, state, most)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="state of step 6") as stop:
        patch.setattr(Trainer, "advance", preempted)
        run_block(tmp_path, write_block(tmp_path, block))
    assert stop.value.exit_code == PREEMPTED
    assert trained(tmp_path, block) == whole


def memory_for(lanes, monkeypatch):
    advance = Trainer.advance

    def small(self, state, most):
        if len(state.key) > lanes:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating ...")
        return advance(self, state, most)

    monkeypatch.setattr(Trainer, "advance", small)


def test_a_block_that_memory_does_not_hold_is_trained_in_halves(whole, tmp_path, monkeypatch):
    """And in their halves; where they end, the rung above goes on."""
    (below,) = blocks(end=2)
    with monkeypatch.context() as patch:
        memory_for(4, patch)
        trained(tmp_path, below)
    parts = [read_block(tmp_path, part) for part in result_of(tmp_path, below.id).parts]
    assert [(part.width, len(part.trials)) for part in parts] == [(4, 3), (4, 3)]
    assert trained(tmp_path, *blocks(start=2, parents=[below.id])) == whole


@pytest.mark.parametrize("damaged", [1, 2])
def test_the_end_state_of_a_committed_block_is_made_again_where_it_is_damaged(
    damaged, whole, tmp_path
):
    """From the state before, or from the start: the block above ends as if nothing had been."""
    (below,) = blocks(end=2)
    trained(tmp_path, below)
    for path in checkpoints(tmp_path, below)[-damaged:]:
        truncate(path)
    before = measured(tmp_path, below)
    assert trained(tmp_path, *blocks(start=2, parents=[below.id])) == whole
    assert measured(tmp_path, below) == before
    folder = folder_of(tmp_path, below.id)
    assert not (folder / "again").exists() and len([*folder.glob("attempts/*")]) == 1
    assert not run_block(tmp_path, below.id)  # nothing is left to do, and the state is there
    assert trained(tmp_path, *blocks({0: SETTINGS[0]}, start=2, parents=[below.id])).items() <= (
        whole.items()
    )


def test_who_makes_an_end_state_again_leaves_the_one_that_another_has_made(
    whole, tmp_path, monkeypatch
):
    """Two workers at blocks with one parent; the faster one takes the other's folder away, too."""
    (below,) = blocks(end=2)
    trained(tmp_path, below)
    sound, damaged = tmp_path / "sound", checkpoints(tmp_path, below)[-1]
    shutil.copytree(damaged, sound)
    truncate(damaged)
    train_block = attempts.train_block

    def overtaken(block, run, *given, **options):
        found = train_block(block, run, *given, **options)
        if run.path.parent.name == "again":
            shutil.copytree(sound, damaged, dirs_exist_ok=True)
            shutil.rmtree(run.path.parent)
        return found

    monkeypatch.setattr(attempts, "train_block", overtaken)
    assert trained(tmp_path, *blocks(start=2, parents=[below.id])) == whole


def test_an_end_state_that_is_lost_with_all_before_it_is_made_again(whole, tmp_path):
    """Its parents are asked for theirs in turn."""
    (first,) = blocks(end=1)
    (second,) = blocks(start=1, end=2, parents=[first.id])
    trained(tmp_path, first, second)
    for block in (first, second):
        for path in checkpoints(tmp_path, block):
            shutil.rmtree(path)
    assert trained(tmp_path, *blocks(start=2, parents=[second.id])) == whole


def test_an_end_state_that_comes_out_otherwise_is_refused(tmp_path, monkeypatch):
    """As on a machine of other digits: the numbers that were told are not those that go on."""
    (below,) = blocks(end=2)
    trained(tmp_path, below)
    for path in checkpoints(tmp_path, below):
        truncate(path)
    (above,) = blocks(start=2, parents=[below.id])
    final = session.Session.final

    def other(self, run):
        found = final(self, run)
        return found._replace(numbers={k: v * 1.0001 for k, v in found.numbers.items()})

    monkeypatch.setattr(session.Session, "final", other)
    with pytest.raises(UserError, match="ends with other numbers") as failure:
        run_block(tmp_path, write_block(tmp_path, above))
    assert failure.value.exit_code == USAGE
    assert result_of(tmp_path, above.id) is None


def test_who_died_in_a_half_goes_on_with_it(tmp_path, monkeypatch):
    (block,) = blocks({0: {RATE: 0.3}})
    with monkeypatch.context() as patch:
        memory_for(4, patch)
        with killed_at(2, patch):
            run_block(tmp_path, write_block(tmp_path, block))
    trained(tmp_path, block)
    (half,) = result_of(tmp_path, block.id).parts
    assert read_block(tmp_path, half).width == 4


def test_a_single_trial_that_memory_does_not_hold_is_an_error(tmp_path, monkeypatch):
    memory_for(0, monkeypatch)
    with pytest.raises(UserError, match="the run failed: JaxRuntimeError: RESOURCE_EXHAUSTED"):
        trained(tmp_path, *blocks({0: SETTINGS[0]}, seeds=[5], width=2))


# Which trials share a block


def config(**sections):
    changed = {
        name: dataclasses.replace(getattr(CONFIG, name), **values)
        for name, values in sections.items()
    }
    return dataclasses.replace(CONFIG, **changed)


@pytest.mark.parametrize(
    ("key", "values", "structures"),
    [
        (RATE, [0.1, 0.2], 1),
        ("train.label_scale", [1.0, 10.0], 1),
        ("paper_compat", [[], ["relu_logits"]], 1),
        ("penalty.strength", [0.1, 0.2], 1),
        ("penalty.strength", [0.0, 0.1, 0.2], 2),  # nothing is not computed
        ("penalty.name", ["l1", "l2"], 2),
        ("data.label_noise", [0.0, 0.1], 2),
    ],
)
def test_trials_that_differ_in_numbers_share_a_block(key, values, structures):
    settings = {number: {key: value} for number, value in enumerate(values)}
    found = blocks(settings, config=config(penalty={"name": "l2", "strength": 1.0}))
    assert len(found) == structures
    assert sum(len(block.trials) for block in found) == 2 * len(values)


def test_blocks_are_equal_parts_in_order_of_number():
    settings = {number: SETTINGS[number % 3] for number in range(9, 0, -1)}
    found = blocks(settings, seeds=range(5), width=16, config=config(train={"seed": 0, "seeds": 5}))
    assert [len(block.trials) for block in found] == [15, 15, 15]
    assert [trial.number for block in found for trial in block.trials] == sorted(5 * [*settings])


def test_a_block_is_told_by_what_it_trains(tmp_path):
    (block,), (same,) = blocks(), blocks(config=config(optimizer={"weight_decay": 0}))
    assert block.id == same.id  # 0 and 0.0
    assert Block.from_json(json.loads(json.dumps(block.to_json()))) == block
    (other,) = blocks(seeds=[5])
    path = folder_of(tmp_path, write_block(tmp_path, block)) / "block.json"
    shutil.copy(folder_of(tmp_path, write_block(tmp_path, other)) / "block.json", path)
    with pytest.raises(UserError, match="block.json is another block's; remove"):
        run_block(tmp_path, block.id)


def test_trials_do_not_end_each_others_training():
    with pytest.raises(UserError, match="train.stop = 'train/loss below 1' ends all") as failure:
        blocks({0: SETTINGS[0], 1: {"train.stop": "train/loss below 1"}})
    assert failure.value.exit_code == USAGE


@pytest.mark.parametrize("seeds", [[5, 7], [5, 5]])
def test_a_seed_whose_data_are_not_loaded_is_refused(seeds):
    with pytest.raises(ValueError, match="give each of 5 to 6, those of config, once at most"):
        blocks(seeds=seeds)


# How wide


@pytest.mark.parametrize("trials, workers, expected", [(6, 4, 2), (130, 1, 44)])
def test_where_memory_is_ample_blocks_are_few_but_one_for_each_worker(trials, workers, expected):
    settings = {number: SETTINGS[0] for number in range(trials // 2)}
    found = layout(CONFIG, settings, (5, 6), workers=workers)
    assert (found.axis, found.width) == ("map", expected)


@pytest.mark.parametrize("axis, expected", [("map", 40), ("vmap", 40)])
def test_a_block_is_no_wider_than_memory_allows(axis, expected, monkeypatch):
    """What two programs need is a line, which may fill its share of the memory."""

    def program(session, axis, width):
        yield SimpleNamespace(lower=lambda: SimpleNamespace(compile=lambda: 100 + 10 * width))

    monkeypatch.setattr(width, "_traced", program)
    monkeypatch.setattr(width, "_all_values", lambda program: 10**9)
    monkeypatch.setattr(width, "_held", lambda needed: needed)
    monkeypatch.setattr(width, "available_memory", lambda: (100 + 10 * 43) / width.SHARE)
    settings = {number: SETTINGS[0] for number in range(60)}
    found = layout(config(train={"seed_axis": axis}), settings, (5, 6))
    assert found.width == expected  # of 120 trials; of 43 that would fit side by side, fives of 8


@pytest.mark.parametrize("shard", ["none", "trials"])
def test_a_wider_program_is_traced_wider_whatever_devices_share_it(shard):
    """What is asked of the compiler at two widths would else be one number, and no trial's need."""
    (block,) = blocks(config=config(train={"shard": shard}))
    found = session_of(block.config, block.trials[:1])
    widths = [
        [program.in_avals[0][0].key.shape[0] for program in width._traced(found, "map", lanes)]
        for lanes in (1, 3)
    ]
    assert widths == [[1, 1], [3, 3]]


def test_the_compiler_says_what_a_program_needs():
    traced = jax.jit(lambda x: x @ x).trace(jnp.zeros((1000, 1000)))
    assert 8e6 <= width._held(traced.lower().compile()) <= width._all_values(traced) + 1e5


def test_an_estimate_counts_every_step_and_record(monkeypatch):
    """Of one trial: an epoch's four steps are timed at once, the start is recorded as well."""
    monkeypatch.setattr(width, "_seconds", lambda work: 1.0)
    wanted = config(train={"evaluate_every": 2, "measure_every": 4})
    steps, records, end = 4, len({0, 2, 4}), 1
    (block,) = blocks(config=wanted)
    assert pace(wanted, block.trials, "map") == steps + records + end


def test_an_estimate_reads_nothing_of_others_in_the_folder_of_temporary_files(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(width, "_seconds", lambda work: 1.0)
    theirs = tmp_path / "their" / "run" / "checkpoints"
    theirs.mkdir(parents=True)
    checkpoint.save(theirs, 4, {"other": np.zeros(2)})
    (block,) = blocks()
    assert pace(CONFIG, block.trials, "map") > 0
