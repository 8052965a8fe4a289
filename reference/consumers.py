"""What runs TFLite files, and whether it computes the integers that a profile predicts.

Each operation of a file that qmath wrote is compared from the runtime's own previous integers. The
runtimes are LiteRT with its reference kernels, with its default delegate XNNPACK, and with its
optimized kernels, and tflite-micro. ``python -m reference.consumers MODEL …`` prints a table; no
TensorFlow is needed. TOSA's reference model runs what its converter makes of a file; Vela only says
how many operators an NPU gets.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qmath.containers.tflite.file import Tensor, parsed
from qmath.exports.bundle import Bundle, quantize_model
from qmath.exports.tflite.exporter import Tflite as Format
from qmath.exports.tflite.ties import with_own_zero_points
from qmath.exports.tflite.vectors import InFile, Micro
from qmath.integer.executor import Executor
from qmath.integer.profiles.litert import Litert
from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import Program, QuantizeStep
from reference import tosa
from reference.mistakes.models import model_named
from reference.zoo import ANSWERS

__all__ = [
    "CONSUMERS",
    "Count",
    "compared",
    "integers_on_the_grid",
    "npu_operators",
    "written",
]

Array = NDArray[Any]
_ARENA = 1 << 24


def written(bundle: Bundle, **options: Any) -> tuple[bytes, dict[str, Any]]:
    """Return a file, and the names of its parts."""
    file, format = io.BytesIO(), Format(**options)
    format.write(bundle, file)
    names: dict[str, Any] = format.network(bundle).export["names"]
    return file.getvalue(), names


def integers_on_the_grid(program: Program, count: int, seed: int = 5) -> dict[str, Array]:
    """Return random inputs that every runtime quantizes to the same integers: their real values."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for name, shape in program.inputs.items():
        readers = (s.params for s in program.quantized if getattr(s, "source", None) == name)
        params = next(readers, None)
        if params is None:  # a float layer reads it
            inputs[name] = rng.uniform(-1, 1, (count, *shape)).astype(np.float32)
        else:
            integers = rng.integers(params.low, params.high + 1, (count, *shape))
            inputs[name] = params.dequantize(integers)
    return inputs


def _as_stored(tensor: Tensor, x: Array) -> Array:
    if tensor.quantization is None:
        return x
    q = np.rint(x / tensor.quantization.scale) + tensor.quantization.zero_point
    return q.astype(tensor.type.lower())


def _litert(resolver: str) -> Callable[..., Iterator[dict[int, Array]]]:
    def run(
        content: bytes, inputs: Sequence[tuple[int, Array]], wanted: Sequence[int]
    ) -> Iterator[dict[int, Array]]:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interpreter = Interpreter(
                model_content=content, num_threads=1, experimental_preserve_all_tensors=True,
                experimental_op_resolver_type=getattr(OpResolverType, resolver),
            )  # fmt: skip
        interpreter.allocate_tensors()
        for batch in _batches(content, inputs):
            for index, x in batch:
                interpreter.set_tensor(index, x)
            interpreter.invoke()
            yield {index: interpreter.get_tensor(index).copy() for index in wanted}

    return run


def _micro(
    content: bytes, inputs: Sequence[tuple[int, Array]], wanted: Sequence[int]
) -> Iterator[dict[int, Array]]:
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(
        content, intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors,
        arena_size=_ARENA,
    )  # fmt: skip
    for batch in _batches(content, inputs):
        for number, (_, x) in enumerate(batch):
            interpreter.set_input(x, number)
        interpreter.invoke()
        yield {index: np.array(interpreter.GetTensor(index, 0)["tensor_data"]) for index in wanted}


def _batches(
    content: bytes, inputs: Sequence[tuple[int, Array]]
) -> Iterator[list[tuple[int, Array]]]:
    file = parsed(content, "the file")
    size, count = file.tensors[inputs[0][0]].shape[0], len(inputs[0][1])
    for start in range(0, count - count % size, size):
        yield [(i, _as_stored(file.tensors[i], x[start : start + size])) for i, x in inputs]


def _tosa(
    content: bytes, inputs: Sequence[tuple[int, Array]], wanted: Sequence[int]
) -> Iterator[dict[int, Array]]:
    return tosa.run(content, list(_batches(content, inputs)), wanted)


