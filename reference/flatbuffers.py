"""TFLite files as plain values, and back: what tests and mutants change and write again.

Written from the schema's table alone, without the reader that it is to test.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qmath.containers.tflite.schema import (
    IDENTIFIER,
    OPTION_NUMBERS,
    SCALARS,
    TABLES,
    Field,
)

__all__ = ["altered", "decoded", "encoded"]

Values = dict[str, Any]
_NAMED_BY = {number: name for name, number in OPTION_NUMBERS.items()}


def decoded(content: bytes) -> Values:
    """Return the model that a file holds, by field; a union's table has its kind under ``kind``."""
    return _table(content, _number("<I", content, 0), "Model")


def _number(code: str, content: bytes, at: int) -> Any:
    return struct.unpack_from(code, content, at)[0]


def _table(content: bytes, at: int, kind: str) -> Values:
    vtable = at - _number("<i", content, at)
    slots = (_number("<H", content, vtable) - 4) // 2
    values: Values = {}
    for field in TABLES[kind]:
        offset = _number("<H", content, vtable + 4 + 2 * field.slot) if field.slot < slots else 0
        if offset:
            values[field.name] = _field(content, at + offset, field, values)
    return {name: value for name, value in values.items() if value is not None}


def _field(content: bytes, at: int, field: Field, before: Values) -> Any:
    scalar = SCALARS.get(field.element)
    if scalar and not field.is_vector:
        return np.frombuffer(content, scalar, 1, at)[0].item()
    target = at + _number("<I", content, at)
    if field.kind == "union":
        kind = _NAMED_BY.get(before.get("builtin_options_type", 0))
        return None if kind is None else {"kind": kind, **_table(content, target, kind)}
    if not field.is_vector and field.kind != "string":
        return _table(content, target, field.kind)
    count = _number("<I", content, target)
    if field.kind == "string":
        return content[target + 4 : target + 4 + count].decode()
    if scalar:
        return np.frombuffer(content, scalar, count, target + 4)
    places = [target + 4 + 4 * i for i in range(count)]
    return [
        _table(content, place + _number("<I", content, place), field.element) for place in places
    ]


def encoded(model: Values) -> bytes:
    """Return the bytes of a file that holds a model."""
    out = bytearray(4) + IDENTIFIER
    _point(out, 0, _write_table(out, "Model", model))
    return bytes(out)


def altered(rng: np.random.Generator, content: bytes) -> bytes:
    """Return a file whose model says something else in one to three places."""
    model = decoded(content)
    for _ in range(1 + int(rng.random() < 0.4) + int(rng.random() < 0.2)):
        holders = list(_holders(model))
        holder = holders[int(rng.integers(len(holders)))]
        keys = [*holder] if isinstance(holder, dict) else [*range(len(holder))]
        key = keys[int(rng.integers(len(keys)))]
        if key != "kind":
            holder[key] = _other(rng, holder[key], holders)
    return encoded(model)


def _holders(value: Any) -> Iterator[Any]:
    """Yield every table and vector that holds something."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item)


def _other(rng: np.random.Generator, value: Any, holders: Sequence[Any]) -> Any:
    """Return another value of the same kind; of a table or a list, one that is elsewhere."""
    if isinstance(value, np.ndarray):
        cut = value.size if rng.random() < 0.7 else int(rng.integers(value.size + 1))
        array = value[:cut].copy()
        if array.size:
            odd = [0, 1, -1, 2, 7, 127, 255, 65535, 2**31 - 1, float("nan"), float("inf"), 1e-30]
            with np.errstate(all="ignore"):
                array[int(rng.integers(array.size))] = np.array(
                    odd[int(rng.integers(len(odd) if array.dtype.kind == "f" else 9))]
                ).astype(array.dtype)
        return array if rng.random() < 0.8 else np.concatenate([array, array])
    if isinstance(value, str):
        return ["", "/", "a/b;c", "\n", "x" * 300, value + "1"][int(rng.integers(6))]
    if isinstance(value, dict):
        alike = [h for h in holders if isinstance(h, dict) and set(h) == set(value)]
        other = dict(value) if not alike else dict(alike[int(rng.integers(len(alike)))])
        return {**other, "kind": value["kind"]} if "kind" in value else _without_kind(other)
    if isinstance(value, list):
        cut = int(rng.integers(len(value))) if value else 0
        return [*value, *value[:1]] if rng.random() < 0.5 else value[:cut]
    odd = [0, 1, -1, 2, 3, 4, 5, 9, 17, 19, 32, 127, 255, 65535, 2**31 - 1]
    return odd[int(rng.integers(len(odd)))]


def _without_kind(values: Values) -> Values:
    return {name: value for name, value in values.items() if name != "kind"}


def _align(out: bytearray, size: int, extra: int = 0) -> None:
    out.extend(bytes(-(len(out) + extra) % size))


def _point(out: bytearray, at: int, target: int) -> None:
    struct.pack_into("<I", out, at, target - at)


def _write_table(out: bytearray, kind: str, values: Values) -> int:
    """Append a table and all below it; return where it lies."""
    fields = [field for field in TABLES[kind] if field.name in values]
    slots = 1 + max((field.slot for field in fields), default=-1)
    offsets, size = [0] * slots, 4
    for field in fields:
        width = np.dtype(SCALARS.get(field.kind, "<u4")).itemsize
        size += -size % width
        offsets[field.slot], size = size, size + width
    _align(out, 8, 4 + 2 * slots)
    vtable = len(out)
    out += struct.pack(f"<HH{slots}H", 4 + 2 * slots, size, *offsets)
    at = len(out)
    out += struct.pack("<i", at - vtable) + bytes(size - 4)
    for field in fields:
        place, value = at + offsets[field.slot], values[field.name]
        if field.kind in SCALARS:
            data = np.array(value).astype(SCALARS[field.kind]).tobytes()
            out[place : place + len(data)] = data
        else:
            _point(out, place, _write(out, field, value))
    return at


def _write(out: bytearray, field: Field, value: Any) -> int:
    if field.kind == "union":
        return _write_table(out, value["kind"], value)
    if field.kind == "string" or field.element in SCALARS:
        data = value.encode() if field.kind == "string" else None
        array = np.frombuffer(data, np.uint8) if data is not None else np.asarray(value)
        array = array.astype(SCALARS.get(field.element, "<u1"))
        _align(out, 16, 4)
        at = len(out)
        out += struct.pack("<I", array.size) + array.tobytes() + b"\0"
        return at
    if not field.is_vector:
        return _write_table(out, field.kind, value)
    _align(out, 4)
    at = len(out)
    out += struct.pack("<I", len(value)) + bytes(4 * len(value))
    for i, item in enumerate(value):
        _point(out, at + 4 + 4 * i, _write_table(out, field.element, item))
    return at
