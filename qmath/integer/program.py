"""A lowered model: what flows, and the few kinds of step that make it flow.

A `Program` is a list of steps. Every quantized tensor is an array of integers with its
`QuantParams`; between two of them lies one `Requantize` step, which adds up exact integer
accumulators, scales them and rounds once. Layers that training left float are `FloatStep`s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath._text import html_table
from qmath.integer.quant_params import QuantParams

__all__ = [
    "Activation",
    "CutStep",
    "Factor",
    "FloatStep",
    "Linear",
    "MoveStep",
    "Normalization",
    "Operand",
    "Origin",
    "Program",
    "QuantParams",
    "QuantizeStep",
    "QuantizedStep",
    "Requantize",
    "SoftmaxStep",
    "Step",
    "TableStep",
    "Term",
    "UnroundedSum",
    "sources",
    "unrounded_sums",
]

Array = NDArray[Any]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Factor:
    """A quantized tensor that another is multiplied by, and the parameters of its integers."""

    source: str
    params: QuantParams
    shape: Shape


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear operation: integers in, exact integers out.

    Attributes
    ----------
    kind : str
        ``"conv2d"``, ``"conv3d"``, ``"depthwise_conv2d"``, ``"conv2d_transpose"``, ``"dense"``,
        ``"pool_sum"``, ``"bilinear"``, ``"pad"``, ``"crop"``, ``"upsample"``, ``"broadcast"``,
        ``"reshape"``, ``"permute"``, ``"multiply"``.
    apply : callable
        ``apply(x, weights)`` on an ``(N, …)`` array of any float dtype.
    shape : tuple of int
        Of the output, without the batch.
    weights : ndarray or None
        The integers relative to their zero point, in the smallest signed dtype, or floats in a
        float layer.
    name : str
        The weight's tensor, ``""`` without.
    gain : int
        How many inputs an output sums up, where there are no weights: one as often as it weighs,
        which of ``"bilinear"`` are whole numbers. With weights, into how many
        operations a layer's sum is split; ``part`` of the attributes tells which of its weights
        these are, as an axis, the first index and the distance of the next.
    factor : Factor or None
        Of a product: the quantized tensor whose integers take the place of the weights.
    """

    kind: str
    apply: Callable[..., Array]
    shape: Shape
    weights: Array | None = None
    name: str = ""
    gain: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    factor: Factor | None = None

    @property
    def sums(self) -> bool:
        """Whether it adds up values of one tensor, and not only moves them."""
        return self.weights is not None or self.kind in ("pool_sum", "bilinear")

    @property
    def summed_axes(self) -> tuple[int, ...]:
        """The axes of the weights that do not tell the output channels apart."""
        known = {"depthwise_conv2d": (0, 1), "conv2d_transpose": (0, 1, 3)}
        return known.get(self.kind, tuple(range(np.asarray(self.weights).ndim - 1)))

    @cached_property
    def signed_sums(self) -> tuple[Int64Array, Int64Array]:
        """For each output channel, the sums of its positive and of its negative integers."""
        weights, axes = np.asarray(self.weights), self.summed_axes
        # Half as wide, and twice as fast, where no sum can leave it.
        is_small = weights.size << (8 * weights.itemsize - 1) < 1 << 31
        dtype = np.int32 if is_small else np.int64
        above = np.maximum(weights, 0).sum(axes, dtype).astype(np.int64).reshape(-1)
        return above, weights.sum(axes, dtype).astype(np.int64).reshape(-1) - above


