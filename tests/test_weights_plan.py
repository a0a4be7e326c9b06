"""A plan says of every tensor of a network how to read it, or why not, before any data is there."""

import os
import subprocess
import sys
from collections import Counter
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_jax import optim, prune
from spectral_jax.weights import matrices, named_leaves, places, plan, skipped


def shaped(*names_and_shapes):
    """``"fc.weight 10 64"`` -> ``{"fc.weight": (10, 64)}``."""
    words = [line.split() for line in names_and_shapes]
    return {name: tuple(map(int, sizes)) for name, *sizes in words}


def views(*names_and_shapes, **options):
    return {view.name: view for view in plan(shaped(*names_and_shapes), **options).views}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def read(view, *arrays):
    return np.asarray(view.read(*arrays))


def reasons(found):
    return {entry.name: entry.reason for entry in found.skipped}


# Layouts: each view against what the layer computes, written as the framework documents it.


@pytest.mark.parametrize(
    "name, equation",
    [
        ("fc.weight", "oi,i->o"),
        ("fc/kernel", "io,i->o"),
        ("fc/w", "io,i->o"),
        ("a/vars/0", "io,i->o"),
        ("vars/0", "io,i->o"),
    ],
)
def test_a_dense_layer_maps_inputs_to_outputs(name, equation):
    stored, x = normal(0, 3, 5), normal(1, 5 if equation.startswith("oi") else 3)
    (view,) = plan({name: stored.shape}).views
    assert (view.kind, view.note) == ("dense", "")
    np.testing.assert_allclose(x @ read(view, stored), np.einsum(equation, stored, x))


CONVOLUTIONS = {
    "torch, 1-D": ("c.weight", "oih,hi->o", (8, 4, 3)),
    "torch, 2-D": ("c.weight", "oihw,hwi->o", (8, 4, 3, 2)),
    "torch, 3-D": ("c.weight", "oihwd,hwdi->o", (8, 4, 3, 2, 5)),
    "flax, 1-D": ("Conv_0/kernel", "hio,hi->o", (3, 4, 8)),
    "flax, 2-D": ("Conv_0/kernel", "hwio,hwi->o", (3, 2, 4, 8)),
    "keras, 3-D": ("conv3d/kernel", "hwdio,hwdi->o", (3, 2, 5, 4, 8)),
    "haiku, 1-D": ("conv1_d/w", "hio,hi->o", (3, 4, 8)),
    "tf, 2-D": ("conv/weights", "hwio,hwi->o", (3, 2, 4, 8)),
}


@pytest.mark.parametrize("name, equation, shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_maps_a_patch_to_channels(name, equation, shape):
    patch_axes = equation.split(",")[1].split("->")[0]
    sizes = dict(zip(equation.split(",")[0], shape, strict=True))
    stored, patch = normal(0, *shape), normal(1, *(sizes[axis] for axis in patch_axes))
    expected = np.einsum(equation, stored, patch)
    positions, flattened, channels = (
        plan({name: shape}, conv=conv).views[0] for conv in ("positions", "flattened", "channels")
    )
    at_positions = np.einsum("pi,pio->o", patch.reshape(-1, sizes["i"]), read(positions, stored))
    np.testing.assert_allclose(at_positions, expected)
    np.testing.assert_allclose(patch.ravel() @ read(flattened, stored), expected)
    np.testing.assert_allclose(
        read(channels, stored), np.abs(read(positions, stored)).sum(axis=0), rtol=1e-12
    )


@pytest.mark.parametrize(
    "name, bias, equation, shape",
    [
        ("up.weight", "up.bias", "iohw,i->hwo", (8, 4, 3, 2)),
        ("ConvTranspose_0/kernel", "ConvTranspose_0/bias", "hwio,i->hwo", (3, 2, 8, 4)),
        ("conv2d_transpose/kernel", "conv2d_transpose/bias", "hwoi,i->hwo", (3, 2, 4, 8)),
    ],
)
def test_a_transposed_convolution_maps_a_channel_to_a_patch(name, bias, equation, shape):
    stored, x = normal(0, *shape), normal(1, 8)
    (view,) = plan({name: shape, bias: (4,)}).views
    expected = np.einsum(equation, stored, x).reshape(-1, 4)
    np.testing.assert_allclose(x @ read(view, stored), expected)


@pytest.mark.parametrize(
    "names, layout",
    [
        (["deconv1.weight 8 4 3 3"], (9, 8, 4)),
        (["conv2d_transpose/kernel 3 3 4 8", "bn/gamma 4", "bn/beta 4"], (9, 8, 4)),
        (["conv2_d_transpose/w 3 3 4 8", "linear/w 2 3", "linear/b 3"], (9, 8, 4)),
        (["ConvTranspose_0/kernel 3 3 8 4"], (9, 8, 4)),
    ],
    ids=["torch", "keras", "haiku", "flax"],
)
def test_without_a_bias_the_name_and_the_framework_tell_a_transposed_convolution(names, layout):
    assert plan(shaped(*names)).views[0].shape == layout


def test_a_grouped_convolution_is_read_group_by_group():
    stored, x = normal(0, 8, 2, 3, 3), normal(1, 4, 2, 9)  # four groups of two channels
    told = {"c.weight": "grouped:4"}
    by_torch = np.einsum("goip,gip->go", stored.reshape(4, 2, 2, 9), x)
    (view,) = plan({"c.weight": stored.shape}, kinds=told).views
    assert (view.kind, view.shape) == ("grouped", (36, 2, 2))
    matrix = read(view, stored).reshape(4, 9, 2, 2)
    np.testing.assert_allclose(np.einsum("gpio,gip->go", matrix, x), by_torch)
    (view,) = plan({"c.weight": stored.shape}, kinds=told, conv="flattened").views
    flat = x.transpose(0, 2, 1).reshape(4, 18)
    np.testing.assert_allclose(np.einsum("gm,gmo->go", flat, read(view, stored)), by_torch)


@pytest.mark.parametrize(
    "names",
    [
        ("s.weight 16 3 3 3", "dw.weight 16 1 3 3"),
        ("c/kernel 3 3 3 16", "d/depthwise_kernel 3 3 16 1"),
        ("c/kernel 3 3 3 16", "d/depthwise_kernel 3 3 8 2"),
        ("c/weights 3 3 3 16", "d/depthwise_weights 3 3 16 1"),
        ("layers/conv2d/vars/0 3 3 3 16", "layers/depthwise_conv2d/vars/0 3 3 8 2"),
        ("Conv_0/kernel 3 3 3 16", "Conv_1/kernel 3 3 1 16"),
        ("features.0.0.weight 16 3 3 3", "features.1.conv.0.weight 16 1 3 3"),
        ("blocks.0.c.weight 16 1 3 3", "blocks.1.c.weight 16 1 3 3"),
    ],
)
def test_a_depthwise_convolution_has_one_column_per_filter(names):
    shapes = shaped(*names)
    view = plan(shapes).views[-1]
    assert (view.kind, view.shape, view.note) == ("depthwise", (9, 16), "")
    stored = normal(0, *shapes[view.name])
    first = stored[0].ravel() if ".weight" in view.name else stored.reshape(9, -1)[:, 0]
    np.testing.assert_array_equal(read(view, stored)[:, 0], first)


def test_the_channel_graph_of_a_depthwise_convolution_has_a_block_per_channel():
    stored = normal(0, 3, 3, 8, 2)
    (view,) = plan({"d/depthwise_kernel": stored.shape}, conv="channels").views
    expected = np.abs(stored).sum(axis=(0, 1))[:, None, :]
    np.testing.assert_allclose(read(view, stored), expected)


def test_the_stem_of_a_network_on_grey_images_is_no_depthwise_convolution():
    stem, second = plan(shaped("c.0.weight 16 1 3 3", "c.1.weight 32 16 3 3")).views
    assert (stem.kind, stem.shape, second.kind) == ("conv", (9, 1, 16), "conv")
    assert "if it is depthwise" in stem.note


# Attention and recurrence


@pytest.mark.parametrize(
    "name, shape",
    [
        ("attn.in_proj_weight", (24, 8)),
        ("attn.qkv.weight", (24, 8)),
        ("attn.Wqkv.weight", (24, 8)),
        ("h.0.attn.c_attn.weight", (24, 8)),
        ("h.0.attn.c_attn.weight", (8, 24)),
        ("attn/qkv/kernel", (8, 24)),
        ("attn.to_qkv.weight", (30, 8)),
    ],
)
def test_fused_attention_is_split_in_queries_keys_values(name, shape):
    stored, x = normal(0, *shape), normal(1, 8)
    fused = np.tensordot(x, stored, axes=(0, shape.index(8)))
    found = plan({name: shape}).views
    assert [view.name for view in found] == [f"{name}:{part}" for part in "qkv"]
    assert {view.kind for view in found} == {"attention"}
    np.testing.assert_allclose(np.concatenate([x @ read(view, stored) for view in found]), fused)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("attn.qkv_proj.weight 48 32", "48 outputs of 32 inputs do not tell the sizes"),
        ("attn.c_attn.weight 48 32", "48 outputs of 32 inputs do not tell the sizes"),
        ("attention.query_key_value.weight 96 32", "interleaves"),
    ],
)
def test_fused_attention_whose_parts_are_unknown_is_not_split(line, reason):
    (view,) = views(line).values()
    assert view.kind == "attention" and view.shape[0] == 32 and reason in view.note


