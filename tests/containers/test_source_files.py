"""Digests of what was read."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.containers import hdf5, hdf5_layout, isolation, source_files
from qmath.containers.lazy_array import LazyArray
from qmath.containers.source_files import SourceFiles, open_source
from qmath.errors import FileFormatError
from tests.readers.builders import SAMPLES, one_layer, write_v3

GOLDEN = SAMPLES.parent / "golden"


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_one_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"x" * (3 << 20))
    assert SourceFiles([path]).sha256 == hashlib.sha256(b"x" * (3 << 20)).hexdigest()


def test_several_files_have_that_of_sha256sum(tmp_path: Path) -> None:
    paths = [write(tmp_path / "b", b"two"), write(tmp_path / "c" / "a", b"one")]
    lines = sorted(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in (("b", b"two"), ("c/a", b"one"))
    )
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert SourceFiles(paths, str(tmp_path)).sha256 == expected
    assert SourceFiles(paths[::-1], str(tmp_path)).sha256 == expected
    assert SourceFiles(paths).sha256 != expected  # names count


@pytest.mark.parametrize("size", [3, 1 << 24])
def test_a_digest_made_in_a_thread_is_the_same(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"ab" * (size // 2))
    files = SourceFiles([str(path)])
    with files.hashing(), files.hashing():
        assert files.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("changes_after", [False, True])
def test_a_digest_made_in_a_thread_is_of_the_bytes_that_were_loaded(
    tmp_path: Path, changes_after: bool
) -> None:
    path = tmp_path / "model"
    path.write_bytes(bytes(1 << 24))
    files = SourceFiles([str(path)])
    if not changes_after:
        path.write_bytes(bytes(1 << 24) + b"x")
    with files.hashing():
        if not changes_after:
            with pytest.raises(FileFormatError, match="has changed since it was loaded"):
                files.sha256  # noqa: B018
        else:
            assert files.sha256 == hashlib.sha256(bytes(1 << 24)).hexdigest()
            path.write_bytes(b"")
    if changes_after:
        assert files.sha256 == hashlib.sha256(bytes(1 << 24)).hexdigest()
    else:
        with pytest.raises(FileFormatError, match="has changed since it was loaded"):
            files.sha256  # noqa: B018


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files = SourceFiles([write(path, b"one")])
    path.write_bytes(b"three")
    with pytest.raises(FileFormatError, match="changed since it was loaded"):
        files.sha256  # noqa: B018
    path.unlink()
    with pytest.raises(FileFormatError, match="cannot be read"):
        files.sha256  # noqa: B018


# ---- a source that changes


def replaced(path: Path) -> None:
    """Put another file of equal size and time in its place."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def written(path: Path) -> None:
    """Overwrite a byte, and set the time back."""
    status = path.stat()
    time.sleep(0.02)  # a step of the clock of a file system
    with open(path, "r+b") as file:
        file.seek(status.st_size // 2)
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def deleted(path: Path) -> None:
    path.unlink()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES = [replaced, written, cut, deleted, a_pipe, a_directory]
unix = pytest.mark.skipif(sys.platform == "win32", reason="an open file stays as it is there")


def h5(folder: Path) -> tuple[Path, Path]:
    """Write a model; return its path, and that of the file that holds its weights."""
    path = one_layer(folder / "model.h5")
    return path, path


def keras(folder: Path) -> tuple[Path, Path]:
    path = folder / "model.keras"
    shutil.copyfile(GOLDEN / "keras3" / "int8.keras", path)
    return path, path


def checkpoint(folder: Path) -> tuple[Path, Path]:
    shutil.copytree(GOLDEN / "checkpoints" / "question", folder / "model")
    (data,) = (folder / "model").glob("*.data-*")
    return folder / "model", data


def weights(model: Any) -> list[Any]:
    found = [t.values for t in model.tensors.values() if isinstance(t.values, LazyArray)]
    assert found
    return found


@unix
@pytest.mark.parametrize("kind", [h5, keras, checkpoint])
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_before_it_is_read_again(
    tmp_path: Path, kind: Callable[[Path], tuple[Path, Path]], change: Callable[[Path], None]
) -> None:
    path, source = kind(tmp_path)
    model = qmath.load(path)
    change(source)
    for values in weights(model):
        with pytest.raises(FileFormatError, match=source.name):
            np.asarray(values)
    with pytest.raises(FileFormatError, match=source.name):
        model.files.sha256  # noqa: B018


def test_small_arrays_of_hdf5_are_read_once_and_belong_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = weights(qmath.load(one_layer(tmp_path / "model.h5")))[0]
    monkeypatch.setattr(hdf5, "open_source", None)
    first = np.asarray(values)
    expected = first.copy()
    first += 1
    np.testing.assert_array_equal(np.asarray(values), expected)


@unix
@pytest.mark.parametrize("kind", [h5, keras, checkpoint])
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_it_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[[Path], tuple[Path, Path]],
    change: Callable[[Path], None],
) -> None:
    path, source = kind(tmp_path)
    monkeypatch.setattr(hdf5_layout, "_SMALL", 0)  # of which nothing is kept that need not be read
    values = weights(qmath.load(path))[0]
    stamp_of = source_files.stamp_of

    def look_and_change(file: Any) -> Any:
        stamp = stamp_of(file)
        monkeypatch.undo()
        change(source)
        return stamp

    monkeypatch.setattr(source_files, "stamp_of", look_and_change)
    with pytest.raises(FileFormatError, match="has changed"):
        np.asarray(values)


@unix
@pytest.mark.parametrize("isolate", [False, True])
def test_a_source_that_is_replaced_while_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolate: bool
) -> None:
    path = one_layer(tmp_path / "model.h5")
    names = hdf5.Hdf5File.names if not isolate else isolation.IsolatedHdf5File.names

    def change(self: Any, *arguments: str) -> Any:
        found = names(self, *arguments)
        if path.exists():
            copy = path.read_bytes()
            path.unlink()
            path.with_name("kept").write_bytes(copy)
            path.with_name("kept").replace(path)
        return found

    owner = isolation.IsolatedHdf5File if isolate else hdf5.Hdf5File
    monkeypatch.setattr(owner, "names", change)
    with pytest.raises(FileFormatError, match="has changed"):
        qmath.load(path, isolate=isolate)


@unix
@pytest.mark.parametrize("name", ["model.h5", "model.keras", "saved_model.pb", "ckpt.index"])
def test_nobody_waits_for_a_pipe(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(FileFormatError, match="no regular file"):
        qmath.load(tmp_path / name)


@unix
def test_nobody_waits_for_a_pipe_as_architecture(tmp_path: Path) -> None:
    weights = write_v3(tmp_path / "w.weights.h5", {"layers/dense": [np.ones((3, 4), np.float32)]})
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    with pytest.raises(FileFormatError, match=r"^[^:]*config.json: this is no regular file"):
        qmath.load(weights, architecture=pipe)


def test_devices_are_not_read() -> None:
    if not os.path.exists("/dev/zero"):
        pytest.skip("there is none here")
    with pytest.raises(FileFormatError, match="no regular file"):
        SourceFiles(["/dev/zero"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of holes")
def test_a_file_that_is_mostly_holes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(b"x" * 5000)
        file.truncate(1 << 23)
    with open_source(str(path)) as file:  # few enough
        assert file.read(5000) == b"x" * 5000
    with path.open("r+b") as file:
        file.seek(1 << 30)
        file.write(b"x")
    with pytest.raises(FileFormatError, match="were never written"):
        open_source(str(path))
