"""`qmath.load` on the sample files, and on files broken in every way we know."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import FileFormatError, QmathError
from qmath.model import missing_settings
from qmath.readers.loading import load
from tests.helpers import assert_same_bits, read_npz
from tests.readers.builders import (
    SAMPLES,
    entry,
    functional,
    kernel,
    one_layer,
    quantizer,
    sequential,
    span,
    step,
    wrapped,
    write,
)

h5py = pytest.importorskip("h5py")

GOLDEN = SAMPLES.parent / "golden" / "samples.npz"
NAMES = ("question", "integer4", "default8", "nbit4")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.h5"


@pytest.mark.parametrize("name", NAMES)
def test_samples_quantize_to_what_tensorflow_computes(name: str) -> None:
    model = load(SAMPLES / f"{name}.h5")
    golden = read_npz(GOLDEN)
    weights = {key: tensor for key, tensor in model.tensors.items() if tensor.role == "weight"}
    assert {f"{name}/{key}" for key in weights} == {
        key for key in golden if key.startswith(f"{name}/") and key.endswith("kernel")
    }
    for key, tensor in weights.items():
        assert_same_bits(tensor.quantize().dequantize(), golden[f"{name}/{key}"], key)
        assert_same_bits(tensor.min, golden[f"{name}/{key}.min"], key)
        assert_same_bits(tensor.max, golden[f"{name}/{key}.max"], key)


def test_question_in_full() -> None:
    path = SAMPLES / "question.h5"
    model = load(str(path))
    assert {key: tensor.role for key, tensor in model.tensors.items()} == {
        "quantize_layer/output": "input",
        "conv1/kernel": "weight",
        "conv1/bias": "float",
        "conv1/post_activation": "activation",
        "dw1/depthwise_kernel": "weight",
        "dw1/bias": "float",
        "dw1/post_activation": "activation",
        "bn/gamma": "float",
        "bn/beta": "float",
        "bn/moving_mean": "float",
        "bn/moving_variance": "float",
        "dense/kernel": "float",
        "dense/bias": "float",
    }
    assert model.graph is not None
    assert [node.name for node in model.graph.nodes] == [
        "image",
        "quantize_layer",
        "conv1",
        "dw1",
        "bn",
        "relu6",
        "flatten",
        "dense",
    ]
    assert [note.partition(":")[0] for note in model.notes] == ["Assumed"] * 2
    assert model.source == str(path)
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.tensors["conv1/kernel"].provenance["num_bits"] == "range ratio"
    assert model.tensors["quantize_layer/output"].provenance["num_bits"] == "config"
    (missing,) = missing_settings(model)
    assert missing.tensors == ("conv1/post_activation", "dw1/post_activation")
    key, _, said = missing.option.removeprefix("--quantizer ").strip('"').partition("=")
    assert said == (
        "MovingAverageQuantizer(num_bits=4, per_axis=False, symmetric=False, narrow_range=False)"
    )
    complete = load(path, {key: qmath.MovingAverageQuantizer(4, False, False, False)})
    assert not missing_settings(complete)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("default8", {"input": 8, "weight": 8, "activation": 8, "output": 8}),
        ("nbit4", {"input": 8, "weight": 4, "activation": 8, "output": 8}),
    ],
)
def test_samples_of_the_schemes_say_it_all(name: str, widths: dict[str, int]) -> None:
    model = load(SAMPLES / f"{name}.h5")
    found = {
        tensor.role: tensor.spec.num_bits
        for tensor in model.tensors.values()
        if tensor.role != "float"
    }
    assert found == widths
    assert not missing_settings(model)


def test_values_stay_in_the_file_until_asked_for(path: Path) -> None:
    shutil.copy(SAMPLES / "question.h5", path)
    model = load(path)
    values: Any = model.tensors["dense/kernel"].values
    assert values.shape == (256, 10)
    assert np.asarray(values).shape == (256, 10)
    path.unlink()
    with pytest.raises(FileFormatError, match="no such file"):
        np.asarray(values)


def test_weights_that_are_not_finite_are_found_when_quantized(path: Path) -> None:
    variables = kernel()
    variables["d/kernel:0"][1, 1] = np.nan
    model = load(one_layer(path, {}, variables))
    with pytest.raises(QmathError, match="d/kernel"):
        model.tensors["d/kernel"].quantize()


# Names and structure: reloaded, nested, shared, recurrent, custom.


def test_names_do_not_depend_on_how_the_file_came_about(path: Path) -> None:
    expected = list(load(one_layer(path, {}, kernel(), span("output"))).tensors)
    variables = kernel() | span("output") | step()
    for scope in ("quant_d/", "", "model/d/"):  # loaded and saved again; from a config; subclassed
        renamed = {
            name.replace("quant_d/", scope).replace("d/", scope, 1)
            if name.startswith("d/")
            else name.replace("quant_d/", scope or ""): values
            for name, values in variables.items()
        }
        if scope == "model/d/":
            renamed = {f"model/{name}": values for name, values in variables.items()}
        write(path, sequential(wrapped("d")), {"quant_d": renamed})
        assert list(load(path).tensors) == expected == ["d/kernel", "d/output"]


def test_names_with_slashes(path: Path) -> None:
    config = sequential(wrapped("block/d"), wrapped("block"), nested(wrapped("a/d"), name="m"))
    groups = {f"quant_{layer}": kernel(layer=layer) | step(layer) for layer in ("block/d", "block")}
    model = load(write(path, config, groups | {"m": kernel(layer="a/d") | step("a/d")}))
    assert {name: tensor.role for name, tensor in model.tensors.items()} == dict.fromkeys(
        ["block/d/kernel", "block/kernel", "m/a/d/kernel"], "weight"
    )


def test_cells_are_not_counted(path: Path) -> None:
    """Keras counts the cells of a session, so that one model has several names for one."""
    for names, shown in (
        (["lstm_cell"], ["lstm_cell"]),
        (["lstm_cell_7"], ["lstm_cell"]),
        (["cell", "cell_1"], ["cell", "cell_1"]),
        (["forward/gru_cell_3", "backward/gru_cell_4"], ["forward/gru_cell", "backward/gru_cell"]),
    ):
        variables = {f"l/{name}/kernel:0": np.ones((2, 2), np.float32) for name in names}
        model = load(write(path, sequential(entry("Mine", "l")), {"l": variables}))
        assert list(model.tensors) == [f"l/{name}/kernel" for name in shown]


def test_wrapper_without_a_prefix(path: Path) -> None:
    config = wrapped("d")
    config["name"] = config["config"]["name"] = "d"
    variables = {name.replace("quant_", ""): values for name, values in kernel().items()}
    write(path, sequential(config), {"d": variables | {"d/optimizer_step:0": np.int32(-1)}})
    assert load(path).tensors["d/kernel"].role == "weight"


def nested(*layers: Any, name: str = "block") -> dict[str, Any]:
    model = sequential(*layers)
    model["config"]["name"] = model["name"] = name
    return model


def test_nested_models(path: Path) -> None:
    variables = (
        kernel() | step() | kernel(layer="e") | step("e") | {"bn/gamma:0": np.ones(4, np.float32)}
    )
    config = sequential(
        entry("InputLayer", "x"),
        nested(wrapped("d"), nested(wrapped("e"), name="inner"), entry("BatchNormalization", "bn")),
    )
    model = load(write(path, config, {"block": variables}))
    assert {name: tensor.role for name, tensor in model.tensors.items()} == {
        "block/d/kernel": "weight",
        "block/inner/e/kernel": "weight",
        "block/bn/gamma": "float",
    }
    assert model.graph is not None
    assert [node.name for node in model.graph.nodes] == [
        "x",
        "block/d",
        "block/inner/e",
        "block/bn",
    ]


@pytest.mark.parametrize(
    "extra",
    [
        {"kernel_min:0": np.float32(-1), "kernel_max:0": np.float32(1)},
        {"optimizer_step:0": np.int32(-1)},
    ],
)
def test_nested_ranges_without_a_layer(path: Path, extra: dict[str, Any]) -> None:
    write(path, sequential(nested(wrapped("d"))), {"block": kernel() | step() | extra})
    with pytest.raises(FileFormatError, match="more than one layer"):
        load(path)


def test_nested_models_with_equal_layer_names(path: Path) -> None:
    config = sequential(nested(nested(wrapped("d"), name="a"), nested(wrapped("d"), name="b")))
    write(path, config, {"block": kernel() | step()})
    with pytest.raises(FileFormatError, match="more than one layer"):
        load(path)


def test_float_models_inside_need_no_certainty(path: Path) -> None:
    layers = [nested(entry("Dense", "d"), name=name) for name in "ab"]
    write(
        path,
        sequential(nested(*layers)),
        {"block": {"d/kernel:0": np.ones((2, 2), np.float32), "x_max:0": np.ones(2, np.float32)}},
    )
    assert list(load(path).tensors) == ["block/d/kernel", "block/x_max"]


def test_recurrent_layers(path: Path) -> None:
    def cell(name: str) -> dict[str, np.ndarray]:
        return {
            key.replace("d/", "d/lstm_cell/", 1) if key.startswith("d/") else key: values
            for key, values in kernel(name=name).items()
        }

    one_layer(path, {}, cell("kernel"), cell("recurrent_kernel"), span("output"))
    assert {name: tensor.role for name, tensor in load(path).tensors.items()} == {
        "d/lstm_cell/kernel": "weight",
        "d/lstm_cell/recurrent_kernel": "weight",
        "d/output": "output",
    }


def test_layers_inside_custom_layers_pair_by_name(path: Path) -> None:
    variables = {f"custom/{name}": values for name, values in (kernel() | step()).items()}
    variables["custom/own:0"] = np.ones(3, np.float32)
    model = load(write(path, sequential(entry("MyLayer", "custom")), {"custom": variables}))
    assert {name: tensor.role for name, tensor in model.tensors.items()} == {
        "custom/d/kernel": "weight",
        "custom/own": "float",
    }
    assert model.tensors["custom/d/kernel"].spec.num_bits == 4


def test_architecture_that_is_not_understood(path: Path) -> None:
    model = load(
        write(
            path,
            {"class_name": "MyModel", "config": {}},
            {
                "quant_d": kernel() | step(),
                "bn": {"bn/gamma:0": np.ones(3)},
                "q": {
                    "q/q_min:0": np.float32(0),
                    "q/q_max:0": np.float32(1),
                    "q/optimizer_step:0": np.int32(-1),
                },
            },
        )
    )
    assert model.graph is None
    assert any("order of the layers" in note for note in model.notes)
    assert {name: tensor.role for name, tensor in model.tensors.items()} == {
        "d/kernel": "weight",
        "bn/gamma": "float",
        "q/output": "input",
    }


def test_variables_of_the_model_itself(path: Path) -> None:
    one_layer(path)
    with h5py.File(path, "a") as file:
        group = file["model_weights"].create_group("top_level_model_weights")
        group.attrs["weight_names"] = ["scale:0"]
        group["scale:0"] = np.ones(2, np.float32)
    assert load(path).tensors["top_level_model_weights/scale"].role == "float"


def test_training_leftovers_are_left_out(path: Path) -> None:
    one_layer(
        path,
        {},
        kernel(),
        {
            f"quant_d/{name}:0": np.ones(3, np.float32)
            for name in ("cluster_centroids_tf", "ori_weights_vars_tf", "pulling_indices_tf")
        },
    )
    model = load(path)
    assert list(model.tensors) == ["d/kernel"]
    assert any("leftovers" in note and " d." in note for note in model.notes)


def test_a_model_without_quantization(path: Path) -> None:
    model = load(
        write(
            path,
            sequential(entry("Dense", "d")),
            {"d": {"d/kernel:0": np.ones((2, 2), np.float32), "d/x_min:0": np.ones(2, np.float32)}},
        )
    )
    assert {tensor.role for tensor in model.tensors.values()} == {"float"}
    assert any("Nothing in this model is quantized" in note for note in model.notes)


def weights_only(path: Path, groups: dict[str, Any]) -> Path:
    """Write what ``save_weights("weights.h5")`` does."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = list(groups)
        for layer, variables in groups.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = list(variables)
            for name, values in variables.items():
                group[name] = values
    return path


