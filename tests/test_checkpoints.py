"""Checkpoints: what is saved is read, in bounded memory, and nothing hostile gets a hold."""

import argparse
import collections
import datetime
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spectral_jax.checkpoints import (
    FORMATS,
    CheckpointError,
    Tensor,
    _base,
    _child,
    _orbax,
    _pickle,
    _torch,
    load,
    open_checkpoint,
    save_safetensors,
)

RNG = np.random.default_rng(0)
WEIGHTS = {
    "dense.weight": RNG.standard_normal((3, 4)).astype("float32"),
    "dense.bias": RNG.standard_normal(4).astype("float64"),
    "steps": np.array(7, "int64"),
    "mask": np.array([True, False, True]),
}


def write_safetensors(path, tensors):
    save_safetensors(path, tensors, metadata={"format": "np"})


def raw_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write_sharded(path, tensors):
    """An index at ``path``, one shard a tensor beside it."""
    weight_map = {}
    for number, (name, array) in enumerate(tensors.items()):
        weight_map[name] = f"{path.name}-{number}.safetensors"
        save_safetensors(path.parent / weight_map[name], {name: array}, force=True)
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_npz(path, tensors):
    with path.open("wb") as file:
        np.savez(file, **tensors)


def write_compressed_npz(path, tensors):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, array)


def opcode_global(module, name):
    return f"c{module}\n{name}\n".encode()


