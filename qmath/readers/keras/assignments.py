"""Which quantizer left which range: every way that fits one wrapper, where variables have no names.

`QuantizeWrapperV2.build` adds the ranges of the quantized weights, then those of the activations,
then the output's. A quantizer may keep no variables, as `FixedQuantizer` does; and that an
activation is quantized shows in a config only where it was put in place. So two ranges of a layer
with one quantized weight can be the weight's and the activation's, the weight's and the output's,
or those of the latter two. What decides is a ``QuantizeConfig`` of TFMOT's own, quantizers that the
user's config stores, what the user says, or values: of several ranges that each mirror the extremes
of their weight. Otherwise nothing does, and the file is refused: two models that compute different
things can be the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath._text import is_plain, quantizer_option
from qmath.containers.lazy_array import LazyArray
from qmath.errors import FileFormatError
from qmath.model import IN_PYTHON
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.keras.ways import ACTIVATION, Pair, Told, Way, Ways
from qmath.readers.settings.ranges import is_mirrored, trained_channels, width_from_ratio
from qmath.readers.settings.tfmot import (
    activation_ranges,
    class_names,
    config_chain,
    fixed_quantizer,
    is_custom,
)

__all__ = ["REMEDY", "assign_ranges"]

REMEDY = "save the model as .h5 or as a SavedModel, which hold the names"
_MAX_WAYS = 1000
_MAX_LISTED = 6
# How far training may move a weight's extremes after its range was taken.
_NEAR = 2.0


def assign_ranges(
    layer: LayerFacts,
    weights: Mapping[str, LazyArray],
    pairs: Sequence[Pair],
    quantizers: Mapping[str, Any],
    place: str,
) -> Way:
    """Tell whose each range of a wrapper is.

    Parameters
    ----------
    layer : LayerFacts
        What the config says of it.
    weights : mapping of str to LazyArray
        Those that are quantized, in the order in which they were.
    pairs : sequence of (LazyArray, LazyArray)
        The ranges, in the file's order.
    quantizers : mapping of str to quantizer
        What the user says, as in `qmath.load`.
    place : str
        File and layer, for error messages.

    Raises
    ------
    FileFormatError
        No way fits, or several do.
    """
    chain = config_chain(layer)
    if chain and not is_custom(chain[-1]):
        return _of_tfmots_own(layer, weights, pairs, place)
    told = Told(layer, tuple(weights), quantizers)
    _check_signs(pairs, place)
    ways = Ways(layer, weights, pairs, told)
    count = ways.count()
    if count is None or count > _MAX_WAYS:
        many = count if count is not None and count < 10**6 else "more than a million"
        raise FileFormatError(
            f"{place}: this format holds no names, and {len(pairs)} ranges fit {len(weights)} "
            f"quantized weights, the activations and the output in {many} ways; {REMEDY}"
        )
    found = list(dict.fromkeys(ways))
    if len(found) > 1:
        found = _shown_by_values(found, weights, pairs)
    if not found:
        raise _no_way(layer, weights, pairs, quantizers, place)
    if len(found) > 1:
        raise _several_ways(layer, tuple(weights), found, place)
    if ACTIVATION in found[0]:
        raise FileFormatError(
            f"{place}: several of its activations are quantized alike, and qmath has no names to "
            "tell them apart"
        )
    return found[0]


def _of_tfmots_own(
    layer: LayerFacts, weights: Mapping[str, LazyArray], pairs: Sequence[Pair], place: str
) -> Way:
    """Return the owners under a config of TFMOT's, whose quantizers keep ranges unless fixed."""
    others = [] if fixed_quantizer(layer) else list(activation_ranges(layer))
    spare = len(pairs) - len(weights) - len(others)
    if len(set(others)) < len(others):
        raise FileFormatError(
            f"{place}: two of its activations are quantized, {' and '.join(others)}, and qmath "
            "has no names to tell them apart"
        )
    if spare not in (0, 1):
        raise FileFormatError(
            f"{place}: it holds {len(pairs)} ranges for {len(weights)} quantized weights and "
            f"{len(others)} activations of TFMOT's own config; the file was cut or edited, or its "
            f"weights are of another model: {REMEDY}"
        )
    return (*weights, *others, *["output"][:spare])


def _check_signs(pairs: Sequence[Pair], place: str) -> None:
    """Raise if a range does not reach from below zero to above, as all that TFMOT leaves do."""
    for low, high in pairs:
        ends = np.asarray(low), np.asarray(high)
        if (
            {end.dtype.kind for end in ends} == {"f"}
            and ends[0].shape == ends[1].shape
            and np.any((ends[0] <= ends[1]) & ((ends[0] > 0) | (ends[1] < 0)))
        ):
            raise FileFormatError(
                f"{place}: this format holds no names, and {ends[0].flat[0]!s} and "
                f"{ends[1].flat[0]!s} are not the ends of a range that a quantizer of TFMOT's "
                f"leaves, as 0 is not between them; of other quantizers' variables, {REMEDY}"
            )


