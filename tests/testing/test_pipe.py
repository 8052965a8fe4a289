"""Cases by pipe: what is written, what comes back, and how it is judged."""

from __future__ import annotations

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qmath.cli import vectors as cli_vectors
from qmath.errors import FileFormatError, QmathError
from qmath.testing import arithmetic
from qmath.testing.floats import Range, exact_steps, neighbours
from qmath.testing.layer import Geometry, make_layer
from qmath.testing.layer_cases import deciding_layer
from qmath.testing.pipe import records
from qmath.testing.pipe.judge import cases_of, judge, op_of
from qmath.testing.pipe.settings import OPS, settings_for
from qmath.testing.pipe.worst import RANGES, SCALES, worst_cases, worst_of_range
from tests.helpers import bits

ROOT = Path(__file__).parents[2]
WORST = ROOT / "reference" / "worst"
SHAPES = {"dense": (7,), "add": (4, 3)}
LAYERS = ("conv", "depthwise", "dense", "add", "average_pool", "max_pool")
STREAMS = [
    (op, profile)
    for op in OPS
    for profile in (arithmetic.PROFILES if "profile" in OPS[op] else (None,))
]


def settings(op, profile=None, **given):
    return settings_for(op, **given | ({} if profile is None else {"profile": profile}))


def answered(made, results=None, *, is_binary=False, cases=None):
    """Return the stream that a kernel with these results gives back."""
    op = op_of(made)
    cases = op.cases() if cases is None else cases
    stream = b"".join(records.write_cases(made, cases, op.result, is_binary=is_binary))
    head = stream[: stream.index(b"\n") + 1]
    out = np.empty(len(cases), records.dtype_of([*op.case, op.result]))
    for name in cases.dtype.names:
        out[name] = cases[name]
    out[op.result.name] = op.expected(cases) if results is None else results
    return head + (out.tobytes() if is_binary else "".join(records._lines(out)).encode())


def judged(stream, op):
    return judge(io.BytesIO(stream), op)


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize(("op", "profile"), STREAMS)
def test_right_answers_are_equal(op, profile, is_binary):
    made = settings(op, profile, count=96)
    found = judged(answered(made, is_binary=is_binary), op)
    assert found.ok
    assert found.cases == 96


@pytest.mark.parametrize(("op", "profile"), STREAMS)
def test_cases_are_the_same_each_time_and_with_another_seed_others(op, profile):
    streams = [b"".join(cases_of(settings(op, profile, count=64, seed=seed))) for seed in (3, 3, 4)]
    assert streams[0] == streams[1] != streams[2]


# ---- what is expected, against the profiles that are proved against TensorFlow


@pytest.mark.parametrize("profile", arithmetic.PROFILES)
@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("num_bits", [2, 5, 8])
def test_layers_as_their_profile(op, profile, num_bits):
    made = settings(op, profile if op != "max_pool" else None, count=320, bits=num_bits)
    judge_op, rng = op_of(made), np.random.RandomState(0)
    cases = judge_op.cases()
    got = judge_op.expected(cases)
    for start in range(0, 320, 32):
        layer = deciding_layer(made.geometry, rng, num_bits=num_bits, profile=profile)
        for name, x in zip(judge_op.inputs, layer.inputs, strict=True):
            np.testing.assert_array_equal(cases[name][start : start + 32], x)
        np.testing.assert_array_equal(got[start : start + 32], layer.expected(profile))


@pytest.mark.parametrize("rounding", ["double", "single"])
def test_the_other_rounding_of_tflite(rounding):
    layer = deciding_layer(Geometry("conv", (5, 6, 3)), np.random.RandomState(1), profile="tflite")
    found = arithmetic.rounded(
        "weighted", "tflite", layer.sums, layer.constants("tflite"), rounding
    )
    constants = layer.constants("tflite")
    stored = np.clip(found + constants["output_zero_point"], constants["low"], constants["high"])
    np.testing.assert_array_equal(stored, layer.expected("tflite", rounding=rounding))


@pytest.mark.parametrize("profile", arithmetic.PROFILES)
def test_requantization_as_a_layer_s(profile):
    made = settings("requantize", profile)
    op = op_of(made)
    layer = deciding_layer(Geometry("conv", (5, 6, 3)), np.random.RandomState(2), profile=profile)
    constants = layer.constants(profile)
    sums = layer.sums[0].reshape(-1, 4)
    for channel in range(4):
        cases = np.zeros(len(sums), records.dtype_of(op.case))
        cases["acc"] = sums[:, channel]
        for field in op.case[1:]:
            cases[field.name] = np.broadcast_to(constants[field.name], 4)[channel]
        want = layer.expected(profile).reshape(-1, 4)[:, channel]
        np.testing.assert_array_equal(op.expected(cases), want)


