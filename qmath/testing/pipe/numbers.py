"""Cases of one number each: fake_quant, quantize, requantize; and those of packing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels.affine import check_num_bits, smallest_dtype
from qmath.kernels.packing import LAYOUTS, pack
from qmath.testing import arithmetic
from qmath.testing.floats import case_ranges, deciding_floats, exact_steps, to_tie
from qmath.testing.layer import Geometry
from qmath.testing.layer_cases import accepted_layer
from qmath.testing.pipe.records import Field, dtype_of
from qmath.testing.pipe.settings import Settings
from qmath.testing.tensor import Tensor

__all__ = ["Numbers", "Packing", "Quantized", "Requantized", "runs"]

Array = NDArray[Any]
_RANGE = (Field("min", "f32"), Field("max", "f32"), Field("bits", "i32"), Field("narrow", "i32"))
# What only fake_quant takes: ranges that determine no integers.
_SILENT = (
    (0.0, 0.0), (1.0, -1.0), (2.0, 2.0), (-1e-40, 1e-40), (-3e38, 3e38), (-np.inf, np.inf),
    (-np.inf, 1.0), (np.nan, 1.0), (-1.0, np.nan), (0.0, 1e-38), (-1e-38, 1e-37),
)  # fmt: skip
_INT32 = 2**31 - 1
_NEARBY = 32  # accumulators among which the nearest to a tie is looked for


class Numbers:
    """An op on single numbers: its fields, its cases, and what is expected of them."""

    case: tuple[Field, ...]
    result: Field

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def cases(self) -> Array:
        """Return all cases, as records."""
        rng = np.random.RandomState(self.settings.seed)
        count = self.settings.count
        size = min(max(count // 64, 16), 1024)  # of a group, which has one range or multiplier
        records = np.zeros(-(-count // size) * size, dtype_of(self.case))
        self.fill(records.reshape(-1, size), rng)
        return records[:count]

    def fill(self, groups: Array, rng: np.random.RandomState) -> None:
        """Fill records ``(groups, size)`` with cases."""
        raise NotImplementedError

    def expected(self, cases: Array) -> Array:
        """Return the results of cases."""
        raise NotImplementedError

    def others(self, cases: Array) -> Iterator[tuple[str, Array]]:
        """Yield by name what other arithmetics make of cases."""
        raise NotImplementedError

    def exactly(self, case: Any, index: tuple[int, ...]) -> tuple[float, float] | None:  # noqa: ARG002
        """Return the exact result before rounding and its distance from a tie, if there is one."""
        return None


class Quantized(Numbers):
    """The ops fake_quant and quantize."""

    case = (Field("x", "f32"), *_RANGE)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.is_fake = settings.op == "fake_quant"
        self.result = Field("y", "f32") if self.is_fake else Field("q", "i32")

    def fill(self, groups: Array, rng: np.random.RandomState) -> None:
        """Fill records ``(groups, size)`` with cases."""
        settings = self.settings
        function = settings.function
        ranges = case_ranges(len(groups), rng, settings.bits or None, function)
        if self.is_fake:
            # The op args refuses ends that are not in order, subnormals being zeros.
            silent = [ends for ends in _SILENT if function != "args" or ends[0] < -1e-39 < ends[1]]
            for number, range in enumerate(ranges[9::5]):
                low, high = silent[number % len(silent)]
                ranges[9 + 5 * number] = range._replace(min=low, max=high)
        for records, range in zip(groups, ranges, strict=True):
            records["x"] = deciding_floats(range, len(records), rng)
            if self.is_fake:
                records["x"][rng.randint(len(records))] = np.nan
            records["min"], records["max"] = range.min, range.max
            records["bits"], records["narrow"] = range.num_bits, range.narrow_range

    def expected(self, cases: Array) -> Array:
        """Return the results of cases."""
        return self._by_range(cases, self.settings.function)

    def _by_range(self, cases: Array, function: str) -> Array:
        out = np.empty(len(cases), arithmetic.DTYPES[self.result.dtype])
        for start, stop, tensor in self._tensors(cases):
            out[start:stop] = (
                tensor.fake_quantized_by(function)
                if self.is_fake
                else tensor.quantized_by(function).values
            )
        return out

    def _tensors(self, cases: Array) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the runs of cases of one range."""
        for start, stop in runs(cases, [field.name for field in _RANGE]):
            yield start, stop, self._tensor(cases[start:stop])

    def _tensor(self, cases: Array) -> Tensor:
        ends = cases["min"][0, ...], cases["max"][0, ...]
        rest = int(cases["bits"][0]), bool(cases["narrow"][0])
        return Tensor(cases["x"], *ends, *rest, self.settings.function, self.settings.signed)

    def others(self, cases: Array) -> Iterator[tuple[str, Array]]:
        """Yield by name what other arithmetics make of cases."""
        found: dict[str, list[Array]] = {}
        runs = 0
        for _, _, tensor in self._tensors(cases):
            runs += 1
            for name, part in tensor.other_floats() if self.is_fake else tensor.other_integers():
                found.setdefault(name, []).append(part)
        for name, parts in found.items():
            if len(parts) == runs:  # the op args does not take every range
                yield name, np.concatenate(parts)

    def exactly(self, case: Any, index: tuple[int, ...]) -> tuple[float, float] | None:  # noqa: ARG002
        """Return the exact result before rounding and its distance from a tie."""
        range = self._tensor(np.asarray(case)[np.newaxis]).range_of()
        tie = to_tie(case["x"], range)
        return None if tie is None else (float(exact_steps(case["x"], range)), tie)


