"""What a user describes with a quantizer that TFMOT does not have, applied to a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qmath.errors import QmathError
from qmath.readers.records import Fact, StoredTensor

if TYPE_CHECKING:
    from qmath.quantizers.own import FixedScaleQuantizer

__all__ = ["apply_own", "is_own"]


def is_own(quantizer: Any) -> bool:
    """Tell whether a quantizer is one of qmath's own."""
    from qmath.quantizers.own import FixedScaleQuantizer, PowerOfTwoQuantizer  # takes time

    return isinstance(quantizer, (FixedScaleQuantizer, PowerOfTwoQuantizer))


def apply_own(
    item: StoredTensor, quantizer: Any, says: str, stored: Mapping[str, StoredTensor]
) -> tuple[StoredTensor, list[Fact]]:
    """Return a tensor with the integers or the range that a quantizer of qmath's own gives it.

    Parameters
    ----------
    item : StoredTensor
    quantizer : FixedScaleQuantizer or PowerOfTwoQuantizer
    says : str
        Who says so, in a sentence.
    stored : mapping of str to StoredTensor
        All tensors, among which a scale may be.

    Raises
    ------
    QmathError
        The tensor is not of the kind, or the scale is not in the file.
    """
    from qmath.quantizers.own import PowerOfTwoQuantizer

    values: dict[str, Any] = {
        "op": "vars",
        "quantizer": type(quantizer).__name__,
        "num_bits": quantizer.num_bits,
        "narrow_range": quantizer.narrow_range,
    }
    if isinstance(quantizer, PowerOfTwoQuantizer):
        if item.min is None:
            raise QmathError(f"{item.name}: PowerOfTwoQuantizer snaps a stored range, and the file "
                             "holds none for it; describe it with FixedScaleQuantizer")  # fmt: skip
        low, high = quantizer.snapped(item.min, item.name)
        item = replace(item, min=low, max=high, is_stored=False)
    else:
        if item.values is None:
            raise QmathError(f"{item.name}: FixedScaleQuantizer describes weights; of an activation"
                             " tell the range with FixedQuantizer")  # fmt: skip
        q = quantizer.quantize(np.asarray(item.values), _scale(item, quantizer, stored),
                               name=item.name)  # fmt: skip
        half = 1 << (q.num_bits - 1)
        ends = [(end - q.zero_point).astype(np.float32) * q.scale for end in (-half, half - 1)]
        item = replace(item, role="weight", values=q.dequantize(), min=np.asarray(ends[0]),
                       max=np.asarray(ends[1]), is_stored=False, recovered=q)  # fmt: skip
    values["per_axis"] = np.ndim(item.min) == 1
    return item, [Fact(field, value, "user", says) for field, value in values.items()]


def _scale(
    item: StoredTensor, quantizer: FixedScaleQuantizer, stored: Mapping[str, StoredTensor]
) -> Any:
    """Return the scale, from the file if it has a name."""
    name = quantizer.scale
    if not isinstance(name, str):
        return name
    held = stored.get(name) or stored.get(f"{item.layer.path}/{name}")
    if held is None or held.values is None or np.asarray(held.values).dtype != np.float32:
        raise QmathError(
            f"{item.name}: the file holds no float tensor {name!r}, the scale of its "
            f"FixedScaleQuantizer; its floats are "
            f"{', '.join(n for n, i in stored.items() if i.role == 'float') or 'none'}"
        )
    return np.asarray(held.values)