@pytest.mark.parametrize("kind", ["weighted", "dense", "add", "average"])
@pytest.mark.parametrize("profile", arithmetic.PROFILES)
def test_the_exact_value_is_what_float64_shows(kind, profile):
    ops = {"weighted": "conv", "average": "average_pool"}
    made = settings(ops.get(kind, kind), profile, count=64)
    op = op_of(made)
    cases = op.cases()
    for number in range(0, 64, 7):
        ((_, _, sums, given),) = op._groups(cases[number : number + 1])
        real = arithmetic.real(kind, profile, sums, given)[0]
        for index in np.ndindex(real.shape):
            value, tie = op.exactly(cases[number], index)
            assert value == pytest.approx(real[index], rel=1e-12, abs=1e-9)
            assert tie == pytest.approx(abs(value % 1 - 0.5), abs=1e-9)


# ---- wrong kernels


def wrong(op, profile):
    """Return what wrong kernels return, by the name of the mistake."""
    made = settings(op, profile, count=320 if op in LAYERS else 2000)
    judge_op = op_of(made)
    cases = judge_op.cases()
    return made, cases, dict(judge_op.others(cases))


@pytest.mark.parametrize(
    ("op", "profile"),
    [item for item in STREAMS if item[0] not in ("max_pool", "fake_quant")],
)
def test_wrong_arithmetic_is_found_and_named(op, profile):
    made, cases, mistakes = wrong(op, profile)
    expected = op_of(made).expected(cases)
    found = set()
    for name, results in mistakes.items():
        if results.shape != expected.shape or (results.astype(expected.dtype) == expected).all():
            continue
        judgement = judged(answered(made, results, cases=cases, is_binary=True), op)
        assert not judgement.ok
        assert name in judgement.agrees_with
        found.add(name)
    assert len(found) >= (1 if op == "packing" else 4)


@pytest.mark.parametrize("op", ["fake_quant", "quantize"])
def test_the_function_of_another_op_is_found_and_named(op):
    for function, other in (("vars", "per_channel"), ("per_channel", "vars"), ("args", "vars")):
        made = settings_for(op, function=function, count=2000)
        judge_op = op_of(made)
        cases = judge_op.cases()
        results = judge_op._by_range(cases, other)
        judgement = judged(answered(made, results, cases=cases), op)
        assert f"function {other}" in judgement.agrees_with
        assert any("from a tie" in line for line in judgement.first)


def test_half_to_even_is_told_from_half_up_in_every_requantization():
    for op, profile in STREAMS:
        if profile in ("integer", "exact"):
            made, cases, mistakes = wrong(op, profile)
            assert (mistakes["rounding half to even"] != op_of(made).expected(cases)).any(), op


def test_a_pattern_is_seen():
    made = settings("conv", "integer", count=64)
    op = op_of(made)
    results = op.expected(op.cases()).astype(np.int16)
    results[..., 3] += 1
    found = judged(answered(made, np.clip(results, -128, 127)), "conv")
    assert "all in channel 3" in found.patterns
    assert "each is 1 too high" in found.patterns
    assert found.agrees_with == ()
    assert next(found.lines()).startswith(f"{found.differing:,} of 4,608 results differ, in ")


def test_nan_is_equal_to_any_nan_and_zeros_are_told_apart():
    made = settings_for("fake_quant", count=2000)
    op = op_of(made)
    results = op.expected(op.cases())
    payload = np.uint32(0x7FC12345).view(np.float32)
    results[np.isnan(results)] = payload
    assert judged(answered(made, results), "fake_quant").ok
    zero = results == 0
    results[zero] = np.float32(-0.0)
    assert (
        "the sign of zero is all that differs"
        in judged(answered(made, results), "fake_quant").patterns
    )


# ---- what cannot be judged


