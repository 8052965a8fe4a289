"""The format ``mif``: memory initialization files of Intel (Altera) Quartus."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qmath.exports.bundle import Bundle
from qmath.exports.memories.words import Memory, digits, files, table

__all__ = ["render"]


def render(bundle: Bundle, *, per_word: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield a ``.mif`` file for every array, and ``memories.json``.

    Parameters
    ----------
    bundle : Bundle
    per_word : int
        How many values of a weight are in a word, the first in the lowest bits.

    Examples
    --------
    >>> import qmath
    >>> from qmath.exports.bundle import quantize_model
    >>> files = dict(render(quantize_model(qmath.load("reference/samples/default8.h5"))))
    >>> print(files["conv1_kernel.mif"].decode()[:72])
    -- conv1/kernel: 144 words of 8 bits
    -- values: 8 bits, two's complement
    """
    yield from files(bundle, ".mif", _content, per_word)


def _content(memory: Memory) -> bytes:
    depth = len(memory.words)
    head = "".join(f"-- {line}\n" for line in memory.comments)
    head += f"WIDTH={memory.width};\nDEPTH={depth};\n"
    head += "ADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\nCONTENT BEGIN\n"
    addresses = np.arange(depth).astype(">u8").view(np.uint8).reshape(-1, 8)
    words = digits(memory.words, memory.width)
    rows = table(digits(addresses, max(1, (depth - 1).bit_length())), b" : ", words, b";\n")
    return head.encode() + rows + b"END;\n"
