"""Layers and inputs that decide: both ends of accumulators, both clamps, and rounding ties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.profiles.exact import clamps
from qmath.integer.program import Requantize
from qmath.testing.layer import Ends, Geometry, Layer, make_layer

__all__ = ["accepted_layer", "deciding_layer", "ends_of"]

Array = NDArray[Any]
_MOST = 1 << 22  # entries of the matrix from inputs to accumulators
_NEARBY = 256  # accumulators among which the nearest to a tie is looked for
_TRIES = 50


def deciding_layer(
    geometry: Geometry,
    rng: np.random.RandomState,
    *,
    num_bits: int = 8,
    signed: bool = True,
    profile: str = "integer",
    multiplier_bits: int = 31,
    count: int = 32,
) -> Layer:
    """Return a random layer that a profile takes, with inputs that decide, `count` of them.

    Half of the layers have powers of two as scales, so that exact ties are frequent. A quarter of
    the inputs drive an accumulator to its least or greatest value, half put an output next to a
    tie, the clamps among these; the others are random.

    Raises
    ------
    QmathError
        The profile takes no layer of this width and shape.
    """
    layer = accepted_layer(
        geometry, rng, num_bits=num_bits, signed=signed, profile=profile,
        multiplier_bits=multiplier_bits,
    )  # fmt: skip
    return replace(layer, inputs=_deciding(layer, count, rng))


def accepted_layer(
    geometry: Geometry,
    rng: np.random.RandomState,
    *,
    num_bits: int,
    signed: bool,
    profile: str,
    multiplier_bits: int,
) -> Layer:
    """Return a random layer that a profile takes, without inputs; see `deciding_layer`."""
    for _ in range(_TRIES):
        layer = _random_layer(geometry, rng, num_bits, signed)
        try:
            layer.constants(profile, multiplier_bits)
        except QmathError as error:  # such as a zero point that TFLite does not have
            refusal = error
            continue
        return layer
    raise QmathError(f"no {geometry.op} of {num_bits} bits for the profile {profile}: {refusal}")


def ends_of(scale: float, zero_point: int, num_bits: int) -> Ends:
    """Return the range with this scale and unsigned zero point."""
    return -zero_point * scale, (2**num_bits - 1 - zero_point) * scale


def _random_layer(
    geometry: Geometry, rng: np.random.RandomState, num_bits: int, signed: bool
) -> Layer:
    highest = 2**num_bits - 1
    limit = 2 ** (num_bits - 1) - 1
    dyadic = bool(rng.randint(2))

    def scale(low: float, high: float, size: int | None = None) -> Any:
        power = rng.uniform(low, high, size)
        return np.exp2(np.round(power) if dyadic else power)

    def zero_point() -> int:
        return int(rng.choice([0, highest, highest // 2 + 1, rng.randint(1, highest)]))

    pair = 2 if geometry.op == "add" else 1
    scales = [float(scale(-7, -2)) for _ in range(pair)]
    ranges = [ends_of(each, zero_point(), num_bits) for each in scales]
    no_inputs = [np.zeros((0, *geometry.input), np.int64)] * pair
    weights, weight_range, bias, out = None, np.float64(1), np.float64(0), max(scales)
    if geometry.weights:
        channels = geometry.output[-1]
        weights = _random_weights(geometry.weights, limit, rng)
        steps = scale(-9, -4, channels)
        weight_range = np.float32(steps * limit)
        fan_in = weights.size / channels
        spread = np.sqrt(fan_in) * highest * limit / 6 * scales[0] * steps  # of the accumulators
        bias = rng.normal(size=channels) * spread / 2
        if dyadic:  # a whole number of accumulator steps, so that sums with it meet ties
            bias = np.round(bias / (scales[0] * steps)) * (scales[0] * steps)
        out = float(np.median(spread)) / (highest / 4)
    out *= float(np.exp2(rng.uniform(-1.5, 1.5)))
    out = float(np.exp2(np.round(np.log2(out)))) if dyadic else out
    zero = zero_point()
    has_relu = geometry.kind != "average" and zero <= highest // 2 + 1 and rng.randint(2)
    return make_layer(
        geometry, no_inputs, ranges, ends_of(out, zero, num_bits), weights=weights,
        weight_range=weight_range, bias=bias, num_bits=num_bits, signed=signed,
        activation="relu" if has_relu else "linear",
    )  # fmt: skip


def _random_weights(shape: tuple[int, ...], limit: int, rng: np.random.RandomState) -> Array:
    """Return weights of which some are the largest, and some small, which steer a sum finely."""
    weights = rng.randint(-limit, limit + 1, shape)
    kinds = rng.uniform(size=shape)
    small = rng.randint(-1, 2, shape)
    weights = np.where(kinds < 0.2, np.where(weights < 0, -limit, limit), weights)
    return np.where(kinds > 0.8, small, weights)


def _deciding(layer: Layer, count: int, rng: np.random.RandomState) -> tuple[Array, ...]:
    """Return the inputs, as stored integers."""
    shape = layer.geometry.input
    low, high = layer.params[0].limits
    ends = [params.limits for params in layer.params]
    inputs = [rng.randint(a, b + 1, (count, *shape)) for a, b in ends]
    for x, (a, b) in zip(inputs, ends, strict=True):
        x[:4] = rng.choice([a, b, 0], (4, *shape))  # edges of all kinds
    if layer.geometry.weights:
        flat = inputs[0].reshape(count, -1)
        _steer(layer, flat, rng)
        inputs = [flat.reshape(count, *shape)]
    elif layer.geometry.op == "add":
        _choose_sums(layer, inputs, rng)
    elif layer.geometry.op == "average_pool":  # few values, so that sums meet ties
        inputs[0][4 : count // 2] = rng.randint(0, 3, (count // 2 - 4, *shape)) + (low + high) // 2
    stored = zip(inputs, layer.params, layer.inputs, strict=True)
    return tuple(
        np.clip(x, *p.limits).__add__(p.zero_point - layer.offset).astype(old.dtype)
        for x, p, old in stored
    )


def _steer(layer: Layer, inputs: Array, rng: np.random.RandomState) -> None:
    """Change inputs so that one output of each is at an end, a clamp or next to a tie."""
    step, matrix = layer.step, _matrix(layer)
    assert step is not None
    low, high = step.value.terms[0].params.limits
    outputs = matrix.shape[1]
    quarter = len(inputs) // 4
    for number, x in enumerate(inputs[4:], 4):
        element = int(rng.randint(outputs))
        column = matrix[:, element]
        if number < 4 + quarter:
            ends = (low, high) if number % 2 else (high, low)
            x[:] = np.where(column > 0, ends[0], np.where(column < 0, ends[1], x))
        elif number < 4 + 3 * quarter:
            target = _near_tie(step, layer.geometry.output, element, int(x @ column), rng)
            _change(x, column, target, (low, high), rng)


def _matrix(layer: Layer) -> Array:
    """Return what each input adds to each accumulator, ``(inputs, outputs)``."""
    geometry = layer.geometry
    count, outputs = int(np.prod(geometry.input)), int(np.prod(geometry.output))
    if count * outputs > _MOST:
        raise QmathError(
            f"a layer from {count} inputs to {outputs} outputs is too large for cases that "
            "decide; use a smaller shape"
        )
    parts = []
    at_once = max(1, _MOST // count)
    for start in range(0, count, at_once):
        units = np.eye(min(at_once, count - start), count, start).reshape(-1, *geometry.input)
        parts.append(geometry.sums([units], layer.weights)[0].reshape(len(units), -1))
    return np.concatenate(parts)


def _near_tie(
    step: Requantize, shape: tuple[int, ...], element: int, now: int, rng: np.random.RandomState
) -> int:
    """Return the accumulator of an output that lies next to a tie, at times one at a clamp."""
    channel = np.unravel_index(element, shape)[-1]
    scale, offset = (
        float(np.broadcast_to(values, shape[-1:])[channel]) / step.params.scale
        for values in (step.value.terms[0].scale, step.value.offset)
    )
    ends = [int(end) for end in clamps(step)]
    ties = [ends[0] - 1, ends[0], ends[1] - 1, ends[1]]
    tie = rng.choice([*ties, *rng.randint(ends[0], ends[1] + 1, 8)]) + 0.5
    around = int((tie - offset) / scale)
    if rng.randint(2):  # near the input that there is, which is sure to be in reach
        around = (around + 3 * now) // 4
    nearby = around + np.arange(-_NEARBY, _NEARBY)
    real = nearby * scale + offset
    return int(nearby[np.abs(real - np.floor(real) - 0.5).argmin()])


def _change(x: Array, column: Array, target: int, ends: Ends, rng: np.random.RandomState) -> None:
    """Change integers in place until their product with `column` is `target`, if it can be."""
    missing = target - int(x @ column)
    # The large weights first, and the small ones for what is left.
    order = np.argsort(-np.abs(column) + rng.uniform(0, 0.5, len(column)))
    for i in order:
        weight = int(column[i])
        if not weight or not missing:
            break
        old = int(x[i])
        change = round(missing / weight) if abs(weight) > 1 else missing * weight
        x[i] = min(max(old + change, int(ends[0])), int(ends[1]))
        missing -= weight * (int(x[i]) - old)


def _choose_sums(layer: Layer, inputs: list[Array], rng: np.random.RandomState) -> None:
    """Replace half of the pairs by those whose sum lies next to a tie."""
    step = layer.step
    assert step is not None
    half = inputs[0][len(inputs[0]) // 2 :]
    many = [rng.randint(p.limits[0], p.limits[1] + 1, 32 * half.size) for p in layer.params]
    factors = [float(term.scale) / step.params.scale for term in step.value.terms]
    real = many[0] * factors[0] + many[1] * factors[1]
    nearest = np.argsort(np.abs(real - np.floor(real) - 0.5), kind="stable")[: half.size]
    for x, values in zip(inputs, many, strict=True):
        x[len(x) // 2 :] = values[nearest].reshape(half.shape)