GOOD = answered(settings_for("quantize", count=3)).decode()
HEAD, FIRST, SECOND, THIRD = GOOD.splitlines()
BINARY = answered(settings_for("quantize", count=3), is_binary=True)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ("", "the first line must be the header"),
        ("x=00000000\n", "the first line must be the header"),
        (HEAD.replace("vectors 1", "vectors 2"), "cases of version 2"),
        (HEAD.replace("digest", "digit"), "the header lacks digest"),
        (HEAD.replace("bits=all", "bits=77"), "num_bits must be between 2 and 16"),
        (HEAD.replace("bits=all", "bits=x"), "bits=x is no value"),
        (HEAD.replace("signed=1", "signed=2"), "signed=2 is no value"),
        (HEAD.replace("count=3", "count=0"), "count must be 1 to"),
        (HEAD.replace("x:f32", "x:f64"), "it was changed"),
        (HEAD.replace("op=quantize", "op=divide"), "there is no op 'divide'"),
        (HEAD.replace("op=quantize", "op=fake_quant"), "has no setting signed"),
        ("\n".join([HEAD, FIRST, SECOND]), "expected 3 results, lines that begin with x=, got 2"),
        (GOOD.replace(" q=", " y="), "result 0: expected q:i32, got b'y="),
        (GOOD.replace(" q=", " q=1 q="), "result 0 has 7 fields, expected 6: nothing more"),
        ("\n".join(x.partition(" q=")[0] for x in GOOD.splitlines()), "expected 6: q:i32 has to"),
        (GOOD.replace(" q=", " q=1,"), "q has 2 values, expected 1: q:i32"),
        (GOOD.replace(" q=", " q=1."), "is no i32: decimal"),
        (GOOD.replace(" q=", " q=99999999999"), "is no i32: decimal"),
        (GOOD.replace("x=", "x=0"), "is no f32: 8 hexadecimal digits"),
        ("\n".join([HEAD, SECOND, FIRST, THIRD]), "the cases are not those that were written"),
        (BINARY[:-1], "expected 3 records of 24 bytes, 4 of them the result q:i32"),
        (BINARY + b"0" * 12, "got 84, 28 a record"),
        (BINARY + b"0" * 99, "got more than twice as many"),
        (GOOD + f"\n{FIRST}", "lines that begin with x=, got more"),
        (GOOD.replace("q=", "q=+"), "is no i32: decimal"),
    ],
)
def test_what_cannot_be_judged_says_what_was_expected(stream, message):
    data = stream if isinstance(stream, bytes) else stream.encode()
    with pytest.raises(FileFormatError) as caught:
        judged(data, "quantize")
    assert message in str(caught.value)


def test_results_of_another_op_are_refused():
    with pytest.raises(FileFormatError, match="holds results of quantize, not of conv"):
        judged(GOOD.encode(), "conv")


def test_what_a_simulator_says_besides_is_no_result():
    chatter = GOOD.replace("\n", "\r\n") + "tb.v:9: $finish called at 30\n\n"
    assert judged(chatter.encode(), "quantize").ok


@pytest.mark.parametrize(
    ("op", "given", "message"),
    [
        ("conv", {"layout": "lsb"}, "conv has no setting layout"),
        ("conv", {"rounding": "single"}, "under the profile integer has no setting rounding"),
        ("conv", {"profile": "float"}, "profile must be one of exact, integer"),
        ("conv", {"shape": (5, 6)}, "the input's shape must be HxWxC"),
        ("dense", {"shape": (5, 6)}, "the input's shape must be I"),
        ("conv", {"kernel": (9, 1), "padding": "valid"}, "larger than its input"),
        ("conv", {"kernel": (3,)}, "kernel and strides are two lengths"),
        ("conv", {"shape": (99, 99, 99)}, "a shape has 1 to"),
        ("conv", {"kernel": (60_000, 60_000)}, "kernel, strides and channels are at most"),
        ("conv", {"kernel": (999, 999), "channels": 99}, "a layer has at most"),
        ("packing", {"layout": "nibbles", "bits": 5}, "the layout nibbles is for 4 to 4 bits"),
        ("fake_quant", {"seed": -1}, "seed must be"),
        ("requantize", {"multiplier_bits": 7}, "multiplier_bits must be 8 to 31"),
    ],
)
def test_settings_that_do_not_fit_are_refused(op, given, message):
    with pytest.raises(QmathError) as caught:
        settings_for(op, **given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("op", "given", "most"),
    [
        ("packing", {"count": 1 << 24, "shape": (1 << 16,)}, "2,730"),
        ("dense", {"count": 1 << 24, "shape": (1 << 10,), "channels": 1 << 10}, "25"),
    ],
)
def test_cases_that_memory_could_not_hold_are_refused(op, given, most):
    with pytest.raises(
        QmathError, match=rf"16,777,216 cases of .* at most {most}\d*, or a smaller"
    ):
        next(cases_of(settings_for(op, **given)))


def test_a_profile_without_such_layers_says_why():
    with pytest.raises(QmathError, match=r"no conv of 16 bits for the profile tflite: .*32 bits"):
        list(cases_of(settings("conv", "tflite", bits=16)))


def test_one_requantization_has_one_width():
    with pytest.raises(QmathError, match="num_bits must be between 2 and 16"):
        list(cases_of(settings("requantize", bits=0)))


