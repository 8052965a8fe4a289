"""TFMOT's quantizers: their names, constructor arguments, state and arithmetic, in NumPy.

Mirrors ``tensorflow_model_optimization/python/core/quantization/keras``: ``quantizers.py``,
``quant_ops.py``, ``default_8bit/default_8bit_quantizers.py`` and
``experimental/default_n_bit/default_n_bit_quantizers.py`` of TFMOT 0.8.1, run eagerly.

A quantizer holds settings only; `Quantizer.build` returns the state, a dict of two float32
arrays, which training updates in place.

Notes
-----
Under ``tf.function`` TensorFlow's graph optimiser replaces the division by the min-max ratio of
symmetric, wide ranges by a multiplication with its reciprocal: a state trained there can differ
from this one, and from eager TFMOT, in the last bit. All other settings agree in every bit.

Examples
--------
>>> import numpy as np
>>> import qmath
>>> quantizer = qmath.LastValueQuantizer(4, per_axis=False, symmetric=True, narrow_range=False)
>>> state = quantizer.build((3, 2))
>>> kernel = np.float32([[0.1, -0.4], [0.3, 0.7], [0.0, 0.25]])
>>> fake_quantized = quantizer(kernel, training=True, weights=state)
>>> state["min_var"], state["max_var"]
(array(-0.8, dtype=float32), array(0.7, dtype=float32))
>>> quantizer.quantize(kernel, state).values
array([[ 1, -4],
       [ 3,  7],
       [ 0,  2]], dtype=int8)
"""

from __future__ import annotations

from qmath.quantizers.base import Quantizer
from qmath.quantizers.defaults import (
    Default8BitConvTransposeWeightsQuantizer,
    Default8BitConvWeightsQuantizer,
    DefaultNBitConvTransposeWeightsQuantizer,
    DefaultNBitConvWeightsQuantizer,
)
from qmath.quantizers.fixed import FixedQuantizer, NoQuantizer
from qmath.quantizers.own import FixedScaleQuantizer, PowerOfTwoQuantizer
from qmath.quantizers.ranged import AllValuesQuantizer, LastValueQuantizer, MovingAverageQuantizer

__all__ = [
    "AllValuesQuantizer",
    "Default8BitConvTransposeWeightsQuantizer",
    "Default8BitConvWeightsQuantizer",
    "DefaultNBitConvTransposeWeightsQuantizer",
    "DefaultNBitConvWeightsQuantizer",
    "FixedQuantizer",
    "FixedScaleQuantizer",
    "LastValueQuantizer",
    "MovingAverageQuantizer",
    "NoQuantizer",
    "PowerOfTwoQuantizer",
    "Quantizer",
]
