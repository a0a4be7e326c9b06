"""Data sets are the published bytes, or one line that says what to do.

The parsers are tested on small files in the official layouts; where SPECTRAL_JAX_DATA is set, every
loader also reads the real files.
"""

import errno
import gzip
import hashlib
import io
import lzma
import os
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from experiments import data
from experiments.data import cifar10, files, idx, tcga, tinyshakespeare
from experiments.errors import FAILED, MISSING, USAGE, UserError

REAL = os.environ.get("SPECTRAL_JAX_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="SPECTRAL_JAX_DATA is not set")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A person's data folder; the cache is beside it, so nothing real is read or written."""
    monkeypatch.setenv("SPECTRAL_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "data"


@pytest.fixture
def publish(monkeypatch):
    """Declare small contents to be the published files of a data set."""

    def declare(name, contents, urls=("http://127.0.0.1:9/",)):
        spec = data.DATASETS[name]
        published = tuple(files.File(file, (digest(c),)) for file, c in contents.items())
        source = spec.source._replace(files=published, urls=urls)
        monkeypatch.setitem(data.DATASETS, name, spec._replace(source=source))
        return contents

    return declare


@pytest.fixture
def server():
    """A publisher on the loopback: `pages` maps paths to contents, `claims` to false lengths,
    `moved` to other addresses."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path in self.server.moved:
                self.send_response(302)
                self.send_header("Location", self.server.moved[self.path])
                self.end_headers()
                return
            page = self.server.pages.get(self.path)
            if page is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(self.server.claims.get(self.path, len(page))))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as publisher:
        publisher.pages, publisher.claims, publisher.moved = {}, {}, {}
        publisher.url = f"http://127.0.0.1:{publisher.server_port}/"
        thread = threading.Thread(target=publisher.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield publisher
        publisher.shutdown()
        thread.join()


def digest(content):
    return hashlib.sha256(content).hexdigest()


def put(root, source, name, content):
    path = Path(root) / source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def idx_bytes(array):
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def mnist_contents(train=30, test=10):
    rng = np.random.default_rng(0)
    contents = {}
    names = ((idx.TRAIN_IMAGES, idx.TRAIN_LABELS, train), (idx.TEST_IMAGES, idx.TEST_LABELS, test))
    for images, labels, n in names:
        contents[images] = idx_bytes(rng.integers(0, 256, (n, 28, 28), np.uint8))
        contents[labels] = idx_bytes(np.arange(n, dtype=np.uint8) % 10)
    return contents


def cifar_contents(n=20):
    rng = np.random.default_rng(1)
    contents = {}
    for name in (*cifar10.BATCHES, cifar10.TEST):
        records = rng.integers(0, 256, (n, cifar10.RECORD), np.uint8)
        records[:, 0] = np.arange(n) % 10
        contents[name] = records.tobytes()
    return contents


def tar_gz(contents):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tcga_archive(n=20, genes=6):
    x = np.arange(n * genes).reshape(n, genes) * 0.5
    x[:, 0] = 0.0
    classes = [tcga.CLASSES[i % 5] for i in range(n)]
    table = [",gene_" + ",gene_".join(map(str, range(genes)))]
    table += [f"sample_{i}," + ",".join(map(str, row)) for i, row in enumerate(x)]
    labels = [",Class"] + [f"sample_{i},{name}" for i, name in enumerate(classes)]
    return tar_gz({"data.csv": "\n".join(table).encode(), "labels.csv": "\n".join(labels).encode()})


def refusal(code, function, *arguments, **options):
    """The one line a person is shown when `function` refuses with exit code `code`."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert caught.value.exit_code == code
    assert "\n" not in caught.value.message
    return caught.value.message


# Layouts


def test_idx_dimensions_are_big_endian_and_the_last_varies_fastest():
    array = np.arange(2 * 3 * 300, dtype=np.uint32).astype(np.uint8).reshape(2, 3, 300)
    np.testing.assert_array_equal(idx.parse_idx(idx_bytes(array), 3, "x"), array)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x89PNG\r\n", "starts with 0x89504e47, expected 0x00000803"),
        (idx_bytes(np.zeros(5, np.uint8)), "starts with 0x00000801"),
        (
            idx_bytes(np.zeros((2, 2, 2), np.uint8))[:-1],
            "values of shape (2, 2, 2)",
        ),
        (b"\0\0\x08\x03\0\0", "has 6 bytes"),
        (b"", "starts with 0x,"),
    ],
)
def test_what_is_not_idx_is_refused(content, complaint):
    assert complaint in refusal(USAGE, idx.parse_idx, content, 3, "train-images")


