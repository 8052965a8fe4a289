"""The cells of the matrix: each class that TFMOT's registries or Keras have, in each width.

The classes are read from TFMOT's own registry objects and from ``keras.layers``, so that none is
forgotten: a class without a case here, and without a reason in `LEFT_OUT`, is an error.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from reference import layer_models
from reference.layer_models import IMAGE, SIGNAL, VOLUME, Case

# isort: split
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_registry,
)
from tensorflow_model_optimization.python.core.quantization.keras.experimental import default_n_bit

__all__ = ["CASES", "LEFT_OUT", "Cell", "cells", "class_of", "keras_classes", "registered"]

keras = tf.keras
layers = keras.layers
RECURRENT = ("cell.kernel", "cell.recurrent_kernel")
# Weight and activation bits, the most usual first.
WIDTHS = (
    (8, 8), (4, 4), (2, 2), (16, 16), (4, 8), (5, 5), (3, 3), (10, 10), (3, 5), (2, 8), (8, 16),
)  # fmt: skip
# Of layers without weights.
SAME_WIDTHS = tuple((weight, value) for weight, value in WIDTHS if weight == value)


def _of(make: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    return functools.partial(make, *arguments, **options)


def _case(make: Callable[[], Any], *shapes: tuple[int, ...], **options: Any) -> Case:
    return Case(make, shapes, **options)


def _normalized() -> tuple[Callable[[], Any], ...]:
    return (layers.BatchNormalization, layers.ReLU)


KERNEL, DEPTHWISE = ("kernel",), ("depthwise_kernel",)
SEPARABLE = ("depthwise_kernel", "pointwise_kernel")
# fmt: off
OF_REGISTRIES: dict[str, Case] = {
    "Conv2D": _case(_of(layers.Conv2D, 5, 3, padding="same", activation="relu"), IMAGE,
                    weights=KERNEL, per_axis=True),
    "Conv2D with strides": _case(_of(layers.Conv2D, 5, (3, 2), (2, 1), use_bias=False), IMAGE,
                                 weights=KERNEL, per_axis=True),
    "Conv2D with dilation": _case(_of(layers.Conv2D, 3, 3, dilation_rate=2, padding="same"), IMAGE,
                                  weights=KERNEL, per_axis=True),
    "Conv2D of groups": _case(_of(layers.Conv2D, 6, 3, groups=2, activation="relu"), IMAGE,
                              weights=KERNEL, per_axis=True),
    "Conv2D with softmax": _case(_of(layers.Conv2D, 5, 1, activation="softmax"), IMAGE,
                                 weights=KERNEL, per_axis=True),
    "Conv2D, normalized": _case(_of(layers.Conv2D, 5, 3, use_bias=False), IMAGE,
                                weights=KERNEL, per_axis=True, then=_normalized()),
    "Conv2D, channels first": _case(
        _of(layers.Conv2D, 5, 1, data_format="channels_first"), (4, 8, 7), weights=KERNEL),
    "DepthwiseConv2D": _case(_of(layers.DepthwiseConv2D, 3, padding="same"), IMAGE,
                             weights=DEPTHWISE, per_axis=True),
    "DepthwiseConv2D, multiplied": _case(
        _of(layers.DepthwiseConv2D, 3, 2, depth_multiplier=2, activation="relu"), IMAGE,
        weights=DEPTHWISE, per_axis=True),
    "DepthwiseConv2D, normalized": _case(
        _of(layers.DepthwiseConv2D, 3, dilation_rate=2, use_bias=False), IMAGE,
        weights=DEPTHWISE, per_axis=True, then=_normalized()),
    "Conv2DTranspose": _case(_of(layers.Conv2DTranspose, 5, 3, 2, "same"), IMAGE, weights=KERNEL),
    "Conv2DTranspose, valid": _case(
        _of(layers.Conv2DTranspose, 5, (2, 3), (3, 1), activation="relu"), IMAGE, weights=KERNEL),
    "Conv2DTranspose, normalized": _case(
        _of(layers.Conv2DTranspose, 5, 2, 2, use_bias=False), IMAGE, weights=KERNEL,
        then=_normalized()),
    "SeparableConv2D": _case(
        _of(layers.SeparableConv2D, 5, 3, padding="same", activation="relu"), IMAGE,
        weights=SEPARABLE, per_axis=True),
    "SeparableConv1D": _case(_of(layers.SeparableConv1D, 5, 3, 2), SIGNAL, weights=SEPARABLE,
                             per_axis=True),
    "Dense": _case(_of(layers.Dense, 7, activation="relu"), (6,), weights=KERNEL),
    "Dense of images": _case(_of(layers.Dense, 5, use_bias=False), IMAGE, weights=KERNEL),
    "Dense with softmax": _case(_of(layers.Dense, 5, activation="softmax"), (6,), weights=KERNEL),
    "Dense with sigmoid": _case(_of(layers.Dense, 5, activation="sigmoid"), (6,), weights=KERNEL),
    "Dense, normalized": _case(_of(layers.Dense, 5), (6,), weights=KERNEL, then=_normalized()),
    "Activation relu": _case(_of(layers.Activation, "relu"), IMAGE),
    "Activation linear": _case(_of(layers.Activation, "linear"), IMAGE),
    "Activation softmax": _case(_of(layers.Activation, "softmax"), IMAGE),
    "ReLU": _case(layers.ReLU, IMAGE),
    "ReLU to 6": _case(_of(layers.ReLU, 6.0), SIGNAL),
    "LeakyReLU": _case(_of(layers.LeakyReLU, 0.2), IMAGE),
    "Softmax": _case(layers.Softmax, IMAGE),
    "Softmax of rows": _case(_of(layers.Softmax, axis=1), SIGNAL),
    "Concatenate": _case(layers.Concatenate, IMAGE, IMAGE),
    "Concatenate of rows": _case(_of(layers.Concatenate, axis=1), SIGNAL, (2, 6), SIGNAL),
    "Add": _case(layers.Add, IMAGE, IMAGE),
    "Add of three": _case(layers.Add, SIGNAL, SIGNAL, SIGNAL),
    "UpSampling2D": _case(_of(layers.UpSampling2D, (2, 3)), IMAGE),
    "UpSampling2D, bilinear": _case(_of(layers.UpSampling2D, 2, interpolation="bilinear"), IMAGE),
    "ZeroPadding1D": _case(_of(layers.ZeroPadding1D, (1, 2)), SIGNAL),
    "ZeroPadding2D": _case(_of(layers.ZeroPadding2D, ((1, 0), (2, 1))), IMAGE),
    "ActivityRegularization": _case(_of(layers.ActivityRegularization, l2=0.1), SIGNAL),
    "Dropout": _case(_of(layers.Dropout, 0.2), IMAGE),
    "Flatten": _case(layers.Flatten, IMAGE),
    "Permute": _case(_of(layers.Permute, (3, 1, 2)), IMAGE),
    "Reshape": _case(_of(layers.Reshape, (7, -1)), IMAGE),
    "SpatialDropout1D": _case(_of(layers.SpatialDropout1D, 0.2), SIGNAL),
    "SpatialDropout2D": _case(_of(layers.SpatialDropout2D, 0.2), IMAGE),
    "AveragePooling1D": _case(_of(layers.AveragePooling1D, 2, padding="same"), SIGNAL),
    "AveragePooling2D": _case(_of(layers.AveragePooling2D, (2, 3), 1, padding="same"), IMAGE),
    "AveragePooling2D, valid": _case(_of(layers.AveragePooling2D, 3), IMAGE),
    "GlobalAveragePooling1D": _case(layers.GlobalAveragePooling1D, SIGNAL),
    "GlobalAveragePooling2D": _case(_of(layers.GlobalAveragePooling2D, keepdims=True), IMAGE),
    "GlobalMaxPooling1D": _case(layers.GlobalMaxPooling1D, SIGNAL),
    "GlobalMaxPooling2D": _case(layers.GlobalMaxPooling2D, IMAGE),
    "MaxPooling2D": _case(_of(layers.MaxPooling2D, (2, 3), 1, padding="same"), IMAGE),
}

OTHERS: dict[str, Case] = {
    "Conv1D": _case(_of(layers.Conv1D, 5, 3, padding="causal", activation="relu"), SIGNAL,
                    weights=KERNEL),
    "Conv1D, dilated": _case(_of(layers.Conv1D, 4, 3, dilation_rate=2, padding="same"), SIGNAL,
                             weights=KERNEL),
    "Conv1DTranspose": _case(_of(layers.Conv1DTranspose, 5, 3, 2, "same"), SIGNAL, weights=KERNEL),
    "Conv3D": _case(_of(layers.Conv3D, 4, 2, padding="same", activation="relu"), VOLUME,
                    weights=KERNEL),
    "Conv3DTranspose": _case(_of(layers.Conv3DTranspose, 4, 2, 2), VOLUME, weights=KERNEL),
    "SeparableConv1D": OF_REGISTRIES["SeparableConv1D"],
    "SeparableConv2D": OF_REGISTRIES["SeparableConv2D"],
    "LocallyConnected1D": _case(_of(layers.LocallyConnected1D, 4, 3), SIGNAL, weights=KERNEL),
    "LocallyConnected2D": _case(_of(layers.LocallyConnected2D, 3, 3), IMAGE, weights=KERNEL),
    "EinsumDense": _case(_of(layers.EinsumDense, "abc,cd->abd", (9, 5), bias_axes="d"), SIGNAL,
                         weights=KERNEL),
    "Embedding": _case(
        _of(layers.Embedding, 12, 5, keras.initializers.RandomUniform(-2, 2, seed=0)), (9,),
        weights=("embeddings",), reads_numbers=True),
    "BatchNormalization": _case(layers.BatchNormalization, IMAGE),
    "BatchNormalization of rows": _case(_of(layers.BatchNormalization, axis=1), SIGNAL),
    "BatchNormalization, synchronized": _case(
        _of(layers.BatchNormalization, synchronized=True), IMAGE),
    "LayerNormalization": _case(layers.LayerNormalization, SIGNAL),
    "GroupNormalization": _case(_of(layers.GroupNormalization, 2), IMAGE),
    "UnitNormalization": _case(layers.UnitNormalization, SIGNAL),
    "SpectralNormalization": _case(
        lambda: layers.SpectralNormalization(layers.Dense(5)), SIGNAL, is_wrapped=False),
    "SimpleRNN": _case(_of(layers.SimpleRNN, 4, return_sequences=True), SIGNAL, weights=RECURRENT),
    "GRU": _case(_of(layers.GRU, 4, return_sequences=True), SIGNAL, weights=RECURRENT),
    "LSTM": _case(_of(layers.LSTM, 4), SIGNAL, weights=RECURRENT),
    "RNN": _case(lambda: layers.RNN(layers.GRUCell(4)), SIGNAL),
    "ConvLSTM1D": _case(_of(layers.ConvLSTM1D, 3, 2), (3, 6, 2), weights=RECURRENT),
    "ConvLSTM2D": _case(_of(layers.ConvLSTM2D, 3, 2), VOLUME, weights=RECURRENT),
    "ConvLSTM3D": _case(_of(layers.ConvLSTM3D, 2, 2), (3, 3, 4, 3, 2), weights=RECURRENT),
    "Bidirectional": _case(lambda: layers.Bidirectional(layers.GRU(4)), SIGNAL),
    "TimeDistributed": _case(lambda: layers.TimeDistributed(layers.Dense(5, activation="relu")),
                             SIGNAL, weights=("layer.kernel",)),
    "TimeDistributed convolution": _case(
        lambda: layers.TimeDistributed(layers.Conv1D(4, 3)), IMAGE, weights=("layer.kernel",)),
    "Attention": _case(layers.Attention, SIGNAL, SIGNAL),
    "AdditiveAttention": _case(layers.AdditiveAttention, SIGNAL, SIGNAL),
    "MultiHeadAttention": _case(_of(layers.MultiHeadAttention, 2, 3), SIGNAL, SIGNAL,
                                is_wrapped=False),
    "Dot": _case(_of(layers.Dot, 2), SIGNAL, SIGNAL),
    "Subtract": _case(layers.Subtract, IMAGE, IMAGE),
    "PReLU, quantized": _case(_of(layers.PReLU, shared_axes=[1, 2]), IMAGE, weights=("alpha",)),
    "Activation relu6": _case(_of(layers.Activation, "relu6"), IMAGE),
    "Softmax": _case(layers.Softmax, IMAGE),
    "GaussianDropout": _case(_of(layers.GaussianDropout, 0.2), IMAGE),
    "GaussianNoise": _case(_of(layers.GaussianNoise, 0.2), IMAGE),
    "AlphaDropout": _case(_of(layers.AlphaDropout, 0.2), IMAGE),
    "Identity": _case(layers.Identity, IMAGE),
    "Masking": _case(_of(layers.Masking, 5.0), SIGNAL),
    "Lambda": _case(lambda: layers.Lambda(lambda x: x * x), SIGNAL),
    "MaxPooling1D": _case(_of(layers.MaxPooling1D, 2), SIGNAL),
    "UpSampling1D": _case(_of(layers.UpSampling1D, 2), SIGNAL),
    "CenterCrop": _case(_of(layers.CenterCrop, 4, 4), IMAGE),
    "Resizing": _case(_of(layers.Resizing, 5, 6), IMAGE),
    **{
        name: _case(_of(getattr(layers, name), *arguments), (8, 7, 3))
        for name, arguments in {
            "RandomBrightness": (0.2,), "RandomContrast": (0.2,), "RandomCrop": (5, 5),
            "RandomFlip": (), "RandomHeight": (0.2,), "RandomRotation": (0.2,),
            "RandomTranslation": (0.2, 0.2), "RandomWidth": (0.2,), "RandomZoom": (0.2,),
        }.items()
    },
}

LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(("Layer", "Wrapper", "AbstractRNNCell"), "a base class"),
    **dict.fromkeys(("GRUCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells"),
                    "a cell, which lies in a layer"),
    **dict.fromkeys(("CategoryEncoding", "DenseFeatures", "Discretization", "HashedCrossing",
                     "Hashing", "IntegerLookup", "StringLookup", "TextVectorization"),
                    "makes numbers of words or categories, before a network"),
    "InputLayer": "in every cell",
}
# fmt: on
# By scheme and label.
CASES: dict[str, dict[str, Case]] = {
    "8bit": OF_REGISTRIES,
    "nbit": OF_REGISTRIES,
    "own": {**OTHERS, **layer_models.LAYERS},
}


@functools.cache
def class_of(scheme: str, label: str) -> str:
    """Return the class of a case's layer."""
    return type(CASES[scheme][label].make()).__name__


