"""The verbs as a user runs them, on the sample files."""

import json
import re
import shlex
from importlib import resources
from pathlib import Path

import h5py
import jsonschema
import numpy as np
import pytest

import qmath
from tests.cli.running import fails, run

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
GOLDEN = SAMPLES.parent / "golden" / "samples.npz"  # TensorFlow's own fake-quantized kernels
QUESTION = str(SAMPLES / "question.h5")
NAMES = ["question", "integer4", "default8", "nbit4"]
LAST = "LastValueQuantizer(num_bits=4, per_axis=False, symmetric=True, narrow_range=False)"
AVERAGE = "MovingAverageQuantizer(num_bits=4, per_axis=False, symmetric=False, narrow_range=False)"


def test_question_in_one_command(tmp_path):
    result = run("export", QUESTION, "-o", tmp_path / "out.npz")
    assert result.exit_code == 0
    assert (
        "2 quantized weights (4 bits), scale and zero point of 1 of 3 activations" in result.stdout
    )
    with np.load(tmp_path / "out.npz") as arrays:
        kernel = arrays["conv1/kernel"]
        assert kernel.dtype == np.int8
        assert kernel.min() == -8
        assert kernel.max() == 7


def test_the_note_can_be_pasted(tmp_path):
    note = run("export", QUESTION, "-o", tmp_path / "out.npz").stdout
    options = shlex.split(re.search(r'(--quantizer ".*") \(', note)[1])
    result = run("export", QUESTION, "-o", tmp_path / "all.npz", "--strict", *options)
    assert result.exit_code == 2
    assert "assumed: the settings of conv1/kernel, dw1/depthwise_kernel" in result.stderr
    options += ["--quantizer", f"MyConfig.weights={LAST}"]
    result = run("export", QUESTION, "-o", tmp_path / "all.npz", "--strict", *options)
    assert result.exit_code == 0
    assert "3 of 3 activations" in result.stdout
    (_, note) = result.stdout.splitlines()
    assert note.startswith("note: Assumed: that nothing quantizes conv1/output, ")
    with np.load(tmp_path / "all.npz") as arrays:
        assert arrays["conv1/post_activation.zero_point"].shape == ()
    assert run("verify", QUESTION, tmp_path / "all.npz", *options).exit_code == 0
    plain = run("verify", QUESTION, tmp_path / "all.npz")
    assert plain.exit_code == 0
    assert "as given to export: the settings of conv1/kernel, conv1/post_activation" in plain.stdout


def test_a_settings_file_does_the_same(tmp_path):
    settings = tmp_path / "settings.toml"
    settings.write_text(
        '["MyConfig.activation"]\nquantizer = "MovingAverageQuantizer"\nnum_bits = 4\n'
        "per_axis = false\nsymmetric = false\nnarrow_range = false\n"
    )
    by_option = tmp_path / "option.npz"
    by_file = tmp_path / "file.npz"
    run("export", QUESTION, "-o", by_option, "--quantizer", f"MyConfig.activation={AVERAGE}")
    run("export", QUESTION, "-o", by_file, "--settings", settings)
    assert by_option.read_bytes() == by_file.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_export_and_verify_every_sample(tmp_path, name):
    path, again = tmp_path / "out.npz", tmp_path / "again.npz"
    assert run("export", SAMPLES / f"{name}.h5", "-o", path).exit_code == 0
    result = run("verify", SAMPLES / f"{name}.h5", path)
    assert result.exit_code == 0
    assert ": equal; " in result.stdout
    run("export", SAMPLES / f"{name}.h5", "-o", again)
    assert path.read_bytes() == again.read_bytes()
    schema = json.loads((resources.files("qmath.exports") / "manifest.schema.json").read_text())
    with np.load(GOLDEN) as file:
        golden = {key: file[key] for key in file.files}
    kernels = [key for key in golden if re.fullmatch(rf"{name}/.*kernel", key)]
    assert kernels
    with np.load(path) as arrays:
        jsonschema.validate(json.loads(arrays["manifest"].tobytes()), schema)
        for key in kernels:
            tensor = key.removeprefix(f"{name}/")
            values, zero_point = arrays[tensor], arrays[f"{tensor}.zero_point"]
            scale = arrays[f"{tensor}.scale"]
            real = (values.astype(np.int32) - zero_point).astype(np.float32) * scale
            np.testing.assert_array_equal(real.view(np.uint32), golden[key].view(np.uint32))


