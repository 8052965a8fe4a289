"""TFLite files of single operations and small networks: what qmath computes, and what TFLite does.

``python -m reference.tflite_reading`` converts the networks with TensorFlow, reads all files and
counts the integers that differ, operation by operation, each from the runtime's own previous ones.
``python -m reference.tflite_reading --golden`` writes ``golden/tflite/operations.npz`` and the
network ``golden/tflite/mobile.tflite`` with its integers, once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qmath.containers.tflite.file import TfliteFile, parsed
from qmath.containers.tflite.schema import TENSOR_TYPES
from qmath.integer.api import program_of
from qmath.integer.executor import Executor
from qmath.integer.profiles.litert import Litert
from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.tflm import Tflm
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import Program
from qmath.readers.tflite.reader import network
from reference import odd_tflite
from reference.consumers import CONSUMERS
from reference.flatbuffers import decoded, encoded

__all__ = [
    "CONVERTED", "GOLDEN", "PROFILES", "compared", "converted", "golden_mobile",
    "golden_operations", "inputs_of", "operations",
]  # fmt: skip

Array = NDArray[Any]
GOLDEN = Path(__file__).parent / "golden" / "tflite"
PROFILES: Mapping[str, Callable[..., Tflite]] = {
    "reference": Tflite,
    "default": Xnnpack,
    "optimized": Litert,
    "tflite-micro": Tflm,
}
EXAMPLES = 2
_IMAGE = (1, 5, 7, 3)
# Input and output: ratios of scales that make ties frequent, one of odd numbers.
_GRIDS = (((0.125, 3), (0.25, -5)), ((0.125, -7), (0.125, 9)), ((0.1, -3), (0.37, 11)))


def _grid(scale: float, zero_point: int) -> dict[str, Any]:
    return {"scale": np.float32([scale]), "zero_point": np.int64([zero_point])}


def operations() -> Iterator[tuple[str, bytes]]:
    """Return files of one operation of int8 each, by name."""
    values = np.random.default_rng(2).integers(-100, 100, 3).astype(np.int8)
    other = {"quantization": _grid(0.25, 4)}
    for number, (source, made) in enumerate(_GRIDS):
        own = {"quantization": _grid(*source)}
        cases = [*_functions(_grid(*made)), *_reductions(_grid(*made)), *_resizings(own)]
        for name in ("ADD", "SUB", "MUL"):
            for label, order in (("", ()), (" turned", (1, 0))):
                options = {"fused_activation_function": 3 * (number == 1)}
                cases.append((name + label, odd_tflite.model(
                    name, _IMAGE, values, shape=_IMAGE, options=options, order=order, of=other,
                    made={"quantization": _grid(*made)},
                )))  # fmt: skip
        for name, model in cases:
            model["subgraphs"][0]["tensors"][0] |= own
            yield f"{name} {number}", encoded(model)


def _functions(made: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, options, grid in (
        ("QUANTIZE", {}, made), ("RELU", None, made), ("RELU6", None, made), ("ABS", {}, made),
        ("RELU_N1_TO_1", None, made), ("RELU_0_TO_1", None, made), ("HARD_SWISH", {}, made),
        ("LEAKY_RELU", {"alpha": 0.25}, made), ("GELU", {}, made), ("EXP", {}, made),
        ("LOG", None, made), ("SOFTMAX", {"beta": 1.0}, _grid(1 / 256, -128)),
        ("LOGISTIC", None, _grid(1 / 256, -128)), ("TANH", None, _grid(1 / 128, 0)),
    ):  # fmt: skip
        model = odd_tflite.model(
            name, _IMAGE, shape=_IMAGE, options=options, made={"quantization": grid}
        )
        yield name, model
    slopes = np.int8([100, -3, 40])
    yield "PRELU", odd_tflite.model(
        "PRELU", _IMAGE, slopes, shape=_IMAGE, of={"quantization": _grid(1 / 64, 4)},
        made={"quantization": made},
    )  # fmt: skip


def _reductions(made: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("MEAN", "SUM"):
        for label, out, axes, keeps in (
            ("", (1, 3), [1, 2], 0), (" kept", (1, 1, 1, 3), [1, 2], 1),
            (" rows", (1, 5, 3), [2], 0), (" channels", (1, 5, 7), [3], 0),
        ):  # fmt: skip
            yield name + label, odd_tflite.model(
                name, out, np.int32(axes), shape=_IMAGE, options={"keep_dims": keeps},
                made={"quantization": made},
            )  # fmt: skip


def _resizings(own: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("REDUCE_MAX", "REDUCE_MIN"):
        yield (
            name,
            odd_tflite.model(name, (1, 5, 3), np.int32([2]), shape=_IMAGE, options={}, made=own),
        )
    for name in ("MAXIMUM", "MINIMUM"):
        yield (
            name,
            odd_tflite.model(name, _IMAGE, np.int8(5), shape=_IMAGE, options={}, of=own, made=own),
        )
    centers, corners = {"half_pixel_centers": 1}, {"align_corners": 1}
    for name, size, options in (
        ("RESIZE_BILINEAR", (10, 14), centers), ("RESIZE_BILINEAR", (20, 7), centers),
        ("RESIZE_NEAREST_NEIGHBOR", (10, 14), centers),
        ("RESIZE_NEAREST_NEIGHBOR", (3, 4), corners),
    ):  # fmt: skip
        yield (
            f"{name} {size[0]}",
            odd_tflite.model(
                name, (1, *size, 3), np.int32(size), shape=_IMAGE, options=options, made=own
            ),
        )


# ---- networks of TensorFlow's converter


def _mobile(tf: Any) -> tuple[tuple[int, ...], Callable[[Any], Any]]:
    """Return a network as of MobileNetV3: hard swishes, a squeeze and excitation, constants."""
    rng = np.random.default_rng(0)
    kernel, deep, narrow = (
        rng.normal(0, 0.4, shape).astype(np.float32)
        for shape in ((3, 3, 3, 8), (3, 3, 8, 1), (1, 1, 8, 8))
    )

    def function(x: Any) -> Any:
        x = x * 0.7 - np.float32([0.2, 0.1, 0.3])
        x = tf.nn.conv2d(x, kernel, 2, "SAME")
        x = x * tf.nn.relu6(x + 3.0) * (1 / 6)
        x = tf.nn.depthwise_conv2d(x, deep, (1, 1, 1, 1), "SAME")
        gate = tf.nn.conv2d(tf.reduce_mean(x, [1, 2], keepdims=True), narrow, 1, "SAME")
        x = x * (tf.nn.relu6(gate + 3.0) * (1 / 6))
        return tf.nn.softmax(tf.reduce_mean(tf.nn.conv2d(x, narrow, 1, "SAME"), [1, 2]))

    return (1, 9, 9, 3), function


def _moves(tf: Any) -> tuple[tuple[int, ...], Callable[[Any], Any]]:
    """Return a network that cuts, joins, resizes and reduces."""
    slopes = np.float32([[[-0.3, 0.2, 0.5, 0.1]]])

    def function(x: Any) -> Any:
        a, b, c = tf.split(x, [1, 2, 1], 3)
        x = (
            tf.concat([c, b[:, :, ::3][:, :, :8], a], 3)
            if b.shape[2] == 24
            else tf.concat([c, b, a], 3)
        )
        x = tf.nn.relu(x) + slopes * tf.minimum(x, 0.0)
        x = tf.compat.v1.image.resize_bilinear(x, (16, 16), half_pixel_centers=True)
        x = tf.stack([x[:, 1::2, 3:, :], x[:, ::2, :13, :]], 2)
        x = tf.nn.space_to_depth(tf.reduce_max(x, 2)[:, :, 1:], 2)
        x = tf.clip_by_value(tf.transpose(x, [0, 3, 1, 2]), -1.0, 1.0)
        return tf.abs(tf.reduce_sum(x, [3])) - 0.5

    return (1, 8, 8, 4), function


def _wide(tf: Any) -> tuple[tuple[int, ...], Callable[[Any], Any]]:
    """Return a network of what the converter quantizes to 16 bits."""
    rng = np.random.default_rng(0)
    kernel, dense = (
        rng.normal(0, 0.4, shape).astype(np.float32) for shape in ((3, 3, 4, 6), (6, 5))
    )

    def function(x: Any) -> Any:
        x = tf.nn.conv2d(x * 0.7 + 0.3, kernel, 1, "SAME")
        x = tf.nn.avg_pool2d(x * tf.sigmoid(x), 2, 2, "VALID")
        x = tf.tanh(tf.matmul(tf.reduce_mean(x, [1, 2]), dense))
        return tf.nn.softmax(x)

    return (1, 8, 8, 4), function


NETWORKS: Mapping[str, Callable[[Any], tuple[tuple[int, ...], Callable[[Any], Any]]]] = {
    "mobile": _mobile,
    "moves": _moves,
    "wide": _wide,
}


def converted(name: str, bits: int = 8) -> bytes:
    """Return a network as TensorFlow's converter quantizes it after training, to 8 or 16 bits."""
    import tensorflow as tf

    shape, function = NETWORKS[name](tf)
    traced = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    data = np.random.default_rng(5).normal(0, 1.3, (40, *shape)).astype(np.float32)
    converter.representative_dataset = lambda: ([x] for x in data)
    sets = tf.lite.OpsSet
    wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    converter.target_spec.supported_ops = [wide if bits == 16 else sets.TFLITE_BUILTINS_INT8]
    kind = tf.int16 if bits == 16 else tf.int8
    converter.inference_input_type = converter.inference_output_type = kind
    return bytes(converter.convert())


