"""The format ``coe``: coefficient files for the memories of AMD (Xilinx) Vivado and ISE."""

from __future__ import annotations

from collections.abc import Iterator

from qmath.exports.bundle import Bundle
from qmath.exports.memories.words import Memory, digits, files, table

__all__ = ["render"]


def render(bundle: Bundle, *, per_word: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield a ``.coe`` file for every array, and ``memories.json``.

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
    >>> print(files["conv1_kernel.coe"].decode()[:70])
    ; conv1/kernel: 144 words of 8 bits
    ; values: 8 bits, two's complement
    """
    yield from files(bundle, ".coe", _content, per_word)


def _content(memory: Memory) -> bytes:
    head = "".join(f"; {line}\n" for line in memory.comments)
    head += "memory_initialization_radix=16;\nmemory_initialization_vector=\n"
    words = table(digits(memory.words, memory.width), b",\n")
    return head.encode() + words[:-2] + b";\n"