class Requantized(Numbers):
    """The op requantize: an accumulator to an integer under a profile."""

    result = Field("q", "i32")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.constants = [
            Field(constant.name, constant.dtype)
            for constant in arithmetic.constants_spec("weighted", settings.profile)
            if not constant.name.endswith("_scale")
        ]
        ends = (Field("output_zero_point", "i32"), Field("low", "i32"), Field("high", "i32"))
        self.case = (Field("acc", "i32"), *self.constants, *ends)

    def fill(self, groups: Array, rng: np.random.RandomState) -> None:
        """Fill records ``(groups, size)`` with cases."""
        settings = self.settings
        check_num_bits(settings.bits)
        # As many inputs as 32 bits have room for.
        inputs = min(1 << max(30 - 2 * settings.bits, 0), 64)
        geometry = Geometry("conv", (1, 1, inputs), 1, (1, 1), (1, 1))
        for records in groups:
            layer = accepted_layer(
                geometry, rng, num_bits=settings.bits, signed=settings.signed,
                profile=settings.profile, multiplier_bits=settings.multiplier_bits,
            )  # fmt: skip
            constants = layer.constants(settings.profile, settings.multiplier_bits)
            for field in self.case[1:]:
                records[field.name] = constants[field.name].reshape(-1)[0]
            assert layer.weights is not None
            above, below = (int(np.clip(layer.weights * s, 0, None).sum()) for s in (1, -1))
            low, high = layer.params[0].limits
            reach = (
                max(above * low - below * high, -_INT32), min(above * high - below * low, _INT32)
            )  # fmt: skip
            records["acc"] = self._accumulators(records, reach, rng)

    def _accumulators(
        self, records: Array, reach: tuple[int, int], rng: np.random.RandomState
    ) -> Array:
        """Return accumulators of which most lie next to a tie, the clamps among these."""
        given = {field.name: records[field.name][:1] for field in self.constants}
        zero, one = self._real(np.array([0, 1]), given)
        first = records[0]
        low, high = (int(first[end]) - int(first["output_zero_point"]) for end in ("low", "high"))
        count = len(records)
        ties = np.where(
            rng.uniform(size=count) < 0.3,
            rng.choice([low - 1, low, high - 1, high], count),
            rng.randint(low, high + 1, count),
        )
        around = (ties + 0.5 - zero) / (one - zero)
        nearby = np.clip(around, *reach).astype(np.int64)[:, np.newaxis]
        nearby = nearby + np.arange(-_NEARBY, _NEARBY)
        real = self._real(nearby, given)
        best = np.abs(real - np.floor(real) - 0.5).argmin(axis=1)
        found = nearby[np.arange(count), best]
        anywhere = rng.randint(reach[0], reach[1] + 1, count)
        kinds = rng.uniform(size=count)
        found = np.where(kinds < 0.75, found, anywhere)
        found = np.where(kinds > 0.95, rng.choice([*reach, 0, 1, -1], count), found)
        return np.clip(found, *reach)

    def _real(self, acc: Array, given: Mapping[str, Array]) -> Array:
        return arithmetic.real("weighted", self.settings.profile, [acc], given)

    def _given(self, cases: Any) -> dict[str, Array]:
        return {field.name: np.asarray(cases[field.name]) for field in self.constants}

    def _stored(self, relative: Array, cases: Array) -> Array:
        stored = relative + cases["output_zero_point"]
        return np.asarray(np.clip(stored, cases["low"], cases["high"]))

    def expected(self, cases: Array) -> Array:
        """Return the results of cases."""
        settings, acc = self.settings, [cases["acc"].astype(np.int64)]
        given = self._given(cases)
        found = arithmetic.rounded("weighted", settings.profile, acc, given, settings.rounding)
        return self._stored(found, cases).astype("<i4")

    def others(self, cases: Array) -> Iterator[tuple[str, Array]]:
        """Yield by name what other arithmetics make of cases."""
        settings, acc = self.settings, [cases["acc"].astype(np.int64)]
        given = self._given(cases)
        found = arithmetic.others("weighted", settings.profile, acc, given, settings.rounding)
        for name, relative in found.items():
            yield name, self._stored(relative, cases)
        plain = arithmetic.rounded("weighted", settings.profile, acc, given, settings.rounding)
        yield "missing clamps", plain + cases["output_zero_point"]
        yield "a missing zero point", np.clip(plain, cases["low"], cases["high"])

    def exactly(self, case: Any, index: tuple[int, ...]) -> tuple[float, float] | None:  # noqa: ARG002
        """Return the exact result before rounding and its distance from a tie."""
        acc, given = [np.asarray(case["acc"], np.int64)], self._given(case)
        return arithmetic.exact_value("weighted", self.settings.profile, acc, given)


