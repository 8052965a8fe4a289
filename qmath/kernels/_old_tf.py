"""TensorFlow before 2.6, eager.

Its ``fake_quant_ops_functor.h`` counts steps from the nudged minimum. ``FakeQuantWithMinMaxArgs``
multiplies by ``1 / scale``; the ops whose range is a variable divide by it, per channel, too.
The gradients of the inputs are those of later versions; those of the range are added up in another
order.
"""

from __future__ import annotations

import numpy as np

from qmath.errors import QmathError
from qmath.kernels._float32 import Float32Array, rounded
from qmath.kernels._from_minimum import StepsFromMinimum
from qmath.kernels._gradients import backprop
from qmath.kernels._nudge import Nudged, nudge
from qmath.kernels._range import Arithmetic, Op, Range


def _nudge(
    min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool, _op: Op
) -> Nudged:
    found = nudge(min, max, num_bits, narrow_range)
    with np.errstate(all="ignore"):
        return found._replace(inverse=rounded(1 / found.scale.astype(np.float64)))


def _backward(
    _g: Float32Array, _x: Float32Array, _ranges: Range, _out: Float32Array | None
) -> tuple[Float32Array, Float32Array, Float32Array]:
    raise QmathError(
        "the order in which TensorFlow before 2.6 added up the gradients of a range is not known; "
        "those of the inputs are what fake_quant_with_min_max_args_gradient returns"
    )


OLD_TF = Arithmetic(
    name="tf<2.6",
    nudge=_nudge,
    steps=lambda nudged, op: StepsFromMinimum(
        nudged, divides=op != "args", keeps_nan=True, upper_first=True
    ),
    backprop=backprop,
    backward=_backward,
    keeps_zero_ranges=True,
    rounding_errors=(11, 4),
)