@pytest.mark.parametrize(
    "query, output",
    [
        ("a/query/kernel", "a/out/kernel"),
        ("attention/query_dense/vars/0", "attention/output_dense/vars/0"),
        ("attention/_query_dense/vars/0", "attention/_output_dense/vars/0"),
    ],
    ids=["flax", "keras", "keras, private"],
)
def test_heads_of_attention_are_folded(query, output):
    q, out, x = normal(0, 8, 2, 3), normal(1, 2, 3, 8), normal(2, 8)
    from_model, to_model = plan({query: q.shape, output: out.shape}).views
    heads = np.einsum("d,dhk->hk", x, q)
    np.testing.assert_allclose(x @ read(from_model, q), heads.ravel())
    np.testing.assert_allclose(
        heads.ravel() @ read(to_model, out), np.einsum("hk,hkd->d", heads, out)
    )


def test_outputs_on_two_axes_are_told_by_their_bias():
    w, x = normal(0, 6, 2, 3), normal(1, 6)
    (view,) = views("layers/einsum_dense/vars/0 6 2 3", "layers/einsum_dense/vars/1 2 3").values()
    assert view.kind == "attention" and "bias" in view.note
    np.testing.assert_allclose(x @ read(view, w), np.einsum("d,dhk->hk", x, w).ravel())


@pytest.mark.parametrize(
    "kernel, bias",
    [
        ("4 6 3", "4 3"),  # experts or stacked networks: [n, in, out]
        ("3 3 5", "3 5"),  # either
        ("4 4 4", "4 4"),
        ("4 6 3", "3"),  # merged heads, or split ones with one bias for all
        ("4 6 3", "4 6"),
        ("6 1 3", "1 3"),
    ],
)
def test_an_einsum_that_its_bias_does_not_tell_is_not_guessed(kernel, bias):
    found = plan(
        shaped("fc/kernel 3 2", f"einsum_dense/kernel {kernel}", f"einsum_dense/bias {bias}")
    )
    assert "equation is not stored" in reasons(found)["einsum_dense/kernel"]


def test_a_kernel_of_many_axes_is_read_as_told():
    w = normal(0, 2, 3, 8)
    shapes = {"einsum_dense/kernel": w.shape}
    for kind, fold in (("attention", (2, 24)), ("attention:1", (2, 24)), ("attention:2", (6, 8))):
        (view,) = plan(shapes, kinds={"einsum*": kind}).views
        np.testing.assert_array_equal(read(view, w), w.reshape(fold))
    for kind in ("attention:3", "attention:0"):
        with pytest.raises(ValueError, match="cannot be"):
            plan(shapes, kinds={"einsum*": kind})
    with pytest.raises(ValueError, match="cannot be"):
        plan({"fc/kernel": (6, 18)}, kinds={"fc/kernel": "attention:2"})


RECURRENT = {
    "torch LSTM": (["weight_ih_l0 20 3", "weight_hh_l0 20 5"], "ifgo", [3, 5]),
    "torch LSTM, reverse": (
        ["weight_ih_l1_reverse 20 3", "weight_hh_l1_reverse 20 5"],
        "ifgo",
        [3, 5],
    ),
    "torch GRU": (["r.weight_ih_l0 15 3", "r.weight_hh_l0 15 5"], "rzn", [3, 5]),
    "torch LSTM cell": (["c.weight_ih 20 3", "c.weight_hh 20 5"], "ifgo", [3, 5]),
    "keras LSTM": (["lstm/kernel 3 20", "lstm/recurrent_kernel 5 20"], "ifco", [3, 5]),
    "keras GRU": (["gru/kernel 3 15", "gru/recurrent_kernel 5 15"], "zrh", [3, 5]),
    "keras 3 GRU": (
        [
            "bidirectional/forward_layer/cell/vars/0 3 15",
            "bidirectional/forward_layer/cell/vars/1 5 15",
        ],
        "zrh",
        [3, 5],
    ),
    "keras 3 LSTM": (["lstm/cell/vars/0 3 20", "lstm/cell/vars/1 5 20"], "ifco", [3, 5]),
    "tf LSTM": (["rnn/lstm_cell/kernel:0 8 20"], "ijfo", [8]),
    "tf basic LSTM": (["rnn/basic_lstm_cell/kernel 8 20"], "ijfo", [8]),
    "tf GRU": (["gru_cell/gates/kernel 8 10"], "ru", [8]),
    "haiku LSTM": (["lstm/linear/w 8 20"], "igfo", [8]),
    "haiku GRU": (["gru/w_i 3 15", "gru/w_h 5 15"], "zra", [3, 5]),
}


