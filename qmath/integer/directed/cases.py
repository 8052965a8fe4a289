"""What directed vectors are: arrays of one step, and what each of their elements is there for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError

__all__ = ["PURPOSES", "Cases", "Tags", "channels_text"]

Array = NDArray[Any]

# Bit i of a tag is the purpose i: the order is part of the format.
PURPOSES = (
    "greatest accumulator",
    "least accumulator",
    "upper clamp",
    "past the upper clamp",
    "lower clamp",
    "past the lower clamp",
    "below a tie",
    "above a tie",
    "half to even",
    "half away from zero",
    "double rounding",
    "16-bit multiplier",
    "12-bit multiplier",
    "narrow accumulator",
    "no rounding",
    "constant input",
    "border",
    "position",
    "every integer",
    "end of the range",
)
BIT = {purpose: number for number, purpose in enumerate(PURPOSES)}


@dataclass(frozen=True, eq=False)
class Cases:
    """The directed vectors of one step.

    Attributes
    ----------
    step : str
    inputs : mapping of str to ndarray
        By source, ``(N, …)``: unsigned integers, or the float32 values that a quantizer reads.
    expected : ndarray
        Unsigned integers, ``(N, …)``.
    tags : ndarray of uint32
        One row for each element that has a purpose: its index in `expected`, flattened, and its
        purposes as bits, of which bit `i` is ``PURPOSES[i]``.
    unreachable : mapping of str to mapping of str to str
        By purpose, the reasons why no input serves it, and the output channels.
    missed : mapping of str to str
        By purpose, the output channels in which it is not reached: for want of bytes, or because
        no input was found, nor a proof that there is none.
    """

    step: str
    inputs: Mapping[str, Array]
    expected: Array
    tags: NDArray[np.uint32]
    unreachable: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    missed: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        arrays = (*self.inputs.values(), self.expected, self.tags)
        return sum(array.nbytes for array in arrays)

    @property
    def purposes(self) -> dict[str, int]:
        """How many elements serve each purpose."""
        counts = ((self.tags[:, 1, None] >> np.arange(len(PURPOSES), dtype=np.uint32)) & 1).sum(0)
        return {name: int(n) for name, n in zip(PURPOSES, counts, strict=True) if n}

    def differences(self, made: ArrayLike) -> tuple[str, ...]:
        """Say in words how integers that another kernel made of `inputs` differ from `expected`.

        Parameters
        ----------
        made : array-like of integers
            Unsigned, as large as `expected`.

        Returns
        -------
        tuple of str
            Empty if all are equal; else the first difference, which purposes fail, and in the last
            line which never do.

        Raises
        ------
        QmathError
            The shape differs, or these are not integers.

        Examples
        --------
        >>> from qmath.integer.api import program_of
        >>> from qmath.integer.directed.vectors import directed_vectors
        >>> cases = directed_vectors(program_of("reference/samples/default8.h5"))["relu6/output"]
        >>> _, first, *_ = cases.differences(np.minimum(cases.expected, 254))
        >>> first
        'greatest accumulator: 16 of 16 wrong, the first in channel 0'
        """
        found = np.asarray(made)
        if found.shape != self.expected.shape or found.dtype.kind not in "iu":
            raise QmathError(
                f"{self.step}: expected integers of shape {self.expected.shape}, got "
                f"{found.dtype} of shape {found.shape}"
            )
        wrong = (found != self.expected).reshape(-1)
        if not wrong.any():
            return ()
        first = int(wrong.argmax())
        lines = [
            f"{self.step}: {np.count_nonzero(wrong)} of {wrong.size} integers differ, the first is "
            f"{found.reshape(-1)[first]} instead of {self.expected.reshape(-1)[first]}"
        ]
        channels = self.expected.shape[-1] if self.expected.ndim > 1 else 1
        is_wrong, right = wrong[self.tags[:, 0]], []
        for bit, purpose in enumerate(PURPOSES):
            has = (self.tags[:, 1] >> np.uint32(bit)) & np.uint32(1) == 1
            fails = np.flatnonzero(has & is_wrong)
            if len(fails):
                channel = int(self.tags[fails[0], 0]) % channels
                lines.append(
                    f"{purpose}: {len(fails)} of {np.count_nonzero(has)} wrong, the first in "
                    f"channel {channel}"
                )
            elif has.any():
                right.append(purpose)
        return (*lines, f"never wrong: {', '.join(right) or 'none'}")


class Tags:
    """Collects which elements of an array serve which purpose."""

    def __init__(self) -> None:
        self._purposes: dict[int, int] = {}

    def add(self, purpose: str, elements: Iterable[int]) -> None:
        """Note a purpose of elements, by their flat indices."""
        bit = 1 << BIT[purpose]
        for element in elements:
            self._purposes[int(element)] = self._purposes.get(int(element), 0) | bit

    def array(self) -> NDArray[np.uint32]:
        """Return the rows of `Cases.tags`, in the elements' order."""
        return np.array(sorted(self._purposes.items()), np.uint32).reshape(-1, 2)


def channels_text(channels: Iterable[int]) -> str:
    """Return channels as text, runs of them shortened.

    Examples
    --------
    >>> channels_text([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for channel in channels:
        if runs and runs[-1][1] == channel - 1:
            runs[-1][1] = int(channel)
        else:
            runs.append([int(channel)] * 2)
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)
