"""The kernels: fake quantization, its gradient and quantization to integers, against `peers`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np

import qmath
from benchmarks.measure import spread, take_turns, timed
from benchmarks.peers import LIBRARIES, PEERS, Case

OPERATIONS = ["fake_quant", "gradient", "int8", "uint8", "4 bit"]
SIZES = [1 << 10, 1 << 13, 1 << 16, 1 << 20, 1 << 24, 1 << 26]  # as rows of 64 channels
SHAPES = [(3, 3, 256, 256), (1152, 10), (3, 3, 512, 1), (8, 56, 56, 64)]
QUICK = [1 << 10, 1 << 16, 1 << 20]
_SECONDS = 1.0  # that one candidate of a case may take
Row = dict[str, object]


def shapes(quick: bool) -> Iterator[tuple[int, ...]]:
    """Yield the shapes to measure."""
    yield from ((size // 64, 64) for size in (QUICK if quick else SIZES))
    yield from SHAPES[:1] if quick else SHAPES


def missing() -> list[str]:
    """Return the peers that are not installed."""
    return [name for name, module in LIBRARIES.items() if not importlib.util.find_spec(module)]


def cases(quick: bool, threads: int) -> Iterator[Case]:
    """Yield what is measured."""
    for shape in shapes(quick):
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        for high in (np.float32(2), np.linspace(1, 3, shape[-1], dtype=np.float32)):
            for operation in OPERATIONS:
                yield Case(operation, x, np.asarray(-high), np.asarray(high), threads)


def measure(
    quick: bool, threads: int, rounds: int, progress: Callable[[str], None]
) -> Iterator[Row]:
    """Yield a row for each case and candidate."""
    qmath.set_num_threads(threads)
    absent = missing()
    for case in cases(quick, threads):
        label = f"{case.operation}, {'per channel' if case.per_channel else 'per tensor'}"
        progress(f"{label}, {case.x.shape}")
        runs = {name: peer(case) for name, peer in PEERS.items() if name not in absent}
        candidates = {}
        for name, run in runs.items():
            if run is not None:
                seconds = min(timed(run)(), timed(run)())  # the first call warms up
                repeat = max(1, min(1000, int(_SECONDS / rounds / 20 / max(seconds, 1e-7))))
                candidates[name] = timed(run, repeat)
        found = {name: spread(samples) for name, samples in take_turns(candidates, rounds).items()}
        for name, times in found.items():
            yield {
                "benchmark": "kernels",
                "case": label,
                "shape": list(case.x.shape),
                "elements": case.x.size,
                "candidate": name,
                **{f"{key}_us": round(value * 1e6, 3) for key, value in times._asdict().items()},
                **{
                    f"to_{base}": round(times.median / found[base].median, 4)
                    for base in ("memcpy", "TensorFlow")
                    if base in found
                },
            }
