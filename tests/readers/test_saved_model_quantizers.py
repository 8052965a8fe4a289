"""Quantizers as users write them, put into the graph of a SavedModel by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import FileFormatError
from tests.helpers import assert_same_bits

pytest.importorskip("google.protobuf")
pytest.importorskip("google_crc32c")

from qmath.containers import protos
from qmath.readers.saved_model.fake_quants import FAKE_QUANTS
from qmath.readers.saved_model.functions import FunctionGraph
from qmath.readers.saved_model.inference import find_inference
from qmath.readers.saved_model.scopes import inference_frames

GOLDEN = Path(__file__).parents[2] / "reference" / "golden" / "saved_models"
WEIGHTS = GOLDEN / "tf2.21" / "kernel_bias" / "keras_saved"
LAYERS = GOLDEN / "tf2.21" / "nested" / "keras_saved"
EXPORTED = GOLDEN / "tf2.21" / "nested" / "exported"
F = np.float32
VARS = "FakeQuantWithMinMaxVars"


class Function:
    """The function that serves, and what changes it."""

    def __init__(self, definition: Any) -> None:
        self.definition = definition
        self._count = 0

    def fake_quants(self, leaf: str = "") -> list[Any]:
        """Its fake-quant ops whose first input comes from an op of this name."""
        found = [n for n in self.definition.node_def if n.op in FAKE_QUANTS]
        return [n for n in found if leaf in n.name]

    def constant(self, value: Any) -> str:
        """Return a tensor that holds this."""
        value = np.asarray(value)
        node = self._add("Const", [])
        tensor = node.attr["value"].tensor
        tensor.dtype = {"f": 1, "i": 3}[value.dtype.kind]
        for size in value.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = value.tobytes()
        return f"{node.name}:output:0"

    def op(self, op: str, *inputs: Any) -> str:
        """Return the result of an op on tensors and constants."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        return f"{self._add(op, names).name}:out:0"

    def _add(self, op: str, inputs: list[str]) -> Any:
        self._count += 1
        return self.definition.node_def.add(
            name=f"sequential/quant_d/own{self._count}", op=op, input=inputs
        )


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Return what copies a SavedModel and edits the function that serves."""

    def edit(source: Path, change: Callable[[Function], object]) -> Path:
        copy = tmp_path / "edited"
        shutil.copytree(source, copy)
        path = copy / "saved_model.pb"
        saved = protos.parse("SavedModel", path.read_bytes(), "")
        for function in saved.meta_graphs[0].graph_def.library.function:
            if any(node.op in FAKE_QUANTS for node in function.node_def):
                change(Function(function))
        path.write_bytes(saved.SerializeToString())
        return copy

    return edit


def kernels(function: Function) -> list[Any]:
    """The ops on the kernel, of 6 bits."""
    found = function.fake_quants()
    return [n for n in found if "num_bits" in n.attr and n.attr["num_bits"].i == 6]


def ends(change: Callable[[Function, str, str], tuple[Any, Any]]) -> Callable[[Function], None]:
    """Give the op on the kernel other ends, made of its own."""

    def changed(function: Function) -> None:
        for node in kernels(function):
            made = change(function, node.input[1], node.input[2])
            node.input[1], node.input[2] = (
                x if isinstance(x, str) else function.constant(x) for x in made
            )

    return changed


def value(change: Callable[[Function, str], str]) -> Callable[[Function], None]:
    """Let the op on the kernel quantize something made of it."""

    def changed(function: Function) -> None:
        for node in kernels(function):
            node.input[0] = change(function, node.input[0])

    return changed


def instead(change: Callable[[Function, str], str]) -> Callable[[Function], None]:
    """Put other ops in place of the one on the kernel."""

    def changed(function: Function) -> None:
        for node in kernels(function):
            made = change(function, node.input[0])
            for reader in function.definition.node_def:
                for place, tensor in enumerate(reader.input):
                    if tensor.split(":")[0] == node.name:
                        reader.input[place] = made

    return changed


def stored() -> Any:
    return qmath.load(WEIGHTS).tensors["d/kernel"]


def power_of_two(f: Function, low: str, _: str) -> tuple[str, str]:
    ratio = f.op("RealDiv", f.op("Log", f.op("Neg", low)), f.op("Log", F(2)))
    end = f.op("Pow", F(2), f.op("Ceil", ratio))
    return f.op("Neg", end), f.op("Mul", end, F(31 / 32))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f, low, high: (f.op("Mul", low, F(0.3)), f.op("Mul", high, F(0.3))),
         lambda low, high: (low * F(0.3), high * F(0.3))),
        (lambda *_: (F(-1), F(2)), lambda *_: (F(-1), F(2))),
        (lambda f, low, _: (low, f.op("Neg", low)), lambda low, _: (low, -low)),
        (power_of_two, lambda low, _: 2.0 ** np.ceil(np.log2(-low)) * np.array([-1, 31 / 32])),
    ],
)  # fmt: skip
def test_ends_that_the_graph_computes(
    edited: Callable[..., Path], change: Any, expected: Any
) -> None:
    before = stored()
    tensor = qmath.load(edited(WEIGHTS, ends(change))).tensors["d/kernel"]
    low, high = (F(x) for x in expected(before.min, before.max))
    assert (tensor.role, tensor.spec.num_bits, tensor.provenance["num_bits"]) == (
        "weight", 6, "graph"
    )  # fmt: skip
    assert_same_bits(tensor.min, low)
    assert_same_bits(tensor.max, high)
    found = tensor.quantize()
    wanted = qmath.quantize(before.values, low, high, 6, narrow_range=tensor.spec.narrow_range)
    np.testing.assert_array_equal(found.values, wanted.values)


def test_a_weight_that_is_computed_before_it_is_quantized(edited: Callable[..., Path]) -> None:
    before = stored()
    centered = value(lambda f, x: f.op("Sub", x, f.op("Mean", x, np.int32([0, 1]))))
    tensor = qmath.load(edited(WEIGHTS, centered)).tensors["d/kernel"]
    values = np.asarray(before.values)
    expected = values - F(values.astype(np.float64).mean())
    assert_same_bits(tensor.values, expected)
    assert_same_bits(tensor.min, before.min)
    assert tensor.spec.quantizer == "LastValueQuantizer"
    wanted = qmath.quantize(expected, before.min, before.max, 6)
    np.testing.assert_array_equal(tensor.quantize().values, wanted.values)


def test_rounding_by_hand_is_recovered(edited: Callable[..., Path]) -> None:
    scale = F(0.07)

    def learned_step(f: Function, x: str) -> str:
        clipped = f.op("ClipByValue", f.op("RealDiv", x, scale), F(-8), F(7))
        return f.op("Mul", f.op("Round", clipped), scale)

    model = qmath.load(edited(WEIGHTS, instead(learned_step)))
    tensor = model.tensors["d/kernel"]
    expected = np.clip(np.rint(np.asarray(stored().values) / scale), -8, 7)
    found = tensor.quantize()
    assert tensor.role == "weight"
    assert tensor.provenance["num_bits"] == "recovered from the values"
    steps = (found.values.astype(np.int32) - found.zero_point).astype(F) * found.scale
    np.testing.assert_array_equal(steps, expected * scale)
    assert not [note for note in model.notes if "own config" in note]


def test_a_second_fake_quant_is_recovered(edited: Callable[..., Path]) -> None:
    def again(f: Function, x: str) -> str:
        return f.op("FakeQuantWithMinMaxArgs", f.op("FakeQuantWithMinMaxArgs", x))

    tensor = qmath.load(edited(WEIGHTS, instead(again))).tensors["d/kernel"]
    once = qmath.fake_quant_with_min_max_args(stored().values)
    twice = qmath.fake_quant_with_min_max_args(once)
    found = tensor.quantize()
    steps = found.values.astype(np.int32) - found.zero_point
    np.testing.assert_array_equal(steps.astype(F) * found.scale, twice)


def scaled_exponentially(f: Function, x: str) -> str:
    return f.op("Mul", f.op("Round", x), f.op("Exp", F(0.3)))


def shifted(f: Function, x: str) -> str:
    return f.op("Sub", f.op("RealDiv", f.op("Round", f.op("Mul", x, F(7))), F(7)), F(0.1))


def quantized_and_shifted(f: Function, x: str) -> str:
    return f.op("Sub", f.op("FakeQuantWithMinMaxArgs", x), F(0.013))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (instead(lambda f, x: f.op("Round", f.op("Bessel", x))), "the op Bessel"),
        (instead(scaled_exponentially), "last bits of Exp"),
        (instead(shifted), "no integers"),
        (instead(quantized_and_shifted), "no integers"),
        (instead(lambda f, x: f.op("Minimum", x, F(0.1))), "nothing rounds it"),
        (value(lambda f, x: f.op("Bessel", x)), "the op Bessel"),
        (ends(lambda f, low, high: (f.op("Exp", low), f.op("Exp", high))), "last bits of Exp"),
        (ends(lambda f, low, high: (low, f.op("RealDiv", high, F(0)))), "no finite numbers"),
    ],
)
def test_what_is_not_understood_is_float_with_a_note(
    edited: Callable[..., Path], change: Any, said: str
) -> None:
    model = qmath.load(edited(WEIGHTS, change))
    tensor = model.tensors["d/kernel"]
    assert (tensor.role, tensor.min, tensor.recovered) == ("float", None, None)
    (note,) = [n for n in model.notes if n.startswith("d/kernel: quantized by its own config")]
    assert said in note
    assert model.tensors["d/bias"].role == "weight"


def test_a_range_that_no_op_reads_is_no_range(edited: Callable[..., Path]) -> None:
    model = qmath.load(edited(WEIGHTS, instead(lambda _, x: x)))
    assert model.tensors["d/kernel"].role == "float"
    assert [n for n in model.notes if n.startswith("d/kernel: a range is stored, and no op")]


def flows(function: Function) -> list[Any]:
    return [n for n in function.fake_quants("MovingAvg") if n.op == VARS]


@pytest.mark.parametrize("source", [LAYERS, EXPORTED])
def test_ranges_between_layers_that_no_variable_holds(
    edited: Callable[..., Path], source: Path
) -> None:
    names = [n for n, t in qmath.load(source).tensors.items() if t.role in ("activation", "output")]

    def fixed(function: Function) -> None:
        for node in flows(function):
            del node.input[1:]
            node.op = "FakeQuantWithMinMaxArgs"
            node.attr["num_bits"].i = 5
            node.attr["min"].f, node.attr["max"].f = -1.5, 4.0

    model = qmath.load(edited(source, fixed))
    found = [n for n, t in model.tensors.items() if t.role in ("activation", "output")]
    assert names
    assert [n.rpartition("/")[0] for n in sorted(found)] == [
        n.rpartition("/")[0] for n in sorted(names)
    ]
    for name in found:
        tensor = model.tensors[name]
        assert (tensor.spec.num_bits, tensor.spec.op) == (5, "args")
        assert (tensor.min, tensor.max) == (F(-1.5), F(4))
    assert model.graph is not None


def test_ranges_between_layers_that_are_computed(edited: Callable[..., Path]) -> None:
    def half(function: Function) -> None:
        for node in flows(function):
            for place in (1, 2):
                node.input[place] = function.op("Mul", node.input[place], F(0.5))

    before = qmath.load(LAYERS).tensors
    model = qmath.load(edited(LAYERS, half))
    assert model.tensors.keys() == before.keys()
    for name, tensor in before.items():
        if tensor.role in ("activation", "output"):
            assert_same_bits(model.tensors[name].min, tensor.min * F(0.5))
            assert_same_bits(model.tensors[name].max, tensor.max * F(0.5))


def test_what_rounds_between_layers_is_named(edited: Callable[..., Path]) -> None:
    def rounded(function: Function) -> None:
        for node in flows(function):
            node.op = "Round"
            del node.input[1:]

    model = qmath.load(edited(EXPORTED, rounded))
    lost = [
        n for n, t in qmath.load(EXPORTED).tensors.items() if t.role in ("activation", "output")
    ]
    assert lost
    for name in lost:
        assert name not in model.tensors
        assert [n for n in model.notes if n.startswith(f"{name}: quantized by its own config")]


def test_a_range_that_is_taken_from_the_data_is_named(edited: Callable[..., Path]) -> None:
    def dynamic(function: Function) -> None:
        for node in flows(function):
            for place, op in ((1, "Min"), (2, "Max")):
                node.input[place] = function.op(op, node.input[0], np.int32([0]))

    model = qmath.load(edited(EXPORTED, dynamic))
    assert [n for n in model.notes if "takes its range from the data" in n]


# ---- files that nobody should have written


def doubling(f: Function, x: str) -> str:
    for _ in range(200):
        x = f.op("Pack", x, x)
    return f.op("Round", x)


def long(f: Function, x: str) -> str:
    for _ in range(12_000):
        x = f.op("Neg", x)
    return f.op("Round", x)


def filled(f: Function, x: str) -> str:
    return f.op("Mul", f.op("Round", x), f.op("Fill", np.int32([1 << 30, 64]), F(1)))


def spread(f: Function, x: str) -> str:
    wide = f.op("BroadcastTo", F(1), np.int32([1 << 12, 1 << 12, 1, 1]))
    return f.op("Mul", f.op("Round", x), wide)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (doubling, "more than any network"),
        (long, "more than any network"),
        (spread, "more than any network"),
        (filled, "refuses"),
        (lambda f, x: f.op("Round", f.op("Reshape", x, np.int32([7, 7]))), "refuses"),
        (lambda f, x: f.op("Round", f.op("Transpose", x, np.int32([0, 9]))), "refuses"),
        (lambda f, x: f.op("Round", f.op("Mul", x)), "refuses"),
    ],
)
def test_hostile_arithmetic(edited: Callable[..., Path], change: Any, said: str) -> None:
    with pytest.raises(FileFormatError, match=said):
        qmath.load(edited(WEIGHTS, instead(change)))


# ---- all that is there


def test_every_op_of_the_golden_models_is_a_tensor() -> None:
    """Count fake-quant ops of inference: each is a weight's or activation's, with its settings."""
    from qmath.containers.saved_model import SavedModel

    count = 0
    for path in sorted({p.parent for p in GOLDEN.rglob("saved_model.pb")}):
        saved = SavedModel(str(path))
        graph = FunctionGraph(saved, "")
        frames = inference_frames(saved, graph)
        found = find_inference(graph, frames, "")
        ops = {
            f"{frame.path}{node.name}"
            for root in frames
            for frame in graph.frames(root)
            for node in frame.function.nodes.values()
            if node.op in FAKE_QUANTS
        }
        used = {item.output.name for item in (*found.weights, *found.flows)}
        assert used == ops
        model = qmath.load(path)
        quantized = [t for t in model.tensors.values() if t.role != "float"]
        assert len(quantized) == len(ops)
        assert not any(": quantized by its own config" in note for note in model.notes)
        count += len(ops)
    assert count == 66
