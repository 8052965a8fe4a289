"""The profiles of TFLite's runtimes against its converter and these runtimes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import qmath
from qmath.integer.lowering.lower import lower
from qmath.integer.profiles import tflite_kernels
from qmath.integer.program import (
    Activation,
    Factor,
    Linear,
    Origin,
    QuantParams,
    Requantize,
    Term,
    UnroundedSum,
)
from qmath.kernels.affine import scale_and_zero_point

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tflite_micro")
from reference import tflite  # noqa: E402

RESOLVERS = tuple(tflite.PROFILES)
MODELS = ("default8", "network")
OPERATIONS = {
    "default8": {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"},
    "network": {
        "ADD", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "LEAKY_RELU",
        "MAX_POOL_2D", "MEAN", "PAD", "QUANTIZE", "TRANSPOSE_CONV",
    },
}  # fmt: skip
PADS = {"pads": ((0, 0), (0, 0))}


@pytest.fixture(scope="module", params=MODELS)
def deployed(request):
    name = request.param
    model = tflite.samples.load(name) if name == "default8" else tflite.build(name)
    program = lower(qmath.from_keras(model))
    file = tflite.read(tflite.convert(model, tflite.BATCH))
    return name, program, file, tflite.models.data(model, tflite.BATCH)


def test_integers_of_weights_and_biases(deployed):
    _, program, file, _ = deployed
    differing = []
    for each in tflite.weights(program, file):
        np.testing.assert_array_equal(each.theirs, each.ours)
        differing.append(each.stored.bias - each.kernel.bias)
        ulps = np.int64(1) * bits(each.stored.weight_scale) - bits(each.kernel.weight_scale)
        assert np.abs(ulps).max() <= 4  # the converter's reciprocal square root
    biases = np.concatenate(differing)
    assert np.abs(biases).max() <= 1
    assert np.count_nonzero(biases) <= len(biases) / 100


def test_integers_and_scales_with_the_converter_s_reciprocal_square_root(deployed, monkeypatch):
    _, program, file, _ = deployed
    monkeypatch.setattr(tflite_kernels, "reciprocal_sqrt", lambda x: tf.math.rsqrt(x).numpy())
    found = tflite.weights(program, file)
    assert found
    for each in found:
        stored, kernel = each.stored, each.kernel
        np.testing.assert_array_equal(stored.bias, kernel.bias)
        np.testing.assert_array_equal(bits(stored.weight_scale), bits(kernel.weight_scale))


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_activations(deployed, resolver):
    name, program, file, inputs = deployed
    profile = tflite.PROFILES[resolver](stored=tflite.stored(program, file))
    counts = tflite.activations(program, file, inputs, resolver, profile)
    counts["QUANTIZE"].pop("quantize_layer/output")  # of floats: not a profile's matter
    assert {op for op, steps in counts.items() if steps} == OPERATIONS[name]
    differing = {step: n for steps in counts.values() for step, n in steps.items() if n[1]}
    assert not differing


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_activations_with_scales_of_one_s_own(deployed, resolver):
    _, program, file, inputs = deployed
    counts = tflite.activations(program, file, inputs, resolver, tflite.PROFILES[resolver]())
    counts["QUANTIZE"].pop("quantize_layer/output")
    elements, differing = np.sum([n for steps in counts.values() for n in steps.values()], axis=0)
    assert differing <= elements / 100_000


# ---- one operation at a time, with quotients of scales that make ties frequent


SIXTEENTHS = (-8.0, 7.9375)  # a scale of 2**-4
EIGHTHS = (-16.0, 15.875)
ODD = (-1.3, 2.7)
WEIGHTS = np.random.default_rng(0).integers(-3, 4, (16, 8)).astype(np.float32) / 16


def with_weights(kind, output, relu=False):
    """Return the weights of an operation, its TensorFlow function, and data."""
    weights = WEIGHTS.reshape(1, 1, 16, 8)
    if kind == "depthwise_conv2d":
        weights = weights[:, :, :, :1]

    def function(x):
        w = fake_quantized(tf.constant(weights), (-7.9375, 7.9375), narrow_range=True)
        x = fake_quantized(x, SIXTEENTHS)
        if kind == "dense":
            y = tf.matmul(x, tf.reshape(w, (16, 8)))
        elif kind == "conv2d":
            y = tf.nn.conv2d(x, w, 1, "VALID")
        else:
            y = tf.nn.depthwise_conv2d(x, w, (1, 1, 1, 1), "VALID")
        return fake_quantized(tf.nn.relu(y) if relu else y, output)

    data = random((256, 16) if kind == "dense" else (16, 4, 4, 16), SIXTEENTHS)
    return weights, function, data


def products(kind, weights, x):
    """Return the term of such an operation, and its accumulators."""
    integers = (weights * 16).astype(np.int64)
    if kind == "depthwise_conv2d":
        total = x * integers.reshape(16)
    else:
        integers = integers.reshape(16, 8) if kind == "dense" else integers
        total = x @ integers.reshape(16, 8)
    linear = Linear(kind, np.multiply, total.shape[1:], integers)
    origin = Origin(np.float64(15.875), 254, np.zeros((), np.float32))
    source = params(*SIXTEENTHS)
    return Term("x", (linear,), np.float64(source.scale / 16), source, origin), total


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("output", [EIGHTHS, SIXTEENTHS, (0.0, 15.9375), ODD])
@pytest.mark.parametrize("kind", ["dense", "conv2d", "depthwise_conv2d"])
def test_ties_of_an_operation_with_weights(kind, output, resolver):
    relu = output[0] == 0
    weights, function, data = with_weights(kind, output, relu)
    op = {"dense": "FULLY_CONNECTED", "conv2d": "CONV_2D"}.get(kind, "DEPTHWISE_CONV_2D")
    (x,), want = run(function, data, resolver, op)
    term, total = products(kind, weights, x)
    check([term], output, Activation() if relu else None, [total], want, resolver)


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("output", [EIGHTHS, SIXTEENTHS, ODD])
@pytest.mark.parametrize("size", [(2, 3), (4, 4), (7, 7)])
@pytest.mark.parametrize("keeps_axes", [False, True])
def test_ties_of_a_mean(keeps_axes, size, output, resolver):
    def function(x):
        x = fake_quantized(x, SIXTEENTHS)
        return fake_quantized(tf.reduce_mean(x, (1, 2), keeps_axes), output)

    (x,), want = run(function, random((64, *size, 21), SIXTEENTHS), resolver, "MEAN")
    source, count = params(*SIXTEENTHS), size[0] * size[1]
    total = x.sum((1, 2), keepdims=keeps_axes)
    attributes = {"global": True}
    linear = Linear("pool_sum", np.sum, total.shape[1:], gain=count, attributes=attributes)
    term = Term("x", (linear,), np.float64(source.scale / count), source)
    check([term], output, None, [total], want, resolver)


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("output", [EIGHTHS, (-4.0, 3.96875), ODD])
@pytest.mark.parametrize("size", [2, 3])
def test_ties_of_an_average_pool_and_a_change_of_grid(size, output, resolver):
    def function(x):
        x = fake_quantized(x, SIXTEENTHS)
        return fake_quantized(tf.nn.avg_pool2d(x, size, size, "VALID"), output)

    data = random((8, 4 * size, 4 * size, 8), SIXTEENTHS)
    (x,), want = run(function, data, resolver, "AVERAGE_POOL_2D", "QUANTIZE")
    source = params(*SIXTEENTHS)
    linear = Linear("pool_sum", np.sum, (4, 4, 8), gain=size**2)
    term = Term("x", (linear,), np.float64(source.scale / size**2), source)
    total = x.reshape(8, 4, size, 4, size, 8).sum((2, 4))
    check([term], output, None, [total], want, resolver)


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("output", [EIGHTHS, SIXTEENTHS, ODD])
@pytest.mark.parametrize("other", [SIXTEENTHS, EIGHTHS, (-0.4, 1.1)])
def test_ties_of_a_sum(other, output, relu, resolver):
    def function(x):
        total = fake_quantized(x, SIXTEENTHS) + fake_quantized(x * x[:, ::-1], other)
        return fake_quantized(tf.nn.relu(total) if relu else total, output)

    (a, b), want = run(function, random((4096, 8), SIXTEENTHS), resolver, "ADD")
    sources = params(*SIXTEENTHS), params(*other)
    terms = [Term(name, (), np.float64(g.scale), g) for name, g in zip("ab", sources, strict=True)]
    check(terms, output, Activation() if relu else None, [a, b], want, resolver)


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("output", [EIGHTHS, SIXTEENTHS, ODD])
@pytest.mark.parametrize("other", [SIXTEENTHS, EIGHTHS, (-0.4, 1.1)])
def test_ties_of_a_difference(other, output, resolver):
    def function(x):
        a, b = fake_quantized(x, SIXTEENTHS), fake_quantized(x * x[:, ::-1], other)
        return fake_quantized(a - b, output)

    (a, b), want = run(function, random((4096, 8), SIXTEENTHS), resolver, "SUB")
    first, second = params(*SIXTEENTHS), params(*other)
    terms = [
        Term("a", (), np.float64(first.scale), first),
        Term("b", (), np.float64(-second.scale), second),
    ]
    check(terms, output, None, [a, b], want, resolver)


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("output", [EIGHTHS, (-64.0, 63.5), ODD])
@pytest.mark.parametrize("other", [SIXTEENTHS, (-0.4, 1.1)])
def test_ties_of_a_product(other, output, resolver):
    def function(x):
        a, b = fake_quantized(x, SIXTEENTHS), fake_quantized(x[:, ::-1] / 4, other)
        return fake_quantized(a * b, output)

    (a, b), want = run(function, random((4096, 8), SIXTEENTHS), resolver, "MUL")
    first, second = params(*SIXTEENTHS), params(*other)
    product = Linear("multiply", np.multiply, (8,), factor=Factor("b", second, (8,)))
    term = Term("a", (product,), np.float64(first.scale * second.scale), first)
    check([term], output, None, [a * b], want, resolver)


@pytest.mark.parametrize("runtime", ["reference", "default", "optimized"])
@pytest.mark.parametrize("kind", ["conv2d", "depthwise_conv2d", "dense"])
def test_ties_of_an_operation_with_weights_of_4_bits(kind, runtime):
    weights, function, data = with_weights(kind, EIGHTHS)
    file = tflite.read(in_4_bits(tflite.convert_function(function, data.shape)))
    computed = tflite.run(file, {"x": data}, runtime)
    operation = next(op for op in file.operations if op.name in tflite.OPERATIONS_WITH_WEIGHTS)
    x = computed[operation.inputs[0]].astype(np.int64) - 128
    term, total = products(kind, weights, x)
    want = computed[operation.outputs[0]].astype(np.int64) - 128
    profiles = {**tflite.PROFILES, "default": partial(tflite.Xnnpack, int4="tensorflow")}
    check([term], EIGHTHS, None, [total], want, runtime, profiles[runtime]())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("channels", "multiplier", "size"),
    [(7, 1, 3), (8, 1, 3), (9, 1, 2), (12, 1, 1), (23, 1, 1), (24, 1, 3), (3, 4, 3), (8, 2, 3)],
)
def test_ties_of_the_channels_of_a_depthwise_convolution(channels, multiplier, size, bits):
    shape = (size, size, channels, multiplier)
    integers = np.random.default_rng(4).integers(-3, 4, shape)

    def function(x):
        w = tf.constant(integers / 16, tf.float32)
        w = fake_quantized(w, (-7.9375, 7.9375), narrow_range=True)
        y = tf.nn.depthwise_conv2d(fake_quantized(x, SIXTEENTHS), w, (1, 1, 1, 1), "VALID")
        return fake_quantized(y, EIGHTHS)

    change = in_4_bits if bits == 4 else bytes
    data = random((8, 9, 9, channels), SIXTEENTHS)
    (x,), want = run(function, data, "optimized", "DEPTHWISE_CONV_2D", change=change)
    total = tf.nn.depthwise_conv2d(x.astype(float), integers.astype(float), (1, 1, 1, 1), "VALID")
    term = of_weights("depthwise_conv2d", integers, total.shape[1:])
    check([term], EIGHTHS, None, [total.numpy().astype(np.int64)], want, "optimized")


@pytest.mark.parametrize(
    ("runtime", "bits", "profile"),
    [
        ("reference", 8, tflite.Tflite()),
        ("optimized", 8, tflite.Litert()),
        ("optimized", 4, tflite.Litert()),
        ("default", 8, tflite.Xnnpack()),
        ("default", 4, tflite.Xnnpack(int4="tensorflow")),
    ],
)
def test_ties_of_a_convolution_of_groups(runtime, bits, profile):
    integers = (WEIGHTS[:4] * 16).astype(np.int64)

    def function(x):
        w = tf.reshape(tf.constant(integers / 16, tf.float32), (1, 1, 4, 8))
        w = fake_quantized(w, (-7.9375, 7.9375), narrow_range=True)
        y = tf.nn.conv2d(fake_quantized(x, SIXTEENTHS), w, 1, "VALID")
        return fake_quantized(y, EIGHTHS)

    change = in_4_bits if bits == 4 else bytes
    data = random((16, 8, 8, 8), SIXTEENTHS)
    (x,), want = run(function, data, runtime, "CONV_2D", change=change)
    total = np.concatenate([x[..., :4] @ integers[:, :4], x[..., 4:] @ integers[:, 4:]], -1)
    term = of_weights("conv2d", integers, total.shape[1:], {"groups": 2})
    check([term], EIGHTHS, None, [total], want, runtime, profile)


@pytest.mark.parametrize("library", ["tensorflow", "litert"])
@pytest.mark.parametrize("scales", [1, 8])
@pytest.mark.parametrize("inputs", [15, 16])
def test_ties_of_a_dense_layer_of_4_bits(inputs, scales, library):
    integers = (WEIGHTS[:inputs] * 16).astype(np.int64)

    def function(x):
        w = tf.constant(integers / 16, tf.float32)
        w = fake_quantized(w, (-7.9375, 7.9375), narrow_range=True)
        return fake_quantized(tf.matmul(fake_quantized(x, SIXTEENTHS), w), EIGHTHS)

    data = random((256, inputs), SIXTEENTHS)
    file = tflite.read(in_4_bits(tflite.convert_function(function, data.shape), scales))
    (operation,) = (op for op in file.operations if op.name == "FULLY_CONNECTED")
    if library == "litert":
        computed = run_litert(file, data)
    else:
        computed = tflite.run(file, {"x": data}, "default")
    x, want = (
        computed[i].astype(np.int64) - 128 for i in (operation.inputs[0], operation.outputs[0])
    )
    total = x @ integers
    term = of_weights("dense", integers, total.shape[1:], width=np.full(scales, 15.875).squeeze())
    profile = tflite.Xnnpack(int4=library)
    check([term], EIGHTHS, None, [total], want, "default", profile)


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("output", [EIGHTHS, (-4.0, 3.96875), ODD])
def test_ties_of_a_leaky_relu(output, resolver):
    def function(x):
        return fake_quantized(tf.nn.leaky_relu(fake_quantized(x, SIXTEENTHS), 0.3), output)

    (x,), want = run(function, random((1024, 8), SIXTEENTHS), resolver, "LEAKY_RELU")
    source = params(*SIXTEENTHS)
    term = Term("x", (), np.float64(source.scale), source)
    check([term], output, Activation(slope=0.3), [x], want, resolver)


def test_a_dead_channel_saturates_its_bias_as_the_converter_s():
    kernel = np.stack([WEIGHTS[:, 0], np.zeros(16, np.float32)], 1).reshape(1, 1, 16, 2)
    limits = np.float32([7.9375, 0.0])

    def function(x):
        w = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            tf.constant(kernel), -limits, limits, 8, narrow_range=True
        )
        y = tf.nn.conv2d(fake_quantized(x, SIXTEENTHS), w, 1, "VALID") + tf.constant([0.25, 0.75])
        return fake_quantized(y, ODD)

    file = tflite.read(tflite.convert_function(function, (1, 4, 4, 16)))
    operation = next(op for op in file.operations if op.name == "CONV_2D")
    linear = Linear("conv2d", np.multiply, (4, 4, 2), (kernel * 16).astype(np.int64))
    origin = Origin(2 * limits.astype(np.float64), 254, np.float32([0.25, 0.75]))
    source = params(*SIXTEENTHS)
    term = Term("x", (linear,), np.float64([1.0, 0.0]), source, origin)
    step = Requantize("y", UnroundedSum((term,), np.zeros(()), (4, 4, 2)), params(*ODD))
    (ours,) = tflite.kernels(step)
    np.testing.assert_array_equal(file.constants[operation.inputs[2]], ours.bias)
    np.testing.assert_array_equal(bits(file.scales(operation.inputs[1])), bits(ours.weight_scale))
    assert ours.bias[1] == 2**31 - 1  # 0.75 is 3e9 steps of 2.5e-10


@pytest.mark.parametrize(
    ("resolver", "expected"),
    [("reference", -119), ("default", -120), ("optimized", -119), ("micro", -119)],
)
def test_the_convolution_of_tensorflow_102943(resolver, expected):
    # An accumulator of 585, which a user's Python took to -119 and TFLite to -120.
    def function(x):
        w = fake_quantized(tf.fill((1, 1, 5, 1), 1.0), (-1.0, 1.0), narrow_range=True)
        y = tf.nn.conv2d(fake_quantized(x, SIXTEENTHS), w, 1, "VALID")
        return fake_quantized(y, ODD)

    content = tflite.convert_function(function, (1, 1, 1, 5))
    model = tflite.schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    conv = next(op for op in graph.operators if len(op.inputs) == 3)
    numbers = zip(
        (conv.inputs[0], conv.inputs[1], conv.outputs[0]),
        (0.05296124517917633, 0.024093778803944588, 0.11484327912330627),
        (-124, 0, -126),
        strict=True,
    )
    for tensor, scale, zero_point in numbers:
        quantization = graph.tensors[tensor].quantization
        quantization.scale, quantization.zeroPoint = [scale], [zero_point]
    weights = model.buffers[graph.tensors[conv.inputs[1]].buffer]
    weights.data = np.full(5, 117, np.uint8)
    file = tflite.read(tflite.packed(model))
    data = np.full((1, 1, 1, 5), 0.05296124517917633, np.float32)  # one step above the zero point
    computed = tflite.run(file, {"x": data}, resolver)
    assert computed[conv.outputs[0]].item() - 128 == expected


# ---- helpers


def bits(scales):
    return np.ascontiguousarray(scales, np.float32).view(np.int32)


def of_weights(kind, integers, shape, attributes=None, width=15.875):
    """Return the term of an operation whose weights, of a scale of 2**-4, read SIXTEENTHS."""
    linear = Linear(kind, np.multiply, tuple(shape), integers, attributes=attributes or {})
    origin = Origin(np.float64(width), 254, np.zeros((), np.float32))
    source = params(*SIXTEENTHS)
    return Term("x", (linear,), np.float64(source.scale / 16), source, origin)


def in_4_bits(content, scales=1):
    """Return a file of one operation with its weights as INT4, their scale repeated."""
    schema = tflite.schema
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    versions = {
        schema.BuiltinOperator.CONV_2D: 3,
        schema.BuiltinOperator.DEPTHWISE_CONV_2D: 6,
        schema.BuiltinOperator.FULLY_CONNECTED: 4,
    }
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.builtinCode in versions:
            code.version = versions[code.builtinCode]
            weights = graph.tensors[operator.inputs[1]]
            weights.type = schema.TensorType.INT4
            buffer = model.buffers[weights.buffer]
            values = np.asarray(buffer.data, np.uint8).view(np.int8)
            buffer.data = np.frombuffer(qmath.pack(values, 4, "nibbles").tobytes(), np.uint8)
            if scales > 1:
                (scale,) = weights.quantization.scale
                weights.quantization.scale = [scale] * scales
                weights.quantization.zeroPoint = [0] * scales
    return tflite.packed(model)


def random(shape, limits):
    values = np.random.default_rng(1).uniform(*limits, shape)
    return (values * np.random.default_rng(2).uniform(0.05, 1, (shape[0], *(1,) * (len(shape) - 1)))
            ).astype(np.float32)  # fmt: skip


def fake_quantized(x, limits, narrow_range=False):
    return tf.quantization.fake_quant_with_min_max_args(x, *limits, 8, narrow_range)


def params(low, high):
    ends = np.float32(low), np.float32(high)
    scale, zero_point = scale_and_zero_point(*ends, 8, narrow_range=False, signed=False, name="x")
    return QuantParams(float(scale), int(zero_point), 0, 255, 8, *map(float, ends))


def run_litert(file, data):
    """Return the int8 tensors, unsigned, that LiteRT computes by default."""
    library = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = library.Interpreter(model_content=file.content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], data)
    interpreter.invoke()
    indices = (detail["index"] for detail in interpreter.get_output_details())
    return {i: interpreter.get_tensor(i).astype(np.int16) + 128 for i in indices}


def run(function, data, resolver, op, last=None, change=bytes):
    """Return an operation's inputs relative to their zero points, and its signed output."""
    file = tflite.read(change(tflite.convert_function(function, data.shape)))
    computed = tflite.run(file, {"x": data}, resolver)
    operation = [each for each in file.operations if each.name == op][-1]
    output = operation.outputs[0]
    if last:
        output = next(
            each for each in file.operations if each.name == last and output in each.inputs
        ).outputs[0]
    inputs = [
        computed[i].astype(np.int64) - 128 - file.details[i]["quantization"][1]
        for i in operation.inputs if i in computed
    ]  # fmt: skip
    return inputs, computed[output].astype(np.int64) - 128


def check(terms, output, activation, sums, want, resolver, profile=None):
    value = UnroundedSum(tuple(terms), np.zeros(()), want.shape[1:], activation)
    step = Requantize("y", value, params(*output))
    got = (profile or tflite.PROFILES[resolver]()).requantize(step, sums, [])
    zero_point = step.params.zero_point - 128
    assert np.unique(want).size > 15
    np.testing.assert_array_equal(got + zero_point, want)
