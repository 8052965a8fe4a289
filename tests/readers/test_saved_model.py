"""SavedModels: tensors as in any other file, settings from the ops that the graph runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import ContradictionError, FileFormatError
from qmath.model import Graph, QatModel
from reference.zoo import Outcome, check

pytest.importorskip("google.protobuf")
pytest.importorskip("google_crc32c")
pytest.importorskip("h5py")

from qmath.containers import protos
from tests.containers.bundles import message

GOLDEN = Path(__file__).parents[2] / "reference" / "golden" / "saved_models"
MODELS = sorted(path.parent for path in GOLDEN.rglob("expected.npz"))
FIXED = GOLDEN / "tf2.21" / "fixed_weight" / "keras_saved"
# Without the one that a .h5 cannot tell.
FLOAT = GOLDEN / "tf2.21" / "unquantized" / "exported"
BARE = sorted({*GOLDEN.rglob("tf_saved"), *GOLDEN.rglob("exported")} - {FLOAT})
KERAS = sorted(set(GOLDEN.rglob("keras_saved")) - {FIXED})
NESTED = GOLDEN / "tf2.21" / "nested"
SMALL = GOLDEN / "tf2.21" / "kernel_bias"
SETTINGS = ("num_bits", "narrow_range", "per_axis", "symmetric", "quantizer", "op")


def label(path: Path) -> str:
    return "-".join(path.relative_to(GOLDEN).parts)


@pytest.fixture
def edit(tmp_path: Path) -> Callable[..., Path]:
    """Return what copies a SavedModel and edits a copy of its graph."""

    def edited(source: Path, change: Callable[[Any, Any], object]) -> Path:
        copy = tmp_path / "edited"
        shutil.copytree(source, copy)
        path = copy / "saved_model.pb"
        saved = protos.parse("SavedModel", path.read_bytes(), "")
        change(saved, saved.meta_graphs[0])
        path.write_bytes(saved.SerializeToString())
        return copy

    return edited


def nodes(meta: Any, *ops: str) -> list[Any]:
    """All nodes of functions that are one of these ops."""
    return [n for f in meta.graph_def.library.function for n in f.node_def if n.op in ops]


def without_initializers(graph: Graph | None) -> Any:
    """What matters of a graph: Keras writes where a class is from in some files alone."""
    assert graph is not None
    plain = [
        (
            (n.name, n.layer, n.class_name, n.inputs, n.quantize_config),
            {k: v for k, v in n.config.items() if "initializer" not in k},
        )
        for n in graph.nodes
    ]
    return plain, graph.inputs, graph.outputs


def test_there_are_two_releases() -> None:
    assert {path.parent.parent.name for path in KERAS} == {"tf2.13", "tf2.21"}


@pytest.mark.parametrize("path", [*KERAS, *BARE, FLOAT], ids=label)
def test_tensors_are_those_that_keras_held(path: Path) -> None:
    outcome = check(path.parent, path.name)
    assert outcome is not None
    assert outcome.mark == "=", outcome.why


@pytest.mark.parametrize("path", KERAS, ids=label)
def test_names_roles_and_layers_are_those_of_the_h5(path: Path) -> None:
    saved, whole = qmath.load(path), qmath.load(path.parent / "whole.h5")
    assert {n: t.role for n, t in saved.tensors.items()} == {
        n: t.role for n, t in whole.tensors.items()
    }
    assert without_initializers(saved.graph) == without_initializers(whole.graph)
    for name, tensor in whole.tensors.items():
        for field in SETTINGS:
            known = getattr(tensor.spec, field)
            assert known in (None, getattr(saved.tensors[name].spec, field)), (name, field)


@pytest.mark.parametrize("path", [*KERAS, *BARE], ids=label)
def test_the_graph_settles_everything(path: Path) -> None:
    saved = qmath.load(path)
    quantized = [tensor for tensor in saved.tensors.values() if tensor.role != "float"]
    assert quantized
    # What is exported for inference alone does not show how training updates ranges.
    trains = path.name != "exported"
    fields = set(SETTINGS) - {"op"} if trains else {"num_bits", "narrow_range", "per_axis"}
    for tensor in quantized:
        assert tensor.spec.is_complete
        assert {field for field, source in tensor.provenance.items() if source == "graph"} == fields
        assert trains or set(tensor.provenance) <= {*fields, "symmetric"}


@pytest.mark.parametrize("path", BARE, ids=label)
def test_layers_told_by_ops_compute_as_those_of_the_h5(path: Path) -> None:
    saved, whole = qmath.load(path), qmath.load(path.parent / "whole.h5")
    assert saved.graph is not None
    assert whole.graph is not None
    assert saved.graph.inputs == whole.graph.inputs
    assert saved.graph.outputs == whole.graph.outputs
    assert [n.name for n in saved.graph.nodes] == [n.name for n in whole.graph.nodes]
    (image,) = (n for n in whole.graph.nodes if n.class_name == "InputLayer")
    assert saved.graph.nodes[0].config["batch_input_shape"] == image.config["batch_input_shape"]
    shape = image.config["batch_input_shape"][1:]
    data = np.random.default_rng(0).uniform(0, 3.5, (20, *shape)).astype(np.float32)
    # Settings that the file alone does not hold are those that its graph runs.
    found, expected = qmath.run(saved, data), qmath.run(settled(whole, saved), data)
    assert list(found.outputs) == list(expected.outputs)
    for name, values in expected.outputs.items():
        assert found.outputs[name].tobytes() == values.tobytes()
    assert found.integers.keys() == expected.integers.keys()
    for name, values in expected.integers.items():
        np.testing.assert_array_equal(found.integers[name], values)


def test_layers_whose_ops_are_not_named_after_them() -> None:
    saved, whole = qmath.load(FLOAT), qmath.load(FLOAT.parent / "whole.h5")
    assert saved.graph is not None
    data = np.random.default_rng(0).normal(size=(20, 6, 4)).astype(np.float32)
    found, expected = qmath.run(saved, data), qmath.run(whole, data)
    assert found.outputs.keys() == expected.outputs.keys()
    for name, values in expected.outputs.items():
        assert found.outputs[name].tobytes() == values.tobytes(), name
    layers = {node.name: node for node in saved.graph.nodes}
    assert layers["re_lu"].config["max_value"] == 1.5
    assert layers["leaky_re_lu"].config["negative_slope"] == 0.3
    assert layers["apart"].config["dilation_rate"] == [2]
    assert layers["conv2d"].config["dilation_rate"] == [2, 2]
    assert layers["conv2d"].config["padding"] == layers["apart"].config["padding"] == "same"
    assert layers["up_sampling1d"].config["size"] == 2
    assert layers["batch_normalization_1"].config["epsilon"] == 0.001


def in_parts(_: Any, meta: Any) -> None:
    """Let every layer read its quantized kernel by way of a ``Split``."""
    for function in meta.graph_def.library.function:
        for node in list(function.node_def):
            if node.op in ("Conv2D", "MatMul") and "FakeQuant" in node.input[1]:
                axis, split = function.node_def.add(), function.node_def.add()
                axis.name, axis.op = f"{node.name}/axis", "Const"
                axis.attr["value"].tensor.dtype = 3
                axis.attr["value"].tensor.int_val.append(0)
                split.name, split.op = f"{node.name}/split", "Split"
                split.attr["num_split"].i = 1
                split.input.extend([f"{axis.name}:output:0", node.input[1]])
                node.input[1] = f"{split.name}:output:0"


def test_a_kernel_that_is_read_in_parts_is_quantized_as_a_whole(edit: Callable[..., Path]) -> None:
    exported = GOLDEN / "tf2.21" / "functional" / "exported"
    whole, parts = qmath.load(exported), qmath.load(edit(exported, in_parts))
    kernels = [name for name, tensor in whole.tensors.items() if tensor.role == "weight"]
    assert len(kernels) > 1
    for name in kernels:
        assert parts.tensors[name].role == "weight"
        np.testing.assert_array_equal(
            parts.tensors[name].quantize().values, whole.tensors[name].quantize().values
        )


def constants(meta: Any, name: str) -> list[Any]:
    """The tensors of constants whose names end so."""
    return [n.attr["value"].tensor for n in nodes(meta, "Const") if n.name.endswith(name)]


@pytest.mark.parametrize(
    ("op", "class_name"),
    [("AddV2", "Add"), ("Mul", "Multiply"), ("Maximum", "Maximum"), ("Minimum", "Minimum")],
)
def test_ops_of_two_make_a_layer_of_three_inputs(
    edit: Callable[..., Path], op: str, class_name: str
) -> None:
    def change(_: Any, meta: Any) -> None:
        for node in nodes(meta, "AddV2"):
            if node.name.startswith("model/add/"):
                node.op = op

    graph = qmath.load(edit(FLOAT, change)).graph
    assert graph is not None
    found = [node for node in graph.nodes if node.name.startswith("add")]
    assert [(node.name, node.class_name, node.inputs) for node in found] == [
        ("add", class_name, ("activation",) * 3)
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda meta: nodes(meta, "AddV2")[-1].__setattr__("op", "Mul"), "Mul (model/add/add_1)"),
        (lambda meta: nodes(meta, "AddV2")[-1].__setattr__("op", "RealDiv"), "RealDiv"),
        (lambda meta: constants(meta, "split/split_dim")[0].int_val.__setitem__(0, 2), "ConcatV2"),
        (lambda meta: constants(meta, "apart/Conv1D/BatchToSpaceND/crops")[0].Clear(), "BatchTo"),
        (lambda meta: nodes(meta, "Split")[0].attr["num_split"].__setattr__("i", 0), "ConcatV2"),
        (lambda meta: nodes(meta, "Split")[0].attr["num_split"].__setattr__("i", 7), "ConcatV2"),
        (lambda meta: nodes(meta, "Minimum")[0].__setattr__("op", "Maximum"), "Maximum"),
        (lambda meta: nodes(meta, "Rsqrt")[0].__setattr__("op", "Sqrt"), "a constant is added"),
        (lambda meta: nodes(meta, "BiasAdd")[0].input.__delitem__(1), "BiasAdd"),
        (lambda meta: nodes(meta, "FusedBatchNormV3")[0].attr.pop("is_training"), "FusedBatch"),
        (lambda meta: nodes(meta, "Conv2D")[0].attr["data_format"].__setattr__("s", b"NCHW"),
         "Conv2D"),
        (lambda meta: nodes(meta, "Conv2D")[0].attr["strides"].list.i.append(1), "strides"),
        (lambda meta: nodes(meta, "MatMul")[0].attr["transpose_a"].__setattr__("b", True),
         "MatMul"),
        (lambda meta: nodes(meta, "Transpose")[-1].input.__setitem__(1, "signal"), "Transpose"),
    ],
)  # fmt: skip
def test_ops_that_are_nearly_those_of_a_layer(
    edit: Callable[..., Path], change: Callable[[Any], object], said: str
) -> None:
    loaded = qmath.load(edit(FLOAT, lambda _, meta: change(meta)))
    assert loaded.graph is None
    assert any(said in note for note in loaded.notes), loaded.notes


def settled(model: QatModel, by: QatModel) -> QatModel:
    """A model with the settings of another."""
    tensors = {n: replace(t, spec=by.tensors[n].spec) for n, t in model.tensors.items()}
    return replace(model, tensors=tensors)


@pytest.mark.parametrize("release", ["tf2.13", "tf2.21"])
def test_widths_that_no_config_holds(release: str) -> None:
    folder = GOLDEN / release / "kernel_bias"
    saved, whole = qmath.load(folder / "keras_saved"), qmath.load(folder / "whole.h5")
    assert [saved.tensors[f"d/{n}"].spec.num_bits for n in ("kernel", "bias")] == [6, 12]
    assert [whole.tensors[f"d/{n}"].provenance["num_bits"] for n in ("kernel", "bias")] == [
        "range ratio",
        "range ratio",
    ]


def test_every_path_that_means_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SMALL / "keras_saved")
    names = list(qmath.load(SMALL / "keras_saved").tensors)
    for path in (".", "saved_model.pb", SMALL / "keras_saved" / "saved_model.pb"):
        assert list(qmath.load(path).tensors) == names


def test_the_digest_is_that_of_graph_metadata_and_variables(tmp_path: Path) -> None:
    shutil.copytree(SMALL / "keras_saved", tmp_path / "copy")
    first, copy = (qmath.load(path) for path in (SMALL / "keras_saved", tmp_path / "copy"))
    assert first.sha256 == copy.sha256
    (tmp_path / "copy" / "fingerprint.pb").unlink()
    assert qmath.load(tmp_path / "copy").sha256 == first.sha256
    read = {Path(path).relative_to(tmp_path / "copy").as_posix() for path in copy.files._files}
    assert read == {
        "keras_metadata.pb",
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    }


def test_a_model_without_metadata_takes_an_architecture() -> None:
    bare = qmath.load(NESTED / "tf_saved")
    assert any("no config" in note for note in bare.notes)
    assert all(t.spec.is_complete for t in bare.tensors.values() if t.role != "float")
    whole = qmath.load(NESTED / "whole.h5")
    loaded = qmath.load(NESTED / "tf_saved", architecture=NESTED / "whole.h5")
    assert list(loaded.tensors) == list(whole.tensors)
    assert loaded.graph == whole.graph
    with pytest.raises(qmath.QmathError, match="holds its own architecture"):
        qmath.load(NESTED / "keras_saved", architecture=NESTED / "whole.h5")


@pytest.mark.parametrize(
    ("op", "other", "said"),
    [
        ("Relu6", "Erf", r"the op Erf \(model/quant_r/Relu6\) is not one"),
        ("AddV2", "Pow", "Pow .* is not one"),
        ("Conv2D", "Conv3D", "Conv3D .* is not one"),
    ],
)
def test_an_op_that_is_not_known_leaves_tensors_alone(
    edit: Callable[..., Path], op: str, other: str, said: str
) -> None:
    def rename(_: Any, meta: Any) -> None:
        for node in nodes(meta, op):
            node.op = other

    loaded = qmath.load(edit(GOLDEN / "tf2.21" / "functional" / "exported", rename))
    assert loaded.graph is None
    assert [note for note in loaded.notes if re.search(said, note)]
    whole = qmath.load(GOLDEN / "tf2.21" / "functional" / "whole.h5")
    assert set(loaded.tensors) == set(whole.tensors)


def test_strides_padding_and_dilation_are_those_of_the_op(edit: Callable[..., Path]) -> None:
    def change(_: Any, meta: Any) -> None:
        for node in nodes(meta, "Conv2D"):
            node.attr["strides"].list.i[:] = [1, 2, 3, 1]
            node.attr["dilations"].list.i[:] = [1, 4, 5, 1]

    loaded = qmath.load(edit(GOLDEN / "tf2.21" / "functional" / "exported", change))
    assert loaded.graph is not None
    convolutions = [n.config for n in loaded.graph.nodes if n.class_name == "Conv2D"]
    assert [c["padding"] for c in convolutions] == ["same", "valid"]
    assert [(c["strides"], c["dilation_rate"]) for c in convolutions] == [([2, 3], [4, 5])] * 2
    assert [c["activation"] for c in convolutions] == ["linear", "relu"]


def test_what_is_used_before_and_after_its_quantizer_is_two_layers(
    edit: Callable[..., Path],
) -> None:
    def fork(_: Any, meta: Any) -> None:
        for node in nodes(meta, "AddV2"):
            node.input[0] = "model/quant_r/Relu6:activations:0"

    loaded = qmath.load(edit(GOLDEN / "tf2.21" / "functional" / "exported", fork))
    assert loaded.graph is not None
    layers = {node.name: node for node in loaded.graph.nodes}
    assert layers["add"].inputs == ("r/Relu6", "side")
    assert layers["r"].class_name == "QuantizeLayer"
    assert layers["side"].inputs == ("r",)


def test_a_range_that_no_op_uses_where_its_layer_is_leaves_no_graph(
    edit: Callable[..., Path],
) -> None:
    def skip(_: Any, meta: Any) -> None:
        for function in meta.graph_def.library.function:
            for node in function.node_def:
                for place, tensor in enumerate(node.input):
                    if tensor.startswith(
                        "model/quant_side/MovingAvgQuantize/FakeQuantWithMinMaxVars:"
                    ):
                        node.input[place] = "model/quant_side/Relu:activations:0"

    loaded = qmath.load(edit(GOLDEN / "tf2.21" / "functional" / "exported", skip))
    assert loaded.graph is None
    assert any("not clear what side quantizes" in note for note in loaded.notes)


# ---- where sources disagree


def test_the_graph_wins_over_the_config(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(NESTED / "keras_saved", copy)
    path = copy / "keras_metadata.pb"
    saved = protos.parse("keras.SavedMetadata", path.read_bytes(), "")
    for node in saved.nodes:
        node.metadata = node.metadata.replace("Default8BitConv", "DefaultNBitConv").replace(
            '"weight_attrs": ["kernel"]', '"weight_attrs": ["kernel"], "num_bits_weight": 4'
        )
    path.write_bytes(saved.SerializeToString())
    loaded = qmath.load(copy)
    kernel = loaded.tensors["sequential/c/kernel"]
    assert (kernel.spec.num_bits, kernel.provenance["num_bits"]) == (8, "graph")
    (note,) = [note for note in loaded.notes if "the graph is what runs" in note]
    assert "sequential/c/kernel" in note
    assert "num_bits is 8" in note
    assert "DefaultNBitConvQuantizeConfig says 4" in note


def test_the_user_cannot_contradict_the_graph_unless_forced() -> None:
    four = {"d/kernel": qmath.LastValueQuantizer(4, False, True, False)}
    with pytest.raises(
        ContradictionError, match=r"your quantizers.*, but the FakeQuant.* graph says"
    ):
        qmath.load(SMALL / "keras_saved", four)
    forced = qmath.load(SMALL / "keras_saved", four, force=True)
    assert forced.tensors["d/kernel"].spec.num_bits == 4


def test_attributes_left_out_are_the_defaults(edit: Callable[..., Path]) -> None:
    def strip(_: Any, meta: Any) -> None:
        for node in nodes(meta, "FakeQuantWithMinMaxVars"):
            node.attr.pop("num_bits", None)
            node.attr.pop("narrow_range", None)

    loaded = qmath.load(edit(SMALL / "tf_saved", strip))
    assert (loaded.tensors["d/bias"].spec.num_bits, loaded.tensors["d/bias"].spec.narrow_range) == (
        8,
        False,
    )


def test_a_fixed_range_is_that_of_the_op() -> None:
    # Its training script says FixedQuantizer(4, -0.5, 0.5), which TFMOT runs with 8 bits.
    assert check(FIXED.parent, FIXED.name) == Outcome("=")
    loaded = qmath.load(FIXED)
    kernel = loaded.tensors["fixed/kernel"]
    assert (kernel.role, kernel.min, kernel.max) == ("weight", np.float32(-0.5), np.float32(0.5))
    assert (kernel.spec.op, kernel.spec.num_bits, kernel.spec.quantizer) == (
        "args",
        8,
        "FixedQuantizer",
    )
    assert loaded.tensors["d/kernel"].spec.num_bits == 5


# ---- files that nobody should have written


def add_function(meta: Any, name: str, calls: list[str], arguments: int = 0) -> Any:
    """Append a function that calls others."""
    function = meta.graph_def.library.function.add()
    function.signature.name = name
    for number in range(arguments):
        function.signature.input_arg.add(name=f"a{number}")
    for number, callee in enumerate(calls):
        node = function.node_def.add(name=f"n{number}", op="PartitionedCall")
        node.attr["f"].func.name = callee
    return function


def circle(_: Any, meta: Any) -> None:
    add_function(meta, "circle", ["circle"])
    meta.object_graph_def.concrete_functions["circle"].SetInParent()


def doubling(_: Any, meta: Any) -> None:
    for number in range(40):
        add_function(meta, f"f{number}", [f"f{number + 1}"] * 2)
    add_function(meta, "f40", [])
    meta.object_graph_def.concrete_functions["f0"].SetInParent()


def deep(_: Any, meta: Any) -> None:
    for number in range(5_000):
        add_function(meta, f"f{number}", [f"f{number + 1}"])
    add_function(meta, "f5000", [])
    meta.object_graph_def.concrete_functions["f0"].SetInParent()


def serving(meta: Any) -> Any:
    """The function that the signature calls."""
    return next(f for f in meta.graph_def.library.function if "wrapped_model" in f.signature.name)


def same_argument_twice(_: Any, meta: Any) -> None:
    arguments = serving(meta).signature.input_arg
    arguments[-1].name = arguments[0].name


def ring(_: Any, meta: Any) -> None:
    function = serving(meta)
    for number in range(3):
        function.node_def.add(name=f"i{number}", op="Identity", input=[f"i{(number + 1) % 3}"])
    function.node_def.add(name="q", op="FakeQuantWithMinMaxVars", input=["i0", "i1", "i2"])


def returned_circle(_: Any, meta: Any) -> None:
    there = add_function(meta, "there", [])
    there.signature.output_arg.add(name="o")
    there.ret["o"] = "nowhere:0"
    function = serving(meta)
    function.node_def.add(name="n0", op="PartitionedCall").attr["f"].func.name = "there"
    function.node_def.add(name="q", op="FakeQuantWithMinMaxVars", input=["n0"] * 3)


def width(_: Any, meta: Any) -> None:
    for node in nodes(meta, "FakeQuantWithMinMaxVars"):
        node.attr["num_bits"].i = 17


def differing(_: Any, meta: Any) -> None:
    """Quantize each weight again, for another product, to 3 bits."""
    function = serving(meta)
    for node in list(function.node_def):
        if node.op == "FakeQuantWithMinMaxVars":
            again = function.node_def.add()
            again.CopyFrom(node)
            again.name = f"{node.name}_again"
            again.attr["num_bits"].i = 3
            product = function.node_def.add(name=f"{node.name}_product", op="MatMul")
            product.input.extend([function.signature.input_arg[0].name, again.name])


def swapped(_: Any, meta: Any) -> None:
    for node in nodes(meta, "FakeQuantWithMinMaxVars"):
        low, high = node.input[1:3]
        node.input[1], node.input[2] = high, low


def many_bound(_: Any, meta: Any) -> None:
    for function in meta.object_graph_def.concrete_functions.values():
        function.bound_inputs.extend([1] * 1000)


def no_function(_: Any, meta: Any) -> None:
    meta.object_graph_def.concrete_functions["missing"].SetInParent()


def twins(_: Any, meta: Any) -> None:
    add_function(meta, "same", [])
    add_function(meta, "same", [])


def cut_input(_: Any, meta: Any) -> None:
    for node in nodes(meta, "FakeQuantWithMinMaxVars"):
        del node.input[1:]


def no_input(_: Any, meta: Any) -> None:
    for node in nodes(meta, "FakeQuantWithMinMaxVars"):
        del node.input[:]


def far_child(_: Any, meta: Any) -> None:
    meta.object_graph_def.nodes[0].children[0].node_id = 1 << 30


def mixed(_: Any, meta: Any) -> None:
    for child in meta.object_graph_def.nodes[0].children:
        child.node_id = 0


ATTACKS = {
    circle: "too deeply",
    doubling: "branch more",
    deep: "too deeply",
    same_argument_twice: "two arguments of one name",
    ring: "in a circle",
    returned_circle: "has no 'nowhere'",
    width: "num_bits = 17",
    differing: "two ops of the graph",
    swapped: "another range",
    many_bound: "fewer arguments than variables",
    no_function: "'missing' is missing",
    twins: "two of its functions have one name",
    cut_input: "lacks an input",
    no_input: "lacks an input",
    far_child: "not there",
    mixed: "mixed",
    (lambda saved, _: saved.meta_graphs.pop()): "no graph in it",
    (lambda _, meta: meta.ClearField("object_graph_def")): "TensorFlow 1",
}


@pytest.mark.parametrize(
    ("attack", "said"), ATTACKS.items(), ids=lambda x: getattr(x, "__name__", None)
)
def test_attacks(edit: Callable[..., Path], attack: Callable[..., object], said: str) -> None:
    with pytest.raises(FileFormatError, match=said):
        qmath.load(edit(SMALL / "keras_saved", attack))


@pytest.mark.parametrize("name", ["saved_model.pb", "keras_metadata.pb"])
def test_cut_anywhere(tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(SMALL / "keras_saved", copy)
    whole = (copy / name).read_bytes()
    for size in np.linspace(0, len(whole) - 1, 25).astype(int):
        (copy / name).write_bytes(whole[:size])
        try:
            qmath.load(copy)
        except qmath.QmathError as error:
            assert str(copy) in str(error)
        else:  # cut between two fields, a message is whole
            assert size == 0 or name == "keras_metadata.pb"


def test_too_large(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(SMALL / "keras_saved", copy)
    with open(copy / "saved_model.pb", "r+b") as file:
        file.write(bytes((1 << 26) + 1))
    with pytest.raises(FileFormatError, match="more than the"):
        qmath.load(copy)


def test_without_its_variables(tmp_path: Path) -> None:
    shutil.copy(SMALL / "keras_saved" / "saved_model.pb", tmp_path)
    with pytest.raises(FileFormatError, match=r"without its variables .*copy its whole directory"):
        qmath.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[1, 2", json.dumps({"class_name": "Sequential", "config": 3}), "[" * 9999]
)
def test_metadata_that_is_none(tmp_path: Path, text: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(SMALL / "keras_saved", copy)
    node = message("keras.SavedObject", node_id=0, metadata=text)
    metadata = message("keras.SavedMetadata", nodes=[node])
    (copy / "keras_metadata.pb").write_bytes(metadata.SerializeToString())
    if text.startswith("["):
        with pytest.raises(FileFormatError, match="Keras's metadata"):
            qmath.load(copy)
    else:
        loaded = qmath.load(copy)
        assert any("no config" in note for note in loaded.notes)
        assert loaded.tensors["d/kernel"].spec.num_bits == 6


@pytest.mark.parametrize("build", ["tf", "tf<2.6", "xla-cpu", "xla-cpu-nofma"])
def test_functions_for_xla_are_a_note_under_another_build(
    build: str, edit: Callable[..., Path]
) -> None:
    def mark(_: Any, meta: Any) -> None:
        for function in meta.graph_def.library.function[:5]:
            function.attr["_XlaMustCompile"].b = True

    notes = [note for note in qmath.load(edit(SMALL / "keras_saved", mark), build=build).notes
             if "jit_compile" in note]  # fmt: skip
    assert len(notes) == (not build.startswith("xla"))
    for note in notes:
        assert " and 2 more" in note
        assert f"(build {build!r})" in note
