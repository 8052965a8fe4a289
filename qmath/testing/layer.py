"""Small layers in integers: what a kernel is given, and what it has to return."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.integer.api import profile_named
from qmath.integer.bounds import interval
from qmath.integer.budget import Budget
from qmath.integer.lowering import geometry
from qmath.integer.lowering.activations import PIECEWISE
from qmath.integer.lowering.params import quant_params, width_and_steps
from qmath.integer.profiles.exact import clamps, unrounded
from qmath.integer.profiles.tflite import kernels
from qmath.integer.program import Linear, Origin, QuantParams, Requantize, Term, UnroundedSum
from qmath.kernels.affine import scale_and_zero_point, smallest_dtype
from qmath.model import Node, QatTensor, QuantSpec
from qmath.testing import arithmetic

__all__ = ["CLASSES", "Geometry", "Layer", "make_layer"]

Array = NDArray[Any]
Ends = tuple[float, float]
CLASSES = {
    "conv": "Conv2D",
    "depthwise": "DepthwiseConv2D",
    "dense": "Dense",
    "add": "Add",
    "average_pool": "AveragePooling2D",
    "max_pool": "MaxPooling2D",
}
_KINDS = {"conv": "weighted", "average_pool": "average"}


@dataclass(frozen=True)
class Geometry:
    """The shape of a small layer.

    Attributes
    ----------
    op : str
        ``"conv"``, ``"depthwise"``, ``"dense"``, ``"add"``, ``"average_pool"``, ``"max_pool"``.
    input : tuple of int
        ``(H, W, C)``; ``(I,)`` of a dense layer; any of an addition.
    channels : int
        Output channels; of a depthwise convolution those of each input channel.
    kernel, strides : tuple of int
        Height and width of windows and of their steps.
    padding : {"same", "valid"}
        As TensorFlow has it.
    """

    op: str
    input: tuple[int, ...]
    channels: int = 4
    kernel: tuple[int, int] = (3, 2)
    strides: tuple[int, int] = (2, 1)
    padding: str = "same"

    def __post_init__(self) -> None:
        rank = {"dense": 1, "add": len(self.input)}.get(self.op, 3)
        lengths = (*self.input, self.channels, *self.kernel, *self.strides)
        if len(self.input) != rank or min(lengths) < 1 or not self.input:
            letters = "I" if self.op == "dense" else "HxWxC"
            raise QmathError(
                f"{self.op}: the input's shape must be {letters}, every length 1 or more, got "
                f"{'x'.join(map(str, self.input))}"
            )
        if self.op not in ("dense", "add") and self.padding == "valid":
            for n, k in zip(self.input, self.kernel, strict=False):
                if k > n:
                    raise QmathError(f"{self.op}: a kernel of {k} is larger than its input of {n}")

    @property
    def kind(self) -> str:
        """How its accumulators are rounded, as `arithmetic.constants_spec` names it."""
        return _KINDS.get(self.op, self.op)

    @property
    def weights(self) -> tuple[int, ...]:
        """The shape of the weights, as Keras has it; ``()`` without."""
        if self.op == "dense":
            return (*self.input, self.channels)
        if self.op in ("conv", "depthwise"):
            return (*self.kernel, self.input[-1], self.channels)
        return ()

    @property
    def node(self) -> Node:
        """The layer as qmath's lowering reads it."""
        config = {
            "strides": self.strides, "padding": self.padding, "pool_size": self.kernel,
        }  # fmt: skip
        return Node("layer", "layer", CLASSES[self.op], (), config)

    def operation(self, weights: Array | None = None) -> tuple[Linear | None, Array]:
        """Return the linear operation, and what a pool divides by; without one of an addition."""
        if self.op == "add":
            return None, np.ones(())
        if self.op == "average_pool":
            return geometry.average_pool(self.node, self.input, Budget())
        return geometry.weighted(self.node, self.input, np.asarray(weights)), np.ones(())

    @cached_property
    def output(self) -> tuple[int, ...]:
        """The output's shape."""
        if self.op == "max_pool":
            return geometry.max_pool(self.node, self.input)[1]
        linear, _ = self.operation(np.empty(self.weights, np.int8))
        return self.input if linear is None else linear.shape

    def maximum(self, x: Array) -> Array:
        """Return the maximum pool of integers of any offset."""
        apply, _, _ = geometry.max_pool(self.node, self.input)
        return np.asarray(apply(x, fill=np.iinfo(x.dtype).min))

    def sums(self, inputs: Sequence[Array], weights: Array | None) -> list[Array]:
        """Return the exact accumulators, int64, of integers relative to their zero points."""
        linear, _ = self.operation(weights)
        if linear is None:
            return [x.astype(np.int64) for x in inputs]
        values = None if weights is None else weights.astype(np.float64)
        return [linear.apply(inputs[0].astype(np.float64), values).astype(np.int64)]


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with integers to run it on.

    Attributes
    ----------
    geometry : Geometry
    inputs : tuple of ndarray
        One, or two for an addition, ``(N, …)``, in the smallest integer dtype.
    weights : ndarray or None
        Signed integers in Keras's axis order, zero at 0.
    params : tuple of QuantParams
        Of each input.
    step : Requantize or None
        The layer as the profiles take it; None for a maximum pool.
    signed : bool
        Whether inputs and outputs count from ``-2**(n-1)``.
    """

    geometry: Geometry
    inputs: tuple[Array, ...]
    weights: Array | None
    params: tuple[QuantParams, ...]
    step: Requantize | None
    signed: bool = True

    def __repr__(self) -> str:
        """Return what tells a layer from others, in a few lines: counterexamples show it."""
        words = [f"Layer({self.geometry}", f"inputs={[x.tolist() for x in self.inputs]}"]
        if self.weights is not None:
            words.append(f"weights={self.weights.tolist()}")
        for noun, params in (*(("input", p) for p in self.params), ("output", self.output_params)):
            words.append(
                f"{noun} scale {params.scale:.9g}, zero point {params.zero_point - self.offset}"
            )
        if self.step is not None:
            offset, scale = (
                np.asarray(x).tolist() for x in (self.step.value.offset, self._weight_scale)
            )
            words.append(f"weight scale {scale}, bias {offset}, {self.step.value.activation}")
        return ",\n  ".join(words) + ")"

    @property
    def _weight_scale(self) -> Any:
        """The scale of each output channel's weights."""
        assert self.step is not None
        return self.step.value.terms[0].scale / self.params[0].scale

    @property
    def output_params(self) -> QuantParams:
        """The quantization parameters of the output."""
        return self.params[0] if self.step is None else self.step.params

    @property
    def offset(self) -> int:
        """What is subtracted from unsigned integers."""
        return int(self.signed) << (self.params[0].num_bits - 1)

    @property
    def relative(self) -> list[Array]:
        """The inputs relative to their zero points."""
        pairs = zip(self.inputs, self.params, strict=True)
        return [x.astype(np.int64) + (self.offset - params.zero_point) for x, params in pairs]

    @cached_property
    def sums(self) -> list[Array]:
        """The exact accumulators, before bias and rounding; see `Geometry.sums`."""
        return self.geometry.sums(self.relative, self.weights)

    def expected(self, profile: str = "integer", **options: Any) -> Array:
        """Return the integers of the layer under a profile.

        Parameters
        ----------
        profile : str
        **options
            Of the profile, as for `qmath.run`.

        Returns
        -------
        ndarray
            ``(N, …)``, of the dtype of the inputs.
        """
        if self.step is None:
            return self.geometry.maximum(self.inputs[0])
        ends = [interval(term) for term in self.step.value.terms]
        arithmetic = profile_named(profile, **options)
        relative = arithmetic.requantize(self.step, self.sums, ends).astype(np.int64)
        stored = relative + (self.output_params.zero_point - self.offset)
        return np.asarray(stored.astype(smallest_dtype(self.output_params.num_bits, self.signed)))

    def constants(self, profile: str = "integer", multiplier_bits: int = 31) -> dict[str, Array]:
        """Return what a kernel of a profile needs besides the integers, by name.

        Scales, bias, multipliers and shifts as `docs/testing.md` lists them, broadcast to
        channels, the zero points, and the clamps ``low`` and ``high`` as stored integers.
        """
        if self.step is None:
            return {}
        made = arithmetic.constants_of(self.step, self.geometry.kind, profile, multiplier_bits)
        output = self.geometry.output
        found = {
            constant.name: np.broadcast_to(made[constant.name], constant.lengths(output)).astype(
                arithmetic.DTYPES[constant.dtype]
            )
            for constant in arithmetic.constants_spec(self.geometry.kind, profile)
        }
        low, high = (int(end) for end in self._clamps(profile))
        zero_point = self.output_params.zero_point - self.offset
        points = [np.int32(params.zero_point - self.offset) for params in self.params]
        names = ("a_zero_point", "b_zero_point") if len(points) == 2 else ("input_zero_point",)
        found |= dict(zip(names, points, strict=True))
        ends = {"output_zero_point": 0, "low": low, "high": high}
        return found | {name: np.int32(end + zero_point) for name, end in ends.items()}

    def _clamps(self, profile: str) -> tuple[Any, Any]:
        assert self.step is not None
        if profile in ("exact", "integer"):
            return clamps(self.step)
        return kernels(self.step)[-1].limits

    def to_tie(self, index: Sequence[int]) -> float | None:
        """Return the distance of an output's exact real value from its rounding tie, in steps."""
        if self.step is None:
            return None
        y = unrounded(self.step, self.sums)[tuple(index)]
        return float(abs(y - math.floor(y) - 0.5))

    def other_integers(self) -> Iterator[tuple[str, Array]]:
        """Yield by name what each profile makes of the layer, those left out that refuse it."""
        runs: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in arithmetic.PROFILES]
        runs += [(name, {"rounding": "single"}) for name in arithmetic.ROUNDED]
        for profile, options in runs:
            words = f"profile {profile}" + "".join(f", {k} {v}" for k, v in options.items())
            try:
                yield words, self.expected(profile, **options)
            except QmathError:
                continue


