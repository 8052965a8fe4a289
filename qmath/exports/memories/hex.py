"""The format ``hex``: the files of ``mem`` under the suffix that some tools ask for.

They hold words for ``$readmemh``, and are no Intel HEX records.
"""

from __future__ import annotations

from collections.abc import Iterator

from qmath.exports.bundle import Bundle
from qmath.exports.memories.mem import content
from qmath.exports.memories.testbench import testbenches
from qmath.exports.memories.words import files

__all__ = ["render"]

VECTORS = 1  # without which there are no testbenches


def render(bundle: Bundle, *, per_word: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield what `qmath.exports.memories.mem` yields, with ``.hex`` files."""
    listed = yield from files(bundle, ".hex", content, per_word)
    yield from testbenches(bundle, listed)
