"""A report on a model before its export: rows, a verdict, warnings."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qmath._progress import Progress, with_progress
from qmath._text import html_table
from qmath.errors import QmathError
from qmath.exports import bundle
from qmath.exports.weights import count
from qmath.inspection import advice, dataflow, scales
from qmath.inspection.advice import Advice, Advisor
from qmath.inspection.cells import cells
from qmath.integer.program import Program
from qmath.model import (
    Float32Array,
    QatModel,
    QatTensor,
    QuantizedTensor,
    QuantSpec,
    assumed_tensors,
    own_quantized,
)
from qmath.readers.source import as_model

__all__ = ["Report", "Row", "Verdict", "inspect"]

_MOST_BARS = 256


@dataclass(frozen=True)
class Row:
    """One tensor. ``None`` marks a field that is unknown or does not apply.

    Attributes
    ----------
    tensor, role
        Name and role, see `qmath.QatTensor`; ``"weight"`` also for one that a quantizer of the
        user's own changes unseen, so that the file has no more than its floats.
    shape : tuple of int or None
        ``None`` for activations, because files do not hold their shape.
    dtype : str or None
        Dtype of the stored floats.
    num_bits : int or None
        Width.
    scheme : str
        The quantizer and its settings, such as ``LastValue sym narrow per channel``; ``float``
        for a float tensor.
    provenance : mapping of str to str
        The source of each setting.
    assumed : bool
        Whether a setting is shown by no source, so that `provenance` calls it assumed.
    ready : bool or None
        Whether the integers are determined; ``None`` for a float tensor.
    problem : str or None
        Why it is not ready.
    min, max : tuple of float or None
        The stored range, one number per channel. Numbers that are not finite are ``None``.
    scale : tuple of float or None
        One per channel.
    zero_point : tuple of int or None
        One per channel, as exported: weights signed, the rest unsigned.
    integers_used, integers_available : int or None
        Distinct integers among a weight's values, and how many the width offers.
    lowest : int or None
        The lowest integer that the width offers a weight.
    histogram : tuple of int or None
        How many of a weight's values have each integer, from `lowest` on; from 9 bits on, each
        number counts a few neighbouring integers, equally many, so that there are at most 256.
    elements, clipped, near_ties : int or None
        A weight's elements, those outside the nudged range, and those so close to a rounding tie
        that other kernels could differ.
    from_power_of_two : tuple of float or None
        How far each scale is from the nearest power of two, as a share of that; 0 where it is one.
    sqnr_db : float or None
        Signal-to-quantization-noise ratio of a weight; ``None`` also if there is no noise.
    """

    tensor: str
    role: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    num_bits: int | None = None
    scheme: str = "float"
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    assumed: bool = False
    ready: bool | None = None
    problem: str | None = None
    min: tuple[float | None, ...] | None = None
    max: tuple[float | None, ...] | None = None
    scale: tuple[float, ...] | None = None
    zero_point: tuple[int, ...] | None = None
    integers_used: int | None = None
    integers_available: int | None = None
    lowest: int | None = None
    histogram: tuple[int, ...] | None = None
    elements: int | None = None
    clipped: int | None = None
    near_ties: int | None = None
    from_power_of_two: tuple[float, ...] | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Verdict:
    """How far a model is ready.

    Attributes
    ----------
    weights_ready, weights : int
        Quantized weights whose integers are determined, of all quantized weights.
    activations_ready, activations : int
        The same of activations, layer outputs and model inputs.
    weights_assumed, activations_assumed : int
        Those that are ready on an assumption: no source shows which quantizer acted.
    integer_only : bool or None
        Whether inference needs no float between the model's input and its last layer, with any
        value of the unknown settings; ``None`` if the file holds no architecture.
    """

    weights_ready: int
    weights: int
    activations_ready: int
    activations: int
    integer_only: bool | None
    weights_assumed: int = 0
    activations_assumed: int = 0

    @property
    def facts(self) -> tuple[tuple[bool, str], ...]:
        """The parts of the verdict in words, and whether each is as one would wish."""
        facts = []
        for noun, ready, number, assumed in (
            ("weights", self.weights_ready, self.weights, self.weights_assumed),
            ("activations", self.activations_ready, self.activations, self.activations_assumed),
        ):
            facts.append((ready == number, f"{noun} {ready}/{number} ready"))
            facts += [(False, f"{assumed} assumed")] * bool(assumed)
        integer_only = {True: "yes", False: "no", None: "unknown"}[self.integer_only]
        return (*facts, (self.integer_only is True, f"integer-only: {integer_only}"))

    def __str__(self) -> str:
        return ", ".join(text for _, text in self.facts)


@dataclass(frozen=True)
class Report:
    """The findings of `inspect`.

    Attributes
    ----------
    source : str
        The file, or the class of a live model.
    verdict : Verdict
        The short answer.
    rows : tuple of Row
        One for each tensor, in the model's order.
    warnings : tuple of Advice
        Problems, each with its remedy.
    notes : tuple of str
        Notes of the reader of the file, and on the scales.
    sha256 : str or None
        The digest of what was read; ``None`` for a live model.
    program : Program or None
        The integer program, where the layers make one; widths that no source says are taken for 8.
    """

    source: str
    verdict: Verdict
    rows: tuple[Row, ...]
    warnings: tuple[Advice, ...]
    notes: tuple[str, ...]
    sha256: str | None = None
    program: Program | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"<Report of {self.source}: {self.verdict}; {len(self.warnings)} warnings>"

    def _repr_html_(self) -> str:
        """Show the quantized tensors in a notebook, with the cells of the command line."""
        rows = [cells(row) for row in self.rows if row.role != "float"]
        return html_table(repr(self)[1:-1], rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, without the program."""
        found = dataclasses.asdict(dataclasses.replace(self, program=None))
        del found["program"]
        return found | {"summary": str(self.verdict)}

    def to_records(self) -> list[dict[str, Any]]:
        """Return a dictionary for each tensor, all with the same keys: the rows of a table.

        Of several channels, `min`, `max`, `scale`, `zero_point` are the extremes: the least of
        `min`, `scale_min` and `zero_point_min`, the greatest of the others.

        Examples
        --------
        >>> import qmath
        >>> records = qmath.inspect("reference/samples/question.h5").to_records()
        >>> [(r["tensor"], r["num_bits"], r["clipped"]) for r in records if r["role"] == "weight"]
        [('conv1/kernel', 4, 1), ('dw1/depthwise_kernel', 4, 1)]
        """
        return [_record(self.source, row) for row in self.rows]

    def to_html(self) -> str:
        """Return the report as a page, as ``qmath inspect --html`` writes it."""
        from qmath.inspection.html import render

        return render(self)


