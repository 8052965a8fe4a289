"""``qmath run`` and ``qmath diff`` on the samples."""

import io
import os
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import qmath
from tests.cli.running import fails, run
from tests.helpers import read_npz

SAMPLES = Path("reference/samples")
DATA = SAMPLES / "digits_test.npz"
AVERAGE = "MovingAverageQuantizer(num_bits=4, per_axis=False, symmetric=False, narrow_range=False)"
SETTINGS = [
    *("--quantizer", f"MyConfig.activation={AVERAGE}"),
    *("--quantizer", f"MyOutputConfig.output={AVERAGE}"),
]


def test_run_predicts_the_digits_and_writes_the_integers(tmp_path):
    out = tmp_path / "out.npz"
    result = run("run", SAMPLES / "integer4.h5", DATA, "-o", out, "--require-integer", *SETTINGS)
    assert result.exit_code == 0, result.output
    assert "accumulator bits" in result.stdout
    data = read_npz(DATA)
    with np.load(out) as file:
        written = dict(file)
    golden = read_npz("reference/golden/samples.npz")["integer4/predictions"]
    logits = written["output/dense/post_activation"]
    np.testing.assert_array_equal(logits.argmax(1), golden.argmax(1))
    assert (logits.argmax(1) == data["labels"]).mean() > 0.95
    assert written["dense/post_activation"].dtype == np.uint8
    assert written["dense/post_activation"].max() <= 15
    assert written["relu6/output.shift"].shape == (16,)


def redo(found, exported, name: str, accumulators: np.ndarray) -> np.ndarray:
    """Compute one tensor from the file's constants alone, as a user's kernel would."""
    y = accumulators * found[f"{name}.multiplier"] + found[f"{name}.addend"]
    limits = found[f"{name}.low"], found[f"{name}.high"]
    return np.clip(y >> found[f"{name}.shift"], *limits) + exported[name].zero_point


def test_the_constants_written_compute_what_was_written(tmp_path):
    out, model = tmp_path / "out.npz", SAMPLES / "default8.h5"
    assert run("run", model, DATA, "-o", out).exit_code == 0
    exported = qmath.quantize_model(qmath.load(model)).tensors
    with np.load(out) as found:
        x = found["relu6/output"].reshape(360, -1).astype(np.int64)
        sums = (x - exported["relu6/output"].zero_point) @ exported["dense/kernel"].values
        name = "dense/post_activation"
        np.testing.assert_array_equal(found[name], redo(found, exported, name, sums))
        assert found[f"{name}.sources"].tolist() == ["flatten"]

        # A depthwise convolution, batch normalization and a ReLU6, at stride 2, padded below.
        x = found["conv1/post_activation"].astype(np.int64)
        x = np.pad(
            x - exported["conv1/post_activation"].zero_point, ((0, 0), (0, 1), (0, 1), (0, 0))
        )
        kernel = exported["dw1/depthwise_kernel"].values[..., 0].astype(np.int64)
        sums = sum(
            x[:, i : i + 7 : 2, j : j + 7 : 2] * kernel[i, j] for i in range(3) for j in range(3)
        )
        np.testing.assert_array_equal(
            found["relu6/output"], redo(found, exported, "relu6/output", sums)
        )
        bits = found["relu6/output.accumulator_bits"]
        assert (sums < 2.0 ** (bits - 1)).all()
        assert (sums >= -(2.0 ** (bits - 1))).all()


@pytest.mark.parametrize("profile", ["exact", "integer", "tflite", "xnnpack"])
def test_every_profile_runs(profile):
    result = run("run", SAMPLES / "default8.h5", DATA, "--profile", profile)
    assert result.exit_code == 0, result.output
    assert "dense/post_activation: 360 examples of shape (10,)" in result.stdout


