"""Layers with their channels first: the integers of the same layers with channels last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath import QatModel, QatTensor
from qmath.integer.api import program_of
from qmath.integer.program import MoveStep, Program, Requantize
from qmath.verification.check import verify
from tests.exports.compiling import self_check
from tests.exports.networks import Network

FIRST = "channels_first"


class Arranged(Network):
    """A network of which all layers, and the input, have their channels first or last."""

    def __init__(self, *shape: int, is_first: bool, **widths: int) -> None:
        self.is_first = is_first
        super().__init__(*(shape[-1:] + shape[:-1] if is_first else shape), **widths)

    def add(self, class_name: str, *inputs: str, **settings: Any) -> str:
        if self.is_first:
            settings = {"data_format": FIRST, **settings}
        return super().add(class_name, *inputs, **settings)

    def normalized(self, rank: int, channels: int, **settings: Any) -> str:
        axis = 1 if self.is_first else rank
        name = self.add("BatchNormalization", axis=[axis], epsilon=1e-3, **settings)
        for key, low in (("gamma", -1.0), ("beta", -0.5), ("moving_mean", -0.5),
                         ("moving_variance", 0.5)):  # fmt: skip
            values = self.rng.uniform(low, 1.5, channels)
            self.tensors.append(QatTensor(f"{name}/{key}", "float", np.float32(values)))
        return name


def images(is_first: bool) -> QatModel:
    net = Arranged(7, 6, 3, is_first=is_first)
    start = net.add("ZeroPadding2D", padding=((1, 0), (2, 1)))
    net.add("Conv2D", kernel=(3, 2, 3, 4), dilation_rate=(2, 1), activation="relu",
            ends=(0.0, 6.0))  # fmt: skip
    net.add("MaxPooling2D", pool_size=(2, 2), strides=(1, 1), padding="same")
    net.add("DepthwiseConv2D", kernel=(3, 3, 4, 2), strides=(2, 2), padding="same")
    net.normalized(3, 8)
    net.add("ReLU", max_value=6.0)
    one = net.add("SpatialDropout2D", rate=0.5, ends=(0.0, 6.0))
    two = net.add("Conv2D", kernel=(1, 1, 8, 8))
    three = net.add("Conv2D", one, kernel=(3, 3, 8, 8), padding="same")
    total = net.add("Add", two, three)
    net.add("Activation", activation="relu6", ends=(0.0, 5.0))
    joined = net.add("Concatenate", two, total, axis=1 if is_first else -1, ends=(-5.0, 6.0))
    outputs = [joined, net.add("GlobalMaxPooling2D")]
    outputs.append(net.add("GlobalAveragePooling2D", joined, keepdims=True, ends=(-1.0, 2.0)))
    net.add("UpSampling2D", joined, size=(1, 2), interpolation="nearest")
    net.add("Cropping2D", cropping=((1, 0), (0, 1)))
    net.add("AveragePooling2D", pool_size=(2, 2), strides=(2, 1), padding="same", ends=(-1.0, 4.0))
    net.add("Conv2DTranspose", kernel=(3, 3, 5, 16), strides=(2, 2), padding="same",
            per_axis=False, ends=(-9.0, 9.0))  # fmt: skip
    net.normalized(3, 5, ends=(-3.0, 3.0))
    pooled = net.add("MaxPooling2D", net.add("Conv2D", start, kernel=(1, 1, 3, 2)),
                     pool_size=(2, 2), strides=(2, 2), ends=(-3.0, 3.0))  # fmt: skip
    outputs += [net.nodes[-3].name, pooled]
    net.add("Flatten")
    outputs.append(net.add("Dense", kernel=(32, 3), per_axis=False, ends=(-4.0, 4.0)))
    return net.model(*outputs)


def signals(is_first: bool) -> QatModel:
    net = Arranged(12, 3, is_first=is_first)
    net.add("Conv1D", kernel=(3, 3, 4), padding="causal", strides=(2,), activation="relu",
            ends=(0.0, 5.0))  # fmt: skip
    net.add("MaxPooling1D", pool_size=(2,), padding="same", strides=(1,))
    net.add("DepthwiseConv1D", kernel=(3, 4, 1), padding="same", per_axis=False, ends=(-5.0, 5.0))
    net.add("AveragePooling1D", pool_size=(3,), strides=(1,), padding="same", ends=(0.0, 4.0))
    last = net.add("GlobalAveragePooling1D", ends=(-2.0, 2.0))
    return net.model(net.nodes[-2].name, last)


def volumes(is_first: bool) -> QatModel:
    net = Arranged(4, 3, 5, 2, is_first=is_first)
    start = net.nodes[-1].name
    net.add("ZeroPadding3D", padding=((1, 0), (0, 2), (1, 1)))
    net.add("UpSampling3D", size=(1, 2, 1))
    last = net.add("Cropping3D", cropping=((0, 1), (1, 0), (2, 0)))
    window = {"pool_size": (2, 2, 3), "strides": (1, 1, 2), "padding": "same"}
    outputs = [last, net.add("AveragePooling3D", start, **window, ends=(-0.83, 1.17))]
    outputs.append(net.add("MaxPooling3D", start, **window))
    outputs.append(net.add("GlobalAveragePooling3D", start, ends=(-0.47, 0.71)))
    return net.model(*outputs)


MODELS = {"images": images, "signals": signals, "volumes": volumes}


def turned(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


def constants_of(program: Program) -> int:
    values = [step.value for step in program.steps if isinstance(step, Requantize)]
    return sum(v.offset.size + sum(term.scale.size for term in v.terms) for v in values)


def data(of: QatModel, count: int = 3) -> np.ndarray:
    assert of.graph is not None
    shape = of.graph.nodes[0].config["batch_input_shape"][1:]
    return np.random.default_rng(4).uniform(-1.1, 1.6, (count, *shape)).astype(np.float32)


@pytest.mark.parametrize("profile", ["exact", "integer"])
@pytest.mark.parametrize("name", MODELS)
def test_integers_are_those_of_channels_last(name: str, profile: str) -> None:
    last, first = MODELS[name](False), MODELS[name](True)
    x = data(last)
    expected = qmath.run(last, x, profile=profile)
    found = qmath.run(first, turned(x), profile=profile)
    assert not expected.program.float_layers
    assert not found.program.float_layers
    for tensor, integers in expected.integers.items():
        if re.search(r"/(input)?\d$", tensor):  # which a pool has of its own
            continue
        moved = turned(integers) if integers.ndim > 2 else integers
        np.testing.assert_array_equal(found.integers[tensor], moved, tensor)
        assert integers.size < 50 or np.unique(integers).size > 3
    # No constant of a channel becomes one of single elements.
    assert constants_of(found.program) == constants_of(expected.program)


def test_a_batch_normalization_between_two_layers_moves_nothing() -> None:
    program = program_of(images(True))
    moves = [s.name for s in program.steps if isinstance(s, MoveStep) and s.name.endswith("/input")]
    assert len(moves) < sum("data_format" in n.config for n in images(True).graph.nodes)  # type: ignore[union-attr]
    assert not any("batchnormalization" in name for name in moves[:2])


@pytest.mark.parametrize("axis", [1, [2], -2, 3])
@pytest.mark.parametrize("is_rounded", [True, False])
def test_a_batch_normalization_of_any_axis(axis: Any, is_rounded: bool, tmp_path: Path) -> None:
    net = Network(4, 3, 2)
    net.add("Conv2D", kernel=(1, 1, 2, 2), ends=(-2.9, 3.1) if is_rounded else None)
    name = net.add("BatchNormalization", axis=axis, epsilon=1e-3, ends=(-2.7, 3.3))
    at = (axis[0] if isinstance(axis, list) else axis) % 4
    gamma = net.rng.uniform(-1, 2, (4, 3, 2)[at - 1]).astype(np.float32)
    net.tensors.append(QatTensor(f"{name}/gamma", "float", gamma))
    conv = "conv2d2/output" if is_rounded else "conv2d2"
    of = net.model(net.nodes[-2].name, name)
    result = qmath.run(of, data(of))
    program = result.program
    assert not program.float_layers
    params = program.quant_params[f"{name}/output"]
    x = result.outputs[conv]
    y = np.moveaxis(np.moveaxis(x, at, -1) * (gamma / np.sqrt(np.float32(1.001))), -1, at)
    expected = params.quantize(np.float32(y), "y") + params.zero_point
    difference = np.abs(result.integers[f"{name}/output"].astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.02
    onnxruntime = pytest.importorskip("onnxruntime")
    qmath.export(of, tmp_path / "out.onnx", fold=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"))
    made = session.run(None, {session.get_inputs()[0].name: data(of)})[1]
    assert np.abs(made - result.outputs[f"{name}/output"]).max() < 1.5 * params.scale


def test_what_is_left_float_is_named_by_its_layer() -> None:
    net = Arranged(5, 4, 2, is_first=True)
    net.add("Conv2D", kernel=(3, 3, 2, 4), is_float=True, ends=(-9.0, 9.0))
    net.add("Conv2D", kernel=(1, 1, 4, 3), ends=(-9.0, 9.0))
    assert program_of(net.model()).float_layers == {"conv2d2": "quantize its weights"}
    last = Arranged(5, 4, 2, is_first=False)
    last.add("Conv2D", kernel=(3, 3, 2, 4), is_float=True, ends=(-9.0, 9.0))
    last.add("Conv2D", kernel=(1, 1, 4, 3), ends=(-9.0, 9.0))
    x = data(last.model())
    (found,) = qmath.run(net.model(), turned(x)).outputs.values()
    (expected,) = qmath.run(last.model(), x).outputs.values()
    np.testing.assert_array_equal(found, turned(expected))


@pytest.mark.parametrize("name", MODELS)
def test_exports_hold_it(name: str, tmp_path: Path) -> None:
    of = MODELS[name](True)
    for format in ("npz", "mem", "c"):
        out = tmp_path / f"out.{format}"
        qmath.export(of, out, format=format, vectors=2)
        assert verify(of, out, format=format).ok
    assert self_check(tmp_path / "out.c")[:3] == "ok:"


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_network_has_the_same_axes(name: str, fold: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    x, made = data(MODELS[name](False)), []
    for is_first in (False, True):
        of, out = MODELS[name](is_first), tmp_path / f"{is_first}.onnx"
        qmath.export(of, out, fold=fold)
        assert verify(of, out).ok
        onnxruntime = pytest.importorskip("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(out), options)
        given = {session.get_inputs()[0].name: turned(x) if is_first else x}
        made.append(session.run(None, given))
    for last, first in zip(*made, strict=True):
        np.testing.assert_array_equal(first, turned(last) if last.ndim > 2 else last)
