"""What TFLite makes of a quantized model: its converter's integers, and those its kernels compute.

The interpreter runs every operation of a file and shows every tensor between them; `match` says
which of these is which quantized tensor of a program. Integers are unsigned here, as TensorFlow
counts them: TFLite's plus 128. ``python -m reference.tflite [MODEL …]`` prints how many integers
differ from qmath's, operation by operation, each from TFLite's own previous ones;
``python -m reference.tflite --golden`` writes ``golden/tflite.npz``, once.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reference import models  # before TensorFlow: it sets the environment

# isort: split
import flatbuffers
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

import qmath
from qmath.integer.executor import Executor
from qmath.integer.lowering.lower import lower
from qmath.integer.profiles.converter import converted
from qmath.integer.profiles.litert import Litert
from qmath.integer.profiles.tflite import Kernel, Tflite, TfliteStored, kernels
from qmath.integer.profiles.tflite_kernels import quantization
from qmath.integer.profiles.tflite_parts import split
from qmath.integer.profiles.tflm import Tflm
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import FloatStep, Linear, MoveStep, Program, Requantize, Step
from reference import samples

__all__ = [
    "OPERATIONS_WITH_WEIGHTS",
    "PROFILES",
    "File",
    "Operation",
    "Weights",
    "activations",
    "build",
    "convert",
    "convert_function",
    "match",
    "packed",
    "read",
    "run",
    "stored",
    "weights",
]

PROFILES = {"reference": Tflite, "default": Xnnpack, "optimized": Litert, "micro": Tflm}
BATCH, GOLDEN_IMAGES = 8, 16
GOLDEN = Path(__file__).parent / "golden" / "tflite.npz"

keras = tf.keras
layers = keras.layers

Array = NDArray[Any]
Resolver = Literal["reference", "default", "optimized", "micro"]

_ARENA = 1 << 26  # bytes that a microcontroller would have
_SIGN = np.int8(-128)  # flipping it adds 128
OPERATIONS_WITH_WEIGHTS = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}  # which inputs are the data, the weights and the bias
_RESOLVERS = {
    "reference": tf.lite.experimental.OpResolverType.BUILTIN_REF,
    "default": tf.lite.experimental.OpResolverType.AUTO,
    "optimized": tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}


@dataclass(frozen=True)
class Operation:
    """One operation of a file, its inputs and outputs as indexes of tensors."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class File:
    """A converted model: its bytes with every int8 tensor among the outputs, and what is in it."""

    content: bytes
    operations: tuple[Operation, ...]
    details: Mapping[int, Mapping[str, Any]]
    constants: Mapping[int, Array]

    def scales(self, tensor: int) -> NDArray[np.float32]:
        """Return a tensor's scales, of shape ``()`` or ``(C,)``."""
        scales = self.details[tensor]["quantization_parameters"]["scales"]
        return scales if len(scales) > 1 else scales.reshape(())

    def producer(self, tensor: int) -> Operation:
        """Return the operation that computes a tensor, behind those that only rearrange it."""
        found = next(op for op in self.operations if tensor in op.outputs)
        return self.producer(found.inputs[0]) if found.name == "RESHAPE" else found


def network() -> Any:
    """Return a small network of every operation that TFLite computes with integers."""
    image = x = layers.Input((24, 24, 3), name="image")
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(16, 1)(y))
    x = layers.Add()([x, y])
    y = layers.Conv2D(16, (1, 3), dilation_rate=2, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.ZeroPadding2D(((1, 0), (1, 2)))(x)
    x = layers.MaxPooling2D(3, strides=1, padding="same")(x)
    x = layers.Concatenate()(
        [
            layers.BatchNormalization()(layers.Conv2D(12, 3, padding="same")(x)),
            layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(x))),
        ]
    )
    x = layers.AveragePooling2D(3, strides=2, padding="same")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="valid")(x)
    x = layers.LeakyReLU(0.2)(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(24, 3)(x)))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(10)(layers.Dense(32, activation="relu")(x))
    return keras.Model(image, x, name="network")