def registered(scheme: str) -> frozenset[str]:
    """Return the classes of TFMOT's own registry, ``8bit`` or ``nbit``."""
    make = {
        "8bit": default_8bit_quantize_registry.Default8BitQuantizeRegistry,
        "nbit": default_n_bit.default_n_bit_quantize_registry.DefaultNBitQuantizeRegistry,
    }[scheme]
    return frozenset(each.__name__ for each in make()._layer_quantize_map)


def keras_classes() -> frozenset[str]:
    """Return the layer classes of Keras, each by its own name."""
    return frozenset(
        each.__name__
        for each in vars(layers).values()
        if inspect.isclass(each) and issubclass(each, layers.Layer)
    )


@dataclass(frozen=True)
class Cell:
    """A layer in a model of some widths.

    Attributes
    ----------
    scheme : str
        ``8bit`` and ``nbit``, as TFMOT's registries quantize it; ``own``, a config of one's own.
    label : str
        In `CASES`.
    bits : tuple of int
        Of weights and of activations.
    per_axis : bool
        Whether its kernel has a range for each channel.
    """

    scheme: str
    label: str
    bits: tuple[int, int]
    per_axis: bool = False

    @property
    def case(self) -> Case:
        """What the cell's layer is."""
        return CASES[self.scheme][self.label]

    @property
    def name(self) -> str:
        """The cell's name, on the command line and in the state file."""
        axis = "/axis" if self.per_axis else ""
        return f"{self.scheme}/{self.label}/w{self.bits[0]}a{self.bits[1]}{axis}"


def cells() -> Iterator[Cell]:
    """Yield every cell, those of the most usual widths first."""
    made = [
        Cell(scheme, label, bits, per_axis)
        for scheme, cases in CASES.items()
        for label, case in cases.items()
        for bits in ([(8, 8)] if scheme == "8bit" else WIDTHS if case.weights else SAME_WIDTHS)
        for per_axis in ((True, False) if _has_axes(scheme, case) else (False,))
    ]
    yield from sorted(made, key=lambda cell: WIDTHS.index(cell.bits))


def _has_axes(scheme: str, case: Case) -> bool:
    return bool(case.weights) if scheme == "own" else case.per_axis
