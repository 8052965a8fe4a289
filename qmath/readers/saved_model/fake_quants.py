"""What the functions of a SavedModel run: every fake-quant op, by the variables that it reads.

An op is followed back to variables, never looked up by a name. Training functions also tell which
quantizer it is, by how they update the range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qmath.errors import FileFormatError
from qmath.readers.records import Fact
from qmath.readers.saved_model.functions import Frame, FunctionGraph, Output, VariableSource
from qmath.readers.settings.facts import is_width

__all__ = ["FAKE_QUANTS", "FakeQuant", "default", "find_fake_quants", "graph_facts"]

_VARS, _PER_CHANNEL, _ARGS = (
    f"FakeQuantWithMinMax{kind}" for kind in ("Vars", "VarsPerChannel", "Args")
)
FAKE_QUANTS = frozenset({_VARS, _PER_CHANNEL, _ARGS})
_UPDATES = frozenset({"AssignVariableOp", "AssignSubVariableOp"})
# Between a weight and its fake-quant op, for the kernels of transposed convolutions.
_MOVES = frozenset({"Transpose", "Reshape"})
# What TensorFlow leaves out of a file is the op's default.
_DEFAULTS: Mapping[str, Any] = {"num_bits": 8, "narrow_range": False, "min": -6.0, "max": 6.0}


@dataclass(frozen=True)
class FakeQuant:
    """A fake-quant op, as often as it runs.

    Attributes
    ----------
    op : str
        TensorFlow's name of it.
    num_bits, narrow_range
        Its attributes.
    low, high : int or None
        The variables of its range, by number; ``None`` of a fixed range.
    weight : int or None
        The variable that it quantizes; ``None`` for an activation.
    ends : tuple of float or None
        The range of a ``FakeQuantWithMinMaxArgs``.
    quantizer : str or None
        TFMOT's quantizer, as far as a training function tells.
    symmetric : bool or None
        The same.
    """

    op: str
    num_bits: int
    narrow_range: bool
    low: int | None = None
    high: int | None = None
    weight: int | None = None
    ends: tuple[float, float] | None = None
    quantizer: str | None = None
    symmetric: bool | None = None


def default(node: Any, name: str) -> Any:
    """Return an attribute of a fake-quant op, its default if the file leaves it out."""
    kind = {"num_bits": "i", "narrow_range": "b"}.get(name, "f")
    return getattr(node.attr[name], kind) if name in node.attr else _DEFAULTS[name]


def find_fake_quants(graph: FunctionGraph, names: Iterator[str], where: str) -> list[FakeQuant]:
    """Return the fake-quant ops that functions run, those with variables before those without.

    Parameters
    ----------
    graph : FunctionGraph
    names : iterator of str
        Of all functions that objects were saved with.
    where : str
        The file, for error messages.

    Raises
    ------
    FileFormatError
        The graph is damaged, or two ops quantize by one range in different ways.

    Notes
    -----
    Mirrors what ``tensorflow_model_optimization/python/core/quantization/keras/quant_ops.py``
    builds.
    """
    search = _Search(graph, where)
    for name in names:
        for frame in graph.frames(graph.outermost(name)):
            for node in frame.function.nodes.values():
                if node.op in FAKE_QUANTS:
                    search.add(frame, node)
                elif node.op in _UPDATES:
                    search.updated(frame, node)
    return search.result()


def graph_facts(found: FakeQuant) -> tuple[Fact, ...]:
    """Return what an op states about the tensor that it quantizes."""
    values: dict[str, Any] = {
        "op": "args" if found.op == _ARGS else "vars",
        "num_bits": found.num_bits,
        "narrow_range": found.narrow_range,
        "per_axis": found.op == _PER_CHANNEL,
        "quantizer": "FixedQuantizer" if found.op == _ARGS else found.quantizer,
        "symmetric": found.symmetric,
    }
    says = f"the {found.op} of the file's graph says"
    return tuple(Fact(key, v, "graph", says) for key, v in values.items() if v is not None)


class _Search:
    def __init__(self, graph: FunctionGraph, where: str) -> None:
        self._graph = graph
        self._where = where
        self._by_range: dict[int, FakeQuant] = {}
        self._fixed: dict[int, FakeQuant] = {}  # by the weight
        self._updates: dict[int, tuple[str, bool]] = {}

    def add(self, frame: Frame, node: Any) -> None:
        """Take in an op; one whose range is computed is not TFMOT's."""
        num_bits, narrow_range = (default(node, name) for name in ("num_bits", "narrow_range"))
        if not is_width(num_bits):
            raise FileFormatError(
                f"{self._where}: a {node.op} has num_bits = {num_bits}, which is no width from 2 "
                f"to 16; the file is damaged"
            )
        weight = self._weight(frame, node)
        found = FakeQuant(node.op, num_bits, narrow_range, weight=weight)
        if node.op == _ARGS:
            if weight is not None:
                ends = (default(node, "min"), default(node, "max"))
                self._put(self._fixed, weight, replace(found, ends=ends))
            return
        low, high = (self._variable(frame, node, place) for place in (1, 2))
        if low is not None and high is not None:
            self._put(self._by_range, low, replace(found, low=low, high=high))

    def updated(self, frame: Frame, node: Any) -> None:
        """Take in how a training function updates a variable, if as TFMOT does with a minimum."""
        variable = self._variable(frame, node, 0)
        if variable is None:
            return
        value = self._made(frame, node, 1)
        quantizer = "LastValueQuantizer"
        if node.op == "AssignSubVariableOp":
            # (variable - minimum) * (1 - decay)
            difference = value and value.node.op == "Mul" and self._made(value.frame, value.node, 0)
            if not difference or difference.node.op != "Sub":
                return
            value = self._made(difference.frame, difference.node, 1)
            quantizer = "MovingAverageQuantizer"
        if value is None or value.node.op != "Minimum":
            return
        first, second = (self._made(value.frame, value.node, place) for place in (0, 1))
        if first and second and first.node.op == "Minimum" and second.node.op == "Const":
            if self._variable(first.frame, first.node, 0) != variable:
                return
            quantizer = "AllValuesQuantizer"
            batch = self._made(first.frame, first.node, 1)
            symmetric = batch is not None and batch.node.op == "Minimum"
        else:
            symmetric = second is not None and second.node.op == "RealDiv"
            if not symmetric and (second is None or second.node.op != "Const"):
                return
        self._updates[variable] = (quantizer, symmetric)

    def result(self) -> list[FakeQuant]:
        """Return all that was found."""
        ops = []
        for low, found in self._by_range.items():
            quantizer, symmetric = self._updates.get(low, (None, None))
            ops.append(replace(found, quantizer=quantizer, symmetric=symmetric))
        return [*ops, *self._fixed.values()]

    def _put(self, known: dict[int, FakeQuant], key: int, found: FakeQuant) -> None:
        if known.setdefault(key, found) != found:
            raise FileFormatError(
                f"{self._where}: two fake-quant ops share a range and differ: {known[key]} and "
                f"{found}; the file was edited, or its quantizers are not TFMOT's"
            )

    def _weight(self, frame: Frame, node: Any) -> int | None:
        """Return the variable that an op quantizes, which may be transposed before."""
        source = self._graph.source(frame, self._graph.input(frame, node, 0))
        for _ in range(4):
            if not isinstance(source, Output) or source.node.op not in _MOVES:
                break
            tensor = self._graph.input(source.frame, source.node, 0)
            source = self._graph.source(source.frame, tensor)
        return source.node if isinstance(source, VariableSource) else None

    def _variable(self, frame: Frame, node: Any, place: int) -> int | None:
        source = self._graph.source(frame, self._graph.input(frame, node, place))
        return source.node if isinstance(source, VariableSource) else None

    def _made(self, frame: Frame, node: Any, place: int) -> Output | None:
        source = self._graph.source(frame, self._graph.input(frame, node, place))
        return source if isinstance(source, Output) else None