def build(name: str = "network") -> Any:
    """Return a model with random weights and realistic ranges, and with no gamma of zero.

    With one, the converter leaves a convolution float. `name` is `network`, or one of
    `reference.models`.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    if name == "network":
        model = models.default8(network())
        models.randomize(model)
    else:
        model = models.build(name)
    return trained(model)


def trained(model: Any) -> Any:
    """Return a model with ranges, in whose channels nothing is all zeros."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        values = weight.numpy()
        if weight.name.endswith("gamma:0"):
            weight.assign(np.where(values, values, 0.7))
        elif weight.name.endswith("kernel:0") and values.ndim == 4:
            noise = rng.normal(0, 0.2, values.shape)
            weight.assign(np.where(values.any((0, 1, 2)), values, noise))
    models.calibrate(model)
    return model


def convert(model: Any, batch: int) -> bytes:
    """Return a Keras model as the TFLite converter writes it, integers from end to end.

    The batch is fixed: XNNPACK leaves alone an operation whose shape is computed at run time.
    """
    shape = (batch, *model.input_shape[1:])
    return convert_function(lambda x: model(x, training=False), shape, model)


def convert_function(
    function: Callable[[Any], Any], shape: Sequence[int], owner: Any = None
) -> bytes:
    """Return a function of one float tensor as the TFLite converter writes it."""
    concrete = tf.function(function).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], owner)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bytes(converter.convert())


def packed(model: schema.ModelT) -> bytes:
    """Return the bytes of a file, given as the schema's objects."""
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def read(content: bytes) -> File:
    """Return what a file holds."""
    content = _with_every_output(content)
    interpreter = _interpreter(content, "reference")
    interpreter.allocate_tensors()
    operations = tuple(
        Operation(op["op_name"], tuple(map(int, op["inputs"])), tuple(map(int, op["outputs"])))
        for op in interpreter._get_ops_details()
    )
    made = {tensor for op in operations for tensor in op.outputs}
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    constants = {
        i: interpreter.get_tensor(i)
        for op in operations for i in op.inputs if i >= 0 and i not in made and details[i]["name"]
        and i not in {d["index"] for d in interpreter.get_input_details()}
    }  # fmt: skip
    return File(content, operations, details, constants)


def run(file: File, inputs: Mapping[str, Array], resolver: Resolver) -> dict[int, Array]:
    """Return every int8 tensor that a file's operations compute, by index, unsigned.

    Parameters
    ----------
    file : File
    inputs : mapping of str to ndarray
        Float data of the one input.
    resolver : {"reference", "default", "optimized", "micro"}
        TFLite's reference kernels; what it runs by default, XNNPACK and its optimized kernels; the
        latter alone; or TFLite for microcontrollers, of the package tflite-micro.
    """
    if resolver == "micro":
        (data,) = inputs.values()
        return _run_micro(file, data)
    interpreter = _interpreter(file.content, resolver)
    (data,) = inputs.values()
    (detail,) = interpreter.get_input_details()
    interpreter.allocate_tensors()
    interpreter.set_tensor(detail["index"], data)
    interpreter.invoke()
    return {
        detail["index"]: (interpreter.get_tensor(detail["index"]) ^ _SIGN).view(np.uint8)
        for detail in interpreter.get_output_details()
        if detail["dtype"] is np.int8
    }


def _run_micro(file: File, data: Array) -> dict[int, Array]:
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(file.content, arena_size=_ARENA)
    interpreter.set_input(data, 0)
    interpreter.invoke()
    (graph,) = schema.ModelT.InitFromPackedBuf(file.content, 0).subgraphs
    return {
        int(tensor): (interpreter.get_output(i) ^ _SIGN).view(np.uint8)
        for i, tensor in enumerate(graph.outputs)
    }


