"""Others' kernels at the end of the pipe: TensorFlow's fake_quant, and TFLite's interpreter."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from qmath.testing.pipe.judge import cases_of, judge
from qmath.testing.pipe.settings import settings_for
from qmath.testing.pipe.worst import worst_cases
from reference.pipe import answer

ROOT = Path(__file__).parents[2]
LAYERS = ("conv", "depthwise", "dense", "add", "average_pool", "max_pool")


def answered(op, resolver=None, **given):
    stream = b"".join(cases_of(settings_for(op, **given), is_binary=True))
    return judge(io.BytesIO(answer(stream, resolver)), op)


@pytest.mark.parametrize("function", ["vars", "args", "per_channel"])
def test_tensorflow_s_fake_quant(function):
    found = answered("fake_quant", function=function, count=20_000)
    assert found.ok, list(found.lines())


@pytest.mark.parametrize("function", ["vars", "args"])
def test_the_worst_cases(function):
    made = settings_for("fake_quant", function=function)
    stream = b"".join(worst_cases(made, is_binary=True))
    assert judge(io.BytesIO(answer(stream)), "fake_quant").ok


@pytest.mark.parametrize("profile", ["tflite", "xnnpack", "litert", "tflm"])
@pytest.mark.parametrize("op", LAYERS)
def test_tflite_s_interpreter(op, profile):
    if profile == "tflm":
        pytest.importorskip("tflite_micro")
    given = {} if op == "max_pool" else {"profile": profile}
    for padding in ("same", "valid"):
        extra = {} if op in ("dense", "add") else {"padding": padding}
        found = answered(op, count=640, **given, **extra)
        assert found.ok, list(found.lines())


def test_the_other_resolver_is_found_and_named():
    found = answered("conv", "default", profile="tflite", count=640)
    assert found.differing
    assert "the profile xnnpack (float32 product, half to even)" in found.agrees_with


def test_the_whole_pipe():
    """As docs/testing.md shows it, in processes of their own."""
    qmath = [sys.executable, "-m", "qmath"]
    cases = subprocess.run(
        [*qmath, "vectors", "fake_quant", "--binary"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    results = subprocess.run(
        [sys.executable, "-m", "reference.pipe"], cwd=ROOT, check=True, capture_output=True,
        input=cases,
    ).stdout  # fmt: skip
    verdict = subprocess.run(
        [*qmath, "diff", "--op", "fake_quant"], cwd=ROOT, check=True, capture_output=True,
        input=results,
    ).stdout  # fmt: skip
    assert verdict.startswith(b"equal: 10,000 results of 10,000 cases")
