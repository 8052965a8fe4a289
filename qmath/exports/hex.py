"""The format ``hex``: the files of ``mem`` under the suffix that some tools ask for.

They hold words for ``$readmemh``, and are no Intel HEX records.
"""

from __future__ import annotations

from collections.abc import Iterator

from qmath.bundle import Bundle
from qmath.exports.mem import content
from qmath.exports.memories import files
from qmath.exports.testbench import testbenches

__all__ = ["render"]

VECTORS = 1  # without which there are no testbenches


def render(bundle: Bundle, *, per_word: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield what `qmath.exports.mem` yields, with ``.hex`` files."""
    listed = yield from files(bundle, ".hex", content, per_word)
    yield from testbenches(bundle, listed)
