"""One way of timing for all benchmarks: candidates take turns, and medians are compared.

What disturbs the machine then disturbs all candidates alike, so that the ratios hold where the
times do not. Nothing is asserted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = CLOCKS["wall"]
Row = dict[str, Any]  # what was found for one case, as it stands in the JSON file
Progress = Callable[[float, str], None]  # takes the share that is done, and what is being done


class Options(NamedTuple):
    """How to measure: a slice or all of it, threads for everyone, and how many times."""

    quick: bool
    threads: int
    rounds: int


class Spread(NamedTuple):
    """The median and the quartiles of some samples."""

    median: float
    low: float
    high: float


def take_turns(
    candidates: Mapping[str, Callable[[], T]],
    rounds: int | Mapping[str, int],
    *,
    warm_up: int = 1,
) -> dict[str, list[T]]:
    """Call the candidates one after the other in every round; return what each returned.

    The first `warm_up` rounds fill caches and are not kept. A candidate may have fewer `rounds`
    than others: it sits out the last ones.
    """
    of = rounds if isinstance(rounds, Mapping) else dict.fromkeys(candidates, rounds)
    kept: dict[str, list[T]] = {name: [] for name in candidates}
    for number in range(warm_up + max(of.values(), default=0)):
        for name, run in candidates.items():
            if number < warm_up + of[name]:
                value = run()
                if number >= warm_up:
                    kept[name].append(value)
    return kept


def take_long_turns(
    candidates: Mapping[str, Callable[[], T]], rounds: int, progress: Progress
) -> dict[str, list[T]]:
    """Let processes take turns and tell of each, after one round that fills the disk cache.

    Of 0 rounds, that one counts.
    """
    total = len(candidates) * (1 + rounds)
    done = iter(range(total))

    def told(name: str, run: Callable[[], T]) -> T:
        progress(next(done) / total, name)
        return run()

    runs = {name: partial(told, name, run) for name, run in candidates.items()}
    return take_turns(runs, max(rounds, 1), warm_up=int(rounds > 0))


def choose_clock(name: str) -> None:
    """Let `timed` read another of the `CLOCKS`."""
    global _clock
    _clock = CLOCKS[name]


def timed(run: Callable[[], object], repeat: int = 1) -> Callable[[], float]:
    """Return what runs `run` so many times and returns the seconds of one of them."""

    def sample() -> float:
        start = _clock()
        for _ in range(repeat):
            run()
        return (_clock() - start) / repeat

    return sample


def spread(samples: list[float]) -> Spread:
    """Summarise samples."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    low, _, high = statistics.quantiles(samples, n=4)
    return Spread(statistics.median(samples), low, high)
