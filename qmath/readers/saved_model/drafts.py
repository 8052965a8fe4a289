"""Layers under construction, each taking in the ops that belong to it, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qmath.model import Graph, Node
from qmath.readers.architecture.graph import NotAGraphError
from qmath.readers.completion import RANGE_ROLES
from qmath.readers.saved_model.functions import Output, Source
from qmath.readers.saved_model.values import Param

__all__ = [
    "NO_BROADCAST",
    "Draft",
    "Drafts",
    "Flow",
    "Names",
    "Value",
    "key_of",
    "label_of",
    "unknown",
]

NO_BROADCAST = "a constant is added or multiplied"
_RANGES = tuple(RANGE_ROLES)


class Names(NamedTuple):
    """What tensors are called: ``conv1/kernel`` by its variable, ranges by their lower end.

    Attributes
    ----------
    weights : mapping of int to str
    ranges : mapping of int to str
    quantized : set of str
        Names of the weights with ranges.
    shapes : mapping of str to tuple
        Of the weights.
    """

    weights: Mapping[int, str]
    ranges: Mapping[int, str]
    quantized: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(eq=False)
class Draft:
    """A layer that may yet take in ops that follow.

    Attributes
    ----------
    class_name, inputs, config, layer, name
        As in `Node`; `layer` is empty until a variable tells it.
    scope : str
        The name of its first op, with all scopes.
    last : object
        The key of the op whose output is the layer's.
    ranges : list of str
        Where it quantizes what it computes.
    has_activation : bool
    """

    class_name: str
    inputs: tuple[Draft, ...]
    config: dict[str, Any]
    scope: str
    last: object
    layer: str = ""
    ranges: list[str] = field(default_factory=list)
    has_activation: bool = False
    name: str = ""


class Flow(NamedTuple):
    """What flows out of a layer.

    Attributes
    ----------
    draft : Draft
    views : tuple
        How its layout differs for the moment: ``("axis", 1)``, an axis that makes a signal an
        image; ``("blocks", (2, 2), (1, 1, 1, 1))``, pixels apart put side by side, with padding;
        ``("rows",)``, all axes but the last put together; ``("steps", 12)``, a signal cut in its
        steps; ``("step", 12, 3)``, one of them.
    """

    draft: Draft
    views: tuple[tuple[Any, ...], ...] = ()


Value = Param | Flow


class Drafts:
    """All layers of a model.

    Parameters
    ----------
    names : Names
    uses : Counter
        How many ops read the output of an op, by its key.
    """

    def __init__(self, names: Names, uses: Counter[object]) -> None:
        self.names = names
        self.uses = uses
        self.drafts: list[Draft] = []

    def add(
        self,
        class_name: str,
        inputs: Sequence[Value],
        config: dict[str, Any],
        output: Output,
        layer: str = "",
        views: tuple[tuple[Any, ...], ...] = (),
    ) -> Flow:
        """Begin a layer; its inputs must be laid out as `views` says."""
        feeds = []
        for value in inputs:
            if not isinstance(value, Flow) or value.views != views:
                raise unknown(output)
            feeds.append(value.draft)
        draft = Draft(class_name, tuple(feeds), config, output.name, key_of(output), layer)
        self.drafts.append(draft)
        return Flow(draft, views)

    def moved(self, draft: Draft, output: Output) -> None:
        """Let a layer end with an op that changes nothing, if nothing else uses what is before."""
        if self.uses[draft.last] == 1:
            draft.last = key_of(output)

    def merge(self, draft: Draft) -> Draft:
        """Make an activation part of the layer before it, and return that."""
        (previous,) = draft.inputs
        previous.config["activation"] = draft.config["activation"]
        previous.has_activation = True
        previous.last = draft.last
        self.drafts.remove(draft)
        return previous

    def is_open(self, draft: Draft, which: str = "pre_activation") -> bool:
        """Tell whether a layer can take in an op for `which`: nothing else uses what is before."""
        if self.uses[draft.last] != 1:
            return False
        place = _RANGES.index(which)
        if which == "pre_activation" and draft.has_activation:
            return False
        return all(_RANGES.index(other) < place for other in draft.ranges)

    def layer_of(self, param: Value, name: str, output: Output) -> str:
        """Return the layer whose variable of this name a parameter is, quantized if it must be."""
        tensor = self.tensor_of(param)
        layer, _, leaf = tensor.rpartition("/")
        if leaf != name:
            raise NotAGraphError(f"{output.name} does not use the {name} of a layer")
        return layer

    def tensor_of(self, param: Value) -> str:
        """Return the name of the tensor that a parameter is, ``""`` if none."""
        is_quantized = False
        if not isinstance(param, Param):
            return ""
        while param.op in ("FakeQuant", "Transpose", "ExpandDims") and param.args:
            is_quantized |= param.op == "FakeQuant"
            param = param.args[0]
        return param.name if is_quantized == (param.name in self.names.quantized) else ""

    def graph(self, inputs: Sequence[Draft], ends: Sequence[Draft]) -> Graph:
        """Return the layers, if each quantizes what it should."""
        ranged: dict[str, list[str]] = {}
        for name in self.names.ranges.values():
            layer, _, which = name.rpartition("/")
            ranged.setdefault(layer, []).append(which)
        taken = ranged.keys() | {draft.layer for draft in self.drafts}
        counts: Counter[str] = Counter()
        nodes = []
        for draft in self.drafts:
            if draft.class_name == "Mul":
                raise NotAGraphError(f"{draft.scope}: {NO_BROADCAST}")
            if not draft.layer:
                draft.layer = label_of(draft.scope)
                if draft.layer in taken or counts[draft.layer]:
                    draft.layer += f"/{draft.scope.rpartition('/')[2]}"
            wanted = sorted(ranged.get(draft.layer, ()), key=_RANGES.index)
            if draft.ranges != wanted:
                raise NotAGraphError(f"{draft.scope}: it is not clear what {draft.layer} quantizes")
            number = counts[draft.layer]
            counts[draft.layer] += 1
            draft.name = draft.layer + (f"#{number}" if number else "")
            feeds = tuple(feed.name for feed in draft.inputs)
            config = {"name": draft.layer.rpartition("/")[2], **draft.config}
            nodes.append(Node(draft.name, draft.layer, draft.class_name, feeds, config))
        if len({node.name for node in nodes}) < len(nodes):
            raise NotAGraphError("two of its layers have one name")
        return Graph(tuple(nodes), tuple(d.name for d in inputs), tuple(d.name for d in ends))


def key_of(source: Source) -> object:
    """Return what identifies an op, or another source of a tensor."""
    return (id(source.frame), source.node.name) if isinstance(source, Output) else source


def unknown(output: Output) -> NotAGraphError:
    """Return the error that an op is not understood."""
    shown = "".join(c for c in output.name if c.isprintable())
    return NotAGraphError(f"the op {output.node.op} ({shown}) is not one of a layer that is known")


def label_of(scope: str) -> str:
    """Return the path of the layer that an op lies in, by its scopes below the model's."""
    parts = [part.removeprefix("quant_") for part in scope.split("/")]
    return "/".join(parts[1:-1]) or parts[-1]
