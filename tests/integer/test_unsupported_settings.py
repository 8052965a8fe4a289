"""Settings of known layers that qmath does not compute: each is a cut point, and says why.

What is no question of one layer's settings, such as shapes that contradict each other, ranges that
are missing or damaged values, stays an error. Every place in lowering that raises is listed here.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath import QatModel, QatTensor, QuantSpec
from qmath.errors import QmathError
from qmath.inspection.report import inspect
from qmath.integer.api import program_of
from qmath.integer.lowering.cuts import UnsupportedError
from qmath.integer.program import CutStep, Program
from qmath.verification.check import verify
from tests.exports.networks import Network

ROOT = Path(qmath.__file__).parent / "integer" / "lowering"

# Where lowering raises `UnsupportedError`: by module and function, how often.
CUTS = {
    "activations softmax_axis": 1,
    "float_layers/rule float_layer": 2,
    "geometry _around_center": 1,
    "geometry _conv2d_transpose": 2,
    "geometry _factors": 1,
    "geometry _pads": 1,
    "geometry _upsample": 1,
    "layouts _normalized_axes": 1,
    "lower _check_call": 1,
    "params quant_params": 1,
    "rescaling _kept_axes": 1,
    "rules _concatenation": 1,
}
# Where it raises what stays an error, and why that is no question of one layer's settings.
ERRORS = {
    "activations softmax_axis": (1, "the input has no such axis"),
    "builder _unknown": (1, "a cut is run without data"),
    "builder bias": (1, "the bias has another length than its layer"),
    "builder real": (1, "a weight holds NaN"),
    "builder tensor": (1, "a weight is missing"),
    "cuts _checked": (1, "a shape that the user gives is none"),
    "float_layers/products apply": (1, "the data look up rows that there are not"),
    "float_layers/products einsum_dense": (1, "kernel and input do not fit"),
    "geometry _check_kernel": (2, "kernel and input do not fit"),
    "geometry _permute": (1, "the input has other axes"),
    "geometry _reshape_layer": (2, "the input does not fill the shape"),
    "geometry _upsample": (1, "the input has other axes"),
    "geometry transposed_size": (1, "TensorFlow refuses the layer: no model has it"),
    "layouts _normalized_axes": (1, "the input has no such axis"),
    "lower _check_inputs": (2, "more inputs or other axes than the class takes"),
    "lower _cut": (1, "a layer without inputs"),
    "lower _program": (4, "memory, a config that is damaged, a name that is taken"),
    "lower lower": (3, "no graph, weights that Keras quantized, settings that are unknown"),
    "params _ends": (1, "no range"),
    "params _stated": (1, "a scale of zero"),
    "params quant_params": (1, "a range without width"),
    "rescaling _kept_axes": (1, "the input has no such axis"),
    "rescaling _spread": (1, "constants do not fit the input"),
    "rescaling _statistic": (2, "statistics are missing, or do not fit the input"),
    "rules _concatenation": (2, "inputs that do not fit each other"),
    "rules _input": (1, "an open shape, which is asked for"),
    "rules _joint_shape": (1, "inputs that do not fit each other"),
    "rules _normalization": (2, "statistics that do not fit the input, or have no square root"),
    "rules _slope": (1, "slopes that do not fit the input"),
    "rules _sum": (1, "a difference of three"),
}


class Finder(ast.NodeVisitor):
    """Counts what is raised, by function."""

    def __init__(self) -> None:
        self.where = ""
        self.cuts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self.where = self.where, node.name
        self.generic_visit(node)
        self.where = before

    def visit_Raise(self, node: ast.Raise) -> None:
        is_cut = isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "UnsupportedError"
        (self.cuts if is_cut else self.errors)[self.where] += 1


def test_every_place_that_raises_is_listed() -> None:
    cuts, errors = {}, {}
    for path in sorted(ROOT.rglob("*.py")):
        finder = Finder()
        finder.visit(ast.parse(path.read_text(encoding="utf-8")))
        module = path.relative_to(ROOT).with_suffix("").as_posix()
        cuts |= {f"{module} {name}": count for name, count in finder.cuts.items()}
        errors |= {f"{module} {name}": count for name, count in finder.errors.items()}
    assert cuts == CUTS
    assert errors == {where: count for where, (count, _) in ERRORS.items()}


def batch_normalization(axis: Any) -> Callable[[Network], None]:
    return lambda net: net.add("BatchNormalization", axis=axis, ends=(-2.0, 2.0)) and None


def layer(class_name: str, *shape: int, **config: Any) -> Callable[[Network], None]:
    def add(net: Network) -> None:
        name = net.add(class_name, kernel=shape, ends=(-2.0, 2.0), per_axis=False, **config)
        if class_name == "Concatenate":
            net.nodes[-1] = replace(net.nodes[-1], inputs=net.nodes[-1].inputs * 2)
        if class_name == "Embedding":
            rows = np.ones((4, 2), np.float32)
            net.tensors.append(QatTensor(f"{name}/embeddings", "float", rows))

    return add


def by_channel(net: Network) -> None:
    name = net.add("Conv2D", kernel=(1, 1, 2, 2), ends=(-2.0, 2.0))
    ends = np.float32([-1, -2]), np.float32([1, 2])
    spec = QuantSpec("MovingAverageQuantizer", 8, True, False, False)
    net.tensors[-1] = QatTensor(f"{name}/output", "output", None, *ends, spec)


def called(class_name: str, argument: str) -> Callable[[Network], None]:
    def add(net: Network) -> None:
        net.add(class_name, ends=(-2.0, 2.0))
        node = net.nodes[-1]
        inputs = node.inputs * (2 if class_name == "Attention" else 1)
        net.nodes[-1] = replace(node, inputs=inputs, arguments=(argument,))

    return add


def inside(net: Network) -> None:
    name = net.add("LayerNormalization", ends=(-2.0, 2.0))
    tensor = replace(net.tensors[-1], name=f"{name}/cell/post_activation")
    net.tensors.append(tensor)


# By setting: how to add the layer, what is said, and the shape of what it makes, None where nothing
# tells it; the input is of shape (4, 3, 2).
SAME = (4, 3, 2)
CASES: dict[str, tuple[Callable[[Network], None], str, tuple[int, ...] | None]] = {
    "softmax of examples": (
        layer("Softmax", axis=0), "because it runs over the examples (axis=0)", SAME,
    ),
    "softmax of examples, from the end": (
        layer("Softmax", axis=-4), "because it runs over the examples (axis=-4)", SAME,
    ),
    "softmax of two axes": (
        layer("Softmax", axis=[1, 2]), "because it runs over several axes (axis=[1, 2])", SAME,
    ),
    "normalization of two axes": (
        batch_normalization([1, 3]), "because it normalizes several axes (axis=[1, 3])", SAME,
    ),
    "normalization of examples": (
        batch_normalization(0), "because it normalizes the examples (axis=0)", SAME,
    ),
    "statistics of examples": (
        layer("Normalization", axis=0, mean=0.0, variance=1.0),
        "because its statistics are those of single examples (axis=0)", None,
    ),
    "concatenation of examples": (
        layer("Concatenate", axis=0), "because it joins examples (axis=0)", None,
    ),
    "concatenation of examples, from the end": (
        layer("Concatenate", axis=-4), "because it joins examples (axis=-4)", None,
    ),
    "dilation and strides": (
        layer("Conv2DTranspose", 2, 2, 3, 2, strides=(2, 2), dilation_rate=(2, 2)),
        "because TensorFlow leaves out its strides (2, 2) where its dilation is (2, 2)", None,
    ),
    "padding": (
        layer("Conv2D", 2, 2, 2, 3, padding="full"), "because its padding is 'full'", None,
    ),
    "padding of a pool": (
        layer("MaxPooling2D", pool_size=2, padding="full"), "because its padding is 'full'", None,
    ),
    "interpolation": (
        layer("UpSampling2D", size=(2, 2), interpolation="lanczos3"),
        "because it interpolates ('lanczos3')", None,
    ),
    "resizing that crops": (
        layer("Resizing", height=4, width=3, crop_to_aspect_ratio=True),
        "because it resizes (4, 3) to (4, 3) and crops", SAME,
    ),
    "a range for each channel": (
        by_channel, "because output has a range for each channel", None,
    ),
    "arguments of a call": (
        called("Attention", "use_causal_mask"), "because it is called with use_causal_mask", None,
    ),
    "dropout as in training": (
        called("Dropout", "training"), "because it is called with training", SAME,
    ),
    "normalization as in training": (
        called("BatchNormalization", "training"), "because it is called with training", SAME,
    ),
    "a mask of a softmax": (
        called("Softmax", "mask"), "because it is called with mask", SAME,
    ),
    "quantizers inside": (
        inside, "because quantizers act inside it (cell/post_activation)", SAME,
    ),
    "settings of a float layer": (
        layer("LayerNormalization", axis=[0]), "because it has settings, inputs or weights", SAME,
    ),
}  # fmt: skip


def model_of(name: str) -> tuple[QatModel, str]:
    """Return input → conv → the layer → a dense layer, another conv beside it; and its name."""
    add, _, _ = CASES[name]
    net = Network(*SAME)
    start = net.add("Conv2D", kernel=(1, 1, 2, 2), ends=(-3.0, 3.1))
    add(net)
    cut = net.nodes[-1].name
    last = net.add("Activation", activation="relu", ends=(0.0, 2.0))
    beside = net.add("Conv2D", start, kernel=(1, 1, 2, 3), ends=(-3.0, 3.1))
    return net.model(last, beside), cut


def program_and_cut(name: str, **settings: Any) -> tuple[Program, CutStep]:
    of, layer_name = model_of(name)
    program = program_of(of, **settings)
    (cut,) = program.cuts
    assert cut.name == layer_name
    return program, cut


@pytest.mark.parametrize("name", CASES)
def test_a_setting_cuts_the_model_and_not_more(name: str) -> None:
    of, where = model_of(name)
    _, words, shape = CASES[name]
    program, cut = program_and_cut(name)
    remedy = program.float_layers[where]
    assert words in remedy
    assert "give run its function (layers=) or its outputs (--cut, cuts=)" in remedy
    assert cut.reason in remedy
    assert (cut.shape if cut.is_shaped else None) == shape
    assert program.outputs[-1].startswith("conv2d")
    advice = [item for item in inspect(of).warnings if item.kind == "cut-point"]
    assert [(item.where, item.remedy) for item in advice] == [(where, remedy)]
    if shape is None:
        (asks,) = [note for note in program.notes if note.startswith(where)]
        assert f"--shape {where}=N,N" in asks
        program, cut = program_and_cut(name, input_shapes={where: (4, 3, 2)})
        assert cut.shape == (4, 3, 2)
    assert len(program.outputs) == 2


@pytest.mark.parametrize("name", CASES)
def test_a_function_or_recorded_outputs_stand_for_the_layer(name: str) -> None:
    of, where = model_of(name)
    x = np.random.default_rng(0).uniform(-1, 1, (5, *SAME)).astype(np.float32)
    made = np.random.default_rng(1).uniform(-1, 1.9, (5, *SAME)).astype(np.float32)
    found = qmath.run(of, x, layers={where: lambda *_: made[: len(_[0])]})
    given = qmath.run(of, x, cuts={where: made})
    assert (found.missing, given.missing) == ({}, {})
    assert len(given.outputs) == 2
    for tensor, integers in given.integers.items():
        np.testing.assert_array_equal(found.integers[tensor], integers)
    assert list(qmath.run(of, x).missing) == [where]
    reference = qmath.run(of, x, cuts={where: made}, profile="exact")
    whole = qmath.diff(of, x, against=reference.integers, cuts={where: made})
    assert {layer.name for layer in whole.layers} == set(reference.integers)
    assert all(layer.explained for layer in whole.layers)


@pytest.mark.parametrize("name", CASES)
def test_exports_hold_what_there_is(name: str, tmp_path: Path) -> None:
    of, where = model_of(name)
    reason = program_and_cut(name)[1].reason
    for format in ("npz", "c"):
        out = tmp_path / f"out.{format}"
        bundle = qmath.export(of, out, format=format, vectors=2)
        assert reason in bundle.manifest["program"]["islands"][where]
        assert verify(of, out, format=format).ok
    assert reason in " ".join((tmp_path / "out.c" / "model.h").read_text().split())


@pytest.mark.parametrize("format", ["onnx", "qonnx"])
@pytest.mark.parametrize("name", CASES)
def test_networks_leave_the_layer_to_whoever_runs_them(
    name: str, format: str, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    of, where = model_of(name)
    of = replace(of, shapes={where: SAME})
    out = tmp_path / f"out.{format}"
    qmath.export(of, out, format=format)
    assert verify(of, out).ok
    graph = onnx.load(str(out)).graph
    assert where in [value.name for value in graph.input]
    assert any(value.name.startswith(f"{where}/input") for value in graph.output)


@pytest.mark.parametrize(
    ("add", "words", "shape"),
    [(layer("Resizing", height=6, width=3), "resizes (4, 3) to (6, 3), no whole multiple",
      (6, 3, 2)),
     (layer("CenterCrop", height=5, width=3), "(4, 3) is smaller than (5, 3), so that it inter",
      (5, 3, 2))],
)  # fmt: skip
def test_a_size_that_is_none_of_whole_pixels_is_a_reason(
    add: Callable[[Network], None], words: str, shape: tuple[int, ...]
) -> None:
    net = Network(*SAME)
    add(net)
    (cut,) = program_of(net.model()).cuts
    assert words in cut.reason
    assert cut.shape == shape


def test_a_dilation_that_tensorflow_does_not_compute_is_a_reason() -> None:
    net = Network(5, 2)
    net.add("Conv1DTranspose", kernel=(2, 3, 2), per_axis=False, dilation_rate=2, ends=(-2.0, 2.0))
    (cut,) = program_of(net.model()).cuts
    assert "TensorFlow's CPU kernels compute no dilation of it, (2,)" in cut.reason


def test_a_mask_is_a_reason() -> None:
    net = Network(5, 3)
    net.add("Masking")
    net.add("LSTM", ends=(-1.0, 1.0))
    program = program_of(net.model())
    (lstm,) = [cut for cut in program.cuts if cut.class_name == "LSTM"]
    assert "because a mask acts on it, which Masking" in program.float_layers[lstm.name]


def test_a_setting_that_is_met_again_does_not_leave_steps_behind() -> None:
    net = Network(4, 3, 2)
    net.add("Conv2D", kernel=(1, 1, 2, 2))
    net.add("Maximum", net.nodes[-1].name, net.nodes[1].name)
    net.add("Softmax", axis=[1, 2], ends=(0.0, 1.0))
    program = program_of(net.model())
    assert [type(step).__name__ for step in program.steps] == [
        "QuantizeStep", "FloatStep", "CutStep", "QuantizeStep",
    ]  # fmt: skip


def test_the_error_is_one_of_qmath_where_nothing_catches_it() -> None:
    error = UnsupportedError("a", "it is odd", "make it even")
    assert isinstance(error, QmathError)
    assert str(error) == "a: qmath does not compute this layer because it is odd; make it even"


@pytest.mark.parametrize(
    ("class_name", "config", "words"),
    [("Softmax", {"axis": 4}, "this softmax runs over the axis 4"),
     ("Softmax", {"axis": [1, -5]}, r"this softmax runs over the axis \[1, -5\]"),
     ("BatchNormalization", {"axis": [4]}, r"this batch normalization is of axis \[4\]"),
     ("Normalization", {"axis": 5, "mean": 0.0, "variance": 1.0}, "statistics for axis 5"),
     ("Concatenate", {"axis": 4}, "inputs with an axis 4")],
)  # fmt: skip
def test_an_axis_that_the_input_lacks_is_an_error(
    class_name: str, config: dict[str, Any], words: str
) -> None:
    net = Network(*SAME)
    net.add(class_name, **config)
    with pytest.raises(QmathError, match=words):
        program_of(net.model())
