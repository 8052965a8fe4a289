"""Problems of a trained model, each with a remedy that a user of TFMOT can apply.

Every piece of advice has a kind, which scripts can rely on:

``missing-settings``
    A quantizer's settings are in no file.
``own-quantizer``
    A quantizer of the user's own changes a weight and leaves no trace in the file.
``no-integers``
    NaN values, or a range that determines no integers.
``untrained-range``
    A range that is exactly as TFMOT initialises it.
``unconverged-average``
    The moving average of a ReLU's output still holds a part of its initial -6.
``dead-channel``
    A range of 0 to 0: every weight of the channel is 0, or becomes 0 though it is not.
``single-range-depthwise``
    A depthwise kernel whose channels share one range.
``zero-point-half-step``
    The exact zero point lies on a rounding tie, so that float32 rounding decides it.
``outside-range``
    Values far outside the stored range, which are clipped to it.
``fixed-quantizer-bits``
    A ``FixedQuantizer``, whose width TFMOT drops: it computes with 8 bits.
``float-layer``, ``float-input``, ``float-function``
    A layer whose weights, input or arithmetic is left float, see `qmath.inspection.dataflow`.
``cut-point``
    A layer or activation that qmath cannot compute.
``open-shape``
    Such a layer whose output's shape is not known, so that what follows it is left out.
``wide-sums``
    Sums of so many bits that the profile ``integer`` has few left for their multipliers.

And a severity: an ``error`` takes integers away, by a ``warning`` the model computes otherwise than
meant, or in float, and a ``hint`` changes nothing that qmath writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np

from qmath.kernels import exact
from qmath.layers import ACTIVATIONS, LAYERS, activation_of
from qmath.model import Float32Array, Node, QatModel, QatTensor, QuantizedTensor

__all__ = [
    "OTHER_SOURCES",
    "Advice",
    "Advisor",
    "Severity",
    "grouped",
    "missing_settings",
    "no_integers",
    "own_quantizer",
]

_INITIAL = 6.0  # TFMOT's ranges start at -6 … 6
_DECAY = 0.999  # TFMOT's moving average, fixed in quant_ops.MovingAvgQuantize
OTHER_SOURCES = (
    "a SavedModel or the live model (qmath.from_keras) may show its quantizer; if neither does, "
    "qmath recover finds integers in an .npz of the values that its layer computes with"
)
Severity = Literal["error", "warning", "hint"]
_ERRORS = frozenset({"missing-settings", "own-quantizer", "no-integers", "open-shape"})
_HINTS = frozenset({"zero-point-half-step", "unconverged-average"})
_ORDER: tuple[Severity, ...] = ("error", "warning", "hint")
_FEW_INTEGERS = 8  # of a channel that shares its range
_FAR_OUTSIDE = 0.1  # of the range; one optimizer step usually moves a weight by less


@dataclass(frozen=True)
class Advice:
    """One thing to look at.

    Attributes
    ----------
    kind : str
        Stable name, see the module.
    where : str
        The tensor or layer.
    message : str
        The problem.
    remedy : str
        Its remedy.
    severity : {"error", "warning", "hint"}
        How much it matters, see the module; by its kind.
    """

    kind: str
    where: str
    message: str
    remedy: str
    severity: Severity = field(init=False)

    def __post_init__(self) -> None:
        severity = "error" if self.kind in _ERRORS else "hint" if self.kind in _HINTS else "warning"
        object.__setattr__(self, "severity", severity)


def grouped(advice: Iterable[Advice]) -> list[tuple[str, Severity, list[tuple[str, list[Advice]]]]]:
    """Return each kind once, the severest first, with its remedies and what each is for."""

    def kind_of(item: Advice) -> tuple[int, str]:
        return _ORDER.index(item.severity), item.kind

    groups = []
    for (rank, kind), items in groupby(sorted(advice, key=kind_of), kind_of):
        remedies: dict[str, list[Advice]] = {}
        for item in items:
            remedies.setdefault(item.remedy, []).append(item)
        groups.append((kind, _ORDER[rank], [*remedies.items()]))
    return groups


def missing_settings(tensor: QatTensor) -> Advice:
    """Advise on a tensor whose quantizer's settings are unknown."""
    message = f"in no file: {', '.join(tensor.spec.missing)}"
    return Advice("missing-settings", tensor.name, message, str(tensor.hint or ""))


def own_quantizer(tensor: QatTensor) -> Advice:
    """Advise on a weight whose quantizer left nothing in the file."""
    return Advice(
        "own-quantizer",
        tensor.name,
        "a quantizer of its own config changes it, and what is read are the floats before that",
        OTHER_SOURCES,
    )


