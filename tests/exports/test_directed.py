"""Directed vectors in exports: their names, and what the consumers say when a kernel is wrong."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import qmath
from qmath import FileFormatError, QmathError
from qmath.exports.bundle import quantize_model
from qmath.integer.directed.cases import PURPOSES
from qmath.integer.executor import Executor
from qmath.integer.profiles.fixed import Integer
from qmath.integer.whole_inputs import recorded, restored
from tests.exports import networks
from tests.exports.compiling import compiled, needs_compiler, run
from tests.exports.memory_readers import needs_simulator, simulated
from tests.exports.models import model

CLAMPED = {"ends": (-2.0, 2.0)}


def net():
    """Return a small convolution and a dense layer whose results pass both clamps."""
    made = networks.Network(6, 5, 2)
    made.add("Conv2D", kernel=(3, 3, 2, 4), padding="same", strides=(2, 1), **CLAMPED)
    made.add("Flatten")
    made.add("Dense", kernel=(60, 3), **CLAMPED)
    return made.model()


def images(count=3):
    return np.random.RandomState(5).uniform(-1, 1.5, (count, 6, 5, 2)).astype(np.float32)


def test_the_arrays_are_what_the_manifest_lists(tmp_path):
    bundle = qmath.export(net(), tmp_path / "o.npz", vectors=1)
    arrays = np.load(tmp_path / "o.npz")
    directed = bundle.manifest["directed"]
    assert directed["purposes"] == list(PURPOSES)
    assert [*directed["steps"]] == [step.name for step in bundle.program.steps]
    executor = Executor(bundle.program, Integer())
    size = 0
    for name, entry in directed["steps"].items():
        inputs = {source: arrays[key] for source, key in entry["inputs"].items()}
        made = executor.apply(bundle.program.step(name), inputs)
        np.testing.assert_array_equal(made, arrays[entry["expected"]])
        assert len(made) == entry["count"]
        assert arrays[entry["tags"]].shape[1] == 2
        assert entry["expected"] == f"directed/{name}.expected"
        size += sum(x.nbytes for x in (*inputs.values(), made, arrays[entry["tags"]]))
    assert size == directed["bytes"]
    assert qmath.verify(net(), tmp_path / "o.npz").ok


@pytest.mark.parametrize("vectors", [2, images()])
def test_the_manifest_fits_the_schema(vectors):
    schema = json.loads((resources.files("qmath.exports") / "manifest.schema.json").read_text())
    manifest = quantize_model(net(), vectors=vectors).manifest
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(json.loads(json.dumps(manifest, allow_nan=False)))
    broken = json.loads(json.dumps(manifest))
    del broken["directed"]["steps"]["flatten3"]["tags"]
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(broken)


def test_without_bytes_or_vectors_there_are_none(tmp_path):
    for options in ({"vectors": 0}, {"vectors": 2, "vector_bytes": 0}):
        bundle = quantize_model(net(), **options)
        assert not bundle.directed
        assert "directed" not in bundle.manifest
        assert not any(key.startswith("directed/") for key in bundle.vectors)
    qmath.export(net(), tmp_path / "o.npz", vectors=1, vector_bytes=3_000)
    assert qmath.verify(net(), tmp_path / "o.npz").ok
    with pytest.raises(QmathError, match="vector_bytes must not be negative, got -1"):
        quantize_model(net(), vectors=1, vector_bytes=-1)


def test_verify_finds_a_changed_expectation(tmp_path):
    qmath.export(net(), tmp_path / "o.npz", vectors=1)
    arrays = dict(np.load(tmp_path / "o.npz"))
    arrays["directed/dense4/output.expected"][2, 1] ^= 1
    np.savez(tmp_path / "changed.npz", **arrays)
    found = qmath.verify(net(), tmp_path / "changed.npz")
    assert any("directed/dense4/output.expected[2, 1]" in text for text in found.differences)


@pytest.mark.parametrize("format", ["npz", "c", "safetensors", "mem"])
def test_the_users_own_inputs_are_kept_and_verified(tmp_path, format):
    bundle = qmath.export(net(), tmp_path / "o", format=format, vectors=images())
    np.testing.assert_array_equal(bundle.vectors["vectors/inputlayer0"], images())
    result = qmath.run(net(), images())
    for name, integers in result.integers.items():
        np.testing.assert_array_equal(bundle.vectors[f"vectors/{name}"], integers)
    assert qmath.verify(net(), tmp_path / "o", format=format).ok
    named = qmath.export(net(), tmp_path / "p", format=format, vectors={"inputlayer0": images()})
    assert named.manifest["options"] == bundle.manifest["options"]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 6, 5, 3)), r"must have shape \(N, 6, 5, 2\), got \(2, 6, 5, 3\)"),
        (np.zeros((0, 6, 5, 2)), "the number of test vectors must be 1 to 65536, got 0"),
        ({"other": images()}, "the model's inputs are"),
        (np.full((2, 6, 5, 2), "a"), "must be numbers"),
    ],
)
def test_inputs_that_are_not_the_models_are_refused(tmp_path, vectors, message):
    with pytest.raises(QmathError, match=message):
        qmath.export(net(), tmp_path / "o.npz", vectors=vectors)
    assert not (tmp_path / "o.npz").exists()


def test_more_inputs_than_a_manifest_keeps_are_refused(monkeypatch):
    monkeypatch.setattr("qmath.integer.whole_inputs._MOST_BYTES", 500)
    message = "3 test vectors take 720 bytes, and the manifest keeps up to 500: give the first 2"
    with pytest.raises(QmathError, match=message):
        quantize_model(net(), vectors=images())
    assert quantize_model(net(), vectors=images(2)).directed


def test_inputs_need_an_integer_model(tmp_path):
    with pytest.raises(QmathError, match=r"test vectors need an integer model.*no integer model"):
        qmath.export(model(), tmp_path / "o.npz", vectors=images())


def test_recorded_inputs_are_restored_bit_by_bit():
    inputs = {"a": np.float32([[0.1, -0.0], [np.inf, 1e-45]]), "b": np.zeros((2, 0), np.float32)}
    again = restored(recorded(inputs))
    assert [*again] == ["a", "b"]
    for name, x in inputs.items():
        assert again[name].tobytes() == x.tobytes()
        assert again[name].shape == x.shape


@pytest.mark.parametrize(
    "record",
    [True, "2", None, {}, {"a": 1}, {"a": {"shape": [1]}}, {"a": {"shape": [2], "float32": "AAAA"}},
     {"a": {"shape": [-1], "float32": "AAAAAA=="}}, {"a": {"shape": 1, "float32": "AAAAAA=="}},
     {"a": {"shape": [1], "float32": "&&&&"}}],
)  # fmt: skip
def test_damaged_records_are_refused(record):
    with pytest.raises(QmathError, match="test vectors are damaged"):
        restored(record)


def test_verify_says_that_a_record_is_damaged(tmp_path):
    qmath.export(net(), tmp_path / "o", format="c", vectors=images())
    path = tmp_path / "o/manifest.json"
    path.write_text(re.sub('"float32": ?"..', '"float32": "', path.read_text()))
    with pytest.raises(FileFormatError, match="test vectors are damaged"):
        qmath.verify(net(), tmp_path / "o")


MISTAKES = {
    "upper clamp": ("y = y > high ? high : y", "y = y > high + 1 ? high : y",
                    "past the upper clamp"),
    "lower clamp": ("y = y < low ? low : y", "(void)low", "past the lower clamp"),
    "narrow": ("total + (int64_t)sums[i]", "total + (int64_t)((int32_t)((uint32_t)sums[i] << 18) "
               ">> 18)", "accumulator"),
    "multiplier": ("= s->multiplier[t][c]", "= (s->multiplier[t][c] & ~0x7fff)",
                   "16-bit multiplier"),
    "rounding": ("addend[i] = s->addend[c];", "addend[i] = s->addend[c] - ((int64_t)1 << "
                 "(s->shift[c] - 1));", "no rounding"),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_in_c_names_the_likely_mistake(tmp_path, mistake):
    old, new, purpose = MISTAKES[mistake]
    qmath.export(net(), tmp_path / "o", format="c")
    path = tmp_path / "o/qmath_kernels.h"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    status, output = run(compiled(tmp_path / "o"))
    assert status == 1
    wrong = [line for line in output.splitlines() if " wrong, the first in channel" in line]
    assert any(re.match(rf"  .*{purpose}: (\d+) of \1 wrong", line) for line in wrong), output
    if mistake.endswith("clamp"):
        right = re.findall("never wrong: (.*)", output)
        assert all("above a tie" in line for line in right)


@needs_compiler
def test_each_layer_of_the_check_starts_from_its_own_inputs(tmp_path):
    """A mistake in the first layer is not one of the second."""
    qmath.export(net(), tmp_path / "o", format="c")
    path = tmp_path / "o/model_data.c"
    text = path.read_text()
    start = text.index("{", text.index("model_conv2d2_output_addend")) + 1
    first = re.match(r"\s*-?\d+", text[start:]).group()
    path.write_text(text[:start] + f"{int(first) ^ (1 << 40)}" + text[start + len(first) :])
    _, output = run(compiled(tmp_path / "o"))
    assert re.search(r"^conv2d2/output: \d+ of \d+ directed outputs differ", output, re.M)
    assert not re.search(r"^dense4/output: \d+ of \d+ directed", output, re.M)


def test_the_check_in_c_knows_the_purposes(tmp_path):
    qmath.export(net(), tmp_path / "o", format="c")
    text = (tmp_path / "o/qmath_check.h").read_text()
    body = text.split("qm_purposes[QM_PURPOSES] = {")[1].split("}")[0]
    assert tuple(re.findall('"([^"]*)"', body)) == PURPOSES
    assert f"#define QM_PURPOSES {len(PURPOSES)}\n" in text


@needs_simulator
def test_a_testbench_names_the_likely_mistake(tmp_path):
    qmath.export(net(), tmp_path / "o", format="mem")
    (path,) = (tmp_path / "o").glob("dense4_output_tb.v")
    text = path.read_text()
    assert simulated(tmp_path / "o", path).startswith("PASS")
    path.write_text(re.sub(r"if \(y > high.*", "", text))
    output = simulated(tmp_path / "o", path)
    assert re.search(r"past the upper clamp: (\d+) of \1 wrong, the first in channel \d", output)
    assert "  past the lower clamp: never wrong" in output


def test_the_page_explains_every_purpose():
    text = Path("docs/vectors.md").read_text(encoding="utf-8")
    table = text.split("## Purposes")[1].split("## ")[0]
    named = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.M)))
    assert tuple(name for name in named if name in PURPOSES) == tuple(named)
    assert {*named} == {*PURPOSES}


def test_each_output_may_be_the_one_input():
    """Of one pixel a bilinear upsampling makes copies."""
    one = networks.Network(1, 1, 2, bits=4)
    one.add("UpSampling2D", size=(2, 3), interpolation="bilinear", **CLAMPED)
    assert quantize_model(one.model(), vectors=2).directed
