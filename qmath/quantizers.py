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

import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from qmath._float32 import Float32Array, as_float32, flush, rounded
from qmath.affine import quantize as quantize_to_range
from qmath.errors import QmathError, QmathWarning
from qmath.fake_quant import (
    fake_quant_with_min_max_args,
    fake_quant_with_min_max_vars,
    fake_quant_with_min_max_vars_per_channel,
)
from qmath.types import QuantizedTensor

__all__ = [
    "AllValuesQuantizer",
    "Default8BitConvTransposeWeightsQuantizer",
    "Default8BitConvWeightsQuantizer",
    "DefaultNBitConvTransposeWeightsQuantizer",
    "DefaultNBitConvWeightsQuantizer",
    "FixedQuantizer",
    "LastValueQuantizer",
    "MovingAverageQuantizer",
    "NoQuantizer",
    "Quantizer",
]

State = MutableMapping[str, Float32Array]

# 1 - decay for TFMOT's decay of 0.999, as ``assign_moving_average`` casts it.
_UPDATE_RATE = np.float64(np.float32(1.0 - 0.999))


class Quantizer:
    """What all quantizers share: configuration and equality."""

    # What `==` tells apart, as in TFMOT: a conv quantizer equals a LastValueQuantizer like it.
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


class _RangeQuantizer(Quantizer):
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

    def __call__(self, inputs: ArrayLike, training: bool, weights: State) -> Float32Array:
        """Fake-quantize `inputs` as TFMOT does.

        Parameters
        ----------
        inputs : array-like of float
            The tensor.
        training : bool
            Whether to update the range first, in place.
        weights : dict of ndarray
            The state, from `build` or from a checkpoint.

        Returns
        -------
        ndarray of float32

        Raises
        ------
        QmathError
            Where TFMOT raises, too: see the class.
        """
        x = as_float32(inputs, "inputs")
        self._check_state(weights)
        if training:
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
        return fake_quant(
            x, weights["min_var"], weights["max_var"], self.num_bits, self.narrow_range
        )

    def quantize(
        self, inputs: ArrayLike, weights: State, *, signed: bool = True, name: str | None = None
    ) -> QuantizedTensor:
        """Return the integers behind ``self(inputs, training=False, weights=weights)``.

        Parameters
        ----------
        inputs : array-like of float
            The tensor.
        weights : dict of ndarray
            The state, which stays as it is.
        signed, name
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
            per_axis=self._quantizes_per_axis,
            signed=signed,
            name=name,
        )

    @property
    def _quantizes_per_axis(self) -> bool:
        return self.per_axis

    def _check_state(self, weights: State) -> None:
        if not {"min_var", "max_var"} <= set(weights):
            raise QmathError(f"the state needs min_var and max_var, got {sorted(weights)}")

    def _update(self, x: Float32Array, weights: State) -> tuple[Float32Array, Float32Array]:
        raise NotImplementedError

    def _batch_range(self, x: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return the range of one batch, extended to contain zero or to be symmetric."""
        low, high = self._extremes(x)
        if not self.symmetric:
            return _minimum(low, np.float32(0)), _maximum(high, np.float32(0))
        ratio = self._min_max_ratio
        return _minimum(low, _quotient(high, ratio)), _maximum(high, _product(low, ratio))

    @property
    def _min_max_ratio(self) -> float:
        """Of min to max: two's complement reaches one step further below zero than above."""
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
        infinity = np.float32(np.inf)  # the range of an empty batch
        low = np.min(x, axis=axes, initial=infinity)
        return np.asarray(low), np.asarray(np.max(x, axis=axes, initial=-infinity))


class LastValueQuantizer(_RangeQuantizer):
    """The range of the last batch: TFMOT's quantizer for weights.

    Parameters
    ----------
    num_bits : int
        Width, 2 to 16; not checked before the first call, as in TFMOT.
    per_axis : bool
        One range for each index of the last axis. Training then takes ranks 1, 2 and 4 only: with
        others TFMOT fails (it names no axes for them), and so does this class, with a reason.
    symmetric : bool
        Extend the range to ``[-m, m]``, or, if not `narrow_range`, to
        ``[-m, m * (1 - 2**(1 - num_bits))]``.
    narrow_range : bool
        Leave the lowest integer unused.

    Notes
    -----
    A saved range is that of the kernel *before* the last optimizer step; inference clips to it.
    Mirrors ``quantizers.LastValueQuantizer`` and ``quant_ops.LastValueQuantize``.
    """

    _kind = "last value"

    def _state_shape(self, tensor_shape: Sequence[int | None] | None) -> tuple[int, ...]:
        if not self.per_axis or tensor_shape is None or tensor_shape[-1:] == (None,):
            return ()  # as TFMOT; a per-axis call then refuses the scalar state
        return _one_per_channel(tensor_shape)

    def _update(self, x: Float32Array, weights: State) -> tuple[Float32Array, Float32Array]:
        return self._batch_range(x)


