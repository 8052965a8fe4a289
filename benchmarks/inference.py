"""Milliseconds per image of MobileNetV2 (alpha 0.35, 96x96), quantized to 8 bits by default.

``python -m benchmarks.inference [--images 16] [--rounds 9]`` runs qmath's profiles, TFLite's
reference and default resolvers, ONNX Runtime and the TensorFlow model on the same images with the
same number of threads. Each has a process of its own, which loads a file as a user would; they take
turns, and the medians are printed with their ratio to TFLite's reference kernels. Needs the
`reference` extra, and `benchmarks` for ONNX Runtime.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import take_turns

Runner = Callable[[np.ndarray], object]
SHAPE = (96, 96, 3)
THREADS = len(os.sched_getaffinity(0))


def prepare(folder: Path, images: int) -> None:
    """Write the model as each candidate reads it, and the images."""
    from reference import models  # sets TensorFlow's environment, before it is imported

    # isort: split
    import tensorflow as tf

    path = models.save("mobilenetv2", folder)
    path.rename(folder / "model.h5")
    np.save(folder / "images.npy", models.images(SHAPE, images))
    model = models.build("mobilenetv2")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    (folder / "model.tflite").write_bytes(converter.convert())
    if importlib.util.find_spec("tf2onnx"):
        import tf2onnx

        graph = tf.function(lambda x: model(x, training=False))
        signature = (tf.TensorSpec((1, *SHAPE), tf.float32, name="image"),)
        converted, _ = tf2onnx.convert.from_function(graph, input_signature=signature, opset=18)
        (folder / "model.onnx").write_bytes(converted.SerializeToString())


def qmath_profile(folder: Path, profile: str) -> Runner:
    """Return qmath's runner."""
    from qmath.integer.api import program_of
    from qmath.integer.registry import profile_named
    from qmath.integer.run import Executor

    program = program_of(folder / "model.h5")
    (name,) = program.inputs
    executor = Executor(program, profile_named(profile))
    return lambda image: executor.run({name: image}, keep=program.outputs)


def tflite(folder: Path, resolver: str) -> Runner:
    """Return TFLite's runner."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(
        str(folder / "model.tflite"),
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType[resolver],
        num_threads=THREADS,
    )
    interpreter.allocate_tensors()
    (tensor,) = interpreter.get_input_details()

    def run(image: np.ndarray) -> object:
        interpreter.set_tensor(tensor["index"], image)
        interpreter.invoke()
        return interpreter

    return run


def onnx_runtime(folder: Path) -> Runner:
    """Return ONNX Runtime's runner."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    return lambda image: session.run(None, {"image": image})


def tensorflow(folder: Path) -> Runner:
    """Return the quantization-aware model's runner."""
    from reference import dump

    # isort: split
    import tensorflow as tf

    model = dump.load(folder / "model.h5")
    graph = tf.function(lambda x: model(x, training=False))
    return lambda image: graph(tf.constant(image)).numpy()


CANDIDATES: dict[str, tuple[Callable[..., Runner], tuple[str, ...]]] = {
    "qmath, exact": (qmath_profile, ("exact",)),
    "qmath, integer": (qmath_profile, ("integer",)),
    "TFLite, reference resolver": (tflite, ("BUILTIN_REF",)),
    "TFLite, default resolver": (tflite, ("AUTO",)),
    "ONNX Runtime": (onnx_runtime, ()),
    "TensorFlow, the QAT model": (tensorflow, ()),
}


def work(name: str, folder: Path, connection: Connection) -> None:
    """Run the images once for every message, and answer with milliseconds per image."""
    os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    make, arguments = CANDIDATES[name]
    run = make(folder, *arguments)
    images = np.load(folder / "images.npy")
    while connection.recv():
        start = time.perf_counter()
        for image in images:
            run(image[np.newaxis])
        connection.send((time.perf_counter() - start) / len(images) * 1e3)


def ask(connection: Connection) -> float:
    """Let a candidate work once; return its milliseconds per image."""
    connection.send(True)
    return float(connection.recv())


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Let the candidates take turns; return their times."""
    names = list(CANDIDATES)
    if not (folder / "model.onnx").exists() or not importlib.util.find_spec("onnxruntime"):
        names.remove("ONNX Runtime")
        print("ONNX Runtime: not installed")
    context: Any = multiprocessing.get_context("spawn")
    connections = {}
    for name in names:
        connections[name], end = context.Pipe()
        context.Process(target=work, args=(name, folder, end), daemon=True).start()
    times = take_turns({name: partial(ask, end) for name, end in connections.items()}, rounds)
    for connection in connections.values():
        connection.send(False)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        writer = context.Process(target=prepare, args=(Path(folder), options.images))
        writer.start()
        writer.join()
        times = measure(Path(folder), options.rounds)
    base = statistics.median(times["TFLite, reference resolver"])
    print(f"{THREADS} threads, {options.rounds} rounds of {options.images} images, one at a time")
    for name, values in times.items():
        median = statistics.median(values)
        spread = f"{min(values):.2f} … {max(values):.2f}"
        print(f"{name:28} {median:7.2f} ms  x{median / base:5.2f}  ({spread})")


if __name__ == "__main__":
    main()
