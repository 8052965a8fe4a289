"""Does qmath recognise builds? Arrays of random settings, made by their kernels: a matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

import qmath
from qmath.kernels.builds import Build
from reference.builds.inputs import Case
from reference.builds.running import Outputs

__all__ = ["arrays", "matrix", "table"]

SIZE = 4096
CHANNELS = 8
NONE = "none"
Makers = Mapping[Build, Callable[[Sequence[Case]], Outputs]]


def arrays(number: int) -> Iterator[Case]:
    """Yield calls with random widths, ranges and Gaussian inputs."""
    rng = np.random.default_rng(23)
    for index in range(number):
        op = ("vars", "per_channel", "args")[index % 3]
        channels = CHANNELS if op == "per_channel" else 1
        size = 10.0 ** rng.uniform(-3, 3)
        low, high = np.float32(size * rng.uniform(0.01, 1, (2, channels)))
        if rng.integers(3) == 0:
            low = high
        shape = (SIZE // channels, channels) if channels > 1 else (SIZE,)
        x = (size * rng.normal(0, 0.5, shape)).astype(np.float32)
        ends = (-low, high) if channels > 1 else (-low[0, ...], high[0, ...])
        bits, narrow = int(rng.integers(2, 17)), bool(rng.integers(2))
        yield Case(op, (x,), np.asarray(ends[0]), np.asarray(ends[1]), bits, narrow)


def matrix(makers: Makers, number: int, *, with_inputs: bool) -> dict[Build, Counter[str]]:
    """Return, for each build that made its share of the arrays, what they were taken for."""
    found: dict[Build, Counter[str]] = {}
    cases = list(arrays(number))
    for place, (build, make) in enumerate(makers.items()):
        own = cases[place :: len(makers)]
        found[build] = Counter()
        for case, (y,) in zip(own, make(own), strict=True):
            recognized = qmath.recognize_build(
                y, case.min, case.max, case.num_bits, narrow_range=case.narrow_range,
                inputs=case.arrays[0] if with_inputs else None,
                per_axis=case.op == "per_channel", op="args" if case.op == "args" else "vars",
            )  # fmt: skip
            name = recognized.build or ("; ".join(recognized.builds) or NONE)
            found[build][name] += 1
    return found


def table(found: Mapping[Build, Counter[str]]) -> Iterator[str]:
    """Yield the lines of the matrix: undecided are the arrays that several builds give."""
    names = [*found, "undecided, with it", "undecided, without it", NONE]
    yield f"| made by | {' | '.join(names)} |"
    yield f"|---|{'---:|' * len(names)}"
    for build, counts in found.items():
        row: Counter[str] = Counter()
        for name, count in counts.items():
            several = name.split("; ")
            if len(several) > 1:
                name = f"undecided, with{'' if build in several else 'out'} it"
            row[name] += count
        yield f"| `{build}` | {' | '.join(str(row[name]) for name in names)} |"
