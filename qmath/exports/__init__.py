"""Everything that leaves: a `Bundle` of integers, and the formats that write it.

A format of another package may import what is listed here, the public names of `qmath`, and
`qmath.integer.program`, whose steps a bundle's `program` holds; nothing else stays where it is.
Each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qmath.exports.bundle import Bundle, FloatTensor, QuantizedRange, quantize_model
    from qmath.exports.exporter import Exporter, Option, option
    from qmath.exports.output.identifiers import Identifiers
    from qmath.exports.registry import formats

__all__ = [
    "Bundle",
    "Exporter",
    "FloatTensor",
    "Identifiers",
    "Option",
    "QuantizedRange",
    "formats",
    "option",
    "quantize_model",
]

_HOMES = {
    "bundle": ("Bundle", "FloatTensor", "QuantizedRange", "quantize_model"),
    "exporter": ("Exporter", "Option", "option"),
    "registry": ("formats",),
    "output.identifiers": ("Identifiers",),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found
