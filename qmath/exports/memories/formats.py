"""The formats ``mem``, ``hex``, ``coe`` and ``mif``: one text file for each memory.

``mem`` and ``hex`` are for Verilog's ``$readmemh``, one hexadecimal word a line; ``hex`` is only
the suffix that some tools ask for, and not Intel HEX. ``coe`` is for the memories of AMD (Xilinx)
Vivado and ISE, ``mif`` for those of Intel (Altera) Quartus.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from qmath.exports.bundle import Bundle
from qmath.exports.exporter import Content, Exporter, option
from qmath.exports.memories.testbench import testbenches
from qmath.exports.memories.words import MOST_PER_WORD, Memory, digits, files, table

__all__ = ["Coe", "Hex", "Mem", "Mif"]


def _readmemh(memory: Memory) -> bytes:
    """Return a memory as ``$readmemh`` takes it."""
    head = "".join(f"// {line}\n" for line in memory.comments)
    return head.encode() + table(digits(memory.words, memory.width), b"\n")


def _coe(memory: Memory) -> bytes:
    """Return a memory as Vivado takes it."""
    head = "".join(f"; {line}\n" for line in memory.comments)
    head += "memory_initialization_radix=16;\nmemory_initialization_vector=\n"
    words = table(digits(memory.words, memory.width), b",\n")
    return head.encode() + words[:-2] + b";\n"


def _mif(memory: Memory) -> bytes:
    """Return a memory as Quartus takes it."""
    depth = len(memory.words)
    head = "".join(f"-- {line}\n" for line in memory.comments)
    head += f"WIDTH={memory.width};\nDEPTH={depth};\n"
    head += "ADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\nCONTENT BEGIN\n"
    addresses = np.arange(depth).astype(">u8").view(np.uint8).reshape(-1, 8)
    words = digits(memory.words, memory.width)
    rows = table(digits(addresses, max(1, (depth - 1).bit_length())), b" : ", words, b";\n")
    return head.encode() + rows + b"END;\n"


class _Memories(Exporter):
    """A file for every array, and ``memories.json``."""

    name = ""
    is_folder = True
    text: Callable[[Memory], bytes]
    per_word: int = option(
        1,
        "how many values of a weight are in a word, the first in the lowest bits",
        range(1, MOST_PER_WORD + 1),
    )

    # VHDL's hread takes words alone.
    comments: bool = option(True, "begin each file with lines that say what it holds")

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield a file for every array, and ``memories.json``."""
        yield from self._listed(bundle)

    def _listed(
        self, bundle: Bundle
    ) -> Generator[tuple[str, Content], None, dict[str, dict[str, Any]]]:
        return (yield from files(
            bundle, f".{self.name}", type(self).text, self.per_word, comments=self.comments
        ))  # fmt: skip


class Mem(_Memories):
    """The format ``mem``, with a testbench for each convolution and dense layer.

    Examples
    --------
    >>> import qmath
    >>> from qmath.exports import quantize_model
    >>> files = dict(Mem().files(quantize_model(qmath.load("reference/samples/default8.h5"))))
    >>> print(files["conv1_kernel.mem"].decode()[:72])
    // conv1/kernel: 144 words of 8 bits
    // values: 8 bits, two's complement
    """

    name = "mem"
    vectors = 1  # without which there are no testbenches
    text = staticmethod(_readmemh)

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield a file for every array, ``memories.json``, and the testbenches."""
        listed = yield from self._listed(bundle)
        yield from testbenches(bundle, listed)


class Hex(Mem):
    """The format ``hex``: the files of ``mem`` under another suffix."""

    name = "hex"


class Coe(_Memories):
    """The format ``coe``."""

    name = "coe"
    text = staticmethod(_coe)


class Mif(_Memories):
    """The format ``mif``."""

    name = "mif"
    text = staticmethod(_mif)
