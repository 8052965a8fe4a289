"""JSON from untrusted files: length, nesting, numbers, and how many values it holds are bounded."""

from __future__ import annotations

import json
from typing import Any

from qmath.errors import FileFormatError

__all__ = ["MAX_BYTES", "parse_json", "parse_long_json"]

# Keras writes about 1 KB for a layer; this lets ten thousand have 1.6 KB each.
MAX_BYTES = 1 << 24
# A value takes up to 72 bytes of memory and as few as two of text; in Keras's texts it takes 17.
# So many are allowed, and one more for each stretch of the text.
MAX_VALUES = 1 << 18
_BYTES_PER_VALUE = 24
# Lists with a number for each of some million channels.
_MAX_BYTES_LONG, _BYTES_PER_NUMBER = 1 << 28, 2
# Keras nests about five levels a submodel; readers of the result may recurse.
MAX_DEPTH = 200
MAX_DIGITS = 400


def parse_json(text: str | bytes, where: str, remedy: str = "save the model again") -> Any:
    """Return the value that a JSON text holds.

    Parameters
    ----------
    text : str or bytes
        UTF-8 if bytes.
    where : str
        File and place, for the error message.
    remedy : str
        What to do about a damaged file, for the error message.

    Raises
    ------
    FileFormatError
        The text is not JSON, is longer than ``MAX_BYTES``, holds more values than such texts do,
        nests deeper than ``MAX_DEPTH`` or holds an absurdly long number.
    """
    return _parse(text, where, remedy, MAX_BYTES, _BYTES_PER_VALUE)


def parse_long_json(text: str | bytes, where: str, remedy: str) -> Any:
    """As `parse_json`, of what qmath writes itself: longer, with long lists of numbers."""
    return _parse(text, where, remedy, _MAX_BYTES_LONG, _BYTES_PER_NUMBER)


def _parse(text: str | bytes, where: str, remedy: str, longest: int, bytes_per_value: int) -> Any:
    if len(text) > longest:
        raise FileFormatError(
            f"{where}: {len(text)} bytes of JSON are more than the {longest} that qmath reads; the "
            f"file is damaged or hostile, {remedy}"
        )
    values = _count(text)
    if values > MAX_VALUES + len(text) // bytes_per_value:
        raise FileFormatError(
            f"{where}: the JSON holds {values} values in {len(text)} bytes, which no model does; "
            f"the file is damaged or hostile, {remedy}"
        )
    try:
        value = json.loads(text, parse_int=_bounded_int)
        deep = _is_deeper(value, MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise FileFormatError(
            f"{where}: this is not JSON ({reason}); the file is damaged, {remedy}"
        ) from None
    if deep:
        raise FileFormatError(
            f"{where}: the JSON nests deeper than {MAX_DEPTH} levels, which no model does; the "
            f"file is damaged or hostile, {remedy}"
        )
    return value


def _count(text: str | bytes) -> int:
    """Return the most values that a JSON text can hold."""
    if isinstance(text, str):
        return sum(text.count(sign) for sign in ",[{")
    return sum(text.count(sign) for sign in b",[{")


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _is_deeper(value: Any, limit: int) -> bool:
    """Walk level by level, so that depth costs no stack."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