CONVERTED = (("mobile", 8), ("moves", 8), ("wide", 8), ("wide", 16))


# ---- comparison


def inputs_of(file: TfliteFile, count: int = EXAMPLES) -> Array:
    """Return random integers for a file's input, so many examples."""
    tensor = file.tensors[file.inputs[0]]
    dtype = np.dtype(tensor.type.lower())
    ends = np.iinfo(dtype)
    rng = np.random.default_rng(7)
    drawn = rng.normal(
        (ends.max + ends.min + 1) / 2, (ends.max - ends.min) / 5, (count, *tensor.shape)
    )
    return np.clip(np.rint(drawn), ends.min, ends.max).astype(dtype)


def computed(content: bytes, runtime: str) -> dict[int, Array]:
    """Return all integers that a runtime computes of `inputs_of`, by tensor."""
    model = decoded(content)
    graph = model["subgraphs"][0]
    kinds = {TENSOR_TYPES[kind] for kind in ("INT8", "UINT8", "INT16")}
    made = [int(i) for op in graph["operators"] for i in op["outputs"]]
    wanted = [i for i in made if graph["tensors"][i].get("type", 0) in kinds]
    graph["outputs"] = np.int32(wanted)  # delegates show no others
    model.pop("signature_defs", None)
    file = parsed(content, "the file")
    run, _ = CONSUMERS[runtime]
    index = file.inputs[0]
    q = file.tensors[index].quantization
    assert q is not None
    x = inputs_of(file)
    reals = ((x.astype(np.int64) - q.zero_point[0]) * q.scale[0].astype(np.float64)).reshape(
        -1, *x.shape[2:]
    )
    found = list(run(encoded(model), [(index, reals)], wanted))
    return {i: np.concatenate([each[i] for each in found]) for i in wanted}


