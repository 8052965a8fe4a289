"""Tests for other people"s code: formats of another package, and kernels in any language.

Each name below is imported when it is first used: the strategies need hypothesis, the `testing`
extra, and nothing else does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qmath.testing.assertions import assert_same_bits, assert_same_integers
    from qmath.testing.exporters import check_exporter, sample_models
    from qmath.testing.layer import Geometry, Layer, make_layer
    from qmath.testing.strategies import (
        floats_near_ends,
        floats_near_ties,
        floats_of_range,
        layers,
        quantized_tensors,
        ranges,
        specs,
        subnormals,
    )
    from qmath.testing.tensor import Tensor

__all__ = [
    "Geometry",
    "Layer",
    "Tensor",
    "assert_same_bits",
    "assert_same_integers",
    "check_exporter",
    "floats_near_ends",
    "floats_near_ties",
    "floats_of_range",
    "layers",
    "make_layer",
    "quantized_tensors",
    "ranges",
    "sample_models",
    "specs",
    "subnormals",
]

_HOMES = {
    "qmath.testing.assertions": ("assert_same_bits", "assert_same_integers"),
    "qmath.testing.exporters": ("check_exporter", "sample_models"),
    "qmath.testing.layer": ("Geometry", "Layer", "make_layer"),
    "qmath.testing.strategies": (
        "floats_near_ends",
        "floats_near_ties",
        "floats_of_range",
        "layers",
        "quantized_tensors",
        "ranges",
        "specs",
        "subnormals",
    ),
    "qmath.testing.tensor": ("Tensor",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
