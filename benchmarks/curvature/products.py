"""Products with the Hessian and the Gauss-Newton matrix, in gradients of the same batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.curvature import problems
from benchmarks.harness import Table, Target, interleaved, one_core, ratio_of, ratio_text, row
from spectral_jax.curvature import ggn, hessian, objective, stored
from spectral_jax.linalg import SymmetricOperator, fast_convolutions


class Size(NamedTuple):
    networks: tuple[Callable[[], problems.Problem], ...]
    repeats: int


FULL = Size(
    (
        partial(problems.dense, n=2000, width=600),
        partial(problems.lenet, n=500),
        partial(problems.gpt, n=8, context=64, width=128, depth=4),
    ),
    repeats=5,
)
SMOKE = Size((partial(problems.dense, n=8, width=4),), repeats=1)
TARGETS = {"Hv": Target("<=", 2.4), "Gv": Target("<=", 1.7)}
PEERS = {"Hv": "Hessian", "Gv": "GGN"}


def products(size: Size) -> Table:
    """Each network: a gradient, a product with either matrix, and the peer's products."""
    measured = [network() for network in size.networks]
    with one_core():
        rows = [line for problem in measured for line in _rows(problem, size.repeats)]
    examples = ", ".join(f"{problem.name} {len(problem.data[1])}" for problem in measured)
    note = (
        "float32, one core. `ours` is a compiled product `op @ v` with the operator an argument; "
        "`peer` is the compiled gradient of the same mean loss on the same batch, by "
        "`fast_convolutions` too, in rows with a target, and curvlinops (PyTorch on CPU, one "
        "batch, no determinism check) in the others. "
        f"Examples: {examples} (a GPT's are sequences). Arithmetic alone gives "
        "2.1 gradients for Hv and 1.6 for Gv of the dense network, 2.7 and 1.7 of a deep one; "
        "`stored` operators keep the activations, as for a solver's many products."
    )
    return Table("Products, in gradients", note, rows)


def _rows(problem: problems.Problem, repeats: int) -> list[tuple[str, ...]]:
    loss = objective(problem.model, problems.LOSS)
    operators = {
        "Hv": hessian(loss, problem.params, problem.data),
        "Gv": ggn(problem.model, problems.LOSS, problem.params, problem.data),
    }
    v = jnp.asarray(np.random.default_rng(2).standard_normal(operators["Hv"].size), "f")
    calls: dict[str, Callable[[], Any]] = {
        name: partial(_product, op, v) for name, op in operators.items()
    }
    calls |= {f"{name}, stored": partial(_product, stored(op), v) for name, op in operators.items()}
    calls["gradient"] = partial(_gradient, loss, problem.params, problem.data)
    peers = problems.TORCH and not problem.name.startswith("GPT")
    if peers:
        calls |= {f"peer {name}": _peer(problem, kind) for name, kind in PEERS.items()}
    times = interleaved(calls, repeats=repeats)
    rows = []
    for name, target in TARGETS.items():
        for variant in (name, f"{name}, stored"):
            ours, gradient = times[variant], times["gradient"]
            told, value = ratio_text(ours, gradient), ratio_of(ours, gradient)
            rows.append(row(f"{problem.name}: {variant}", ours, gradient, told, target, value))
        if peers:
            ours, peer = times[name], times[f"peer {name}"]
            rows.append(
                row(f"{problem.name}: {name}, curvlinops", ours, peer, ratio_text(peer, ours))
            )
    return rows


@jax.jit
def _product(op: SymmetricOperator, v: Any) -> Any:
    return op @ v


@partial(jax.jit, static_argnums=0)
def _gradient(loss: Callable, params: Any, data: Any) -> Any:
    slope = fast_convolutions(jax.grad(lambda p: jnp.mean(loss(p, data))))
    return ravel_pytree(slope(params))[0]


def _peer(problem: problems.Problem, kind: str) -> Callable[[], Any]:
    import torch

    op = problems.torch_operator(problem, kind)
    v = torch.randn(op.shape[1])
    return lambda: op @ v
