"""A sweep is computed by machines that agree in the last digits, unless told."""

from copy import deepcopy

import pytest

from experiments.errors import USAGE, UserError
from experiments.runs.provenance import deciding
from experiments.sweep import machine as machines
from experiments.sweep.machine import settle
from experiments.sweep.plan import accept_machines, write_plan
from tests.sweep.made_up import Truth, swept

CPU = {
    "versions": {"python": "3.11", "jax": "0.10.2", "jaxlib": "0.10.2"},
    "device": "1 x cpu (cpu)",
    "dtype": "float32",
    "threads": {"XLA": 2, "OPENBLAS_NUM_THREADS": "1", "XLA_FLAGS": None},
}


def other(**changes):
    """The same machine but for some entries, of a mapping some of its."""
    made = deepcopy(CPU)
    for name, value in changes.items():
        made[name] = {**made[name], **value} if isinstance(value, dict) else value
    return made


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Settle a sweep's directory as a process on this machine would."""

    def settle_on(machine):
        monkeypatch.setattr(machines, "machine", lambda: machine)
        monkeypatch.setattr(machines, "session", lambda: {"started": "now", **machine})
        settle(tmp_path)

    plan = write_plan(tmp_path, swept(lambda config: Truth(), {"penalty.strength": (0, 1)}).plan)
    settle_on.accept = lambda: accept_machines(plan, tmp_path)
    settle_on(CPU)
    return settle_on


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"threads": {"XLA": 8}}, "(XLA threads: 2 there, 8 here): go on where that is the same"),
        ({"threads": {"OPENBLAS_NUM_THREADS": None}}, "OPENBLAS_NUM_THREADS: 1 there, unset here"),
        ({"versions": {"jax": "0.11.0"}}, "(jax: 0.10.2 there, 0.11.0 here)"),
        ({"device": "1 x NVIDIA H200 (cuda)"}, "device: cpu (cpu) there, NVIDIA H200 (cuda) here"),
    ],
)
def test_who_computes_other_digits_is_refused_unless_that_is_accepted(on, changes, told):
    with pytest.raises(UserError) as refused:
        on(other(**changes))
    assert refused.value.exit_code == USAGE and told in refused.value.message
    assert "--accept-machine" in refused.value.message
    assert on.accept().mixed
    on(other(**changes))
    on(CPU)


def test_what_decides_no_digit_may_differ(on):
    on(other(versions={"python": "3.12"}, device="8 x cpu (cpu)"))
    gpu = other(device="1 x NVIDIA H200 (cuda)")
    more = {**gpu, "device": "4 x NVIDIA H200 (cuda)", "threads": {"XLA": 64}}
    assert deciding(gpu) == deciding(more) != deciding(CPU)
    exact = {"matmul_precision": "highest"}
    assert deciding({**gpu, **exact}) != deciding(gpu)
    assert deciding({**CPU, **exact}) == deciding(CPU)
