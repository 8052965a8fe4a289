"""Count what other runtimes make of ONNX files: ``python -m reference.compilers [MODEL …]``.

Each model is exported with ``--option weights=int8``, compiled and run by ONNX Runtime (with its
optimizer off and on), Apache TVM, IREE and OpenVINO, and its outputs are compared with those of the
profile `exact`. Every runtime runs in a process of its own, so that each may have its own Python:
``--python PYTHON`` names one in which they are installed (by pip: onnxruntime, apache-tvm,
iree-base-compiler and iree-base-runtime, openvino; beside them onnx and numpy). A runtime that is
not installed there is named and left out. The result is a Markdown table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ROOT = Path(__file__).parents[1]
EXAMPLES = 8
NOISE = 1e-5  # of the largest magnitude: the last bits of float32, as of a softmax
CASES = ("default8", "nbit4", "integer4", "question", "mobilenetv2")
# What a process prints when its runtime is not installed.
ABSENT = "not installed"


def onnxruntime(path: Path, inputs: Mapping[str, Array], optimize: bool) -> list[Array]:
    """Run a file with ONNX Runtime."""
    ort = importlib.import_module("onnxruntime")
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options)
    return list(session.run(None, dict(inputs)))


def tvm(path: Path, inputs: Mapping[str, Array]) -> list[Array]:
    """Compile a file with Apache TVM for this processor, and run it."""
    onnx = importlib.import_module("onnx")
    tvm = importlib.import_module("tvm")
    relax = importlib.import_module("tvm.relax")
    frontend = importlib.import_module("tvm.relax.frontend.onnx")
    shapes = {name: list(x.shape) for name, x in inputs.items()}
    module = frontend.from_onnx(onnx.load(path), shape_dict=shapes)
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    runtime = importlib.import_module("tvm.runtime")
    found = machine["main"](*(runtime.tensor(x) for x in inputs.values()))
    parts = found if isinstance(found, (list, tuple)) or not hasattr(found, "numpy") else [found]
    return [part.numpy() for part in parts]


def iree(path: Path, inputs: Mapping[str, Array]) -> list[Array]:
    """Compile a file with IREE for this processor, and run it."""
    compiler = importlib.import_module("iree.compiler")
    runtime = importlib.import_module("iree.runtime")
    mlir = path.with_suffix(".mlir")
    command = [sys.executable, "-m", "iree.compiler.tools.import_onnx", path, "-o", mlir]
    subprocess.run(command, check=True, capture_output=True)
    compiled = compiler.compile_file(
        str(mlir), target_backends=["llvm-cpu"], input_type="onnx",
        extra_args=["--iree-llvmcpu-target-cpu=host"],
    )  # fmt: skip
    config = runtime.Config("local-task")
    context = runtime.SystemContext(config=config)
    context.add_vm_module(runtime.VmModule.copy_buffer(context.instance, compiled))
    (module,) = (m for name, m in context.modules.items() if name != "hal")
    (entry,) = (n for n in module.vm_module.function_names if "async" not in n and "$" not in n
                and not n.startswith("__"))  # fmt: skip
    found = module[entry](*inputs.values())
    parts = found if isinstance(found, (list, tuple)) else [found]
    return [np.asarray(part) for part in parts]


def openvino(path: Path, inputs: Mapping[str, Array]) -> list[Array]:
    """Run a file with OpenVINO on the processor, in float32 where it has the choice."""
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    found = compiled(dict(inputs))
    return [np.asarray(found[output]) for output in compiled.outputs]


RUNTIMES: dict[str, Callable[[Path, Mapping[str, Array]], list[Array]]] = {
    "ONNX Runtime, optimizer off": lambda path, x: onnxruntime(path, x, False),
    "ONNX Runtime, optimizer on": lambda path, x: onnxruntime(path, x, True),
    "TVM": tvm,
    "IREE": iree,
    "OpenVINO": openvino,
}


def work(runtime: str, folder: Path) -> None:
    """Run a file in this process, and write what it computes: the other half of `outputs_of`."""
    with np.load(folder / "inputs.npz") as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    try:
        found = RUNTIMES[runtime](folder / "model.onnx", inputs)
    except ModuleNotFoundError as error:
        print(f"{ABSENT}: {error}", file=sys.stderr)
        sys.exit(2)
    np.savez(folder / "outputs.npz", *found)


def outputs_of(
    runtime: str, content: bytes, inputs: Mapping[str, Array], python: str = sys.executable
) -> list[Array] | str:
    """Return what a runtime computes, or why it does not.

    Parameters
    ----------
    runtime : str
        One of `RUNTIMES`.
    content : bytes
        Of the ONNX file.
    inputs : mapping of str to ndarray
        By the graph's names.
    python : str
        The interpreter that has the runtime.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model.onnx").write_bytes(content)
        np.savez(folder / "inputs.npz", **inputs)
        command = [python, "-m", "reference.compilers", "--work", runtime, "--folder", place]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=1800, cwd=ROOT
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        with np.load(folder / "outputs.npz") as arrays:
            return [arrays[name] for name in arrays.files]


def compared(found: list[Array] | str, expected: Sequence[Array]) -> dict[str, Any]:
    """Return how many elements differ, and by how much of the outputs' largest magnitude."""
    if isinstance(found, str):
        return {"failure": found}
    pairs = list(zip(found, expected, strict=True))
    return {
        "elements": sum(a.size for a in expected),
        "differing": sum(int((a != b).sum()) for a, b in pairs),
        "largest": max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs),
        "answers": sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs),
        "examples": sum(a[..., 0].size for a in expected),
    }


def cell(result: Mapping[str, Any]) -> str:
    """Return a result as a cell of the table."""
    if "failure" in result:
        return ABSENT if result["failure"].startswith(ABSENT) else "fails"
    if not result["differing"]:
        return "exact"
    if result["largest"] < NOISE:
        return "but for noise"
    share = f"{result['differing']:,} of {result['elements']:,}, by up to {result['largest']:.1%}"
    return f"{share}; answers {result['answers']} of {result['examples']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the models that the command line names, or the samples and MobileNetV2."""
    parser = argparse.ArgumentParser(prog="python -m reference.compilers", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--examples", type=int, default=EXAMPLES, metavar="N")
    parser.add_argument("--python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--without", action="append", default=[], choices=list(RUNTIMES))
    parser.add_argument("--weights", default="int8", choices=("narrowest", "int8"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    parser.add_argument("--work", choices=list(RUNTIMES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(options.work, options.folder)
        return 0
    return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    import io  # what a runtime's own process does without

    import qmath
    from qmath.exports.onnx.qdq import Onnx
    from reference.onnxruntime import case

    results: dict[str, dict[str, Any]] = {}
    runtimes = [name for name in RUNTIMES if name not in options.without]
    print(f"| model | {' | '.join(runtimes)} |\n|---|{'---|' * len(runtimes)}")
    for name in options.models or CASES:
        bundle, inputs = case(name, options.examples)
        file = io.BytesIO()
        Onnx(weights=options.weights).write(bundle, file)
        expected = list(qmath.run(bundle.program, inputs, profile="exact").outputs.values())
        results[name] = {
            runtime: compared(
                outputs_of(runtime, file.getvalue(), inputs, options.python), expected
            )
            for runtime in runtimes
        }
        cells = [cell(result) for result in results[name].values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for model, row in results.items():
        for runtime, result in row.items():
            if "failure" in result:
                print(f"{runtime}, {model}: {result['failure']}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