def test_a_run_of_no_examples_says_so(tmp_path):
    data = tmp_path / "none.npz"
    np.savez(data, images=np.zeros((0, 8, 8, 1), np.float32), labels=np.zeros(0, np.int64))
    arguments = ["run", SAMPLES / "default8.h5", data, "--labels", "labels", "--activations"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    words = "the data hold no examples, so nothing was computed, and there is no accuracy"
    assert f"note: {words}; check DATA\n" in result.stdout
    assert words in run(*arguments, "--json").stdout
    assert words not in run("run", SAMPLES / "default8.h5", DATA).stdout


def test_diff_of_profiles():
    result = run("diff", SAMPLES / "default8.h5", DATA, "--against", "exact")
    assert result.exit_code == 0, result.output
    assert "equal: no layer's own arithmetic differs" in result.stdout
    result = run(
        "diff", SAMPLES / "default8.h5", DATA, "--profile", "tflite", "--rounding", "double"
    )
    assert result.exit_code == 1
    assert "first to differ: conv1/post_activation" in result.stdout
    assert " steps from its tie" in result.stdout
    assert "and 299 further elements" in result.stdout


def test_diff_takes_two_profiles_in_either_way():
    arguments = ["diff", SAMPLES / "default8.h5", DATA, "--profile", "tflite"]
    twice, against = (
        run(*arguments, "--profile", "integer"),
        run(*arguments, "--against", "integer"),
    )
    assert twice.stdout == against.stdout
    assert twice.exit_code == against.exit_code == 1
    message = fails(*arguments, "--profile", "exact", "--against", "integer")
    assert "two runs can be compared" in message


def test_diff_of_a_model_that_ends_in_float():
    result = run("diff", SAMPLES / "question.h5", DATA, "--profile", "exact", *SETTINGS[:2])
    assert result.exit_code == 0, result.stderr
    assert "dw1/post_activation" in result.stdout


@pytest.mark.parametrize("verb", ["inspect", "export", "verify", "run", "diff"])
def test_every_help_has_an_example(verb):
    assert f"qmath {verb} model.h5" in run(verb, "--help").stdout


def test_no_input_is_overwritten(tmp_path):
    model, data = tmp_path / "model.h5", tmp_path / "data.npz"
    shutil.copy(SAMPLES / "default8.h5", model)
    shutil.copy(DATA, data)
    for path in (model, data):
        message = fails("run", model, data, "-o", path, "--overwrite")
        assert f"{path} is an input itself" in message
    assert model.read_bytes() == (SAMPLES / "default8.h5").read_bytes()


def test_diff_against_a_dump(tmp_path):
    model, dump = SAMPLES / "integer4.h5", tmp_path / "dump.npz"
    quantizer = qmath.MovingAverageQuantizer(4, False, False, False)
    settings = {"MyConfig.activation": quantizer, "MyOutputConfig.output": quantizer}
    result = qmath.run(qmath.load(model, settings), read_npz(DATA)["images"])
    params = {step.name: step.params for step in result.program.steps}
    reals = {name: params[name].dequantize(values) for name, values in result.integers.items()}
    np.savez(dump, **reals)
    assert run("diff", model, DATA, "--against", dump, *SETTINGS).exit_code == 0
    reals["relu6/output"].flat[0] += np.float32(params["relu6/output"].scale)
    np.savez(dump, **reals)
    result = run("diff", model, DATA, "--against", dump, *SETTINGS)
    assert result.exit_code == 1
    assert "first to differ: relu6/output" in result.stdout
    reals["relu6/output"].flat[0] = -5 * params["relu6/output"].scale
    np.savez(dump, **reals)
    assert "values leave the range" in fails("diff", model, DATA, "--against", dump, *SETTINGS)
    np.savez(dump, **{"relu6/output": np.full(reals["relu6/output"].shape, "text")})
    assert "must be integers, or dequantized float32, got <U4" in fails(
        "diff", model, DATA, "--against", dump, *SETTINGS
    )
    reals["relu6/output"].flat[0] = 1e-3
    np.savez(dump, **reals)
    message = fails("diff", model, DATA, "--against", dump, *SETTINGS)
    assert "relu6/output" in message
    assert "was it made from this model?" in message


def test_settings_that_are_missing_are_asked_for_and_can_be_pasted():
    message = fails("run", SAMPLES / "question.h5", DATA)
    option = message[message.index("--quantizer") : message.index(" (4 is")]
    assert run("run", SAMPLES / "question.h5", DATA, *shlex.split(option)).exit_code == 0


def test_float_layers_are_listed_or_refused():
    arguments = ["run", SAMPLES / "question.h5", DATA, *SETTINGS[:2]]
    result = run(*arguments)
    assert result.exit_code == 0
    assert "in float32: dense; quantize its weights and its input" in result.stdout
    message = fails(*arguments, "--require-integer")
    assert "these layers run in float32: dense: quantize its weights" in message


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"x": np.zeros((3, 8, 8))},
            "needs image of shape (N, 8, 8, 1); the file holds x",
        ),
        ({"x": np.zeros((2, 8, 8, 1)), "y": np.zeros((2, 8, 8, 1))}, "the file holds x of shape"),
        (
            {"x": np.full((3, 8, 8, 1), 200.0)},
            "image: 100% of the data, from 200 to 200, lie outside the range [0, 1]",
        ),
        ({"x": np.full((3, 8, 8, 1), np.nan)}, "the input at (0, 0, 0, 0) is NaN"),
        ({"image": np.full((3, 8, 8, 1), 1j)}, "the data must be numbers, got dtype complex128"),
        ({"image": np.float32(1)}, "the file holds image of shape ()"),
        ({}, "the file holds nothing"),
    ],
)
def test_data_that_do_not_fit(tmp_path, arrays, words):
    np.savez(tmp_path / "data.npz", **arrays)
    assert words in fails("run", SAMPLES / "default8.h5", tmp_path / "data.npz")


