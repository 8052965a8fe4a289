"""What the functions that serve quantize: weights, by any arithmetic, and what flows.

Every tensor is one of three kinds. It is *fixed* if it depends on variables and constants alone,
*sizes* if it depends on the shapes of what flows besides, and *flows* otherwise. A fixed tensor
that an op takes together with one that flows is a weight as the layer reads it: the way from there
back to the variable shows every op in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qmath.readers.saved_model.fake_quants import FAKE_QUANTS, FakeQuant, read_fake_quant
from qmath.readers.saved_model.functions import (
    Argument,
    Frame,
    FunctionGraph,
    Output,
    Source,
    VariableSource,
    calls,
    key_of,
)

__all__ = ["ROUNDING", "FlowQuantizer", "Inference", "WeightPath", "find_inference"]

# Ops by which a quantizer can round, besides fake-quant ops.
ROUNDING = frozenset(
    {"Round", "Rint", "Floor", "Ceil"} | {f"QuantizeAndDequantizeV{n}" for n in (2, 3, 4)}
)
# Between a weight and its layer or quantizer, for the kernels of transposed and 1-D convolutions,
# and of cells that multiply by one gate's part after the other; with the place of what is moved.
_MOVES = {"Transpose": 0, "Reshape": 0, "ExpandDims": 0, "Squeeze": 0, "Split": 1}
_SIZES = frozenset({"Shape", "ShapeN", "Size", "Rank"})
# Ops that multiply by a kernel; what they read is a weight even if nothing rounds it.
_PRODUCTS = frozenset(
    {"MatMul", "BatchMatMul", "BatchMatMulV2", "Conv2D", "Conv3D", "DepthwiseConv2dNative",
     "Conv2DBackpropInput", "Einsum"}
)  # fmt: skip
_CLIPS = frozenset({"Minimum", "Maximum", "ClipByValue"})
_FIXED, _IS_SIZE, _FLOWS = range(3)


class WeightPath(NamedTuple):
    """A weight as a layer reads it, if more than a variable.

    Attributes
    ----------
    output : Output
        What is read, before it is only moved.
    read : Output
        What is read.
    variables : tuple of int
        All that it depends on; of a fake-quant op, that its input depends on.
    quantizer : FakeQuant or None
        The op, if the way ends in one.
    value : Source
        The input of that op; the variable, if it is only moved before.
    ends : tuple of Source
        Its range.
    ops : frozenset of str
        All ops on the way.
    """

    output: Output
    read: Output
    variables: tuple[int, ...]
    quantizer: FakeQuant | None
    value: Source
    ends: tuple[Source, ...]
    ops: frozenset[str]


class FlowQuantizer(NamedTuple):
    """A fake-quant op on what flows; its ends are ``None`` if they flow too."""

    output: Output
    quantizer: FakeQuant
    ends: tuple[Source, ...] | None
    variables: tuple[int, ...]
    is_input: bool


@dataclass(eq=False)
class Inference:
    """All that is quantized.

    Attributes
    ----------
    weights : list of WeightPath
    flows : list of FlowQuantizer
    rounding, clips : list of Output
        Ops that round what flows by themselves, or clip it.
    variables : set of int
        All that quantizers need.
    """

    weights: list[WeightPath] = field(default_factory=list)
    flows: list[FlowQuantizer] = field(default_factory=list)
    rounding: list[Output] = field(default_factory=list)
    clips: list[Output] = field(default_factory=list)
    variables: set[int] = field(default_factory=set)

    def ranged(self) -> Iterator[tuple[FakeQuant, tuple[int, ...]]]:
        """Yield fake-quant ops, each with the variables of what it quantizes, if that is fixed."""
        for path in self.weights:
            if path.quantizer is not None:
                yield path.quantizer, path.variables
        for flow in self.flows:
            yield flow.quantizer, ()


def find_inference(graph: FunctionGraph, roots: Sequence[Frame], where: str) -> Inference:
    """Return what is quantized in these functions and in those that they call.

    Branches that update variables are training's, and left out.

    Raises
    ------
    FileFormatError
        The graph is damaged.
    """
    search = _Search(graph, where)
    for root in roots:
        for frame in graph.frames(root, trains=False):
            for node in frame.function.nodes.values():
                search.add(frame, node)
    return search.found


class _Search:
    def __init__(self, graph: FunctionGraph, where: str) -> None:
        self._graph = graph
        self._where = where
        self._kinds: dict[object, int] = {}
        self._known: dict[object, list[Source]] = {}  # the inputs of ops
        self._seen: set[object] = set()
        self.found = Inference()

    def add(self, frame: Frame, node: Any) -> None:
        """Take in an op, if it quantizes what flows, or reads a weight while something flows."""
        output = Output(frame, node, "")
        if node.op in FAKE_QUANTS:  # read wherever it is: one that is damaged is no network's
            self._graph.input(frame, node, 0)
            quantizer = read_fake_quant(output, self._ends(output), self._where)
        if not node.input or node.input[0].startswith("^") or calls(node):
            return
        sources = self._inputs(output)
        kinds = [self._kind(source) for source in sources]
        if _FLOWS not in kinds:
            return
        if node.op in FAKE_QUANTS:
            self._add_flow(output, quantizer, sources, kinds)
        elif node.op in ROUNDING and kinds[0] == _FLOWS:
            self.found.rounding.append(output)
        elif node.op in _CLIPS and kinds[0] == _FLOWS and _FIXED in kinds:
            self.found.clips.append(output)
        else:
            for source, kind in zip(sources, kinds, strict=True):
                if kind == _FIXED and isinstance(source, Output):
                    self._add_weight(source, node.op)

    def _add_flow(
        self, output: Output, quantizer: FakeQuant, sources: Sequence[Source], kinds: Sequence[int]
    ) -> None:
        ends = tuple(sources[1:3]) if set(kinds[1:3]) <= {_FIXED} else None
        variables, _ = self._way(ends or ())
        self.found.variables.update(variables)
        is_input = isinstance(sources[0], Argument)
        self.found.flows.append(FlowQuantizer(output, quantizer, ends, variables, is_input))

    def _add_weight(self, read: Output, reader: str) -> None:
        output = self._positive(self._unmoved(read), reader)
        if (
            not isinstance(output, Output)
            or output.node.op == "Const"
            or (key_of(read) in self._seen)
        ):
            return
        if output.node.op in FAKE_QUANTS:
            value, *ends = self._inputs(output)
            quantizer = read_fake_quant(output, self._ends(output), self._where)
            variables, ops = self._way([value])
            if variables:
                self._seen.add(key_of(read))
                self.found.variables.update(variables, self._way(ends)[0])
                plain = self._unmoved(value)
                value = plain if isinstance(plain, VariableSource) else value
                path = WeightPath(output, read, variables, quantizer, value, tuple(ends[:2]), ops)
                self.found.weights.append(path)
            return
        variables, ops = self._way([output])
        rounds = not ops.isdisjoint(ROUNDING | FAKE_QUANTS)
        if variables and (rounds or reader in _PRODUCTS):
            self._seen.add(key_of(read))
            self.found.variables.update(variables)
            self.found.weights.append(WeightPath(output, read, variables, None, output, (), ops))

    def _positive(self, source: Source, reader: str) -> Source:
        """Return the quantized weight whose negative a product reads, as that of a PReLU does."""
        if reader == "Mul" and isinstance(source, Output) and source.node.op == "Neg":
            negated = self._unmoved(self._inputs(source)[0])
            if isinstance(negated, Output) and negated.node.op in FAKE_QUANTS:
                return negated
        return source

    def _ends(self, output: Output) -> tuple[Source, ...]:
        if output.node.op.endswith("Args"):
            return ()
        tensors = [self._graph.input(output.frame, output.node, place) for place in (1, 2)]
        return tuple(self._graph.source(output.frame, tensor) for tensor in tensors)

    def _unmoved(self, source: Source) -> Source:
        for _ in range(8):
            if not isinstance(source, Output) or source.node.op not in _MOVES:
                break
            place = _MOVES[source.node.op]
            tensor = self._graph.input(source.frame, source.node, place)
            source = self._graph.source(source.frame, tensor)
        return source

    def _inputs(self, output: Output) -> list[Source]:
        key = key_of(output)
        if key not in self._known:
            tensors = [tensor for tensor in output.node.input if not tensor.startswith("^")]
            self._known[key] = [self._graph.source(output.frame, tensor) for tensor in tensors]
        return self._known[key]

    def _way(self, sources: Sequence[Source]) -> tuple[tuple[int, ...], frozenset[str]]:
        """Return all variables and ops that fixed tensors depend on."""
        variables: dict[int, None] = {}
        ops: set[str] = set()
        seen: set[object] = set()
        stack = list(sources)
        while stack:
            source = stack.pop()
            if isinstance(source, VariableSource):
                variables.setdefault(source.node)
            elif isinstance(source, Output) and key_of(source) not in seen:
                seen.add(key_of(source))
                ops.add(source.node.op)
                stack += self._inputs(source)
        return tuple(variables), frozenset(ops)

    def _kind(self, source: Source) -> int:
        """Return the kind of a tensor; what follows from itself flows."""
        wanted = key_of(source)
        stack: list[tuple[Source, list[Source] | None]] = []
        if wanted not in self._kinds:
            stack.append((source, None))
        while stack:
            current, inputs = stack.pop()
            key = key_of(current)
            if inputs is not None:
                self._kinds[key] = self._made_of(current, [self._kinds[key_of(s)] for s in inputs])
            elif key in self._kinds:
                continue
            elif not isinstance(current, Output):
                self._kinds[key] = _FIXED if isinstance(current, VariableSource) else _FLOWS
            else:
                self._kinds[key] = _FLOWS
                inputs = self._inputs(current)
                stack.append((current, inputs))
                stack += [(s, None) for s in inputs if key_of(s) not in self._kinds]
        return self._kinds[wanted]

    def _made_of(self, source: Source, kinds: Sequence[int]) -> int:
        op = source.node.op if isinstance(source, Output) else ""
        if not kinds:
            return _FIXED if op == "Const" else _FLOWS
        kind = max(kinds)
        return _IS_SIZE if op in _SIZES and kind == _FLOWS else kind
