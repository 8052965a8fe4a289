"""What inference quantizes → the tensors of layers: their ranges, values and facts.

A stored range is a tensor's only if an op reads it as its ends. Ends and weights that are computed
are evaluated; what cannot be is named in a note, and its tensor is float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.containers.lazy_array import LazyArray
from qmath.errors import FileFormatError
from qmath.readers import notes as words
from qmath.readers.completion import RANGE_ROLES
from qmath.readers.records import StoredLayer, StoredTensor
from qmath.readers.saved_model.evaluation import Evaluator, NotEvaluatedError
from qmath.readers.saved_model.evaluation_ops import attribute
from qmath.readers.saved_model.fake_quants import FAKE_QUANTS, FakeQuant, graph_facts
from qmath.readers.saved_model.functions import Output, VariableSource, key_of
from qmath.readers.saved_model.inference import ROUNDING, FlowQuantizer, Inference, WeightPath
from qmath.readers.saved_model.placement import Places
from qmath.readers.settings.facts import is_width
from qmath.readers.settings.recovered import NotRecoveredError, recovered

__all__ = ["Assignment"]

Array = NDArray[Any]
_PER_CHANNEL = "FakeQuantWithMinMaxVarsPerChannel"


class Assignment:
    """Gives the tensors of a SavedModel what its graph says of them.

    Parameters
    ----------
    found : Inference
    updates : mapping of int to tuple
        From `find_updates`.
    keys : mapping of int to str
        The keys in the checkpoint of variables, by number.
    evaluator : Evaluator
    where : str
        The file, for error messages.

    Attributes
    ----------
    notes : list of str
        On what is not understood.
    by_op : dict of object to str
        Names of tensors by `key_of` the ops whose outputs are their quantized values, where no
        variable tells it.
    """

    def __init__(
        self,
        found: Inference,
        updates: Mapping[int, tuple[str, bool]],
        keys: Mapping[int | None, str],
        evaluator: Evaluator,
        where: str,
    ) -> None:
        self._found = found
        self._updates = updates
        self._keys = keys
        self._evaluator = evaluator
        self._where = where
        self.notes: list[str] = []
        self.by_op: dict[object, str] = {}
        self._flows: dict[str, list[FlowQuantizer]] = {}  # by the keys of what their ends need
        for flow in found.flows:
            for number in flow.variables:
                self._flows.setdefault(keys.get(number, ""), []).append(flow)
        self._placed: set[object] = set()
        self._noted: set[str] = set()

    def layers(self, layers: Sequence[StoredLayer], places: Places) -> list[StoredLayer]:
        """Return layers whose tensors are what inference computes with.

        Raises
        ------
        FileFormatError
            A range is used for another tensor, or two ops quantize one tensor differently.
        """
        tensors = [tensor for layer in layers for tensor in layer.tensors]
        self._check_ranges(tensors)
        paths = self._paths(tensors)
        made = []
        for layer in layers:
            kept = [
                self._weight(tensor, paths.get(_key(tensor.values), ()))
                if tensor.values is not None
                else self._flow(tensor)
                for tensor in layer.tensors
            ]
            made.append(replace(layer, tensors=[tensor for tensor in kept if tensor is not None]))
        return self._with_the_rest(made, places)

    def _check_ranges(self, tensors: Sequence[StoredTensor]) -> None:
        """Raise if an op reads a stored range for another tensor, or reads half of it."""
        owners = {
            key: tensor for tensor in tensors for key in (_key(tensor.min), _key(tensor.max)) if key
        }
        uses = [
            (path.quantizer, [self._keys.get(number, "") for number in path.variables])
            for path in self._found.weights
        ]
        uses += [(flow.quantizer, [""]) for flow in self._found.flows]
        for quantizer, weights in uses:
            if quantizer is None or quantizer.low is None:
                continue
            ends = [self._keys.get(end, "") for end in (quantizer.low, quantizer.high)]
            for tensor in {id(owners[e]): owners[e] for e in ends if e in owners}.values():
                if ends != [_key(tensor.min), _key(tensor.max)] or (
                    _key(tensor.values) not in weights
                ):
                    raise FileFormatError(
                        f"{self._where}: {tensor.name}: the graph uses its range for another "
                        "tensor, or another range for it; files of two models were mixed, or edited"
                    )

    def _paths(self, tensors: Sequence[StoredTensor]) -> dict[str, list[WeightPath]]:
        """Return how weights reach their layers, by the keys of their values.

        Of several variables on the way, the largest is the weight; the others scale it.
        """
        sizes = {
            _key(t.values): int(np.prod(np.shape(t.values))) for t in tensors if _key(t.values)
        }
        paths: dict[str, list[WeightPath]] = {}
        for path in self._found.weights:
            keys = [self._keys.get(number, "") for number in path.variables]
            known = [key for key in keys if key in sizes]
            if known:
                paths.setdefault(max(known, key=sizes.__getitem__), []).append(path)
        return paths

    def _weight(self, tensor: StoredTensor, paths: Sequence[WeightPath]) -> StoredTensor:
        """Return a weight as its layer reads it."""
        plain = replace(tensor, min=None, max=None)
        read = [self._read(tensor, path) for path in paths]
        understood = [item for item in read if item is not None]
        if len(understood) < len(read):
            return plain
        if not understood:
            if tensor.min is not None:
                self.notes.append(words.unused_range(tensor.name))
            return plain
        first = understood[0]
        for other, path in zip(understood[1:], paths[1:], strict=True):
            if not _alike(first, other):
                raise FileFormatError(
                    f"{self._where}: {tensor.name}: two ops of the graph quantize it differently "
                    f"({paths[0].quantizer or paths[0].output.node.op}, "
                    f"{path.quantizer or path.output.node.op}); qmath exports one tensor for each "
                    "weight: give the layers weights of their own"
                )
        return first

    def _read(self, tensor: StoredTensor, path: WeightPath) -> StoredTensor | None:
        """Return what a layer reads of a weight, ``None`` after a note on why it is not known."""
        try:
            if path.quantizer is not None:
                return self._fake_quantized(tensor, path, path.quantizer)
            return self._recovered(tensor, path)
        except NotEvaluatedError as error:
            reason = f"the graph computes it by {error}, which qmath does not evaluate"
        except NotRecoveredError as error:
            reason = str(error).removeprefix(f"{tensor.name}: ")
        except _NotUnderstoodError as error:
            reason = str(error)
        self._note(tensor.name, reason)
        return None

    def _fake_quantized(
        self, tensor: StoredTensor, path: WeightPath, quantizer: FakeQuant
    ) -> StoredTensor:
        trained = self._updates.get(-1 if quantizer.low is None else quantizer.low)
        tensor = replace(tensor, role="weight", facts=graph_facts(quantizer, trained))
        stored = [self._keys.get(end, "") for end in (quantizer.low, quantizer.high)]
        is_paired = quantizer.low is not None and stored == [_key(tensor.min), _key(tensor.max)]
        if not is_paired:
            low, high = self._ends(tensor.name, path.ends, quantizer)
            tensor = replace(tensor, min=low, max=high, is_stored=False)
        if isinstance(path.value, VariableSource):
            is_moved = not is_paired and "Transpose" in path.ops
            if is_moved and quantizer.op == _PER_CHANNEL:
                raise _NotUnderstoodError("its channels are not those of the last axis")
            self._check(tensor, tensor.values)
            return tensor
        # What is quantized is computed: its bits may vary where its integers do not.
        values = self._evaluator.before(path.value, path.output)
        if values.shape != np.shape(tensor.values) or values.dtype != np.float32:
            raise _NotUnderstoodError(f"the graph makes an array of shape {values.shape} of it")
        self._check(tensor, values)
        self.by_op[key_of(path.output)] = tensor.name
        return replace(tensor, values=values)

    def _recovered(self, tensor: StoredTensor, path: WeightPath) -> StoredTensor:
        """Return a weight with the integers of what its layer reads, if they can be told."""
        if path.ops.isdisjoint(ROUNDING | FAKE_QUANTS):
            raise _NotUnderstoodError(
                f"its layer reads what the graph computes of it ({_listed(path.ops)}), not what "
                "the file holds, and nothing rounds it"
            )
        (values,) = self._evaluator.values(path.output)
        if values.shape != np.shape(tensor.values):
            (values,) = self._evaluator.values(path.read)
        if values.shape != np.shape(tensor.values) or values.dtype != np.float32:
            raise _NotUnderstoodError(f"the graph makes an array of shape {values.shape} of it")
        if not np.isfinite(values).all():
            raise _NotUnderstoodError("the graph makes infinite values of it")
        says = f"what the graph computes ({_listed(path.ops)}) says"
        item = recovered(tensor, values, says, _stated_width(path.output))
        self.by_op[key_of(path.output)] = tensor.name
        return item

    def _ends(self, name: str, ends: Sequence[Any], quantizer: FakeQuant) -> list[Array]:
        """Return a range that no pair of variables holds."""
        if quantizer.ends is not None:
            return [np.asarray(end, np.float32) for end in quantizer.ends]
        low, high = self._evaluator.values(*ends)
        for end in (low, high):
            if end.dtype != np.float32 or not np.isfinite(end).all():
                raise _NotUnderstoodError(f"the ends of its {quantizer.op} are no finite numbers")
        if low.shape != high.shape or low.ndim != (quantizer.op == _PER_CHANNEL):
            raise FileFormatError(
                f"{self._where}: {name}: its {quantizer.op} has ends of the shapes {low.shape} and "
                f"{high.shape}; the file is damaged"
            )
        if (low > high).any():
            raise FileFormatError(f"{self._where}: the range of {name} has min > max")
        return [low, high]

    def _check(self, tensor: StoredTensor, values: Any) -> None:
        """Raise if a range that was made is not one, or one for each index of the last axis."""
        shape = np.shape(tensor.min)
        if shape not in ((), np.shape(values)[-1:]):
            raise FileFormatError(
                f"{self._where}: the range of {tensor.name} has the shape {shape}, and its values "
                f"have {np.shape(values)}; the file is damaged"
            )

    def _flow(self, tensor: StoredTensor) -> StoredTensor | None:
        """Return the range of what flows, ``None`` if no op reads it."""
        pair = [_key(tensor.min), _key(tensor.max)]
        flows = {key_of(f.output): f for key in pair for f in self._flows.get(key, ())}
        made = []
        for flow in flows.values():
            self._placed.add(key_of(flow.output))
            item = self._ranged(tensor, flow)
            if item is None:
                return None
            made.append(item)
        if not made:
            self.notes.append(words.unused_range(tensor.name))
            return None
        if not all(_alike(made[0], other) for other in made[1:]):
            raise FileFormatError(
                f"{self._where}: {tensor.name}: two ops of the graph read its range and differ "
                f"({', '.join(sorted({str(f.quantizer) for f in flows.values()}))}); the file was "
                "edited, or its quantizers are not TFMOT's"
            )
        return made[0]

    def _ranged(self, tensor: StoredTensor, flow: FlowQuantizer) -> StoredTensor | None:
        """Return a tensor with the range by which an op quantizes it."""
        quantizer = flow.quantizer
        facts = graph_facts(
            quantizer, self._updates.get(-1 if quantizer.low is None else quantizer.low)
        )
        if quantizer.low is not None and tensor.min is not None:
            return replace(tensor, facts=facts)
        try:
            if flow.ends is None:
                raise _NotUnderstoodError(f"its {quantizer.op} takes its range from the data")
            low, high = self._ends(tensor.name, flow.ends, quantizer)
            if low.ndim:
                raise _NotUnderstoodError("it has a range for each channel")
        except (NotEvaluatedError, _NotUnderstoodError) as error:
            self._note(tensor.name, str(error))
            return None
        self.by_op[key_of(flow.output)] = tensor.name
        is_input = tensor.layer.kind == "quantize_layer"
        role = "input" if is_input else RANGE_ROLES[tensor.own_name]
        return replace(tensor, min=low, max=high, is_stored=False, role=role, facts=facts)

    def _with_the_rest(self, layers: list[StoredLayer], places: Places) -> list[StoredLayer]:
        """Return layers with the tensors of ops whose ranges no variable holds."""
        known: dict[object, StoredTensor] = {}
        for flow in self._found.flows:
            if key_of(flow.output) in self._placed:
                continue
            place = places.of(flow.output, layers, is_input=flow.is_input)
            again = known.get(place.key)
            if again is None and not place.name:
                shown = _shown(flow.output.name)
                self._note(place.label, f"by the op {flow.quantizer} ({shown}), inside of it")
                continue
            tensor = again or StoredTensor(place.layer, place.name)
            item = self._ranged(replace(tensor, min=None, max=None), flow)
            if item is None:
                continue
            if again is None:
                known[place.key] = item
                layers = place.added(layers, item)
            elif not _alike(again, item):
                raise FileFormatError(
                    f"{self._where}: {item.name}: two ops of the graph quantize it differently; "
                    "qmath exports one range for each"
                )
        self.notes += [words.unnamed_places(names)] if (names := places.unnamed(known)) else []
        for output in self._found.rounding:
            place = places.of(output, layers, is_input=False)
            reason = f"by the op {output.node.op} ({_shown(output.name)})"
            self._note(place.label, reason + place.doubt)
        for output in self._found.clips:
            place = places.of(output, layers, is_input=False)
            if places.may_clip(place.layer, output, layers):
                reason = (
                    f"the op {output.node.op} ({_shown(output.name)}) clips, and nothing rounds"
                )
                self._note(place.label, reason + place.doubt)
        return layers

    def _note(self, name: str, reason: str) -> None:
        """Say once of a tensor that it is not understood."""
        if name not in self._noted:
            self._noted.add(name)
            self.notes.append(words.own_quantizer(name, reason))


class _NotUnderstoodError(Exception):
    """A weight or range is one that qmath cannot tell; the text says why."""


def _key(values: Any) -> str:
    return values.path if isinstance(values, LazyArray) else ""


def _alike(one: StoredTensor, other: StoredTensor) -> bool:
    """Tell whether two ops say the same of a tensor."""
    if one.facts != other.facts or one.role != other.role:
        return False
    pairs = [(one.min, other.min), (one.max, other.max), (one.values, other.values)]
    return all(_same_array(a, b) for a, b in pairs)


def _same_array(one: Any, other: Any) -> bool:
    if one is other or (_key(one) and _key(one) == _key(other)):
        return True
    return one is not None and other is not None and np.array_equal(one, other)


def _stated_width(output: Output) -> int | None:
    """Return the width that an op states, if signed integers of it are its outputs."""
    node = output.node
    if not node.op.startswith("QuantizeAndDequantize") or not attribute(
        node, "signed_input", "b", True
    ):
        return None
    num_bits = None if node.op.endswith("V3") else int(attribute(node, "num_bits", "i", 8))
    return num_bits if is_width(num_bits) else None


def _listed(ops: frozenset[str]) -> str:
    return ", ".join(sorted(ops - {"Const"}))


def _shown(name: str) -> str:
    return "".join(c for c in name[:200] if c.isprintable())
