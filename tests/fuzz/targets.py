"""What is fuzzed: small valid inputs of each kind, and what is done with a damaged one."""

import atexit
import contextlib
import functools
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import __main__ as experiments
from experiments.config import ExperimentConfig, dump_yaml
from spectral_jax import cli
from spectral_jax.checkpoints import CheckpointError, load
from tests import test_checkpoints as files
from tests.fuzz.mutations import damage, word

# Whatever of it turns up in a tensor was read outside the folder of the input.
SECRET = b"\xde\xad\xbe\xef" * 64
RNG = np.random.default_rng(0)
WEIGHTS = {
    "dense.weight": RNG.standard_normal((12, 9)).astype("float32"),
    "dense.bias": RNG.standard_normal(9).astype("float32"),
    "conv.weight": RNG.standard_normal((6, 5, 3, 3)).astype("float16"),
    "steps": np.array(7, "int64"),
}
PLAIN = {name: array for name, array in WEIGHTS.items() if array.dtype != "float16"}

DRAWN = 0.01  # of the analyses also draw figures, which takes a second

Parts = dict[str, bytes]  # the members of an archive or of a folder, or one nameless content


class Target(NamedTuple):
    """``seeds`` are valid inputs, ``pack`` makes one of parts, ``attack`` is done with it."""

    seeds: Callable[[], list[Parts]]
    pack: Callable[[Parts, Path], Path]
    attack: Callable[[np.random.Generator, Path], None]


class Failure(AssertionError):
    """What an input did that none may."""


def _written(writer: Callable[..., object], tensors: Mapping[str, np.ndarray]) -> Path:
    folder = Path(tempfile.mkdtemp(dir=_scratch()))
    writer(folder / "model", tensors)
    return folder / "model"


