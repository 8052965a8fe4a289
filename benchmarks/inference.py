"""Milliseconds per image of MobileNetV2 (alpha 0.35, 96x96), quantized to 8 bits by default.

qmath's profiles, its engine `c` and its C export, TFLite's reference and default resolvers, ONNX
Runtime and the TensorFlow model on the same images with the same number of threads. Each has a
process of its own, which loads a file as a user would; they take turns. With one thread the time is
that of the processor. Needs the `reference` extra, `benchmarks` for ONNX Runtime, and a C compiler.
Quick, the model is a smaller one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Options, Progress, Row, spread, take_turns
from benchmarks.tables import faster, markdown

__all__ = ["ROUNDS", "full", "measure", "skipped", "summary"]

ROUNDS = {"full": 9, "quick": 2}
IMAGES = 16
BASE = "TFLite, reference resolver"  # what the others' times are divided by
Runner = Callable[[np.ndarray], object]


def skipped() -> list[str]:
    """Return the candidates whose libraries are not installed; without TensorFlow, all."""
    if not all(map(importlib.util.find_spec, ("tensorflow", "tensorflow_model_optimization"))):
        return list(CANDIDATES)
    absent = [] if shutil.which("cc") else [name for name in CANDIDATES if ", c" in name.lower()]
    if not all(map(importlib.util.find_spec, ("onnxruntime", "tf2onnx"))):
        absent.append("ONNX Runtime")
    return absent


def prepare(folder: Path, name: str) -> None:
    """Write the model as each candidate reads it, and the images."""
    from reference import models  # sets TensorFlow's environment, before it is imported

    # isort: split
    import tensorflow as tf

    model = models.build(name)
    model.save(folder / "model.h5", include_optimizer=False)
    shape = model.inputs[0].shape[1:]
    np.save(folder / "images.npy", models.images(shape, IMAGES))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    (folder / "model.tflite").write_bytes(converter.convert())
    if importlib.util.find_spec("tf2onnx"):
        import tf2onnx

        graph = tf.function(lambda x: model(x, training=False))
        signature = (tf.TensorSpec((1, *shape), tf.float32, name="image"),)
        converted, _ = tf2onnx.convert.from_function(graph, input_signature=signature, opset=18)
        (folder / "model.onnx").write_bytes(converted.SerializeToString())


def qmath_profile(folder: Path, profile: str) -> Runner:
    """Return qmath's runner."""
    from qmath.integer.api import profile_named, program_of
    from qmath.integer.executor import Executor

    program = program_of(folder / "model.h5")
    (name,) = program.inputs
    executor = Executor(program, profile_named(profile))
    return lambda image: executor.run({name: image}, keep=program.outputs)


def engine_c(folder: Path) -> Runner:
    """Return the runner of qmath's engine `c`."""
    import qmath
    from qmath.engine.api import engine_named
    from qmath.integer.api import program_of
    from qmath.integer.profiles.fixed import Integer

    model = qmath.load(folder / "model.h5")
    program = program_of(model)
    (name,) = program.inputs
    executor = engine_named("c", model)(program, Integer())
    return lambda images: executor.run({name: images}, keep=program.outputs)


def c_export(folder: Path, flags: str) -> Runner:
    """Return the runner of the exported C, compiled with some options."""
    import qmath

    place = Path(tempfile.mkdtemp(dir=folder))
    qmath.export(folder / "model.h5", place / "net", format="c", vectors=0)
    (setter,) = re.findall(r"void (model_set_\w+)\(", (place / "net/model.h").read_text())
    main, library = place / "main.c", place / "net.so"
    main.write_text(
        '#include "net/model_data.c"\n#include "net/model.c"\n'
        f"void run(const float *x) {{ {setter}(x); model_run(); }}\n"
    )
    command = ["cc", "-std=c99", *flags.split(), "-fPIC", "-shared", main, "-o", library]
    subprocess.run(command, check=True)
    run = ctypes.CDLL(str(library)).run
    return lambda image: run(ctypes.c_void_p(image.ctypes.data))


