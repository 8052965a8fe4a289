"""Which values of a layer's config are read, and which are an error that names them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import FileFormatError
from qmath.layers import LAYERS
from qmath.readers.architecture.fields import (
    FIELDS,
    LARGEST_REAL,
    LAYER_FIELDS,
    MOST_ELEMENTS,
    MOST_POSITIONS,
    MOST_STEPS,
    check_config,
)
from qmath.readers.architecture.parsing import read_architecture
from tests.readers.builders import (
    kernel,
    one_layer,
    quantizer,
    sequential,
    wrapped,
    write_v3,
)

# As Keras 2 writes them; the last value of a list is what else it takes.
GOOD: dict[str, list[Any]] = {
    "activation": [None, "relu", "my_function", {"class_name": "Mish", "config": {}}],
    "alpha": [0.2, 0, -1, 0.30000001192092896],
    "axes": [-1, 3, [3], [1, 2]],
    "axis": [-1, 1],
    "batch_input_shape": [None, [None, 8, 8, 1], [None, None], [32, 4], (None, 4)],
    "batch_shape": [None, [None, 8]],
    "constants": [0.5, -1, [0.1, 0.2], [[[1.5, 2]]]],
    "center": [True, False, 1, 0],
    "data_format": ["channels_last", "channels_first", None],
    "depth_multiplier": [1],
    "dilation_rate": [1, [2, 2], MOST_STEPS],
    "dims": [[2, 1, 3], [1]],
    "epsilon": [0.001, 0, 0.0],
    "filters": [8, MOST_ELEMENTS],
    "groups": [2],
    "input_dim": [100],
    "interpolation": ["bilinear"],
    "keepdims": [True, None],
    "kept_axes": [None, [], -1, [1, 2]],
    "kernel_size": [3, [5, 1], [3], [512, 512]],
    "max_value": [None, 6.0, LARGEST_REAL],
    "momentum": [0.99, 0, 1],
    "n": [2],
    "negative_slope": [None, 0.0],
    "output_dim": [3],
    "output_padding": [None, 0, [1, 1]],
    "padding": ["valid", "same", "causal"],
    "pool_size": [2, [2, 2], [1, MOST_POSITIONS]],
    "rate": [0.5, 0, 1],
    "scale": [False],
    "size": [2, [2, 2]],
    "stddev": [0.1],
    "strides": [1, [2, 1], [MOST_STEPS, MOST_STEPS]],
    "target_shape": [[-1], [2, -1, 3], [4]],
    "threshold": [None, -1.5],
    "units": [10],
    "use_bias": [True],
    "widths": [0, 2, [1, 2], [[1, 2], [0, 3]], [1, [2, 3]]],
}
NUMBERS = [float("nan"), float("inf"), -float("inf"), 10**400, 1e300]
TYPES = [[], {}, "", "x", [[1]], [None], [1, 2, 3, 4], ["x"], [1.5], object]
WRONG: dict[str, list[Any]] = {
    "activation": [1, [], ["relu"], True, "\x1b[2J"],
    "alpha": [*NUMBERS, *TYPES, None, True],
    "axes": [9, 1.0, [], [[1]], [9], None, True, "x"],
    "axis": [9, -9, [1], None, 1.0],
    "batch_input_shape": [8, "x", [], [None, [8], 8, 1], [None, 0], [None, -1], [None, True],
                          [None] * 9, [None, 2**20, 2**20, 1], [None, 2**31], [None, 1.0], {}],
    "constants": [*NUMBERS, "x", [], [[]], ["x"], [1.0, None], {}, True],
    "data_format": ["x", 1, ["channels_last"]],
    "dilation_rate": [0, -1, 10**30, [10**30] * 2, float("nan"), 1.0, [], [1, 2, 3], [[1, 1]],
                      MOST_STEPS + 1, True, None, [1, None]],
    "dims": [1, [0], [1, 1], [2, 3], [1.0], [], "12", [True], [[1]], None],
    "epsilon": [*NUMBERS, *TYPES, None, -1e-9],
    "filters": [0, -1, MOST_ELEMENTS + 1, 1.0, "8", [8], None, True],
    "interpolation": [1, ["nearest"], "\n"],
    "keepdims": [2, "x", 1.0, [], [True]],
    "kernel_size": [0, [3, 3, 3], [512, 513], 513, [[3, 3]], None, "3", 3.0],
    "max_value": [-1, *NUMBERS, *TYPES],
    "momentum": [1.5, -0.1, None, *NUMBERS, *TYPES],
    "output_padding": [-1, [1, 2, 3], "x"],
    "padding": ["full", 1, None, [1, 1], ["same"], {}],
    "strides": [0, 2**63, [2**63] * 2, [1, 0], [], None, "x", {}],
    "target_shape": [[], [0], [-1, -1], [-2], 4, [2**16, 2**16], [None], [1.0], None, "x", [[1]]],
    "use_bias": [2, None, "true", 1.0, []],
    "widths": [-1, [1], [1, 2, 3], [[1, 2]], [[1, 2, 3], [1, 2]], [[-1, 0], [0, 0]], None, "x",
               MOST_STEPS + 1, [1.0, 1.0], [[[1, 2]], 1], True],
}  # fmt: skip


def places(kind: str) -> tuple[str, str]:
    """Return a class, and its field of a kind: a two-dimensional one where there is one."""
    found = []
    for name, row in LAYER_FIELDS.items():
        for item in (*row.split(), "batch_input_shape", "batch_shape"):
            field, _, other = item.rstrip("?").partition("=")
            if (other or field) == kind:
                found.append((not name.startswith("Conv2D"), "2D" not in name, name, field))
    return min(found)[2:]


def test_every_class_of_the_table_has_a_row() -> None:
    assert LAYER_FIELDS.keys() == LAYERS.keys()
    assert GOOD.keys() == FIELDS.keys()
    assert WRONG.keys() < FIELDS.keys()


@pytest.mark.parametrize(("kind", "value"), [(kind, v) for kind in GOOD for v in GOOD[kind]])
def test_what_keras_writes_is_read(kind: str, value: Any) -> None:
    class_name, field = places(kind)
    check_config(class_name, {field: value}, "m.h5: a")
    check_config("MyLayer", {field: object}, "m.h5: a")


@pytest.mark.parametrize(("kind", "value"), [(kind, v) for kind in WRONG for v in WRONG[kind]])
def test_what_no_layer_can_have_is_an_error(kind: str, value: Any) -> None:
    class_name, field = places(kind)
    with pytest.raises(FileFormatError) as caught:
        check_config(class_name, {field: value}, "m.h5: a")
    message = str(caught.value)
    assert message.startswith(f"m.h5: a: {field} of this {class_name} is ")
    assert FIELDS[kind].allowed in message
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize(
    ("class_name", "field", "value", "is_right"),
    [
        ("Conv1D", "strides", [2], True),
        ("Conv1D", "strides", [2, 2], False),
        ("Conv3D", "kernel_size", [3, 3, 3], True),
        ("Conv3D", "kernel_size", 65, False),
        ("AveragePooling2D", "strides", None, True),
        ("ZeroPadding1D", "padding", [1, 2], True),
        ("ZeroPadding1D", "padding", [[1, 2]], False),
        ("ZeroPadding1D", "padding", 3, True),
        ("UpSampling1D", "size", 2, True),
        ("UpSampling1D", "size", [2, 2], False),
    ],
)
def test_lengths_are_those_of_the_class(
    class_name: str, field: str, value: Any, is_right: bool
) -> None:
    if is_right:
        check_config(class_name, {field: value}, "m.h5: a")
    else:
        with pytest.raises(FileFormatError, match=field):
            check_config(class_name, {field: value}, "m.h5: a")


def layer(**fields: Any) -> dict[str, Any]:
    return sequential(wrapped("d", class_name="Dense", **fields))


READERS: dict[str, Callable[[Path, Any], Any]] = {
    "model.h5": lambda path, units: one_layer(path, units=units),
    "model.keras": lambda path, units: write_v3(path, {}, layer(units=units)),
    "config.json": lambda path, units: path.write_text(json.dumps(layer(units=units))),
}


@pytest.mark.parametrize("name", READERS)
def test_every_source_of_a_config_is_checked(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    READERS[name](path, [4])
    weights, beside = path, None
    if name == "config.json":
        weights = write_v3(tmp_path / "w.weights.h5", {"layers/dense": [np.zeros((3, 4))]})
        beside = path
    words = re.escape(f"{path}: d: units of this Dense is [4], not an integer from 1 to")
    with pytest.raises(FileFormatError, match=words):
        qmath.load(weights, architecture=beside)


def test_a_chain_whose_first_layer_has_no_input_shape() -> None:
    config = sequential({"class_name": "Mine", "config": {"name": "a", "batch_input_shape": "x"}})
    assert "input shape" in read_architecture(config).notes[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_bits", 17), ("num_bits", 1), ("num_bits", 8.0), ("num_bits", "8"), ("num_bits", None),
        ("symmetric", "x"), ("symmetric", 2), ("narrow_range", None), ("per_axis", []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["config", "list", "quantizers", "fixed"])
def test_arguments_of_quantizers(tmp_path: Path, place: str, field: str, value: Any) -> None:
    held = quantizer(**{field: value})
    config, name = {
        "config": ({"weight_quantizer": held}, "MyConfig"),
        "list": ({"weight_quantizer": [held]}, "MyConfig"),
        "quantizers": ({"quantizers": {"kernel": held}}, "MyConfig"),
        "fixed": ({"config": {"class_name": "MyConfig", "config": {}}, **held["config"]},
                  "FixedQuantizeConfig"),
    }[place]  # fmt: skip
    path = one_layer(tmp_path / "m.h5", config, kernel(), config_class=name)
    shown = "FixedQuantizeConfig" if place == "fixed" else "LastValueQuantizer"
    words = re.escape(f"{path}: d: {field} of its {shown} is {value!r}, not ")
    with pytest.raises(FileFormatError, match=words):
        qmath.load(path)


def test_arguments_of_the_users_own_quantizers_are_theirs(tmp_path: Path) -> None:
    held = quantizer("Mine>LastValueQuantizer", num_bits="many")
    path = one_layer(tmp_path / "m.h5", {"weight_quantizer": held})
    assert qmath.load(path).tensors["d/kernel"].role == "weight"
