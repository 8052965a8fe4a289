"""What the fields of Keras's layer configs may hold: checked once, when a file is read.

What passes here has the type, the length and the range that every reader of a config counts on.
Fields that are not listed, and layers of other classes, are nobody's business here.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from qmath.errors import FileFormatError

__all__ = [
    "FIELDS",
    "LARGEST_REAL",
    "LAYER_FIELDS",
    "MOST_ELEMENTS",
    "MOST_POSITIONS",
    "MOST_STEPS",
    "Field",
    "check_config",
    "is_shape",
]

# Of one tensor, and so of each of its lengths: what TensorFlow Lite counts in 32 bits.
MOST_ELEMENTS = (1 << 31) - 1
# A stride, a dilation, a factor, a padding at one end; audio has steps of some thousands.
MOST_STEPS = 1 << 16
# Of a window, in all its axes together: 512 x 512 pixels.
MOST_POSITIONS = 1 << 18
MOST_AXES = 8
LARGEST_REAL = 3.4028234663852886e38  # of float32, which they become

Test = Callable[[Any, int], bool]  # the value and how many spatial axes the layer has


@dataclass(frozen=True)
class Field:
    """What a field may hold: a test, and the same in words."""

    test: Test
    allowed: str


def _is_int(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_real(value: Any, low: float, high: float) -> bool:
    # NaN fails both comparisons; an integer of any length compares without overflow.
    return type(value) in (int, float) and low <= value <= high


def _real(low: float, high: float, words: str) -> Field:
    return Field(lambda value, _: _is_real(value, low, high), words)


def _steps(low: int, most: int, product: int) -> Test:
    """Return the test of one number, or one for each spatial axis."""

    def test(value: Any, rank: int) -> bool:
        if type(value) is int:
            return low <= value <= most and value ** max(rank, 1) <= product
        return (
            isinstance(value, (list, tuple))
            and len(value) in (1, rank)
            and all(_is_int(item, low, most) for item in value)
            and math.prod(value) ** (rank if len(value) < rank else 1) <= product
        )

    return test


def _is_widths(value: Any, rank: int) -> bool:
    """Tell whether a value says how much to add or cut at both ends of each spatial axis."""
    if _is_int(value, 0, MOST_STEPS) or (rank == 1 and _is_pair(value)):
        return True
    return (
        isinstance(value, (list, tuple))
        and len(value) == rank > 1
        and all(_is_int(item, 0, MOST_STEPS) or _is_pair(item) for item in value)
    )


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(_is_int(item, 0, MOST_STEPS) for item in value)
    )


def is_shape(value: Any) -> bool:
    """Tell whether a value is a shape with the batch, in which lengths may be open."""
    return (
        isinstance(value, (list, tuple))
        and 1 <= len(value) <= MOST_AXES
        and all(item is None or _is_int(item, 1, MOST_ELEMENTS) for item in value)
        and math.prod(item or 1 for item in value[1:]) <= MOST_ELEMENTS
    )


def _is_target(value: Any, _: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and 1 <= len(value) <= MOST_AXES
        and all(item == -1 or _is_int(item, 1, MOST_ELEMENTS) for item in value)
        and sum(item == -1 for item in value) <= 1
        and abs(math.prod(value)) <= MOST_ELEMENTS
    )


def _is_order(value: Any, _: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and 1 <= len(value) <= MOST_AXES
        and all(type(item) is int for item in value)
        and sorted(value) == list(range(1, len(value) + 1))
    )


def _is_constants(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (list, tuple)) and depth < MOST_AXES:
        return len(value) > 0 and all(_is_constants(item, depth + 1) for item in value)
    return _is_real(value, -LARGEST_REAL, LARGEST_REAL)


def _is_axis(value: Any, _: int = 0) -> bool:
    return _is_int(value, -MOST_AXES, MOST_AXES)


def _is_axes(value: Any, _: int) -> bool:
    return _is_axis(value) or (
        isinstance(value, (list, tuple))
        and 1 <= len(value) <= MOST_AXES
        and all(map(_is_axis, value))
    )


def _is_text(value: Any, _: int = 0) -> bool:
    return isinstance(value, str) and value.isprintable()


def _one_of(*texts: str) -> Field:
    return Field(
        lambda value, _: isinstance(value, str) and value in texts,
        f"one of {', '.join(map(repr, texts))}",
    )


_SPATIAL = "or a list with one for each spatial axis"
_COUNT = Field(
    lambda value, _: _is_int(value, 1, MOST_ELEMENTS), f"an integer from 1 to {MOST_ELEMENTS}"
)
_STEPS = Field(
    _steps(1, MOST_STEPS, MOST_STEPS**3), f"an integer from 1 to {MOST_STEPS}, {_SPATIAL}"
)
_WINDOW = Field(
    _steps(1, MOST_POSITIONS, MOST_POSITIONS),
    f"a positive integer, {_SPATIAL}, {MOST_POSITIONS} positions in all",
)
_WIDTHS = Field(
    _is_widths, f"integers from 0 to {MOST_STEPS}: one, or one or two for each spatial axis"
)
_FLAG = Field(lambda value, _: type(value) in (bool, int) and value in (0, 1), "true or false")
_NAME = Field(lambda value, _: _is_text(value) or isinstance(value, dict), "a name or an object")
_TEXT = Field(_is_text, "a name")
_REAL = _real(-LARGEST_REAL, LARGEST_REAL, "a finite number of float32")
_POSITIVE = _real(0, LARGEST_REAL, "a finite number of float32, not negative")
_SHARE = _real(0, 1, "a number from 0 to 1")
_SHAPE = Field(
    lambda value, _: is_shape(value),
    f"a list of at most {MOST_AXES} lengths or nulls, {MOST_ELEMENTS} elements in all",
)

FIELDS: Mapping[str, Field] = {
    "activation": _NAME,
    "alpha": _REAL,
    "axes": Field(_is_axes, f"an axis from -{MOST_AXES} to {MOST_AXES}, or a list of such"),
    "axis": Field(_is_axis, f"an axis from -{MOST_AXES} to {MOST_AXES}"),
    "batch_input_shape": _SHAPE,
    "batch_shape": _SHAPE,
    "center": _FLAG,
    "constants": Field(
        lambda value, _: _is_constants(value), "a finite number of float32, or lists of such"
    ),
    "data_format": _one_of("channels_last", "channels_first"),
    "depth_multiplier": _COUNT,
    "dilation_rate": _STEPS,
    "dims": Field(_is_order, "a list of the axes from 1, each once"),
    "epsilon": _POSITIVE,
    "filters": _COUNT,
    "groups": _COUNT,
    "input_dim": _COUNT,
    "interpolation": _TEXT,
    "keepdims": _FLAG,
    "kept_axes": Field(
        lambda value, _: value in ([], ()) or _is_axes(value, 0),
        f"axes from -{MOST_AXES} to {MOST_AXES}, or an empty list",
    ),
    "kernel_size": _WINDOW,
    "max_value": _POSITIVE,
    "momentum": _SHARE,
    "n": _COUNT,
    "negative_slope": _REAL,
    "output_dim": _COUNT,
    "output_padding": Field(
        _steps(0, MOST_STEPS, MOST_STEPS**3), f"an integer from 0 to {MOST_STEPS}, {_SPATIAL}"
    ),
    "padding": _one_of("valid", "same", "causal"),
    "pool_size": _WINDOW,
    "rate": _SHARE,
    "scale": _FLAG,
    "size": _STEPS,
    "stddev": _POSITIVE,
    "strides": _STEPS,
    "target_shape": Field(
        _is_target,
        f"a list of at most {MOST_AXES} lengths, one of which may be -1, {MOST_ELEMENTS} elements "
        "in all",
    ),
    "threshold": _REAL,
    "units": _COUNT,
    "use_bias": _FLAG,
    "widths": _WIDTHS,
}
# Kinds of fields that Keras leaves at null.
_OPTIONAL = frozenset({
    "activation", "batch_input_shape", "batch_shape", "data_format", "keepdims", "max_value",
    "negative_slope", "output_padding", "threshold",
})  # fmt: skip

_ALWAYS = "batch_input_shape batch_shape"
_ENDS = "activation use_bias"
_WINDOWED = "strides padding data_format"
_CONVOLUTION = f"filters kernel_size {_WINDOWED} dilation_rate groups {_ENDS}"
_DEPTHWISE = f"kernel_size {_WINDOWED} dilation_rate depth_multiplier {_ENDS}"
_POOL = "pool_size strides? padding data_format"
_RECURRENT = f"units {_ENDS} return_sequences=use_bias go_backwards=use_bias stateful=use_bias"
_NORMALIZATION = "axis=axes momentum epsilon center scale"

# A row for each class of `qmath.layers.LAYERS`: its fields, ``name`` or ``name=kind`` of `FIELDS`,
# with a question mark where one may be null in this class alone.
LAYER_FIELDS: Mapping[str, str] = {
    "InputLayer": "",
    "QuantizeLayer": "",
    "Dropout": "rate",
    "SpatialDropout1D": "rate",
    "SpatialDropout2D": "rate data_format",
    "SpatialDropout3D": "rate data_format",
    "AlphaDropout": "rate",
    "GaussianDropout": "rate",
    "GaussianNoise": "stddev",
    "ActivityRegularization": "",
    "Identity": "",
    "RandomBrightness": "",
    "RandomContrast": "",
    "RandomFlip": "",
    "RandomHeight": "",
    "RandomRotation": "",
    "RandomTranslation": "",
    "RandomWidth": "",
    "RandomZoom": "",
    "Dense": f"units {_ENDS}",
    "Conv1D": _CONVOLUTION,
    "Conv2D": _CONVOLUTION,
    "Conv2DTranspose": f"{_CONVOLUTION} output_padding",
    "Conv1DTranspose": f"{_CONVOLUTION} output_padding",
    "DepthwiseConv1D": _DEPTHWISE,
    "DepthwiseConv2D": _DEPTHWISE,
    "SeparableConv1D": f"{_DEPTHWISE} filters",
    "SeparableConv2D": f"{_DEPTHWISE} filters",
    "Conv3D": _CONVOLUTION,
    "EinsumDense": "activation",
    "Conv3DTranspose": f"{_CONVOLUTION} output_padding",
    "LocallyConnected1D": f"filters kernel_size {_WINDOWED} {_ENDS}",
    "LocallyConnected2D": f"filters kernel_size {_WINDOWED} {_ENDS}",
    "UnitNormalization": "axis=axes",
    "RNN": "return_sequences=use_bias go_backwards=use_bias stateful=use_bias",
    "AdditiveAttention": "use_scale=use_bias",
    "Embedding": "input_dim output_dim mask_zero=use_bias",
    "SimpleRNN": _RECURRENT,
    "GRU": f"{_RECURRENT} reset_after=use_bias",
    "LSTM": _RECURRENT,
    "Bidirectional": "",
    "LayerNormalization": "axis=axes epsilon center scale",
    "GroupNormalization": "axis epsilon center scale",
    "Dot": "axes normalize=use_bias",
    "Attention": "use_scale=use_bias",
    "MultiHeadAttention": "num_heads=units key_dim=units use_bias",
    "BatchNormalization": _NORMALIZATION,
    "SyncBatchNormalization": _NORMALIZATION,
    "Rescaling": "scale=constants offset=constants",
    "Normalization": "axis=kept_axes? mean=constants? variance=constants? invert=use_bias",
    "ReLU": "max_value negative_slope threshold",
    "LeakyReLU": "alpha negative_slope",
    "Activation": "activation",
    "Softmax": "axis=axes",
    "ELU": "alpha",
    "PReLU": "shared_axes=axes?",
    "ThresholdedReLU": "theta=threshold",
    "Add": "",
    "Subtract": "",
    "Average": "",
    "Multiply": "",
    "Maximum": "",
    "Minimum": "",
    "Concatenate": "axis",
    "AveragePooling1D": _POOL,
    "AveragePooling2D": _POOL,
    "AveragePooling3D": _POOL,
    "GlobalAveragePooling1D": "keepdims data_format",
    "GlobalAveragePooling2D": "keepdims data_format",
    "GlobalAveragePooling3D": "keepdims data_format",
    "MaxPooling1D": _POOL,
    "MaxPooling2D": _POOL,
    "MaxPooling3D": _POOL,
    "GlobalMaxPooling1D": "keepdims data_format",
    "GlobalMaxPooling2D": "keepdims data_format",
    "GlobalMaxPooling3D": "keepdims data_format",
    "Flatten": "data_format",
    "SeparableConvExpand": "",
    "SeparableConvSqueeze": "",
    "Reshape": "target_shape",
    "Permute": "dims",
    "ZeroPadding1D": "padding=widths data_format",
    "ZeroPadding2D": "padding=widths data_format",
    "ZeroPadding3D": "padding=widths data_format",
    "Cropping1D": "cropping=widths data_format",
    "Cropping2D": "cropping=widths data_format",
    "Cropping3D": "cropping=widths data_format",
    "CenterCrop": "height=units width=units",
    "Resizing": "height=units width=units interpolation crop_to_aspect_ratio=use_bias",
    "UpSampling1D": "size",
    "UpSampling2D": "size data_format interpolation",
    "UpSampling3D": "size data_format",
    "RepeatVector": "n",
}


def check_config(class_name: str, config: Mapping[str, Any], layer: str) -> None:
    """Raise if a layer's config holds what no layer of its class can have.

    Parameters
    ----------
    class_name : str
        Of the layer.
    config : mapping
        Its own config; a field that is missing, or that is not known, is not judged.
    layer : str
        File and layer, for the error message.

    Raises
    ------
    FileFormatError
        A field is of another type or length, or out of range.

    Examples
    --------
    >>> check_config("Conv2D", {"strides": [1, 2]}, "model.h5: conv1")
    >>> check_config("Conv2D", {"strides": [1, 0]}, "m.h5: a")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qmath.errors.FileFormatError: m.h5: a: strides of this Conv2D is [1, 0], not an integer...
    """
    if class_name not in LAYER_FIELDS:
        return
    rank, rows = _fields_of(class_name)
    for name, field, is_optional in rows:
        value = config.get(name, _MISSING)
        if value is _MISSING or (value is None and is_optional) or field.test(value, rank):
            continue
        raise FileFormatError(
            f"{layer}: {name} of this {class_name} is {reprlib.repr(value)}, not {field.allowed}; "
            "the file is damaged, save the model again"
        )


_MISSING = object()


@cache
def _fields_of(class_name: str) -> tuple[int, tuple[tuple[str, Field, bool], ...]]:
    """Return how many spatial axes a class of the table has, and what to test of its fields."""
    digit = re.search(r"([123])D", class_name)
    rows = []
    for item in f"{LAYER_FIELDS[class_name]} {_ALWAYS}".split():
        name, _, kind = item.rstrip("?").partition("=")
        rows.append((name, FIELDS[kind or name], item.endswith("?") or name in _OPTIONAL))
    return int(digit[1]) if digit else 0, tuple(rows)
