"""Layer classes one by one, in integers: each rounds what NumPy computes of the real values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath import QatModel, QatTensor
from qmath.inspection.report import inspect
from qmath.integer import ops
from qmath.integer.api import program_of
from qmath.integer.lowering import rules
from qmath.integer.profiles.fixed import constants
from qmath.integer.program import FloatStep, Program, QuantParams, Requantize
from qmath.verification.check import verify
from tests.exports.compiling import needs_compiler
from tests.exports.networks import Network

Array = np.ndarray[Any, Any]
Function = Callable[..., Array]

# Of a class: its config, the shapes of its inputs, and what it computes.
JOINS: dict[str, tuple[str, tuple[tuple[int, ...], ...], Function]] = {
    "a product": ("Multiply", ((4, 3, 2), (4, 3, 2)), np.multiply),
    "a gate": ("Multiply", ((4, 3, 2), (1, 1, 2)), np.multiply),
    "a gate without axes": ("Multiply", ((4, 3, 2), (2,)), np.multiply),
    "a mask first": ("Multiply", ((4, 3, 1), (4, 3, 2)), np.multiply),
    "a product of three": ("Multiply", ((4, 1, 2), (4, 3, 2), (1, 3, 1)),
                           lambda a, b, c: a * b * c),
    "a maximum": ("Maximum", ((4, 3, 2), (4, 3, 2)), np.maximum),
    "a maximum of three": ("Maximum", ((4, 3, 2), (2,), (4, 1, 2)),
                           lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "a minimum": ("Minimum", ((4, 3, 2), (1, 3, 2)), np.minimum),
    "an average": ("Average", ((4, 3, 2), (4, 3, 2)), lambda a, b: (a + b) / 2),
    "an average of three": ("Average", ((4, 3, 2), (2,), (4, 3, 1)),
                            lambda a, b, c: (a + b + c) / 3),
    "a sum": ("Add", ((4, 3, 2), (1, 3, 1)), np.add),
    "a difference": ("Subtract", ((3, 2), (4, 3, 2)), np.subtract),
}  # fmt: skip
MOVES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], Function]] = {
    "crop 1": ("Cropping1D", {"cropping": [1, 2]}, (6, 2), lambda x: x[:, 1:-2]),
    "crop 2": ("Cropping2D", {"cropping": [[1, 0], [0, 2]]}, (4, 5, 2), lambda x: x[:, 1:, :-2]),
    "crop 3": ("Cropping3D", {"cropping": 1}, (3, 4, 5, 2), lambda x: x[:, 1:-1, 1:-1, 1:-1]),
    "pad 3": ("ZeroPadding3D", {"padding": [1, [0, 2], 0]}, (2, 2, 3, 1),
              lambda x: np.pad(x, ((0, 0), (1, 1), (0, 2), (0, 0), (0, 0)))),
    "repeat 3": ("UpSampling3D", {"size": [1, 2, 3]}, (2, 2, 2, 2),
                 lambda x: x.repeat(2, 2).repeat(3, 3)),
    "repeat a vector": ("RepeatVector", {"n": 3}, (4,), lambda x: np.stack([x] * 3, 1)),
    "dropout 3": ("SpatialDropout3D", {"rate": 0.5}, (2, 2, 2, 2), lambda x: x),
    "alpha dropout": ("AlphaDropout", {"rate": 0.5}, (3,), lambda x: x),
}  # fmt: skip

ACTIVATIONS: dict[str, tuple[str, dict[str, Any], Function]] = {
    "elu": ("Activation", {"activation": "elu"}, lambda x: np.where(x > 0, x, np.expm1(x))),
    "elu layer": ("ELU", {"alpha": 0.5}, lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
    "exponential": ("Activation", {"activation": "exponential"}, np.exp),
    "gelu": ("Activation", {"activation": "gelu"},
             lambda x: x * np.vectorize(lambda v: (1 + math.erf(v / math.sqrt(2))) / 2)(x)),
    "hard_sigmoid": ("Activation", {"activation": "hard_sigmoid"},
                     lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    "hard_swish": ("Activation", {"activation": "hard_swish"},
                   lambda x: x * np.minimum(np.maximum(x + 3, 0), 6) / 6),
    "hard_silu": ("Activation", {"activation": "hard_silu"},
                  lambda x: np.where(x > -3, np.where(x < 3, x * (x + 3) / 6, x), 0)),
    "silu": ("Activation", {"activation": "silu"}, lambda x: x / (1 + np.exp(-x))),
    "mish": ("Activation", {"activation": "mish"}, lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "selu": ("Activation", {"activation": "selu"},
             lambda x: 1.05070098 * np.where(x > 0, x, 1.67326324 * np.expm1(x))),
    "softplus": ("Activation", {"activation": "softplus"}, lambda x: np.log1p(np.exp(x))),
    "softsign": ("Activation", {"activation": "softsign"}, lambda x: x / (1 + np.abs(x))),
    "threshold": ("ThresholdedReLU", {"theta": 0.3}, lambda x: np.where(x > 0.3, x, 0)),
    "threshold of 1": ("ThresholdedReLU", {}, lambda x: np.where(np.float32(x) > 1, x, 0)),
    "threshold of 0": ("ThresholdedReLU", {"theta": 0.0}, lambda x: np.maximum(x, 0)),
    "relu from": ("ReLU", {"threshold": 0.3, "max_value": None},
                  lambda x: np.where(x > 0.3, x, 0)),
    "relu with all": ("ReLU", {"threshold": 0.3, "max_value": 1.1, "negative_slope": 0.5},
                      lambda x: np.where(x > 0.3, np.minimum(x, 1.1), 0.5 * (x - 0.3))),
    "relu to": ("ReLU", {"max_value": 0.9, "negative_slope": 0.25},
                lambda x: np.where(x > 0, np.minimum(x, 0.9), 0.25 * x)),
}  # fmt: skip

RESCALED: dict[str, tuple[str, dict[str, Any], Function]] = {
    "rescaling": ("Rescaling", {"scale": 1.5, "offset": -0.25}, lambda x: 1.5 * x - 0.25),
    "rescaling of channels": ("Rescaling", {"scale": [0.5, -2.0], "offset": 0},
                              lambda x: x * [0.5, -2.0]),
    "normalization": ("Normalization", {"axis": [-1], "mean": [0.5, 0.25], "variance": [4.0, 0.25]},
                      lambda x: (x - [0.5, 0.25]) / [2.0, 0.5]),
    "normalization of rows": (
        "Normalization", {"axis": 1, "mean": [0.5, 0.25, 0.0], "variance": [4.0, 0.25, 1.0]},
        lambda x: (x - [[[0.5]], [[0.25]], [[0.0]]]) / [[[2]], [[0.5]], [[1]]],
    ),
    "normalization of all": ("Normalization", {"axis": [], "mean": 0.5, "variance": 4.0},
                             lambda x: (x - 0.5) / 2),
    "inverse": ("Normalization", {"axis": -1, "mean": 0.5, "variance": 0.25, "invert": True},
                lambda x: x * 0.5 + 0.5),
}  # fmt: skip


def pooled(reduce: Function, size: Any, strides: Any, is_same: bool) -> Function:
    """Return a pool of three axes, window by window."""

    def function(x: Array) -> Array:
        spatial = x.shape[1:4]
        pads = ops.same_pads(spatial, size, strides) if is_same else ((0, 0),) * 3
        x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=np.nan)
        counts = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:4], size, strides, strict=True)]
        out = np.empty((len(x), *counts, x.shape[-1]))
        for at in np.ndindex(*counts):
            window = tuple(
                slice(i * s, i * s + k) for i, s, k in zip(at, strides, size, strict=True)
            )
            out[(slice(None), *at)] = reduce(x[(slice(None), *window)], axis=(1, 2, 3))
        return out

    return function


def joined(class_name: str, shapes: tuple[tuple[int, ...], ...], bits: int) -> QatModel:
    """Return a model whose layer takes quantized tensors of these shapes, parts of one input."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    net = Network(sum(sizes), 1, bits=bits)
    start, parts = net.nodes[-1].name, []
    for i, (size, shape) in enumerate(zip(sizes, shapes, strict=True)):
        first = sum(sizes[:i])
        net.add("Cropping1D", start, cropping=[first, sum(sizes) - first - size])
        ends = (-1.0 - 0.2 * i, 1.3 + 0.1 * i)
        parts.append(net.add("Reshape", target_shape=shape, ends=ends))
    net.add(class_name, *parts, ends=(-1.4, 1.6))
    return net.model(*parts, net.nodes[-1].name)


