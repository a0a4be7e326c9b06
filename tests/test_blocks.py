"""A block of a sweep is trained as if nobody had disturbed it, and committed once."""

import dataclasses

import pytest

from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from experiments.sweep.block import blocks_of, result_of, run_block, write_block
from experiments.training import session, trainer
from experiments.training.train import train

EPOCH = 8  # steps
CONFIG = ExperimentConfig(
    "toy",
    data=DataConfig("digits", batch_size=10, train_limit=10 * EPOCH, validation=50),
    model=ModelConfig("mlp", hidden=(8,)),
    optimizer=OptimizerConfig("sgd", 0.1, 0.9, schedule="cosine"),
    train=TrainConfig(epochs=4, seeds=2, seed=5, seed_axis="map", measures=("bulk",)),
)
RATES = {0: 0.1, 1: 0.05, 2: 0.2}
SETTINGS = {number: {"optimizer.learning_rate": rate} for number, rate in RATES.items()}

pytestmark = pytest.mark.usefixtures("quick_compilation", "often_saved")


@pytest.fixture(scope="module")
def often_saved():
    """An epoch has two chunks, and every epoch a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CHUNK_STEPS", EPOCH // 2)
        patch.setattr(session, "SAVE_SECONDS", 0.0)
        yield


def run(directory, settings=SETTINGS, seeds=(5, 6), config=CONFIG, **options):
    """Every trial's metrics, by number and seed."""
    options = {"width": 8, "axis": "map", "end": config.train.epochs, **options}
    found = {}
    for block in blocks_of(config, settings, seeds, **options):
        assert run_block(directory, write_block(directory, block))
        result = result_of(directory, block.id)
        for place, trial in enumerate(result.trials):
            found[trial] = {name: values[place] for name, values in result.metrics.items()}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory, often_saved, quick_compilation):
    """All trials in one block that nothing disturbed."""
    return run(tmp_path_factory.mktemp("whole"))


def test_a_trial_of_a_block_is_the_seed_of_a_run(whole, tmp_path):
    slower = dataclasses.replace(CONFIG.optimizer, learning_rate=RATES[1])
    alone = train(dataclasses.replace(CONFIG, optimizer=slower), root=tmp_path, argv=[]).summary
    for place, seed in enumerate((5, 6)):
        for name, value in whole[1, seed].items():
            assert alone[name][place] == value, name
