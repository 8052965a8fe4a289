"""Small models through TensorFlow's converter: every integer of its files, in four runtimes."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from qmath.integer.executor import Executor
from qmath.integer.lowering.lower import lower
from qmath.integer.program import Requantize

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tflite_micro")
from reference import tflite  # noqa: E402

# isort: split
import tensorflow_model_optimization as tfmot  # noqa: E402

keras, layers = tf.keras, tf.keras.layers
quantization = tfmot.quantization.keras
BATCH = 16


class Quantized(quantization.QuantizeConfig):
    """Quantize some weights and what a layer makes, which TFMOT's scheme does of few layers."""

    def __init__(self, weights=()):
        self.weights = tuple(weights)

    def get_weights_and_quantizers(self, layer):
        quantizer = quantization.quantizers.LastValueQuantizer(
            num_bits=8, per_axis=False, symmetric=True, narrow_range=True
        )
        return [(getattr(layer, name), quantizer) for name in self.weights]

    def get_activations_and_quantizers(self, _layer):
        return []

    def set_quantize_weights(self, layer, values):
        for name, value in zip(self.weights, values, strict=True):
            setattr(layer, name, value)

    def set_quantize_activations(self, layer, activations):
        pass

    def get_output_quantizers(self, _layer):
        return [
            quantization.quantizers.MovingAverageQuantizer(
                num_bits=8, per_axis=False, symmetric=False, narrow_range=False
            )
        ]

    def get_config(self):
        return {"weights": list(self.weights)}


def quantized(layer, *weights):
    return quantization.quantize_annotate_layer(layer, Quantized(weights))


def conv(x, activation=None, filters=4):
    return layers.Conv2D(filters, 1, activation=activation)(x)


def fire(x):
    return layers.Concatenate()([conv(x, "relu"), conv(x, "relu", 5), x])


def dense_block(x):
    a = conv(x, "relu")
    b = conv(a, "relu")
    c = conv(layers.Concatenate()([a, b]), "relu")
    return layers.Concatenate()([a, b, c])


def u_net(x):
    a = conv(x, "relu")
    b = layers.UpSampling2D()(conv(layers.MaxPooling2D()(a), "relu"))
    return layers.UpSampling2D()(layers.Add()([conv(layers.Concatenate()([a, b])), a]))


def along_a_line(x):
    x = layers.AveragePooling1D(3, 1, padding="same")(layers.Dense(4, activation="relu")(x))
    return layers.AveragePooling1D()(quantized(layers.Conv1D(4, 3), "kernel")(x))


def pools(x):
    y = layers.ReLU()(layers.MaxPooling2D()(conv(x)))
    y = layers.ReLU()(layers.AveragePooling2D()(conv(y)))
    return layers.GlobalAveragePooling2D(keepdims=True)(layers.LeakyReLU()(conv(y, filters=21)))


def arithmetic(x):
    a = quantized(layers.Multiply())([conv(x, "relu"), conv(x)])
    b = quantized(layers.Subtract())([conv(x, "relu"), a])
    return quantized(layers.Minimum())([quantized(layers.Maximum())([conv(x), b]), conv(x)])


def functions(x):
    x = quantized(layers.Activation("sigmoid"))(conv(x))
    return quantized(layers.Activation("tanh"))(conv(x))


def convolutions(x):
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3)(x)))
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)
    return layers.Dense(5)(layers.Flatten()(x))


MODELS = {
    fire: ("CONCATENATION", "CONV_2D"),
    dense_block: ("CONCATENATION", "CONV_2D"),
    u_net: ("ADD", "CONCATENATION", "CONV_2D", "MAX_POOL_2D", "RESIZE_NEAREST_NEIGHBOR"),
    along_a_line: ("AVERAGE_POOL_2D", "CONV_2D", "FULLY_CONNECTED", "QUANTIZE"),
    pools: ("CONV_2D", "LEAKY_RELU", "MAX_POOL_2D", "MEAN", "QUANTIZE", "RELU"),
    arithmetic: ("CONV_2D", "MAXIMUM", "MINIMUM", "MUL", "SUB"),
    functions: ("CONV_2D", "LOGISTIC", "QUANTIZE", "TANH"),
    convolutions: ("DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"),
}


