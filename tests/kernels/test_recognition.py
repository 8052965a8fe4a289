"""Which build made floats: of random settings, and where nothing can tell."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath.errors import QmathError
from qmath.kernels.builds import BUILDS
from qmath.kernels.recognition import recognize_build

F = np.float32


@pytest.mark.parametrize("with_inputs", [True, False])
def test_random_arrays_are_of_the_build_that_made_them(with_inputs: bool) -> None:
    rng = np.random.default_rng(1)
    alone = 0
    for number in range(120):
        build = list(BUILDS)[number % 4]
        bits, narrow = int(rng.integers(2, 17)), bool(rng.integers(2))
        low, high = F(-rng.uniform(0.01, 9)), F(rng.uniform(0.01, 9))
        x = rng.normal(0, 3, 2000).astype(F)
        settings = {"num_bits": bits, "narrow_range": narrow}
        kind = number // 4 % 3
        if kind == 0:
            y = qmath.fake_quant_with_min_max_vars(x, low, high, **settings, build=build)
        elif kind == 1:
            y = qmath.fake_quant_with_min_max_args(x, low, high, **settings, build=build)
            settings["op"] = "args"
        else:
            x = x.reshape(-1, 4)
            low, high = low * F([1, 0.5, 2, 1.3]), high * F([1, 2, 0.7, 1])
            y = qmath.fake_quant_with_min_max_vars_per_channel(
                x, low, high, **settings, build=build
            )
            settings["per_axis"] = True
        found = recognize_build(y, low, high, inputs=x if with_inputs else None, **settings)
        assert build in found.builds
        assert found.elements == 2000
        assert found.deciding == min([n for n in found.differing.values() if n], default=0)
        alone += found.build == build
    assert alone > 50


def test_elements_that_cannot_tell() -> None:
    # A power of two as scale: no product and no sum rounds, except in XLA's reciprocal.
    y = qmath.fake_quant_with_min_max_vars([0.25, -0.5], -1, 0.75, 3)
    found = recognize_build(y, -1, 0.75, 3)
    assert {"tf", "tf<2.6"} <= set(found.builds)
    assert found.build is None
    nothing = recognize_build([], -1, 0.75, 3)
    assert nothing.builds == tuple(BUILDS)
    assert str(nothing) == "of any build: these elements cannot tell the builds apart"


def test_floats_of_no_build() -> None:
    y = qmath.fake_quant_with_min_max_vars(np.linspace(-3, 3, 50, dtype=F), -1, 2)
    y[7] += F(1e-3)
    found = recognize_build(y, -1, 2, 8)
    assert found.builds == ()
    assert found.build is None
    assert found.deciding == 0
    assert str(found) == (
        "of no build that qmath knows; tf is the nearest, which gives 1 of 50 elements otherwise"
    )


def test_the_words_for_what_was_found() -> None:
    x = np.random.default_rng(0).normal(size=1000).astype(F)
    y = qmath.fake_quant_with_min_max_vars(x, -0.7, 1.1, build="xla-cpu")
    found = recognize_build(y, -0.7, 1.1, 8, inputs=x)
    assert str(found) == f"of the build xla-cpu; {found.deciding} of 1,000 elements decide it"
    assert found.deciding > 10


def test_what_is_refused() -> None:
    with pytest.raises(QmathError, match=r"the same shape, got \(2,\), \(1,\)"):
        recognize_build([0.0], -1, 1, 8, inputs=[0.0, 1.0])
    with pytest.raises(QmathError, match="op must be 'vars' or 'args', got 'tflite'"):
        recognize_build([0.0], -1, 1, 8, op="tflite")
    for settings in ({"per_axis": "no"}, {"per_axis": 1}, {"narrow_range": None}):
        with pytest.raises(QmathError, match=f"{next(iter(settings))} must be True or False"):
            recognize_build([], -1, 1, 8, **settings)


def test_the_example_of_the_page() -> None:
    page = Path(__file__).parents[2] / "docs" / "builds.md"
    result = doctest.testfile(str(page), module_relative=False, globs={"qmath": qmath})
    assert result.attempted > 0
    assert result.failed == 0