def tflite(folder: Path, resolver: str, threads: int) -> Runner:
    """Return TFLite's runner."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(
        str(folder / "model.tflite"),
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType[resolver],
        num_threads=threads,
    )
    interpreter.allocate_tensors()
    (tensor,) = interpreter.get_input_details()

    def run(image: np.ndarray) -> object:
        interpreter.set_tensor(tensor["index"], image)
        interpreter.invoke()
        return interpreter

    return run


def onnx_runtime(folder: Path, threads: int) -> Runner:
    """Return ONNX Runtime's runner."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
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


# qmath and TensorFlow take their number of threads from the environment.
CANDIDATES: dict[str, Callable[[Path, int], Runner]] = {
    "qmath, exact": lambda folder, _threads: qmath_profile(folder, "exact"),
    "qmath, integer": lambda folder, _threads: qmath_profile(folder, "integer"),
    "qmath, integer, batch": lambda folder, _threads: qmath_profile(folder, "integer"),
    "qmath, C engine": lambda folder, _threads: engine_c(folder),
    "qmath, C engine, batch": lambda folder, _threads: engine_c(folder),
    "qmath, C export, -O2": lambda folder, _threads: c_export(folder, "-O2"),
    "qmath, C export, -O3": lambda folder, _threads: c_export(folder, "-O3 -march=native"),
    BASE: lambda folder, threads: tflite(folder, "BUILTIN_REF", threads),
    "TFLite, default resolver": lambda folder, threads: tflite(folder, "AUTO", threads),
    "ONNX Runtime": onnx_runtime,
    "TensorFlow, the QAT model": lambda folder, _threads: tensorflow(folder),
}


def work(name: str, folder: Path, threads: int, connection: Connection) -> None:
    """Run the images once for every message, and answer with milliseconds per image."""
    run = CANDIDATES[name](folder, threads)
    images = np.load(folder / "images.npy")
    batches = [images] if name.endswith("batch") else np.split(images, len(images))
    clock = time.process_time if threads == 1 else time.perf_counter
    while connection.recv():
        start = clock()
        for batch in batches:
            run(batch)
        connection.send((clock() - start) / len(images) * 1e3)


def ask(connection: Connection) -> float:
    """Let a candidate work once; return its milliseconds per image."""
    connection.send(True)
    return float(connection.recv())


def measure(options: Options, progress: Progress) -> Iterator[Row]:
    """Yield a row for each candidate."""
    absent = skipped()
    names = [name for name in CANDIDATES if name not in absent]
    if not names:
        return
    context: Any = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        progress(0, "write the model")
        model = "residual" if options.quick else "mobilenetv2"
        writer = context.Process(target=prepare, args=(Path(folder), model))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise RuntimeError("the model could not be written")
        connections = {}
        for name in names:
            connections[name], end = context.Pipe()
            arguments = (name, Path(folder), options.threads, end)
            context.Process(target=work, args=arguments, daemon=True).start()
            end.close()  # so that a process that dies ends the waiting for it
        progress(0.5, "run it")
        runs = {name: partial(ask, connection) for name, connection in connections.items()}
        for name, times in take_turns(runs, options.rounds).items():
            connections[name].send(False)
            found = spread(times)
            yield {
                "candidate": name,
                "model": model,
                "milliseconds": round(found.median, 3),
                "low": round(found.low, 3),
                "high": round(found.high, 3),
                "fastest": round(min(times), 3),
                "slowest": round(max(times), 3),
            }


def full(rows: list[Row]) -> str:
    """Return the table of all candidates."""
    if not rows:
        return "Nothing to compare."
    base = next(row["milliseconds"] for row in rows if row["candidate"] == BASE)
    header = [f"an image of {rows[0]['model']}", "ms", "fastest … slowest", "ratio"]
    return markdown(
        header,
        [
            [
                row["candidate"],
                f"{row['milliseconds']:.3g}",
                f"{row['fastest']:.3g} … {row['slowest']:.3g}",
                faster(row["milliseconds"] / base),
            ]
            for row in rows
        ],
    )


summary = full
