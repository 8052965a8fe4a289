"""The kernels: fake quantization, its gradient and quantization to integers, against `peers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

import qmath
from benchmarks import allocator
from benchmarks.measure import Options, Progress, Row, spread, take_turns, timed
from benchmarks.peers import KEPT, PEERS, Case, Run, missing
from benchmarks.tables import faster, markdown, size_text, time_text

__all__ = ["OURS", "ROUNDS", "full", "measure", "skipped", "summary"]

OURS = "qmath, out="  # what the others' times are divided by
OPERATIONS = ["fake_quant", "gradient", "int8", "uint8", "4 bit"]
SIZES = [1 << 10, 1 << 13, 1 << 16, 1 << 20, 1 << 24, 1 << 26]  # as rows of 64 channels
SHAPES = [(3, 3, 256, 256), (1152, 10), (3, 3, 512, 1), (8, 56, 56, 64)]
QUICK = [1 << 10, 1 << 16, 1 << 20]
ROUNDS = {"full": 9, "quick": 3}
_SAMPLE = 0.006  # seconds, for which a fast candidate is repeated
_PATIENCE = 3.0  # seconds for all rounds of a candidate; a slower one has fewer, but 3


def shapes(quick: bool) -> list[tuple[int, ...]]:
    """Return the shapes to measure."""
    return [(size // 64, 64) for size in (QUICK if quick else SIZES)] + SHAPES[: 1 if quick else 4]


def skipped() -> list[str]:
    """Return the peers that cannot be had here."""
    return missing()


def cases(shape: tuple[int, ...], threads: int) -> Iterator[Case]:
    """Yield what is measured on tensors of a shape."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    for high in (np.float32(2), np.linspace(1, 3, shape[-1], dtype=np.float32)):
        for operation in OPERATIONS:
            yield Case(operation, x, np.asarray(-high), np.asarray(high), threads)


def measure(options: Options, progress: Progress) -> Iterator[Row]:
    """Yield a row for each case: microseconds of all candidates, and how much faster qmath is."""
    qmath.set_num_threads(options.threads)
    allocator.settle()
    absent = missing()
    peers = {name: peer for name, peer in PEERS.items() if name not in absent}
    todo = shapes(options.quick)
    # What a case takes grows with the elements, from some 2^18 on.
    work = [2**18 + math.prod(shape) for shape in todo]
    for number, shape in enumerate(todo):
        for index, case in enumerate(cases(shape, options.threads)):
            per = "channel" if case.per_channel else "tensor"
            done = sum(work[:number]) + work[number] * index / (2 * len(OPERATIONS))
            progress(done / sum(work), f"{case.operation} per {per}, {size_text(case.x.size)}")
            found = {name: spread(times) for name, times in samples(case, peers, options).items()}
            yield {
                "operation": case.operation,
                "per": per,
                "shape": list(shape),
                "elements": case.x.size,
                "microseconds": {
                    name: [round(seconds * 1e6, 3) for seconds in times]
                    for name, times in found.items()
                },
                "times_qmath": {
                    name: round(times.median / found[OURS].median, 4)
                    for name, times in found.items()
                },
            }


def samples(
    case: Case, peers: dict[str, Callable[[Case], Run | None]], options: Options
) -> dict[str, list[float]]:
    """Let all candidates of a case take turns."""
    candidates, rounds = {}, {}
    for name, peer in peers.items():
        run = peer(case)
        if run is None:
            continue
        seconds = min(timed(run)(), timed(run)())  # the first call warms up
        repeat = max(1, min(1000, int(_SAMPLE / max(seconds, 1e-7))))
        candidates[name] = sample(
            run, repeat, reused=case.x.nbytes <= allocator.RECYCLED, keep=name == KEPT
        )
        rounds[name] = min(options.rounds, max(3, int(_PATIENCE / max(seconds, 1e-7))))
    return take_turns(candidates, rounds, warm_up=0)


def sample(run: Run, repeat: int, *, reused: bool, keep: bool) -> Callable[[], float]:
    """Return what takes the time of `run`.

    Where its memory will be `reused`, two calls come first, after which TensorFlow has it all.
    """
    time = timed(run, repeat)

    def warm() -> float:
        run()
        run()
        return time()

    def kept() -> float:
        with allocator.keeping():
            return warm()

    return kept if keep else warm if reused else time


PACKED = "At 4 bits qmath packs, and TensorFlow, which cannot, does not."


def full(rows: list[Row]) -> str:
    """Return the table of all cases."""
    others = [name for name in PEERS if name not in (OURS, "memcpy")]
    others = [name for name in others if any(name in row["times_qmath"] for row in rows)]
    lines = []
    for row in rows:
        median, low, high = (time_text(us / 1e6) for us in row["microseconds"][OURS])
        ratios = row["times_qmath"]
        lines.append(
            [
                f"{row['operation']}, per {row['per']}",
                "x".join(map(str, row["shape"])),
                f"{median} ({low} … {high})",
                *(faster(ratios.get(name)) for name in others),
                faster(1 / ratios["memcpy"]),
            ]
        )
    legend = (
        f"Time of `{OURS}` (quartiles), and how many times as long the others take: above 1, qmath "
        f"is faster. In memcpys: qmath's time by that of copying the floats. {PACKED}"
    )
    header = ["operation", "shape", OURS, *others, "in memcpys"]
    return f"{legend}\n\n{markdown(header, lines)}"


def summary(rows: list[Row]) -> str:
    """Return a row for each operation: against TensorFlow by size, all others at a large one."""
    plain = [row for row in rows if row["shape"][1:] == [64] and row["operation"] != "uint8"]
    sizes = sorted({row["elements"] for row in plain} & {1 << 10, 1 << 16, 1 << 20, 1 << 24})
    others = [name for name in PEERS if name not in ("memcpy", "qmath", OURS, "TensorFlow")]
    others = [name for name in others if any(name in row["times_qmath"] for row in plain)]
    found: dict[str, dict[int, Row]] = {}
    for row in plain:
        found.setdefault(f"{row['operation']}, per {row['per']}", {})[row["elements"]] = row
    first, *more = map(size_text, sizes)
    header = ["", f"TensorFlow, {first}", *more, *(name.split(", ")[-1] for name in others)]
    lines = []
    for label, by_size in found.items():
        large = by_size[sizes[-1]]["times_qmath"]
        lines.append(
            [
                label,
                *(faster(by_size[size]["times_qmath"].get("TensorFlow")) for size in sizes),
                *(faster(large.get(name)) for name in others),
                faster(1 / large["memcpy"]),
            ]
        )
    legend = (
        f"How many times as long as `{OURS}` the others take: above 1, qmath is faster. TensorFlow "
        f"by number of elements; the others, TensorFlow with memory kept by glibc among them, and "
        f"qmath's own time in copies of the floats, at {size_text(sizes[-1])}. {PACKED}"
    )
    return f"{legend}\n\n{markdown([*header, 'in memcpys'], lines)}"