def dequantized(program: Program, found: dict[str, Array], name: str) -> Array:
    of = params(program, name)
    return (found[name].astype(np.float64) - of.zero_point) * of.scale


def params(program: Program, name: str) -> QuantParams:
    step = program.step(name)
    assert not hasattr(step, "least")  # no float step
    return step.params  # type: ignore[union-attr]


def check(of: QatModel, function: Function, sources: int = 1) -> None:
    """Compare the last output with a function of the ones before it, under both profiles."""
    rng = np.random.default_rng(4)
    for profile in ("exact", "integer"):
        shape = of.graph.nodes[0].config["batch_input_shape"][1:]  # type: ignore[union-attr]
        result = qmath.run(of, rng.uniform(-1.1, 1.6, (20, *shape)), profile=profile)
        assert not result.program.float_layers
        *inputs, output = result.program.outputs
        real = function(*(dequantized(result.program, result.integers, name) for name in inputs))
        assert len(inputs) == sources
        to = params(result.program, output)
        expected = np.floor(real / to.scale + 0.5) + to.zero_point
        expected = np.clip(expected, to.low, to.high)
        found = result.integers[output]
        error = 1e-4
        if profile == "integer":  # which bounds what its multipliers lack
            error += max((c[0].error for c in constants(result.program).values()), default=0.0)
        ties = np.abs(real / to.scale % 1 - 0.5) < error
        np.testing.assert_array_equal(found[~ties], expected[~ties])
        assert np.unique(found).size > 3


