"""Exact integers from TensorFlow quantization-aware training, without TensorFlow.

Importing this package imports next to nothing, and using it NumPy and the standard library: each
name below is imported when it is first used. Only what reads and writes files asks for more, and
says so.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qmath._version import __version__ as __version__
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

if TYPE_CHECKING:
    from qmath.engine.api import run
    from qmath.exports.bundle import Bundle, quantize_model
    from qmath.exports.writing import export
    from qmath.inspection.report import inspect
    from qmath.integer.api import diff
    from qmath.kernels._blocks import get_num_threads, set_num_threads
    from qmath.kernels.affine import quantize
    from qmath.kernels.fake_quant import (
        fake_quant_with_min_max_args,
        fake_quant_with_min_max_args_gradient,
        fake_quant_with_min_max_vars,
        fake_quant_with_min_max_vars_gradient,
        fake_quant_with_min_max_vars_per_channel,
        fake_quant_with_min_max_vars_per_channel_gradient,
    )
    from qmath.kernels.lattice import recover
    from qmath.kernels.packing import pack, unpack
    from qmath.kernels.quantize_and_dequantize import (
        quantize_and_dequantize_v2,
        quantize_and_dequantize_v2_gradient,
    )
    from qmath.kernels.quantized_tensor import QuantizedTensor
    from qmath.kernels.recognition import RecognizedBuild, recognize_build
    from qmath.kernels.recovered_lattice import RecoveredLattice
    from qmath.model import Graph, Node, QatModel, QatTensor, QuantSpec
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
    from qmath.readers.keras.live import from_keras
    from qmath.readers.loading import load
    from qmath.verification.check import verify

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
    "RecognizedBuild",
    "RecoveredLattice",
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
    "recognize_build",
    "recover",
    "run",
    "set_num_threads",
    "unpack",
    "verify",
]

_HOMES = {
    "qmath.kernels._blocks": ("get_num_threads", "set_num_threads"),
    "qmath.kernels.affine": ("quantize",),
    "qmath.exports.bundle": ("Bundle", "quantize_model"),
    "qmath.readers.keras.live": ("from_keras",),
    "qmath.readers.loading": ("load",),
    "qmath.exports.writing": ("export",),
    "qmath.kernels.fake_quant": (
        "fake_quant_with_min_max_args",
        "fake_quant_with_min_max_args_gradient",
        "fake_quant_with_min_max_vars",
        "fake_quant_with_min_max_vars_gradient",
        "fake_quant_with_min_max_vars_per_channel",
        "fake_quant_with_min_max_vars_per_channel_gradient",
    ),
    "qmath.engine.api": ("run",),
    "qmath.integer.api": ("diff",),
    "qmath.kernels.lattice": ("recover",),
    "qmath.kernels.packing": ("pack", "unpack"),
    "qmath.kernels.quantize_and_dequantize": (
        "quantize_and_dequantize_v2",
        "quantize_and_dequantize_v2_gradient",
    ),
    "qmath.kernels.quantized_tensor": ("QuantizedTensor",),
    "qmath.kernels.recognition": ("RecognizedBuild", "recognize_build"),
    "qmath.kernels.recovered_lattice": ("RecoveredLattice",),
    "qmath.quantizers": (
        "AllValuesQuantizer",
        "Default8BitConvTransposeWeightsQuantizer",
        "Default8BitConvWeightsQuantizer",
        "DefaultNBitConvTransposeWeightsQuantizer",
        "DefaultNBitConvWeightsQuantizer",
        "FixedQuantizer",
        "LastValueQuantizer",
        "MovingAverageQuantizer",
        "NoQuantizer",
    ),
    "qmath.inspection.report": ("inspect",),
    "qmath.model": ("Graph", "Node", "QatModel", "QatTensor", "QuantSpec"),
    "qmath.verification.check": ("verify",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept, so that the next use does not come here.
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
