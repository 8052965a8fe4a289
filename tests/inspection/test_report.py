import json
import math
from dataclasses import replace

import numpy as np
import pytest

import qmath
from qmath import Graph, MissingSettingsError, Node, QatModel, QatTensor, QuantSpec
from qmath.inspection.advice import Advice, grouped
from qmath.inspection.report import inspect
from qmath.integer.lowering.lower import lower
from tests.exports.integer_networks import of_powers_of_two
from tests.exports.models import AVERAGE, CONV, DENSE, FIXED, model, ranged, unknown, weight


def warnings(report, kind):
    return [item for item in report.warnings if item.kind == kind]


def row(report, name):
    return next(row for row in report.rows if row.tensor == name)


def chain(*nodes: tuple[str, str, dict]) -> Graph:
    """Return a graph of layers in a row: name, class, config."""
    found, before = [], ()
    for name, kind, config in nodes:
        found.append(Node(name, name, kind, before, config))
        before = (name,)
    return Graph(tuple(found), (found[0].name,), before)


def test_verdict_of_a_complete_model():
    report = inspect(model())
    assert str(report.verdict) == "weights 4/4 ready, activations 5/5 ready, integer-only: yes"
    assert report.verdict.integer_only is True


def test_verdict_counts_what_is_unknown():
    changes = {
        "dw/post_activation": unknown("dw/post_activation"),
        "dense/kernel": replace(model().tensors["dense/kernel"], spec=QuantSpec(per_axis=False)),
    }
    report = inspect(model(**changes))
    assert str(report.verdict) == "weights 3/4 ready, activations 4/5 ready, integer-only: yes"
    missing = warnings(report, "missing-settings")
    assert [item.where for item in missing] == ["dw/post_activation", "dense/kernel"]
    assert '--quantizer "MyConfig.activation=' in missing[0].remedy
    assert row(report, "dense/kernel").ready is False
    assert row(report, "dense/kernel").integers_used is None


def test_without_architecture_integer_only_is_unknown():
    verdict = inspect(replace(model(), graph=None)).verdict
    assert verdict.integer_only is None
    assert str(verdict).endswith("integer-only: unknown")


def test_a_weight_row_tells_what_the_integers_are():
    source = model()
    found = row(inspect(source), "dense/kernel")
    quantized = source.tensors["dense/kernel"].quantize()
    floats = np.asarray(source.tensors["dense/kernel"].values)
    assert found.shape == (16, 3)
    assert found.num_bits == 5
    assert found.zero_point == (int(quantized.zero_point),)
    assert found.integers_used == len(set(quantized.values.ravel().tolist()))
    assert found.integers_available == 32
    assert found.clipped == 1
    noise = np.sum((floats.astype(float) - quantized.dequantize()) ** 2)
    assert found.sqnr_db == pytest.approx(
        10 * math.log10(np.sum(floats.astype(float) ** 2) / noise)
    )
    assert row(inspect(source), "conv/kernel").integers_available == 15
    assert found.scheme == "LastValue asym per tensor"
    assert row(inspect(source), "conv/bias").scheme == "float"


def test_a_report_is_json():
    report = inspect(model(**{"x/kernel": weight("x/kernel", np.zeros((2, 2), np.float32), DENSE)}))
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert json.loads(text)["verdict"]["weights"] == 5
    assert json.loads(text)["summary"] == str(report.verdict)


def test_nan_weights_are_a_warning():
    kernel = model().tensors["dense/kernel"]
    values = np.array(kernel.values)
    values[3, 1] = np.nan
    report = inspect(model(**{"dense/kernel": replace(kernel, values=values)}))
    assert warnings(report, "no-integers")[0].where == "dense/kernel"
    assert "NaN" in row(report, "dense/kernel").problem
    assert report.verdict.weights_ready == 3


def test_ranges_that_are_not_finite_are_a_warning():
    report = inspect(model(**{"up/post_activation": ranged("up/post_activation", np.nan, np.inf)}))
    assert warnings(report, "no-integers")
    assert row(report, "up/post_activation").min == (None,)
    json.dumps(report.as_dict(), allow_nan=False)


