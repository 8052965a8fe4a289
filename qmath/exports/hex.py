"""The format ``hex``: the files of ``mem`` under the suffix that some tools ask for.

They hold words for ``$readmemh``, and are no Intel HEX records.
"""

from __future__ import annotations

from collections.abc import Iterator

from qmath.bundle import Bundle
from qmath.exports.mem import content
from qmath.exports.memories import files

__all__ = ["render"]


def render(bundle: Bundle, *, per_word: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield a ``.hex`` file for every array, and ``memories.json``: see `qmath.exports.mem`."""
    yield from files(bundle, ".hex", content, per_word)
