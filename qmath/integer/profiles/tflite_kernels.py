"""The numbers that TFLite's operations take: biases, multipliers, shifts, zero points, clamps.

They follow TFLite's converter and the preparation of its reference kernels: scales are float32,
their quotients float64, a multiplier has 31 bits. Widths other than 8 bits follow the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.integer.profiles.tflite_arithmetic import (
    mean_multiplier,
    quantize_multiplier,
    round_half_away,
)
from qmath.integer.program import (
    Activation,
    Linear,
    Operand,
    Origin,
    QuantParams,
    Requantize,
    Term,
)

__all__ = [
    "Kernel",
    "Quantization",
    "TfliteStored",
    "add",
    "elementwise",
    "limit_of",
    "multiply",
    "pool",
    "quantization",
    "reciprocal_sqrt",
    "refused",
    "resize",
    "stored_params",
    "weighted",
    "with_constant",
]

Array = NDArray[Any]
Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]

OPERATIONS = {
    "conv2d": "CONV_2D",
    "conv2d_transpose": "TRANSPOSE_CONV",
    "dense": "FULLY_CONNECTED",
    "depthwise_conv2d": "DEPTHWISE_CONV_2D",
}
_RELUS = {1.0: "RELU_0_TO_1", 6.0: "RELU6"}  # by their limit
_INT32 = 2**31
_WIDE_CARRIER = 2**47  # of sums of 16-bit activations, which have 64 bits and a multiplier of 15
_DEAD_WIDTH = 1e-6  # what the converter widens an empty range of weights to
_ADD_SHIFT, _WIDE_ADD_SHIFT = 20, 15  # of ADD's inputs, up to 8 bits and above


class Quantization(NamedTuple):
    """Parameters as TFLite stores them: signed integers, the float64 scale rounded once.

    Those of UINT8 are less by 128 here than in the file, which `is_unsigned` says.
    """

    scale: np.float32
    zero_point: int
    low: int
    high: int
    exact_scale: float
    is_unsigned: bool = False

    @property
    def stored_zero_point(self) -> int:
        """The zero point in the file."""
        return self.zero_point + 128 * self.is_unsigned


class TfliteStored(NamedTuple):
    """What a deployed file holds of an operation with weights."""

    weight_scale: Float32Array
    bias: NDArray[np.int32] | Int64Array


@dataclass(frozen=True, eq=False)
class Kernel:
    """One operation of TFLite, and the numbers that its kernel works with.

    Attributes
    ----------
    op : str
        TFLite's name, such as ``"CONV_2D"``.
    name : str
        The step that it computes, or a part of it.
    inputs : tuple of Quantization
    output : Quantization
        With the clamps of a fused activation as its ends.
    multipliers, shifts : tuple of ndarray of int64
        31-bit multipliers and shifts (left where positive), of shape ``()`` or ``(C,)``: one, or
        for ``ADD`` and ``SUB`` those of both inputs and the output, for ``LEAKY_RELU`` those of the
        positive and of the negative side. ``AVERAGE_POOL_2D`` has none.
    weights : str
        Name of the weights' tensor.
    weight_scale : ndarray of float32 or None
        With batch normalization's factor in it, which is why it is per channel after one.
    weight_sign : ndarray of int64 or None
        What the weights' integers are multiplied by: -1 in a channel with a negative gamma, 0 in
        one with a gamma of zero, whose scale then is that of its weights alone.
    weight_bits : int
        Two's complement width of the weights with their sign: one more than training's where a
        ``-2**(n-1)`` turned positive.
    bias : ndarray of int64 or None
        In steps of input scale times weight scale; int32, in which it saturates as the converter's,
        unless activations have 16 bits.
    count : ndarray of int64 or None
        Values that an average divides by.
    left_shift : int
        Of ADD's inputs before their multipliers.
    slope : float
        Of a leaky ReLU.
    keeps_axes : bool
        Whether a mean leaves the axes that it sums up, of length 1.
    channel : ndarray of int64 or None
        The number of each output channel of an operation with weights.
    groups : int
        Of a convolution: into how many its input channels are divided, none read by another's
        outputs.
    depth : int
        Inputs of a dense layer.
    constant : ndarray of int64 or None
        The integers of a constant operand, relative to their zero point.
    is_constant_first : bool
        Whether that is the first operand.
    is_dynamic : bool
        Whether the shape of its output is computed, too: delegates leave such an operation alone.
    is_of_file : bool
        Of a change of scale: whether a file holds it, and no plan for one.
    """

    op: str
    name: str
    inputs: tuple[Quantization, ...]
    output: Quantization
    multipliers: tuple[Int64Array, ...] = ()
    shifts: tuple[Int64Array, ...] = ()
    weights: str = ""
    weight_scale: Float32Array | None = None
    weight_sign: Int64Array | None = None
    weight_bits: int = 0
    bias: Int64Array | None = None
    count: Int64Array | None = None
    left_shift: int = 0
    slope: float = 0.0
    keeps_axes: bool = False
    channel: Int64Array | None = None
    groups: int = 1
    depth: int = 0
    constant: Int64Array | None = None
    is_constant_first: bool = False
    is_dynamic: bool = False
    is_of_file: bool = False

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest result, relative to the output's zero point."""
        return self.output.low - self.output.zero_point, self.output.high - self.output.zero_point

    @property
    def is_wide(self) -> bool:
        """Whether its inputs have more than 8 bits, so that sums have 64."""
        return any(q.high > 127 for q in self.inputs)

    def moved(self, move: Callable[[Array], Array]) -> Kernel:
        """Return the kernel with `move` applied to what each channel has of its own."""
        assert self.weight_scale is not None
        assert self.weight_sign is not None
        assert self.bias is not None
        assert self.channel is not None
        return replace(
            self,
            channel=move(self.channel),
            multipliers=tuple(map(move, self.multipliers)),
            shifts=tuple(map(move, self.shifts)),
            weight_scale=move(self.weight_scale),
            weight_sign=move(self.weight_sign),
            bias=move(self.bias),
        )