@pytest.mark.parametrize("bits", [8, 3, 16])
@pytest.mark.parametrize("name", JOINS)
def test_a_layer_of_several_inputs(name: str, bits: int) -> None:
    class_name, shapes, function = JOINS[name]

    def of_reals(*arrays: Array) -> Array:
        rank = max(x.ndim for x in arrays)
        return function(*(x.reshape(len(x), *(1,) * (rank - x.ndim), *x.shape[1:]) for x in arrays))

    check(joined(class_name, shapes, bits), of_reals, len(shapes))


@pytest.mark.parametrize("is_rounded", [True, False])
@pytest.mark.parametrize("name", MOVES)
def test_a_move(name: str, is_rounded: bool) -> None:
    class_name, config, shape, function = MOVES[name]
    net = Network(*shape, bits=6)
    start = net.nodes[-1].name
    if is_rounded:
        net.add(class_name, start, **config, ends=(-1.0, 1.5))
        check(net.model(start, net.nodes[-1].name), function)
        return
    net.add("Dense", start, kernel=(shape[-1], 3))
    dense, weight = net.nodes[-1].name, net.tensors[-2]
    net.add(class_name, dense, **config, ends=(-2.0, 2.5))
    bias = np.asarray(net.tensors[-2].values)
    kernel = weight.quantize().dequantize().astype(np.float64)
    check(net.model(start, net.nodes[-1].name), lambda x: function(x @ kernel + bias))


@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_of_integers(name: str, bits: int) -> None:
    class_name, config, function = ACTIVATIONS[name]
    net = Network(40, bits=bits)
    start = net.nodes[-1].name
    net.add(class_name, start, **config, ends=(-0.9, 2.1))
    check(net.model(start, net.nodes[-1].name), function)


@pytest.mark.parametrize("is_rounded", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 2), (1, 1, 2), (1, 3, 1), (1, 1, 1)])
def test_slopes_for_all_that_they_share(shape: tuple[int, ...], is_rounded: bool) -> None:
    net = Network(4, 3, 2)
    start = net.nodes[-1].name
    slopes = net.rng.uniform(-0.4, 0.9, shape).astype(np.float32)
    kernel, bias = np.eye(2), np.zeros(2)
    if not is_rounded:
        net.add("Dense", start, kernel=(2, 2))
        bias = np.asarray(net.tensors[-1].values)
        kernel = net.tensors[-2].quantize().dequantize().astype(np.float64)
    name = net.add("PReLU", ends=(-0.7, 1.4))
    net.tensors.append(QatTensor(f"{name}/alpha", "float", slopes))

    def function(x: Array) -> Array:
        y = x @ kernel + bias
        return np.where(y > 0, y, slopes.astype(np.float64) * y)

    check(net.model(start, name), function)


def test_slopes_of_another_shape_are_refused() -> None:
    net = Network(4, 3, 2)
    name = net.add("PReLU", ends=(-0.7, 1.4))
    for shape in ((1, 2), (4, 3, 3), (2, 1, 2)):
        tensors = [*net.tensors, QatTensor(f"{name}/alpha", "float", np.zeros(shape, np.float32))]
        graph = net.model().graph
        of = QatModel({t.name: t for t in tensors}, graph, source="net.h5")
        with pytest.raises(qmath.QmathError, match="this PReLU takes what slopes of shape"):
            program_of(of)


def test_slopes_of_parts_that_are_joined() -> None:
    net = Network(4, 3, 2)
    start = net.nodes[-1].name
    slopes = net.rng.uniform(-0.4, 0.9, (4, 3, 2)).astype(np.float32)
    name = net.add("PReLU", start)
    net.tensors.append(QatTensor(f"{name}/alpha", "float", slopes))
    net.add("Concatenate", name, start, axis=-1, ends=(-0.7, 1.4))
    check(
        net.model(start, net.nodes[-1].name),
        lambda x: np.concatenate([np.where(x > 0, x, slopes.astype(np.float64) * x), x], -1),
    )


def test_slopes_of_channels_are_joined_along_rows() -> None:
    net = Network(4, 3, 2)
    start = net.nodes[-1].name
    slopes = net.rng.uniform(-0.4, 0.9, (2, 2)).astype(np.float32)
    names = [net.add("PReLU", start) for _ in slopes]
    for name, alpha in zip(names, slopes, strict=True):
        net.tensors.append(QatTensor(f"{name}/alpha", "float", alpha[None, None]))
    net.add("Concatenate", *names, axis=1, ends=(-0.7, 1.4))
    check(
        net.model(start, net.nodes[-1].name),
        lambda x: np.concatenate([np.where(x > 0, x, a.astype(np.float64) * x) for a in slopes], 1),
    )