def steps_of(file: TfliteFile, program: Program) -> dict[int, str]:
    """Return the step that makes each of a file's tensors, where one does."""
    net, _, _ = network(file)
    steps: dict[int, str] = {}
    for index in (i for op in file.operations for i in op.outputs):
        node = net.made_by.get(index)
        names = (f"{node}/output", f"{node}/post_activation", node)
        found = next((name for name in names if name in program.quant_params), None)
        if found is not None and found not in steps.values():
            steps[index] = found
    return steps


def compared(
    path: Path, runtime: str, integers: Mapping[int, Array] | None = None
) -> dict[str, tuple[int, int]]:
    """Count a file's integers, and those that a profile computes otherwise, by step.

    Parameters
    ----------
    path : Path
    runtime : str
        A key of `PROFILES`.
    integers : mapping of int to ndarray, optional
        What the runtime computes; by default it is run.
    """
    content = path.read_bytes()
    file = parsed(content, str(path))
    program = program_of(qmath.load(path))
    theirs = computed(content, runtime) if integers is None else integers
    steps = steps_of(file, program)
    q = file.tensors[file.inputs[0]].quantization
    assert q is not None
    x = inputs_of(file)
    reals = (x.astype(np.int32) - q.zero_point[0]).astype(np.float32) * q.scale[0]
    forced = {}
    for index, name in steps.items():
        step = program.step(name)
        shift = (
            0 if theirs[index].dtype == np.uint8 else 1 << (program.quant_params[name].num_bits - 1)
        )
        forced[name] = (theirs[index].astype(np.int32) + shift).reshape(-1, *step.shape)
    (feed,) = program.inputs
    made = Executor(program, PROFILES[runtime]()).run(
        {feed: reals.reshape(-1, *x.shape[2:])}, forced=forced
    )
    return {
        name: (want.size, int((made[name] != want).sum()))
        for name, want in forced.items()
        if name in made
    }


