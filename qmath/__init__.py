"""Exact integers from TensorFlow quantization-aware training, without TensorFlow.

Importing this package imports NumPy and the standard library only; what reads files
(`load`, `from_keras`) and what writes them is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qmath._threads import get_num_threads, set_num_threads
from qmath.affine import quantize
from qmath.errors import (
    ContradictionError,
    FileFormatError,
    MissingExtraError,
    MissingSettingsError,
    OutputError,
    QmathError,
    QmathWarning,
    VerificationError,
)
from qmath.fake_quant import (
    fake_quant_with_min_max_args,
    fake_quant_with_min_max_args_gradient,
    fake_quant_with_min_max_vars,
    fake_quant_with_min_max_vars_gradient,
    fake_quant_with_min_max_vars_per_channel,
    fake_quant_with_min_max_vars_per_channel_gradient,
)
from qmath.packing import pack, unpack
from qmath.quantize_and_dequantize import (
    quantize_and_dequantize_v2,
    quantize_and_dequantize_v2_gradient,
)
from qmath.quantizers import (
    AllValuesQuantizer,
    Default8BitConvTransposeWeightsQuantizer,
    Default8BitConvWeightsQuantizer,
    DefaultNBitConvTransposeWeightsQuantizer,
    DefaultNBitConvWeightsQuantizer,
    FixedQuantizer,
    LastValueQuantizer,
    MovingAverageQuantizer,
    NoQuantizer,
)
from qmath.types import Graph, Node, QatModel, QatTensor, QuantizedTensor, QuantSpec

if TYPE_CHECKING:
    from qmath.bundle import Bundle, quantize_model
    from qmath.checkpoints.keras_model import from_keras
    from qmath.checkpoints.load import load
    from qmath.exports import export
    from qmath.integer.api import diff, run
    from qmath.report import inspect
    from qmath.verification import verify

__all__ = [
    "AllValuesQuantizer",
    "Bundle",
    "ContradictionError",
    "Default8BitConvTransposeWeightsQuantizer",
    "Default8BitConvWeightsQuantizer",
    "DefaultNBitConvTransposeWeightsQuantizer",
    "DefaultNBitConvWeightsQuantizer",
    "FileFormatError",
    "FixedQuantizer",
    "Graph",
    "LastValueQuantizer",
    "MissingExtraError",
    "MissingSettingsError",
    "MovingAverageQuantizer",
    "NoQuantizer",
    "Node",
    "OutputError",
    "QatModel",
    "QatTensor",
    "QmathError",
    "QmathWarning",
    "QuantSpec",
    "QuantizedTensor",
    "VerificationError",
    "diff",
    "export",
    "fake_quant_with_min_max_args",
    "fake_quant_with_min_max_args_gradient",
    "fake_quant_with_min_max_vars",
    "fake_quant_with_min_max_vars_gradient",
    "fake_quant_with_min_max_vars_per_channel",
    "fake_quant_with_min_max_vars_per_channel_gradient",
    "from_keras",
    "get_num_threads",
    "inspect",
    "load",
    "pack",
    "quantize",
    "quantize_and_dequantize_v2",
    "quantize_and_dequantize_v2_gradient",
    "quantize_model",
    "run",
    "set_num_threads",
    "unpack",
    "verify",
]

__version__ = "0.1.0"

_LAZY = {
    "Bundle": "qmath.bundle",
    "diff": "qmath.integer.api",
    "export": "qmath.exports",
    "from_keras": "qmath.checkpoints.keras_model",
    "inspect": "qmath.report",
    "load": "qmath.checkpoints.load",
    "quantize_model": "qmath.bundle",
    "run": "qmath.integer.api",
    "verify": "qmath.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