def test_files_that_are_no_data(tmp_path):
    assert "no such file" in fails("run", SAMPLES / "default8.h5", tmp_path / "x.npz")
    (tmp_path / "x.npz").write_text("text")
    assert "not an .npz or .npy" in fails("run", SAMPLES / "default8.h5", tmp_path / "x.npz")
    assert "is a directory" in fails("run", SAMPLES / "default8.h5", tmp_path)
    np.savez(tmp_path / "x.npz", x=np.array([{}], dtype=object))
    for path in (tmp_path / "x.npz", SAMPLES / "default8.h5"):
        message = fails("run", SAMPLES / "default8.h5", path)
        assert "not an .npz or .npy" in message
        assert "pickle" not in message


def test_a_model_without_layers_needs_its_architecture():
    checkpoint = "reference/golden/zoo/tf2.13/kernel_bias/checkpoint/ckpt"
    assert "--architecture" in fails("run", checkpoint, DATA)


def test_options_that_do_not_fit(tmp_path):
    model = SAMPLES / "default8.h5"
    assert "multiplier_bits must be 8 to 31" in fails("run", model, DATA, "--multiplier-bits", 7)
    message = fails("run", model, DATA, "--profile", "exact", "--multiplier-bits", 8)
    assert "the profile 'exact' has no option 'multiplier_bits'" in message
    (tmp_path / "out.npz").write_text("precious")
    assert "exists" in fails("run", model, DATA, "-o", tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_text() == "precious"


def integers() -> dict[str, np.ndarray]:
    return qmath.run(SAMPLES / "default8.h5", read_npz(DATA)["images"]).integers


def test_diff_against_integers_of_ones_own(tmp_path):
    model, mine = SAMPLES / "default8.h5", integers()
    signed = {
        name: (x.astype(int) - 128).astype(np.int8).transpose(0, *range(x.ndim - 1, 0, -1))
        for name, x in mine.items()
    }
    path = tmp_path / "mine.npz"
    np.savez(path, **signed, other=np.zeros(3))
    message = fails("diff", model, DATA, "--against", path)
    assert message.endswith("in the order NHWC; state yours: --axes conv1/post_activation=NCHW")
    orders = ["--axes", "NCWH", "--quiet"]
    assert run("diff", model, DATA, "--against", path, *orders).exit_code == 0
    result = run("diff", model, DATA, "--against", path, *orders[:2])
    assert "equal: no layer's own arithmetic differs" in result.stdout
    assert "note: not compared: 'other', which is no quantized tensor" in result.stdout
    np.save(tmp_path / "last.npy", mine["dense/post_activation"] ^ 1)
    result = run("diff", model, DATA, "--against", tmp_path / "last.npy")
    assert result.exit_code == 1
    assert "first to differ: dense/post_activation; float32 noise does not" in result.stdout
    assert "  [0, 0]: qmath's " in result.stdout
    assert ", yours " in result.stdout
    assert "note: compared: 1 of 5 quantized tensors" in result.stdout


def test_diff_says_which_mistake_it_is(tmp_path):
    model, images = SAMPLES / "default8.h5", read_npz(DATA)["images"]
    theirs = qmath.run(model, images, profile="xnnpack").integers
    np.savez(tmp_path / "theirs.npz", **theirs)
    result = run("diff", model, DATA, "--against", tmp_path / "theirs.npz")
    assert result.exit_code == 1
    assert "all of yours agree under the profile xnnpack" in result.stdout
    assert "conv1/post_activation: all agree if computed under the profile xnnpack" in result.stdout
    wrong = integers()["conv1/post_activation"].copy()
    wrong[:, 0, 0, 0] ^= 1
    np.save(tmp_path / "conv1.npy", wrong)
    result = run("diff", model, DATA, "--against", tmp_path / "conv1.npy")
    assert "conv1/post_activation: no mistake that qmath knows explains more" in result.stdout
    wrong[:, 1:] = 0
    np.save(tmp_path / "conv1.npy", wrong)
    result = run("diff", model, DATA, "--against", tmp_path / "conv1.npy")
    assert "nothing known explains all" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--axes", "NCHW"], "the profile 'exact' has no axes of its own"),
        (["--axes", "NCHW", "--axes", "NHWC"], "--axes is given twice for all tensors"),
        (["--axes", "x=NCHW", "--axes", "x=NHWC"], "--axes is given twice for x"),
        (["--against", "exat"], "exat: there is no such file"),
        (["--at", "conv1"], "'conv1' is no element; write TENSOR[i,j,…]"),
        (["--at", "conv9[0]"], "'conv9' is no quantized tensor of the model (did you mean conv1/"),
        (["--at", "conv1[0,3]"], "give 4 indices in conv1[0,3], or 3 for the first example"),
        (["--at", "conv1[0,0,0,99]"], "has the shape (360, 8, 8, 16), the examples first"),
    ],
)
def test_options_of_diff_that_do_not_fit(options, words):
    assert words in fails("diff", SAMPLES / "default8.h5", DATA, *options)


