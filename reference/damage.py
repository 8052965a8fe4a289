"""Damage of bytes at random, whatever they hold.

`reference.structures` changes what files say, and leaves them files of their kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["EXTREMES", "mutate"]

# What counters, offsets and lengths overflow at.
EXTREMES = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40,
            2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip

Mutate = Callable[[np.random.Generator, bytes], bytes]


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Return data with one to three kinds of damage."""
    for _ in range(1 + (rng.random() < 0.3) + (rng.random() < 0.1)):
        if not data:
            break
        data = KINDS[rng.choice(len(KINDS), p=ODDS)](rng, data)
    return data


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip one to four bits."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        out[_place(rng, out)] ^= 1 << rng.integers(8)
    return bytes(out)


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    """Write a number that matters over one, two, four or eight bytes."""
    size = int(rng.choice([1, 2, 4, 8]))
    number = int(rng.choice(np.array([*EXTREMES, len(data)], object)))
    if rng.random() < 0.3:
        number = int(rng.integers(1 << 32))
    order = "little" if rng.random() < 0.9 else "big"
    at = _place(rng, data)
    return data[:at] + (number % (1 << 8 * size)).to_bytes(size, order) + data[at + size :]


def scramble(rng: np.random.Generator, data: bytes) -> bytes:
    """Write zeros, ones or noise over up to 64 bytes."""
    at, size = _place(rng, data), int(rng.integers(1, 65))
    size = min(size, len(data) - at)
    fill = [bytes(size), b"\xff" * size, rng.bytes(size)][rng.integers(3)]
    return data[:at] + fill + data[at + size :]


def copy(rng: np.random.Generator, data: bytes) -> bytes:
    """Write a part over another."""
    start, at, size = _place(rng, data), _place(rng, data), int(rng.integers(1, 257))
    part = data[start : start + size]
    return data[:at] + part + data[at + len(part) :]


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    """Leave out the end."""
    return data[: _place(rng, data)]


def shift(rng: np.random.Generator, data: bytes) -> bytes:
    """Leave out, or repeat, up to 64 bytes."""
    at, size = _place(rng, data), int(rng.integers(1, 65))
    return data[:at] + (data[at + size :] if rng.random() < 0.5 else data[max(at - size, 0) :])


def _place(rng: np.random.Generator, data: Sequence[int]) -> int:
    return int(rng.integers(len(data)))


KINDS: tuple[Mutate, ...] = (flip, overwrite, scramble, copy, cut, shift)
ODDS = (0.4, 0.3, 0.1, 0.1, 0.05, 0.05)