def test_activated_sums_are_joined_with_what_is_computed_in_float() -> None:
    net = Network(4, 3, 2)
    start = net.nodes[-1].name
    twice = net.add("LeakyReLU", net.add("LeakyReLU", start, alpha=0.5), alpha=0.5)
    names = [twice, net.add("ReLU", start, max_value=0.9), net.add("LeakyReLU", start, alpha=0.25)]
    joined = net.add("Concatenate", *names)
    result = qmath.run(net.model(start, joined), np.linspace(-1, 1.5, 48).reshape(2, 4, 3, 2))
    x, found = result.outputs.values()
    parts = [np.where(x > 0, x, 0.25 * x), np.clip(x, 0, 0.9), np.where(x > 0, x, 0.25 * x)]
    np.testing.assert_allclose(found, np.concatenate(parts, -1), rtol=1e-6)


@pytest.mark.parametrize("class_name", ["SeparableConv2D", "Multiply"])
def test_sums_that_leave_no_room_for_a_multiplier_are_computed_in_float(class_name: str) -> None:
    net = Network(6, 5, 4, bits=16, weight_bits=16)
    if class_name == "Multiply":
        name = net.add(class_name, *[net.nodes[-1].name] * 4, ends=(-1.0, 5.0))
    else:
        name = net.add(class_name, kernel=(2, 1, 4, 2), pointwise=3, ends=(-8.0, 9.0))
    x = np.random.default_rng(0).uniform(-1, 1.5, (4, 6, 5, 4))
    exact, integer = (qmath.run(net.model(), x, profile=name) for name in ("exact", "integer"))
    assert "fewer bits: its sums take " in integer.program.float_layers[name]
    np.testing.assert_array_equal(
        integer.integers[f"{name}/output"], exact.integers[f"{name}/output"]
    )
    if class_name == "Multiply":
        np.testing.assert_allclose(integer.outputs[f"{name}/output"], x**4, atol=1e-3)


@pytest.mark.parametrize(("count", "bits", "left"), [(2, 16, None), (3, 15, 15), (3, 16, 12)])
def test_sums_that_leave_few_bits_for_a_multiplier_are_noted(
    count: int, bits: int, left: int | None
) -> None:
    net = Network(6, 5, 4, bits=bits)
    name = net.add("Multiply", *[net.nodes[-1].name] * count, ends=(-1.0, 5.0))
    program = program_of(net.model())
    step = program.step(f"{name}/output")
    assert isinstance(step, Requantize)
    (multiplier,) = constants(program)[step.name][0].multipliers
    notes = [note for note in program.notes if note.startswith(f"{step.name}: its sums take")]
    advice = [item for item in inspect(net.model()).warnings if item.kind == "wide-sums"]
    if left is None:
        assert (notes, advice) == ([], [])
        assert int(abs(multiplier).max()).bit_length() > 20
        return
    assert int(abs(multiplier).max()).bit_length() == left
    (note,), (item,) = notes, advice
    assert f"which leaves {left} of int64, and not 31, for the multipliers" in note
    assert (item.where, item.remedy) == (
        step.name, "give what it multiplies fewer bits, or quantize in between"
    )  # fmt: skip


@pytest.mark.parametrize("axis", [1, -2, [2], -1])
def test_a_softmax_over_any_axis(axis: Any) -> None:
    net = Network(4, 3, 2)
    start = net.nodes[-1].name
    of = net.add("Softmax", start, axis=axis)
    result = qmath.run(net.model(start, of), np.random.default_rng(0).uniform(-1, 1, (5, 4, 3, 2)))
    x, found = result.outputs.values()
    at = axis[0] if isinstance(axis, list) else axis
    np.testing.assert_allclose(found.sum(at), 1, rtol=1e-6)
    e = np.exp(x)
    np.testing.assert_allclose(found, e / e.sum(at, keepdims=True), rtol=1e-6)


def sums_of_two(net: Network, is_rounded: bool) -> tuple[str, np.ndarray, np.ndarray]:
    """Return the start of a network of two channels, and what a product makes of it, if any."""
    start = net.nodes[-1].name
    if is_rounded:
        return start, np.eye(2), np.zeros(2)
    net.add("Dense", start, kernel=(2, 2))
    kernel = net.tensors[-2].quantize().dequantize().astype(np.float64)
    return start, kernel, np.asarray(net.tensors[-1].values)


@pytest.mark.parametrize("is_rounded", [True, False])
@pytest.mark.parametrize("name", RESCALED)
def test_constants_of_channels_and_of_elements(name: str, is_rounded: bool) -> None:
    class_name, config, function = RESCALED[name]
    net = Network(3, 2, 2)
    start, kernel, bias = sums_of_two(net, is_rounded)
    name = net.add(class_name, **config, ends=(-1.9, 2.3))
    check(net.model(start, name), lambda x: function(x @ kernel + bias))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"axis": -1}, "normalization2/mean is missing"),
        ({"axis": -1, "mean": [1.0, 2.0, 3.0], "variance": 1.0}, "it has the shape"),
    ],
)
def test_statistics_that_do_not_fit(config: dict[str, Any], words: str) -> None:
    net = Network(3, 2)
    net.add("Normalization", **config, ends=(-1.0, 1.0))
    with pytest.raises(qmath.QmathError, match=words):
        program_of(net.model())


