"""A penalty of a file outside the package: found, refused in one line, and part of a run's code."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from experiments.config import ExperimentConfig, PenaltyConfig
from experiments.errors import MISSING, USAGE, UserError
from experiments.training import prototypes
from experiments.training.blocks import Trial
from experiments.training.optimisers import optimizer_of, structure_of
from experiments.training.task import Data, Objective, Task
from experiments.training.trainer import Trainer
from spectral_jax.optim import Penalty, regulariser

FOURTH = """
import jax.numpy as jnp
from spectral_jax.optim import regulariser

@regulariser(strengths=(1e-4, 1e-2))
def fourth(matrices):
    return sum(jnp.sum(w**4) for w in matrices) / 4
"""
PIECES = {
    "decorated": FOURTH,
    "an object": "from spectral_jax.optim import Penalty\n"
    "fourth = Penalty(lambda w, _: w[0].sum())",
    "a factory": "from spectral_jax.optim import PENALTIES, Penalty\n"
    "def fourth() -> Penalty:\n    return PENALTIES['spectral_norm'](tol=0.1)",
}

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write ``my_reg.py`` into the working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda text, name="my_reg.py": (tmp_path / name).write_text(text)


def config(name="my_reg.py", strength=0.5):
    return ExperimentConfig("toy", penalty=PenaltyConfig(name, strength))


@pytest.mark.parametrize("text", PIECES.values(), ids=PIECES)
def test_the_one_regulariser_of_a_file_needs_no_name(write, text):
    write(text)
    found = prototypes.load("my_reg.py")
    assert found.name == "fourth" and isinstance(found.penalty, Penalty)
    assert prototypes.load("my_reg.py").penalty is found.penalty
    assert prototypes.load("my_reg.py:fourth").penalty.sees == "matrices"


def test_a_file_with_several_is_asked_which(write):
    write(FOURTH + "\nother = fourth._replace(sees='magnitudes')\n_hidden = fourth\n")
    with pytest.raises(UserError, match="choose one of my_reg.py:fourth, my_reg.py:other$"):
        prototypes.load("my_reg.py")
    assert prototypes.load("my_reg.py:other").penalty.sees == "magnitudes"
    with pytest.raises(UserError, match="my_reg.py has no 'forth'; did you mean 'fourth'"):
        prototypes.load("my_reg.py:forth")


@pytest.mark.parametrize(
    "text, message",
    [
        ("def f(:", r"my_reg.py, line 1: invalid syntax"),
        ("\n\nimport no_such_package", r"line 3: ModuleNotFoundError: No module named 'no_such_p"),
        ("def f():\n    return 1 / 0\nf()", r"my_reg.py, line 2: ZeroDivisionError: division by"),
        ("raise SystemExit(3)", r"my_reg.py, line 1: SystemExit: 3"),
        ("def f(w):\n    return w", r"has no regulariser: put @regulariser"),
        ("import helper", r"line 1: imports helper, a file beside it, whose edits would not be"),
        ("\0", r"my_reg.py"),
        (FOURTH.replace("(matrices)", "(matrices, state)"), r"line 5: ValueError: value='fourth'"),
        (FOURTH.replace("(1e-4, 1e-2)", "1e-4"), r"line 5: ValueError: strengths=0.0001: choose"),
        (
            FOURTH + "\nfourth = fourth._replace(sees='magnitudes', prox=lambda w, step, _: w)\n",
            r"my_reg.py: ValueError: Penalty\(prox=...\): one on magnitudes would ignore it; write",
        ),
        (FOURTH.replace("1e-4", "1"), r"choose 0 < least < largest, as \(1e-5, 1e-1\)"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_with_its_line(write, text, message):
    write("", "helper.py")
    write(text)
    with pytest.raises(UserError, match=message) as error:
        prototypes.load("my_reg.py")
    assert "\n" not in error.value.message and error.value.exit_code == USAGE


def test_a_file_that_is_not_there_is_missing(write):
    with pytest.raises(UserError, match="no file my_reg.py in ") as error:
        prototypes.load("my_reg.py")
    assert error.value.exit_code == MISSING


def test_a_name_that_is_a_plain_function_is_told_what_is_missing(write):
    write(FOURTH + "\ndef plain(w):\n    return w\n")
    with pytest.raises(UserError, match="plain is no regulariser: put @regulariser"):
        prototypes.load("my_reg.py:plain")


def test_the_file_is_part_of_the_code_of_a_run_and_of_no_other(write):
    assert prototypes.sources(config("l2")) == {}
    write(FOURTH)
    before = prototypes.sources(config())
    assert before.keys() == {"my_reg.py"} == prototypes.sources(config("my_reg.py:fourth")).keys()
    assert re.fullmatch(r"[0-9a-f]{64}", before["my_reg.py"])
    write(FOURTH.replace("/ 4", "/ 2"))
    assert prototypes.sources(config()) != before
    write(FOURTH)
    assert prototypes.sources(config()) == before


def test_code_of_the_repository_that_the_file_calls_counts_too(write, monkeypatch):
    write(FOURTH)
    before = prototypes.sources(config())
    monkeypatch.setattr(prototypes, "executed", lambda *_: {"spectral_jax/linalg.py": "edited"})
    prototypes._digest.cache_clear()
    assert prototypes.sources(config()) != before
    prototypes._digest.cache_clear()


# In the trainer


NET = models.network("mlp", input_shape=(4,), classes=3, hidden=(5,))
BATCH = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), "y": np.arange(8)}
DECOUPLING = """
import jax.numpy as jnp
from spectral_jax.optim import regulariser

