"""What a quantizer of TFMOT, known by its class and arguments, states about its tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from qmath.readers.records import Fact

__all__ = [
    "KINDS",
    "QuantizerSettings",
    "is_flag",
    "is_width",
    "quantizer_facts",
    "settings_of",
]

# TFMOT's quantizers by what they compute; those of the schemes only preset the arguments.
KINDS: Mapping[str, str] = {
    "LastValueQuantizer": "LastValueQuantizer",
    "MovingAverageQuantizer": "MovingAverageQuantizer",
    "AllValuesQuantizer": "AllValuesQuantizer",
    "FixedQuantizer": "FixedQuantizer",
    "NoQuantizer": "NoQuantizer",
    "Default8BitConvWeightsQuantizer": "LastValueQuantizer",
    "Default8BitConvTransposeWeightsQuantizer": "LastValueQuantizer",
    "DefaultNBitConvWeightsQuantizer": "LastValueQuantizer",
    "DefaultNBitConvTransposeWeightsQuantizer": "LastValueQuantizer",
}
_ARGUMENTS = ("num_bits", "per_axis", "symmetric", "narrow_range", "init_min", "init_max")


@dataclass(frozen=True)
class QuantizerSettings:
    """A quantizer: its class, the one of TFMOT's five it computes as (or ``None``), arguments."""

    class_name: str
    kind: str | None
    arguments: Mapping[str, Any]


def settings_of(quantizer: Any) -> QuantizerSettings:
    """Return the settings of a quantizer object, qmath's or TFMOT's, by attributes alone."""
    names = [base.__name__ for base in type(quantizer).__mro__]
    kind = next((KINDS[name] for name in names if name in KINDS), None)
    arguments = {name: getattr(quantizer, name) for name in _ARGUMENTS if hasattr(quantizer, name)}
    return QuantizerSettings(
        names[0],
        kind,
        {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in arguments.items()
        },
    )


def is_width(value: object) -> TypeGuard[int]:
    """Tell whether a value is a width that TensorFlow's fake quantization takes."""
    return type(value) is int and 2 <= value <= 16


def is_flag(value: object) -> bool:
    """Tell whether a value is true or false, as Python or as C writes it."""
    return type(value) in (bool, int) and value in (0, 1)


def quantizer_facts(settings: QuantizerSettings, source: str, says: str) -> list[Fact]:
    """Return what a quantizer states about the tensor it was given.

    TFMOT's quantizers do not do all that their arguments say: `FixedQuantizer` computes with 8
    bits, `AllValuesQuantizer` per tensor.
    """
    arguments = settings.arguments
    values: dict[str, Any] = {"quantizer": settings.kind or settings.class_name}
    if settings.kind == "FixedQuantizer":
        values |= {
            "op": "args",
            "num_bits": 8,
            "per_axis": False,
            "narrow_range": arguments.get("narrow_range"),
        }
    elif settings.kind == "NoQuantizer":
        values["op"] = "none"
    elif settings.kind is not None:
        values |= {
            field: arguments.get(field)
            for field in ("num_bits", "per_axis", "symmetric", "narrow_range")
        }
    if settings.kind == "AllValuesQuantizer":
        del values["per_axis"]
    texts = ("quantizer", "op")
    return [
        Fact(field, value, source, says)
        for field, value in values.items()
        if (
            is_width(value)
            if field == "num_bits"
            else type(value) is (str if field in texts else bool)
        )
    ]
