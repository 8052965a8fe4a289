"""A requantization as TFLite operations: which ones they are.

TFLite's arithmetic differs from one operation to the next, so a step is classified first: the two
inputs of an addition are scaled apart, a mean divides inside its multiplier, a pool rounds on its
input's scale. What is no operation of TFLite (a sum of two convolutions that training left
unrounded, batch normalization of a sum) has no arithmetic to follow, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.profiles import tflite_kernels
from qmath.integer.profiles.tflite_kernels import Kernel, TfliteStored, refused
from qmath.integer.program import Activation, Linear, Requantize, Term

__all__ = ["Part", "activation_of", "kernels", "parts", "split"]

Array = NDArray[Any]
Region = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """A region of a step's output that TFLite computes by itself: all of it, or a joined input.

    Attributes
    ----------
    region : tuple of slice
        Of the output, without the batch.
    sources : tuple of int
        Which of the step's terms it adds up.
    terms : tuple of Term
        These, as they are within the region.
    kernels : tuple of Kernel
        The operations, in order.
    moves : tuple of Linear
        What rearranges the values of an operation with weights before they are rounded.
    """

    region: Region
    sources: tuple[int, ...]
    terms: tuple[Term, ...]
    kernels: tuple[Kernel, ...] = ()
    moves: tuple[Linear, ...] = ()


def kernels(
    step: Requantize, stored: Mapping[str, TfliteStored] | None = None
) -> tuple[Kernel, ...]:
    """Return the TFLite operations that compute a step, with their numbers.

    Parameters
    ----------
    step : Requantize
    stored : mapping of str to Stored, optional
        By weight tensor, the scales and biases of a deployed file, in place of those derived
        here. The converter folds batch normalization with an approximate reciprocal square root,
        which depends on the machine that it runs on: these scales differ in their last two bits.

    Returns
    -------
    tuple of Kernel
        One, or two for an average pool, or those of everything that a concatenation joins.

    Raises
    ------
    QmathError
        The step is no operation of TFLite, or needs more than its 32 bits.
    """
    return tuple(kernel for part in parts(step, stored) for kernel in part.kernels)


def parts(step: Requantize, stored: Mapping[str, TfliteStored] | None = None) -> tuple[Part, ...]:
    """Return a step's parts: one, or for a concatenation one for each of what it joins."""
    return tuple(_classified(step, part, stored or {}) for part in split(step))


def split(step: Requantize) -> list[Part]:
    """Return a step's parts without their kernels."""
    terms = step.value.terms
    return _split(Part(tuple(slice(0, n) for n in step.shape), tuple(range(len(terms))), terms))


def _split(part: Part) -> list[Part]:
    """Return the parts that a concatenation lays side by side, each without its padding."""
    placements = [_placement(term) for term in part.terms]
    axes = {placement[0] for placement in placements if placement}
    if len(part.terms) < 2 or None in placements or len(axes) != 1:
        return [part]
    axis = axes.pop()
    spans = sorted({placement[1:] for placement in placements if placement})
    first, last = part.region[axis].start, part.region[axis].stop
    gaps = [a[1] != b[0] for a, b in pairwise(spans)]
    if spans[0][0] != 0 or spans[-1][1] != last - first or any(gaps):
        return [part]
    found: list[Part] = []
    for start, stop in spans:
        here = [i for i, p in enumerate(placements) if p and p[1:] == (start, stop)]
        terms = tuple(_unpadded(part.terms[i], axis, slice(start, stop)) for i in here)
        region = list(part.region)
        region[axis] = slice(first + start, first + stop)
        found += _split(Part(tuple(region), tuple(part.sources[i] for i in here), terms))
    return found


def _placement(term: Term) -> tuple[int, int, int] | None:
    """Return the axis along which a term was padded last, if along one, and where it lies."""
    if not term.ops or term.ops[-1].kind != "pad":
        return None
    pads = term.ops[-1].attributes["pads"]
    padded = [axis for axis, pad in enumerate(pads) if any(pad)]
    if len(padded) != 1:
        return None
    axis = padded[0]
    return axis, pads[axis][0], term.ops[-1].shape[axis] - pads[axis][1]


def _unpadded(term: Term, axis: int, span: slice) -> Term:
    rank = len(term.ops[-1].shape)
    return replace(term, ops=term.ops[:-1], scale=_within(term.scale, axis, span, rank))