@pytest.mark.parametrize(("low", "high", "found"), [(-6, 6, 1), (0, 0, 1), (-6, 5.9, 0)])
def test_untrained_ranges(low, high, found):
    report = inspect(model(**{"dw/post_activation": ranged("dw/post_activation", low, high)}))
    names = [item.where for item in warnings(report, "untrained-range")]
    assert names.count("dw/post_activation") == found


def moving_average(steps: int, peak: float) -> tuple[float, float]:
    low, high, rate = np.float32(-6), np.float32(6), np.float32(1 - 0.999)
    for _ in range(steps):
        low = low - low * rate
        high = high - (high - np.float32(peak)) * rate
    return float(low), float(high)


@pytest.mark.parametrize("steps", [1, 100, 2000])
@pytest.mark.parametrize("spec", [AVERAGE, QuantSpec(per_axis=False)])
def test_unconverged_averages_tell_their_steps(steps, spec):
    low, high = moving_average(steps, peak=4.0)
    report = inspect(
        model(**{"conv/post_activation": ranged("conv/post_activation", low, high, spec)})
    )
    (item,) = warnings(report, "unconverged-average")
    assert f"has seen {steps} steps" in item.message
    more = int(item.message.partition("needs about ")[2].split()[0])
    after = moving_average(steps + more, peak=4.0)
    assert -after[0] <= 4.0 / 255 / 2 * 1.01
    assert -moving_average(steps + more - 10, peak=4.0)[0] > 4.0 / 255 / 2


def test_converged_and_signed_averages_are_left_alone():
    low, high = moving_average(9000, peak=4.0)
    converged = ranged("conv/post_activation", low, high)
    signed = ranged("dw/post_activation", -3.0, 4.0)
    changes = {"conv/post_activation": converged, "dw/post_activation": signed}
    assert not warnings(inspect(model(**changes)), "unconverged-average")


def test_dead_channels():
    values = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype(np.float32)
    values[..., [1, 3]] = 0
    report = inspect(model(**{"conv/kernel": weight("conv/kernel", values, CONV)}))
    (item,) = warnings(report, "dead-channel")
    assert item.message == "2 of 5 ranges are 0 … 0 (first: channel 1)"
    assert row(report, "conv/kernel").ready


@pytest.mark.parametrize("per_axis", [True, False])
def test_stale_ranges_of_zero_lose_weights(per_axis):
    values = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype(np.float32)
    kernel = weight("conv/kernel", np.zeros_like(values), replace(CONV, per_axis=per_axis))
    (item,) = warnings(
        inspect(model(**{"conv/kernel": replace(kernel, values=values)})), "dead-channel"
    )
    assert "90 of its values are not 0: all of them become 0" in item.message
    assert "training=True" in item.remedy
    assert "nothing is lost" not in item.remedy
    values[..., 1:] = 0
    (item,) = warnings(
        inspect(model(**{"conv/kernel": replace(kernel, values=values)})), "dead-channel"
    )
    assert "18 of its values are not 0" in item.message


@pytest.mark.parametrize("missing", ["num_bits", "narrow_range"])
def test_missing_settings_are_named(missing):
    tensor = model().tensors["dense/kernel"]
    tensor = replace(tensor, spec=replace(tensor.spec, **{missing: None}))
    (item,) = warnings(inspect(model(**{"dense/kernel": tensor})), "missing-settings")
    assert item.message == f"in no file: {missing}"
    with pytest.raises(MissingSettingsError, match=f"dense/kernel: in no file: {missing}$"):
        tensor.quantize()


@pytest.mark.parametrize(
    "config", [{"activation": ["relu"]}, {"activation": 3}, {"activation": {"class_name": []}},
               {"activation": {}}]
)  # fmt: skip
def test_strange_activations_are_custom_functions(config):
    source = model()
    nodes = tuple(replace(n, config=config) if n.name == "dw" else n for n in source.graph.nodes)
    report = inspect(replace(source, graph=replace(source.graph, nodes=nodes)))
    if config["activation"]:
        (item,) = warnings(report, "cut-point")
        assert (item.where, item.message.split()[0]) == ("dw", "custom")