def no_integers(tensor: QatTensor, reason: str) -> Advice:
    """Advise on a tensor that determines no integers."""
    return Advice(
        "no-integers",
        tensor.name,
        reason.removeprefix(f"{tensor.name}: "),
        "training diverged; train again from an earlier checkpoint with a lower learning rate",
    )


class Advisor:
    """Finds problems of a model's quantized tensors.

    Parameters
    ----------
    model : QatModel
    """

    def __init__(self, model: QatModel) -> None:
        nodes = model.graph.nodes if model.graph else ()
        self._nodes = {node.layer: node for node in nodes}
        # TFMOT drops the width; the reader notes where another one was meant.
        parts = (note.partition(": FixedQuantizer(num_bits=") for note in model.notes)
        self._with_other_widths = {name for name, found, _ in parts if found}

    def of_range(self, tensor: QatTensor) -> Iterator[Advice]:
        """Yield what a stored range alone shows."""
        low, high, spec = tensor.min, tensor.max, tensor.spec
        if low is None or high is None or not (np.isfinite(low).all() and np.isfinite(high).all()):
            return
        if spec.op == "tflite":  # the file holds no range that training could have left
            return
        if spec.quantizer == "FixedQuantizer":
            if tensor.name in self._with_other_widths:
                yield _fixed_bits(tensor)
        elif _is_untrained(tensor, low, high):
            yield Advice(
                "untrained-range",
                tensor.name,
                f"its range is the initial {low.flat[0]:g} … {high.flat[0]:g}: it was never "
                "updated",
                "train the model after quantize_apply, or call it on some batches with "
                "training=True, and save it again",
            )
            return
        elif tensor.role != "weight":
            node = self._node(tensor)
            yield from _unconverged(node, tensor, float(low.flat[0]), float(high.flat[0]))
        yield from _dead(tensor, low, high)
        if spec.num_bits is not None and spec.narrow_range is not None:
            yield from _on_half_step(tensor, low, high, spec.num_bits, spec.narrow_range)

    def of_weight(
        self, tensor: QatTensor, floats: Float32Array, quantized: QuantizedTensor
    ) -> Iterator[Advice]:
        """Yield what a quantized weight's values show."""
        if tensor.spec.op == "tflite":
            return
        low, high = np.asarray(tensor.min), np.asarray(tensor.max)
        node = self._node(tensor)
        row = LAYERS.get(node.class_name) if node else None
        layout = row.kernels.get(tensor.name.rpartition("/")[2]) if row else None
        if layout == "HWIM" and low.size == 1 and floats.ndim == 4:
            yield from _single_range(tensor, floats, quantized)
        span = np.where(high > low, high.astype(np.float64) - low, np.inf)
        excess = float(np.max(np.maximum(low - floats, floats - high) / span, initial=0))
        if excess > _FAR_OUTSIDE:
            share = np.count_nonzero((floats < low) | (floats > high)) / floats.size
            yield Advice(
                "outside-range",
                tensor.name,
                f"{share:.1%} of its values lie outside the stored range, by up to {excess:.0%} "
                "of it",
                "they are clipped, as in TFMOT's own inference; to widen the range, call the model "
                "once with training=True without an optimizer step and save it again",
            )

    def _node(self, tensor: QatTensor) -> Node | None:
        """Return a node of the layer that a tensor belongs to; its calls differ in inputs alone."""
        return self._nodes.get(tensor.name.rpartition("/")[0])


def _fixed_bits(tensor: QatTensor) -> Advice:
    return Advice(
        "fixed-quantizer-bits",
        tensor.name,
        "TFMOT's FixedQuantizer ignores its num_bits and computes with 8 bits",
        "take the 8-bit integers; for another width, train with MovingAverageQuantizer or "
        "LastValueQuantizer",
    )


def _is_untrained(tensor: QatTensor, low: Float32Array, high: Float32Array) -> bool:
    """Return whether a range is the initial one: 0 … 0 of AllValuesQuantizer, ±6 of others."""
    if tensor.role != "weight" and bool(np.all(low == 0) and np.all(high == 0)):
        return True
    return bool(np.all(low == -_INITIAL) and np.all(high == _INITIAL))


def _dead(tensor: QatTensor, low: Float32Array, high: Float32Array) -> Iterator[Advice]:
    """Advise on ranges of 0 to 0: of weights that are 0, or of others, which are lost."""
    dead = np.flatnonzero((low == 0) & (high == 0))
    if not dead.size:
        return
    message = "its range is 0 … 0: every value is 0"
    if low.ndim:
        message = f"{dead.size} of {low.size} ranges are 0 … 0 (first: channel {dead[0]})"
    remedy = (
        "nothing is lost: scale is 0 and every integer the zero point; do not divide by that "
        "scale, prune the channel or train it again from another initial value"
    )
    values = np.asarray(tensor.values if tensor.role == "weight" else 0.0)
    lost = np.count_nonzero(values[..., dead] if low.ndim else values)
    if lost:
        if not low.ndim:
            message = "its range is 0 … 0"
        message += f", and {lost} of its values are not 0: all of them become 0"
        remedy = (
            "the range is older than the values, and TFMOT's own inference clips to it, too: call "
            "the model once with training=True without an optimizer step and save it again"
        )
    yield Advice("dead-channel", tensor.name, message, remedy)


