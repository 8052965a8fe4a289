"""Time of `qmath.packing` in units of memcpy: ``python -m benchmarks.packing [--size 1048576]``.

For every width, packing and unpacking take turns with ``numpy.copyto`` of the same integers: the
input of the one, the output of the other. The table holds medians as multiples of that copy's, for
signed integers in the smallest NumPy dtype.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks.measure import spread, take_turns, timed
from qmath.affine import smallest_dtype
from qmath.packing import LAYOUTS, pack, unpack


def medians(candidates: list[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median seconds of each candidate."""
    found = take_turns({str(i): timed(run) for i, run in enumerate(candidates)}, rounds, warm_up=2)
    return [spread(samples).median for samples in found.values()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing")
    parser.add_argument("--size", type=int, default=1 << 20, help="number of integers")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layouts", nargs="+", default=["lsb", "msb", "words"], choices=LAYOUTS)
    options = parser.parse_args()
    print(f"{options.size} signed integers, median of {options.rounds}; pack / unpack in memcpys")
    print("bits  memcpy us" + "".join(f"{name:>16}" for name in options.layouts))
    random = np.random.default_rng(0)
    for num_bits in range(1, 17):
        dtype = smallest_dtype(num_bits, signed=True)
        half = 1 << (num_bits - 1)
        values = random.integers(-half, half, options.size).astype(dtype)
        target = np.empty_like(values)
        candidates: list[Callable[[], object]] = [lambda a=values, b=target: np.copyto(b, a)]
        for name in options.layouts:
            packed = pack(values, num_bits, name)
            candidates += [
                lambda a=values, n=num_bits, layout=name: pack(a, n, layout),
                lambda p=packed, n=num_bits, layout=name: unpack(p, n, layout, options.size, True),
            ]
        copy, *others = medians(candidates, options.rounds)
        ratios = [seconds / copy for seconds in others]
        cells = (f"{a:8.1f} /{b:6.1f}" for a, b in zip(ratios[::2], ratios[1::2], strict=True))
        print(f"{num_bits:4}  {copy * 1e6:9.1f}" + "".join(cells))


if __name__ == "__main__":
    main()