@pytest.mark.parametrize("config", [{"threshold": "0"}, {"threshold": [1]}, {"threshold": "-1"}])
def test_strange_thresholds_tell_nothing_of_an_average(config):
    low, high = moving_average(100, 4.0)
    tensors = {"relu/output": ranged("relu/output", low, high, role="output")}
    graph = chain(("image", "InputLayer", {}), ("relu", "ReLU", config))
    assert not warnings(inspect(QatModel(tensors, graph)), "unconverged-average")


def test_depthwise_kernels_share_a_range():
    values = np.ones((3, 3, 4, 1), np.float32) * np.float32([1, 0.5, 0.1, 0.9])[:, None]
    kernel = weight("dw/depthwise_kernel", values, CONV)
    report = inspect(model(**{"dw/depthwise_kernel": kernel}))
    (item,) = warnings(report, "single-range-depthwise")
    assert "one range serves 4 channels, the largest of them 10 times the smallest" in item.message
    assert "channel 2 has only 1 … 1 of the integers -8 … 7" in item.message
    assert "depth multiplier" in item.remedy


@pytest.mark.parametrize(("smallest", "num_bits"), [(0.51, 8), (0.26, 8), (0.9, 3), (0.6, 4)])
def test_a_channel_that_keeps_enough_integers_is_no_problem(smallest, num_bits):
    values = np.linspace(-1, 1, 27, dtype=np.float32).reshape(3, 3, 3, 1).copy()
    values[:, :, 1] = np.linspace(-smallest, smallest, 9).reshape(3, 3, 1)
    values[:, :, 0] = values[:, :, 2] = np.linspace(-1, 1, 9).reshape(3, 3, 1)
    kernel = weight("dw/depthwise_kernel", values, replace(CONV, num_bits=num_bits))
    report = inspect(model(**{"dw/depthwise_kernel": kernel}))
    assert not warnings(report, "single-range-depthwise")


def test_each_kind_is_one_group_and_the_severest_comes_first():
    advice = [
        Advice("zero-point-half-step", "a", "tie", "use it"),
        Advice("float-layer", "b", "float", "annotate b"),
        Advice("missing-settings", "c", "missing", "pass"),
        Advice("float-layer", "d", "float", "annotate d"),
        Advice("float-layer", "e", "float", "annotate b"),
    ]
    found = [
        (kind, severity, [(remedy, [item.where for item in items]) for remedy, items in remedies])
        for kind, severity, remedies in grouped(advice)
    ]
    assert found == [
        ("missing-settings", "error", [("pass", ["c"])]),
        ("float-layer", "warning", [("annotate b", ["b", "e"]), ("annotate d", ["d"])]),
        ("zero-point-half-step", "hint", [("use it", ["a"])]),
    ]


def test_zero_point_on_a_half_step():
    kernel = QatTensor("dense/kernel", "weight", np.float32([[0.5, -1.0]]), np.float32(-1.0),
                       np.float32(1.0), replace(DENSE, num_bits=8))  # fmt: skip
    report = inspect(model(**{"dense/kernel": kernel}))
    assert [item.where for item in warnings(report, "zero-point-half-step")] == ["dense/kernel"]
    symmetric = replace(kernel, max=np.float32(0.9921875))
    report = inspect(model(**{"dense/kernel": symmetric}))
    assert not warnings(report, "zero-point-half-step")


def test_values_far_outside_the_range():
    kernel = model().tensors["dense/kernel"]
    values = np.array(kernel.values)
    values[0, 0] = 3 * kernel.max
    report = inspect(model(**{"dense/kernel": replace(kernel, values=values)}))
    (item,) = warnings(report, "outside-range")
    assert "training=True" in item.remedy


