"""The object graph of a TensorFlow checkpoint: which objects hold which variables, by what name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# Lists of variables that are held elsewhere, which Keras attaches to what it saves as a SavedModel.
_LISTS = frozenset({"_all_variables", "non_trainable_variables", "regularization_losses",
                    "signatures", "trainable_variables", "variables"})  # fmt: skip
# SavedModels of small networks take up to 120 a layer; this lets ten thousand have 3,000 each.
_BUDGET = 1 << 25


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


class ObjectGraph:
    """The objects of a checkpoint by number; 0 is the one that was saved. Circles are ordinary.

    Objects are looked at when they are asked for. All walks together have one budget, of steps and
    of the letters of the paths they took.

    Parameters
    ----------
    nodes : sequence of messages
        Of ``TrackableObjectGraph``.
    where : str
        The file, for error messages.
    is_saved_model : bool
        Whether Keras attached lists of all variables, which are no part of the model.
    """

    def __init__(self, nodes: Sequence[Any], where: str, *, is_saved_model: bool = False) -> None:
        self._nodes = nodes
        self._where = where
        self._besides = _BESIDES | _LISTS if is_saved_model else _BESIDES
        self._seen: dict[int, Trackable] = {}
        self._budget = _BUDGET

    def __getitem__(self, number: int) -> Trackable:
        if number not in self._seen:
            self._seen[number] = self._trackable(number)
        return self._seen[number]

    def spend(self, path: str) -> None:
        """Account for a step of a walk.

        Raises
        ------
        FileFormatError
            There were more than any network needs.
        """
        self._budget -= 1 + len(path)
        if self._budget < 0:
            raise FileFormatError(
                f"{self._where}: its objects branch more than any network's; the file is damaged "
                f"or hostile"
            )

    def child(self, node: int, *path: str) -> int | None:
        """Return the object that a path of attributes leads to, ``None`` if there is none."""
        for name in path:
            found = self[node].children.get(name)
            if found is None:
                return None
            node = found
        return node

    def variables(self, node: int) -> dict[str, int]:
        """Return the variables of the model that an object holds itself."""
        return {
            name: child
            for name, child in self[node].children.items()
            if self[child].is_variable and name not in self._besides
        }

    def parts(self, node: int) -> dict[str, int]:
        """Return the objects below one that may hold variables of the model."""
        return {
            name: child
            for name, child in self[node].children.items()
            if self[child].children
            and name not in self._besides
            and not self[child].is_training_state
        }

    def variables_below(self, node: int) -> dict[int, str]:
        """Return all variables below an object, each with the attributes that lead to it.

        Models are not entered: a layer may know the one it belongs to.
        """
        found: dict[int, str] = {}
        seen, stack = {node}, [(node, "")]
        while stack:
            at, trail = stack.pop()
            for name, child in self.variables(at).items():
                self.spend(trail)
                found.setdefault(child, f"{trail}{name}")
            below = []
            for name, child in self.parts(at).items():
                self.spend(trail)
                if child not in seen and not self[child].is_functional:
                    seen.add(child)
                    below.append((child, f"{trail}{name}/"))
            stack += reversed(below)
        return found

    def listed(self, node: int) -> list[int]:
        """Return the variables in the list that Keras attaches to what it exports."""
        holder = self.child(node, "variables")
        children = self[holder].children.values() if holder is not None else ()
        return [child for child in dict.fromkeys(children) if self[child].is_variable]

    def _trackable(self, number: int) -> Trackable:
        if not 0 <= number < len(self._nodes):
            raise FileFormatError(
                f"{self._where}: an object refers to one that is not there; the file is damaged"
            )
        node = self._nodes[number]
        children = {child.local_name: child.node_id for child in node.children}
        values = [value for value in node.attributes if value.name == _VALUE]
        name, key = (values[0].full_name, values[0].checkpoint_key) if values else ("", "")
        if not all(text.isprintable() for text in (name, key, *children)):
            raise FileFormatError(
                f"{self._where}: an object has no name that can be shown; the file is damaged"
            )
        return Trackable(children, name, key, bool(node.slot_variables))


def read_object_graph(bundle: TensorBundle, *, is_saved_model: bool = False) -> ObjectGraph:
    """Read the object graph of a checkpoint, or of the one inside a SavedModel.

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
    nodes = parse("TrackableObjectGraph", bundle.string(_KEY), where).nodes
    return ObjectGraph(nodes, where, is_saved_model=is_saved_model)
