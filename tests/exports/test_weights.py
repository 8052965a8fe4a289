"""One export reads and quantizes each weight once, within bounded memory."""

from __future__ import annotations

import io
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath import QatModel, QatTensor, QuantSpec
from qmath.containers.lazy_array import LazyArray
from qmath.exports import weights
from qmath.exports.arrays.npz import Npz, _Arrays
from qmath.exports.bundle import Bundle, quantize_model
from qmath.exports.registry import FORMATS
from qmath.exports.weights import Weights
from qmath.integer.program import Linear
from tests.exports.models import every_width, model

SAMPLE = Path("reference/samples/default8.h5")
NETWORKS = ("cmsis-nn", "onnx", "qonnx", "tflite")  # which a graph is needed for


class Counts:
    """How often each weight is read and quantized, and its operation's sums are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads, self.quantized, self.sums = Counter[str](), Counter[str](), Counter[str]()
        read, quantize = LazyArray.__array__, QatTensor.quantize
        signed_sums = vars(Linear)["signed_sums"]
        make: Callable[[Linear], Any] = signed_sums.func

        def counted_read(array: LazyArray, *args: Any, **options: Any) -> Any:
            self.reads[array.path] += 1
            return read(array, *args, **options)

        def counted_quantize(tensor: QatTensor, **options: Any) -> Any:
            self.quantized[tensor.name] += 1
            return quantize(tensor, **options)

        def counted_sums(linear: Linear) -> Any:
            self.sums[linear.name] += 1
            return make(linear)

        monkeypatch.setattr(LazyArray, "__array__", counted_read)
        monkeypatch.setattr(QatTensor, "quantize", counted_quantize)
        monkeypatch.setattr(signed_sums, "func", counted_sums)


def export_counted(
    source: QatModel, output: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Bundle:
    """Export, and check how often what was done to the weights."""
    counts = Counts(monkeypatch)
    bundle = qmath.export(source, output, **options)
    kernels = [tensor for tensor in source.tensors.values() if tensor.role == "weight"]
    assert len(kernels) == 3
    for tensor in kernels:
        assert isinstance(tensor.values, LazyArray)
        assert counts.reads[tensor.values.path] == 1
    for tensor in source.tensors.values():
        if tensor.role == "float":  # which folding reads by itself
            assert isinstance(tensor.values, LazyArray)
            assert counts.reads[tensor.values.path] <= (2 if bundle.program else 1)
    once = {tensor.name: 1 for tensor in kernels}
    assert counts.quantized == once
    assert counts.sums == (once if bundle.program else {})
    return bundle


@pytest.mark.parametrize("options", [{}, {"signed": False}])
@pytest.mark.parametrize("format", FORMATS)
def test_a_weight_is_quantized_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, options: dict[str, Any]
) -> None:
    try:
        bundle = export_counted(
            qmath.load(SAMPLE), tmp_path / "o", monkeypatch, format=format, **options
        )
    except qmath.MissingExtraError as error:
        pytest.skip(str(error))
    assert bundle.program is not None


@pytest.mark.parametrize("format", ["npz", "c", "mem"])
def test_test_vectors_take_no_further_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    options: dict[str, Any] = {"format": format, "vectors": 4, "layouts": ["OHWI"]}
    export_counted(qmath.load(SAMPLE), tmp_path / "o", monkeypatch, **options)


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in NETWORKS])
def test_a_weight_without_a_graph_is_quantized_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    source = replace(qmath.load(SAMPLE), graph=None)
    bundle = export_counted(source, tmp_path / "o", monkeypatch, format=format)
    assert bundle.program is None


def exported(source: QatModel) -> tuple[bytes, Bundle]:
    file, bundle = io.BytesIO(), quantize_model(source, vectors=2 if source.graph else 0)
    Npz().write(bundle, file)
    return file.getvalue(), bundle


@pytest.mark.parametrize("source", [every_width(), model()], ids=["every width", "network"])
def test_integers_are_the_same_in_a_file(source: QatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = exported(source)
    for budget in (0, 100, 1000):  # all in a file; more and more in memory first
        monkeypatch.setattr(weights, "_IN_MEMORY", budget)
        assert exported(source)[0] == expected


@pytest.mark.parametrize("sample", ["default8.h5", "nbit4.h5"])
def test_integers_and_counts_are_the_same_by_parts(
    sample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = qmath.load(SAMPLE.with_name(sample))
    expected, _ = exported(source)
    monkeypatch.setattr(weights, "_PART", 20)
    counts = Counts(monkeypatch)
    assert exported(source)[0] == expected
    assert max(counts.quantized.values()) > 2


@pytest.mark.parametrize("sample", ["default8.h5", "nbit4.h5"])
@pytest.mark.parametrize("layouts", [[], ["OHWI"]])
def test_an_export_writes_as_it_quantizes_what_a_bundle_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: str, layouts: list[str]
) -> None:
    source, expected = qmath.load(SAMPLE.with_name(sample)), io.BytesIO()
    options: dict[str, Any] = {"vectors": 1, "vector_bytes": 0, "layouts": layouts}
    Npz().write(quantize_model(source, **options), expected)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))  # it needs no other file
    for part, budget in ((1 << 20, 1 << 20), (20, 1 << 20), (20, 0)):
        monkeypatch.setattr(weights, "_PART", part)
        monkeypatch.setattr(weights, "_IN_MEMORY", budget)
        bundle = qmath.export(source, tmp_path / "o.npz", overwrite=True, **options)
        assert (tmp_path / "o.npz").read_bytes() == expected.getvalue()
        for name, array in bundle.arrays():  # also when the file is closed
            with np.load(tmp_path / "o.npz") as written:
                np.testing.assert_array_equal(array, written[name])


def test_what_is_wrong_with_a_part_is_said_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows:
        path = "model.h5"
        floats = np.zeros((6, 4), np.float32)

        def read(self, path: str) -> np.ndarray:  # noqa: ARG002
            return self.floats

        def parts(self, path: str, size: int) -> Any:  # noqa: ARG002
            yield from self.floats.reshape(3, 2, 4)

    rows = Rows()
    rows.floats[4, 1] = np.nan
    spec = QuantSpec("LastValueQuantizer", 8, per_axis=False, narrow_range=True)
    tensor = QatTensor("d/kernel", "weight", LazyArray(rows, "k", (6, 4), rows.floats.dtype),
                       np.float32(-1), np.float32(1), spec)  # fmt: skip
    monkeypatch.setattr(weights, "_PART", 8)
    with pytest.raises(qmath.QmathError, match=r"d/kernel: .*\(4, 1\)"):
        Weights({tensor.name: tensor}, signed=True).quantize_and_count(tensor.name)


def test_without_room_for_a_file_weights_are_quantized_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = exported(every_width())
    monkeypatch.setattr(weights, "_IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    counts = Counts(monkeypatch)
    assert exported(every_width())[0] == expected
    assert counts.quantized == dict.fromkeys(every_width().tensors, 2)


def test_a_full_disk_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = exported(every_width())

    monkeypatch.setattr(weights, "_IN_MEMORY", 300)
    write = Weights._write

    def full(self: Weights, values: np.ndarray) -> int:
        if write(self, values) > 500:
            raise OSError(28, "No space left on device")
        return write(self, values)

    monkeypatch.setattr(Weights, "_write", full)
    counts = Counts(monkeypatch)
    assert exported(every_width())[0] == expected
    assert set(counts.quantized.values()) == {1, 2}


def test_the_file_is_closed_with_the_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_IN_MEMORY", 0)
    _, bundle = exported(every_width())
    assert isinstance(bundle.weights, Weights)
    file = bundle.weights._file
    assert file is not None
    assert not file.closed
    del bundle
    assert file.closed


def test_what_a_caller_does_to_integers_stays_with_him() -> None:
    bundle = quantize_model(model())
    for record in (bundle.weights["dense/kernel"], bundle.tensors["dense/kernel"]):
        assert isinstance(record, qmath.QuantizedTensor)
        record.values[...] = 0
    again = bundle.weights["dense/kernel"].values
    np.testing.assert_array_equal(again, model().tensors["dense/kernel"].quantize().values)
    assert again.any()


def test_weights_keep_the_model_s_own_order() -> None:
    source = model()
    bundle = quantize_model(source, layouts=["OHWI"])
    assert list(bundle.weights) == [t.name for t in source.tensors.values() if t.role == "weight"]
    own, moved = bundle.weights["conv/kernel"], bundle.tensors["conv/kernel"]
    assert isinstance(moved, qmath.QuantizedTensor)
    assert (own.axis, moved.axis) == (3, 0)
    np.testing.assert_array_equal(own.values.transpose(3, 0, 1, 2), moved.values)


class Generated:
    """Floats that take memory only while they are looked at."""

    shape, dtype = (1 << 10, 1 << 9), np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.linspace(-1, 1, 1 << 19, dtype=dtype or self.dtype).reshape(self.shape)


@pytest.mark.parametrize("format", ["npz", "safetensors"])
def test_memory_is_bounded_by_the_largest_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    spec = QuantSpec("LastValueQuantizer", 8, per_axis=False, narrow_range=True)
    ends = {"min": np.float32(-1), "max": np.float32(1)}
    names = [f"{i}/kernel" for i in range(32)]
    source = QatModel({n: QatTensor(n, "weight", Generated(), spec=spec, **ends) for n in names})
    monkeypatch.setattr(weights, "_IN_MEMORY", 1 << 20)
    qmath.export(model(), tmp_path / f"first.{format}")  # whatever is imported for it
    tracemalloc.start()
    try:
        qmath.export(source, tmp_path / f"o.{format}")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    floats = 4 << 19
    assert peak < 6 * floats  # all integers would be 8 times the floats of one weight


def test_to_ask_for_a_name_quantizes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = quantize_model(model())
    counts = Counts(monkeypatch)
    assert "dense/kernel" in bundle.tensors
    assert "dense/kernel" in bundle.weights
    assert "dense" not in bundle.tensors
    assert "dense" not in bundle.weights
    assert not counts.quantized


def test_verify_reads_each_array_of_an_export_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.npz"
    qmath.export(SAMPLE, path)
    reads = Counter[str]()
    read = _Arrays.__getitem__

    def counted(arrays: _Arrays, key: str) -> Any:
        reads[key] += 1
        return read(arrays, key)

    monkeypatch.setattr(_Arrays, "__getitem__", counted)
    assert qmath.verify(SAMPLE, path).ok
    assert set(reads.values()) == {1}
