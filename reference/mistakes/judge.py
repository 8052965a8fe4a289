"""What becomes of each mistake in each layer, and in the whole model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.mistakes.catalogue import MISTAKES, Mistake
from reference.mistakes.equal import first_difference
from reference.mistakes.kernel import Here, Kernel, Window
from reference.mistakes.layers import Constants, Layer

__all__ = ["Verdict", "in_numpy"]

Array = NDArray[Any]
STATIC = ("zeros", "weights", "offset", "window", "constants", "table")
ORDERS = ("input", "groups")  # an order of indices
LATE = ("sums", "constants", "negative", "rounded", "clamped", "output")  # after the accumulators


@dataclass
class Verdict:
    """A mistake in the layers of a model where it can change anything.

    `killed` has the purposes by layer, `equal` the layers where it is proved to change nothing,
    `survived` the others, with a result that would show it if one is known; `noise` those in which
    the inputs of whole-model vectors show it.
    """

    name: str
    killed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    equal: list[str] = field(default_factory=list)
    survived: dict[str, str] = field(default_factory=dict)
    noise: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """Return one word for the model."""
        if self.killed:
            return "killed"
        if self.survived:
            return "survived"
        return "equivalent" if self.equal else "not applicable"

    @property
    def purposes(self) -> list[str]:
        """Return the purposes that showed it, those of most layers first."""
        return [p for p, _ in Counter(p for ps in self.killed.values() for p in ps).most_common()]


def in_numpy(
    layers: Iterable[Layer],
    mistakes: Sequence[Mistake] = MISTAKES,
    kernel: type[Kernel] = Kernel,
) -> dict[str, Verdict]:
    """Judge mistakes in the NumPy kernel, or in one that rounds otherwise, layer by layer.

    Raises
    ------
    ValueError
        The kernel without a mistake is not right.
    """
    verdicts = {mistake.name: Verdict(mistake.name) for mistake in mistakes}
    for layer in layers:
        run = _Run(kernel, layer, layer.inputs, layer.expected)
        noise = _Run(kernel, layer, *layer.noise) if layer.noise else None
        for mistake in mistakes:
            verdict = verdicts[mistake.name]
            made = run.made(mistake)
            if made is None:
                continue
            if noise and noise.differs(mistake):
                verdict.noise.append(layer.name)
            purposes = layer.failing(made)
            if purposes:
                verdict.killed[layer.name] = purposes
                continue
            difference = first_difference(mistake, layer, kernel)
            if difference == "":
                verdict.equal.append(layer.name)
            else:
                verdict.survived[layer.name] = difference or "not proved to change nothing"
    return verdicts


class _Run:
    """A layer on some inputs, with one mistake after another."""

    def __init__(
        self, kernel: type[Kernel], layer: Layer, inputs: Mapping[str, Array], expected: Array
    ) -> None:
        self.layer, self.inputs, self.expected, self.kernel = layer, inputs, expected, kernel
        right = kernel()
        made = right.run(layer, inputs)
        if not np.array_equal(made, expected):
            raise ValueError(f"{layer.name}: the kernel without a mistake is not right")
        relative = {
            name: x.astype(np.int64) - layer.grids[name].zero_point
            for name, x in inputs.items()
            if layer.terms
        }
        self.sums = [right.sums(layer, term, relative) for term in layer.terms]

    def made(self, mistake: Mistake) -> Array | None:
        """Return what the mistake makes, None if there is nothing that it could get wrong."""
        acts = False

        def change(value: Any, here: Here) -> Any:
            nonlocal acts
            changed = mistake.change(value, here)
            acts = acts or _may_differ(mistake, value, changed, here)
            return changed

        kernel = self.kernel(mistake.stage, change)
        if self.sums and mistake.stage in LATE:
            made = kernel.requantize(self.layer, self.sums, self.layer.grid.zero_point)
        else:
            made = kernel.run(self.layer, self.inputs)
        return made if acts else None

    def differs(self, mistake: Mistake) -> bool:
        """Return whether the result shows the mistake."""
        made = self.made(mistake)
        return made is not None and not np.array_equal(made, self.expected)


def _may_differ(mistake: Mistake, value: Any, changed: Any, here: Here) -> bool:
    if mistake.stage in STATIC:
        return not _same(value, changed)
    if mistake.stage in ORDERS:
        indices = np.arange(value[0].size).reshape(1, *value.shape[1:])
        moved = mistake.change(indices, here).reshape(-1)
        return not np.array_equal(moved, indices.reshape(-1))
    return bool(changed is not value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Constants):
        return all(
            np.array_equal(np.broadcast_to(y, x.shape), x)
            for x, y in zip(a.arrays(), b.arrays(), strict=True)
        )
    if isinstance(a, Window):
        return bool(replace(a, after=b.after) == b if a.before == b.before else a == b)
    return bool(np.array_equal(a, b))
