"""What lowering builds with: the steps so far, and how a value becomes part of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.budget import Budget
from qmath.integer.lowering import activations, portability, rescaling
from qmath.integer.lowering.cuts import UnsupportedError
from qmath.integer.lowering.operations import Operations
from qmath.integer.lowering.params import quant_params
from qmath.integer.lowering.rescaling import Operation
from qmath.integer.lowering.sums import ZERO, can_pool, moved
from qmath.integer.lowering.values import (
    Extreme,
    FloatLayer,
    Floats,
    Function,
    Integers,
    Value,
)
from qmath.integer.program import (
    Activation,
    CutStep,
    FloatStep,
    Linear,
    MoveStep,
    QuantizeStep,
    QuantParams,
    Requantize,
    Shape,
    Step,
    TableStep,
    Term,
    UnroundedSum,
)
from qmath.integer.softmax import softmax_step
from qmath.kernels._environment import check_kept, least_magnitude
from qmath.layers import activation_of
from qmath.model import Node, QatModel, QatTensor, own_quantized

__all__ = ["SEVERAL", "SHAPELESS", "Builder", "remedy_of"]

Array = NDArray[Any]


_OTHER = "use a layer that qmath knows"
# What to do about a cut point, and about one whose result has no shape that is known.
_CUT = (
    "qmath cannot compute this {0}{1}: give run its function (layers=) or its outputs (--cut, "
    "cuts=), compute it beside what is exported, or {2}"
)
SHAPELESS = (
    "nothing in the model tells the shape of what this {0} makes, so that what follows it is "
    "left out; give it without the batch (--shape {1}=N,N, shapes= of qmath.load)"
)


SEVERAL = (
    "this {0} has several outputs, which qmath does not tell apart, so that what follows it is "
    "left out; split it into layers of one output"
)


class Builder:
    """A program under construction.

    Attributes
    ----------
    model : QatModel
    input_shapes : mapping of str to tuple
        Shapes of the inputs without the batch, where the model leaves them open.
    operations : Operations
    budget : Budget
    steps : list of Step
    inputs : dict of str to tuple
        Shapes of the inputs that were met.
    float_layers : list of FloatLayer
    unseen : set of str
        Weights that quantizers of the user's own change, of which the model shows nothing.
    notes : list of str
    """

    def __init__(
        self, model: QatModel, input_shapes: Mapping[str, Shape], operations: Operations
    ) -> None:
        self.model = model
        self.input_shapes, self.operations = input_shapes, operations
        self.budget = Budget()
        self.steps: list[Step] = []
        self._taken: set[str] = set()  # the names of the first `_seen` steps
        self._seen = 0
        self.inputs: dict[str, Shape] = {}
        self._within: dict[str, list[QatTensor]] = {}
        self.float_layers: list[FloatLayer] = []
        self.unseen = frozenset(own_quantized(model))
        self.notes = [portability.of_unseen(name) for name in sorted(self.unseen)]

    def mark(self) -> tuple[int, ...]:
        """Return how much there is, for `go_back`."""
        return len(self.steps), len(self.float_layers), len(self.notes)

    def go_back(self, mark: tuple[int, ...]) -> None:
        """Take back all that was added since a mark."""
        for part, length in zip((self.steps, self.float_layers, self.notes), mark, strict=True):
            del part[length:]  # type: ignore[attr-defined]
        self._taken, self._seen = set(), 0

    # ---- values

    def apply(self, node: Node, value: Value, linear: Linear, factor: Any = 1.0) -> Value:
        """Apply an operation without weights: it moves values or sums them."""
        accumulator = self.accumulator(value)
        if isinstance(value, Integers) and not linear.sums:
            apply = partial(_without_weights, linear)
            self.steps.append(
                MoveStep(
                    node.name,
                    value.name,
                    apply,
                    value.params,
                    linear.shape,
                    {"kind": linear.kind, **linear.attributes},
                )
            )
            return Integers(node.name, value.params, linear.shape)
        if accumulator is None or (linear.sums and not can_pool(accumulator)):
            f = np.asarray(factor, np.float32)
            return self.float_step(
                node, [value], partial(_scaled, linear, f), linear.shape,
                is_function=not linear.sums, constants=(f,),
            )  # fmt: skip
        return moved(accumulator, linear, factor, node.name, self.budget)

    def activate(self, node: Node, value: Value, activation: Activation | None) -> Value:
        """Apply a ReLU, or nothing."""
        if activation is None:
            return value
        accumulator = self.accumulator(value)
        before = accumulator.activation if accumulator else None
        if accumulator is None or (before and (before.leaks or activation.leaks)):
            apply = partial(activations.piecewise, activation=activation)
            return self.float_step(
                node, [value], apply, value.shape, is_function=True,
                constants=(np.asarray(activation.slope), np.asarray(activation.limit)),
            )  # fmt: skip
        limit = np.minimum(activation.limit, before.limit) if before else activation.limit
        return replace(accumulator, activation=Activation(activation.slope, limit))

    def rescaled(self, node: Node, value: Value, operations: Sequence[Operation]) -> Value:
        """Multiply by constants and add others."""
        if not operations:
            return value
        accumulator = self.accumulator(value)
        if accumulator is None or accumulator.activation is not None:
            apply = partial(rescaling.applied, operations=operations)
            constants = [constant for _, constant in operations]
            return self.float_step(
                node, [value], apply, value.shape, is_function=True, constants=constants
            )
        self.budget.spend_again(node.name, accumulator)
        gain, shift = rescaling.factors(operations)
        terms = tuple(replace(t, scale=t.scale * gain, origin=None) for t in accumulator.terms)
        return replace(accumulator, terms=terms, offset=accumulator.offset * gain + shift)

    def quantized(self, node: Node, value: Value, which: str) -> Value:
        """Round a value where training did, if it did."""
        tensor = self.model.tensors.get(f"{node.layer}/{which}")
        if tensor is None:
            return value
        name, params = f"{node.name}/{which}", quant_params(tensor)
        self.notes += portability.of_range(name, params)
        return self._rounded(name, value, params)

    def params_after(self, node: Node) -> QuantParams | None:
        """Return what rounds the result of a layer's activation, ``None`` if nothing does."""
        for place in ("post_activation", "output"):
            tensor = self.model.tensors.get(f"{node.layer}/{place}")
            if tensor is not None:
                return quant_params(tensor)
        return None

    def quantized_before(self, node: Node, values: Sequence[Value]) -> list[Value] | None:
        """Round the inputs of a layer by its own quantizer: with what only moves them it commutes.

        Returns
        -------
        list of Value or None
            The inputs, those that were in the way as integers. ``None`` if no quantizer follows.
        """
        places = ["pre_activation"]
        if activation_of(node) == "linear":
            places += ["post_activation", "output"]
        names = [f"{node.layer}/{place}" for place in places]
        tensor = next((self.model.tensors[n] for n in names if n in self.model.tensors), None)
        if tensor is None:
            return None
        params = quant_params(tensor)
        return [
            self._rounded(f"{node.name}/input{i}", value, params)
            if not isinstance(value, Integers) else value
            for i, value in enumerate(values)
        ]  # fmt: skip

    def _rounded(self, name: str, value: Value, params: QuantParams) -> Integers:
        step: Step
        if isinstance(value, Floats):
            step = QuantizeStep(name, value.name, params, value.shape)
        elif isinstance(value, Function) and value.axis is not None:
            of = value.source
            step = softmax_step(
                name, of.name, of.params, value.function, value.axis, params, value.shape
            )
            if params.op == "tflite":
                self.notes.append(
                    f"{name}: TFLite has this softmax in fixed point, as the profiles of its "
                    "runtimes do; the other profiles may be off by one from it"
                )
        elif isinstance(value, Function):
            results = activations.results(value.function, value.source.params)
            table = params.quantize(results, "a table")
            step = TableStep(
                name, value.source.name, table, params, value.shape, results, value.name,
                value.kernel,
            )  # fmt: skip
        elif isinstance(value, Extreme):
            rows = f"{name}/rows" if "rows" in value.attributes else f"{name}/channels_last"
            self.budget.spend_again(name, value.source)
            self.notes += portability.of_sums(name, value.source)
            self.steps.append(Requantize(rows, value.source, params))
            step = MoveStep(name, rows, value.function, params, value.shape, value.attributes)
        else:
            accumulator = self.accumulator(value)
            assert accumulator is not None
            self.budget.spend_again(name, accumulator)
            self.notes += portability.of_sums(name, accumulator)
            step = Requantize(name, accumulator, params)
        self.steps.append(step)
        return Integers(name, params, value.shape)

    def accumulator(self, value: Value) -> UnroundedSum | None:
        """Return the value as an unrounded sum, or ``None`` if it is float."""
        if isinstance(value, UnroundedSum):
            return value
        if isinstance(value, Integers):
            term = Term(value.name, (), np.asarray(value.params.scale), value.params)
            return UnroundedSum((term,), ZERO, value.shape)
        return None

    def floats(self, value: Value, name: str) -> Floats:
        """Return the value in float32, by a step if there is none yet."""
        if isinstance(value, Floats):
            return value
        if isinstance(value, (Function, Extreme)):
            source = self.accumulator(value.source)
            assert source is not None
            step = FloatStep(name, (source,), value.function, value.shape)
        else:
            source = self.accumulator(value)
            assert source is not None
            step = FloatStep(name, (source,), activations.identity, value.shape)
        self.steps.append(step)
        return Floats(step.name, value.shape)

    def float_step(
        self,
        node: Node,
        values: Sequence[Value],
        apply: Callable[..., Array],
        shape: Shape,
        remedy: str = "",
        lack: str = "",
        is_function: bool = False,
        constants: Sequence[Array] = (),
    ) -> Floats:
        """Add a step in float32: a float layer, or a function that the model ends with.

        `constants` are those that `apply` computes with. `remedy` says what would have to change
        for integers. Without one it is `lack`, by default that inputs are not quantized, unless the
        step follows a float layer: that one is to blame.
        """
        sources, name = self._float_sources(node, values), self._float_name(node)
        follows = [v.name for v in values if isinstance(v, Floats) and v.name not in self.inputs]
        if remedy or not follows:
            remedy = remedy or lack or self.unquantized(node, values)
            self.float_layers.append(FloatLayer(node.name, name, remedy))
        least = min(map(least_magnitude, constants), default=1.0)
        self.steps.append(FloatStep(name, sources, apply, tuple(shape), is_function, least))
        return Floats(name, tuple(shape))

    def cut(
        self,
        node: Node,
        values: Sequence[Value],
        class_name: str,
        shape_of: Callable[[str], Shape | None],
        lack: str = SHAPELESS,
        why: UnsupportedError | None = None,
        behind: tuple[str, ...] = (),
    ) -> Floats | None:
        """Add a layer that qmath cannot compute; return what it makes, if its shape is known.

        `shape_of` returns the shape of what a step makes, ``None`` if nothing tells it; `lack` says
        what is lacking then. `why` is the setting that is to blame, if the class is known; `behind`
        are the cuts of unknown shape that it follows.
        """
        sources, name = self._float_sources(node, values), self._float_name(node)
        shape = shape_of(name)
        if shape is None:
            self.notes.append(f"{name}: {lack.format(class_name, name)}")
        self.float_layers.append(FloatLayer(node.name, name, remedy_of(class_name, why)))
        self.steps.append(
            CutStep(
                name, sources, partial(_unknown, name), shape or (), layer=node.layer,
                class_name=class_name, is_shaped=shape is not None,
                reason=why.reason if why else "", behind=behind,
            )
        )  # fmt: skip
        return None if shape is None else Floats(name, shape)

    def _float_sources(self, node: Node, values: Sequence[Value]) -> tuple[str | UnroundedSum, ...]:
        """Return what a step in float32 reads: steps, or sums that no quantizer rounds."""
        sources: list[str | UnroundedSum] = []
        for i, value in enumerate(values):
            if isinstance(value, (Function, Extreme)):
                value = self.floats(value, f"{node.name}/input{i}")
            accumulator = self.accumulator(value)
            sources.append(accumulator if accumulator else value.name)  # type: ignore[union-attr]
        return tuple(sources)

    def _float_name(self, node: Node) -> str:
        """Return the name of a layer's step in float32: the layer's, or its activation's."""
        self._taken.update(step.name for step in self.steps[self._seen :])
        self._seen = len(self.steps)
        return node.name if node.name not in self._taken else f"{node.name}/activation"

    def is_obstacle(self, value: Value) -> bool:
        """Whether a value can be no part of an unrounded sum."""
        accumulator = self.accumulator(value)
        return accumulator is None or accumulator.activation is not None

    def unquantized(self, node: Node, values: Sequence[Value], *, as_integers: bool = False) -> str:
        """Say which inputs to quantize: those in the way, or else all that are not rounded.

        Where a layer needs integers, all that are not rounded are in the way.
        """
        given = list(zip(node.inputs, values, strict=False))
        names = [name for name, value in given if self.is_obstacle(value) and not as_integers] or [
            name for name, value in given if not isinstance(value, Integers)
        ]
        feeds = "input, the output" if len(names) == 1 else "inputs, the outputs"
        return f"quantize its {feeds} of {', '.join(names)}"

    # ---- tensors

    def tensor(self, node: Node, name: str) -> QatTensor:
        """Return a tensor of a layer, which must have it."""
        try:
            return self.model.tensors[f"{node.layer}/{name}"]
        except KeyError:
            raise QmathError(f"{node.layer}/{name} is missing from {self.model.source}") from None

    def within(self, layer: str) -> list[QatTensor]:
        """Return the tensors whose names begin with a layer's path."""
        if not self._within:
            for name, tensor in self.model.tensors.items():
                while path := name.rpartition("/")[0]:
                    self._within.setdefault(path, []).append(tensor)
                    name = path
        return self._within.get(layer, [])

    def real(self, tensor: QatTensor) -> Array:
        """Return the float32 values that inference uses."""
        if tensor.role == "weight":
            return self.operations.quantize(tensor).dequantize()
        values = np.asarray(tensor.values, np.float32)
        if not np.isfinite(values).all():
            raise QmathError(
                f"{tensor.name} holds NaN or infinities, so training diverged; no "
                "integers stand for them"
            )
        check_kept(tensor.name, least_magnitude(values))
        return values

    def bias(self, node: Node, channels: int, step: Array | None = None) -> Array:
        """Return the float64 values of a layer's bias, zero where it has none.

        Of integers, `step` is what they count; without it, what the file says.
        """
        tensor = self.model.tensors.get(f"{node.layer}/bias")
        if tensor is None:
            return ZERO
        if tensor.stored is None:
            values = self.real(tensor).astype(np.float64)
        else:
            scale = self.real(self.model.tensors[tensor.stored.scale]) if step is None else step
            values = np.asarray(tensor.values).astype(np.float64) * scale
        if values.shape != (channels,):
            raise QmathError(
                f"{tensor.name}: it has the shape {values.shape}, and its layer {channels} "
                "channels; the file is damaged, save the model again"
            )
        return values

    def origin_bias(self, node: Node, bias: Array) -> Array:
        """Return a bias for `Origin`: float32, as training had it, but for what counts integers."""
        tensor = self.model.tensors.get(f"{node.layer}/bias")
        return bias if tensor and tensor.stored else bias.astype(np.float32)


def remedy_of(class_name: str, why: UnsupportedError | None = None) -> str:
    """Say what to do about a cut point: an unknown class, or a setting of a known one."""
    reason, remedy = (f" because {why.reason}", why.remedy) if why else ("", _OTHER)
    return _CUT.format(class_name, reason, remedy)


def _unknown(name: str, *_: Array) -> Array:
    raise QmathError(f"{name}: nothing is known of what this layer computes")


def _without_weights(linear: Linear, x: Array) -> Array:
    return linear.apply(x, None)


def _scaled(linear: Linear, factor: Array, x: Array) -> Array:
    return np.asarray(linear.apply(x, None) * factor)