def test_statistics_that_were_learnt() -> None:
    net = Network(3, 2)
    start = net.nodes[-1].name
    name = net.add("Normalization", axis=-1, ends=(-1.9, 2.3))
    for key, values in (("mean", [0.5, 0.25]), ("variance", [4.0, 0.25])):
        net.tensors.append(QatTensor(f"{name}/{key}", "float", np.float32(values)))
    check(net.model(start, name), lambda x: (x - [0.5, 0.25]) / [2.0, 0.5])


def test_a_normalization_of_floats_is_keras_s() -> None:
    net = Network(4, 2)
    image = net.nodes[0].name
    name = net.add("Normalization", image, axis=-1, mean=[0.1, 0.7], variance=[0.3, 1.7])
    x = np.random.default_rng(1).normal(size=(9, 4, 2)).astype(np.float32)
    (found,) = qmath.run(net.model(name), x).outputs.values()
    deviation = np.sqrt(np.float32([0.3, 1.7]))
    np.testing.assert_array_equal(found, (x - np.float32([0.1, 0.7])) / deviation)


@pytest.mark.parametrize("is_same", [True, False])
@pytest.mark.parametrize(
    ("size", "strides"), [((2, 3, 2), (1, 2, 2)), ((1, 2, 3), (2, 1, 1)), ((2, 2, 2), (2, 2, 2))]
)
@pytest.mark.parametrize(
    ("class_name", "reduce"), [("MaxPooling3D", np.nanmax), ("AveragePooling3D", np.nanmean)]
)
def test_a_pool_of_three_axes(
    class_name: str, reduce: Function, size: Any, strides: Any, is_same: bool
) -> None:
    net = Network(4, 5, 6, 2, bits=7)
    start = net.nodes[-1].name
    config = {"pool_size": size, "strides": strides, "padding": "same" if is_same else "valid"}
    name = net.add(class_name, start, **config, ends=(-0.9, 1.4))
    function = pooled(reduce, size, strides, is_same)
    check(net.model(start, name), function)
    floats = net.add(class_name, net.nodes[0].name, **config)
    x = np.random.default_rng(2).normal(size=(2, 4, 5, 6, 2)).astype(np.float32)
    (found,) = qmath.run(net.model(floats), x).outputs.values()
    np.testing.assert_allclose(found, function(x), rtol=1e-5, atol=1e-6)


VOLUMES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "strides": ((2, 3, 2, 2, 4), {"strides": (2, 1, 3)}),
    "same": ((3, 2, 3, 2, 3), {"strides": 2, "padding": "same"}),
    "dilation": ((2, 2, 1, 2, 4), {"dilation_rate": [3, 2, 1]}),
    "groups": ((2, 2, 2, 1, 4), {"groups": 2}),
}


def volumes_convolved(x: Array, kernel: Array, config: dict[str, Any]) -> Array:
    """Return a convolution of three axes, output by output."""
    steps, spread = (
        np.broadcast_to(config.get(key, 1), 3).tolist() for key in ("strides", "dilation_rate")
    )
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, spread, strict=False)]
    pads = ops.same_pads(x.shape[1:4], spans, steps) if "padding" in config else ((0, 0),) * 3
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    counts = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:], spans, steps, strict=False)]
    out = np.empty((len(x), *counts, kernel.shape[-1]))
    groups = x.shape[-1] // kernel.shape[-2]
    for *at, channel in np.ndindex(*out.shape[1:]):
        first = channel * groups // kernel.shape[-1] * kernel.shape[-2]
        window = [
            slice(i * s, i * s + k, d) for i, s, k, d in zip(at, steps, spans, spread, strict=True)
        ]
        part = x[(slice(None), *window, slice(first, first + kernel.shape[-2]))]
        out[(slice(None), *at, channel)] = np.tensordot(part, kernel[..., channel], 4)
    return out


@pytest.mark.parametrize("per_axis", [True, False])
@pytest.mark.parametrize("name", VOLUMES)
def test_a_convolution_of_three_axes(name: str, per_axis: bool) -> None:
    shape, config = VOLUMES[name]
    net = Network(5, 4, 6, 2, bits=6)
    start = net.nodes[-1].name
    last = net.add("Conv3D", start, kernel=shape, per_axis=per_axis, **config, ends=(-7.0, 8.0))
    weight, bias = net.tensors[-3:-1]
    kernel = weight.quantize().dequantize().astype(np.float64)
    check(
        net.model(start, last),
        lambda x: volumes_convolved(x, kernel, config) + np.asarray(bias.values),
    )


TRANSPOSED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "strides": ((3, 2, 4, 3), {"strides": 2}),
    "output padding": ((2, 3, 2, 3), {"strides": 3, "output_padding": [1, 0]}),
    "dilation": ((3, 2, 2, 3), {"dilation_rate": [2, 3]}),
}


