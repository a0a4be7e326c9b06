"""Find the files of a data set, check that they are the published ones, or download them.

Files are looked for in `$SPECTRAL_JAX_DATA`, then in the user cache (`$XDG_CACHE_HOME` or
`~/.cache`, `spectral_jax/data`). Only the cache is ever written, and no file there is replaced.

What counts is the SHA-256 of the *uncompressed* content, so `x`, `x.gz` and `x.xz` are the same
file whoever compressed it. Reading an `.xz` costs about a second per 13 MB, so its content is kept
uncompressed in the cache (184 MB for CIFAR-10: 14 s the first time, under 1 s after that).
"""

import gzip
import hashlib
import http.client
import lzma
import os
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.errors import FAILED, MISSING, UserError

NETWORK_ERRORS = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)
ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile)
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20
# Above the largest published file and archive. What is longer is not ours, and is neither stored
# nor inflated to its end: a gzip body of 1.5 MB can hold 1.5 GB.
MOST_BYTES = 512 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_OPEN: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": lambda path: gzip.open(path, "rb"),
    ".xz": lambda path: lzma.open(path, "rb"),
}
_VERDICTS: dict[tuple[str, int, int], str] = {}


class File(NamedTuple):
    """A published file: its name without `.gz` or `.xz`, and the digests its content may have."""

    name: str
    sha256: tuple[str, ...]


class Source(NamedTuple):
    """The files of a data set and where they are published.

    `urls` are the addresses (ending in `/`) that `archive`, or each file's name plus `suffix`, is
    appended to; they are tried in order. Without `urls` the files can only be put in place by hand.
    """

    folder: str
    files: tuple[File, ...]
    urls: tuple[str, ...] = ()
    archive: str | None = None
    suffix: str = ""


class BadContent(Exception):
    """Bytes that are not the published ones; says what was expected and what was there."""


class Files:
    """The verified contents of one data set's files, read one at a time to keep memory low."""

    def __init__(self, dataset: str, source: Source) -> None:
        self.dataset = dataset
        self.source = source
        self._paths = locate(dataset, source)
        self._digests: dict[str, str] = {}

    def read(self, name: str) -> bytes:
        """Return a file's uncompressed content; `UserError` (2) if it is not the published one."""
        file = next(file for file in self.source.files if file.name == name)
        path = self._paths[name]
        content, self._digests[name] = checked(self.dataset, file, path)
        if path.suffix == ".xz":
            with suppress(OSError), new_file(cache() / self.source.folder / name) as part:
                part.write_bytes(content)
        return content

    @property
    def sha256(self) -> str:
        """One digest over the names and contents of the files read so far."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def cache() -> Path:
    """Return the directory that downloads go to."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "spectral_jax" / "data"


def roots() -> tuple[Path, ...]:
    """Return the directories that are searched, in order."""
    user = os.environ.get("SPECTRAL_JAX_DATA")
    return (Path(user).expanduser(), cache()) if user else (cache(),)


def path_of(name: str) -> Path:
    """Where a file below a data directory is; `UserError` (4) if it is in none of them."""
    path = next((root / name for root in roots() if (root / name).is_file()), None)
    if path is None:
        places = " or ".join(str(root) for root in roots())
        raise UserError(f"no file {name}: put it in {places}", MISSING)
    return path


def find(source: Source, file: File) -> Path | None:
    """Return where a file is, or None; an `.xz` comes last because it is slow to read."""
    for suffixes in (("", ".gz"), (".xz",)):
        for root in roots():
            for suffix in suffixes:
                path = root / source.folder / (file.name + suffix)
                if path.is_file():
                    return path
    return None


def find_archive(source: Source) -> Path | None:
    """Return where the publisher's own archive is, or None."""
    if source.archive is None:
        return None
    places = (root / part / source.archive for root in roots() for part in ("", source.folder))
    return next((path for path in places if path.is_file()), None)