def quantization(params: QuantParams, name: str) -> Quantization:
    """Return parameters as TFLite's converter derives it from the stored range, in float64.

    Its scale is at times one unit in the last place off TensorFlow's. Its zero point is the same
    but for ranges whose exact zero point is a tie; these have no representation here.
    """
    scale = (np.float64(params.max) - np.float64(params.min)) / (params.high - params.low)
    below, above = params.min / scale, params.max / scale
    from_min = params.low + abs(below) < params.high + abs(above)
    exact = params.low - below if from_min else params.high - above
    zero_point = int(np.clip(round_half_away(exact), params.low, params.high))
    if zero_point != params.zero_point:
        raise QmathError(
            f"{name}: its range [{params.min:.9g}, {params.max:.9g}] puts zero between two "
            f"integers, where TensorFlow takes {params.zero_point} and TFLite {zero_point}; "
            "train on, or use another profile"
        )
    offset = 2 ** (params.num_bits - 1)
    ends = (params.low - offset, params.high - offset)
    zero_point -= offset
    return Quantization(np.float32(scale), zero_point, *ends, float(scale), params.is_unsigned)


def stored_params(scale: float, zero_point: int, num_bits: int = 8) -> QuantParams:
    """Return the parameters of a tensor of a file, of which `quantization` makes the file's again.

    Parameters
    ----------
    scale : float
        A float32's value.
    zero_point : int
        Signed, as the file has it.
    num_bits : int

    Examples
    --------
    >>> params = stored_params(0.05, -7)
    >>> quantization(params, "x")[:2] == (np.float32(0.05), -7)
    True
    """
    real, top = float(np.float32(scale)), (1 << num_bits) - 1
    unsigned = zero_point + (1 << (num_bits - 1))
    # Exact: a float32 times an integer of up to 16 bits.
    ends = -unsigned * real, (top - unsigned) * real
    return QuantParams(real, unsigned, 0, top, num_bits, *ends)