def scattered(x: Array, kernel: Array, size: tuple[int, ...], config: dict[str, Any]) -> Array:
    """Return a transposed convolution, input by input."""
    step, spread = (config.get(key, 1) for key in ("strides", "dilation_rate"))
    out = np.zeros((len(x), *size))
    rows, columns = np.broadcast_to(spread, 2).tolist()
    for i, j, y, z in np.ndindex(*kernel.shape[:2], *x.shape[1:3]):
        out[:, y * step + i * rows, z * step + j * columns] += x[:, y, z] @ kernel[i, j].T
    return out


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_kernel_with_a_scale_for_each_input_channel(name: str, bits: int) -> None:
    shape, config = TRANSPOSED[name]
    net = Network(4, 3, 3, bits=8, weight_bits=bits)
    start = net.nodes[-1].name
    last = net.add("Conv2DTranspose", start, kernel=shape, **config, ends=(-7.0, 8.0))
    weight, bias = net.tensors[-3:-1]
    assert np.unique(weight.quantize().scale).size == 3
    kernel = weight.quantize().dequantize().astype(np.float64)
    of = net.model(start, last)
    size = program_of(of).step(f"{last}/output").shape
    check(of, lambda x: scattered(x, kernel, size, config) + np.asarray(bias.values))


def test_sums_of_channels_that_memory_would_not_hold_stay_float(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Network(4, 3, 3)
    last = net.add("Conv2DTranspose", kernel=(1, 1, 2, 3), ends=(-7.0, 8.0))
    monkeypatch.setattr(rules, "_MOST_PARTS", 4 * 3 * 2 * 3)
    assert not program_of(net.model()).float_layers
    monkeypatch.setattr(rules, "_MOST_PARTS", 4 * 3 * 2 * 3 - 1)
    (remedy,) = program_of(net.model()).float_layers.values()
    assert remedy.startswith("train it with per_axis=False: its kernel has 3 scales along the sum")
    assert {*program_of(net.model()).float_layers} == {last}


def resized(x: Array, factors: tuple[int, int]) -> Array:
    """Return images upsampled bilinearly, the ends of each axis being continued."""
    for axis, factor in enumerate(factors, 1):
        length = x.shape[axis]
        at = (np.arange(length * factor) + 0.5) / factor - 0.5
        x = np.apply_along_axis(lambda v, at=at: np.interp(at, np.arange(len(v)), v), axis, x)
    return x


@pytest.mark.parametrize("is_rounded", [True, False])
@pytest.mark.parametrize("factors", [(2, 2), (3, 1), (1, 4), (5, 6)])
def test_a_bilinear_upsampling(factors: tuple[int, int], is_rounded: bool) -> None:
    net = Network(4, 3, 2)
    start, kernel, bias = sums_of_two(net, is_rounded)
    config = {"size": factors, "interpolation": "bilinear"}
    last = net.add("UpSampling2D", **config, ends=(-2.3, 2.9))
    check(net.model(start, last), lambda x: resized(x @ kernel + bias, factors))
    floats = net.add("UpSampling2D", net.nodes[0].name, **config)
    x = np.random.default_rng(2).normal(size=(2, 4, 3, 2)).astype(np.float32)
    (found,) = qmath.run(net.model(floats), x).outputs.values()
    np.testing.assert_allclose(found, resized(x, factors), rtol=1e-5, atol=1e-6)


def test_a_bilinear_upsampling_and_an_average_of_it() -> None:
    net = Network(4, 6, 2)
    start = net.nodes[-1].name
    net.add("UpSampling2D", size=3, interpolation="bilinear")
    last = net.add("AveragePooling2D", pool_size=2, ends=(-0.9, 1.3))
    check(
        net.model(start, last),
        lambda x: resized(x, (3, 3)).reshape(-1, 6, 2, 9, 2, 2).mean((2, 4)),
    )


def transposed(class_name: str, per_axis: bool) -> QatModel:
    """Return a transposed convolution of a signal, or of an image that has it as its one row."""
    row = () if "1D" in class_name else (1,)
    net = Network(*row, 9, 6, is_symmetric=True)
    start = net.nodes[-1].name
    settings = {"strides": (*row, 2), "padding": "same", "activation": "relu"}
    net.add(class_name, kernel=(*row, 3, 5, 6), per_axis=per_axis, **settings,
            ends=(-4.0, 3.96875))  # fmt: skip
    more = {"strides": (*row, 3), "output_padding": (*(0,) * len(row), 1)}
    last = net.add(class_name, kernel=(*row, 2, 4, 5), per_axis=per_axis, **more,
                   ends=(-4.0, 3.96875))  # fmt: skip
    return net.model(start, last)


@needs_compiler
@pytest.mark.parametrize("per_axis", [True, False])
def test_a_signal_is_transposed_as_the_row_of_an_image(per_axis: bool, tmp_path: Path) -> None:
    signal, image = (transposed(f"Conv{n}DTranspose", per_axis) for n in (1, 2))
    x = np.random.default_rng(0).uniform(-1, 1, (5, 9, 6)).astype(np.float32)
    found = qmath.run(signal, x).integers
    expected = qmath.run(image, x[:, np.newaxis]).integers
    assert [array.shape for array in found.values()][1:] == [(5, 18, 5), (5, 54, 4)]
    for mine, other in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(mine, other[:, 0])
    assert np.unique(mine).size > 100
    in_c = qmath.run(signal, x, engine="c")
    assert in_c.engine == "c"
    for name, array in in_c.integers.items():
        np.testing.assert_array_equal(array, found[name])
    for format in ("npz", "onnx", *(() if per_axis else ("tflite",))):
        path = tmp_path / f"model.{format}"
        qmath.export(signal, path)
        assert verify(signal, path).ok


def test_a_runtime_transposes_signals(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    of, path = transposed("Conv1DTranspose", False), tmp_path / "model.onnx"
    qmath.export(of, path)
    x = np.random.default_rng(0).uniform(-1, 1, (5, 9, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path))
    made = session.run(None, {session.get_inputs()[0].name: x})[-1]
    (*_, expected) = qmath.run(of, x, profile="exact").outputs.values()
    assert np.abs(made - expected).max() < 1.5 / 32


@pytest.mark.parametrize(
    ("class_name", "config", "function"),
    [("CenterCrop", {"height": 3, "width": 2}, lambda x: x[:, 1:4, 1:3]),
     ("Resizing", {"height": 10, "width": 4, "interpolation": "nearest"},
      lambda x: x.repeat(2, 1)),
     ("Resizing", {"height": 5, "width": 4}, lambda x: x),
     ("SyncBatchNormalization", {"epsilon": 0.25}, lambda x: x / np.sqrt(1.25))],
)  # fmt: skip
def test_what_changes_images_by_whole_pixels(
    class_name: str, config: dict[str, Any], function: Function
) -> None:
    net = Network(5, 4, 2)
    start = net.nodes[-1].name
    check(net.model(start, net.add(class_name, start, **config, ends=(-1.0, 1.2))), function)


@pytest.mark.parametrize("per_axis", [True, False])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_a_separable_convolution_rounds_nothing_between(multiplier: int, per_axis: bool) -> None:
    net = Network(6, 5, 2)
    start = net.nodes[-1].name
    last = net.add("SeparableConv2D", start, kernel=(3, 2, 2, multiplier), pointwise=4,
                   per_axis=per_axis, strides=(2, 2), ends=(-9.0, 9.5))  # fmt: skip
    depthwise, pointwise = (
        tensor.quantize().dequantize().astype(np.float64)
        for tensor in net.tensors[-4:] if tensor.role == "weight"
    )  # fmt: skip
    bias = np.asarray(net.tensors[-2].values)

    def function(x: Array) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 2), (1, 2))[:, ::2, ::2]
        sums = np.einsum("nhwcij,ijcm->nhwcm", windows, depthwise)
        return sums.reshape(*sums.shape[:3], -1) @ pointwise[0, 0] + bias

    of = net.model(start, last)
    check(of, function)
    (step,) = (s for s in program_of(of).steps if isinstance(s, Requantize))
    assert len(step.value.terms) == (multiplier if per_axis else 1)
    with pytest.raises(qmath.QmathError, match=r"a (product|sum) "):
        qmath.run(of, np.zeros((1, 6, 5, 2)), profile="tflite")


