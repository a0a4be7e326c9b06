"""weights: the views of a kernel."""

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax.weights import Block, graph_weights, map_by_shape, matrices
from tests import draws
from tests.contract import Case, Degenerate, exempt, register

LAYOUT = (
    Block("stem", 0, 1, norm="norm"),
    Block("body", 1, 2),
    Block(None, 1, 2),
    Block("head", 2, 3, positions=2),
)


def network(key, dtype):
    keys = jax.random.split(key, 5)
    params = {
        "stem": draws.normal(keys[0], (3, 3, 2, 4), dtype),
        "norm": {"scale": draws.normal(keys[1], (4,), dtype)},
        "body": draws.normal(keys[2], (2, 2, 4, 4), dtype),
        "head": draws.normal(keys[3], (8, 3), dtype),
    }
    return params, {"norm": {"var": draws.uniform(keys[4], (4,), dtype, 0.5, 2.0)}}


def norms(kernel, order):
    return np.linalg.norm(kernel.reshape(-1, *kernel.shape[-2:]), order, axis=0)


def expected_graph(params, stats, order):
    scale = np.abs(params["norm"]["scale"]) / np.sqrt(stats["norm"]["var"] + 1e-5)
    return (
        norms(params["stem"], order) * scale,
        norms(params["body"], order),
        np.ones(4),
        norms(params["head"].reshape(2, 4, 3), order),
    )


def zeros():
    params, stats = network(jax.random.key(0), "float32")
    return jax.tree.map(np.zeros_like, params), stats


for conv_norm, order in (("l1", 1), ("l2", 2)):
    register(
        Case(
            name=f"weights.graph_weights: {conv_norm}",
            function=lambda params, stats, conv_norm=conv_norm: graph_weights(
                params, LAYOUT, conv_norm=conv_norm, batch_stats=stats
            ),
            gathered="an identity is ones, whatever the weights are",
            make_inputs=network,
            unscaled="a normalisation adds its epsilon to the variance; an identity is 1",
            exact_dtype="integers in a kernel are codes: refused; tests/test_weights.py",
            oracle=lambda params, stats, order=order: expected_graph(params, stats, order),
            degenerate={"zero kernels": Degenerate(zeros(), lambda w: not w[0].any())},
        )
    )

register(
    Case(
        name="weights.matrices",
        function=lambda params: {
            name: found.matrix for name, found in matrices(params, conv="channels").items()
        },
        make_inputs=lambda key, dtype: network(key, dtype)[:1],
        degree=1,
        exact_dtype="a view keeps the dtype of its leaf, and leaves codes out",
        oracle=lambda params: {
            "stem": norms(params["stem"], 1),
            "body": norms(params["body"], 1),
            "head": params["head"],
        },
    )
)


def torch_network(key, dtype):
    shapes = {
        "stem": {"weight": (8, 3, 2, 2)},
        "attention": {"in_proj_weight": (12, 4)},
        "lstm": {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2)},
        "adapter": {"lora_A": (2, 5), "lora_B": (4, 2)},
        "head": {"weight": (5, 3), "bias": (5,)},
    }
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda shape: isinstance(shape, tuple))
    keys = jax.random.split(key, len(leaves))
    normal = [draws.normal(k, shape, dtype) for k, shape in zip(keys, leaves, strict=True)]
    return (jax.tree.unflatten(tree, normal),)


def expected_matrices(params):
    lstm, adapter = params["lstm"], params["adapter"]
    expected = {
        "adapter/lora_A*lora_B": (adapter["lora_B"] @ adapter["lora_A"]).T,
        "head/weight": params["head"]["weight"].T,
        "stem/weight": params["stem"]["weight"].transpose(2, 3, 1, 0).reshape(4, 3, 8),
    }
    for part, rows in zip("qkv", np.split(params["attention"]["in_proj_weight"], 3), strict=True):
        expected[f"attention/in_proj_weight:{part}"] = rows.T
    for name in ("weight_hh_l0", "weight_ih_l0"):
        for gate, rows in zip("ifgo", np.split(lstm[name], 4), strict=True):
            expected[f"lstm/{name}:{gate}"] = rows.T
    return expected


register(
    Case(
        name="weights.matrices: parts and products",
        function=lambda params: {name: found.matrix for name, found in matrices(params).items()},
        make_inputs=torch_network,
        unscaled="LoRA multiplies two leaves; the others are read as they are",
        exact_dtype="a view keeps the dtype of its leaf, and leaves codes out",
        oracle=expected_matrices,
    )
)

register(
    Case(
        name="weights.map_by_shape",
        function=lambda params: map_by_shape(
            matrices(params), lambda w: {"sum": jnp.sum(w), "gram": jnp.swapaxes(w, -2, -1) @ w}
        ),
        make_inputs=lambda key, dtype: network(key, dtype)[:1],
        unscaled="as the function is; this one has a sum and squares",
        exact_dtype="arrays go to the function as they are",
        oracle=lambda params: {
            name: {"sum": w.sum(), "gram": np.swapaxes(w, -2, -1) @ w}
            for name, w in {
                "body": params["body"].reshape(4, 4, 4),
                "head": params["head"],
                "stem": params["stem"].reshape(9, 2, 4),
            }.items()
        },
    )
)

exempt("weights.layout", "returns no arrays; tests/test_weights.py")
exempt("weights.layout_of", "returns no arrays; tests/test_layout_of.py")
exempt("weights.edges", "returns no arrays; tests/test_weights.py")
exempt("weights.plan", "takes shapes, returns no arrays; tests/test_weights.py")
exempt("weights.places", "returns names and places; tests/test_weights_stacks.py")
exempt("weights.entry", "indexing; tests/test_weights_stacks.py, by way of the pruners")
exempt("weights.with_entry", "indexing; tests/test_weights_stacks.py, by way of the pruners")
exempt("weights.tied_leaves", "returns names; tests/test_weights_plan.py")
exempt("weights.leaf_name", "returns a name; tests/test_weights.py and test_optim.py")
exempt("weights.skipped", "returns no arrays; tests/test_weights.py")
exempt("weights.coded", "returns names; tests/test_codes.py")
exempt("weights.refuse_codes", "returns nothing; tests/test_codes.py")
exempt("weights.require_arrays", "returns nothing; tests/test_shapes_only.py")
exempt(
    "weights.named_leaves", "returns the leaves themselves; tests/test_weights.py looks at names"
)
