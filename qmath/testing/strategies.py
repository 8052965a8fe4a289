"""Hypothesis strategies for kernels: ranges, deciding floats, quantized tensors, small layers.

What they draw shrinks towards short ranges of powers of two, small integers and exact ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import MissingExtraError, QmathError
from qmath.model import QuantSpec
from qmath.testing.arithmetic import PROFILES
from qmath.testing.floats import EXTREMES, Range, neighbours, thresholds
from qmath.testing.layer import CLASSES, Geometry, Layer, make_layer
from qmath.testing.layer_cases import ends_of
from qmath.testing.tensor import Tensor

try:
    from hypothesis import assume
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
except ImportError as error:
    raise MissingExtraError(
        "qmath.testing's strategies need hypothesis: pip install 'qmath-tfmot[testing]'"
    ) from error

__all__ = [
    "floats_near_ends",
    "floats_near_ties",
    "floats_of_range",
    "layers",
    "quantized_tensors",
    "ranges",
    "specs",
    "subnormals",
]

Array = NDArray[Any]
_WIDTHS = st.integers(2, 16)
_MANTISSAS = (1.0, 1.5, 1.1, 1.9)  # the first of which makes ties exact


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float, float]:
    """Draw ranges ``(min, max)`` that determine integers of every width.

    Around zero, from zero on, up to zero, or missing it; float32 values.
    """
    kind = draw(st.sampled_from(["around", "from zero", "to zero", "above", "below"]))
    low, high = (draw(_ends()) for _ in range(2))
    if kind == "above":
        return _float32(low), _float32(low * draw(st.floats(1.25, 2)))
    if kind == "below":
        return _float32(-low * draw(st.floats(1.25, 2))), _float32(-low)
    return (
        0.0 if kind == "from zero" else _float32(-low),
        0.0 if kind == "to zero" else _float32(high),
    )


@lru_cache
def _ends() -> st.SearchStrategy[float]:
    """Draw an end's magnitude: simple ones first, then any that every width has integers for."""
    return _scales(-3, 3) | st.floats(2.0**-108, 2.0**120, width=32)


def _float32(x: float) -> float:
    return float(np.float32(x))


def specs(
    *, num_bits: st.SearchStrategy[int] = _WIDTHS, per_axis: bool | None = None
) -> st.SearchStrategy[QuantSpec]:
    """Draw the settings of quantizers, complete ones.

    Parameters
    ----------
    num_bits : strategy, optional
        Default: 2 to 16.
    per_axis : bool, optional
        Default: either.
    """
    flags = st.booleans()
    return st.builds(
        QuantSpec,
        st.sampled_from(["LastValueQuantizer", "MovingAverageQuantizer", "AllValuesQuantizer"]),
        num_bits,
        flags if per_axis is None else st.just(per_axis),
        flags,
        flags,
    )


@st.composite
def floats_near_ties(
    draw: st.DrawFn,
    min: float,
    max: float,
    num_bits: int,
    narrow_range: bool = False,
    *,
    function: str = "vars",
) -> float:
    """Draw float32 values on and next to the rounding ties of a range.

    Both kinds of tie: halfway between two integer steps, and where TensorFlow's float32 arithmetic
    goes over to the next integer, which may be many floats away.

    Parameters
    ----------
    min, max : float
        A range that determines integers.
    num_bits, narrow_range
        As for `qmath.quantize`.
    function : {"vars", "args", "per_channel"}
        Whose arithmetic counts.
    """
    found = Range(_float32(min), _float32(max), num_bits, narrow_range, function)
    low, high = found.ends
    integer = draw(st.integers(low, high - 1))
    if draw(st.booleans()):
        return float(neighbours(thresholds(integer, found), -draw(st.integers(0, 1))))
    tie = np.float32((integer + 0.5) * float(found.step))
    return float(neighbours(tie, draw(st.integers(-2, 2))))


@st.composite
def floats_near_ends(draw: st.DrawFn, min: float, max: float) -> float:
    """Draw float32 values on, next to and beyond the ends of a range."""
    end = draw(st.sampled_from([min, max]))
    if draw(st.booleans()):
        return _float32(end * draw(st.sampled_from([2.0, 0.5])))
    return float(neighbours(np.float32(end), draw(st.integers(-2, 2))))


def subnormals() -> st.SearchStrategy[float]:
    """Draw zeros, subnormals, the smallest and largest normal numbers, and infinities."""
    return st.sampled_from(EXTREMES.tolist())


def floats_of_range(
    min: float,
    max: float,
    num_bits: int,
    narrow_range: bool = False,
    *,
    function: str = "vars",
) -> st.SearchStrategy[float]:
    """Draw float32 values that tell quantizers apart; parameters as for `floats_near_ties`.

    Near ties, near ends, subnormals and extremes, or anything in the range. None is NaN.
    """
    ordered = sorted([_float32(min), _float32(max)])
    return st.one_of(
        floats_near_ties(min, max, num_bits, narrow_range, function=function),
        floats_near_ends(min, max),
        st.floats(*ordered, width=32),
        subnormals(),
    )


