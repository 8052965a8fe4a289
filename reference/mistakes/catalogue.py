"""The mistakes: what each makes of the right value at a stage of `reference.mistakes.kernel`.

A change returns the value itself where there is nothing that it could get wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.mistakes.kernel import Change, Here, Window
from reference.mistakes.layers import Constants

__all__ = ["MISTAKES", "Mistake"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Mistake:
    """A mistake in a kernel: what it makes of the right value of a stage."""

    name: str
    group: str
    stage: str
    change: Change


def _half(c: Constants) -> Array:
    return np.asarray(np.int64(1) << (c.shift - 1))


def _limits(low: int | None, high: int | None) -> Change:
    """Return clamps that are off by so much, ``None`` for a missing one."""

    def change(_: Array, here: Here) -> Array:
        y, c = here.before, here.constants
        assert y is not None
        assert c is not None
        y = y if low is None else np.maximum(y, c.low + low)
        return y if high is None else np.minimum(y, c.high + high)

    return change


def _clamped_first(_: Array, here: Here) -> Array:
    """Clamp to the unsigned limits what the zero point is added to only then."""
    assert here.before is not None
    grid = here.layer.grid
    return np.clip(here.before, grid.low, grid.high)


def _rounding(rounded: Callable[[Array, Constants], Array]) -> Change:
    """Round in another way; the total holds the half of rounding half up."""

    def change(_: Array, here: Here) -> Array:
        assert here.before is not None
        assert here.constants is not None
        return rounded(here.before, here.constants)

    return change


def _toward_zero(total: Array, c: Constants) -> Array:
    plain = total - _half(c)
    return np.where(plain < 0, -(-plain >> c.shift), plain >> c.shift)


def _half_to_even(total: Array, c: Constants) -> Array:
    y = total >> c.shift
    return np.asarray(y - ((total == y << c.shift) & (y % 2 != 0)))


def _half_away(total: Array, c: Constants) -> Array:
    y = total >> c.shift
    return np.asarray(y - ((total == y << c.shift) & (y <= 0)))


def _twice(total: Array, c: Constants) -> Array:
    first = np.where(c.shift > 31, 31, np.maximum(c.shift - 6, 0))
    second = c.shift - first
    plain = total - _half(c) + ((np.int64(1) << first) >> 1) >> first
    return np.asarray(plain + ((np.int64(1) << second) >> 1) >> second)


def _bias_last(total: Array, c: Constants) -> Array:
    return (total - c.addend + _half(c) >> c.shift) + (c.addend >> c.shift)


def _leak_ignored(value: Array, here: Here) -> Array:
    if not here.is_negative_side or here.layer.constants is None or here.before is None:
        return value
    return np.asarray(np.zeros_like(value))


def _multipliers(of: Callable[[Array], Array]) -> Change:
    def change(c: Constants, _: Here) -> Constants:
        return replace(c, multipliers=tuple(map(of, c.multipliers)))

    return change


def _narrow_multiplier(bits: int) -> Change:
    """Lose the low bits of multipliers, as if they had only so many."""

    def change(c: Constants, here: Here) -> Constants:
        lost = max(0, here.layer.multiplier_bits - bits)
        cut = (np.sign(m) * (np.abs(m) >> lost << lost) for m in c.multipliers)
        return replace(c, multipliers=tuple(cut))

    return change


def _of_neighbour(m: Array) -> Array:
    return np.roll(m, -1, -1) if m.ndim else m


def _of_first(m: Array) -> Array:
    return np.broadcast_to(m[..., :1], m.shape) if m.ndim else m


def _shifted(by: int) -> Change:
    return _rounding(lambda total, c: total >> (c.shift + by))


def _terms(of: Callable[[tuple[Array, ...]], tuple[Array, ...]]) -> Change:
    """Give the terms of a sum other multipliers, of those that they have."""

    def change(c: Constants, here: Here) -> Constants:
        is_plain = not any(term.ops for term in here.layer.terms)
        return replace(c, multipliers=of(c.multipliers)) if is_plain else c

    return change


def _divisor(c: Constants, _: Here) -> Constants:
    """Divide by the size of the window at borders, too."""
    if c.shift.ndim < 3:
        return c

    def inner(x: Array) -> Array:
        full = np.broadcast_to(x, c.shift.shape)
        return np.asarray(full[full.shape[0] // 2, full.shape[1] // 2])

    return replace(
        c, multipliers=tuple(map(inner, c.multipliers)), addend=inner(c.addend),
        shift=inner(c.shift),
    )  # fmt: skip


def _accumulator(narrower: int, saturates: bool) -> Change:
    """Give accumulators so many bits less than proved."""

    def change(a: Array, here: Here) -> Array:
        half = 1 << max(here.layer.terms[int(here.source)].bits - narrower - 1, 0)
        if saturates:
            return np.clip(a, -half, half - 1)
        return np.asarray((a + half) % (2 * half) - half)

    return change


def _outputs(order: Callable[[Array], Array]) -> Change:
    """Give the output channels each other's weights."""

    def change(w: Array, here: Here) -> Array:
        if here.kind == "conv2d_transpose":
            return w[..., order(np.arange(w.shape[-2])), :]
        if here.kind == "depthwise_conv2d":
            flat = w.reshape(*w.shape[:-2], -1)
            return flat[..., order(np.arange(flat.shape[-1]))].reshape(w.shape)
        return w[..., order(np.arange(w.shape[-1]))]

    return change


