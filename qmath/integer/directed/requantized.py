"""The directed vectors of a requantization: patches side by side in as few inputs as will do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.directed.cases import Cases
from qmath.integer.directed.coverage import Coverage, few
from qmath.integer.directed.elementwise import ElementwisePatches
from qmath.integer.directed.layout import channels_of, layout_of
from qmath.integer.directed.mistakes import NEAR, rounding_of
from qmath.integer.directed.products import ProductPatches, place_factors, reads_of
from qmath.integer.directed.shared import SharedPatches
from qmath.integer.directed.weighted import Goal, Patches, WeightedPatches
from qmath.integer.executor import Executor
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import QuantParams, Requantize, Shape, Term, sources
from qmath.kernels.affine import smallest_dtype

__all__ = ["cases_of_sum"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]
_MOST_TRIES = 3
_CONSTANTS = 3  # inputs that are all zero, the lowest or the highest integer
_NOISY = 8
_SPREAD = 40503
_FIRST = 4  # channels of the widest accumulators, whose goals come first


def cases_of_sum(
    executor: Executor, step: Requantize, shapes: Mapping[str, Shape], room: int, seed: int
) -> Cases:
    """Return the directed vectors of a requantization.

    Parameters
    ----------
    executor : Executor
        Of the profile ``integer``.
    step : Requantize
    shapes : mapping of str to tuple
        Of every step's output.
    room : int
        Bytes that the arrays may take; one input is made in any case.
    seed : int
    """
    return _Builder(executor, step, shapes, room, seed).cases()


class _Builder:
    """The vectors of one step under construction."""

    def __init__(
        self, executor: Executor, step: Requantize, shapes: Mapping[str, Shape], room: int,
        seed: int,
    ) -> None:  # fmt: skip
        profile = executor.profile
        assert isinstance(profile, Integer)
        self.executor, self.step = executor, step
        self.rng = np.random.RandomState(seed)  # whose stream is frozen
        self.terms = step.value.terms
        self.params: dict[str, QuantParams] = {n: executor.quant_params[n] for n in sources(step)}
        self.shapes = {name: shapes[name] for name in self.params}
        constants = profile.constants(step, executor.intervals(step))
        self.rounding = rounding_of(step, constants, profile.multiplier_bits)
        self.layout = layout_of(step, self.shapes)
        self.reads = reads_of(step, self.shapes) if math.prod(step.shape) else None
        if self.layout is not None and (len(self.terms) > 1 or _is_composed(self.terms[0])):
            self.rounding = replace(self.rounding, ends=self.layout.ends(self.terms, step.shape))
        self.size = math.prod(step.shape)
        self.channel = channels_of(self.layout, step.shape)
        self.patches = self._patches()
        self.coverage = Coverage(self.rounding, self.channel, step.shape)
        self.parts: list[tuple[dict[str, Array], Array]] = []
        self.most = self._most_maps(room)

    def cases(self) -> Cases:
        """Return the vectors."""
        pending = self._pending()
        # Where there is one position, the constant inputs and the first goal need one each.
        few = self.layout is not None and len(self.layout.positions) <= _CONSTANTS
        maps, made = (2 + _CONSTANTS if few else 1), 0
        while made == 0 or (made < self.most and (any(pending) or made < self._noisy_maps())):
            maps = min(maps, self.most - made, max(1, self._needed(pending)) if made else maps)
            self._add_maps(made, maps, pending)
            made, maps = made + maps, 2 * maps
        self._show_last()
        inputs = {
            name: np.concatenate([part[0][name] for part in self.parts]) for name in self.params
        }
        expected = np.concatenate([part[1] for part in self.parts])
        excluded = self.patches.unreachable if self.patches is not None else {}
        unreachable, missed = self.coverage.left(excluded)
        return Cases(
            self.step.name, inputs, expected, self.coverage.tags.array(), unreachable, missed
        )

    def _needed(self, pending: list[list[Goal]]) -> int:
        """Return how many inputs have room for all goals; of products, one at a time."""
        if isinstance(self.patches, ProductPatches):
            return 1
        places = len(self.layout.positions) if self.layout is not None else 1
        return max((-(-len(goals) // places) for goals in pending), default=1)

    def _noisy_maps(self) -> int:
        """Return how many inputs of noise alone are made where patches cannot be."""
        return _NOISY if self.layout is None else 0

    def _show_last(self) -> None:
        """Make the last integer real nonzero in some input, so that one left unwritten shows.

        What the last output reads is changed where no tagged element is changed by that.
        """
        zero = self.step.params.zero_point
        last = np.concatenate([part[1].reshape(len(part[1]), -1)[:, -1:] for part in self.parts])
        if not self.size or (last != zero).any():
            return
        inputs, expected = self.parts[-1]
        before = sum(len(part[1]) for part in self.parts[:-1]) * self.size
        tags = self.coverage.tags.array()[:, 0].astype(np.int64) - before
        tags = tags[tags >= 0]
        right = self._accumulators(inputs)[1][:, tags]
        for end in (1, 0):
            tried = {name: x.copy() for name, x in inputs.items()}
            for name, at, values in self._ends_of_last(end):
                tried[name].reshape(len(expected), -1)[-1][at] = values
            made, sums = self._accumulators(tried)
            if np.array_equal(sums[:, tags], right) and made.reshape(-1)[-1] != zero:
                self.parts[-1] = tried, made
                return

    def _ends_of_last(self, end: int) -> Iterator[tuple[str, Int64Array, Int64Array]]:
        """Yield by source where the last output's inputs lie, and what makes it great, or least."""
        for i, term in enumerate(self.terms if self.layout is not None else ()):
            assert self.layout is not None
            at, weights = self.layout.last_inputs(i)
            limits = np.array([term.params.low, term.params.high])
            yield term.source, at, limits[np.where(weights > 0, end, 1 - end)]
        if self.layout is None and self.reads is not None:
            for name, params, places in zip(
                self.reads.sources, self.reads.params, self.reads.places, strict=True
            ):
                at = places[-1:][places[-1:] > 0] - 1
                yield name, at, np.full(len(at), (params.low, params.high)[end])

    def _accumulators(self, inputs: Mapping[str, Array]) -> tuple[Array, Int64Array]:
        """Return what inputs give, and each term's accumulators, flat."""
        sums: list[Array] = []
        made = self.executor.apply(self.step, inputs, lambda _, found: sums.extend(found))
        return made, np.stack([
            np.broadcast_to(a, made.shape).astype(np.int64).reshape(-1) for a in sums
        ])  # fmt: skip

    # What is known before the first input.

    def _patches(self) -> Patches | None:
        if self.layout is None:
            products = self._products()
            return None if products is None else self._with_ties(products)
        views, position = self.layout.views, int(self.layout.positions[0])
        elements = views[0].elements[position]
        rounding = self.rounding.of_channels(np.maximum(elements, 0), self.step.shape)
        limits = [term.params.limits for term in self.terms]
        if self.layout.is_joined:
            names = [term.source for term in self.terms]
            return self._with_ties(
                SharedPatches(views, names, position, rounding, limits, self.rng)
            )
        if all(op.weights is None for term in self.terms for op in term.ops) and all(
            view.weights.shape[1] == 1 and view.inputs(np.arange(1)).shape[1] == elements.size
            for view in views
        ):
            reads = [view.inputs(np.arange(len(view.cells)))[..., 0] > 0 for view in views]
            same = np.all([(read == read[position]).all(0) for read in reads], axis=0)
            patches: Patches = ElementwisePatches(
                [read[position] for read in reads], rounding, limits, self.rng,
                same & self.rounding.is_uniform,
            )  # fmt: skip
        else:
            patches = WeightedPatches(
                views, position, rounding, limits, self.rng, self.rounding.is_uniform
            )
        return self._with_ties(patches)

    def _products(self) -> ProductPatches | None:
        """Return the patches of products of tensors, whose channels have one constant each."""
        if self.reads is None or not self.rounding.is_uniform:
            return None
        first = np.unique(self.channel, return_index=True)[1]
        rounding = self.rounding.of_channels(first, self.step.shape)
        limits = [params.limits for params in self.reads.params]
        return ProductPatches(self.reads, rounding, limits, self.rng)

    def _with_ties(self, patches: Patches) -> Patches:
        """Return patches, and take how near they come to ties for what is near."""
        near = [np.maximum(x, NEAR)[self.channel] for x in (patches.below, patches.above)]
        below, above = (x.reshape(self.step.shape) for x in near)
        self.rounding = replace(self.rounding, below=below, above=above)
        return patches

    def _most_maps(self, room: int) -> int:
        size = self.size * smallest_dtype(self.step.params.num_bits, signed=False).itemsize
        for name, params in self.params.items():
            dtype = smallest_dtype(params.num_bits, signed=False)
            size += math.prod(self.shapes[name]) * dtype.itemsize
        return max(1, int((room - self.coverage.most_bytes) // max(size, 1)))

    def _pending(self) -> list[list[Goal]]:
        """Return the goals of each group: those of channels far from one another come first.

        The groups begin with different goals, so that they can be told apart.
        """
        if self.patches is None:
            return []
        if self.layout is None:
            return [[goal for goals in zip_longest(*self.patches.goals) for goal in goals if goal]]
        per_group = len(self.patches.goals) // self.layout.groups
        pending = []
        for group in range(self.layout.groups):
            channels = np.arange(per_group) + group * per_group
            rank = np.arange(per_group) * _SPREAD % (1 << 16)
            rank[np.argsort(-self.patches.widths[channels], kind="stable")[:_FIRST]] = -1
            order = channels[np.argsort(rank, kind="stable")]
            goals = [goal for channel in order for goal in self.patches.goals[channel]]
            start = group % len(goals) if per_group == 1 and goals else 0
            pending.append(goals[start:] + goals[:start])
        return pending

    # One batch of inputs after another.

    def _add_maps(self, before: int, count: int, pending: list[list[Goal]]) -> None:
        """Make inputs, with as many goals as there is room for, and look what they reach."""
        relative = {
            name: _noise(self.rng, (count, math.prod(self.shapes[name])), params.limits)
            for name, params in self.params.items()
        }
        placed: list[tuple[Goal, int]] = []
        if self.layout is not None and self.patches is not None:
            slots = count * len(self.layout.positions)
            first = self._add_constants(relative) if not before else 0
            placed = list(self._chosen(pending, first, slots))
            if placed:
                self._place(relative, placed)
        elif isinstance(self.patches, ProductPatches):
            self._place_products(relative, pending[0])
        inputs = {}
        for name, x in relative.items():
            params = self.params[name]
            dtype = smallest_dtype(params.num_bits, signed=False)
            shaped = (x + params.zero_point).astype(dtype)
            inputs[name] = shaped.reshape(count, *self.shapes[name])
        expected, sums = self._accumulators(inputs)
        self.parts.append((inputs, expected))
        masks = self.rounding.masks([a.reshape(expected.shape) for a in sums])
        self.coverage.note(masks, before * self.size)
        if not before and self.layout is not None:
            self.coverage.note_borders(self.layout.views, expected[0], self.step.params.zero_point)
        self._settle(masks, placed, pending)

    def _add_constants(self, relative: Mapping[str, Int64Array]) -> int:
        """Make all inputs of the first three patches zero, the lowest and the highest integer."""
        assert self.layout is not None
        places = len(self.layout.positions)
        count = min(_CONSTANTS, places * len(next(iter(relative.values()))) - 1)
        for slot in range(count):
            number, place = divmod(slot, places)
            for i, term in enumerate(self.terms):
                value = (0, *term.params.limits)[slot]
                relative[term.source][number, self.layout.inputs(i, place)] = value
            elements = self.layout.views[0].elements[self.layout.positions[place]]
            shown = few(elements[elements >= 0])
            self.coverage.tags.add("constant input", number * self.size + shown)
        return count + (places <= _CONSTANTS and count == _CONSTANTS)  # one is left to noise

    def _chosen(
        self, pending: list[list[Goal]], first: int, slots: int
    ) -> Iterator[tuple[Goal, int]]:
        """Yield the next goals of each group, each with its slot, and take them out."""
        for goals in pending:
            slot, number = first, 0
            while slot < slots and number < len(goals):
                goal = goals[number]
                number += 1
                if not self._is_served(goal):
                    yield goal, slot
                    slot += 1
            del goals[:number]

    def _place(
        self, relative: Mapping[str, Int64Array], placed: Sequence[tuple[Goal, int]]
    ) -> None:
        """Write the inputs of goals into their slots."""
        assert self.layout is not None
        assert self.patches is not None
        found = self.patches.inputs([goal for goal, _ in placed])
        number, slot = np.divmod([slot for _, slot in placed], len(self.layout.positions))
        channels = np.array([goal.channel for goal, _ in placed])
        for i, term in enumerate(self.terms):
            at = self.layout.inputs_of(i, slot, channels)
            rows, columns = np.nonzero(at)
            relative[term.source][number[rows], at[rows, columns] - 1] = found[i][rows, columns]

    def _place_products(self, relative: Mapping[str, Int64Array], goals: list[Goal]) -> None:
        """Write factors of goals into each input, and take those goals out."""
        assert isinstance(self.patches, ProductPatches)
        assert self.reads is not None
        for number in range(len(next(iter(relative.values())))):
            rows = {name: x[number] for name, x in relative.items()}
            goals[:] = [goal for goal in goals if not self._is_served(goal)]
            left = place_factors(goals, self.patches, self.reads, self.channel, rows)
            # None has a place if two factors are one integer, which they do not agree on.
            goals[:] = left if len(left) < len(goals) else []

    def _is_served(self, goal: Goal) -> bool:
        return goal.takes_any and self.coverage.is_reached(goal.purpose, goal.channel)

    def _settle(
        self,
        masks: Mapping[str, NDArray[np.bool_]],
        placed: Sequence[tuple[Goal, int]],
        pending: list[list[Goal]],
    ) -> None:
        """Put goals that were not reached back, if there is something else to try."""
        if self.layout is None or self.patches is None:
            return
        per_group = len(self.patches.goals) // self.layout.groups
        elements = self.layout.views[0].elements
        for goal, slot in placed:
            number, place = divmod(slot, len(self.layout.positions))
            element = elements[self.layout.positions[place], goal.channel]
            if element >= 0 and masks[goal.purpose].reshape(-1)[number * self.size + element]:
                continue
            goal.tried += 1
            if goal.tried < _MOST_TRIES:
                goal.candidates.append(goal.candidates[0])
                pending[goal.channel // per_group].append(goal)


def _is_composed(term: Term) -> bool:
    """Whether several operations sum up, of whose ends more is known than channel by channel."""
    return sum(op.sums for op in term.ops) > 1


def _noise(
    rng: np.random.RandomState, shape: tuple[int, int], limits: tuple[int, int]
) -> Int64Array:
    """Draw integers, in four parts of each row from the whole range, and from less and less."""
    drawn = rng.randint(limits[0], limits[1] + 1, shape, np.int64)
    shrink = np.arange(shape[1]) * 4 // max(shape[1], 1)
    return np.asarray(np.sign(drawn) * (np.abs(drawn) >> shrink), np.int64)
