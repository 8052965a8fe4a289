"""The words of C: literals, arrays, comments, strings."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import OutputError

__all__ = [
    "array",
    "c_type",
    "checksum",
    "comment",
    "declaration",
    "header",
    "literals",
    "plain",
    "storable",
    "string",
    "template",
    "text",
    "title",
]

_WIDTH = 100
_FLOATS = {4: "float", 8: "double"}


def template(name: str) -> bytes:
    """Return a file of this package that is exported as it is."""
    return (resources.files(__package__) / name).read_bytes()


def storable(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return an array in the next wider dtype that C has, without a change of any value."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return array.astype(np.uint8)
    if kind in "iu" and size <= 8:
        return array.astype(array.dtype.newbyteorder("="))
    if kind == "f" and size <= 8:
        return array.astype(np.float64 if size == 8 else np.float32)
    raise OutputError(f"{name}: C has no type for {array.dtype}; export to npz")


def c_type(dtype: np.dtype[Any]) -> str:
    """Return the C type of a dtype that `storable` returned."""
    if dtype.kind == "f":
        return _FLOATS[dtype.itemsize]
    return f"{'u' * (dtype.kind == 'u')}int{8 * dtype.itemsize}_t"


def literals(values: NDArray[Any]) -> list[str]:
    """Return each value in decimals that give it back exactly."""
    if values.dtype.kind != "f":
        if values.dtype.itemsize < 8:
            return [*map(str, values.ravel().tolist())]
        ending = "u" * (values.dtype.kind == "u")
        # -2**63 is no literal: its minus sign is applied to 2**63.
        least = "(-9223372036854775807 - 1)"
        return [least if v == -(2**63) else f"{v}{ending}" for v in values.ravel().tolist()]
    ending, digits = ("f", 9) if values.dtype.itemsize == 4 else ("", 17)
    return [_float(value, digits, ending) for value in values.ravel().tolist()]


def _float(value: float, digits: int, ending: str) -> str:
    if not np.isfinite(value):
        return "NAN" if np.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"
    text = f"{value:.{digits}g}"
    return (text if "." in text or "e" in text else text + ".0") + ending


def declaration(name: str, values: NDArray[Any]) -> str:
    """Return ``const <type> name[size]``; C has no arrays of no elements."""
    return f"const {c_type(values.dtype)} {name}[{max(values.size, 1)}]"


def array(name: str, values: NDArray[Any], storage: str = "") -> str:
    """Return the definition of a constant array."""
    found = literals(values) or ["0"]
    in_line = max(1, (_WIDTH - 4) // (max(map(len, found)) + 2))
    lines = (found[start : start + in_line] for start in range(0, len(found), in_line))
    body = ",\n    ".join(", ".join(line) for line in lines)
    return f"{storage}{declaration(name, values)} = {{\n    {body}\n}};\n"


def plain(text: str) -> str:
    """Return text that a comment can hold: ASCII, and nothing that ends or nests it."""
    ascii = text.encode("ascii", "backslashreplace").decode().replace("\n", " ")
    return ascii.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")


def comment(text: str) -> str:
    """Return a comment."""
    return f"/* {plain(text)} */"


def title(manifest: Mapping[str, Any]) -> str:
    """Return the end of a sentence, and of a comment, that says what a file was made from."""
    file = plain(manifest["source"]["file"] or "a live model")
    return f"{file}, by qmath {manifest['qmath_version']}; do not edit. */"


def text(lines: Iterable[str]) -> bytes:
    """Return the bytes of a file."""
    return ("\n".join(lines).rstrip("\n") + "\n").encode("ascii")


def header(name: str, head: Iterable[str], body: Iterable[str]) -> bytes:
    """Return a header file: a guard, what stands above the declarations, and these."""
    guard = name.upper().replace(".", "_")
    return text([
        f"#ifndef {guard}", f"#define {guard}", "", *head, "",
        "#ifdef __cplusplus", 'extern "C" {', "#endif", *body, "",
        "#ifdef __cplusplus", "}", "#endif", "", "#endif",
    ])  # fmt: skip


def string(text: str) -> str:
    """Return a string literal of text in UTF-8."""
    escaped = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{"".join(escaped)}"'


def checksum(values: NDArray[Any]) -> str:
    """Return as a literal the CRC-32 of values as ``qmath_check.h`` takes it."""
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
    if values.dtype.itemsize < 4:
        values = values.view(f"u{values.dtype.itemsize}").astype(np.uint32)
    words = values.astype(values.dtype.newbyteorder("<"))
    return f"0x{zlib.crc32(words.tobytes()):08x}u"


def braces(values: Sequence[object]) -> str:
    """Return an initializer."""
    return f"{{{', '.join(map(str, values))}}}"
