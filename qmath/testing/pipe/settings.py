"""What a stream of cases was made with: the words of its header."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qmath.errors import QmathError
from qmath.kernels.affine import check_num_bits
from qmath.kernels.packing import LAYOUTS
from qmath.testing.arithmetic import PROFILES, ROUNDED
from qmath.testing.layer import CLASSES, Geometry

__all__ = ["OPS", "Settings", "parsed", "settings_for"]

_MOST_CASES = 1 << 24
_MOST_INPUTS = 1 << 16
_MOST_WEIGHTS = 1 << 20
_LONGEST = 1 << 12
_ALL = "all"  # widths
_PROFILE = ("profile", "rounding", "multiplier_bits")
_WINDOWS = ("kernel", "strides", "padding")
# Which settings an op has, besides seed and count.
OPS: Mapping[str, tuple[str, ...]] = {
    "fake_quant": ("bits", "function"),
    "quantize": ("bits", "function", "signed"),
    "requantize": ("bits", "signed", *_PROFILE),
    "conv": ("bits", "signed", *_PROFILE, "shape", *_WINDOWS, "channels"),
    "depthwise": ("bits", "signed", *_PROFILE, "shape", *_WINDOWS, "channels"),
    "dense": ("bits", "signed", *_PROFILE, "shape", "channels"),
    "add": ("bits", "signed", *_PROFILE, "shape"),
    "average_pool": ("bits", "signed", *_PROFILE, "shape", *_WINDOWS),
    "max_pool": ("bits", "signed", "shape", *_WINDOWS),
    "packing": ("bits", "signed", "layout", "shape"),
}
_SHAPES = {"dense": (24,), "add": (4, 3), "packing": (13,)}
_CHOICES = {
    "profile": PROFILES,
    "rounding": ("double", "single"),
    "function": ("vars", "args", "per_channel"),
    "padding": ("same", "valid"),
    "layout": tuple(LAYOUTS),
}


@dataclass(frozen=True)
class Settings:
    """The op and everything that its cases depend on; `OPS` says which of it an op has.

    Attributes
    ----------
    op : str
    bits : int
        Width; 0 is every width in turn, of ops whose cases say it.
    function : str
        Whose arithmetic fake-quantizes: ``"vars"``, ``"args"`` or ``"per_channel"``.
    signed : bool
    profile, rounding, multiplier_bits
        As for `qmath.run`.
    layout : str
        As for `qmath.pack`.
    shape, channels, kernel, strides, padding
        As `qmath.testing.Geometry` has them.
    seed, count : int
        Of the cases.
    """

    op: str
    bits: int = 8
    function: str = "vars"
    signed: bool = True
    profile: str = "integer"
    rounding: str = "double"
    multiplier_bits: int = 31
    layout: str = "lsb"
    shape: tuple[int, ...] = (5, 6, 3)
    channels: int = 4
    kernel: tuple[int, ...] = (3, 2)
    strides: tuple[int, ...] = (2, 1)
    padding: str = "same"
    seed: int = 0
    count: int = 10_000

    @property
    def geometry(self) -> Geometry:
        """The layer's shape."""
        kernel: Any = self.kernel
        strides: Any = self.strides
        return Geometry(self.op, self.shape, self.channels, kernel, strides, self.padding)

    def header(self) -> str:
        """Return the settings as words of a header, ``op`` first."""
        names = ("op", *self._own, "seed", "count")
        words = {name: _written(getattr(self, name)) for name in names}
        if not self.bits:
            words["bits"] = _ALL
        return " ".join(f"{name}={word}" for name, word in words.items())

    @property
    def _own(self) -> list[str]:
        """The settings that this op and profile have."""
        own = list(OPS[self.op])
        if self.profile not in ROUNDED and "rounding" in own:
            own.remove("rounding")
        if self.profile != "integer" and "multiplier_bits" in own:
            own.remove("multiplier_bits")
        return own


