"""What a run comes to: results that add up over the examples, however these were divided."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.profiles.exact import unrounded
from qmath.integer.program import Program, QuantizedStep, QuantizeStep, QuantParams, Requantize

__all__ = [
    "Accuracy",
    "Activation",
    "Activations",
    "Computed",
    "Kept",
    "Reducer",
    "outputs_of",
    "real_result",
]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Computed:
    """What was computed of some examples.

    Attributes
    ----------
    start : int
        The number of the first example.
    inputs : mapping of str to ndarray
    results : mapping of str to ndarray
        By step: unsigned integers, as TensorFlow counts, or float32.
    beside : mapping of str to ndarray
        What else there is of each example, such as labels.
    reals : mapping of str to ndarray
        By requantized tensor, for a reducer that asks for them: the exact results in integer
        steps, relative to the zero point, before they are rounded and clamped.
    """

    start: int
    inputs: Mapping[str, Array]
    results: Mapping[str, Array]
    beside: Mapping[str, Array] = field(default_factory=dict)
    reals: Mapping[str, Array] = field(default_factory=dict)


class Reducer(ABC):
    """A result of many examples that grows by addition.

    `merge` of two reducers is what one would be that was given the examples of both: so work can
    be divided, and a part of it done again. It can be pickled.

    Attributes
    ----------
    names : frozenset of str or None
        The steps whose results it reads; ``None``: all.
    asks_reals : bool
        Whether it reads `Computed.reals`.
    """

    names: frozenset[str] | None = None
    asks_reals: ClassVar[bool] = False

    @abstractmethod
    def empty(self) -> Any:
        """Return one of the same kind that was given nothing."""

    @abstractmethod
    def add(self, computed: Computed) -> None:
        """Add further examples."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Add what another was given, of examples that follow."""

    @abstractmethod
    def result(self) -> Any:
        """Return what all examples come to."""

    def state(self) -> Any:
        """Return what it holds, as JSON values and arrays, for a run that can be resumed."""
        raise QmathError(
            f"{type(self).__name__} has no state() and restore(), which a run with resume needs: "
            "write them, or leave resume out"
        )

    def restore(self, state: Any) -> None:
        """Take what `state` returned, in place of nothing."""
        raise NotImplementedError(state)


class Kept(Reducer):
    """The results of steps themselves, of all examples: memory grows with their number.

    Parameters
    ----------
    names : iterable of str, optional
        Default: all steps.
    """

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self.names = None if names is None else frozenset(names)
        self._parts: dict[str, list[Array]] = {}

    def empty(self) -> Kept:
        """See `Reducer`."""
        return Kept(self.names)

    def add(self, computed: Computed) -> None:
        """See `Reducer`."""
        for name, values in computed.results.items():
            if self.names is None or name in self.names:
                self._parts.setdefault(name, []).append(values)

    def merge(self, other: Kept) -> None:
        """See `Reducer`."""
        for name, parts in other._parts.items():
            self._parts.setdefault(name, []).extend(parts)

    def result(self) -> dict[str, Array]:
        """Return an array of each step that was computed."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}

    def taken(self) -> dict[str, Array]:
        """Return the result so far, and hold nothing of it any more."""
        found = self.result()
        self._parts.clear()
        return found

    def state(self) -> dict[str, Array]:
        """See `Reducer`."""
        return self.result()

    def restore(self, state: Mapping[str, Array]) -> None:
        """See `Reducer`."""
        self._parts = {name: [values] for name, values in state.items()}


class Accuracy(Reducer):
    """How often the largest value of an output is at its example's label.

    Parameters
    ----------
    output : str
        The step.
    labels : str
        What the labels are called among `Computed.beside`: class numbers, or one-hot.
    """

    def __init__(self, output: str, labels: str = "labels") -> None:
        self.names = frozenset({output})
        self._output, self._labels = output, labels
        self._right = self._number = 0

    @classmethod
    def of(cls, program: Program) -> Accuracy:
        """Return that of a program's only output."""
        if len(program.outputs) != 1:
            raise QmathError(
                f"the model has the outputs {', '.join(program.outputs)}: for the accuracy of one, "
                "add a reducer: qmath.integer.reducers.Accuracy"
            )
        return cls(program.outputs[0])

    def empty(self) -> Accuracy:
        """See `Reducer`."""
        return Accuracy(self._output, self._labels)

    def add(self, computed: Computed) -> None:
        """See `Reducer`."""
        if self._output not in computed.results:
            return
        values = computed.results[self._output]
        labels, classes = np.asarray(computed.beside[self._labels]), values.shape[-1]
        if classes > 1 and labels.shape == values.shape:
            labels = _places(labels, computed.start)
        found = values.argmax(-1)
        if labels.shape == (*found.shape, 1):
            labels = labels[..., 0]
        if classes < 2 or labels.shape != found.shape:
            raise QmathError(
                f"labels of shape {labels.shape} do not fit {self._output} of shape "
                f"{values.shape}: give a class number for each example, or one-hot rows, of an "
                "output with a value for each class"
            )
        is_class = (labels >= 0) & (labels < classes) & (labels % 1 == 0)
        if not is_class.all():
            at = np.unravel_index(int(is_class.argmin()), labels.shape)
            raise QmathError(
                f"the label of example {computed.start + int(at[0])} is {labels[at]}, and "
                f"{self._output} has the classes 0 to {classes - 1}"
            )
        self._right += int(np.count_nonzero(found == labels))
        self._number += labels.size

    def merge(self, other: Accuracy) -> None:
        """See `Reducer`."""
        self._right += other._right
        self._number += other._number

    def state(self) -> list[int]:
        """See `Reducer`."""
        return [self._right, self._number]

    def restore(self, state: list[int]) -> None:
        """See `Reducer`."""
        self._right, self._number = state

    def result(self) -> float | None:
        """Return the share of labels that were found; ``None`` without any."""
        return self._right / self._number if self._number else None


