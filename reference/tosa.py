"""TFLite files through TOSA: the converter that compilers for NPUs begin with, and its reference.

Two packages: ``tosa-converter-for-tflite`` makes TOSA operators of a file, and ``tosa-tools`` has
what serializes and runs them. The second pins other versions of flatbuffers and NumPy than the rest
needs, and only its programs are used: ``pip install --no-deps tosa-tools``.
"""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.tflite_arithmetic import quantize_multiplier
from qmath.integer.profiles.tflite_kernels import Kernel

__all__ = ["Tosa", "can_convert", "can_run", "operators", "run"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]


def can_convert() -> bool:
    """Whether the converter is installed."""
    return find_spec("tosa_converter_for_tflite") is not None


def can_run() -> bool:
    """Whether what runs a converted file is installed, too."""
    return can_convert() and find_spec("tosa_reference_model") is not None


def apply_scale_32(x: Int64Array, multiplier: Int64Array, shift: Int64Array) -> Array:
    """Return ``x * multiplier * 2**-shift``, as TOSA's specification rounds twice.

    The first rounding, to 31 bits, is by a half with the sign of `x`, and only where the shift is
    above 31; the second one is half up.
    """
    first = np.where(shift > 31, np.where(x >= 0, 1 << 30, -(1 << 30)), 0)
    return np.asarray((x * multiplier + (np.int64(1) << (shift - 1)) + first) >> shift)


class Tosa(Tflite):
    """What the converter and TOSA's specification make of integer operators.

    Every change of scale is ``apply_scale_32``, of dense layers as well.
    """

    def _multiplied(self, x: Int64Array, multiplier: Int64Array, shift: Int64Array) -> Array:
        return apply_scale_32(x, multiplier, 31 - shift)

    def _weighted(self, kernel: Kernel, x: Int64Array) -> Array:
        return self._scaled(kernel, x)

    def _product(self, kernel: Kernel, x: Int64Array) -> Array:
        first, second = (np.float64(q.scale) for q in kernel.inputs)
        numbers = quantize_multiplier(first * second / np.float64(kernel.output.scale))
        return self._multiplied(x, *numbers)


def converted(content: bytes, folder: Path) -> Path:
    """Write a file as TOSA's bytecode, and as text beside it.

    Raises
    ------
    RuntimeError
        The converter refuses the file.
    """
    from tosa_converter_for_tflite import TosaConverterOutputFormat, tflite_flatbuffer_to_tosa_mlir

    source, made = folder / "m.tflite", folder / "m.mlirbc"
    source.write_bytes(content)
    tflite_flatbuffer_to_tosa_mlir(str(source), str(made))
    text = str(made.with_suffix(".mlir"))
    tflite_flatbuffer_to_tosa_mlir(str(source), text, TosaConverterOutputFormat.Text)
    return made


def operators(content: bytes) -> dict[str, int]:
    """Convert a file; return how often each operator is there, with its dialect: all are TOSA's.

    Raises
    ------
    RuntimeError
        The converter refuses the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = converted(content, Path(folder)).with_suffix(".mlir").read_text(encoding="utf-8")
    found = re.findall(r'= "?([a-z_]+\.[a-z0-9_]+)', text)
    return {name: found.count(name) for name in sorted({*found})}


def run(
    content: bytes, batches: Sequence[Sequence[tuple[int, Array]]], wanted: Sequence[int]
) -> Iterator[dict[int, Array]]:
    """Yield the wanted tensors of each batch of inputs, which are given by tensor."""
    tosa_opt = Path(str(metadata.distribution("tosa-tools").locate_file("bin"))) / "tosa-opt"
    with tempfile.TemporaryDirectory() as place:
        made = converted(_with_outputs(content, wanted), Path(place))
        graph = made.with_suffix(".tosa")
        subprocess.run(
            [tosa_opt, made, "--tosa-serialize", f"--tosa-flatbuffer-filename={graph}",
             "-o", made.with_suffix(".out")],
            capture_output=True, check=True,
        )  # fmt: skip
        inputs = [[np.ascontiguousarray(x) for _, x in batch] for batch in batches]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            results = pool.submit(_computed, graph.read_bytes(), inputs).result()
    for outputs in results:
        yield dict(zip(wanted, outputs, strict=True))


def _computed(graph: bytes, batches: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """Run the reference model, which ends its process where a graph reads out of bounds."""
    from tosa_reference_model import GraphStatus
    from tosa_reference_model import run as reference_model

    found = []
    for batch in batches:
        outputs, status = reference_model(graph, batch)
        if status != GraphStatus.TOSA_VALID:
            raise RuntimeError(f"the reference model ends with {status}")
        found.append(outputs)
    return found


def _with_outputs(content: bytes, wanted: Sequence[int]) -> bytes:
    """Return a file whose outputs are these tensors."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    model.subgraphs[0].outputs = list(wanted)
    model.signatureDefs = None
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
