"""Compiled programs are shared where only numbers differ, and given back where programs do."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    PenaltyConfig,
    TrainConfig,
)
from experiments.runs import memory
from experiments.training.train import train

REPOSITORY = Path(memory.__file__).parent.parent
CONFIG = ExperimentConfig(
    "toy",
    data=DataConfig("digits", batch_size=10, train_limit=20),
    model=ModelConfig("mlp", hidden=(4,)),
    optimizer=OptimizerConfig("sgd", 0.1),
    train=TrainConfig(epochs=1, seeds=2, seed_axis="map"),
)


NINE = [
    (strength, rate, momentum, decay)
    for strength in (0.05, 0.1, 0.2)
    for rate, momentum, decay in ((0.1, 0.9, 1e-4), (0.2, 0.9, 1e-3), (0.1, 0.5, 1e-2))
]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("mode", ["penalty", "proximal"])
def test_nine_arms_that_differ_in_numbers_compile_once(mode, compilations, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.training.train.make_room", lambda: None)  # whatever ran before
    norms, known = [], 0
    for strength, rate, momentum, decay in NINE:
        optimizer = OptimizerConfig("sgd", rate, momentum, weight_decay=decay)
        arm = replace(CONFIG, optimizer=optimizer, penalty=PenaltyConfig("l1", strength, mode))
        summary = train(arm, root=tmp_path, argv=[]).summary
        norms.append(summary["spectra/penalty"][0] / strength)
        known = known or len(compilations)
    assert len(compilations) == known > 0
    assert len(set(norms)) == 9  # every number did what it does
    assert norms[0] > norms[3] > norms[6]


MANY_SHAPES = """
import jax, jax.numpy as jnp
from experiments.runs import memory

def hold(sizes):
    for size in sizes:
        memory.make_room()
        program(jnp.ones((size, size)))
        yield sum(1 for _ in memory.MAPS.open())

program = jax.jit(lambda x: jnp.linalg.eigh(jnp.tanh(x @ x.T) + x)[0].sum())
memory.SHARE_KEPT = 1
first, *_, tenth = hold(range(1, 11))
memory.SHARE_KEPT = tenth / int(memory.LIMIT.read_text())
print(first, tenth, max(hold(range(11, 31))))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory maps")
def test_many_shapes_hold_no_more_than_their_share():
    done = subprocess.run(
        [sys.executable, "-c", MANY_SHAPES], cwd=REPOSITORY, timeout=120,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, tenth, most_of_twenty_more = map(int, done.stdout.split())
    assert first + 9 < tenth < most_of_twenty_more < tenth + (tenth - first) / 2


@pytest.mark.parametrize(
    ("line", "file", "text", "expected"),
    [
        ("0::/job/step", "job/memory.max", "4096", 4096),  # of the group above
        ("0::/job/step", "job/step/memory.max", "max", None),
        ("4:memory:/job", "memory/job/memory.limit_in_bytes", "8192", 8192),
        ("3:cpu:/job", "memory/job/memory.limit_in_bytes", "8192", None),
        ("0::/", "memory.max", "512", 512),
    ],
)
def test_a_job_has_the_memory_of_its_control_group(
    line, file, text, expected, tmp_path, monkeypatch
):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"{text}\n")
    (tmp_path / "groups").write_text(f"{line}\n")
    monkeypatch.setattr(memory, "LIMITS", tmp_path)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "nothing")
    machine = memory.granted()
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    assert memory.granted() == (expected or machine)