def test_a_sum_that_xnnpack_leaves_to_tflite_has_no_constants_of_xnnpack():
    ends = [(-8.0, 7.9375), (-8.0, 7.9375)]
    layer = make_layer(Geometry("add", (1,)), [[[1]], [[2]]], ends, (-0.03125, 0.031005859375))
    layer.constants("integer")
    with pytest.raises(QmathError, match="XNNPACK leaves a sum of scales"):
        layer.constants("xnnpack")


def test_a_layer_too_large_for_cases_is_refused():
    with pytest.raises(QmathError, match="too large for cases that decide"):
        list(cases_of(settings("conv", shape=(64, 64, 8))))


# ---- the command line


def test_the_verbs_know_the_ops():
    assert tuple(OPS) == cli_vectors.OPS


def test_a_pipe_without_hypothesis():
    """From `vectors` to `diff --op` in processes of their own, which cannot import hypothesis."""
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from qmath.cli.app import app\napp(sys.argv[1:])"
    )

    def run(*arguments, given=b""):
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], input=given, cwd=ROOT, capture_output=True,
            check=True,
        ).stdout  # fmt: skip

    cases = run("vectors", "quantize", "--bits", "3", "--count", "40", "--unsigned", "--binary")
    right = answered(settings_for("quantize", bits=3, count=40, signed=False), is_binary=True)
    assert right.startswith(cases[: cases.index(b"\n")])
    assert run("diff", "--op", "quantize", given=right).startswith(b"equal: 40 results")


def test_judging_a_file(tmp_path):
    from tests.cli.running import fails, run

    results = tmp_path / "results"
    made = settings_for("quantize", bits=3, count=40)
    op = op_of(made)
    results.write_bytes(answered(made, op.expected(op.cases()) * 0))
    found = run("diff", "--op", "quantize", results)
    assert found.exit_code == 1
    assert "the result is always 0" in found.stdout
    assert "cannot read" in fails("diff", "--op=quantize", tmp_path / "none")
    assert "no lengths" in fails("vectors", "conv", "--shape", "5by6")
    message = fails("vectors", "conv", "--worst")
    assert "worst cases are those of" in message
    assert "standard output" not in message
    assert "fixed" in fails("vectors", "quantize", "--worst", "--seed", 7)


# ---- worst cases


@pytest.mark.parametrize(
    ("name", "op", "given"),
    [
        ("fake_quant_vars", "fake_quant", {}),
        ("fake_quant_args", "fake_quant", {"function": "args"}),
        ("requantize_tflite", "requantize", {"profile": "tflite"}),
    ],
)
def test_worst_cases_are_what_their_command_writes(name, op, given):
    made = settings_for(op, **given)
    data = (WORST / f"{name}.txt").read_bytes()
    assert b"".join(worst_cases(made)) == data
    header = records.read_header(data.partition(b"\n")[0], name)
    assert header.settings.op == op


def test_worst_cases_are_small():
    files = list(WORST.glob("*.txt"))
    assert len(files) == 3
    assert sum(path.stat().st_size for path in files) <= 200_000


@pytest.mark.parametrize("num_bits", [2, 4, 6])
@pytest.mark.parametrize("ends", RANGES)
def test_no_float_is_nearer_to_a_tie_than_the_worst(ends, num_bits):
    low, high = (float(np.float32(end)) for end in ends)
    range_ = Range(low, high, num_bits)
    first, last = range_.ends

    def distance(x):
        return abs(exact_steps(float(x), range_) % 1 - Fraction(1, 2))

    listed = worst_of_range(range_)
    ties = [np.float32(float((k + Fraction(1, 2)) * range_.step)) for k in range(first, last)]
    around = {float(x) for tie in ties for x in neighbours(tie, np.arange(-3, 4))}
    inside = [x for x in around if first < exact_steps(x, range_) < last]
    nearest = sorted(d for d in map(distance, inside) if d)[:3]
    assert sorted(map(distance, listed[:3])) == nearest


@pytest.mark.parametrize("function", ["vars", "args"])
def test_the_other_worst_cases_are_decided_by_float32(function):
    count = 0
    for num_bits in (2, 8, 11, 16):
        for ends in RANGES:
            low, high = (float(np.float32(end)) for end in ends)
            range_ = Range(low, high, num_bits, function=function)
            for x in worst_of_range(range_)[3:]:
                exact = (exact_steps(float(x), range_) + Fraction(1, 2)) // 1
                count += int(range_.relative(x)) != exact
    assert count > 90
    assert len(np.unique(bits(np.float32(SCALES)))) == len(SCALES)
