"""The two quantizers without state: mirrors of TFMOT's ``quantizers.py``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from numpy.typing import ArrayLike

from qmath.errors import QmathWarning
from qmath.kernels._float32 import Float32Array
from qmath.kernels.affine import quantize as quantize_to_range
from qmath.kernels.builds import Build, check_build
from qmath.kernels.fake_quant import fake_quant_with_min_max_args
from qmath.kernels.quantized_tensor import QuantizedTensor
from qmath.quantizers.base import Quantizer, State


class FixedQuantizer(Quantizer):
    """A range fixed in the constructor, at 8 bits.

    Parameters
    ----------
    num_bits : int
        Kept in the config and otherwise ignored: TFMOT's ``quant_ops.FixedQuantize`` passes no
        width on, so every ``FixedQuantizer`` trains at 8 bits, and so does this one.
    init_min, init_max : float
        The range.
    narrow_range : bool
        Leave the lowest integer unused.

    Notes
    -----
    Mirrors ``quantizers.FixedQuantizer``; the op is ``fake_quant_with_min_max_args``.
    """

    _kind = "fixed"
    _fields = ("num_bits", "init_min", "init_max", "narrow_range")

    def __init__(self, num_bits: int, init_min: float, init_max: float, narrow_range: bool) -> None:
        self.num_bits = num_bits
        self.init_min = init_min
        self.init_max = init_max
        self.narrow_range = narrow_range

    def build(self, tensor_shape: Sequence[int | None] | None = None) -> State:
        """Return the state, which is empty."""
        return {}

    def __call__(
        self,
        inputs: ArrayLike,
        training: bool = False,
        weights: State | None = None,
        *,
        build: Build = "tf",
    ) -> Float32Array:
        """Fake-quantize `inputs` with the fixed range, at 8 bits."""
        return fake_quant_with_min_max_args(
            inputs, self.init_min, self.init_max, narrow_range=self.narrow_range, build=build
        )

    def quantize(
        self,
        inputs: ArrayLike,
        weights: State | None = None,
        *,
        signed: bool = True,
        name: str | None = None,
        build: Build = "tf",
    ) -> QuantizedTensor:
        """Return the 8-bit integers behind a call; warns if `num_bits` says otherwise."""
        if self.num_bits != 8:
            warnings.warn(
                f"{self!r} quantizes to 8 bits: TFMOT's FixedQuantizer ignores num_bits",
                QmathWarning,
                stacklevel=2,
            )
        return quantize_to_range(
            inputs,
            self.init_min,
            self.init_max,
            8,
            narrow_range=self.narrow_range,
            op="args",
            signed=signed,
            name=name,
            build=build,
        )


class NoQuantizer(Quantizer):
    """Leaves the tensor float: returns its input, the same object."""

    _kind = "none"

    def build(self, tensor_shape: Sequence[int | None] | None = None) -> State:
        """Return the state, which is empty."""
        return {}

    def __call__(
        self,
        inputs: ArrayLike,
        training: bool = False,
        weights: State | None = None,
        *,
        build: Build = "tf",
    ) -> ArrayLike:
        """Return `inputs`, whatever the build."""
        check_build(build)
        return inputs
