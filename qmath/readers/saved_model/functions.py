"""TensorFlow's functions, walked from any tensor back to what makes it: an op or a variable.

A function is looked at in the place it is called from, a `Frame`, as its arguments mean something
else at each. Frames and tensors are visited when they are asked for, under one budget.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qmath.containers.saved_model import SavedModel
from qmath.errors import FileFormatError

__all__ = [
    "UPDATES", "Argument", "Frame", "FunctionGraph", "Output", "Source", "VariableSource",
    "calls", "key_of",
]  # fmt: skip

UPDATES = frozenset({"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"})

# Of steps from tensor to tensor, and of calls; MobileNetV2 takes some ten and five thousand.
_STEPS = 1 << 21
_CALLED = 1 << 16
_MAX_DEPTH = 50
_MAX_CHAIN = 10_000
# Their output is their first input.
_PASSES = frozenset({"Identity", "ReadVariableOp", "StopGradient", "PreventGradient", "EnsureShape",
                     "Snapshot", "CheckNumerics"})  # fmt: skip
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
# Ops that run functions now and then: the attributes that name them, the first input they get.
_BRANCHES: Mapping[str, tuple[tuple[str, ...], int]] = {
    "If": (("then_branch", "else_branch"), 1),
    "StatelessIf": (("then_branch", "else_branch"), 1),
    "While": (("cond", "body"), 0),
    "StatelessWhile": (("cond", "body"), 0),
}
_CHOICES = frozenset({"If", "StatelessIf"})
_LOOPS = frozenset({"While", "StatelessWhile"})
_PLACE = re.compile(r"[0-9]{1,6}\Z")


class _Function:
    """A ``FunctionDef``, by name."""

    def __init__(self, definition: Any) -> None:
        self.name: str = definition.signature.name
        self.nodes: dict[str, Any] = {node.name: node for node in definition.node_def}
        self.arguments = {a.name: i for i, a in enumerate(definition.signature.input_arg)}
        self.outputs = [a.name for a in definition.signature.output_arg]
        self.returned: dict[str, str] = dict(definition.ret.items())


@dataclass(frozen=True, eq=False)
class Frame:
    """A call of a function.

    Attributes
    ----------
    function : _Function
    bound : sequence of int
        Of an outermost frame, the objects of its last arguments.
    caller : Frame or None
    inputs : tuple of str
        The caller's tensors for the arguments.
    path : str
        The scopes of the calls, ending in ``/``.
    depth : int
    call : message or None
        The op that runs the function.
    """

    function: _Function
    bound: tuple[int, ...] = ()
    caller: Frame | None = None
    inputs: tuple[str, ...] = ()
    path: str = ""
    depth: int = 0
    call: Any = None
    callees: dict[tuple[str, str], Frame] = field(default_factory=dict)


@dataclass(frozen=True)  # unlike tuples, a variable and an argument of one number differ
class VariableSource:
    """A variable of the saved objects, by number."""

    node: int


@dataclass(frozen=True)
class Argument:
    """An argument of an outermost function, by place."""

    number: int


class Output(NamedTuple):
    """An output of an op, as the graph calls it: ``y:0``."""

    frame: Frame
    node: Any
    output: str

    @property
    def name(self) -> str:
        """The op's name with all scopes."""
        return f"{self.frame.path}{self.node.name}"


Source = VariableSource | Argument | Output


def calls(node: Any) -> bool:
    """Tell whether an op does nothing but run functions."""
    return node.op in _CALLS or node.op in _BRANCHES


def key_of(source: Source) -> object:
    """Return what identifies an op, or another source of a tensor."""
    return (id(source.frame), source.node.name) if isinstance(source, Output) else source


