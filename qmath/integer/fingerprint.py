"""A hash of what is computed: the same in every process, whatever made the objects."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

__all__ = ["fingerprint"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype)


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a value's content, as hexadecimal digits.

    Functions count with their code, and with what they hold. What objects keep for speed, in a
    ``WeakKeyDictionary`` or a dataclass's cached properties, does not count.

    Examples
    --------
    >>> fingerprint({"a": [1, 2.0]}) == fingerprint({"a": [1, 2.0]})
    True
    >>> fingerprint([1]) == fingerprint((1,)), fingerprint(1) == fingerprint(1.0)
    (False, False)
    """
    content = hashlib.sha256()
    _feed(value, content.update, [])
    return content.hexdigest()


def _feed(value: Any, update: Callable[[bytes], object], within: list[int]) -> None:
    """Feed a value's kind and content; what holds itself, by how far above that is."""
    kind = type(value)
    update(f"<{kind.__module__}.{kind.__qualname__}>".encode())
    if isinstance(value, _PLAIN):
        update(repr(value).encode())
        return
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        update(f"{value.dtype.str}{value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
        return
    if id(value) in within:
        update(f"#{len(within) - within.index(id(value))}".encode())
        return
    within.append(id(value))
    for part in _parts(value):
        update(b"(")
        _feed(part, update, within)
        update(b")")
    within.pop()


def _parts(value: Any) -> list[Any]:
    """Return what a value consists of."""
    if isinstance(value, WeakKeyDictionary):
        return []
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, (set, frozenset)):
        return sorted(map(fingerprint, value))
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, np.ufunc)):
        return [getattr(value, "__module__", ""), value.__name__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__module__, value.__qualname__, value.__code__, value.__defaults__, held]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if is_dataclass(value):
        return [part for f in fields(value) for part in (f.name, getattr(value, f.name))]
    if hasattr(value, "__getstate__"):  # every object's from Python 3.11 on
        return [value.__getstate__()]
    return [getattr(value, "__dict__", None)]
