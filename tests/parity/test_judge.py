"""`reference.judge`: whether qmath is wrong in silence, of a few models of each class."""

from __future__ import annotations

import numpy as np
import pytest

import qmath

pytest.importorskip("tensorflow_model_optimization")

# isort: split
from reference import judge, judge_models  # which need TensorFlow

# Models of users' quantizers: none of their containers may be wrong in silence.
MODELS = ("power_of_two", "constant_range", "constant_args", "fixed_activation", "learned_step",
          "activation_never_set", "scaled_kernel")  # fmt: skip
# TFMOT's own quantizers, and one that does nothing.
RIGHT = ("last_value_5_per_axis", "all_values_5", "quantized_bias", "none_none_none")


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_wrong_in_silence(tmp_path, name):
    cells = judge.judged_case(name, tmp_path)
    assert cells.keys() == set(judge.READINGS)
    wrong = {reading: cell for reading, cell in cells.items() if cell.mark in judge.WRONG}
    assert not wrong


@pytest.mark.parametrize("name", RIGHT)
def test_tfmots_own_quantizers_are_right_everywhere(tmp_path, name):
    cells = judge.judged_case(name, tmp_path)
    assert cells.keys() == set(judge.READINGS)
    # Some files let one only assume them; no difference is found there either.
    assert all((cell.mark, cell.why) in (("=", ""), ("a", "")) for cell in cells.values()), cells


@pytest.fixture(scope="module")
def control():
    """Return a right model as the judge is given it."""
    model = judge_models.build("last_value_5")
    data = judge_models.models.data(model, 8)
    return qmath.from_keras(model), judge_models.forward(model, data), data


def changed(arrays, name, element):
    array = arrays[name].copy()
    array.reshape(-1).view(np.uint32)[element] ^= 1
    return {**arrays, name: array}


def marked(model, forward, data):
    return judge.judge(lambda _: model, forward, data, {})


def test_one_bit_of_a_kernel_is_wrong(control):
    model, forward, data = control
    assert marked(model, forward, data).mark == "="
    cell = marked(model, changed(forward, "kernels/d2/kernel", 5), data)
    assert cell.mark == "≠"
    assert cell.why.startswith("d2/kernel[1, 1]: ")
    assert "1 of 32 differ" in cell.why


def test_an_activation_off_by_one_step_is_wrong(control):
    model, forward, data = control
    name = "d2/post_activation"
    array = forward[name].copy()
    steps = np.unique(array)
    array[0, 0] = steps[np.searchsorted(steps, array[0, 0]) - 1]
    cell = marked(model, {**forward, name: array}, data)
    assert cell.mark == "≠"
    assert cell.why.startswith("d2/post_activation: 1 of 32 integers differ")


def test_outputs_that_differ_are_wrong(control):
    model, forward, data = control
    cell = marked(model, {**forward, "outputs/0": forward["outputs/0"] + np.float32(0.1)}, data)
    assert (cell.mark, cell.why) == ("≠", "outputs/0: off by 0.1")


def test_an_activation_that_is_missing_on_either_side_is_wrong(control):
    model, forward, data = control
    fewer = {name: array for name, array in forward.items() if name != "d1/post_activation"}
    cell = marked(model, fewer, data)
    assert (cell.mark, cell.why) == (
        "≠", "d1/post_activation: no quantizer acts there in the forward pass"
    )  # fmt: skip
    cell = marked(model, {**forward, "d1/output": forward["d1/post_activation"]}, data)
    assert (cell.mark, cell.why) == (
        "≠", "d1/output: a quantizer acts there in the forward pass, the file holds none"
    )  # fmt: skip


def test_what_a_note_or_a_provenance_tells_is_assumed(control):
    from dataclasses import replace

    model, forward, data = control
    other = changed(forward, "kernels/d2/kernel", 5)
    told = replace(model, notes=("d2/kernel: TFMOT's own quantizer is assumed.",))
    assert marked(told, other, data).mark == "a"
    beside = replace(model, notes=("d1/kernel: TFMOT's own quantizer is assumed.",))
    assert marked(beside, other, data).mark == "≠"
    layers = replace(
        model, notes=("MyConfig left no range in d1, d2: nothing there is quantized.",)
    )
    assert marked(layers, other, data).mark == "a"
    layers = replace(model, notes=("The order is not known: it is not clear what d2 quantizes.",))
    assert marked(layers, other, data).mark == "≠"
    kernel = replace(model.tensors["d2/kernel"], provenance={"quantizer": "assumed"})
    told = replace(model, tensors={**model.tensors, "d2/kernel": kernel})
    assert marked(told, other, data).mark == marked(told, forward, data).mark == "a"


def test_errors_are_refusals_and_questions(control):
    _, forward, data = control

    def raising(error):
        def load(_):
            raise error("no")

        return judge.judge(load, forward, data, {})

    assert raising(qmath.FileFormatError).mark == "r"
    assert raising(qmath.MissingSettingsError).mark == "?"


def test_the_command_counts_and_reuses_what_it_wrote(tmp_path, capsys):
    judge.judged_case("constant_args", tmp_path)
    written = (tmp_path / "constant_args" / "whole.h5").stat().st_mtime_ns
    arguments = [str(tmp_path), "--check", "--without", "live", "--jobs", "1"]
    assert judge.main([*arguments, "--json", str(tmp_path / "cells.json")]) == 0
    assert (tmp_path / "constant_args" / "whole.h5").stat().st_mtime_ns == written
    printed = capsys.readouterr().out
    assert "models: 1, readings: 8: " in printed
    assert ", 0 wrong" in printed
    assert '"mark": "a"' in (tmp_path / "cells.json").read_text()
