"""Cases of whole layers: each its integers, weights and constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels.affine import smallest_dtype
from qmath.testing import arithmetic
from qmath.testing.layer_cases import deciding_layer
from qmath.testing.pipe.numbers import Numbers, runs
from qmath.testing.pipe.records import Field, dtype_of
from qmath.testing.pipe.settings import Settings

__all__ = ["Layers"]

Array = NDArray[Any]


class Layers(Numbers):
    """The ops conv, depthwise, dense, add, average_pool and max_pool."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.geometry = settings.geometry
        kind = smallest_dtype(settings.bits, settings.signed)
        width = 8 * kind.itemsize
        integer = f"{kind.kind}{width}"
        self.inputs = ("a", "b") if settings.op == "add" else ("input",)
        case = [Field(name, integer, settings.shape) for name in self.inputs]
        if self.geometry.weights:
            case.append(Field("weights", f"i{width}", self.geometry.weights))
        if settings.op != "max_pool":
            case += self._constants()
        self.case = tuple(case)
        self.result = Field("output", integer, self.geometry.output)
        self.divisor = self.geometry.operation()[1] if settings.op == "average_pool" else None

    def _constants(self) -> list[Field]:
        spec = arithmetic.constants_spec(self.geometry.kind, self.settings.profile)
        names = [f"{name}_zero_point" for name in self.inputs]
        names += ["output_zero_point", "low", "high"]
        found = [Field(each.name, each.dtype, each.lengths(self.geometry.output)) for each in spec]
        return [*found, *(Field(name, "i32") for name in names)]

    def cases(self) -> Array:
        """Return all cases: layers, each with some inputs."""
        settings, rng = self.settings, np.random.RandomState(self.settings.seed)
        parts = []
        each = min(max(settings.count // 64, 32), 256)  # inputs of a layer
        for _ in range(-(-settings.count // each)):
            layer = deciding_layer(
                self.geometry, rng, num_bits=settings.bits, signed=settings.signed,
                profile=settings.profile, multiplier_bits=settings.multiplier_bits, count=each,
            )  # fmt: skip
            records = np.zeros(each, dtype_of(self.case))
            for name, x in zip(self.inputs, layer.inputs, strict=True):
                records[name] = x
            constants = layer.constants(settings.profile, settings.multiplier_bits)
            if layer.weights is not None:
                constants["weights"] = layer.weights
            for name, value in constants.items():
                records[name] = value
            parts.append(records)
        return np.concatenate(parts)[: settings.count]

    def expected(self, cases: Array) -> Array:
        """Return the outputs of cases."""
        if self.settings.op == "max_pool":
            return self.geometry.maximum(cases["input"])
        out = np.empty((len(cases), *self.geometry.output), arithmetic.DTYPES[self.result.dtype])
        settings, kind = self.settings, self.geometry.kind
        for start, stop, sums, given in self._groups(cases):
            found = arithmetic.rounded(kind, settings.profile, sums, given, settings.rounding)
            out[start:stop] = self._stored(found, given)
        return out

    def _groups(self, cases: Array) -> Iterator[tuple[int, int, list[Array], dict[str, Array]]]:
        """Yield each layer's run of cases, its accumulators and its constants."""
        names = [field.name for field in self.case if field.name not in self.inputs]
        for start, stop in runs(cases, names):
            given = {name: cases[name][start] for name in names}
            yield start, stop, self._sums(cases[start:stop], given), given

    def _sums(self, cases: Array, given: dict[str, Array]) -> list[Array]:
        relative = [
            cases[name].astype(np.int64) - given[f"{name}_zero_point"] for name in self.inputs
        ]
        sums = self.geometry.sums(relative, given.get("weights"))
        if self.divisor is not None:
            given["count"] = self.divisor.astype(np.int64)
            if self._sums_are_stored:
                sums = [sums[0] + given["count"] * given["input_zero_point"]]
        return sums

    @property
    def _sums_are_stored(self) -> bool:
        """Whether the rounding is of stored integers, zero point included, as TFLite's pool."""
        return self.divisor is not None and self.settings.profile in arithmetic.OF_TFLITE

    def _unclamped(self, relative: Array, given: Mapping[str, Array]) -> Array:
        zero_point = 0 if self._sums_are_stored else given["output_zero_point"]
        return relative + zero_point

    def _stored(self, relative: Array, given: Mapping[str, Array]) -> Array:
        return np.clip(self._unclamped(relative, given), given["low"], given["high"])

    def others(self, cases: Array) -> Iterator[tuple[str, Array]]:
        """Yield by name what other arithmetics make of cases."""
        if self.settings.op == "max_pool":
            return
        found: dict[str, Array] = {}
        for start, stop, sums, given in self._groups(cases):
            for name, part in self._other_results(sums, given):
                whole = found.setdefault(name, np.zeros((len(cases), *self.geometry.output)))
                whole[start:stop] = part
        yield from found.items()

    def _other_results(
        self, sums: list[Array], given: Mapping[str, Array]
    ) -> Iterator[tuple[str, Array]]:
        settings, kind = self.settings, self.geometry.kind
        results = arithmetic.others(kind, settings.profile, sums, given, settings.rounding)
        for name, relative in results.items():
            yield name, self._stored(relative, given)
        plain = arithmetic.rounded(kind, settings.profile, sums, given, settings.rounding)
        yield "missing clamps", self._unclamped(plain, given)
        yield "a missing output zero point", np.clip(plain, given["low"], given["high"])
        if kind in ("weighted", "depthwise", "dense"):
            zero = -np.ones((1, *self.geometry.input)) * given["input_zero_point"]
            inside = self.geometry.sums([zero], given.get("weights"))[0]
            bare = [sums[0] - inside]
            relative = arithmetic.rounded(kind, settings.profile, bare, given, settings.rounding)
            yield "a missing input zero point", self._stored(relative, given)

    def exactly(self, case: Any, index: tuple[int, ...]) -> tuple[float, float] | None:
        """Return an output before it is rounded and its distance from a tie."""
        if self.settings.op == "max_pool":
            return None
        one = np.asarray(case)[np.newaxis]
        _, _, sums, given = next(self._groups(one))
        shape = self.geometry.output
        spec = arithmetic.constants_spec(self.geometry.kind, self.settings.profile)
        spread = {"count", *(name for name, _, each in spec if isinstance(each, str))}
        here = {
            name: np.broadcast_to(value, shape)[index] if name in spread else value
            for name, value in given.items()
            if name != "weights"
        }
        return arithmetic.exact_value(
            self.geometry.kind, self.settings.profile, [a[0][index] for a in sums], here
        )