class MovingAverageQuantizer(_RangeQuantizer):
    """The moving average of the batches' ranges, with decay 0.999: for activations.

    Parameters
    ----------
    num_bits, symmetric, narrow_range
        As for `LastValueQuantizer`.
    per_axis : bool
        Must be False: TFMOT's ``build`` ignores it and makes a scalar state, so that every call
        of a per-axis one fails there; here it fails with that explanation.

    Notes
    -----
    The state starts at -6 and 6 and needs thousands of steps to forget them. Mirrors
    ``quantizers.MovingAverageQuantizer``, ``quant_ops.MovingAvgQuantize`` and TensorFlow's
    ``assign_moving_average``.
    """

    _kind = "moving average"

    def _check_state(self, weights: State) -> None:
        super()._check_state(weights)
        if self.per_axis:
            raise QmathError(
                "MovingAverageQuantizer(per_axis=True) cannot run: TFMOT's build ignores per_axis "
                "and makes a scalar range, which its call then refuses; use per_axis=False"
            )

    def _update(self, x: Float32Array, weights: State) -> tuple[Float32Array, Float32Array]:
        low, high = self._batch_range(x)
        return _moved(weights["min_var"], low), _moved(weights["max_var"], high)


class AllValuesQuantizer(_RangeQuantizer):
    """The range of all batches so far: TFMOT's quantizer for the model's input.

    Parameters
    ----------
    num_bits, symmetric, narrow_range
        As for `LastValueQuantizer`.
    per_axis : bool
        Kept in the config and otherwise ignored, as TFMOT does: there is one range.

    Notes
    -----
    The state starts at 0 and 0. A symmetric maximum is derived from the already extended minimum,
    as in ``quant_ops.AllValuesQuantize``, which this mirrors with
    ``quantizers.AllValuesQuantizer``.
    """

    _kind = "all values"
    _initial = 0.0

    @property
    def _quantizes_per_axis(self) -> bool:
        return False

    def _update(self, x: Float32Array, weights: State) -> tuple[Float32Array, Float32Array]:
        low, high = self._extremes(x)
        if self.symmetric:
            low = _minimum(low, _quotient(high, self._min_max_ratio))
            high = _maximum(high, _product(low, self._min_max_ratio))
        low, high = _minimum(weights["min_var"], low), _maximum(weights["max_var"], high)
        return _minimum(low, np.float32(0)), _maximum(high, np.float32(0))


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
    ) -> Float32Array:
        """Fake-quantize `inputs` with the fixed range, at 8 bits."""
        return fake_quant_with_min_max_args(
            inputs, self.init_min, self.init_max, narrow_range=self.narrow_range
        )

    def quantize(
        self,
        inputs: ArrayLike,
        weights: State | None = None,
        *,
        signed: bool = True,
        name: str | None = None,
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
    ) -> ArrayLike:
        """Return `inputs`."""
        return inputs


class Default8BitConvWeightsQuantizer(LastValueQuantizer):
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

    def _state_shape(self, tensor_shape: Sequence[int | None] | None) -> tuple[int, ...]:
        return _one_per_channel(tensor_shape)


class Default8BitConvTransposeWeightsQuantizer(LastValueQuantizer):
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

    def __call__(self, inputs: ArrayLike, training: bool, weights: State) -> Float32Array:
        """Fake-quantize a kernel of rank 4, see `LastValueQuantizer`."""
        return super().__call__(_rank_4(inputs), training, weights)


class DefaultNBitConvWeightsQuantizer(LastValueQuantizer):
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

    def _state_shape(self, tensor_shape: Sequence[int | None] | None) -> tuple[int, ...]:
        return _one_per_channel(tensor_shape)


class DefaultNBitConvTransposeWeightsQuantizer(LastValueQuantizer):
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

    def __call__(self, inputs: ArrayLike, training: bool, weights: State) -> Float32Array:
        """Fake-quantize a kernel of rank 4, see `LastValueQuantizer`."""
        return super().__call__(_rank_4(inputs), training, weights)


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


def _one_per_channel(tensor_shape: Sequence[int | None] | None) -> tuple[int, ...]:
    """Return the state's shape ``(C,)`` for a tensor of shape ``(…, C)``."""
    if not tensor_shape or tensor_shape[-1] is None:
        raise QmathError(f"one range per channel needs a known last dimension, got {tensor_shape}")
    return (tensor_shape[-1],)


def _minimum(a: Float32Array, b: Float32Array) -> Float32Array:
    """``tf.minimum``: NaN propagates, subnormals are flushed."""
    return flush(np.minimum(flush(a), flush(b)))


def _maximum(a: Float32Array, b: Float32Array) -> Float32Array:
    """``tf.maximum``: NaN propagates, subnormals are flushed."""
    return flush(np.maximum(flush(a), flush(b)))


def _product(x: Float32Array, factor: float) -> Float32Array:
    return rounded(flush(x).astype(np.float64) * factor)


def _quotient(x: Float32Array, divisor: float) -> Float32Array:
    return rounded(flush(x).astype(np.float64) / divisor)


def _moved(average: Float32Array, value: Float32Array) -> Float32Array:
    """``average - (average - value) * rate``, each operation rounded to float32."""
    with np.errstate(invalid="ignore"):
        old = flush(average).astype(np.float64)
        difference = rounded(old - flush(value)).astype(np.float64)
        return rounded(old - rounded(difference * _UPDATE_RATE).astype(np.float64))
