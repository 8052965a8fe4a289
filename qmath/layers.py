"""What qmath knows of Keras's layer classes and activations: one row each, which every room asks.

A layer class that is new to qmath is a row here, and in each room that is to support it one
function: a class of a known kind needs no function at all. Only `qmath.verification` keeps a copy
of its own, because it must not share what it checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qmath.model import Node

__all__ = [
    "ACTIVATIONS",
    "LAMBDAS",
    "LAYERS",
    "MOVES",
    "NORMALIZATION",
    "POOLS",
    "ActivationFunction",
    "Kind",
    "LayerClass",
    "Verb",
    "activation_of",
    "ends_with_activation",
    "kind_of",
    "supports",
    "unknown_of",
]

Move = Literal["reshape", "permute", "pad", "crop", "upsample"]
Pool = Literal["average_pool", "global_average", "max_pool", "global_max"]
Kind = Literal[
    "input", "identity", "weighted", "normalization", "relu", "activation",
    "rescaling", "sum", "product", "extreme", "concatenation", "float", Pool, Move,
]  # fmt: skip
Verb = Literal["run", "onnx", "ops"]

MOVES: frozenset[str] = frozenset(get_args(Move))
POOLS: frozenset[str] = frozenset(get_args(Pool))
# The tensors of a batch normalization, and what counts where it has none.
NORMALIZATION = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}


@dataclass(frozen=True)
class LayerClass:
    """A Keras layer class.

    Attributes
    ----------
    kind : str
        What it does: ``weighted`` multiplies by a kernel and adds up; ``relu`` is a ReLU with
        settings of its own, ``activation`` one that names its function; ``identity`` changes
        nothing at inference, a move only places values (or zeros); ``float`` runs in float32 with
        its quantized weights; the rest says it by itself.
    verbs : frozenset of str
        What supports it: ``run``, the integer model and all that is made of it; ``onnx``, its
        networks; ``ops``, the reader that makes layers of a SavedModel's ops. `inspect` knows all.
    kernel : str
        Name of the weight that it multiplies by or looks up in, ``""`` if none.
    axes : str
        Order of the kernel's axes: depth, height, width, input channels, output channels,
        multiplier of the input channels. ``""`` where no export names it.
    then : str
        Name of the weight that the sums are multiplied by next, point by point, ``""`` if none.
    """

    kind: Kind
    verbs: frozenset[str]
    kernel: str
    axes: str
    then: str = ""

    @property
    def kernels(self) -> dict[str, str]:
        """The order of axes of each kernel, in the order in which they multiply."""
        first = {self.kernel: self.axes} if self.kernel else {}
        return first | ({self.then: self.axes.replace("M", "O")} if self.then else {})


def _row(kind: Kind, verbs: str, kernel: str = "", axes: str = "", then: str = "") -> LayerClass:
    return LayerClass(kind, frozenset(verbs.split()), kernel, axes, then)


LAYERS: Mapping[str, LayerClass] = {
    "InputLayer":             _row("input",          "run onnx ops"),
    "QuantizeLayer":          _row("identity",       "run onnx ops"),
    "Dropout":                _row("identity",       "run onnx"),
    "SpatialDropout1D":       _row("identity",       "run onnx"),
    "SpatialDropout2D":       _row("identity",       "run onnx"),
    "SpatialDropout3D":       _row("identity",       "run onnx"),
    "AlphaDropout":           _row("identity",       "run onnx"),
    "GaussianDropout":        _row("identity",       "run onnx"),
    "GaussianNoise":          _row("identity",       "run onnx"),
    "ActivityRegularization": _row("identity",       "run onnx"),
    "Identity":               _row("identity",       "run onnx"),
    "RandomBrightness":       _row("identity",       "run onnx"),
    "RandomContrast":         _row("identity",       "run onnx"),
    "RandomFlip":             _row("identity",       "run onnx"),
    "RandomHeight":           _row("identity",       "run onnx"),
    "RandomRotation":         _row("identity",       "run onnx"),
    "RandomTranslation":      _row("identity",       "run onnx"),
    "RandomWidth":            _row("identity",       "run onnx"),
    "RandomZoom":             _row("identity",       "run onnx"),

    "Dense":                  _row("weighted",       "run onnx ops", "kernel", "IO"),
    "Conv1D":                 _row("weighted",       "run onnx ops", "kernel", "WIO"),
    "Conv2D":                 _row("weighted",       "run onnx ops", "kernel", "HWIO"),
    "Conv2DTranspose":        _row("weighted",       "run onnx ops", "kernel", "HWOI"),
    "Conv1DTranspose":        _row("weighted",       "run onnx", "kernel", "WOI"),
    "DepthwiseConv1D":        _row("weighted",       "run onnx", "depthwise_kernel", "WIM"),
    "DepthwiseConv2D":        _row("weighted",       "run onnx ops", "depthwise_kernel", "HWIM"),
    "SeparableConv1D":        _row("weighted",       "run onnx", "depthwise_kernel", "WIM",
                                   then="pointwise_kernel"),
    "SeparableConv2D":        _row("weighted",       "run onnx", "depthwise_kernel", "HWIM",
                                   then="pointwise_kernel"),
    "Conv3D":                 _row("weighted",       "run onnx", "kernel", "DHWIO"),

    "Embedding":              _row("float",          "run",          "embeddings"),
    "EinsumDense":            _row("float",          "run",          "kernel"),
    "Conv3DTranspose":        _row("float",          "run",          "kernel"),
    "LocallyConnected1D":     _row("float",          "run",          "kernel"),
    "LocallyConnected2D":     _row("float",          "run",          "kernel"),
    "UnitNormalization":      _row("float",          "run"),
    "RNN":                    _row("float",          "run"),
    "AdditiveAttention":      _row("float",          "run"),
    "SimpleRNN":              _row("float",          "run"),
    "GRU":                    _row("float",          "run"),
    "LSTM":                   _row("float",          "run"),
    "Bidirectional":          _row("float",          "run"),
    "LayerNormalization":     _row("float",          "run"),
    "GroupNormalization":     _row("float",          "run"),
    "Dot":                    _row("float",          "run"),
    "Attention":              _row("float",          "run"),
    "MultiHeadAttention":     _row("float",          "run"),

    "BatchNormalization":     _row("normalization",  "run onnx ops"),
    "SyncBatchNormalization": _row("normalization",  "run onnx"),
    "Rescaling":              _row("rescaling",      "run onnx"),
    "Normalization":          _row("rescaling",      "run onnx"),
    "ReLU":                   _row("relu",           "run onnx ops"),
    "LeakyReLU":              _row("relu",           "run onnx"),
    "Activation":             _row("activation",     "run onnx ops"),
    "Softmax":                _row("activation",     "run onnx"),
    "ELU":                    _row("activation",     "run onnx"),
    "PReLU":                  _row("relu",           "run onnx"),
    "ThresholdedReLU":        _row("relu",           "run onnx"),

    "Add":                    _row("sum",            "run onnx ops"),
    "Subtract":               _row("sum",            "run onnx ops"),
    "Average":                _row("sum",            "run onnx ops"),
    "Multiply":               _row("product",        "run onnx ops"),
    "Maximum":                _row("extreme",        "run onnx ops"),
    "Minimum":                _row("extreme",        "run onnx ops"),
    "Concatenate":            _row("concatenation",  "run onnx ops"),

    "AveragePooling1D":       _row("average_pool",   "run onnx ops"),
    "AveragePooling2D":       _row("average_pool",   "run onnx ops"),
    "AveragePooling3D":       _row("average_pool",   "run onnx"),
    "GlobalAveragePooling1D": _row("global_average", "run onnx ops"),
    "GlobalAveragePooling2D": _row("global_average", "run onnx ops"),
    "GlobalAveragePooling3D": _row("global_average", "run onnx"),
    "MaxPooling1D":           _row("max_pool",       "run onnx ops"),
    "MaxPooling2D":           _row("max_pool",       "run onnx ops"),
    "MaxPooling3D":           _row("max_pool",       "run onnx"),
    "GlobalMaxPooling1D":     _row("global_max",     "run onnx ops"),
    "GlobalMaxPooling2D":     _row("global_max",     "run onnx ops"),
    "GlobalMaxPooling3D":     _row("global_max",     "run onnx"),

    "Flatten":                _row("reshape",        "run onnx"),
    "SeparableConvExpand":    _row("reshape",        "run onnx"),  # see `LAMBDAS`
    "SeparableConvSqueeze":   _row("reshape",        "run onnx"),
    "Reshape":                _row("reshape",        "run onnx ops"),
    "Permute":                _row("permute",        "run onnx ops"),
    "ZeroPadding1D":          _row("pad",            "run onnx ops"),
    "ZeroPadding2D":          _row("pad",            "run onnx ops"),
    "ZeroPadding3D":          _row("pad",            "run onnx ops"),
    "Cropping1D":             _row("crop",           "run onnx ops"),
    "Cropping2D":             _row("crop",           "run onnx ops"),
    "Cropping3D":             _row("crop",           "run onnx ops"),
    "CenterCrop":             _row("crop",           "run onnx"),
    "UpSampling1D":           _row("upsample",       "run onnx ops"),
    "UpSampling2D":           _row("upsample",       "run onnx ops"),
    "UpSampling3D":           _row("upsample",       "run onnx ops"),
    "RepeatVector":           _row("upsample",       "run onnx ops"),
    "Resizing":               _row("upsample",       "run onnx"),
}  # fmt: skip

# TFMOT computes a SeparableConv1D in two dimensions, between two Lambda layers of these names: they
# add an axis of length 1 after the batch and remove it again. Their code is not looked at.
LAMBDAS: Mapping[str, str] = {
    "sepconv1d_expand": "SeparableConvExpand",
    "sepconv1d_squeeze": "SeparableConvSqueeze",
}


@dataclass(frozen=True)
class ActivationFunction:
    """An activation that a layer can end with.

    Attributes
    ----------
    kind : str
        ``linear`` changes nothing, ``relu`` is piecewise linear; ``elementwise`` is smooth, so that
        a table of the integers computes it; ``vector`` is smooth and needs all values of the last
        axis.
    op : str
        TensorFlow's op of it alone, which ONNX has, too, unless it is bounded; ``""`` if none.
    limit : float
        The upper bound of a ReLU.
    gain, shift : float
        What a ReLU multiplies by and adds before.
    onnx : str
        ONNX's operation, where TensorFlow has none; ``""`` if none.
    """

    kind: Literal["linear", "relu", "elementwise", "vector"]
    op: str = ""
    limit: float = float("inf")
    gain: float = 1.0
    shift: float = 0.0
    onnx: str = ""


ACTIVATIONS: Mapping[str, ActivationFunction] = {
    "linear":       ActivationFunction("linear"),
    "relu":         ActivationFunction("relu", "Relu"),
    "relu6":        ActivationFunction("relu", "Relu6", 6.0),
    # In float32, 0.2 is a bit more.
    "hard_sigmoid": ActivationFunction("relu", "", 1.0, 13421773 * 2.0**-26, 0.5, "HardSigmoid"),
    "elu":          ActivationFunction("elementwise", "Elu"),
    "exponential":  ActivationFunction("elementwise", onnx="Exp"),
    "gelu":         ActivationFunction("elementwise", onnx="Gelu"),
    "hard_silu":    ActivationFunction("elementwise"),
    "hard_swish":   ActivationFunction("elementwise"),
    "mish":         ActivationFunction("elementwise", onnx="Mish"),
    "selu":         ActivationFunction("elementwise", "Selu"),
    "sigmoid":      ActivationFunction("elementwise", "Sigmoid"),
    "silu":         ActivationFunction("elementwise"),
    "softplus":     ActivationFunction("elementwise", "Softplus"),
    "softsign":     ActivationFunction("elementwise", "Softsign"),
    "swish":        ActivationFunction("elementwise"),
    "tanh":         ActivationFunction("elementwise", "Tanh"),
    "softmax":      ActivationFunction("vector", "Softmax"),

    # Operations of TFLite files, by names that no Keras config has.
    "tflite.abs":      ActivationFunction("elementwise", onnx="Abs"),
    "tflite.clip":     ActivationFunction("elementwise", onnx="Clip"),
    "tflite.log":      ActivationFunction("elementwise", onnx="Log"),
    "tflite.negative": ActivationFunction("elementwise", onnx="Neg"),
    "tflite.sqrt":     ActivationFunction("elementwise", onnx="Sqrt"),
    "tflite.square":   ActivationFunction("elementwise", onnx="Mul"),
}  # fmt: skip
# Float layers that end with an activation, as others do.
_ENDING = frozenset({
    "Conv3DTranspose", "EinsumDense", "LocallyConnected1D", "LocallyConnected2D",
})  # fmt: skip
# Layers that are one activation.
_CLASSES = {"Softmax": "softmax", "ELU": "elu"}


def kind_of(class_name: str) -> Kind | None:
    """Return what a layer class does, ``None`` if it is not in the table."""
    row = LAYERS.get(class_name)
    return row.kind if row else None


def supports(class_name: str, verb: Verb) -> bool:
    """Whether a verb supports a layer class."""
    row = LAYERS.get(class_name)
    return row is not None and verb in row.verbs


def ends_with_activation(class_name: str) -> bool:
    """Whether the activation of a layer class, and its quantizers, are the last that it does.

    Inside a recurrent layer there are others, and of an unknown class it is not known.
    """
    kind = kind_of(class_name)
    return kind is not None and (kind != "float" or class_name in _ENDING)


def unknown_of(node: Node) -> str | None:
    """Return what makes a layer a cut point, ``None`` if it is none.

    It is the class of a layer that qmath does not compute, or the name of such an activation.
    """
    if not supports(node.class_name, "run"):
        return node.class_name
    activation = activation_of(node)
    return None if activation in ACTIVATIONS else activation


def activation_of(node: Node) -> str:
    """Return the name of the function that a layer ends with, ``"linear"`` where it has none.

    An object in place of a name gives its class, or ``"custom"``: no name of `ACTIVATIONS`.
    """
    if node.class_name in _CLASSES:
        return _CLASSES[node.class_name]
    if not ends_with_activation(node.class_name):
        return "linear"
    value: Any = node.config.get("activation")
    if isinstance(value, Mapping):
        value = value.get("class_name")
        return value if isinstance(value, str) and value not in ACTIVATIONS else "custom"
    if value is None:
        return "linear"
    return value if isinstance(value, str) else "custom"