def make_layer(
    geometry: Geometry,
    inputs: Sequence[ArrayLike],
    ranges: Sequence[Ends],
    output_range: Ends,
    *,
    weights: ArrayLike | None = None,
    weight_range: ArrayLike = 1.0,
    bias: ArrayLike = 0.0,
    activation: str = "linear",
    num_bits: int = 8,
    signed: bool = True,
) -> Layer:
    """Return a layer from its integers and ranges.

    Parameters
    ----------
    geometry : Geometry
    inputs : sequence of array-like of int
        One, or two for an addition, ``(N, …)``.
    ranges : sequence of (float, float)
        Of each input.
    output_range : (float, float)
        Pools have their input's, whatever is given.
    weights : array-like of int, optional
        In ``-(2**(n-1) - 1) … 2**(n-1) - 1``.
    weight_range : array-like of float
        The real value of the highest weight, one, or one for each output channel.
    bias : array-like of float
        One, or one for each output channel.
    activation : {"linear", "relu", "relu6"}
    num_bits : int
        Of everything.
    signed : bool

    Raises
    ------
    QmathError
        A range determines no integers, or the shapes do not fit.

    Examples
    --------
    >>> layer = make_layer(Geometry("dense", (2,), 1), [[[1, -2]]], [(-8.0, 7.9375)],
    ...                    (-1.0, 0.9921875), weights=[[30], [40]], weight_range=127 / 128)
    >>> layer.expected("tflite"), layer.constants("tflite")["scale"]
    (array([[-3]], dtype=int8), array([0.0625]))
    """
    params = tuple(_params("input", ends, num_bits) for ends in ranges)
    dtype = smallest_dtype(num_bits, signed)
    arrays = tuple(np.asarray(x, dtype) for x in inputs)
    for x in arrays:
        if x.shape[1:] != geometry.input:
            raise QmathError(f"inputs must have the shape (N, …) of {geometry.input}: {x.shape}")
    if geometry.op == "max_pool":
        return Layer(geometry, arrays, None, params, None, signed)
    integers = None if weights is None else np.asarray(weights, smallest_dtype(num_bits, True))
    if geometry.weights and (integers is None or integers.shape != geometry.weights):
        raise QmathError(f"the weights of {geometry} must have shape {geometry.weights}")
    pool = geometry.op == "average_pool"
    output = params[0] if pool else _params("output", output_range, num_bits)
    value = _value(geometry, params, integers, weight_range, bias, num_bits)
    value = UnroundedSum(value.terms, value.offset, geometry.output, PIECEWISE[activation])
    return Layer(geometry, arrays, integers, params, Requantize("layer", value, output), signed)