def match(program: Program, file: File) -> dict[str, int]:
    """Return the tensor of each quantized step: that of its scale, zero point and shape.

    Where several have these, it is that of its weights, or they are in the same order, as around a
    maximum pool that keeps the shape. A step without a tensor is left out. `program` may be a
    trained one, or what `converted` makes of it.
    """
    tensors: dict[Any, list[int]] = defaultdict(list)
    for op in file.operations:
        for tensor in op.outputs:
            detail = file.details[tensor]
            if detail["dtype"] is np.int8:
                scale, zero_point = detail["quantization"]
                key = np.float32(scale), zero_point, _without_ones(detail["shape"][1:])
                tensors[key].append(tensor)
    found: dict[str, int] = {}
    for step in program.steps:
        if not isinstance(step, FloatStep):
            q = quantization(step.params, step.name)
            candidates = tensors[q.scale, q.zero_point, _without_ones(step.shape)]
            fitting = [tensor for tensor in candidates if _has_weights_of(step, tensor, file)]
            if fitting:
                found[step.name] = fitting[0]
                candidates.remove(fitting[0])
    return found


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without the axes of length 1, which TFLite has some more of."""
    return tuple(int(n) for n in shape if n != 1)


def _has_weights_of(step: Step, tensor: int, file: File) -> bool:
    """Whether the operation that makes a tensor has a step's weights, if either has any."""
    operation = file.producer(tensor)
    if operation.name == "QUANTIZE" and file.details[operation.inputs[0]]["dtype"] is np.float32:
        return True  # whatever made the floats
    is_extreme = isinstance(step, MoveStep) and "rows" in step.attributes
    if is_extreme or operation.name in ("MAXIMUM", "MINIMUM"):
        return is_extreme and operation.name in ("MAXIMUM", "MINIMUM")
    ours = (
        [term.ops[0] for term in step.value.terms if term.ops and term.ops[0].weights is not None]
        if isinstance(step, Requantize) and len(split(step)) == 1
        else []
    )
    if operation.name not in OPERATIONS_WITH_WEIGHTS or not ours:
        return operation.name not in OPERATIONS_WITH_WEIGHTS and not ours
    theirs = file.constants[operation.inputs[OPERATIONS_WITH_WEIGHTS[operation.name][1]]]
    (kernel,) = kernels(step)
    # A line is a plane of height 1 in the one, of width 1 in the other.
    return np.array_equal(np.squeeze(theirs), np.squeeze(_as_in_a_file(ours[0], kernel)))


@dataclass(frozen=True, eq=False)
class Weights:
    """An operation with weights: TFLite's integers and scales, and qmath's."""

    step: str
    kernel: Kernel
    theirs: Array
    ours: Array
    stored: TfliteStored


def weights(program: Program, file: File) -> list[Weights]:
    """Return the operations with weights that compute a program's steps, in order."""
    program = converted(program)
    tensors = match(program, file)
    found: list[Weights] = []
    for step in program.steps:
        if not isinstance(step, Requantize) or step.name not in tensors:
            continue
        linears = {term.ops[0].name: term.ops[0] for term in step.value.terms if term.ops}
        last = file.producer(tensors[step.name])
        others = set(tensors.values())
        joined = (
            [file.producer(tensor) for tensor in last.inputs if tensor not in others]
            if last.name == "CONCATENATION" else [last]
        )  # fmt: skip
        theirs = [operation for operation in joined if operation.name in OPERATIONS_WITH_WEIGHTS]
        ours = [kernel for kernel in kernels(step) if kernel.weights]
        for operation, kernel in zip(theirs, ours, strict=True):
            _, weight, bias = (operation.inputs[i] for i in OPERATIONS_WITH_WEIGHTS[operation.name])
            assert kernel.bias is not None
            integers = file.constants[bias] if bias >= 0 else np.zeros(kernel.bias.shape, np.int32)
            found.append(Weights(
                step.name, kernel, file.constants[weight],
                _as_in_a_file(linears[kernel.weights], kernel),
                TfliteStored(file.scales(weight), integers),
            ))  # fmt: skip
    return found


def stored(program: Program, file: File) -> dict[str, dict[str, TfliteStored]]:
    """Return the file's weight scales and biases, by step and by weight tensor."""
    found: dict[str, dict[str, TfliteStored]] = {}
    for each in weights(program, file):
        found.setdefault(each.step, {})[each.kernel.weights] = each.stored
    return found


