"""The format ``mem``: files for Verilog's ``$readmemh``, one hexadecimal word a line."""

from __future__ import annotations

from collections.abc import Iterator

from qmath.exports.bundle import Bundle
from qmath.exports.memories.testbench import testbenches
from qmath.exports.memories.words import Memory, digits, files, table

__all__ = ["content", "render"]

VECTORS = 1  # without which there are no testbenches


def render(bundle: Bundle, *, per_word: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield a ``.mem`` file for every array, ``memories.json``, and testbenches.

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
    >>> print(files["conv1_kernel.mem"].decode()[:72])
    // conv1/kernel: 144 words of 8 bits
    // values: 8 bits, two's complement
    """
    listed = yield from files(bundle, ".mem", content, per_word)
    yield from testbenches(bundle, listed)


def content(memory: Memory) -> bytes:
    """Return a memory as ``$readmemh`` takes it."""
    head = "".join(f"// {line}\n" for line in memory.comments)
    return head.encode() + table(digits(memory.words, memory.width), b"\n")
