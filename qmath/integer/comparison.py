"""Compare two runs of a model, layer by layer: teacher-forced, and free-running."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._progress import Progress
from qmath.errors import QmathError
from qmath.integer.executor import Executor, batches
from qmath.integer.profiles.exact import Profile, unrounded
from qmath.integer.program import FloatStep, Program, QuantizedStep, QuantParams, Requantize
from qmath.kernels.affine import smallest_dtype

__all__ = ["Comparison", "Difference", "LayerDifference", "compare", "integers_of_dump"]

Array = NDArray[Any]
_LISTED = 100


@dataclass(frozen=True)
class Difference:
    """One integer that differs, teacher-forced.

    Attributes
    ----------
    index : tuple of int
        Of the element, the example first.
    value, reference : int
        The two integers, unsigned.
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

    @property
    def explained(self) -> bool:
        """Whether every difference is nearer to a tie than the reference's own float32 noise."""
        return self.near_ties == self.teacher_forced

    def joined(self, other: LayerDifference) -> LayerDifference:
        """Return the differences of the same tensor in this and in further examples."""
        return LayerDifference(
            name=self.name,
            elements=self.elements + other.elements,
            teacher_forced=self.teacher_forced + other.teacher_forced,
            free_running=self.free_running + other.free_running,
            largest=max(self.largest, other.largest),
            near_ties=self.near_ties + other.near_ties,
            farthest_tie=_largest([self.farthest_tie, other.farthest_tie]),
            noise=_largest([self.noise, other.noise]),
            differences=(*self.differences, *other.differences)[:_LISTED],
        )


@dataclass(frozen=True)
class Comparison:
    """All layers of a comparison, in order."""

    layers: tuple[LayerDifference, ...]

    @property
    def first(self) -> LayerDifference | None:
        """The first layer whose own arithmetic differs."""
        return next((layer for layer in self.layers if layer.teacher_forced), None)


def compare(
    program: Program,
    inputs: Mapping[str, ArrayLike],
    profile: Profile,
    reference: Profile | Mapping[str, Array],
    progress: Progress | None = None,
) -> Comparison:
    """Compare a profile with another, or with integers that a trained model computed.

    Parameters
    ----------
    program : Program
    inputs : mapping of str to array-like
        Data of each input.
    profile : Profile
        Whose integers are judged.
    reference : Profile or mapping of str to ndarray
        A second profile, or the unsigned integers of each quantized tensor, see
        `integers_of_dump`.
    progress : callable, optional
        Called with how many examples are done, and of how many.

    Returns
    -------
    Comparison
    """
    executor = Executor(program, profile)
    arrays = executor.checked(inputs)
    steps = [step for step in program.steps if not isinstance(step, FloatStep)]
    if isinstance(reference, Mapping):
        steps = _in_reference(steps, reference, len(next(iter(arrays.values()))))
    names = {step.name for step in steps}
    other = None if isinstance(reference, Mapping) else Executor(program, reference)
    start = 0
    layers: list[LayerDifference] = []
    for batch in batches(arrays):
        count = len(next(iter(batch.values())))
        if isinstance(reference, Mapping):
            expected = {name: reference[name][start : start + count] for name in names}
        else:
            assert other is not None
            expected = other.run(batch, keep=names)
        found = _compare_batch(executor, batch, expected, steps, start)
        layers = [a.joined(b) for a, b in zip(layers, found, strict=True)] if layers else found
        start += count
        if progress:
            progress(start, len(next(iter(arrays.values()))))
    return Comparison(tuple(layers))


def _in_reference(
    steps: list[QuantizedStep], reference: Mapping[str, Array], examples: int
) -> list[QuantizedStep]:
    """Return the steps that the reference holds, in the shapes that the data give."""
    held = [step for step in steps if step.name in reference]
    if not held:
        raise QmathError(
            "the reference holds none of the model's quantized tensors: "
            f"{', '.join(step.name for step in steps[:5])}, …"
        )
    for step in held:
        found, expected = reference[step.name].shape, (examples, *step.shape)
        if found != expected:
            raise QmathError(
                f"{step.name}: the reference has shape {found}, the data give {expected}"
            )
    return held


