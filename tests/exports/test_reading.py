"""Every format's reader refuses the manifest of another version, in the same words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import qmath
from qmath.errors import FileFormatError, OutputError
from qmath.exports import manifest
from qmath.exports.reading import checked

SAMPLE = "reference/samples/default8.h5"


@pytest.mark.parametrize("value", [None, [], {}, {"format": "other", "format_version": 1}])
def test_what_is_no_manifest(value: object) -> None:
    with pytest.raises(FileFormatError, match=r"a\.npz: the manifest is not one that qmath wrote"):
        checked(value, "a.npz")


def test_a_manifest_is_returned_as_it_is() -> None:
    value = {"format": "qmath", "format_version": 1, "more": 2}
    assert checked(value, "a.npz") is value


@pytest.mark.parametrize("name", ["o.npz", "o.safetensors", "o.onnx", "o.tflite", "o.bin"])
def test_a_later_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("h5py")
    if name == "o.onnx":
        pytest.importorskip("onnx")
    if name == "o.tflite":
        pytest.importorskip("flatbuffers")
    out = tmp_path / name
    build = manifest.build
    with monkeypatch.context() as later:
        later.setattr(manifest, "build", lambda *args: build(*args) | {"format_version": 2})
        qmath.export(SAMPLE, out)
    words = "the manifest has format version 2, and this qmath reads version 1; update qmath"
    with pytest.raises(FileFormatError, match=re.escape(words)):
        qmath.verify(SAMPLE, out)
    if out.is_dir():
        with pytest.raises(OutputError, match="which qmath did not write there"):
            qmath.export(SAMPLE, out, overwrite=True)
