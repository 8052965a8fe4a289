"""What Keras 3 quantized itself: golden files, and files that do not add up."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import FileFormatError, OutputError, QmathError
from qmath.exports.arrays.npz import Npz
from qmath.model import StoredIntegers
from qmath.readers.loading import load
from tests.helpers import assert_same_bits
from tests.readers.builders import SAMPLES, entry, sequential, write_v3

GOLDEN = SAMPLES.parent / "golden" / "keras3"
MODES = {"int8": 8, "int4": 4}
Array = np.ndarray[Any, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.keras"


@pytest.mark.parametrize(("mode", "num_bits"), MODES.items())
def test_integers_and_scales_are_keras_s(mode: str, num_bits: int) -> None:
    model = load(GOLDEN / f"{mode}.keras")
    with np.load(GOLDEN / "expected.npz") as expected:
        names = [name for name in expected if name.startswith(f"{mode}/") and name[-5:] != ".real"]
        for name in names:
            tensor = model.tensors[name.partition("/")[2]]
            assert tensor.stored == StoredIntegers(num_bits, f"{tensor.name}_scale")
            values = np.asarray(tensor.values)
            np.testing.assert_array_equal(values, expected[name])
            assert values.dtype == np.int8
            scale = np.asarray(model.tensors[tensor.stored.scale].values)
            found = eval(tensor.stored.reconstruction, {"np": np}, locals())
            assert_same_bits(found, expected[f"{name}.real"], name)
    assert len(names) == sum(tensor.stored is not None for tensor in model.tensors.values()) == 6
    assert {tensor.role for tensor in model.tensors.values()} == {"float"}
    assert any("integers / scale" in note for note in model.notes)


@pytest.mark.parametrize("mode", MODES)
def test_export_and_verify(mode: str, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    model, out = GOLDEN / f"{mode}.keras", tmp_path / "out.npz"
    bundle = qmath.export(model, out)
    assert qmath.verify(model, out).ok
    with open(out, "rb") as file:
        manifest, arrays = Npz().read(file)
        stored = manifest["tensors"]["dense/kernel"]["stored"]
        assert stored["scale"] == "dense/kernel_scale"
        assert stored["reconstruction"] == "values.astype(np.float32) / scale"
        assert arrays["dense/kernel"].dtype == np.int8
    schema = json.loads((resources.files("qmath.exports") / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(manifest)
    bundle.manifest["tensors"]["dense/kernel"]["stored"]["scale"] = "head/kernel_scale"
    with open(out, "wb") as file:
        Npz().write(bundle, file)
    checked = qmath.verify(model, out)
    assert not checked.ok
    assert "stored of dense/kernel" in checked.differences[0]


def test_what_is_not_done_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(GOLDEN / "int8.keras")
    with pytest.raises(QmathError, match="layout 'OI' matches no tensor"):
        qmath.quantize_model(model, layouts=["OI"])
    with pytest.raises(QmathError, match="passes on and does not run"):
        qmath.run(model, np.zeros((1, 3), np.float32))
    assert qmath.inspect(model).verdict.weights == 0
    with pytest.raises(QmathError, match="matches"):
        load(GOLDEN / "int8.keras", {"dense/kernel": qmath.FixedQuantizer(8, -1.0, 1.0, False)})
    monkeypatch.setattr(Npz, "takes_stored_integers", False)
    with pytest.raises(OutputError, match=r"dense/kernel.*does not state"):
        qmath.export(model, tmp_path / "out.npz")
    assert not list(tmp_path.iterdir())


# What is not passed on.


def quantized(
    mode: str, policy: str = "QuantizedDTypePolicy", kind: str = "Dense", **how: Any
) -> Any:
    dtype = {"class_name": policy, "config": {"mode": mode, "source_name": "float32"}}
    return sequential(entry(kind, "d", dtype=dtype, **how))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("int4/128", "Dense"),
        ("int4", "Dense"),  # as older releases packed it
        ("gptq/4/-1", "Dense"),
        ("awq/4/128", "EinsumDense"),
        ("float8", "Dense"),
        ("int8", "ReversibleEmbedding"),
        ("int8", "Conv2D"),
    ],
)
def test_other_modes_and_layers_are_refused_by_name(path: Path, mode: str, kind: str) -> None:
    name = {"Conv2D": "conv2d", "EinsumDense": "einsum_dense", "Dense": "dense"}.get(
        kind, "reversible_embedding"
    )
    write_v3(path, {f"layers/{name}": [np.zeros((3, 4), np.int8)]}, quantized(mode, kind=kind))
    with pytest.raises(FileFormatError, match=f"this {kind} in the mode {re.escape(repr(mode))}"):
        load(path)


KERNEL, BIAS, SCALE = np.zeros((3, 4), np.int8), np.zeros(4, np.float32), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("mode", "values", "words"),
    [
        ("int8", [KERNEL, BIAS], "has the variables kernel, bias, kernel_scale"),
        ("int8", [KERNEL, BIAS, SCALE, SCALE], "has the variables"),
        ("int8", [KERNEL.astype(np.float32), BIAS, SCALE], "should be int8"),
        ("int8", [KERNEL, BIAS, SCALE.astype(np.float64)], "should be int8"),
        ("int8", [KERNEL[0], BIAS, SCALE], "should be int8"),
        ("int8", [KERNEL, BIAS, SCALE[:3]], "do not belong together"),
        ("int8", [KERNEL, BIAS, SCALE * 0], "not finite and positive"),
        ("int8", [KERNEL, BIAS, SCALE * np.inf], "not finite and positive"),
        ("int4/-1", [KERNEL, BIAS, SCALE], "do not belong together"),
        ("int4/-1", [KERNEL[:, :2], BIAS, np.float32(1)], "do not belong together"),
    ],
)
def test_variables_that_do_not_add_up(path: Path, mode: str, values: list[Any], words: str) -> None:
    write_v3(path, {"layers/dense": values}, quantized(mode))
    with pytest.raises(FileFormatError, match=words) as caught:
        load(path)
    assert f"{path}: model.weights.h5: d" in str(caught.value)


def test_bits_that_nobody_packed(path: Path) -> None:
    odd = np.full((3, 2), 0x77, np.int8)
    write_v3(path, {"layers/dense": [odd, BIAS[:3], SCALE[:3]]}, quantized("int4/-1"))
    with pytest.raises(FileFormatError, match=r"padding.*damaged"):
        np.asarray(load(path).tensors["d/kernel"].values)


@pytest.mark.parametrize("equation", [None, "abc", "ab,bc", "ab,bcd->ad", "ab,bb->ab", "ab,cd->xy"])
def test_equations_that_do_not_fit(path: Path, equation: str | None) -> None:
    config = quantized("int8", kind="EinsumDense", equation=equation, bias_axes=None)
    write_v3(path, {"layers/einsum_dense": [KERNEL, SCALE]}, config)
    with pytest.raises(FileFormatError, match="do not belong together"):
        load(path)


def edit_config(path: Path, change: Callable[[Any], None]) -> None:
    with zipfile.ZipFile(GOLDEN / "int8.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_integers_that_the_config_calls_floats(path: Path) -> None:
    def forget(config: Any) -> None:
        for layer in config["config"]["layers"]:
            layer["config"]["dtype"] = "float32"

    edit_config(path, forget)
    with pytest.raises(FileFormatError, match="has the variables"):
        load(path)