def test_diff_explains_one_element(tmp_path):
    model, mine = SAMPLES / "default8.h5", integers()
    result = run("diff", model, DATA, "--at", "conv1[3,3,5]")
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[2:])
    assert result.stdout.startswith("conv1/post_activation[0, 3, 3, 5]\n")
    assert "  from quantize_layer/output  -30125\n" in result.stdout
    assert lines["exact"] == "86 (signed -42)"
    assert lines["scale"] == "0.00684822956, zero point 120"
    assert "from the zero point, exactly -" in lines["step"]
    assert "yours" not in lines
    np.savez(tmp_path / "mine.npz", **mine)
    arguments = ["diff", model, DATA, "--against", tmp_path / "mine.npz", "--at", "conv1[3,3,5]"]
    assert "yours                       86 (signed -42)" in run(*arguments).stdout
    mine["conv1/post_activation"][0, 3, 3, 5] += 1
    np.savez(tmp_path / "mine.npz", **mine)
    assert run(*arguments).exit_code == 1
    assert "against tflite" in run(*arguments[:3], "--against", "tflite", *arguments[5:]).stdout


def test_against_a_folder_that_has_the_name_of_a_profile(tmp_path, monkeypatch):
    """A path is never taken for a profile, which would be equal to itself."""
    model, data = (SAMPLES / "default8.h5").absolute(), DATA.absolute()
    monkeypatch.chdir(tmp_path)
    assert run("run", model, data, "-o", "own.npz").exit_code == 0
    (tmp_path / "exact").mkdir()
    with np.load("own.npz") as own:
        np.save("exact/flatten.npy", own["flatten"] ^ 1)
    assert run("diff", model, data, "--against", "./exact").exit_code == 1
    assert run("diff", model, data, "--against", "exact").exit_code == 0
    assert "--against is empty" in fails("diff", model, data, "--against", "")