@pytest.mark.parametrize(
    ("class_name", "config"),
    [("UpSampling2D", {"size": 2, "interpolation": "bilinear"}),
     ("Conv3D", {"kernel": (1, 1, 1, 2, 2)})],
)  # fmt: skip
def test_tflite_s_arithmetic_has_no_form_of_it(class_name: str, config: dict[str, Any]) -> None:
    shape = (2, 4, 3, 2) if class_name == "Conv3D" else (4, 3, 2)
    net = Network(*shape)
    net.add(class_name, **config, ends=(-1.0, 1.0))
    with pytest.raises(qmath.QmathError, match=r"the operation (bilinear|conv3d)"):
        qmath.run(net.model(), np.zeros((1, *shape)), profile="tflite")


FLOAT_MOVES: dict[str, tuple[str, dict[str, Any], Function]] = {
    "join": ("Concatenate", {"axis": 1}, lambda x: np.concatenate([x, x], 1)),
    "reshape": ("Reshape", {"target_shape": [6, 4]}, lambda x: x.reshape(len(x), 6, 4)),
    "pad": ("ZeroPadding2D", {"padding": 1}, lambda x: np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))),
    "crop": ("Cropping2D", {"cropping": [[1, 0], [0, 1]]}, lambda x: x[:, 1:, :-1]),
    "repeat": ("UpSampling2D", {"size": 2}, lambda x: x.repeat(2, 1).repeat(2, 2)),
    "maximum": ("GlobalMaxPooling2D", {}, lambda x: x.max((1, 2))),
}