def opcode_text(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def opcode_long(number):
    return b"\x8a\x08" + struct.pack("<q", number)


def opcode_tuple(*items):
    return b"(" + b"".join(items) + b"t"


def opcode_table(pairs):
    return b"}(" + b"".join(opcode_text(key) + value for key, value in pairs) + b"u"


def opcode_storage(key, kind="FloatStorage", count=0):
    return (
        opcode_tuple(
            opcode_text("storage"),
            opcode_global("torch", kind),
            opcode_text(key),
            opcode_text("cpu"),
            opcode_long(count),
        )
        + b"Q"
    )


def opcode_tensor(storage, shape, strides, offset=0):
    arguments = opcode_tuple(
        storage,
        opcode_long(offset),
        opcode_tuple(*map(opcode_long, shape)),
        opcode_tuple(*map(opcode_long, strides)),
        b"\x89",
        opcode_global("collections", "OrderedDict") + b")R",
    )
    return opcode_global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def pickled(value):
    return b"\x80\x02" + value + b"."


STORAGE_KINDS = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


def opcode_array(key, array):
    strides = [stride // array.itemsize for stride in array.strides]
    kind = STORAGE_KINDS[array.dtype.name]
    return opcode_tensor(opcode_storage(key, kind, array.size), array.shape, strides)


def state_dict(tensors):
    pairs = enumerate(tensors.items())
    return opcode_table((name, opcode_array(str(key), array)) for key, (name, array) in pairs)


def zip_torch(path, tree, storages=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(tree))
        archive.writestr("archive/byteorder", "little")
        for key, data in enumerate(storages):
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def bytes_of(tensors):
    return [array.tobytes() for array in tensors.values()]


def write_torch(path, tensors):
    zip_torch(path, state_dict(tensors), bytes_of(tensors))


def write_legacy_torch(path, tensors):
    preamble = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    keys = [str(key) for key in range(len(tensors))]
    with path.open("wb") as file:
        for part in preamble:
            file.write(pickle.dumps(part, protocol=2))
        file.write(pickled(state_dict(tensors)) + pickle.dumps(keys, protocol=2))
        for array in tensors.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())


ONNX_CODES = {"float32": 1, "int64": 7, "bool": 9, "float16": 10, "float64": 11, "bfloat16": 16}


def varint(number):
    head = bytes([number & 0x7F | 0x80 * (number > 0x7F)])
    return head + varint(number >> 7) if number > 0x7F else head


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_proto(name, array, data=None):
    dims = b"".join(field(1, size) for size in array.shape)
    data = field(9, array.tobytes()) if data is None else data
    return dims + field(2, ONNX_CODES[array.dtype.name]) + field(8, name) + data


def initialiser(name, array, data=None):
    return field(5, tensor_proto(name, array, data))


def onnx_model(*initialisers):
    return field(1, 8) + field(2, "spectral") + field(7, field(2, "g") + b"".join(initialisers))


def write_onnx(path, tensors):
    path.write_bytes(onnx_model(*(initialiser(*item) for item in tensors.items())))


def write_hdf5(path, tensors):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in tensors.items():
            file[name] = array


def write_keras(path, tensors):
    inner = path.with_name(f"{path.name}.h5")
    write_hdf5(inner, tensors)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(inner, "model.weights.h5")


def write_msgpack(path, tensors):
    path.write_bytes(serialization.msgpack_serialize(dict(tensors)))


WRITERS = {
    "safetensors": write_safetensors,
    "sharded": write_sharded,
    "npz": write_npz,
    "compressed npz": write_compressed_npz,
    "torch": write_torch,
    "legacy torch": write_legacy_torch,
    "onnx": write_onnx,
    "msgpack": write_msgpack,
    "hdf5": write_hdf5,
    "keras": write_keras,
}
FORMAT = {"sharded": "safetensors", "compressed npz": "npz", "legacy torch": "torch"}


def refusal(path, **options):
    """The one line that a bad file is answered with."""
    with pytest.raises(CheckpointError) as caught:
        with open_checkpoint(path, **options) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    line = str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == line  # it may cross processes
    assert line.isprintable() and len(line) <= 400
    return line


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_saved_is_read_whatever_the_suffix(kind, tmp_path):
    path = tmp_path / "weights.bin"
    WRITERS[kind](path, WEIGHTS)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == FORMAT.get(kind, kind)
        assert checkpoint.tensors == {
            name: Tensor(name, array.shape, array.dtype.name) for name, array in WEIGHTS.items()
        }
        if kind not in ("hdf5", "keras", "msgpack"):  # whose order is that of the alphabet
            assert list(checkpoint.tensors) == list(WEIGHTS)
    assert_same(load(path), WEIGHTS)


@pytest.mark.parametrize("kind", WRITERS)
def test_reading_a_tensor_needs_the_memory_of_the_largest(kind, tmp_path):
    megabyte = 1 << 20
    noise = RNG.integers(0, 256, 3 * megabyte, np.uint8).view(np.float32)
    path = tmp_path / "weights"
    WRITERS[kind](path, {f"layer{i}": noise for i in range(8)})
    del noise
    tracemalloc.start()
    try:
        with open_checkpoint(path) as checkpoint:
            assert tracemalloc.get_traced_memory()[1] < 2 * megabyte
            for name in checkpoint.tensors:
                checkpoint.read(name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * megabyte  # of 24 in the file


STREAM = """
import re, sys
from spectral_jax.checkpoints import open_checkpoint
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
before = peak()
with open_checkpoint(sys.argv[1]) as checkpoint:
    for name in checkpoint.tensors:
        checkpoint.read(name)
print(peak() - before, "jax" in sys.modules)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak memory")
def test_a_process_streams_a_large_file_in_a_few_megabytes_and_without_jax(tmp_path):
    layer, layers = 4 << 20, 64
    header = {f"{i}": entry([layer // 4], i * layer, (i + 1) * layer) for i in range(layers)}
    path = raw_safetensors(tmp_path / "large.safetensors", header)
    os.truncate(path, path.stat().st_size + layer * layers)  # a hole: it takes no disk
    run = subprocess.run([sys.executable, "-c", STREAM, path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    megabytes, has_jax = run.stdout.split()
    assert int(megabytes) < 16 and has_jax == "False"


@given(
    st.dictionaries(
        st.text("abc/._é", min_size=1, max_size=8),
        hnp.arrays(
            st.sampled_from(["float64", "float32", "float16", "int8", "uint64", "bool", ">f4"]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_safetensors_round_trip(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    save_safetensors(path, tensors)
    found = load(path)
    assert list(found) == list(tensors)
    assert_same(found, {k: v.astype(v.dtype.newbyteorder("=")) for k, v in tensors.items()})


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_floats_keep_every_bit(name, tmp_path):
    dtype = np.dtype(getattr(ml_dtypes, name))
    bits = np.arange(256, dtype=np.uint8)
    save_safetensors(tmp_path / "x", {"w": bits.view(dtype)})
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.tensors["w"].dtype == name
        found = checkpoint.read("w")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.view(np.uint8), bits)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "|b1"])
def test_npy_is_read_as_numpy_does(order, dtype, tmp_path):
    array = np.asarray(RNG.integers(0, 2, (2, 3, 4)), dtype, order=order)
    np.save(tmp_path / "x.npy", array)
    assert_same(load(tmp_path / "x.npy"), {"arr_0": array.astype(array.dtype.newbyteorder("="))})


def test_numbers_beside_objects_are_read_and_the_objects_listed(tmp_path):
    np.savez(tmp_path / "x.npz", w=np.eye(2), config=np.array({"depth": 3}), name=np.array("net"))
    with open_checkpoint(tmp_path / "x.npz") as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert "pickled code" in checkpoint.skipped["config"]
        assert "'<U3'" in checkpoint.skipped["name"] or "<U3" in checkpoint.skipped["name"]


def test_strided_tensors_of_pytorch_are_views_of_a_storage(tmp_path):
    base = np.arange(24, dtype="float32").reshape(4, 6)
    views = {
        "whole": (base, (4, 6), (6, 1), 0),
        "transposed": (base.T, (6, 4), (1, 6), 0),
        "slice": (base[1:3, ::2], (2, 3), (6, 2), 6),
        "scalar": (base[3, 5], (), (), 23),
        "repeated": (np.broadcast_to(base[0, 1], (2, 3)), (2, 3), (0, 0), 1),
        "empty": (base[:0], (0, 6), (6, 1), 0),
    }
    storage = opcode_storage("0", count=24)
    table = opcode_table(
        (name, opcode_tensor(storage, *view)) for name, (_, *view) in views.items()
    )
    found = load(zip_torch(tmp_path / "x.pt", table, [base.tobytes()]))
    assert_same(found, {name: np.asarray(array) for name, (array, *_) in views.items()})


def test_names_of_the_same_elements_are_tied_and_all_of_them_are_read(tmp_path):
    base = np.arange(24, dtype="float32").reshape(4, 6)
    views = {
        "wte": (base, (4, 6), (6, 1), 0),
        "head": (base, (4, 6), (6, 1), 0),
        "transposed": (base.T, (6, 4), (1, 6), 0),
        "folded": (base.reshape(24), (24,), (1,), 0),
        "half": (base[:2], (2, 6), (6, 1), 0),
        "other half": (base[2:], (2, 6), (6, 1), 12),
        "empty": (base[:0], (0, 6), (6, 1), 0),
        "empty too": (base[:0], (0, 6), (6, 1), 0),
    }
    storage = opcode_storage("0", count=24)
    table = opcode_table(
        (name, opcode_tensor(storage, *view)) for name, (_, *view) in views.items()
    )
    with open_checkpoint(zip_torch(tmp_path / "x.bin", table, [base.tobytes()])) as checkpoint:
        assert checkpoint.tied == {"head": "wte", "transposed": "wte"}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"half": "x.bin", "wte": "x.bin", "head": "x.bin"}}))
    with open_checkpoint(index) as checkpoint:
        assert checkpoint.tied == {"head": "wte"}
    assert_same(load(tmp_path / "x.bin"), {name: array for name, (array, *_) in views.items()})


def test_weights_inside_a_training_checkpoint_are_found(tmp_path):
    weights = {"w": WEIGHTS["dense.weight"]}
    inner = state_dict(weights)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        tree = opcode_table([("epoch", b"K\x03"), (wrapper, inner), ("optimizer", b"}")])
        with open_checkpoint(zip_torch(tmp_path / wrapper, tree, bytes_of(weights))) as checkpoint:
            assert_same({"w": checkpoint.read("w")}, weights)
            assert list(checkpoint.skipped) == ["epoch", "optimizer"]
    tree = opcode_table([("encoder", inner), ("heads", b"](" + inner + b"e")])
    found = load(zip_torch(tmp_path / "parts", tree, bytes_of(weights)))
    assert list(found) == ["encoder.w", "heads.0.w"]


HARMLESS = {
    "collections.Counter": collections.Counter({30: 1}),
    "argparse.Namespace": argparse.Namespace(lr=0.1),
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "pathlib": Path("a/b"),
    "datetime.date": datetime.date(2026, 1, 2),
    "deque": collections.deque([1, 2]),
    "OrderedDict": collections.OrderedDict,
    "numpy": np.float64(3),
    "ndarray|_reconstruct|frombuffer": np.arange(3),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name, value", HARMLESS.items(), ids=HARMLESS)
def test_objects_beside_the_weights_cost_nothing_but_themselves(name, value, protocol, tmp_path):
    array = WEIGHTS["dense.weight"]
    stored = pickle.dumps(value, protocol=protocol).removesuffix(b".")[2:]
    tree = opcode_table([("x", stored), ("w", opcode_array("0", array))])
    with open_checkpoint(zip_torch(tmp_path / "x.pt", tree, [array.tobytes()])) as checkpoint:
        assert_same({"w": checkpoint.read("w")}, {"w": array})
        assert list(checkpoint.skipped) == ["x"]
        assert re.search(name, checkpoint.skipped["x"])


def test_tables_with_defaults_or_pairs_for_keys_are_tables(tmp_path):
    array = WEIGHTS["dense.weight"]
    default = opcode_global("collections", "defaultdict") + opcode_tuple(
        opcode_global("builtins", "list")
    )
    pair = opcode_tuple(b"K\1", opcode_text("a"))
    tree = default + b"R(" + opcode_text("w") + opcode_array("0", array) + pair + b"K\2u"
    with open_checkpoint(zip_torch(tmp_path / "x.pt", tree, [array.tobytes()])) as checkpoint:
        assert_same({"w": checkpoint.read("w")}, {"w": array})
        assert checkpoint.skipped == {"(1, 'a')": "a int, not a tensor"}


def test_a_tensor_of_an_unknown_kind_costs_only_itself(tmp_path):
    array = WEIGHTS["dense.weight"]
    quantised = opcode_tensor(opcode_storage("1", "QInt8Storage"), (2,), (1,))
    bits = opcode_global("torch._utils", "_rebuild_tensor_v3") + opcode_tuple(
        opcode_storage("0", "UntypedStorage"),
        b"K\0",
        b"K\4\x85",
        b"K\1\x85",
        b"\x89",
        b"}",
        opcode_global("torch", "bits8"),
    )
    tree = opcode_table([("q", quantised), ("b", bits + b"R"), ("w", opcode_array("0", array))])
    with open_checkpoint(zip_torch(tmp_path / "x.pt", tree, [array.tobytes()])) as checkpoint:
        assert_same({"w": checkpoint.read("w")}, {"w": array})
        assert "torch.QInt8Storage" in checkpoint.skipped["q"]
        assert "torch.bits8" in checkpoint.skipped["b"]


def test_tensors_with_attributes_are_tensors(tmp_path):
    array = WEIGHTS["dense.weight"]
    tensor = opcode_array("0", array)
    as_parameter = opcode_global("torch._utils", "_rebuild_parameter_with_state") + opcode_tuple(
        tensor, b"\x88", b"}", opcode_table([("shared", b"\x88")])
    )
    function, arguments = tensor[: tensor.index(b"(")], tensor[tensor.index(b"(") : -1]

    def of_class(name):
        return opcode_global("torch._tensor", "_rebuild_from_type_v2") + opcode_tuple(
            function, opcode_global("torch", name), arguments, opcode_table([("tag", b"K\1")])
        )

    tree = opcode_table(
        [("p", as_parameter + b"R"), ("t", of_class("Tensor") + b"R"), ("x", of_class("X") + b"R")]
    )
    with open_checkpoint(zip_torch(tmp_path / "x.pt", tree, [array.tobytes()])) as checkpoint:
        assert_same({name: checkpoint.read(name) for name in "pt"}, {"p": array, "t": array})
        assert list(checkpoint.skipped) == ["x"] and "torch.X" in checkpoint.skipped["x"]


def test_pytorch_itself_agrees(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    extra = {
        "bf16": torch.arange(6.0).reshape(2, 3).T.bfloat16(),
        "fp8": torch.arange(6.0).to(torch.float8_e4m3fn),
        "u16": torch.tensor([1, 60000], dtype=torch.uint16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    expected = {**layer.state_dict(), **extra}
    for number, options in enumerate(
        ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 5})
    ):
        path = tmp_path / f"{number}.pt"
        torch.save(expected, path, **options)
        found = load(path)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert str(tensor.dtype) == f"torch.{found[name].dtype}"
            wide = tensor.detach().to(torch.float64).numpy()
            np.testing.assert_array_equal(found[name].astype("float64"), wide)
    torch.save(layer, tmp_path / "module.pt")
    assert "torch.nn.modules.container.Sequential" in refusal(tmp_path / "module.pt")


def test_the_safetensors_library_agrees(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    tensors = {k: v for k, v in WEIGHTS.items()}
    save_safetensors(tmp_path / "ours", tensors, metadata={"a": "b"})
    assert_same(library.load_file(tmp_path / "ours"), tensors)
    library.save_file(tensors, tmp_path / "theirs")
    assert_same(load(tmp_path / "theirs"), tensors)


def write_orbax(path, tree, **options):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as saver:
        saver.save(path, args=ocp.args.PyTreeSave(tree))
    return path


def test_orbax_trees_are_read_leaf_by_leaf(tmp_path):
    tree = {
        "params": {"dense": {"kernel": np.eye(2, 3, dtype="float32")}, "list": [np.arange(3)]},
        "bf16": np.ones(2, ml_dtypes.bfloat16),
        "step": 7,
    }
    with open_checkpoint(write_orbax(tmp_path / "step", tree)) as checkpoint:
        assert checkpoint.format == "orbax"
        found = {name: checkpoint.read(name) for name in checkpoint.tensors}
        for name, (_, shape, dtype) in checkpoint.tensors.items():
            assert (found[name].shape, found[name].dtype.name) == (shape, dtype)
    assert set(found) == {"params/dense/kernel", "params/list/0", "bf16", "step"}
    np.testing.assert_array_equal(found["params/dense/kernel"], np.eye(2, 3))
    np.testing.assert_array_equal(found["params/list/0"], np.arange(3))
    assert found["step"] == 7


# Orbax closes its event loop over the reads that still run when one fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_orbax_checkpoints_are_refused_in_one_line(tmp_path):
    step = write_orbax(tmp_path / "step", {"w": np.eye(2), "b": np.ones(3)})
    for file in (step / "_METADATA", step / "manifest.ocdbt", *(step / "d").iterdir()):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        assert not tolerable(step)
        file.write_bytes(content)
    assert tolerable(step)


def test_the_newest_step_of_a_training_run_is_read(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    from experiments.runs.checkpoint import save

    for step in (9, 10):
        save(tmp_path, step, {"params": {"w": np.full((2, 2), step, "float32")}})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path / "10"
        (name,) = (name for name in checkpoint.tensors if "params" in name)
        np.testing.assert_array_equal(checkpoint.read(name), np.full((2, 2), 10))


def test_an_orbax_key_stays_in_its_folder(tmp_path):
    outside = write_orbax(tmp_path / "outside", {"w": np.eye(2)}, use_ocdbt=False)
    step = write_orbax(tmp_path / "step", {"w": np.eye(2)}, use_ocdbt=False)
    assert tolerable(step)
    metadata = json.loads((step / "_METADATA").read_text())
    (leaf,) = metadata["tree_metadata"].values()
    for key in (f"{outside}/w", f"/{outside}/w", "../outside/w", "w/../../outside/w"):
        leaf["key_metadata"][0]["key"] = key
        (step / "_METADATA").write_text(json.dumps(metadata))
        with pytest.raises(CheckpointError, match="leaves the folder"):
            _orbax.open_orbax(step, ExitStack())  # in this process: orbax is not asked


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_what_would_be_read_without_end_is_refused(tmp_path):
    step = write_orbax(tmp_path / "step", {"w": np.eye(2)})
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", "/dev/zero", "nowhere", tmp_path):
        (step / "link").symlink_to(target)
        with pytest.raises(CheckpointError, match="'link' in it is no regular file"):
            _orbax.open_orbax(step, ExitStack())  # in this process: orbax is not asked
        (step / "link").unlink()
    (step / "_METADATA").rename(tmp_path / "metadata")
    (step / "_METADATA").symlink_to(tmp_path / "metadata")
    assert tolerable(step)  # a link to a file is followed
    for format in (None, "npz"):
        assert "neither a file nor a dir" in refusal(tmp_path / "pipe", format=format)


@pytest.mark.slow
def test_what_a_manager_of_checkpoints_saves_is_read_from_its_folder(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    save, meta = ocp.args, ocp.args.JsonSave({"epoch": 3})
    args = {
        "standard": lambda tree: save.StandardSave(tree),
        "pytree": lambda tree: save.PyTreeSave(tree),
        "named": lambda tree: save.Composite(state=save.StandardSave(tree), meta=meta),
    }
    for kind, of in args.items():
        with ocp.CheckpointManager(tmp_path / kind) as manager:
            for step in (9, 10):
                manager.save(step, args=of({"w": np.full((2, 2), step, "float32")}))
            manager.wait_until_finished()
        assert_same(load(tmp_path / kind), {"w": np.full((2, 2), 10, "float32")})
        assert "no step 8: there is 10, 9" in refusal(tmp_path / kind, step=8)
    assert_same(load(tmp_path / "named", step=9), {"w": np.full((2, 2), 9, "float32")})


@pytest.mark.slow
def test_a_manager_may_call_its_steps_anything(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    options = ocp.CheckpointManagerOptions(step_prefix="my_model", step_format_fixed_length=8)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step in (9, 10):
            tree = {"w": np.full((2, 2), step, "float32")}
            manager.save(step, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    assert (tmp_path / "my_model_00000010").is_dir()
    assert load(tmp_path)["w"][0, 0] == 10 and load(tmp_path, step=9)["w"][0, 0] == 9


@pytest.fixture(scope="module")
def orbax_item(tmp_path_factory):
    return write_orbax(tmp_path_factory.mktemp("orbax") / "item", {"w": np.eye(2)})


def test_what_flax_serialises_is_read_chunks_and_all(tmp_path, monkeypatch):
    kernel = RNG.standard_normal((3, 4)).astype("float32")
    state = {
        "params": {"fc": {"kernel": kernel}, "half": np.ones(3, ml_dtypes.bfloat16)},
        "opt_state": {"0": {"count": np.int32(3)}},
        "names": ["a", None],
        "text": np.array(["a"]),
        "step": 7,
    }
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 20)
    (tmp_path / "checkpoint_7").write_bytes(serialization.msgpack_serialize(state))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path / "checkpoint_7"
        found = {name: checkpoint.read(name) for name in checkpoint.tensors}
        assert set(checkpoint.skipped) == {"names/0", "names/1", "text", "step"}
    expected = {"params/fc/kernel": kernel, "params/half": np.ones(3, ml_dtypes.bfloat16)}
    assert_same(found, expected | {"opt_state/0/count": np.array(3, "int32")})


def test_what_is_called_like_a_step_and_holds_nothing_hides_no_step(orbax_item, tmp_path):
    for place in ("5", "step_3/state", "10.orbax-checkpoint-tmp-17"):
        shutil.copytree(orbax_item, tmp_path / place)
    (tmp_path / "9").write_text("notes")
    (tmp_path / "11").mkdir()
    shutil.copytree(orbax_item / "d", tmp_path / "12" / "d")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path / "5"
    with open_checkpoint(tmp_path, step=3) as checkpoint:
        assert checkpoint.path == tmp_path / "step_3" / "state"
    assert "no step 9: there is 5, 3" in refusal(tmp_path, step=9)
    assert "it has no steps" in refusal(tmp_path / "5", step=9)
    with pytest.raises(ValueError, match="step=5: .* leave step out"):
        open_checkpoint(tmp_path / "9", step=5)


def test_of_several_items_none_is_chosen(orbax_item, tmp_path):
    for item in ("params", "opt_state"):
        shutil.copytree(orbax_item, tmp_path / "7" / item)
    line = refusal(tmp_path)
    assert "7: holds 2 checkpoints: point at one of opt_state, params" in line
    assert load(tmp_path / "7" / "params").keys() == {"w"}


def test_steps_of_safetensors_are_steps_too(tmp_path):
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        path = tmp_path / f"checkpoint-{step}" / "model.safetensors"
        save_safetensors(path, {"w": np.array([step])})
    assert load(tmp_path)["w"] == 1000 and load(tmp_path, step=500)["w"] == 500


def test_a_directory_stands_for_the_checkpoint_in_it(tmp_path):
    write_sharded(tmp_path / "model.safetensors.index.json", WEIGHTS)
    assert_same(load(tmp_path), WEIGHTS)
    single = tmp_path / "single"
    single.mkdir()
    assert "without a checkpoint" in refusal(single)
    write_safetensors(single / "some.safetensors", WEIGHTS)
    assert_same(load(single), WEIGHTS)
    write_safetensors(single / "other.safetensors", WEIGHTS)
    assert "one of other.safetensors, some.safetensors" in refusal(single)


@pytest.mark.parametrize("kind", ["torch", "legacy torch", "npz"])
def test_shards_may_be_of_any_format(kind, tmp_path):
    shards = {"a": {"dense.weight": WEIGHTS["dense.weight"]}, "b": {"steps": WEIGHTS["steps"]}}
    for shard, tensors in shards.items():
        WRITERS[kind](tmp_path / shard, tensors)
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == FORMAT.get(kind, kind)
        assert list(checkpoint.tensors) == list(weight_map)
        found = {name: checkpoint.read(name) for name in checkpoint.tensors}
    assert_same(found, shards["a"] | shards["b"])


def test_a_tensor_of_a_type_that_numpy_lacks_costs_only_itself(tmp_path):
    header = {
        "packed": entry([8], 0, 4, "F4"),
        "fc.weight": entry([2], 4, 12),
        "fc.scale": entry([3], 12, 15, "F8_E8M0"),
    }
    data = bytes(4) + np.ones(2, "float32").tobytes() + bytes([126, 127, 128])
    path = raw_safetensors(tmp_path / "x.safetensors", header, data)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(header, path.name)})
    )
    for place in (path, tmp_path):
        with open_checkpoint(place) as checkpoint:
            assert list(checkpoint.tensors) == ["fc.weight", "fc.scale"]
            assert checkpoint.skipped == {"packed": "of the type 'F4', which is not read"}
            assert checkpoint.read("fc.weight").all()
            np.testing.assert_array_equal(checkpoint.read("fc.scale").astype(float), [0.5, 1, 2])


def test_the_trained_networks_open():
    data = os.environ.get("SPECTRAL_JAX_DATA")
    if not data:
        pytest.skip("SPECTRAL_JAX_DATA is unset")
    found = sorted(Path(data, "pretrained").glob("*.npz"))
    assert found
    for path in found:
        with np.load(path) as expected, open_checkpoint(path) as checkpoint:
            assert list(checkpoint.tensors) == expected.files
            for name in checkpoint.tensors:
                np.testing.assert_array_equal(checkpoint.read(name), expected[name])


def test_an_absent_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_checkpoint(tmp_path / "nowhere")


def test_misuse_of_an_open_checkpoint(tmp_path):
    write_npz(tmp_path / "x", WEIGHTS)
    with open_checkpoint(tmp_path / "x") as checkpoint:
        with pytest.raises(KeyError, match="no tensor 'x'"):
            checkpoint.read("x")
    with pytest.raises(ValueError, match="closed"):
        checkpoint.read("mask")
    with pytest.raises(ValueError, match="path is empty"):
        open_checkpoint("")
    with pytest.raises(ValueError, match="choose 'safetensors', 'npz'"):
        open_checkpoint(tmp_path / "x", format="zip")
    assert "safetensors" in FORMATS
    refusal(tmp_path / "x", format="safetensors")


def test_saving_never_overwrites_unless_told_and_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, {"w": np.zeros(2)})
    with pytest.raises(FileExistsError, match="force=True"):
        save_safetensors(path, {"w": np.ones(2)})
    assert not load(path)["w"].any()

    def full(descriptor):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for target in (path, tmp_path / "new"):
            with pytest.raises(OSError, match="no space"):
                save_safetensors(target, {"w": np.ones(2)}, force=True)
    for kind in ("nowhere", "/dev/null"):
        (tmp_path / "link").symlink_to(kind)
        with pytest.raises(FileExistsError, match="no regular file"):
            save_safetensors(tmp_path / "link", {"w": np.ones(2)}, force=True)
        (tmp_path / "link").unlink()
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert not load(path)["w"].any()
    save_safetensors(path, {"w": np.ones(2)}, force=True)
    assert load(path)["w"].all()


def test_saving_does_not_overwrite_what_appears_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    monkeypatch.setattr(os, "fsync", lambda descriptor: path.write_text("mine"))
    with pytest.raises(FileExistsError):
        save_safetensors(path, {"w": np.ones(2)})
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "tensors, metadata, says",
    [
        ({}, None, "empty"),
        ({"w": np.array(["a"])}, None, "no <U1"),
        ({"__metadata__": np.ones(1)}, None, "__metadata__"),
        ({"w": np.ones(1)}, {"a": 1}, "must be text"),
    ],
)
def test_what_safetensors_cannot_hold_is_refused(tensors, metadata, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        save_safetensors(tmp_path / "x", tensors, metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_importing_the_package_imports_no_heavy_library():
    heavy = "jax jaxlib torch orbax h5py scipy safetensors onnx"
    code = (
        f"import sys, spectral_jax.checkpoints; print(*{{*sys.modules}} & {{*'{heavy}'.split()}})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "h5py.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)  # the process that reads has the same path
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "pip install 'spectral-jax[hdf5]'" in refusal(tmp_path / "x.h5")


def tolerable(path):
    """Read a damaged file: it is refused in one line, or read as it declares itself."""
    try:
        with open_checkpoint(path) as checkpoint:
            for name, (_, shape, dtype) in checkpoint.tensors.items():
                array = checkpoint.read(name)
                assert (array.shape, array.dtype.name) == (shape, dtype)
    except CheckpointError as error:
        assert str(error).isprintable() and len(str(error)) <= 400
        return False
    return True


SMALL = {"a.w": np.arange(4, dtype="float32").reshape(2, 2), "b": np.array([True, False])}
FUZZED = [kind for kind in WRITERS if kind not in ("hdf5", "keras")]


@pytest.mark.parametrize("kind", FUZZED)
def test_every_prefix_of_a_file_is_refused_in_one_line(kind, tmp_path):
    path = tmp_path / "weights"
    WRITERS[kind](path, SMALL)
    content = path.read_bytes()
    assert tolerable(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        # Of protobuf, a prefix may be a message too; nothing then says what is missing.
        assert not tolerable(path) or kind == "onnx"


@pytest.mark.parametrize("kind", FUZZED)
def test_no_flipped_byte_does_worse_than_a_refusal(kind, tmp_path):
    path = tmp_path / "weights"
    WRITERS[kind](path, SMALL)
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        tolerable(path)


@pytest.mark.parametrize("kind", ["hdf5", "keras"])
def test_damaged_hdf5_is_refused_in_one_line(kind, tmp_path):
    path = tmp_path / "weights"
    WRITERS[kind](path, SMALL)
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(3):  # each starts a process; tests/fuzz.py makes thousands
        path.write_bytes(content[: rng.integers(len(content))])
        tolerable(path)
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(damaged)
        tolerable(path)


@pytest.mark.parametrize("kind", ["hdf5", "orbax"])
def test_what_native_libraries_read_is_read_bit_for_bit(kind, tmp_path):
    tensors = {
        "narrow": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
        "brain": np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16),
        "large": RNG.integers(0, 2**32, 1 << 18, np.uint32).view(np.float32).reshape(2, -1),
        "scalar": np.float64(np.pi),
        "empty": np.zeros((0, 3), np.float32),
        "mask": np.array([True, False]),
    }
    for missing in {"hdf5": ["narrow", "brain"], "orbax": ["empty"]}[kind]:
        del tensors[missing]
    {"hdf5": write_hdf5, "orbax": write_orbax}[kind](tmp_path / "x", tensors)
    found = load(tmp_path / "x")
    for name, array in tensors.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].tobytes() == array.tobytes()


LIBRARY = """
import os, signal, sys
import numpy as np
from spectral_jax.checkpoints import _child
from spectral_jax.checkpoints._base import Source, Tensor

_child.SECONDS = 1

def fault():
    {fault}

def open_it(path, resources):
    print("a library talks", flush=True)
    print("and complains", file=sys.stderr)
    {at_open}
    tensors = {{name: Tensor(name, (2,), "float32") for name in "ab"}}
    return Source(tensors, lambda name: np.ones(2, "float32") if name == "a" else fault(), {{}})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
@pytest.mark.parametrize(
    "fault, says",
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("os.abort()", "ended by SIGABRT"),
        ("os._exit(3)", "ended with exit code 3"),
        ("sum(iter(int, 1))", "far longer to read"),
        ("np.ones(1 << 40)", "does not fit in memory"),
        ("np.ones(1 << 27)", "does not fit in memory"),
        ("return np.ones(3, 'float32')", "'b' is not as it is declared"),
        ("raise TypeError('no')", "corrupt: no"),
        ("raise PermissionError('not yours')", "not yours"),
    ],
)
@pytest.mark.parametrize("at", ["open", "read"])
def test_a_library_that_dies_takes_nobody_with_it(at, fault, says, tmp_path, monkeypatch, capfd):
    if at == "open" and "return" in fault:
        return
    (tmp_path / "library.py").write_text(
        LIBRARY.format(fault=fault, at_open="fault()" if at == "open" else "")
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "x"
    path.touch()
    with ExitStack() as resources:
        with pytest.raises(CheckpointError, match=says):
            source = _child.open_apart("library", "open_it", "json", path, resources)
            np.testing.assert_array_equal(source.read("a"), [1, 1])
            source.read("b")
        if at == "read" and re.search("ended|longer", says):
            with pytest.raises(CheckpointError, match=says):
                source.read("a")  # the process is no more
        elif at == "read":
            np.testing.assert_array_equal(source.read("a"), [1, 1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"a,b\n1,2\n", "no known format"),
        (b'{"hidden_size": 384}', "not the index of a sharded checkpoint"),
        (pickle.dumps({"w": [1.0]}), "truncated or corrupt|not one of PyTorch"),
    ],
)
def test_what_is_no_checkpoint_is_named(content, says, tmp_path):
    (tmp_path / "x").write_bytes(content)
    assert re.search(says, refusal(tmp_path / "x"))


def msgpack_array(shape=b"\x91\4", dtype=b"\xa7float32", data=b"\xc4\x10" + bytes(16)):
    payload = b"\x93" + shape + dtype + data
    return b"\xc7" + bytes([len(payload), 1]) + payload


CHUNKS = b"\xb9__msgpack_chunked_array__\xc3"


@pytest.mark.parametrize(
    "value, says",
    [
        (msgpack_array(shape=b"\x91\5"), "needs 20 bytes, not 16"),
        (msgpack_array(shape=b"\x91\xff"), "impossible shape"),
        (msgpack_array(shape=b"\xdd" + b"\xff" * 4), "not a shape, a type and bytes"),
        (msgpack_array(dtype=b"\xa6object"), "of the type 'object', which is not read"),
        (msgpack_array(data=b"\xc4\x11" + bytes(16)), "do not end where it does"),
        (msgpack_array() + b"\xc0", "goes on behind"),
        (b"\xdf" + b"\xff" * 4, "too early"),
        (b"\x91" * 1000, "tables more than 32 deep"),
        (b"\x82" + CHUNKS + b"\xa5shape\x80", "lacks its shape or its chunks"),
        (
            b"\x83" + CHUNKS + b"\xa5shape\x80\xa6chunks\x81\xa10\1",
            "a chunk of an array is no array",
        ),
        (b"\x82\xa1a\1\xa1a\2", "two entries of a table are named 'a'"),
        (b"\xc1", "no object of the code 193"),
        (b"\x81\xda\3\xe8" + b"n" * 1000 + msgpack_array(), "over 1000 letters"),
    ],
)
def test_lies_in_what_flax_serialises_are_refused(value, says, tmp_path):
    (tmp_path / "x").write_bytes(b"\x81\xa1w" + value)
    assert says in refusal(tmp_path / "x")


EXTERNAL = np.arange(4, dtype="float32")
F32 = bytes(16)


@pytest.mark.parametrize(
    "header, data, says",
    [
        ({}, b"", "holds no tensors"),
        ({"w": entry([4], 0, 16)}, F32[:-1], "the tensors need 16 bytes; the file holds 15"),
        ({"w": entry([4], 0, 16)}, F32 + b"x", "the file holds 17"),
        ({"w": entry([2], 0, 8), "v": entry([2], 4, 12)}, F32[:12], "overlaps"),
        ({"w": entry([2], 0, 8), "v": entry([1], 12, 16)}, F32, "gap"),
        ({"w": entry([2], -8, 0)}, b"", "overlaps|gap"),
        ({"w": entry([5], 0, 16)}, F32, "needs 20 bytes"),
        ({"w": entry([-4], 0, 16)}, F32, "impossible shape"),
        ({"w": entry([2**40, 2**40], 0, 16)}, F32, "impossible shape"),
        ({"w": entry([True], 0, 4)}, F32[:4], "impossible shape"),
        ({"w": entry([2**62 - 1, 2**62 - 1, 0], 0, 0)}, b"", "impossible shape"),
        ({"w": entry([1] * 100, 0, 4)}, F32[:4], "impossible shape"),
        ({"w": entry([4], 0, 16, "F4")}, F32, "holds no tensors: 'w' is of the type 'F4'"),
        ({"w": entry([4], 0, "16")}, F32, "no offsets"),
        ({"w": [1, 2]}, F32, "does not describe a tensor"),
        ({"w\n\x1b[31m": entry([4], 0, 16)}, F32, "not printable"),
        (b'{"w":1,"w":2}', b"", "same name"),
        (b'{"w":' * 5000, b"", "corrupt"),
        (b'{"w":' + b"[" * 100_000, b"", "corrupt"),
        (b'{"w":' + b"9" * 5000 + b"}", b"", "corrupt"),
        (b"{\xff}", b"", "corrupt"),
    ],
)
def test_lies_in_a_safetensors_header_are_refused(header, data, says, tmp_path):
    path = raw_safetensors(tmp_path / "x.safetensors", header, data)
    assert re.search(says, refusal(path))


def test_a_header_of_petabytes_is_not_allocated(tmp_path):
    (tmp_path / "x").write_bytes(struct.pack("<Q", 1 << 50) + b"{}")
    assert "1125899906842624 bytes" in refusal(tmp_path / "x", format="safetensors")
    assert "no known format" in refusal(tmp_path / "x")


@pytest.mark.parametrize(
    "shard, says",
    [
        *((name, "leaves its directory") for name in ("../x", "/etc/passwd", "//etc/passwd")),
        *((name, "leaves its directory") for name in ("a/../../x", "..", "", "C:\\x")),
        *((entry, "no file name") for entry in (7, None, ["x.safetensors"], {})),
    ],
)
def test_a_sharded_index_stays_in_its_directory(shard, says, tmp_path):
    save_safetensors(tmp_path / "x.safetensors", {"w": np.ones(2)})
    inner = tmp_path / "inner"
    inner.mkdir()
    index = inner / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    assert says in refusal(index)


def test_a_shard_may_be_a_link_as_in_the_caches_of_model_hubs(tmp_path):
    save_safetensors(tmp_path / "blob", {"w": np.ones(2)})
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "0.safetensors").symlink_to("../blob")
    index = snapshot / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "0.safetensors"}}))
    assert_same(load(snapshot), {"w": np.ones(2)})