def test_cifar_planes_become_channels():
    record = bytes([7]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes(range(256)) * 4
    images, labels = cifar10.parse_batch(record, "x")
    assert images.shape == (1, 32, 32, 3) and labels.tolist() == [7]
    assert images[0, 0, :3].tolist() == [[1, 2, 0], [1, 2, 1], [1, 2, 2]]
    assert images[0, 1, 0].tolist() == [1, 2, 32]


@pytest.mark.parametrize("content", [b"", b"\0" * 3072, bytes([10]) + b"\0" * 3072])
def test_what_is_not_a_cifar_batch_is_refused(content):
    assert "data_batch_1.bin" in refusal(USAGE, cifar10.parse_batch, content, "data_batch_1.bin")


def test_7x7_is_the_anti_aliased_linear_resize():
    from scipy.ndimage import gaussian_filter

    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    blurred = gaussian_filter(images.astype(float), (0, 1.5, 1.5), mode="mirror")
    expected = blurred.reshape(5, 7, 4, 7, 4)[:, :, 1:3, :, 1:3].mean((2, 4))
    np.testing.assert_allclose(idx.shrink_to_7x7(images), expected, atol=1e-3)


# Loading


def test_a_file_is_the_same_compressed_or_not(folder, publish):
    for name, content in publish("mnist", mnist_contents()).items():
        put(folder, "mnist", name, content)
    plain = data.load("mnist")
    for name, content in mnist_contents().items():
        put(folder, "mnist", name + ".gz", gzip.compress(content))
        (folder / "mnist" / name).unlink()
    compressed = data.load("mnist")
    np.testing.assert_array_equal(plain.train_x, compressed.train_x)
    np.testing.assert_array_equal(plain.train_y, compressed.train_y)
    assert plain.sha256 == compressed.sha256


def test_the_small_mnist_reads_the_test_files_alone_and_cuts_them_in_order(folder, publish):
    contents = mnist_contents()
    tested = {name: contents[name] for name in (idx.TEST_IMAGES, idx.TEST_LABELS)}
    for name, content in publish("mnist10k", tested).items():
        put(folder, "mnist", name, content)
    small = data.load("mnist10k", preprocessing="unit")
    assert small.train_y.tolist() == list(range(8)) and small.test_y.tolist() == [8, 9]
    np.testing.assert_allclose(small.scale, 1 / small.train_x.max())


def test_normalisation_is_that_of_the_released_code(folder, publish):
    for name, content in publish("mnist", mnist_contents()).items():
        put(folder, "mnist", name, content)
    mnist = data.load("mnist")
    expected = (mnist.train_x / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(
        (mnist.train_x.astype(np.float32) - mnist.shift) * mnist.scale, expected, atol=1e-5
    )
    assert mnist.shift.dtype == mnist.scale.dtype == np.float32
    raw = data.load("mnist", preprocessing="raw")
    assert (raw.shift, raw.scale) == (0, 1)


def test_the_persons_folder_comes_before_the_cache(folder, publish):
    contents = publish("mnist", mnist_contents())
    for name, content in contents.items():
        put(files.cache(), "mnist", name, content)
    assert {row["path"] for row in data.verify("mnist")} == {
        str(files.cache() / "mnist" / name) for name in contents
    }
    mine = put(folder, "mnist", idx.TEST_LABELS + ".gz", gzip.compress(contents[idx.TEST_LABELS]))
    assert str(mine) in {row["path"] for row in data.verify("mnist")}


def test_xz_is_decompressed_once_into_the_cache(folder, publish):
    contents = publish("cifar10", cifar_contents())
    for name, content in contents.items():
        put(folder, "cifar-10-batches-bin", name + ".xz", lzma.compress(content, preset=0))
    before = sorted(folder.rglob("*"))
    first, second = data.load("cifar10"), data.load("cifar10")
    kept = files.cache() / "cifar-10-batches-bin"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == contents
    assert sorted(folder.rglob("*")) == before
    np.testing.assert_array_equal(first.train_x, second.train_x)
    assert first.train_x.shape == (100, 32, 32, 3) and first.sha256 == second.sha256


def test_xz_loads_without_a_cache_to_write_to(folder, publish, tmp_path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    for name, content in publish("cifar10", cifar_contents()).items():
        put(folder, "cifar-10-batches-bin", name + ".xz", lzma.compress(content, preset=0))
    assert len(data.load("cifar10").test_y) == 20


def test_the_publishers_archive_is_enough(folder, publish):
    contents = publish("cifar10", cifar_contents())
    archive = put(folder, "", "cifar-10-binary.tar.gz", tar_gz(contents))

    def where():
        return next(row["where"] for row in data.listing() if row["name"] == "cifar10")

    assert where() == str(archive)
    assert len(data.load("cifar10").train_y) == 100
    assert where() == str(files.cache() / "cifar-10-batches-bin")


@pytest.mark.parametrize(
    ("archive", "complaint"),
    [
        (tar_gz(cifar_contents())[:5000], "unreadable archive"),
        (b"not an archive", "unreadable archive"),
        (tar_gz({"readme.html": b""}), "no data_batch_1.bin in the archive"),
        (tar_gz(cifar_contents() | {"data_batch_3.bin": b"other"}), "got d9298a10d1b07358"),
    ],
)
def test_a_damaged_archive_is_named(folder, publish, archive, complaint):
    publish("cifar10", cifar_contents())
    path = put(folder, "", "cifar-10-binary.tar.gz", archive)
    message = refusal(USAGE, data.load, "cifar10")
    assert complaint in message and str(path) in message


def test_tcga_classes_follow_the_released_code(folder, publish, monkeypatch):
    monkeypatch.setattr(tcga, "RELEASED_TRAIN", 15)
    publish("tcga", {tcga.ARCHIVE: tcga_archive()})
    put(folder, "tcga", tcga.ARCHIVE, tcga_archive())
    released = data.load("tcga", preprocessing="raw", split="released")
    assert released.train_y.tolist() == [0, 1, 2, 3, 4] * 3
    assert released.train_x[:2].tolist() == [[0, 0.5, 1, 1.5, 2, 2.5], [0, 3.5, 4, 4.5, 5, 5.5]]
    stratified = data.load("tcga")
    assert np.bincount(stratified.test_y).tolist() == [1] * 5
    standard = (stratified.train_x - stratified.shift) * stratified.scale
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(0), [0, 1, 1, 1, 1, 1], atol=1e-6)


@pytest.mark.parametrize(
    "contents",
    [
        {"data.csv": b",gene_0\nsample_0,1,2", "labels.csv": b",Class\nsample_0,PRAD"},
        {"data.csv": b",gene_0\nsample_0,x", "labels.csv": b",Class\nsample_0,PRAD"},
        {"data.csv": b",gene_0\nsample_0,1", "labels.csv": b",Class\nsample_1,PRAD"},
        {"data.csv": b",gene_0\nsample_0,1", "labels.csv": b",Class\nsample_0,GBM"},
        {"data.csv": b",gene_0\nsample_0,1"},
        {"data.csv": b"", "labels.csv": b",Class\nsample_0,PRAD"},
    ],
)
def test_a_malformed_table_is_refused(folder, publish, contents):
    publish("tcga", {tcga.ARCHIVE: tar_gz(contents)})
    put(folder, "tcga", tcga.ARCHIVE, tar_gz(contents))
    assert "is malformed" in refusal(USAGE, data.load, "tcga")


def shakespeare(folder, publish, characters):
    """Publish and place a text of so many characters; return it."""
    vocabulary = np.array(list(tinyshakespeare.VOCABULARY))
    text = "".join(np.random.default_rng(2).choice(vocabulary, characters))
    for name, content in publish("tinyshakespeare", {"input.txt": text.encode()}).items():
        put(folder, "tinyshakespeare", name, content)
    return text


def test_text_is_cut_into_windows_whose_labels_are_the_next_characters(folder, publish):
    text = shakespeare(folder, publish, 10_000)
    dataset = data.load("tinyshakespeare")
    assert dataset.train_x.shape == dataset.train_y.shape == (8999 // 256, 256)
    assert dataset.test_x.shape == dataset.test_y.shape == (999 // 256, 256)
    for x, y, part in (
        (dataset.train_x, dataset.train_y, text[:9000]),
        (dataset.test_x, dataset.test_y, text[9000:]),
    ):
        assert tinyshakespeare.decode(x.ravel()) == part[: x.size]
        assert tinyshakespeare.decode(y.ravel()) == part[1 : x.size + 1]
    assert (dataset.train_x.dtype, dataset.train_y.dtype) == (np.uint8, np.int32)
    assert (dataset.classes, dataset.shift, dataset.scale) == (65, 0, 1)


def test_characters_are_coded_in_order_and_back():
    vocabulary = tinyshakespeare.VOCABULARY
    assert sorted(set(vocabulary)) == list(vocabulary)
    assert tinyshakespeare.encode(vocabulary).tolist() == list(range(65))
    assert tinyshakespeare.decode(tinyshakespeare.encode("O Romeo!\n")) == "O Romeo!\n"
    assert "'7' is not in the vocabulary" in refusal(USAGE, tinyshakespeare.encode, "Act 7")


@pytest.mark.parametrize("length, count", [(13, 3), (12, 2), (5, 1), (4, 0)])
def test_a_window_needs_a_character_after_it(length, count):
    x, y = tinyshakespeare.windows(np.arange(length), 4)
    assert x.shape == (count, 4)
    np.testing.assert_array_equal(y, x + 1)


def test_a_subset_of_windows_keeps_each_with_its_labels(folder, publish):
    shakespeare(folder, publish, 20_000)
    dataset = data.load("tinyshakespeare")
    splits = data.prepare(dataset, train_limit=20, validation=10, seed=1)
    assert splits.train_x.shape == (20, 256) and splits.validation_y.shape == (10, 256)
    for x, y in ((splits.train_x, splits.train_y), (splits.validation_x, splits.validation_y)):
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    chosen = {row.tobytes() for row in splits.train_x}
    assert not chosen & {row.tobytes() for row in splits.validation_x}
    other = data.prepare(dataset, train_limit=20, validation=10, seed=2)
    assert chosen != {row.tobytes() for row in other.train_x}
    message = refusal(USAGE, data.prepare, dataset, label_noise=0.1)
    assert "data.label_noise=0.1 needs one label per example" in message


def test_digits_need_no_files():
    digits = data.load("digits")
    assert digits.train_x.shape == (1437, 8, 8) and digits.test_x.shape == (360, 8, 8)
    standard = (digits.train_x.astype(np.float32) - digits.shift) * digits.scale
    assert abs(standard.mean()) < 1e-4 and abs(standard.std() - 1) < 1e-4
    proportions = np.bincount(digits.train_y) / 1437 - np.bincount(digits.test_y) / 360
    assert np.abs(proportions).max() < 0.005
    assert digits.sha256 == data.load("digits").sha256
    assert data.fetch("digits") == data.verify("digits") == []


def test_halves_are_the_same_images_in_two_classes():
    whole, halves = data.load("digits"), data.load("digits2")
    np.testing.assert_array_equal(halves.train_x, whole.train_x)
    np.testing.assert_array_equal(halves.test_y, whole.test_y >= 5)
    assert (halves.name, halves.classes, halves.train_y.dtype) == ("digits2", 2, np.int32)


# Refusals


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (lzma.compress, ".xz")])
def test_a_truncated_file_is_named_with_the_fix(folder, publish, pack, suffix):
    for name, content in publish("mnist", mnist_contents()).items():
        path = put(folder, "mnist", name + suffix, pack(content)[:-20])
    message = refusal(USAGE, data.load, "mnist")
    assert idx.TRAIN_IMAGES + suffix in message and f"broken {suffix}" in message
    assert "python -m experiments data fetch mnist" in message
    assert path.exists()


def test_a_tampered_byte_is_found(folder, publish):
    contents = publish("mnist", mnist_contents())
    for name, content in contents.items():
        put(folder, "mnist", name, content)
    tampered = bytearray(contents[idx.TEST_IMAGES])
    tampered[100] ^= 1
    path = put(folder, "mnist", idx.TEST_IMAGES, bytes(tampered))
    for refuse in (data.load, data.verify, data.fetch):
        message = refusal(USAGE, refuse, "mnist")
        assert str(path) in message
        assert digest(contents[idx.TEST_IMAGES])[:16] in message
        assert digest(bytes(tampered))[:16] in message
    assert path.read_bytes() == bytes(tampered)


def test_a_file_tampered_with_after_the_first_load_is_found(folder, publish):
    contents = publish("mnist", mnist_contents())
    for name, content in contents.items():
        put(folder, "mnist", name, content)
    data.load("mnist")
    path = put(folder, "mnist", idx.TEST_LABELS, contents[idx.TEST_LABELS][:-1] + b"\0")
    assert str(path) in refusal(USAGE, data.load, "mnist")


def test_images_without_their_labels_are_refused(folder, publish):
    contents = mnist_contents() | {idx.TEST_LABELS: idx_bytes(np.zeros(9, np.uint8))}
    for name, content in publish("mnist", contents).items():
        put(folder, "mnist", name, content)
    assert "10 images" in refusal(USAGE, data.load, "mnist")


@pytest.mark.parametrize(
    "name", ["mnist", "fashion_mnist", "mnist7", "cifar10", "tcga", "tinyshakespeare"]
)
def test_a_missing_set_names_the_command_that_gets_it(name, folder):
    message = refusal(MISSING, data.load, name)
    assert f"python -m experiments data fetch {name}" in message
    assert str(folder) in message and str(files.cache()) in message


def test_without_a_folder_the_message_says_which_variable_to_set(monkeypatch):
    monkeypatch.delenv("SPECTRAL_JAX_DATA")
    assert "SPECTRAL_JAX_DATA is not set" in refusal(MISSING, data.load, "mnist")


def test_a_set_without_an_address_says_where_to_put_it():
    for function in (data.load, data.fetch, data.verify):
        assert str(files.cache() / "expression") in refusal(MISSING, function, "tcga_brca")


@pytest.mark.parametrize("function", [data.load, data.fetch, data.verify])
def test_an_unknown_name_gets_a_suggestion(function):
    assert "did you mean fashion_mnist?" in refusal(USAGE, function, "fashion-mnist")
    assert "choose one of digits, digits2, mnist" in refusal(USAGE, function, "zzz")


def test_an_unknown_option_gets_a_suggestion():
    message = refusal(USAGE, data.load, "digits", preprocessing="standrad")
    assert "did you mean standard?" in message
    assert "data.split of digits" in refusal(USAGE, data.load, "digits", split="released")


def test_an_unreadable_file_is_one_line(folder, publish, monkeypatch):
    for name, content in publish("mnist", mnist_contents()).items():
        put(folder, "mnist", name, content)

    def denied(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.Path, "open", denied)
    assert "Permission denied" in refusal(USAGE, data.load, "mnist")


# Downloads


def serve_mnist(server, publish):
    contents = publish("mnist", mnist_contents(), urls=(server.url,))
    server.pages = {f"/{name}.gz": gzip.compress(c) for name, c in contents.items()}


def left_behind():
    return [path for path in files.cache().rglob("*") if path.is_file()]


def test_a_download_is_checked_and_kept_in_the_cache(server, publish, folder):
    serve_mnist(server, publish)
    paths = data.fetch("mnist")
    assert paths == [files.cache() / "mnist" / f"{name}.gz" for name in mnist_contents()]
    assert sorted(left_behind()) == sorted(paths) and not folder.exists()
    server.pages = {}
    assert data.fetch("mnist") == paths, "what is there is not downloaded again"
    assert len(data.load("mnist").train_y) == 30


def test_an_archive_is_downloaded_and_unpacked(server, publish):
    contents = publish("cifar10", cifar_contents(), urls=(server.url,))
    server.pages["/cifar-10-binary.tar.gz"] = tar_gz(contents)
    data.fetch("cifar10")
    assert {path.name: path.read_bytes() for path in left_behind()} == contents


def test_the_uci_zip_gives_the_archive_inside_it(server, publish):
    publish("tcga", {tcga.ARCHIVE: tcga_archive()}, urls=(server.url,))
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr(tcga.ARCHIVE, tcga_archive())
    server.pages["/gene+expression+cancer+rna+seq.zip"] = bundle.getvalue()
    assert [path.name for path in data.fetch("tcga")] == [tcga.ARCHIVE]


def test_the_second_address_serves_when_the_first_does_not(server, publish):
    serve_mnist(server, publish)
    publish("mnist", mnist_contents(), urls=(f"{server.url}gone/", server.url))
    assert len(data.fetch("mnist")) == 4


def test_wrong_content_is_not_kept(server, publish):
    serve_mnist(server, publish)
    server.pages[f"/{idx.TRAIN_IMAGES}.gz"] = gzip.compress(b"someone else's page")
    message = refusal(USAGE, data.fetch, "mnist")
    assert f"{server.url}{idx.TRAIN_IMAGES}.gz" in message and "expected SHA-256" in message
    assert left_behind() == []


@pytest.mark.parametrize("archive", [b"<html>moved</html>", tar_gz(cifar_contents())[:9000]])
def test_a_wrong_archive_is_not_kept(server, publish, archive):
    publish("cifar10", cifar_contents(), urls=(server.url,))
    server.pages["/cifar-10-binary.tar.gz"] = archive
    message = refusal(USAGE, data.fetch, "cifar10")
    assert f"{server.url}cifar-10-binary.tar.gz is damaged" in message
    assert left_behind() == []


def test_a_connection_that_closes_early_is_a_network_failure(server, publish):
    serve_mnist(server, publish)
    server.claims[f"/{idx.TRAIN_IMAGES}.gz"] = 10**6
    message = refusal(MISSING, data.fetch, "mnist")
    assert "of 1000000 bytes" in message and "check the network" in message
    assert left_behind() == []


def test_an_endless_body_is_cut_off(server, publish, monkeypatch):
    serve_mnist(server, publish)
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    server.pages[f"/{idx.TRAIN_IMAGES}.gz"] = bytes(10**6)
    assert "goes on after" in refusal(USAGE, data.fetch, "mnist")
    assert left_behind() == []


def test_a_small_body_that_inflates_to_a_large_one_is_not_inflated_to_its_end(
    server, publish, monkeypatch
):
    serve_mnist(server, publish)
    monkeypatch.setattr(files, "MOST_BYTES", 10**5)
    server.pages[f"/{idx.TRAIN_IMAGES}.gz"] = gzip.compress(bytes(10**7))
    assert "got more than" in refusal(USAGE, data.fetch, "mnist")
    assert left_behind() == []


def test_a_content_length_that_is_no_number_is_passed_over(server, publish):
    serve_mnist(server, publish)
    server.claims[f"/{idx.TRAIN_IMAGES}.gz"] = "plenty"
    assert len(data.fetch("mnist")) == 4


def test_only_https_is_read_from_other_machines(publish):
    published = [url for spec in data.DATASETS.values() for url in spec.source.urls]
    assert published and all(url.startswith("https://") for url in published)
    publish("mnist", mnist_contents(), urls=("http://example.org/",))
    assert "only https:" in refusal(MISSING, data.fetch, "mnist")


def test_a_redirection_to_plain_http_is_not_followed(server, publish):
    serve_mnist(server, publish)
    server.moved[f"/{idx.TRAIN_IMAGES}.gz"] = "http://example.org/elsewhere"
    assert "only https:" in refusal(MISSING, data.fetch, "mnist")


def test_a_link_in_an_archive_that_leads_nowhere_is_passed_over(server, publish):
    publish("cifar10", cifar_contents(), urls=(server.url,))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            link = tarfile.TarInfo("nowhere")
            link.type, link.linkname = kind, "absent"
            archive.addfile(link)
        for name, content in cifar_contents().items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    server.pages["/cifar-10-binary.tar.gz"] = stream.getvalue()
    assert len(data.fetch("cifar10")) == len(cifar_contents())


def test_a_refused_connection_is_one_line(publish):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    publish("mnist", mnist_contents(), urls=(f"http://127.0.0.1:{port}/",))
    message = refusal(MISSING, data.fetch, "mnist")
    assert "refused" in message and str(files.cache() / "mnist") in message


def test_a_missing_page_is_one_line(server, publish):
    publish("mnist", mnist_contents(), urls=(server.url,))
    assert "Not Found" in refusal(MISSING, data.fetch, "mnist")


def test_a_full_disk_leaves_nothing_behind(server, publish, monkeypatch):
    serve_mnist(server, publish)

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.Path, "open", lambda *_: Full())
    message = refusal(FAILED, data.fetch, "mnist")
    assert "No space left on device" in message and "XDG_CACHE_HOME" in message
    assert left_behind() == []


def test_a_file_that_is_already_there_is_not_replaced(tmp_path):
    target = tmp_path / "kept"
    target.write_bytes(b"mine")
    with files.new_file(target) as part:
        part.write_bytes(b"other")
    assert target.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [target]


# Listing


def test_the_listing_says_where_each_set_is_or_how_to_get_it(folder, publish):
    for name, content in publish("mnist", mnist_contents()).items():
        put(folder, "mnist", name, content)
    where = {row["name"]: row["where"] for row in data.listing()}
    assert list(where) == list(data.DATASETS)
    assert where["mnist"] == str(folder / "mnist")
    assert where["cifar10"] == "run: python -m experiments data fetch cifar10"
    assert where["digits"] == "scikit-learn"


def test_listing_imports_neither_jax_nor_sklearn():
    code = "import sys, experiments.data as d; d.listing(); sys.exit('jax' in sys.modules)"
    code = code.replace("'jax' in sys.modules", "bool({'jax', 'sklearn'} & set(sys.modules))")
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# Splits and label noise

UNEVEN = np.repeat(np.arange(4), (500, 300, 150, 50)).astype(np.int32)


def toy(n=1000):
    x = np.arange(n, dtype=np.float32)[:, None]
    zero, one = np.zeros((), np.float32), np.ones((), np.float32)
    return data.Dataset("toy", x, UNEVEN, x[:10], UNEVEN[:10], zero, one, 4, "0" * 64)


@pytest.mark.parametrize("seed", range(5))
def test_every_prefix_and_suffix_of_the_order_is_stratified(seed):
    order = data.stratified_order(UNEVEN, seed=seed)
    assert sorted(order) == list(range(1000))
    for stretch in (order[:100], order[:333], order[-100:], order[400:600]):
        expected = np.array([0.5, 0.3, 0.15, 0.05]) * len(stretch)
        assert np.abs(np.bincount(UNEVEN[stretch], minlength=4) - expected).max() <= 2


def test_a_split_is_disjoint_complete_seeded_and_sorted():
    train, test = data.stratified_split(UNEVEN, test=200, seed=0)
    assert sorted([*train, *test]) == list(range(1000)) and len(test) == 200
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    again, other = (data.stratified_split(UNEVEN, test=200, seed=s)[1] for s in (0, 1))
    assert np.array_equal(test, again) and not np.array_equal(test, other)


@pytest.mark.parametrize("test", [0, 1000, -1])
def test_an_empty_side_of_a_split_is_refused(test):
    with pytest.raises(ValueError, match="must lie between 1 and 999"):
        data.stratified_split(UNEVEN, test=test, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_exactly_the_fraction_of_labels_is_wrong(fraction):
    noisy = data.corrupt_labels(UNEVEN, fraction, 4, seed=0)
    assert (noisy != UNEVEN).mean() == fraction
    assert noisy.dtype == UNEVEN.dtype and noisy.min() >= 0 and noisy.max() < 4


def test_wrong_labels_are_uniform_over_the_other_classes():
    noisy = data.corrupt_labels(np.zeros(30000, np.int32), 1.0, 4, seed=0)
    assert np.abs(np.bincount(noisy)[1:] / 30000 - 1 / 3).max() < 0.01


def test_more_noise_contains_less_noise():
    less, more = (data.corrupt_labels(UNEVEN, fraction, 4, seed=0) for fraction in (0.2, 0.6))
    changed = less != UNEVEN
    assert np.array_equal(less[changed], more[changed])


@pytest.mark.parametrize(
    ("fraction", "classes"), [(-0.1, 4), (1.1, 4), (float("nan"), 4), (0.5, 1)]
)
def test_impossible_noise_is_refused(fraction, classes):
    with pytest.raises(ValueError, match="must"):
        data.corrupt_labels(UNEVEN, fraction, classes, seed=0)


def test_prepare_without_options_copies_nothing():
    dataset = toy()
    splits = data.prepare(dataset)
    assert splits.train_x is dataset.train_x and splits.test_x is dataset.test_x
    assert splits.validation_x.shape == (0, 1) and len(splits.validation_y) == 0


def test_training_and_validation_examples_are_distinct_and_stratified():
    splits = data.prepare(toy(), train_limit=200, validation=100, seed=3)
    assert not set(splits.train_x.ravel()) & set(splits.validation_x.ravel())
    assert np.abs(np.bincount(splits.train_y) - [100, 60, 30, 10]).max() <= 1
    assert np.abs(np.bincount(splits.validation_y) - [50, 30, 15, 5]).max() <= 1
    np.testing.assert_array_equal(UNEVEN[splits.train_x.ravel().astype(int)], splits.train_y)


def test_the_rest_of_the_training_set_is_kept_when_there_is_no_limit():
    splits = data.prepare(toy(), validation=100)
    assert (len(splits.train_y), len(splits.validation_y)) == (900, 100)


def test_options_do_not_move_each_others_draws():
    base = data.prepare(toy(), train_limit=200, seed=1)
    validated = data.prepare(toy(), train_limit=200, validation=300, label_noise=0.5, seed=1)
    larger = data.prepare(toy(), train_limit=400, seed=1)
    np.testing.assert_array_equal(base.train_x, validated.train_x)
    assert set(base.train_x.ravel()) <= set(larger.train_x.ravel())
    # So a sweep may search train_limit and label_noise: settings are scored on the same examples.
    fewer = data.prepare(toy(), train_limit=100, validation=300, seed=1)
    np.testing.assert_array_equal(validated.validation_x, fewer.validation_x)


def test_label_noise_leaves_validation_and_test_clean():
    dataset = toy()
    splits = data.prepare(dataset, validation=200, label_noise=0.5, seed=0)
    assert (UNEVEN[splits.train_x.ravel().astype(int)] != splits.train_y).mean() == 0.5
    np.testing.assert_array_equal(
        UNEVEN[splits.validation_x.ravel().astype(int)], splits.validation_y
    )
    assert splits.test_y is dataset.test_y
    np.testing.assert_array_equal(dataset.train_y, UNEVEN)


@pytest.mark.parametrize(
    "options", [{"train_limit": 1001}, {"train_limit": 0}, {"validation": 1000}, {"validation": -1}]
)
def test_too_few_examples_are_one_line(options):
    message = refusal(USAGE, data.prepare, toy(), **options)
    assert "1000 training examples of toy" in message


# The real files


@needs_data
def test_the_real_plays_load(monkeypatch):
    monkeypatch.setenv("SPECTRAL_JAX_DATA", REAL)
    spec = data.DATASETS["tinyshakespeare"]
    if not files.find(spec.source, spec.source.files[0]):
        pytest.skip("tinyshakespeare is not in SPECTRAL_JAX_DATA")
    dataset = data.load("tinyshakespeare")
    assert dataset.train_x.shape == (3921, 256) and dataset.test_x.shape == (435, 256)
    assert tinyshakespeare.decode(dataset.train_x[0, :15]) == "First Citizen:\n"
    assert len(np.unique(dataset.train_x)) == dataset.classes == 65


@needs_data
@pytest.mark.parametrize(
    ("name", "train", "test", "counts"),
    [
        ("mnist", (60000, 28, 28), (10000, 28, 28), [980, 1135, 1032, 1010, 982, 892, 958, 1028]),
        ("fashion_mnist", (60000, 28, 28), (10000, 28, 28), [1000] * 8),
        ("mnist7", (60000, 7, 7), (10000, 7, 7), [980, 1135, 1032, 1010, 982, 892, 958, 1028]),
        pytest.param(
            *("cifar10", (50000, 32, 32, 3), (10000, 32, 32, 3), [1000] * 8),
            marks=pytest.mark.slow,  # 14 s of xz on an idle machine
        ),
        ("tcga", (600, 20531), (201, 20531), [20, 34, 35, 75, 37]),
        ("tcga_brca", (150, 200), (70, 200), [21, 14, 35]),
    ],
)
def test_the_real_files_load(name, train, test, counts, monkeypatch):
    monkeypatch.setenv("SPECTRAL_JAX_DATA", REAL)
    if not files.find(data.DATASETS[name].source, data.DATASETS[name].source.files[0]):
        pytest.skip(f"{name} is not in SPECTRAL_JAX_DATA")
    dataset = data.load(name)
    assert dataset.train_x.shape == train and dataset.test_x.shape == test
    assert np.abs(np.bincount(dataset.test_y)[: len(counts)] - counts).max() <= (name == "tcga")
    assert dataset.train_y.max() + 1 == dataset.classes == dataset.test_y.max() + 1
    sample = (dataset.train_x[:5000].astype(np.float32) - dataset.shift) * dataset.scale
    if name != "mnist7":
        assert abs(sample.mean()) < 0.02 and abs(sample.std() - 1) < 0.02