OPTIONS = {
    "safetensors": "packing=msb", "bin": "alignment=64", "h5": None, "mem": "per_word=4",
    "hex": "comments=false", "coe": "per_word=4", "mif": "per_word=4",
}  # fmt: skip


@pytest.mark.parametrize("format", OPTIONS)
def test_export_in_other_formats(tmp_path, format):
    path, model = tmp_path / f"out.{format}", SAMPLES / "nbit4.h5"
    option = ["--option", OPTIONS[format]] if OPTIONS[format] else []
    assert run("export", model, "-o", path, *option).exit_code == 0
    result = run("verify", model, path)
    assert result.exit_code == 0
    assert "equal; 14 tensors" in result.stdout.replace("\n", " ")
    assert run("verify", SAMPLES / "default8.h5", path).exit_code == 1
    assert "exists" in fails("export", model, "-o", path)


@pytest.mark.parametrize("name", NAMES)
def test_export_in_other_layouts(tmp_path, name):
    layouts = ["--layout", "OHWI", "--layout", "MHWI"]
    if name != "question":
        layouts += ["--layout", "OI"]
    assert run("export", SAMPLES / f"{name}.h5", "-o", tmp_path / "o.npz", *layouts).exit_code == 0
    assert run("verify", SAMPLES / f"{name}.h5", tmp_path / "o.npz").exit_code == 0
    with np.load(tmp_path / "o.npz") as arrays:
        values, zero_point = arrays["conv1/kernel"], arrays["conv1/kernel.zero_point"]
        real = (values.astype(np.int32) - zero_point).astype(np.float32) * arrays[
            "conv1/kernel.scale"
        ]
    expected = qmath.load(SAMPLES / f"{name}.h5").tensors["conv1/kernel"].quantize().dequantize()
    np.testing.assert_array_equal(real, expected.transpose(3, 0, 1, 2))