def test_weights_by_name(path: Path) -> None:
    weights_only(path, {"x": {}, "quant_d": kernel() | step()})
    alone = load(path)
    assert alone.tensors["d/kernel"].spec.num_bits == 4
    assert alone.graph is None
    assert any("--architecture" in note for note in alone.notes)
    config = sequential(wrapped("d", {"weight_bits": 4}, units=4, use_bias=False))
    whole = write(path.with_name("whole.h5"), config, {"quant_d": kernel() | step()})
    both = load(path, architecture=whole)
    assert both.tensors["d/kernel"].provenance["num_bits"] == "config"
    assert both.graph == load(whole).graph is not None
    assert [note.partition(":")[0] for note in both.notes] == ["Assumed"] * 2
    assert both.sha256 not in (alone.sha256, load(whole).sha256)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (sequential(wrapped("e")), "d/kernel belongs to no layer"),
        (sequential(entry("Dense", "d")), "quantizes d in the former alone"),
        (sequential(wrapped("d", use_bias=False), entry("Dense", "e")), "lacks e/kernel"),
        (sequential(wrapped("d", units=4)), "lacks d/bias"),
        (sequential(wrapped("d", units=5, use_bias=False)), r"shape \(3, 4\), and .* \(any, 5\)"),
    ],
)
def test_weights_by_name_of_another_model(path: Path, config: Any, words: str) -> None:
    weights_only(path, {"quant_d": kernel() | step()})
    beside = path.with_name("config.json")
    beside.write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match=words) as caught:
        load(path, architecture=beside)
    assert str(path) in str(caught.value)
    assert str(beside) in str(caught.value)