def _places(rows: Array, start: int) -> Array:
    """Return where each one-hot row has its one; the first row has the number `start`."""
    is_hot = rows == rows.max(-1, keepdims=True)
    has_one = np.count_nonzero(is_hot, axis=-1) == 1
    if not has_one.all():
        number = start + int(np.unravel_index(int(has_one.argmin()), has_one.shape)[0])
        raise QmathError(
            f"the label of example {number} is a row without one greatest number: give one-hot "
            "rows, or class numbers"
        )
    return np.asarray(is_hot.argmax(-1))


@dataclass(frozen=True, eq=False)
class Activation:
    """How a quantized tensor's integers are used.

    Attributes
    ----------
    counts : ndarray of int64
        How often each integer occurs, unsigned as TensorFlow counts: ``2**num_bits`` numbers.
    clipped : int or None
        How many results lay beyond the range and were cut off, an activation's own limits apart;
        ``None`` where nothing is rounded by a requantization or the input's quantizer.
    sqnr : float or None
        Signal to quantization noise, in dB: the exact results against their integers. ``None`` as
        `clipped`, and where either is zero.
    """

    counts: NDArray[np.int64]
    clipped: int | None
    sqnr: float | None

    @property
    def used(self) -> int:
        """How many integers occur."""
        return int(np.count_nonzero(self.counts))


@dataclass
class _Use:
    counts: NDArray[np.int64]
    clipped: int = 0
    signal: int = 0  # exact sums, so that it does not matter what is added first
    noise: int = 0

    def merge(self, other: _Use) -> None:
        self.counts += other.counts
        self.clipped += other.clipped
        self.signal += other.signal
        self.noise += other.noise


class Activations(Reducer):
    """How the integers of each quantized tensor are used.

    Parameters
    ----------
    steps : iterable of QuantizedStep
    """

    asks_reals = True

    def __init__(self, steps: Iterable[QuantizedStep]) -> None:
        self._steps = {step.name: step for step in steps}
        self.names = frozenset(self._steps)
        self._uses = {
            name: _Use(np.zeros(1 << step.params.num_bits, np.int64))
            for name, step in self._steps.items()
        }

    def empty(self) -> Activations:
        """See `Reducer`."""
        return Activations(self._steps.values())

    def add(self, computed: Computed) -> None:
        """See `Reducer`."""
        for name, step in self._steps.items():
            if name not in computed.results:
                continue
            use, integers = self._uses[name], computed.results[name]
            use.counts += np.bincount(integers.ravel(), minlength=len(use.counts))
            reals = computed.reals.get(name)
            if isinstance(step, QuantizeStep):
                reals = computed.inputs[step.source].astype(np.float64) / step.params.scale
            if reals is not None:
                _measure(use, reals, integers, step.params)

    def merge(self, other: Activations) -> None:
        """See `Reducer`."""
        for name, use in self._uses.items():
            use.merge(other._uses[name])

    def state(self) -> dict[str, Any]:
        """See `Reducer`."""
        return {name: asdict(use) for name, use in self._uses.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Reducer`."""
        self._uses = {name: _Use(**state[name]) for name in self._uses}

    def result(self) -> dict[str, Activation]:
        """Return the use of each tensor that was computed."""
        found = {}
        for name, use in self._uses.items():
            if not use.counts.any():
                continue
            is_rounded = isinstance(self._steps[name], (Requantize, QuantizeStep))
            sqnr = None
            if use.signal and use.noise:
                sqnr = 10 * (math.log10(use.signal) - math.log10(use.noise))
            found[name] = Activation(use.counts, use.clipped if is_rounded else None, sqnr)
        return found


def _measure(use: _Use, reals: Array, integers: Array, params: QuantParams) -> None:
    low, high = params.limits
    use.clipped += int(np.count_nonzero((reals < low - 0.5) | (reals >= high + 0.5)))
    noise = integers.astype(np.float64) - params.zero_point - reals
    use.signal += _exact_sum(np.square(reals))
    use.noise += _exact_sum(np.square(noise))


def _exact_sum(values: Array) -> int:
    """Return the sum of each example's float64 sum, exactly, in units of ``2**-1128``."""
    if not len(values):
        return 0
    parts, exponents = np.frexp(values.reshape(len(values), -1).sum(axis=1))
    whole = np.ldexp(parts, 53).astype(np.int64)
    return sum(
        sum(whole[exponents == exponent].tolist()) << int(exponent + 1075)
        for exponent in np.unique(exponents)
    )


def real_result(step: Requantize, sums: list[Array]) -> Array:
    """Return the exact results of a requantization in integer steps, after its activation."""
    reals: Array = unrounded(step, sums)
    activation = step.value.activation
    if activation is not None:
        reals = np.where(np.not_equal(activation.slope, 0), reals, np.maximum(reals, 0))
        reals = np.minimum(reals, np.asarray(activation.limit) / step.params.scale)
    return np.broadcast_to(reals, (len(sums[0]), *step.shape))


def outputs_of(program: Program, results: Mapping[str, Array]) -> dict[str, Array]:
    """Return the real values, float32, of the outputs among results."""
    params = program.quant_params
    return {
        name: params[name].dequantize(results[name]) if name in params else results[name]
        for name in program.outputs
        if name in results
    }
