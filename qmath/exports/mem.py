"""The format ``mem``: files for Verilog's ``$readmemh``, one hexadecimal word a line."""

from __future__ import annotations

from collections.abc import Iterator

from qmath.bundle import Bundle
from qmath.exports.memories import Memory, digits, files, table
from qmath.exports.testbench import testbenches

__all__ = ["content", "render"]

VECTORS = 1  # without which there are no testbenches


def render(bundle: Bundle, *, per_word: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield a ``.mem`` file for every array, ``memories.json``, and testbenches.

    Parameters
    ----------
    bundle : Bundle
    per_word : int
        How many values of a weight are in a word, the first in the lowest bits.
    """
    listed = yield from files(bundle, ".mem", content, per_word)
    yield from testbenches(bundle, listed)


def content(memory: Memory) -> bytes:
    """Return a memory as ``$readmemh`` takes it."""
    head = "".join(f"// {line}\n" for line in memory.comments)
    return head.encode() + table(digits(memory.words, memory.width), b"\n")
