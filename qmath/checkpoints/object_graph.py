"""The object graph of a TensorFlow checkpoint: which objects hold which variables, by what name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qmath.containers.protos import parse
from qmath.containers.tensor_bundle import TensorBundle
from qmath.errors import FileFormatError

__all__ = ["ObjectGraph", "Trackable", "read_object_graph"]

_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"
# What Keras and TensorFlow attach besides a model: bookkeeping, metrics, random numbers.
_BESIDES = frozenset({"keras_api", "_random_generator", "save_counter"})


@dataclass(frozen=True)
class Trackable:
    """An object that a checkpoint was saved of.

    Attributes
    ----------
    children : mapping of str to int
        Its attributes or items that are tracked as well, in order; the numbers are theirs.
    name : str
        Of a variable, the one TensorFlow knows it by: ``conv1/kernel``. ``""`` otherwise.
    key : str
        Of a variable, the key of its values in the checkpoint. ``""`` otherwise.
    has_slots : bool
        Whether it is an optimizer that keeps variables for those of the model.
    """

    children: Mapping[str, int]
    name: str = ""
    key: str = ""
    has_slots: bool = False

    @property
    def is_variable(self) -> bool:
        """Whether the checkpoint holds values of it."""
        return bool(self.key)

    @property
    def is_functional(self) -> bool:
        """Whether it is a Sequential or Functional model, which numbers its layers."""
        return "layer-0" in self.children

    @property
    def is_training_state(self) -> bool:
        """Whether it is an optimizer, or the scale of a loss."""
        return (
            self.has_slots
            or not {"_iterations", "current_loss_scale"}.isdisjoint(self.children)
            or {"iter", "learning_rate"} <= self.children.keys()
        )


@dataclass(frozen=True)
class ObjectGraph:
    """The objects of a checkpoint; the first is the one that was saved. Circles are ordinary."""

    nodes: tuple[Trackable, ...]

    def child(self, node: int, *path: str) -> int | None:
        """Return the object that a path of attributes leads to, ``None`` if there is none."""
        for name in path:
            found = self.nodes[node].children.get(name)
            if found is None:
                return None
            node = found
        return node

    def variables(self, node: int) -> dict[str, int]:
        """Return the variables of the model that an object holds itself."""
        return {
            name: child
            for name, child in self.nodes[node].children.items()
            if self.nodes[child].is_variable and name not in _BESIDES
        }

    def parts(self, node: int) -> dict[str, int]:
        """Return the objects below one that may hold variables of the model."""
        return {
            name: child
            for name, child in self.nodes[node].children.items()
            if self.nodes[child].children
            and name not in _BESIDES
            and not self.nodes[child].is_training_state
        }

    def variables_below(self, node: int) -> dict[int, str]:
        """Return all variables below an object, each with the attributes that lead to it."""
        found: dict[int, str] = {}
        seen, stack = {node}, [(node, "")]
        while stack:
            at, trail = stack.pop()
            for name, child in self.variables(at).items():
                found.setdefault(child, f"{trail}{name}")
            below = [(child, f"{trail}{name}/") for name, child in self.parts(at).items()]
            stack += reversed([step for step in below if step[0] not in seen])
            seen.update(child for child, _ in below)
        return found


def read_object_graph(bundle: TensorBundle) -> ObjectGraph:
    """Read the object graph of a checkpoint.

    Raises
    ------
    FileFormatError
        There is none, as in what TensorFlow 1 saves, or it is damaged.
    """
    where = f"{bundle.path}: {_KEY}"
    if _KEY not in bundle.keys:
        raise FileFormatError(
            f"{bundle.path}: this checkpoint has no object graph, so it was saved by TensorFlow 1 "
            f"(tf.compat.v1.train.Saver, partitioned variables and all), which qmath does not "
            f"read; save the model again with tf.train.Checkpoint"
        )
    graph = parse("TrackableObjectGraph", bundle.string(_KEY), where)
    nodes = tuple(_trackable(node, len(graph.nodes), where) for node in graph.nodes)
    if not nodes:
        raise FileFormatError(f"{where}: it holds no objects; the file is damaged")
    return ObjectGraph(nodes)


def _trackable(node: Any, count: int, where: str) -> Trackable:
    children = {child.local_name: child.node_id for child in node.children}
    values = [value for value in node.attributes if value.name == _VALUE]
    name, key = (values[0].full_name, values[0].checkpoint_key) if values else ("", "")
    if not all(0 <= child < count for child in children.values()):
        raise FileFormatError(f"{where}: an object refers to one that is not there; it is damaged")
    if not all(text.isprintable() for text in (name, key, *children)):
        raise FileFormatError(f"{where}: an object's name cannot be shown; it is damaged")
    return Trackable(children, name, key, bool(node.slot_variables))
