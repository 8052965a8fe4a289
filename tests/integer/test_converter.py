"""What the converter makes of a program: which step writes on which scale; no TensorFlow needed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import qmath
from qmath.integer import api
from qmath.integer.executor import Executor
from qmath.integer.judging.mistakes.rounding import named_profiles
from qmath.integer.lowering import geometry
from qmath.integer.profiles.converter import converted
from qmath.integer.profiles.exact import Exact
from qmath.integer.profiles.litert import Litert
from qmath.integer.profiles.tflite import Tflite, kernels
from qmath.integer.profiles.tflm import Tflm
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import (
    Activation,
    Factor,
    FloatStep,
    Linear,
    MoveStep,
    Origin,
    Program,
    QuantizeStep,
    QuantParams,
    Requantize,
    TableStep,
    Term,
    UnroundedSum,
)

FINE = QuantParams(1 / 32, 128, 0, 255, 8, -4.0, 127 / 32)
UNIT = QuantParams(1 / 16, 128, 0, 255, 8, -8.0, 7.9375)
WIDE = QuantParams(1 / 12, 120, 0, 255, 8, -10.0, 135 / 12)
WEIGHTS = np.array([[3, -4], [-128, 1]])
PROFILES = [Tflite, Xnnpack, Litert, Tflm]
DATA = {"x": np.random.default_rng(0).uniform(-9, 9, (64, 2)).astype(np.float32)}
INPUT = QuantizeStep("q", "x", UNIT, (2,))
ZERO = np.zeros(())


def weighted(source="q", params=UNIT, matmul=np.matmul):
    linear = Linear("dense", matmul, (2,), WEIGHTS, "dense/kernel")
    origin = Origin(np.float64(255 / 256), 255, np.float32([0.5, -0.25]))
    return Term(source, (linear,), np.asarray(params.scale / 256), params, origin)


def whole(source, params=UNIT, *ops):
    return Term(source, ops, np.asarray(params.scale), params)


def placed(source, before, after, params=UNIT):
    pad = geometry.zero_pad([(before, after)], (2,))
    scale = pad.apply(np.full((1, 2), params.scale), None)[0]
    return Term(source, (pad,), scale, params)


def rounded(name, terms, params=UNIT, shape=(2,), activation=None, offset=ZERO):
    value = UnroundedSum(tuple(terms), np.asarray(offset), shape, activation)
    return Requantize(name, value, params)


def layer(name, params=UNIT, source="q", source_params=UNIT):
    return rounded(name, [weighted(source, source_params)], params, offset=[0.5, -0.25])


def joined(name, first, second, params=WIDE):
    return rounded(name, [placed(first, 0, 2), placed(second, 2, 0)], params, (4,))


def program(*steps, outputs=None):
    return Program({"x": (2,)}, (INPUT, *steps), outputs or (steps[-1].name,), {})


def names(made):
    return [step.name for step in converted(made).steps]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_layer_that_only_a_concatenation_reads_writes_on_its_scale(profile):
    made = program(layer("a"), joined("c", "q", "a"))
    assert names(made) == ["q", "a/requantized", "c"]
    results = Executor(made, profile()).run(DATA)
    assert "a" not in results
    direct = Executor(program(layer("a", WIDE)), profile()).run(DATA)
    np.testing.assert_array_equal(results["c"][:, 2:], direct["a"])
    np.testing.assert_array_equal(results["a/requantized"], direct["a"])
    twice = Executor(made, profile(converts=False)).run(DATA)
    assert (twice["c"] != results["c"]).any()
    np.testing.assert_array_equal(twice["c"][:, :2], results["c"][:, :2])


@pytest.mark.parametrize(
    ("steps", "outputs"),
    [
        ((layer("a"), joined("c", "q", "a"), layer("d", source="a")), ("c", "d")),
        ((layer("a"), joined("c", "q", "a")), ("c", "a")),
        ((layer("a"), joined("c", "q", "a"), joined("d", "q", "a", FINE)), ("c", "d")),
        ((rounded("a", [whole("q")], FINE), joined("c", "q", "q")), ("a", "c")),
        ((layer("a"), layer("b", source="a")), None),
    ],
    ids=["a reader more", "an output", "two scales", "a change of scale", "nothing joined"],
)
def test_what_stays_as_it_is(steps, outputs):
    made = program(*steps, outputs=outputs)
    assert converted(made) is made
    assert Tflite(converts=False).planned(made) is made


def test_two_concatenations_on_one_scale():
    made = program(layer("a"), joined("c", "q", "a"), joined("d", "a", "q"), outputs=("c", "d"))
    assert names(made) == ["q", "a/requantized", "c", "d"]


IMAGE = (2, 2, 2)


def test_a_resizing_has_one_scale():
    spread = partial(np.broadcast_to, shape=(64, *IMAGE))
    image = Linear("conv2d", lambda x, w: spread((x @ w)[:, None, None]), IMAGE, WEIGHTS, "k")
    term = Term("q", (image,), np.asarray(UNIT.scale / 256), UNIT, weighted().origin)
    conv = rounded("a", [term], UNIT, IMAGE)
    resize = MoveStep("up", "a", lambda x: x.repeat(2, 1), UNIT, (4, 2, 2), {"kind": "upsample"})
    made = program(conv, resize, rounded("b", [whole("up")], WIDE, (4, 2, 2)))
    plan = converted(made)
    assert [(step.name, type(step)) for step in plan.steps[1:]] == [
        ("a/requantized", Requantize), ("b", MoveStep),
    ]  # fmt: skip
    assert {step.params for step in plan.quantized[1:]} == {WIDE}
    results = Executor(made, Tflite()).run(DATA)
    assert set(results) == {"q", "a/requantized", "b"}
    np.testing.assert_array_equal(results["b"][:, ::2], results["a/requantized"])
    # What reads the resizing as well keeps the scale of before.
    two = program(*made.steps[1:], layer("d", source="up"), outputs=("b", "d"))
    assert converted(two) is two


def test_an_average_along_a_line_changes_the_scale_first():
    line = QuantizeStep("q", "x", UNIT, (4, 2))
    half = Linear(
        "pool_sum", lambda x, _: x.reshape(-1, 2, 2, 2).sum(2), (2, 2), gain=2, attributes={}
    )
    term = Term("q", (half,), np.asarray(UNIT.scale / 2), UNIT)
    step = rounded("p", [term], WIDE, (2, 2))
    made = Program({"x": (4, 2)}, (line, step), ("p",), {})
    data = {"x": np.random.default_rng(0).uniform(-9, 9, (64, 4, 2)).astype(np.float32)}
    results = Executor(made, Tflite()).run(data)
    (kernel,) = kernels(converted(made).step("p/input"))
    assert kernel.op == "QUANTIZE"
    stored = results["p/input"].astype(int) - 128
    total = stored.reshape(-1, 2, 2, 2).sum(2)
    want = np.sign(total) * ((np.abs(total) + 1) // 2) + 128
    np.testing.assert_array_equal(results["p"], want)
    assert (Executor(made, Tflite(converts=False)).run(data)["p"] != want).any()


@pytest.mark.parametrize("limit", [np.inf, 6.0])
def test_a_maximum_pool_takes_over_a_relu(limit):
    pool = MoveStep("m", "q", lambda x: x.max(1, keepdims=True), UNIT, (1,), {"kind": "pool_max"})
    relu = rounded("r", [whole("m")], FINE, (1,), Activation(limit=limit))
    made = program(pool, relu)
    results = Executor(made, Xnnpack()).run(DATA)
    assert results["m"].min() == 128
    assert results["m"].max() == (255 if limit == np.inf else 128 + 96)
    (kernel,) = kernels(converted(made).step("r"))
    assert kernel.op == "QUANTIZE"
    assert Executor(made, Xnnpack(converts=False)).run(DATA)["m"].min() < 128
    alone = program(pool, rounded("r", [whole("m")], FINE, (1,), Activation(limit=4.0)))
    with pytest.raises(qmath.QmathError, match="bounded at 4"):
        Executor(alone, Xnnpack()).run(DATA)


def test_a_sigmoid_has_a_scale_of_its_own():
    real = (np.arange(256) - 128) / 16
    results = (1 / (1 + np.exp(-real))).astype(np.float32)
    table = WIDE.quantize(results, "a table")
    made = program(TableStep("s", "q", table, WIDE, (2,), results, "sigmoid"))
    found = Executor(made, Tflite()).run(DATA)
    index = Executor(made).run(DATA)["q"]
    np.testing.assert_array_equal(
        found["s/sigmoid"], np.minimum(np.rint(results * 256), 255)[index]
    )
    # 1/256 becomes 1/12 of the output: rounded twice.
    off = found["s"].astype(int) - Executor(made).run(DATA)["s"]
    assert set(np.unique(off)) <= {-1, 0, 1}
    unknown = program(TableStep("s", "q", table, WIDE, (2,), results))
    with pytest.raises(qmath.QmathError, match="s: TFLite has no table for its function"):
        Executor(unknown, Tflite()).run(DATA)


def test_float_layers_between_integers_are_refused_where_they_are_rounded():
    double = FloatStep("f", ("q",), lambda x: 2 * x, (2,))
    made = program(double, QuantizeStep("g", "f", WIDE, (2,)))
    with pytest.raises(qmath.QmathError, match="g: f was trained in float32 between integers"):
        Executor(made, Tflite()).run(DATA)
    Executor(made, Tflite(converts=False)).run(DATA)
    # Before the first quantizer, and after the last, nothing is converted.
    before = FloatStep("f", ("x",), lambda x: 2 * x, (2,))
    steps = (before, QuantizeStep("q", "f", WIDE, (2,)))
    Executor(Program({"x": (2,)}, steps, ("q",), {}), Tflite()).run(DATA)
    Executor(program(double), Tflite()).run(DATA)


def test_a_concatenation_within_another_is_refused():
    inner = geometry.zero_pad([(0, 2)], (2,))
    outer = geometry.zero_pad([(0, 2)], (4,))
    scale = np.asarray([UNIT.scale] * 2 + [0.0] * 4)
    terms = [
        Term("q", (inner, outer), scale, UNIT),
        Term("q", (geometry.zero_pad([(2, 0)], (2,)), outer), np.roll(scale, 2), UNIT),
        Term("q", (geometry.zero_pad([(4, 0)], (2,)),), np.roll(scale, 4), UNIT),
    ]
    made = program(rounded("c", terms, WIDE, (6,)))
    with pytest.raises(qmath.QmathError, match=r"c: .*a concatenation in another"):
        Executor(made, Tflite()).run(DATA)
    Executor(made, Tflite(converts=False)).run(DATA)


# ---- products, differences, means, and what microcontrollers do


def test_a_product():
    factor = Factor("q", UNIT, (2,))
    product = Linear("multiply", np.multiply, (2,), factor=factor)
    term = Term("q", (product,), np.asarray(UNIT.scale**2), UNIT)
    step = rounded("p", [term], WIDE)
    (kernel,) = kernels(step)
    assert (kernel.op, len(kernel.inputs)) == ("MUL", 2)
    x = np.arange(-128, 128)[:, None] * np.array([1, 3])
    exact = Exact().requantize(step, [x.astype(float)], ())
    for profile in PROFILES:
        got = profile().requantize(step, [x], ())
        assert np.abs(got - exact).max() <= 1
    with pytest.raises(qmath.QmathError, match="a product of tensors together with"):
        kernels(rounded("p", [term], WIDE, activation=Activation()))


def test_a_difference():
    step = rounded("d", [whole("q"), Term("q", (), np.asarray(-UNIT.scale), UNIT)], WIDE)
    (kernel,) = kernels(step)
    assert kernel.op == "SUB"
    a, b = np.meshgrid(np.arange(-120, 120, 7), np.arange(-120, 120, 5))
    exact = Exact().requantize(step, [a, b], ())
    for profile in PROFILES:
        assert np.abs(profile().requantize(step, [a, b], ()) - exact).max() <= 1


def test_three_roundings_of_a_dense_layer():
    step = rounded("a", [weighted()], QuantParams(1 / 16, 128, 0, 255, 8, -8.0, 7.9375))
    kernel = kernels(step)[0]
    x = np.arange(-3000, 3000)[:, None] * np.array([1, 1])
    found = {profile.name: profile().requantize(step, [x], ()) for profile in PROFILES}
    real = (x + kernel.bias) / 256
    inside = np.abs(real).max(1) < 120
    tie = np.abs(real % 1) == 0.5
    away = np.trunc(real) + np.sign(real)
    ties = inside[:, None] & tie
    np.testing.assert_array_equal(found["tflite"][ties], away[ties])
    np.testing.assert_array_equal(found["litert"][ties], np.floor(real + 0.5)[ties])
    np.testing.assert_array_equal(found["xnnpack"][ties], np.rint(real)[ties])
    # A microcontroller rounds to 31 bits first: what is just below a tie goes up with it.
    np.testing.assert_array_equal(found["tflm"][ties], away[ties])


def requantized(profile, kind, weights, outputs, x, **attributes):
    """Return what a profile makes of sums `x` of every output, at 1/256 of the output's scale."""
    linear = Linear(kind, np.matmul, (outputs,), weights, "w", attributes=attributes)
    origin = Origin(np.float64(255 / 256), 255, np.float32(0))
    term = Term("q", (linear,), np.asarray(UNIT.scale / 256), UNIT, origin)
    step = rounded("a", [term], UNIT, (outputs,))
    return profile.requantize(step, [np.repeat(x[:, None], outputs, 1)], ())