def build(function):
    keras.backend.clear_session()
    keras.utils.set_random_seed(5)
    image = layers.Input((16, 4) if function is along_a_line else (8, 8, 4))
    annotated = quantization.quantize_annotate_model(keras.Model(image, function(image)))
    with quantization.quantize_scope({"Quantized": Quantized}):
        model = quantization.quantize_apply(annotated)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name.endswith(("bias:0", "beta:0")):
            weight.assign(rng.normal(0, 0.3, weight.shape))
        elif weight.name.endswith("gamma:0"):
            signs = rng.choice([-1, 1], weight.shape)
            weight.assign(rng.uniform(0.5, 1.5, weight.shape) * signs)
    data = rng.normal(0, 1.5, (BATCH, *model.input_shape[1:])).astype(np.float32)
    for _ in range(40):  # the moving averages settle
        model(data, training=True)
    return model, data


@pytest.fixture(scope="module", params=MODELS, ids=lambda function: function.__name__)
def deployed(request):
    model, data = build(request.param)
    program = lower(qmath.from_keras(model))
    return request.param, program, tflite.read(tflite.convert(model, BATCH)), data


@pytest.mark.parametrize("runtime", tflite.PROFILES)
def test_every_integer_of_a_converted_model(deployed, runtime):
    function, program, file, data = deployed
    profile = tflite.PROFILES[runtime](stored=tflite.stored(program, file))
    inputs = dict.fromkeys(program.inputs, data)
    counts = tflite.activations(program, file, inputs, runtime, profile)
    counts["QUANTIZE"].pop("quantize_layer/output")  # of floats: not a profile's matter
    assert set(MODELS[function]) <= {op for op, steps in counts.items() if steps}
    differing = {step: n for steps in counts.values() for step, n in steps.items() if n[1]}
    assert not differing
    # Every rounding of the plan is one of the file's, but for the rows of a maximum: each of these
    # is a tensor of its own.
    planned = profile.planned(program)
    rounded = {step.name for step in planned.steps if isinstance(step, Requantize)}
    missing = rounded - set(tflite.match(planned, file))
    assert {name.rpartition("/")[2] for name in missing} <= {"rows"}


@pytest.mark.parametrize("runtime", tflite.PROFILES)
def test_the_plan_runs_freely(deployed, runtime):
    """From the data on, without TFLite's own integers in between."""
    _, program, file, data = deployed
    profile = tflite.PROFILES[runtime](stored=tflite.stored(program, file))
    inputs = dict.fromkeys(program.inputs, data)
    computed = tflite.run(file, inputs, runtime)
    tensors = tflite.match(profile.planned(program), file)
    first, last = "quantize_layer/output", program.outputs[0]
    forced = {first: computed[tensors[first]].reshape(data.shape)}
    results = Executor(program, profile).run(inputs, forced=forced)
    theirs = computed[tensors[last]].reshape(results[last].shape)
    np.testing.assert_array_equal(results[last], theirs)


@pytest.mark.parametrize("layer", ["dense", "transposed convolution"])
def test_what_the_converter_leaves_in_float32_is_refused(layer):
    keras.backend.clear_session()
    image = layers.Input((8, 8, 4))
    x = layers.Dense(4)(image) if layer == "dense" else layers.Conv2DTranspose(4, 3)(image)
    model = quantization.quantize_model(keras.Model(image, layers.BatchNormalization()(x)))
    data = np.random.default_rng(1).normal(0, 1, (BATCH, 8, 8, 4)).astype(np.float32)
    for _ in range(3):
        model(data, training=True)
    file = tflite.read(tflite.convert(model, BATCH))
    floats = [op for op in file.operations if file.details[op.outputs[0]]["dtype"] is np.float32]
    assert len(floats) > 1  # not only what dequantizes the output
    for name in ("tflite", "xnnpack", "litert", "tflm"):
        with pytest.raises(qmath.QmathError, match="folds no batch normalization into"):
            qmath.run(qmath.from_keras(model), data, profile=name)
