"""The results of every verb as JSON, silence, and several models at once."""

import contextlib
import io
import json
import re
import shutil
import warnings
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from qmath.cli.app import app
from qmath.cli.streams import dumps
from tests.cli.running import run

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
MODEL, OTHER = SAMPLES / "default8.h5", SAMPLES / "integer4.h5"
DATA = SAMPLES / "digits_test.npz"
SCHEMA = json.loads((resources.files("qmath.cli") / "results.schema.json").read_text())
AVERAGE = "MovingAverageQuantizer(num_bits=4, per_axis=False, symmetric=False, narrow_range=False)"
SETTINGS = [
    *("--quantizer", f"MyConfig.activation={AVERAGE}"),
    *("--quantizer", f"MyOutputConfig.output={AVERAGE}"),
]


def document(*args: object, status: int = 0) -> dict:
    """Run with ``--json``; return the document, which fits its schema."""
    result = run(*args, "--json")
    assert result.exit_code == status, result.stderr
    found = json.loads(result.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert found["status"] == status
    definition = SCHEMA["$defs"][found["schema"].removeprefix("qmath/")]
    jsonschema.Draft202012Validator({**definition, "$defs": SCHEMA["$defs"]}).validate(found)
    return found


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Two models, and between them a file that is none."""
    paths = [tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "c.h5"]
    shutil.copy(MODEL, paths[0])
    paths[1].write_text("no model")
    shutil.copy(SAMPLES / "nbit4.h5", paths[2])
    return paths


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch):
    page = (SAMPLES.parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shown = re.search(r"```json\n(.*?)```", page, re.DOTALL)[1]
    assert run("inspect", "model.h5", "--json").stdout == shown
    schemas = {f"qmath/{name}" for name in SCHEMA["$defs"]}
    assert schemas > set(re.findall(r"`(qmath/(?:error|models))`", page)) != set()


def test_inspect_tells_the_costs_that_the_export_to_c_states(tmp_path):
    costs = document("inspect", MODEL, "--costs")["costs"]
    assert run("export", MODEL, "-o", tmp_path / "net", "--format", "c").exit_code == 0
    assert costs == json.loads((tmp_path / "net/manifest.json").read_text())["export"]["costs"]
    shown = run("inspect", MODEL, "--costs").stdout.splitlines()
    assert [row.split()[1] for row in shown if row.startswith("all ")] == [str(costs["arena"])]
    assert "costs" not in document("inspect", MODEL)


def test_the_schema_refuses_what_is_none():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    valid = document("export", "missing.h5", "-o", "out.npz", status=2)
    for change in ({"version": 1}, {"schema": "qmath/other"}, {"more": 1}, {"status": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(valid | change, SCHEMA)


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.h5")), ids=lambda path: path.stem)
def test_inspect_and_export_and_verify(tmp_path, path):
    report = document("inspect", path)
    assert report["source"] == str(path)
    out = tmp_path / "out.npz"
    exported = document("export", path, "-o", out)
    ready = report["verdict"]
    assert exported["weights"] == ready["weights"]
    assert exported["activations"] == ready["activations"]
    assert exported["activations_ready"] == ready["activations_ready"]
    assert (exported["format"], exported["output"]) == ("npz", str(out))
    verified = document("verify", path, out)
    assert verified["equal"] is True
    assert verified["build"] == "tf"
    assert verified["elements"] > 0


def test_verify_that_differs(tmp_path):
    run("export", MODEL, "-o", tmp_path / "out.npz")
    found = document("verify", OTHER, tmp_path / "out.npz", status=1)
    assert found["equal"] is False
    assert found["differing"]
    assert found["differences"]


def test_run(tmp_path):
    found = document("run", MODEL, DATA, "-o", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as written:
        for name, entry in found["tensors"].items():
            assert list(written[name].shape) == entry["shape"]
        for name, entry in found["constants"].items():
            shifts = written[f"{name}.shift"]
            assert entry["shift"] == [shifts.min(), shifts.max()]
    assert list(found["outputs"].values()) == [{"shape": [360, 10]}]
    floats = document("run", SAMPLES / "question.h5", DATA, *SETTINGS[:2], "--profile", "exact")
    assert floats["constants"] == {}
    assert list(floats["float_layers"]) == ["dense"]
    assert floats["output"] is None


def test_diff():
    found = document("diff", MODEL, DATA, "--profile", "tflite", status=1)
    assert (found["profile"], found["against"]) == ("tflite", "exact")
    assert (found["equal"], found["explained"]) == (False, False)
    layer = next(layer for layer in found["layers"] if layer["differences"])
    assert len(layer["differences"]) == 100
    assert abs(layer["differences"][0]["value"] - layer["differences"][0]["reference"]) == 1
    assert document("diff", MODEL, DATA)["equal"] is True
    assert found["element"] is found["agreeing_profile"] is None


def test_diff_of_ones_own_integers_and_of_one_element(tmp_path):
    from qmath.integer.api import run as run_model

    with np.load(DATA) as data:
        theirs = run_model(MODEL, data["images"], profile="tflite").integers
    np.savez(tmp_path / "theirs.npz", **theirs)
    found = document("diff", MODEL, DATA, "--against", tmp_path / "theirs.npz", status=1)
    assert found["agreeing_profile"] == "tflite"
    told = [layer["explanation"] for layer in found["layers"] if layer["teacher_forced"]]
    assert {one["name"] for one in told} == {"profile tflite"}
    assert all(one["complete"] and one["explained"] == one["differences"] for one in told)
    found = document("diff", MODEL, DATA, "--at", "dense[0,1]", "--against", "tflite")
    assert found["layers"] == []
    element = found["element"]
    assert (element["tensor"], element["index"]) == ("dense/post_activation", [0, 1])
    assert element["reference"] == element["integers"]["tflite"]
    assert set(element["sources"]) == {"flatten"}
    assert document("diff", MODEL, DATA, "--at", "flatten[5]")["element"]["step"] is None


def test_diff_of_a_kernel_s_answers(tmp_path):
    written = ("vectors", "packing", "--shape", 3, "--count", 1)
    head, case = run(*written).stdout.splitlines()
    assert case == "values=-1,0,0"
    found = document(*written)
    assert (found["header"], found["cases"]) == (head, [case])
    for packed, differing in ("15,0", 0), ("15,1", 1):
        (tmp_path / "answers").write_text(f"{head}\n{case} packed={packed}\n")
        found = document("diff", "--op", "packing", tmp_path / "answers", status=differing)
        assert (found["schema"], found["elements"]) == ("qmath/diff-op", 2)
        assert (found["differing"], len(found["first"])) == (differing, differing)


def test_recover(tmp_path):
    noise = np.random.default_rng(0).normal(size=(2, 20)).astype(np.float32)
    lattice = np.array([[-6, 4], [0, 0]], np.float32) * np.float32(0.1)
    np.savez(tmp_path / "w.npz", noise=noise, lattice=lattice, labels=np.arange(3))
    found = document("recover", tmp_path / "w.npz", "--axis", 0, "--max-bits", 4, status=1)
    first, second = found["arrays"]
    assert (first["name"], first["recovered"], first["scale"]) == ("noise", False, None)
    assert second["recovered"] is True
    assert second["scale"] == [float(np.float32(0.2)), 0]
    assert second["ambiguities"] == ["multiples", "all zero"]
    assert found["skipped"] == {"labels": "int64"}
    np.savez(tmp_path / "w.npz", lattice=lattice)
    assert document("recover", tmp_path / "w.npz")["arrays"][0]["recovered"] is True


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["inspect", "missing.h5"], "missing.h5: there is no such file"),
        (["inspect", "--x"], "see qmath inspect --help"),
        (["inspect"], "see qmath inspect --help"),
        (["nonsense"], "No such command 'nonsense'"),
        (["recover", "missing.npz"], "missing.npz"),
        (["export", OTHER, "-o", "out.npz", "--strict"], "are in no file"),
    ],
)
def test_an_error_is_a_document_too(args, words):
    found = document(*args, status=2)
    assert found["schema"] == "qmath/error"
    assert words in found["error"]
    assert run(*args, "--json").stderr == f"qmath: error: {found['error']}\n"


def test_notes_are_in_the_document_and_on_standard_error():
    result = run("inspect", OTHER, "--json")
    notes = json.loads(result.stdout)["notes"]
    assert result.stderr.splitlines() == [f"qmath: note: {note}" for note in notes]
    assert notes
    quiet = run("inspect", OTHER, "--json", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (result.stdout, "")


def test_a_standard_output_of_text_alone():
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as ended:
        app(["inspect", str(MODEL)])
    assert ended.value.code == 0
    assert out.getvalue() == run("inspect", MODEL).stdout


def test_numbers_that_json_has_no_words_for():
    text = dumps({"a": (np.float32("nan"), np.float64("inf"), np.int8(3), np.float32(0.1))})
    assert json.loads(text) == {"a": [None, None, 3, float(np.float32(0.1))]}


@pytest.mark.parametrize(("option", "shown"), [([], True), (["--quiet"], False), (["-q"], False)])
def test_quiet_prints_nothing(tmp_path, option, shown):
    out, weights = tmp_path / "out.npz", tmp_path / "weights.npz"
    np.savez(weights, w=np.arange(4, dtype=np.float32))
    for args, status in (
        (["inspect", OTHER], 0),
        (["export", OTHER, "-o", out], 0),
        (["verify", OTHER, out], 0),
        (["verify", MODEL, out], 1),
        (["run", MODEL, DATA], 0),
        (["diff", MODEL, DATA, "--profile", "tflite"], 1),
        (["recover", weights], 0),
        (["inspect", MODEL, OTHER], 0),
    ):
        result = run(*args, *option)
        assert (result.exit_code, result.stderr) == (status, "")
        assert bool(result.stdout) is shown
    failed = run("inspect", "missing.h5", *option)
    assert (failed.exit_code, len(failed.stderr.splitlines())) == (2, 1)


def test_python_warnings_are_lines_without_paths(monkeypatch):
    from qmath.inspection import report

    inspect = report.inspect

    def warned(*args, **options):
        warnings.warn("divide by zero", RuntimeWarning, stacklevel=1)
        return inspect(*args, **options)

    monkeypatch.setattr(report, "inspect", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for args, count in (([MODEL], 1), ([MODEL, OTHER], 2)):
            result = run("inspect", *args)
            assert result.stderr.splitlines() == ["qmath: warning: divide by zero"] * count
        assert document("inspect", MODEL)["notes"][-1] == "divide by zero"
        found = document("inspect", MODEL, OTHER)["models"]
        assert [one["notes"].count("divide by zero") for one in found] == [1, 1]
        assert run("inspect", MODEL, "--quiet").stderr == ""


def test_several_models_are_inspected_and_one_is_none(models):
    result = run("inspect", *models)
    assert result.exit_code == 2
    assert re.fullmatch(r"qmath: error: .*b\.h5.*\n", result.stderr)
    alone = [run("inspect", path).stdout for path in (models[0], models[2])]
    first, second = (text.splitlines()[1] for text in alone)
    assert result.stdout == (
        f"==> {models[0]} <==\n{alone[0]}\n==> {models[1]} <==\n\n==> {models[2]} <==\n{alone[1]}"
        f"\n3 models: 2 ok, 1 error\n{models[0]}: {first}\n{models[1]}: error\n"
        f"{models[2]}: {second}\n"
    )
    found = document("inspect", *models, status=2)["models"]
    assert [one["status"] for one in found] == [0, 2, 0]
    assert [one["source"] for one in found] == [str(path) for path in models]


def test_several_models_are_exported_to_a_folder_and_verified(tmp_path, models):
    out = tmp_path / "out"
    assert run("export", *models, "-o", out).exit_code == 2
    assert sorted(path.name for path in out.iterdir()) == ["a.npz", "c.npz"]
    run("export", models[0], "-o", tmp_path / "alone.npz")
    assert (out / "a.npz").read_bytes() == (tmp_path / "alone.npz").read_bytes()
    result = run("verify", models[0], models[2], out)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-3:] == [
        "2 models: 2 ok",
        f"{models[0]}: {out / 'a.npz'}: equal",
        f"{models[2]}: {out / 'c.npz'}: equal",
    ]
    assert "holds no output of the name b" in run("verify", *models, out).stderr
    shutil.copy(out / "a.npz", out / "c.npz")
    assert run("verify", models[0], models[2], out).exit_code == 1
    assert document("verify", *models, out, status=2)["models"][2]["equal"] is False
    again = run("export", models[0], models[2], "-o", out)
    assert again.exit_code == 2
    assert again.stderr.count("exists; choose another name") == 2


def test_formats_of_several_models(tmp_path, models):
    pair, out = [models[0], models[2]], tmp_path / "out"
    for format, names in (("safetensors", ["a.safetensors", "c.safetensors"]), ("c", ["a", "c"])):
        option = ["--format", format]
        assert run("export", *pair, "-o", out, *option).exit_code == 0
        assert sorted(path.name for path in out.iterdir() if "manifest" not in path.name) == names
        assert run("verify", *pair, out).exit_code == 0
        assert run("verify", *pair, out, *option).exit_code == 0
        shutil.rmtree(out)
    out.mkdir()
    for format in ("mem", "safetensors", "npz"):
        assert run("export", *pair, "-o", out, "--format", format).exit_code == 0
    assert "holds several of " in run("verify", *pair, out).stderr
    for format in ("mem", "safetensors", "npz"):
        assert run("verify", *pair, out, "--format", format).exit_code == 0


def test_several_models_run_on_the_same_data(tmp_path, models):
    pair, out = [models[0], models[2]], tmp_path / "out"
    assert run("run", *pair, DATA, "-o", out).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.npz", "c.npz"]
    found = document("diff", *pair, DATA, "--profile", "tflite", status=1)
    assert [one["schema"] for one in found["models"]] == ["qmath/diff"] * 2
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    assert run("diff", *pair, DATA, "--against", dumps).stderr.count("there is no such file") == 2


def test_pages_of_several_models(tmp_path, models):
    assert run("inspect", models[0], models[2], "--html", tmp_path / "pages").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["a.html", "c.html"]


def test_outputs_of_one_name(tmp_path, models):
    (tmp_path / "x").mkdir()
    other = shutil.copy(MODEL, tmp_path / "x" / "A.keras")
    result = run("export", models[0], other, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2
    assert f"{models[0]}: {tmp_path / 'out' / 'a.npz'} is as much that of {other}" in result.stderr
    assert not (tmp_path / "out").exists()
    assert run("inspect", models[0], models[0]).exit_code == 0


def test_the_folder_of_outputs(tmp_path, models):
    nothing = run("export", models[1], tmp_path / "missing.h5", "-o", tmp_path / "out")
    assert nothing.exit_code == 2
    assert not (tmp_path / "out").exists()
    for folder in (models[1], tmp_path / "no" / "out", tmp_path / "out.npz"):
        result = run("export", models[0], models[2], "-o", folder)
        assert result.exit_code == 2
        assert result.stderr.count(f"cannot make the folder {folder}") == 2
    same = run("export", models[0], models[2], "-o", tmp_path, "--format", "h5", "--overwrite")
    assert same.stderr.count("is an input itself") == 2
    assert models[0].read_bytes() == MODEL.read_bytes()


def test_too_little_memory_for_one_model_stops_no_other(monkeypatch, models):
    from qmath.inspection import report

    inspect = report.inspect

    def exhausted(model, **options):
        if "a.h5" in str(model.source):
            raise MemoryError
        return inspect(model, **options)

    monkeypatch.setattr(report, "inspect", exhausted)
    found = document("inspect", models[0], models[2], status=2)["models"]
    assert [one["status"] for one in found] == [2, 0]
    assert "out of memory" in found[0]["error"]