def test_verify_names_the_first_differing_element(tmp_path):
    run("export", QUESTION, "-o", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["conv1/kernel"][2, 1, 0, 5] ^= 1
    np.savez(tmp_path / "out.npz", **arrays)
    result = run("verify", QUESTION, tmp_path / "out.npz")
    assert result.exit_code == 1
    assert "conv1/kernel[2, 1, 0, 5]: the file holds" in result.stdout
    assert "(1 of 144 differ)" in result.stdout


def test_verify_of_a_damaged_file(tmp_path):
    run("export", QUESTION, "-o", tmp_path / "out.npz")
    data = (tmp_path / "out.npz").read_bytes()
    (tmp_path / "out.npz").write_bytes(data[: len(data) // 2])
    assert "not an .npz file, or it is damaged" in fails("verify", QUESTION, tmp_path / "out.npz")
    assert "No such file" in fails("verify", QUESTION, tmp_path / "no.npz")


def test_inspect_has_verdict_table_and_warnings():
    lines = run("inspect", QUESTION).stdout.splitlines()
    assert lines[1] == "weights 2/2 ready, 2 assumed, activations 1/3 ready, integer-only: no"
    row = next(line for line in lines if line.startswith("dw1/depthwise_kernel"))
    assert "3x3x16x1" in row
    assert "14/16" in row
    assert "range ratio" in row
    text = "\n".join(lines)
    for kind in ("missing-settings", "float-input", "float-layer", "single-range-depthwise"):
        severity = "error" if kind == "missing-settings" else "warning"
        assert f"\n{kind} ({severity})\n" in text
    assert "\x1b" not in text


def test_inspect_with_settings():
    result = run("inspect", QUESTION, "--quantizer", f"MyConfig.activation={AVERAGE}")
    assert "activations 3/3 ready" in result.stdout
    assert "missing-settings" not in result.stdout


@pytest.mark.parametrize(
    ("name", "integer_only"),
    [("question", False), ("integer4", True), ("default8", True), ("nbit4", True)],
)
def test_inspect_as_json(name, integer_only):
    report = json.loads(run("inspect", SAMPLES / f"{name}.h5", "--json").stdout)
    assert report["verdict"]["integer_only"] is integer_only
    assert {row["tensor"] for row in report["rows"]} > {"conv1/kernel", "conv1/bias"}
    assert all(item["kind"] and item["remedy"] for item in report["warnings"])


def test_long_names_are_whole_when_piped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert "conv1/post_activation" in run("inspect", QUESTION).stdout
    assert max(map(len, run("inspect", QUESTION).stdout.splitlines())) > 150


def test_existing_output_stays(tmp_path):
    path = tmp_path / "out.npz"
    path.write_text("old")
    assert "exists; choose another name" in fails("export", QUESTION, "-o", path)
    assert path.read_text() == "old"
    assert run("export", QUESTION, "-o", path, "--overwrite").exit_code == 0


def test_outputs_that_cannot_be(tmp_path):
    assert "is a directory" in fails("export", QUESTION, "-o", tmp_path, "--format", "npz")
    assert f"such as {tmp_path / 'report.html'}" in fails("inspect", QUESTION, "--html", tmp_path)
    assert "does not exist" in fails("export", QUESTION, "-o", tmp_path / "no" / "out.npz")
    assert "use one of: npz, " in fails("export", QUESTION, "-o", tmp_path / "out.txt")
    assert list(tmp_path.iterdir()) == []


def test_strict_lists_what_is_missing(tmp_path):
    line = fails("export", QUESTION, "-o", tmp_path / "out.npz", "--strict")
    assert "conv1/post_activation, dw1/post_activation are in no file" in line
    assert '--quantizer "MyConfig.activation=' in line
    assert list(tmp_path.iterdir()) == []


def test_contradicting_bits(tmp_path):
    option = "MyConfig.weights=LastValueQuantizer(5, False, True, False)"
    line = fails("export", QUESTION, "-o", tmp_path / "out.npz", "--quantizer", option)
    assert "num_bits is 5" in line
    assert "num_bits is 4" in line
    assert "--force" in line
    forced = ("--quantizer", option, "--force")
    assert run("export", QUESTION, "-o", tmp_path / "out.npz", *forced).exit_code == 0
    assert run("verify", QUESTION, tmp_path / "out.npz", *forced).exit_code == 0
    plain = run("verify", QUESTION, tmp_path / "out.npz")
    assert plain.exit_code == 0
    assert "as given to export: the settings of conv1/kernel" in plain.stdout


def changed(path, datasets, change):
    """Copy the sample of the question with some of its arrays changed."""
    path.write_bytes(Path(QUESTION).read_bytes())
    with h5py.File(path, "r+") as file:
        for name in datasets:
            values = file[f"model_weights/{name}"]
            values[...] = change(values[...])
    return path


def with_nan(values):
    values[0, 1, 0, 2] = np.nan
    return values


def test_nan_weights(tmp_path):
    model = changed(tmp_path / "nan.h5", ["quant_conv1/conv1/kernel:0"], with_nan)
    line = fails("export", model, "-o", tmp_path / "out.npz")
    assert "conv1/kernel: the input at (0, 1, 0, 2) is NaN" in line
    assert not (tmp_path / "out.npz").exists()
    result = run("inspect", model)
    assert "weights 1/2 ready" in result.stdout
    assert "\nno-integers (error)\n" in result.stdout


def test_unknown_weights_are_listed_with_what_to_paste(tmp_path):
    ends = ["quant_conv1/quant_conv1/kernel_max:0", "quant_dw1/quant_dw1/depthwise_kernel_max:0"]
    model = changed(tmp_path / "odd.h5", ends, lambda end: end * 0.9)
    line = fails("export", model, "-o", tmp_path / "out.npz")
    assert "settings of conv1/kernel, dw1/depthwise_kernel are in no file" in line
    assert not (tmp_path / "out.npz").exists()
    options = shlex.split(re.search(r'(--quantizer ".*") \(', line)[1])
    result = run(
        "export", model, "-o", tmp_path / "out.npz", *(o.replace("=N", "=4") for o in options)
    )
    assert result.exit_code == 0
    assert run("verify", model, tmp_path / "out.npz").exit_code == 0


@pytest.mark.parametrize("verb", ["inspect", "export", "verify"])
def test_unknown_keys(tmp_path, verb):
    target = {"inspect": [], "export": ["-o", tmp_path / "o.npz"], "verify": [tmp_path / "x.npz"]}[
        verb
    ]
    line = fails(verb, QUESTION, *target, "--quantizer", f"Nobody.weights={AVERAGE}")
    assert "Nobody.weights" in line


@pytest.mark.parametrize("verb", ["inspect", "export", "verify"])
def test_models_that_are_none(tmp_path, verb):
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "cut.h5").write_bytes(Path(QUESTION).read_bytes()[:20_000])
    target = {"inspect": [], "export": ["-o", tmp_path / "o.npz"], "verify": [tmp_path / "x.npz"]}
    for name in ("text.h5", "cut.h5", "missing.h5", "."):
        assert name.strip(".") in fails(verb, tmp_path / name, *target[verb])
    assert not (tmp_path / "o.npz").exists()


def test_layouts_that_match_nothing(tmp_path):
    line = fails("export", QUESTION, "-o", tmp_path / "out.npz", "--layout", "NCHW")
    assert "'NCHW' matches no tensor" in line


@pytest.mark.parametrize("verb", ["inspect", "export", "verify"])
def test_help_has_an_example(verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"  qmath {verb} model.h5" in result.stdout


def test_version_and_bare_command():
    assert run("--version").stdout.strip().endswith(qmath.__version__)
    assert "Commands:" in run().stdout


@pytest.mark.parametrize(
    "args", [["nonsense"], ["export"], ["export", QUESTION], ["inspect", "--x"]]
)
def test_wrong_usage_is_one_line(args):
    assert re.search(r"see qmath.* --help$", fails(*args))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", QUESTION], "Missing argument 'DATA'; see qmath run --help"),
        (["verify", QUESTION], "Missing argument 'OUTPUT'; see qmath verify --help"),
        (["run"], "Missing argument 'MODEL...'"),
        (["run", QUESTION, "data.npz", "--keep"], "requires an argument; see qmath run --help"),
    ],
)
def test_what_is_missing_is_named(args, words):
    assert words in fails(*args)


def test_inspect_writes_a_page(tmp_path):
    page = tmp_path / "report.html"
    result = run("inspect", QUESTION, "--html", page)
    assert result.exit_code == 0
    assert "weights 2/2 ready" in result.stdout
    assert "weights 2/2 ready" in page.read_text(encoding="utf-8")
    assert "--overwrite" in fails("inspect", QUESTION, "--html", page)
    assert run("inspect", QUESTION, "--html", page, "--overwrite").exit_code == 0
    assert "is an input itself" in fails("inspect", QUESTION, "--html", QUESTION, "--overwrite")


def test_options_of_a_format_have_a_name_and_a_value(tmp_path):
    command = ("export", QUESTION, "-o", tmp_path / "out.npz", "--option")
    assert "expected NAME=VALUE" in fails(*command, "packing")
    assert "'npz' has no option 'packing'" in fails(*command, "packing=true")
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_one_line(monkeypatch):
    def exhaust(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr("qmath.inspection.report.inspect", exhaust)
    assert "out of memory" in fails("inspect", QUESTION)
