"""The proof of a kernel on all floats: it holds, it can fail, and it agrees with brute force."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath.kernels.affine import scale_and_zero_point
from qmath.verification import definition
from qmath.verification.all_floats import prove_model, prove_range
from reference import monotone
from tests.cli.running import run
from tests.helpers import assert_same_bits

BUILDS = ["tf", "tf<2.6", "xla-cpu", "xla-cpu-nofma"]
OPS = ["vars", "args", "per_channel"]
SAMPLE = Path("reference/samples/nbit4.h5")
LOW, HIGH = np.float32([-1.5, -1.0, 0.0]), np.float32([0.7, 1.0, 6.0])


def ends(op: str, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return (LOW, HIGH) if op == "per_channel" else (LOW[index], HIGH[index])


def kernel_of(op: str, build: str):
    call = {
        "vars": qmath.fake_quant_with_min_max_vars,
        "args": qmath.fake_quant_with_min_max_args,
        "per_channel": qmath.fake_quant_with_min_max_vars_per_channel,
    }[op]
    return lambda x, low, high: call(x, low, high, 4, build=build)


@pytest.mark.parametrize("num_bits", [2, 4, 8, 11])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("build", BUILDS)
def test_every_build_is_what_it_is_defined_to_be(num_bits: int, op: str, build: str) -> None:
    low, high = ends(op, index=num_bits % 3)
    proof = prove_range(low, high, num_bits, narrow_range=num_bits == 4, op=op, build=build)
    assert proof == (low.size, low.size * (2**num_bits - 1 - (num_bits == 4)), ())


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (1e-38, 2e-38), (-1e-45, 1e-30), (0, 3e38), (-3e38, 3e38), (1, 2), (-2, -1), (2, 2),
     (1, -1), (-np.inf, 1), (0, 1e-37)],
)  # fmt: skip
@pytest.mark.parametrize("build", BUILDS)
def test_odd_ranges_are_proved_too(low: float, high: float, build: str) -> None:
    proof = prove_range(
        np.float32(low), np.float32(high), 3, narrow_range=False, op="vars", build=build
    )
    assert not proof.differences


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("build", BUILDS)
def test_the_definition_is_the_kernel_on_floats_of_every_kind(op: str, build: str) -> None:
    rng = np.random.default_rng(0)
    near = rng.integers(-20, 20, 3000) / 8 + rng.normal(size=3000) * 1e-7
    bits = rng.integers(0, 2**32, 3000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([near.astype(np.float32), bits])
    low, high = ends(op)
    x = np.repeat(x[:, np.newaxis], 3, 1) if op == "per_channel" else x
    expected = kernel_of(op, build)(x, low, high)
    defined = definition.fake_quant(x, low, high, 4, narrow_range=False, op=op, build=build)
    assert_same_bits(defined, expected)


def test_another_op_and_another_build_are_refuted() -> None:
    settings = {"narrow_range": False, "op": "vars"}
    for kernel in (
        lambda x: qmath.fake_quant_with_min_max_args(x, -1.0, 1.0, 8),
        lambda x: qmath.fake_quant_with_min_max_vars(x, -1.0, 1.0, 8, build="tf<2.6"),
        lambda x: qmath.fake_quant_with_min_max_vars(x, -1.0, 1.0, 7),
        lambda x: qmath.fake_quant_with_min_max_vars(np.nextafter(x, np.float32(-9)), -1.0, 1.0, 8),
    ):
        proof = prove_range(np.float32(-1), np.float32(1), 8, kernel=kernel, **settings)
        (words,) = proof.differences
        assert "build 'tf' is defined to make" in words


def test_a_model_and_the_verb(tmp_path: Path) -> None:
    model = qmath.load(SAMPLE)
    proof = prove_model(model)
    complete = [t for t in model.tensors.values() if t.role != "float" and t.spec.is_complete]
    assert proof.ranges == sum(np.size(t.min) for t in complete)
    assert not proof.differences
    qmath.export(model, tmp_path / "out.npz")
    result = run("verify", SAMPLE, tmp_path / "out.npz", "--all-floats")
    assert result.exit_code == 0
    assert f"all floats: the kernel of {proof.ranges} ranges" in result.stdout
    document = json.loads(
        run("verify", SAMPLE, tmp_path / "out.npz", "--all-floats", "--json").stdout
    )
    assert document["all_floats"] == {
        "ranges": proof.ranges,
        "steps": proof.steps,
        "differences": [],
    }
    assert (
        json.loads(run("verify", SAMPLE, tmp_path / "out.npz", "--json").stdout)["all_floats"]
        is None
    )


@pytest.mark.parametrize("build", BUILDS)
def test_one_channel_is_proved_by_its_own_formula(build: str) -> None:
    ends = np.float32([-6]), np.float32([6])
    found = prove_range(*ends, 8, narrow_range=False, op="per_channel", build=build)
    assert not found.differences
    # XLA's zero point of one channel is that of eager TensorFlow, of more it is another.
    zero = {C: scale_and_zero_point(*(np.repeat(end, C) for end in ends), 8, build=build)[1]
            for C in (1, 2)}  # fmt: skip
    assert zero[1].tolist() == [0]
    assert zero[2].tolist() == ([-1, -1] if build.startswith("xla") else [0, 0])


@pytest.mark.parametrize("name", monotone.OPERATIONS)
def test_operations_keep_the_order(name: str) -> None:
    for constant in monotone.CONSTANTS:
        assert monotone.falls(monotone.OPERATIONS[name], np.float32(constant), 9973, 1 << 16) == 0


def test_an_operation_that_falls_is_seen() -> None:
    assert monotone.falls(lambda x, c: np.abs(x) * c, np.float32(1), 99991, 1 << 12) > 0