@pytest.mark.parametrize("lines, gates, inputs", RECURRENT.values(), ids=RECURRENT)
def test_a_recurrent_kernel_is_split_in_its_gates(lines, gates, inputs):
    shapes = shaped(*lines)
    found = plan(shapes).views
    assert {(view.kind, view.note) for view in found} == {("recurrent", "")}
    assert [view.name.rpartition(":")[2] for view in found] == [*gates] * len(inputs)
    assert [view.shape for view in found] == [(n, 5) for n in inputs for _ in gates]
    for name, shape in shapes.items():
        stored = normal(0, *shape)
        parts = [read(view, stored) for view in found if view.sources == (name,)]
        expected = stored.T if "weight_" in name else stored
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)


def test_the_projection_of_an_lstm_has_no_gates():
    torch = views("weight_ih_l0 20 3", "weight_hh_l0 20 2", "weight_hr_l0 2 5")
    assert Counter(view.shape for view in torch.values()) == {(3, 5): 4, (2, 5): 4, (5, 2): 1}
    tf = views("lstm_cell/kernel 5 20", "lstm_cell/projection/kernel 5 2")
    assert {view.kind for view in tf.values()} == {"recurrent"}


def test_an_input_kernel_without_its_recurrent_kernel_is_not_split():
    (view,) = views("weight_ih_l0 20 3").values()
    assert view.shape == (3, 20) and "not split" in view.note


# Low rank, tied


LOW_RANK = {
    "kohya": ("q.lora_down.weight 2 6", "q.lora_up.weight 5 2", lambda a, b: (b @ a).T),
    "diffusers": ("q_lora.down.weight 2 6", "q_lora.up.weight 5 2", lambda a, b: (b @ a).T),
    "peft": ("q.lora_A.weight 2 6", "q.lora_B.weight 5 2", lambda a, b: (b @ a).T),
    "peft, named": ("q.lora_A.x.weight 2 6", "q.lora_B.x.weight 5 2", lambda a, b: (b @ a).T),
    "nnx": ("q/lora_a 6 2", "q/lora_b 2 5", lambda a, b: a @ b),
    "kernels": ("q/kernel_a 6 2", "q/kernel_b 2 5", lambda a, b: a @ b),
    "factors": ("q/u 6 2", "q/v 2 5", lambda a, b: a @ b),
    "factors, as of an SVD": ("q/u 6 2", "q/v 5 2", lambda a, b: a @ b.T),
}


@pytest.mark.parametrize("first, second, expected", LOW_RANK.values(), ids=LOW_RANK)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_low_rank_pair_is_its_product(first, second, expected, flip, array):
    shapes = shaped(*((second, first) if flip else (first, second)))
    a, b = (normal(i, *shape) for i, shape in enumerate(shaped(first, second).values()))
    (view,) = plan(shapes).views
    assert (view.kind, view.shape) == ("low_rank", (6, 5))
    assert view.sources == tuple(shaped(first, second))
    np.testing.assert_allclose(read(view, array(a), array(b)), expected(a, b), rtol=1e-5)


def test_two_layers_that_happen_to_be_called_u_and_v_are_no_pair():
    assert [view.kind for view in views("u/kernel 4 6", "v/kernel 6 3").values()] == ["dense"] * 2


@pytest.mark.parametrize(
    "options, word",
    [({"kinds": {"*lora_B": "skip"}}, "kinds"), ({"dtypes": {"q/lora_B": "int8"}}, "int8")],
)
def test_half_an_adapter_is_listed_and_no_layer(options, word):
    found = plan(shaped("fc/kernel 6 5", "q/lora_A 2 6", "q/lora_B 5 2"), **options)
    assert [view.name for view in found.views] == ["fc/kernel"]
    assert "part of an adapter (lora_A)" in reasons(found)["q/lora_A"]
    assert word in reasons(found)["q/lora_B"]
    told = plan(shaped("q/lora_A 2 6", "q/lora_B 5 2"), kinds={"q/lora_A": "dense"})
    assert [view.name for view in told.views] == ["q/lora_A"]


def test_half_of_what_may_be_two_layers_is_a_layer():
    found = plan(shaped("q/u 6 2", "q/v 2 5"), kinds={"q/v": "skip"})
    assert [(view.name, view.kind) for view in found.views] == [("q/u", "dense")]


def test_the_factors_of_a_convolution_are_its_flattened_update():
    lines = "c.lora_down.weight 2 3 3 3", "c.lora_up.weight 5 2 1 1"
    down, up = (normal(i, *shape) for i, shape in enumerate(shaped(*lines).values()))
    (view,) = plan(shaped(*lines)).views
    kernel = np.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    np.testing.assert_allclose(read(view, down, up), kernel.reshape(5, 27).T)


def test_an_adapter_may_have_a_higher_rank_than_its_layer():
    lines = "in.lora_A.weight 16 4", "in.lora_B.weight 32 16"
    a, b = (normal(i, *shape) for i, shape in enumerate(shaped(*lines).values()))
    (view,) = plan(shaped(*lines)).views
    np.testing.assert_allclose(read(view, a, b), (b @ a).T)


# Each name, its shape, and the update [out, in] as its authors define it.
UPDATES = {
    "LoHa": (
        {"hada_w1_a": (5, 2), "hada_w1_b": (2, 6), "hada_w2_a": (5, 2), "hada_w2_b": (2, 6)},
        lambda a, b, c, d: (a @ b) * (c @ d),
    ),
    "LoKr": ({"lokr_w1": (2, 3), "lokr_w2": (4, 5)}, np.kron),
    "LoKr in factors": (
        {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)},
        lambda w, a, b: np.kron(w, a @ b),
    ),
}


