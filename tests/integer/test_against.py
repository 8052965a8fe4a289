"""What anyone's integers may be: names, files, axes, signs, lattices; and one of them closely."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath.errors import FileFormatError, QmathError
from qmath.integer.api import element, program_of
from qmath.integer.judging.integers import integers_of
from tests.helpers import read_npz

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
MODEL = SAMPLES / "default8.h5"
IMAGES = read_npz(SAMPLES / "digits_test.npz")["images"][:20]
PROGRAM = program_of(MODEL)
OWN = qmath.run(PROGRAM, IMAGES).integers
CONV, DENSE = "conv1/post_activation", "dense/post_activation"


def compared(arrays, **options):
    """Return what is compared, after it was found to be equal."""
    found = qmath.diff(PROGRAM, IMAGES, against=arrays, **options)
    assert all(layer.teacher_forced == layer.free_running == 0 for layer in found.layers)
    return [layer.name for layer in found.layers], found.notes


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, ">i4"])
def test_unsigned_integers_of_every_dtype(dtype):
    names, notes = compared({name: x.astype(dtype) for name, x in OWN.items()})
    assert names == list(OWN)
    assert all("unsigned" in note for note in notes)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_signed_integers_of_every_dtype(dtype):
    arrays = {name: (x.astype(int) - 128).astype(dtype) for name, x in OWN.items()}
    names, notes = compared(arrays)
    assert names == list(OWN)
    assert all("unsigned" not in note for note in notes)


def test_a_sign_that_is_assumed_is_told():
    half = {"flatten": np.minimum(OWN["flatten"], 127)}
    assert half["flatten"].any()
    _, notes = compared({CONV: OWN[CONV]})
    assert len(notes) == 1  # of what is missing alone: 8 bits without a sign are what they are
    found = qmath.diff(PROGRAM, IMAGES, against={"flatten": half["flatten"].astype(np.int32)})
    assert any(note.startswith("read as unsigned integers") for note in found.notes)
    assert any(note.endswith("flatten") for note in found.notes)
    moved = {CONV: OWN[CONV].astype(int) - 128}
    top = np.maximum(moved[CONV], 0)
    found = qmath.diff(PROGRAM, IMAGES, against={CONV: top})
    assert any(note.startswith("read as signed integers") for note in found.notes)


def test_reals_and_their_lattice():
    params = {step.name: step.params for step in PROGRAM.steps}
    reals = {name: params[name].dequantize(x) for name, x in OWN.items()}
    integers, notes = compared(reals)
    assert integers == list(OWN)
    assert all(re.match("the floats of .* are of (any build|the build tf)[:;] ", n) for n in notes)
    names, _ = compared({DENSE: reals[DENSE].astype(np.float64)})
    assert names == [DENSE]
    for change, words in (
        (lambda x: x + np.float32(0.001), "not multiples of the scale"),
        (lambda x: x + np.float32(1e3), "leave the range"),
        (lambda x: x.astype(np.float16), "must hold finite float32, dequantized, got float16"),
        (lambda x: x * np.nan, "must hold finite float32"),
    ):
        with pytest.raises(QmathError, match=words):
            qmath.diff(PROGRAM, IMAGES, against={DENSE: change(reals[DENSE])})
    whole = OWN["relu6/output"].astype(np.float32)
    with pytest.raises(QmathError, match="They are whole: give integers with an integer dtype"):
        qmath.diff(PROGRAM, IMAGES, against={"relu6/output": whole})


@pytest.mark.parametrize("build", ["tf<2.6", "xla-cpu", "xla-cpu-nofma"])
def test_reals_of_another_build_are_recognized(build):
    step = next(step for step in PROGRAM.steps if step.name == "conv1/post_activation")
    params = dataclasses.replace(step.params, build=build)
    x = np.random.default_rng(0).normal(0, 3, OWN[step.name].shape).astype(np.float32)
    reals = qmath.fake_quant_with_min_max_vars(x, params.min, params.max, build=build)
    found = integers_of(PROGRAM, {step.name: reals}, len(x), lambda: OWN)
    q = qmath.quantize(x, params.min, params.max, params.num_bits, signed=False, build=build)
    np.testing.assert_array_equal(found.integers[step.name], q.values)
    assert found.notes[0].startswith(f"the floats of {step.name} are of the build {build}; ")
    assert found.notes[0].endswith(" of 20,480 elements decide it")


@pytest.mark.parametrize(
    "key", [CONV, f"vectors/{CONV}", f"output/{CONV}", "conv1", "conv1_post_activation", "CONV1"]
)
def test_names_that_mean_a_tensor(key):
    names, notes = compared({key: OWN[CONV]})
    assert names == [CONV]
    assert notes == ("compared: 1 of 5 quantized tensors; qmath's integers stand for the others",)


def test_names_that_mean_none():
    wrong = "dense/post_activatoin"
    _, notes = compared({CONV: OWN[CONV], wrong: OWN[DENSE], "labels": OWN[DENSE]})
    assert f"{wrong!r}, which is no quantized tensor of the model (did you mean" in notes[0]
    assert DENSE in notes[0]
    assert notes[1].startswith("not compared: 'labels'")
    with pytest.raises(QmathError, match=r"holds 'conv2/out'.*the model has quantize_layer/output"):
        qmath.diff(PROGRAM, IMAGES, against={"conv2/out": OWN[CONV]})
    with pytest.raises(QmathError, match="both 'conv1' and 'CONV1' are this tensor"):
        qmath.diff(PROGRAM, IMAGES, against={"conv1": OWN[CONV], "CONV1": OWN[CONV]})


def test_what_qmath_itself_writes(tmp_path):
    out = tmp_path / "model.npz"
    qmath.export(qmath.load(MODEL), out, vectors=5)
    vectors = read_npz(out)
    images = vectors["vectors/image"]
    found = qmath.diff(MODEL, images, against=out)
    assert [layer.name for layer in found.layers] == list(OWN)
    assert not found.notes
    assert found.first is None


@pytest.mark.parametrize("axes", ["NCHW", {"conv1": "NCHW"}, {"": "NHWC", CONV: "NCHW"}])
def test_axes_that_are_stated(axes):
    arrays = {CONV: OWN[CONV].transpose(0, 3, 1, 2), "relu6/output": OWN["relu6/output"]}
    if axes == "NCHW":
        arrays["relu6/output"] = arrays["relu6/output"].transpose(0, 3, 1, 2)
    assert compared(arrays, axes=axes)[0] == list(arrays)
    flat = {name: array.ravel() for name, array in arrays.items()}
    assert compared(flat, axes=axes)[0] == list(arrays)


def test_other_orders_of_axes():
    assert compared({CONV: OWN[CONV].transpose(3, 1, 2, 0)}, axes="CHWN")[0] == [CONV]
    assert compared({DENSE: OWN[DENSE].T}, axes="CN")[0] == [DENSE]
    single = {CONV: OWN[CONV][0].transpose(2, 0, 1)}
    found = qmath.diff(PROGRAM, IMAGES[:1], against=single, axes="NCHW")
    assert found.first is None
    assert qmath.diff(PROGRAM, IMAGES[:1], against={CONV: OWN[CONV][0]}).first is None
    for shape in (-1, (20, -1)):
        _, notes = compared({CONV: OWN[CONV].reshape(shape)})
    assert any("read in qmath's order, channels last" in note and CONV in note for note in notes)


@pytest.mark.parametrize(
    ("array", "axes", "words"),
    [
        (OWN[CONV].transpose(0, 3, 1, 2), None, r"state yours: --axes conv1/post_activation=NCHW$"),
        (OWN[CONV].transpose(0, 3, 1, 2), "NCHX", "no tensor here has the axes 'NCHX'; give NHWC"),
        (OWN[CONV], {CONV: "NC"}, "its axes are NHWC, N the examples"),
        (OWN[CONV], "NCHW", r"in the order NCHW it must be \(20, 16, 8, 8\)"),
        (OWN[CONV], {DENSE: "NC"}, "the axes of dense/post_activation are stated, but"),
        (OWN[CONV][:7], None, r"\(7, 8, 8, 16\); 20 examples of the data make \(20, 8, 8, 16\)"),
        (OWN[CONV][..., :3], None, r"\(20, 8, 8, 3\); 20 examples"),
        (np.ma.masked_greater(OWN[CONV], 200), None, "yours must have no masked elements"),
        (OWN[CONV] > 3, None, "must be integers, or dequantized float32, got bool"),
        (OWN[CONV].astype(np.int64) << 40, None, "which is no integer of 8 bits"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(array, axes, words):
    with pytest.raises(QmathError, match=words):
        qmath.diff(PROGRAM, IMAGES, against={CONV: array}, axes=axes)


def test_integers_out_of_range_are_told_and_go_on_clamped():
    wide = {CONV: OWN[CONV].astype(np.int32), DENSE: OWN[DENSE]}
    top = int(OWN[CONV].max())
    wide[CONV][OWN[CONV] == top] = 300
    count = int((OWN[CONV] == top).sum())
    found = qmath.diff(PROGRAM, IMAGES, against=wide)
    assert any(f"{count:,} of your 20,480 integers lie outside" in note for note in found.notes)
    assert found.layers[0].teacher_forced == count
    assert (found.layers[0].differences[0].value, found.layers[0].largest) == (top, 300 - top)


def test_some_layers_only_under_another_profile():
    theirs = qmath.run(PROGRAM, IMAGES, profile="tflite").integers
    found = qmath.diff(PROGRAM, IMAGES, against={"relu6": theirs["relu6/output"]})
    assert found.first is not None
    assert found.profile == "tflite"
    assert qmath.diff(PROGRAM, IMAGES, against=theirs).profile == "tflite"
    assert qmath.diff(PROGRAM, IMAGES, against=OWN).profile is None


def test_files_are_told_apart_by_their_content(tmp_path):
    folder = tmp_path / "folder"
    (folder / "conv1").mkdir(parents=True)
    OWN[CONV].tofile(folder / "conv1" / "post_activation.bin")
    (OWN["relu6/output"].astype("<i2")).tofile(folder / "relu6_output.raw")
    np.save(folder / "dense.npy", OWN[DENSE])
    (folder / "README").write_text("mine")
    (folder / ".hidden").write_text("")
    names, notes = compared(folder)
    assert names == [CONV, "relu6/output", DENSE]
    assert any("'README'" in note for note in notes)
    assert not any("hidden" in note for note in notes)
    np.savez(tmp_path / "no_suffix", **OWN)
    (tmp_path / "no_suffix.npz").rename(tmp_path / "integers")
    assert compared(str(tmp_path / "integers"))[0] == list(OWN)
    np.save(tmp_path / "last.npy", OWN[DENSE])
    assert compared(tmp_path / "last.npy")[0] == [DENSE]
    np.save(tmp_path / "conv1.npy", OWN[CONV])
    assert compared(tmp_path / "conv1.npy")[0] == [CONV]
    assert compared(f"flatten={folder / 'relu6_output.raw'}")[0] == ["flatten"]


def test_raw_bytes_of_signed_integers(tmp_path):
    for dtype in ("<i1", "<i2", "<i4", "<i8"):
        (OWN[CONV].astype(int) - 128).astype(dtype).tofile(tmp_path / "conv1.bin")
        _, notes = compared(tmp_path / "conv1.bin")
        assert any("flat arrays are read" in note for note in notes)


@pytest.mark.parametrize("length", [0, 20_479, 20_480 * 3, 20_480 * 16])
def test_raw_bytes_of_another_length(tmp_path, length):
    (tmp_path / "conv1.bin").write_bytes(bytes(length))
    words = rf"{length:,} bytes; as raw integers, conv1/post_activation of shape \(20, 8, 8, 16\) "
    with pytest.raises(FileFormatError, match=words + r"has 20,480 \(int8\), 40,960 \(int16\)"):
        qmath.diff(PROGRAM, IMAGES, against=tmp_path / "conv1.bin")


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "two.npz", a=OWN[DENSE], b=OWN[DENSE])
    for path, words in (
        (tmp_path / "missing.bin", "there is no such file"),
        (tmp_path / "empty", "the folder holds no files"),
        (f"conv1={tmp_path / 'empty'}", "is a folder"),
        (f"conv1={tmp_path / 'two.npz'}", "holds 2 arrays; give a file of one"),
        ("conv9=file.bin", r"'conv9' is no quantized tensor of the model \(did you mean"),
        ("exat", "there is no such file"),
    ):
        with pytest.raises(QmathError, match=words):
            qmath.diff(PROGRAM, IMAGES, against=path)
    with pytest.raises(QmathError, match="has no axes of its own"):
        qmath.diff(PROGRAM, IMAGES, against="exact", axes="NCHW")


def test_one_element_of_a_convolution():
    found = element(PROGRAM, IMAGES, "conv1[2, 3,3,5]", against=OWN)
    assert (found.tensor, found.index) == (CONV, (2, 3, 3, 5))
    step = PROGRAM.step(CONV)
    scale = step.value.terms[0].scale[5]
    (accumulator,) = found.sources.values()
    y = Fraction(scale) * accumulator + Fraction(step.value.offset[5])
    y /= Fraction(step.params.scale)
    assert found.step == y
    assert found.to_tie == float(abs(y % 1 - Fraction(1, 2)))
    rounded = int((y + Fraction(1, 2)).__floor__()) + step.params.zero_point
    assert found.integers["exact"] == found.integers["integer"] == OWN[CONV][2, 3, 3, 5] == rounded
    assert found.reference == rounded
    for profile in ("tflite", "xnnpack"):
        there = qmath.run(PROGRAM, IMAGES, profile=profile).integers[CONV][2, 3, 3, 5]
        assert found.integers[profile] == there
    negative = element(PROGRAM, IMAGES, "conv1[-18,-5,-5,-11]")
    assert negative.index == found.index
    assert negative.reference is None


def test_an_element_starts_from_yours():
    mine = {CONV: OWN[CONV].copy()}
    mine[CONV][1] ^= 3
    plain = element(PROGRAM, IMAGES, "relu6/output[1,2,2,0]")
    theirs = element(PROGRAM, IMAGES, "relu6/output[1,2,2,0]", against=mine)
    assert plain.sources != theirs.sources
    assert theirs.reference is None
    against = element(PROGRAM, IMAGES, "relu6/output[1,2,2,0]", against="tflite")
    assert isinstance(against.reference, int)


def test_elements_that_no_profile_rounds():
    found = element(PROGRAM, IMAGES, "quantize_layer/output[4,3,3,0]")
    value = float(IMAGES[4, 3, 3, 0])
    params = PROGRAM.step("quantize_layer/output").params
    assert found.sources == {"image": value}
    assert found.step == Fraction(value) / Fraction(params.scale)
    assert set(found.integers.values()) == {int(OWN["quantize_layer/output"][4, 3, 3, 0])}
    moved = element(PROGRAM, IMAGES, "flatten[7]")
    assert moved.index == (0, 7)
    assert moved.step is None
    assert set(moved.integers.values()) == {int(OWN["flatten"][0, 7])}


@pytest.mark.parametrize(
    "at", ["conv1", "conv1[20,0,0,0]", "conv1[1]", "conv1[0,0,0,0,0]", "x[0]", "[0]", "conv1[a]"]
)
def test_elements_that_are_none(at):
    words = r"is no element; write|indices|lies outside|is no quantized tensor"
    with pytest.raises(QmathError, match=words):
        element(PROGRAM, IMAGES, at)


def test_the_words_for_an_element_that_differs():
    found = element(PROGRAM, IMAGES, "dense[0,0]", against={DENSE: OWN[DENSE] ^ 3})
    own = found.integers["integer"]
    assert isinstance(own, int)
    assert found.reference == own ^ 3
    assert not found.explains(own)
    assert found.explains(found.reference)


def test_no_examples_are_not_equal():
    with pytest.raises(QmathError, match="hold no examples"):
        qmath.diff(MODEL, np.empty((0, 8, 8, 1), np.float32))
