"""Architectures from files of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmath.errors import FileFormatError
from qmath.readers.architecture.parsing import read_architecture, read_architecture_file
from tests.readers.builders import entry, one_layer, sequential, wrapped

CONFIG = sequential(wrapped("d"))


def test_whole_models_and_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    from_json = read_architecture_file(str(path))
    from_hdf5 = read_architecture_file(str(one_layer(tmp_path / "model.h5")))
    expected = read_architecture(CONFIG)
    assert from_json.layers == from_hdf5.layers == expected.layers
    assert from_json.graph == from_hdf5.graph == expected.graph
    assert from_json.source == str(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"", "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b"{}", "holds no layers"),
        (b"\x89HDF\r\n\x1a\n", "HDF5 cannot read"),
    ],
)
def test_what_holds_no_architecture(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileFormatError, match=words) as caught:
        read_architecture_file(str(path))
    assert str(path) in str(caught.value)


TRANSFORMS = "tensorflow_model_optimization.python.core.quantization.keras.default_8bit"


@pytest.mark.parametrize(
    ("name", "module", "class_name"),
    [
        ("sepconv1d_expand", TRANSFORMS, "SeparableConvExpand"),
        ("sepconv1d_squeeze_12", TRANSFORMS, "SeparableConvSqueeze"),
        ("sepconv1d_expand", "my_script", "Lambda"),
        ("sepconv1d_expand_it", TRANSFORMS, "Lambda"),
        ("sepconv1d_expand", None, "Lambda"),
    ],
)
def test_only_lambda_layers_of_tfmot_are_known(
    name: str, module: str | None, class_name: str
) -> None:
    code = {"function": ["4wEAAAA=", None, [1]], "function_type": "lambda", "module": module}
    config = sequential(entry("InputLayer", "x", batch_input_shape=[None, 4, 2]))
    config["config"]["layers"].append(entry("Lambda", name, **code))
    read = read_architecture(config)
    assert read.graph is not None
    assert read.graph.nodes[-1].class_name == class_name
    assert bool(read.notes) == (class_name == "Lambda")
