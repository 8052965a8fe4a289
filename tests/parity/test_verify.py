"""``python -m reference.verify`` finds exports equal, and whatever was changed in them."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from tests.verification.test_verification import tampered

verify = pytest.importorskip("reference.verify")
samples = pytest.importorskip("reference.samples")

KNOWN = {
    "MyConfig.activation": qmath.MovingAverageQuantizer(
        num_bits=4, per_axis=False, symmetric=False, narrow_range=False
    )
}


def exported(tmp_path, name, quantizers=None, **options):
    model, output = samples.SAMPLES / f"{name}.h5", tmp_path / "out.npz"
    return model, output, qmath.export(qmath.load(model, quantizers), output, **options)


@pytest.mark.parametrize("layouts", [(), ("OHWI", "MHWI", "OI")])
@pytest.mark.parametrize("name", samples.RECIPES)
def test_every_sample_is_equal(tmp_path, capsys, name, layouts):
    options = {"quantizers": KNOWN} if name == "question" else {}
    model, output, bundle = exported(tmp_path, name, layouts=layouts, **options)
    assert verify.main([str(model), str(output)]) == 0
    elements = sum(
        np.size(tensor.values) for tensor in bundle.model.tensors.values()
        if tensor.role == "weight"
    )  # fmt: skip
    found = verify.check(model, output)
    known = [t.role for t in bundle.model.tensors.values() if t.spec.num_bits is not None]
    weights = known.count("weight")
    assert (found.weights, found.elements) == (weights, elements)
    assert found.ranges == len(known) - weights > 0
    assert f"equals TensorFlow; {found.weights} weights" in capsys.readouterr().out


def flip_integer(arrays, _):
    arrays["conv1/kernel"][2, 0, 0, 1] ^= 1


def flip_weight_scale(arrays, _):
    arrays["conv1/kernel.scale"].reshape(-1).view(np.uint32)[0] ^= 1


def flip_range_scale(arrays, _):
    arrays["conv1/post_activation.scale"].reshape(-1).view(np.uint32)[0] ^= 1


def move_zero_point(arrays, _):
    arrays["conv1/post_activation.zero_point"] += 1


def say_other_bits(_, manifest):
    manifest["tensors"]["conv1/kernel"]["num_bits"] = 5


def forget_tensor(_, manifest):
    del manifest["tensors"]["conv1/kernel"]


def call_it_float(_, manifest):
    manifest["tensors"]["conv1/kernel"] |= {"role": "float", "num_bits": None}


CHANGES = {
    flip_integer: r"conv1/kernel[2, 0, 0, 1]: the file gives ",
    flip_weight_scale: r"conv1/kernel[0, 0, 0, 0]: the file gives ",
    flip_range_scale: r"conv1/post_activation.scale: TensorFlow gives ",
    move_zero_point: r"conv1/post_activation: TensorFlow reaches [1, 16]",
    say_other_bits: r"conv1/kernel: num_bits is 5, in the model 4",
    forget_tensor: r"conv1/kernel: not in the file",
    call_it_float: r"conv1/kernel: a tensor of role float, in the model weight",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_found(tmp_path, capsys, change):
    model, output, _ = exported(tmp_path, "question", quantizers=KNOWN)
    tampered(output, change)
    assert verify.main([str(model), str(output)]) == 1
    assert CHANGES[change] in capsys.readouterr().out


def test_a_range_that_the_user_told_is_in_the_file(tmp_path):
    fixed = qmath.FixedQuantizer(num_bits=8, init_min=-1.0, init_max=1.0, narrow_range=False)
    model, output, _ = exported(tmp_path, "question", quantizers={"dense/kernel": fixed})
    found = verify.check(model, output)
    assert not found.differences
    assert found.weights == 3

    def flip(arrays, _):
        arrays["dense/kernel"][3, 1] ^= 1

    tampered(output, flip)
    (line,) = verify.check(model, output).differences
    assert line.startswith("dense/kernel[3, 1]: ")


def test_what_is_no_export_has_another_status(tmp_path, capsys):
    output = tmp_path / "out.npz"
    output.write_text("hello")
    assert verify.main([str(samples.SAMPLES / "question.h5"), str(output)]) == 2
    assert "cannot be compared" in capsys.readouterr().err
