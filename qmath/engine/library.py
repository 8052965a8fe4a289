"""A compiled program, loaded: an executor whose batches run in C."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.engine.source import Source
from qmath.errors import QmathError
from qmath.exports.c.lifetimes import segments
from qmath.integer.executor import Executor
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import FloatStep, Program, QuantizedStep, Requantize, sources
from qmath.kernels._environment import in_default_environment
from qmath.kernels.affine import smallest_dtype

__all__ = ["Compiled"]

Array = NDArray[Any]


class _Library:
    """A loaded library, whose tensors are static: one batch at a time runs all of its parts."""

    def __init__(self, path: Path, functions: tuple[str, ...]) -> None:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise QmathError(
                f"engine c: {path} cannot be loaded ({error}); delete it, or name a folder whose "
                "programs may run by XDG_CACHE_HOME"
            ) from error
        missing = [name for name in functions if not hasattr(library, name)]
        if missing:
            raise QmathError(
                f"engine c: {path} lacks the function {missing[0]}; delete it, or name another "
                "compiler by CC"
            )
        self._functions = {name: getattr(library, name) for name in functions}
        self._lock = threading.Lock()

    def call(self, function: str, count: int, *pointers: Sequence[Array | None]) -> None:
        """Call a function of `qmath.engine.source.Source` on arrays."""
        lists = [
            (ctypes.c_void_p * len(arrays))(*[x if x is None else x.ctypes.data for x in arrays])
            for arrays in pointers
        ]
        with self._lock:
            self._functions[function](ctypes.c_size_t(count), *lists)


_loaded = functools.cache(_Library)


def _read_later(
    parts: Sequence[Sequence[QuantizedStep]], in_float: Sequence[FloatStep]
) -> set[str]:
    """Return what float layers read, and what parts read of earlier ones."""
    found = {name for step in in_float for name in sources(step)}
    for steps in parts:
        found |= {name for step in steps for name in sources(step)} - {step.name for step in steps}
    return found


class Compiled(Executor):
    """A program whose batches run in C, float layers apart, which lie between its parts.

    Single steps, teacher forcing and what else `Executor` does run in NumPy.

    Parameters
    ----------
    program : Program
        Without cut points.
    profile : Integer
    source : Source
        Of the program.
    library : Path
        What `qmath.engine.compiler.compiled` made of it.

    Raises
    ------
    QmathError
        The library cannot be loaded, or lacks a function.
    """

    engine = "c"

    def __init__(self, program: Program, profile: Integer, source: Source, library: Path) -> None:
        super().__init__(program, profile)
        self._source = source
        self._library = _loaded(library, tuple(source.functions))
        self._parts = segments(program)
        self._in_float = [step for step in program.steps if isinstance(step, FloatStep)]
        self._later = _read_later(self._parts, self._in_float)
        self._made_of = {
            step.name: (step.shape, smallest_dtype(step.params.num_bits, signed=False))
            for step in program.steps
            if not isinstance(step, FloatStep)
        }

    @in_default_environment
    def run(
        self,
        inputs: Mapping[str, ArrayLike],
        forced: Mapping[str, Array] | None = None,
        watch: Callable[[Requantize, list[Array]], None] | None = None,
        keep: Container[str] | None = None,
        restart: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Run one batch, as `Executor.run`."""
        arrays = self.converted(inputs)
        results = None if forced or watch or restart else self._run(arrays, keep)
        if results is None:
            return super().run(arrays, forced, watch, keep, restart)
        return {name: x for name, x in results.items() if keep is None or name in keep}

    def _run(
        self, inputs: dict[str, Array], keep: Container[str] | None
    ) -> dict[str, Array] | None:
        """Return the results of the steps to keep, perhaps of more, or None if floats are NaN.

        NumPy's quantizers say where.
        """
        count = len(next(iter(inputs.values())))
        integers = {
            name: np.empty((count, *shape), dtype)
            for name, (shape, dtype) in self._made_of.items()
            if keep is None or name in keep or name in self._later
        }
        values, made = dict(inputs), set(inputs)
        self._add_floats(values, integers, made)
        for function, steps in zip(self._source.functions, self._parts, strict=True):
            floats = [values.get(name) for name in self._source.floats]
            if any(x is not None and np.isnan(x.min(initial=0)) for x in floats):
                return None
            self._library.call(function, count, floats, [*map(integers.get, self._source.integers)])
            if self._in_float:
                made |= {step.name for step in steps}
                self._add_floats(values, integers, made)
        return integers | {step.name: values[step.name] for step in self._in_float}

    def _add_floats(
        self, values: dict[str, Array], integers: Mapping[str, Array], made: set[str]
    ) -> None:
        """Compute the float layers whose sources are made."""
        for step in self._in_float:
            if step.name in made or not made.issuperset(sources(step)):
                continue
            for name in sources(step):
                if name not in values:
                    zero_point = self.quant_params[name].zero_point
                    relative = integers[name].astype(np.int32) - zero_point
                    values[name] = relative.astype(np.float32)
            values[step.name] = np.ascontiguousarray(self._compute(step, values, None))
            made.add(step.name)
