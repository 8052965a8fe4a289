"""What the user says about quantizers, matched to the tensors it is about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from qmath.errors import QmathError
from qmath.readers import notes
from qmath.readers.settings.facts import (
    KINDS,
    Fact,
    Found,
    QuantizerSettings,
    is_width,
    quantizer_facts,
)
from qmath.readers.settings.tfmot import class_names

__all__ = ["hear", "settings_of"]

_CLASS_KEY = re.compile(r"(?P<config>.+)\.(?P<role>weight|activation|output)s?")
_ARGUMENTS = ("num_bits", "per_axis", "symmetric", "narrow_range", "init_min", "init_max")


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


def hear(
    found: Sequence[Found], quantizers: Mapping[str, Any]
) -> tuple[list[Found], dict[str, list[Fact]], list[str]]:
    """Match what the user says to tensors.

    Parameters
    ----------
    found : sequence of Found
        All tensors of a model.
    quantizers : mapping of str to quantizer
        By ``QuantizeConfig`` class and role (``MyConfig.weights``), or by tensor glob.

    Returns
    -------
    found : list of Found
        The same; float tensors that the user gives a `FixedQuantizer` have its range.
    facts : dict of str to list of Fact
        By tensor name.
    notes : list of str

    Raises
    ------
    QmathError
        A value is no quantizer, a key matches nothing, or two that differ match one tensor.
    """
    items = {item.name: item for item in found}
    facts: dict[str, list[Fact]] = {}
    said: dict[str, str] = {}
    told: list[str] = []
    for key, quantizer in quantizers.items():
        settings = settings_of(quantizer)
        is_fixed = settings.kind == "FixedQuantizer"
        width = settings.arguments.get("num_bits")
        if settings.kind is None or not (
            is_fixed or settings.kind == "NoQuantizer" or is_width(width)
        ):
            raise QmathError(
                f"quantizers[{key!r}] is {quantizer!r}; it takes one of qmath's "
                f"quantizers, of 2 to 16 bits"
            )
        ends = [settings.arguments.get(end) for end in ("init_min", "init_max")]
        if is_fixed and not all(isinstance(x, (int, float)) and abs(x) < 3e38 for x in ends):
            raise QmathError(
                f"quantizers[{key!r}] is {quantizer!r}; its init_min and init_max must be finite "
                "numbers"
            )
        spoken = quantizer_facts(settings, "user", f"your quantizers[{key!r}] says")
        for name in _matches(key, list(items.values()), is_fixed):
            if name in said and _contents(facts[name]) != _contents(spoken):
                raise QmathError(
                    f"{name}: quantizers[{said[name]!r}] and quantizers[{key!r}] both "
                    f"match it and differ; make one of them narrower"
                )
            said[name], facts[name] = key, spoken
            if is_fixed and items[name].role == "float":
                items[name] = replace(
                    items[name],
                    role="weight",
                    is_stored=False,
                    min=np.asarray(ends[0], np.float32),
                    max=np.asarray(ends[1], np.float32),
                )
            if is_fixed and width != 8:
                told.append(notes.fixed_bits(name, width))
    return list(items.values()), facts, told


def _contents(facts: Sequence[Fact]) -> set[tuple[str, Any]]:
    return {(fact.field, fact.value) for fact in facts}


def _matches(key: str, found: Sequence[Found], is_fixed: bool) -> list[str]:
    """Return the tensors a key means, by ``QuantizeConfig`` class and role, or by glob."""
    quantized = [item for item in found if item.role != "float"]
    parts = _CLASS_KEY.fullmatch(key)
    names = [
        item.name
        for item in quantized
        if parts and item.role == parts["role"] and parts["config"] in class_names(item.layer)
    ]
    names = names or [
        item.name
        for item in ([i for i in found if not i.stored] if is_fixed else quantized)
        if item.name == key or fnmatchcase(item.name, key)
    ]
    if names:
        return names
    classes = sorted({name for item in found for name in class_names(item.layer)[:1]})
    floats = any(item.name == key or fnmatchcase(item.name, key) for item in found)
    raise QmathError(
        f"quantizers[{key!r}] matches {'only float tensors' if floats else 'nothing'}: there are "
        f"the QuantizeConfig classes {_listed(classes)} (say Class.weights, Class.activation or "
        f"Class.output) and the quantized tensors {_listed([item.name for item in quantized])}"
    )


def _listed(names: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