def test_fixed_quantizers_compute_with_8_bits():
    source = model()
    note = "dense/post_activation: FixedQuantizer(num_bits=4) computes with 8 bits."
    assert not warnings(inspect(source), "fixed-quantizer-bits")
    report = inspect(replace(source, notes=(note,)))
    assert warnings(report, "fixed-quantizer-bits")[0].where == "dense/post_activation"


def test_a_quantized_layer_needs_a_quantized_input():
    source = model(**{"quantize_layer/output": None})
    nodes = tuple(
        replace(node, inputs=("image",)) if node.name == "conv" else node
        for node in source.graph.nodes if node.name != "quantize_layer"
    )  # fmt: skip
    report = inspect(replace(source, graph=replace(source.graph, nodes=nodes)))
    (item,) = warnings(report, "float-input")
    assert item.where == "conv"
    assert "QuantizeLayer" in item.remedy
    assert report.verdict.integer_only is False


def test_float_layers_and_inputs_name_the_layer_to_annotate():
    tensors = {
        "q/output": ranged("q/output", 0, 1, role="input"),
        "conv/kernel": weight("conv/kernel", np.ones((1, 1, 1, 2), np.float32), CONV),
        "dense/kernel": QatTensor("dense/kernel", "float", np.ones((2, 2), np.float32)),
    }
    graph = chain(
        ("image", "InputLayer", {}), ("q", "QuantizeLayer", {}), ("conv", "Conv2D", {}),
        ("bn", "BatchNormalization", {}), ("relu6", "ReLU", {"max_value": 6.0}),
        ("flatten", "Flatten", {}), ("dense", "Dense", {"activation": "softmax"}),
    )  # fmt: skip
    report = inspect(QatModel(tensors, graph))
    (layer,) = warnings(report, "float-layer")
    assert layer.where == "dense"
    assert "quantize_annotate_layer" in layer.remedy
    (fed,) = warnings(report, "float-input")
    assert fed.message == "its input, from relu6, has no quantizer"
    assert "annotate relu6" in fed.remedy
    assert "get_output_quantizers" in fed.remedy
    assert report.verdict.integer_only is False
    tensors["relu6/output"] = ranged("relu6/output", 0, 6, role="output")
    tensors["dense/kernel"] = weight("dense/kernel", np.float32([[1, 2], [3, 4]]), DENSE)
    assert inspect(QatModel(tensors, graph)).verdict.integer_only is True


@pytest.mark.parametrize(
    ("kind", "config", "integer"),
    [("Activation", {"activation": "tanh"}, True), ("Activation", {"activation": "relu"}, True),
     ("LSTM", {}, False), ("MaxPooling2D", {}, True), ("Softmax", {}, True)],
)  # fmt: skip
def test_functions_in_the_middle(kind, config, integer):
    tensors = {
        "q/output": ranged("q/output", 0, 1, role="input"),
        "middle/output": ranged("middle/output", 0, 1, role="output"),
        "dense/kernel": weight("dense/kernel", np.float32([[1, 2], [3, 4]]), DENSE),
    }
    graph = chain(
        ("image", "InputLayer", {}), ("q", "QuantizeLayer", {}), ("middle", kind, config),
        ("dense", "Dense", {}),
    )  # fmt: skip
    report = inspect(QatModel(tensors, graph))
    assert report.verdict.integer_only is integer
    kind = "float-layer" if kind == "LSTM" else "float-function"
    assert bool(warnings(report, kind)) is not integer


def test_notes_and_source_are_passed_on():
    report = inspect(model())
    assert report.notes[0] == "a note"
    (said,) = report.notes[1:]
    assert said.startswith("scales: 0 of 9 tensors have powers of two alone; the farthest from one")
    assert report.source == "/somewhere/hand made.h5"
    assert FIXED.num_bits == row(report, "dense/post_activation").num_bits