def _within(array: Array, axis: int, span: slice, rank: int) -> Array:
    """Return a span of an array that broadcasts against one of `rank` axes."""
    own = axis - (rank - array.ndim)
    if own < 0 or array.shape[own] == 1:
        return array
    return array[(slice(None),) * own + (span,)]


def _classified(step: Requantize, part: Part, stored: Mapping[str, TfliteStored]) -> Part:
    """Return the part with its kernels."""
    terms, is_of_file = part.terms, step.params.op == "tflite"
    if (operand := terms[0].operand) is not None:
        activation = None if operand.op == "PRELU" else activation_of(step, part.region)
        kernel = tflite_kernels.with_constant(step, terms[0], operand, activation)
        return replace(part, kernels=(kernel,))
    activation = activation_of(step, part.region)
    leaks = activation is not None and activation.leaks
    limits = (1, 6) if is_of_file else (6,)
    if activation and np.isfinite(activation.limit) and (leaks or activation.limit not in limits):
        raise refused(step, f"an activation bounded at {activation.limit:g}")
    for term in terms:
        products = [op.kind for op in term.ops if op.weights is not None]
        unknown = [op.kind for op in term.ops if op.kind == "bilinear" and not is_of_file]
        unknown += [kind for kind in products if kind not in tflite_kernels.OPERATIONS]
        if unknown:
            raise refused(step, f"the operation {unknown[0]}")
        if len(products) > 1:
            raise refused(step, "a product of what training did not round before")
    for term in terms:
        if term.ops and term.ops[0].weights is not None:
            rounded = f"the output of {term.ops[0].name}, which training did not round before"
            if len(terms) > 1:
                raise refused(step, f"a sum with {rounded}")
            if leaks:
                raise refused(step, f"a leaky ReLU of {rounded}")
            if any(op.kind == "pool_sum" for op in term.ops):
                raise refused(step, f"an average of {rounded}")
            kernel = tflite_kernels.weighted(step, term, activation, stored)
            return replace(part, kernels=(kernel,), moves=term.ops[1:])
    if any(op.factor for term in terms for op in term.ops):
        if len(terms) > 1 or len(terms[0].ops) > 1 or (activation and (leaks or not is_of_file)):
            raise refused(step, "a product of tensors together with what follows it")
        return replace(part, kernels=(tflite_kernels.multiply(step, terms[0], activation),))
    if is_of_file and any(op.kind == "bilinear" for term in terms for op in term.ops):
        return replace(part, kernels=(tflite_kernels.resize(step, terms[0]),))
    shifted = _cut(step.value.offset, part.region).any()
    if any(op.kind == "pool_sum" for term in terms for op in term.ops):
        if len(terms) > 1 or len(terms[0].ops) > 1 or activation or shifted:
            raise refused(step, "an average together with what follows it")
        return replace(part, kernels=tflite_kernels.pool(step, terms[0]))
    is_difference = len(terms) == 2 and bool((terms[1].scale == -terms[1].params.scale).all())
    kept = terms[:1] if is_difference else terms
    if shifted or any((term.scale != term.params.scale).any() for term in kept):
        raise refused(step, "batch normalization without a convolution before it, or an average")
    if len(terms) > 2 or (leaks and len(terms) > 1):
        raise refused(step, f"a sum of {len(terms)} tensors{' and a leaky ReLU' * leaks}")
    if len(terms) == 2:
        op = "SUB" if is_difference else "ADD"
        return replace(part, kernels=(tflite_kernels.add(step, terms, activation, op),))
    return replace(part, kernels=(tflite_kernels.elementwise(step, terms[0], activation),))


def activation_of(step: Requantize, region: Region) -> Activation | None:
    """Return the activation of a region, which has to be one."""
    if step.value.activation is None:
        return None
    slope, limit = (
        np.unique(_cut(np.asarray(values), region))
        for values in (step.value.activation.slope, step.value.activation.limit)
    )
    if slope.size > 1 or limit.size > 1:
        raise refused(step, "an activation that differs from channel to channel")
    if slope == 1 and np.isinf(limit):
        return None
    return Activation(float(slope[0]), float(limit[0]))


def _cut(array: Array, region: Region) -> Array:
    for axis, span in enumerate(region):
        array = _within(array, axis, span, len(region))
    return array