def _value(
    geometry: Geometry,
    params: Sequence[QuantParams],
    weights: Array | None,
    weight_range: ArrayLike,
    bias: ArrayLike,
    num_bits: int,
) -> UnroundedSum:
    """Return the layer's real output as a sum of integers with scales."""
    linear, count = geometry.operation(weights)
    if linear is None:
        terms = tuple(Term(f"input{i}", (), np.float64(p.scale), p) for i, p in enumerate(params))
        return UnroundedSum(terms, np.zeros(()), geometry.output)
    source = params[0]
    if weights is None:
        term = Term("input", (linear,), np.asarray(source.scale * (1 / count)), source)
        return UnroundedSum((term,), np.zeros(()), geometry.output)
    channels = geometry.output[-1:]
    high = np.broadcast_to(np.asarray(weight_range, np.float32), channels)
    spec = QuantSpec("LastValueQuantizer", num_bits, per_axis=True, narrow_range=True)
    width, steps = width_and_steps(QatTensor("weights", "weight", None, -high, high, spec))
    scale, _ = scale_and_zero_point(-high, high, num_bits, narrow_range=True, name="weights")
    floats = np.broadcast_to(np.asarray(bias, np.float32), channels)
    origin = Origin(width, steps, floats)
    factor = source.scale * scale.astype(np.float64)
    term = Term("input", (linear,), factor, source, origin)
    return UnroundedSum((term,), floats.astype(np.float64), geometry.output)


def _params(name: str, ends: Ends, num_bits: int) -> QuantParams:
    spec = QuantSpec("MovingAverageQuantizer", num_bits, per_axis=False, narrow_range=False)
    low, high = (np.asarray(end, np.float32) for end in ends)
    return quant_params(QatTensor(name, "activation", None, low, high, spec))