def golden() -> None:
    """Write what the runtimes compute."""
    rows: dict[str, list[Array]] = {runtime: [] for runtime in PROFILES}
    lacks = []
    for name, content in operations():
        (base,) = computed(content, "optimized").values()
        for runtime in PROFILES:
            try:
                (found,) = computed(content, runtime).values()
            except RuntimeError:  # it lacks the operation
                found = base
                lacks.append(f"{runtime}/{name}")
            rows[runtime].append((found if runtime == "optimized" else found - base).reshape(-1))
    with (GOLDEN / "operations.npz").open("xb") as target:
        integers = np.stack([np.concatenate(parts) for parts in rows.values()])
        np.savez_compressed(target, integers=integers, lacks=np.array(lacks))
    content = converted("mobile")
    (GOLDEN / "mobile.tflite").write_bytes(content)
    with (GOLDEN / "mobile.npz").open("xb") as target:
        np.savez_compressed(target, **{
            runtime: np.concatenate([a.reshape(-1) for a in computed(content, runtime).values()])
            for runtime in PROFILES
        })  # fmt: skip


def golden_operations() -> dict[str, Array]:
    """Return what runtimes compute of `operations`, by runtime and name of the file."""
    stored = np.load(GOLDEN / "operations.npz")
    names = list(PROFILES)
    base = stored["integers"][names.index("optimized")]
    lacks, place = set(stored["lacks"].tolist()), 0
    found: dict[str, Array] = {}
    for name, content in operations():
        file = parsed(content, name)
        shape = file.tensors[file.outputs[0]].shape
        span = slice(place, place := place + EXAMPLES * math.prod(shape))
        for runtime, row in zip(names, stored["integers"], strict=True):
            if f"{runtime}/{name}" not in lacks:
                made = base[span] if runtime == "optimized" else row[span] + base[span]
                found[f"{runtime}/{name}"] = made.reshape(-1, *shape[1:])
    assert place == len(base)
    return found


def golden_mobile(runtime: str) -> dict[int, Array]:
    """Return what a runtime computes of the network ``mobile.tflite``, by tensor."""
    row = np.load(GOLDEN / "mobile.npz")[runtime]
    file = parsed((GOLDEN / "mobile.tflite").read_bytes(), "mobile.tflite")
    found: dict[int, Array] = {}
    place = 0
    for index in (i for op in file.operations for i in op.outputs):
        shape = (EXAMPLES, *file.tensors[index].shape[1:])
        found[index] = row[place : (place := place + math.prod(shape))].reshape(shape)
    return found


def main() -> None:
    """Print the counts, or write golden data."""
    if sys.argv[1:] == ["--golden"]:
        golden()
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        files = [*operations(), *((f"{n} {b}", converted(n, b)) for n, b in CONVERTED)]
        for name, content in files:
            path.write_bytes(content)
            for runtime in PROFILES:
                try:
                    counts = compared(path, runtime)
                except RuntimeError as error:
                    print(f"{name}, {runtime}: {str(error).splitlines()[0][:60]}")
                    continue
                total, differing = np.sum([*counts.values(), (0, 0)], axis=0)
                print(f"{name}, {runtime}: {differing} of {total}")


if __name__ == "__main__":
    main()
