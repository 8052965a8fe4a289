"""Fake-quant ops: what they state of a quantizer, and what training functions add to that.

An op is followed back to variables, never looked up by a name. Training functions tell which of
TFMOT's quantizers it is, by how they update the range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qmath.errors import FileFormatError
from qmath.readers.records import Fact
from qmath.readers.saved_model.functions import (
    UPDATES,
    Frame,
    FunctionGraph,
    Output,
    Source,
    VariableSource,
)
from qmath.readers.settings.facts import is_width

__all__ = ["FAKE_QUANTS", "FakeQuant", "default", "find_updates", "graph_facts", "read_fake_quant"]

_VARS, _PER_CHANNEL, _ARGS = (
    f"FakeQuantWithMinMax{kind}" for kind in ("Vars", "VarsPerChannel", "Args")
)
FAKE_QUANTS = frozenset({_VARS, _PER_CHANNEL, _ARGS})
# What TensorFlow leaves out of a file is the op's default.
_DEFAULTS: Mapping[str, Any] = {"num_bits": 8, "narrow_range": False, "min": -6.0, "max": 6.0}


@dataclass(frozen=True)
class FakeQuant:
    """A fake-quant op.

    Attributes
    ----------
    op : str
        TensorFlow's name of it.
    num_bits, narrow_range
        Its attributes.
    low, high : int or None
        The variables of its range, by number; ``None`` unless both ends are variables.
    ends : tuple of float or None
        The range of a ``FakeQuantWithMinMaxArgs``.
    """

    op: str
    num_bits: int
    narrow_range: bool
    low: int | None = None
    high: int | None = None
    ends: tuple[float, float] | None = None

    def __str__(self) -> str:
        narrow = ", narrow" if self.narrow_range else ""
        return f"{self.op} of {self.num_bits} bits{narrow}"


def default(node: Any, name: str) -> Any:
    """Return an attribute of a fake-quant op, its default if the file leaves it out."""
    kind = {"num_bits": "i", "narrow_range": "b"}.get(name, "f")
    return getattr(node.attr[name], kind) if name in node.attr else _DEFAULTS[name]


def read_fake_quant(output: Output, ends: tuple[Source, ...], where: str) -> FakeQuant:
    """Return what an op states, whose ends come from these sources.

    Raises
    ------
    FileFormatError
        Its width is none.
    """
    node = output.node
    num_bits, narrow_range = (default(node, name) for name in ("num_bits", "narrow_range"))
    if not is_width(num_bits):
        raise FileFormatError(
            f"{where}: a {node.op} has num_bits = {num_bits}, which is no width from 2 to 16; the "
            "file is damaged"
        )
    if node.op == _ARGS:
        fixed = (default(node, "min"), default(node, "max"))
        return FakeQuant(node.op, num_bits, narrow_range, ends=fixed)
    stored = [end.node for end in ends if isinstance(end, VariableSource)]
    low, high = stored if len(stored) == 2 else (None, None)
    return FakeQuant(node.op, num_bits, narrow_range, low, high)


def graph_facts(found: FakeQuant, trained: tuple[str, bool] | None = None) -> tuple[Fact, ...]:
    """Return what an op states about the tensor that it quantizes.

    Parameters
    ----------
    found : FakeQuant
    trained : tuple, optional
        As `find_updates` returns it for the lower end.
    """
    quantizer, symmetric = trained or (None, None)
    values: dict[str, Any] = {
        "op": "args" if found.op == _ARGS else "vars",
        "num_bits": found.num_bits,
        "narrow_range": found.narrow_range,
        "per_axis": found.op == _PER_CHANNEL,
        "quantizer": "FixedQuantizer" if found.op == _ARGS else quantizer,
        "symmetric": symmetric,
    }
    says = f"the {found.op} of the file's graph says"
    return tuple(Fact(key, v, "graph", says) for key, v in values.items() if v is not None)


def find_updates(graph: FunctionGraph, names: Iterable[str]) -> dict[int, tuple[str, bool]]:
    """Return how training updates the lower ends of ranges, by variable: quantizer and symmetry.

    Parameters
    ----------
    graph : FunctionGraph
    names : iterable of str
        Of all functions that objects were saved with.

    Raises
    ------
    FileFormatError
        The graph is damaged.

    Notes
    -----
    Mirrors what ``tensorflow_model_optimization/python/core/quantization/keras/quant_ops.py``
    builds.
    """
    found: dict[int, tuple[str, bool]] = {}
    for name in names:
        for frame in graph.frames(graph.outermost(name)):
            for node in frame.function.nodes.values():
                if node.op in UPDATES:
                    _add_update(graph, frame, node, found)
    return found


def _add_update(
    graph: FunctionGraph, frame: Frame, node: Any, found: dict[int, tuple[str, bool]]
) -> None:
    """Take in how a training function updates a variable, if as TFMOT does with a minimum."""
    variable = _variable(graph, frame, node, 0)
    if variable is None or node.op == "AssignAddVariableOp":
        return
    value = _made(graph, frame, node, 1)
    quantizer = "LastValueQuantizer"
    if node.op == "AssignSubVariableOp":
        # (variable - minimum) * (1 - decay)
        difference = value and value.node.op == "Mul" and _made(graph, value.frame, value.node, 0)
        if not difference or difference.node.op != "Sub":
            return
        value = _made(graph, difference.frame, difference.node, 1)
        quantizer = "MovingAverageQuantizer"
    if value is None or value.node.op != "Minimum":
        return
    first, second = (_made(graph, value.frame, value.node, place) for place in (0, 1))
    if first and second and first.node.op == "Minimum" and second.node.op == "Const":
        if _variable(graph, first.frame, first.node, 0) != variable:
            return
        quantizer = "AllValuesQuantizer"
        batch = _made(graph, first.frame, first.node, 1)
        symmetric = batch is not None and batch.node.op == "Minimum"
    else:
        symmetric = second is not None and second.node.op == "RealDiv"
        if not symmetric and (second is None or second.node.op != "Const"):
            return
    found[variable] = (quantizer, symmetric)


def _variable(graph: FunctionGraph, frame: Frame, node: Any, place: int) -> int | None:
    source = graph.source(frame, graph.input(frame, node, place))
    return source.node if isinstance(source, VariableSource) else None


def _made(graph: FunctionGraph, frame: Frame, node: Any, place: int) -> Output | None:
    source = graph.source(frame, graph.input(frame, node, place))
    return source if isinstance(source, Output) else None
