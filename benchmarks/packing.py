"""Time of `qmath.kernels.packing` in units of memcpy.

For every width, packing and unpacking take turns with ``numpy.copyto`` of the same integers: the
input of the one, the output of the other; signed integers in the smallest NumPy dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.measure import Options, Progress, Row, spread, take_turns, timed
from benchmarks.tables import markdown
from qmath.kernels.affine import smallest_dtype
from qmath.kernels.packing import pack, unpack

__all__ = ["ROUNDS", "full", "measure", "skipped", "summary"]

ROUNDS = {"full": 15, "quick": 3}
SIZE = 1 << 20
LAYOUTS = ("lsb", "msb", "words")


def skipped() -> list[str]:
    """Return what cannot be measured here: nothing."""
    return []


def measure(options: Options, progress: Progress) -> Iterator[Row]:
    """Yield a row for each width."""
    random = np.random.default_rng(0)
    widths = (2, 4, 8, 12) if options.quick else range(1, 17)
    for index, num_bits in enumerate(widths):
        progress(index / len(widths), f"{num_bits} bits")
        dtype = smallest_dtype(num_bits, signed=True)
        half = 1 << (num_bits - 1)
        values = random.integers(-half, half, SIZE).astype(dtype)
        target = np.empty_like(values)
        runs: dict[str, Callable[[], object]] = {
            "memcpy": lambda a=values, b=target: np.copyto(b, a)
        }
        for name in LAYOUTS:
            packed = pack(values, num_bits, name)
            runs[f"pack {name}"] = lambda a=values, n=num_bits, to=name: pack(a, n, to)
            runs[f"unpack {name}"] = lambda p=packed, n=num_bits, of=name: unpack(
                p, n, of, SIZE, True
            )
        found = take_turns({name: timed(run) for name, run in runs.items()}, options.rounds)
        seconds = {name: spread(samples).median for name, samples in found.items()}
        copy = seconds.pop("memcpy")
        yield {
            "num_bits": num_bits,
            "elements": SIZE,
            "memcpy_us": round(copy * 1e6, 2),
            "memcpys": {name: round(value / copy, 2) for name, value in seconds.items()},
        }


def _table(rows: list[Row], layouts: tuple[str, ...]) -> str:
    """Return the table of some layouts."""
    header = ["bits", "memcpy, µs", *(f"{name}: pack / unpack, in memcpys" for name in layouts)]
    return markdown(
        header,
        [
            [
                str(row["num_bits"]),
                f"{row['memcpy_us']:.0f}",
                *(
                    " / ".join(
                        f"{row['memcpys'][f'{way} {name}']:.1f}" for way in ("pack", "unpack")
                    )
                    for name in layouts
                ),
            ]
            for row in rows
        ],
    )


def full(rows: list[Row]) -> str:
    """Return the table of all widths and layouts."""
    return _table(rows, LAYOUTS)


def summary(rows: list[Row]) -> str:
    """Return the table of the usual widths in the usual layout."""
    return _table([row for row in rows if row["num_bits"] in (2, 4, 8, 12)], LAYOUTS[:1])
