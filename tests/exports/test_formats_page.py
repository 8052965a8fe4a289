"""The code in docs/formats.md reads what is exported, without qmath."""

import re
from pathlib import Path

import numpy as np
import pytest

import qmath
from tests.exports.models import every_width, model, strange_names

PAGE = Path("docs/formats.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S):
        assert "qmath." not in block
        exec(block, names)
    return names


@pytest.mark.parametrize("packing", ["lsb", "msb", "none"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("make", [every_width, strange_names, model])
def test_safetensors(tmp_path, page, make, signed, packing):
    path = tmp_path / "o.safetensors"
    bundle = qmath.export(make(), path, signed=signed, packing=packing)
    manifest, arrays = page["read_safetensors"](path)
    assert manifest == bundle.manifest | {"export": manifest["export"]}
    assert arrays.keys() == {*bundle.keys()}
    for key, expected in bundle.arrays():
        np.testing.assert_array_equal(arrays[key], expected, strict=True)


@pytest.mark.parametrize("packing", ["lsb", "msb", "none"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("make", [every_width, strange_names, model])
def test_bin(tmp_path, page, make, signed, packing):
    bundle = qmath.export(make(), tmp_path / "o.bin", signed=signed, packing=packing)
    arrays = page["read_bin"](tmp_path / "o.bin")
    assert list(arrays) == [*bundle.keys()]
    for key, expected in bundle.arrays():
        assert arrays[key] == expected.ravel().tolist()