@st.composite
def quantized_tensors(
    draw: st.DrawFn,
    *,
    num_bits: st.SearchStrategy[int] = _WIDTHS,
    per_axis: bool | None = None,
    functions: Sequence[str] = ("vars", "args"),
    signed: bool = True,
    max_size: int = 8,
) -> Tensor:
    """Draw float tensors with ranges, whose integers `qmath.quantize` determines.

    Parameters
    ----------
    num_bits : strategy, optional
        Default: 2 to 16.
    per_axis : bool, optional
        Whether the last axis has a range for each index. Default: either.
    functions : sequence of str
        Of a tensor with one range.
    signed : bool
    max_size : int
        Most rows of a tensor ``(rows, C)``, or elements of one ``(n,)``.
    """
    by_channel = draw(st.booleans()) if per_axis is None else per_axis
    function = "per_channel" if by_channel else draw(st.sampled_from(list(functions)))
    channels = draw(st.integers(1, 3)) if by_channel else 1
    pairs = [draw(ranges()) for _ in range(channels)]
    width, narrow_range = draw(num_bits), draw(st.booleans())
    rows = draw(st.integers(1, max_size))
    columns = []
    for low, high in pairs:
        element = floats_of_range(low, high, width, narrow_range, function=function)
        columns.append(draw(st.lists(element, min_size=rows, max_size=rows)))
    inputs = np.array(columns, np.float32).T
    low_ends, high_ends = np.array(pairs, np.float32).T
    if by_channel:
        return Tensor(inputs, low_ends, high_ends, width, narrow_range, function, signed)
    ends = low_ends[0, ...], high_ends[0, ...]
    return Tensor(inputs[:, 0], *ends, width, narrow_range, function, signed)


@st.composite
def layers(
    draw: st.DrawFn,
    op: str | None = None,
    *,
    num_bits: int = 8,
    profile: str = "integer",
    signed: bool = True,
    geometry: Geometry | None = None,
) -> Layer:
    """Draw small layers with integers to run them on.

    Half of the biases put an output next to a rounding tie or a clamp.

    Parameters
    ----------
    op : str, optional
        ``"conv"``, ``"depthwise"``, ``"dense"``, ``"add"``, ``"average_pool"`` or ``"max_pool"``.
        Default: any.
    num_bits : int
    profile : str
        One that has to take the layer, ``"integer"`` by default.
    signed : bool
    geometry : Geometry, optional
        The shape, where it is given.

    Returns
    -------
    strategy of Layer
        ``layer.inputs``, ``layer.weights`` and ``layer.constants(profile)`` are what a kernel
        needs, ``layer.expected(profile)`` is what it has to return.
    """
    if profile not in PROFILES:
        raise QmathError(f"there is no profile {profile!r}; there are {', '.join(PROFILES)}")
    shape = geometry or draw(_geometries(op))
    pair = 2 if shape.op == "add" else 1
    scales = [draw(_scales(-6, -2)) for _ in range(pair)]
    out = draw(_scales(-4, 2))
    points = st.integers(0, 2**num_bits - 1)
    source_ranges = [ends_of(scale, draw(points), num_bits) for scale in scales]
    zero_point = draw(points)
    offset = int(signed) << (num_bits - 1)
    elements = st.integers(-offset, 2**num_bits - 1 - offset)
    count = draw(st.integers(1, 2))
    inputs = [
        draw(hnp.arrays(np.int64, (count, *shape.input), elements=elements)) for _ in range(pair)
    ]
    weights, options = None, {}
    if shape.weights:
        limit = 2 ** (num_bits - 1) - 1
        steps = [draw(_scales(-8, -3)) for _ in range(shape.output[-1])]
        weights = draw(hnp.arrays(np.int64, shape.weights, elements=st.integers(-limit, limit)))
        options = {"weights": weights, "weight_range": np.array(steps) * limit}
    if shape.op not in ("average_pool", "max_pool"):
        options["activation"] = draw(st.sampled_from(["linear", "relu", "relu6"]))
    rest: dict[str, Any] = {"num_bits": num_bits, "signed": signed, **options}
    ends = ends_of(out, zero_point, num_bits)
    try:
        layer = make_layer(shape, inputs, source_ranges, ends, **rest)
        if weights is not None:
            bias = draw(_biases(layer, zero_point))
            layer = make_layer(shape, inputs, source_ranges, ends, **rest, bias=bias)
        layer.constants(profile)
    except QmathError:  # the profile refuses it
        assume(False)
    return layer


@st.composite
def _geometries(draw: st.DrawFn, op: str | None) -> Geometry:
    op = draw(st.sampled_from(sorted(CLASSES))) if op is None else op
    if op == "dense":
        return Geometry(op, (draw(st.integers(1, 6)),), draw(st.integers(1, 3)))
    lengths = tuple(draw(st.integers(1, 4)) for _ in range(2))
    shape = (*lengths, draw(st.integers(1, 3)))
    kernel = tuple(draw(st.integers(1, min(3, n))) for n in lengths)
    strides = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding = draw(st.sampled_from(["valid", "same"]))
    return Geometry(op, shape, draw(st.integers(1, 3)), (kernel[0], kernel[1]), strides, padding)


@lru_cache
def _scales(low: int, high: int) -> st.SearchStrategy[float]:
    """Draw a scale; a strategy takes Hypothesis longer to make than to draw from."""
    powers = st.integers(low, high)
    return st.tuples(st.sampled_from(_MANTISSAS), powers).map(lambda pair: pair[0] * 2.0 ** pair[1])


@st.composite
def _biases(draw: st.DrawFn, layer: Layer, zero_point: int) -> ArrayLike:
    """Draw a bias for each channel: zero, or one that puts an output next to a tie."""
    step = layer.step
    assert step is not None
    low, high = -zero_point - 1, 2**step.params.num_bits - 1 - zero_point
    sums = layer.sums[0][0].reshape(-1, layer.geometry.output[-1])
    scales = np.broadcast_to(step.value.terms[0].scale, sums.shape[-1:])
    found = []
    for channel, scale in enumerate(scales):
        tie = draw(st.none() | st.integers(low, high))
        if tie is None:
            found.append(0.0)
            continue
        position = draw(st.integers(0, len(sums) - 1))
        found.append((tie + 0.5) * step.params.scale - float(sums[position, channel] * scale))
    return found