class Packing(Numbers):
    """The op packing: integers to bytes or words."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        dtype = smallest_dtype(settings.bits, settings.signed)
        self.case = (Field("values", f"{dtype.kind}{8 * dtype.itemsize}", settings.shape),)
        packed = self._pack(np.zeros(settings.shape, dtype), settings.layout)
        self.result = Field("packed", f"u{8 * packed.itemsize}", packed.shape)

    def _pack(self, values: Array, layout: str) -> Array:
        return pack(values, self.settings.bits, layout, signed=self.settings.signed)

    def cases(self) -> Array:
        """Return all cases."""
        settings, rng = self.settings, np.random.RandomState(self.settings.seed)
        records = np.zeros(settings.count, dtype_of(self.case))
        offset = int(settings.signed) << (settings.bits - 1)
        values = rng.randint(0, 1 << settings.bits, (settings.count, *settings.shape))
        flat = values.reshape(settings.count, -1)
        flat[: flat.shape[1]] = 0  # then one value with all bits set, which shows where it goes
        places = np.arange(min(flat.shape))
        flat[places, places] = (1 << settings.bits) - 1
        records["values"] = (values ^ offset) - offset
        return records

    def expected(self, cases: Array) -> Array:
        """Return the results of cases."""
        return self._packed(cases, self.settings.layout)

    def _packed(self, cases: Array, layout: str) -> Array:
        """Pack every case; all at once where a case fills whole bytes or words."""
        values, settings = cases["values"], self.settings
        if LAYOUTS[layout].axis is None:
            axis = 1
            values = values.reshape(len(values), -1)
        else:
            axis = values.ndim - 1
        return pack(values, settings.bits, layout, axis=axis, signed=settings.signed)

    def others(self, cases: Array) -> Iterator[tuple[str, Array]]:
        """Yield by name what other arithmetics make of cases."""
        for layout, rules in LAYOUTS.items():
            if layout != self.settings.layout and self.settings.bits in rules.widths:
                yield f"the layout {layout}", self._packed(cases, layout)


def runs(records: Array, names: list[str]) -> Iterator[tuple[int, int]]:
    """Yield start and stop of the runs of records that have the same bytes in these fields."""
    if not len(records):
        return
    changes = np.zeros(len(records) - 1, np.bool_)
    for name in names:
        column = np.ascontiguousarray(records[name]).reshape(len(records), -1).view(np.uint8)
        changes |= (column[1:] != column[:-1]).any(axis=1)
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(records)]
    yield from pairwise(edges)
