"""The quantizers of TFMOT's default schemes.

Mirrors of ``default_8bit/default_8bit_quantizers.py`` and
``experimental/default_n_bit/default_n_bit_quantizers.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from qmath.errors import QmathError
from qmath.kernels._float32 import Float32Array, as_float32
from qmath.kernels.builds import Build
from qmath.quantizers.base import Quantizer, State, one_per_channel
from qmath.quantizers.ranged import LastValueQuantizer


class _ConvWeightsQuantizer(LastValueQuantizer):
    """One range for each index of the kernel's last axis, whose length must be known."""

    def _state_shape(self, tensor_shape: Sequence[int | None] | None) -> tuple[int, ...]:
        return one_per_channel(tensor_shape)


class _ConvTransposeWeightsQuantizer(LastValueQuantizer):
    """For kernels of rank 4 only."""

    def __call__(
        self, inputs: ArrayLike, training: bool, weights: State, *, build: Build = "tf"
    ) -> Float32Array:
        """Fake-quantize a kernel of rank 4, see `LastValueQuantizer`."""
        return super().__call__(_rank_4(inputs), training, weights, build=build)


class Default8BitConvWeightsQuantizer(_ConvWeightsQuantizer):
    """8 bits, per axis, symmetric, narrow: the default scheme for convolution kernels.

    Notes
    -----
    The axis is the last one: for a ``DepthwiseConv2D`` kernel that is the depth multiplier, so
    that there is usually one range. Equal to a `LastValueQuantizer` of the same settings, as in
    TFMOT; `from_config` takes what `get_config` gives, where TFMOT's raises TypeError.
    """

    def __init__(self) -> None:
        super().__init__(8, per_axis=True, symmetric=True, narrow_range=True)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Quantizer:
        """Return the quantizer, if `config` holds the settings it has."""
        return _checked(cls(), config)


class Default8BitConvTransposeWeightsQuantizer(_ConvTransposeWeightsQuantizer):
    """8 bits, per tensor, symmetric, narrow: the default scheme for ``Conv2DTranspose`` kernels.

    Notes
    -----
    TFMOT transposes the kernel before and after, which changes no value of a per-tensor
    quantization but refuses every rank other than 4.
    """

    def __init__(self) -> None:
        super().__init__(8, per_axis=False, symmetric=True, narrow_range=True)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Quantizer:
        """Return the quantizer, if `config` holds the settings it has."""
        return _checked(cls(), config)


class DefaultNBitConvWeightsQuantizer(_ConvWeightsQuantizer):
    """As `Default8BitConvWeightsQuantizer`, of any width: the n-bit scheme.

    Parameters
    ----------
    num_bits_weight : int
        Width, 2 to 16.
    num_bits_activation : int
        Ignored, as in TFMOT, whose config does not hold it either.
    """

    def __init__(self, num_bits_weight: int = 8, num_bits_activation: int = 8) -> None:
        del num_bits_activation
        super().__init__(num_bits_weight, per_axis=True, symmetric=True, narrow_range=True)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Quantizer:
        """Return the quantizer of this width, if `config` holds the settings it has."""
        return _checked(cls(config["num_bits"]), config)


class DefaultNBitConvTransposeWeightsQuantizer(_ConvTransposeWeightsQuantizer):
    """As `Default8BitConvTransposeWeightsQuantizer`, of any width: the n-bit scheme.

    Parameters
    ----------
    num_bits_weight : int
        Width, 2 to 16.
    num_bits_activation : int
        Ignored, as in TFMOT, whose config does not hold it either.
    """

    def __init__(self, num_bits_weight: int = 8, num_bits_activation: int = 8) -> None:
        del num_bits_activation
        super().__init__(num_bits_weight, per_axis=False, symmetric=True, narrow_range=True)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Quantizer:
        """Return the quantizer of this width, if `config` holds the settings it has."""
        return _checked(cls(config["num_bits"]), config)


def _checked(quantizer: Quantizer, config: Mapping[str, Any]) -> Quantizer:
    """Return `quantizer` if its settings are those of `config`."""
    if quantizer.get_config() != dict(config):
        raise QmathError(f"{quantizer!r} does not have the settings {dict(config)}")
    return quantizer


def _rank_4(inputs: ArrayLike) -> Float32Array:
    x = as_float32(inputs, "inputs")
    if x.ndim != 4:
        raise QmathError(f"a Conv2DTranspose kernel has rank 4, got rank {x.ndim}")
    return x
