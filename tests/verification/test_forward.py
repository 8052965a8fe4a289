"""`verify` against the kernels of a forward pass, which here are computed without integers."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath import FileFormatError, QatModel, QatTensor, QuantizedTensor, QuantSpec
from qmath.exports.writing import export
from qmath.verification.check import verify
from tests.cli.running import fails, run
from tests.exports.models import model

SAMPLE = "reference/samples/default8.h5"
FORMATS = {"npz": ".npz", "safetensors": ".safetensors", "bin": ".bin", "h5": ".h5", "c": "",
           "cmsis-nn": "", "mem": "", "onnx": ".onnx", "qonnx": ".qonnx",
           "tflite": ".tflite"}  # fmt: skip
Arrays = dict[str, np.ndarray]


def forward_of(source: QatModel) -> Arrays:
    """Return what TensorFlow's layers would read: floats through the fake-quant kernels."""
    kernels = {}
    for name, tensor in source.tensors.items():
        if tensor.role == "weight":
            spec, values = tensor.spec, np.asarray(tensor.values)
            per_channel = qmath.fake_quant_with_min_max_vars_per_channel
            kernel = per_channel if spec.per_axis else qmath.fake_quant_with_min_max_vars
            kernels[f"kernels/{name}"] = kernel(
                values, tensor.min, tensor.max, spec.num_bits, spec.narrow_range
            )
        elif tensor.values is not None:
            kernels[f"kernels/{name}"] = np.asarray(tensor.values, np.float32)
    return kernels


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_stands_for_the_kernels_or_names_the_first_other(
    tmp_path: Path, format: str
) -> None:
    if "onnx" in format:
        pytest.importorskip("onnx")
    if format == "tflite":
        pytest.importorskip("flatbuffers")
    source = qmath.load(SAMPLE)
    path = tmp_path / f"out{FORMATS[format]}"
    export(source, path, format=format)
    forward = forward_of(source)
    result = verify(source, path, against=forward)
    assert result.ok, result.differences
    alone = verify(source, path)
    assert result.elements == alone.elements + sum(array.size for array in forward.values())

    kernel = forward["kernels/conv1/kernel"].copy()
    held = kernel[1, 0, 0, 2]
    kernel[1, 0, 0, 2] = np.nextafter(held, np.float32(9))
    result = verify(source, path, against={**forward, "kernels/conv1/kernel": kernel})
    assert result.differing == 1
    assert result.differences == (
        f"conv1/kernel[1, 0, 0, 2]: the file gives {held!s}, the forward pass reads "
        f"{kernel[1, 0, 0, 2]!s} (1 of {kernel.size} differ)",
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("layouts", [(), ("OHWI", "OI", "MHWI")])
def test_layouts_and_signs_stand_for_the_same_kernels(
    tmp_path: Path, layouts: tuple[str, ...], signed: bool
) -> None:
    export(model(), tmp_path / "out.npz", layouts=layouts, signed=signed)
    result = verify(model(), tmp_path / "out.npz", against=forward_of(model()))
    assert result.ok, result.differences


def test_zeros_are_equal_whatever_their_sign(tmp_path: Path) -> None:
    forward = forward_of(model())
    for name, kernel in forward.items():
        forward[name] = np.where(kernel == 0, np.float32(-0.0), kernel)
    assert any((np.signbit(kernel) & (kernel == 0)).any() for kernel in forward.values())
    export(model(), tmp_path / "out.npz")
    assert verify(model(), tmp_path / "out.npz", against=forward).ok


def test_recovered_integers_are_judged_by_their_scale(tmp_path: Path) -> None:
    integers, scale = np.int8([[-7, 3], [0, 7]]), np.asarray(0.1, np.float32)
    kernel = integers.astype(np.float32) * scale
    spec = QuantSpec(None, 4, per_axis=False, narrow_range=False)
    zero = np.asarray(0, np.int32)
    tensor = QatTensor(
        "d/kernel", "weight", kernel, np.float32(-0.8), np.float32(0.7), spec,
        recovered=QuantizedTensor(integers, scale, zero, 4, False, True, None),
    )  # fmt: skip
    source = QatModel({"d/kernel": tensor})
    export(source, tmp_path / "out.npz")
    assert verify(source, tmp_path / "out.npz", against={"kernels/d/kernel": kernel}).ok
    half = {"kernels/d/kernel": kernel / np.float32(2)}
    assert verify(source, tmp_path / "out.npz", against=half).differing == 3


def test_a_kernel_that_the_file_holds_as_float_is_a_difference(tmp_path: Path) -> None:
    floats = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    source = QatModel({"d/kernel": QatTensor("d/kernel", "float", floats)})
    export(source, tmp_path / "out.npz")
    assert verify(source, tmp_path / "out.npz", against={"kernels/d/kernel": floats}).ok
    quantized = np.round(floats * 4) / np.float32(4)
    (text,) = verify(
        source, tmp_path / "out.npz", against={"kernels/d/kernel": quantized}
    ).differences
    assert text == (
        "d/kernel[0, 1]: the file holds the float -0.6, the forward pass reads -0.5 (4 of 6 "
        "differ): a quantizer acts there of which it knows nothing"
    )


def test_names_and_shapes_that_do_not_match_are_named(tmp_path: Path) -> None:
    export(model(), tmp_path / "out.npz")
    forward = forward_of(model())
    forward["kernels/convolution/kernel"] = forward.pop("kernels/conv/kernel")
    forward["kernels/up/kernel#1"] = forward["kernels/up/kernel"]
    forward["kernels/dense/kernel"] = forward["kernels/dense/kernel"].T
    result = verify(model(), tmp_path / "out.npz", against=forward)
    assert set(result.differences) == {
        "conv/kernel: the forward pass reads no kernel of this name",
        "convolution/kernel: the forward pass reads a kernel of this name, and the model has none",
        "up/kernel: the forward pass reads it in two ways, and an export holds one",
        "dense/kernel: of shape (16, 3), and (3, 16) in the forward pass",
    }


@pytest.mark.parametrize("key", ["dense/kernel", "dense/kernel.scale", "dense/kernel.zero_point"])
@pytest.mark.parametrize("damage", [lambda x: np.zeros(7, x.dtype), lambda x: x.astype("U8")])
def test_a_damaged_file_is_found_before_the_forward_pass(
    tmp_path: Path, key: str, damage: Callable[[np.ndarray], np.ndarray]
) -> None:
    path = tmp_path / "out.npz"
    export(model(), path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays[key] = damage(arrays[key])
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    try:
        result = verify(model(), path, against=forward_of(model()))
    except FileFormatError:
        return
    assert not result.ok


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "holds no kernels/<tensor> of a forward pass; write it again: python -m reference"),
        ({"conv/post_activation": np.float32([1])}, "holds no kernels/<tensor>"),
        ({"kernels/conv/kernel": np.float64([1])}, "kernels/conv/kernel is of dtype float64"),
    ],
)
def test_what_is_no_forward_pass_is_one_clear_error(
    tmp_path: Path, arrays: Arrays, words: str
) -> None:
    export(model(), tmp_path / "out.npz")
    np.savez(tmp_path / "forward.npz", **arrays)
    for against in (arrays, tmp_path / "forward.npz"):
        with pytest.raises(FileFormatError, match=words.replace("(", r"\(")):
            verify(model(), tmp_path / "out.npz", against=against)