def activations(
    program: Program, file: File, inputs: Mapping[str, Array], resolver: Resolver, profile: Tflite
) -> dict[str, dict[str, tuple[int, int]]]:
    """Count the integers that differ, each operation starting from TFLite's own.

    Returns
    -------
    dict of str to dict
        By TFLite's operation and by step: how many integers there are, and how many differ.
    """
    tensors = match(profile.planned(program), file)
    computed = run(file, inputs, resolver)
    shapes = {step.name: step.shape for step in profile.planned(program).steps}
    expected = {
        name: computed[tensor].reshape(-1, *shapes[name]) for name, tensor in tensors.items()
    }
    results = Executor(program, profile).run(inputs, forced=expected)
    counts: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for name, want in expected.items():
        differing = int((results[name] != want).sum())
        counts[file.producer(tensors[name]).name][name] = want.size, differing
    return dict(counts)


def _as_in_a_file(linear: Linear, kernel: Kernel) -> Array:
    """Return an operation's integer weights as a TFLite file lays them out."""
    values = np.asarray(linear.weights)
    if linear.kind == "conv2d_transpose":
        return values.transpose(2, 0, 1, 3) * np.reshape(kernel.weight_sign, (-1, 1, 1, 1))
    if linear.kind == "depthwise_conv2d":
        return values.reshape(1, *values.shape[:2], -1) * kernel.weight_sign
    return np.moveaxis(values * kernel.weight_sign, -1, 0)


def _interpreter(content: bytes, resolver: Resolver) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tf.lite.Interpreter(
            model_content=content, experimental_op_resolver_type=_RESOLVERS[resolver], num_threads=1
        )


def _with_every_output(content: bytes) -> bytes:
    """Return a model whose int8 tensors are all outputs: delegates show no others."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    made = [tensor for op in graph.operators for tensor in op.outputs]
    graph.outputs = [i for i in made if graph.tensors[i].type == schema.TensorType.INT8]
    for signature in model.signatureDefs or ():
        signature.outputs = []
    return packed(model)


def golden() -> dict[str, Array]:
    """Return what TFLite makes of the sample ``default8`` and of some test images."""
    model = samples.load("default8")
    program = lower(qmath.from_keras(model))
    images = np.load(samples.SAMPLES / "digits_test.npz")["images"][:GOLDEN_IMAGES]
    file = read(convert(model, GOLDEN_IMAGES))
    arrays: dict[str, Array] = {}
    for each in weights(program, file):
        name = each.kernel.weights
        arrays[name] = each.theirs
        arrays[f"{name}.scale"], arrays[f"{name}.bias"] = each.stored
    for resolver in ("reference", "default"):
        computed = run(file, dict.fromkeys(program.inputs, images), resolver)
        for step, tensor in match(program, file).items():
            arrays[f"{resolver}/{step}"] = computed[tensor]
    return arrays


def main() -> None:
    """Print the comparison for the models that the command line names, or write golden data."""
    if sys.argv[1:] == ["--golden"]:
        with GOLDEN.open("xb") as target:  # never over an existing file
            np.savez_compressed(target, **golden())
        return
    for name in sys.argv[1:] or ["default8", "network"]:
        model = samples.load(name) if name in samples.RECIPES else build(name)
        program, file = lower(qmath.from_keras(model)), read(convert(model, BATCH))
        found = weights(program, file)
        biases = [each.stored.bias != each.kernel.bias for each in found]
        wrong = [each.theirs != each.ours for each in found]
        print(f"{name}: weights {_share(wrong)}, biases {_share(biases)} differ")
        inputs = models.data(model, BATCH)
        for resolver, profile in PROFILES.items():
            for label, own in (("the file's scales", stored(program, file)), ("its own", None)):
                counts = activations(program, file, inputs, resolver, profile(stored=own))
                shares = (
                    f"{op} {sum(n[1] for n in steps.values())} / "
                    f"{sum(n[0] for n in steps.values()):,}" for op, steps in counts.items()
                )  # fmt: skip
                print(f"  {resolver} resolver, {profile.name} with {label}: {', '.join(shares)}")


def _share(differing: Sequence[Array]) -> str:
    return f"{sum(int(d.sum()) for d in differing)} / {sum(d.size for d in differing):,}"


if __name__ == "__main__":
    main()
