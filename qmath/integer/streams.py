"""Data of any length, in parts: arrays, what is read by rows, files, and iterables of batches."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from numpy.typing import ArrayLike, NDArray

from qmath.containers.stored_arrays import Rows, open_arrays
from qmath.errors import FileFormatError, QmathError
from qmath.integer.cuts import with_cuts
from qmath.integer.executor import Executor
from qmath.integer.input_reach import InputReach
from qmath.integer.program import Program
from qmath.kernels._arrays import as_array

__all__ = ["Batch", "Data", "Part", "Stream", "chosen_inputs", "is_batches", "opened", "rows_of"]

Array = NDArray[Any]
# Data of some or all examples: for the one input, or for each by its name.
Batch = ArrayLike | Rows | Mapping[str, ArrayLike | Rows]
# All data, or a path of them, or an iterable of batches.
Data = Batch | os.PathLike[str] | Iterable[Batch]
_CHECKED = 1 << 18  # elements of which the range is checked at once


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the examples.

    Attributes
    ----------
    start : int
        The number of the first.
    inputs : dict of str to ndarray
        Of each input, and of cut points.
    beside : dict of str to ndarray
        What else there is of each example: labels, or integers to be compared with.
    """

    start: int
    inputs: dict[str, Array]
    beside: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def cut(self, size: int) -> Iterator[Part]:
        """Yield parts of at most `size` examples; of none, one without any."""
        for at in range(0, max(len(self), 1), size):
            yield self._of(slice(at, at + size))

    def cut_at(self, count: int) -> tuple[Part, Part]:
        """Return the first `count` examples, and the others."""
        return self._of(slice(count)), self._of(slice(count, None))

    def _of(self, rows: slice) -> Part:
        inputs, beside = (
            {name: x[rows] for name, x in arrays.items()} for arrays in (self.inputs, self.beside)
        )
        return Part(self.start + (rows.start or 0), inputs, beside)


