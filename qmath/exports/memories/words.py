"""Arrays as the contents of memories: what the formats for hardware have in common.

Every array that has elements is one memory, its words in C order, written as hexadecimal digits.
``docs/memories.md`` is the specification.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.output.identifiers import Identifiers
from qmath.kernels.packing import pack

__all__ = ["MOST_PER_WORD", "Memory", "ascii_text", "digits", "files", "memories", "table"]

Bytes = NDArray[np.uint8]
MOST_PER_WORD = 1024
_SIGNED, _UNSIGNED = "two's complement", "unsigned"


class Memory(NamedTuple):
    """The content of a memory.

    Attributes
    ----------
    key : str
        As `qmath.exports.bundle.Bundle.arrays` names the array.
    identifier : str
        Of the manifest: the name of file and memory.
    words : ndarray of uint8
        One row a word, its highest byte first; the bits above `width` are 0.
    width : int
        Bits of a word.
    encoding : str
        Of a value: ``"two's complement"``, ``"unsigned"``, or a float's dtype.
    per_word : int
        Values in a word, the first in the lowest bits.
    shape : tuple of int
        Of the array.
    layout : str or None
        Letters of its axes.
    comments : tuple of str
        Lines of ASCII for the file's reader.
    """

    key: str
    identifier: str
    words: Bytes
    width: int
    encoding: str
    per_word: int
    shape: tuple[int, ...]
    layout: str | None
    comments: tuple[str, ...] = ()

    @property
    def described(self) -> Memory:
        """The memory with comments."""
        bits = f"{self.width // self.per_word} bits, {self.encoding}"
        layout = f" ({self.layout})" if self.layout else ""
        lines = [
            f"{ascii_text(self.key)}: {len(self.words)} words of {self.width} bits",
            f"values: {bits}; an array of shape {list(self.shape)}{layout}",
            "order: word 0 first; the array's last index changes fastest",
        ]
        if self.per_word > 1:
            lines.append(f"{self.per_word} values in a word, the first in the lowest bits")
        return self._replace(comments=tuple(lines))


def memories(bundle: Bundle, per_word: int = 1) -> Iterator[Memory]:
    """Yield the memories of a bundle, one after another.

    Parameters
    ----------
    bundle : Bundle
    per_word : int
        How many values of a weight are in a word; the last word is filled up with zeros.

    Raises
    ------
    OutputError
        A tensor holds other than real numbers.

    Examples
    --------
    >>> import qmath
    >>> from qmath.exports.bundle import quantize_model
    >>> bundle = quantize_model(qmath.load("reference/samples/integer4.h5"))
    >>> found = {memory.key: memory for memory in memories(bundle, per_word=16)}
    >>> found["conv1/kernel"].width, len(found["conv1/kernel"].words)
    (64, 9)
    """
    identifiers = Identifiers(bundle.keys())
    steps = bundle.program.quantized if bundle.program else ()
    bits = {step.name: step.params.num_bits for step in steps}
    widths = {f"vectors/{name}": width for name, width in bits.items()}
    for name, entry in bundle.manifest.get("directed", {"steps": {}})["steps"].items():
        widths[entry["expected"]] = bits[name]
        widths |= {key: bits[source] for source, key in entry["inputs"].items() if source in bits}
    for key, array in bundle.arrays():
        entry = bundle.manifest["tensors"].get(key, {})
        if not array.size:
            continue
        if entry.get("role") == "weight":
            width, count = entry["num_bits"], per_word
            encoding = _SIGNED if entry["signed"] else _UNSIGNED
            rows = np.zeros((-(-array.size // count), count), array.dtype)
            rows.ravel()[: array.size] = array.ravel()
            words = pack(rows, width, "lsb", axis=1, signed=entry["signed"])[:, ::-1]
        else:
            count = 1
            words, width, encoding = _words(key, array, widths.get(key))
        yield Memory(
            key, identifiers[key], words, width * count, encoding, count, array.shape,
            entry.get("layout"),
        )  # fmt: skip


def _words(key: str, array: NDArray[Any], width: int | None) -> tuple[Bytes, int, str]:
    """Return the words of an array that is no weight, their width and encoding."""
    if array.dtype.kind == "f":
        width, encoding = 8 * array.itemsize, str(array.dtype.newbyteorder("="))
        bits = array.ravel().view(f"{array.dtype.byteorder}u{array.itemsize}").astype(np.uint64)
    elif array.dtype.kind in "iub":
        sign = array.dtype.kind == "i"
        encoding = _SIGNED if sign else _UNSIGNED
        ends = (int(array.min()), int(array.max()))
        needed = max((end if end >= 0 else ~end).bit_length() for end in ends) + sign
        width = width or max(1, needed)
        bits = array.ravel().astype(np.int64 if sign else np.uint64).view(np.uint64)
        bits = bits & np.uint64((1 << width) - 1)
    else:
        raise OutputError(f"{key}: a memory cannot hold {array.dtype}; export to npz")
    return bits.astype(">u8").view(np.uint8).reshape(-1, 8), width, encoding


def digits(words: Bytes, width: int) -> Bytes:
    """Return the hexadecimal digits of words, one row a word, as ASCII.

    Examples
    --------
    >>> digits(np.array([[1, 44], [0, 7]], np.uint8), 9).tobytes()
    b'12c007'
    """
    text = np.frombuffer(words.tobytes().hex().encode(), np.uint8)
    return text.reshape(len(words), -1)[:, -((width + 3) // 4) :]


def table(*columns: Bytes | bytes) -> bytes:
    r"""Return the rows of columns of ASCII one after the other; constant ones as bytes.

    Examples
    --------
    >>> table(digits(np.array([[1, 44], [0, 7]], np.uint8), 9), b",\n")
    b'12c,\n007,\n'
    """
    depth = next(len(column) for column in columns if not isinstance(column, bytes))
    full = [
        np.broadcast_to(np.frombuffer(column, np.uint8), (depth, len(column)))
        if isinstance(column, bytes)
        else column
        for column in columns
    ]
    return np.hstack(full).tobytes()


def ascii_text(text: str) -> str:
    r"""Return a name as ASCII, other characters as ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``."""
    return text.encode("ascii", "backslashreplace").decode()


def files(
    bundle: Bundle,
    suffix: str,
    content: Callable[[Memory], bytes],
    per_word: int,
    *,
    comments: bool = True,
) -> Generator[tuple[str, bytes], None, dict[str, dict[str, Any]]]:
    """Yield a file for every memory, and ``memories.json``, whose content is returned.

    Parameters
    ----------
    bundle : Bundle
    suffix : str
        Of the files.
    content : callable
        Returns what is to be written of a memory.
    per_word : int
        As of `memories`.
    comments : bool
        Whether each file begins with lines that say what it holds.
    """
    listed: dict[str, dict[str, Any]] = {}
    for memory in memories(bundle, per_word):
        name = memory.identifier + suffix
        yield name, content(memory.described if comments else memory)
        listed[name] = {
            "array": memory.key,
            "depth": len(memory.words),
            "width": memory.width,
            "encoding": memory.encoding,
            "values_per_word": memory.per_word,
            "shape": list(memory.shape),
            "layout": memory.layout,
        }
    yield "memories.json", json.dumps(listed, indent=1).encode() + b"\n"
    return listed
