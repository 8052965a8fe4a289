"""From when to when each tensor of the integer model is needed, in C."""

from __future__ import annotations

from qmath.integer.program import FloatStep, Program, QuantizedStep, QuantizeStep, sources

__all__ = ["Lifetimes", "segments"]


def _levels(program: Program) -> dict[str, int]:
    """Return by step how many float layers lie before it, one after another."""
    depth = dict.fromkeys(program.inputs, 0)
    for step in program.steps:
        level = max((depth[name] for name in sources(step)), default=0)
        depth[step.name] = level + isinstance(step, FloatStep)
    return depth


def segments(program: Program) -> list[list[QuantizedStep]]:
    """Return the integer steps, cut where a float layer lies between them."""
    depth, found = _levels(program), dict[int, list[QuantizedStep]]()
    for step in program.quantized:
        found.setdefault(depth[step.name], []).append(step)
    return [found[level] for level in sorted(found)]


class Lifetimes:
    """When each tensor is written and read: the first and the last point in time.

    A segment begins when the floats that it needs are quantized, in any order, and what the float
    layers before it read can be read until then. Outputs stay. With `keeps_all` everything does.
    """

    def __init__(self, program: Program, keeps_all: bool = False) -> None:
        depth = _levels(program)
        self._times: dict[str, int] = {}
        starts: dict[int, int] = {}
        time = 0
        for steps in segments(program):
            start = starts[depth[steps[0].name]] = time
            for step in steps:
                is_set = isinstance(step, QuantizeStep)
                time += not is_set
                self._times[step.name] = start if is_set else time
            time += 1
        self._last = dict(self._times)
        for reader in program.steps:
            end = self._times.get(reader.name)
            if end is None:  # a float layer: until the next segment has begun
                later = (at for level, at in starts.items() if level >= depth[reader.name])
                end = min(later, default=time)
            for name in sources(reader):
                if name in self._last:
                    self._last[name] = max(self._last[name], end)
        for name in self._last:
            if keeps_all or name in program.outputs:
                self._last[name] = time
        self._keeps_all = keeps_all

    def time(self, name: str) -> int:
        """Return when a step is computed."""
        return self._times[name]

    def __getitem__(self, name: str) -> tuple[int, int]:
        """Return the first and the last time when a tensor is needed."""
        return 0 if self._keeps_all else self._times[name], self._last[name]