@functools.cache
def _scratch() -> str:
    folder = tempfile.mkdtemp(prefix="fuzz-seeds-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _one_file(*writers: Callable[..., object]) -> list[Parts]:
    return [{"": _written(writer, PLAIN).read_bytes()} for writer in writers]


def _archives(*writers: Callable[..., object]) -> list[Parts]:
    seeds = []
    for writer in writers:
        with zipfile.ZipFile(_written(writer, PLAIN)) as archive:
            seeds.append({name: archive.read(name) for name in archive.namelist()})
    return seeds


def _folders(
    *writers: Callable[..., object], tensors: Mapping[str, np.ndarray] = PLAIN
) -> list[Parts]:
    seeds = []
    for writer in writers:
        root = _written(writer, tensors)
        parts = {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}
        seeds.append(parts)
    return seeds


def _safetensors() -> list[Parts]:
    content = _written(files.write_safetensors, WEIGHTS).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return [{"header": content[8:end], "data": content[end:]}]


def _sharded() -> list[Parts]:
    index = _written(files.write_sharded, PLAIN)
    index.rename(index.with_name("model.safetensors.index.json"))
    torch = {"weight_map": dict.fromkeys(PLAIN, "0.bin")}
    return [
        {f.name: f.read_bytes() for f in index.parent.iterdir()},
        {"pytorch_model.bin.index.json": json.dumps(torch).encode()}
        | {"0.bin": _written(files.write_torch, PLAIN).read_bytes()},
    ]


def _canaries() -> list[Parts]:
    """State dicts with code in them, which would make a file named canary."""
    code = files.opcode_text("touch canary")
    calls = (
        files.opcode_global("os", "system") + files.opcode_tuple(code) + b"R",
        files.opcode_text("posix") + files.opcode_text("system") + b"\x93" + code + b"\x85R",
        files.opcode_global("builtins", "exec") + files.opcode_tuple(code) + b"R",
    )
    tree = files.state_dict(PLAIN)
    return [
        {"archive/data.pkl": files.pickled(tree[:-1] + files.opcode_text("x") + call + b"u")}
        | {f"archive/data/{i}": array.tobytes() for i, array in enumerate(PLAIN.values())}
        for call in calls
    ]


def _write_external(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    (path.parent / "weights.bin").write_bytes(b"".join(map(np.ndarray.tobytes, tensors.values())))
    data = files.external(location="weights.bin", offset=0, length=432)
    path.write_bytes(files.onnx_model(files.initialiser("w", PLAIN["dense.weight"], data)))


def _external() -> list[Parts]:
    model = _written(_write_external, PLAIN)
    return [{f.name: f.read_bytes() for f in model.parent.iterdir()}]


def _write_chunked(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    import h5py

    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("a/w", data=tensors["dense.weight"], chunks=(5, 4), compression=4)
        file.create_dataset("a/b", data=tensors["dense.bias"], chunks=(4,), fletcher32=True)


def _write_zarr(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    files.write_orbax(path, dict(tensors), use_ocdbt=False)


def _write_orbax(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    files.write_orbax(path, dict(tensors))


def _pack_file(parts: Parts, place: Path) -> Path:
    place.write_bytes(b"".join(parts.values()))
    return place


def _pack_beside(parts: Parts, place: Path) -> Path:
    """The file called model, and its data beside it."""
    for name, content in parts.items():
        place.with_name(name).write_bytes(content)
    return place


def _pack_safetensors(parts: Parts, place: Path) -> Path:
    header, data = (parts.get(name, b"") for name in ("header", "data"))
    place.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return place


def _pack_zip(parts: Parts, place: Path) -> Path:
    """An archive whose checksums are right, so that damage reaches the readers behind it."""
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return place


def _pack_folder(parts: Parts, place: Path) -> Path:
    for name, content in parts.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return place


def _read(rng: np.random.Generator, path: Path) -> None:
    """Load everything, or have a command work with it; children are slow, so not both."""
    if rng.random() < 0.5:
        _load(path)
    elif rng.random() < 0.8:
        form = ("--json", "--csv", "--skipped")[rng.integers(3)]
        page = ["--report", str(path.parent / "page.html")] * (rng.random() < DRAWN)
        _spectral_jax(["analyze", str(path), form, *page])
    else:
        _spectral_jax(["compress", str(path), "--out", str(path.parent / "small.safetensors")])
        if (path.parent / "small.safetensors").exists():
            _load(path.parent / "small.safetensors")


def _load(path: Path) -> None:
    try:
        arrays = load(path)
    except FileNotFoundError:  # where the damage is that a part is missing
        return
    except CheckpointError as error:
        line = str(error)
        if not line.isprintable() or len(line) > 400:
            raise Failure(f"not one line: {line!r:.200}") from error
        return
    if any(SECRET[:16] in array.tobytes() for array in arrays.values()):
        raise Failure("read outside its folder")


def _spectral_jax(words: list[str]) -> None:
    _check_command(cli.main, words, "spectral-jax: ", codes=(0, 2, 4))


def _check_command(
    main: Callable[[list[str]], int], words: list[str], prefix: str, codes: tuple[int, ...]
) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    lines = err.getvalue().splitlines()
    said = f"{code} {words!r:.300}: {err.getvalue()!r:.600}"
    if code not in codes or "Traceback" in err.getvalue() or "this is a bug" in err.getvalue():
        raise Failure(f"ended with {said}")
    if code and (len(lines) != 1 or not lines[0].startswith(prefix) or not lines[0].isprintable()):
        raise Failure(f"not one line: {said}")
    if code and out.getvalue():
        raise Failure(f"a failure with results: {said}")


ANALYZE = ("--layers", "--metrics", "--conv", "--framework", "--kind", "--json", "--csv",
           "--parquet", "--report", "--compare", "--force", "--skipped", "--columns", "--gate",
           "--rank", "--out", "--step", "--nonsense", "-x", "--", "--layers=")  # fmt: skip
VALUES = ("norms", "hill,ks", "flattened", "torch", "*", "dense*", "dense.weight=dense", "=", "mp",
          "energy=0.5", "energy=x", "3", "-1", "0", "nan", "1e999", "9" * 400)  # fmt: skip


def _words(rng: np.random.Generator, path: Path) -> None:
    """A command line of options, values and nonsense around a valid file."""
    words = [("analyze", "compress", "analyse")[rng.integers(3)], str(path)]
    if rng.random() < 0.2:
        words[1] = word(rng)
    for _ in range(rng.integers(6)):
        option = ANALYZE[rng.integers(len(ANALYZE))]
        words.append(option)
        if option in ("--report", "--parquet", "--out"):
            names = (path.name, "out", "", ".", "no/such", "weights/x")
            words.append(str(path.parent / names[rng.integers(len(names))]))
        elif rng.random() < 0.8:
            known = VALUES[rng.integers(len(VALUES))]
            # A system gives no program a NUL, and lone surrogates only for what is not UTF-8.
            words.append(known if rng.random() < 0.7 else word(rng).replace("\0", ""))
    before = path.read_bytes()
    _spectral_jax([each.replace("\0", "") for each in words])
    if path.read_bytes() != before:
        raise Failure(f"replaced its input: {words!r:.300}")


def _configs() -> list[Parts]:
    config = ExperimentConfig("stub")
    return [{"": dump_yaml(config).encode()}, {"": b"name: x\ntrain: {epochs: 3, seeds: 2}\n"},
            {"": json.dumps({"name": "x", "model": {"hidden": [64, 64]}}).encode()}]  # fmt: skip


def _pack_config(parts: Parts, place: Path) -> Path:
    return _pack_file(parts, place.with_suffix(".yaml"))


SETTINGS = ("train.epochs", "train.seeds", "train.seed", "model.hidden", "data.name", "name",
            "optimizer.learning_rate", "penalty.strength", "paper_compat", "train",
            "nonsense")  # fmt: skip


def _configuration(rng: np.random.Generator, path: Path) -> None:
    """`run` of the file, with settings; the trainer is a stub, for much of this is valid."""
    words = ["run", str(path), "--runs", str(path.parent / "runs")]
    for _ in range(rng.integers(3)):
        value = damage(rng, (b"3", b"[1, 2]", b"1e-3", b"{a: b}")[rng.integers(4)])
        key = SETTINGS[rng.integers(len(SETTINGS))]
        words.append(f"{key}={value.decode(errors='surrogateescape')}".replace("\0", ""))
    with _stub_trainer(path.parent):
        _check_command(experiments.main, words, "error: ", codes=(0, 2, 4))


@contextlib.contextmanager
def _stub_trainer(folder: Path) -> Iterator[None]:
    def train(config: ExperimentConfig, *, root: str, argv: list[str]) -> Any:
        return types.SimpleNamespace(path=folder, summary={})

    module = types.ModuleType("experiments.training.train")
    vars(module)["train"] = train
    real = sys.modules.get("experiments.training.train")
    sys.modules["experiments.training.train"] = module
    try:
        yield
    finally:
        del sys.modules["experiments.training.train"]
        if real:
            sys.modules["experiments.training.train"] = real


TARGETS = {
    "safetensors": Target(_safetensors, _pack_safetensors, _read),
    "safetensors-raw": Target(lambda: _one_file(files.write_safetensors), _pack_file, _read),
    "sharded": Target(_sharded, _pack_folder, _read),
    "npz": Target(lambda: _archives(files.write_npz), _pack_zip, _read),
    "npz-raw": Target(
        lambda: _one_file(files.write_npz, files.write_compressed_npz), _pack_file, _read
    ),
    "torch": Target(lambda: _archives(files.write_torch) + _canaries(), _pack_zip, _read),
    "torch-raw": Target(
        lambda: _one_file(files.write_torch, files.write_legacy_torch), _pack_file, _read
    ),
    "onnx": Target(lambda: _one_file(files.write_onnx), _pack_file, _read),
    "onnx-external": Target(_external, _pack_beside, _read),
    "msgpack": Target(lambda: _one_file(files.write_msgpack), _pack_file, _read),
    "hdf5": Target(lambda: _one_file(files.write_hdf5, _write_chunked), _pack_file, _read),
    "keras": Target(lambda: _archives(files.write_keras), _pack_zip, _read),
    "orbax": Target(lambda: _folders(_write_orbax, _write_zarr), _pack_folder, _read),
    "arguments": Target(lambda: _one_file(files.write_npz), _pack_file, _words),
    "configuration": Target(_configs, _pack_config, _configuration),
}


@functools.cache
def seeds(name: str) -> list[Parts]:
    """The valid inputs of a target."""
    return TARGETS[name].seeds()


def attempt(name: str, seed: int, number: int, folder: Path) -> None:
    """Make input ``number`` in an empty folder and attack with it; `Failure` for what none may."""
    rng = np.random.default_rng([seed, number, *name.encode()])
    inside, outside = folder / "inside", folder / "outside"
    inside.mkdir()
    outside.mkdir()
    _pack_folder(_secrets(name), outside)
    target, options = TARGETS[name], seeds(name)
    parts = dict(options[rng.integers(len(options))])
    if target.attack is not _words:
        part = list(parts)[rng.integers(len(parts))]
        parts[part] = damage(rng, parts[part])
        if len(parts) > 1 and rng.random() < 0.1:
            del parts[list(parts)[rng.integers(len(parts))]]
    path = target.pack(parts, inside / "model")
    if path.is_dir() and rng.random() < 0.05:
        os.mkfifo(path / "pipe")
    before = {file.name for file in outside.iterdir()}
    there = Path.cwd()
    os.chdir(inside)
    try:
        target.attack(rng, path)
    finally:
        os.chdir(there)
    if list(folder.rglob("canary")):
        raise Failure("ran code")
    if {file.name for file in outside.iterdir()} != before or len(list(folder.iterdir())) != 2:
        raise Failure("wrote outside its folder")


@functools.cache
def _secrets(name: str) -> Parts:
    """What lies outside: bytes, a checkpoint, and for Orbax an array as it stores one."""
    secret = {"dense.weight": np.frombuffer(SECRET * 8, "float32").reshape(16, -1)}
    (array,) = _folders(_write_zarr, tensors=secret) if name == "orbax" else [{}]
    return {
        "secret": SECRET * 8,
        "secret.safetensors": _written(files.write_safetensors, secret).read_bytes(),
        **{place: data for place, data in array.items() if place.startswith("dense.weight/")},
    }
