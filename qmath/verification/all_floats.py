"""Equality of a kernel with its definition on every one of the 2**32 float32 inputs.

Both are step functions that never fall, as each of their operations is one: adding a constant,
multiplying by or dividing by a positive one, clamping and ``floor`` keep the order of two numbers,
and so does rounding to float32, with subnormals counting as zero (``docs/proof.md`` has the lemma,
and how each operation was checked). So it is enough to find where the kernel rises, by bisection
over the floats in their order, and to evaluate the definition on both sides of each rise: two
functions that never fall, and agree at both ends of every step, agree everywhere between. NaN, and
both infinities, are inputs of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath._progress import Progress, with_progress
from qmath.kernels import fake_quant as kernels
from qmath.model import Float32Array, QatModel, QatTensor
from qmath.verification import definition

__all__ = ["Proof", "prove_model", "prove_range"]

Keys = NDArray[np.int64]
Kernel = Callable[[Float32Array], Float32Array]

_INFINITY = 0x7F800000
_LARGE = 1 << 17  # elements that no kernel works on at once
_MOST_JUMPS = 1 << 20  # at a time, some tens of MiB
_CALLS = {
    "vars": kernels.fake_quant_with_min_max_vars,
    "args": kernels.fake_quant_with_min_max_args,
    "per_channel": kernels.fake_quant_with_min_max_vars_per_channel,
}


class Proof(NamedTuple):
    """What was proved.

    Attributes
    ----------
    ranges : int
        How many ranges were proved, or refuted.
    steps : int
        How many rises of the kernels were looked at, from both sides.
    differences : tuple of str
        Where kernel and definition differ, in words: the first of each range.
    """

    ranges: int
    steps: int
    differences: tuple[str, ...]


def prove_model(model: QatModel, progress: Progress | None = None) -> Proof:
    """Prove the kernel for every range of a model's quantized tensors, at its width.

    Parameters
    ----------
    model : QatModel
        Whose `build` says which definition counts. Tensors with unknown settings, and those of a
        file that holds integers, have no kernel to prove.
    progress : callable, optional

    Returns
    -------
    Proof
    """
    ranges = steps = 0
    differences: list[str] = []
    for tensor in with_progress(list(model.tensors.values()), progress):
        if tensor.role == "float" or not tensor.spec.is_complete or tensor.spec.op not in _CALLS:
            continue
        for name, low, high in _parts(tensor):
            proof = prove_range(
                low,
                high,
                tensor.spec.num_bits or 8,
                narrow_range=bool(tensor.spec.narrow_range),
                op="per_channel" if low.ndim else tensor.spec.op,
                build=model.build,
            )
            ranges, steps = ranges + proof.ranges, steps + proof.steps
            differences += [f"{name}: {words}" for words in proof.differences]
    return Proof(ranges, steps, tuple(differences))


def prove_range(
    min: Float32Array,
    max: Float32Array,
    num_bits: int,
    *,
    narrow_range: bool,
    op: str,
    build: str = "tf",
    kernel: Kernel | None = None,
) -> Proof:
    """Prove the kernel of one range, or of one for each channel, on all floats.

    Parameters
    ----------
    min, max : ndarray of float32
        Of shape ``()``, or ``(C,)`` for the op ``"per_channel"``.
    num_bits, narrow_range, op, build
        As for `qmath.verification.definition.fake_quant`.
    kernel : callable, optional
        Another kernel of this range, which never falls either: takes floats of shape ``(N,)`` or
        ``(N, C)``. Default: qmath's.

    Returns
    -------
    Proof

    Examples
    --------
    >>> import numpy as np
    >>> prove_range(np.float32(-1), np.float32(1), 4, narrow_range=False, op="vars")
    Proof(ranges=1, steps=15, differences=())
    """
    low, high = np.atleast_1d(min), np.atleast_1d(max)

    def own(x: Float32Array) -> Float32Array:
        ends = (min, max) if op != "args" else (float(min), float(max))
        return _CALLS[op](x, *ends, num_bits, narrow_range, build=build)  # type: ignore[no-any-return,operator]

    def defined(x: Float32Array) -> Float32Array:
        return definition.fake_quant(
            x, min, max, num_bits, narrow_range=narrow_range, op=op, build=build
        )

    run = kernel or own
    shape = (1, low.size) if op == "per_channel" else (1,)
    middles = definition.middles(
        low, high, num_bits, narrow_range=narrow_range, op=op, build=build
    ).reshape(-1, *shape[1:])
    rises = _rises_at_once(run, middles)
    if rises is None:
        rises = np.concatenate([*_rises(run, shape, 2**num_bits - narrow_range)])
    first, last = (np.full(shape, end, np.int64) for end in (-_INFINITY, _INFINITY))
    rises = np.minimum(rises, _INFINITY)
    sides = _floats(np.concatenate([first, rises, np.maximum(rises - 1, -_INFINITY), last]))
    floats = np.concatenate([sides, np.full(shape, np.nan, np.float32)])
    ours, theirs = run(floats), defined(floats)
    differs = ours.view(np.uint32) != theirs.view(np.uint32)
    if kernel is None:  # large arrays take another way through it
        height = len(floats) + _LARGE // low.size
        again = run(np.resize(floats, (height, *shape[1:])))[: len(floats)]
        differs |= ours.view(np.uint32) != again.view(np.uint32)
    differs &= ~(np.isnan(ours) & np.isnan(theirs))
    words = []
    for index in np.argwhere(differs)[:1]:
        at = tuple(int(i) for i in index)
        channel = f"channel {at[1]}: " if len(at) > 1 else ""
        words.append(
            f"{channel}the kernel makes {ours[at]} of {floats[at]}, where build {build!r} is "
            f"defined to make {theirs[at]}"
        )
    return Proof(low.size, rises.size, tuple(words))


def _parts(tensor: QatTensor) -> Iterator[tuple[str, Float32Array, Float32Array]]:
    """Yield a tensor's ranges, so many channels at a time that the memory is bounded."""
    low, high = np.asarray(tensor.min), np.asarray(tensor.max)
    if not low.ndim:
        yield tensor.name, low, high
        return
    size = -(-_MOST_JUMPS // 2 ** (tensor.spec.num_bits or 8))
    for start in range(0, low.size, size):
        yield tensor.name, low[start : start + size], high[start : start + size]


def _rises_at_once(run: Kernel, middles: Float32Array) -> Keys | None:
    """Return where the kernel rises to what it makes of each of these floats.

    ``None`` if that is not every rise: the results do not all differ, or there are others between.
    """
    values = run(middles)
    if not (values[1:] > values[:-1]).all():
        return None
    above = np.full(values[1:].shape, _INFINITY, np.int64)
    found = np.full(values[1:].shape, -_INFINITY, np.int64)
    while (found < above).any():
        middle = (found + above) // 2
        is_above = run(_floats(middle)) >= values[1:]
        above = np.where(is_above, middle, above)
        found = np.where(is_above, found, middle + 1)
    ends = run(_floats(np.concatenate([above[:1] * 0 - _INFINITY, above, above - 1])))
    firsts, lasts = ends[: len(values)], ends[len(values) :]
    is_flat = (firsts == values).all() and (lasts == values[:-1]).all()
    return above if is_flat else None


def _rises(run: Kernel, shape: tuple[int, ...], most: int) -> Iterator[Keys]:
    """Yield, for each step, the first float from which on the result is above the one before.

    This serves odd ranges, whose integers do not all differ; beyond the last rise it yields what
    is past infinity.
    """
    start = np.full(shape, -_INFINITY, np.int64)
    for _ in range(most):
        below = run(_floats(start))
        found = start + 1
        above = np.full(shape, _INFINITY + 1, np.int64)
        while (found < above).any():
            middle = (found + above) // 2
            is_above = run(_floats(np.minimum(middle, _INFINITY))) > below
            is_above |= middle > _INFINITY
            above = np.where(is_above, middle, above)
            found = np.where(is_above, found, np.minimum(middle + 1, above))
        yield above
        if (above > _INFINITY).all():
            return
        start = np.minimum(above, _INFINITY)


def _floats(keys: Keys) -> Float32Array:
    """Return the floats of their places in order: 0 is 0.0, -1 the greatest below it."""
    magnitude = np.abs(keys).astype(np.uint32)
    bits = np.where(keys < 0, magnitude | np.uint32(0x80000000), magnitude)
    return bits.astype(np.uint32, copy=False).view(np.float32)