class Stream:
    """Data of a program, read from the first example to the last.

    Parameters
    ----------
    executor : Executor
        What is to run them.
    data : array-like, mapping of str to array-like, or iterable of these
        Array-likes with a shape and a dtype are read by slices of their first axis. An iterable
        is read once.
    cuts : mapping of str to array-like, optional
        Recorded outputs of cut points, by name.
    beside : mapping of str to Rows, optional
        What else there is of each example.

    Attributes
    ----------
    length : int or None
        The number of examples; ``None`` where only the end of the data tells it.
    names : frozenset of str
        The inputs and cut points that there are data of.
    executor : Executor

    Raises
    ------
    QmathError
        The data do not fit the program.
    """

    def __init__(
        self,
        executor: Executor,
        data: Data,
        cuts: Mapping[str, ArrayLike | Rows] | None = None,
        beside: Mapping[str, Rows] | None = None,
    ) -> None:
        self.executor, program = executor, executor.given
        self._batches: Iterator[Batch] | None = None
        recorded = cast("Mapping[str, ArrayLike] | None", cuts)  # read by rows, too
        if is_batches(data):
            self._batches = iter(cast("Iterable[Batch]", data))
            given = with_cuts(program, {}, recorded)
        else:
            given = with_cuts(program, _named(program, data), recorded)
        self._arrays = {name: rows_of(x, f"{name}: the data") for name, x in given.items()}
        self._beside = dict(beside or {})
        self.names = frozenset(self._arrays) | frozenset(program.inputs if self._batches else ())
        self.length = self._known_length()
        self._shapes = [shape for name, shape in program.feeds.items() if name in self.names]

    @property
    def batch(self) -> int:
        """How many examples are computed at once."""
        return self.executor.examples

    def _known_length(self) -> int | None:
        """Return how many examples there are, if the data are all at hand and fit the program."""
        if self._batches is not None:
            return None
        feeds = self.executor.given.feeds
        looked_at: dict[str, Any] = {  # what has another shape is refused as a whole
            name: x[:0] if x.shape and tuple(x.shape[1:]) == feeds.get(name) else x
            for name, x in self._arrays.items()
        }
        self.executor.converted(looked_at)
        lengths = {x.shape[0] for x in self._arrays.values()}
        if len(lengths) > 1:
            raise QmathError(f"the inputs differ in their number of examples: {sorted(lengths)}")
        length = int(lengths.pop())
        self._check_lengths(self._beside, length)
        return length

    @staticmethod
    def _check_lengths(arrays: Mapping[str, Rows], length: int) -> None:
        for name, x in arrays.items():
            if x.shape[0] != length:
                raise QmathError(f"{name}: {x.shape[0]} are given, the data hold {length} examples")

    def with_beside(self, beside: Mapping[str, Rows]) -> Stream:
        """Return the same data with what else there is of each example."""
        return Stream(self.executor, self._batches or self._arrays, None, beside)

    def check(self) -> None:
        """Read data that are at hand once, and refuse what the model's inputs would clip.

        Raises
        ------
        QmathError
            Most of the data lie outside the ranges of the inputs, or are no numbers.
        """
        if self.length is None:
            return
        reach = InputReach(self.executor.given)
        for part in self.parts(lambda: self.holding(_CHECKED)):
            reach.add(self.executor.converted(part.inputs))
        reach.check()

    def first(self) -> Part:
        """Return the first batch of data that are at hand."""
        return next(self.parts(lambda: self.batch))

    def whole(self) -> Mapping[str, Any]:
        """Return all data, unread as yet.

        Raises
        ------
        QmathError
            They are an iterable.
        """
        if self._batches is not None:
            raise QmathError("one integer is looked for in arrays or files, not in an iterable")
        return self._arrays

    def holding(self, elements: int) -> int:
        """Return how many examples have about so many elements."""
        return max(1, elements // max(1, *map(math.prod, self._shapes), 1))

    def parts(self, size: Callable[[], int]) -> Iterator[Part]:
        """Yield the data in parts of `size()` examples, or in the batches of the iterable.

        Raises
        ------
        QmathError
            A batch does not fit the program; at the end of an iterable, as `check` does.
        """
        if self._batches is not None:
            yield from self._given_parts(self._batches)
            return
        assert self.length is not None
        start = 0
        while not start or start < self.length:
            rows = slice(start, start + size())
            yield Part(start, _cut(self._arrays, rows), _cut(self._beside, rows))
            start = rows.stop

    def _given_parts(self, batches: Iterator[Batch]) -> Iterator[Part]:
        start, is_read, reach = 0, False, InputReach(self.executor.given)
        for batch in batches:
            is_read = True
            inputs = dict(_named(self.executor.given, batch))
            shape = as_array(next(iter(inputs.values()), ()), "the data").shape
            if not inputs or not shape:
                raise QmathError(
                    f"the batch behind {start} examples is {batch!r}; give arrays (N, …), or "
                    "mappings of them by the inputs' names"
                )
            count = shape[0]
            rows = slice(start, start + count)
            arrays = self.executor.converted({**inputs, **_cut(self._arrays, rows)})
            beside = _cut(self._beside, rows)
            for name, x in (arrays | beside).items():
                if len(x) != count:
                    raise QmathError(
                        f"{name}: {len(x)} of the examples from {start} on, of which the data "
                        f"hold {count}"
                    )
            reach.add(arrays)
            yield Part(start, arrays, beside)
            start += count
        if not is_read:
            raise QmathError("the data hold no batches; an iterator can be read only once")
        self._check_lengths(self._arrays | self._beside, start)
        reach.check()


def opened(data: Data) -> Any:
    """Return the data, or where they are a path, the arrays of that file by name.

    Raises
    ------
    FileFormatError
        See `qmath.containers.stored_arrays.open_arrays`.
    """
    return open_arrays(data) if isinstance(data, (str, os.PathLike)) else data


def is_batches(data: Any) -> bool:
    """Whether data are an iterable of batches, and not an array or some that have names."""
    if isinstance(data, (Mapping, Sequence, str)) or not isinstance(data, Iterable):
        return False
    arrays = ("shape", "__array__", "__array_interface__", "__dlpack__")
    return not any(hasattr(data, name) for name in arrays)


def rows_of(data: Any, name: str) -> Rows:
    """Return what can be sliced as it is, and anything else as an array."""
    if all(hasattr(data, word) for word in ("shape", "dtype", "__getitem__")) and len(data.shape):
        found: Rows = data
        return found
    return as_array(data, name)


def chosen_inputs(where: str, arrays: Mapping[str, Rows], program: Program) -> dict[str, Rows]:
    """Return the data of each input among a file's arrays: by its name, or the one of its shape.

    Raises
    ------
    FileFormatError
        The file's data do not fit; the message names the inputs and their shapes.
    """
    if all(name in arrays and arrays[name].shape for name in program.inputs):
        return {name: arrays[name] for name in program.inputs}
    fitting = {
        name: [
            key
            for key, x in arrays.items()
            if x.shape[1:] == shape and len(x.shape) == len(shape) + 1
        ]
        for name, shape in program.inputs.items()
    }
    if len(fitting) == 1 and len(next(iter(fitting.values()))) == 1:
        return {name: arrays[keys[0]] for name, keys in fitting.items()}
    wanted = ", ".join(
        f"{name} of shape (N, {', '.join(map(str, shape))})"
        for name, shape in program.inputs.items()
    )
    held = ", ".join(f"{key or 'an array'} of shape {x.shape}" for key, x in arrays.items())
    raise FileFormatError(f"{where}: the model needs {wanted}; the file holds {held or 'nothing'}")


def _named(program: Program, data: Any) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        return data
    if len(program.inputs) != 1:
        raise QmathError(
            f"the model has the inputs {', '.join(program.inputs)}: give data for each"
        )
    return {next(iter(program.inputs)): data}


def _cut(arrays: Mapping[str, Rows], rows: slice) -> dict[str, Array]:
    return {name: as_array(x[rows], f"{name}: the data") for name, x in arrays.items()}
