"""The constants of requantizations: each array is as short as its values allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.exports.c import source
from qmath.exports.c.functions import Body, struct
from qmath.exports.c.tensors import Code, Names
from qmath.integer.profiles.exact import clamps
from qmath.integer.profiles.fixed import FixedPoint
from qmath.integer.program import Requantize, Shape

__all__ = ["add_scaling"]

Array = NDArray[Any]


class _Period(NamedTuple):
    """Which constants an element has.

    Attributes
    ----------
    shape : tuple of int
        Of the arrays: 1 along each axis that makes no difference.
    pixels, pixel_step, channel_step : int
        An element's constants are number
        ``pixel // pixels * pixel_step + channel * channel_step``.
    """

    shape: Shape
    pixels: int
    pixel_step: int
    channel_step: int


def add_scaling(
    code: Code, names: Names, body: Body, step: Requantize, sides: Sequence[FixedPoint]
) -> str:
    """Add a step's constants; return the name of their ``qm_requantization``."""
    limits = clamps(step)
    arrays: list[Array] = [*limits]
    for fixed in sides:
        arrays += [*fixed.multipliers, fixed.addend, fixed.shift]
    period = _period(arrays, step.shape or (1,))

    def add(key: str, array: Array, dtype: Any, shape: Shape = period.shape) -> str:
        array = np.broadcast_to(array, np.broadcast_shapes(shape, array.shape))
        shortened = array[tuple(slice(n) for n in (1,) * (array.ndim - len(shape)) + shape)]
        code.values(names[key], key, shortened.reshape(-1).astype(dtype))
        return names[key]

    code.header.append(f"\n/* {source.plain(step.name)}: its constants. */")
    bits = max(int(b.max()) for b in sides[0].accumulator_bits)
    code.header.append(f"#define {names.macro(step.name, 'ACCUMULATOR_BITS')} {bits}")
    scalings = []
    for side, fixed in zip(("", ".negative"), sides, strict=False):
        base = f"{step.name}{side}"
        single = len(fixed.multipliers) == 1
        multipliers = [
            add(f"{base}.multiplier" + ("" if single else f".{i}"), m, np.int32)
            for i, m in enumerate(fixed.multipliers)
        ]
        addend = add(f"{base}.addend", fixed.addend, np.int64)
        shift = add(f"{base}.shift", fixed.shift, np.uint8)
        pointers = body.static("int32_t *const", source.braces(multipliers), "multipliers", True)
        scalings.append(source.braces((pointers, addend, shift)))
    # One pair of clamps, or as many as there are of the rest.
    own = period.shape if any(limit.ndim for limit in limits) else (1,)
    low, high = (
        add(f"{step.name}.{end}", limit, np.int32, own)
        for end, limit in zip(("low", "high"), limits, strict=True)
    )
    negative = [f"&{body.static('qm_scaling', scaling, 'negative')}" for scaling in scalings[1:]]
    fields = {
        "scaling": scalings[0],
        "negative": negative[0] if negative else "NULL",
        "low": low,
        "high": high,
        "clamps": math.prod(own),
        "terms": len(sides[0].multipliers),
        "constants": math.prod(period.shape),
        "pixels": period.pixels,
        "pixel_step": period.pixel_step,
        "channel_step": period.channel_step,
    }
    return body.static("qm_requantization", struct(fields), "constants")


def _period(arrays: Sequence[Array], shape: Shape) -> _Period:
    """Return the shortest period that tells the constants of all elements of a shape."""
    varies = [False] * len(shape)
    for array in arrays:
        for axis in range(-array.ndim, 0):
            first = array[(slice(None),) * (array.ndim + axis) + (slice(1),)]
            varies[axis] = varies[axis] or bool((array != first).any())
    channels = shape[-1] if varies[-1] else 1
    places = shape[:-1]
    # Axes after the last that makes a difference need no constants of their own.
    told = max((axis + 1 for axis, is_told in enumerate(varies[:-1]) if is_told), default=0)
    return _Period(
        shape=(*places[:told], *(1,) * (len(places) - told), channels),
        pixels=math.prod(places[told:]) if told else 1,
        pixel_step=channels if told else 0,
        channel_step=int(varies[-1]),
    )
