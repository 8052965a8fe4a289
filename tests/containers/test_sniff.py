"""Kinds of file, told by content."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from qmath.containers.sniff import sniff
from qmath.errors import FileFormatError
from tests.readers.builders import SAMPLES

TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.xyz"


def holding(content: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return make


def directory(*names: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.mkdir()
        for name in names:
            (path / name).touch()
        return path

    return make


def prefix(path: Path) -> Path:
    path.with_name(f"{path.name}.index").touch()
    path.with_name(f"{path.name}.data-00000-of-00001").touch()
    return path


def shard(path: Path) -> Path:
    prefix(path)
    return path.with_name(f"{path.name}.data-00000-of-00001")


def test_the_suffix_says_nothing(path: Path) -> None:
    path.write_bytes((SAMPLES / "question.h5").read_bytes())
    assert sniff(str(path)) == "hdf5"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (holding(b"PK\x03\x04" + bytes(100)), "keras_zip"),
        (directory("saved_model.pb", "keras_metadata.pb"), "saved_model"),
        (holding(b"\x08\x01\x12\xff"), "saved_model"),
        (lambda path: directory("saved_model.pb")(path) / "saved_model.pb", "saved_model"),
        (prefix, "tf_checkpoint"),
        (holding(b"\x1c\0\0\0TFL3" + bytes(100)), "tflite"),
        (holding(bytes(100) + TABLE_END), "tf_checkpoint"),
        (directory("ckpt-3.index", "ckpt-3.data-00000-of-00001"), "tf_checkpoint"),
    ],
)
def test_kinds(path: Path, make: Callable[[Path], Path], kind: str) -> None:
    assert sniff(str(make(path))) == kind


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (holding(b"hello\n" * 100), "no file that Keras"),
        (holding(b""), "empty"),
        (holding(b"PK"), "no file that Keras"),
        (holding(b"\x93NUMPY\x01\0v\0"), "an array .*, which is data.* 'shards/"),
        (holding(b'{"class_name": "Functional"}'), "such as an architecture"),
        (directory(), "neither a SavedModel nor a checkpoint"),
        (directory("saved_model.pbtxt"), "text form"),
        (shard, "one shard of a TensorFlow checkpoint"),
        (lambda path: path, "no such file"),
        (lambda path: path / "\0", "no path"),
    ],
)
def test_others_are_named(path: Path, make: Callable[[Path], Path], words: str) -> None:
    made = str(make(path))
    with pytest.raises(FileFormatError, match=words) as caught:
        sniff(made)
    assert re.search(re.escape(path.name), str(caught.value))
    assert ("is no path" in str(caught.value)) == (words == "no path")


def test_a_path_below_a_file(path: Path) -> None:
    path.touch()
    with pytest.raises(FileFormatError, match=r"model\.xyz.below: it cannot be read"):
        sniff(str(path / "below"))
