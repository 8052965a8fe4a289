"""Count what ONNX Runtime computes otherwise: ``python -m reference.onnxruntime [MODEL …]``.

Each model is exported to ONNX and run, once for each setting of ONNX Runtime's optimizer. Every
integer that it computes is compared with the one of the profile `exact` from ONNX Runtime's own
previous integers (teacher forcing), and the outputs with those of the profile. The result is a
Markdown table; ``--json FILE`` writes all numbers. With the optimizer on they depend on the
processor: 8-bit kernels for x86-64 without VNNI instructions saturate sums of two products. The
exit status is 1 if, with the optimizer off and at up to 8 bits, an integer differs by more than
float32 noise explains.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as Failure

import qmath
from qmath.exports.bundle import Bundle, quantize_model
from qmath.exports.onnx.qdq import Onnx
from qmath.integer.comparison import LayerDifference, compare
from qmath.integer.profiles.exact import Exact
from qmath.integer.program import Program, QuantizeStep
from reference import models, samples

__all__ = ["SETTINGS", "Result", "case", "measure", "session_outputs"]

Array = NDArray[Any]
CASES = (*samples.RECIPES, *models.MODELS)
IMAGES = {"mobilenetv2": 8}
DEFAULT_IMAGES = 32

# Whether the optimizer is on, and entries of ONNX Runtime's session configuration.
SETTINGS: dict[str, tuple[bool, dict[str, str]]] = {
    "off": (False, {}),
    "on": (True, {}),
    "on, x64quantprecision": (True, {"session.x64quantprecision": "1"}),
    "on, disable_quant_qdq": (True, {"session.disable_quant_qdq": "1"}),
}


@dataclass(frozen=True)
class Result:
    """What differs of one model under one setting.

    Attributes
    ----------
    model, setting : str
    fold : bool
        Whether batch normalizations were folded into the weights' scales.
    bits : int
        Width of the widest activation.
    integers : int
        How many were compared.
    differing, far : int
        How many differ, and how many of these float32 noise near a tie does not explain. An
        input may differ by one: there TensorFlow's own arithmetic decides, which is float32.
    largest : int
        The largest difference, in integer steps.
    outputs, differing_outputs : int
        Elements of the outputs, and how many have other bits than those of the profile.
    largest_output : float
        Their largest difference.
    failure : str
        Why ONNX Runtime cannot run it, if so; nothing is counted then.
    """

    model: str
    setting: str
    fold: bool
    bits: int
    integers: int
    differing: int = 0
    far: int = 0
    largest: int = 0
    outputs: int = 0
    differing_outputs: int = 0
    largest_output: float = 0.0
    failure: str = ""


def case(name: str, count: int | None = None) -> tuple[Bundle, dict[str, Array]]:
    """Return a sample or one of `reference.models`, and data for it."""
    if name in samples.RECIPES:
        bundle = quantize_model(qmath.from_keras(samples.load(name)))
        assert bundle.program is not None
        images = samples.digits().test_images[:count].astype(np.float32)
        return bundle, dict.fromkeys(bundle.program.inputs, images)
    model = models.build(name)
    data = models.data(model, count or IMAGES.get(name, DEFAULT_IMAGES))
    return quantize_model(qmath.from_keras(model)), dict(data)


def session_outputs(
    content: bytes, inputs: Mapping[str, Array], optimize: bool, entries: Mapping[str, str]
) -> tuple[dict[str, Array], list[Array]]:
    """Run an exported file.

    Parameters
    ----------
    content : bytes
    inputs : mapping of str to ndarray
        Data of each input, and of what the graph leaves to others, by the step that makes it.
    optimize : bool
    entries : mapping of str to str
        Of the session's configuration.

    Returns
    -------
    integers : dict of str to ndarray
        By step, channels last.
    outputs : list of ndarray
    """
    model = onnx.load_from_string(content)
    names = json.loads(model.metadata_props[0].value)["export"]["names"]
    wanted = [each["name"] for each in names["integers"].values()]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    makes = {name: cut["makes"] for name, cut in names.get("cuts", {}).items()}
    places = names["inputs"] | {name: made for name, made in makes.items() if made}
    given = {places[name]: x for name, x in inputs.items() if name in places}
    results = session.run([*names["outputs"], *wanted], given)
    count = len(names["outputs"])
    integers = {
        step: np.moveaxis(array, 1, -1) if each["channels_first"] else array
        for (step, each), array in zip(names["integers"].items(), results[count:], strict=True)
    }
    return integers, results[:count]


def measure(name: str, count: int | None = None) -> Iterator[Result]:
    """Compare a model under every setting."""
    bundle, inputs = case(name, count)
    program = bundle.program
    assert program is not None
    expected = list(qmath.run(program, inputs, profile="exact").outputs.values())
    bits = max(entry["num_bits"] for entry in bundle.manifest["tensors"].values()
               if entry["role"] not in ("float", "weight"))  # fmt: skip
    for fold in (False, True):
        file = io.BytesIO()
        Onnx(fold=fold).write(bundle, file)
        for setting, (optimize, entries) in SETTINGS.items():
            try:
                integers, outputs = session_outputs(file.getvalue(), inputs, optimize, entries)
            except Failure as error:
                yield Result(name, setting, fold, bits, 0, failure=str(error))
                continue
            layers = compare(program, inputs, Exact(), integers).layers
            pairs = list(zip(outputs, expected, strict=True))
            yield Result(
                model=name,
                setting=setting,
                fold=fold,
                bits=bits,
                integers=sum(layer.elements for layer in layers),
                differing=sum(layer.teacher_forced for layer in layers),
                far=sum(_far(layer, program) for layer in layers),
                largest=max(layer.largest for layer in layers),
                outputs=sum(a.size for a in expected),
                differing_outputs=sum(int((a != b).sum()) for a, b in pairs),
                largest_output=max(float(np.abs(a - b).max()) for a, b in pairs),
            )


def _far(layer: LayerDifference, program: Program) -> int:
    if isinstance(program.step(layer.name), QuantizeStep) and layer.largest <= 1:
        return 0
    return layer.teacher_forced - layer.near_ties


def table(found: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of a Markdown table: a row for each model and way to fold."""
    yield " | ".join(["| model", "fold", "integers", *SETTINGS]) + " |"
    yield "|---|---|---:" + "|---:" * len(SETTINGS) + "|"
    rows: dict[tuple[str, bool], list[Result]] = {}
    for result in found:
        rows.setdefault((result.model, result.fold), []).append(result)
    for (model, fold), row in rows.items():
        counts = [_count(result) for result in row]
        word = "yes" if fold else "no"
        yield " | ".join([f"| {model}", word, f"{row[0].integers:,}", *counts]) + " |"


def _count(result: Result) -> str:
    if result.failure:
        return "fails"
    if not result.differing:
        return "0"
    text = f"{result.differing:,}"
    if result.far:
        text += f" ({result.far:,}; up to {result.largest})"
    return text


LEGEND = """
Integers that differ from those of the profile `exact`, teacher-forced. In brackets: how many of
these float32 noise near a rounding tie does not explain, and the largest difference in steps."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the models that the command line names, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.onnxruntime",
        description="Count what ONNX Runtime computes otherwise than the profile `exact`.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"any of {', '.join(CASES)}")
    parser.add_argument("--images", type=int, metavar="N", help="examples of each model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    options = parser.parse_args(arguments)
    if unknown := set(options.models) - set(CASES):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    found: list[Result] = []
    for name in options.models or CASES:
        print(f"{name} …", file=sys.stderr, flush=True)
        found += measure(name, options.images)
    print("\n".join(table(found)))
    print(LEGEND)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in found], indent=1) + "\n")
    return int(any(r.far for r in found if r.setting == "off" and r.bits <= 8))


if __name__ == "__main__":
    sys.exit(main())
