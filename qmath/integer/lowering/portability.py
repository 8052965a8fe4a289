"""What a deployment should know of a model that runs exactly here and may not elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.bounds import accumulator_bits, interval, least_weights, multiplier_room
from qmath.integer.program import QuantParams, Term, UnroundedSum

Array = NDArray[Any]

FEW_BITS = "for the multipliers of the profile integer"  # in the notes of `of_sums`
_FEW = 16  # bits of a multiplier; 31 are usual


def of_weights(name: str, scale: Array) -> list[str]:
    """Note the output channels whose weights are all zero."""
    dead = np.flatnonzero(np.atleast_1d(scale) == 0)
    if not dead.size:
        return []
    return [
        f"{name}: {dead.size} of {scale.size} channels are dead, all weights zero "
        f"({dead[:5].tolist()}…): they give their bias, exactly; a converter that divides by their "
        "scale saturates it"
    ]


def of_unseen(name: str) -> str:
    """Note a tensor that is not the one of the forward pass."""
    return (
        f"{name}: its own quantizer is not known, so that it is float here: the results of its "
        "layer, and of those after it, are not the model's"
    )


def of_range(name: str, params: QuantParams) -> list[str]:
    """Note a range that no training step has changed."""
    if (params.min, params.max) != (-6.0, 6.0):
        return []
    return [
        f"{name}: its range is the initial one, [-6, 6], so it was never trained; run the model "
        "with training=True on real data"
    ]


def of_sums(name: str, value: UnroundedSum) -> list[str]:
    """Note sums so wide that few bits are left for what they are multiplied by."""
    if not any(map(_may_be_wide, value.terms)):
        return []
    bits = max(int(accumulator_bits(*interval(term))) for term in value.terms)
    left = multiplier_room(len(value.terms)) - bits
    if left >= _FEW:
        return []
    return [
        f"{name}: its sums take {bits} bits, which leaves {left} of int64, and not 31, {FEW_BITS}, "
        f"so that results are exact to about {left} bits; give what it multiplies fewer bits, or "
        "quantize in between"
    ]


def of_normalization(name: str, factor: Array, terms: Sequence[Term]) -> list[str]:
    """Note what batch normalization does that converters handle badly.

    Parameters
    ----------
    name : str
        The layer's.
    factor : ndarray
        ``gamma / sqrt(variance + epsilon)`` of each channel.
    terms : sequence of Term
        What it is multiplied with.
    """
    notes = []
    tiny = np.abs(factor) < 1e-6 * np.abs(factor).max(initial=0)
    if tiny.any():
        notes.append(
            f"{name}: gamma is zero or tiny in {int(tiny.sum())} of {tiny.size} channels "
            f"({np.flatnonzero(tiny)[:5].tolist()}…): their outputs are constant; the multipliers "
            "stay exact, but a converter that divides by them saturates its bias"
        )
    for term in terms:
        if term.origin is None or term.ops[-1].weights is None:
            continue
        num_bits = term.origin.weight_steps.bit_length()
        lowest = -(2 ** (num_bits - 1))
        flipped = (factor < 0) & (least_weights(term.ops[-1]) == lowest)
        if flipped.any():
            notes.append(
                f"{name}: gamma is negative in {int(flipped.sum())} channels whose weights reach "
                f"{lowest}: the multipliers carry the sign, exactly; a converter that negates the "
                f"weights needs {num_bits + 1} bits, or saturates"
            )
    return notes


def _may_be_wide(term: Term) -> bool:
    """Whether sums may take more than some 40 bits: of wide integers, or products of several."""
    factors = sum(op.weights is not None or op.factor is not None for op in term.ops)
    return factors > 1 or term.params.num_bits > 8