def weighted(
    step: Requantize, term: Term, activation: Activation | None, stored: Mapping[str, TfliteStored]
) -> Kernel:
    """Return the kernel of a convolution or a dense layer, batch normalization folded in."""
    linear, origin = term.ops[0], term.origin
    if origin is None:
        raise refused(step, f"batch normalization after moving the output of {linear.name}")
    source, output = quantization(term.params, term.source), _output(step, activation)
    factor, real_bias = _folded(origin)
    sign = np.sign(factor).astype(np.int64)
    width = np.where(origin.weight_width == 0, _DEAD_WIDTH, origin.weight_width)
    scale = width / origin.weight_steps * np.where(sign, np.abs(factor), 1).astype(np.float64)
    steps = round_half_away(real_bias.astype(np.float64) / (source.exact_scale * scale))
    is_wide = source.high > 127 and term.params.op == "tflite"
    carrier = _WIDE_CARRIER if is_wide else _INT32
    steps = np.broadcast_to(np.clip(steps, -carrier, carrier - 1), linear.shape[-1:])
    own = TfliteStored(scale.astype(np.float32), steps.astype(np.int64 if is_wide else np.int32))
    found = stored.get(linear.name, own)
    bias: Int64Array = found.bias.astype(np.int64)
    multiplier, shift = quantize_multiplier(
        np.float64(source.scale) * found.weight_scale.astype(np.float64) / np.float64(output.scale)
    )
    low, high = _channel_ends(linear, term.params, sign)
    _check_carrier(step, low + bias, high + bias, shift, carrier)
    op = linear.attributes.get("kernel", OPERATIONS[linear.kind])
    groups = 1 if op == "DEPTHWISE_CONV_2D" else linear.attributes.get("groups", 1)
    return Kernel(
        op, step.name, (source,), output, (multiplier,), (shift,), linear.name,
        found.weight_scale, sign, _weight_bits(linear, sign), bias,
        channel=np.arange(linear.shape[-1]), groups=groups,
        depth=np.asarray(linear.weights).shape[0] if linear.kind == "dense" else 0,
        is_dynamic=linear.attributes.get("is_dynamic", False),
    )  # fmt: skip


def pool(step: Requantize, term: Term) -> tuple[Kernel, ...]:
    """Return the kernels of an average pool: a mean, or a pool with its input's parameters."""
    source, output = quantization(term.params, term.source), _output(step, None)
    count = np.rint(term.params.scale / term.scale).astype(np.int64)
    ratio = np.float64(source.scale) / np.float64(output.scale)
    multiplier, shift = quantize_multiplier(ratio)
    span, gain = term.params.high - term.params.low, term.ops[0].gain
    if term.ops[0].attributes.get("global") and count == 1 < gain:
        summed = np.asarray(gain, np.int64)
        _check_carrier(step, 0, span * gain, shift)
        numbers = (multiplier,), (shift,)
        return (Kernel("SUM", step.name, (source,), output, *numbers, count=summed),)
    if not term.ops[0].attributes.get("global"):
        _check_carrier(step, 0, span, shift)
        average = Kernel("AVERAGE_POOL_2D", step.name, (source,), source, count=count)
        return average, Kernel("QUANTIZE", step.name, (source,), output, (multiplier,), (shift,))
    multiplier, shift = mean_multiplier(multiplier, shift, int(count))
    _check_carrier(step, 0, span * int(count), shift)
    keeps_axes = len(term.ops[0].shape) > 1
    return (
        Kernel(
            "MEAN", step.name, (source,), output, (multiplier,), (shift,), count=count,
            keeps_axes=keeps_axes,
        ),
    )  # fmt: skip


def multiply(step: Requantize, term: Term, activation: Activation | None) -> Kernel:
    """Return the kernel of a product of two tensors."""
    factor = term.ops[0].factor
    assert factor is not None
    sources = quantization(term.params, term.source), quantization(factor.params, factor.source)
    reach = _reach(term.params) * _reach(factor.params)
    return _product(step, sources, reach, activation)