def locate(dataset: str, source: Source) -> dict[str, Path]:
    """Return the path of every file, unpacking the publisher's archive into the cache if need be.

    Raises `UserError`: 4 names the first missing file and the command that gets it; 2 a bad
    archive; 1 no room in the cache.
    """
    archive = find_archive(source)
    if archive is not None and any(find(source, file) is None for file in source.files):
        with _storing(dataset):
            try:
                unpack(source, archive)
            except BadContent as bad:
                raise _not_published(dataset, archive, bad) from bad
    paths = {file.name: find(source, file) for file in source.files}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        searched = " or ".join(str(root / source.folder) for root in roots())
        if len(roots()) == 1:
            searched += " (SPECTRAL_JAX_DATA is not set)"
        raise UserError(
            f"{dataset}: {missing[0]} is not in {searched}; {how_to_get(dataset, source)}", MISSING
        )
    return {name: path for name, path in paths.items() if path is not None}


def how_to_get(dataset: str, source: Source) -> str:
    """Say in half a sentence how a person gets a data set that is not there."""
    if source.urls:
        return f"run: python -m experiments data fetch {dataset}"
    return f"it has no public address: put it in {cache() / source.folder}"


def checked(dataset: str, file: File, path: Path) -> tuple[bytes, str]:
    """Return a file's uncompressed content and digest; `UserError` (2) if it was altered."""
    try:
        return _content(file, path, path.name.removeprefix(file.name))
    except BadContent as bad:
        raise _not_published(dataset, path, bad) from bad
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{dataset}: cannot read {path}: {reason}; check its permissions"
        ) from error


def download(dataset: str, source: Source) -> None:
    """Download what is missing into the cache.

    Everything is checked before it takes its name, so a broken download leaves nothing behind.
    Raises `UserError`: 4 when no address answers, 2 for wrong content, 1 when it cannot be stored.
    """
    missing = [file for file in source.files if find(source, file) is None]
    if not missing or find_archive(source) is not None:
        return
    if not source.urls:
        raise UserError(f"{dataset}: {how_to_get(dataset, source)}", MISSING)
    with _storing(dataset):
        if source.archive is not None:
            _from_any_address(dataset, source, source.archive, None)
            return
        for file in missing:
            _from_any_address(dataset, source, file.name + source.suffix, file)


def unpack(source: Source, archive: Path) -> None:
    """Take the files that are not there yet out of a tar or zip archive, into the cache."""
    wanted = {file.name: file for file in source.files if find(source, file) is None}
    try:
        for name, member in _members(archive):
            if name in wanted:
                with new_file(cache() / source.folder / name) as part:
                    with part.open("wb") as stream:
                        _copy(member, stream, name)
                    _content(wanted.pop(name), part, "")
    except ARCHIVE_ERRORS as error:
        raise BadContent(f"unreadable archive ({error})") from error
    if wanted:
        raise BadContent(f"no {next(iter(wanted))} in the archive")


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path whose file becomes `target` if the block succeeds.

    So `target` appears whole or not at all, and a file that is already there stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        if not target.exists():
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _from_any_address(dataset: str, source: Source, name: str, file: File | None) -> None:
    """Get a published file, or the archive when `file` is None, from the first good address."""
    failures = []
    for url in source.urls:
        try:
            return _get(source, url + name, file)
        except NETWORK_ERRORS as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # an answer of its own, with a connection
            fix = f"check the network, or put {name} in {cache() / source.folder}"
            failures.append(UserError(f"{dataset}: no {url}{name}: {reason}; {fix}", MISSING))
        except BadContent as bad:
            fix = f"try again, or put {name} in {cache() / source.folder}"
            failures.append(UserError(f"{dataset}: {url}{name} is damaged: {bad}; {fix}"))
    raise failures[0]