def settings_for(op: str, **given: Any) -> Settings:
    """Return the settings of an op: what is given, and defaults for the others.

    Raises
    ------
    QmathError
        There is no such op, it has no such setting, or a value is out of range.

    Examples
    --------
    >>> settings_for("packing", layout="nibbles").header()
    'op=packing bits=4 signed=1 layout=nibbles shape=13 seed=0 count=1000'
    """
    if op not in OPS:
        raise QmathError(f"there is no op {op!r}; there are {', '.join(OPS)}")
    defaults: dict[str, Any] = {"shape": _SHAPES.get(op, (5, 6, 3))}
    if op in ("fake_quant", "quantize"):
        defaults["bits"] = 0
    if op in CLASSES:
        defaults["count"] = 320
    if op == "packing":
        defaults |= {"count": 1000, "bits": 4}
    if op == "depthwise":
        defaults["channels"] = 2
    found = replace(Settings(op, **defaults), **given)
    for name in given:
        if name not in found._own and name not in ("seed", "count"):
            of = f" under the profile {found.profile}" if name in OPS[op] else ""
            raise QmathError(f"{op}{of} has no setting {name}; it has {', '.join(found._own)}")
    _check(found)
    return found


def parsed(words: Mapping[str, str]) -> Settings:
    """Return the settings that the words of a header say; other words are left alone.

    Raises
    ------
    QmathError
        As `settings_for`, or a word is no value.
    """
    types = {field.name: str(field.type) for field in fields(Settings)}
    given: dict[str, Any] = {}
    for name, text in words.items():
        if name in types and name != "op":
            try:
                given[name] = _read(text, types[name])
            except ValueError as error:
                raise QmathError(f"the header's {name}={text} is no value of it") from error
    return settings_for(words.get("op", ""), **given)


def _check(settings: Settings) -> None:
    for name, choices in _CHOICES.items():
        if getattr(settings, name) not in choices:
            raise QmathError(
                f"{name} must be one of {', '.join(choices)}, got {getattr(settings, name)!r}"
            )
    if settings.op == "packing":
        widths = LAYOUTS[settings.layout].widths
        if settings.bits not in widths:
            raise QmathError(
                f"packing: the layout {settings.layout} is for {widths[0]} to {widths[-1]} bits, "
                f"got {settings.bits}"
            )
    elif settings.bits or settings.op not in ("fake_quant", "quantize", "requantize"):
        check_num_bits(settings.bits)
    if not 8 <= settings.multiplier_bits <= 31:
        raise QmathError(f"multiplier_bits must be 8 to 31, got {settings.multiplier_bits}")
    if not 1 <= settings.count <= _MOST_CASES:
        raise QmathError(f"count must be 1 to {_MOST_CASES}, got {settings.count}")
    if not 0 <= settings.seed < 2**32:
        raise QmathError(f"seed must be 0 to {2**32 - 1}, got {settings.seed}")
    if len(settings.kernel) != 2 or len(settings.strides) != 2:
        raise QmathError("kernel and strides are two lengths, such as 3x2")
    if math.prod(settings.shape) > _MOST_INPUTS or min(settings.shape) < 1:
        raise QmathError(
            f"a shape has 1 to {_MOST_INPUTS} elements, got {_written(settings.shape)}"
        )
    if max(*settings.kernel, *settings.strides, settings.channels) > _LONGEST:
        raise QmathError(f"kernel, strides and channels are at most {_LONGEST}")
    if settings.op in CLASSES:
        if math.prod(settings.geometry.weights) > _MOST_WEIGHTS:
            raise QmathError(f"a layer has at most {_MOST_WEIGHTS} weights; use a smaller one")
        _ = settings.geometry.output  # which checks the shape


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def _read(text: str, type: str) -> Any:
    if type == "str":
        return text
    if type == "bool":
        return bool(("0", "1").index(text))
    if type == "int":
        return 0 if text == _ALL else int(text)
    return tuple(int(length) for length in text.split("x"))
