"""The curvature that a run measures is that of its loss, trial by trial."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from experiments.training.measures.curvature import PROBE_EXAMPLES, curvatures
from experiments.training.program import Program
from experiments.training.task import OBJECTIVES, Data, Task, relu_switch
from models import network

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_measured_ends_and_trace_are_those_of_the_dense_hessian():
    net = network("mlp", input_shape=(4,), classes=3, hidden=(5,))
    random = np.random.default_rng(0)
    shared = {"shift": jnp.float32(8), "scale": jnp.float32(1 / 4)}
    x, y = random.integers(0, 17, (PROBE_EXAMPLES + 50, 4)), random.integers(0, 3, 1050)
    data = Data({"x": jnp.asarray(x, jnp.uint8), "y": jnp.asarray(y, jnp.int32)}, shared)
    task = Task("", net, OBJECTIVES["cross_entropy"], {}, "", batch_size=10, head=relu_switch)
    state = Program(task, lambda hyper: optax.sgd(hyper["rate"])).init(
        jax.random.split(jax.random.key(0), 2), {"rate": jnp.array([0.1, 0.2])}
    )
    found = curvatures(state._replace(opt_state=None), data, objective="cross_entropy", network=net)

    _, unravel = ravel_pytree(jax.tree.map(itemgetter(0), state.params))

    @jax.jit
    @jax.hessian
    def dense(flat):
        inputs = (x[:PROBE_EXAMPLES] - 8) / 4
        logits, _ = net.apply(unravel(flat), {}, jnp.asarray(inputs, jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[:PROBE_EXAMPLES]).mean()

    for trial in range(2):
        params = jax.tree.map(itemgetter(trial), state.params)
        values = np.linalg.eigvalsh(dense(ravel_pytree(params)[0]))
        for name, expected in (("lambda_min", values[0]), ("lambda_max", values[-1])):
            assert found[f"curvature/{name}/converged"][trial]
            assert float(found[f"curvature/{name}"][trial]) == pytest.approx(expected, rel=1e-3)
        error = abs(float(found["curvature/trace"][trial]) - values.sum())
        assert error <= 4 * found["curvature/trace/standard_error"][trial] + 1e-4