def _inputs_reversed(w: Array, here: Here) -> Array:
    if here.kind in ("conv2d", "dense"):
        return w[..., ::-1, :]
    return w


def _last_input(w: Array, here: Here) -> Array:
    if here.kind not in ("conv2d", "dense") or w.shape[-2] == 1:
        return w
    cut = w.copy()
    assert here.op is not None
    cut[..., -1, :] = here.op.zero_point
    return np.asarray(cut)


def _transposed(w: Array, here: Here) -> Array:
    """Read the kernel's rows as columns."""
    if w.ndim < 4 or here.kind == "conv2d_transpose":
        return w
    return np.asarray(w.reshape(w.shape[1], w.shape[0], *w.shape[2:]).swapaxes(0, 1))


def _flipped(w: Array, here: Here) -> Array:
    if w.ndim < 3 or here.kind == "conv2d_transpose":
        return w
    return w[::-1, ::-1] if w.ndim == 4 else w[::-1]


def _negated(w: Array, here: Here) -> Array:
    assert here.op is not None
    zero = here.op.zero_point
    assert zero is not None
    return 2 * zero - w


def _not_extended(w: Array, here: Here) -> Array:
    assert here.op is not None
    return w & ((1 << here.op.num_bits) - 1)


def _nibbles(w: Array, here: Here) -> Array:
    assert here.op is not None
    if here.op.num_bits != 4:
        return w
    flat = w.reshape(-1).copy()
    pairs = flat[: len(flat) // 2 * 2].reshape(-1, 2)
    pairs[:] = pairs[:, ::-1].copy()
    return np.asarray(flat.reshape(w.shape))


def _depth_order(groups: Array, _: Here) -> Array:
    """Put the first multiple of every channel first, then the second ones."""
    return np.asarray(groups.swapaxes(-1, -2))


def _window(of: Callable[[Window, Here], Window]) -> Change:
    def change(w: Window, here: Here) -> Window:
        return w if here.kind == "conv2d_transpose" else of(w, here)

    return change


def _stride_ignored(w: Window, here: Here) -> Window:
    """Go by one pixel along axes of more than one output."""
    shape = here.layer.shape if here.op is None else here.op.entry["shape"]
    counts = (1, 1, *shape)[-3:-1]
    rows, columns = (s if n == 1 else 1 for s, n in zip(w.strides, counts, strict=True))
    return replace(w, strides=(rows, columns))


def _raw_zero(w: Window, here: Here) -> Window:
    """Pad with the integer 0, where there is anything to pad."""
    if here.kind == "pool_max" or not any((*w.before, *w.after)):
        return w
    return replace(w, fill=-here.zero_point)


def _without_last_row(w: Window, _: Here) -> Window:
    return replace(w, kernel=(max(1, w.kernel[0] - 1), w.kernel[1]))


def _as_chw(x: Array, here: Here) -> Array:
    kinds = {op.entry["kind"] for term in here.layer.terms for op in term.ops}
    if x.ndim != 4 or not kinds & {"conv2d", "depthwise_conv2d"}:
        return x
    n, height, width, channels = x.shape
    return np.asarray(x.reshape(n, channels, height, width).transpose(0, 2, 3, 1))


def _unwritten(*index: Any, axes: int) -> Change:
    """Leave a part of the output at zero."""

    def change(y: Array, here: Here) -> Array:
        if here.layer.kind != "requantize" or y.ndim <= axes:
            return y
        made = y.copy()
        part = (slice(None), *index)
        made[part] = here.layer.grid.zero_point
        return np.asarray(made)

    return change


def _last_integer(y: Array, here: Here) -> Array:
    if here.layer.kind != "requantize":
        return y
    made = y.reshape(len(y), -1).copy()
    made[:, -1] = here.layer.grid.zero_point
    return np.asarray(made.reshape(y.shape))


def _without_zero_point(factor: Array, here: Here) -> Array:
    return factor + here.zero_point if here.zero_point else factor


def _swapped(better: Any, _: Here) -> Any:
    return np.minimum if better is np.maximum else np.maximum


def _pool_from_zero(y: Array, here: Here) -> Array:
    return np.maximum(y, 0) if here.kind == "pool_max" else y


def _as_signed_index(table: Array, _: Here) -> Array:
    return np.roll(table, len(table) // 2)


def _of_float(clamps: tuple[bool, bool], half: float = 0.0) -> Change:
    """Quantize floats without clamps, or with something added before rounding."""

    def change(steps: Array, here: Here) -> Array:
        x, grid = here.before, here.layer.grid
        assert x is not None
        with np.errstate(over="ignore", invalid="ignore"):
            free = np.nan_to_num(x / grid.scale, nan=-1e6, posinf=1e6, neginf=-1e6)
        missing = np.where(free > steps, clamps[1], clamps[0]) & (np.abs(free - steps) > 0.6)
        return np.where(missing, np.clip(free, -1e6, 1e6), steps + np.float32(half))

    return change


def _catalogue() -> tuple[Mistake, ...]:
    found: list[Mistake] = []

    def add(group: str, stage: str, *named: tuple[str, Change]) -> None:
        found.extend(Mistake(name, group, stage, change) for name, change in named)

    add(
        "clamps", "clamped",
        ("no upper clamp", _limits(0, None)),
        ("no lower clamp", _limits(None, 0)),
        ("upper clamp one too low", _limits(0, -1)),
        ("upper clamp one too high", _limits(0, 1)),
        ("lower clamp one too low", _limits(-1, 0)),
        ("lower clamp one too high", _limits(1, 0)),
        ("clamped before the zero point is added", _clamped_first),
    )  # fmt: skip
    add(
        "rounding", "rounded",
        ("rounds down", _rounding(lambda total, c: total - _half(c) >> c.shift)),
        ("rounds up", _rounding(lambda total, c: -(_half(c) - total >> c.shift))),
        ("rounds toward zero", _rounding(_toward_zero)),
        ("rounds twice", _rounding(_twice)),
        ("half to even", _rounding(_half_to_even)),
        ("half away from zero", _rounding(_half_away)),
        ("half down", _rounding(lambda total, c: total - 1 >> c.shift)),
    )  # fmt: skip
    add(
        "multiplier", "constants",
        *((f"{bits}-bit multiplier", _narrow_multiplier(bits)) for bits in (12, 16, 20, 24)),
        ("multiplier one too high", _multipliers(lambda m: m + 1)),
        ("multiplier one too low", _multipliers(lambda m: m - 1)),
        ("multiplier of the next channel", _multipliers(_of_neighbour)),
        ("multiplier of the first channel", _multipliers(_of_first)),
    )  # fmt: skip
    add(
        "multiplier",
        "rounded",
        ("shift one too far", _shifted(1)),
        ("shift one short", _shifted(-1)),
    )
    add(
        "accumulator", "sums",
        ("one bit too narrow", _accumulator(1, False)),
        ("two bits too narrow", _accumulator(2, False)),
        ("saturates one bit early", _accumulator(1, True)),
        ("saturates two bits early", _accumulator(2, True)),
    )  # fmt: skip
    add(
        "bias", "constants",
        ("no bias", lambda c, _: replace(c, addend=_half(c))),
        ("bias of the next channel", lambda c, _: replace(c, addend=_of_neighbour(c.addend))),
    )  # fmt: skip
    add("bias", "rounded", ("bias added after rounding", _rounding(_bias_last)))
    add(
        "zero point", "zeros",
        ("no zero point of the input", lambda z, _: (*(0,) * (len(z) - 1), z[-1])),
        ("zero point of the input added", lambda z, _: (*(-x for x in z[:-1]), z[-1])),
        ("no zero point of the output", lambda z, _: (*z[:-1], 0)),
    )  # fmt: skip
    add("zero point", "window", ("padded with the integer 0", _window(_raw_zero)))
    add("zero point", "offset", ("no zero point of the weights", lambda z, _: 0 * z))
    add(
        "channels", "weights",
        ("output channels reversed", _outputs(lambda i: i[::-1])),
        ("output channels shifted by one", _outputs(lambda i: np.roll(i, -1))),
        ("input channels reversed", _inputs_reversed),
        ("last input channel skipped", _last_input),
    )  # fmt: skip
    add("channels", "groups", ("depth multiplier before the channel", _depth_order))
    add(
        "window", "window",
        ("stride ignored", _window(_stride_ignored)),
        ("strides of height and width swapped",
         _window(lambda w, _: replace(w, strides=w.strides[::-1]))),
        ("dilation ignored", _window(lambda w, _: replace(w, dilation=(1, 1)))),
        ("padding at the end alone", _window(lambda w, _: replace(w, before=(0, 0)))),
        ("padding of begin and end swapped",
         _window(lambda w, _: replace(w, before=w.after, after=w.before))),
        ("last row of the window skipped", _window(_without_last_row)),
    )  # fmt: skip
    add(
        "layout", "weights",
        ("kernel's rows as columns", _transposed),
        ("kernel flipped", _flipped),
        ("weights negated", _negated),
        ("weights not sign-extended", _not_extended),
        ("nibbles swapped", _nibbles),
    )  # fmt: skip
    add("layout", "input", ("input read as CHW", _as_chw))
    add(
        "sums and pools", "constants",
        ("operands swapped", _terms(lambda m: m[::-1])),
        ("scale of the first for all", _terms(lambda m: m[:1] * len(m))),
        ("average counts the padding", _divisor),
    )  # fmt: skip
    add("sums and pools", "rounded", ("negative slope ignored", _leak_ignored))
    add("sums and pools", "negative", ("negative slope on the wrong side", lambda side, _: ~side))
    add("sums and pools", "extreme", ("maximum and minimum swapped", _swapped))
    add("sums and pools", "moved", ("maximum not below zero", _pool_from_zero))
    add(
        "products", "factor",
        ("no zero point of the factor", _without_zero_point),
        ("factor of the next channel", lambda x, _: np.roll(x, -1, -1) if x.shape[-1] > 1 else x),
    )  # fmt: skip
    add(
        "tables", "table",
        ("table shifted by one", lambda t, _: np.roll(t, -1)),
        ("table read with a signed index", _as_signed_index),
    )  # fmt: skip
    add(
        "unwritten", "output",
        ("last row unwritten", _unwritten(-1, axes=3)),
        ("last column unwritten", _unwritten(slice(None), -1, axes=3)),
        ("last channel unwritten", _unwritten(Ellipsis, -1, axes=1)),
        ("last integer unwritten", _last_integer),
    )  # fmt: skip
    add(
        "quantizer", "floats",
        ("floats rounded down", _of_float((False, False), -0.5)),
        ("floats rounded up", _of_float((False, False), 0.499)),
        ("no upper clamp of floats", _of_float((False, True))),
        ("no lower clamp of floats", _of_float((True, False))),
    )  # fmt: skip
    return tuple(found)


MISTAKES = _catalogue()