def _reach(params: QuantParams) -> int:
    """Return the greatest magnitude of integers relative to their zero point."""
    return max(abs(end) for end in params.limits)


def _product(
    step: Requantize,
    sources: tuple[Quantization, Quantization],
    reach: int,
    activation: Activation | None,
) -> Kernel:
    output = _output(step, activation)
    real = np.float64(sources[0].scale * sources[1].scale / output.scale)  # divided in float32
    multiplier, shift = quantize_multiplier(real)
    _check_carrier(step, 0, reach, shift)
    return Kernel("MUL", step.name, sources, output, (multiplier,), (shift,))


def with_constant(
    step: Requantize, term: Term, operand: Operand, activation: Activation | None
) -> Kernel:
    """Return the kernel of a sum, difference, product or sloped ReLU with a constant."""
    source, constant = quantization(term.params, term.source), operand.integers.astype(np.int64)
    other = Quantization(np.float32(operand.scale), 0, 0, 0, operand.scale)
    sources = (other, source) if operand.is_first else (source, other)
    span = _reach(term.params) * int(np.abs(constant).max(initial=0))
    if operand.op == "PRELU":
        output = _output(step, None)
        reals = [
            np.float64(source.scale) / np.float64(output.scale),
            np.float64(source.scale) * np.float64(other.scale) / np.float64(output.scale),
        ]
        multipliers, shifts = zip(*map(quantize_multiplier, reals), strict=True)
        for reach, shift in zip((term.params.high, span), shifts, strict=True):
            _check_carrier(step, 0, reach, shift)
        kernel = Kernel("PRELU", step.name, (source, other), output, multipliers, shifts)
    elif operand.op == "MUL":
        kernel = _product(step, sources, span, activation)
    else:
        kernel = _sum(step, sources, term.params.num_bits, activation, operand.op)
    return replace(kernel, constant=constant, is_constant_first=operand.is_first)


def resize(step: Requantize, term: Term) -> Kernel:
    """Return the kernel of a bilinear resizing, which keeps the scale."""
    source = quantization(term.params, term.source)
    count = np.asarray(term.ops[0].gain, np.int64)
    return Kernel("RESIZE_BILINEAR", step.name, (source,), _output(step, None), count=count)


def add(
    step: Requantize, terms: Sequence[Term], activation: Activation | None, op: str = "ADD"
) -> Kernel:
    """Return the kernel of a sum of two tensors, or a difference, each scaled by itself first."""
    sources = tuple(quantization(term.params, term.source) for term in terms)
    num_bits = max(term.params.num_bits for term in terms)
    return _sum(step, sources, num_bits, activation, op)


def _sum(
    step: Requantize,
    sources: tuple[Quantization, ...],
    num_bits: int,
    activation: Activation | None,
    op: str,
) -> Kernel:
    output = _output(step, activation)
    left = _ADD_SHIFT if num_bits <= 8 else _WIDE_ADD_SHIFT
    twice = 2 * max(np.float64(source.scale) for source in sources)
    total = twice / (2.0**left * np.float64(output.scale))
    if total >= 1:
        raise refused(
            step,
            f"a sum on a scale of {output.scale:.3g}, so much finer than its "
            f"inputs' {twice / 2:.3g} (is the output's range untrained?)",
        )
    reals = [*(np.float64(source.scale) / twice for source in sources), total]
    multipliers, shifts = zip(*map(quantize_multiplier, reals), strict=True)
    return Kernel(op, step.name, sources, output, multipliers, shifts, left_shift=left)