AVERAGE4 = qmath.MovingAverageQuantizer(
    num_bits=4, per_axis=False, symmetric=False, narrow_range=False
)
TOLD = {
    "question": {"*/post_activation": AVERAGE4},
    "integer4": {"*/post_activation": AVERAGE4, "relu6/output": AVERAGE4},
    "default8": {},
    "nbit4": {},
}


@pytest.mark.parametrize("name", TOLD)
def test_the_verdict_on_a_sample_is_its_programs(name):
    source = qmath.load(f"reference/samples/{name}.h5", TOLD[name])
    report = inspect(source)
    float_layers = lower(source).float_layers
    assert report.verdict.integer_only is not bool(float_layers)
    assert {w.where for w in report.warnings if w.kind.startswith("float-")} == set(float_layers)
    assert set(float_layers) == ({"dense"} if name == "question" else set())


def test_scales_are_measured_by_powers_of_two():
    report = inspect(of_powers_of_two())
    near = {row.tensor: row.from_power_of_two for row in report.rows}
    assert near.pop("conv2d2/bias") is None
    assert all(distances and not any(distances) for distances in near.values())
    (said,) = report.notes
    assert said.startswith(
        f"scales: {len(near)} of {len(near)} tensors have powers of two alone; o"
    )
    plain = inspect(model()).rows
    for row in plain:
        for scale, distance in zip(row.scale or (), row.from_power_of_two or (), strict=True):
            power = np.log2(scale / (1 + distance))
            assert power == pytest.approx(np.rint(power), abs=1e-9)
            assert abs(np.log2(scale) - np.rint(power)) <= 0.5


def test_what_runs_in_integers_is_called_so():
    """A LeakyReLU of integers needs no float, although the graph alone does not tell."""
    tensors = {
        "q/output": ranged("q/output", -1, 1, role="input"),
        "leaky/output": ranged("leaky/output", -1, 1, role="output"),
        "dense/kernel": weight("dense/kernel", np.float32([[1, 2], [3, 4]]), DENSE),
        "dense/post_activation": ranged("dense/post_activation", -4, 4),
    }
    graph = chain(
        ("image", "InputLayer", {"batch_input_shape": [None, 2]}), ("q", "QuantizeLayer", {}),
        ("leaky", "LeakyReLU", {"alpha": 0.25}), ("dense", "Dense", {"units": 2}),
    )  # fmt: skip
    report = inspect(QatModel(tensors, graph))
    assert report.verdict.integer_only is True
    assert not [item for item in report.warnings if item.kind.startswith("float-")]
    del tensors["leaky/output"]
    report = inspect(QatModel(tensors, graph))
    assert report.verdict.integer_only is False
    assert [item.where for item in warnings(report, "float-input")] == ["dense"]
    open_shape = replace(graph.nodes[0], config={"batch_input_shape": [None, None]})
    graph = replace(graph, nodes=(open_shape, *graph.nodes[1:]))
    assert inspect(QatModel(tensors, graph)).verdict.integer_only is False


@pytest.mark.parametrize("is_quantized", [True, False])
def test_more_layers_take_no_more_passes_over_the_model(is_quantized):
    """So that time is linear in the layers."""

    def passes(count):
        names = [f"dense{i}" for i in range(count)]
        graph = chain(("image", "InputLayer", {}), *((name, "Dense", {}) for name in names))
        tensors = model().tensors
        kernel, output = tensors["dense/kernel"], tensors["dense/post_activation"]
        kernel = kernel if is_quantized else replace(kernel, role="float", min=None, max=None)
        found = [replace(kernel, name=f"{name}/kernel") for name in names]
        found += [replace(output, name=f"{name}/post_activation") for name in names]
        counted = Counted({tensor.name: tensor for tensor in found})
        nodes = CountedNodes(graph.nodes)
        inspect(QatModel(counted, replace(graph, nodes=nodes)))
        return counted.passes + nodes.passes

    assert passes(3) == passes(30)


class Counted(dict):
    passes = 0

    def items(self):
        self.passes += 1
        return super().items()

    def values(self):
        self.passes += 1
        return super().values()


class CountedNodes(tuple):
    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()