def _unconverged(node: Node | None, tensor: QatTensor, low: float, high: float) -> Iterator[Advice]:
    """Read the number of steps off a ReLU's minimum, which is -6 * 0.999**steps.

    A ReLU's own minimum is 0, so only the initial value can make the average negative. The maximum
    is then 6 * 0.999**steps plus a part of the true mean, which gives the final maximum.
    """
    spec = tensor.spec
    if (
        node is None
        or not _is_relu(node)
        or tensor.name.endswith("/pre_activation")
        or spec.quantizer not in (None, "MovingAverageQuantizer")
        or spec.symmetric
        or not -_INITIAL < low < 0 < high
    ):
        return
    kept = -low / _INITIAL
    steps = round(math.log(kept) / math.log(_DECAY))
    mean = (high - _INITIAL * kept) / (1 - kept)
    bits = spec.num_bits or 8
    half_step = mean / (2**bits - 1) / 2
    if mean <= 0 or -low <= half_step:
        return
    more = math.ceil(math.log(half_step / -low) / math.log(_DECAY))
    yield Advice(
        "unconverged-average",
        tensor.name,
        f"its moving average has seen {steps} steps: the minimum {low:.4g} of a ReLU's output is "
        f"-6 * 0.999**{steps}; it needs about {more} more, until the minimum is within half an "
        f"integer step of 0 ({bits} bits{'' if spec.num_bits else ' assumed'})",
        "train for more steps; TFMOT's decay of 0.999 is fixed",
    )


def _on_half_step(
    tensor: QatTensor, low: Float32Array, high: Float32Array, num_bits: int, narrow_range: bool
) -> Iterator[Advice]:
    if (low > high).any():
        return
    ties = np.flatnonzero(exact.zero_points(low, high, num_bits, narrow_range=narrow_range)[1])
    if ties.size:
        where = f" of channel {ties[0]} ({ties.size} such channels)" if low.ndim else ""
        ends = f"{low.flat[ties[0]]:g} … {high.flat[ties[0]]:g}"
        yield Advice(
            "zero-point-half-step",
            tensor.name,
            f"the exact zero point of the range {ends}{where} lies halfway between two integers, "
            "so float32 rounding decides, and other kernels may decide otherwise",
            "use the exported zero point as it is; to avoid the tie, train with narrow_range=True",
        )


def _single_range(
    tensor: QatTensor, floats: Float32Array, quantized: QuantizedTensor
) -> Iterator[Advice]:
    """Advise where one range serves several channels, axis 2 of HWIM."""
    largest = np.abs(floats).max(axis=(0, 1, 3), initial=0)
    alive = np.flatnonzero(largest > 0)
    if alive.size < 2:
        return
    worst = int(alive[largest[alive].argmin()])
    ratio = float(largest.max() / largest[worst])
    of_worst = quantized.values[:, :, worst]
    low, high = int(of_worst.min()), int(of_worst.max())
    # A channel that keeps a quarter of the range's integers, at few bits a half, loses little.
    available = 2**quantized.num_bits
    if high - low + 1 >= max(available // 4, min(_FEW_INTEGERS, available // 2)):
        return
    lowest, greatest = -(2 ** (quantized.num_bits - 1)), 2 ** (quantized.num_bits - 1) - 1
    yield Advice(
        "single-range-depthwise",
        tensor.name,
        f"one range serves {largest.size} channels, the largest of them {ratio:.3g} times the "
        f"smallest: channel {worst} has only {low} … {high} of the integers {lowest} … {greatest}",
        "TFMOT's per_axis means the last axis, which is the depth multiplier here; give this "
        "layer more bits in its QuantizeConfig, or even its channels out (weight decay, "
        "kernel constraints)",
    )


def _is_relu(node: Node) -> bool:
    """Return whether a layer's output is never negative because of a ReLU."""
    if node.class_name == "ReLU":
        slope, threshold = node.config.get("negative_slope"), node.config.get("threshold")
        is_known = threshold is None or isinstance(threshold, (int, float))
        return not slope and is_known and not (threshold or 0) < 0
    function = ACTIVATIONS.get(activation_of(node))
    return function is not None and function.kind == "relu"
