"""The prover's tasks: each has a name, a size for the progress bar, and ends in records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from reference.prove import round_trips, sweeping, thresholding
from reference.prove.configurations import sweeps
from reference.prove.tally import Tick

__all__ = ["Task", "select", "tasks"]

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What one process does at a time.

    Attributes
    ----------
    name : str
    kind : {"sweeps", "thresholds", "round_trips"}
        The part of the certificate that its records go to.
    elements : int
        About how many comparisons it takes.
    run : callable
        Takes a `Tick`, and returns the records.
    descriptions : list of dict
        What each record says of what it is about, whatever the outcome.
    """

    name: str
    kind: str
    elements: int
    run: Callable[[Tick], Records]
    descriptions: Records

    def held(self, certificate: Mapping[str, Any]) -> Records | None:
        """Return the task's records in a certificate; None unless it holds all of them."""
        found = [
            record
            for described in self.descriptions
            for record in certificate[self.kind]
            if described.items() <= record.items()
        ]
        return found if len(found) == len(self.descriptions) else None


def tasks(quick: bool = False, against: str = "tf") -> dict[str, Task]:
    """Return all tasks by name; of the quick run, the same ones with less in each.

    Against others than the installed TensorFlow, eager, there are no round trips.
    """
    found = []
    for of in sweeps(against):
        size = of.elements // sweeping.QUICK_STEP if quick else of.elements
        found.append(
            Task(
                of.name,
                "sweeps",
                size,
                lambda tick, of=of: [sweeping.sweep(of, tick, quick)],
                [sweeping.description(of, quick)],
            )
        )
    for bits in (2, 3, 4, 8) if quick else range(2, 17):
        found.append(
            Task(
                f"thresholds {bits} bits",
                "thresholds",
                thresholding.elements(bits, quick, against),
                lambda tick, bits=bits: thresholding.thresholds(bits, tick, quick, against),
                thresholding.descriptions(bits, quick, against),
            )
        )
    if against != "tf":
        return {task.name: task for task in found}
    for bits in (2, 4, 8) if quick else round_trips.WIDTHS:
        found.append(
            Task(
                f"round trips {bits} bits",
                "round_trips",
                round_trips.elements(bits, quick),
                lambda tick, bits=bits: round_trips.round_trips(bits, tick, quick),
                round_trips.descriptions(bits, quick),
            )
        )
    return {task.name: task for task in found}


def select(found: dict[str, Task], patterns: list[str] | None) -> dict[str, Task]:
    """Return the tasks whose names match one of the patterns (``*`` and ``?``); all for None."""
    if patterns is None:
        return found
    chosen = {
        name: task
        for name, task in found.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not chosen:
        raise SystemExit(f"no configuration matches {patterns}; there are: {', '.join(found)}")
    return chosen
