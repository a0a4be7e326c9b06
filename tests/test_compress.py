"""``compress``: the factored checkpoint computes what the truncated network computes."""

import json
import math
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from spectral_jax import weights
from spectral_jax.checkpoints import load, save_safetensors
from spectral_jax.cli import main
from spectral_jax.compress import compress


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def spiked(m, n, rank, *, strength=4.0, sigma=0.1, seed=0):
    """Noise with ``rank`` directions that stand far above its edge."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in (m, n))
    edge = sigma * (math.sqrt(m) + math.sqrt(n))
    signal = strength * edge * u @ v.T
    return (signal + sigma * rng.standard_normal((m, n))).astype(np.float32)


def best(w, rank):
    u, s, vt = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


FLAX = {
    "spiked/kernel": spiked(120, 80, 7),
    "spiked/bias": noise(80),
    "conv/kernel": spiked(3 * 3 * 16, 40, 5).reshape(3, 3, 16, 40),
    "noise/kernel": noise(90, 60),
    "head/kernel": spiked(60, 10, 2),
}
TORCH = {
    "spiked.weight": spiked(80, 120, 7),
    "spiked.bias": noise(80),
    "conv.weight": spiked(40, 16 * 3 * 3, 5).reshape(40, 16, 3, 3),
    "square.weight": spiked(64, 64, 3),
    "square.bias": noise(64),
}


def rows(result):
    return {row["layer"]: row for row in result.rows}


# What is written


def test_planted_spikes_are_found_and_the_factors_are_the_best_of_their_rank():
    result = compress(FLAX, gate=1.0)
    assert {name: row["rank"] for name, row in rows(result).items()} == {
        "spiked/kernel": 7,
        "conv/kernel": 5,
        "noise/kernel": 0,
        "head/kernel": 2,
    }
    u, v = (result.tensors[f"spiked/kernel/{letter}"] for letter in "uv")
    assert (u.shape, v.shape, u.dtype) == ((120, 7), (7, 80), np.float32)
    np.testing.assert_allclose(u @ v, best(FLAX["spiked/kernel"], 7), atol=1e-5)


def test_a_convolution_becomes_its_window_and_a_1_x_1_one():
    tensors = compress(FLAX).tensors
    u, v = tensors["conv/kernel/u"], tensors["conv/kernel/v"]
    assert (u.shape, v.shape) == ((3, 3, 16, 5), (1, 1, 5, 40))
    product = u.reshape(-1, 5) @ v.reshape(5, 40)
    np.testing.assert_allclose(product, best(FLAX["conv/kernel"].reshape(-1, 40), 5), atol=1e-5)


def test_torch_factors_are_layers_in_torch_s_own_layout():
    tensors = compress(TORCH).tensors
    x = noise(5, 120, seed=1)
    u, v = tensors["spiked.weight.u"], tensors["spiked.weight.v"]
    assert (u.shape, v.shape) == ((7, 120), (80, 7))
    np.testing.assert_allclose(x @ u.T @ v.T, x @ best(TORCH["spiked.weight"], 7).T, atol=1e-3)
    u, v = tensors["conv.weight.u"], tensors["conv.weight.v"]
    assert (u.shape, v.shape) == ((5, 16, 3, 3), (40, 5, 1, 1))
    product = np.einsum("kihw,okab->oihw", u, v)
    whole = best(TORCH["conv.weight"].reshape(40, -1), 5)
    np.testing.assert_allclose(product.reshape(40, -1), whole, atol=1e-5)


@pytest.mark.parametrize("network", [FLAX, TORCH], ids=["flax", "torch"])
def test_a_dense_layer_in_factors_is_read_back_as_one_low_rank_matrix(network):
    result = compress(network)
    plan = weights.plan({name: tensor.shape for name, tensor in result.tensors.items()})
    views = {view.sources: view for view in plan.views}
    dense = [row for row in result.rows if row["kind"] == "dense" and row["outcome"] == "factored"]
    assert dense
    for row in dense:
        separator = "/" if "/" in row["layer"] else "."
        sources = tuple(f"{row['layer']}{separator}{letter}" for letter in "uv")
        view = views[sources]
        assert (view.kind, view.shape) == ("low_rank", (row["m"], row["n"]))
        matrix = view.read(*(result.tensors[name] for name in sources))
        stored = best(network[row["layer"]], row["rank"])
        np.testing.assert_allclose(matrix, stored.T if network is TORCH else stored, atol=1e-5)


def test_the_rest_is_copied_bit_for_bit_and_a_second_run_changes_nothing():
    once = compress(FLAX)
    for name in ("spiked/bias", "noise/kernel"):
        assert once.tensors[name] is FLAX[name]
    again = compress(once.tensors, rank="1")  # a factor of a factor would save parameters, too
    assert {row["outcome"] for row in again.rows if "conv" in row["layer"]} == {"kept"}
    again = compress(once.tensors)
    assert list(again.tensors) == list(once.tensors)
    for name, tensor in again.tensors.items():
        np.testing.assert_array_equal(tensor, once.tensors[name])


def test_parameters_and_errors_of_the_rows_are_those_of_the_tensors():
    result = compress(FLAX, rank="3")
    for name, row in rows(result).items():
        tensors = [t for key, t in result.tensors.items() if key.startswith(name)]
        assert row["parameters_after"] == sum(t.size for t in tensors)
        assert row["parameters_before"] == FLAX[name].size
        if row["outcome"] == "factored":
            w = FLAX[name].reshape(row["m"], row["n"]).astype(float)
            lost = np.linalg.norm(w - best(w, 3)) / np.linalg.norm(w)
            assert row["error"] == pytest.approx(lost, rel=1e-9)


def test_quantised_layers_are_copied_bit_for_bit():
    codes = spiked(96, 64, 3).astype(ml_dtypes.float8_e4m3fn)
    network = {
        "a.weight": codes,
        "a.weight_scale": np.exp(noise(96, 1)),
        "b.qweight": np.ones((96, 64), "int32"),
        "b.scales": spiked(96, 64, 3).astype("float16"),
        "c.lora_down.weight": spiked(64, 96, 3),
        "c.lora_up.weight": spiked(80, 64, 3),
        "head.weight": spiked(96, 64, 3),
    }
    result = compress(network, rank="4")
    factored = {row["layer"] for row in result.rows if row["outcome"] == "factored"}
    assert factored == {"head.weight"}
    assert "too narrow" in rows(result)["a.weight"]["reason"]
    for name, array in network.items():
        if name != "head.weight":
            assert result.tensors[name].tobytes() == array.tobytes()


def test_tied_layers_stay_tied():
    tied = spiked(96, 64, 3)
    network = {"a": {"kernel": tied}, "b": {"kernel": tied}, "c": {"kernel": spiked(96, 64, 3)}}
    result = compress(network, rank="4")
    assert "tied to b/kernel" in rows(result)["a/kernel"]["reason"]
    assert {"a/kernel", "b/kernel", "c/kernel/u", "c/kernel/v"} == set(result.tensors)


def test_a_checkpoint_of_bfloat16_stays_one():
    kernel = spiked(60, 40, 3).astype(ml_dtypes.bfloat16)
    tensors = compress({"a/kernel": kernel}, gate=1.0).tensors
    assert {t.dtype.name for t in tensors.values()} == {"bfloat16"}
    product = tensors["a/kernel/u"].astype(float) @ tensors["a/kernel/v"].astype(float)
    expected = best(kernel.astype(np.float32), 3)
    assert np.linalg.norm(product - expected) < 1e-2 * np.linalg.norm(expected)


# Ranks


def test_energy_keeps_the_least_rank_with_that_share_of_the_squares():
    w = noise(40, 60)
    squares = np.linalg.svd(w.astype(float), compute_uv=False) ** 2
    for share in (0.1, 0.5, 0.9):
        rank = rows(compress({"a/kernel": w}, rank=f"energy={share}"))["a/kernel"]["rank"]
        assert squares[:rank].sum() >= share * squares.sum() > squares[: rank - 1].sum()
    assert rows(compress({"a/kernel": w}, rank="energy=1"))["a/kernel"]["rank"] == 40


def test_gavish_and_donoho_find_planted_spikes_and_none_in_noise():
    found = rows(compress(FLAX, rank="gd"))
    assert [found[f"{name}/kernel"]["rank"] for name in ("spiked", "conv", "noise")] == [7, 5, 0]


def test_a_bulk_unlike_noise_says_so():
    heavy = np.linalg.qr(noise(80, 80))[0] * (np.arange(1, 81) ** -2.0)
    row = compress({"a/kernel": heavy.astype(np.float32)}, rank="5").rows[0]
    assert row["outcome"] == "factored" and "unlike noise" in row["reason"]


def test_a_closed_gate_copies_the_layer():
    heavy = np.linalg.qr(noise(80, 80))[0] * (np.arange(1, 81) ** -2.0).astype(np.float32)
    network = FLAX | {"heavy/kernel": heavy}
    found = rows(compress(network, gate=0.1))
    assert found["heavy/kernel"]["outcome"] == "kept"
    assert "gate is closed" in found["heavy/kernel"]["reason"]
    assert found["spiked/kernel"]["outcome"] == "factored"
    for gate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="gate"):
            compress(FLAX, gate=gate)


@pytest.mark.parametrize("rank", ["mp", "gd"])
def test_a_bulk_that_is_no_noise_is_not_cut_at_its_edge_unless_asked(rank):
    """A trained ResNet-20 falls from 92 to 12 % otherwise."""
    heavy = np.linalg.qr(noise(80, 80))[0] * (np.arange(1, 81) ** -2.0).astype(np.float32)
    assert compress({"a/kernel": heavy}, rank=rank).rows[0]["outcome"] == "kept"
    assert compress({"a/kernel": heavy}, rank=rank, gate=1.0).rows[0]["outcome"] == "factored"
    for other in ("energy=0.9", "5"):
        assert compress({"a/kernel": heavy}, rank=other).rows[0]["outcome"] == "factored"


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
def test_factors_and_numbers_follow_the_scale_of_the_weights(scale):
    kernel = spiked(120, 80, 7).astype(np.float64)
    (plain,), (row,) = (compress({"a/kernel": s * kernel}).rows for s in (1.0, scale))
    assert row["rank"] == plain["rank"] == 7
    for name, s in (("sigma", scale), ("edge", scale), ("ks", 1.0), ("error", 1.0)):
        assert row[name] == pytest.approx(s * plain[name], rel=1e-9)
    tensors = compress({"a/kernel": scale * kernel}).tensors
    product = (tensors["a/kernel/u"] / scale**0.5) @ (tensors["a/kernel/v"] / scale**0.5)
    np.testing.assert_allclose(product, best(kernel, 7), atol=1e-9)


# Layers that are left as they are


@pytest.mark.parametrize(
    "name, tensor, rank, reason",
    [
        ("a/kernel", noise(50, 50), "25", r"25 x \(50 \+ 50\) parameters .* no fewer"),
        ("a/kernel", noise(90, 60), "mp", "rank 0"),
        ("a/kernel", np.zeros((40, 30), np.float32), "mp", "0 of 30 values are not 0"),
        ("a/kernel", noise(40, 3) @ noise(3, 50), "mp", "3 of 40 values are not 0: no noise"),
        ("a/kernel", noise(40, 3) @ noise(3, 50), "gd", "no median of noise: 3 of 40"),
        ("a/kernel", np.zeros((40, 30), np.float32), "4", "rank 0"),
        ("a/kernel", np.zeros((40, 30), np.float32), "energy", "rank 0"),
        ("a/kernel", np.full((40, 30), np.nan, np.float32), "mp", "NaN"),
        ("a/kernel", noise(40, 1), "mp", "0 values to fit"),
        ("emb/embedding", noise(90, 60), "2", "embedding layers are not factored"),
        ("a/kernel", noise(90, 60).astype(ml_dtypes.float8_e4m3fn), "2", "too narrow"),
        ("lstm.weight_hh_l0", noise(80, 20), "2", "several matrices"),
    ],
)
def test_a_layer_that_is_not_factored_is_kept_with_the_reason(name, tensor, rank, reason):
    result = compress({name: tensor}, rank=rank)
    (row,) = result.rows
    assert row["outcome"] == "kept"
    assert row["parameters_after"] == row["parameters_before"] == tensor.size
    assert math.isnan(row["rank"]) or 0 <= row["rank"] <= min(row["m"], row["n"])
    assert re.search(reason, row["reason"])
    assert result.tensors[name] is tensor


def test_a_fused_tensor_is_one_matrix_when_told_so():
    fused = {"lstm.weight_hh_l0": spiked(80, 20, 2)}
    result = compress(fused, kinds={"lstm*": "dense"}, gate=1.0)
    assert result.rows[0]["rank"] == 2 and len(result.tensors) == 2


def test_values_beyond_the_rank_of_the_matrix_are_not_kept():
    product = noise(40, 3) @ noise(3, 50, seed=1)
    result = compress({"a/kernel": product}, rank="10")
    assert result.rows[0]["rank"] == 3
    tensors = result.tensors
    np.testing.assert_allclose(tensors["a/kernel/u"] @ tensors["a/kernel/v"], product, atol=1e-4)


def test_only_the_layers_asked_for_are_factored():
    result = compress(FLAX, layers=["conv*"])
    assert [row["layer"] for row in result.rows] == ["conv/kernel"]
    assert result.tensors["spiked/kernel"] is FLAX["spiked/kernel"]
    assert [row["layer"] for row in compress(FLAX, layers="conv*").rows] == ["conv/kernel"]
    with pytest.raises(ValueError, match="match nothing"):
        compress(FLAX, layers=["cnov*"])


def test_a_name_that_is_taken_is_not_overwritten():
    taken = FLAX | {"spiked/kernel/u": noise(3)}
    with pytest.raises(ValueError, match="spiked/kernel/u.*already"):
        compress(taken)


def test_a_rank_may_be_a_number_and_a_gate_must():
    assert compress(FLAX, rank=3).rows == compress(FLAX, rank="3").rows
    with pytest.raises(ValueError, match="gate='1': distances lie in"):
        compress(FLAX, gate="1")


@pytest.mark.parametrize(
    "rank", [0, True, 2.5, None, "", "0", "-1", "2.5", "energy=0", "energy=2", "energy=x", "pm"]
)
def test_an_unknown_rank_is_refused(rank):
    with pytest.raises(ValueError, match="rank"):
        compress(FLAX, rank=rank)


# The shell


@pytest.fixture
def checkpoint(tmp_path):
    save_safetensors(tmp_path / "model.safetensors", FLAX)
    return tmp_path / "model.safetensors"


def test_the_command_writes_the_network_and_prints_the_table(checkpoint, tmp_path, capsys):
    new = tmp_path / "new.safetensors"
    assert main(["compress", str(checkpoint), "--rank", "mp", "--out", str(new)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[:4] == ["outcome", "layer", "kind", "shape"]
    assert "2 of 4 layers factored" in out and str(new) in err
    worst = max(compress(FLAX).rows, key=lambda row: row["error"])
    assert f"Up to {100 * worst['error']:.0f} % of a layer's norm" in " ".join(out.split())
    written, expected = load(new), compress(FLAX).tensors
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(written[name], tensor)


def test_the_command_says_where_the_cut_takes_signal(tmp_path, capsys):
    values = np.arange(1, 81) ** -2.0
    heavy = np.linalg.qr(noise(80, 80))[0] * values.astype(np.float32)
    save_safetensors(tmp_path / "heavy.safetensors", {"a/kernel": heavy})
    command = ["compress", str(tmp_path / "heavy.safetensors"), "--force", "--out"]
    assert main([*command, str(tmp_path / "new"), "--gate", "1"]) == 0
    assert "warning: in 1 of 1 factored layers the bulk is not noise" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "new")]) == 0
    assert "0 of 1 layers factored" in (out := capsys.readouterr().out) and "a copy" in out
    assert main([*command, str(tmp_path / "new"), "--rank", "energy"]) == 0
    assert "not noise" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["new.npz", "new.pt", "new.keras"])
def test_a_file_is_not_written_under_the_name_of_another_format(name, checkpoint, tmp_path, capsys):
    assert main(["compress", str(checkpoint), "--out", str(tmp_path / name)]) == 2
    assert "new.safetensors" in capsys.readouterr().err and not (tmp_path / name).exists()


def test_json_is_one_object_whose_totals_are_those_of_the_files(checkpoint, tmp_path, capsys):
    new = tmp_path / "new.safetensors"
    assert main(["compress", str(checkpoint), "--rank", "gd", "--out", str(new), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameters_before"] == sum(t.size for t in FLAX.values())
    assert document["parameters_after"] == sum(t.size for t in load(new).values())
    assert len(document["layers"]) == 4 and document["skipped"][0]["reason"] == "bias"


def test_what_was_not_looked_at_has_no_rank_in_json(tmp_path, capsys):
    nan = np.full((9, 6), np.nan, np.float32)
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_safetensors(old, {"emb/embedding": noise(9, 6), "a/kernel": nan})
    assert main(["compress", str(old), "--out", str(new), "--json"]) == 0
    for row in json.loads(capsys.readouterr().out)["layers"]:
        assert row["rank"] is row["spikes"] is row["sigma"] is None


def test_a_file_is_overwritten_only_by_force(checkpoint, tmp_path, capsys):
    new = tmp_path / "new.safetensors"
    new.write_bytes(b"precious")
    command = ["compress", str(checkpoint), "--out", str(new)]
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert new.read_bytes() == b"precious"
    assert main([*command, "--force"]) == 0
    assert "spiked/kernel/u" in load(new)


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["nowhere.npz", "--out", "new"], 4, "no such checkpoint"),
        (["{model}", "--out", "new", "--rank", "pm"], 2, "mp, gd, energy"),
        (["{model}", "--out", "new", "--gate", "1.5"], 2, "gate=1.5"),
        (["{model}", "--out", "new", "--layers", "zzz"], 2, "match nothing"),
        (["{model}", "--out", "nowhere/new"], 2, "no folder"),
        (["{model}", "--out", "."], 2, "folder"),
        (["{model}", "--out", "{model}", "--force"], 2, "is what is to be read"),
        (["{model}", "--out", "new", "--kind", "conv"], 2, "GLOB=KIND"),
        (["{broken}", "--out", "new"], 2, "broken"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    checkpoint, tmp_path, monkeypatch, capsys, words, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    before = sorted(tmp_path.iterdir())
    names = {"model": checkpoint, "broken": tmp_path / "broken.pt"}
    assert main(["compress", *(word.format(**names) for word in words)]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.iterdir()) == before


def test_without_out_there_is_nothing_to_do(checkpoint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compress", str(checkpoint)])
    assert stopped.value.code == 2 and "--out" in capsys.readouterr().err


def test_compressing_does_not_import_jax(checkpoint, tmp_path):
    code = (
        "import sys; from spectral_jax.cli import main;"
        f"main(['compress', {str(checkpoint)!r}, '--out', {str(tmp_path / 'new')!r}]);"
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