def _get(source: Source, url: str, file: File | None) -> None:
    """Download `url`, check it, and store the file that it is or the files that it holds."""
    folder = cache() / source.folder
    if file is not None:
        with new_file(folder / (file.name + source.suffix)) as part:
            _transfer(url, part)
            _content(file, part, source.suffix)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as room:
        archive = Path(room) / "archive"
        _transfer(url, archive)
        unpack(source, archive)


def _transfer(url: str, target: Path) -> None:
    """Copy an address to a file; a connection that closes early is an error, not a short file."""
    _refuse_plain_http(url)
    request = urllib.request.Request(url, headers={"User-Agent": "spectral_jax"})
    opener = urllib.request.build_opener(_OnlyToHttps)
    with (
        opener.open(request, timeout=TIMEOUT) as response,
        target.open("wb") as stream,
        _bar() as bar,
    ):
        announced = response.headers.get("Content-Length") or ""
        total = int(announced) if announced.isdecimal() else 0
        name = url.rsplit("/", 1)[-1]
        task = bar.add_task(name, total=total or None)
        received = _copy(response, stream, name, lambda done: bar.update(task, completed=done))
    if total and received != total:
        raise ConnectionError(f"the connection closed after {received} of {total} bytes")


class _OnlyToHttps(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to where the first request might have gone."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        try:
            _refuse_plain_http(newurl)
        except ConnectionError:
            fp.close()  # the answer that redirects has a connection of its own
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_plain_http(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ConnectionError(f"{parts.scheme}: is not read from other machines, only https:")


def _copy(
    source: IO[bytes], target: IO[bytes], name: str, advance: Callable[[int], None] | None = None
) -> int:
    """Copy a stream that must end before ``MOST_BYTES``, and return its length."""
    copied = 0
    while chunk := source.read(CHUNK):
        copied += len(chunk)
        if copied > MOST_BYTES:
            raise BadContent(f"{name} goes on after {MOST_BYTES >> 20} MiB, more than any data set")
        target.write(chunk)
        if advance is not None:
            advance(copied)
    return copied


def _bar() -> Progress:
    """Return a progress bar on stderr, silent where that is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


def _content(file: File, path: Path, suffix: str) -> tuple[bytes, str]:
    """Return the uncompressed content of `path` and its SHA-256, or raise `BadContent`."""
    expected = f"expected SHA-256 {file.sha256[0][:16]}..."
    try:
        with _OPEN[suffix](path) as stream:
            content = stream.read(MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        size = path.stat().st_size
        raise BadContent(f"{expected}, got {size} bytes of broken {suffix} ({error})") from error
    if len(content) > MOST_BYTES:
        raise BadContent(f"{expected}, got more than {MOST_BYTES >> 20} MiB")
    digest = _digest(path, content)
    if digest not in file.sha256:
        raise BadContent(f"{expected}, got {digest[:16]}... from {len(content)} bytes")
    return content, digest


def _digest(path: Path, content: bytes) -> str:
    """Return the SHA-256 of a file's content, computed once per process and version of the file."""
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _VERDICTS:
        _VERDICTS[key] = hashlib.sha256(content).hexdigest()
    return _VERDICTS[key]


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield (name without folders, content stream) for each file of a tar or zip archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for item in bundle.infolist():
                with bundle.open(item) as stream:
                    yield Path(item.filename).name, stream
        return
    with tarfile.open(archive, "r:gz") as bundle:
        for member in bundle:
            content = bundle.extractfile(member) if member.isfile() else None
            if content is not None:
                yield Path(member.name).name, content


def _not_published(dataset: str, path: Path, bad: BadContent) -> UserError:
    fix = f"replace it, or remove it and run: python -m experiments data fetch {dataset}"
    return UserError(f"{dataset}: {path} is not the published file: {bad}; {fix}")


@contextmanager
def _storing(dataset: str) -> Iterator[None]:
    """Turn a full disk or a read-only cache into one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        fix = "free some space, or set XDG_CACHE_HOME to another disk"
        raise UserError(f"{dataset}: cannot write to {cache()}: {reason}; {fix}", FAILED) from error
