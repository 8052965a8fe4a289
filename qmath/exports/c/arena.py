"""One block of memory for all tensors of the integer model: which bytes each of them takes.

Tensors that are never needed at the same time may share bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Buffer", "least_bytes", "plan"]


@dataclass(frozen=True)
class Buffer:
    """Bytes that are needed from one point in time to another, both included.

    Attributes
    ----------
    name : str
    size, alignment : int
        In bytes.
    first, last : int
    """

    name: str
    size: int
    alignment: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Return whether both are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


# No order is best for every model.
_ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda b: (-b.size, b.first),
    lambda b: (b.first - b.last, -b.size),
    lambda b: (b.first, -b.size),
    lambda b: (-b.size * (b.last - b.first + 1), b.first),
)


def plan(buffers: Sequence[Buffer]) -> tuple[dict[str, int], int]:
    """Return where each buffer begins, and how many bytes all of them take.

    Each buffer goes to the lowest place that is free for all of its time: the largest first, or
    in the order that needs fewer bytes.

    Examples
    --------
    >>> plan([Buffer("a", 8, 1, 0, 1), Buffer("b", 4, 1, 1, 2), Buffer("c", 8, 1, 2, 3)])
    ({'a': 0, 'c': 0, 'b': 8}, 12)
    """
    plans = (_in_order(sorted(buffers, key=order)) for order in _ORDERS)
    return min(plans, key=lambda planned: planned[1])


def least_bytes(buffers: Iterable[Buffer]) -> int:
    """Return the bytes of all buffers that are needed at once, where these are most.

    No plan takes less.
    """
    buffers = list(buffers)
    return max(
        (sum(b.size for b in buffers if b.first <= time <= b.last)
         for time in {b.first for b in buffers}),
        default=0,
    )  # fmt: skip


def _in_order(buffers: Iterable[Buffer]) -> tuple[dict[str, int], int]:
    starts: dict[str, int] = {}
    placed: list[Buffer] = []
    total = 0
    for buffer in buffers:
        start = 0
        others = sorted((starts[o.name], o.size) for o in placed if o.meets(buffer))
        for other, size in others:
            if start + buffer.size <= other:
                break
            start = max(start, _aligned(other + size, buffer.alignment))
        starts[buffer.name] = start
        placed.append(buffer)
        total = max(total, start + buffer.size)
    return starts, total


def _aligned(start: int, alignment: int) -> int:
    return -(-start // alignment) * alignment
