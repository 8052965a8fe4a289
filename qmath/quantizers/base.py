"""The base classes of TFMOT's quantizers: configuration, equality, state, range of a batch."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from qmath.errors import QmathError
from qmath.kernels._arrays import as_array
from qmath.kernels._environment import check_rounding
from qmath.kernels._float32 import Float32Array, as_float32, extremes, flush, rounded
from qmath.kernels.affine import quantize as quantize_to_range
from qmath.kernels.builds import Build, check_build
from qmath.kernels.fake_quant import (
    fake_quant_with_min_max_vars,
    fake_quant_with_min_max_vars_per_channel,
)
from qmath.kernels.quantized_tensor import QuantizedTensor

State = MutableMapping[str, Float32Array]


class Quantizer:
    """Base class of all quantizers: configuration and equality."""

    # `==` compares these, as in TFMOT: a conv quantizer equals a LastValueQuantizer like it.
    _kind: ClassVar[str]
    _fields: ClassVar[tuple[str, ...]] = ()

    def get_config(self) -> dict[str, Any]:
        """Return the settings, as TFMOT's ``get_config``."""
        return {field: getattr(self, field) for field in self._fields}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Quantizer:
        """Return the quantizer that `get_config` describes."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Quantizer)
            and self._kind == other._kind
            and self.get_config() == other.get_config()
        )

    __hash__ = None  # type: ignore[assignment]  # as TFMOT's: settings can be changed

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({settings})"


class RangeQuantizer(Quantizer):
    """A quantizer that keeps a range."""

    _fields = ("num_bits", "per_axis", "symmetric", "narrow_range")
    _initial: ClassVar[float] = 6.0

    def __init__(self, num_bits: int, per_axis: bool, symmetric: bool, narrow_range: bool) -> None:
        self.num_bits = num_bits
        self.per_axis = per_axis
        self.symmetric = symmetric
        self.narrow_range = narrow_range

    def build(self, tensor_shape: Sequence[int | None] | None = None) -> State:
        """Return the initial state ``{"min_var", "max_var"}``.

        Parameters
        ----------
        tensor_shape : sequence of int, optional
            Shape of the tensor to quantize; its last entry matters where there is one range for
            each index of the last axis.

        Returns
        -------
        dict of ndarray
            Two float32 arrays, of shape ``()`` or ``(C,)``.
        """
        shape = self._state_shape(tensor_shape)
        return {
            "min_var": np.full(shape, -self._initial, np.float32),
            "max_var": np.full(shape, self._initial, np.float32),
        }

    def _state_shape(self, tensor_shape: Sequence[int | None] | None) -> tuple[int, ...]:
        return ()

    def __call__(
        self, inputs: ArrayLike, training: bool, weights: State, *, build: Build = "tf"
    ) -> Float32Array:
        """Fake-quantize `inputs` as TFMOT does.

        Parameters
        ----------
        inputs : array-like of float
            The tensor.
        training : bool
            Whether to update the range first, in place.
        weights : dict of ndarray
            The state, from the method `build` or from a checkpoint.
        build : str
            Whose kernels, see `qmath.fake_quant_with_min_max_args`. Only those of the default
            train.

        Returns
        -------
        ndarray of float32

        Raises
        ------
        QmathError
            If TFMOT raises, too: see the class. Or another build shall train.
        """
        check_rounding()
        check_trainable(training, build)
        x = as_float32(inputs, "inputs")
        self._check_state(weights)
        if training:
            for key in ("min_var", "max_var"):
                end = weights[key]
                if not isinstance(end, np.ndarray) or end.dtype != np.float32:
                    raise QmathError(
                        f"{key} must be a float32 array, which training updates in place, got "
                        f"{end!r}; use the state that build returns"
                    )
            low, high = self._update(x, weights)
            for key, value in (("min_var", low), ("max_var", high)):
                if value.shape != weights[key].shape:
                    raise QmathError(
                        f"{type(self).__name__} cannot store a range of shape {value.shape} in "
                        f"{key} of shape {weights[key].shape}"
                    )
            weights["min_var"][...], weights["max_var"][...] = low, high
        fake_quant = (
            fake_quant_with_min_max_vars_per_channel
            if self._quantizes_per_axis
            else fake_quant_with_min_max_vars
        )
        ends = weights["min_var"], weights["max_var"]
        return fake_quant(x, *ends, self.num_bits, self.narrow_range, build=build)

    def quantize(
        self,
        inputs: ArrayLike,
        weights: State,
        *,
        signed: bool = True,
        name: str | None = None,
        build: Build = "tf",
    ) -> QuantizedTensor:
        """Return the integers behind ``self(inputs, training=False, weights=weights)``.

        Parameters
        ----------
        inputs : array-like of float
            The tensor.
        weights : dict of ndarray
            The state, which stays as it is.
        signed, name, build
            As for `qmath.quantize`.

        Returns
        -------
        QuantizedTensor

        Raises
        ------
        QmathError
            As `qmath.quantize`.
        """
        self._check_state(weights)
        return quantize_to_range(
            inputs,
            weights["min_var"],
            weights["max_var"],
            self.num_bits,
            narrow_range=self.narrow_range,
            per_axis=bool(self._quantizes_per_axis),
            signed=signed,
            name=name,
            build=build,
        )

    @property
    def _quantizes_per_axis(self) -> bool:
        return self.per_axis

    def _check_state(self, weights: State) -> None:
        if not isinstance(weights, Mapping) or not {"min_var", "max_var"} <= set(weights):
            got = list(weights) if isinstance(weights, Mapping) else weights
            raise QmathError(f"the state needs min_var and max_var, got {got!r}")
        for key in ("min_var", "max_var"):
            as_array(weights[key], key)

    def _update(self, x: Float32Array, weights: State) -> tuple[Float32Array, Float32Array]:
        raise NotImplementedError

    def _batch_range(self, x: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return the range of one batch, extended to contain zero or to be symmetric."""
        low, high = self._extremes(x)
        if not self.symmetric:
            return minimum_of(low, np.float32(0)), maximum_of(high, np.float32(0))
        ratio = self._min_max_ratio
        return minimum_of(low, quotient(high, ratio)), maximum_of(high, product(low, ratio))

    @property
    def _min_max_ratio(self) -> float:
        """Ratio of min to max: two's complement reaches one step further below zero than above."""
        steps_above, steps_below = (1 << self.num_bits) - 2, 1 << self.num_bits
        return -1.0 if self.narrow_range else -steps_above / steps_below

    def _extremes(self, x: Float32Array) -> tuple[Float32Array, Float32Array]:
        axes = None
        if self._quantizes_per_axis:
            if x.ndim < 2:
                return x, x
            if x.ndim not in (2, 4):
                raise QmathError(
                    f"{type(self).__name__}(per_axis=True) cannot train on inputs of rank "
                    f"{x.ndim}: TFMOT knows the axes of ranks 2 and 4 only, and fails with an "
                    "UnboundLocalError; use per_axis=False, or reshape to rank 2"
                )
            axes = tuple(range(x.ndim - 1))
        return extremes(x, axes)


