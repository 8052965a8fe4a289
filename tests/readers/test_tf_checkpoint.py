"""TensorFlow's checkpoints: paired by the object graph, named as everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.containers.tensor_bundle import TensorBundle
from qmath.errors import FileFormatError, QmathError
from qmath.model import QatModel
from tests.helpers import assert_same_bits
from tests.readers.builders import SAMPLES, entry, functional, sequential, wrapped

pytest.importorskip("google.protobuf")
pytest.importorskip("google_crc32c")
pytest.importorskip("h5py")

from tests.containers.bundles import GOLDEN, GRAPH, message, write_arrays
from tests.readers.object_graphs import (
    Var,
    dense,
    graph_of,
    model,
    quantize_layer,
    reference,
    save,
    span,
    wrapper,
)

SAMPLE = SAMPLES / "question.h5"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "ckpt"


def names(loaded: QatModel) -> list[str]:
    return list(loaded.tensors)


def load(prefix: Path, root: dict[str, Any], config: Any = None) -> QatModel:
    """Save nested dicts and load them, with a config if there is one."""
    save(prefix, root)
    if config is None:
        return qmath.load(prefix)
    path = prefix.with_name("config.json")
    path.write_text(json.dumps(config))
    return qmath.load(prefix, architecture=path)


@pytest.mark.parametrize("architecture", [None, SAMPLE])
@pytest.mark.parametrize("path", ["", "ckpt", "ckpt.index"])
def test_tensors_are_those_of_the_whole_model(path: str, architecture: Path | None) -> None:
    loaded = qmath.load(GOLDEN / "question" / path, architecture=architecture)
    whole = qmath.load(SAMPLE)
    assert names(loaded) == names(whole)
    for name, tensor in whole.tensors.items():
        mine = loaded.tensors[name]
        assert mine.role == tensor.role
        for one, other in (
            (mine.values, tensor.values),
            (mine.min, tensor.min),
            (mine.max, tensor.max),
        ):
            assert (one is None) == (other is None)
            if one is not None:
                assert_same_bits(one, other, name)
        if architecture:
            assert (mine.spec, mine.provenance) == (tensor.spec, tensor.provenance)
    assert (loaded.graph is None) == (architecture is None)


def test_without_an_architecture_only_the_ratio_tells() -> None:
    loaded = qmath.load(GOLDEN / "question")
    kernel, activation = (loaded.tensors[f"conv1/{name}"] for name in ("kernel", "post_activation"))
    assert (kernel.spec.num_bits, kernel.provenance["num_bits"]) == (4, "range ratio")
    assert (activation.spec.num_bits, activation.spec.per_axis) == (None, False)
    assert '--quantizer "conv1/post_activation=' in str(activation.hint)
    assert any("--architecture" in note for note in loaded.notes)


def test_weights_of_one_name_are_told_apart() -> None:
    loaded = qmath.load(GOLDEN / "stacked")
    with np.load(GOLDEN / "expected.npz") as archive:
        expected = {key: archive[key] for key in archive if key.startswith("stacked/")}
    weights = {name for name, tensor in loaded.tensors.items() if tensor.role == "weight"}
    assert {f"stacked/{name}" for name in weights} == {
        key for key in expected if not key.endswith((".min", ".max"))
    }
    for name in weights:
        tensor = loaded.tensors[name]
        assert_same_bits(tensor.values, expected[f"stacked/{name}"])
        assert_same_bits(tensor.min, expected[f"stacked/{name}.min"])
        assert_same_bits(tensor.max, expected[f"stacked/{name}.max"])
    assert [loaded.tensors[name].spec.num_bits for name in sorted(weights)] == [4, 7]
    assert not [name for name in loaded.tensors if "iteration" in name or "save_counter" in name]


def test_the_digest_is_that_of_index_and_shards(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "question", tmp_path / "copy")
    first, copy = (qmath.load(path) for path in (GOLDEN / "question", tmp_path / "copy"))
    assert first.sha256 == copy.sha256
    shard = tmp_path / "copy" / "ckpt.data-00000-of-00001"
    shard.write_bytes(shard.read_bytes() + b" ")
    assert qmath.load(tmp_path / "copy").sha256 != first.sha256
    with pytest.raises(FileFormatError, match="has changed since it was loaded"):
        np.asarray(copy.tensors["conv1/kernel"].values)


def test_loading_reads_only_the_graph_and_the_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read = TensorBundle._bytes
    monkeypatch.setattr(
        TensorBundle, "_bytes", lambda *args: sizes.append(args[1].size) or read(*args)
    )
    loaded = qmath.load(GOLDEN / "question")
    ranges = [end for tensor in loaded.tensors.values() for end in (tensor.min, tensor.max)]
    assert sorted(sizes) == [4] * sum(end is not None for end in ranges) + sizes[:1]
    np.asarray(loaded.tensors["conv1/kernel"].values)
    assert sizes[-1] == loaded.tensors["conv1/kernel"].values.nbytes


def test_roles_and_ranges(prefix: Path) -> None:
    layer = wrapper(**span("pre_activation", low=-2.0), **span("post_activation", high=7.0))
    low, high = Var("quant_d/output_min", -3.0), Var("quant_d/output_max", 4.0)
    layer |= {"_output_quantizer_vars": {"min_var": low, "max_var": high}, "output_min": low}
    loaded = load(prefix, model({}, quantize_layer(), layer, dense()))
    assert {
        name: (tensor.role, None if tensor.min is None else (float(tensor.min), float(tensor.max)))
        for name, tensor in loaded.tensors.items()
    } == {
        "quantize_layer/output": ("input", (-1.0, 5.0)),
        "d/kernel": ("weight", (float(np.float32(-0.8)), float(np.float32(0.7)))),
        "d/bias": ("float", None),
        "d/pre_activation": ("activation", (-2.0, 5.0)),
        "d/post_activation": ("activation", (-1.0, 7.0)),
        "d/output": ("output", (-3.0, 4.0)),
        "head/kernel": ("float", None),
        "head/bias": ("float", None),
    }


def test_a_weight_that_is_called_output(prefix: Path) -> None:
    weight = Var("d/output", [[1.0, 2.0]])
    low, high = Var("quant_d/output_min", -3.0), Var("quant_d/output_max", 4.0)
    layer = {
        "layer": {"output": weight},
        "optimizer_step": Var("quant_d/optimizer_step"),
        "_weight_vars": {"0": {"0": weight, "2": {"min_var": low, "max_var": high}}},
        "output_min": low,
        "output_max": high,
    }
    loaded = load(prefix, model(layer))
    assert [(t.name, t.role) for t in loaded.tensors.values()] == [("d/output", "weight")]


def test_weights_that_the_layer_no_longer_tracks(prefix: Path) -> None:
    layer = wrapper()
    del layer["layer"]["kernel"]
    assert set(names(load(prefix, model(layer)))) == {"d/kernel", "d/bias"}


def test_a_fixed_quantizer_leaves_no_trace(prefix: Path) -> None:
    layer = wrapper(_output_quantizer_vars={})
    layer["_weight_vars"]["0"]["2"] = {}
    del layer["kernel_min"], layer["kernel_max"]
    loaded = load(prefix, model({"optimizer_step": Var("quantize_layer/optimizer_step")}, layer))
    assert {tensor.role for tensor in loaded.tensors.values()} == {"float"}
    assert any("Nothing in this model is quantized" in note for note in loaded.notes)


def test_leftovers_are_named(prefix: Path) -> None:
    layer = wrapper(cluster_centroids_tf=Var("quant_d/cluster_centroids_tf", [1.0, 2.0]))
    loaded = load(prefix, model(layer))
    assert names(loaded) == ["d/kernel", "d/bias"]
    assert any("training leftovers" in note and " d." in note for note in loaded.notes)


@pytest.mark.parametrize(
    "state",
    [
        {"_variables": {"1": Var("Adam/m/d/kernel")}, "_iterations": Var("iteration")},
        {"iter": Var("Adam/iter"), "learning_rate": Var("Adam/learning_rate")},
        {"base": {"m": Var("m/d/kernel")}, "current_loss_scale": Var("current_loss_scale")},
    ],
)
def test_the_state_of_training_is_left_out(prefix: Path, state: dict[str, Any]) -> None:
    bookkeeping = {
        "keras_api": {"metrics": {"0": {"total": Var("total")}}},
        "save_counter": Var("save_counter"),
    }
    one = model(wrapper(), optimizer=state)
    for root in (
        {**one, **bookkeeping},
        {"model": {**one, **bookkeeping}, "optimizer": state, "save_counter": Var("save_counter")},
        {"anything": one, "opt": state, "step": Var("Variable")},
    ):
        assert names(load(prefix, root)) == ["d/kernel", "d/bias"]


def test_random_generators_are_left_out(prefix: Path) -> None:
    dropout = {"_random_generator": {"_generator": {"_state_var": Var("StateVar", [1.0])}}}
    assert names(load(prefix, model(wrapper(), dropout))) == ["d/kernel", "d/bias"]


def test_an_optimizer_is_known_by_its_slots(prefix: Path) -> None:
    root = {"model": model(wrapper()), "trainer": {"hyper": {"x": Var("x")}}}
    graph, arrays = graph_of(root)
    assert len(qmath.load(write_arrays(prefix, arrays, graph)).tensors) == 3
    number = next(
        child.node_id for child in graph.nodes[0].children if child.local_name == "trainer"
    )
    graph.nodes[number].slot_variables.add(slot_name="m")
    assert names(qmath.load(write_arrays(prefix, arrays, graph))) == ["d/kernel", "d/bias"]


def test_circles_and_shared_layers_are_ordinary(prefix: Path) -> None:
    shared = wrapper()
    root = model({}, shared, root={})
    root["root"], shared["layer"]["_outer"] = root, root
    root["attribute"] = shared
    assert names(load(prefix, root)) == ["d/kernel", "d/bias"]


def test_subclassed_models(prefix: Path) -> None:
    root = {
        "body": model(quantize_layer(), wrapper("d")),
        "stack": {"0": wrapper("s0", "outer/quant_s0/"), "1": wrapper("s1", "outer/quant_s1/")},
        "head": dense("outer/head"),
        "w": Var("outer/w"),
    }
    expected = [
        "top_level_model_weights/w", "body/quantize_layer/output", "body/d/kernel", "body/d/bias",
        "s0/kernel", "s0/bias", "s1/kernel", "s1/bias", "head/kernel", "head/bias",
    ]  # fmt: skip
    assert sorted(names(load(prefix, root))) == sorted(expected)
    del root["w"]
    around = {"model": root, "save_counter": Var("save_counter")}
    assert names(load(prefix, around)) == names(load(prefix, root)) == expected[1:]


def test_layers_inside_layers(prefix: Path) -> None:
    block = {"conv": dense("block/conv1"), "quant": wrapper("c2", "block/quant_c2/")}
    assert names(load(prefix, model(block, dense()))) == [
        "block/conv1/kernel", "block/conv1/bias", "block/c2/kernel", "block/c2/bias",
        "head/kernel", "head/bias",
    ]  # fmt: skip


def test_cells_are_named_as_if_they_were_the_first(prefix: Path) -> None:
    one = {"cell": {"kernel": Var("rnn/gru_cell_7/kernel"), "bias": Var("rnn/gru_cell_7/bias")}}
    two = {"cells": {str(i): {"kernel": Var(f"two/gru_cell_{i + 3}/kernel")} for i in range(2)}}
    assert names(load(prefix, model(one, two))) == [
        "rnn/gru_cell/kernel", "rnn/gru_cell/bias",
        "two/gru_cell_3/kernel", "two/gru_cell_4/kernel",
    ]  # fmt: skip


def test_names_with_slashes(prefix: Path) -> None:
    assert names(load(prefix, model(wrapper("a/b"), dense("a/c")))) == [
        "a/b/kernel", "a/b/bias", "a/c/kernel", "a/c/bias",
    ]  # fmt: skip


def test_what_has_no_name_is_called_by_its_place(prefix: Path) -> None:
    cells = {"cells": {str(i): {"kernel": Var("kernel")} for i in range(2)}}
    root = model(
        {}, wrapper(scope=""), cells, model(wrapper(), model(dense())), model(wrapper()), dense("x")
    )
    root["layer-5"]["bias"] = Var("")
    loaded = load(prefix, root)
    assert names(loaded) == [
        "layer-1/kernel", "layer-1/bias",
        "layer-2/cells/0/kernel", "layer-2/cells/1/kernel",
        "layer-3/d/kernel", "layer-3/d/bias", "layer-3/layer-1/head/kernel",
        "layer-3/layer-1/head/bias", "layer-4/d/kernel", "layer-4/d/bias",
        "layer-5/x/kernel", "layer-5/bias",
    ]  # fmt: skip
    assert any("layer-1, layer-2, layer-3, layer-3/layer-1, layer-4" in n for n in loaded.notes)


def test_two_layers_of_one_name_are_called_by_the_way_to_them(prefix: Path) -> None:
    root = {"one": dense("d"), "two": dense("d"), "three": dense("e")}
    assert names(load(prefix, root)) == [
        "one/kernel", "one/bias", "two/kernel", "two/bias", "e/kernel", "e/bias",
    ]  # fmt: skip


# ---- with an architecture

NESTED = functional(
    [
        entry("InputLayer", "i"),
        {**functional([entry("InputLayer", "j"), wrapped("d")], [], []), "name": "block"},
        entry("Dense", "head", use_bias=True),
    ],
    [],
    [],
)
NESTED["config"]["layers"][1]["config"]["name"] = "block"


def test_an_architecture_names_nested_models(prefix: Path) -> None:
    inner = wrapper("other")
    low, high = Var("quant_other/kernel_min", -1.0), Var("quant_other/kernel_max", 1.0)
    inner["_weight_vars"]["0"]["2"] = {"min_var": low, "max_var": high}
    del inner["kernel_min"], inner["kernel_max"]
    loaded = load(prefix, model({}, model({}, inner), dense("another")), NESTED)
    assert names(loaded) == ["block/d/kernel", "block/d/bias", "head/kernel", "head/bias"]
    assert "MyConfig.weights" in str(loaded.tensors["block/d/kernel"].hint)
    assert not any("only their places" in note for note in loaded.notes)


def test_a_sequential_model_does_not_number_its_input(prefix: Path) -> None:
    config = sequential(entry("InputLayer", "i"), wrapped("e"), entry("Dense", "f"))
    loaded = load(prefix, model(wrapper(), dense()), config)
    assert names(loaded) == ["e/kernel", "e/bias", "f/kernel", "f/bias"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (sequential(wrapped("e")), "'sequential' has 1 layers there, 2 here"),
        (
            sequential(entry("Dense", "e"), entry("Dense", "f")),
            "'e' is a layer without quantizers there, layer-0 a quantized layer here",
        ),
        (
            sequential(wrapped("e"), wrapped("f")),
            "'f' is a quantized layer there, layer-1 a layer without quantizers here",
        ),
        (sequential(wrapped("e"), entry("Dense", "f", units=7)), "has the shape"),
    ],
)
def test_architectures_of_other_models(prefix: Path, config: Any, said: str) -> None:
    with pytest.raises(FileFormatError, match=said) as caught:
        load(prefix, model(wrapper(), dense()), config)
    assert "config.json" in str(caught.value)


def test_an_architecture_for_a_subclassed_model(prefix: Path) -> None:
    with pytest.raises(FileFormatError, match="Sequential or Functional model, which this is not"):
        load(prefix, {"a": dense(), "b": wrapper()}, sequential(wrapped("e")))


# ---- what cannot be paired, and what no model is


def _lone_end() -> dict[str, Any]:
    layer = wrapper()
    del layer["_weight_vars"]["0"]["2"]["max_var"]
    return model(layer)


def _lone_activation() -> dict[str, Any]:
    ends = span("post_activation")
    del ends["post_activation_max"]
    return model(wrapper(**ends))


def _range_of_nothing() -> dict[str, Any]:
    return model(wrapper(**span("gamma")))


def _range_without_weight() -> dict[str, Any]:
    layer = wrapper()
    del layer["_weight_vars"]["0"]["0"]
    return model(layer)


def _lone_input() -> dict[str, Any]:
    layer = quantize_layer()
    del layer["quantizer_vars"]["min_var"]
    return model(layer)


def _inverted() -> dict[str, Any]:
    return model(wrapper(**span("post_activation", low=2.0, high=1.0)))


def _not_finite() -> dict[str, Any]:
    return model(wrapper(**span("post_activation", high=float("nan"))))


def _per_row() -> dict[str, Any]:
    layer = wrapper()
    low, high = Var("quant_d/kernel_min", [-1.0, -1.0]), Var("quant_d/kernel_max", [1.0, 1.0])
    layer["_weight_vars"]["0"]["2"] = {"min_var": low, "max_var": high}
    del layer["kernel_min"], layer["kernel_max"]
    return model(layer)


def _model_in_itself() -> dict[str, Any]:
    inner = model(wrapper())
    root = model(inner)
    inner["layer-1"] = root
    return root


def _doubling() -> dict[str, Any]:
    inner = model(wrapper())
    for _ in range(40):
        inner = model(model(inner), model(inner))
    return inner


def _deep() -> dict[str, Any]:
    inner: dict[str, Any] = dense()
    for _ in range(6_000):
        inner = {"in": inner}
    return model(wrapper(), inner)


def _deep_in_a_wrapper() -> dict[str, Any]:
    layer = wrapper()
    inner: dict[str, Any] = {}
    for _ in range(6_000):
        inner = {"in": inner, "v": Var("v")}
    layer["layer"]["in"] = inner
    return model(layer)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (_lone_end, "d/_weight_vars/0 has a range without its other end"),
        (_lone_activation, "d/post_activation has a range without its other end"),
        (_range_of_nothing, "d/gamma has a range without"),
        (_range_without_weight, "d/_weight_vars/0 has a range without"),
        (_lone_input, "quantize_layer/output has a range without"),
        (_inverted, "min > max"),
        (_not_finite, "not finite"),
        (_per_row, "last axis"),
        (_model_in_itself, "branch more than any network's"),
        (_doubling, "branch more than any network's"),
        (_deep, "branch more than any network's"),
        (_deep_in_a_wrapper, "branch more than any network's"),
    ],
)
def test_graphs_that_are_refused(
    prefix: Path, build: Callable[[], dict[str, Any]], said: str
) -> None:
    save(prefix, build())
    with pytest.raises(FileFormatError, match=said) as caught:
        qmath.load(prefix)
    assert str(prefix) in str(caught.value)


def test_objects_and_keys_that_are_not_there(prefix: Path) -> None:
    graph, arrays = graph_of(model(wrapper()))
    graph.nodes[0].children.append(reference("away", 10_000))
    with pytest.raises(FileFormatError, match="refers to one that is not there"):
        qmath.load(write_arrays(prefix, arrays, graph))
    graph, arrays = graph_of(model(wrapper()))
    graph.nodes[0].children.append(reference("\x1b[2J", 1))
    with pytest.raises(FileFormatError, match="no name that can be shown"):
        qmath.load(write_arrays(prefix, arrays, graph))
    graph, arrays = graph_of(model(wrapper()))
    arrays.popitem()
    with pytest.raises(FileFormatError, match="does not hold it"):
        qmath.load(write_arrays(prefix, arrays, graph))
    empty = message("TrackableObjectGraph")
    with pytest.raises(FileFormatError, match="refers to one that is not there"):
        qmath.load(write_arrays(prefix, {}, empty))


def test_a_checkpoint_of_tensorflow_1() -> None:
    with pytest.raises(FileFormatError, match=r"no object graph, .* partitioned variables"):
        qmath.load(GOLDEN / "slices")
    with pytest.raises(FileFormatError, match="V1"):
        qmath.load(GOLDEN / "v1" / "model.ckpt")


def test_every_cut_of_every_file_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "stacked", tmp_path / "copy")
    for path in sorted((tmp_path / "copy").iterdir()):
        data = path.read_bytes()
        for end in range(0, len(data), max(len(data) // 40, 1)):
            path.write_bytes(data[:end])
            try:
                loaded = qmath.load(tmp_path / "copy")
                for tensor in loaded.tensors.values():
                    np.asarray(tensor.values)
                assert path.name == "checkpoint"
            except QmathError:
                pass
        path.write_bytes(data)
    assert qmath.load(tmp_path / "copy").tensors


@pytest.mark.parametrize("name", ["question", "stacked"])
def test_damaged_graphs_with_right_checksums(prefix: Path, name: str) -> None:
    """Protobuf has no checksum; what gets through must still be a model, or the one error."""
    path = next((GOLDEN / name).glob("*.index")).with_suffix("")
    bundle = TensorBundle(str(path))
    graph = bundle.string(GRAPH)
    arrays = {key: np.asarray(bundle.array(key)) for key in bundle.keys if key != GRAPH}
    generator = np.random.default_rng(5)
    for _ in range(60):
        damaged = bytearray(graph)
        for at in generator.integers(0, len(graph), generator.integers(1, 4)):
            damaged[at] = generator.integers(0, 256)
        try:
            loaded = qmath.load(write_arrays(prefix, arrays, bytes(damaged)))
        except QmathError:
            continue
        for tensor in loaded.tensors.values():
            assert tensor.min is None or np.isfinite(tensor.min).all()
            assert (
                tensor.values is None or np.shape(tensor.values) == np.asarray(tensor.values).shape
            )
