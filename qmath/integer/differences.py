"""What a comparison of two runs finds: integers that differ, by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qmath._text import html_table
from qmath.integer.judging.deployed import KernelChange
from qmath.integer.judging.explanations import Explanation

__all__ = ["Comparison", "Difference", "LayerDifference", "counted", "largest_of"]

LISTED = 100


@dataclass(frozen=True)
class Difference:
    """One integer that differs, teacher-forced.

    Attributes
    ----------
    index : tuple of int
        Of the element, the example first.
    value, reference : int
        The two integers, unsigned: qmath's, and yours (or the other run's).
    to_tie, noise : float or None
        Distance of the exact result from its rounding tie, and `float32_noise`, in integer steps.
    """

    index: tuple[int, ...]
    value: int
    reference: int
    to_tie: float | None
    noise: float | None


@dataclass(frozen=True)
class LayerDifference:
    """How one quantized tensor differs between two runs.

    Attributes
    ----------
    name : str
        The tensor.
    elements : int
        How many integers were compared.
    teacher_forced : int
        How many differ when both runs start from the reference's previous integers: what this
        layer's own arithmetic does.
    free_running : int
        How many differ when each run goes on with its own integers.
    largest : int
        The largest teacher-forced difference, in integer steps.
    near_ties : int
        Of the teacher-forced differences, how many are by one, where the exact result is nearer to
        its rounding tie than `float32_noise`: these are the reference's own rounding.
    farthest_tie : float or None
        Of the differing elements, the greatest distance of the exact result from its rounding
        tie, in integer steps; ``None`` where none differ or no accumulator is rounded.
    noise : float or None
        Of the differing elements, the greatest `float32_noise`.
    differences : tuple of Difference
        The first hundred elements that differ, teacher-forced.
    histogram : tuple of (int, int)
        Of the elements that differ, teacher-forced: by how much qmath's integer is above the other,
        and how often, in order.
    explanation : Explanation or None
        Of what was given: the mistake that makes it. Where noise may have made it, of integers
        alone, and a mistake that makes all of them.
    """

    name: str
    elements: int
    teacher_forced: int
    free_running: int
    largest: int
    near_ties: int
    farthest_tie: float | None
    noise: float | None
    differences: tuple[Difference, ...] = ()
    histogram: tuple[tuple[int, int], ...] = ()
    explanation: Explanation | None = None

    @property
    def near(self) -> bool:
        """Whether every difference is nearer to a tie than the reference's own float32 noise."""
        return self.near_ties == self.teacher_forced

    @property
    def explained(self) -> bool:
        """Whether float32 noise explains every difference, and no mistake does."""
        return self.near and self.explanation is None

    def joined(self, other: LayerDifference) -> LayerDifference:
        """Return the differences of the same tensor in this and in further examples."""
        return LayerDifference(
            name=self.name,
            elements=self.elements + other.elements,
            teacher_forced=self.teacher_forced + other.teacher_forced,
            free_running=self.free_running + other.free_running,
            largest=max(self.largest, other.largest),
            near_ties=self.near_ties + other.near_ties,
            farthest_tie=largest_of([self.farthest_tie, other.farthest_tie]),
            noise=largest_of([self.noise, other.noise]),
            differences=(*self.differences, *other.differences)[:LISTED],
            histogram=counted([*self.histogram, *other.histogram]),
        )


@dataclass(frozen=True)
class Comparison:
    """A comparison of two runs.

    Attributes
    ----------
    layers : tuple of LayerDifference
        Those compared, in order.
    notes : tuple of str
        What was assumed of the integers given.
    profile : str or None
        The other profile that makes all of the integers given, if they differ.
    kernels : tuple of KernelChange
        Against a TFLite file, what its converter made of each weight.
    """

    layers: tuple[LayerDifference, ...]
    notes: tuple[str, ...] = ()
    profile: str | None = None
    kernels: tuple[KernelChange, ...] = ()

    def __repr__(self) -> str:
        elements = sum(layer.elements for layer in self.layers)
        differ = sum(layer.teacher_forced for layer in self.layers)
        words = f"{differ:,} of {elements:,} integers differ"
        if self.first is not None:
            near = all(layer.near for layer in self.layers)
            words += f", first in {self.first.name}" + ", all by float32 noise" * near
        return f"<Comparison of {len(self.layers)} tensors: {words}>"

    def _repr_html_(self) -> str:
        """Show the layers in a notebook."""
        rows = [
            {
                "tensor": layer.name,
                "integers": f"{layer.elements:,}",
                "differ, teacher-forced": layer.teacher_forced,
                "of these by float32 noise": layer.near_ties,
                "differ, free-running": layer.free_running,
                "largest": layer.largest,
            }
            for layer in self.layers
        ]
        return html_table(repr(self)[1:-1], rows)

    @property
    def first(self) -> LayerDifference | None:
        """The first layer whose own arithmetic differs."""
        return next((layer for layer in self.layers if layer.teacher_forced), None)


def counted(pairs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return differences and how often each occurs, in order."""
    counts: dict[int, int] = {}
    for difference, number in pairs:
        counts[difference] = counts.get(difference, 0) + number
    return tuple(sorted(counts.items()))


def largest_of(values: Iterable[float | None]) -> float | None:
    """Return the largest of those that are known, ``None`` if none is."""
    return max((value for value in values if value is not None), default=None)