@dataclass(frozen=True, eq=False)
class Normalization:
    """A batch normalization's float32 tensors."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array
    epsilon: float


@dataclass(frozen=True, eq=False)
class Origin:
    """What a weighted term's scale and offset were made of, for whoever folds in float32.

    Attributes
    ----------
    weight_width : ndarray of float64
        Of the stored range: largest minus smallest real value.
    weight_steps : int
        The width over the scale, such as 254.
    bias : ndarray of float32
        Or of float64, where the file holds integers, so that they follow from it.
    normalizations : tuple of Normalization
        Those that follow the operation directly, in order.
    """

    weight_width: Float64Array
    weight_steps: int
    bias: Array
    normalizations: tuple[Normalization, ...] = ()


@dataclass(frozen=True, eq=False)
class Operand:
    """A constant of an operation of a TFLite file, which works with its integers.

    Attributes
    ----------
    op : str
        TFLite's name.
    integers : ndarray
        Relative to their zero point; they broadcast against the tensor.
    scale : float
        A float32's value.
    is_first : bool
        Whether it is the first operand.
    """

    op: str
    integers: Array
    scale: float
    is_first: bool = False


@dataclass(frozen=True, eq=False)
class Term:
    """Operations on one quantized tensor's integers (relative to the zero point), and their scale.

    `scale` is float64, of shape ``()``, ``(C,)`` or the output's. `params` are the source's.
    `origin` is known while only batch normalization follows an operation with weights. `operand`
    is the constant that its scale, the sum's offset or the activation's slope are made of.
    """

    source: str
    ops: tuple[Linear, ...]
    scale: Float64Array
    params: QuantParams
    origin: Origin | None = None
    operand: Operand | None = None

    @property
    def sources(self) -> list[str]:
        """Names of all that it reads: its source, and the factors of its products."""
        return [self.source, *(op.factor.source for op in self.ops if op.factor)]


@dataclass(frozen=True, eq=False)
class Activation:
    """``y`` where positive, up to `limit`, and ``slope * y`` where negative.

    Both are of shape ``()``, or ``(C,)`` or the tensor's where only a part of it is activated: a
    slope of 1 without a limit leaves `y` as it is.
    """

    slope: float | Float64Array = 0.0
    limit: float | Float64Array = float("inf")

    @property
    def leaks(self) -> bool:
        """Whether anything negative comes through."""
        return bool(np.any(self.slope))


@dataclass(frozen=True, eq=False)
class UnroundedSum:
    """A real tensor, not rounded yet: a sum of terms, plus `offset`, then an activation."""

    terms: tuple[Term, ...]
    offset: Float64Array
    shape: Shape
    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class QuantizeStep:
    """Floats → integers, by TensorFlow's own arithmetic."""

    name: str
    source: str
    params: QuantParams
    shape: Shape


@dataclass(frozen=True, eq=False)
class Requantize:
    """An unrounded sum → integers, rounded once."""

    name: str
    value: UnroundedSum
    params: QuantParams

    @property
    def shape(self) -> Shape:
        """Of the output, without the batch."""
        return self.value.shape


@dataclass(frozen=True, eq=False)
class MoveStep:
    """Integers → integers with the same parameters: a maximum pool, a move, a minimum."""

    name: str
    source: str
    apply: Callable[[Array], Array]
    params: QuantParams
    shape: Shape
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TableStep:
    """Integers → integers by a table with an entry for each integer of the source.

    `results` are the function's results, in float32, that the table's integers stand for;
    `function` is its name, ``""`` where it has settings of its own. `kernel` is the operation of a
    TFLite file that has a table of its own, ``""`` if none.
    """

    name: str
    source: str
    table: NDArray[np.int32]
    params: QuantParams
    shape: Shape
    results: NDArray[np.float32]
    function: str = ""
    kernel: str = ""


@dataclass(frozen=True, eq=False)
class SoftmaxStep:
    """Integers → integers by a softmax along an axis, see `qmath.integer.softmax`.

    Attributes
    ----------
    function : callable
        The softmax in float32.
    axis : int
        Counted from the last one, -1.
    exponentials : ndarray of int32
        By the distance to the greatest integer along the axis, times ``2**30``.
    multiplier, shift : int
        From a probability times ``2**31`` to integer steps.
    error : float
        Bound of the error in integers before rounding, in integer steps.
    """

    name: str
    source: str
    function: Callable[[Array], Array]
    axis: int
    exponentials: NDArray[np.int32]
    multiplier: int
    shift: int
    error: float
    params: QuantParams
    shape: Shape


