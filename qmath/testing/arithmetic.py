"""Each profile's arithmetic from the constants that a kernel is given: no layer is needed.

What `qmath.integer.profiles` derives from a lowered step comes in, as arrays by name; the tests
prove that both give the same integers. The other roundings here are those that kernels do by
mistake, so that a judge can name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.bounds import interval
from qmath.integer.profiles import tflite_arithmetic as tflite
from qmath.integer.profiles.fixed import Integer
from qmath.integer.profiles.tflite import kernels
from qmath.integer.program import Requantize

__all__ = [
    "DTYPES",
    "OF_TFLITE",
    "PROFILES",
    "ROUNDED",
    "ROUNDINGS",
    "Constant",
    "constants_of",
    "constants_spec",
    "exact_value",
    "others",
    "real",
    "rounded",
]

Array = NDArray[Any]
Constants = Mapping[str, Array]
_HALF = Fraction(1, 2)
_LANES = 8  # channels that LiteRT's depthwise convolutions take at a time
PROFILES = ("exact", "integer", "tflite", "tflm", "litert", "xnnpack")
_MULTIPLIED = ("tflite", "tflm", "litert")  # by multipliers of 31 bits
ROUNDED = ("tflite", "tflm")  # in two ways
OF_TFLITE = (*_MULTIPLIED, "xnnpack")
# How the records of a pipe write numbers: little-endian.
DTYPES = {
    f"{letter}{8 * size}": np.dtype(f"<{letter}{size}")
    for letter, sizes in (("i", (1, 2, 4, 8)), ("u", (1, 2, 4)), ("f", (4, 8)))
    for size in sizes
}


class Constant(NamedTuple):
    """A constant's name, dtype and shape: ``"channel"``, ``"pixel"``, or lengths."""

    name: str
    dtype: str
    shape: str | tuple[int, ...]

    def lengths(self, output: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape for an output of a shape, without the batch."""
        if isinstance(self.shape, str):
            return output[-1:] if self.shape == "channel" else (*output[:2], 1)
        return self.shape


def constants_spec(kind: str, profile: str) -> tuple[Constant, ...]:
    """Return the constants of a kind of layer under a profile.

    Parameters
    ----------
    kind : {"weighted", "depthwise", "dense", "add", "average"}
    profile : str
    """
    each: str | tuple[int, ...] = (
        () if kind == "add" else "pixel" if kind == "average" else "channel"
    )
    two = (2,) if kind == "add" else each
    if profile == "exact":
        return Constant("scale", "f64", two), Constant("offset", "f64", each)
    if profile == "integer":
        constants = ("multiplier", "i32", two), ("addend", "i64", each), ("shift", "i32", each)
        return tuple(Constant(*constant) for constant in constants)
    if kind == "average":
        return ()
    scales = (
        Constant("input_scale", "f32", (2,) if kind == "add" else ()),
        *([] if kind == "add" else [Constant("weight_scale", "f32", "channel")]),
        Constant("output_scale", "f32", ()),
    )
    bias = Constant("bias", "i32", "channel")
    if profile == "xnnpack" and kind == "add":
        return *scales, Constant("multiplier", "i32", (2,)), Constant("shift", "i32", ())
    if profile == "xnnpack":
        return *scales, bias, Constant("scale", "f32", "channel")
    if kind == "add":
        left = Constant("left_shift", "i32", ())
        return *scales, left, Constant("multiplier", "i32", (3,)), Constant("shift", "i32", (3,))
    if kind == "dense" and profile == "tflite":
        return *scales, bias, Constant("scale", "f64", "channel")
    factors = Constant("multiplier", "i32", "channel"), Constant("shift", "i32", "channel")
    return *scales, bias, *factors


def constants_of(
    step: Requantize, kind: str, profile: str, multiplier_bits: int = 31
) -> dict[str, Array]:
    """Return the constants of a lowered step, before they are broadcast to their shapes.

    Raises
    ------
    QmathError
        The profile refuses the step.
    """
    if profile == "exact":
        scales = [term.scale / step.params.scale for term in step.value.terms]
        scale = np.stack(scales) if kind == "add" else scales[0]
        return {"scale": scale, "offset": step.value.offset / step.params.scale}
    if profile == "integer":
        ends = [interval(term) for term in step.value.terms]
        fixed = Integer(multiplier_bits).constants(step, ends)[0]
        many = kind == "add"
        multiplier = np.stack(fixed.multipliers) if many else fixed.multipliers[0]
        return {"multiplier": multiplier, "addend": fixed.addend, "shift": fixed.shift}
    return _tflite_constants(step, kind, profile)


def _tflite_constants(step: Requantize, kind: str, profile: str) -> dict[str, Array]:
    kernel = kernels(step)[0]
    if kind == "average":
        return {}
    inputs, output = [source.scale for source in kernel.inputs], kernel.output.scale
    found = {
        "input_scale": np.array(inputs if kind == "add" else inputs[0], np.float32),
        "output_scale": np.float32(output),
    }
    if kind == "add":
        if profile == "xnnpack":
            _check_scales([scale / output for scale in inputs])
            *pair, shift = tflite.xnnpack_add_multipliers(*(scale / output for scale in inputs))
            return found | {"multiplier": np.array(pair), "shift": np.array(shift)}
        return found | {
            "left_shift": np.array(kernel.left_shift),
            "multiplier": np.stack(kernel.multipliers),
            "shift": np.stack(kernel.shifts),
        }
    assert kernel.weight_scale is not None
    assert kernel.bias is not None
    found |= {"weight_scale": kernel.weight_scale, "bias": kernel.bias}
    if profile == "xnnpack":
        return found | {"scale": inputs[0] * kernel.weight_scale / output}
    if kind == "dense" and profile == "tflite":
        scale = np.float64(inputs[0]) * kernel.weight_scale.astype(np.float64)
        return found | {"scale": scale / np.float64(output)}
    return found | {"multiplier": kernel.multipliers[0], "shift": kernel.shifts[0]}


def _check_scales(ratios: Sequence[np.float32]) -> None:
    """Refuse a sum that XNNPACK leaves to TFLite, which has other constants."""
    if not all(2.0**-10 <= ratio < 2.0**8 for ratio in ratios):
        words = ", ".join(f"{ratio:.3g}" for ratio in ratios)
        raise QmathError(
            f"add: XNNPACK leaves a sum of scales {words} times the output's to TFLite; use the "
            "profile tflite"
        )


def rounded(
    kind: str, profile: str, sums: Sequence[Array], given: Constants, rounding: str = "double"
) -> Array:
    """Return the integers of accumulators before their clamps, relative to the zero point.

    Parameters
    ----------
    kind, profile : str
    sums : sequence of ndarray of int64
        One, or two for ``"add"``; of ``"average"`` under the profiles of TFLite the sums of the
        stored integers, whose zero point then is in the result. Of ``"depthwise"`` the channels
        are last.
    given : mapping of str to ndarray
        As `constants_spec` names them, and ``count`` for ``"average"``.
    rounding : {"double", "single"}
        Of the profiles tflite and tflm.
    """
    if profile in OF_TFLITE and kind == "average":
        return tflite.average(sums[0], given["count"])
    if profile == "exact":
        return np.asarray(np.floor(real(kind, profile, sums, given) + 0.5))
    if profile == "integer":
        return np.asarray(_multiply_add(kind, sums, given) >> given["shift"])
    if kind == "add":
        return _rounded_sum(profile, sums, given, rounding)
    total = sums[0] + given["bias"]
    if profile == "xnnpack":
        return tflite.xnnpack_fp32_requantize(total, given["scale"])
    if "multiplier" not in given:
        return tflite.round_half_away(total * given["scale"])
    mode: Any = rounding
    numbers = given["multiplier"].astype(np.int64), given["shift"].astype(np.int64)
    plain = tflite.multiply_by_quantized_multiplier(total, *numbers, mode)
    if profile != "litert":
        return plain
    half_up = tflite.multiply_by_quantized_multiplier_half_up(total, *numbers)
    if kind != "depthwise":
        return half_up
    channels = total.shape[-1]
    return np.where(np.arange(channels) < channels // _LANES * _LANES, half_up, plain)


def _multiply_add(kind: str, sums: Sequence[Array], given: Constants) -> Array:
    multipliers = given["multiplier"].astype(np.int64)
    factors = [multipliers[0], multipliers[1]] if kind == "add" else [multipliers]
    products = [a * m for a, m in zip(sums, factors, strict=True)]
    return np.asarray(sum(products) + given["addend"])


def _rounded_sum(profile: str, sums: Sequence[Array], given: Constants, rounding: str) -> Array:
    m, shift = given["multiplier"].astype(np.int64), given["shift"].astype(np.int64)
    if profile == "xnnpack":
        return np.asarray((sums[0] * m[0] + sums[1] * m[1] + (1 << (shift - 1))) >> shift)
    mode: Any = rounding
    left: Any = given["left_shift"]
    if profile == "litert" and min(left + shift[:2]) >= 0:
        parts = [
            tflite.saturating_rounding_doubling_high_mul(x << (left + shift[i]), m[i])
            for i, x in enumerate(sums)
        ]
        return tflite.multiply_by_quantized_multiplier(parts[0] + parts[1], m[2], shift[2], mode)
    parts = [
        tflite.multiply_by_quantized_multiplier(x << left, m[i], shift[i], mode)
        for i, x in enumerate(sums)
    ]
    return tflite.multiply_by_quantized_multiplier(parts[0] + parts[1], m[2], shift[2], mode)


def real(
    kind: str, profile: str, sums: Sequence[Array], given: Constants, *, exact: bool = False
) -> Array:
    """Return what is rounded: in float64, or `exact`, as an array of fractions; see `rounded`."""
    if exact:
        sums = [np.asarray(a).astype(object) for a in sums]

    def number(x: Array) -> Array:
        return _fractions(x) if exact else x.astype(np.float64)

    def power(exponent: Array) -> Array:
        return number(np.ldexp(1.0, exponent))

    if profile == "integer":
        half = _HALF if exact else 0.5
        return np.asarray(number(_multiply_add(kind, sums, given)) * power(-given["shift"]) - half)
    if kind == "average" and profile != "exact":
        return np.asarray(number(sums[0]) / number(given["count"]))
    if kind == "add":
        m = number(given["scale"] if profile == "exact" else given["multiplier"])
        if profile == "xnnpack":
            m = m * power(-given["shift"])
        elif profile in _MULTIPLIED:
            m = m * power(given["shift"] - 31)
            m = m[:2] * m[2] * power(given["left_shift"])
        return np.asarray(sums[0] * m[0] + sums[1] * m[1])
    if profile == "exact":
        return np.asarray(sums[0] * number(given["scale"]) + number(given["offset"]))
    total = sums[0] + given["bias"]
    if "multiplier" not in given:
        return np.asarray(total * number(given["scale"]))
    return np.asarray(total * (number(given["multiplier"]) * power(given["shift"] - 31)))


def exact_value(
    kind: str, profile: str, sums: Sequence[Array], given: Constants
) -> tuple[float, float]:
    """Return one result before it is rounded, and its exact distance from a rounding tie."""
    y = real(kind, profile, sums, given, exact=True)[()]
    return float(y), float(abs(y % 1 - _HALF))


def _fractions(x: Array) -> Array:
    x = np.asarray(x)
    whole = x.dtype == object or x.dtype.kind in "iu"
    flat = [Fraction(int(v)) if whole else Fraction(float(v)) for v in x.flat]
    return np.array(flat, object).reshape(x.shape)


ROUNDINGS: Mapping[str, Callable[[Array], Array]] = {
    "one rounding, half up": lambda y: np.floor(y + 0.5),
    "rounding half to even": np.rint,
    "rounding half away from zero": tflite.round_half_away,
    "rounding half down": lambda y: np.ceil(y - 0.5),
    "truncation towards minus infinity": np.floor,
    "truncation towards zero": np.trunc,
}


def others(
    kind: str, profile: str, sums: Sequence[Array], given: Constants, rounding: str
) -> dict[str, Array]:
    """Return by name what other arithmetics make of the same accumulators, as `rounded` does."""
    found: dict[str, Array] = {}
    if profile in ROUNDED and kind != "average" and not (profile == "tflite" and kind == "dense"):
        mode = "single" if rounding == "double" else "double"
        name = f"the profile {profile} with --rounding {mode}"
        found[name] = rounded(kind, profile, sums, given, mode)
    y = real(kind, profile, sums, given)
    if kind not in ("add", "average") and profile in _MULTIPLIED:
        scale = (
            np.ldexp(given["multiplier"], given["shift"] - 31)
            if "multiplier" in given
            else given["scale"]
        )
        total = sums[0] + given["bias"]
        found["the profile xnnpack (float32 product, half to even)"] = (
            tflite.xnnpack_fp32_requantize(total, np.float32(scale))
        )
    found |= {name: function(y) for name, function in ROUNDINGS.items()}
    if "bias" in given:
        bare = {**given, "bias": np.zeros_like(given["bias"])}
        found["a missing bias"] = rounded(kind, profile, sums, bare, rounding)
    return found
