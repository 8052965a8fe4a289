"""What the consumers of exported files read are TensorFlow's integers, at every width."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open

import qmath
from reference import oracle, samples
from tests.exports import c_reader, memory_readers
from tests.exports.compiling import needs_compiler
from tests.exports.models import WIDTHS, every_width
from tests.helpers import assert_same_bits, read_npz


def tensorflows(tensor):
    """Return what TensorFlow's fake quantization makes of a weight."""
    spec = tensor.spec
    function = (
        oracle.fake_quant_with_min_max_vars_per_channel
        if spec.per_axis
        else oracle.fake_quant_with_min_max_vars
    )
    return function(
        np.asarray(tensor.values), tensor.min, tensor.max, spec.num_bits, spec.narrow_range
    )


def in_layout(values, entry):
    """Return a kernel with the axes that the manifest says the file has."""
    ours, exported = entry["source_layout"], entry["layout"]
    return values if ours == exported else values.transpose([ours.index(a) for a in exported])


def assert_tensorflows_integers(model, arrays, bundle):
    """Assert that integers, scales and zero points by key give TensorFlow's floats, every bit."""
    weights = [tensor for tensor in model.tensors.values() if tensor.role == "weight"]
    assert weights
    for tensor in weights:
        integers, scale, zero_point = (
            arrays[tensor.name + part] for part in ("", ".scale", ".zero_point")
        )
        real = (integers.astype(np.int32) - zero_point).astype(np.float32) * scale
        entry = bundle.manifest["tensors"][tensor.name]
        assert_same_bits(real, in_layout(tensorflows(tensor), entry), tensor.name)


def test_every_width_is_compared():
    specs = [tensor.spec for tensor in every_width().tensors.values()]
    found = {(spec.num_bits, spec.per_axis) for spec in specs}
    assert found == {(bits, per_axis) for bits in WIDTHS for per_axis in (True, False)}


def bits_of(packed, entry):
    """Read a stream whose lowest bit comes first, one value after the other."""
    stream, width = int.from_bytes(packed.tobytes(), "little"), entry["num_bits"]
    values = []
    for i in range(int(np.prod(entry["shape"]))):
        value = stream >> i * width & (1 << width) - 1
        values.append(value - (1 << width) if entry["signed"] and value >> width - 1 else value)
    return np.reshape(values, entry["shape"])


def safetensors(path):
    with safe_open(path, "np") as file:
        manifest, layouts = (json.loads(file.metadata()[key]) for key in ("qmath", "packing"))
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for key in layouts:
        arrays[key] = bits_of(arrays[key], manifest["tensors"][key])
    return arrays


def bin_(path):
    index = json.loads((path / "arrays.json").read_text())
    data = (path / "arrays.bin").read_bytes()
    arrays = {}
    for key, entry in index["arrays"].items():
        dtype = np.uint8 if entry["packing"] else entry["dtype"]
        array = np.frombuffer(data[entry["offset"] :][: entry["size"]], dtype)
        arrays[key] = bits_of(array, entry) if entry["packing"] else array.reshape(entry["shape"])
    return arrays


READERS = {
    "safetensors": safetensors,
    "bin": bin_,
    "c": c_reader.read,
    **memory_readers.READERS,
}
IN_C = pytest.param("c", marks=needs_compiler)
ARRAYS = pytest.mark.parametrize("format", ["safetensors", "bin", IN_C, *memory_readers.PARAMS])


@pytest.mark.parametrize("signed", [True, False])
@ARRAYS
def test_every_width(tmp_path, format, signed):
    path = tmp_path / "out"
    bundle = qmath.export(every_width(), path, format=format, signed=signed)
    assert_tensorflows_integers(every_width(), READERS[format](path), bundle)


@pytest.mark.parametrize("name", ["default8", "integer4", "nbit4"])
@ARRAYS
def test_samples(tmp_path, format, name):
    path = tmp_path / "out"
    model = qmath.load(samples.SAMPLES / f"{name}.h5")
    bundle = qmath.export(model, path, format=format)
    assert_tensorflows_integers(model, READERS[format](path), bundle)


@pytest.mark.parametrize("name", ["question", "default8", "integer4", "nbit4"])
def test_keras_loads_the_copy_of_its_file_and_predicts_the_same(tmp_path, monkeypatch, name):
    original = samples.load(name)
    images = read_npz(samples.SAMPLES / "digits_test.npz")["images"]
    model = qmath.load(samples.SAMPLES / f"{name}.h5")
    qmath.export(model, tmp_path / f"{name}.h5")
    monkeypatch.setattr(samples, "SAMPLES", tmp_path)
    copy = samples.load(name)
    assert_same_bits(copy(images).numpy(), original(images).numpy())
    kernels = {
        f"{wrapper.layer.name}/{wrapper._weight_name(weight.name)}": weight.numpy()
        for wrapper in copy.layers
        for weight, _, _ in getattr(wrapper, "_weight_vars", ())
    }
    assert len(kernels) == 3 - (name == "question")
    for key, values in kernels.items():
        assert_same_bits(values, tensorflows(model.tensors[key]), key)


def test_keras_loads_the_copy_of_its_weights_and_predicts_the_same(tmp_path):
    model = samples.load("default8")
    model.save_weights(tmp_path / "m.weights.h5")
    images = read_npz(samples.SAMPLES / "digits_test.npz")["images"]
    expected = model(images).numpy()
    path = tmp_path / "o.weights.h5"
    architecture = samples.SAMPLES / "default8.h5"
    loaded = qmath.load(tmp_path / "m.weights.h5", architecture=architecture)
    qmath.export(loaded, path)
    copy = samples.load("default8")
    copy.load_weights(path)
    assert_same_bits(copy(images).numpy(), expected)
    for wrapper in copy.layers:
        for weight, _, _ in getattr(wrapper, "_weight_vars", ()):
            key = f"{wrapper.layer.name}/{wrapper._weight_name(weight.name)}"
            assert_same_bits(weight.numpy(), tensorflows(loaded.tensors[key]), key)