def _shown_by_values(
    ways: Sequence[Way], weights: Mapping[str, LazyArray], pairs: Sequence[Pair]
) -> list[Way]:
    """Return the ways that are left by ranges which the values of their weights show.

    A range shows its weight if it is symmetric and near the weight's extremes; one such number may
    be chance, two are taken as proof.
    """
    near: dict[tuple[int, str], int] = {}
    claims: dict[Way, dict[int, int]] = {}
    for way in ways:
        own = claims.setdefault(way, {})
        for i, name in enumerate(way):
            if name in weights:
                if (i, name) not in near:
                    near[i, name] = _mirrored_channels(weights[name], *pairs[i])
                own[i] = near[i, name]
    proofs = [
        {(i, way[i]) for i in own}
        for way, own in claims.items()
        if all(own.values()) and sum(own.values()) > 1
    ]
    largest = [proof for proof in proofs if not any(proof < other for other in proofs)]
    if not largest or any(proof != largest[0] for proof in largest):
        return list(ways)
    return [way for way in ways if largest[0] <= {*enumerate(way)}]


def _mirrored_channels(values: Any, low: Any, high: Any) -> int:
    """Return in how many channels a symmetric range is near the extremes of a weight: all or 0."""
    minimum, maximum, weight = (np.asarray(array) for array in (low, high, values))
    if (
        any(array.dtype != np.float32 for array in (minimum, maximum, weight))
        or minimum.shape != maximum.shape
        or not weight.size
        or not trained_channels(minimum, maximum)[0].size
    ):
        return 0
    num_bits = width_from_ratio(minimum, maximum)
    if num_bits is None and not is_mirrored(minimum, maximum):
        return 0
    ratio = 1.0 if num_bits is None else 1 - 2.0 ** (1 - num_bits)
    axes = tuple(range(weight.ndim - minimum.ndim))
    extreme: NDArray[np.float64] = np.maximum(
        -weight.min(axes).astype(np.float64), weight.max(axes) / ratio
    )
    reach = -minimum.astype(np.float64)
    is_near = (reach <= _NEAR * extreme) & (extreme <= _NEAR * reach)
    return int(np.size(reach)) if np.all(is_near) else 0


def _several_ways(
    layer: LayerFacts, weights: Way, ways: Sequence[Way], place: str
) -> FileFormatError:
    keys = [_deciding_keys(layer, weights, way, ways) for way in ways[:_MAX_LISTED]]
    listed = [
        f"({i}) {_in_words(way, weights)}: told by {' and '.join(told)}"
        for i, (way, told) in enumerate(zip(ways, keys, strict=False), 1)
    ]
    more = f"; and {len(ways) - _MAX_LISTED} more" if len(ways) > _MAX_LISTED else ""
    count = f"{len(ways[0])} ranges fit" if len(ways[0]) > 1 else "one range fits"
    kind = "LastValueQuantizer" if ways[0][0] in weights else "MovingAverageQuantizer"
    option = quantizer_option(keys[0][0], f"{kind}(num_bits=N, ...)")
    how = f"{option} (quantizers= in Python)" if option else IN_PYTHON
    return FileFormatError(
        f"{place}: this format holds no names, and its {count} in {len(ways)} ways, as some "
        f"quantizers keep none: {'; '.join(listed)}{more}. Tell which it is, with the quantizers "
        f"of the training script: {how}; or {REMEDY}"
    )


def _in_words(way: Way, weights: Way) -> str:
    """Return whose the ranges are in one way: ``kernel, output (bias has none)``."""
    bare = [name for name in weights if name not in way]
    without = f" ({', '.join(bare)} {'has' if len(bare) == 1 else 'have'} none)" if bare else ""
    return f"{', '.join(way)}{without}"


def _deciding_keys(layer: LayerFacts, weights: Way, way: Way, ways: Sequence[Way]) -> list[str]:
    """Return the fewest options that tell a way from all others, each of what keeps a range."""
    needed: Sequence[str] = way
    for size in (1, 2) if len(way) < 10 else ():
        fewer = (
            part
            for part in combinations(dict.fromkeys(way), size)
            if sum({*part} <= {*other} for other in ways) == 1
        )
        if found := next(fewer, None):
            needed = found
            break
    return [_key(layer, weights, name) for name in dict.fromkeys(needed)]


def _key(layer: LayerFacts, weights: Way, name: str) -> str:
    classes = class_names(layer)
    if not classes or not is_plain(classes[0]) or (name in weights and len(weights) > 1):
        return f"{layer.path}/{name}"
    role = "weights" if name in weights else "output" if name == "output" else "activation"
    return f"{classes[0]}.{role}"


def _no_way(
    layer: LayerFacts,
    weights: Mapping[str, LazyArray],
    pairs: Sequence[Pair],
    quantizers: Mapping[str, Any],
    place: str,
) -> FileFormatError:
    names = ", ".join(weights) or "none"
    said = f" and with what you say ({', '.join(quantizers)})" if quantizers else ""
    kind = (class_names(layer) or ["its config"])[0]
    count = f"{len(pairs)} ranges do" if len(pairs) != 1 else "1 range does"
    return FileFormatError(
        f"{place}: this format holds no names, and {count} not fit its quantized "
        f"weights ({names}), the activations of {layer.class_name} and its output, with what "
        f"{kind} stores{said}; quantizers that keep other variables than a range cannot be read "
        f"by position: {REMEDY}"
    )
