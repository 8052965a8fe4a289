"""What can be done to a sum before it is rounded: moving it, pooling it, placing it in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.budget import Budget
from qmath.integer.program import Activation, Linear, Normalization, Origin, Term, UnroundedSum

Array = NDArray[Any]
ZERO = np.zeros(())


def can_pool(value: UnroundedSum) -> bool:
    """Whether sums over a window can be taken before scaling: scales are the channels' own."""
    return value.activation is None and all(term.scale.ndim <= 1 for term in value.terms)


def moved(
    value: UnroundedSum, linear: Linear, factor: Any, name: str, budget: Budget
) -> UnroundedSum:
    """Append an operation without weights to every term, and apply it to scales and offset."""
    keeps_channels = linear.kind in ("pool_sum", "bilinear", "upsample") or (
        linear.kind in ("pad", "crop", "broadcast") and linear.shape[-1:] == value.shape[-1:]
    )
    activation = value.activation
    ends = () if activation is None else (activation.slope, activation.limit)
    is_whole = any(map(np.ndim, ends))

    def stays(term: Term) -> bool:
        return not term.scale.ndim or (term.scale.ndim == 1 and keeps_channels)

    whole = sum(bool(np.ndim(factor)) or not stays(term) for term in value.terms)
    budget.spend(name, value, linear, whole + bool(value.offset.any()) + 2 * is_whole)

    def follow(array: Array) -> Array:
        return _by_channel(linear.apply(np.broadcast_to(array, value.shape)[np.newaxis], None)[0])

    terms = []
    for term in value.terms:
        scale = (term.scale if stays(term) else follow(term.scale)) * factor
        terms.append(replace(term, ops=(*term.ops, linear), scale=np.asarray(scale)))
    offset = np.asarray(follow(value.offset) * factor) if value.offset.any() else ZERO
    if is_whole:
        activation = Activation(*(follow(np.asarray(end)) for end in ends))
    return UnroundedSum(tuple(terms), offset, linear.shape, activation)


def joined_activation(
    parts: Sequence[Activation | None], lengths: Sequence[int] | None
) -> Activation | None:
    """Return the activation of a concatenation: each part keeps its own, if any.

    `lengths` are those of its channels; without them the parts must have one activation.
    """
    if not any(parts):
        return None
    slopes = [1.0 if part is None else part.slope for part in parts]
    limits = [np.inf if part is None else part.limit for part in parts]
    if not any(map(np.ndim, slopes + limits)) and len({*slopes}) == len({*limits}) == 1:
        return Activation(slopes[0], limits[0])
    if lengths is None:
        return None
    return Activation(_side_by_side(slopes, lengths), _side_by_side(limits, lengths))


def _side_by_side(values: list[Any], lengths: Sequence[int]) -> Array:
    """Concatenate along the channels; a value without channels is every channel's."""
    lead = np.broadcast_shapes(*(np.shape(value)[:-1] for value in values))
    parts = zip(values, lengths, strict=True)
    return np.concatenate([np.broadcast_to(v, (*lead, n)) for v, n in parts], -1)


def normalized(term: Term, normalization: Normalization) -> Origin | None:
    """Return where a term comes from after a batch normalization, if it follows directly."""
    if term.origin is None or term.ops[-1].weights is None:
        return None
    return replace(term.origin, normalizations=(*term.origin.normalizations, normalization))


def _by_channel(array: Array) -> Array:
    """Return one value for each channel, if that is all there is in an array."""
    channels = array.reshape(-1, array.shape[-1])[0]
    return channels if (array == channels).all() else array
