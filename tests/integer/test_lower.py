"""Guards and refusals of the lowering, on models made by hand; real ones are in the parity part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath
from qmath import Graph, Node, QatModel, QatTensor, QuantSpec
from qmath.errors import MissingSettingsError, QmathError
from qmath.integer.api import program_of
from qmath.integer.executor import Executor
from qmath.integer.judging.noise import float32_noise
from qmath.integer.lowering.lower import lower
from qmath.integer.lowering.operations import relative_integers
from qmath.integer.profiles.fixed import constants
from qmath.integer.program import Program, Requantize
from tests.exports.qdq_networks import of_width

WEIGHT = QuantSpec("LastValueQuantizer", 4, per_axis=True, symmetric=True, narrow_range=True)
RANGE = QuantSpec("MovingAverageQuantizer", 8, per_axis=False, narrow_range=False)
KERNEL = np.float32([[0.5, 1.0, -1.0], [-0.5, 0.25, 0.0]])


def ranged(name: str, low: float, high: float, spec: QuantSpec = RANGE) -> QatTensor:
    return QatTensor(name, "output", None, np.float32(low), np.float32(high), spec)


def model(
    *layers: tuple[str, dict[str, Any]], kernel: np.ndarray = KERNEL, **tensors: Any
) -> QatModel:
    """Return input → quantizer → dense → `layers`, each quantized where `tensors` say so."""
    limit = np.abs(kernel).max(0)
    spec = tensors.pop("spec", WEIGHT)
    found = [
        ranged("quantize/output", -1.0, 1.0),
        QatTensor("dense/kernel", "weight", kernel, -limit, limit, spec),
        QatTensor("dense/bias", "float", np.float32([0.1, 0.2, 0.3])),
    ]
    found += [ranged(f"{name}/output", *ends) for name, ends in tensors.pop("ranges", {}).items()]
    found += [QatTensor(name, "float", values) for name, values in tensors.items()]
    nodes = [
        Node("image", "image", "InputLayer", (), {"batch_input_shape": [None, 2]}),
        Node("quantize", "quantize", "QuantizeLayer", ("image",), {}),
        Node("dense", "dense", "Dense", ("quantize",), {"activation": "linear"}, "MyConfig"),
    ]
    for class_name, config in layers:
        name = f"layer{len(nodes)}"
        nodes.append(Node(name, name, class_name, (nodes[-1].name,), config))
    graph = Graph(tuple(nodes), ("image",), (nodes[-1].name,))
    return QatModel({tensor.name: tensor for tensor in found}, graph, source="model.h5")


NORMALIZATION = {
    "layer3/gamma": np.float32([1.0, -2.0, 0.0]),
    "layer3/beta": np.float32([0.0, 0.5, -0.25]),
    "layer3/moving_mean": np.float32([0.1, 0.0, 0.2]),
    "layer3/moving_variance": np.float32([1.0, 0.25, 4.0]),
}


def result(program: Program, x: np.ndarray) -> np.ndarray:
    return Executor(program).run({"image": x})[program.outputs[0]]


def test_batch_normalization_is_folded_exactly() -> None:
    of = model(
        ("BatchNormalization", {"epsilon": 1e-3}), ("ReLU", {"max_value": 6.0}),
        ranges={"layer4": (0.0, 6.0)}, **NORMALIZATION,
    )  # fmt: skip
    program = lower(of)
    assert [type(step).__name__ for step in program.steps] == ["QuantizeStep", "Requantize"]
    assert not program.float_layers
    x = np.random.default_rng(0).uniform(-1, 1, (500, 2)).astype(np.float32)
    real = qmath.fake_quant_with_min_max_vars(x, -1, 1).astype(np.float64)
    real = real @ of.tensors["dense/kernel"].quantize().dequantize() + [0.1, 0.2, 0.3]
    g, b, m, v = NORMALIZATION.values()
    real = np.clip((real - m) / np.sqrt(v + 1e-3) * g + b, 0, 6)
    scale = np.float32(6) / np.float32(255)
    np.testing.assert_array_equal(result(program, x), np.floor(real / scale + 0.5))


def test_tiny_gamma_is_noted() -> None:
    of = model(("BatchNormalization", {}), ranges={"layer3": (-6.5, 6.0)}, **NORMALIZATION)
    (note,) = lower(of).notes
    assert note.startswith("layer3: gamma is zero or tiny in 1 of 3 channels ([2]")


@pytest.mark.parametrize("narrow_range", [False, True])
def test_lowest_weights_under_negative_gamma_are_noted_and_run_exactly(narrow_range: bool) -> None:
    spec = QuantSpec("LastValueQuantizer", 4, per_axis=True, narrow_range=narrow_range)
    kernel = np.float32([[-1.0, -1.0, 0.5], [1.0, 0.25, -1.0]])
    of = model(
        ("BatchNormalization", {"epsilon": 0.0}),
        kernel=kernel, spec=spec, ranges={"layer3": (-3.7, 4.1)},
        **{"layer3/gamma": np.float32([1.0, -1.0, 1.0])},
    )  # fmt: skip
    if not narrow_range:
        high = np.float32([7 / 8] * 3)
        wide = QatTensor("dense/kernel", "weight", kernel, high * 0 - 1, high, spec)
        of = QatModel({**of.tensors, wide.name: wide}, of.graph, source="m")
    program = lower(of)
    if narrow_range:
        assert not program.notes
    else:
        (note,) = program.notes
        assert "gamma is negative in 1 channels whose weights reach -8" in note
        assert "needs 5 bits" in note
    x = np.random.default_rng(0).uniform(-1, 1, (200, 2)).astype(np.float32)
    image, weights = qmath.quantize(x, -1, 1, 8), of.tensors["dense/kernel"].quantize()
    integers, kernel = image.values.astype(np.int32), weights.values.astype(np.int32)
    sums = (integers - image.zero_point) @ (kernel - weights.zero_point)
    real = sums * (image.scale.astype(np.float64) * weights.scale)
    real = (real + np.float32([0.1, 0.2, 0.3])) * [1, -1, 1]
    params = program.steps[-1].params
    expected = np.clip(
        np.floor(real / params.scale + 0.5) + params.zero_point, params.low, params.high
    )
    np.testing.assert_array_equal(result(program, x), expected)


def test_dead_channels_are_noted_and_give_their_bias() -> None:
    kernel = KERNEL * np.float32([1, 0, 1])
    program = lower(model(kernel=kernel, ranges={"dense": (-2.0, 2.0)}))
    (note,) = program.notes
    assert note.startswith("dense/kernel: 1 of 3 channels are dead")
    q = result(program, np.random.default_rng(0).uniform(-1, 1, (50, 2)))
    assert (q[:, 1] == q[0, 1]).all()
    params = program.steps[-1].params
    assert abs(params.dequantize(q)[0, 1] - 0.2) <= params.scale / 2


def test_untrained_ranges_are_noted_or_refused() -> None:
    (note,) = lower(model(ranges={"dense": (-6.0, 6.0)})).notes
    assert "dense/output: its range is the initial one, [-6, 6], so it was never trained" in note
    with pytest.raises(QmathError, match=r"dense/output: its range is \[0, 0\], so it was never"):
        lower(model(ranges={"dense": (0.0, 0.0)}))


def test_unknown_settings_are_asked_for() -> None:
    unknown = QuantSpec(per_axis=True)
    with pytest.raises(MissingSettingsError, match="settings of dense/kernel are in no file"):
        lower(model(spec=unknown))


def test_what_cannot_be_run_is_named() -> None:
    with pytest.raises(QmathError, match=r"model\.h5: the file holds no layers"):
        lower(QatModel({}, None, source="model.h5"))
    for layer, words in (
        (("Reshape", {}), "layer3: the config of this Reshape is not understood"),
        (("Permute", {"dims": [7]}), "layer3: the config of this Permute is not understood"),
    ):
        with pytest.raises(QmathError, match=words):
            lower(model(layer))


def test_a_layer_called_like_a_quantized_tensor_is_named() -> None:
    names = ("conv/output", "quantize", "conv", "dw", "dense")
    with pytest.raises(QmathError, match=r"conv/output: this is the name of a layer.*rename"):
        lower(of_width(8, True, names))


def test_an_open_input_shape_is_asked_for() -> None:
    of = model()
    assert of.graph is not None
    nodes = [
        Node(n.name, n.layer, n.class_name, n.inputs, {"batch_input_shape": [None, None]})
        if n.class_name == "InputLayer" else n
        for n in of.graph.nodes
    ]  # fmt: skip
    opened = QatModel(of.tensors, Graph(tuple(nodes), ("image",), ("dense",)), source="m")
    with pytest.raises(QmathError, match="image: the model leaves its input's shape open"):
        lower(opened)
    assert lower(opened, {"image": (2,)}).inputs == {"image": (2,)}


def test_float_layers_are_named_with_their_remedy() -> None:
    of = model(("Dense", {}), **{"layer3/kernel": np.ones((3, 2), np.float32)})
    assert program_of(of).float_layers == {
        "layer3": "quantize its weights and its input, the output of dense"
    }
    with pytest.raises(QmathError, match="these layers run in float32: layer3: quantize its"):
        program_of(of, require_integer=True)


def test_a_program_is_returned_as_it_is() -> None:
    program = lower(model())
    assert program_of(program) is program


def test_accumulator_widths_are_proved_from_the_integers() -> None:
    program = lower(model(ranges={"dense": (-2.0, 2.0)}))
    (fixed,) = constants(program)["dense/output"]
    step = next(step for step in program.steps if isinstance(step, Requantize))
    weights = np.asarray(step.value.terms[0].ops[0].weights, np.int64)
    params = step.value.terms[0].params
    ends = np.array(params.limits)
    low = (np.maximum(weights, 0) * ends[0] + np.minimum(weights, 0) * ends[1]).sum(0)
    high = (np.maximum(weights, 0) * ends[1] + np.minimum(weights, 0) * ends[0]).sum(0)
    (bits,) = fixed.accumulator_bits
    assert ((-(2 ** (bits - 1)) <= low) & (high < 2 ** (bits - 1))).all()
    assert ((low < -(2 ** (bits - 2))) | (high >= 2 ** (bits - 2))).all()
    assert fixed.multipliers[0].shape == fixed.shift.shape == (3,)


def test_wrong_data_are_refused() -> None:
    executor = Executor(lower(model()))
    for x, words in (
        (np.zeros((4, 3)), r"image: the data must have shape \(N, 2\), got \(4, 3\)"),
        (np.zeros(2), r"got \(2,\)"),
        (np.full((4, 2), "a"), "the data must be numbers, got dtype <U1"),
    ):
        with pytest.raises(QmathError, match=words):
            executor.run({"image": x})
    with pytest.raises(QmathError, match="NaN"):
        executor.run({"image": np.full((4, 2), np.nan)})
    with pytest.raises(QmathError, match=words):
        executor.run({"image": x})
    with pytest.raises(
        QmathError, match=r"the model's inputs are \['image'\], the data has \['x'\]"
    ):
        executor.run({"x": np.zeros((4, 2))})
    assert executor.run({"image": np.zeros((0, 2))})["quantize/output"].shape == (0, 2)


def test_data_scaled_otherwise_than_in_training_are_refused_as_a_whole() -> None:
    executor = Executor(lower(model()))
    rng = np.random.default_rng(0)
    executor.checked({"image": rng.normal(size=(500, 2)) * 0.6})  # a little is clipped: fine
    one_in_twenty = np.where(rng.uniform(size=(500, 2)) < 0.05, 255.0, 0.0)
    for x in (np.full((4, 2), 255.0), rng.uniform(0, 16, (500, 2)), one_in_twenty):
        with pytest.raises(QmathError, match=r"image: \d+% of the data, from .* lie outside"):
            executor.checked({"image": x})


def test_floats_that_are_no_numbers_are_named() -> None:
    broken = {**NORMALIZATION, "layer3/gamma": np.float32([1, np.nan, 1])}
    with pytest.raises(QmathError, match="layer3/gamma holds NaN or infinities"):
        lower(model(("BatchNormalization", {}), **broken))
    broken = {**NORMALIZATION, "layer3/moving_variance": np.float32([1, -1, 1])}
    with pytest.raises(QmathError, match=r"layer3/moving_variance: -1 with epsilon 0\.001 has no"):
        lower(model(("BatchNormalization", {}), **broken))
    large = {**NORMALIZATION, "layer3/beta": np.float32([1e30, 0, 0])}
    program = lower(model(("BatchNormalization", {}), ranges={"layer3": (-1.0, 1.0)}, **large))
    with pytest.raises(QmathError, match=r"its bias reaches 1\.27e"):
        constants(program)


def float_graph(*nodes: Node, **tensors: np.ndarray) -> QatModel:
    """Return a model in which nothing is quantized."""
    found = {name: QatTensor(name, "float", values) for name, values in tensors.items()}
    return QatModel(found, Graph(nodes, (nodes[0].name,), (nodes[-1].name,)), source="m")


def test_float_layers_compute_what_keras_does() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 6, 2)).astype(np.float32)
    kernel = rng.normal(size=(3, 2, 4)).astype(np.float32)
    image = Node("image", "image", "InputLayer", (), {"batch_input_shape": [None, 6, 2]})
    conv = Node("conv", "conv", "Conv1D", ("image",), {"strides": [1], "padding": "valid"})
    mean = Node("mean", "mean", "GlobalAveragePooling1D", ("conv",), {})
    total = Node("sum", "sum", "Add", ("conv", "mean"), {})
    program = lower(float_graph(image, conv, mean, total, **{"conv/kernel": kernel}))
    assert set(program.float_layers) == {"conv"}  # what follows it is float for its sake
    results = Executor(program).run({"image": x})
    expected = sum(x[:, i : i + 4] @ kernel[i] for i in range(3))
    np.testing.assert_allclose(results["conv"], expected, rtol=1e-5, atol=1e-5)
    # Keras puts the axes that one summand lacks after the batch, whatever the batch's length.
    expected = results["conv"] + results["conv"].mean(1)[:, np.newaxis]
    np.testing.assert_allclose(results["sum"], expected, rtol=1e-5, atol=1e-5)


def test_functions_are_float_layers_unless_the_model_ends_with_them() -> None:
    softmax, dense = ("Activation", {"activation": "softmax"}), ("Dense", {})
    assert not lower(model(softmax)).float_layers
    tensors = {"layer4/kernel": np.ones((3, 2), np.float32)}
    assert set(lower(model(softmax, dense, **tensors)).float_layers) == {"layer3", "layer4"}


@given(st.integers(2, 16), st.booleans(), st.booleans(), st.floats(0, 1), st.booleans())
def test_weights_are_held_in_the_smallest_dtype(
    num_bits: int, narrow: bool, signed: bool, below: float, per_axis: bool
) -> None:
    low, high = np.float32([-below, -1.0]), np.float32([1.0 - below, 1.0])
    x = np.linspace(-1, 1, 50, dtype=np.float32).reshape(25, 2)
    q = qmath.quantize(
        x, low if per_axis else low[0], high if per_axis else high[0], num_bits,
        narrow_range=narrow, per_axis=per_axis, signed=signed,
    )  # fmt: skip
    found = relative_integers(q)
    exact = q.values.astype(np.int64) - q.zero_point
    np.testing.assert_array_equal(found, exact)
    # Both ends of the range are among the values, so that no smaller dtype would do.
    needed = max(int(exact.max()).bit_length(), int(~exact.min()).bit_length()) + 1
    assert found.dtype == np.dtype(f"i{1 if needed <= 8 else 2 if needed <= 16 else 4}")


def test_the_calls_of_a_shared_layer_hold_one_operation() -> None:
    of = model(("Dense", {"activation": "linear"}), kernel=KERNEL[:, :2])
    assert of.graph is not None
    dense, again = of.graph.nodes[-2:]
    twice = replace(of.graph, nodes=(*of.graph.nodes[:-1], replace(again, layer=dense.layer)))
    tensors = {**of.tensors, "dense/bias": QatTensor("dense/bias", "float", np.float32([0, 1]))}
    tensors["dense/output"] = ranged("dense/output", -2.0, 2.0)
    made: list[str] = []

    def quantize(tensor: QatTensor) -> qmath.QuantizedTensor:
        made.append(tensor.name)
        return tensor.quantize()

    program = lower(replace(of, graph=twice, tensors=tensors), quantize=quantize)
    first, second = (s.value.terms[0].ops[0] for s in program.steps if isinstance(s, Requantize))
    assert first is second
    assert made == ["dense/kernel"]


def test_noise_counts_the_magnitude_of_the_lowest_integer() -> None:
    spec = QuantSpec("LastValueQuantizer", 8, per_axis=False, narrow_range=False)
    kernel = np.float32([[-1.0], [-1.0]])
    of = model(kernel=kernel, spec=spec, ranges={"dense": (-2.0, 2.0)})
    ends = {"min": np.float32(-1.0), "max": np.float32(127 / 128)}
    tensors = {**of.tensors, "dense/kernel": replace(of.tensors["dense/kernel"], **ends)}
    tensors["dense/bias"] = QatTensor("dense/bias", "float", np.zeros(1, np.float32))
    program = lower(replace(of, tensors=tensors))
    step = program.steps[-1]
    assert isinstance(step, Requantize)
    (term,) = step.value.terms
    assert term.ops[0].weights.tolist() == [[-128], [-128]]  # whose int8 magnitude is -128
    relative = np.array([[10, 20]])
    found = float32_noise(step, {term.source: relative + term.params.zero_point})
    magnitude = 30 * 128 * term.scale / step.params.scale
    assert found == pytest.approx(((2 + 8 + 2) * magnitude + 4 * 256) * 2.0**-24)
