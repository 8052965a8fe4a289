"""JSON from untrusted files: nesting and number length are bounded."""

from __future__ import annotations

import json
from typing import Any

from qmath.errors import FileFormatError

__all__ = ["MAX_BYTES", "parse_json"]

# Keras writes 1 KB for a layer of a small model; this lets ten thousand have 13 KB each.
MAX_BYTES = 1 << 27
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
        The text is not JSON, nests deeper than ``MAX_DEPTH`` or holds an absurdly long number.
    """
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