def _record(source: str, row: Row) -> dict[str, Any]:
    """Return a row as numbers and texts alone."""

    def extreme(most: Callable[..., float], values: Sequence[float | None] | None) -> float | None:
        return most((value for value in values or () if value is not None), default=None)

    return {
        "source": source,
        "tensor": row.tensor,
        "role": row.role,
        "shape": None if row.shape is None else "x".join(map(str, row.shape)),
        "channels": None if row.scale is None else len(row.scale),
        "num_bits": row.num_bits,
        "scheme": row.scheme,
        "learnt_from": row.provenance.get("num_bits"),
        "assumed": row.assumed,
        "ready": row.ready,
        "problem": row.problem,
        "min": extreme(min, row.min),
        "max": extreme(max, row.max),
        "scale_min": extreme(min, row.scale),
        "scale_max": extreme(max, row.scale),
        "from_power_of_two": extreme(max, [abs(share) for share in row.from_power_of_two or ()]),
        "zero_point_min": extreme(min, row.zero_point),
        "zero_point_max": extreme(max, row.zero_point),
        "integers_used": row.integers_used,
        "integers_available": row.integers_available,
        "elements": row.elements,
        "clipped": row.clipped,
        "near_ties": row.near_ties,
        "sqnr_db": row.sqnr_db,
    }


def inspect(
    model: str | os.PathLike[str] | QatModel,
    *,
    progress: Progress | None = None,
) -> Report:
    """Say what a model holds, what is missing, and what looks wrong.

    Parameters
    ----------
    model : path or QatModel
        A file that is read without options, or what `qmath.load` or `qmath.from_keras` returned.
    progress : callable, optional
        Called with how many tensors are done, and of how many.

    Returns
    -------
    Report

    Raises
    ------
    QmathError
        See `qmath.load`. The reason why a tensor cannot be quantized is in its row instead.

    Examples
    --------
    >>> import qmath
    >>> print(qmath.inspect("reference/samples/default8.h5").verdict)
    weights 3/3 ready, activations 4/4 ready, integer-only: yes
    """
    source = as_model(model)
    rows, warnings = [], []
    unseen, assumed = set(own_quantized(source)), set(assumed_tensors(source))
    advisor = Advisor(source)
    for tensor in with_progress(source.tensors.values(), progress):
        is_unseen = tensor.role == "float" and tensor.name in unseen
        row, found = _unseen(tensor) if is_unseen else _row(advisor, tensor)
        rows.append(dataclasses.replace(row, assumed=tensor.name in assumed))
        warnings += found
    weights = [row for row in rows if row.role == "weight"]
    activations = [row for row in rows if row.role in ("activation", "output", "input")]
    flow = dataflow.follow(source, {row.tensor for row in rows if row.ready})
    warnings += flow.warnings
    verdict = Verdict(
        sum(row.ready is True for row in weights),
        len(weights),
        sum(row.ready is True for row in activations),
        len(activations),
        flow.integer_only,
        sum(row.assumed and row.ready is True for row in weights),
        sum(row.assumed and row.ready is True for row in activations),
    )
    return Report(
        source.source,
        verdict,
        tuple(rows),
        tuple(warnings),
        (*source.notes, *scales.notes(rows)),
        source.sha256,
        flow.program,
    )