CONSUMERS: Mapping[str, tuple[Callable[..., Iterator[dict[int, Array]]], type[Any]]] = {
    "reference": (_litert("BUILTIN_REF"), Tflite),
    "default": (_litert("AUTO"), Xnnpack),
    "optimized": (_litert("BUILTIN_WITHOUT_DEFAULT_DELEGATES"), Litert),
    "tflite-micro": (_micro, Micro),
    "tosa": (_tosa, tosa.Tosa),
}
"""Runtimes by name: what runs a file, and the arithmetic that it should have."""


@dataclass(frozen=True)
class Count:
    """How many integers were compared, and how many differ.

    Attributes
    ----------
    integers, differing : int
        Of steps that the file computes with integers.
    steps : mapping of str to int
        Those with differing integers, and how many these are.
    in_float, differing_in_float : int
        Integers that are rounded from float32, compared with the profile `exact`.
    largest_in_float : int
        The largest difference of these.
    """

    integers: int
    differing: int
    steps: Mapping[str, int]
    in_float: int = 0
    differing_in_float: int = 0
    largest_in_float: int = 0


def compared(bundle: Bundle, consumer: str, count: int = 8, **options: Any) -> Count:
    """Run a bundle's file, and compare every integer with what the arithmetic predicts."""
    run, kind = CONSUMERS[consumer]
    assert bundle.program is not None
    program = with_own_zero_points(bundle.program)
    content, names = written(bundle, **options)
    tensors = parsed(content, "the file").tensors
    indexes = {tensor.name: i for i, tensor in enumerate(tensors)}
    kinds = {
        name: tensors[indexes[uses[0]["name"]]].type for name, uses in names["weights"].items()
    }
    packed = {name: int(kind[3:]) for name, kind in kinds.items() if kind in ("INT4", "INT2")}
    data = integers_on_the_grid(program, count)
    inputs = [(indexes[name], data[key]) for key, name in names["inputs"].items()]
    wanted = {step: indexes[entry["name"]] for step, entry in names["integers"].items()}
    parts: dict[str, list[Array]] = {step: [] for step in wanted}
    for computed in run(content, inputs, list(wanted.values())):
        for step, index in wanted.items():
            parts[step].append(computed[index])
    found = {
        step: np.concatenate(arrays).reshape(-1, *program.step(step).shape).astype(np.int32)
        + (1 << (program.quant_params[step].num_bits - 1))
        for step, arrays in parts.items()
    }
    # The steps are the file's operations: no converter changes them.
    told = {"packed": packed} if kind is Xnnpack else {}
    profile = kind(converts=False, **told)
    executor = Executor(program, InFile(profile, names["floats"]))
    expected = executor.run(data, forced=found)
    # What a quantizer makes of float32, too, but for the model's inputs.
    after_floats = (s for s in program.steps if isinstance(s, QuantizeStep))
    quantized = {s.name for s in after_floats if s.source not in program.inputs}
    rounded = {*names["floats"], *quantized} & found.keys()
    wrong = {step: int((expected[step] != found[step]).sum()) for step in found}
    return Count(
        sum(found[step].size for step in found.keys() - rounded),
        sum(wrong[step] for step in found.keys() - rounded),
        {step: n for step, n in wrong.items() if n and step not in rounded},
        sum(found[step].size for step in rounded),
        sum(wrong[step] for step in rounded),
        max((int(np.abs(expected[s].astype(int) - found[s]).max()) for s in rounded), default=0),
    )


