"""Each seed its own examples: sets in one array, and no trial knows another's."""

import jax
import numpy as np
import optax
import pytest

import models
from experiments.config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from experiments.data import load, prepare
from experiments.training.blocks import Trial
from experiments.training.loading import task_of
from experiments.training.session import Session
from experiments.training.task import OBJECTIVES, Data, Task
from experiments.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_compilation")

NET = models.network("mlp", input_shape=(4,), classes=3, hidden=(5,))
X = jax.random.normal(jax.random.key(1), (24, 4))
Y = jax.random.randint(jax.random.key(2), (24,), 0, 3)


def descent(hyper):
    return optax.sgd(0.1)


def trainer(rows, sets):
    shared = {"shift": np.float32(0), "scale": np.float32(1)}
    data = Data({"x": X[rows], "y": Y[rows]}, shared, sets)
    objective = OBJECTIVES["cross_entropy"]
    return Trainer(Task("t", NET, objective, {"train": data}, "", batch_size=4), descent)


def test_a_trial_trains_on_its_own_set_as_if_there_were_no_other():
    both, second = trainer(slice(0, 24), 2), trainer(slice(12, 24), 1)
    assert both.task.steps_per_epoch == second.task.steps_per_epoch == 3
    state = both.train(both.start([Trial(0, {"set": 0}), Trial(1, {"set": 1})]), epochs=2)
    alone = second.train(second.start([Trial(1, {"set": 0})]), epochs=2)
    for one, other in zip(*map(jax.tree.leaves, (state.params, alone.params)), strict=True):
        np.testing.assert_array_equal(one[1], other[0])
    found, expected = both.evaluate(state, "train"), second.evaluate(alone, "train")
    assert found["loss"][1] == expected["loss"][0] != found["loss"][0]


@pytest.mark.parametrize(("subsets", "sets"), [("own", 3), ("shared", 1)])
def test_a_configuration_says_whether_seeds_share_what_is_drawn(subsets, sets):
    drawn = {"train_limit": 64, "validation": 32, "label_noise": 0.25}
    config = ExperimentConfig(
        "x",
        data=DataConfig("digits", batch_size=32, subsets=subsets, **drawn),
        model=ModelConfig(hidden=(4,)),
        train=TrainConfig(seeds=3, seed=5, measures=()),
    )
    session = Session(config, task_of(config))
    data = session.task.data
    assert (data["train"].sets, data["train"].size) == (sets, 64)
    assert (data["validation"].sets, data["test"].sets) == (sets, 1)
    for place in range(3):
        seed = 5 + (place if subsets == "own" else 0)
        expected = prepare(load("digits"), **drawn, seed=seed)
        hyper = {"set": np.float32(session.trials[place].hyper["set"])}
        found = data["train"].rows(np.arange(64), hyper)
        np.testing.assert_array_equal(found["x"], expected.train_x)
        np.testing.assert_array_equal(found["y"], expected.train_y)
        found = data["validation"].rows(np.arange(32), hyper)
        np.testing.assert_array_equal(found["x"], expected.validation_x)
