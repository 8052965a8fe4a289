"""SavedModels whose graphs nobody would write, each for a branch of the readers: edits of others.

`edited` yields the files of each. An edit is an op put into what flows or into the way of a weight,
or a change of the message itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qmath.containers import protos
from qmath.readers.saved_model.fake_quants import FAKE_QUANTS
from reference.mutants import renamed_variables
from tests.readers.test_saved_model import add_function
from tests.readers.test_saved_model_quantizers import Function, ends, flows, instead, kernels, value

__all__ = ["edited"]

GOLDEN = Path(__file__).parent / "golden" / "saved_models" / "tf2.21"
BARE, KERAS = (GOLDEN / "kernel_bias" / name for name in ("exported", "keras_saved"))
NESTED, LAYERS = (GOLDEN / "nested" / name for name in ("exported", "keras_saved"))
FLOAT = GOLDEN / "unquantized" / "exported"
VARS = "FakeQuantWithMinMaxVars"
CHANNELS, ARGS = f"{VARS}PerChannel", "FakeQuantWithMinMaxArgs"
F, I = np.float32, np.int32  # noqa: E741

Change = Callable[[Function], object]
Make = Callable[[Function, str], str]


def edited() -> Iterator[Mapping[str, bytes]]:
    """Yield the files of each model, by path below its folder."""
    cases: list[tuple[Path, Change]] = [
        *((BARE, flowing(make)) for make in (*ROUNDS, *ODD_FLOWS)),
        *((BARE, after(make)) for make in AFTER),
        *((BARE, value(make)) for make in VALUES),
        *((BARE, instead(make)) for make in RECOVERED),
        *((BARE, ends(made)) for made in ENDS),
        *((source, change) for source in (BARE, KERAS) for change in IN_BOTH),
        *MORE,
    ]
    for source, change in cases:
        yield _with_graph(source, partial(_each_function, change))
    for source, edit in MESSAGES:
        yield _with_graph(source, edit)
    for name in ("d", "kernel", "quant_other/d/kernel"):
        yield renamed_variables(_files(BARE), lambda old, new=name: old.replace("d/kernel", new))


def _each_function(change: Change, meta: Any) -> None:
    for function in list(meta.graph_def.library.function):
        if any(node.op in {*FAKE_QUANTS, "FusedBatchNormV3"} for node in function.node_def):
            change(Function(function))


def _files(source: Path) -> dict[str, bytes]:
    kept = (p for p in source.rglob("*") if p.is_file() and p.name != "fingerprint.pb")
    return {f"m/{path.relative_to(source)}": path.read_bytes() for path in sorted(kept)}


def _with_graph(source: Path, change: Callable[[Any], object]) -> dict[str, bytes]:
    files = _files(source)
    saved = protos.parse("SavedModel", files["m/saved_model.pb"], "")
    change(saved.meta_graphs[0])
    # A message does not promise the order of its maps.
    return files | {"m/saved_model.pb": saved.SerializeToString(deterministic=True)}


# ---- what flows: between the input's quantizer and the layer, or after the layer


def flowing(make: Make) -> Change:
    """Put ops before the product."""

    def change(function: Function) -> None:
        for node in list(function.definition.node_def):
            if node.op == "MatMul":
                node.input[0] = make(function, node.input[0])

    return change


def after(make: Make) -> Change:
    """Put ops after the product."""

    def change(function: Function) -> None:
        for node in list(function.definition.node_def):
            if node.op == "BiasAdd":
                node.input[0] = make(function, node.input[0])

    return change


def op(name: str, *inputs: Any, scope: str = "", **attributes: Any) -> Make:
    """Make an op of what flows, which is `...` among its inputs, and of constants or other ops."""

    def make(function: Function, flow: str) -> str:
        made = [
            flow if x is ... else x(function, flow) if callable(x) else x
            for x in (inputs or (...,))
        ]
        function.op(name, *made)
        node = function.definition.node_def[-1]
        node.name = scope or node.name
        for key, (field, held) in attributes.items():
            if field == "list":
                node.attr[key].list.i.extend(held)
            else:
                setattr(node.attr[key], field, held)
        return f"{node.name}:out:0"

    return make


def weight(leaf: str) -> Make:
    """Return the quantized weight of the layer."""

    def find(function: Function, _: str) -> str:
        place = {"kernel": "LastValueQuant/", "bias": "LastValueQuant_1/"}[leaf]
        (node,) = (n for n in function.fake_quants() if place in n.name)
        return f"{node.name}:outputs:0"

    return find


def other_output(make: Make) -> Make:
    """Take the second output of an op."""
    return lambda function, flow: make(function, flow)[:-1] + "1"


def nearly_normalized(function: Function, flow: str) -> str:
    """Normalize a batch by constants."""
    root = ROOT(function, flow)
    shift = function.op("Sub", F(1), function.op("Mul", F(1), root))
    return function.op("AddV2", function.op("Mul", flow, root), shift)


ALONG = op("ExpandDims", ..., I(1))
ROOT = op("Rsqrt", op("AddV2", F(1), F(2)), scope="factor")
SLOPE = op("Mul", ..., op("Rsqrt", F(2)))
BLOCKS = op("SpaceToBatchND", ..., I([2, 2]), I([[1, 1], [1, 1]]))
SAME = {"padding": ("s", b"VALID"), "strides": ("list", [1, 1, 1, 1])}
WIDE = {"padding": ("s", b"VALID"), "strides": ("list", [1, 2, 2, 1])}
KERNEL, BIAS = weight("kernel"), weight("bias")
ODD_FLOWS: tuple[Make, ...] = (
    ALONG,
    op("Conv2D", KERNEL, ...),
    op("Conv2D", op("ExpandDims", ..., I(2)), KERNEL, **SAME),
    op("Conv2D", ALONG, KERNEL, **SAME),
    op("Conv2DBackpropInput", I([1, 1]), KERNEL, BLOCKS, **SAME),
    op("Conv2D", BLOCKS, KERNEL, **WIDE),
    op("BatchToSpaceND", op("Conv2D", BLOCKS, KERNEL, **SAME), I([2, 2]), I([[0, 0], [0, 0]])),
    op("BiasAdd", ALONG, BIAS), op("BiasAdd", ..., BIAS),
    op("Relu", F(1), ...),
    op("Minimum", ..., ...), op("Minimum", ..., F(6)),
    op("AddV2", F(1), ...), op("AddV2", ..., F(1)), op("AddV2", SLOPE, F(1)),
    op("AddV2", op("Mul", ..., ROOT), F(1)),
    nearly_normalized,
    op("Split", I(0), ...),
    op("ConcatV2", ..., ..., I([1, 2])), op("ConcatV2", ..., F([1]), I(1)),
    op("MaxPool", ALONG, ksize=("list", [1, 2, 2, 1])),
    op("Mean", ..., I(3)),
    op("Pad", ..., I([[0, 0], [1, 1]])),
    op("PadV2", ..., I([[0, 0], [1, 1], [0, 0]]), F(1)),
    op("ResizeNearestNeighbor", ..., I([2, 2])),
    op("Reshape", F([1]), ...), op("Reshape", ..., I([2, 3])),
    op("Reshape", ..., op("Shape", ...)), op("Reshape", ..., op("Pack", I(3), I(4))),
    op("Squeeze"), op("Squeeze", squeeze_dims=("list", [1])),
    op("ExpandDims", ..., I(7)),
    op("SpaceToBatchND", ..., I([2, 2]), I([[1, 1]])),
    op("BatchToSpaceND", ..., I([2]), I([[0, 0]])),
    op("MatMul", ..., ...),
    op("Mul", ..., F(2)),
    other_output(op("Relu")), op("ReadVariableOp", F(1)),
    op(VARS, ALONG, F(-1), F(1)),
    op(ARGS, op(ARGS, op(ARGS, op(ARGS)))),
    op(ARGS, op(ARGS, scope="sequential/quant_d/q", num_bits=("i", 5)),
       scope="sequential/quant_d_1/q"),
    op(CHANNELS, ..., F([-1, -1]), F([1, 1])),
    op("MatMul", ..., op(VARS, F([[1]]), F(-1), F(1))),
    lambda f, x: op("Relu", op("Relu", lambda *_: "ring:out:0"), scope="ring")(f, x),
)  # fmt: skip


def steps(axis: int, order: Sequence[int], flow: Any = ...) -> Make:
    """Join steps of an axis, by their numbers, as Keras does to repeat them."""

    def make(function: Function, x: str) -> str:
        split = op("Split", I(axis), flow, num_split=("i", 2))(function, x)[:-1]
        return op("ConcatV2", *(f"{split}{i}" for i in order), I(axis))(function, x)

    return make


def summed(count: int) -> Make:
    """Divide the sum of two by a number, as of one layer."""
    total = op("AddV2", ..., ..., scope="sequential/mean/add")
    return op("RealDiv", total, F(count), scope="sequential/mean/truediv")


TWICE = (0, 0, 1, 1)
MIDDLE = I([0, 1, 0]), I([0, -1, 0]), I([1, 1, 1])
OUTER = {"begin_mask": ("i", 5), "end_mask": ("i", 5)}
ODD_FLOWS += (
    op("Minimum", F(1), ...), op("Minimum", ..., KERNEL), op("Mul", KERNEL, ...),
    summed(2), summed(3),
    op("Split", I([1, 1]), ..., num_split=("i", 2)),
    steps(1, TWICE), steps(1, (1, 1, 0, 0)), steps(2, TWICE), steps(2, TWICE, steps(1, TWICE)),
    steps(3, TWICE, steps(2, TWICE, steps(1, TWICE))),
    op("Tile", ALONG, I([1, 3, 1])), op("Tile", ALONG, I([2, 3, 1])), op("Tile", ..., I([1, 3])),
    op("StridedSlice", ..., *MIDDLE, **OUTER), op("StridedSlice", ..., *MIDDLE),
    op("StridedSlice", ..., *MIDDLE[:2], I([1, 2, 1]), **OUTER),
    op("StridedSlice", ..., I([0, -1, 0]), *MIDDLE[1:], **OUTER),
)  # fmt: skip
ROUNDS = tuple(op(name) for name in ("Round", "Relu", "Sigmoid"))
AFTER: tuple[Make, ...] = (op("Relu"), op("Minimum", ..., F(6)), ALONG)

# ---- the way of a weight to its layer

ZERO = F(0)


def unchanged_by(*makes: Make) -> Make:
    """Evaluate ops, of which nothing comes."""

    def make(function: Function, x: str) -> str:
        for each in makes:
            x = function.op("Add", x, function.op("Mul", each(function, x), ZERO))
        return x

    return make


def held(dtype: int, shape: Sequence[int] = (), **fields: Any) -> Make:
    """Make a constant of short form."""

    def make(function: Function, _: str) -> str:
        name = op("Const")(function, "").replace(":out:", ":output:")
        node = function.definition.node_def[-1]
        del node.input[:]
        tensor = node.attr["value"].tensor
        tensor.dtype = dtype
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        for key, values in fields.items():
            getattr(tensor, key).extend(values)
        return name

    return make


def controlled(make: Make) -> Make:
    """Let an op wait for another."""

    def changed(function: Function, x: str) -> str:
        name = make(function, x)
        function.definition.node_def[-1].input.append("^NoOp")
        return name

    return changed


def repeated(name: str, count: int, *inputs: Any) -> Make:
    """Apply an op to what comes of it."""

    def make(function: Function, x: str) -> str:
        for _ in range(count):
            x = op(name, ..., *inputs)(function, x)
        return x

    return make


INT = {"DstT": ("type", 3)}
MASKS = {"shrink_axis_mask": ("i", 1), "end_mask": ("i", 2)}
TRUE = op("Greater", F([1, 1]), F([0, 2]))
ROW, NAN = op("Max", ..., I([0, 1])), op("RealDiv", F(0), F(0))
SCALAR = op("Cast", op("AddV2", I(1), I(2)), DstT=("type", 1))
VALUES: tuple[Make, ...] = (
    unchanged_by(
        held(1, shape=[], float_val=[2]), op("Max", held(1, shape=[4], float_val=[1, 2]), I([0])),
        SCALAR, ROW, op("Cast", op("Cast", F(1.5), **INT), DstT=("type", 1)),
        op("Max", op("Gather", F([1, 2]), I([1])), I([0])),
        op("Max", op("Select", TRUE, F([[1], [2]]), F([[3], [4]])), I([0, 1])),
        op("Max", op("SelectV2", TRUE, F(1), F(2)), I([0])),
        op("Max", op("StridedSlice", F([[1, 2], [3, 4]]), I([1, 1]), I([2, 0]), I([1, 1]), **MASKS),
           I([0])),
        op("Tanh", F(0.5)), op("Sum", F([1, 2]), I([0])), op("Mean", F([1, 2]), I([0])),
        controlled(op("Abs", F(1))),
    ),
    held(7), held(1, shape=[1 << 40], float_val=[1]),
    op("RealDiv", I(3), I(2)), op("AddV2", ..., I(1)), op("Round", I(1)),
    op("Max", ..., I([7])), op("Max", NAN, I([])), op("Cast", ..., DstT=("type", 7)),
    op("Cast", F(1e30), **INT),
    op("Gather", ..., I([0]), batch_dims=("i", 1)), op("Gather", ..., I([99])),
    op("Gather", op("BroadcastTo", F(1), I([1, 1 << 18])), op("BroadcastTo", I(0), I([1 << 10]))),
    op("StridedSlice", ..., I([0]), I([1]), I([1]), ellipsis_mask=("i", 1)),
    repeated("Tanh", 6), other_output(op("Neg")), op("Pack"), repeated("Neg", 10_001),
)  # fmt: skip
VALUES = tuple(op("Add", ..., op("Mul", make, F(1))) if i else make
               for i, make in enumerate(VALUES))  # fmt: skip
RECOVERED: tuple[Make, ...] = (
    op("Round", op("Pack")), op("Round", op("RealDiv", ..., ZERO)),
    op("QuantizeAndDequantizeV2", ..., F(-1), F(1)), repeated("Reshape", 9, I([3, 4])),
    op("Mul", op("Round", op("RealDiv", ..., F(0.07))), F(0.07)),
)  # fmt: skip
ENDS: tuple[Callable[[Function, str, str], tuple[Any, Any]], ...] = (
    lambda *_: (F([1, 2]), F([1, 2])),
    lambda *_: (F(2), F(-2)),
    lambda f, low, high: (f.op("Bessel", low), high),
)


def per_channel(function: Function) -> None:
    """Give the kernel ends of other channels than it has."""
    for node in kernels(function):
        node.op = CHANNELS
        node.input[1], node.input[2] = (function.constant(F([x] * 7)) for x in (-1, 1))


def twice(function: Function) -> None:
    """Quantize the kernel for another product to 3 bits."""
    for node in kernels(function):
        again = function.definition.node_def.add()
        again.CopyFrom(node)
        again.name = f"{node.name}_again"
        again.attr["num_bits"].i = 3
        function.op("MatMul", function.definition.signature.input_arg[0].name, f"{again.name}:y:0")


def computed(name: str) -> Change:
    """Compute the ends of what flows by an op."""

    def change(function: Function) -> None:
        for node in [*flows(function), *function.fake_quants("AllValues")]:
            for place in (1, 2):
                node.input[place] = function.op(name, node.input[place])

    return change


def moved(function: Function) -> None:
    """Turn a kernel of ranges per channel before it is quantized."""
    for node in function.fake_quants():
        if node.op == CHANNELS:
            node.input[0] = function.op("Transpose", node.input[0], I([0, 1, 2, 3]))
            for place in (1, 2):
                node.input[place] = function.op("Abs", node.input[place])


def activated(function: Function) -> None:
    """Put an activation of no layer before a range."""
    for node in flows(function):
        node.input[0] = op("Relu", scope="model/elsewhere/relu")(function, node.input[0])


def other_owner(function: Function) -> None:
    """Let one normalization take the variance of another."""
    for node in function.definition.node_def:
        if node.op == "FusedBatchNormV3":
            node.input[4] = "model/batch_normalization_1/batchnorm/ReadVariableOp:value:0"


def shared(function: Function) -> None:
    """Call a layer twice, and an activation what the second call is called."""
    for node in list(function.definition.node_def):
        if node.op == "BiasAdd":
            flow = op("Relu", scope="sequential/d#1/r")(function, "input_1")
            product = op("MatMul", ..., KERNEL)
            node.input[0] = op("AddV2", product, product)(function, flow)


def away(function: Function) -> None:
    """Rename all scopes."""
    for node in function.definition.node_def:
        node.name = node.name.replace("quant_d/", "other/")
        for place, tensor in enumerate(node.input):
            node.input[place] = tensor.replace("quant_d/", "other/")


IN_BOTH: tuple[Change, ...] = (per_channel, twice, computed("Bessel"), computed("Neg"),
                               after(op("Minimum", ..., F(6))))  # fmt: skip
MORE: tuple[tuple[Path, Change], ...] = (
    (NESTED, moved), (LAYERS, moved), (NESTED, activated), (FLOAT, other_owner), (BARE, shared),
    (BARE, away), (LAYERS, computed("Bessel")), (KERAS, flowing(op(ARGS, op(ARGS, op(ARGS))))),
)  # fmt: skip


# ---- what training does, and calls


def unbound(meta: Any) -> None:
    meta.object_graph_def.ClearField("concrete_functions")


def without_signatures(meta: Any) -> None:
    root = meta.object_graph_def.nodes[0]
    for child in [child for child in root.children if child.local_name == "signatures"]:
        root.children.remove(child)


def far_signature(meta: Any) -> None:
    nodes = meta.object_graph_def.nodes
    place = next(c.node_id for c in nodes[0].children if c.local_name == "signatures")
    nodes[place].children.add(local_name="far", node_id=1 << 20)


def updating(meta: Any) -> None:
    """Add what training never does to a variable."""
    for function in meta.graph_def.library.function:
        reads = [n.input[0] for n in function.node_def if n.op == "ReadVariableOp"]
        if reads and any(node.op in FAKE_QUANTS for node in function.node_def):
            f, least = Function(function), op("Minimum", F(1), F(2))
            f.op("AssignAddVariableOp", reads[0], F(1))
            f.op("AssignSubVariableOp", reads[0], F(1))
            f.op("AssignVariableOp", reads[0], op("Minimum", least, F(0))(f, ""))
            f.op("AssignVariableOp", reads[0], op("Minimum", F(0), op("Neg", F(1)))(f, ""))


def calling(
    name: str, result: str = ":o:0", *nodes: tuple[str, list[str]], **functions: str
) -> Any:
    """Let an op run a function of two arguments, and a fake-quant op take what it returns."""

    def edit(meta: Any) -> None:
        made = add_function(meta, "made", [], 2)
        for number, (kind, inputs) in enumerate(nodes):
            made.node_def.add(name=f"m{number}", op=kind, input=inputs)
        for i in range(2):
            made.signature.output_arg.add(name=f"o{i}")
            made.ret[f"o{i}"] = f"m{i}:y:0" if i < len(nodes) else f"a{i}"
        for function in meta.graph_def.library.function:
            if any(node.op in FAKE_QUANTS for node in function.node_def):
                reads = [n.input[0] for n in function.node_def if n.op == "ReadVariableOp"]
                inputs = [] if name == "PartitionedCall" else [*reads[:1], "input_1", "input_1"]
                node = function.node_def.add(name="call", op=name, input=inputs)
                for key in functions:
                    node.attr[key].func.name = "made"
                function.node_def.add(name="q", op=VARS, input=[f"call{result}"] * 3)

    return edit


LOOP = {"cond": "", "body": ""}
MESSAGES: tuple[tuple[Path, Callable[[Any], object]], ...] = (
    *((source, edit) for source in (BARE, KERAS)
      for edit in (unbound, without_signatures, far_signature)),
    (KERAS, updating),
    (BARE, calling("PartitionedCall", f="")), (BARE, calling("PartitionedCall", ":o:5", f="")),
    (BARE, calling("If", ":o:0", ("AssignVariableOp", ["a0", "a1"]), then_branch="",
                   else_branch="")),
    (BARE, calling("While", ":o:0", ("Identity", ["a0"]), ("MatMul", ["a0", "a1"]), **LOOP)),
    (BARE, calling("While", ":o:0", ("MatMul", ["a0", "a1"]), ("Identity", ["m1"]), **LOOP)),
)  # fmt: skip