@pytest.mark.parametrize("name", FLOAT_MOVES)
def test_what_moves_floats_is_rounded_before(name: str) -> None:
    class_name, config, function = FLOAT_MOVES[name]
    net = Network(4, 3, 2)
    image = net.nodes[0].name
    inputs = (image,) * (2 if class_name == "Concatenate" else 1)
    last = net.add(class_name, *inputs, **config, ends=(-0.9, 1.1))
    of = net.model(last)
    program = program_of(of)
    assert not program.float_layers
    assert not any(isinstance(step, FloatStep) for step in program.steps)
    x = np.random.default_rng(6).uniform(-1.2, 1.3, (30, 4, 3, 2)).astype(np.float32)
    for profile in ("exact", "integer"):
        found = qmath.run(of, x, profile=profile).integers[f"{last}/output"]
        expected = qmath.quantize(function(x), -0.9, 1.1, 8, signed=False).values
        np.testing.assert_array_equal(found, expected)


def test_a_maximum_of_sums_is_rounded_before() -> None:
    net = Network(4, 3, 2)
    start = net.nodes[-1].name
    net.add("Dense", start, kernel=(2, 2))
    bias = np.asarray(net.tensors[-1].values)
    kernel = net.tensors[-2].quantize().dequantize().astype(np.float64)
    last = net.add("MaxPooling2D", pool_size=2, ends=(-1.9, 2.3))
    check(net.model(start, last), lambda x: pool_of(x @ kernel + bias))


def pool_of(x: Array) -> Array:
    return np.maximum.reduce([x[:, i : i + 3 : 2, j : j + 1] for i in (0, 1) for j in (0, 1)])


def test_what_follows_an_activation_is_not_rounded_before_it() -> None:
    net = Network(4, 3, 2)
    start = net.nodes[-1].name
    tanh = net.add("Activation", start, activation="tanh")
    last = net.add("Concatenate", tanh, start, axis=1, ends=(-0.9, 1.1))
    check(net.model(start, last), lambda x: np.concatenate([np.tanh(x), x], 1))


def test_inputs_that_do_not_broadcast_are_named() -> None:
    for class_name in ("Add", "Multiply", "Maximum", "Average"):
        net = Network(4, 2)
        start = net.nodes[-1].name
        short = net.add("Cropping1D", cropping=1)
        net.add(class_name, start, short)
        with pytest.raises(qmath.QmathError, match=f"this {class_name} takes inputs that broad"):
            qmath.run(net.model(), np.zeros((1, 4, 2)))


@pytest.mark.parametrize(
    ("class_name", "needed"),
    [
        ("Multiply", "inputs, the outputs of dense2, relu3"),
        ("Maximum", "input, the output of relu3"),
    ],
)
def test_what_is_not_rounded_stays_float_where_it_has_to(class_name: str, needed: str) -> None:
    net = Network(4, 2)
    start = net.nodes[-1].name
    one = net.add("Dense", kernel=(2, 2))
    relu = net.add("ReLU", one)
    last = net.add(class_name, start, one, relu, ends=(-1.0, 1.0))
    floats = program_of(net.model()).float_layers
    assert floats == {last: f"quantize its {needed}"}
    x = np.random.default_rng(0).uniform(-1, 1, (5, 4, 2)).astype(np.float32)
    (found,) = qmath.run(net.model(), x).outputs.values()
    assert np.unique(found).size > 3


def test_a_product_needs_as_many_bits_as_its_integers_have() -> None:
    of = joined("Multiply", ((5,), (5,)), 16)
    program = program_of(of)
    step = program.steps[-1]
    assert isinstance(step, Requantize)
    (bits,) = constants(program)[step.name][0].accumulator_bits
    low, high = [
        end for source in step.value.terms[0].sources for end in [params(program, source).limits]
    ]
    corners = np.multiply.outer(low, high)
    assert int(bits) == max(
        int(corners.max()).bit_length(), (-int(corners.min()) - 1).bit_length()
    ) + 1  # fmt: skip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"output_padding": 2, "strides": 2, "padding": "same"}, "its output_padding is"),
        ({"output_padding": 3, "strides": 3}, "its output_padding is"),
    ],
)
def test_transposed_convolutions_that_tensorflow_refuses(
    config: dict[str, Any], words: str
) -> None:
    net = Network(5, 4, 3)
    net.add("Conv2DTranspose", kernel=(3, 3, 2, 3), per_axis=False, **config, ends=(-1.0, 1.0))
    with pytest.raises(qmath.QmathError, match=words):
        program_of(net.model())


def test_axes_around_a_separable_convolution() -> None:
    net = Network(9, 2)
    start = net.nodes[-1].name
    net.add("SeparableConvExpand", start)
    net.add("DepthwiseConv2D", kernel=(1, 3, 2, 1), padding="same")
    net.add("SeparableConvSqueeze", ends=(-3.0, 3.0))
    (kernel,) = (t.quantize().dequantize().astype(np.float64) for t in net.tensors if t.spec.op
                 and t.role == "weight")  # fmt: skip
    bias = np.asarray(next(t.values for t in net.tensors if t.name.endswith("bias")))

    def function(x: Array) -> Array:
        padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
        return sum(padded[:, i : i + 9] * kernel[0, i, :, 0] for i in range(3)) + bias

    check(net.model(start, net.nodes[-1].name), function)
    net.add("SeparableConvSqueeze")
    with pytest.raises(qmath.QmathError, match="takes a first axis of length 1"):
        program_of(net.model())