@pytest.mark.parametrize("parts, update", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_products_of_other_adapters_are_their_update(parts, update, array):
    stored = [normal(i, *shape) for i, shape in enumerate(parts.values())]
    expected = update(*stored).T
    shapes = {f"q.{name}": shape for name, shape in reversed(parts.items())} | {"q.alpha": ()}
    (view,) = plan(shapes).views
    assert view.sources == tuple(f"q.{name}" for name in parts)
    assert (view.kind, view.shape) == ("low_rank", expected.shape) and "scale" in view.note
    np.testing.assert_allclose(read(view, *map(array, stored)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "lines",
    [
        ("q.lora_A.weight 2 6", "q.lora_B.weight 5 2", "q.lora_E.weight 2 1"),
        ("q.lora_A.weight 2 6", "q.lora_B.weight 5 3"),
        ("q.lora_down.weight 2 6 1 1", "q.lora_mid.weight 2 2 3 3", "q.lora_up.weight 5 2 1 1"),
        ("q.hada_w1_a 5 2", "q.hada_w1_b 2 6", "q.hada_w2_a 5 2"),
        ("q.lokr_w1 2 3", "q.lokr_w2_a 4 2", "q.lokr_w2_b 3 5"),
        ("q.oft_r 4 8 8",),
        ("q.dora_scale 6 1", "q.ia3_l 6 1"),
        ("layers/q/lora_a 12 6 2", "layers/q/lora_b 12 2 5"),
    ],
)
def test_an_adapter_of_another_form_is_listed_and_no_layer(lines):
    found = plan(shaped("fc.weight 6 5", *lines))
    assert [view.name for view in found.views] == ["fc.weight"]
    assert all("adapter" in reason for reason in reasons(found).values())
    assert len(found.skipped) == len(lines)


# Quantised weights


FLOAT8 = ml_dtypes.float8_e4m3fn
SCALES = {
    "blocks of 128, the last ones narrower": ("weight_scale_inv", (2, 3), (200, 300), 128),
    "one": ("scale_weight", (), (4, 6), 4),
    "one, in an axis": ("weight_scale", (1,), (4, 6), 4),
    "a row": ("weight_scale", (4, 1), (4, 6), 4),
    "an output": ("weight_scale", (4,), (4, 6), 4),
    "32 columns": ("scale", (4, 2), (4, 64), 32),
}


@pytest.mark.parametrize("name, grid, shape, block", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_float8_with_scales_is_read_as_the_weights_that_it_stands_for(
    name, grid, shape, block, array
):
    codes = normal(0, *shape).astype(FLOAT8)
    scale = np.exp(normal(1, *grid)).astype("float32")
    expected = np.empty(shape, "float32")
    rows, columns = grid if len(grid) == 2 else (*grid, 1, 1)[:2]
    row, column = (128, 128) if block == 128 else (-(-shape[0] // rows), -(-shape[1] // columns))
    for i, j in np.ndindex(shape):
        expected[i, j] = (
            np.float32(codes[i, j]) * scale.reshape(rows, columns)[i // row, j // column]
        )
    shapes = {"fc.weight": shape, f"fc.{name}": grid, "fc.input_scale": ()}
    found = plan(shapes, dtypes={"fc.weight": "float8_e4m3fn", f"fc.{name}": "float32"})
    (view,) = found.views
    assert (view.name, view.shape, view.note) == ("fc.weight", shape[::-1], "")
    assert view.sources == ("fc.weight", f"fc.{name}")
    assert list(reasons(found)) == ["fc.input_scale"]
    np.testing.assert_array_equal(read(view, array(codes), array(scale)), expected.T)


def test_float8_parameters_are_scaled_before_a_fused_kernel_is_split():
    kernel, scale = normal(0, 12, 4).astype(FLOAT8), np.exp(normal(1, 12, 1)).astype("float32")
    layer = {"weight": jnp.asarray(kernel), "weight_scale": jnp.asarray(scale)}
    thirds = np.split(kernel.astype("float32") * scale, 3)
    found = matrices({"c_attn": layer}, framework="torch")
    for part, third in zip("qkv", thirds, strict=True):
        np.testing.assert_array_equal(found[f"c_attn/weight:{part}"].matrix, third.T)


@pytest.mark.parametrize(
    "scales",
    [
        {"weight_scale": (3, 2)},  # of 200 x 300: neither blocks of 128 nor equal ones
        {"weight_scale": (300,)},
        {"weight_scale": (100, 1)},  # two rows each: more likely something else
        {"weight_scale": (), "weight_scale_2": ()},
        {"weight_scale_inv": (2, 3, 1)},
    ],
)
def test_float8_whose_scales_leave_a_doubt_is_left_out(scales):
    shapes = {"fc.weight": (200, 300), "head.weight": (3, 4)}
    shapes |= {f"fc.{name}": shape for name, shape in scales.items()}
    found = plan(shapes, dtypes={"fc.weight": "float8_e4m3fn"})
    assert [view.name for view in found.views] == ["head.weight"]
    assert "does not tell how" in reasons(found)["fc.weight"]
    assert len(found.skipped) == 1 + len(scales)


def test_the_layers_of_a_stack_of_float8_have_scales_of_their_own():
    kernel = normal(0, 4, 8, 6).astype(FLOAT8)
    scale = np.exp(normal(1, 4, 1, 6)).astype("float32")
    params = {"layers": {"kernel": kernel, "kernel_scale": scale, "bias": np.ones((4, 6))}}
    found = matrices(params)
    expected = kernel.astype("float32") * scale
    assert list(found) == [f"layers/kernel:{layer}" for layer in range(4)]
    for layer in range(4):
        np.testing.assert_array_equal(found[f"layers/kernel:{layer}"].matrix, expected[layer])
    assert places(named_leaves(params)) == {}


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_scales_belong_to_codes_whatever_these_are_called(dtype):
    shapes = {
        "experts.up_proj": (4, 256, 384),
        "experts.up_proj_scale_inv": (4, 2, 3),
        "experts.down_proj": (4, 384, 256),
        "experts.down_proj_scales": (4, 384, 1),
        "fc.weight": (6, 5),
        "fc.weight_scales.weight": (8, 5),
    }
    codes = ("experts.up_proj", "experts.down_proj")
    found = plan(shapes, dtypes={n: dtype if n in codes else "float32" for n in shapes})
    read = {view.name.partition(":")[0] for view in found.views}
    assert read - {*codes} == {"fc.weight", "fc.weight_scales.weight"}


def test_float8_without_a_scale_says_so():
    (view,) = plan({"fc.weight": (3, 4)}, dtypes={"fc.weight": "float8_e5m2"}).views
    assert view.note == "float8 without a scale: read as stored"


def test_float4_is_scaled_as_float8_is():
    codes = normal(0, 4, 64).astype(ml_dtypes.float4_e2m1fn)
    scale = np.exp2(np.arange(8)).reshape(4, 2).astype(ml_dtypes.float8_e8m0fnu)
    found = matrices({"fc": {"kernel": codes, "kernel_scale": scale}})["fc/kernel"].matrix
    expected = codes.astype("float32") * scale.astype("float32").repeat(32, axis=1)
    np.testing.assert_array_equal(found, expected)


# What quantised layers hold beside a bias, with the types that their writers give it.
CODES = {
    "GPTQ": {
        "qweight 64 128": "int32",
        "qzeros 4 16": "int32",
        "scales 4 128": "float16",
        "g_idx 512": "int32",
    },
    "AWQ": {"qweight 64 16": "int32", "qzeros 4 16": "int32", "scales 4 128": "float16"},
    "MLX": {"weight 64 16": "uint32", "scales 64 4": "bfloat16", "biases 64 4": "bfloat16"},
    "HQQ": {"W_q 64 32": "uint8", "scale 128 1": "float16", "zero 128 1": "float16"},
    "HQQ, nested": {"W_q 64 32": "uint8", "meta.scale 1 9": "float16", "meta.zero 1 9": "float16"},
    "bitsandbytes, 8 bits": {"weight 64 64": "int8", "SCB 64": "float32", "weight_format": "uint8"},
    "bitsandbytes, 4 bits": {"weight 2048 1": "uint8", "weight.absmax 64": "float32"},
    "compressed-tensors": {
        "weight_packed 64 8": "int32",
        "weight_scale 64 2": "bfloat16",
        "weight_zero_point 8 2": "int32",
    },
    "NVFP4": {
        "weight 64 32": "uint8",
        "weight_scale 64 4": "float8_e4m3fn",
        "weight_scale_2": "float32",
    },
    "AQLM": {"codes 8 4 1": "int8", "codebooks 1 256 1 8": "float16", "scales 8 1 1 1": "float16"},
    "quanto": {"weight._data 64 64": "int8", "weight._scale 64 1": "float16"},
    "SmoothQuant": {"weight 64 64": "int8", "weight_scale 64 1": "float32", "smooth 1 64": "float"},
    "Keras": {"kernel 64 64": "int8", "kernel_scale 64 1": "float32"},
}


@pytest.mark.parametrize("layer", CODES.values(), ids=CODES)
def test_codes_and_what_belongs_to_them_are_no_layers(layer):
    shapes = shaped(*(f"fc.{line}" for line in layer)) | {"fc.bias": (64,), "head.weight": (8, 9)}
    dtypes = dict(zip(shapes, layer.values(), strict=False))
    found = plan(shapes, dtypes=dtypes)
    assert [view.name for view in found.views] == ["head.weight"]
    why = reasons(found)
    assert set(why) == set(shapes) - {"head.weight"}
    assert any("quantised" in reason for reason in why.values())


def test_a_layer_beside_a_quantised_one_is_read():
    shapes = shaped("q.weight 8 8", "q.lora_A.weight 2 8", "q.lora_B.weight 8 2", "k.weight 8 8")
    found = plan(shapes, dtypes={"q.weight": "int8"})
    assert [view.name for view in found.views] == ["q.lora_A.weight*lora_B", "k.weight"]


def test_two_spellings_of_one_path_are_two_tensors():
    found = plan(shaped("q/u 6 2", "q/v 2 5", "q.v 2 5"))
    assert [view.sources for view in found.views] == [("q/u", "q/v"), ("q.v",)]


def test_tied_weights_come_once():
    table = jnp.asarray(normal(0, 9, 4))
    params = {"wte": {"embedding": table}, "head": {"kernel": jnp.ones((4, 4))}, "x": table}
    assert list(matrices(params)) == ["head/kernel", "wte/embedding"]
    (twin,) = skipped(params)
    assert twin == ("x", (9, 4), "tied: the same array as 'wte/embedding'")


def test_names_that_are_told_to_be_tied_are_read_once():
    shapes = shaped("norm.weight 4", "x.weight 4 9", "wte.weight 9 4", "head.weight 9 4")
    found = plan(shapes, tied={"x.weight": "wte.weight", "head.weight": "wte.weight"})
    assert [view.name for view in found.views] == ["x.weight"]
    assert reasons(found)["head.weight"] == "tied: the same array as 'x.weight'"
    found = plan(shapes, tied={"x.weight": "norm.weight"})  # which is no matrix
    assert [view.name for view in found.views] == ["x.weight", "wte.weight", "head.weight"]


# What is left out, and what has to be assumed


SKIPPED = {
    "fc.bias 3": "bias",
    "attention/query/bias 4 8": "bias",
    "attn.bias 1 1 8 8": "bias or attention mask",
    "bn.running_var 3": "batch-norm statistics",
    "bn/moving_mean 3": "batch-norm statistics",
    "bn/mean 3": "batch-norm statistics",
    "bn.num_batches_tracked": "batch-norm statistics",
    "LayerNorm_0/scale 3": "scale of a normalisation",
    "norm.weight 4 4": "scale of a normalisation",
    "step": "scalar",
    "decay 3": "one axis: a scale, a statistic or some other vector",
    "cls_token 1 1 8": "one vector",
    "nothing/kernel 0 3": "empty",
    "rotary_emb.inv_freq 4": "rotary table",
    "rope.cos_cached 1 1 8 4": "rotary table",
    "embeddings.position_ids 1 512": "position buffer",
    "attn.relative_position_index 49 49": "position buffer",
    "opt_state/0/trace/fc/kernel 3 3": "optimiser state",
    "optimizer.state.0.exp_avg 3 3": "optimiser state",
    "conv/kernel/Adam_1 3 3 2 2": "optimiser state",
    "fc/kernel/adam_m 3 2": "optimiser state",
    "fc.weight_mask 3 2": "mask",
    "visual.ln_pre.weight 4": "scale of a normalisation",
    "fno.spectral1.w 4 4 2 2": "weights of a spectral convolution (modes of a transform)",
    "conv0.weights1 4 4 2 2": "weights of a spectral convolution (modes of a transform)",
    "rope_attention.rope.inv_freq 4": "rotary table",
    "relative_attention_bias.weight 32 8": "position buffer",
    "gru.bias_ih_l0 96": "bias",
}


@pytest.mark.parametrize("line, reason", SKIPPED.items(), ids=SKIPPED)
def test_what_is_no_matrix_is_listed_with_its_reason(line, reason):
    found = plan(shaped("fc.weight 3 2", line))
    assert [view.name for view in found.views] == ["fc.weight"]
    assert found.skipped == ((line.split()[0], tuple(map(int, line.split()[1:])), reason),)


@pytest.mark.parametrize(
    "pair",
    [
        ("weight_g 5 1", "weight_v 5 3"),
        ("parametrizations.weight.original0 5 1", "parametrizations.weight.original1 5 3"),
        ("weight_orig 5 3", "weight_orig 5 3"),
    ],
)
def test_a_weight_in_two_pieces_is_not_read_piecewise(pair):
    found = plan(shaped("fc.weight 3 2", *pair))
    assert len(found.views) == 1
    assert all("merge it into the weight" in entry.reason for entry in found.skipped)


@pytest.mark.parametrize(
    "dtype, word", [("int8", "int8"), ("bool", "bool"), ("complex64", "complex")]
)
def test_numbers_that_are_not_real_are_no_weights(dtype, word):
    params = {"fc": {"kernel": np.ones((2, 3))}, "table": np.ones((4, 5), dtype)}
    assert list(matrices(params)) == ["fc/kernel"]
    assert word in skipped(params)[0].reason
    shapes = {"fc/kernel": (2, 3), "table": (4, 5)}
    assert word in plan(shapes, dtypes={"table": dtype}).skipped[0].reason


HARMLESS_WORDS = {
    "spectral, of images": (["b.spectral_conv.weight 24 24 1 1 7"], "conv", (7, 24, 24)),
    "spectral, two wide": (["spectral.weight 8 4 1 2 2", "spectral.bias 8"], "conv", (4, 4, 8)),
    "spectral, further up": (["fourier_branch.0.weight 8 4 3 3"], "conv", (9, 4, 8)),
    "spectral norm": (["spectral_norm.weight 8 4", "spectral_norm.bias 8"], "dense", (4, 8)),
    "rope": (["rope_attention.q_proj.weight 8 4"], "dense", (4, 8)),
    "rotary": (["rotary_block.0.fc.weight 8 4"], "dense", (4, 8)),
    "relative positions": (["relative_position_mlp.fc.weight 8 4"], "dense", (4, 8)),
    "bias": (["debiased_weight 8 4"], "dense", (4, 8)),
    "mask": (["unmask.weight 8 4"], "dense", (4, 8)),
    "Momentum": (["Momentum/fc/kernel 4 8"], "dense", (4, 8)),
    "upconv, further up": (["a/gamma 2", "up_conv/conv2d/kernel 3 3 4 8"], "conv", (9, 4, 8)),
    "a cell of Keras": (["excellent/vars/0 4 8", "excellent/vars/1 8"], "dense", (4, 8)),
    "embedding": (["embedding.weight 8 4", "embedding.bias 8"], "dense", (4, 8)),
}


@pytest.mark.parametrize("lines, kind, shape", HARMLESS_WORDS.values(), ids=HARMLESS_WORDS)
def test_a_word_in_a_name_does_not_outvote_what_the_layer_is(lines, kind, shape):
    (view,) = views(*lines).values()
    assert (view.kind, view.shape) == (kind, shape)


@pytest.mark.parametrize("name", ["conversation/proj/kernel", "conv_stack/mixer/kernel"])
def test_a_convolution_further_up_makes_no_convolution_of_three_axes(name):
    assert "3 axes" in reasons(plan(shaped("fc/kernel 3 2", f"{name} 3 4 8")))[name]


@pytest.mark.parametrize("read_by", ["temp_balance", "svd_prune"])
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_optimisers_leave_numbers_alone_that_are_not_real(read_by, dtype):
    params = {"fc": {"kernel": jnp.ones((64, 64))}, "table": jnp.ones((64, 64), dtype)}
    if read_by == "temp_balance":
        measured = optim.temp_balance(refresh_every=1).init(params).alphas
    else:
        measured = prune.svd_prune(prune.Policy(), steps_per_epoch=1, every=1).init(params).report
    assert list(measured) == ["fc/kernel"]


def test_a_complex_matrix_in_two_arrays_is_not_two_matrices():
    found = plan(shaped("fc/kernel 3 2", "modes/0/real 4 3 2", "modes/0/imag 4 3 2"))
    assert [view.name for view in found.views] == ["fc/kernel"]
    assert all("complex" in entry.reason for entry in found.skipped)


def test_mu_is_the_name_of_a_layer_unless_nu_comes_with_it():
    moments = views("fc/kernel 3 2", "0/mu/fc/kernel 3 2", "0/nu/fc/kernel 3 2")
    assert list(moments) == ["fc/kernel"]
    assert list(views("mu.weight 3 2", "logvar.weight 3 2")) == ["mu.weight", "logvar.weight"]


def test_an_unknown_name_is_read_with_a_note():
    torch, house = views("a.weight 3 2", "b.projector 5 4"), views("projector 5 4")
    assert torch["b.projector"].shape == (4, 5) and "[out, in]" in torch["b.projector"].note
    assert house["projector"].shape == (5, 4) and "[in, out]" in house["projector"].note
    (patch,) = views("patch 3 3 2 8").values()
    assert patch.shape == (9, 2, 8) and "[h, w, in, out]" in patch.note
    (patch,) = views("patch 8 2 3 3").values()
    assert patch.shape == (9, 2, 8) and "[out, in, h, w]" in patch.note


def test_three_axes_are_a_guess_that_is_not_made():
    found = plan(shaped("fc/kernel 3 2", "experts/kernel 4 3 2"))
    assert "say which with kinds" in reasons(found)["experts/kernel"]
    found = plan(shaped("fc/kernel 3 2", "attn/kv_einsum/w 2 1 8 4"))
    assert "say which with kinds" in reasons(found)["attn/kv_einsum/w"]


def test_a_kernel_that_may_be_grouped_says_so():
    fire = "f.squeeze.weight 16 64 1 1", "f.one.weight 64 16 1 1", "f.three.weight 64 16 3 3"
    *_, last = plan(shaped(*fire)).views
    assert last.kind == "conv" and "may have 4 groups" in last.note


# The framework


def test_the_bias_tells_the_outputs_better_than_the_name():
    (view,) = plan(shaped("fc.weight 3 7", "fc.bias 7")).views
    assert view.shape == (3, 7)
    (view,) = plan(shaped("fc.weight 3 7", "fc.bias 7"), framework="torch").views
    assert view.shape == (7, 3)


@pytest.mark.parametrize("framework, shape", [("torch", (5, 3)), ("flax", (3, 5)), ("tf", (3, 5))])
def test_a_named_framework_overrules_leaf_names(framework, shape):
    for name in ("fc.weight", "fc/kernel", "fc"):
        (view,) = plan({name: (3, 5)}, framework=framework).views
        assert view.shape == shape


KINDS = {
    "dense stack": (("e 4 3 2", "dense"), [("e", "dense", (4, 3, 2))]),
    "conv": (("e 4 3 2", "conv"), [("e", "conv", (4, 3, 2))]),
    "grouped": (("e 3 3 2 8", "grouped:2"), [("e", "grouped", (18, 2, 4))]),
    "depthwise": (("e 3 3 8 1", "depthwise"), [("e", "depthwise", (9, 8))]),
    "embedding": (("e 8 3", "embedding"), [("e", "embedding", (8, 3))]),
    "attention": (("e 8 6", "attention"), [(f"e:{p}", "attention", (8, 2)) for p in "qkv"]),
    "recurrent": (("e 8 6", "recurrent:2"), [(f"e:{g}", "recurrent", (8, 3)) for g in "01"]),
}


@pytest.mark.parametrize("told, expected", KINDS.values(), ids=KINDS)
def test_kinds_overrule_everything(told, expected):
    line, kind = told
    found = plan(shaped(line, "fc/kernel 2 2"), kinds={"e*": kind}).views[: len(expected)]
    assert [(view.name, view.kind, view.shape) for view in found] == expected
    stored = normal(0, *shaped(line)["e"])
    assert [read(view, stored).shape for view in found] == [view.shape for view in found]


def test_kinds_can_leave_out_and_the_first_match_wins():
    found = plan(shaped("a/kernel 3 2", "b/kernel 3 2"), kinds={"a/*": "skip", "*": "dense"})
    assert [view.name for view in found.views] == ["b/kernel"]
    assert reasons(found) == {"a/kernel": "skipped by kinds"}


MISUSES = {
    "no tensors": ({}, {}, "shapes: no leaf .*there are no leaves"),
    "no matrix": ({"b.bias": (3,)}, {}, r"shapes: no leaf .*'b.bias' has shape \(3,\): bias"),
    "conv": ({"w": (2, 3)}, {"conv": "rows"}, "conv='rows': choose 'positions'"),
    "framework": ({"w": (2, 3)}, {"framework": "jax"}, "framework='jax': choose"),
    "kind": ({"w": (2, 3)}, {"kinds": {"w": "sparse"}}, r"kinds\['w'\]='sparse': choose"),
    "glob": ({"fc/w": (2, 3)}, {"kinds": {"fc.w": "dense"}}, "no tensor; did you mean 'fc/w'"),
    "shape": ({"w": (2, 3)}, {"kinds": {"w": "conv"}}, r"\(2, 3\), which 'conv' cannot be"),
    "thirds": ({"w": (2, 4)}, {"kinds": {"w": "attention"}}, "which 'attention' cannot be"),
    "groups": ({"w": (3, 3, 2, 4)}, {"kinds": {"w": "grouped:3"}}, "which 'grouped:3' cannot be"),
    "no number": ({"w": (3, 3, 2, 4)}, {"kinds": {"w": "grouped"}}, "write 'grouped:4'"),
}


@pytest.mark.parametrize("shapes, options, message", MISUSES.values(), ids=MISUSES)
def test_misuse_is_named(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        plan(shapes, **options)


# Whole networks


def accounted(shapes, found):
    """Every tensor is read or skipped, never both, and no number is lost or read twice."""
    sources = {name for view in found.views for name in view.sources}
    left_out = {entry.name for entry in found.skipped}
    assert sources | left_out == set(shapes) and not sources & left_out
    whole = sum(prod(shape) for shape in shapes.values())
    parts = sum(prod(part.shape) for part in (*found.views, *found.skipped))
    assert parts == whole


def kinds(found):
    return Counter(view.kind for view in found.views)


def gpt2(layers=12, d=768):
    shapes = shaped(f"wte.weight 50257 {d}", f"wpe.weight 1024 {d}")
    for i in range(layers):
        h = f"h.{i}"
        shapes |= shaped(
            *(f"{h}.{norm}.{leaf} {d}" for norm in ("ln_1", "ln_2") for leaf in ("weight", "bias")),
            *(f"{h}.attn.bias 1 1 1024 1024", f"{h}.attn.c_attn.weight {d} {3 * d}"),
            *(f"{h}.attn.c_attn.bias {3 * d}", f"{h}.attn.c_proj.weight {d} {d}"),
            *(f"{h}.attn.c_proj.bias {d}", f"{h}.mlp.c_fc.weight {d} {4 * d}"),
            *(f"{h}.mlp.c_fc.bias {4 * d}", f"{h}.mlp.c_proj.weight {4 * d} {d}"),
            f"{h}.mlp.c_proj.bias {d}",
        )
    return shapes | shaped(f"ln_f.weight {d}", f"ln_f.bias {d}")


def test_gpt2_is_stored_inputs_first_under_torch_names():
    found = plan(gpt2())
    accounted(gpt2(), found)
    assert kinds(found) == {"embedding": 2, "attention": 36, "dense": 36}
    by_name = {view.name: view for view in found.views}
    assert by_name["h.3.mlp.c_proj.weight"].shape == (3072, 768)
    assert by_name["h.3.attn.c_attn.weight:k"].shape == (768, 768)
    assert not any(view.note for view in found.views)


def test_a_gpt_of_plain_linear_layers_under_the_same_names_is_outputs_first():
    found = views("h.0.attn.c_attn.weight 96 32", "h.0.mlp.c_fc.weight 128 32")
    assert [view.shape for view in found.values()] == [(32, 32)] * 3 + [(32, 128)]


def test_a_llama_block_with_fewer_keys_than_queries():
    block = "model.layers.0"
    linears = {"q_proj": 4096, "k_proj": 1024, "v_proj": 1024, "o_proj": 4096}
    shapes = shaped(
        "model.embed_tokens.weight 32000 4096",
        *(f"{block}.self_attn.{name}.weight {outputs} 4096" for name, outputs in linears.items()),
        *(f"{block}.mlp.{name}_proj.weight 11008 4096" for name in ("gate", "up")),
        *(f"{block}.mlp.down_proj.weight 4096 11008", f"{block}.input_layernorm.weight 4096"),
        *(f"{block}.self_attn.rotary_emb.inv_freq 64", "model.norm.weight 4096"),
        "lm_head.weight 32000 4096",
    )
    found = plan(shapes)
    accounted(shapes, found)
    assert kinds(found) == {"embedding": 1, "dense": 8}
    by_name = {view.name: view.shape for view in found.views}
    assert by_name["model.layers.0.self_attn.k_proj.weight"] == (4096, 1024)
    assert by_name["model.layers.0.mlp.down_proj.weight"] == (11008, 4096)
    assert by_name["lm_head.weight"] == (4096, 32000)


def test_minilm_has_37_linear_layers():
    shapes = shaped(
        *("embeddings.word_embeddings.weight 30522 384", "pooler.dense.weight 384 384"),
        *("embeddings.position_embeddings.weight 512 384", "embeddings.position_ids 1 512"),
        *("embeddings.token_type_embeddings.weight 2 384", "embeddings.LayerNorm.weight 384"),
    )
    for i in range(6):
        layer = f"encoder.layer.{i}"
        shapes |= shaped(
            *(
                f"{layer}.attention.self.{name}.weight 384 384"
                for name in ("query", "key", "value")
            ),
            *(f"{layer}.attention.self.{name}.bias 384" for name in ("query", "key", "value")),
            f"{layer}.attention.output.dense.weight 384 384",
            f"{layer}.intermediate.dense.weight 1536 384",
            f"{layer}.output.dense.weight 384 1536",
            f"{layer}.output.LayerNorm.weight 384",
        )
    found = plan(shapes)
    accounted(shapes, found)
    assert kinds(found) == {"embedding": 3, "dense": 37}


def test_a_vision_transformer_of_flax():
    block, heads = "params/Transformer/encoderblock_0", "MultiHeadDotProductAttention_1"
    shapes = shaped(
        *("params/cls 1 1 768", "params/embedding/kernel 16 16 3 768", "params/embedding/bias 768"),
        "params/Transformer/posembed_input/pos_embedding 1 197 768",
        *(f"{block}/{heads}/{name}/kernel 768 12 64" for name in ("query", "key", "value")),
        *(f"{block}/{heads}/{name}/bias 12 64" for name in ("query", "key", "value")),
        *(f"{block}/{heads}/out/kernel 12 64 768", f"{block}/LayerNorm_0/scale 768"),
        f"{block}/MlpBlock_3/Dense_0/kernel 768 3072",
        f"{block}/MlpBlock_3/Dense_1/kernel 3072 768",
        *("params/head/kernel 768 1000", "params/head/bias 1000"),
    )
    found = plan(shapes)
    accounted(shapes, found)
    assert kinds(found) == {"conv": 1, "embedding": 1, "attention": 4, "dense": 3}
    assert reasons(found)["params/cls"] == "one vector"


def bottleneck(block, before, width, after, groups):
    return shaped(
        f"{block}.conv1.weight {width} {before} 1 1",
        f"{block}.conv2.weight {width} {width // groups} 3 3",
        f"{block}.bn2.running_mean {width}",
        f"{block}.conv3.weight {after} {width} 1 1",
        f"{block}.downsample.0.weight {after} {before} 1 1",
    )


def test_resnet_18_and_the_groups_of_resnext():
    shapes = shaped("conv1.weight 64 3 7 7", "bn1.weight 64", "fc.weight 1000 512", "fc.bias 1000")
    widths = [64, 64, 128, 256, 512]
    for stage, (before, width) in enumerate(zip(widths, widths[1:], strict=False), 1):
        if before != width:
            shapes |= {f"layer{stage}.0.downsample.0.weight": (width, before, 1, 1)}
        for block in range(2):
            inputs = width if block else before
            shapes |= shaped(
                f"layer{stage}.{block}.conv1.weight {width} {inputs} 3 3",
                f"layer{stage}.{block}.conv2.weight {width} {width} 3 3",
                f"layer{stage}.{block}.bn2.num_batches_tracked",
            )
    found = plan(shapes)
    accounted(shapes, found)
    assert kinds(found) == {"conv": 20, "dense": 1}
    assert not any(view.note for view in found.views)

    resnet, resnext = (bottleneck("layer1.0", 64, 128, 256, groups) for groups in (1, 32))
    assert kinds(plan(resnet)) == {"conv": 4}
    found = plan(resnext)
    accounted(resnext, found)
    assert kinds(found) == {"conv": 3, "grouped": 1}
    assert found.views[1].shape == (9 * 32, 4, 4)


def test_mobilenet_of_keras():
    widths = [32, 64, 128, 128, 256]
    shapes = shaped("conv1/kernel 3 3 3 32", "conv1_bn/gamma 32", "conv_preds/kernel 1 1 256 1000")
    for i, (before, width) in enumerate(zip(widths, widths[1:], strict=False), 1):
        shapes |= shaped(
            f"conv_dw_{i}/depthwise_kernel 3 3 {before} 1",
            f"conv_dw_{i}_bn/moving_variance {before}",
            f"conv_pw_{i}/kernel 1 1 {before} {width}",
        )
    found = plan(shapes)
    accounted(shapes, found)
    assert kinds(found) == {"conv": 6, "depthwise": 4}
    assert not any(view.note for view in found.views)


class Zoo(nnx.Module):
    """A layer of each kind, under the names and in the layouts that Flax gives them."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
        self.conv = nnx.Conv(4, 8, (3, 2), rngs=rngs)
        self.deconv = nnx.ConvTranspose(8, 4, (2, 2), rngs=rngs)
        self.dense = nnx.Linear(4, 6, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.embed = nnx.Embed(11, 4, rngs=rngs)
        self.gru = nnx.GRUCell(4, 6, rngs=rngs)
        self.lora = nnx.LoRA(20, 3, 16, rngs=rngs)
        self.lstm = nnx.LSTMCell(4, 6, rngs=rngs)
        self.lstm_fused = nnx.OptimizedLSTMCell(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)


def test_flax_nnx_as_it_is():
    abstract = nnx.state(nnx.eval_shape(lambda: Zoo(nnx.Rngs(0))))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract)
    found = matrices(state)
    assert Counter(matrix.kind for matrix in found.values()) == {
        "attention": 4,
        "conv": 2,
        "dense": 1,
        "depthwise": 1,
        "embedding": 1,
        "low_rank": 1,
        "recurrent": 8 + 6 + 8,
    }
    gates = [matrix.matrix.shape for name, matrix in found.items() if name.startswith("lstm_fused")]
    assert gates == [(6, 6)] * 4 + [(4, 6)] * 4
    assert {entry.reason for entry in skipped(state)} >= {"bias", "scale of a normalisation"}


def test_a_flax_linen_training_state_yields_the_parameters_alone():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.MultiHeadDotProductAttention(2)(linen.Dense(6)(x))
            return linen.LSTMCell(5)(
                linen.LSTMCell(5).initialize_carry(jax.random.key(0), x.shape), x
            )

    params = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((3, 4)))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params)
    training = {"params": params, "opt_state": optax.adam(1e-3).init(params), "step": 3}
    found = matrices(training)
    assert all(name.startswith("params/") for name in found)
    assert Counter(m.kind for m in found.values()) == {"attention": 4, "dense": 1, "recurrent": 8}
    with pytest.raises(ValueError, match="no leaf with two or more axes.*optimiser state"):
        matrices(training["opt_state"])


# Real files

DATA = Path(os.environ.get("SPECTRAL_JAX_DATA", ".")) / "pretrained"
FILES = {
    "resnet20_cifar10": {"conv": 19, "dense": 1},
    "resnet32_cifar10": {"conv": 31, "dense": 1},
    "resnet8_cifar10": {"conv": 9, "dense": 1},
    "autoencoder_toycar": {"dense": 10},
    "ds_cnn_s_kws": {"conv": 5, "depthwise": 4, "dense": 1},
    "lstm_s_kws": {"recurrent": 5, "dense": 1},
}


@pytest.mark.skipif(not DATA.is_dir(), reason="SPECTRAL_JAX_DATA names no folder with pretrained/")
@pytest.mark.parametrize("name, expected", FILES.items(), ids=FILES)
def test_a_trained_network_is_read_whole(name, expected):
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    shapes = {key: array.shape for key, array in arrays.items()}
    found = plan(shapes)
    accounted(shapes, found)
    assert kinds(found) == expected
    for view in found.views:
        matrix = view.read(*(arrays[source] for source in view.sources))
        assert isinstance(matrix, np.ndarray) and matrix.shape == view.shape


# Properties

NAMES = ["a.weight", "Conv_0/kernel", "b/w", "b.qkv.weight", "e/embedding", "r/recurrent_kernel"]
SHAPES = st.lists(st.integers(1, 6), max_size=5).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.dictionaries(st.sampled_from(NAMES) | st.text("ab/.", min_size=1), SHAPES),
    conv=st.sampled_from(["positions", "flattened"]),
)
def test_every_number_is_read_once_or_skipped(shapes, conv):
    shapes = {"fc/kernel": (2, 3), **shapes}
    found = plan(shapes, conv=conv)
    accounted(shapes, found)
    sizes = [prod(shape) for shape in shapes.values()]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    arrays = {
        name: np.arange(start, start + size).reshape(shape)
        for (name, shape), start, size in zip(shapes.items(), starts, sizes, strict=False)
    }
    matrices_read = [view.read(*(arrays[name] for name in view.sources)) for view in found.views]
    assert [matrix.shape for matrix in matrices_read] == [view.shape for view in found.views]
    left_out = [arrays[entry.name] for entry in found.skipped]
    numbers = np.concatenate([np.ravel(part) for part in (*matrices_read, *left_out)])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(sum(sizes)))


def test_a_view_reads_the_same_from_numpy_and_under_jit():
    shapes = shaped("c.weight 8 4 3 3", "attn.in_proj_weight 24 8", "d.weight 5 3")
    for conv in ("positions", "flattened", "channels"):
        for view in plan(shapes, conv=conv).views:
            stored = normal(0, *shapes[view.sources[0]]).astype(np.float32)
            np.testing.assert_allclose(jax.jit(view.read)(stored), view.read(stored), rtol=1e-5)


def test_a_plan_needs_neither_jax_nor_numpy():
    code = (
        "import sys; from spectral_jax.weights import plan; plan({'fc.weight': (3, 2)});"
        "print(sorted({'jax', 'jaxtyping', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_factor_that_was_split_again_is_a_pair_of_its_own():
    found = plan({"k/u/u": (40, 3), "k/u/v": (3, 20), "k/v": (20, 50)})
    assert [view.kind for view in found.views] == ["low_rank", "dense"]
    assert [view.shape for view in found.views] == [(40, 20), (20, 50)]