def test_an_architecture_too_many(path: Path) -> None:
    one_layer(path)
    with pytest.raises(QmathError, match="holds its own architecture"):
        load(path, architecture=path)


def test_old_attributes(path: Path) -> None:
    one_layer(path)
    with h5py.File(path, "a") as file:
        weights = file["model_weights"]
        names = [name.encode() for name in weights["quant_d"].attrs["weight_names"]]
        del weights["quant_d"].attrs["weight_names"], weights.attrs["layer_names"]
        weights["quant_d"].attrs["weight_names0"] = np.array(names[:2])
        weights["quant_d"].attrs["weight_names1"] = np.array(names[2:])
        weights.attrs["layer_names0"] = np.array([b"quant_d"])
        file.attrs["model_config"] = np.bytes_(file.attrs["model_config"])
    assert load(path).tensors["d/kernel"].spec.num_bits == 4


# Damage.


def remove(name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file["model_weights"][name]

    return change


def put(name: str, values: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file["model_weights"][name]
        file["model_weights"][name] = values

    return change


def list_only(layer: str, *names: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file["model_weights"][layer].attrs["weight_names"] = list(names)

    return change


def set_config(text: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file.attrs["model_config"] = text

    return change


def drop_listing(file: Any) -> None:
    del file["model_weights"].attrs["layer_names"]


def list_twice(file: Any) -> None:
    file["model_weights"].attrs["layer_names"] = ["dense", "dense"]


def list_names_twice(file: Any) -> None:
    file["model_weights/dense"].attrs["weight_names"] = ["dense/bias:0", "dense/bias:0"]


def link_outside(file: Any) -> None:
    del file["model_weights/dense/dense/bias:0"]
    file["model_weights/dense/dense/bias:0"] = h5py.ExternalLink("/etc/passwd", "/")


CONV = "quant_conv1/quant_conv1"
FLAT = np.zeros(16, np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove(f"{CONV}/kernel_min:0"), ["kernel_min"]),
        (remove("quant_conv1/conv1/kernel:0"), ["quant_conv1/conv1/kernel:0"]),
        (remove("quant_conv1"), ["quant_conv1"]),
        (
            list_only("quant_conv1", "conv1/kernel:0", "quant_conv1/kernel_min:0"),
            ["conv1/kernel_min", "both ends"],
        ),
        (
            list_only("quant_conv1", "quant_conv1/kernel_min:0", "quant_conv1/kernel_max:0"),
            ["conv1/kernel", "no tensors"],
        ),
        (list_only("quant_conv1", "conv1/kernel:0"), ["conv1/kernel is quantized", "missing"]),
        (list_only("quant_relu6"), ["relu6/output is quantized", "missing"]),
        (list_only("quantize_layer"), ["quantize_layer/output is quantized", "missing"]),
        (put(f"{CONV}/kernel_min:0", FLAT[:3]), ["range of conv1/kernel", "(3,)"]),
        (put(f"{CONV}/kernel_max:0", np.float32(1)), ["range of conv1/kernel", "shapes"]),
        (put(f"{CONV}/kernel_min:0", FLAT + 9), ["range of conv1/kernel", "min > max"]),
        (put(f"{CONV}/kernel_min:0", FLAT * np.nan), ["range of conv1/kernel", "not finite"]),
        (put(f"{CONV}/kernel_max:0", FLAT + np.inf), ["range of conv1/kernel", "not finite"]),
        (
            put(f"{CONV}/kernel_min:0", FLAT.astype(np.float64)),
            ["range of conv1/kernel", "float32"],
        ),
        (put("quant_conv1/conv1/kernel:0", np.zeros((3, 3, 1, 16))), ["conv1/kernel", "float32"]),
        (put(f"{CONV}/post_activation_min:0", FLAT), ["conv1/post_activation", "shapes"]),
        (put("quant_dense/dense/bias:0", "text"), ["dense/bias:0", "no tensor"]),
        (set_config("{"), ["model_config", "JSON"]),
        (set_config("[" * 5000), ["model_config", "JSON"]),
        (drop_listing, ["layer_names"]),
    ],
)
def test_damaged_samples(path: Path, change: Callable[[Any], None], words: list[str]) -> None:
    shutil.copy(SAMPLES / "default8.h5", path)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(FileFormatError) as caught:
        load(path)
    assert all(word in str(caught.value) for word in [str(path), *words]), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [list_twice, list_names_twice, link_outside])
def test_edited_samples(path: Path, change: Callable[[Any], None]) -> None:
    shutil.copy(SAMPLES / "question.h5", path)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(FileFormatError, match=str(path)):
        load(path)


def test_two_layers_of_one_name(path: Path) -> None:
    config = functional(
        [entry("InputLayer", "x"), wrapped("d"), entry("Dense", "d", ["x"])], ["x"], ["d"]
    )
    variables = {"d/kernel:0": np.ones((3, 4), np.float32)}
    write(path, config, {"quant_d": kernel() | step(), "d": variables})
    with pytest.raises(FileFormatError, match="two tensors are named 'd/kernel'"):
        load(path)


def test_ranges_that_could_mean_two_things(path: Path) -> None:
    one_layer(path, {}, kernel(name="output"))
    with pytest.raises(FileFormatError, match="d/output has a range, and 2 tensors"):
        load(path)
    one_layer(path, {}, kernel(), {"d/cell_2/kernel:0": np.ones((3, 4), np.float32)})
    with pytest.raises(FileFormatError, match="d/kernel has a range, and 2 tensors"):
        load(path)
    write(
        path,
        sequential(entry("QuantizeLayer", "q", quantizer=quantizer("Mine"))),
        {"q": {f"q/{name}_{end}:0": np.float32(0) for name in "ab" for end in ("min", "max")}},
    )
    with pytest.raises(FileFormatError, match="q/a has a range, and no tensors"):
        load(path)


def test_every_truncation_is_noticed(path: Path) -> None:
    content = (SAMPLES / "question.h5").read_bytes()
    for size in range(0, len(content), 997):
        path.write_bytes(content[:size])
        with pytest.raises(FileFormatError, match=str(path)):
            load(path)


# Other kinds of file.


def hdf5_with(**content: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for key, value in content.items():
                if value is None:
                    file.create_group(key)
                else:
                    file.attrs[key] = value

    return make


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (hdf5_with(), "no Keras model"),
        (hdf5_with(layers=None), "--architecture"),
        (hdf5_with(_layer_checkpoint_dependencies=None), "--architecture"),
        (hdf5_with(layer_names=["a"]), "'a' is missing"),
        (hdf5_with(model_config="{}"), "without its weights"),
    ],
)
def test_other_kinds_of_file_are_named(path: Path, make: Callable[[Path], None], kind: str) -> None:
    make(path)
    with pytest.raises(FileFormatError, match=kind) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_lambda_layers_are_not_run(path: Path) -> None:
    code = ["4wEAAAAAAAAA", None, None]
    config = sequential(wrapped("d"), entry("Lambda", "l", function=code))
    model = load(write(path, config, {"quant_d": kernel() | step(), "l": {}}))
    assert any("Lambda" in note for note in model.notes)
    assert "4wEAAAAAAAAA" not in json.dumps(
        [dict(node.config) for node in (model.graph.nodes if model.graph else ())]
    )


