"""Which of equally spaced numbers is least modulo another: exact, in few steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["least_residues", "least_roots"]

Int64Array = NDArray[np.int64]
_KEPT = 4


def least_residues(a: int, b: int, modulus: int, last: int) -> list[int]:
    """Return the `x` from 0 to `last` at which ``(a * x + b) % modulus`` is least.

    The steps that lower the residue are those of Euclid's algorithm, so that there are about as
    many as the modulus has bits.

    Returns
    -------
    list of int
        The best first, then up to three that were the best before it.

    Examples
    --------
    >>> least_residues(7, 5, 32, 20), [(7 * x + 5) % 32 for x in (13, 4, 0)]
    ([13, 4, 0], [0, 1, 5])
    """
    x, residue = 0, b % modulus
    up, up_length = a % modulus, 1
    down, down_length = modulus - up, 1
    found = [0]
    while residue and up:
        if down <= residue:
            count = min(residue // down, (last - x) // down_length)
            if not count:
                break
            found += [x + i * down_length for i in range(max(1, count - _KEPT), count + 1)]
            x += count * down_length
            residue -= count * down
            continue
        # A smaller step down: steps up are added to it, each as small as it can be.
        most = (down - 1) // up
        count = min(most, -((residue - down) // up))
        down -= count * up
        down_length += count * up_length
        if down > residue:
            shrink = (up - 1) // down
            if not shrink and not count:
                break
            up -= shrink * down
            up_length += shrink * down_length
        if down_length > last - x:
            break
    return found[: -_KEPT - 1 : -1]


def least_roots(
    multiplier: int, addends: Int64Array, shift: int, low: int
) -> tuple[Int64Array, NDArray[np.bool_]]:
    """Return for each addend the least `a` from `low` on with ``a * multiplier + addend`` on a tie.

    That is a multiple of ``2**shift``. Also which addends have one.
    """
    twos = (multiplier & -multiplier).bit_length() - 1 if multiplier else shift
    if twos >= shift:
        return np.full(len(addends), low, np.int64), addends % (1 << shift) == 0
    period = 1 << (shift - twos)
    inverse = np.uint64(pow(multiplier >> twos, -1, period))
    root = (-(addends >> twos)).astype(np.uint64) * inverse  # modulo 2**64
    past = (root - np.uint64(low % period)) & np.uint64(period - 1)
    return low + past.astype(np.int64), addends & ((1 << twos) - 1) == 0