def _row(advisor: Advisor, tensor: QatTensor) -> tuple[Row, list[Advice]]:
    """Describe one tensor and its problems."""
    row = _stored(tensor)
    if tensor.role == "float":
        return row, []
    spec = tensor.spec
    row = dataclasses.replace(
        row,
        num_bits=spec.num_bits,
        scheme=_scheme(spec),
        provenance=dict(tensor.provenance),
        min=_finite(tensor.min),
        max=_finite(tensor.max),
        ready=False,
    )
    warnings = list(advisor.of_range(tensor))
    if not spec.is_complete:
        problem = "the settings are in no file"
        warnings.append(advice.missing_settings(tensor))
        return dataclasses.replace(row, problem=problem), warnings
    try:
        if tensor.role == "weight":
            row, found = _weight(advisor, row, tensor)
            return row, warnings + found
        record = bundle.quantized_range(tensor)
    except QmathError as error:
        warnings.append(advice.no_integers(tensor, str(error)))
        return dataclasses.replace(row, problem=str(error)), warnings
    return _ready(row, record.scale, record.zero_point), warnings


def _stored(tensor: QatTensor) -> Row:
    """Describe what is stored, quantized or not."""
    row = Row(tensor.name, tensor.role)
    if tensor.values is None:
        return row
    dtype = getattr(tensor.values, "dtype", None)
    shape = tuple(np.shape(tensor.values))
    return dataclasses.replace(row, shape=shape, dtype=str(dtype) if dtype else None)


def _unseen(tensor: QatTensor) -> tuple[Row, list[Advice]]:
    """Describe a weight that a quantizer of the user's own changes, leaving no range."""
    words = "quantized by its own config, not in the file"
    row = dataclasses.replace(
        _stored(tensor), role="weight", scheme=words, ready=False, problem=words
    )
    return row, [advice.own_quantizer(tensor)]


def _weight(advisor: Advisor, row: Row, tensor: QatTensor) -> tuple[Row, list[Advice]]:
    """Add what only a tensor with values has."""
    floats = np.asarray(tensor.values, np.float32)
    quantized = dataclasses.replace(tensor, values=floats).quantize()
    counts = count(tensor, floats, quantized)
    row = _ready(row, quantized.scale, quantized.zero_point)
    lowest = quantized.narrow_range - 2 ** (quantized.num_bits - 1)
    available = 2**quantized.num_bits - quantized.narrow_range
    occurrences = np.bincount(quantized.values.ravel().astype(np.int64) - lowest, None, available)
    width = -(-available // _MOST_BARS)
    bars = np.add.reduceat(occurrences, np.arange(0, available, width))
    row = dataclasses.replace(
        row,
        integers_used=int(np.count_nonzero(occurrences)),
        integers_available=available,
        lowest=lowest,
        histogram=tuple(bars.tolist()),
        elements=floats.size,
        clipped=counts["clipped"],
        near_ties=counts["near_ties"],
        sqnr_db=_sqnr_db(floats, quantized),
    )
    return row, list(advisor.of_weight(tensor, floats, quantized))


def _ready(row: Row, scale: Float32Array, zero_point: Any) -> Row:
    return dataclasses.replace(
        row,
        ready=True,
        scale=tuple(scale.ravel().tolist()),
        from_power_of_two=scales.from_power_of_two(scale),
        zero_point=tuple(zero_point.ravel().tolist()),
    )


def _sqnr_db(floats: Float32Array, quantized: QuantizedTensor) -> float | None:
    """Return the ratio of the values' energy to that of what quantizing took away, in dB."""
    x = floats.astype(np.float64)
    noise = float(np.sum(np.square(x - quantized.dequantize())))
    signal = float(np.sum(np.square(x)))
    return 10 * math.log10(signal / noise) if signal and noise and math.isfinite(signal) else None


def _finite(end: Float32Array | None) -> tuple[float | None, ...] | None:
    if end is None:
        return None
    return tuple(value if math.isfinite(value) else None for value in np.ravel(end).tolist())


def _scheme(spec: QuantSpec) -> str:
    """Say in few words how a quantizer is configured, as far as known."""
    words = (
        spec.quantizer.removesuffix("Quantizer") if spec.quantizer else None,
        {True: "sym", False: "asym", None: None}[spec.symmetric],
        "narrow" if spec.narrow_range else None,
        {True: "per channel", False: "per tensor", None: None}[spec.per_axis],
    )
    return " ".join(word for word in words if word) or "unknown"
