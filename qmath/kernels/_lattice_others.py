"""Whether a lattice is the only one: which others give the same values within the same width."""

from __future__ import annotations

import numpy as np

from qmath.kernels._float32 import Float64Array
from qmath.kernels._lattice_search import PRODUCT, QUOTIENT, SHIFTED, Row
from qmath.kernels.recovered_lattice import Alternative

_LISTED = 8


def bits_of(row: Row, form: str, largest: float) -> int:
    """Return how many bits hold a lattice's integers and, where there is one, the zero point."""
    if form in SHIFTED:
        return int(largest).bit_length()
    low, high = row.ends(largest)
    zero = row.width.zero_point
    if zero is None:
        return max(1, (high - low).bit_length())
    low, high = low + zero, high + zero
    if row.width.lowest == 0:
        return max(1, high.bit_length())
    return 1 + max(high.bit_length() if high > 0 else 0, (-1 - low).bit_length() if low < 0 else 0)


def others_of(row: Row, form: str) -> tuple[str, tuple[Alternative, ...]]:
    """Return why the coarsest lattice of a form is not unique, and the coarsest of the others.

    A product and a quotient with the same integers are one lattice, and so are a shifted form and
    one with a zero point whose integers differ by an offset only.
    """
    if not row.values.size:
        return "empty", ()
    if not row.top:
        return "all zero", ()
    chosen = row.lattices(form).largest[:1]
    first = float(chosen[0])
    kinds = (PRODUCT, QUOTIENT), SHIFTED
    family, strangers = kinds[:: -1 if form in SHIFTED else 1]
    found: list[tuple[float, str, np.float32]] = []
    known, unlike, are_multiples = chosen, chosen[:0], True
    for other in sorted(family, key=form.__ne__):  # the form itself first
        largest, scale, _ = row.lattices(other)
        if not largest.size:
            continue
        new = ~np.isin(largest, known)
        are_multiples &= not (largest % chosen).any()
        found += zip(largest[new][:_LISTED], [other] * _LISTED, scale[new], strict=False)
        known = np.union1d(known, largest)
    if row.width.zero_point is None:
        for other in strangers:
            largest, scale, _ = row.lattices(other)
            if not largest.size:
                continue
            steps = _relative(row, other, largest)
            new = (steps != _relative(row, form, chosen)).any(axis=1) & ~np.isin(largest, unlike)
            are_multiples &= not new.any()
            found += zip(largest[new][:_LISTED], [other] * _LISTED, scale[new], strict=False)
            unlike = np.union1d(unlike, largest)
    coarsest = sorted(found)[:_LISTED]
    listed = tuple(
        Alternative(
            other, scale, bits_of(row, other, integer), _factor(integer, other, first, form)
        )
        for integer, other, scale in coarsest
    )
    if not listed:
        return "", ()
    if row.magnitudes.size == 1:
        return "one magnitude", listed
    return "multiples" if are_multiples else "other integers", listed


def _factor(largest: float, form: str, coarsest: float, coarsest_form: str) -> int | None:
    if (form in SHIFTED) != (coarsest_form in SHIFTED) or largest % coarsest:
        return None
    return int(largest // coarsest)


def _relative(row: Row, form: str, largest: Float64Array) -> Float64Array:
    """Return the integers of each lattice and distinct value, relative to real zero."""
    values = row.distinct.astype(np.float64)
    if form in SHIFTED:
        steps = np.rint(np.multiply.outer(largest, (values + 1) / 2))
        return np.asarray(steps - largest[:, np.newaxis] / 2)
    return np.asarray(np.rint(np.multiply.outer(largest, values / row.top)))