@dataclass(frozen=True, eq=False)
class FloatStep:
    """Floats → floats, in float32: a layer, or a part of one, that training left float.

    `sources` are names of steps, or accumulators that no quantizer rounds. A function neither has
    weights nor sums anything up. `least` is the least magnitude among the constants of `apply`.
    """

    name: str
    sources: tuple[str | UnroundedSum, ...]
    apply: Callable[..., Array]
    shape: Shape
    is_function: bool = False
    least: float = 1.0


@dataclass(frozen=True, eq=False)
class CutStep(FloatStep):
    """Floats → floats by arithmetic that qmath does not know: a cut point.

    Its result is given, as the model's inputs are, or by a function, see `qmath.integer.cuts.bind`;
    `apply` refuses.

    Attributes
    ----------
    layer, class_name : str
        Of the layer; of an activation that is unknown, the class is its name.
    is_shaped : bool
        Whether `shape` is known. Nothing follows a cut whose shape is not.
    reason : str
        Of a class that qmath knows: why it cannot compute this layer.
    behind : tuple of str
        The cuts whose shape is not known that it follows: what it reads is left out then, and it
        has no sources.
    left_out : tuple of str
        The tensors that are no steps, for want of this cut's shape.
    """

    layer: str = ""
    class_name: str = ""
    is_shaped: bool = True
    reason: str = ""
    behind: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


QuantizedStep = QuantizeStep | Requantize | MoveStep | TableStep | SoftmaxStep
Step = QuantizedStep | FloatStep


@dataclass(frozen=True, eq=False)
class Program:
    """A model in integers.

    Attributes
    ----------
    inputs : mapping of str to tuple
        Shape of each input, without the batch.
    steps : tuple of Step
        In order; a step's `name` is that of the tensor it makes.
    outputs : tuple of str
        Names of steps.
    float_layers : mapping of str to str
        Layers that do not run in integers, and what would have to change for that.
    notes : tuple of str
        Guards: what a deployment should know.
    """

    inputs: Mapping[str, Shape]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    float_layers: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(map(_kind, self.steps)).items())
        return f"<Program of {len(self.steps)} steps: {kinds}; outputs {', '.join(self.outputs)}>"

    def _repr_html_(self) -> str:
        """Show the steps in a notebook."""
        rows = [{"step": s.name, "is": _kind(s), "reads": sources(s)} for s in self.steps]
        return html_table(repr(self)[1:-1], rows)

    @cached_property
    def quantized(self) -> tuple[QuantizedStep, ...]:
        """The steps that make integers."""
        return tuple(step for step in self.steps if not isinstance(step, FloatStep))

    @cached_property
    def quant_params(self) -> dict[str, QuantParams]:
        """What the integers of each quantized tensor mean."""
        return {step.name: step.params for step in self.quantized}

    @cached_property
    def cuts(self) -> tuple[CutStep, ...]:
        """The steps that qmath cannot compute."""
        return tuple(step for step in self.steps if isinstance(step, CutStep))

    @cached_property
    def feeds(self) -> dict[str, Shape]:
        """The shapes of what can be given as data: of the inputs, then of what the cuts make."""
        return {**self.inputs, **{cut.name: cut.shape for cut in self.cuts if cut.is_shaped}}

    def step(self, name: str) -> Step:
        """Return the step that makes the tensor `name`."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}


def _kind(step: Step) -> str:
    if isinstance(step, FloatStep):
        return "cut" if isinstance(step, CutStep) else "in float32"
    return "in integers"


def unrounded_sums(step: Step) -> list[UnroundedSum]:
    """Return the sums that a step computes before it rounds them, or goes on in float32."""
    if isinstance(step, Requantize):
        return [step.value]
    if isinstance(step, FloatStep):
        return [source for source in step.sources if isinstance(source, UnroundedSum)]
    return []


def sources(step: Step) -> list[str]:
    """Return the names of what a step reads."""
    if isinstance(step, Requantize):
        return [name for term in step.value.terms for name in term.sources]
    if isinstance(step, FloatStep):
        names: list[str] = []
        for source in step.sources:
            if isinstance(source, str):
                names.append(source)
            else:
                names += [name for term in source.terms for name in term.sources]
        return names
    return [step.source]
