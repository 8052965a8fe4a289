"""Judge results: how many differ, which, how far from a tie, and what else they agree with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmath.errors import FileFormatError, QmathError
from qmath.testing.differences import agreeing, axis_names, differing, patterns, shown
from qmath.testing.layer import CLASSES
from qmath.testing.pipe.layers import Layers
from qmath.testing.pipe.numbers import Numbers, Packing, Quantized, Requantized
from qmath.testing.pipe.records import dtype_of, read_header, read_results, write_cases
from qmath.testing.pipe.settings import Settings

__all__ = ["Judgement", "cases_of", "judge", "op_of"]

Array = NDArray[Any]
_LISTED = 5
_MOST_NUMBERS = 1 << 28  # of all cases, before memory is taken for them


@dataclass(frozen=True)
class Judgement:
    """What was found in a stream of results.

    Attributes
    ----------
    what : str
        The op and its settings.
    elements, differing : int
        Results compared, and those that differ.
    cases, differing_cases : int
    first : tuple of str
        The first few that differ, in words.
    patterns : tuple of str
        What all that differ have in common.
    agrees_with : tuple of str
        Other arithmetics with which every result agrees.
    """

    what: str
    elements: int
    differing: int
    cases: int
    differing_cases: int
    first: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    agrees_with: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differing

    def lines(self) -> Iterator[str]:
        """Yield the judgement in words."""
        if self.ok:
            yield f"equal: {self.elements:,} results of {self.cases:,} cases ({self.what})"
            return
        yield (
            f"{self.differing:,} of {self.elements:,} results differ, in {self.differing_cases:,} "
            f"of {self.cases:,} cases ({self.what})"
        )
        yield from (f"  {line}" for line in self.first)
        yield from self.patterns
        for name in self.agrees_with:
            yield f"all agree under {name}"


def op_of(settings: Settings) -> Numbers:
    """Return the op that makes and judges the cases of settings."""
    if settings.op in CLASSES:
        return Layers(settings)
    kinds = {"requantize": Requantized, "packing": Packing}
    return kinds.get(settings.op, Quantized)(settings)


def cases_of(settings: Settings, *, is_binary: bool = False) -> Iterator[bytes]:
    """Yield the stream of cases that settings give.

    Raises
    ------
    QmathError
        All cases together are too large.

    Examples
    --------
    >>> from qmath.testing.pipe.settings import settings_for
    >>> stream = b"".join(cases_of(settings_for("packing", bits=4, shape=(3,), count=2)))
    >>> print(stream.decode().splitlines()[2])
    values=0,-1,0
    """
    op = op_of(settings)
    size = sum(math.prod(field.shape) for field in (*op.case, op.result))
    if settings.count * size > _MOST_NUMBERS:
        raise QmathError(
            f"{settings.op}: {settings.count:,} cases of {size:,} numbers are too large, all may "
            f"have {_MOST_NUMBERS:,}: give a count of at most {_MOST_NUMBERS // size:,}, or a "
            "smaller shape"
        )
    yield from write_cases(settings, op.cases(), op.result, is_binary=is_binary)


def judge(stream: BinaryIO, op: str, where: str = "standard input") -> Judgement:
    """Judge a stream of results: that of cases, each with a kernel's result after it.

    Parameters
    ----------
    stream : binary file
    op : str
        Whose results are expected.
    where : str
        The stream's name, for error messages.

    Raises
    ------
    FileFormatError
        The stream is not what `docs/testing.md` says, results are missing, or of another op.
    """
    first = stream.readline(1 << 14)
    try:
        header = read_header(first, where)
    except FileFormatError:
        raise
    except QmathError as error:
        raise FileFormatError(f"{where}: {error}") from error
    if header.settings.op != op:
        raise FileFormatError(f"{where} holds results of {header.settings.op}, not of {op}")
    made = op_of(header.settings)
    cases, mine = read_results(stream, header, dtype_of(made.case), made.result, where)
    return _judged(made, cases, mine)


def _judged(op: Numbers, cases: Array, mine: Array) -> Judgement:
    expected = op.expected(cases)
    differs = differing(mine, expected)
    what, count = op.settings.header(), int(differs.sum())
    wrong = differs.reshape(len(cases), -1).any(axis=1)
    if not count:
        return Judgement(what, mine.size, 0, len(cases), 0)
    names = ("case", *axis_names(mine.ndim)[1:]) if mine.ndim > 1 else ("case",)
    return Judgement(
        what, mine.size, count, len(cases), int(wrong.sum()),
        tuple(_listed(op, cases, mine, expected, differs)),
        tuple(patterns(mine, expected, names)),
        tuple(agreeing(mine, op.others(cases))),
    )  # fmt: skip


def _listed(
    op: Numbers, cases: Array, mine: Array, expected: Array, differs: NDArray[np.bool_]
) -> Iterator[str]:
    """Yield the first results that differ, in words."""
    for place in np.argwhere(differs)[:_LISTED]:
        number, index = int(place[0]), tuple(int(i) for i in place[1:])
        where = f"{op.result.name}[{','.join(map(str, index))}]" if index else op.result.name
        got, wanted = (shown(x[tuple(place)]) for x in (mine, expected))
        exact = op.exactly(cases[number], index)
        tie = "" if exact is None else f"; exactly {exact[0]:.9g} steps, {exact[1]:.3g} from a tie"
        yield f"case {number}: {where} is {got}, expected {wanted}{tie}{_inputs(cases[number])}"


def _inputs(case: Any) -> str:
    """Return the fields of a case that are single numbers."""
    words = [f"{name}={shown(case[name])}" for name in case.dtype.names if not case[name].shape]
    return f"; {', '.join(words)}" if words and len(words) == len(case.dtype.names) else ""
