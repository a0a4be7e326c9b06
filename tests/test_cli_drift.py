"""``spectral-jax drift``: two files, an exit code, and one line for what is wrong."""

import json
import zipfile

import jax
import numpy as np
import pytest

from spectral_jax import features
from spectral_jax.cli import main

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 3)).astype(np.float32)
BATCH = RNG.standard_normal((50, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    reference = features.calibrate(X, jax.random.key(0), rows=40, draws=99)
    features.save(folder / "reference.npz", reference)
    features.save(folder / "batch.npz", features.of(BATCH))
    features.save(folder / "layers.npz", features.layers.of([X, X]))
    np.savez(folder / "shifted.npz", features=BATCH + 1)
    np.save(folder / "batch.npy", BATCH)
    np.save(folder / "swapped.npy", BATCH.astype(">f4"))
    np.save(folder / "few.npy", BATCH[:30])
    np.save(folder / "one.npy", BATCH[0])
    np.save(folder / "letters.npy", BATCH.astype(str))
    (folder / "empty.npy").write_bytes(b"")
    np.save(folder / "other.npy", BATCH[:, :2])
    np.save(folder / "nan.npy", np.where(BATCH == BATCH.max(), np.nan, BATCH))
    (folder / "words.npz").write_text("no archive")
    (folder / "cut.npz").write_bytes((folder / "reference.npz").read_bytes()[:500])
    with zipfile.ZipFile(folder / "foreign.npz", "w") as archive:
        archive.writestr("words.txt", "no array")
    np.save(folder / "objects.npy", np.array([{}]))
    rows = (folder / "batch.npy").read_bytes()
    (folder / "half.npy").write_bytes(rows[:200])
    (folder / "header.npy").write_bytes(rows[:8] + b"\x06" + rows[9:])
    np.savez_compressed(folder / "packed.npz", BATCH)
    rows = (folder / "packed.npz").read_bytes()
    (folder / "crushed.npz").write_bytes(rows[:80] + bytes(40) + rows[120:])
    changed(folder, "rows.npz", rows=[-1])
    changed(folder, "kind.npz", kind="anything")
    changed(folder, "null.npz", lambda null: null[:, ::-1])
    return folder


def changed(folder, name, null=np.asarray, **header):
    """The reference with other entries in its header, and its distances changed."""
    with np.load(folder / "reference.npz") as archive:
        told, *arrays, last = (archive[name] for name in archive.files)
    told = json.dumps({**json.loads(str(told)), **header})
    np.savez(folder / name, np.array(told), *arrays, null(last))


def run(folder, *words):
    return main(["drift", *(str(folder / w) if w.endswith(("npz", "npy")) else w for w in words)])


def test_what_was_saved_is_loaded(folder):
    for begun in (
        features.zero(3, outputs=1, classes=2, blocks=3, fourth=True),
        features.layers.zero({"a": 3, "b": 2}, method="qr"),
        features.Reference(
            features.zero(2, targets=1, method="gram"), np.ones((2, 5), "float32"), (4, 9)
        ),
    ):
        x = jax.tree.map(lambda leaf: leaf + np.arange(leaf.size).reshape(leaf.shape), begun)
        x = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), x, begun)
        features.save(folder / "any.npz", x)
        again = features.load(folder / "any.npz")
        assert jax.tree.structure(again) == jax.tree.structure(x)
        jax.tree.map(np.testing.assert_array_equal, again, x)


def test_a_file_of_float64_asks_for_it(folder):
    with jax.enable_x64(True):
        features.save(folder / "wide.npz", features.of(X.astype(np.float64)))
    with pytest.raises(ValueError, match=r"wide\.npz cannot be read as moments: float64: jax"):
        features.load(folder / "wide.npz")
    assert run(folder, "reference.npz", "wide.npz") == 0


def test_moments_and_their_rows_say_the_same(folder, capsys):
    assert run(folder, "reference.npz", "batch.npz") == 0
    told = capsys.readouterr().out
    assert told.split()[:2] == ["drift", "none"]
    for rows in ("batch.npy", "swapped.npy"):
        assert run(folder, "reference.npz", rows) == 0
        assert capsys.readouterr().out == told


@pytest.mark.parametrize("batch", ["shifted.npz", "nan.npy"])
def test_an_alarm_is_exit_code_three(folder, batch, capsys):
    assert run(folder, "reference.npz", batch, "--json", "--level", "0.05") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["alarm"] is True and told["level"] == 0.05
    assert (told["distance"] is None) == (batch == "nan.npy")


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["missing.npz", "batch.npz"], 4, "there is no such file"),
        (["reference.npz", "missing.npz"], 4, "there is no such file"),
        (["words.npz", "batch.npz"], 2, "words.npz cannot be read as moments: it is no .npz"),
        (["cut.npz", "batch.npz"], 2, "cut.npz cannot be read as moments"),
        (
            ["reference.npz", "words.npz"],
            2,
            "words.npz cannot be read as moments: it is no .npz file",
        ),
        (["batch.npz", "batch.npz"], 2, "batch.npz is no reference"),
        (["batch.npy", "batch.npz"], 2, "batch.npy cannot be read as moments"),
        (["reference.npz", "few.npy"], 2, "has 30 rows: the reference is calibrated for batches"),
        (["reference.npz", "other.npy"], 2, "a has 3 features, b 2"),
        (["reference.npz", "one.npy"], 2, "one.npy holds float32 of shape (3,): save rows"),
        (["reference.npz", "letters.npy"], 2, "letters.npy holds <U32 of shape (50, 3): save"),
        (["reference.npz", "empty.npy"], 2, "empty.npy cannot be read as moments: it is no .npz"),
        (["reference.npz", "layers.npz"], 2, "layers.npz holds LayerMoments: save moments of"),
        (["reference.npz", "reference.npz"], 2, "reference.npz holds Reference: save moments of"),
        (["reference.npz", "foreign.npz"], 2, "foreign.npz holds |S8 of shape (): save rows"),
        (["foreign.npz", "batch.npz"], 2, "foreign.npz cannot be read as moments"),
        (["reference.npz", "objects.npy"], 2, "objects.npy cannot be read as features: Object"),
        (["reference.npz", "half.npy"], 2, "half.npy cannot be read as features"),
        (["reference.npz", "header.npy"], 2, "header.npy cannot be read as features"),
        (["reference.npz", "crushed.npz"], 2, "crushed.npz cannot be read as features: Error"),
        (["rows.npz", "batch.npz"], 2, "rows.npz cannot be read as moments: rows=-1"),
        (["kind.npz", "batch.npz"], 2, "kind.npz cannot be read as moments: kind='anything'"),
        (["null.npz", "batch.npz"], 2, "null.npz is damaged: its distances do not ascend"),
        (["reference.npz", "batch.npz", "--level", "0.001"], 2, "the null has 99 draws"),
        (["reference.npz", "batch.npz", "--levle", "0.1"], 2, "did you mean '--level'?"),
    ],
)
def test_what_is_wrong_is_one_line(folder, words, code, message, capsys):
    try:
        found = run(folder, *words)
    except SystemExit as leaving:
        found = leaving.code
    error = capsys.readouterr().err
    assert found == code and message in error and error.count("\n") == 1