def test_shards_that_fail_are_named(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    save_safetensors(tmp_path / "here", {"v": np.ones(2)})
    for shard, says in {
        "gone": "its part 'gone' is missing",
        "here": "promises 'w' in 'here', which lacks it",
        index.name: "which is an index too",
    }.items():
        index.write_text(json.dumps({"weight_map": {"w": shard}}))
        assert says in refusal(tmp_path)


def npy(shape, data, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "content, says",
    [
        (npy("(4,)", F32[:-1]), "needs 16 bytes, the file holds 15"),
        (npy("(1000000000000,)", F32), "needs 4000000000000 bytes"),
        (npy("(4,)", F32 + b"x"), "holds 17"),
        (npy("(__import__('os').getpid(),)", F32), "describes no array"),
        (npy("(" + "9" * 5000 + ",)", F32), "corrupt"),
        (npy("(4,)", pickle.dumps(1), "|O"), "pickled code"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff", "header of 4294967295 bytes"),
        (b"\x93NUMPY\x09\0\0\0", "not an array of NumPy"),
    ],
)
def test_lies_in_an_npy_header_are_refused(content, says, tmp_path):
    (tmp_path / "x.npy").write_bytes(content)
    assert says in refusal(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    assert says in refusal(tmp_path / "x.npz")


def test_a_zip_bomb_is_refused_before_it_is_inflated(tmp_path):
    zeros = npy("(262144,)", bytes(1 << 20))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", zeros)
    assert (tmp_path / "x.npz").stat().st_size < len(zeros) / 500
    assert tolerable(tmp_path / "x.npz")  # a megabyte of zeros harms nobody
    content = (tmp_path / "x.npz").read_bytes()
    declared = struct.pack("<I", len(zeros))
    assert declared in content
    (tmp_path / "x.npz").write_bytes(content.replace(declared, struct.pack("<I", 300 << 20)))
    assert "bomb" in refusal(tmp_path / "x.npz")


def test_a_bomb_in_a_bomb_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:  # a megabyte of which is one chunk, repeated
        file.create_dataset("w", (1 << 27,), "f4", chunks=(1 << 18,), compression=1, fillvalue=0)
        for start in range(0, 1 << 27, 1 << 18):
            file["w"].id.write_direct_chunk((start,), zlib.compress(bytes(1 << 20)))
    size = (tmp_path / "x.h5").stat().st_size
    with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", (tmp_path / "x.h5").read_bytes() + bytes(10 * size))
    assert "bomb" in refusal(tmp_path / "x.keras")


def inflated(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", content)
    return path


@pytest.mark.parametrize(
    "tree, says",
    [
        (b"]" * 10_000, "makes over 9999 objects"),
        (b"(" + b"N" * 10_000 + b"t", "makes over 9999 objects"),
        # A list of a thousand pairs, and tables of it again and again.
        (
            b"](" + b"K\1N\x86" * 1000 + b"eq\0" + opcode_global("collections", "OrderedDict")
            + b"q\1" + b"(" + b"h\1h\0\x85R" * 100 + b"t",
            "makes over 9999 objects",
        ),
        (b"}" + opcode_text("a" * 1001) + opcode_array("0", EXTERNAL) + b"s", "over 1000 letters"),
        (b"}" + b"\x8a\x09" + bytes(8) + b"\x01Ns", "not plain"),
        (b"N" * 20_000, "its pickle has 20003 bytes"),
    ],
)  # fmt: skip
def test_a_pickle_that_makes_objects_without_end_is_refused(tree, says, tmp_path, monkeypatch):
    monkeypatch.setattr(_pickle, "MAX_STEPS", 9999)
    monkeypatch.setattr(_torch, "MAX_PICKLE", 20_000)
    assert says in refusal(inflated(tmp_path / "x.pt", pickled(tree)))


def test_a_history_in_a_state_dict_is_listed_once(tmp_path):
    history = b"](" + b"K\1" * 1000 + b"e"
    tree = opcode_table([("losses", history), ("w", opcode_array("0", EXTERNAL))])
    with open_checkpoint(zip_torch(tmp_path / "x.pt", tree, [EXTERNAL.tobytes()])) as checkpoint:
        assert checkpoint.skipped == {"losses": "a list, not a tensor"}


@pytest.mark.parametrize("kind", ["safetensors", "npz", "torch", "onnx", "msgpack"])
def test_no_file_holds_tensors_without_end(kind, tmp_path, monkeypatch):
    WRITERS[kind](tmp_path / "x", WEIGHTS)
    monkeypatch.setattr(_base, "MAX_TENSORS", 3)
    assert "holds over 3 tensors" in refusal(tmp_path / "x")


def test_no_file_leaves_things_out_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(_base, "MAX_TENSORS", 3)
    tree = opcode_table((str(i), b"N") for i in range(4))
    assert "holds over 3 things" in refusal(zip_torch(tmp_path / "x.pt", tree))
    tree = opcode_table([("k" * 5000, b"N"), ("w", opcode_array("0", EXTERNAL))])
    with open_checkpoint(zip_torch(tmp_path / "y.pt", tree, [F32])) as checkpoint:
        assert [len(name) for name in checkpoint.skipped] == [1000]


def test_tensors_that_share_one_storage_over_and_over_are_refused(tmp_path):
    zeros = bytes(16 << 20)
    storage = opcode_storage("0", count=4 << 20)
    whole = opcode_tensor(storage, (4 << 20,), (1,))
    for many, is_read in ((2, True), (120, False)):
        tree = opcode_table((str(i), whole) for i in range(many))
        path = zip_torch(tmp_path / "x.pt", tree, [zeros])
        assert tolerable(path) == is_read
    assert "bomb" in refusal(path)


def test_a_header_of_millions_of_values_is_not_parsed(tmp_path):
    path = raw_safetensors(tmp_path / "x", b'{"w":[' + b"{}," * (1 << 22) + b"{}]}")
    assert "8388608 values" in refusal(path)
    name = "w" * 1001
    assert "over 1000 letters" in refusal(raw_safetensors(path, {name: entry([4], 0, 16)}, F32))


def test_an_archive_that_lies_about_sizes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", npy("(4,)", F32))
    content = (tmp_path / "x.npz").read_bytes()
    true = struct.pack("<I", len(npy("(4,)", F32)))
    (tmp_path / "x.npz").write_bytes(content.replace(true, struct.pack("<I", 1 << 30)))
    refusal(tmp_path / "x.npz")
    with pytest.warns(UserWarning, match="Duplicate"):
        with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
            archive.writestr("w.npy", npy("(4,)", F32))
            archive.writestr("w.npy", npy("(4,)", F32))
    assert "two members" in refusal(tmp_path / "y.npz")
    with zipfile.ZipFile(tmp_path / "z.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("w.npy", npy("(4,)", F32))
    assert "method that is not read" in refusal(tmp_path / "z.npz")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "a zip archive of 'readme.txt'" in refusal(tmp_path / "s.zip")


class Code:
    """Its pickle runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_code_is_named_and_never_runs(protocol, tmp_path):
    trace = tmp_path / "ran"
    code = pickle.dumps({"w": Code(f"touch {trace}")}, protocol=protocol)
    (tmp_path / "legacy.pt").write_bytes(code)
    zip_torch(tmp_path / "zip.pt", code[2:-1])
    np.savez(tmp_path / "x.npz", w=np.array(Code(f"touch {trace}"), object))
    assert f"{os.system.__module__}.system" in refusal(tmp_path / "legacy.pt")
    assert f"{os.system.__module__}.system" in refusal(tmp_path / "zip.pt")
    assert "would execute pickled code" in refusal(tmp_path / "x.npz")
    tree = opcode_table([("code", code[2:-1]), ("w", opcode_array("0", EXTERNAL))])
    with open_checkpoint(zip_torch(tmp_path / "x.pt", tree, [EXTERNAL.tobytes()])) as checkpoint:
        assert "unpickling may run any code" in checkpoint.skipped["code.w"]
        np.testing.assert_array_equal(checkpoint.read("w"), EXTERNAL)
    assert not trace.exists()


ARRAY = opcode_storage("0", count=4)


@pytest.mark.parametrize(
    "tree, says",
    [
        (opcode_tensor(ARRAY, (5,), (1,)), "needs 5 elements, its storage holds 4"),
        (opcode_tensor(ARRAY, (2,), (1,), offset=3), "its storage holds 4"),
        (opcode_tensor(ARRAY, (2,), (4,)), "its storage holds 4"),
        (opcode_tensor(ARRAY, (2,), (-1,), offset=3), "impossible strides"),
        (opcode_tensor(ARRAY, (2, 2), (1,)), "impossible strides"),
        (opcode_tensor(ARRAY, (1 << 40,), (0,)), "its storage holds 4"),
        (opcode_tensor(ARRAY, (-2,), (1,)), "impossible shape"),
        (opcode_tensor(opcode_storage("1"), (2,), (1,)), "are missing"),
        (opcode_tensor(opcode_storage("archive/version"), (2,), (1,)), "are missing"),
        (opcode_tensor(opcode_storage("../version"), (2,), (1,)), "are missing"),
        (opcode_tensor(opcode_storage("0", "QInt8Storage"), (2,), (1,)), "torch.QInt8Storage"),
        (opcode_tensor(b"K\1", (2,), (1,)), "no storage"),
        (
            opcode_global("builtins", "eval") + opcode_tuple(opcode_text("1")) + b"R",
            "'builtins.eval'",
        ),
        (opcode_global("torch", "FloatStorage") + b")R", "calls what is no function"),
        (opcode_global("collections", "OrderedDict") + b"(K\1K\2K\3tR", "wrong arguments"),
        (b"(ios\nsystem\n", "opcode b'i'"),
        (b"}(]K\1u", "not plain"),
        (b"]" + b"q\0" + b"h\0a", "holds no tensors|nested"),
        (b"]" * 100 + b"a" * 99, "nested more than 16 deep"),
        (b"K\1", "holds no tensors"),
        (b"X\xff\xff\xff\xff", "too early"),
        (b"\x8d" + b"\xff" * 8, "too early"),
        (b"", "corrupt"),
    ],
)
def test_lies_in_a_state_dict_are_refused(tree, says, tmp_path):
    assert re.search(says, refusal(zip_torch(tmp_path / "x.pt", tree, [F32])))


def test_what_is_listed_cannot_steer_the_terminal(tmp_path):
    tree = opcode_table([("\x1b[2Jw", b"K\1"), ("w", opcode_array("0", EXTERNAL))])
    with open_checkpoint(zip_torch(tmp_path / "x.pt", tree, [EXTERNAL.tobytes()])) as checkpoint:
        assert list(checkpoint.skipped) == ["?[2Jw"]


def test_tables_shared_over_and_over_do_not_unfold(tmp_path):
    doubled = b"]" + b"q\0"
    for level in range(12):
        doubled += b"]q" + bytes([level + 1]) + b"(" + (b"h" + bytes([level])) * 10 + b"e"
    assert "holds no tensors" in refusal(zip_torch(tmp_path / "x.pt", doubled))


def external(**entries):
    return b"".join(field(13, field(1, key) + field(2, str(v))) for key, v in entries.items())


def test_onnx_data_may_lie_beside_the_model(tmp_path):
    (tmp_path / "model.data").write_bytes(b"head" + EXTERNAL.tobytes())
    data = external(location="model.data", offset=4, length=16)
    floats = field(4, EXTERNAL.tobytes())
    one_by_one = field(7, b"".join(map(varint, range(4))))
    (tmp_path / "x.onnx").write_bytes(
        onnx_model(
            initialiser("beside", EXTERNAL, data),
            initialiser("typed", EXTERNAL, floats),
            initialiser("integers", np.arange(4), one_by_one),
        )
    )
    with open_checkpoint(tmp_path / "x.onnx") as checkpoint:
        assert_same({"w": checkpoint.read("beside")}, {"w": EXTERNAL})
        assert_same({"w": checkpoint.read("typed")}, {"w": EXTERNAL})
        assert "one by one" in checkpoint.skipped["integers"]


def node(kind, output, *attributes, number=1):
    parts = field(2, output), field(4, kind), *(field(5, each) for each in attributes)
    return field(number, b"".join(parts))


def test_onnx_weights_in_constants_loops_and_functions_are_read(tmp_path):
    weights = [EXTERNAL + number for number in range(5)]
    tensor = [tensor_proto("w", array) for array in weights]
    branch = field(5, tensor[2]) + node("Constant", "c", field(5, tensor[3]))
    constant = node("Constant", "c", field(5, tensor[4]), number=7)
    function = field(1, "f") + field(10, "pkg") + constant
    graph = [
        field(5, tensor[0]),
        node("Constant", "c", field(1, "value") + field(5, tensor[1])),
        node("Constant", "few", field(1, "value_floats") + field(7, bytes(8))),
        node("Constant", "sparse", field(22, b"")),
        field(15, field(1, tensor[0])),
        node("If", "y", field(6, branch)),
        node("ConstantOfShape", "zeros", field(5, tensor[0])),
    ]
    (tmp_path / "x.onnx").write_bytes(onnx_model(*graph) + field(25, function))
    with open_checkpoint(tmp_path / "x.onnx") as checkpoint:
        found = {name: checkpoint.read(name) for name in checkpoint.tensors}
        assert "one by one" in checkpoint.skipped["few"]
        assert "sparse" in checkpoint.skipped["sparse"] and "sparse" in checkpoint.skipped["w"]
    assert_same(found, dict(zip(["w", "c", "y/w", "y/c", "pkg.f/c"], weights, strict=True)))


def test_onnx_graphs_in_graphs_have_an_end(tmp_path):
    graph = initialiser("w", EXTERNAL)
    for _ in range(17):
        graph = node("If", "y", field(6, graph))
    (tmp_path / "x.onnx").write_bytes(onnx_model(graph))
    assert "nested more than 16 deep" in refusal(tmp_path / "x.onnx")


@pytest.mark.parametrize(
    "entries, says",
    [
        ({"location": "../secret"}, "leaves its directory"),
        ({"location": "/etc/passwd"}, "leaves its directory"),
        ({"location": "//etc/passwd"}, "leaves its directory"),
        ({"location": "C:secret"}, "leaves its directory"),
        ({"location": "a/../../secret"}, "leaves its directory"),
        ({"location": "..\\secret"}, "leaves its directory"),
        ({"location": ""}, "leaves its directory"),
        ({"location": "gone"}, "is missing"),
        ({"location": "short"}, "does not fit"),
        ({"location": "long", "offset": 90}, "does not fit"),
        ({"location": "long", "offset": -8}, "does not fit"),
        ({"location": "long", "length": 8}, "does not fit"),
        ({"location": "long", "offset": "x"}, "corrupt"),
        ({str(entry): "" for entry in range(99)}, "more dimensions or entries"),
    ],
)
def test_onnx_stays_in_its_directory_and_its_files(entries, says, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(100))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "short").write_bytes(bytes(15))
    (inner / "long").write_bytes(bytes(100))
    (inner / "x.onnx").write_bytes(onnx_model(initialiser("w", EXTERNAL, external(**entries))))
    assert says in refusal(inner / "x.onnx")


def test_hdf5_stays_in_its_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(80))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("w", (10,), "f8", external=[(tmp_path / "secret", 0, 80)])
    assert "another file: refused" in refusal(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["w"] = np.ones(2)
        file["outside"] = h5py.ExternalLink(str(tmp_path / "x.h5"), "/w")
        file["optimizer/vars/0"] = np.ones(2)
        file["name"] = "net"
    with open_checkpoint(tmp_path / "y.h5") as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert set(checkpoint.skipped) == {"optimizer/vars/0", "name"}
    for depth, is_read in ((63, True), (64, False), (500, False)):
        with h5py.File(tmp_path / "deep.h5", "w") as file:
            file["itself"] = file["/"]
            file["a/" * depth + "w"] = np.ones(2)
        assert tolerable(tmp_path / "deep.h5") == is_read
    assert "nested more than 64 deep" in refusal(tmp_path / "deep.h5")
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file.create_dataset("w", (1 << 40,), "f8", chunks=(1 << 20,), compression="gzip")
    assert "bomb" in refusal(tmp_path / "z.h5")