class FunctionGraph:
    """The functions of a SavedModel.

    Parameters
    ----------
    saved : SavedModel
    where : str
        The file, for error messages.
    """

    def __init__(self, saved: SavedModel, where: str) -> None:
        self._saved = saved
        self._where = where
        self._functions: dict[str, _Function] = {}
        self._outermost: dict[str, Frame] = {}
        self._steps, self._called = _STEPS, _CALLED

    def outermost(self, name: str) -> Frame:
        """Return the frame of a function that an object was saved with, the same each time."""
        if name not in self._outermost:
            function = self._function(name)
            bound = tuple(self._saved.bound[name])
            if len(bound) > len(function.arguments):
                raise self._damaged(f"{name} has fewer arguments than variables")
            self._outermost[name] = Frame(function, bound)
        return self._outermost[name]

    def frames(self, frame: Frame, *, trains: bool = True) -> Iterator[Frame]:
        """Yield a frame, and those of all calls within it, with branches that train or without."""
        stack = [frame]
        while stack:
            frame = stack.pop()
            is_branch = frame.call is not None and frame.call.op in _CHOICES
            if is_branch and not trains and self.updates(frame):
                continue
            yield frame
            for node in frame.function.nodes.values():
                if calls(node):
                    stack += self._entered(frame, node)

    def updates(self, frame: Frame) -> bool:
        """Tell whether a function, or one that it calls, changes a variable."""
        nodes = (node for each in self.frames(frame) for node in each.function.nodes.values())
        return any(node.op in UPDATES for node in nodes)

    def source(self, frame: Frame, tensor: str) -> Source:
        """Return what makes a tensor, through calls and ops that change nothing.

        Raises
        ------
        FileFormatError
            It comes from nowhere, or the graph is larger or deeper than any network's.
        """
        for _ in range(_MAX_CHAIN):
            self._steps -= 1
            if self._steps < 0:
                raise self._damaged("its tensors take longer ways than any network's")
            name, output, number = self._split(tensor)
            node = frame.function.nodes.get(name)
            if node is None:
                place = frame.function.arguments.get(name)
                if place is None:
                    raise self._damaged(f"{frame.function.name} has no {name!r}")
                if frame.caller is None:
                    free = len(frame.function.arguments) - len(frame.bound)
                    if place < free:
                        return Argument(place)
                    return VariableSource(frame.bound[place - free])
                if place >= len(frame.inputs):
                    raise self._damaged(f"{frame.function.name} is called with too little")
                if frame.call.op in _LOOPS and not self._is_kept(frame.call, place):
                    return Output(frame.caller, frame.call, "")
                tensor, frame = frame.inputs[place], frame.caller
            elif node.op in _PASSES:
                tensor = self.input(frame, node, 0)
            elif node.op in _CALLS:
                frame = self._entered(frame, node)[0]
                outputs = frame.function.outputs
                if number >= len(outputs) or outputs[number] not in frame.function.returned:
                    raise self._damaged(f"{frame.function.name} does not return what is used of it")
                tensor = frame.function.returned[outputs[number]]
            else:
                return Output(frame, node, output)
        raise self._damaged("its tensors follow from each other in a circle")

    def input(self, frame: Frame, node: Any, number: int) -> str:
        """Return a tensor that an op takes."""
        if number >= len(node.input) or node.input[number].startswith("^"):
            raise self._damaged(f"{frame.function.name}: {node.name} lacks an input")
        tensor: str = node.input[number]
        return tensor

    def called(self, frame: Frame) -> Frame | None:
        """Return the only call within a frame, ``None`` unless it does nothing else."""
        nodes = [n for n in frame.function.nodes.values() if n.op not in ("Identity", "NoOp")]
        is_call = len(nodes) == 1 and nodes[0].op in _CALLS
        return self._entered(frame, nodes[0])[0] if is_call else None

    def _is_kept(self, loop: Any, place: int) -> bool:
        """Tell whether a loop's body returns one of its arguments as it got it."""
        body = self._function(loop.attr["body"].func.name if "body" in loop.attr else "")
        outputs, arguments = body.outputs, body.arguments
        tensor = body.returned.get(outputs[place], "") if place < len(outputs) else ""
        for _ in range(_MAX_CHAIN):
            name = self._split(tensor)[0]
            node = body.nodes.get(name)
            if node is None or node.op not in _PASSES or not node.input:
                return node is None and arguments.get(name) == place
            tensor = node.input[0]
        return False

    def _entered(self, frame: Frame, node: Any) -> list[Frame]:
        """Return the frames of the functions that an op runs."""
        keys, first = _BRANCHES.get(node.op, (("f",), 0))
        if frame.depth >= _MAX_DEPTH:
            raise self._damaged("its functions call each other too deeply")
        scope, slash, _ = node.name.rpartition("/")
        entered = []
        for key in keys:
            if (node.name, key) not in frame.callees:
                self._called -= 1
                if self._called < 0:
                    raise self._damaged("its functions branch more than any network's")
                inputs = tuple(tensor for tensor in node.input if not tensor.startswith("^"))
                frame.callees[node.name, key] = Frame(
                    self._function(node.attr[key].func.name if key in node.attr else ""),
                    caller=frame,
                    inputs=inputs[first:],
                    path=f"{frame.path}{scope}{slash}",
                    depth=frame.depth + 1,
                    call=node,
                )
            entered.append(frame.callees[node.name, key])
        return entered

    def _function(self, name: str) -> _Function:
        if name not in self._functions:
            if name not in self._saved.functions:
                raise self._damaged(f"the function {name!r} is missing")
            definition = self._saved.functions[name]
            function = _Function(definition)
            if len(function.arguments) < len(definition.signature.input_arg):
                raise self._damaged(f"{name} has two arguments of one name")
            self._functions[name] = function
        return self._functions[name]

    def _split(self, tensor: str) -> tuple[str, str, int]:
        """Return the op or argument, and which of its outputs: ``op:output:1``."""
        name, _, output = tensor.partition(":")
        place = _PLACE.search(output) if output else None
        return name, output, int(place[0]) if place else 0

    def _damaged(self, reason: str) -> FileFormatError:
        shown = "".join(c for c in reason[:200] if c.isprintable())
        return FileFormatError(f"{self._where}: {shown}; the file is damaged or hostile")