def _compare_batch(
    executor: Executor,
    batch: Mapping[str, Array],
    expected: Mapping[str, Array],
    steps: list[QuantizedStep],
    start: int,
) -> list[LayerDifference]:
    """Compare the integers of one batch, whose first example has the number `start`."""
    distances: dict[str, Array] = {}

    def measure(step: Requantize, sums: list[Array]) -> None:
        y = unrounded(step, sums)
        distances[step.name] = np.abs(y - np.floor(y) - 0.5)

    free = executor.run(batch)
    forced = executor.run(batch, forced=expected, watch=measure)
    layers = []
    for step in steps:
        want = expected[step.name].astype(np.int32)
        difference = np.abs(forced[step.name].astype(np.int32) - want)
        wrong = difference > 0
        ties: list[float | None] = [None] * int(wrong.sum())
        noises = ties
        near = 0
        if wrong.any() and isinstance(step, Requantize):
            distance = distances[step.name][wrong]
            bound = float32_noise(step, executor, {**forced, **expected})[wrong]
            near = int(((difference[wrong] == 1) & (distance <= bound)).sum())
            ties, noises = distance.tolist(), bound.tolist()
        first = np.array([start, *(0,) * (want.ndim - 1)])
        elements = zip(
            (np.argwhere(wrong)[:_LISTED] + first).tolist(),
            forced[step.name][wrong].tolist(), want[wrong].tolist(), ties, noises, strict=False,
        )  # fmt: skip
        layers.append(
            LayerDifference(
                name=step.name,
                elements=want.size,
                teacher_forced=int(wrong.sum()),
                free_running=int((free[step.name] != want).sum()),
                largest=int(difference.max(initial=0)),
                near_ties=near,
                farthest_tie=_largest(ties),
                noise=_largest(noises),
                differences=tuple(Difference(tuple(index), *rest) for index, *rest in elements),
            )
        )
    return layers


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def float32_noise(step: Requantize, executor: Executor, values: Mapping[str, Array]) -> Array:
    """Bound what a float32 evaluation of each element of a step may be off, in integer steps.

    A sum of `n` float32 products has an error of at most ``n * 2**-24`` times the sum of their
    magnitudes, whatever its order; each further operation (bias, batch normalization, addition)
    adds a rounding of that magnitude, and the quantizer a few of the whole range, which it shifts
    to start at zero. See Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1.

    Parameters
    ----------
    step : Requantize
    executor : Executor
    values : mapping of str to ndarray
        The unsigned integers that the step starts from.

    Returns
    -------
    ndarray of float64
    """
    magnitude = np.abs(step.value.offset)
    operations = 0
    for term in step.value.terms:
        zero_point = executor.quant_params[term.source].zero_point
        relative = values[term.source].astype(np.float64) - zero_point
        sums = np.abs(relative)
        for linear in term.ops:
            weights = None if linear.weights is None else np.abs(linear.weights.astype(np.float64))
            sums = linear.apply(sums, weights)
        magnitude = magnitude + sums * np.abs(term.scale)
        operations = max(operations, sum(_length(op) for op in term.ops))
    roundings = operations + 8 + 2 * len(step.value.terms)
    return (roundings * magnitude / step.params.scale + 4 * 2.0**step.params.num_bits) * 2.0**-24


def _length(linear: Any) -> int:
    """Return how many products or values one output of an operation sums up."""
    if linear.weights is None:
        return int(linear.gain)
    kept = {"depthwise_conv2d": 2, "conv2d_transpose": 2}.get(linear.kind, 1)
    return int(np.prod(linear.weights.shape) // np.prod(linear.weights.shape[-kept:]))


def integers_of_dump(program: Program, dump: Mapping[str, Array]) -> dict[str, Array]:
    """Return the integers of fake-quantized float tensors, exactly.

    Parameters
    ----------
    program : Program
    dump : mapping of str to ndarray
        Fake-quantized float32 tensors by the names of the program's steps.

    Raises
    ------
    QmathError
        A value is no integer times its scale: the dump is of another model.
    """
    integers: dict[str, Array] = {}
    for step in program.steps:
        if isinstance(step, FloatStep) or step.name not in dump:
            continue
        params: QuantParams = step.params
        values = np.asarray(dump[step.name])
        if values.dtype != np.float32 or not np.isfinite(values).all():
            raise QmathError(f"{step.name}: the dump must hold finite float32, got {values.dtype}")
        relative = np.rint(values.astype(np.float64) / params.scale)
        low, high = params.limits
        if ((relative < low) | (relative > high)).any():
            raise QmathError(
                f"{step.name}: the dump's values leave the range [{params.min:.6g}, "
                f"{params.max:.6g}]; was it made from this model?"
            )
        if not np.array_equal(relative.astype(np.float32) * np.float32(params.scale), values):
            raise QmathError(
                f"{step.name}: the dump's values are not multiples of the scale "
                f"{params.scale:.9g}; was it made from this model?"
            )
        dtype = smallest_dtype(params.num_bits, signed=False)
        integers[step.name] = (relative + params.zero_point).astype(dtype)
    return integers