def npu_operators(path: Path, folder: Path) -> tuple[int, int]:
    """Return how many operators of a file Vela leaves to the CPU, and how many an NPU gets."""
    vela = Path(sys.executable).with_name("vela")
    done = subprocess.run(
        [vela, path, "--output-dir", folder, "--accelerator-config", "ethos-u55-128"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    counts = {}
    for line in done.stdout.splitlines():
        for unit in ("CPU", "NPU"):
            if line.startswith(f"{unit} operators = "):
                counts[unit] = int(line.split("=")[1].split()[0])
    return counts["CPU"], counts["NPU"]


def _cell(bundle: Bundle, consumer: str, count: int, weights: str) -> dict[str, Any]:
    """Return what a consumer makes of a file: counts, or why there are none."""
    try:
        if consumer == "vela":
            content, _ = written(bundle, weights=weights, io=_io_of(bundle))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "m.tflite"
                path.write_bytes(content)
                left, placed = npu_operators(path, Path(folder) / "vela")
            return {"placed": placed, "of": placed + left}
        io = _io_of(bundle) if consumer == "tosa" else "float"
        return asdict(compared(bundle, consumer, count, weights=weights, io=io))
    except Exception as error:  # a runtime's own, or a refusal
        if isinstance(error, subprocess.CalledProcessError) and error.returncode < 0:
            return {"why": f"it ends by signal {-error.returncode}"}
        text = getattr(error, "stderr", "") or str(error)
        return {"why": " ".join(text.strip().rpartition("\n")[2].split())[:200]}


def _io_of(bundle: Bundle) -> str:
    """Return the type of the inputs' integers."""
    assert bundle.program is not None
    bits = (s.params.num_bits for s in bundle.program.steps if isinstance(s, QuantizeStep))
    return "int16" if max(bits, default=8) > 8 else "int8"


def _loaded(path: str) -> qmath.QatModel:
    """Return a sample, or a file's model, with what is known of the zoo's training scripts."""
    told = ANSWERS.get(Path(path).parent.name)
    return qmath.load(path, told) if told else model_named(path)


def rows(
    path: str, count: int, known: dict[str, dict[str, Any]], save: Callable[[], object]
) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield by type of weights what each consumer makes of a model; what is known is not run."""
    bundle, contents = None, set()
    for weights in ("int8", "int4", "int2"):
        cells = known.setdefault(f"{path} {weights}", {})
        if not {*CONSUMERS, "vela"} <= cells.keys() and "same" not in cells:
            bundle = bundle or quantize_model(_loaded(path))
            try:
                content, _ = written(bundle, weights=weights, bare=True)
            except qmath.QmathError as error:
                cells |= {name: {"why": str(error)} for name in (*CONSUMERS, "vela")}
            else:
                if content in contents:  # no weights are that narrow
                    cells["same"] = {}
                contents.add(content)
        for consumer in () if "same" in cells else (*CONSUMERS, "vela"):
            if consumer not in cells:
                assert bundle is not None
                cells[consumer] = _cell(bundle, consumer, count, weights)
                save()
        save()
        if "same" not in cells:
            yield weights, cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the models that the command line names, and why cells are empty."""
    parser = argparse.ArgumentParser(prog="python -m reference.consumers", description=__doc__)
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a file, or the name of a sample"
    )
    parser.add_argument("--count", type=int, default=8, help="examples of each model")
    parser.add_argument("--state", type=Path, metavar="FILE", help="keep results, and go on there")
    options = parser.parse_args(arguments)
    known: dict[str, dict[str, Any]] = {}
    if options.state and options.state.exists():
        known = json.loads(options.state.read_text())

    def save() -> None:
        if options.state:
            options.state.write_text(json.dumps(known, indent=1) + "\n")

    head = ("model", "weights", "integers", "from float32", *CONSUMERS, "vela")
    print(f"| {' | '.join(head)} |")
    print("|---|---|---:|---:|", *["---:|"] * (len(CONSUMERS) + 1), sep="")
    reasons: dict[str, list[str]] = {}
    for path in options.models:
        for weights, cells in rows(path, options.count, known, save):
            name = Path(path).parent.name if Path(path).stem == "whole" else Path(path).stem
            first = next((c for c in cells.values() if "integers" in c), None)
            sizes = [f"{first[k]:,}" for k in ("integers", "in_float")] if first else ["", ""]
            row = (name, weights, *sizes, *(_text(cells[key]) for key in (*CONSUMERS, "vela")))
            print(f"| {' | '.join(row)} |", flush=True)
            for consumer, cell in cells.items():
                if why := cell.get("why") or cell.get("steps"):
                    reasons.setdefault(str(why), []).append(f"{name} {weights} {consumer}")
    for why, places in reasons.items():
        print(f"- {', '.join(places)}: {why}")


def _text(cell: dict[str, Any]) -> str:
    if "of" in cell:
        return f"{cell['placed']} of {cell['of']}"
    if "why" in cell:
        return "—"
    floats = cell["differing_in_float"]
    return f"{cell['differing']:,}" + (f" + {floats:,}" if floats else "")


if __name__ == "__main__":
    main()