def test_a_damaged_forward_pass_is_one_clear_error(tmp_path: Path) -> None:
    export(model(), tmp_path / "out.npz")
    forward = tmp_path / "forward.npz"
    np.savez(forward, **forward_of(model()))
    forward.write_bytes(forward.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="of plain arrays"):
        verify(model(), tmp_path / "out.npz", against=forward)
    with pytest.raises(FileFormatError, match="there is no such file"):
        verify(model(), tmp_path / "out.npz", against=tmp_path / "none.npz")


ASSUMED = {"quantizer": "assumed: TFMOT's own quantizer", "num_bits": "range ratio"}


def assuming(*names: str) -> QatModel:
    tensors = model().tensors
    return model(**{name: replace(tensors[name], provenance=ASSUMED) for name in names})


def test_what_rests_on_an_assumption_is_named_unless_the_forward_pass_judged_it(
    tmp_path: Path,
) -> None:
    names = ("conv/kernel", "conv/post_activation")
    export(assuming(*names), tmp_path / "out.npz")
    result = verify(assuming(*names), tmp_path / "out.npz")
    assert result.ok, result.differences
    assert result.assumptions == names
    judged = verify(assuming(*names), tmp_path / "out.npz", against=forward_of(model()))
    assert judged.ok
    assert judged.assumptions == ("conv/post_activation",)
    assert verify(model(), tmp_path / "out.npz").assumptions == ()


def test_what_was_told_to_export_is_no_assumption(tmp_path: Path) -> None:
    provenance = {**ASSUMED, "quantizer": "user"}
    tensor = replace(model().tensors["conv/kernel"], provenance=provenance)
    export(model(**{"conv/kernel": tensor}), tmp_path / "out.npz")
    result = verify(assuming("conv/kernel"), tmp_path / "out.npz")
    assert result.ok, result.differences


def test_the_verb(tmp_path: Path) -> None:
    out, forward = tmp_path / "out.npz", tmp_path / "forward.npz"
    arrays = forward_of(qmath.load(SAMPLE))
    np.savez(forward, **arrays)
    run("export", SAMPLE, "-o", out)
    result = run("verify", SAMPLE, out, "--against", forward)
    assert result.exit_code == 0
    assert "equal" in result.stdout
    arrays["kernels/dense/kernel"] = arrays["kernels/dense/kernel"] * np.float32(2)
    np.savez(forward, **arrays)
    result = run("verify", SAMPLE, out, "--against", forward)
    assert result.exit_code == 1
    assert "  dense/kernel[0, 0]: the file gives" in result.stdout
    message = fails("verify", SAMPLE, out, "--against", SAMPLE)
    assert "is not an .npz or .npy of plain arrays" in message