def test_data_in_a_pipe_are_refused_at_once(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("named pipes are POSIX's")
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in fails("run", SAMPLES / "default8.h5", tmp_path / "pipe")


def test_an_index_of_many_digits_is_no_element():
    at = f"flatten[{'9' * 5000}]"
    assert "is no element" in fails("diff", SAMPLES / "default8.h5", DATA, "--at", at)


def shards(folder: Path) -> str:
    images = read_npz(DATA)["images"]
    for i in range(4):
        np.save(folder / f"shard{i}.npy", images[100 * i : 100 * (i + 1)])
    return f"{folder}/shard*.npy"


def test_shards_and_workers_write_what_one_file_does(tmp_path):
    model, data = SAMPLES / "default8.h5", shards(tmp_path)
    own, others = tmp_path / "own.npz", tmp_path / "others.npz"
    options = ["--labels", "labels", "--activations"]
    result = run("run", model, DATA, "-o", own, *options)
    assert "accuracy: 98.0556%" in result.stdout
    assert "integers used" in result.stdout
    np.save(tmp_path / "labels.npy", read_npz(DATA)["labels"])
    options[1] = tmp_path / "labels.npy"
    divided = run("run", model, data, "-o", others, *options, "--workers", 2)
    assert divided.stdout == result.stdout.replace(str(own), str(others))
    assert own.read_bytes() == others.read_bytes()
    options = ["--profile", "tflite", "--quiet", "--json"]
    first = run("diff", model, DATA, *options).stdout
    assert run("diff", model, data, *options).stdout == first.replace(str(DATA), data)


def test_what_is_kept_is_what_is_written(tmp_path):
    model, out = SAMPLES / "default8.h5", tmp_path / "out.npz"
    arguments = ["run", model, DATA, "--profile", "exact"]
    assert run(*arguments, "-o", out, "--keep", "outputs", "--keep", "flatten").exit_code == 0
    assert read_npz(out).keys() == {
        "output/dense/post_activation", "dense/post_activation", "flatten"
    }  # fmt: skip
    assert "give both" in fails(*arguments, "--keep", "outputs")
    message = fails(*arguments, "-o", out, "--overwrite", "--keep", "conv1")
    assert (
        "keep has 'conv1', which is none of the model's tensors: quantize_layer/output" in message
    )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(7), "labels: 7 are given, the data hold 360 examples"),
        (np.zeros((360, 3)), "3) do not fit dense/post_activation"),
        (np.arange(360) % 11, "the label of example 10 is 10, and dense/post_activation has the"),
        (np.arange(-1, 359) % 10 - 1, "the label of example 1 is -1"),
        (np.full(360, 1.5), "the label of example 0 is 1.5"),
        (np.full(360, np.nan), "the label of example 0 is nan"),
        (np.zeros((360, 10)), "the label of example 0 is a row without one greatest number"),
        (np.full((360, 10), np.nan), "the label of example 0 is a row without one"),
        (None, "no such file"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, labels, words):
    path = tmp_path / "labels.npy"
    if labels is not None:
        np.save(path, labels)
    assert words in fails("run", SAMPLES / "default8.h5", DATA, "--labels", path)


def test_labels_that_are_nowhere():
    said = fails("run", SAMPLES / "default8.h5", DATA, "--labels", "nolabel")
    assert "no such array in reference/samples/digits_test.npz, whose arrays are: " in said
    assert said.endswith(", ".join(read_npz(DATA)))


def test_an_output_of_another_suffix_is_said_to_be_an_npz(tmp_path):
    np.save(tmp_path / "one.npy", read_npz(DATA)["images"][:1])
    said = run("run", SAMPLES / "default8.h5", tmp_path / "one.npy", "-o", tmp_path / "k.txt")
    assert "k.txt: 5 quantized tensors in an .npz, whatever its name says" in said.stdout


@pytest.mark.parametrize("shape", [(360, 10**12), (10**15,), (360,)])
def test_a_header_that_promises_more_than_the_file_has(tmp_path, shape):
    file = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    plain, packed = tmp_path / "labels.npy", tmp_path / "labels.npz"
    plain.write_bytes(file.getvalue())
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("labels.npy", file.getvalue())
    for path in (plain, packed):
        said = fails("run", SAMPLES / "default8.h5", DATA, "--labels", path)
        assert "ends before its last row" in said


def test_shards_that_do_not_fit_together(tmp_path):
    model, data = SAMPLES / "default8.h5", shards(tmp_path)
    assert "names no file" in fails("run", model, f"{tmp_path}/none*.npy")
    np.save(tmp_path / "shard9.npy", np.zeros((3, 8, 8)))
    message = fails("run", model, data)
    assert "shard9.npy holds an array float64 (N, (8, 8))" in message
    assert "give shards of the same arrays" in message
    path = tmp_path / "shard1.npy"
    assert "is an input itself" in fails("run", model, data, "-o", path, "--overwrite")


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_data_that_end_early_or_are_damaged(tmp_path, save):
    whole = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(whole, read_npz(DATA)["images"])
    content = bytearray(whole.read_bytes())
    if save is np.save:
        whole.write_bytes(content[:-10])
    else:
        content[len(content) // 2] ^= 255
        whole.write_bytes(content)
    message = fails("run", SAMPLES / "default8.h5", whole)
    assert str(whole) in message


def test_a_scheduler_needs_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = fails("run", SAMPLES / "default8.h5", DATA, "--scheduler", "tcp://localhost:1")
    assert message.endswith("--scheduler needs Dask's package distributed: pip install distributed")