@pytest.mark.parametrize("outputs", [7, 8, 17])
def test_the_channels_of_a_depthwise_convolution(outputs):
    x = np.arange(-3000, 3000, 2)  # even: 31 bits hold a half of them exactly
    weights = np.ones((1, 1, outputs, 1), np.int8)
    reference, optimized = (
        requantized(profile(), "depthwise_conv2d", weights, outputs, x)
        for profile in (Tflite, Litert)
    )
    half_up = np.floor(x / 256 + 0.5)
    whole = outputs // 8 * 8
    assert (reference != half_up[:, None]).any(0).all()
    np.testing.assert_array_equal(optimized[:, :whole], np.repeat(half_up[:, None], whole, 1))
    np.testing.assert_array_equal(optimized[:, whole:], reference[:, whole:])


@pytest.mark.parametrize(("groups", "name"), [(1, "litert"), (2, "tflite")])
def test_a_convolution_of_groups(groups, name):
    x = np.arange(-3000, 3000)
    weights = np.ones((1, 1, 4 // groups, 4), np.int8)
    found = {
        profile.name: requantized(profile(), "conv2d", weights, 4, x, groups=groups)
        for profile in (Tflite, Litert)
    }
    int4 = requantized(Xnnpack(int4="litert"), "conv2d", weights, 4, x, groups=groups)
    np.testing.assert_array_equal(found["litert"], int4)
    assert (found["litert"] == found["tflite"]).all() == (name == "tflite")


@pytest.mark.parametrize(
    ("inputs", "scales", "int4", "name"),
    [
        (4, 1, "tensorflow", "litert"), (4, 2, "tensorflow", "xnnpack"),
        (4, 1, "litert", "xnnpack"), (4, 2, "litert", "xnnpack"),
        (3, 2, "tensorflow", "litert"), (3, 1, "litert", "litert"),
    ],
)  # fmt: skip
def test_who_computes_a_dense_layer_of_int4(inputs, scales, int4, name):
    x = np.arange(-3000, 3000)[:, None] * np.array([1, 1])
    linear = Linear("dense", np.matmul, (2,), np.ones((inputs, 2), np.int8), "w")
    origin = Origin(np.full(scales, 255 / 256).squeeze(), 255, np.float32(0))
    term = Term("q", (linear,), np.asarray(UNIT.scale / 256), UNIT, origin)
    step = rounded("a", [term], UNIT)
    found = {profile.name: profile().requantize(step, [x], ()) for profile in (Xnnpack, Litert)}
    assert (found["xnnpack"] != found["litert"]).any()
    got = Xnnpack(int4=int4).requantize(step, [x], ())
    np.testing.assert_array_equal(got, found[name])


def test_whose_int4_is_named():
    with pytest.raises(qmath.QmathError, match="int4 must be 'tensorflow' or 'litert', got True"):
        Xnnpack(int4=True)


def test_a_mean_that_keeps_its_axes():
    linear = Linear("pool_sum", np.sum, (1, 1, 2), gain=4, attributes={"global": True})
    term = Term("q", (linear,), np.asarray(UNIT.scale / 4), UNIT)
    step = rounded("m", [term], WIDE, (1, 1, 2))
    (kernel,) = kernels(step)
    assert kernel.keeps_axes
    x = np.arange(-500, 500)[:, None, None, None] * np.array([1, 1])
    reference, optimized = (p().requantize(step, [x], ()) for p in (Tflite, Litert))
    assert 0 < np.abs(reference - optimized).max() <= 1
    flat = Linear("pool_sum", np.sum, (2,), gain=4, attributes={"global": True})
    term = Term("q", (flat,), np.asarray(UNIT.scale / 4), UNIT)
    step, x = rounded("m", [term], WIDE), x[:, 0, 0]
    reference, optimized = (p().requantize(step, [x], ()) for p in (Tflite, Litert))
    np.testing.assert_array_equal(reference, optimized)


def test_a_relu6_of_microcontrollers_hands_on_the_integers():
    step = rounded("r", [whole("q")], FINE, activation=Activation(limit=6.0))
    x = np.arange(-128, 128)[:, None]
    got = Tflm().requantize(step, [x], ())
    np.testing.assert_array_equal(got, np.clip(x, 0, 96))
    assert Tflite().requantize(step, [x], ()).max() == 127  # 4 of FINE


def test_the_judge_computes_a_step_as_the_converter_does():
    made = program(layer("a"), joined("c", "q", "a"))
    for profile in PROFILES:
        theirs = Executor(made, profile()).run(DATA)
        executor = Executor(made)
        own = executor.run(DATA, forced={"q": theirs["q"]})
        step = made.step("c")
        got = executor.under(profile(), step, own) + step.params.zero_point
        np.testing.assert_array_equal(got, theirs["c"])
        # And the other way: from a plan to what was trained.
        again = Executor(made, profile())
        values = again.run(DATA)
        planned = again.program.step("c")
        exact = again.under(Exact(), planned, values) + step.params.zero_point
        np.testing.assert_array_equal(exact, executor.run(DATA)["c"])


def test_every_profile_is_tried_by_the_judge():
    assert set(api.PROFILES) <= set(named_profiles())
    made = program(layer("a"), joined("c", "q", "a"))
    for name in api.PROFILES:
        theirs = qmath.run(made, DATA, profile=name).integers
        found = qmath.diff(made, DATA, against={"c": theirs["c"]}, profile="integer")
        different = (theirs["c"] != qmath.run(made, DATA, profile="integer").integers["c"]).any()
        assert (found.profile is not None) == different
        if different:
            again = qmath.run(made, DATA, profile=found.profile).integers
            np.testing.assert_array_equal(again["c"], theirs["c"])


@pytest.mark.parametrize(
    ("inputs", "scales", "name"), [(4, 2, "xnnpack"), (4, 1, "litert"), (6, 2, "litert")]
)
def test_who_computes_a_dense_layer_of_int2(inputs, scales, name):
    x = np.arange(-3000, 3000)[:, None] * np.array([1, 1])
    linear = Linear("dense", np.matmul, (2,), np.ones((inputs, 2), np.int8), "w")
    origin = Origin(np.full(scales, 255 / 256).squeeze(), 255, np.float32(0))
    term = Term("q", (linear,), np.asarray(UNIT.scale / 256), UNIT, origin)
    step = rounded("a", [term], UNIT)
    found = {profile.name: profile().requantize(step, [x], ()) for profile in (Xnnpack, Litert)}
    got = Xnnpack(packed={"w": 2}).requantize(step, [x], ())
    np.testing.assert_array_equal(got, found[name])
    others = Xnnpack(packed={"v": 2}).requantize(step, [x], ())
    np.testing.assert_array_equal(others, found["xnnpack"])
    assert (found["xnnpack"] != found["litert"]).any()
