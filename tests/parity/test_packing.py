"""Packed bytes of onnx, Keras 3 and TFLite against `qmath.kernels.packing`."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from qmath.kernels.packing import pack, unpack
from reference import tflite  # before Keras 3: it configures TensorFlow


def integers(num_bits, signed, shape, seed=0):
    low, high = (-(1 << num_bits - 1), 1 << num_bits - 1) if signed else (0, 1 << num_bits)
    found = np.random.default_rng(seed).integers(low, high, shape)
    return found.astype(np.int8 if signed else np.uint8)


@pytest.mark.parametrize(("num_bits", "layout"), [(4, "nibbles"), (4, "lsb"), (2, "lsb")])
@pytest.mark.parametrize("signed", [True, False])
def test_onnx(num_bits, layout, signed):
    onnx = pytest.importorskip("onnx", reason="needs onnx >= 1.20, of the `test` extra")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    name = f"{'' if signed else 'u'}int{num_bits}"
    if not hasattr(onnx.TensorProto, name.upper()):
        pytest.skip(f"this onnx has no {name.upper()}")
    for size in [*range(20), 257]:
        values = integers(num_bits, signed, size, seed=size)
        tensor = numpy_helper.from_array(values.astype(getattr(ml_dtypes, name)))
        assert pack(values, num_bits, layout).tobytes() == tensor.raw_data
        found = unpack(tensor.raw_data, num_bits, layout, tuple(tensor.dims), signed)
        np.testing.assert_array_equal(found, numpy_helper.to_array(tensor).astype(np.int8))
        made = onnx.helper.make_tensor("t", tensor.data_type, [size], values.tolist())
        fields = np.array(made.int32_data, np.int32).astype(np.uint8)
        np.testing.assert_array_equal(pack(values, num_bits, layout), fields)


@pytest.fixture(scope="module")
def keras():
    keras = pytest.importorskip("keras")
    if not hasattr(getattr(keras, "quantizers", None), "pack_int4"):
        pytest.skip("needs Keras 3 with int4 quantization")
    return keras


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (5, 7), (4, 6), (3, 5, 2)])
def test_keras_function(keras, shape, dtype):
    values = integers(4, dtype == "int8", shape)
    for axis in range(-len(shape), len(shape)):
        packed, _, length = keras.quantizers.pack_int4(values, axis=axis, dtype=dtype)
        packed = packed.numpy()
        ours = pack(values, 4, "keras_int4", axis=axis)
        np.testing.assert_array_equal(ours, packed.view(np.uint8), strict=True)
        theirs = keras.quantizers.unpack_int4(packed, length, axis=axis, dtype=dtype)
        found = unpack(packed, 4, "keras_int4", shape, dtype == "int8", axis=axis)
        np.testing.assert_array_equal(found, theirs.numpy(), strict=True)


def test_keras_saved_file(keras, tmp_path):
    h5py = pytest.importorskip("h5py")
    model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(7, name="dense")])
    model.quantize("int4")
    file = tmp_path / "model.weights.h5"
    model.save_weights(file)
    with h5py.File(file) as content:
        stored = content["layers/dense/vars/0"][()]
    assert stored.shape == (6, 4)
    kernel = unpack(stored, 4, "keras_int4", (6, 7), True)
    theirs = keras.quantizers.unpack_int4(model.layers[0]._kernel, 7, axis=-1)
    np.testing.assert_array_equal(kernel, theirs.numpy())
    np.testing.assert_array_equal(pack(kernel, 4, "keras_int4").view(np.int8), stored)


def test_tflite_converter():
    tf = tflite.tf
    model = tflite.samples.load("nbit4")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter._experimental_low_bit_qat = True
    content = tflite.schema.ModelT.InitFromPackedBuf(converter.convert(), 0)
    packed = {
        tuple(tensor.shape): bytes(content.buffers[tensor.buffer].data)
        for tensor in content.subgraphs[0].tensors
        if tensor.type == tflite.schema.TensorType.INT4
    }
    assert set(packed) == {(16, 3, 3, 1), (1, 3, 3, 16), (10, 256)}
    for shape, stored in packed.items():
        assert pack(unpack(stored, 4, "nibbles", shape, True), 4, "nibbles").tobytes() == stored
    tensors = qmath.from_keras(model).tensors
    conv = tensors["conv1/kernel"].quantize().values.transpose(3, 0, 1, 2)
    dense = tensors["dense/kernel"].quantize().values.T
    assert pack(conv, 4, "nibbles").tobytes() == packed[conv.shape]
    assert pack(dense, 4, "nibbles").tobytes() == packed[dense.shape]


@pytest.mark.parametrize(("num_bits", "layout"), [(4, "nibbles"), (4, "lsb"), (2, "lsb")])
@pytest.mark.parametrize("size", [1, 2, 5, 63, 256])
def test_tflite_interpreter_reads_it(num_bits, layout, size):
    values = integers(num_bits, True, size, seed=size)
    packed = pack(values, num_bits, layout)
    if not hasattr(tflite.schema.TensorType, f"INT{num_bits}"):
        pytest.skip(f"this TFLite has no INT{num_bits}")
    content = _cast(packed, num_bits, size)
    interpreter = tflite._interpreter(tflite.packed(content), "reference")
    interpreter.allocate_tensors()
    interpreter.invoke()
    np.testing.assert_array_equal(interpreter.get_tensor(1), values)


def _cast(packed, num_bits, size):
    """Return a model that casts one packed constant to float32."""
    schema = tflite.schema
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CAST
    empty, data = schema.BufferT(), schema.BufferT()
    data.data = packed
    kinds = (getattr(schema.TensorType, f"INT{num_bits}"), schema.TensorType.FLOAT32)
    graph = schema.SubGraphT()
    graph.tensors = [schema.TensorT() for _ in kinds]
    for tensor, kind, buffer in zip(graph.tensors, kinds, (1, 0), strict=True):
        tensor.name, tensor.type, tensor.buffer, tensor.shape = b"t", kind, buffer, [size]
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0], [1]
    graph.operators, graph.inputs, graph.outputs = [operator], [], [1]
    model = schema.ModelT()
    model.version, model.operatorCodes = 3, [code]
    model.buffers, model.subgraphs = [empty, data], [graph]
    return model
