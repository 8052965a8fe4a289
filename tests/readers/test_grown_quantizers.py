"""Files of quantizers that grew from TFMOT's and keep ranges of the same names: refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import qmath
from qmath import FileFormatError
from tests.readers.builders import (
    entry,
    kernel,
    one_layer,
    quantizer,
    sequential,
    span,
    step,
    wrapped,
    write,
)

VITIS = {"quantizer": quantizer("Vitis>LastValueQuantPosQuantizer", bit_width=8), "mode": "QCB"}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([wrapped("d", {}, "Vitis>Vitis8BitQuantizeConfig")],
         r"d is quantized by Vitis AI \(Vitis>Vitis8BitQuantizeConfig\), which grew from TFMOT"),
        ([entry("Vitis>VitisQuantize", "quant_d", **VITIS)],
         r"quant_d is quantized by Vitis AI \(Vitis>VitisQuantize\)"),
        ([entry("QuantizeLayer", "quant_d", **VITIS)],
         r"quant_d is quantized by Vitis AI \(Vitis>LastValueQuantPosQuantizer\)"),
        ([wrapped("d", class_name="Vitis>VitisAveragePooling2D")],
         r"d is quantized by Vitis AI \(Vitis>VitisAveragePooling2D\)"),
    ],
)  # fmt: skip
def test_their_classes_are_named(tmp_path: Path, layers: list[Any], words: str) -> None:
    path = write(tmp_path / "m.h5", sequential(*layers), {"quant_d": kernel() | step()})
    with pytest.raises(FileFormatError, match=words):
        qmath.load(path)


@pytest.mark.parametrize(
    "point", ["quant_d/kernel_pos:0", "quant_d/post_activation_pos:0", "quant_d/pos:0"]
)
def test_their_variables_are_named_where_no_class_is_known(tmp_path: Path, point: str) -> None:
    variables = kernel() | {point: np.float32(3)} | step()
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["quant_d"]
        group = file.create_group("quant_d")
        group.attrs["weight_names"] = list(variables)
        for name, values in variables.items():
            group.create_dataset(name, data=values)
    with pytest.raises(FileFormatError) as caught:
        qmath.load(path)
    place = point.removesuffix(":0")
    assert f"{place} is the position of a binary point, as Vitis AI keeps it" in str(caught.value)


def test_what_a_user_calls_so_is_no_binary_point(tmp_path: Path) -> None:
    embedding = {"d/rel_pos:0": np.ones(4, np.float32)}
    path = one_layer(tmp_path / "m.h5", None, kernel(), embedding, span("post_activation"))
    assert qmath.load(path).tensors["d/rel_pos"].role == "float"
    config = one_layer(tmp_path / "own.h5", None, config_class="Mine>VitisLikeConfig")
    assert qmath.load(config).tensors["d/kernel"].role == "weight"
    plain = entry("Dense", "d", units=4)
    floats = {"d/kernel:0": np.ones((3, 4), np.float32), "d/pos:0": np.float32(1)}
    float_model = write(tmp_path / "float.h5", sequential(plain), {"d": floats})
    assert qmath.load(float_model).tensors["d/pos"].role == "float"