def check_trainable(training: bool, build: Build) -> None:
    """Raise if a build is to update a range, and is not the default one."""
    if check_build(build) != "tf" and training:
        raise QmathError(
            f"how training updates a range is known under the build 'tf', not {build!r}; take the "
            "state that it left"
        )


def one_per_channel(tensor_shape: Sequence[int | None] | None) -> tuple[int, ...]:
    """Return the state's shape ``(C,)`` for a tensor of shape ``(…, C)``."""
    if not tensor_shape or tensor_shape[-1] is None:
        raise QmathError(f"one range per channel needs a known last dimension, got {tensor_shape}")
    return (tensor_shape[-1],)


def minimum_of(a: Float32Array, b: Float32Array) -> Float32Array:
    """``tf.minimum``: NaN propagates, subnormals are flushed."""
    with np.errstate(all="ignore"):
        return flush(np.minimum(flush(a), flush(b)))


def maximum_of(a: Float32Array, b: Float32Array) -> Float32Array:
    """``tf.maximum``: NaN propagates, subnormals are flushed."""
    with np.errstate(all="ignore"):
        return flush(np.maximum(flush(a), flush(b)))


def product(x: Float32Array, factor: float) -> Float32Array:
    """Return ``x * factor``, subnormals flushed."""
    with np.errstate(all="ignore"):
        return rounded(flush(x).astype(np.float64) * factor)


def quotient(x: Float32Array, divisor: float) -> Float32Array:
    """Return ``x / divisor``, subnormals flushed."""
    with np.errstate(all="ignore"):
        return rounded(flush(x).astype(np.float64) / divisor)
