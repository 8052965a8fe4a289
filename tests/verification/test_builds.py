"""A build travels from `load` into integers, manifest, integer model, and the check."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import OutputError, QmathError
from qmath.kernels.builds import BUILDS, Build
from qmath.quantizers import FixedQuantizer, LastValueQuantizer, NoQuantizer
from tests.cli.running import run

pytest.importorskip("h5py")

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
MODEL = SAMPLES / "nbit4.h5"
F = np.float32


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[Build, Path]:
    folder = tmp_path_factory.mktemp("builds")
    found: dict[Build, Path] = {}
    for number, build in enumerate(BUILDS):
        found[BUILDS[build].name] = folder / f"{number}.npz"
        qmath.export(qmath.load(MODEL, build=build), folder / f"{number}.npz")
    return found


@pytest.mark.parametrize("build", BUILDS)
def test_the_manifest_says_so_and_verify_uses_it(build: Build, exports: dict[Build, Path]) -> None:
    path = exports[build]
    with np.load(path) as held:
        manifest = json.loads(held["manifest"].tobytes())
        scale = held["conv1/kernel.scale"]
    assert manifest["options"].get("build", "tf") == build
    tensor = qmath.load(MODEL, build=build).tensors["conv1/kernel"]
    assert tensor.spec.build == build
    assert tensor.quantize().scale.tobytes() == scale.tobytes()
    for model in (MODEL, qmath.load(MODEL, build=build)):
        found = qmath.verify(model, path)
        assert found.ok, found.differences
        assert found.elements > 3_000


@pytest.mark.parametrize("build", BUILDS)
def test_near_ties_are_judged_as_the_build_does(build: Build, tmp_path: Path) -> None:
    model = qmath.load(MODEL, build=build)
    name = "conv1/kernel"
    tensor = model.tensors[name]
    scale = tensor.quantize().scale
    steps = np.resize(np.arange(-6.5, 7), np.shape(np.asarray(tensor.values)))
    values = F(steps * scale)
    values = (values.view(np.int32) + np.resize([-1, 0, 1], values.shape).astype(np.int32)).view(F)
    tensors = {**model.tensors, name: dataclasses.replace(tensor, values=values)}
    model = dataclasses.replace(model, tensors=tensors)
    qmath.export(model, tmp_path / "m.npz")
    found = qmath.verify(model, tmp_path / "m.npz")
    assert found.ok, found.differences
    assert found.near_ties > 50


def test_scales_of_the_builds_differ(exports: dict[Build, Path]) -> None:
    scales = {}
    for build, path in exports.items():
        with np.load(path) as held:
            scales[build] = np.concatenate(
                [held[key].ravel() for key in held.files if key.endswith(".scale")]
            )
    assert scales["tf"].tobytes() == scales["tf<2.6"].tobytes()
    assert scales["xla-cpu"].tobytes() == scales["xla-cpu-nofma"].tobytes()
    assert scales["tf"].tobytes() != scales["xla-cpu"].tobytes()


def test_another_build_is_a_difference(exports: dict[Build, Path]) -> None:
    found = qmath.verify(qmath.load(MODEL, build="tf<2.6"), exports["xla-cpu"])
    assert any(text.startswith("build: ") for text in found.differences)


def test_a_build_that_is_named_is_checked(exports: dict[Build, Path]) -> None:
    path = exports["xla-cpu"]
    named, unnamed = qmath.load(MODEL, build="tf"), qmath.load(MODEL)
    assert (named.build, unnamed.build) == ("tf", "tf")
    found = qmath.verify(named, path)
    assert any(text.startswith("build: ") for text in found.differences)
    assert any("scale" in text for text in found.differences)
    assert found.build == "tf"
    for model in (MODEL, unnamed):
        found = qmath.verify(model, path)
        assert found.ok, found.differences
        assert found.build == "xla-cpu"
        assert "build xla-cpu" in repr(found)
    assert qmath.verify(named, exports["tf"]).ok


@pytest.mark.parametrize("build", ["xla", 3, [], {}])
def test_a_damaged_build_is_refused(build: Any, exports: dict[Build, Path], tmp_path: Path) -> None:
    with np.load(exports["xla-cpu"]) as held:
        arrays = dict(held)
    manifest = json.loads(arrays["manifest"].tobytes())
    manifest["options"]["build"] = build
    arrays["manifest"] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    np.savez(tmp_path / "damaged.npz", **arrays)
    with pytest.raises(QmathError, match="the manifest's options are damaged"):
        qmath.verify(MODEL, tmp_path / "damaged.npz")


def test_the_integer_model_quantizes_as_the_build_does() -> None:
    model = qmath.load(MODEL, build="xla-cpu")
    program = qmath.quantize_model(model).program
    assert program is not None
    params = program.quant_params
    assert {p.build for p in params.values()} == {"xla-cpu"}
    name, first = next((n, p) for n, p in params.items() if "quantize_layer" in n)
    expected = qmath.quantize([0.3], first.min, first.max, 8, signed=False, build="xla-cpu")
    assert F(first.scale) == expected.scale
    x = np.linspace(first.min, first.max, 100_001, dtype=F)
    eager = dataclasses.replace(first, build="tf")
    build, tf = (p.quantize(x, name) + p.zero_point for p in (first, eager))
    whole = qmath.quantize(x, first.min, first.max, 8, signed=False, build="xla-cpu").values
    np.testing.assert_array_equal(build, whole)
    assert (build != tf).sum() < 10


def test_the_exported_c_does_not_take_another_build_for_its_own(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="quantizes floats as the build 'tf' does, not as 'xla"):
        qmath.export(qmath.load(MODEL, build="xla-cpu"), tmp_path / "c", format="c")


def test_from_the_command_line(tmp_path: Path) -> None:
    done = run("export", MODEL, "-o", tmp_path / "m.npz", "--build", "xla-cpu-nofma")
    assert done.exit_code == 0, done.stderr
    assert run("verify", MODEL, tmp_path / "m.npz").exit_code == 0
    checked = run("verify", MODEL, tmp_path / "m.npz")
    assert " equal; build xla-cpu-nofma; " in " ".join(checked.stdout.split())
    for build in ("xla-cpu", "tf"):
        assert run("verify", MODEL, tmp_path / "m.npz", "--build", build).exit_code == 1
    differs = json.loads(run("verify", MODEL, tmp_path / "m.npz", "--build=tf", "--json").stdout)
    assert (differs["build"], differs["equal"]) == ("tf", False)
    wrong = run("inspect", MODEL, "--build", "gpu")
    assert wrong.exit_code == 2
    assert "'xla-cpu-nofma', got 'gpu'" in " ".join(wrong.stderr.split())


def test_the_quantizers_take_it_in_calls() -> None:
    quantizer, x = LastValueQuantizer(8, False, True, False), F([0.3, -1.0, 2.0])
    state = quantizer.build()
    quantizer(x, True, state)
    ends = state["min_var"], state["max_var"]
    for build in BUILDS:
        expected = qmath.fake_quant_with_min_max_vars(x, *ends, build=build)
        assert quantizer(x, False, state, build=build).tobytes() == expected.tobytes()
        q = quantizer.quantize(x, state, build=build)
        assert q.scale == qmath.quantize(x, *ends, 8, build=build).scale
        fixed = FixedQuantizer(8, -1, 2, False)
        expected = qmath.fake_quant_with_min_max_args(x, -1, 2, build=build)
        assert fixed(x, build=build).tobytes() == expected.tobytes()
        assert NoQuantizer()(x, training=False, weights=state, build=build) is x
    with pytest.raises(QmathError, match=r"build must be one of .* got 'gpu'"):
        NoQuantizer()(x, build="gpu")
    with pytest.raises(QmathError, match="known under the build 'tf', not 'xla-cpu'"):
        quantizer(x, True, state, build="xla-cpu")


def test_a_recorded_manifest_is_valid(exports: dict[Build, Path]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    text = Path(qmath.__file__).with_name("exports").joinpath("manifest.schema.json").read_text()
    schema = json.loads(text)
    for path in exports.values():
        with np.load(path) as held:
            jsonschema.validate(json.loads(held["manifest"].tobytes()), schema)