def elementwise(step: Requantize, term: Term, activation: Activation | None) -> Kernel:
    """Return the kernel of a rescaling, with or without an activation."""
    source, output = quantization(term.params, term.source), _output(step, activation)
    op, slope = "QUANTIZE", 0.0
    reals: list[ArrayLike] = [np.float64(source.scale) / np.float64(output.scale)]
    if activation is not None:  # these kernels divide in float32
        slope = float(activation.slope)
        op = _RELUS.get(float(activation.limit), "RELU")
        reals = [source.scale / output.scale]
        if slope:
            op = "LEAKY_RELU"
            reals.append(source.scale * np.float32(slope) / output.scale)
    if slope < 0:
        raise refused(step, f"a leaky ReLU with the slope {slope:g}")
    multipliers, shifts = zip(*map(quantize_multiplier, reals), strict=True)
    for shift in shifts:
        _check_carrier(step, *term.params.limits, shift)
    return Kernel(
        op, step.name, (source,), output, multipliers, shifts, slope=slope,
        is_of_file=step.params.op == "tflite",
    )  # fmt: skip


def reciprocal_sqrt(x: Float32Array) -> Float32Array:
    """Return ``1 / sqrt(x)``; the converter's is an approximation that depends on its machine."""
    return np.asarray(np.float32(1) / np.sqrt(x))


def refused(step: Requantize, what: str) -> QmathError:
    """Return the error for what no operation of TFLite computes."""
    return QmathError(
        f"{step.name}: TFLite has no operation for {what}; run the model under the "
        "exact or the integer profile, or quantize what lies in between"
    )


def _output(step: Requantize, activation: Activation | None) -> Quantization:
    """Return the output's quantization, its ends those of a fused activation."""
    q = quantization(step.params, step.name)
    if activation is None or activation.leaks:
        return q
    high = q.high
    if np.isfinite(activation.limit):
        high = min(high, q.zero_point + limit_of(float(activation.limit), q.scale))
    return q._replace(low=max(q.low, q.zero_point), high=high)


@np.errstate(over="ignore")  # of a subnormal scale
def limit_of(limit: float, scale: np.float32) -> int:
    """Return an activation's limit in steps of a scale, at most 2**30."""
    return int(round_half_away(np.minimum(np.float32(limit) / scale, np.float32(2**30))))


def _folded(origin: Origin) -> tuple[Float32Array, Float32Array]:
    """Return batch normalization's factor, and the bias with it, in the converter's float32."""
    factor, bias = np.ones((), np.float32), origin.bias
    for n in origin.normalizations:
        own = n.gamma * reciprocal_sqrt(n.variance + np.float32(n.epsilon))
        factor = factor * own
        bias = bias * own + (n.beta - n.mean * own)
    return np.asarray(factor), np.asarray(bias)


def _channel_ends(
    linear: Linear, params: QuantParams, sign: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Return the least and greatest accumulator of each channel, its sign applied."""
    above, below = linear.signed_sums
    low, high = params.limits
    ends = (below * high + above * low) * sign, (above * high + below * low) * sign
    return np.minimum(*ends), np.maximum(*ends)


def _check_carrier(
    step: Requantize, low: Any, high: Any, shift: Int64Array, carrier: int = _INT32
) -> None:
    """Refuse what TFLite's bits do not hold, before or after the multiplier's left shift."""
    largest = np.maximum(np.abs(low), np.abs(high)) * 2.0 ** np.maximum(shift, 0)
    if (largest >= carrier).any():
        raise QmathError(
            f"{step.name}: an accumulator with its bias can reach {largest.max():.3g}, and TFLite "
            f"has {carrier.bit_length()} bits for it; use the integer profile, or fewer bits, or "
            "set the gamma of channels that are all but dead to zero"
        )


def _weight_bits(linear: Linear, sign: Int64Array) -> int:
    weights = np.asarray(linear.weights)
    if linear.kind == "depthwise_conv2d":
        weights = weights.reshape(*weights.shape[:2], -1)
    elif linear.kind == "conv2d_transpose":
        weights = weights.swapaxes(2, 3)
    weights = weights * sign
    return max(int(weights.max()).bit_length(), int(-1 - weights.min()).bit_length()) + 1
