"""A live quantizer is called, and what it returns decides: derived rightly, recovered, or refused.

Nothing of TensorFlow is imported: tensors to call with are made by arithmetic on live variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.kernels import fake_quant
from qmath.kernels.builds import Build
from qmath.readers import notes as words
from qmath.readers.keras.used import holds
from qmath.readers.records import ASKED, Fact, StoredTensor
from qmath.readers.settings.facts import QuantizerSettings, is_width, quantizer_facts
from qmath.readers.settings.recovered import RECOVERED, NotRecoveredError, recovered

__all__ = ["ask_activation", "ask_weight", "misplaced"]

Float32Array = NDArray[np.float32]
# Widths with narrow_range, as TensorFlow's fake quantization takes them.
_Width = tuple[int, bool]
_ALL_WIDTHS = tuple((bits, narrow) for bits in range(2, 17) for narrow in (False, True))
_VARS, _ARGS = "vars", "args"
_POINTS = 4097
_ULPS = 4
_FAR = np.float32(1e30)


def ask_weight(
    item: StoredTensor,
    variable: Any,
    quantizer: Any,
    state: Any,
    settings: QuantizerSettings,
    builds: Sequence[Build] = ("tf",),
) -> tuple[StoredTensor, str | None]:
    """Return a weight with what its quantizer does, and a note if there is something to say.

    Parameters
    ----------
    item : StoredTensor
        The weight, with the range that its quantizer keeps, or the fixed one of its arguments.
    variable, quantizer, state
        The live objects, as a wrapper holds them.
    settings : QuantizerSettings
        Of `quantizer`.
    builds : sequence of str
        The live quantizer may compute as any of these.

    Raises
    ------
    QmathError
        The quantizer fails, or what it returns are no integers times a scale.
    """
    values = np.asarray(item.values, np.float32)
    answer = _answer(quantizer, variable, state, item.name)
    says = _says(settings)
    if settings.kind == "NoQuantizer" and _same(answer, values):
        return replace(item, role="float", min=None, max=None), None
    if _is_derived(item, settings, values, answer, builds):
        facts = quantizer_facts(settings, ASKED, f"the live {settings.class_name} says")
        return replace(item, role="weight", facts=tuple(facts)), None
    own = Fact("quantizer", settings.class_name, ASKED, says)
    if answer.shape != values.shape:
        raise _refused(item.name, settings, f"returns values of shape {answer.shape}")
    bare = replace(item, role="float", min=None, max=None)
    if _same(answer, values):
        return bare, words.changes_nothing(item.name, settings.class_name)
    if _is_clipped(values, answer):
        clipped = replace(bare, values=answer)
        return clipped, words.clips_only(item.name, settings.class_name)
    found = None
    if item.min is not None and item.is_stored:
        found = _fitting(item, settings, values, answer, builds)
    if found is not None:
        return replace(item, role="weight", facts=(own, *_facts(found, ASKED, says))), None
    width = settings.arguments.get("num_bits")
    error = ""
    for num_bits in (width, None) if is_width(width) else (None,):
        try:
            got = recovered(bare, answer, says, num_bits)
        except NotRecoveredError as not_recovered:
            error = str(not_recovered)
        else:
            return replace(got, facts=(own, *got.facts)), None
    raise QmathError(f"{error}. It is a {settings.class_name} of your own; export from one of "
                     f"TFMOT's quantizers, or leave this weight to float tools")  # fmt: skip


def ask_activation(
    item: StoredTensor,
    quantizer: Any,
    state: Any,
    settings: QuantizerSettings,
    some: Any,
    builds: Sequence[Build] = ("tf",),
) -> tuple[StoredTensor | None, str | None]:
    """Return an activation with what its quantizer does, or ``None`` if that is nothing; a note.

    Parameters
    ----------
    item : StoredTensor
        The activation, with the range that its quantizer keeps or that its arguments fix, if any.
    quantizer, state
        The live objects.
    settings : QuantizerSettings
        Of `quantizer`.
    some : Any
        A float variable of the model, to make tensors of.
    builds : sequence of str
        As `ask_weight` takes them.

    Raises
    ------
    QmathError
        The quantizer fails, or computes something else than TensorFlow's fake quantization.
    """
    says = _says(settings)
    probes = _probes(item, settings)

    def ask(x: Float32Array) -> Float32Array:
        return _answer(quantizer, _tensor(some, x), state, item.name)

    answer = ask(probes)
    if settings.kind == "NoQuantizer" and _same(answer, probes):
        return None, None
    if _is_derived(item, settings, probes, answer, builds):
        facts = quantizer_facts(settings, ASKED, f"the live {settings.class_name} says")
        return replace(item, facts=tuple(facts)), None
    if _same(answer, probes):
        return None, words.changes_nothing(item.name, settings.class_name)
    own = Fact("quantizer", settings.class_name, ASKED, says)
    if item.min is not None and item.is_stored:
        found = _fitting(item, settings, probes, answer, builds)
        if found is not None:
            return replace(item, facts=(own, *_facts(found, ASKED, says))), None
    ends = ask(np.array([[-_FAR], [_FAR]], np.float32))
    if ends.shape == (2, 1) and np.isfinite(ends).all() and np.abs(ends).max() < _FAR:
        ranged = replace(item, min=ends[0, 0], max=ends[1, 0], is_stored=False)
        probes = _probes(ranged, settings)
        answer = ask(probes)
        for near in _near(ranged):
            found = _fitting(near, settings, probes, answer, builds)
            if found is not None:
                return replace(near, facts=(own, *_facts(found, RECOVERED, says))), None
    raise _refused(
        item.name, settings, "computes something else than TensorFlow's fake quantization"
    )


def misplaced(wrapper: Any, weights: Sequence[tuple[Any, Any, Any]], where: str) -> set[int]:
    """Return the ids of the variables whose quantized values the layer does not use as they are.

    `set_quantize_weights` is called as TFMOT's wrapper does before each call of the layer, and may
    put something else in place: scaled, averaged, or nothing at all.

    Parameters
    ----------
    wrapper : Any
        The live wrapper.
    weights : sequence of tuple
        Its variables, with their quantizers and states.
    where : str
        The layer, for the error.

    Raises
    ------
    QmathError
        The user's code fails.
    """
    config = wrapper.quantize_config
    try:
        given = [
            quantizer(variable, False, weights=state) for variable, quantizer, state in weights
        ]
        config.set_quantize_weights(wrapper.layer, given)
    except Exception as error:  # whatever the user's code raises
        raise QmathError(
            f"{where}: {type(config).__name__} fails when it quantizes the weights ({error!r}); "
            "call the model once to see it fail in training code"
        ) from error
    return {
        id(variable)
        for (variable, _, _), tensor in zip(weights, given, strict=True)
        if not holds(wrapper.layer, tensor)
    }


def _answer(quantizer: Any, inputs: Any, state: Any, name: str) -> Float32Array:
    """Call a live quantizer as its wrapper does at inference."""
    kind = type(quantizer).__name__
    try:
        result = quantizer(inputs, False, weights=state)
        values = np.asarray(result.numpy() if hasattr(result, "numpy") else result)
    except Exception as error:  # whatever a user's quantizer raises
        raise QmathError(
            f"{name}: calling its {kind} as inference does failed: {type(error).__name__}: "
            f"{error}; correct {kind}.__call__, which the model itself cannot run"
        ) from error
    if values.dtype != np.float32:
        raise QmathError(
            f"{name}: its {kind} returns {values.dtype}; qmath reads quantizers of float32"
        )
    return values


def _tensor(some: Any, x: Float32Array) -> Any:
    """Return values as a tensor of the kind that a live variable computes with."""
    if some is None:
        return x
    zero = some[(0,) * len(some.shape)] * 0
    return zero + x


def _probes(item: StoredTensor, settings: QuantizerSettings) -> Float32Array:
    """Return points over the range and beyond, and around its ties: a column for each channel."""
    if item.min is None or item.max is None:
        low, high = np.array([[-8.0]]), np.array([[8.0]])
    else:
        low, high = (np.asarray(end, np.float64).reshape(1, -1) for end in (item.min, item.max))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    span = np.where(high > low, high - low, 1)
    across = low - span / 2 + np.linspace(0, 2, _POINTS)[:, None] * span
    width = settings.arguments.get("num_bits")
    steps = 2 ** (width if is_width(width) else 8) - 1
    first = np.unique(np.linspace(0, steps, min(steps + 1, _POINTS)).astype(int))
    ties = low + (first[:, None] + 0.5) * (span / steps)
    points = [part.astype(np.float32) for part in (across, ties)]
    near = [np.nextafter(points[1], np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([*points, *near])
    # TensorFlow flushes subnormals as it adds, and knows no -0 by then.
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def _near(item: StoredTensor) -> Iterator[StoredTensor]:
    """Yield a tensor with ranges around what its quantizer clips to, which is a nudged one.

    Nudging it again may change the scale in its last bit, so a neighbour has to be found.
    """
    steps = [np.arange(-_ULPS, _ULPS + 1) * np.spacing(end) for end in (item.min, item.max)]
    ways = sorted(product(*steps), key=lambda way: abs(way[0]) + abs(way[1]))
    for below, above in ways:
        low, high = np.float32(item.min + below), np.float32(item.max + above)
        yield replace(item, min=np.asarray(low), max=np.asarray(high))


def _is_derived(
    item: StoredTensor,
    settings: QuantizerSettings,
    x: Float32Array,
    answer: Float32Array,
    builds: Sequence[Build],
) -> bool:
    """Tell whether a quantizer of TFMOT, with these settings and this range, gives an answer."""
    num_bits, narrow = settings.arguments.get("num_bits"), settings.arguments.get("narrow_range")
    if settings.kind is None or item.min is None or not isinstance(narrow, bool):
        return False
    if settings.kind == "FixedQuantizer":
        return _is_faked(item, x, (8, narrow), _ARGS, answer, builds)
    return is_width(num_bits) and _is_faked(item, x, (num_bits, narrow), _VARS, answer, builds)


def _is_faked(
    item: StoredTensor,
    x: Float32Array,
    width: _Width,
    op: str,
    answer: Float32Array,
    builds: Sequence[Build],
) -> bool:
    """Tell whether an op of one of the builds gives an answer."""
    low, high = item.min, item.max
    if op == _ARGS:
        function: Callable[..., Float32Array] = fake_quant.fake_quant_with_min_max_args
        low, high = float(low), float(high)
        x, answer = x.reshape(-1), answer.reshape(-1)  # XLA computes some rows in a way of its own
    elif np.ndim(low):
        function = fake_quant.fake_quant_with_min_max_vars_per_channel
    else:
        function = fake_quant.fake_quant_with_min_max_vars
    return any(_same(answer, function(x, low, high, *width, build=build)) for build in builds)


def _fitting(
    item: StoredTensor,
    settings: QuantizerSettings,
    x: Float32Array,
    answer: Float32Array,
    builds: Sequence[Build],
) -> dict[str, Any] | None:
    """Return the one width with which the range gives an answer, with the op: fields of a spec."""
    for op in (_VARS,) if item.is_stored else (_VARS, _ARGS):
        widths = [w for w in _widths(settings) if _is_faked(item, x, w, op, answer, builds)]
        if len(widths) == 1:
            (num_bits, narrow), per_axis = widths[0], bool(np.ndim(item.min))
            return {"op": op, "num_bits": num_bits, "narrow_range": narrow, "per_axis": per_axis}
    return None


def _widths(settings: QuantizerSettings) -> Iterator[_Width]:
    """Yield the widths that a quantizer can have: its own, if it says one."""
    stated, narrow = settings.arguments.get("num_bits"), settings.arguments.get("narrow_range")
    own = [
        width
        for width in _ALL_WIDTHS
        if width[0] == stated and (width[1] is narrow or not isinstance(narrow, bool))
    ]
    yield from own or _ALL_WIDTHS


def _facts(found: Mapping[str, Any], source: str, says: str) -> tuple[Fact, ...]:
    return tuple(Fact(field, value, source, says) for field, value in found.items())


def _is_clipped(values: Float32Array, answer: Float32Array) -> bool:
    """Tell whether values were clipped only, so that some between the ends are as they were."""
    if not values.size:
        return False
    low, high = answer.min(), answer.max()
    between = (answer > low) & (answer < high) & (answer != 0)
    return bool(between.any()) and _same(answer, np.clip(values, low, high))


def _same(one: Float32Array, other: Float32Array) -> bool:
    """Tell whether two arrays are equal in every bit but the sign of zeros."""
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=True)


def _says(settings: QuantizerSettings) -> str:
    return f"what the live {settings.class_name} returned says"


def _refused(name: str, settings: QuantizerSettings, what: str) -> QmathError:
    return QmathError(
        f"{name}: its {settings.class_name} {what}, which qmath cannot express; use one of TFMOT's "
        f"quantizers there"
    )
