"""Kernels that are wrong on purpose are told: which mistake makes all of their integers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath.integer import ops
from qmath.integer.comparison import LayerDifference
from qmath.integer.judging.mistakes.rounding import is_same
from qmath.integer.lowering.geometry import reshape
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import (
    Activation,
    Linear,
    MoveStep,
    Program,
    QuantizeStep,
    QuantParams,
    Requantize,
    Term,
    UnroundedSum,
)
from tests.helpers import read_npz

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
SIZE, DEPTH, CHANNELS = 6, 3, 4
SCALES = np.array([2.0**-3, 0.0853, 0.0467, 2.0**-4])  # two of which make ties
OFFSETS = np.array([3.5, -2.3, 0.71, -1.0625])
IMAGES = np.random.RandomState(1).uniform(-2, 2, (8, SIZE, SIZE, DEPTH)).astype(np.float32)
X = QuantParams(2.0**-6, 100, 0, 255, 8, -100 / 64, 155 / 64)
Y = QuantParams(0.5, 90, 0, 255, 8, -45.0, 82.5)
PADS = ((1, 1), (1, 1))


def program(
    offset: bool = True, activation: Activation | None = None, params: QuantParams = Y
) -> Program:
    """Return a convolution of known scales."""
    weights = np.random.RandomState(2).randint(-7, 8, (3, 3, DEPTH, CHANNELS)).astype(np.int8)
    geometry = {"strides": (1, 1), "pads": PADS, "dilation": (1, 1)}
    linear = Linear(
        "conv2d", partial(ops.conv2d, **geometry), (SIZE, SIZE, CHANNELS), weights, "conv/kernel",
        attributes=geometry,
    )  # fmt: skip
    term = Term("x/output", (linear,), SCALES * params.scale, X)
    offsets = OFFSETS * params.scale if offset else np.zeros(())
    value = UnroundedSum((term,), offsets, linear.shape, activation)
    steps = (
        QuantizeStep("x/output", "x", X, (SIZE, SIZE, DEPTH)),
        Requantize("conv/output", value, params),
    )
    return Program({"x": (SIZE, SIZE, DEPTH)}, steps, ("conv/output",), {})


def judged(model: Program, unsigned: np.ndarray, name: str = "conv/output") -> LayerDifference:
    """Return what is said of integers of one layer."""
    found = qmath.diff(model, IMAGES, against={name: unsigned})
    return next(layer for layer in found.layers if layer.name == name)


def told(model: Program, relative: np.ndarray, name: str = "conv/output") -> tuple[str, bool]:
    layer = judged(model, np.asarray(relative + model.step(name).params.zero_point, np.int32), name)
    assert layer.explanation is not None
    assert layer.explanation.differences == layer.teacher_forced > 0
    return layer.explanation.name, layer.explanation.complete


class Kernel:
    """A plain convolution in int64, of which a test spoils one part."""

    def __init__(self, model: Program) -> None:
        step = model.step("conv/output")
        assert isinstance(step, Requantize)
        weights = step.value.terms[0].ops[0].weights
        assert weights is not None
        self.params, self.weights = step.params, weights.astype(np.int64)
        self.offset = OFFSETS if step.value.offset.any() else np.zeros(4)
        x = np.clip(np.floor(IMAGES / X.scale + 0.5), -100, 155)
        self.x = x.astype(np.int64)

    def sums(
        self, x: np.ndarray | None = None, border: int = 0, weights: np.ndarray | None = None
    ) -> np.ndarray:
        x = self.x if x is None else x
        w = self.weights if weights is None else weights
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=border)
        return sum(x[:, i : i + SIZE, j : j + SIZE] @ w[i, j] for i in range(3) for j in range(3))

    def y(self) -> np.ndarray:
        return self.sums() * SCALES + self.offset

    def clamped(self, y: np.ndarray) -> np.ndarray:
        return np.clip(y, *self.params.limits)

    def rounded(self, y: np.ndarray) -> np.ndarray:
        return self.clamped(np.floor(y + 0.5))


def test_the_kernel_is_right_until_it_is_spoilt() -> None:
    kernel = Kernel(program())
    right = np.asarray(kernel.rounded(kernel.y()) + Y.zero_point, np.uint8)
    layer = judged(program(), right)
    assert (layer.teacher_forced, layer.free_running, layer.explanation) == (0, 0, None)
    assert (right == 0).any()
    assert (right == 255).any()


ROUNDINGS = {
    "half-even": np.rint,
    "half-away": lambda y: np.trunc(y + np.copysign(0.5, y)),
    "truncation": np.trunc,
    "floor": np.floor,
    "ceiling": np.ceil,
    "half-down": lambda y: -np.floor(-y + 0.5),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_another_rounding(name: str) -> None:
    kernel = Kernel(program())
    assert told(program(), kernel.clamped(ROUNDINGS[name](kernel.y()))) == (name, True)


def test_a_rounding_after_the_zero_point() -> None:
    kernel, odd = Kernel(program()), replace(Y, zero_point=91)
    model = program(params=odd)
    relative = np.clip(np.rint(kernel.y() + 91) - 91, -91, 164)
    layer = judged(model, np.asarray(relative + 91, np.int32))
    assert layer.explanation is not None
    assert layer.explanation.complete
    assert "even" in layer.explanation.sentence
    assert "zero point 91" in layer.explanation.sentence


def test_double_rounding() -> None:
    model = program(offset=False)
    kernel = Kernel(model)
    shift = -np.frexp(SCALES)[1]
    multiplier = np.rint(SCALES * 2.0 ** (31 + shift)).astype(np.int64)
    high = (kernel.sums() * multiplier + (1 << 30)) >> 31
    lost = high & ((1 << shift) - 1)
    twice = (high >> shift) + (lost > ((1 << shift) - 1 >> 1) + (high < 0))
    assert told(model, kernel.clamped(twice)) == ("double rounding", True)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("bias missing", lambda k: k.rounded(k.sums() * SCALES)),
        ("bias subtracted", lambda k: k.rounded(k.sums() * SCALES - k.offset)),
        ("bias twice", lambda k: k.rounded(k.y() + k.offset)),
        (
            "bias before the multiply",
            lambda k: k.rounded((k.sums() + np.rint(k.offset / SCALES)) * SCALES),
        ),
        (
            "bias after rounding",
            lambda k: k.clamped(np.floor(k.sums() * SCALES + 0.5) + np.floor(k.offset + 0.5)),
        ),
    ],
)
def test_the_bias(name, spoil) -> None:
    assert told(program(), spoil(Kernel(program()))) == (name, True)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("clamp missing above", lambda y: np.maximum(y, -90)),
        ("clamp missing below", lambda y: np.minimum(y, 165)),
        ("clamp missing both", lambda y: y),
        ("clamp missing, wraps", lambda y: np.mod(y + 90, 256) - 90),
    ],
)
def test_a_clamp_is_missing(name, spoil) -> None:
    y = np.floor(Kernel(program()).y() + 0.5)
    assert told(program(), spoil(y)) == (name, True)


def test_the_activation_is_missing() -> None:
    model = program(activation=Activation(limit=20.0))
    kernel = Kernel(model)
    assert told(model, kernel.rounded(kernel.y())) == ("activation missing", True)


def test_the_clamp_of_the_storage() -> None:
    params = QuantParams(0.5, 5, 0, 15, 4, -2.5, 5.0)
    model = program(params=params)
    stored = np.clip(np.floor(Kernel(model).y() + 0.5), -5, 250)
    assert told(model, stored) == ("clamp of the storage", True)


@pytest.mark.parametrize("signed", [0, 128])
def test_a_zero_point_is_missing(signed: int) -> None:
    kernel = Kernel(program())
    moved = np.clip(kernel.rounded(kernel.y()) + signed - Y.zero_point, -90, 165)
    assert told(program(), moved) == ("zero point missing", True)
    sums = kernel.sums(kernel.x + X.zero_point - signed)
    assert told(program(), kernel.rounded(sums * SCALES + OFFSETS)) == ("zero point missing", True)


@pytest.mark.parametrize("signed", [0, 128])
def test_a_border_of_stored_zeros(signed: int) -> None:
    kernel = Kernel(program())
    sums = kernel.sums(border=signed - X.zero_point)
    layer = judged(program(), np.asarray(kernel.rounded(sums * SCALES + OFFSETS) + 90, np.uint8))
    assert layer.explanation is not None
    assert (layer.explanation.name, layer.explanation.complete) == ("padding", True)
    assert ("signed" if signed else "unsigned") in layer.explanation.sentence.split()[-2]


@pytest.mark.parametrize(
    ("name", "bits", "to"),
    [
        ("multiplier truncated", 16, np.floor),
        ("multiplier truncated", 8, np.floor),
        ("multiplier rounded", 7, np.rint),
    ],
)
def test_a_multiplier_of_few_bits(name: str, bits: int, to) -> None:
    kernel = Kernel(program())
    places = 2.0 ** (bits - np.frexp(SCALES)[1])
    few = kernel.rounded(kernel.sums() * (to(SCALES * places) / places) + kernel.offset)
    assert told(program(), few) == (name, True)


def test_the_multiplier_bits_of_the_profile() -> None:
    few = qmath.run(program(), IMAGES, profile="integer", multiplier_bits=8).integers
    layer = judged(program(), few["conv/output"])
    assert layer.explanation is not None
    assert layer.explanation.complete
    assert layer.explanation.name == "multiplier rounded"


@pytest.mark.parametrize("wraps", [True, False])
def test_a_narrow_accumulator(wraps: bool) -> None:
    kernel = Kernel(program())
    sums = kernel.sums()
    bits = int(np.abs(sums).max()).bit_length() - (not wraps)  # or the clamps hide it
    half = 1 << (bits - 1)
    narrow = (sums + half) % (2 * half) - half if wraps else np.clip(sums, -half, half - 1)
    found = told(program(), kernel.rounded(narrow * SCALES + kernel.offset))
    assert found == ("accumulator narrow", True)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("kernel rotated", lambda w: w[::-1, ::-1]),
        ("kernel transposed", lambda w: w.transpose(1, 0, 2, 3)),
    ],
)
def test_a_kernel_in_another_order(name, weights) -> None:
    kernel = Kernel(program())
    sums = kernel.sums(weights=weights(kernel.weights))
    assert told(program(), kernel.rounded(sums * SCALES + kernel.offset)) == (name, True)


def test_the_input_is_rounded_otherwise() -> None:
    model = program()
    x = np.clip(IMAGES.astype(np.float64) / X.scale, -100, 155)
    assert told(model, np.trunc(x), "x/output") == ("truncation", True)
    assert told(model, np.floor(x + 0.5) + 7, "x/output") == ("constant", True)


def test_channels_in_another_order() -> None:
    kernel = Kernel(program())
    right = kernel.rounded(kernel.y())
    layer = judged(program(), np.asarray(right[..., [2, 0, 1, 3]] + 90, np.uint8))
    assert layer.explanation is not None
    assert (layer.explanation.name, layer.explanation.complete) == ("channel order", True)
    assert "2, 0, 1, 3" in layer.explanation.sentence


def test_axes_in_another_order() -> None:
    kernel = Kernel(program())
    right = kernel.rounded(kernel.y())
    layer = judged(program(), np.asarray(right + 90, np.uint8).transpose(0, 3, 1, 2).ravel())
    assert layer.explanation is not None
    assert (layer.explanation.name, layer.explanation.complete) == ("axes transposed", True)
    assert "NCHW" in layer.explanation.sentence


def test_a_constant() -> None:
    kernel = Kernel(program())
    shifted = kernel.clamped(np.floor(kernel.y() + 0.5) + 1)
    assert told(program(), shifted) == ("constant", True)
    assert told(program(), kernel.rounded(kernel.y()) - 3) == ("constant", True)


def test_signed_bytes_that_are_read_as_unsigned() -> None:
    kernel = Kernel(program())
    signed = np.asarray(kernel.rounded(kernel.y()) + 90 - 128, np.int8)
    assert told(program(), signed.view(np.uint8).astype(int) - 90) == ("sign", True)


def test_images_flattened_channel_by_channel() -> None:
    count = SIZE * SIZE * DEPTH
    flat = MoveStep("flat", "x/output", lambda x: x.reshape(len(x), -1), X, (count,))
    weights = np.random.RandomState(3).randint(-7, 8, (count, CHANNELS)).astype(np.int8)
    dense = Linear("dense", lambda x, w: x @ w, (CHANNELS,), weights, "dense/kernel")
    base = program()
    x = Kernel(base).x
    wrong = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    for source, linears, steps in (
        ("flat", (dense,), (flat,)),
        ("x/output", (reshape((count,)), dense), ()),
    ):
        value = UnroundedSum(
            (Term(source, linears, SCALES * Y.scale, X),), OFFSETS * Y.scale, (CHANNELS,)
        )
        model = replace(
            base, steps=(base.steps[0], *steps, Requantize("dense/output", value, Y)),
            outputs=("dense/output",),
        )  # fmt: skip
        y = (wrong @ weights.astype(np.int64)) * SCALES + OFFSETS
        result = np.clip(np.floor(y + 0.5), -90, 165)
        assert told(model, result, "dense/output") == ("axes transposed", True)
        if steps:
            assert told(model, wrong, "flat") == ("axes transposed", True)


@pytest.mark.parametrize("name", ["tflite", "xnnpack"])
def test_a_profile(name: str) -> None:
    path, images = SAMPLES / "nbit4.h5", read_npz(SAMPLES / "digits_test.npz")["images"]
    theirs = qmath.run(path, images, profile=name).integers
    found = qmath.diff(path, images, against=theirs)
    told = [layer.explanation for layer in found.layers if layer.explanation is not None]
    assert all(one.complete for one in told)
    assert {one.name for one in told} == {f"profile {name}"}
    assert found.profile == name


def test_the_profile_that_is_judged_with_another_option() -> None:
    path, images = SAMPLES / "nbit4.h5", read_npz(SAMPLES / "digits_test.npz")["images"]
    theirs = qmath.run(path, images, profile="tflite").integers
    found = qmath.diff(path, images, against=theirs, profile="tflite", rounding="single")
    assert found.first is not None
    assert found.profile == "tflite"
    assert is_same(Integer(12), Integer(12))
    assert not is_same(Integer(12), Integer())


def test_what_nothing_explains_is_told_by_how_much() -> None:
    kernel = Kernel(program())
    wrong = kernel.clamped(np.floor(kernel.y()))
    wrong[0, 0, 0, 0] += 9
    layer = judged(program(), np.asarray(wrong + 90, np.int32))
    assert layer.explanation is not None
    found = layer.explanation
    assert (found.name, found.complete) == ("floor", False)
    assert found.explained == found.differences - 1
    assert found.broken == 0
    noise = np.random.RandomState(5).randint(0, 256, wrong.shape)
    layer = judged(program(), noise.astype(np.uint8))
    assert layer.explanation is None or layer.explanation.explained < layer.teacher_forced / 10


def test_a_mistake_is_one_of_all_batches() -> None:
    model = program()
    images = np.concatenate([IMAGES] * 40)  # several batches
    kernel = Kernel(model)
    right = np.asarray(kernel.rounded(kernel.y()) + 90, np.uint8)
    wrong = np.asarray(kernel.clamped(np.floor(kernel.y())) + 90, np.uint8)
    for parts, complete in (([right, *[wrong] * 39], False), ([wrong] * 40, True)):
        found = qmath.diff(model, images, against={"conv": np.concatenate(parts)})
        explanation = found.layers[0].explanation
        assert explanation is not None
        assert explanation.name == "floor"
        assert explanation.complete is complete
        assert explanation.differences == found.layers[0].teacher_forced
