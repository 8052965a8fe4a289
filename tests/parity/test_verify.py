"""``python -m reference.verify`` finds exports equal, and whatever was changed in them."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from reference import samples, verify
from tests.verification.test_verification import tampered

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


def test_a_bare_file_says_what_it_assumed(tmp_path, capsys):
    model, output, _ = exported(tmp_path, "question", quantizers=KNOWN)
    assert verify.main([str(model), str(output)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "assumed" in line)
    assert "that TFMOT's own quantizer used the stored range of conv1/kernel, " in line
    assert "quantize_layer/output" not in line  # the file names its class
    model, output, _ = exported(tmp_path, "default8", overwrite=True)
    assert verify.main([str(model), str(output)]) == 0
    assert "assumed" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def forward():
    """Return what the forward pass of a sample uses."""
    from reference import dump

    data = {"image": samples.digits().test_images[:20]}
    return dump.forward(samples.SAMPLES / "question.h5", data)


@pytest.mark.parametrize("layouts", [(), ("OHWI", "MHWI", "OI")])
def test_every_sample_is_what_the_forward_pass_used(tmp_path, capsys, forward, layouts):
    model, output, _ = exported(tmp_path, "question", quantizers=KNOWN, layouts=layouts)
    np.savez(tmp_path / "FORWARD.npz", **forward)
    assert verify.main([str(model), str(output), "--against", str(tmp_path / "FORWARD.npz")]) == 0
    printed = capsys.readouterr().out
    kernels = sum(name.startswith("kernels/") for name in forward)
    assert f"{kernels} kernels of the forward pass" in printed
    assert "assumed" not in printed


def one_bit(arrays):
    arrays["kernels/conv1/kernel"].reshape(-1).view(np.uint32)[7] ^= 1


def one_bit_of_a_float(arrays):
    arrays["kernels/conv1/bias"].view(np.uint32)[0] ^= 1


def no_kernel(arrays):
    del arrays["kernels/conv1/kernel"]


def two_kernels(arrays):
    arrays["kernels/conv1/kernel#1"] = arrays["kernels/conv1/kernel"] * 2


def between_two_integers(arrays):
    arrays["conv1/post_activation"].reshape(-1)[3] = 1e-3


def beyond_the_width(arrays):
    arrays["conv1/post_activation"] *= 2


def no_activation(arrays):
    del arrays["conv1/post_activation"]


def other_activation(arrays):
    arrays["conv1#1/output"] = arrays["conv1/post_activation"]


USED = {
    one_bit: "conv1/kernel[0, 0, 0, 7]: the file gives ",
    one_bit_of_a_float: "conv1/bias[0]: the file gives ",
    no_kernel: "conv1/kernel: no op of the forward pass reads a kernel of this name",
    two_kernels: "conv1/kernel: the forward pass reads it in two ways",
    between_two_integers: "conv1/post_activation: the forward pass makes 0.001 in ",
    beyond_the_width: "none of the 4-bit integers times ",
    no_activation: "conv1/post_activation: no quantizer acts there in the forward pass",
    other_activation: "conv1/output: a quantizer acts there in the forward pass, the file",
}


@pytest.mark.parametrize("change", USED, ids=lambda change: change.__name__)
def test_another_forward_pass_is_found(tmp_path, forward, change):
    model, output, _ = exported(tmp_path, "question", quantizers=KNOWN)
    arrays = {name: array.copy() for name, array in forward.items()}
    change(arrays)
    (line,) = verify.check(model, output, arrays).differences
    assert USED[change] in line


def test_kernels_alone_say_nothing_of_activations(tmp_path, forward):
    model, output, _ = exported(tmp_path, "question", quantizers=KNOWN)
    kernels = {name: array for name, array in forward.items() if name.startswith("kernels/")}
    assert verify.check(model, output, kernels).differences == []


def test_a_quantizer_with_arithmetic_of_its_own_is_found(tmp_path):
    from reference import judge_models

    live = judge_models.build("power_of_two")
    live.save(tmp_path / "model.h5", include_optimizer=False)
    qmath.export(tmp_path / "model.h5", tmp_path / "out.npz")
    assert verify.check(tmp_path / "model.h5", tmp_path / "out.npz").differences == []
    used = judge_models.forward(live, judge_models.models.data(live, 4))
    found = verify.check(tmp_path / "model.h5", tmp_path / "out.npz", used).differences
    assert [line.partition("[")[0] for line in found] == ["d1/kernel", "d2/kernel"]