@pytest.mark.parametrize("value", [None, 3, 1.5, ["model.h5"]])
def test_what_is_no_path_is_refused(value: Any) -> None:
    with pytest.raises(QmathError, match="read from the path of a file, not"):
        load(value)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_names_that_no_file_can_have_are_refused(name: str) -> None:
    with pytest.raises(FileFormatError, match="is no path"):
        load(name)


@pytest.mark.parametrize("end", ["a", 1j, None, [0.0], float("nan"), float("inf"), 1e39])
def test_a_told_range_is_two_numbers(end: Any) -> None:
    fixed = qmath.FixedQuantizer(8, init_min=end, init_max=1.0, narrow_range=False)
    with pytest.raises(QmathError, match="init_min and init_max must be finite numbers"):
        load(SAMPLES / "question.h5", {"dense/kernel": fixed})


def test_an_activation_without_its_quantizer_is_no_tensor(path: Path) -> None:
    source, name = SAMPLES / "default8.h5", "quantize_layer/output"
    told = {name: qmath.NoQuantizer()}
    model = load(source, told, force=True)
    assert list(model.tensors) == [key for key in load(source).tensors if key != name]
    output = path.with_suffix(".npz")
    bundle = qmath.export(model, output)
    assert name not in bundle.manifest["tensors"]
    assert qmath.verify(model, output).ok