@regulariser(sees="function")
def decoupling(apply, params, batch, key):
    return jnp.sum(apply(params, batch["x"]) ** 2)
"""
HIDDEN = """
import jax.numpy as jnp
from spectral_jax.optim import regulariser

@regulariser(sees="activations")
def hidden(seen):
    features, outputs = seen
    return jnp.sum(features**2) + jnp.sum(outputs**2)
"""


def no_loss(outputs, batch):
    return 0 * outputs[:, 0]


def as_it_is(examples, shared):
    return examples


def pull():
    """What one step down a half of the penalty alone has changed, and from where."""
    optimizer = optimizer_of(structure_of(config()), NET, 1)
    data = Data(jax.tree.map(jnp.asarray, BATCH))
    task = Task("toy", NET, Objective(no_loss), {"train": data}, "", 8, prepare=as_it_is)
    trainer = Trainer(task, optimizer)
    numbers = {"learning_rate": 1.0, "momentum": 0.0, "penalty_strength": 0.5, "shrink_rate": 1.0}
    state = trainer.start([Trial(0, numbers)])
    before = jax.tree.map(lambda leaf: leaf[0], state.params)
    after = jax.tree.map(lambda leaf: leaf[0], trainer.train(state, steps=1).params)
    return before, jax.tree.map(jnp.subtract, before, after)


@pytest.mark.parametrize("text, features_too", [(DECOUPLING, False), (HIDDEN, True)])
def test_what_sees_the_network_is_given_the_batch_of_the_step(write, text, features_too):
    write(text)
    before, change = pull()
    _, state = NET.init(jax.random.key(0))

    def value(params):
        outputs, _, parts = NET.tapped(params, state, BATCH["x"], points=NET.representations[-1:])
        (features,) = parts.values()
        return jnp.sum(outputs**2) + features_too * jnp.sum(features**2)

    expected = jax.grad(value)(before)
    jax.tree.map(
        lambda c, g: np.testing.assert_allclose(c, 0.5 * g, rtol=1e-4, atol=1e-5), change, expected
    )


def test_an_edited_file_is_another_penalty_in_the_same_process(write):
    write(FOURTH)
    before, change = pull()
    write(FOURTH.replace("/ 4", "/ 2"))
    _, doubled = pull()
    first = lambda tree: tree["layers"]["0"]["kernel"]  # noqa: E731
    np.testing.assert_allclose(first(change), 0.5 * first(before) ** 3, atol=1e-6)
    np.testing.assert_allclose(first(doubled), 2 * first(change), atol=1e-6)


def test_a_prototype_without_a_proximal_step_has_no_proximal_mode(write):
    write(FOURTH)
    proximal = replace(config(), penalty=PenaltyConfig("my_reg.py", 0.5, mode="proximal"))
    with pytest.raises(UserError, match="my_reg.py has no proximal step; set penalty.mode=penalty"):
        optimizer_of(structure_of(proximal), NET, 1)


# The decorator


def test_the_decorator_leaves_a_function_of_the_matrices_a_penalty():
    made = regulariser(sees="matrices", prox=lambda w, step: [x - step for x in w])(lambda w: w[0])
    assert made.value([3.0], ()) == 3.0
    assert made.prox([3.0], 1.0, ()) == [2.0]
    assert regulariser(lambda w: w[0]).sees == "matrices"
    with pytest.raises(ValueError, match="sees='weights': choose 'matrices'"):
        regulariser(sees="weights")(lambda w: w[0])
    with pytest.raises(ValueError, match=r"called with \(apply, params, batch, key\)"):
        regulariser(sees="function")(lambda w: w[0])
    with pytest.raises(ValueError, match="one on function would ignore it"):
        regulariser(sees="function", prox=lambda w, step: w)(lambda apply, params, batch, key: 0.0)
    with pytest.raises(ValueError, match=r"prox=.* is called with \(matrices, step\)"):
        regulariser(prox=lambda w: w)(lambda w: w[0])
